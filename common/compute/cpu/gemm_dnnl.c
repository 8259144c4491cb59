/*
 * gemm_dnnl.c - the oneDNN engine of gemm.h: fixed tiles of 128 or 16 rows, columns in fixed pieces, each piece one
 * single-threaded product with a contiguous result. Short tiles are padded with zero rows, because what oneDNN
 * computes for a row may depend on the product's shape, but not on the row's place in it.
 *
 * Run by the pool's threads. Owns the products, through weight.impl. Fails: CF_ERR_NOMEM, CF_ERR_DEVICE (oneDNN).
 */
#include <stdatomic.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm.h"

#define BULK_COLS_MAX   512 /* a result tile of 128 x 512 f32 stays in the second cache */
#define DECODE_PIECES   8   /* enough for the threads of one socket to share the reading of a weight */
#define DECODE_COLS_MIN 128
#define KINDS           2

typedef struct dnnl_weight {
    bool bf16; /* operands are bf16 in memory; otherwise rounded values in f32, or plain f32 */
    struct {
        int64_t rows, cols, pieces; /* of one product; cols of the last piece may be fewer */
        onednn_product **products;  /* [groups * pieces], owned; NULL when this kind was not asked for */
    } kinds[KINDS];
} dnnl_weight;

cf_err gemm_dnnl_open(cpu_state *cpu, backend *be)
{
    cf_err err;
    for (int i = 0; i < be->threads; i++) {
        TRY(arena_open(DNNL_OPERAND_BYTES_MAX, &cpu->workers[i].tile_in));
        TRY(arena_open(DNNL_OPERAND_BYTES_MAX, &cpu->workers[i].tile_out));
    }
    TRY(onednn_context_open(be->threads, &cpu->dnnl));
    cpu->use_dnnl = true;
    cpu->dnnl_bf16 = onednn_has_fast_bf16();
out:
    return err;
}

void gemm_dnnl_close(cpu_state *cpu, int threads)
{
    for (int i = 0; i < threads; i++) {
        arena_close(&cpu->workers[i].tile_in);
        arena_close(&cpu->workers[i].tile_out);
    }
    onednn_context_close(cpu->dnnl);
}

/* b[k * inner + i][n] = w[n][i][k] for the columns of one piece. */
static void unpack_columns(const float *w, const weight *shape, int64_t first_col, int64_t cols, float *b)
{
    const int64_t inner = shape->k_in / shape->groups;
    for (int64_t n = 0; n < cols; n++)
        for (int64_t i = 0; i < inner; i++)
            for (int64_t k = 0; k < shape->kernel; k++) {
                const float v = w[((first_col + n) * inner + i) * shape->kernel + k];
                b[(k * inner + i) * cols + n] = shape->operands == PRECISION_BF16 ? f32_from_bf16(bf16_from_f32(v)) : v;
            }
}

static cf_err pack_kind(backend *be, const float *w, gemm_kind kind, float *b, dnnl_weight *d, weight *out)
{
    cf_err err;
    const int64_t group_cols = out->n_out / out->groups, depth = out->k_in / out->groups * out->kernel;
    const int64_t decode_cols = div_ceil(div_ceil(group_cols, DECODE_PIECES), 16) * 16;
    int64_t cols = kind == GEMM_BULK ? BULK_COLS_MAX : decode_cols;

    if (kind == GEMM_DECODE && cols < DECODE_COLS_MIN)
        cols = DECODE_COLS_MIN;
    cols = min_i64(cols, group_cols);
    d->kinds[kind].rows = kind == GEMM_BULK ? DNNL_BULK_ROWS : DNNL_DECODE_ROWS;
    d->kinds[kind].cols = cols;
    d->kinds[kind].pieces = div_ceil(group_cols, cols);
    TRY(mem_alloc((size_t)(out->groups * d->kinds[kind].pieces), sizeof *d->kinds[kind].products,
                  &d->kinds[kind].products));
    for (int64_t g = 0; g < out->groups; g++)
        for (int64_t p = 0; p < d->kinds[kind].pieces; p++) {
            onednn_product **product = &d->kinds[kind].products[g * d->kinds[kind].pieces + p];
            const onednn_shape shape = {.rows = d->kinds[kind].rows,
                                        .depth = depth,
                                        .cols = min_i64(cols, group_cols - p * cols),
                                        .bf16 = d->bf16};
            unpack_columns(w, out, g * group_cols + p * cols, shape.cols, b);
            TRY(onednn_product_open(cpu_of(be)->dnnl, &shape, b, product));
            out->bytes += onednn_product_bytes(*product);
        }
out:
    return err;
}

cf_err gemm_dnnl_pack(backend *be, const float *w, weight *out)
{
    cf_err err;
    dnnl_weight *d;
    float *b = NULL;
    const int64_t depth = out->k_in / out->groups * out->kernel, group_cols = out->n_out / out->groups;

    if ((size_t)depth * DNNL_BULK_ROWS * sizeof(float) > DNNL_OPERAND_BYTES_MAX)
        return err_set(CF_ERR_LIMIT, "a weight of depth %lld: a tile of %d rows exceeds %zu bytes", (long long)depth,
                       DNNL_BULK_ROWS, DNNL_OPERAND_BYTES_MAX);
    TRY(mem_alloc(1, sizeof *d, &d));
    out->impl = d;
    d->bf16 = out->operands == PRECISION_BF16 && cpu_of(be)->dnnl_bf16;
    TRY(mem_alloc((size_t)(depth * group_cols), sizeof *b, &b));
    if (out->kinds & GEMM_BULK_BIT)
        TRY(pack_kind(be, w, GEMM_BULK, b, d, out));
    if (out->kinds & GEMM_DECODE_BIT)
        TRY(pack_kind(be, w, GEMM_DECODE, b, d, out));
out:
    mem_free(b);
    return err;
}

void gemm_dnnl_weight_close(weight *w)
{
    dnnl_weight *d = w->impl;
    if (!d)
        return;
    for (int kind = 0; kind < KINDS; kind++) {
        for (int64_t i = 0; d->kinds[kind].products && i < w->groups * d->kinds[kind].pieces; i++)
            onednn_product_close(d->kinds[kind].products[i]);
        mem_free(d->kinds[kind].products);
    }
    mem_free(d);
    w->impl = NULL;
}

typedef struct dnnl_job {
    const gemm_job *job;
    const dnnl_weight *d;
    int64_t tile_rows, pieces, cols;
    _Atomic int err;
} dnnl_job;

/* Values that are bf16 already, moved together in place. */
static void narrow_in_place(float *x, int64_t count)
{
    unsigned char *bytes = (unsigned char *)x;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t v = bf16_from_f32(x[i]);
        memcpy(bytes + 2 * i, &v, sizeof v);
    }
}

static void run_piece(void *ctx, int32_t task_idx, int thread_idx)
{
    dnnl_job *dj = ctx;
    const gemm_job *job = dj->job;
    cpu_worker *worker = &job->cpu->workers[thread_idx];
    float *in = (float *)(void *)worker->tile_in.base, *out = (float *)(void *)worker->tile_out.base;
    const int64_t piece = task_idx % dj->pieces, rest = task_idx / dj->pieces, row_tiles = job->row_tiles;
    const gemm_tile t = {
        .first_row = rest % row_tiles * dj->tile_rows,
        .rows = min_i64(dj->tile_rows, job->rows - rest % row_tiles * dj->tile_rows),
        .group = rest / row_tiles,
        .first_col = piece * dj->cols,
        .cols = min_i64(dj->cols, job->group_cols - piece * dj->cols),
    };

    gemm_locate(job, t.first_row, t.rows, worker->lines);
    gemm_gather(job, worker->lines, t.rows, t.group, 0, job->depth, job->depth, in);
    memset(in + t.rows * job->depth, 0, (size_t)((dj->tile_rows - t.rows) * job->depth) * sizeof *in);
    if (dj->d->bf16)
        narrow_in_place(in, dj->tile_rows * job->depth);
    const cf_err err =
        onednn_product_run(dj->d->kinds[job->kind].products[t.group * dj->pieces + piece], thread_idx, in, out);
    if (err != CF_OK)
        atomic_store(&dj->err, (int)err);
    for (int64_t r = 0; r < t.rows; r++)
        memcpy(tensor_f32(job->y) + (t.first_row + r) * job->w->n_out + t.group * job->group_cols + t.first_col,
               out + r * t.cols, (size_t)t.cols * sizeof *out);
    gemm_finish(job, &t);
}

cf_err gemm_dnnl_run(gemm_job *job)
{
    const dnnl_weight *d = job->w->impl;
    dnnl_job dj = {.job = job,
                   .d = d,
                   .tile_rows = d->kinds[job->kind].rows,
                   .pieces = d->kinds[job->kind].pieces,
                   .cols = d->kinds[job->kind].cols};

    job->row_tiles = div_ceil(job->rows, dj.tile_rows);
    const int64_t tasks = job->row_tiles * dj.pieces * job->w->groups;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    pool_run(job->cpu->threads, (int32_t)tasks, run_piece, &dj);
    if (atomic_load(&dj.err) != CF_OK)
        return err_set((cf_err)atomic_load(&dj.err), "oneDNN refused to run a product of %lld columns",
                       (long long)job->w->n_out);
    return CF_OK;
}
