/*
 * bench_ceiling.c - best of several repeats, because others on the machine only ever make a loop slower. On the CPU all
 * threads of the run work on pieces of their own, through the backend's pool; a device multiplies through its backend.
 * Fails: CF_ERR_NOMEM, CF_ERR_SYS (threads), CF_ERR_DEVICE.
 */
#include "tools/bench_ceiling.h"

#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/compute/cpu/dnnl_matmul.h"
#include "common/compute/cpu/pool.h"
#include "common/compute/ops.h"

#define REPEATS      7
#define READ_BYTES   ((size_t)1 << 30) /* beyond any cache that a few cores have to themselves */
#define READ_PIECES  64
#define AHEAD_BYTES  8192
#define LINE_BYTES   64
#define PIECE_ROWS   512 /* with 1024 x 1024: the operands of one thread stay in its second cache */
#define SIDE         1024
#define PIECES       8 /* of a thread and repeat: threads end together */
#define DEVICE_ROWS  2048
#define OPERAND_FILL 0x3C /* bytes 3C3C: 0.0115 as f32, 0.0115 as bf16 */

typedef struct read_job {
    const unsigned char *bytes;
    uint64_t sums[READ_PIECES]; /* so that the loads are not left out */
} read_job;

static void read_piece(void *ctx, int32_t piece, int thread_idx)
{
    (void)thread_idx;
    read_job *job = ctx;
    const size_t each = READ_BYTES / READ_PIECES;
    const unsigned char *p = job->bytes + (size_t)piece * each;
    uint64_t sum[LINE_BYTES / sizeof(uint64_t)] = {0};
    for (size_t at = 0; at < each; at += LINE_BYTES) {
        uint64_t line[LINE_BYTES / sizeof(uint64_t)];
        __builtin_prefetch(p + at + AHEAD_BYTES);
        memcpy(line, p + at, sizeof line);
        for (size_t i = 0; i < LINE_BYTES / sizeof(uint64_t); i++)
            sum[i] += line[i];
    }
    for (size_t i = 0; i < LINE_BYTES / sizeof(uint64_t); i++)
        job->sums[piece] += sum[i];
}

static cf_err measure_read(pool *threads, double *ret_gbs)
{
    cf_err err;
    arena memory = {0};
    read_job job = {0};
    void *bytes;
    double best = 0;
    TRY(arena_open(READ_BYTES + AHEAD_BYTES, &memory));
    TRY(arena_take(&memory, READ_BYTES, &bytes));
    memset(bytes, 1, READ_BYTES);
    job.bytes = bytes;
    for (int i = 0; i < REPEATS; i++) {
        const uint64_t start_us = clock_now_us();
        pool_run(threads, READ_PIECES, read_piece, &job);
        const double gbs = (double)READ_BYTES / (double)(clock_now_us() - start_us) / 1e3;
        best = gbs > best ? gbs : best;
    }
    *ret_gbs = best;
out:
    arena_close(&memory);
    return err;
}

typedef struct product_job {
    const onednn_product *product;
    float *a, *c; /* [threads][PIECE_ROWS][SIDE] */
    cf_err err;   /* of any thread; only ever set to the same kind of failure */
} product_job;

static void product_piece(void *ctx, int32_t piece, int thread_idx)
{
    (void)piece;
    product_job *job = ctx;
    const size_t at = (size_t)thread_idx * PIECE_ROWS * SIDE;
    const cf_err err = onednn_product_run(job->product, thread_idx, job->a + at, job->c + at);
    if (err != CF_OK)
        job->err = err;
}

static cf_err measure_products(pool *threads, bool bf16, double *ret_gflops)
{
    cf_err err;
    const int count = pool_threads(threads);
    const size_t operand_bytes = (size_t)PIECE_ROWS * SIDE * sizeof(float),
                 b_bytes = (size_t)SIDE * SIDE * sizeof(float);
    const onednn_shape shape = {.rows = PIECE_ROWS, .depth = SIDE, .cols = SIDE, .bf16 = bf16};
    onednn_context *context = NULL;
    onednn_product *product = NULL;
    arena memory = {0};
    product_job job = {.err = CF_OK};
    float *b;
    double best = 0;
    TRY(arena_open(b_bytes + 2 * (size_t)count * operand_bytes, &memory));
    TRY(arena_take(&memory, b_bytes, &b));
    TRY(arena_take(&memory, (size_t)count * operand_bytes, &job.a));
    TRY(arena_take(&memory, (size_t)count * operand_bytes, &job.c));
    memset(b, OPERAND_FILL, b_bytes);
    memset(job.a, OPERAND_FILL, (size_t)count * operand_bytes);
    TRY(onednn_context_open(count, &context));
    TRY(onednn_product_open(context, &shape, b, &product));
    job.product = product;
    for (int i = 0; i < REPEATS; i++) {
        const uint64_t start_us = clock_now_us();
        pool_run(threads, PIECES * count, product_piece, &job);
        const double flop = 2.0 * PIECES * count * PIECE_ROWS * SIDE * SIDE;
        const double gflops = flop / (double)(clock_now_us() - start_us) / 1e3;
        best = gflops > best ? gflops : best;
    }
    if (job.err != CF_OK)
        FAIL(job.err, "oneDNN refused a product of %d x %d x %d", PIECE_ROWS, SIDE, SIDE);
    *ret_gflops = best;
out:
    onednn_product_close(product);
    onednn_context_close(context);
    arena_close(&memory);
    return err;
}

static cf_err measure_device(const stage_config *cfg, precision operands, bench_ceiling *c, double *ret_gflops)
{
    cf_err err;
    backend *be = NULL;
    float *values = NULL;
    weight *packed;
    tensor x, y;
    double best = 0;
    const backend_config bc = {.device = cfg->device, .threads = cfg->threads, .scratch_bytes = (size_t)64 << 20};
    TRY(backend_open(&bc, &be));
    TRY(mem_alloc((size_t)DEVICE_ROWS * SIDE, sizeof *values, &values));
    memset(values, OPERAND_FILL, (size_t)DEVICE_ROWS * SIDE * sizeof *values);
    TRY(backend_pack_linear(be, values, SIDE, SIDE, operands, GEMM_BULK_BIT, &packed));
    TRY(backend_take_2d(be, DTYPE_F32, DEVICE_ROWS, SIDE, &x));
    TRY(backend_take_2d(be, DTYPE_F32, DEVICE_ROWS, SIDE, &y));
    TRY(backend_upload(be, values, &x));
    TRY(backend_sync(be));
    for (int i = 0; i < REPEATS; i++) {
        const uint64_t start_us = clock_now_us();
        TRY(op_linear(be, &(op_linear_args){.x = &x, .w = packed, .y = &y, .kind = GEMM_BULK}));
        TRY(backend_sync(be));
        const double gflops = 2.0 * DEVICE_ROWS * SIDE * SIDE / (double)(clock_now_us() - start_us) / 1e3;
        best = gflops > best ? gflops : best;
    }
    c->threads = backend_threads(be);
    *ret_gflops = best;
out:
    mem_free(values);
    backend_close(be);
    return err;
}

static cf_err measure_cpu(const stage_config *cfg, bench_ceiling *c)
{
    cf_err err;
    backend *be = NULL;
    pool *threads = NULL;
    const backend_config bc = {.device = cfg->device, .threads = cfg->threads, .scratch_bytes = (size_t)1 << 20};
    TRY(backend_open(&bc, &be)); /* it knows how many threads the process may run */
    c->threads = backend_threads(be);
    TRY(pool_open(c->threads, &threads));
    TRY(measure_products(threads, false, &c->gemm_f32_gflops));
    TRY(measure_products(threads, true, &c->gemm_bf16_gflops));
    TRY(measure_read(threads, &c->read_gbs));
out:
    pool_close(threads);
    backend_close(be);
    return err;
}

cf_err bench_ceilings(const stage_config *cfg, bench_ceiling *ret_ceiling)
{
    cf_err err;
    bench_ceiling c = {0};
    if (strcmp(cfg->device, "cpu") == 0) {
        TRY(measure_cpu(cfg, &c));
        c.gemm_gflops = cfg->operands == PRECISION_F32 ? c.gemm_f32_gflops : c.gemm_bf16_gflops;
    } else {
        TRY(measure_device(cfg, PRECISION_F32, &c, &c.gemm_f32_gflops));
        /* Every card has fp16, and where it has bf16 that is as fast. */
        TRY(measure_device(cfg, PRECISION_FP16, &c, &c.gemm_bf16_gflops));
        c.gemm_gflops = cfg->operands == PRECISION_F32 ? c.gemm_f32_gflops : c.gemm_bf16_gflops;
    }
    *ret_ceiling = c;
out:
    return err;
}
