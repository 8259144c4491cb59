/* test_ras.c - the sampling law of llm.md 7: candidate sets, masks, the repetition window, both draws. */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/rng.h"
#include "common/compute/cpu/ras.h"
#include "common/compute/ras_rule.h"

#define GRID 1000 /* uniforms per draw in the inverse-CDF tests */

/* hist: oldest first; the window is its end. */
static int32_t sample_of(int32_t codes, const float *logits, const int32_t *hist, int32_t hist_count, ras_mask mask,
                         float u0, float u1)
{
    int32_t window[RAS_WINDOW_TOKENS];
    for (int32_t i = 0; i < RAS_WINDOW_TOKENS; i++)
        window[i] = i < hist_count ? hist[hist_count - 1 - i] : -1;
    return ras_sample(vec_choose(), logits, codes, window, (int32_t)mask, u0, u1);
}

static int32_t sample(const float *logits, const int32_t *hist, int32_t hist_count, ras_mask mask, float u0, float u1)
{
    const int32_t id = sample_of(SPEECH_CODES, logits, hist, hist_count, mask, u0, u1);
    assert_in_range(id, 0, SPEECH_ROWS - 1);
    return id;
}

static void test_candidate_sets(void **state)
{
    (void)state;
    static float hundred[100];
    for (int i = 0; i < 100; i++)
        hundred[i] = .01f;
    static struct {
        float p[10];
        int32_t count, expect_count, expect[4];
    } cases[] = {
        {{.30f, .25f, .20f, .10f, .05f, .04f, .03f, .02f, .005f, .005f}, 10, 4, {0, 1, 2, 3}},
        {{.95f, .05f}, 2, 1, {0}},
        {{.05f, .20f, .20f, .30f, .25f}, 5, 4, {3, 4, 1, 2}},
        {{.79f, .01f, .20f}, 3, 2, {0, 2}},
        {{.50f, .31f, .19f}, 3, 2, {0, 1}},
    };
    int32_t ids[RAS_TOP_K];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(ras_nucleus(&vec_base, cases[i].p, 1.0f, cases[i].count, ids), cases[i].expect_count);
        assert_memory_equal(ids, cases[i].expect, (size_t)cases[i].expect_count * sizeof ids[0]);
    }
    assert_int_equal(ras_nucleus(&vec_base, hundred, 1.0f, 100, ids), RAS_TOP_K);
    for (int i = 0; i < RAS_TOP_K; i++)
        assert_int_equal(ids[i], i);
}

/* Against a full stable sort, on probabilities with many ties; of every other seed neighbouring floats, which the
 * division makes equal. */
static void test_candidates_equal_a_stable_sort(void **state)
{
    (void)state;
    static float p[SPEECH_ROWS], weights[SPEECH_ROWS];
    static int32_t order[SPEECH_ROWS];
    for (uint32_t seed = 0; seed < 20; seed++) {
        const uint32_t levels = 3 + seed * 7;
        const float total = seed % 2 ? 300.0f : 1.0f;
        for (int i = 0; i < SPEECH_ROWS; i++) {
            const float level = floorf(rng_uniform(seed, 0, (uint32_t)i, 0) * (float)levels);
            weights[i] = seed % 2 ? 1.0f + level * 0x1p-23f : level * 0x1p-10f;
            p[i] = weights[i] / total;
            int at = i;
            for (; at > 0 && p[order[at - 1]] < p[i]; at--)
                order[at] = order[at - 1];
            order[at] = i;
        }
        int32_t ids[RAS_TOP_K], count = 0;
        float sum = 0;
        while (count < RAS_TOP_K && sum < 0.8f)
            sum += p[order[count++]];
        assert_int_equal(ras_nucleus(vec_choose(), weights, total, SPEECH_ROWS, ids), count);
        assert_memory_equal(ids, order, (size_t)count * sizeof ids[0]);
        for (int32_t i = 0; i < count; i++)
            assert_true(weights[ids[i]] == p[ids[i]]);
    }
}

/* Logits of a dozen likely ids over a tail; ids 10, 20, ..., 120 and the stop id 6562. */
static void spiky_logits(float *logits)
{
    for (int i = 0; i < SPEECH_ROWS; i++)
        logits[i] = -9.0f + rng_uniform(11, 0, (uint32_t)i, 0);
    for (int i = 1; i <= 12; i++)
        logits[10 * i] = 3.0f - 0.3f * (float)i;
    logits[6562] = 1.4f;
}

static void probabilities(const float *logits, ras_mask mask, double *p)
{
    double sum = 0;
    for (int i = 0; i < SPEECH_ROWS; i++) {
        const int masked = mask == RAS_MASK_STOP ? i >= 6561 : mask == RAS_MASK_SOS && i == 6561;
        p[i] = masked ? 0 : exp((double)logits[i]);
        sum += p[i];
    }
    for (int i = 0; i < SPEECH_ROWS; i++)
        p[i] /= sum;
}

/* P(out = t) of llm.md 7 from exact probabilities. */
static void law(const double *p, const int32_t *hist, int32_t hist_count, double *ret_law)
{
    static float rounded[SPEECH_ROWS];
    int32_t c[RAS_TOP_K];
    for (int i = 0; i < SPEECH_ROWS; i++)
        rounded[i] = (float)p[i];
    const int32_t count = ras_nucleus(&vec_base, rounded, 1.0f, SPEECH_ROWS, c);
    double mass = 0;
    for (int i = 0; i < count; i++)
        mass += p[c[i]];
    memset(ret_law, 0, SPEECH_ROWS * sizeof *ret_law);
    for (int i = 0; i < count; i++) {
        int seen = 0;
        for (int k = hist_count > 10 ? hist_count - 10 : 0; k < hist_count; k++)
            seen |= hist[k] == c[i];
        if (!seen) {
            ret_law[c[i]] += p[c[i]] / mass;
            continue;
        }
        for (int t = 0; t < SPEECH_ROWS; t++)
            if (t != c[i])
                ret_law[t] += p[c[i]] / mass * p[t] / (1 - p[c[i]]);
    }
}

/* A regular grid of uniforms must hit every id within one grid step of its share. */
static void assert_grid_law(const int32_t *counts, const double *expected)
{
    for (int t = 0; t < SPEECH_ROWS; t++)
        if (fabs((double)counts[t] / GRID - expected[t]) > 1.0 / GRID + 1e-6)
            fail_msg("id %d: share %f, law %f", t, (double)counts[t] / GRID, expected[t]);
}

static void test_nucleus_draw_is_the_inverse_cdf(void **state)
{
    (void)state;
    static float logits[SPEECH_ROWS];
    static double p[SPEECH_ROWS], expected[SPEECH_ROWS];
    spiky_logits(logits);
    for (ras_mask mask = RAS_MASK_NONE; mask <= RAS_MASK_STOP; mask++) {
        static int32_t counts[SPEECH_ROWS];
        memset(counts, 0, sizeof counts);
        for (int g = 0; g < GRID; g++)
            counts[sample(logits, NULL, 0, mask, ((float)g + .5f) / GRID, 0.5f)]++;
        probabilities(logits, mask, p);
        law(p, NULL, 0, expected);
        assert_grid_law(counts, expected);
        assert_true((counts[6562] > 0) == (mask != RAS_MASK_STOP));
    }
}

static void test_fallback_draw_is_the_inverse_cdf_without_the_rejected(void **state)
{
    (void)state;
    static float logits[SPEECH_ROWS];
    static double p[SPEECH_ROWS];
    static int32_t counts[SPEECH_ROWS];
    spiky_logits(logits);
    const int32_t hist[] = {10, 20}; /* u 0 draws 10, the most likely; 20 may come again */
    memset(counts, 0, sizeof counts);
    for (int g = 0; g < GRID; g++)
        counts[sample(logits, hist, 2, RAS_MASK_NONE, 0.0f, ((float)g + .5f) / GRID)]++;
    probabilities(logits, RAS_MASK_NONE, p);
    const double left = 1 - p[10];
    for (int t = 0; t < SPEECH_ROWS; t++)
        p[t] = t == 10 ? 0 : p[t] / left;
    assert_grid_law(counts, p);
    assert_int_equal(counts[10], 0);
    assert_true(counts[20] > 0 && counts[6562] > 0);
}

/* Chi-square over the ids expected at least five times, the rest pooled, in standard deviations above its mean. */
static double chi_square_excess(int draws, int shared_uniform)
{
    static float logits[SPEECH_ROWS];
    static double p[SPEECH_ROWS], expected[SPEECH_ROWS];
    static int32_t counts[SPEECH_ROWS];
    const int32_t hist[] = {20, 5, 6, 7, 8, 9, 10, 40, 11, 12, 30, 80}; /* 20 and 5 have left the window */
    spiky_logits(logits);
    probabilities(logits, RAS_MASK_NONE, p);
    law(p, hist, 12, expected);
    memset(counts, 0, sizeof counts);
    for (uint32_t i = 0; i < (uint32_t)draws; i++) {
        const float u0 = rng_uniform(1986, 3, i, RAS_DRAW_NUCLEUS);
        const float u1 = shared_uniform ? u0 : rng_uniform(1986, 3, i, RAS_DRAW_FALLBACK);
        counts[sample(logits, hist, 12, RAS_MASK_NONE, u0, u1)]++;
    }
    double chi = 0, rest_seen = 0, rest_expected = 0;
    int bins = 1;
    for (int t = 0; t < SPEECH_ROWS; t++) {
        const double e = expected[t] * draws;
        if (e < 5) {
            rest_seen += counts[t];
            rest_expected += e;
            continue;
        }
        chi += (counts[t] - e) * (counts[t] - e) / e;
        bins++;
    }
    chi += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
    return (chi - (bins - 1)) / sqrt(2.0 * (bins - 1));
}

static void test_generator_follows_the_law(void **state)
{
    (void)state;
    const double excess = chi_square_excess(12000, 0);
    if (excess > 4)
        fail_msg("chi-square is %.1f standard deviations above its mean", excess);
    /* One uniform for both draws correlates them: the test must notice. */
    assert_true(chi_square_excess(12000, 1) > 20);
}

static void test_window(void **state)
{
    (void)state;
    static float logits[SPEECH_ROWS];
    spiky_logits(logits);
    int32_t hist[11] = {10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11};
    assert_int_equal(sample(logits, hist, 11, RAS_MASK_NONE, 0.0f, 0.0f), 10);     /* ten ids later it is free again */
    assert_int_not_equal(sample(logits, hist, 10, RAS_MASK_NONE, 0.0f, 0.0f), 10); /* oldest of the window */
    hist[10] = 10;
    assert_int_not_equal(sample(logits, hist, 11, RAS_MASK_NONE, 0.0f, 0.0f), 10); /* newest of the window */
}

static void test_fallback_when_one_id_has_all_mass(void **state)
{
    (void)state;
    static float logits[SPEECH_ROWS]; /* 0, except one id 200 above: the others vanish in f32 beside it */
    const int32_t hist[] = {77};
    logits[77] = 200.0f;
    assert_int_equal(sample(logits, hist, 1, RAS_MASK_NONE, 0.99f, 0.0f), 0);
    assert_int_equal(sample(logits, hist, 1, RAS_MASK_NONE, 0.99f, 0x1.fffffep-1f), SPEECH_ROWS - 1);
    assert_int_equal(sample(logits, hist, 1, RAS_MASK_STOP, 0.99f, 0x1.fffffep-1f), SPEECH_CODES - 1);
    assert_int_equal(sample(logits, NULL, 0, RAS_MASK_NONE, 0.99f, 0.5f), 77);
    logits[77] = 0;
}

static void test_masks(void **state)
{
    (void)state;
    static float logits[SPEECH_ROWS];
    memset(logits, 0, sizeof logits);
    logits[6561] = 50;
    logits[6700] = 40;
    assert_int_equal(sample(logits, NULL, 0, RAS_MASK_NONE, 0.5f, 0.5f), 6561);
    assert_int_equal(sample(logits, NULL, 0, RAS_MASK_SOS, 0.5f, 0.5f), 6700);
    assert_true(sample(logits, NULL, 0, RAS_MASK_STOP, 0x1.fffffep-1f, 0.5f) < 6561);
}

/* Of a model with 1024 codes nothing behind row 1223 is looked at, and ids from 1024 on are control ids. */
static void test_a_small_vocabulary(void **state)
{
    (void)state;
    enum { CODES = 1024 };
    static float logits[SPEECH_ROWS];
    static const int32_t hist[] = {7};
    memset(logits, 0, sizeof logits);
    logits[CODES + SPEECH_CONTROLS] = NAN;
    logits[7] = 40;
    logits[CODES] = 60;
    logits[CODES + SPEECH_CONTROLS - 1] = 50;
    assert_int_equal(sample_of(CODES, logits, NULL, 0, RAS_MASK_NONE, 0.5f, 0.5f), CODES);
    assert_int_equal(sample_of(CODES, logits, NULL, 0, RAS_MASK_SOS, 0.5f, 0.5f), CODES + SPEECH_CONTROLS - 1);
    assert_int_equal(sample_of(CODES, logits, NULL, 0, RAS_MASK_STOP, 0.5f, 0.5f), 7);
    assert_int_equal(sample_of(CODES, logits, hist, 1, RAS_MASK_STOP, 0.5f, 0x1.fffffep-1f), CODES - 1);
}

static void test_refuses_what_is_not_a_number(void **state)
{
    (void)state;
    static float logits[SPEECH_ROWS];
    const float bad[] = {NAN, INFINITY, -INFINITY};
    const int32_t where[] = {0, 4000, SPEECH_ROWS - 1};
    for (int i = 0; i < 3; i++) {
        memset(logits, 0, sizeof logits);
        logits[where[i]] = bad[i];
        logits[SPEECH_ROWS - 1] = bad[i];
        assert_int_equal(sample_of(SPEECH_CODES, logits, NULL, 0, RAS_MASK_NONE, 0.5f, 0.5f), RAS_REFUSED(where[i]));
        assert_int_equal(RAS_REFUSED(RAS_REFUSED(where[i])), where[i]);
    }
}

/* Against a library's f64, everywhere: never more than the one rounding, and the ends. */
static void test_exponential(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 200000; i++) {
        const float x = -105.0f * rng_uniform(5, i, 0, 0) * rng_uniform(5, i, 1, 0);
        const double want = exp((double)x), got = (double)ras_exp(x);
        const double unit = fmax(ldexp(1.0, ilogb(want) - 23), 0x1p-149);
        if (fabs(got - want) > 0.5001 * unit)
            fail_msg("exp(%a): %a, %a expected", (double)x, got, want);
    }
    assert_true(ras_exp(0.0f) == 1.0f && ras_exp(-0.0f) == 1.0f);
    assert_true(ras_exp(-103.9f) == 0x1p-149f && ras_exp(-104.0f) == 0.0f && ras_exp(-3e38f) == 0.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_candidate_sets),
        cmocka_unit_test(test_candidates_equal_a_stable_sort),
        cmocka_unit_test(test_nucleus_draw_is_the_inverse_cdf),
        cmocka_unit_test(test_fallback_draw_is_the_inverse_cdf_without_the_rejected),
        cmocka_unit_test(test_generator_follows_the_law),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_fallback_when_one_id_has_all_mass),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_a_small_vocabulary),
        cmocka_unit_test(test_refuses_what_is_not_a_number),
        cmocka_unit_test(test_exponential),
    };
    return cmocka_run_group_tests_name("ras", tests, NULL, NULL);
}
