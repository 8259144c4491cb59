/*
 * test_health.c - silence, standstill, and the judge who slept.
 */
#include "tests/harness/test.h"

#include "orchestrator/health.h"

static const health_limits limits = {.silence_us = 20000000, .stall_us = 5000000};

static void test_silence(void **state)
{
    (void)state;
    health h;
    health_begin(&h, 1000);
    assert_int_equal(health_judge(&h, &limits, 1000 + limits.silence_us), HEALTH_FINE);
    assert_int_equal(health_judge(&h, &limits, 1001 + limits.silence_us), HEALTH_SILENT);
    health_heard(&h, 2000);
    assert_int_equal(health_judge(&h, &limits, 1001 + limits.silence_us), HEALTH_FINE);
}

static void test_standstill_counts_while_it_has_jobs(void **state)
{
    (void)state;
    health h;
    health_begin(&h, 0);
    uint64_t now_us = 0;
    for (int i = 0; i < 40; i++) /* idle: no steps, and nobody minds */
        health_beat(&h, 7, false, now_us += 500000);
    assert_int_equal(health_judge(&h, &limits, now_us), HEALTH_FINE);
    const uint64_t since_us = now_us;
    while (now_us < since_us + limits.stall_us)
        health_beat(&h, 7, true, now_us += 500000);
    assert_int_equal(health_judge(&h, &limits, now_us), HEALTH_FINE);
    assert_int_equal(health_judge(&h, &limits, now_us + 1), HEALTH_STALLED);
    health_beat(&h, 8, true, now_us + 1);
    assert_int_equal(health_judge(&h, &limits, now_us + 2), HEALTH_FINE);
}

/* Not heard for longer than stall_us, but it had nothing to do: that is a matter of silence alone. */
static void test_idle_worker_does_not_stall(void **state)
{
    (void)state;
    health h;
    health_begin(&h, 0);
    health_beat(&h, 7, false, 0);
    assert_int_equal(health_judge(&h, &limits, limits.stall_us + 1), HEALTH_FINE);
}

static void test_judge_who_slept(void **state)
{
    (void)state;
    health h;
    health_begin(&h, 0);
    health_beat(&h, 1, true, 0);
    assert_false(health_overslept(1000, 1000 + 500000 + HEALTH_ASLEEP_US, 500000));
    assert_true(health_overslept(1000, 1001 + 500000 + HEALTH_ASLEEP_US, 500000));
    const uint64_t now_us = 60000000;
    assert_int_equal(health_judge(&h, &limits, now_us), HEALTH_SILENT);
    health_excuse(&h, now_us);
    assert_int_equal(health_judge(&h, &limits, now_us + limits.stall_us), HEALTH_FINE);
    assert_int_equal(health_judge(&h, &limits, now_us + limits.stall_us + 1), HEALTH_STALLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_standstill_counts_while_it_has_jobs),
        cmocka_unit_test(test_idle_worker_does_not_stall),
        cmocka_unit_test(test_judge_who_slept),
    };
    return cmocka_run_group_tests_name("health", tests, NULL, NULL);
}
