/*
 * scratch.c - memory of a device over the life of a worker: batches of any sizes in any order take no more than the
 * largest of them did, records find their places, and what a stage reserves holds its steps. Sizes are those of the
 * full model; nothing touches the memory. Tests.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/compute/ops.h"
#include "llm_worker/llm_forward.h"
#include "tests/cuda_emu/cuda_runtime_api.h"
#include "tests/harness/tiny_model.h"

#define MIB ((size_t)1 << 20)

static backend *open_with(size_t scratch_bytes)
{
    backend *be = NULL;
    assert_ok(backend_open(&(backend_config){.device = "cuda:0", .threads = 1, .scratch_bytes = scratch_bytes}, &be));
    return be;
}

static size_t free_bytes(void)
{
    size_t left, total;
    assert_int_equal(cudaMemGetInfo(&left, &total), cudaSuccess);
    return left;
}

static void take(backend *be, int64_t rows, int64_t width)
{
    tensor t;
    assert_ok(backend_take_2d(be, DTYPE_F32, rows, width, &t));
}

#define ROWS_MAX   16
#define FRAMES_CAP 8192 /* of a batch */
#define WIDTH      1024 /* of the full Flow */
#define STEPS      3000

/* Requests of a batch, oldest first. */
typedef struct batch {
    int32_t frames[ROWS_MAX];
    int32_t count, sum;
} batch;

static int32_t draw(uint32_t step, uint32_t what, int32_t bound)
{
    return (int32_t)(rng_uniform(21, step, what, 0) * (float)bound);
}

/* One joins or the oldest leaves. */
static void change(batch *b, uint32_t step)
{
    const int32_t frames = 150 + draw(step, 0, 750);
    if (draw(step, 1, 10) < 6 && b->count < ROWS_MAX && b->sum + frames <= FRAMES_CAP) {
        b->frames[b->count++] = frames;
        b->sum += frames;
    } else if (b->count > 0) {
        b->sum -= b->frames[0];
        memmove(b->frames, b->frames + 1, (size_t)--b->count * sizeof b->frames[0]);
    }
}

/* What the estimator takes of a batch, in its order: lists, inputs, the three streams, q k v, and inside of ops a
 * gathered piece of a convolution and a gated product. */
static void flow_step(backend *be, const batch *b)
{
    const size_t mark = backend_scratch_mark(be);
    const int64_t rows = 2 * (int64_t)b->sum;
    op_rows list;
    assert_ok(backend_rows(be, b->frames, b->count, &list));
    take(be, rows, 80);
    take(be, rows, 1);
    take(be, rows, WIDTH);
    take(be, rows, WIDTH);
    take(be, rows, 3 * WIDTH);
    take(be, rows, WIDTH);
    const size_t inner = backend_scratch_mark(be);
    take(be, 6144, WIDTH);
    backend_scratch_reset(be, inner);
    take(be, rows, WIDTH);
    backend_scratch_reset(be, mark);
}

/* Bytes of the largest step. */
#define PEAK_BYTES ((size_t)2 * FRAMES_CAP * (7 * WIDTH + 81) * sizeof(float))

/* Returns how much the device had to give, at most, beyond what it had given before. */
static size_t walk(backend *be)
{
    const size_t before = free_bytes();
    size_t most = 0;
    batch b = {0};
    for (uint32_t step = 0; step < STEPS; step++) {
        change(&b, step);
        if (b.count == 0)
            continue;
        flow_step(be, &b);
        const size_t left = free_bytes(), taken = before > left ? before - left : 0;
        most = taken > most ? taken : most;
    }
    return most;
}

static void test_batches_of_any_order(void **state)
{
    (void)state;
    backend *be = open_with(2 * PEAK_BYTES);
    const size_t taken = walk(be);
    print_message("scratch of %.0f MiB for steps of at most %.0f\n", (double)taken / MIB, (double)PEAK_BYTES / MIB);
    assert_in_range(taken, PEAK_BYTES / 4, PEAK_BYTES / 8 * 11);
    assert_int_equal(walk(be), 0); /* once more: it has what it needs */
    backend_close(be);
}

static void test_reserved(void **state)
{
    (void)state;
    backend *be = open_with(2 * PEAK_BYTES);
    const size_t before = free_bytes();
    tensor t;
    take(be, 1, 1 << 20);
    take(be, 1, 1 << 20);
    backend_scratch_reset(be, 0);
    assert_ok(backend_scratch_reserve(be, PEAK_BYTES + MIB));
    assert_in_range(before - free_bytes(), PEAK_BYTES, PEAK_BYTES + 4 * MIB);
    assert_int_equal(walk(be), 0);
    assert_ok(backend_scratch_reserve(be, PEAK_BYTES)); /* is there */
    assert_int_equal(walk(be), 0);
    assert_err(CF_ERR_NOMEM, "scratch needs 100000.0 MiB", backend_scratch_reserve(be, 100000 * MIB));
    assert_ok(backend_take_2d(be, DTYPE_F32, 1, 4, &t)); /* it begins anew */
    backend_close(be);
}

static void keep(backend *be, int64_t mib)
{
    tensor t;
    assert_ok(backend_keep(be, DTYPE_F32, 1, (const int64_t[]){mib << 18}, &t));
}

/* Kept memory comes in blocks: what a table leaves of one is taken by later ones, of older blocks too. */
static void test_kept_blocks(void **state)
{
    (void)state;
    backend *be = open_with(MIB);
    keep(be, 3);
    keep(be, 3);
    const size_t before = free_bytes();
    keep(be, 40);
    assert_int_equal(before - free_bytes(), 40 * MIB); /* a large one has its own */
    const size_t left = free_bytes();
    keep(be, 3);
    keep(be, 2);
    keep(be, 1);
    assert_int_equal(left, free_bytes());
    backend_close(be);
}

/* y = x + x, through a temporary in scratch. */
typedef struct doubling {
    backend *be;
    tensor x, y;
} doubling;

static cf_err submit_doubling(void *ctx)
{
    cf_err err;
    const doubling *d = ctx;
    tensor t;
    const size_t mark = backend_scratch_mark(d->be);
    TRY(backend_take_2d(d->be, DTYPE_F32, 1, 4, &t));
    TRY(op_add(d->be, &(op_add_args){.a = &d->x, .b = &d->x, .y = &t}));
    TRY(backend_copy(d->be, &t, (tensor *)&d->y));
out:
    backend_scratch_reset(d->be, mark);
    return err;
}

static void expect_doubled(doubling *d, backend_record **record, float value)
{
    const float values[4] = {value, value, value, value};
    float host[4];
    assert_ok(backend_upload(d->be, values, &d->x));
    assert_ok(backend_replay(d->be, record, submit_doubling, d));
    assert_ok(backend_download(d->be, &d->y, host));
    assert_true(host[0] == 2 * value && host[3] == 2 * value);
}

/* A record whose scratch was replaced is made again; one whose scratch stays is not. */
static void test_records(void **state)
{
    (void)state;
    doubling d = {.be = open_with(512 * MIB)};
    backend_record *record = NULL;
    assert_ok(backend_keep(d.be, DTYPE_F32, 2, (const int64_t[]){1, 4}, &d.x));
    assert_ok(backend_keep(d.be, DTYPE_F32, 2, (const int64_t[]){1, 4}, &d.y));
    expect_doubled(&d, &record, 1);
    expect_doubled(&d, &record, 2);
    assert_int_equal(backend_records(d.be).replayed, 1);
    take(d.be, 1, 8 << 20); /* a second segment */
    expect_doubled(&d, &record, 3);
    assert_int_equal(backend_records(d.be).recorded, 2);
    backend_scratch_reset(d.be, 0);
    take(d.be, 1, 4); /* one segment of as many bytes, elsewhere */
    backend_scratch_reset(d.be, 0);
    expect_doubled(&d, &record, 4);
    assert_int_equal(backend_records(d.be).recorded, 3);
    take(d.be, 1, 8 << 20); /* has room */
    backend_scratch_reset(d.be, 0);
    expect_doubled(&d, &record, 5);
    assert_int_equal(backend_records(d.be).recorded, 3);
    assert_int_equal(backend_records(d.be).replayed, 2);
    backend_record_close(d.be, record);
    backend_close(d.be);
}

/* More than any card has: the error names the limit, and the next step goes on. */
static void test_limit_of_segments(void **state)
{
    (void)state;
    tensor t;
    cf_err err = CF_OK;
    setenv("COSYFARM_EMU_MEMORY_MIB", "1000000", 1);
    backend *be = open_with(1000000 * MIB);
    for (int i = 0; i < 100000 && err == CF_OK; i++)
        err = backend_take_2d(be, DTYPE_F32, 1, 65 << 18, &t);
    assert_err(CF_ERR_LIMIT, "expected at most 64 segments", err);
    backend_scratch_reset(be, 0);
    take(be, 1, 65 << 18);
    backend_close(be);
    unsetenv("COSYFARM_EMU_MEMORY_MIB");
}

#define PROMPTS 8

/* A full prefill and a step of all rows stay in what the engine reserved. */
static void llm_stays_in_plan(precision operands)
{
    llm_engine *e = NULL;
    static int32_t text[LLM_PREFILL_ROWS_MAX / PROMPTS - 2];
    llm_prompt prompt = {.text = text, .text_tokens = (int32_t)CF_COUNT(text)};
    llm_prefill_item items[PROMPTS];
    llm_decode_item rows[PROMPTS];
    assert_ok(llm_engine_open(
        &(llm_engine_config){
            .model_dir = tiny_model_dir(), .device = "cuda:0", .operands = operands, .threads = 1, .rows_max = PROMPTS},
        &e));
    const size_t left = free_bytes();
    for (int32_t i = 0; i < PROMPTS; i++) {
        items[i] = (llm_prefill_item){.prompt = &prompt, .draws = {.seed = 1, .min_tokens = 4, .mask = RAS_MASK_STOP}};
        assert_ok(kv_cache_claim(llm_engine_cache(e), llm_prompt_rows(&prompt) + 4, &items[i].seq_idx));
    }
    assert_ok(llm_prefill(e, items, PROMPTS));
    for (int32_t i = 0; i < PROMPTS; i++) {
        assert_true(items[i].carried);
        rows[i] = (llm_decode_item){.seq_idx = items[i].seq_idx, .token = LLM_DRAWN};
    }
    assert_ok(llm_decode(e, rows, PROMPTS));
    assert_ok(llm_decode(e, rows, PROMPTS));
    assert_int_equal(left, free_bytes());
    assert_int_equal(llm_engine_records(e).recorded, 1);
    assert_int_equal(llm_engine_records(e).replayed, 1);
    for (int32_t i = 0; i < PROMPTS; i++)
        kv_cache_give_back(llm_engine_cache(e), items[i].seq_idx);
    llm_engine_close(e);
}

static void test_llm_stays_in_plan(void **state)
{
    (void)state;
    llm_stays_in_plan(PRECISION_F32);
    llm_stays_in_plan(PRECISION_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batches_of_any_order), cmocka_unit_test(test_reserved),
        cmocka_unit_test(test_kept_blocks),          cmocka_unit_test(test_records),
        cmocka_unit_test(test_limit_of_segments),    cmocka_unit_test(test_llm_stays_in_plan),
    };
    return cmocka_run_group_tests_name("cuda scratch", tests, NULL, NULL);
}
