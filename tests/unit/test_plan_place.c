/*
 * test_plan_place.c - placement of workers: the most that the devices can give, with few workers; memory that is short.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "tools/plan_place.h"

#define GIB ((uint64_t)1 << 30)

static const plan_stage STAGES[PLAN_STAGES] = {{4000, 3 * GIB}, {500, 4 * GIB}, {2000, 2 * GIB}};

static plan_result place(const plan_stage *stages, int devices, uint64_t free_each)
{
    uint64_t free_bytes[PLAN_DEVICES_MAX];
    plan_result p;
    for (int d = 0; d < devices; d++)
        free_bytes[d] = free_each;
    assert_ok(plan_place(stages, free_bytes, devices, &p));
    return p;
}

static void expect_rate(double got, double wanted)
{
    if (fabs(got - wanted) > 1e-6 * wanted)
        fail_msg("%.3f audio-s/s, expected %.3f", got, wanted);
}

static void test_one_device_has_all(void **state)
{
    (void)state;
    const plan_result p = place(STAGES, 1, 80 * GIB);
    for (int s = 0; s < PLAN_STAGES; s++)
        assert_int_equal(p.count[s], 1);
    expect_rate(p.audio_per_s, 1 / (1.0 / 4000 + 1.0 / 500 + 1.0 / 2000));
}

/* shares of four devices: llm 0.364, flow 2.909, hift 0.727 */
static void test_four_devices(void **state)
{
    (void)state;
    const plan_result p = place(STAGES, 4, 80 * GIB);
    assert_int_equal(p.count[0], 1);
    assert_int_equal(p.count[1], 4);
    assert_int_equal(p.count[2], 1);
    assert_true(p.share[0][0] > 0 && p.share[2][3] > 0);
    assert_true(p.share[1][1] == 1 && p.share[1][2] == 1);
    expect_rate(p.audio_per_s, 4 / (1.0 / 4000 + 1.0 / 500 + 1.0 / 2000));
}

static void test_every_number_of_devices(void **state)
{
    (void)state;
    for (int devices = 1; devices <= PLAN_DEVICES_MAX; devices++) {
        const plan_result p = place(STAGES, devices, 80 * GIB);
        const double most = devices / (1.0 / 4000 + 1.0 / 500 + 1.0 / 2000);
        assert_true(p.audio_per_s <= most * 1.000001 && p.audio_per_s > 0.9 * most); /* slivers are given up */
        assert_true(p.count[0] + p.count[1] + p.count[2] <= devices + 2);
        for (int d = 0; d < devices; d++)
            assert_true(fabs(p.share[0][d] + p.share[1][d] + p.share[2][d] - 1) < 1e-9);
    }
}

/* 8 GiB hold two stages, and not llm and flow and hift: with two devices the flow leaves one of them to the others. */
static void test_short_memory(void **state)
{
    (void)state;
    const uint64_t one[] = {8 * GIB}, uneven[] = {3 * GIB, 80 * GIB};
    plan_result p;
    assert_err(CF_ERR_NOMEM, "device 0 of the list: needs 9.00 GiB (llm 3.00, flow 4.00, hift 2.00), 8.00 free",
               plan_place(STAGES, one, 1, &p));
    assert_ok(plan_place(STAGES, uneven, 2, &p));
    assert_true(p.share[0][0] == 1 && p.share[1][0] == 0);
    assert_int_equal(p.count[1], 1);
    expect_rate(p.audio_per_s, 500 * p.share[1][1]);
}

static void test_a_sliver_is_no_worker(void **state)
{
    (void)state;
    const plan_stage even[PLAN_STAGES] = {{1000, GIB}, {330, GIB}, {1000, GIB}}; /* flow 1.806 of three from 0.597 */
    const plan_stage hairline[PLAN_STAGES] = {{101, GIB}, {100, GIB}, {99, GIB}};
    plan_result p = place(even, 3, 80 * GIB);
    assert_int_equal(p.count[1], 3);
    p = place(hairline, 3, 80 * GIB); /* 0.990, 1.000, 1.010 of a device */
    for (int s = 0; s < PLAN_STAGES; s++)
        assert_int_equal(p.count[s], 1);
    expect_rate(p.audio_per_s, 99);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_device_has_all),      cmocka_unit_test(test_four_devices),
        cmocka_unit_test(test_every_number_of_devices), cmocka_unit_test(test_short_memory),
        cmocka_unit_test(test_a_sliver_is_no_worker),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
