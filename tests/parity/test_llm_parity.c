/*
 * test_llm_parity.c - the LLM against upstream's logits, and against itself: a row's bytes in any company and with
 * any number of threads. COSYFARM_FULL=DIR adds the full-size cases on a full synthetic model of seed 0.
 */
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "tests/harness/tiny_model.h"
#include "tests/parity/llm_fixture.h"
#include "tools/parity_frame.h"

#define COMPANY_MAX 16

static const struct variant {
    const char *label;
    bool naive;
    precision operands;
    int32_t company; /* rows in one packed batch: 16 where it does not take seconds */
    bool int8_weights;
} VARIANTS[] = {
    {"naive f32", true, PRECISION_F32, 4, false},           {"naive bf16", true, PRECISION_BF16, 4, false},
    {"fast f32", false, PRECISION_F32, COMPANY_MAX, false}, {"fast bf16", false, PRECISION_BF16, COMPANY_MAX, false},
    {"naive int8", true, PRECISION_BF16, 4, true},          {"fast int8", false, PRECISION_BF16, COMPANY_MAX, true},
};
#define VARIANT_COUNT (sizeof VARIANTS / sizeof VARIANTS[0])

static void report(void *ctx, const parity_line *line)
{
    size_t *tensors = ctx;
    if (!line->pass)
        print_error("%s %s: rel %.2e max %.2e mean %.2e: %s\n", line->case_path,
                    line->tensor_name ? line->tensor_name : "-", line->stats.rel, line->stats.max_abs,
                    line->stats.mean_abs, line->reason);
    *tensors += line->compared;
}

/* Runs case files, alone and packed; returns how many findings failed. */
static size_t run_cases(const struct variant *v, const char *model, const char *const *paths, size_t count)
{
    static const parity_stage *const stages[] = {&parity_llm, NULL};
    const parity_options options = {.model_dir = model,
                                    .device = "cpu",
                                    .operands = v->operands,
                                    .int8_weights = v->int8_weights,
                                    .naive = v->naive};
    size_t tensors = 0;
    const parity_run run = {.options = &options, .stages = stages, .report = report, .ctx = &tensors};
    parity_case *cases[8];
    parity_totals totals;
    for (size_t i = 0; i < count; i++)
        assert_ok(parity_case_open(paths[i], &cases[i]));
    assert_ok(parity_run_cases(&run, cases, count, &totals));
    for (size_t i = 0; i < count; i++)
        parity_case_close(cases[i]);
    assert_true(tensors >= count);
    return totals.failed;
}

static void assert_cases_pass(const char *model, const char *const *paths, size_t count, bool with_naive)
{
    for (size_t i = 0; i < VARIANT_COUNT; i++) {
        if (VARIANTS[i].naive && !with_naive)
            continue;
        const size_t failed = run_cases(&VARIANTS[i], model, paths, count);
        if (failed > 0)
            fail_msg("%s: %zu findings failed", VARIANTS[i].label, failed);
    }
}

static void test_cases_in_the_repository(void **state)
{
    (void)state;
    static const char *const names[] = {"llm-instruct", "llm-zero-shot", "debug_llm_data"};
    enum { CASES = sizeof names / sizeof names[0] };
    char paths[CASES][IO_PATH_BYTES], relative[128];
    const char *list[CASES];
    for (size_t i = 0; i < CASES; i++) {
        snprintf(relative, sizeof relative, "tests/golden/tiny-0/%s.safetensors", names[i]);
        snprintf(paths[i], IO_PATH_BYTES, "%s", test_path(relative));
        list[i] = paths[i];
    }
    assert_cases_pass(tiny_model_dir(), list, CASES, true);
}

static void test_tiny_cases(void **state)
{
    (void)state;
    const char *paths[] = {test_shared("golden/tiny-0/llm-zero-shot.safetensors"),
                           test_shared("golden/tiny-0/llm-cross-lingual.safetensors"),
                           test_shared("golden/tiny-0/llm-long.safetensors"),
                           test_shared("golden/tiny-0/debug_llm_data.safetensors")};
    assert_cases_pass(tiny_model_dir(), paths, 4, true);
}

static void test_small_case(void **state)
{
    (void)state;
    const char *path = test_shared("golden/small-0/llm-zero-shot.safetensors");
    assert_cases_pass(small_model_dir(), &path, 1, false);
}

static void test_full_case(void **state)
{
    (void)state;
    const char *model = getenv("COSYFARM_FULL");
    if (!model)
        skip();
    const char *path = test_shared("golden/full-0/llm-zero-shot.safetensors");
    assert_cases_pass(model, &path, 1, false);
}

/* The comparison must be able to fail: weights of another model shape, and a case that is not for this model. */
static void test_another_model_fails(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s", test_path("tests/golden/tiny-0/llm-instruct.safetensors"));
    assert_true(run_cases(&VARIANTS[0], small_model_dir(), (const char *const[]){path}, 1) >= 3);
}

static llm_engine *open_engine(const struct variant *v, int threads)
{
    llm_engine *e = NULL;
    const llm_engine_config cfg = {.model_dir = tiny_model_dir(),
                                   .device = "cpu",
                                   .operands = v->operands,
                                   .int8_weights = v->int8_weights,
                                   .threads = threads,
                                   .naive = v->naive,
                                   .rows_max = COMPANY_MAX};
    assert_ok(llm_engine_open(&cfg, &e));
    return e;
}

/* Replays `count` sequences with these seeds together, in this order; logits are the caller's to release. */
static void replay(llm_engine *e, fixture_sequence *s, const uint64_t *seeds, int32_t count)
{
    llm_replay_item items[COMPANY_MAX];
    for (int32_t i = 0; i < count; i++) {
        fixture_sequence_init(&s[i], llm_engine_model(e), seeds[i]);
        items[i] = s[i].item;
    }
    assert_ok(llm_replay(e, items, count));
}

static void assert_same_bytes(const fixture_sequence *a, const fixture_sequence *b, const char *what)
{
    const size_t rows = (size_t)a->item.forced_tokens + 1;
    assert_int_equal(a->item.forced_tokens, b->item.forced_tokens);
    if (memcmp(a->item.logits, b->item.logits, rows * SPEECH_ROWS * sizeof(float)) != 0)
        fail_msg("%s: logits differ", what);
}

static void test_bytes_do_not_depend_on_company(void **state)
{
    (void)state;
    static fixture_sequence alone[COMPANY_MAX], together[COMPANY_MAX];
    for (size_t v = 0; v < VARIANT_COUNT; v++) {
        llm_engine *e = open_engine(&VARIANTS[v], 0);
        const int32_t count = VARIANTS[v].company;
        uint64_t seeds[COMPANY_MAX], shuffled[COMPANY_MAX];
        for (int32_t i = 0; i < count; i++) {
            seeds[i] = 100 + (uint64_t)i;
            replay(e, &alone[i], &seeds[i], 1);
        }
        for (int32_t round = 0; round < 2; round++) {
            for (int32_t i = 0; i < count; i++) /* 3 and 5 are coprime to 4 and 16 */
                shuffled[i] = seeds[(i * (round ? 3 : 5) + round) % count];
            replay(e, together, shuffled, count);
            for (int32_t i = 0; i < count; i++) {
                assert_same_bytes(&alone[shuffled[i] - 100], &together[i], VARIANTS[v].label);
                fixture_sequence_done(&together[i]);
            }
        }
        for (int32_t i = 0; i < count; i++)
            fixture_sequence_done(&alone[i]);
        llm_engine_close(e);
    }
}

static void test_bytes_do_not_depend_on_threads(void **state)
{
    (void)state;
    static fixture_sequence one[COMPANY_MAX], two[COMPANY_MAX];
    uint64_t seeds[COMPANY_MAX];
    for (int32_t i = 0; i < COMPANY_MAX; i++)
        seeds[i] = 300 + (uint64_t)i;
    for (size_t v = 0; v < VARIANT_COUNT; v++) {
        const int32_t count = VARIANTS[v].company;
        llm_engine *e1 = open_engine(&VARIANTS[v], 1), *e2 = open_engine(&VARIANTS[v], 2);
        replay(e1, one, seeds, count);
        replay(e2, two, seeds, count);
        for (int32_t i = 0; i < count; i++) {
            assert_same_bytes(&one[i], &two[i], VARIANTS[v].label);
            fixture_sequence_done(&one[i]);
            fixture_sequence_done(&two[i]);
        }
        llm_engine_close(e1);
        llm_engine_close(e2);
    }
}

/* Prompts beyond one prefill call: pieces and groups give the bytes of each prompt alone. */
static void test_long_prompts_are_cut_alike(void **state)
{
    (void)state;
    static int32_t text[4][1100];
    static float logits[2][4][SPEECH_ROWS];
    const int32_t lengths[4] = {1100, 300, 721, 1023}; /* with sos and task 1102, 302, 723, 1025 rows */
    llm_engine *e = open_engine(&VARIANTS[2], 0);
    llm_replay_item items[4];
    for (int32_t i = 0; i < 4; i++) {
        for (int32_t k = 0; k < 1100; k++)
            text[i][k] = (k * 37 + i * 11) % 500;
        items[i] = (llm_replay_item){.prompt = {.text = text[i], .text_tokens = lengths[i]}, .logits = logits[0][i]};
        assert_ok(llm_replay(e, &items[i], 1));
        items[i].logits = logits[1][i];
    }
    assert_ok(llm_replay(e, items, 4));
    for (int32_t i = 0; i < 4; i++)
        assert_memory_equal(logits[0][i], logits[1][i], sizeof logits[0][i]);
    llm_engine_close(e);
}

static void test_replay_refuses(void **state)
{
    (void)state;
    static float logits[2 * SPEECH_ROWS];
    llm_engine *e = open_engine(&VARIANTS[0], 1);
    const int32_t good[] = {5, 6}, negative[] = {5, -1}, high[] = {5, 832}, code[] = {6561}, forced[] = {6761};
    const struct {
        llm_replay_item item;
        const char *part;
    } cases[] = {
        {{.prompt = {.text = negative, .text_tokens = 2}}, "text id -1 at position 1: expected 0..831"},
        {{.prompt = {.text = high, .text_tokens = 2}}, "text id 832"},
        {{.prompt = {.text = good, .text_tokens = 2, .prompt_text = high, .prompt_text_tokens = 2}},
         "prompt text id 832"},
        {{.prompt = {.text = good, .text_tokens = 2, .speech = code, .speech_tokens = 1}}, "prompt speech id 6561"},
        {{.prompt = {.text = good, .text_tokens = 2}, .forced = forced, .forced_tokens = 1}, "forced id 6761"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        llm_replay_item item = cases[i].item;
        item.logits = logits;
        assert_err(CF_ERR_INVALID, cases[i].part, llm_replay(e, &item, 1));
    }
    llm_engine_close(e); /* asserts that refusals left no page claimed */
}

static void test_open_refuses(void **state)
{
    (void)state;
    llm_engine *e = NULL;
    llm_engine_config cfg = {.model_dir = tiny_model_dir(), .device = "cpu", .naive = true};
    assert_err(CF_ERR_LIMIT, "rows_max is 0", llm_engine_open(&cfg, &e));
    cfg.rows_max = 257;
    assert_err(CF_ERR_LIMIT, "expected 1..256", llm_engine_open(&cfg, &e));
    cfg.rows_max = 1;
    cfg.device = "abacus";
    assert_err(CF_ERR_UNSUPPORTED, "abacus", llm_engine_open(&cfg, &e));
    cfg.device = "cpu";
    cfg.model_dir = test_temp_dir();
    assert_true(llm_engine_open(&cfg, &e) != CF_OK);
    assert_null(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases_in_the_repository),
        cmocka_unit_test(test_tiny_cases),
        cmocka_unit_test(test_small_case),
        cmocka_unit_test(test_full_case),
        cmocka_unit_test(test_another_model_fails),
        cmocka_unit_test(test_bytes_do_not_depend_on_company),
        cmocka_unit_test(test_bytes_do_not_depend_on_threads),
        cmocka_unit_test(test_long_prompts_are_cut_alike),
        cmocka_unit_test(test_replay_refuses),
        cmocka_unit_test(test_open_refuses),
    };
    return cmocka_run_group_tests_name("llm_parity", tests, NULL, NULL);
}
