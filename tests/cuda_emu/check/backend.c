/*
 * backend.c - the CUDA backend on the emulated device: errors and their words, memory, kernels against the plain
 * loops. Test code. `backend kernels` runs the comparison of the kernels with barriers alone (mutants.sh).
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fault.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/compute/ops.h"
#include "tests/cuda_emu/cuda_runtime_api.h"

#define SCRATCH_BYTES ((size_t)256 << 20)
/* f32 sums of up to a few hundred products in another order than the plain loops' f64. */
#define RELATIVE 2e-6

static backend *open_on(const char *device, bool naive)
{
    backend *be = NULL;
    const backend_config cfg = {.device = device, .naive = naive, .threads = 1, .scratch_bytes = SCRATCH_BYTES};
    assert_ok(backend_open(&cfg, &be));
    return be;
}

static cf_err try_open(const char *device)
{
    backend *be = NULL;
    const backend_config cfg = {.device = device, .scratch_bytes = SCRATCH_BYTES};
    const cf_err err = backend_open(&cfg, &be);
    if (err == CF_OK)
        backend_close(be);
    return err;
}

/* Values in [-1, 1), the same for the same key. */
static tensor random_2d(backend *be, uint64_t key, int64_t rows, int64_t width)
{
    tensor t;
    float *host;
    assert_ok(mem_alloc((size_t)(rows * width), sizeof *host, &host));
    for (int64_t i = 0; i < rows * width; i++)
        host[i] = 2.0f * rng_uniform(key, 0, (uint32_t)i, 0) - 1.0f;
    assert_ok(backend_take_2d(be, DTYPE_F32, rows, width, &t));
    assert_ok(backend_upload(be, host, &t));
    mem_free(host);
    return t;
}

typedef void run_fn(backend *be, tensor *ret_y);

static void compare_within(run_fn *run, double relative)
{
    static float got[1 << 16], again[1 << 16], want[1 << 16];
    static const struct {
        const char *device;
        bool naive;
    } on[] = {{"cuda:0", false}, {"cpu", true}};
    size_t count = 0;
    for (int i = 0; i < 2; i++) {
        backend *be = open_on(on[i].device, on[i].naive);
        tensor y;
        run(be, &y);
        count = (size_t)tensor_count(&y);
        assert_true(count <= sizeof got / sizeof *got);
        assert_ok(backend_download(be, &y, i == 0 ? got : want));
        if (i == 0) {
            run(be, &y);
            assert_ok(backend_download(be, &y, again));
            assert_memory_equal(got, again, count * sizeof *got);
        }
        backend_close(be);
    }
    const test_diff d = test_compare(got, want, count);
    if (d.nonfinite || d.rel > relative)
        fail_msg("relative difference %g at value %zu", d.rel, d.worst_idx);
}

static void compare_with_naive(run_fn *run)
{
    compare_within(run, RELATIVE);
}

static const int32_t lengths[] = {3, 0, 150, 1};
#define SEQUENCES 4
#define ROWS      154

static void run_rms_norm(backend *be, tensor *ret_y)
{
    const tensor x = random_2d(be, 1, 5, 300);
    tensor gain = random_2d(be, 2, 1, 300);
    gain = tensor_1d(gain.data, DTYPE_F32, 300);
    assert_ok(backend_take_2d(be, DTYPE_F32, 5, 300, ret_y));
    assert_ok(op_rms_norm(be, &(op_rms_norm_args){.x = &x, .gain = &gain, .y = ret_y, .eps = 1e-6f}));
}

static void run_layer_norm(backend *be, tensor *ret_y)
{
    static const int32_t steps[] = {1, 0, 2, 1};
    op_rows rows;
    const tensor x = random_2d(be, 3, ROWS, 130), table = random_2d(be, 4, 3, 400);
    assert_ok(backend_rows(be, lengths, SEQUENCES, &rows));
    assert_ok(backend_take_2d(be, DTYPE_F32, ROWS, 130, ret_y));
    assert_ok(op_layer_norm_mod(
        be, &(op_layer_norm_mod_args){
                .x = &x, .y = ret_y, .mod = {&table, steps, &rows}, .scale_off = 130, .shift_off = 270, .eps = 1e-6f}));
}

static void run_attn(backend *be, precision operands, tensor *ret_y)
{
    static const int32_t block[] = {0, 0, 50, 50};
    op_rows rows;
    const tensor qkv = random_2d(be, 5, ROWS, 3 * 2 * 64);
    const op_attn_block_args a = {
        .qkv = &qkv, .y = ret_y, .rows = &rows, .block = block, .heads = 2, .operands = operands};
    assert_ok(backend_rows(be, lengths, SEQUENCES, &rows));
    assert_ok(backend_take_2d(be, DTYPE_F32, ROWS, 2 * 64, ret_y));
    assert_ok(op_attn_block(be, &a));
}

static void run_attn_block(backend *be, tensor *ret_y)
{
    run_attn(be, PRECISION_F32, ret_y);
}

static void run_attn_mma(backend *be, tensor *ret_y)
{
    run_attn(be, PRECISION_FP16, ret_y);
}

/* 150 rows of prompt, then single rows, in pages out of order. */
static void run_attn_cache(backend *be, tensor *ret_y)
{
    static const int32_t one[] = {1, 1}, prompt[] = {150, 3}, pages[] = {4, 1, 3, 0, -1, -1};
    static const int32_t none[] = {0, 0}, past[] = {150, 3};
    op_rows rows;
    tensor cache, y;
    const tensor first = random_2d(be, 6, 153, 9 * 64), second = random_2d(be, 7, 2, 9 * 64);
    assert_ok(backend_take(be, DTYPE_F32, 5, (const int64_t[]){5, 2, 1, CACHE_PAGE_TOKENS, 64}, &cache));
    assert_ok(backend_take_2d(be, DTYPE_F32, 153, 7 * 64, &y));
    assert_ok(backend_rows(be, prompt, 2, &rows));
    op_attn_cache_args a = {.qkv = &first,
                            .cache = &cache,
                            .y = &y,
                            .rows = &rows,
                            .pages = pages,
                            .past = none,
                            .pages_max = 3,
                            .heads = 7,
                            .kv_heads = 1};
    assert_ok(op_attn_cache(be, &a));
    assert_ok(backend_rows(be, one, 2, &rows));
    assert_ok(backend_take_2d(be, DTYPE_F32, 2, 7 * 64, ret_y));
    a.qkv = &second;
    a.y = ret_y;
    a.past = past;
    assert_ok(op_attn_cache(be, &a));
}

/* A past of two pieces and one of less than one, seven heads on each key. */
static void run_attn_decode(backend *be, tensor *ret_y)
{
    static const int32_t one[] = {1, 1}, pages[] = {5, 1, 3, 0, 4, 2, -1, -1, -1, -1}, past[] = {300, 3};
    op_rows rows;
    const tensor qkv = random_2d(be, 8, 2, 9 * 64);
    tensor cache = random_2d(be, 9, 6 * 2 * CACHE_PAGE_TOKENS, 64);
    cache.rank = 5;
    memcpy(cache.dims, (const int64_t[]){6, 2, 1, CACHE_PAGE_TOKENS, 64}, 5 * sizeof cache.dims[0]);
    assert_ok(backend_rows(be, one, 2, &rows));
    assert_ok(backend_take_2d(be, DTYPE_F32, 2, 7 * 64, ret_y));
    assert_ok(op_attn_cache(be, &(op_attn_cache_args){.qkv = &qkv,
                                                      .cache = &cache,
                                                      .y = ret_y,
                                                      .rows = &rows,
                                                      .pages = pages,
                                                      .past = past,
                                                      .pages_max = 5,
                                                      .heads = 7,
                                                      .kv_heads = 1,
                                                      .kind = GEMM_DECODE}));
}

/* Two groups of filters, the second one's bias 8 bytes off what products take. */
static void run_conv_groups(backend *be, tensor *ret_y)
{
    enum { CHANNELS = 6, FILTERS = 12, GROUPS = 2, TAPS = 3 };
    float host[FILTERS * CHANNELS / GROUPS * TAPS];
    op_rows rows;
    weight *w;
    const tensor x = random_2d(be, 13, ROWS, CHANNELS), line = random_2d(be, 14, 1, FILTERS);
    const tensor bias = tensor_1d(line.data, DTYPE_F32, FILTERS);
    for (uint32_t i = 0; i < FILTERS * CHANNELS / GROUPS * TAPS; i++)
        host[i] = rng_uniform(15, 0, i, 0);
    assert_ok(backend_pack_conv(be, host, FILTERS, CHANNELS, TAPS, GROUPS, PRECISION_F32, &w));
    assert_ok(backend_rows(be, lengths, SEQUENCES, &rows));
    assert_ok(backend_take_2d(be, DTYPE_F32, ROWS, FILTERS, ret_y));
    assert_ok(op_conv1d(be, &(op_conv1d_args){.x = &x,
                                              .rows_in = &rows,
                                              .w = w,
                                              .bias = &bias,
                                              .y = ret_y,
                                              .rows_out = &rows,
                                              .kernel = TAPS,
                                              .dilation = 1,
                                              .stride = 1,
                                              .pad_left = 2,
                                              .repeat = 1,
                                              .groups = GROUPS}));
}

/* Rows and filters over a tile, two groups of channels over a chunk, taps that reach over the ends, through Snake. */
static void run_conv_mma(backend *be, tensor *ret_y)
{
    enum { CHANNELS = 68, FILTERS = 140, TAPS = 5 };
    static float host[FILTERS * CHANNELS / 2 * TAPS];
    op_rows rows;
    weight *w;
    tensor work, alpha = random_2d(be, 10, 1, CHANNELS);
    const tensor x = random_2d(be, 11, ROWS, CHANNELS);
    for (uint32_t i = 0; i < FILTERS * CHANNELS / 2 * TAPS; i++)
        host[i] = rng_uniform(12, 0, i, 0) / 8.0f;
    alpha = tensor_1d(alpha.data, DTYPE_F32, CHANNELS);
    const precision operands = strncmp(backend_describe(be), "cuda", 4) == 0 ? PRECISION_FP16 : PRECISION_F32;
    assert_ok(backend_pack_conv(be, host, FILTERS, CHANNELS, TAPS, 2, operands, &w));
    assert_ok(backend_rows(be, lengths, SEQUENCES, &rows));
    assert_ok(backend_take_2d(be, DTYPE_F32, ROWS, CHANNELS, &work));
    assert_ok(backend_take_2d(be, DTYPE_F32, ROWS, FILTERS, ret_y));
    assert_ok(op_conv1d(be, &(op_conv1d_args){.x = &x,
                                              .rows_in = &rows,
                                              .w = w,
                                              .y = ret_y,
                                              .rows_out = &rows,
                                              .kernel = TAPS,
                                              .dilation = 2,
                                              .stride = 1,
                                              .pad_left = 6,
                                              .repeat = 1,
                                              .groups = 2,
                                              .snake = &alpha,
                                              .work = &work}));
}

/* Two draws of each row at the same position: what the first one drew is in the window then, so the second falls back
 * on all ids. */
static void run_ras(backend *be, tensor *ret_y)
{
    enum { DRAWS = 8, WIDTH = 900 };
    const int64_t draws = DRAWS, words[] = {DRAWS, RAS_STATE_WORDS};
    int32_t slots[DRAWS], drawn[DRAWS], lines[DRAWS][RAS_STATE_WORDS] = {{0}};
    tensor at, states, tokens, ids;
    float host[2 * DRAWS];
    const tensor logits = random_2d(be, 10, DRAWS, WIDTH);
    for (int32_t r = 0; r < DRAWS; r++) {
        slots[r] = DRAWS - 1 - r;
        lines[r][RAS_SEED_LOW] = r % 3;
        for (int i = 0; i < RAS_WINDOW_TOKENS; i++)
            lines[r][RAS_WINDOW + i] = -1;
    }
    assert_ok(backend_take(be, DTYPE_I32, 1, &draws, &at));
    assert_ok(backend_upload(be, slots, &at));
    assert_ok(backend_take(be, DTYPE_I32, 2, words, &states));
    assert_ok(backend_take(be, DTYPE_I32, 1, &draws, &tokens));
    assert_ok(backend_zero(be, &tokens));
    assert_ok(backend_take(be, DTYPE_I32, 1, &draws, &ids));
    const op_ras_args a = {.logits = &logits, .slots = &at, .states = &states, .tokens = &tokens, .ids = &ids};
    for (int k = 0; k < 2; k++) {
        assert_ok(backend_upload(be, lines, &states));
        assert_ok(op_ras(be, &a));
        assert_ok(backend_download(be, &ids, drawn));
        assert_ok(backend_download(be, &states, lines));
        for (int32_t r = 0; r < DRAWS; r++) {
            host[k * DRAWS + r] = (float)drawn[r];
            lines[r][RAS_COUNT] = 0;
        }
    }
    assert_ok(backend_take_2d(be, DTYPE_F32, 2, DRAWS, ret_y));
    assert_ok(backend_upload(be, host, ret_y));
}

static void test_rms_norm(void **state)
{
    (void)state;
    compare_with_naive(run_rms_norm);
}

static void test_layer_norm(void **state)
{
    (void)state;
    compare_with_naive(run_layer_norm);
}

static void test_attn_block(void **state)
{
    (void)state;
    compare_with_naive(run_attn_block);
}

/* Operands of 11 bits: each score is off by 2^-11 of a sum of 64 products below 1, a share by as much again. */
static void test_attn_mma(void **state)
{
    (void)state;
    compare_within(run_attn_mma, 2e-3);
}

/* Operands of 11 bits, positive filters: the sum is large beside its terms' errors. */
static void test_conv_mma(void **state)
{
    (void)state;
    compare_within(run_conv_mma, 1e-3);
}

/* The tile kernel as each card runs it: with code of its own, with code for sm_75 alone, and never with an
 * instruction that the code does not have. */
static void attn_on(const char *capability, const char *code, const char *named)
{
    setenv("COSYFARM_EMU_CAPABILITY", capability, 1);
    setenv("COSYFARM_EMU_CODE", code, 1);
    backend *be = open_on("cuda:0", false);
    assert_non_null(strstr(backend_describe(be), named));
    backend_close(be);
    compare_within(run_attn_mma, 2e-3);
    compare_within(run_conv_mma, 1e-3);
    unsetenv("COSYFARM_EMU_CODE");
    unsetenv("COSYFARM_EMU_CAPABILITY");
}

static void test_attn_by_capability(void **state)
{
    (void)state;
    attn_on("75", "75", "sm_75 attention=mma.m16n8k8, f32: plain");
    attn_on("86", "80", "sm_86 attention=mma.m16n8k16, f32: plain");
    attn_on("90", "75", "sm_90 attention=mma.m16n8k8, f32: plain");
    attn_on("120", "120", "sm_120 attention=mma.m16n8k16, f32: plain");
}

static void test_attn_cache(void **state)
{
    (void)state;
    compare_with_naive(run_attn_cache);
}

static void test_attn_decode(void **state)
{
    (void)state;
    compare_with_naive(run_attn_decode);
}

static void test_conv_groups(void **state)
{
    (void)state;
    compare_with_naive(run_conv_groups);
}

static void test_ras(void **state)
{
    (void)state;
    compare_within(run_ras, 0);
}

static void test_refusals(void **state)
{
    (void)state;
    assert_err(CF_ERR_UNSUPPORTED, "expected cpu or cuda:N", try_open("cuda"));
    assert_err(CF_ERR_UNSUPPORTED, "expected cpu or cuda:N", try_open("cuda:x"));
    assert_err(CF_ERR_UNSUPPORTED, "expected cpu or cuda:N", try_open("cuda:99999999999"));
    assert_err(CF_ERR_UNSUPPORTED, "this host has 1", try_open("cuda:1"));
    setenv("COSYFARM_EMU_DEVICES", "0", 1);
    assert_err(CF_ERR_UNSUPPORTED, "no CUDA-capable device", try_open("cuda:0"));
    unsetenv("COSYFARM_EMU_DEVICES");
    setenv("COSYFARM_EMU_CAPABILITY", "70", 1);
    assert_err(CF_ERR_UNSUPPORTED, "at least 7.5", try_open("cuda:0"));
    setenv("COSYFARM_EMU_CAPABILITY", "75", 1);
    backend *be = open_on("cuda:0", false);
    weight *w;
    assert_err(CF_ERR_UNSUPPORTED, "expected f32 or fp16",
               backend_pack_linear(be, (const float[]){1}, 1, 1, PRECISION_BF16, GEMM_BULK_BIT, &w));
    backend_close(be);
    unsetenv("COSYFARM_EMU_CAPABILITY");
}

static void test_out_of_memory(void **state)
{
    (void)state;
    tensor t;
    setenv("COSYFARM_EMU_MEMORY_MIB", "64", 1);
    backend *be = open_on("cuda:0", false);
    assert_err(CF_ERR_NOMEM, "scratch needs 80.0 MiB", backend_take_2d(be, DTYPE_F32, 20, 1 << 20, &t));
    assert_err(CF_ERR_NOMEM, "64.0 MiB are free", backend_keep(be, DTYPE_F32, 1, (const int64_t[]){20 << 20}, &t));
    assert_ok(backend_take_2d(be, DTYPE_F32, 4, 1 << 20, &t)); /* neither is sticky */
    backend_close(be);
    unsetenv("COSYFARM_EMU_MEMORY_MIB");
    assert_ok(fault_arm("cuda.malloc=fail"));
    assert_err(CF_ERR_NOMEM, "model needs", try_open("cuda:0"));
    assert_ok(fault_arm(""));
}

/* An id that its table does not have ends the context, and everything after it is refused. */
static void test_device_error_is_sticky(void **state)
{
    (void)state;
    backend *be = open_on("cuda:0", false);
    const int32_t id = 3;
    const int64_t one = 1;
    tensor ids, y;
    const tensor table = random_2d(be, 8, 3, 4);
    float host[4];
    assert_ok(backend_take(be, DTYPE_I32, 1, &one, &ids));
    assert_ok(backend_upload(be, &id, &ids));
    assert_ok(backend_take_2d(be, DTYPE_F32, 1, 4, &y));
    assert_ok(op_embedding(be, &(op_embedding_args){.table = &table, .ids = &ids, .y = &y}));
    assert_err(CF_ERR_DEVICE, "unspecified launch failure", backend_sync(be));
    assert_err(CF_ERR_DEVICE, "cudaErrorLaunchFailure", backend_download(be, &y, host));
    emu_reset();
    backend_close(be);
    be = open_on("cuda:0", false);
    const tensor x = random_2d(be, 9, 1, 4);
    assert_ok(backend_take_2d(be, DTYPE_F32, 1, 4, &y));
    assert_ok(fault_arm("cuda.launch=fail"));
    assert_err(CF_ERR_DEVICE, "cuda.launch", op_add(be, &(op_add_args){.a = &x, .b = &x, .y = &y}));
    assert_ok(fault_arm(""));
    backend_close(be);
}

/* A backend that chose for another card: the emulator does not run what that card's code lacks. */
static void test_instruction_of_newer_card(void **state)
{
    (void)state;
    tensor y;
    backend *be = open_on("cuda:0", false);
    setenv("COSYFARM_EMU_CAPABILITY", "75", 1);
    run_attn_mma(be, &y);
    assert_err(CF_ERR_DEVICE, "illegal instruction", backend_sync(be));
    unsetenv("COSYFARM_EMU_CAPABILITY");
    emu_reset();
    backend_close(be);
}

/* Scratch of many sizes never overlaps, comes back after a reset, and lists are not mixed up. */
static void test_scratch(void **state)
{
    (void)state;
    backend *be = open_on("cuda:0", false);
    tensor t[40];
    float host[4], filled[4];
    for (int round = 0; round < 3; round++) {
        const size_t mark = backend_scratch_mark(be);
        for (int i = 0; i < 40; i++) {
            const int64_t rows = 1 + (int64_t)(rng_uniform(10, (uint32_t)round, (uint32_t)i, 0) * 300000.0f);
            assert_ok(backend_take_2d(be, DTYPE_F32, rows, 4, &t[i]));
            const tensor last = tensor_rows(&t[i], rows - 1, 1);
            for (int c = 0; c < 4; c++)
                filled[c] = (float)(100 * i + c);
            tensor first = tensor_rows(&t[i], 0, 1), end = last;
            assert_ok(backend_upload(be, filled, &first));
            assert_ok(backend_upload(be, filled, &end));
        }
        for (int i = 0; i < 40; i++) {
            const tensor first = tensor_rows(&t[i], 0, 1), last = tensor_rows(&t[i], t[i].dims[0] - 1, 1);
            assert_ok(backend_download(be, &first, host));
            assert_true(host[3] == (float)(100 * i + 3));
            assert_ok(backend_download(be, &last, host));
            assert_true(host[0] == (float)(100 * i));
        }
        backend_scratch_reset(be, mark);
    }
    const size_t mark = backend_scratch_mark(be);
    op_rows a, b, c;
    assert_ok(backend_rows(be, (const int32_t[]){2, 3}, 2, &a));
    assert_ok(backend_rows(be, (const int32_t[]){2, 3}, 2, &b));
    assert_ok(backend_rows(be, (const int32_t[]){3, 2}, 2, &c));
    assert_ptr_equal(a.dev, b.dev); /* one upload serves both */
    assert_ptr_not_equal(a.dev, c.dev);
    backend_scratch_reset(be, mark);
    assert_ok(backend_take_2d(be, DTYPE_F32, 1, 64, &t[0]));
    assert_ok(backend_zero(be, &t[0]));
    assert_ok(backend_rows(be, (const int32_t[]){2, 3}, 2, &b));
    assert_ptr_not_equal(t[0].data, b.dev);
    backend_close(be);
}

/* What was uploaded may change at once: small and many, and larger than what the backend copies. */
static void test_uploads_are_copied(void **state)
{
    enum { WIDTH = 1 << 20, ROUNDS = 24, LARGE = 3 << 20 };
    (void)state;
    backend *be = open_on("cuda:0", false);
    tensor small[ROUNDS], large;
    float *host;
    assert_ok(mem_alloc(LARGE, sizeof *host, &host));
    for (int i = 0; i < ROUNDS; i++) {
        assert_ok(backend_take_2d(be, DTYPE_F32, 1, WIDTH >> (i % 3), &small[i]));
        for (int k = 0; k < WIDTH; k++)
            host[k] = (float)i;
        assert_ok(backend_upload(be, host, &small[i]));
    }
    assert_ok(backend_take_2d(be, DTYPE_F32, 1, LARGE, &large));
    for (int k = 0; k < LARGE; k++)
        host[k] = ROUNDS;
    assert_ok(backend_upload(be, host, &large));
    memset(host, 0, LARGE * sizeof *host);
    assert_ok(backend_download(be, &large, host));
    assert_true(host[0] == ROUNDS && host[LARGE - 1] == ROUNDS);
    for (int i = 0; i < ROUNDS; i++) {
        assert_ok(backend_download(be, &small[i], host));
        assert_true(host[0] == (float)i && host[(WIDTH >> (i % 3)) - 1] == (float)i);
    }
    mem_free(host);
    backend_close(be);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest kernels[] = {
        cmocka_unit_test(test_rms_norm), cmocka_unit_test(test_layer_norm),  cmocka_unit_test(test_attn_block),
        cmocka_unit_test(test_attn_mma), cmocka_unit_test(test_attn_cache),  cmocka_unit_test(test_attn_decode),
        cmocka_unit_test(test_conv_mma), cmocka_unit_test(test_conv_groups), cmocka_unit_test(test_ras),
    };
    const struct CMUnitTest rest[] = {
        cmocka_unit_test(test_attn_by_capability),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_device_error_is_sticky),
        cmocka_unit_test(test_instruction_of_newer_card),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_uploads_are_copied),
    };
    const int failed = cmocka_run_group_tests_name("cuda kernels", kernels, NULL, NULL);
    if (argc > 1 && strcmp(argv[1], "kernels") == 0)
        return failed;
    return failed + cmocka_run_group_tests_name("cuda backend", rest, NULL, NULL);
}
