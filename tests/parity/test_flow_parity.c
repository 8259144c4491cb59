/*
 * test_flow_parity.c - the flow against upstream's own tensors, through the frame of `cosyfarm parity`: every case
 * alone and packed with the others, equal bytes of the two, bounds of tools/parity_compare.c.
 *
 * The naive backend runs the short cases only; COSYFARM_FULL names a full-size synthetic model with seed 0 for full-0.
 */
#include "tests/harness/test.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/parity/flow_fixture.h"
#include "tools/parity_frame.h"

#define CASES_MAX 32

typedef struct run_setup {
    const char *model_dir;
    precision operands;
    bool naive;
    const parity_stage *stage;
} run_setup;

static void report(void *ctx, const parity_line *line)
{
    (void)ctx;
    if (!line->pass)
        print_error("%s: %s: rel %.3g, SNR %.1f dB: %s\n", line->case_path, line->tensor_name ? line->tensor_name : "-",
                    line->stats.rel, line->stats.snr_db, line->reason);
}

/* Runs the named case files and demands that everything passes. Returns how many comparisons did. */
static size_t run_paths(const run_setup *setup, char *const *paths, size_t count)
{
    parity_case *cases[CASES_MAX];
    parity_totals totals;
    const parity_options options = {
        .model_dir = setup->model_dir, .device = "cpu", .operands = setup->operands, .naive = setup->naive};
    const parity_stage *const stages[] = {setup->stage, NULL};
    const parity_run run = {.options = &options, .stages = stages, .report = report};
    assert_in_range(count, 1, CASES_MAX);
    for (size_t i = 0; i < count; i++)
        assert_ok(parity_case_open(paths[i], &cases[i]));
    assert_ok(parity_run_cases(&run, cases, count, &totals));
    for (size_t i = 0; i < count; i++)
        parity_case_close(cases[i]);
    assert_int_equal(totals.failed, 0);
    assert_true(totals.passed >= count);
    return totals.passed;
}

/* As run_paths with every file that matches. */
static size_t run_glob(const run_setup *setup, const char *pattern)
{
    glob_t found;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    const size_t passed = run_paths(setup, found.gl_pathv, found.gl_pathc);
    globfree(&found);
    return passed;
}

static size_t run_shared(const run_setup *setup, const char *folder, const char *pattern)
{
    char joined[4200];
    snprintf(joined, sizeof joined, "%s/%s", test_shared(folder), pattern);
    return run_glob(setup, joined);
}

/* What a clone without the shared data has. */
static void run_clone(precision operands)
{
    run_setup setup = {flow_fixture_model(RECIPE_TINY, false), operands, false, &parity_flow};
    assert_true(run_glob(&setup, test_path("tests/golden/tiny-0/flow-*.safetensors")) >= 24);
    setup.model_dir = flow_fixture_model(RECIPE_TINY, true);
    assert_true(run_glob(&setup, test_path("tests/golden/tiny-0-harsh/flow-*.safetensors")) >= 4);
}

static void test_cases_of_the_clone(void **state)
{
    (void)state;
    run_clone(PRECISION_F32);
}

static void test_cases_of_the_clone_bf16(void **state)
{
    (void)state;
    run_clone(PRECISION_BF16);
}

static void test_naive_backend(void **state)
{
    (void)state;
    run_setup setup = {flow_fixture_model(RECIPE_TINY, false), PRECISION_F32, true, &parity_flow};
    run_glob(&setup, test_path("tests/golden/tiny-0/flow-no-prompt.safetensors"));
    run_glob(&setup, test_path("tests/golden/tiny-0/flow-one-token.safetensors"));
    setup.model_dir = flow_fixture_model(RECIPE_TINY, true);
    setup.operands = PRECISION_BF16;
    run_glob(&setup, test_path("tests/golden/tiny-0-harsh/flow-stream-hop.safetensors"));
}

static void run_sizes(precision operands)
{
    run_setup setup = {.operands = operands, .stage = &parity_flow};
    setup.model_dir = flow_fixture_model(RECIPE_TINY, false);
    run_shared(&setup, "golden/tiny-0", "flow-*.safetensors");
    setup.model_dir = flow_fixture_model(RECIPE_TINY, true);
    run_shared(&setup, "golden/tiny-0-harsh", "flow-*.safetensors");
    setup.model_dir = flow_fixture_model(RECIPE_SMALL, false);
    run_shared(&setup, "golden/small-0", "flow-*.safetensors");
    setup.model_dir = flow_fixture_model(RECIPE_SMALL, true);
    run_shared(&setup, "golden/small-0-harsh", "flow-*.safetensors");
}

static void test_f32(void **state)
{
    (void)state;
    run_sizes(PRECISION_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    run_sizes(PRECISION_BF16);
}

static void test_full_size(void **state)
{
    (void)state;
    run_setup setup = {.model_dir = getenv("COSYFARM_FULL"), .stage = &parity_flow};
    if (setup.model_dir == NULL)
        skip();
    run_shared(&setup, "golden/full-0", "flow-*.safetensors");
    setup.operands = PRECISION_BF16;
    run_shared(&setup, "golden/full-0", "flow-*.safetensors");
}

static void test_speed(void **state)
{
    (void)state;
    run_setup setup = {flow_fixture_model(RECIPE_TINY, false), PRECISION_F32, false, &parity_speed};
    assert_true(run_glob(&setup, test_path("tests/golden/tiny-0/speed-*.safetensors")) >= 2);
    setup.naive = true;
    run_glob(&setup, test_path("tests/golden/tiny-0/speed-*.safetensors"));
}

/* Every call of a stream, mel and samples, both stages chained. */
static void test_stream(void **state)
{
    (void)state;
    run_setup setup = {flow_fixture_model(RECIPE_TINY, false), PRECISION_F32, false, &parity_stream};
    assert_true(run_glob(&setup, test_path("tests/golden/tiny-0/stream-*.safetensors")) >= 8);
    setup.operands = PRECISION_BF16;
    run_glob(&setup, test_path("tests/golden/tiny-0/stream-short.safetensors"));
}

static void test_stream_shared(void **state)
{
    (void)state;
    run_setup setup = {flow_fixture_model(RECIPE_TINY, false), PRECISION_F32, false, &parity_stream};
    run_shared(&setup, "golden/tiny-0", "stream-echo.safetensors");
}

/* The comparison can fail: plain cases on a harsh model. */
static void test_wrong_model_fails(void **state)
{
    (void)state;
    parity_case *c;
    parity_totals totals;
    const parity_options options = {.model_dir = flow_fixture_model(RECIPE_TINY, true), .device = "cpu"};
    const parity_stage *const stages[] = {&parity_flow, NULL};
    const parity_run run = {
        .options = &options, .stages = stages, .report = (void (*)(void *, const parity_line *))report};
    assert_ok(parity_case_open(test_path("tests/golden/tiny-0/flow-no-prompt.safetensors"), &c));
    print_message("the failures that follow are wanted\n");
    assert_ok(parity_run_cases(&run, &c, 1, &totals));
    assert_true(totals.failed >= 6); /* estimator outputs, states and mel; mu, spk and t agree */
    parity_case_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases_of_the_clone),
        cmocka_unit_test(test_cases_of_the_clone_bf16),
        cmocka_unit_test(test_naive_backend),
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_full_size),
        cmocka_unit_test(test_speed),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_stream_shared),
        cmocka_unit_test(test_wrong_model_fails),
    };
    return cmocka_run_group_tests_name("flow_parity", tests, NULL, NULL);
}
