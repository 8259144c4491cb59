/* test_noise.c - flow_worker/noise: the table of torch's released wheel, whichever code makes it. */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "flow_worker/noise.h"

static float *table_of(bool fma_instruction)
{
    float *values = NULL;
    assert_ok(mem_alloc(NOISE_VALUES, sizeof *values, &values));
    if (!noise_fill_by(fma_instruction, values)) {
        mem_free(values);
        skip();
    }
    return values;
}

static void test_table_is_torchs(void **state)
{
    (void)state;
    float *values = NULL;
    assert_ok(mem_alloc(NOISE_VALUES, sizeof *values, &values));
    noise_fill(values);
    assert_int_equal(noise_hash(values, NOISE_VALUES), NOISE_FNV1A32);
    mem_free(values);
}

static void test_instruction_and_libm_agree(void **state)
{
    (void)state;
    float *instruction = table_of(true), *libm = table_of(false);
    assert_memory_equal(instruction, libm, NOISE_VALUES * sizeof *libm);
    mem_free(instruction);
    mem_free(libm);
}

/* The hash covers every value; these say where to look when it is wrong. Unfused values differ by at most 2.4e-7. */
static void test_printed_values(void **state)
{
    (void)state;
    static const struct {
        int row, frame;
        float value;
    } want[] = {
        {0, 0, -1.12583983f},      {0, 1, -1.1523602f},      {0, 15, -0.247278154f},  {0, 499, -0.706368625f},
        {1, 0, 0.869179368f},      {1, 14999, 0.721487045f}, {39, 0, 0.00100021402f}, {39, 15, 3.05623293f},
        {39, 2999, -0.449449897f}, {79, 0, 0.206202805f},    {79, 1, -0.0166422892f}, {79, 14999, -0.0832944065f},
    };
    float *values = table_of(false);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        assert_true(fabsf(values[want[i].row * FRAMES_MAX + want[i].frame] - want[i].value) <= 3e-7f);
    uint32_t bits;
    memcpy(&bits, values, sizeof bits);
    assert_int_equal(bits, 0xbf901b85u);
    mem_free(values);
}

static void test_hash_sees_one_bit(void **state)
{
    (void)state;
    float *values = table_of(false);
    uint32_t bits;
    memcpy(&bits, values + 777777, sizeof bits);
    bits ^= 1;
    memcpy(values + 777777, &bits, sizeof bits);
    assert_int_not_equal(noise_hash(values, NOISE_VALUES), NOISE_FNV1A32);
    mem_free(values);
}

/* Start-up budget: 50 ms where the machine has the instruction; ten times that before the test calls it broken, since
 * machines are shared. */
static void test_is_fast(void **state)
{
    (void)state;
    uint64_t best_us = UINT64_MAX;
    for (int i = 0; i < 3; i++) {
        const uint64_t start_us = clock_now_us();
        float *values = table_of(true);
        const uint64_t took_us = clock_now_us() - start_us;
        best_us = took_us < best_us ? took_us : best_us;
        mem_free(values);
    }
    print_message("noise table in %.1f ms\n", (double)best_us / 1000);
    assert_true(best_us < 500000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_is_torchs), cmocka_unit_test(test_instruction_and_libm_agree),
        cmocka_unit_test(test_printed_values),  cmocka_unit_test(test_hash_sees_one_bit),
        cmocka_unit_test(test_is_fast),
    };
    return cmocka_run_group_tests_name("noise", tests, NULL, NULL);
}
