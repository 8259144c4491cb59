/* test_rates.c - what ended in the last minute: a young farm, a steady one, one that has been idle. */
#include "tests/harness/test.h"

#include "common/base/clock.h"
#include "orchestrator/rates.h"

#define AT(s) ((uint64_t)((s)*1e6))

static void expect_rates(const rates *r, double since_s, double now_s, double count_per_s, double audio_per_s)
{
    double count, audio;
    rates_read(r, AT(since_s), AT(now_s), &count, &audio);
    assert_float_equal(count, count_per_s, 1e-6);
    assert_float_equal(audio, audio_per_s, 1e-6);
}

static void test_since_the_start(void **state)
{
    (void)state;
    rates r = {0};
    expect_rates(&r, 1000, 1000, 0, 0);
    rates_add(&r, AT(1000.1), 3);
    expect_rates(&r, 1000, 1000.1, 1, 3); /* as if a second had passed */
    rates_add(&r, AT(1003.5), 5);
    expect_rates(&r, 1000, 1004, 0.5, 2);
}

/* Two a second, of half a second each; after a pause of half a minute half as many, after a minute none. */
static void test_over_the_last_minute(void **state)
{
    (void)state;
    rates r = {0};
    for (int i = 0; i < 400; i++)
        rates_add(&r, AT(1000 + 0.5 * i), 0.5);
    expect_rates(&r, 1000, 1199.999999, 2, 1);
    expect_rates(&r, 1000, 1229.999999, 1, 0.5);
    expect_rates(&r, 1000, 1259.999999, 0, 0);
    rates_add(&r, AT(1300), 60);
    expect_rates(&r, 1000, 1300.999999, 1.0 / 60, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_since_the_start),
                                       cmocka_unit_test(test_over_the_last_minute)};
    return cmocka_run_group_tests_name("rates", tests, NULL, NULL);
}
