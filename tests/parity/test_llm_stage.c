/*
 * test_llm_stage.c - the LLM behind stage.h: the same tokens in any company, the length law, refusals, failures of
 * one row among others, cancelling, faults. On a tiny synthetic model.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/model/recipe.h"
#include "common/model/tensor_file.h"
#include "llm_worker/llm_stage.h"
#include "tests/harness/tiny_model.h"
#include "tests/parity/llm_fixture.h"
#include "tools/bench_llm.h"

#define ROWS       6
#define TEXT_MAX   40
#define STEPS_MAX  2000 /* more than any job here may take */
#define TOKENS_CAP (SPEECH_PER_TEXT_MAX * TEXT_MAX)

/* A job over made-up text and what came of it. */
typedef struct outcome {
    int32_t text[TEXT_MAX], prompt_text[4];
    stage_job job;
    cf_err code;
    char error[256];
    int32_t tokens[TOKENS_CAP], count;
    bool stopped, returned;
} outcome;

static void *open_stage_at(const char *model, precision operands, int32_t rows_max, bool strict_head)
{
    void *st = NULL;
    const stage_config cfg = {
        .model_dir = model, .device = "cpu", .operands = operands, .rows_max = rows_max, .strict_head = strict_head};
    assert_ok(llm_stage.open(&cfg, &st));
    return st;
}

static void *open_stage(precision operands, int32_t rows_max)
{
    return open_stage_at(tiny_model_dir(), operands, rows_max, false);
}

static voice *load_voice(void)
{
    voice *v = NULL;
    assert_ok(voice_load(tiny_model_dir(), "echo", &v));
    return v;
}

static void outcome_init(outcome *o, uint64_t job_id, int32_t text_tokens, const voice *v)
{
    memset(o, 0, sizeof *o);
    for (int32_t i = 0; i < text_tokens; i++)
        o->text[i] = (int32_t)(rng_uniform(job_id, 9, (uint32_t)i, 0) * 500);
    o->prompt_text[0] = 72;
    o->prompt_text[1] = FIXTURE_END_OF_PROMPT;
    o->prompt_text[2] = 73;
    o->job = (stage_job){.job_id = job_id,
                         .voice = v,
                         .text = o->text,
                         .prompt_text = o->prompt_text,
                         .text_tokens = text_tokens,
                         .prompt_text_tokens = 3,
                         .prompt_speech = v != NULL && job_id % 2 == 0,
                         .seed = 1000 + job_id,
                         .end_of_prompt_id = FIXTURE_END_OF_PROMPT};
}

static void keep_result(outcome *all, int32_t count, const stage_result *r)
{
    for (int32_t i = 0; i < count; i++) {
        if (all[i].job.job_id != r->job_id)
            continue;
        assert_false(all[i].returned);
        all[i].returned = true;
        all[i].code = r->code;
        all[i].stopped = r->stopped;
        all[i].count = r->tokens_count;
        assert_in_range(r->tokens_count, 0, TOKENS_CAP);
        if (r->tokens_count > 0)
            memcpy(all[i].tokens, r->tokens, (size_t)r->tokens_count * sizeof r->tokens[0]);
        snprintf(all[i].error, sizeof all[i].error, "%s", r->text);
        assert_true(r->compute_us > 0);
        return;
    }
    fail_msg("result of unknown job %llu", (unsigned long long)r->job_id);
}

/* One step; returns how many results came. */
static int32_t step(void *st, outcome *all, int32_t count, int32_t max)
{
    stage_result results[ROWS];
    int32_t got = -1;
    assert_ok(llm_stage.step(st, results, max, &got));
    assert_in_range(got, 0, max);
    for (int32_t i = 0; i < got; i++)
        keep_result(all, count, &results[i]);
    return got;
}

static void run_alone(void *st, outcome *o)
{
    assert_ok(llm_stage.accept(st, &o->job));
    assert_int_equal(llm_stage.held(st), 1);
    for (int n = 0; n < STEPS_MAX && !o->returned; n++)
        step(st, o, 1, ROWS);
    assert_true(o->returned);
    assert_int_equal(llm_stage.held(st), 0);
}

static void assert_same_tokens(const outcome *a, const outcome *b)
{
    assert_int_equal(a->code, b->code);
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->stopped, b->stopped);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->count * sizeof a->tokens[0]);
}

/* Jobs join every third step, more than there are rows, one neighbour is cancelled: tokens are those of each job
 * alone. */
static void test_joining_and_leaving(void **state)
{
    (void)state;
    static outcome alone[2 * ROWS], company[2 * ROWS + 1];
    voice *v = load_voice();
    const precision precisions[] = {PRECISION_F32, PRECISION_BF16};
    for (size_t p = 0; p < 2; p++) {
        void *st = open_stage(precisions[p], ROWS);
        for (int32_t i = 0; i < 2 * ROWS; i++) {
            outcome_init(&alone[i], 10 + (uint64_t)i, 2 + i, v);
            run_alone(st, &alone[i]);
            assert_true(alone[i].code == CF_OK && alone[i].count > 0);
            outcome_init(&company[i], 10 + (uint64_t)i, 2 + i, v);
        }
        outcome *guest = &company[2 * ROWS];
        outcome_init(guest, 99, 30, v);
        assert_ok(llm_stage.accept(st, &guest->job));
        int32_t next = 2 * ROWS - 1, done = 0;
        for (int n = 0; n < STEPS_MAX && done < 2 * ROWS; n++) {
            if (n % 3 == 0 && next >= 0 && llm_stage.held(st) < ROWS)
                assert_ok(llm_stage.accept(st, &company[next--].job));
            if (n == 7)
                llm_stage.cancel(st, 99);
            done += step(st, company, 2 * ROWS, ROWS);
        }
        for (int32_t i = 0; i < 2 * ROWS; i++)
            assert_same_tokens(&alone[i], &company[i]);
        assert_int_equal(llm_stage.held(st), 0);
        llm_stage.close(st);
    }
    voice_close(v);
}

/* Sixteen at once, given in four orders: every row has the tokens that it has alone. */
static void check_company(precision operands)
{
    enum { COMPANY = 16 };
    static const int strides[] = {1, 15, 5, 11}; /* coprime to 16: as they lie, backwards, two shuffles */
    static outcome alone[COMPANY], company[COMPANY];
    voice *v = load_voice();
    void *st = open_stage(operands, COMPANY);
    for (int32_t i = 0; i < COMPANY; i++) {
        outcome_init(&alone[i], 200 + (uint64_t)i, 1 + i % 9, v);
        run_alone(st, &alone[i]);
        assert_true(alone[i].code == CF_OK && alone[i].count > 0);
    }
    for (size_t s = 0; s < sizeof strides / sizeof strides[0]; s++) {
        int32_t done = 0;
        for (int32_t i = 0; i < COMPANY; i++)
            outcome_init(&company[i], 200 + (uint64_t)i, 1 + i % 9, v);
        for (int32_t i = 0; i < COMPANY; i++)
            assert_ok(llm_stage.accept(st, &company[i * strides[s] % COMPANY].job));
        assert_int_equal(llm_stage.held(st), COMPANY);
        for (int n = 0; n < STEPS_MAX && done < COMPANY; n++)
            done += step(st, company, COMPANY, ROWS);
        for (int32_t i = 0; i < COMPANY; i++)
            assert_same_tokens(&alone[i], &company[i]);
    }
    llm_stage.close(st);
    voice_close(v);
}

static void test_sixteen_in_any_order_f32(void **state)
{
    (void)state;
    check_company(PRECISION_F32);
}

static void test_sixteen_in_any_order_bf16(void **state)
{
    (void)state;
    check_company(PRECISION_BF16);
}

static void test_seed_and_segment_decide(void **state)
{
    (void)state;
    static outcome o[4];
    void *st = open_stage(PRECISION_F32, 1);
    for (int32_t i = 0; i < 4; i++) {
        outcome_init(&o[i], 1, 12, NULL);
        o[i].job.seed = i == 2 ? 8 : 7;
        o[i].job.segment_idx = i == 3 ? 1 : 0;
        run_alone(st, &o[i]);
    }
    assert_same_tokens(&o[0], &o[1]);
    const size_t bytes = 10 * sizeof o[0].tokens[0];
    assert_memory_not_equal(o[0].tokens, o[2].tokens, bytes);
    assert_memory_not_equal(o[0].tokens, o[3].tokens, bytes);
    llm_stage.close(st);
}

static void test_lengths(void **state)
{
    (void)state;
    static const struct {
        int32_t text, voice, min, max;
        bool capped;
    } cases[] = {
        {1, 0, 2, 20, false},          {32, 87, 64, 640, false},   {371, 80, 742, 7420, false},
        {371, 81, 742, 7419, true},    {375, 0, 750, 7500, false}, {376, 0, 752, 7500, true},
        {4096, 750, 6750, 6750, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const llm_lengths l = llm_lengths_of(cases[i].text, cases[i].voice);
        assert_int_equal(l.min_tokens, cases[i].min);
        assert_int_equal(l.max_tokens, cases[i].max);
        assert_int_equal(l.capped, cases[i].capped);
    }
}

static void test_silence_filter(void **state)
{
    (void)state;
    const int32_t tokens[] = {1, 2, 28, 29, 55, 248, 494, 7, 2241, 2242, 2322, 2323, 1, 1, 8};
    const bool drops[] = {0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0};
    int32_t run = 0;
    for (size_t i = 0; i < sizeof drops / sizeof drops[0]; i++)
        assert_int_equal(llm_silence_drops(tokens[i], &run), drops[i]);
}

/* Every job ends between its bounds; some reach the upper one and say so. */
static void test_length_law_holds(void **state)
{
    (void)state;
    static outcome o;
    void *st = open_stage(PRECISION_F32, 1);
    int limited = 0, stopped = 0;
    for (uint64_t id = 1; id <= 60; id++) {
        outcome_init(&o, id, 1 + (int32_t)(id % 3), NULL);
        run_alone(st, &o);
        const llm_lengths l = llm_lengths_of(o.job.text_tokens, 0);
        assert_in_range(o.count, l.min_tokens, l.max_tokens);
        assert_true(o.stopped || o.count == l.max_tokens);
        limited += !o.stopped;
        stopped += o.stopped;
    }
    assert_true(limited > 0 && stopped > 0);
    llm_stage.close(st);
}

/* As upstream's HEAD: the minimum is not kept, and a stop at once is an error of that row alone. */
static void test_strict_head(void **state)
{
    (void)state;
    static outcome o;
    void *st = open_stage_at(tiny_model_dir(), PRECISION_F32, 1, true);
    int below = 0, at_once = 0;
    for (uint64_t id = 1; id <= 300 && (below == 0 || at_once == 0); id++) {
        outcome_init(&o, id, 3, NULL);
        run_alone(st, &o);
        if (o.code == CF_OK) {
            below += o.count < llm_lengths_of(3, 0).min_tokens;
            continue;
        }
        assert_int_equal(o.code, CF_ERR_INVALID);
        assert_non_null(strstr(o.error, "stop at the first step"));
        assert_int_equal(o.count, 0);
        at_once++;
    }
    assert_true(below > 0 && at_once > 0);
    llm_stage.close(st);
}

/* Writes NaN over row `id` of the text table of the model in dir. */
static void poison_text_row(const char *dir, int64_t id)
{
    char path[IO_PATH_BYTES];
    tensor_file *f;
    assert_ok(io_join(path, sizeof path, dir, "llm.safetensors"));
    assert_ok(tensor_file_open(path, &f));
    const tensor_entry *e = tensor_file_find(f, "llm.model.model.embed_tokens.weight");
    assert_non_null(e);
    const int64_t data_bytes = e->shape[0] * e->shape[1] * 4;
    const int64_t off = (int64_t)tensor_file_bytes(f);
    const tensor_entry *last = tensor_file_at(f, tensor_file_count(f) - 1);
    const int64_t from_end = (int64_t)(last->data - e->data) + (int64_t)(last->shape[0] * last->shape[1] * 4);
    assert_true(from_end >= data_bytes);
    const float poison = NAN;
    const int64_t at = off - from_end + (int64_t)(id * e->shape[1] * 4);
    tensor_file_close(f);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
    assert_int_equal(fwrite(&poison, sizeof poison, 1, file), 1);
    assert_int_equal(fclose(file), 0);
}

static void test_nan_fails_one_row(void **state)
{
    (void)state;
    static outcome healthy, both[2];
    char dir[IO_PATH_BYTES];
    const recipe r = {.size = RECIPE_TINY};
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    assert_ok(recipe_make_dir(&r, RECIPE_SAFETENSORS, NULL, dir));
    poison_text_row(dir, 600);
    void *st = open_stage_at(dir, PRECISION_F32, 2, false);
    outcome_init(&healthy, 4, 5, NULL);
    run_alone(st, &healthy);
    outcome_init(&both[0], 3, 5, NULL);
    both[0].text[2] = 600;
    outcome_init(&both[1], 4, 5, NULL);
    for (int i = 0; i < 2; i++)
        assert_ok(llm_stage.accept(st, &both[i].job));
    for (int n = 0; n < STEPS_MAX && !(both[0].returned && both[1].returned); n++)
        step(st, both, 2, ROWS);
    assert_int_equal(both[0].code, CF_ERR_NUMERIC);
    assert_non_null(strstr(both[0].error, "expected a finite number"));
    assert_same_tokens(&healthy, &both[1]);
    llm_stage.close(st);
}

static void test_accept_refuses(void **state)
{
    (void)state;
    static outcome good, bad;
    static int32_t long_text[SEGMENT_TEXT_TOKENS_MAX + 1];
    void *st = open_stage(PRECISION_F32, 2);
    outcome_init(&good, 1, 5, NULL);

#define REFUSED(code, part, change)                             \
    do {                                                        \
        bad = good;                                             \
        bad.job.text = bad.text;                                \
        bad.job.prompt_text = bad.prompt_text;                  \
        change;                                                 \
        assert_err(code, part, llm_stage.accept(st, &bad.job)); \
        assert_int_equal(llm_stage.held(st), 0);                \
    } while (0)
    REFUSED(CF_ERR_INVALID, "text has 0 tokens", bad.job.text_tokens = 0);
    REFUSED(CF_ERR_INVALID, "text has -3 tokens", bad.job.text_tokens = -3);
    REFUSED(CF_ERR_LIMIT, "SEGMENT_TEXT_TOKENS_MAX",
            (bad.job.text = long_text, bad.job.text_tokens = SEGMENT_TEXT_TOKENS_MAX + 1));
    REFUSED(CF_ERR_LIMIT, "PROMPT_TEXT_TOKENS_MAX",
            (bad.job.prompt_text = long_text, bad.job.prompt_text_tokens = PROMPT_TEXT_TOKENS_MAX + 1));
    REFUSED(CF_ERR_LIMIT, "PROMPT_TEXT_TOKENS_MAX", bad.job.prompt_text_tokens = -1);
    REFUSED(CF_ERR_INVALID, "<|endofprompt|> (id 514) is neither", bad.prompt_text[1] = 5);
    REFUSED(CF_ERR_INVALID, "the id of <|endofprompt|> is 0", bad.job.end_of_prompt_id = 0);
    REFUSED(CF_ERR_INVALID, "text id 832 at position 1: expected 0..831", bad.text[1] = 832);
    REFUSED(CF_ERR_INVALID, "prompt text id -1", bad.prompt_text[2] = -1);
    REFUSED(CF_ERR_INVALID, "without a voice", bad.job.prompt_speech = true);
#undef REFUSED

    /* The marker may stand in the text instead: cross-lingual. */
    bad = good;
    bad.job.text = bad.text;
    bad.job.prompt_text_tokens = 0;
    bad.text[0] = FIXTURE_END_OF_PROMPT;
    assert_ok(llm_stage.accept(st, &bad.job));
    assert_err(CF_ERR_INVALID, "already held", llm_stage.accept(st, &bad.job));
    good.job.job_id = 2;
    assert_ok(llm_stage.accept(st, &good.job));
    bad.job.job_id = 3;
    assert_err(CF_ERR_BUSY, "all 2 rows", llm_stage.accept(st, &bad.job));
    llm_stage.close(st); /* with running rows */
}

/* Pages, not rows, are short: one longest job at a time fits a pool of one row. */
static void test_long_jobs_wait_for_pages(void **state)
{
    (void)state;
    static int32_t text[SEGMENT_TEXT_TOKENS_MAX];
    static outcome o;
    text[0] = FIXTURE_END_OF_PROMPT;
    void *st = open_stage(PRECISION_F32, 2);
    outcome_init(&o, 1, 1, NULL);
    o.job.text = text;
    o.job.text_tokens = SEGMENT_TEXT_TOKENS_MAX;
    o.job.prompt_text_tokens = 0;
    assert_ok(llm_stage.accept(st, &o.job));
    o.job.job_id = 2;
    assert_err(CF_ERR_BUSY, "cache pages", llm_stage.accept(st, &o.job));
    llm_stage.cancel(st, 77); /* unknown: nothing happens */
    assert_int_equal(llm_stage.held(st), 1);
    llm_stage.cancel(st, 1);
    assert_int_equal(llm_stage.held(st), 0);
    assert_ok(llm_stage.accept(st, &o.job));
    llm_stage.close(st);
}

/* Results beyond `max` stay for the next call; a stage with nothing to do returns nothing. */
static void test_results_wait(void **state)
{
    (void)state;
    static outcome o[ROWS];
    void *st = open_stage(PRECISION_F32, ROWS);
    assert_int_equal(step(st, o, ROWS, ROWS), 0);
    for (int32_t i = 0; i < ROWS; i++) {
        outcome_init(&o[i], 1 + (uint64_t)i, 1, NULL);
        assert_ok(llm_stage.accept(st, &o[i].job));
    }
    int32_t got = 0;
    for (int n = 0; n < SPEECH_PER_TEXT_MAX + 1; n++) /* by now all have ended */
        assert_int_equal(step(st, o, ROWS, 0), 0);
    assert_int_equal(llm_stage.held(st), ROWS);
    for (int n = 0; n < ROWS; n++)
        got += step(st, o, ROWS, 1);
    assert_int_equal(got, ROWS);
    assert_int_equal(llm_stage.held(st), 0);
    llm_stage.close(st);
}

static void test_facts(void **state)
{
    (void)state;
    stage_facts facts;
    char path[IO_PATH_BYTES], hex[SHA256_HEX_BYTES];
    io_map map;
    void *st = open_stage(PRECISION_F32, 1);
    llm_stage.facts(st, &facts);
    assert_ok(io_join(path, sizeof path, tiny_model_dir(), "llm.safetensors"));
    assert_ok(io_map_file(path, &map));
    assert_ok(sha256_of(map.data, map.data_bytes, hex));
    io_unmap(&map);
    assert_string_equal(facts.model_sha256, hex);
    assert_string_equal(facts.model_file, "llm.safetensors");
    assert_non_null(strstr(facts.backend, "cpu"));
    assert_true(facts.weights_bytes > 0 && facts.scratch_bytes > 0);
    llm_stage.close(st);
    llm_stage.close(NULL);
}

static void test_faults(void **state)
{
    (void)state;
    static outcome o;
    stage_result result;
    int32_t got = -1;
    void *st = open_stage(PRECISION_F32, 1);
    outcome_init(&o, 1, 2, NULL);
    assert_ok(fault_arm("llm.accept=fail,llm.step#2=fail"));
    assert_err(CF_ERR_NOMEM, "llm.accept", llm_stage.accept(st, &o.job));
    assert_ok(llm_stage.accept(st, &o.job));
    assert_ok(llm_stage.step(st, &result, 1, &got));
    assert_err(CF_ERR_DEVICE, "llm.step", llm_stage.step(st, &result, 1, &got));
    assert_ok(fault_arm(NULL));
    llm_stage.close(st);
}

/* What `cosyfarm bench llm` reports, with as many rows as a worker takes: none of them ends while it is timed. */
static void test_bench(void **state)
{
    (void)state;
    bench_llm_open opened;
    bench_llm_rate rate;
    const stage_config cfg = {.model_dir = tiny_model_dir(), .device = "cpu", .operands = PRECISION_F32};
    assert_ok(bench_llm(&cfg, (const int32_t[]){JOBS_PER_MEMBER_MAX}, 1, &opened, &rate));
    assert_int_equal(rate.rows, JOBS_PER_MEMBER_MAX);
    assert_true(rate.tokens_per_s > 0 && rate.step.best_s <= rate.step.median_s && opened.prefill_gflops > 0);
    assert_err(CF_ERR_LIMIT, "bench llm: 257 rows, expected 1..256",
               bench_llm(&cfg, (const int32_t[]){1, JOBS_PER_MEMBER_MAX + 1}, 2, &opened, &rate));
    assert_err(CF_ERR_LIMIT, "bench llm: 0 rows", bench_llm(&cfg, (const int32_t[]){0}, 1, &opened, &rate));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_joining_and_leaving),
        cmocka_unit_test(test_sixteen_in_any_order_f32),
        cmocka_unit_test(test_sixteen_in_any_order_bf16),
        cmocka_unit_test(test_seed_and_segment_decide),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_silence_filter),
        cmocka_unit_test(test_length_law_holds),
        cmocka_unit_test(test_strict_head),
        cmocka_unit_test(test_nan_fails_one_row),
        cmocka_unit_test(test_accept_refuses),
        cmocka_unit_test(test_long_jobs_wait_for_pages),
        cmocka_unit_test(test_results_wait),
        cmocka_unit_test(test_facts),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_bench),
    };
    return cmocka_run_group_tests_name("llm_stage", tests, NULL, NULL);
}
