/*
 * bench_ops.c - ops one by one, queued many times and waited for once, so that a device's launches overlap.
 *
 * Shapes are those of Flow and HiFT at full size; the rows are the caller's. Ceilings come first: a copy of 256 MiB,
 * and a product of the same rows with a matrix of 4096 x 4096. An op's bytes are those that it cannot avoid: operands
 * read once, results written once.
 * Fails: what the backend fails with; CF_ERR_NOMEM.
 */
#include "tools/bench_ops.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/compute/ops.h"
#include "hift_worker/hift_model.h"

#define WIDTH         1024
#define HEADS         16
#define PAIRS         32
#define CEILING_WIDTH 4096
#define COPY_VALUES   ((int64_t)64 << 20)
#define POSITION_TAPS 31
#define SPECTRUM      18
#define PAST_TOKENS   250
#define KV_HEADS      2
#define QUERY_HEADS   14
#define INNER         4864
#define MEASURE_US    (CLOCK_SECOND_US / 5)
#define CALLS_MAX     200
#define SCRATCH_BYTES ((size_t)16 << 30) /* address space */

typedef cf_err call_fn(backend *be, const void *args);
#define CALLER(name)                                         \
    static cf_err call_##name(backend *be, const void *args) \
    {                                                        \
        return op_##name(be, args);                          \
    }
CALLER(linear)
CALLER(conv1d)
CALLER(layer_norm_mod)
CALLER(rms_norm)
CALLER(rope)
CALLER(attn_block)
CALLER(attn_cache)
CALLER(swiglu)
CALLER(snake)
CALLER(add)
CALLER(stft)
CALLER(istft)

typedef struct ops_bench {
    backend *be;
    precision operands, vocoder_operands;
    dtype narrow; /* of operands */
    int64_t n;    /* frames of all sequences */
    op_rows rows, tenfold;
    int32_t *zeros; /* [sequences]: steps, blocks */
    float *values;  /* random, host */
    bench_op_rate *rates;
    int count;
    double copy_gbs, product_gflops;
} ops_bench;

typedef struct copy_args {
    tensor from, to;
} copy_args;

static cf_err call_copy(backend *be, const void *args)
{
    copy_args c = *(const copy_args *)args;
    return backend_copy(be, &c.from, &c.to);
}

/* bytes or flops is 0: not what bounds it. */
static cf_err measure(ops_bench *b, const char *name, double bytes, double flops, call_fn *call, const void *args)
{
    cf_err err;
    int calls = 0;
    uint64_t spent_us = 0;
    TRY(call(b->be, args));
    TRY(backend_sync(b->be));
    const uint64_t start_us = clock_now_us();
    for (int batch = 1; spent_us < MEASURE_US && calls < CALLS_MAX; batch *= 2) {
        for (int i = 0; i < batch; i++)
            TRY(call(b->be, args));
        calls += batch;
        TRY(backend_sync(b->be));
        spent_us = clock_now_us() - start_us;
    }
    bench_op_rate *r = &b->rates[b->count++];
    *r = (bench_op_rate){.name = name, .seconds = (double)(spent_us ? spent_us : 1) / 1e6 / calls};
    r->gbs = bytes / r->seconds / 1e9;
    r->gflops = flops / r->seconds / 1e9;
    if (call == call_copy)
        b->copy_gbs = r->gbs;
    if (b->product_gflops == 0 && flops > 0)
        b->product_gflops = r->gflops;
    r->share = flops > 0 ? r->gflops / b->product_gflops : r->gbs / b->copy_gbs;
out:
    return err;
}

/* [rows, width] of random values in [-1, 1), or as many bits of numbers between two powers of two. */
static cf_err take(ops_bench *b, dtype type, int64_t rows, int64_t width, tensor *ret_t)
{
    cf_err err;
    const int64_t line = COPY_VALUES / width;
    TRY(backend_take_2d(b->be, type, rows, width, ret_t));
    for (int64_t first = 0; first < rows; first += line) {
        tensor part = tensor_rows(ret_t, first, rows - first < line ? rows - first : line);
        TRY(backend_upload(b->be, type == DTYPE_F32 ? (const void *)b->values : b->values + COPY_VALUES, &part));
    }
out:
    return err;
}

static cf_err take_vector(ops_bench *b, int64_t count, tensor *ret_t)
{
    const cf_err err = take(b, DTYPE_F32, 1, count, ret_t);
    if (err == CF_OK)
        *ret_t = tensor_1d(ret_t->data, DTYPE_F32, count);
    return err;
}

static cf_err run_linear(ops_bench *b, const char *name, int64_t k_in, int64_t n_out, bool narrow, act_kind act,
                         const op_modulation *gate)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(b->be);
    tensor x, y, bias;
    weight *w;
    TRY(backend_pack_linear(b->be, b->values, n_out, k_in, b->operands, GEMM_BULK_BIT, &w));
    TRY(take(b, b->narrow, b->n, k_in, &x));
    TRY(take(b, narrow ? b->narrow : DTYPE_F32, b->n, n_out, &y));
    TRY(take_vector(b, n_out, &bias));
    const op_linear_args a = {
        .x = &x, .w = w, .bias = &bias, .y = &y, .act = act, .kind = GEMM_BULK, .gate = gate, .gate_off = 0};
    TRY(measure(b, name, 0, 2.0 * (double)b->n * (double)k_in * (double)n_out, call_linear, &a));
out:
    backend_scratch_reset(b->be, mark);
    return err;
}

static cf_err run_ceilings(ops_bench *b)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(b->be);
    copy_args c;
    TRY(backend_take_2d(b->be, DTYPE_F32, COPY_VALUES / WIDTH, WIDTH, &c.from));
    TRY(backend_take_2d(b->be, DTYPE_F32, COPY_VALUES / WIDTH, WIDTH, &c.to));
    TRY(backend_zero(b->be, &c.from));
    TRY(measure(b, "copy", 2.0 * COPY_VALUES * sizeof(float), 0, call_copy, &c));
    backend_scratch_reset(b->be, mark);
    TRY(run_linear(b, "product 4096 x 4096", CEILING_WIDTH, CEILING_WIDTH, true, ACT_NONE, NULL));
out:
    backend_scratch_reset(b->be, mark);
    return err;
}

static cf_err run_flow(ops_bench *b)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(b->be);
    const double n = (double)b->n, narrow = b->narrow == DTYPE_F32 ? 4 : 2;
    tensor table, h, normed, qkv, mixed, waves, pos;
    int32_t *host = NULL;
    TRY(take(b, DTYPE_F32, 1, 6 * WIDTH, &table));
    const op_modulation mod = {&table, b->zeros, &b->rows};
    TRY(run_linear(b, "linear 1024 x 3072", WIDTH, 3 * WIDTH, true, ACT_NONE, NULL));
    TRY(run_linear(b, "linear 1024 x 2048, gelu", WIDTH, 2 * WIDTH, true, ACT_GELU_TANH, NULL));
    TRY(run_linear(b, "linear 2048 x 1024, gate", 2 * WIDTH, WIDTH, false, ACT_NONE, &mod));
    TRY(take(b, DTYPE_F32, b->n, WIDTH, &h));
    TRY(take(b, b->narrow, b->n, WIDTH, &normed));
    TRY(measure(b, "layer_norm_mod", n * WIDTH * (4 + narrow), 0, call_layer_norm_mod,
                &(op_layer_norm_mod_args){.x = &h, .y = &normed, .mod = mod, .shift_off = WIDTH, .eps = 1e-6f}));
    TRY(take(b, b->narrow, b->n, 3 * WIDTH, &qkv));
    TRY(take(b, DTYPE_F32, b->n, PAIRS, &waves));
    TRY(backend_take(b->be, DTYPE_I32, 1, &b->n, &pos));
    TRY(mem_alloc((size_t)b->n, sizeof *host, &host));
    for (int64_t i = 0; i < b->n; i++)
        host[i] = (int32_t)i;
    TRY(backend_upload(b->be, host, &pos));
    TRY(measure(
        b, "rope of one head", n * 64 * (4 + 2 * narrow), 0, call_rope,
        &(op_rope_args){
            .x = &qkv, .cos_table = &waves, .sin_table = &waves, .pos = &pos, .head_count = 1, .adjacent = true}));
    TRY(take(b, b->narrow, b->n, WIDTH, &mixed));
    TRY(measure(
        b, "attn_block, 16 heads", 0, 4.0 * n * (double)rows_length(&b->rows, 0) * WIDTH, call_attn_block,
        &(op_attn_block_args){
            .qkv = &qkv, .y = &mixed, .rows = &b->rows, .block = b->zeros, .heads = HEADS, .operands = b->operands}));
out:
    mem_free(host);
    backend_scratch_reset(b->be, mark);
    return err;
}

typedef struct conv_wish {
    const char *name;
    int64_t channels, filters;
    int32_t kernel, dilation, groups;
    act_kind act;
} conv_wish;

static cf_err run_conv(ops_bench *b, const conv_wish *c, const op_rows *rows)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(b->be);
    const int64_t n = rows_total(rows);
    const precision operands = c->groups > 1 ? b->operands : b->vocoder_operands;
    tensor x, y, bias;
    weight *w;
    TRY(backend_pack_conv(b->be, b->values, c->filters, c->channels, c->kernel, c->groups, operands, &w));
    TRY(take(b, DTYPE_F32, n, c->channels, &x));
    TRY(take(b, DTYPE_F32, n, c->filters, &y));
    TRY(take_vector(b, c->filters, &bias));
    const op_conv1d_args a = {.x = &x,
                              .rows_in = rows,
                              .w = w,
                              .bias = &bias,
                              .y = &y,
                              .rows_out = rows,
                              .kernel = c->kernel,
                              .dilation = c->dilation,
                              .stride = 1,
                              .pad_left = (c->kernel - 1) * c->dilation,
                              .repeat = 1,
                              .groups = c->groups,
                              .act = c->act};
    const double products = (double)c->kernel * (double)c->channels / c->groups * (double)c->filters;
    TRY(measure(b, c->name, 0, 2.0 * (double)n * products, call_conv1d, &a));
out:
    backend_scratch_reset(b->be, mark);
    return err;
}

static cf_err run_hift(ops_bench *b)
{
    static const conv_wish position = {"conv1d, 31 taps, 16 groups", WIDTH, WIDTH, POSITION_TAPS, 1, HEADS, ACT_MISH};
    static const conv_wish block = {"conv1d of 128, 7 taps by 3", 128, 128, 7, 3, 1, ACT_NONE};
    cf_err err;
    const size_t mark = backend_scratch_mark(b->be);
    const int64_t n = rows_total(&b->tenfold);
    const double values = (double)n * 128;
    tensor x, y, alpha;
    TRY(run_conv(b, &position, &b->rows));
    TRY(run_conv(b, &block, &b->tenfold));
    TRY(take(b, DTYPE_F32, n, 128, &x));
    TRY(take(b, DTYPE_F32, n, 128, &y));
    TRY(take_vector(b, 128, &alpha));
    TRY(measure(b, "snake", values * 8, 0, call_snake, &(op_snake_args){.x = &x, .alpha = &alpha, .y = &y}));
    TRY(measure(b, "add", values * 12, 0, call_add, &(op_add_args){.a = &x, .b = &y, .y = &y}));
out:
    backend_scratch_reset(b->be, mark);
    return err;
}

/* 16-point transforms of as many samples as the frames make. */
static cf_err run_transforms(ops_bench *b)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(b->be);
    const int32_t count = b->rows.count, samples = rows_length(&b->rows, 0) * SAMPLES_PER_FRAME;
    int32_t *lengths = NULL;
    op_rows audio, lines;
    tensor x, y;
    TRY(mem_alloc((size_t)count, sizeof *lengths, &lengths));
    for (int32_t i = 0; i < count; i++)
        lengths[i] = samples;
    TRY(backend_rows(b->be, lengths, count, &audio));
    for (int32_t i = 0; i < count; i++)
        lengths[i] = samples / 4 + 1;
    TRY(backend_rows(b->be, lengths, count, &lines));
    TRY(take_vector(b, rows_total(&audio), &x));
    TRY(take(b, DTYPE_F32, rows_total(&lines), SPECTRUM, &y));
    const double bytes = 4.0 * ((double)rows_total(&audio) + (double)SPECTRUM * rows_total(&lines));
    TRY(measure(b, "stft", bytes, 0, call_stft,
                &(op_stft_args){.x = &x, .rows_in = &audio, .y = &y, .rows_out = &lines}));
    TRY(measure(b, "istft", bytes, 0, call_istft,
                &(op_istft_args){.x = &y, .rows_in = &lines, .y = &x, .rows_out = &audio, .limit = 0.99f}));
out:
    mem_free(lengths);
    backend_scratch_reset(b->be, mark);
    return err;
}

/* One step of the LLM's decoding: a row a sequence. */
static cf_err run_decode(ops_bench *b)
{
    enum { PAGES = (PAST_TOKENS + CACHE_PAGE_TOKENS) / CACHE_PAGE_TOKENS };
    cf_err err;
    const size_t mark = backend_scratch_mark(b->be);
    const int32_t count = b->rows.count;
    const double bytes = 4.0 * count;
    int32_t lengths[JOBS_PER_MEMBER_MAX], past[JOBS_PER_MEMBER_MAX], pages[JOBS_PER_MEMBER_MAX * PAGES];
    op_rows rows;
    tensor qkv, cache, mixed, x, y, gain, wide;
    for (int32_t i = 0; i < count; i++) {
        lengths[i] = 1;
        past[i] = PAST_TOKENS;
    }
    for (int32_t i = 0; i < count * PAGES; i++)
        pages[i] = i;
    TRY(backend_rows(b->be, lengths, count, &rows));
    TRY(take(b, DTYPE_F32, count, (QUERY_HEADS + 2 * KV_HEADS) * 64, &qkv));
    TRY(take(b, DTYPE_F32, count, QUERY_HEADS * 64, &mixed));
    TRY(take(b, DTYPE_F32, (int64_t)count * PAGES * 2 * KV_HEADS * CACHE_PAGE_TOKENS, 64, &cache));
    cache.rank = 5;
    memcpy(cache.dims, (const int64_t[]){(int64_t)count * PAGES, 2, KV_HEADS, CACHE_PAGE_TOKENS, 64},
           5 * sizeof cache.dims[0]);
    TRY(measure(b, "attn_cache of 250 tokens, decode", bytes * PAST_TOKENS * 2 * KV_HEADS * 64, 0, call_attn_cache,
                &(op_attn_cache_args){.qkv = &qkv,
                                      .cache = &cache,
                                      .y = &mixed,
                                      .rows = &rows,
                                      .pages = pages,
                                      .past = past,
                                      .pages_max = PAGES,
                                      .heads = QUERY_HEADS,
                                      .kv_heads = KV_HEADS,
                                      .kind = GEMM_DECODE}));
    TRY(take(b, DTYPE_F32, b->n, 896, &x));
    TRY(take(b, DTYPE_F32, b->n, 896, &y));
    TRY(take_vector(b, 896, &gain));
    TRY(measure(b, "rms_norm of 896", 8.0 * 896 * (double)b->n, 0, call_rms_norm,
                &(op_rms_norm_args){.x = &x, .gain = &gain, .y = &y, .eps = 1e-6f}));
    TRY(take(b, DTYPE_F32, b->n, 2 * INNER, &wide));
    TRY(take(b, DTYPE_F32, b->n, INNER, &y));
    TRY(measure(b, "swiglu of 4864", 12.0 * INNER * (double)b->n, 0, call_swiglu, &(op_swiglu_args){&wide, &y}));
out:
    backend_scratch_reset(b->be, mark);
    return err;
}

/* Random f32, and behind them random numbers of 16 bits, between 0.5 and 1 in fp16. */
static cf_err make_values(ops_bench *b)
{
    cf_err err;
    uint64_t state = 1;
    TRY(mem_alloc((size_t)COPY_VALUES * 3 / 2, sizeof *b->values, &b->values));
    uint16_t *narrow = (uint16_t *)(void *)(b->values + COPY_VALUES);
    for (int64_t i = 0; i < COPY_VALUES; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b->values[i] = (float)(int32_t)(state >> 32) / 2147483648.0f;
        narrow[i] = (uint16_t)(0x3800u | (state >> 40 & 0x83FFu)); /* of either sign */
    }
out:
    return err;
}

static cf_err make_rows(ops_bench *b, int32_t rows, int32_t frames)
{
    cf_err err;
    int32_t lengths[JOBS_PER_MEMBER_MAX];
    for (int32_t i = 0; i < rows; i++)
        lengths[i] = frames;
    TRY(backend_rows(b->be, lengths, rows, &b->rows));
    for (int32_t i = 0; i < rows; i++)
        lengths[i] = 10 * frames;
    TRY(backend_rows(b->be, lengths, rows, &b->tenfold));
    b->n = rows_total(&b->rows);
out:
    return err;
}

cf_err bench_ops(const stage_config *cfg, int32_t rows, int32_t frames, bench_op_rate *ret_rates, int *ret_count)
{
    cf_err err;
    int32_t zeros[JOBS_PER_MEMBER_MAX] = {0};
    ops_bench b = {.operands = cfg->operands,
                   .vocoder_operands = hift_operands(cfg->device, cfg->operands),
                   .narrow = cfg->operands == PRECISION_BF16   ? DTYPE_BF16
                             : cfg->operands == PRECISION_FP16 ? DTYPE_F16
                                                               : DTYPE_F32,
                   .zeros = zeros,
                   .rates = ret_rates};
    const backend_config bc = {.device = cfg->device, .threads = cfg->threads, .scratch_bytes = SCRATCH_BYTES};
    TRY(backend_open(&bc, &b.be));
    TRY(make_values(&b));
    TRY(make_rows(&b, rows, frames));
    TRY(run_ceilings(&b));
    TRY(run_flow(&b));
    TRY(run_hift(&b));
    TRY(run_transforms(&b));
    TRY(run_decode(&b));
    *ret_count = b.count;
out:
    mem_free(b.values);
    backend_close(b.be);
    return err;
}
