/*
 * test_memory_plan.c - what a stage says it will take, held against what it took; and what does not fit is refused
 * before anything is taken. On the CPU, and on the device that COSYFARM_TEST_DEVICE names.
 */
#include "tests/harness/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/process.h"
#include "common/worker/memory_plan.h"
#include "flow_worker/flow_stage.h"
#include "hift_worker/hift_stage.h"
#include "llm_worker/llm_stage.h"
#include "tests/harness/tiny_model.h"

static const stage_ops *const STAGES[] = {&llm_stage, &flow_stage, &hift_stage};

static const char *device(void)
{
    const char *named = getenv("COSYFARM_TEST_DEVICE");
    return named ? named : "cpu";
}

static stage_config config_of(const char *model, precision operands)
{
    return (stage_config){
        .model_dir = model, .device = device(), .operands = operands, .threads = 1, .rows_max = 4, .frames_max = 2000};
}

/* The CPU's layouts pad narrow filters, which small models have: both ways so much. */
#define OFF     1.08
#define PADDING (1u << 19)

static void expect_plan(const stage_ops *ops, const stage_config *cfg)
{
    void *stage;
    stage_memory planned;
    stage_facts facts;
    uint64_t before, after, total;
    assert_ok(ops->plan(cfg, &planned));
    assert_ok(backend_memory(device(), &before, &total));
    assert_ok(ops->open(cfg, &stage));
    assert_ok(backend_memory(device(), &after, &total));
    ops->facts(stage, &facts);
    ops->close(stage);
    if (strcmp(device(), "cpu") != 0) { /* scratch is there already */
        print_message("%s: the device gave %.2f MiB, planned %.2f\n", stage_name(ops->kind),
                      (double)(before - after) / 1048576, (double)memory_total(&planned) / 1048576);
        assert_true(before - after >= planned.scratch_bytes && before - after <= memory_total(&planned));
    }
    const double kept = (double)facts.kept_bytes, plan = (double)(planned.weights_bytes + planned.tables_bytes);
    print_message("%s %d: planned %.2f MiB, took %.2f; weights %.2f, took %.2f\n", stage_name(ops->kind),
                  (int)cfg->operands, plan / 1048576, kept / 1048576, (double)planned.weights_bytes / 1048576,
                  (double)facts.weights_bytes / 1048576);
    assert_true(kept <= plan * OFF + PADDING);
    assert_true(plan <= kept * OFF + PADDING);
    assert_true(planned.scratch_bytes > 0);
    assert_true((planned.library_bytes > 0) == (strcmp(device(), "cpu") != 0));
}

static void test_planned_is_taken(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof STAGES / sizeof STAGES[0]; i++) {
        for (int operands = PRECISION_F32; operands <= PRECISION_BF16; operands++) {
            const stage_config cfg = config_of(small_model_dir(), (precision)operands);
            expect_plan(STAGES[i], &cfg);
        }
        const stage_config cfg = config_of(tiny_model_dir(), PRECISION_F32);
        expect_plan(STAGES[i], &cfg);
    }
}

static void test_text(void **state)
{
    (void)state;
    char text[MEMORY_TEXT_BYTES];
    const uint64_t gib = UINT64_C(1) << 30;
    const stage_memory m = {2 * gib, gib / 2, gib / 4, gib};
    memory_format(&m, text);
    assert_string_equal(text, "weights 2.00, tables 0.50, scratch 0.25, library 1.00 GiB");
    assert_int_equal(memory_total(&m), 2 * gib + gib / 2 + gib / 4 + gib);
}

static void test_what_does_not_fit(void **state)
{
    (void)state;
    uint64_t left, total, seen = 0;
    assert_ok(backend_memory(device(), &left, &total));
    assert_true(left > 0 && left <= total);
    const bool cpu = strcmp(device(), "cpu") == 0;
    const uint64_t library = cpu ? 0 : 1;
    stage_memory m = {.weights_bytes = total + 1, .library_bytes = library};
    assert_err(CF_ERR_LIMIT, "flow: needs ", memory_check(STAGE_FLOW, device(), &m, &seen));
    assert_true(seen > 0);
    m = (stage_memory){.tables_bytes = total / 2 + 1, .weights_bytes = total / 2 + 1, .library_bytes = library};
    assert_err(CF_ERR_LIMIT, "fewer rows or frames", memory_check(STAGE_LLM, device(), &m, &seen));
    m = (stage_memory){.weights_bytes = total, .library_bytes = 0};
    if (cpu && left < total) /* it may fit some day */
        assert_err(CF_ERR_NOMEM, "flow: needs ", memory_check(STAGE_FLOW, device(), &m, &seen));
    m = (stage_memory){.scratch_bytes = 2 * total, .library_bytes = library};
    if (cpu)
        assert_ok(memory_check(STAGE_LLM, device(), &m, &seen)); /* address space */
    else
        assert_err(CF_ERR_LIMIT, "llm: needs ", memory_check(STAGE_LLM, device(), &m, &seen));
    assert_err(CF_ERR_UNSUPPORTED, "abacus", memory_check(STAGE_LLM, "abacus", &m, &seen));
}

static void test_no_model_no_plan(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof STAGES / sizeof STAGES[0]; i++) {
        stage_memory m;
        const stage_config cfg = config_of("/nonexistent", PRECISION_F32);
        assert_err(CF_ERR_NOTFOUND, "/nonexistent", STAGES[i]->plan(&cfg, &m));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_planned_is_taken),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_no_model_no_plan),
    };
    return cmocka_run_group_tests_name("memory plan", tests, NULL, NULL);
}
