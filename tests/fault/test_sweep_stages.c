/*
 * test_sweep_stages.c - the nth allocation and the nth file access fails while a worker's stage is opened with the tiny
 * model: it does not open, says why, and leaks nothing. Opening goes through weights, packing, noise tables, caches and
 * scratch, which is everything a worker takes before it says READY.
 */
#include "tests/harness/test.h"

#include "common/worker/stage.h"
#include "tests/fault/sweep.h"
#include "tests/harness/tiny_model.h"

static const stage_ops *opened;
static const char *model_path;

static cf_err open_stage(void)
{
    void *stage = NULL;
    const stage_config cfg = {.model_dir = model_path, .device = "cpu", .threads = 1, .rows_max = 2, .frames_max = 200};
    const cf_err err = opened->open(&cfg, &stage);
    if (err == CF_OK)
        opened->close(stage);
    else
        assert_null(stage);
    return err;
}

static void sweep_stage(const stage_ops *ops, unsigned stride)
{
    const scenario s = {.name = stage_name(ops->kind), .run = open_stage};
    opened = ops;
    model_path = tiny_model_dir();
    assert_true(sweep(&s, "mem.alloc", CF_ERR_NOMEM, stride) >= 200);
    assert_true(sweep(&s, "mem.arena", CF_ERR_NOMEM, 1) >= 1);
    assert_true(sweep(&s, "io.open", CF_ERR_SYS, 1) >= 1);
    assert_true(sweep(&s, "io.map", CF_ERR_SYS, 1) >= 1);
}

static void test_llm(void **state)
{
    (void)state;
    sweep_stage(&llm_stage, 1);
}

static void test_flow(void **state)
{
    (void)state;
    sweep_stage(&flow_stage, 1);
}

static void test_hift(void **state)
{
    (void)state;
    sweep_stage(&hift_stage, 7); /* 1505 allocations at 10 ms a run: every seventh, which meets each kind of them */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llm),
        cmocka_unit_test(test_flow),
        cmocka_unit_test(test_hift),
    };
    return cmocka_run_group_tests_name("sweep_stages", tests, NULL, NULL);
}
