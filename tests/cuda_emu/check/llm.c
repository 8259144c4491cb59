/*
 * llm.c - decoding on the emulated device: recorded once for each bucket of rows, replayed, recorded again when memory
 * was taken, submitted each time where recording is refused; ids and logits are those of each sequence alone. Tests.
 */
#include "tests/harness/test.h"

#include <string.h>

#include "common/base/fault.h"
#include "common/base/rng.h"
#include "llm_worker/llm_forward.h"
#include "tests/cuda_emu/cuda_runtime_api.h"
#include "tests/harness/tiny_model.h"

#define SEQUENCES 5
#define STEPS_MAX 8
#define TEXT_MAX  6

/* A sequence, what it drew, and the logits of its last step. */
typedef struct told {
    int32_t text[TEXT_MAX], ids[STEPS_MAX + 1], count;
    float logits[SPEECH_ROWS];
    int32_t seq_idx;
} told;

static const int32_t steps_of[SEQUENCES] = {8, 3, 5, 4, 4}, joins_at[SEQUENCES] = {0, 1, 2, 2, 3};

static llm_engine *open_engine(void)
{
    llm_engine *e = NULL;
    const llm_engine_config cfg = {.model_dir = tiny_model_dir(),
                                   .device = "cuda:0",
                                   .operands = PRECISION_F32,
                                   .threads = 1,
                                   .rows_max = SEQUENCES};
    assert_ok(llm_engine_open(&cfg, &e));
    return e;
}

static void keep(llm_engine *e, told *t, int32_t result_idx)
{
    assert_ok(llm_engine_fetch(e));
    t->ids[t->count++] = llm_engine_drawn(e, result_idx);
    assert_in_range(t->ids[t->count - 1], 0, llm_engine_model(e)->shape.speech_codes - 1);
    memcpy(t->logits, llm_engine_logits(e, result_idx),
           (size_t)llm_speech_rows(&llm_engine_model(e)->shape) * sizeof t->logits[0]);
}

/* Claims, prefills and draws the first id. */
static void begin(llm_engine *e, told *t, int32_t number)
{
    const llm_prompt prompt = {.text = t->text, .text_tokens = 2 + number};
    llm_prefill_item item = {.prompt = &prompt,
                             .draws = {.seed = 40 + (uint64_t)number,
                                       .segment_idx = (uint32_t)number,
                                       .min_tokens = 2 * STEPS_MAX,
                                       .mask = RAS_MASK_STOP}};
    memset(t, 0, sizeof *t);
    for (int32_t i = 0; i < TEXT_MAX; i++)
        t->text[i] = (int32_t)(rng_uniform(3, (uint32_t)number, (uint32_t)i, 0) * 500.0f);
    assert_ok(kv_cache_claim(llm_engine_cache(e), llm_prompt_rows(&prompt) + STEPS_MAX, &t->seq_idx));
    item.seq_idx = t->seq_idx;
    assert_ok(llm_prefill(e, &item, 1));
    keep(e, t, item.result_idx);
}

static void step_rows(llm_engine *e, told *const *rows, int32_t count)
{
    llm_decode_item items[SEQUENCES];
    for (int32_t i = 0; i < count; i++)
        items[i] = (llm_decode_item){.seq_idx = rows[i]->seq_idx, .token = LLM_DRAWN};
    assert_ok(llm_decode(e, items, count));
    for (int32_t i = 0; i < count; i++)
        keep(e, rows[i], i);
}

static void run_alone(llm_engine *e, told *t, int32_t number)
{
    begin(e, t, number);
    for (int32_t k = 0; k < steps_of[number]; k++)
        step_rows(e, &t, 1);
    kv_cache_give_back(llm_engine_cache(e), t->seq_idx);
}

static void assert_told(const told *got, const told *want)
{
    assert_int_equal(got->count, want->count);
    assert_memory_equal(got->ids, want->ids, sizeof got->ids);
    assert_memory_equal(got->logits, want->logits, sizeof got->logits);
}

/* All sequences, joining and leaving; returns the steps. Rows 1, 2, 4, 5, 4, 4, 3, 1 in buckets of 1, 2, 4 and 5: one
 * of the steps has an inert row. */
static uint64_t run_company(llm_engine *e, told *all)
{
    uint64_t steps = 0;
    for (int32_t k = 0;; k++) {
        told *rows[SEQUENCES];
        int32_t count = 0;
        for (int32_t s = 0; s < SEQUENCES; s++) {
            if (joins_at[s] == k)
                begin(e, &all[s], s);
            if (k >= joins_at[s] && k < joins_at[s] + steps_of[s])
                rows[count++] = &all[s];
            if (k == joins_at[s] + steps_of[s])
                kv_cache_give_back(llm_engine_cache(e), all[s].seq_idx);
        }
        if (count == 0)
            return steps;
        step_rows(e, rows, count);
        steps++;
    }
}

static void test_buckets(void **state)
{
    (void)state;
    static told alone[SEQUENCES], company[SEQUENCES];
    uint64_t steps = 0;
    emu_counters device;
    llm_engine *e = open_engine();
    for (int32_t s = 0; s < SEQUENCES; s++) {
        run_alone(e, &alone[s], s);
        steps += (uint64_t)steps_of[s];
    }
    backend_record_counts counts = llm_engine_records(e);
    assert_int_equal(counts.recorded, 1);
    assert_int_equal(counts.replayed, steps - 1);
    steps += run_company(e, company);
    for (int32_t s = 0; s < SEQUENCES; s++)
        assert_told(&company[s], &alone[s]);
    counts = llm_engine_records(e);
    assert_int_equal(counts.recorded, 4);
    assert_int_equal(counts.replayed, steps - 4);
    assert_int_equal(counts.eager, 0);
    emu_count(&device);
    assert_int_equal(device.graph_launches, counts.replayed);
    assert_memory_not_equal(alone[0].ids + 1, alone[2].ids + 1, 4 * sizeof alone[0].ids[0]);
    llm_engine_close(e);
    emu_reset();
}

/* A record is made again after the backend took memory, and where making it fails, work is submitted. */
static void test_recorded_again(void **state)
{
    (void)state;
    static told want, got;
    told *row = &got;
    llm_engine *e = open_engine();
    backend *be = llm_engine_backend(e);
    tensor more;
    run_alone(e, &want, 0);
    begin(e, &got, 0);
    step_rows(e, &row, 1);
    assert_int_equal(llm_engine_records(e).recorded, 1);
    const size_t mark = backend_scratch_mark(be);
    assert_ok(backend_take_2d(be, DTYPE_F32, 32, 1 << 20, &more));
    assert_ok(backend_zero(be, &more));
    backend_scratch_reset(be, mark);
    step_rows(e, &row, 1);
    step_rows(e, &row, 1);
    assert_int_equal(llm_engine_records(e).recorded, 2);
    const uint64_t replayed = llm_engine_records(e).replayed, eager = (uint64_t)(want.count - got.count);
    assert_int_equal(llm_engine_records(e).eager, 0);
    assert_ok(fault_arm("cuda.record=fail"));
    assert_ok(backend_take_2d(be, DTYPE_F32, 64, 1 << 20, &more));
    backend_scratch_reset(be, mark);
    while (got.count < want.count)
        step_rows(e, &row, 1);
    assert_ok(fault_arm(NULL));
    assert_int_equal(llm_engine_records(e).recorded, 2);
    assert_int_equal(llm_engine_records(e).replayed, replayed);
    assert_int_equal(llm_engine_records(e).eager, eager);
    kv_cache_give_back(llm_engine_cache(e), got.seq_idx);
    assert_told(&got, &want);
    llm_engine_close(e);
}

/* Something that may not be recorded: a value from the host. */
typedef struct foreign {
    backend *be;
    tensor at;
    float value;
    int32_t submitted;
} foreign;

static cf_err submit_foreign(void *ctx)
{
    foreign *f = ctx;
    f->submitted++;
    return backend_upload(f->be, &f->value, &f->at);
}

static void test_what_cannot_be_recorded(void **state)
{
    (void)state;
    foreign f = {0};
    backend_record *record = NULL;
    float host;
    const backend_config cfg = {.device = "cuda:0", .threads = 1, .scratch_bytes = 1 << 20};
    assert_ok(backend_open(&cfg, &f.be));
    assert_ok(backend_take_2d(f.be, DTYPE_F32, 1, 1, &f.at));
    for (int32_t i = 0; i < 3; i++) {
        f.value = (float)i;
        assert_ok(backend_replay(f.be, &record, submit_foreign, &f));
        assert_ok(backend_download(f.be, &f.at, &host));
        assert_true(host == (float)i);
    }
    assert_int_equal(f.submitted, 4); /* three times for the work, once to find that it cannot be recorded */
    assert_int_equal(backend_records(f.be).recorded, 0);
    assert_int_equal(backend_records(f.be).eager, 3);
    backend_record_close(f.be, record);
    backend_close(f.be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_recorded_again),
        cmocka_unit_test(test_what_cannot_be_recorded),
    };
    return cmocka_run_group_tests_name("cuda llm", tests, NULL, NULL);
}
