/* test_gemm_kernels.c - the tables of matrix product kernels: AVX2 and AVX-512 give the same bytes for every number of
 * rows, fresh or added to, and both agree with plain loops. */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "common/compute/cpu/gemm_kernels.h"
#include "common/compute/tensor.h"

#define DEPTH  37
#define PITCH  41 /* of a */
#define C_COLS 19

typedef struct operands {
    float a[GEMM_ROWS_MAX * PITCH], b[DEPTH * GEMM_PANEL], c[GEMM_ROWS_MAX * C_COLS];
    double a64[GEMM_ROWS_MAX * PITCH], b64[DEPTH * GEMM_PANEL_F64], c64[GEMM_ROWS_MAX * C_COLS];
    uint16_t b16[DEPTH * GEMM_PANEL];
} operands;

static double next_value(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (double)(*state >> 8) / 8388608.0 - 1.0;
}

static void fill(operands *o)
{
    uint32_t state = 9;
    for (int i = 0; i < GEMM_ROWS_MAX * PITCH; i++)
        o->a[i] = (float)(o->a64[i] = next_value(&state));
    for (int i = 0; i < DEPTH * GEMM_PANEL; i++) {
        o->b[i] = (float)next_value(&state);
        o->b16[i] = bf16_from_f32(o->b[i]);
    }
    for (int i = 0; i < DEPTH * GEMM_PANEL_F64; i++)
        o->b64[i] = next_value(&state);
    for (int i = 0; i < GEMM_ROWS_MAX * C_COLS; i++)
        o->c[i] = (float)(o->c64[i] = next_value(&state));
}

/* All three kernels of a table over `rows` rows, in calls as wide as the table allows. */
static void run(const gemm_kernels *k, int rows, bool fresh, operands *o, float *bf16_c)
{
    memcpy(bf16_c, o->c, sizeof o->c);
    for (int r = 0; r < rows; r += k->rows) {
        const int step = rows - r < k->rows ? rows - r : k->rows;
        k->bf16(step, DEPTH, o->a + r * PITCH, PITCH, o->b16, bf16_c + r * C_COLS, C_COLS, fresh);
        k->f32(step, DEPTH, o->a + r * PITCH, PITCH, o->b, o->c + r * C_COLS, C_COLS, fresh);
        k->f64(step, DEPTH, o->a64 + r * PITCH, PITCH, o->b64, o->c64 + r * C_COLS, C_COLS, fresh);
    }
}

static void test_same_bytes(void **state)
{
    (void)state;
    if (!__builtin_cpu_supports("avx512f"))
        skip();
    for (int rows = 1; rows <= GEMM_ROWS_MAX; rows++)
        for (int fresh = 0; fresh < 2; fresh++) {
            static operands narrow, wide;
            float narrow_bf16[GEMM_ROWS_MAX * C_COLS], wide_bf16[GEMM_ROWS_MAX * C_COLS];
            fill(&narrow);
            fill(&wide);
            run(&gemm_kernels_avx2, rows, fresh == 1, &narrow, narrow_bf16);
            run(&gemm_kernels_avx512, rows, fresh == 1, &wide, wide_bf16);
            assert_memory_equal(narrow.c, wide.c, sizeof wide.c);
            assert_memory_equal(narrow.c64, wide.c64, sizeof wide.c64);
            assert_memory_equal(narrow_bf16, wide_bf16, sizeof wide_bf16);
        }
}

/* The chosen table against plain loops; what lies beside the written cells stays. */
static void test_near_plain_loops(void **state)
{
    (void)state;
    for (int rows = 1; rows <= GEMM_ROWS_MAX; rows++) {
        static operands got, want;
        float got_bf16[GEMM_ROWS_MAX * C_COLS], want_bf16[GEMM_ROWS_MAX * C_COLS];
        fill(&got);
        fill(&want);
        run(gemm_kernels_choose(), rows, false, &got, got_bf16);
        run(&gemm_kernels_base, rows, false, &want, want_bf16);
        for (int i = 0; i < GEMM_ROWS_MAX * C_COLS; i++) {
            assert_true(fabs((double)got.c[i] - (double)want.c[i]) < 1e-5);
            assert_true(fabs((double)got_bf16[i] - (double)want_bf16[i]) < 1e-5);
            assert_true(fabs(got.c64[i] - want.c64[i]) < 1e-13);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_near_plain_loops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
