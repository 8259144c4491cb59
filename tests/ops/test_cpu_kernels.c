/*
 * test_cpu_kernels.c - inner loops of the CPU backend that the op suite cannot see one by one: the errors that vmath.h
 * and exp2_avx512.h promise, and that all tables of vec.h give the same bytes. Test code.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "common/base/rng.h"
#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/vec.h"
#include "common/compute/cpu/vmath.h"

#define STRIDE 2053u /* a prime: two million of all f32 bit patterns, each exponent with many mantissas */

/* |got - want| in units of the last place of want, taken as at least the smallest normal number. */
static double ulps(float got, double want)
{
    int exponent;
    frexp(want, &exponent);
    return fabs((double)got - want) / ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

static bool fits(float got, double want, double bound)
{
    if (isnan(want) || isnan(got))
        return isnan(want) && isnan(got);
    return got == (float)want || ulps(got, want) <= bound;
}

/* All arguments below max in magnitude, infinities and NaN. */
static void check_function(float (*got)(float), double (*want)(double), float max, double bound)
{
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        const float x = bits_f32((int32_t)(uint32_t)bits);
        if (isfinite(x) && fabsf(x) >= max)
            continue;
        if (!fits(got(x), want((double)x), bound))
            fail_msg("f(%.9g) = %.9g, in f64 %.9g", (double)x, (double)got(x), want((double)x));
    }
    assert_true(fits(got(INFINITY), want((double)INFINITY), bound));
    assert_true(fits(got(-INFINITY), want(-(double)INFINITY), bound));
    assert_true(isnan(got(NAN)));
}

static float call_vexp(float x)
{
    return vexp(x);
}

static float call_vsin2(float x)
{
    return vsin2(x);
}

static float call_vtanh(float x)
{
    return vtanh(x);
}

static void expect_fma(float a, float b, float c)
{
    const float got = vfma(a, b, c), want = fmaf(a, b, c);
    if (f32_bits(got) != f32_bits(want) && !(isnan(got) && isnan(want)))
        fail_msg("%a * %a + %a = %a, expected %a", (double)a, (double)b, (double)c, (double)got, (double)want);
}

/* This file is compiled without the instruction. Sums that cancel, and those that end half way between two values but
 * for the last bits of the product: that is where rounding twice goes wrong. */
static void test_fma(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 2000000; i++) {
        const float a = 1.0f + (float)(int32_t)(rng_uniform(7, 0, i, 0) * 0x1p23f) * 0x1p-23f;
        const float b = 1.0f + (float)(int32_t)(rng_uniform(7, 0, i, 1) * 0x1p12f) * 0x1p-23f;
        const float unit = ldexpf(1.0f, (int)(i % 61) - 30), sign = i % 2 ? -1.0f : 1.0f;
        expect_fma(a, b * unit, sign);
        expect_fma(a, b * 0x1p-24f, sign * (1.0f + (float)(i % 4) * 0x1p-23f));
        expect_fma(a, -b, a * b);
        expect_fma(a * 0x1p-100f, b * unit, sign * 0x1p-130f);
    }
    expect_fma(3.0f, INFINITY, 1.0f);
    expect_fma(3.0f, INFINITY, -INFINITY);
    expect_fma(0x1p127f, 2.0f, -0x1p127f);
    expect_fma(0x1p127f, 2.0f, 1.0f);
    expect_fma(-0.0f, 1.0f, -0.0f);
    expect_fma(0.0f, 1.0f, -0.0f);
    expect_fma(NAN, 1.0f, 1.0f);
}

static void test_exp(void **state)
{
    (void)state;
    check_function(call_vexp, exp, INFINITY, 1.5);
}

/* Of itself where it is small, of one where it is one less the square of the rest. */
static void test_sin2(void **state)
{
    (void)state;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        const float x = bits_f32((int32_t)(uint32_t)bits);
        const double want = sin((double)x) * sin((double)x);
        if (fabsf(x) <= VSIN2_MAX &&
            !(fabs((double)call_vsin2(x) - want) <= 2e-7 * (fabsf(x) < 0.7f ? want : 1.0) + 1e-40))
            fail_msg("sin(%.9g)^2 = %.9g, in f64 %.9g", (double)x, (double)call_vsin2(x), want);
    }
    assert_true(isnan(call_vsin2(NAN)));
}

static void test_tanh(void **state)
{
    (void)state;
    check_function(call_vtanh, tanh, INFINITY, 2.0);
}

/* Relative to 1e-13, or absolute to tiny, where |x| <= max. */
static void check_wide(double (*got)(double), double (*want)(double), double max, double tiny)
{
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        const double x = (double)bits_f32((int32_t)(uint32_t)bits);
        if (isnan(x) || fabs(x) > max)
            continue;
        if (!(fabs(got(x) - want(x)) <= 1e-13 * fabs(want(x)) + tiny))
            fail_msg("f(%.9g) = %.17g, expected %.17g", x, got(x), want(x));
    }
    assert_true(isnan(got((double)NAN)));
}

static void test_wide(void **state)
{
    (void)state;
    check_wide(dexp, exp, 709.0, 1e-300); /* beyond them it stays where it is there */
    assert_true(dexp((double)INFINITY) > 1e307 && dexp(-(double)INFINITY) < 1e-300);
    check_wide(dtanh, tanh, (double)INFINITY, 0.0);
    check_wide(dsin, sin, DSIN_MAX, 1e-20);
    check_wide(dsin_one, sin, 1.0, 0.0);
    check_wide(dcos_one, cos, 1.0, 0.0);
}

#if AMX_COMPILED
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq")
#include "common/compute/cpu/exp2_avx512.h"

static float call_exp2(float x)
{
    return _mm512_cvtss_f32(exp2_lanes(_mm512_set1_ps(x)));
}
#pragma GCC pop_options

static bool exp2_fits(float got, double want)
{
    if (want < 0x1p-126)
        return fabs((double)got - want) <= 2 * 0x1p-149;
    return want <= 0x1.FFFFFEp127 ? fabs((double)got - want) <= 2e-7 * want : isinf(got) && got > 0.0f;
}

static void test_exp2(void **state)
{
    (void)state;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq")) {
        print_message("# this machine has no AVX-512\n");
        skip();
    }
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        const float x = bits_f32((int32_t)(uint32_t)bits);
        if (isnan(x) ? !isnan(call_exp2(x)) : !exp2_fits(call_exp2(x), exp2((double)x)))
            fail_msg("2^%.9g = %.9g, in f64 %.9g", (double)x, (double)call_exp2(x), exp2((double)x));
    }
    for (int i = -150; i <= 128; i++)
        assert_true(call_exp2((float)i) == (float)exp2(i));
    assert_true(call_exp2(-INFINITY) == 0.0f && isinf(call_exp2(INFINITY)));
}
#else
static void test_exp2(void **state)
{
    (void)state;
    print_message("# no AVX-512 in this build\n");
    skip();
}
#endif

/* bf16 is the f32 with the nearest upper half, ties to even: compared with both neighbours. */
static void test_round_bf16(void **state)
{
    (void)state;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        const float x = bits_f32((int32_t)(uint32_t)bits);
        float y = x;
        vec_base.round_bf16(1, &y);
        const uint32_t low = (uint32_t)bits & 0xFFFF0000u, high = low + 0x10000u;
        const uint32_t rest = (uint32_t)bits & 0xFFFFu, odd = (uint32_t)bits >> 16 & 1;
        const uint32_t near = rest > 0x8000u || (rest == 0x8000u && odd) ? high : low;
        if (isnan(x))
            assert_true(isnan(y));
        else
            assert_int_equal((uint32_t)f32_bits(y), near);
    }
    const struct {
        uint32_t from, to;
    } ties[] = {{0x3F808000, 0x3F800000}, {0x3F818000, 0x3F820000}, {0x7F7FFFFF, 0x7F800000}, {0x80008000, 0x80000000}};
    for (size_t i = 0; i < sizeof ties / sizeof ties[0]; i++) {
        float y = bits_f32((int32_t)ties[i].from);
        vec_base.round_bf16(1, &y);
        assert_int_equal((uint32_t)f32_bits(y), ties[i].to);
    }
}

#define VALUES 512
#define COUNTS 70 /* 0 .. 69: each remainder of 16 lanes several times */

/* Arrays for one call of each function. */
typedef struct loops {
    float a[VALUES * 10], b[VALUES * 10], c[VALUES * 10], y[VALUES * 10];
    float sum;
} loops;

static void draw(uint64_t key, float amplitude, float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = (2.0f * rng_uniform(key, 0, (uint32_t)i, 0) - 1.0f) * amplitude;
}

typedef void loop_fn(const vec_ops *v, loops *l, int64_t count, int variant);

static void run_act(const vec_ops *v, loops *l, int64_t count, int variant)
{
    v->act(l->a, count, (act_kind)variant, 0.1f, l->y);
}

static void run_bias_act(const vec_ops *v, loops *l, int64_t count, int variant)
{
    v->bias_act(variant ? l->a : NULL, count, ACT_SILU, 0.0f, l->y);
}

static void run_sums(const vec_ops *v, loops *l, int64_t count, int variant)
{
    if (variant == 0)
        v->add(l->a, l->b, count, l->y);
    else if (variant == 1)
        v->mean3(l->a, l->b, l->c, count, l->y);
    else if (variant == 2)
        v->gate_add(l->a, l->b, count, l->y);
    else if (variant == 3)
        v->cfg_euler(l->a, l->b, 0.137f, count, l->y);
    else if (variant == 4)
        v->lerp(l->a, l->b, 0.29f, count, l->y);
    else
        v->scale(0.3f, count, l->y);
}

static void run_curves(const vec_ops *v, loops *l, int64_t count, int variant)
{
    if (variant == 0)
        v->snake(l->a, l->b, l->c, count, l->y);
    else if (variant == 1)
        v->swiglu(l->a, l->b, count, l->y);
    else
        v->round_bf16(count, l->y);
}

static void run_rows(const vec_ops *v, loops *l, int64_t count, int variant)
{
    const int64_t rows = count < 6 ? 1 : 6, width = count / rows; /* some side by side, and the rest */
    if (variant == 0 && count > 0)
        v->rms_norm(l->a, l->b, 1e-6f, count, l->y);
    else if (variant == 1 && count > 0)
        v->layer_norm(l->a, l->b, l->c, 1e-6f, rows, width, l->y);
    else if (variant == 2)
        l->sum = v->max(l->a, count, -3.0f);
    else if (variant == 4)
        v->layer_norm_bf16(l->a, l->b, l->c, 1e-6f, rows, width, (uint16_t *)(void *)l->y);
    else if (variant == 5)
        v->ras_exp_shift(vec_base.max(l->y, count, 0.0f), count, l->y);
    else
        l->sum = v->exp_shift(9.0f, count, l->y);
}

static void run_heads(const vec_ops *v, loops *l, int64_t count, int variant)
{
    if (variant == 0)
        v->dots_64(l->b, l->a, count, l->y);
    else if (variant == 1)
        v->mix_64(l->b, l->a, count, l->y);
    else if (variant < 4)
        v->rope_64(l->a + count, l->b, variant == 2, l->y);
    else
        v->rope_64_bf16(l->a + count, l->b, variant == 4, (uint16_t *)(void *)l->y);
}

static void run_signal(const vec_ops *v, loops *l, int64_t count, int variant)
{
    double wide[2][COUNTS], table[COUNTS * 16], sum[16];
    if (variant == 0 || variant == 3) {
        for (int64_t i = variant == 3 ? 0 : count; i < count; i += 3)
            l->b[i] *= 1e6f; /* angles for libm, those beside them not */
        v->polar(l->a, l->b, count, wide[0], wide[1]);
        memcpy(l->y, wide[0], (size_t)count * sizeof wide[0][0]);
        memcpy(l->y + 2 * COUNTS, wide[1], (size_t)count * sizeof wide[0][0]);
    } else if (variant == 1) {
        v->tanh_line(0.02, 0.1 / 3.0, l->a, count, l->y);
    } else {
        for (int64_t i = 0; i < count * 16; i++)
            table[i] = (double)l->a[i] / 3.0;
        for (int64_t i = 0; i < count; i++)
            wide[0][i] = (double)l->b[i] / 7.0;
        v->mix_16(wide[0], table, count, sum);
        memcpy(l->y, sum, sizeof sum);
    }
}

static void check_loops(const vec_ops *table, loop_fn *fn, int variants, float amplitude)
{
    static loops first, base, other;
    draw(11, amplitude, first.a, sizeof first.a / sizeof first.a[0]);
    draw(12, amplitude, first.b, sizeof first.b / sizeof first.b[0]);
    draw(13, amplitude, first.c, sizeof first.c / sizeof first.c[0]);
    draw(14, amplitude, first.y, sizeof first.y / sizeof first.y[0]);
    for (int variant = 0; variant < variants; variant++)
        for (int64_t count = 0; count < COUNTS; count++) {
            base = first;
            other = first;
            fn(&vec_base, &base, count, variant);
            fn(table, &other, count, variant);
            if (memcmp(&base, &other, sizeof base) != 0)
                fail_msg("variant %d over %d values: %s differs from %s", variant, (int)count, table->name,
                         vec_base.name);
        }
}

static void test_tables_agree(void **state)
{
    (void)state;
    if (vec_choose() == &vec_base) {
        print_message("# this machine has no AVX2: one table\n");
        skip();
    }
    const vec_ops *tables[] = {vec_choose(), &vec_avx2}; /* the second is in every machine that has better ones */
    for (int i = 0; i < 4; i++) {
        const float amplitude = i % 2 ? 2000.0f : 9.0f; /* the second: clamps, far sines, saturation */
        const vec_ops *t = tables[i / 2];
        check_loops(t, run_act, ACT_ABS + 1, amplitude);
        check_loops(t, run_bias_act, 2, amplitude);
        check_loops(t, run_sums, 6, amplitude);
        check_loops(t, run_curves, 3, amplitude);
        check_loops(t, run_rows, 6, amplitude);
        check_loops(t, run_heads, 6, amplitude);
        check_loops(t, run_signal, 4, amplitude);
    }
}

static void expect_found(const vec_ops *v, float *x, int64_t at, int64_t count)
{
    x[at] = NAN; /* is above nothing */
    assert_int_equal(v->find_above(x, count, 1.0f), count);
    assert_int_equal(v->find_nonfinite(x, count), at < count ? at : count);
    x[at] = -INFINITY;
    assert_int_equal(v->find_nonfinite(x, count), at < count ? at : count);
    x[at] = nextafterf(1.0f, 2.0f);
    assert_int_equal(v->find_above(x, count, 1.0f), at < count ? at : count);
    assert_int_equal(v->find_nonfinite(x, count), count);
    x[at] = 1.0f;
}

static void test_find(void **state)
{
    (void)state;
    const vec_ops *tables[] = {&vec_base, vec_choose()};
    float x[140];
    for (int i = 0; i < 140; i++)
        x[i] = 1.0f;
    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++)
        for (int64_t count = 0; count < 139; count += 23)
            for (int64_t at = 0; at <= count; at++)
                expect_found(tables[t], x, at, count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fma),        cmocka_unit_test(test_find),         cmocka_unit_test(test_exp),
        cmocka_unit_test(test_sin2),       cmocka_unit_test(test_tanh),         cmocka_unit_test(test_exp2),
        cmocka_unit_test(test_round_bf16), cmocka_unit_test(test_tables_agree), cmocka_unit_test(test_wide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
