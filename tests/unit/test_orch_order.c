/* test_orch_order.c - in which order the orchestrator's waiting rows are served. */
#include "tests/harness/test.h"

#include "common/base/check.h"
#include "orchestrator/orch_core.h"

static orch_core core; /* large: one for the program */

/* [P-26] The guard sends a row back: its next attempt goes ahead of the rows that came after it, not behind them. A
 * recovered farm would else render the first attempts of all of them before it finishes one. */
static void test_another_attempt_keeps_its_place(void **state)
{
    (void)state;
    static const core_cost cost = {10, 50, 0};
    static const struct {
        int32_t priority;
        uint64_t row;
    } rows[] = {{0, 5}, {0, 6}, {0, 7}, {0, 8}, {0, 5}, {1, 9}, {1, 4}};
    static const int32_t wanted[] = {6, 5, 0, 4, 1, 2, 3};
    orch_core_init(&core, &(core_limits){.deaths_max = 3, .parole_us = 1, .parole_max_us = 1});
    for (int32_t i = 0; i < (int32_t)CF_COUNT(rows); i++)
        orch_core_step(&core,
                       &(core_event){.kind = CORE_SUBMIT,
                                     .utterance = i,
                                     .priority = rows[i].priority,
                                     .row = rows[i].row,
                                     .speed = 1,
                                     .segments = &cost,
                                     .segments_count = 1},
                       1);
    assert_int_equal(core.order_count, CF_COUNT(wanted));
    for (size_t i = 0; i < CF_COUNT(wanted); i++)
        assert_int_equal(core.order[i], wanted[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_another_attempt_keeps_its_place),
    };
    return cmocka_run_group_tests_name("orch_order", tests, NULL, NULL);
}
