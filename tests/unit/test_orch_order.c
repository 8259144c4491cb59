/* test_orch_order.c - in which order the orchestrator's waiting rows are served, and when the LLM is given more. */
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

/* ---- the LLM's pauses [P-31]: each member holds two rows ---- */

static void apply(core_event e)
{
    orch_core_step(&core, &e, 1000);
}

static void begin_farm(void)
{
    orch_core_init(&core, &(core_limits){.deaths_max = 3, .parole_us = 1, .parole_max_us = 1});
    for (int stage = CORE_LLM; stage <= CORE_HIFT; stage++)
        apply((core_event){.kind = CORE_JOINED,
                           .member = stage,
                           .stage = stage,
                           .rows_max = 2,
                           .frames_max = 1000,
                           .outbox_id = stage == CORE_LLM ? 0 : (uint32_t)stage,
                           .outbox_bytes = 1 << 22});
}

/* known: its tokens are, so that it begins at Flow. */
static void submit(int utterance, int priority, bool known)
{
    const core_cost cost = {10, 50, known ? 25 : 0};
    apply((core_event){.kind = CORE_SUBMIT,
                       .utterance = utterance,
                       .priority = priority,
                       .row = (uint64_t)utterance,
                       .speed = 1,
                       .segments = &cost,
                       .segments_count = 1});
}

static void ready(const core_action *work, int tokens, int frames)
{
    apply(
        (core_event){.kind = CORE_READY, .member = work->member, .job = work->job, .tokens = tokens, .frames = frames});
}

/* Of the actions of the last step the work of a stage; how many there are. */
static int works_of(int stage, core_action *ret_works)
{
    int count = 0;
    for (int i = 0; i < core.actions_count; i++)
        if (core.actions[i].kind == CORE_DO_WORK && core.actions[i].stage == stage)
            ret_works[count++] = core.actions[i];
    return count;
}

/* It rests when Flow has its two and the LLM's two besides, until Flow has one; then it is given two at once. */
static void test_llm_rests_while_flow_has_enough(void **state)
{
    (void)state;
    core_action llm[8], flow[8], got[8];
    begin_farm();
    for (int row = 0; row < 8; row++) {
        submit(row, 0, false);
        assert_int_equal(works_of(CORE_LLM, row < 2 ? llm + row : got), row < 2);
    }
    for (int row = 0; row < 4; row++) { /* one in, one out, until four are at Flow */
        ready(&llm[row], 25, 0);
        assert_int_equal(works_of(CORE_FLOW, row < 2 ? flow + row : got), row < 2);
        assert_int_equal(works_of(CORE_LLM, row < 3 ? llm + row + 2 : got), row < 3);
    }
    ready(&llm[4], 25, 0);
    assert_int_equal(works_of(CORE_LLM, got), 0);
    for (int done = 0; done < 3; done++) { /* five are at Flow, which ends them one by one */
        ready(&flow[done], 0, 50);
        assert_int_equal(works_of(CORE_LLM, got), 0);
        assert_int_equal(works_of(CORE_FLOW, flow + done + 2), 1);
    }
    ready(&flow[3], 0, 50);
    assert_int_equal(works_of(CORE_LLM, got), 2);
    assert_int_equal(got[0].utterance, 5);
    assert_int_equal(got[1].utterance, 6);
}

/* One that is more urgent than those at Flow waits for nobody; nor does anybody where no Flow works them off. */
static void test_llm_does_not_rest_for_the_urgent(void **state)
{
    (void)state;
    core_action got[8];
    begin_farm();
    for (int row = 0; row < 4; row++)
        submit(row, 0, true);
    submit(4, 0, false);
    assert_int_equal(works_of(CORE_LLM, got), 0);
    submit(5, 1, false);
    assert_int_equal(works_of(CORE_LLM, got), 2); /* the other one comes along */
    assert_int_equal(got[0].utterance, 5);
    assert_int_equal(got[1].utterance, 4);
    submit(6, 0, false);
    ready(&got[0], 25, 0);
    assert_int_equal(works_of(CORE_LLM, got), 0);
    apply((core_event){.kind = CORE_LOST, .member = CORE_FLOW});
    assert_int_equal(works_of(CORE_LLM, got), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_another_attempt_keeps_its_place),
        cmocka_unit_test(test_llm_rests_while_flow_has_enough),
        cmocka_unit_test(test_llm_does_not_rest_for_the_urgent),
    };
    return cmocka_run_group_tests_name("orch_order", tests, NULL, NULL);
}
