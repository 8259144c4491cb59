/* test_parity_compare.c - the bounds of cases.md 2: each honoured just inside, refused just outside; figures. */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/parity_compare.h"

#define VALUES 5000

/* A difference of `amount` at one value (0 there), or on all; 2 is the largest expected value. */
static compare_stats differ(double amount, bool everywhere)
{
    static float got[VALUES], want[VALUES];
    memset(want, 0, sizeof want);
    want[7] = 2;
    memcpy(got, want, sizeof got);
    for (size_t i = 0; i < VALUES; i++)
        if (i == 11 || (everywhere && i != 7))
            got[i] = (float)((double)got[i] + amount);
    return compare_arrays(got, want, VALUES, NULL);
}

/* The bounds once more, written from the specification of the cases. */
static const struct {
    const char *stage, *name;
    bound_profile profile;
    precision operands;
    bound_kind kind;
    double limit;
} WANTED[] = {
    {"llm", "lm_input", BOUND_PLAIN, PRECISION_F32, BOUND_BITS, 0},
    {"llm", "lm_input", BOUND_PLAIN, PRECISION_BF16, BOUND_REL, 0.00390625},
    {"llm", "logits", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 1e-5},
    {"llm", "logits", BOUND_PLAIN, PRECISION_BF16, BOUND_LOGITS, 0.3},
    {"llm", "logits", BOUND_REAL, PRECISION_FP16, BOUND_LOGITS, 0.05},
    {"llm", "hidden", BOUND_REAL, PRECISION_F32, BOUND_REL, 1e-5},
    {"llm", "hidden", BOUND_PLAIN, PRECISION_FP16, BOUND_REL, 2e-2},
    {"flow", "mu", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 1e-5},
    {"flow", "spk", BOUND_HARSH, PRECISION_BF16, BOUND_REL, 1e-2},
    {"flow", "t", BOUND_PLAIN, PRECISION_BF16, BOUND_ABS, 1e-6},
    {"flow", "v1_cond", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 2e-5},
    {"flow", "v10_uncond", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 2e-5},
    {"flow", "x_steps", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 3e-5},
    {"flow", "mel", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 3e-5},
    {"flow", "mel", BOUND_PLAIN, PRECISION_BF16, BOUND_SNR, 29},
    {"flow", "mel", BOUND_PLAIN, PRECISION_FP16, BOUND_SNR, 45},
    {"flow", "v1_cond", BOUND_HARSH, PRECISION_F32, BOUND_REL, 5e-5},
    {"flow", "v10_cond", BOUND_HARSH, PRECISION_F32, BOUND_REL, 1e-3},
    {"flow", "x_steps", BOUND_HARSH, PRECISION_F32, BOUND_REL, 3e-4},
    {"flow", "mel", BOUND_HARSH, PRECISION_F32, BOUND_REL, 3e-4},
    {"flow", "mel", BOUND_HARSH, PRECISION_BF16, BOUND_SNR, 26},
    {"flow", "mel", BOUND_HARSH, PRECISION_FP16, BOUND_SNR, 40},
    {"hift", "f0", BOUND_PLAIN, PRECISION_BF16, BOUND_REL, 1e-6},
    {"hift", "source", BOUND_PLAIN, PRECISION_FP16, BOUND_ABS, 1e-6},
    {"hift", "conv_pre", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 2e-5},
    {"hift", "conv_post", BOUND_PLAIN, PRECISION_FP16, BOUND_SNR, 45},
    {"hift", "audio", BOUND_PLAIN, PRECISION_F32, BOUND_SNR, 90},
    {"hift", "audio", BOUND_REAL, PRECISION_F32, BOUND_SNR, 80},
    {"hift", "audio", BOUND_REAL, PRECISION_BF16, BOUND_SNR, 45},
    {"stream", "mel_0", BOUND_PLAIN, PRECISION_F32, BOUND_REL, 3e-5},
    {"stream", "audio_12", BOUND_PLAIN, PRECISION_F32, BOUND_SNR, 70},
    {"stream", "audio_0", BOUND_REAL, PRECISION_F32, BOUND_SNR, 70},
    {"stream", "audio_1", BOUND_PLAIN, PRECISION_BF16, BOUND_SNR, 45},
    {"stream", "mel_3", BOUND_PLAIN, PRECISION_FP16, BOUND_SNR, 29},
    {"speed", "resampled", BOUND_PLAIN, PRECISION_BF16, BOUND_REL, 1e-6},
};

static void test_table_is_the_specification(void **test)
{
    (void)test;
    for (size_t i = 0; i < sizeof WANTED / sizeof WANTED[0]; i++) {
        const char *why = NULL;
        const bound *b = bound_find(WANTED[i].stage, WANTED[i].name, WANTED[i].operands, WANTED[i].profile, &why);
        assert_non_null(b);
        assert_int_equal(b->kind, WANTED[i].kind);
        assert_true(b->limit == WANTED[i].limit);
        assert_true(why && strlen(why) > 10);
    }
    const bound *logits = bound_find("llm", "logits", PRECISION_BF16, BOUND_PLAIN, NULL);
    assert_true(logits->mean_limit == 0.04 && logits->margin == 0.3);
    logits = bound_find("llm", "logits", PRECISION_FP16, BOUND_PLAIN, NULL);
    assert_true(logits->mean_limit == 0.008 && logits->margin == 0.05);
}

static void test_unknown_names_have_no_bound(void **test)
{
    (void)test;
    static const char *const names[][2] = {{"llm", "logit"},       {"flow", "mel_0"},   {"stream", "mel"},
                                           {"stream", "mel_"},     {"stream", "mel_x"}, {"stream", "mel_12345"},
                                           {"stream", "audio_1a"}, {"voice", "mel"},    {"speed", "mel"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        assert_null(bound_find(names[i][0], names[i][1], PRECISION_F32, BOUND_PLAIN, NULL));
}

/* An amount that gives this SNR against one expected value of 2. */
static double amount_for_db(double db)
{
    return 2 * pow(10, -db / 20);
}

static void test_just_inside_and_just_outside(void **test)
{
    (void)test;
    for (size_t i = 0; i < sizeof WANTED / sizeof WANTED[0]; i++) {
        const bound *b = bound_find(WANTED[i].stage, WANTED[i].name, WANTED[i].operands, WANTED[i].profile, NULL);
        compare_stats in, out;
        if (b->kind == BOUND_SNR) {
            in = differ(amount_for_db(b->limit + 0.05), false);
            out = differ(amount_for_db(b->limit - 0.05), false);
        } else if (b->kind == BOUND_BITS) {
            in = differ(0, false);
            out = differ(1e-30, false);
        } else {
            const double unit = b->kind == BOUND_REL ? 2 * b->limit : b->limit;
            in = differ(0.999 * unit, false);
            out = differ(1.001 * unit, false);
        }
        assert_true(bound_holds(b, &in));
        assert_false(bound_holds(b, &out));
    }
}

/* int8 is wider than bf16 where weights show, and has no bound of its own where they do not. */
static void test_int8_bounds(void **test)
{
    (void)test;
    static const char *const names[] = {"logits", "hidden"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const bound *b = bound_find_int8("llm", names[i]);
        const bound *narrower = bound_find("llm", names[i], PRECISION_BF16, BOUND_PLAIN, NULL);
        assert_non_null(b);
        assert_int_equal(b->kind, narrower->kind);
        assert_true(b->limit > narrower->limit);
    }
    assert_null(bound_find_int8("llm", "lm_input"));
    assert_null(bound_find_int8("flow", "mel"));
}

static void test_logits_mean_counts(void **test)
{
    (void)test;
    const bound *b = bound_find("llm", "logits", PRECISION_BF16, BOUND_PLAIN, NULL);
    const compare_stats in = differ(0.0399, true), out = differ(0.0402, true);
    assert_true(bound_holds(b, &in));
    assert_false(bound_holds(b, &out));
    assert_true(out.max_abs < b->limit);
}

static void test_bits_tell_zeros_apart(void **test)
{
    (void)test;
    const bound *b = bound_find("llm", "lm_input", PRECISION_F32, BOUND_PLAIN, NULL);
    const float want[2] = {1, 0}, got[2] = {1, -0.0f};
    const compare_stats s = compare_arrays(got, want, 2, NULL);
    assert_true(s.max_abs == 0);
    assert_false(bound_holds(b, &s));
}

static void test_nothing_finite_passes_no_bound(void **test)
{
    (void)test;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++)
        for (int side = 0; side < 2; side++) {
            float got[3] = {1, 2, 3}, want[3] = {1, 2, 3};
            (side ? got : want)[1] = bad[i];
            const compare_stats s = compare_arrays(got, want, 3, NULL);
            assert_false(s.finite);
            assert_int_equal(s.worst_idx, 1);
            for (size_t k = 0; k < sizeof WANTED / sizeof WANTED[0]; k++)
                assert_false(bound_holds(
                    bound_find(WANTED[k].stage, WANTED[k].name, WANTED[k].operands, WANTED[k].profile, NULL), &s));
        }
    /* The same NaN on both sides is the same bits and still no pass. */
    const float both[2] = {NAN, 1};
    const compare_stats s = compare_arrays(both, both, 2, NULL);
    assert_true(s.same_bits);
    assert_false(bound_holds(bound_find("llm", "lm_input", PRECISION_F32, BOUND_PLAIN, NULL), &s));
}

static void test_figures(void **test)
{
    (void)test;
    const float want[4] = {1, -2, 0, 1}, got[4] = {1.5f, -2, 0.25f, 1};
    const compare_stats s = compare_arrays(got, want, 4, NULL);
    assert_true(s.max_abs == 0.5 && s.mean_abs == 0.1875 && s.rel == 0.25);
    assert_true(fabs(s.snr_db - 10 * log10(6 / 0.3125)) < 1e-12);
    assert_int_equal(s.worst_idx, 0);
    const unsigned char leave_out[4] = {1, 0, 0, 0};
    const compare_stats part = compare_arrays(got, want, 4, leave_out);
    assert_true(part.max_abs == 0.25 && part.excluded_count == 1);
    assert_true(fabs(part.mean_abs - 0.25 / 3) < 1e-12);
    assert_true(compare_arrays(want, want, 4, NULL).snr_db == SNR_EQUAL_DB);
    const compare_stats none = compare_arrays(NULL, NULL, 0, NULL);
    assert_true(none.finite && none.same_bits && none.rel == 0);
    const float zero[2] = {0, 0}, off[2] = {0, 1e-3f};
    assert_true(compare_arrays(off, zero, 2, NULL).rel == (double)1e-3f); /* nothing to be relative to */
}

static void test_top1_only_where_the_margin_is_clear(void **test)
{
    (void)test;
    const float want[] = {1, 0.5f, 0, /* margin 0.5 */ 1, 0.8f, 0, /* 0.2 */ 0, 0, 3};
    const float got[] = {0.5f, 0.6f, 0, 0.8f, 0.9f, 0, 0, 0, 3};
    size_t row = 99;
    assert_int_equal(compare_top1(got, want, 3, 3, 0.3, &row), 1);
    assert_int_equal(row, 0);
    assert_int_equal(compare_top1(got, want, 3, 3, 0.1, &row), 2);
    assert_int_equal(compare_top1(got, want, 3, 3, 0.5, &row), 0); /* "exceeds" */
    assert_int_equal(compare_top1(want, want, 3, 3, 0, &row), 0);
}

static void test_bounds_can_be_read(void **test)
{
    (void)test;
    char text[BOUND_TEXT_BYTES];
    bound_text(bound_find("flow", "mel", PRECISION_F32, BOUND_PLAIN, NULL), text);
    assert_string_equal(text, "rel <= 3e-05");
    bound_text(bound_find("hift", "audio", PRECISION_F32, BOUND_PLAIN, NULL), text);
    assert_string_equal(text, "snr >= 90 dB");
    bound_text(bound_find("llm", "logits", PRECISION_FP16, BOUND_PLAIN, NULL), text);
    assert_string_equal(text, "max <= 0.05, mean <= 0.008, top-1 beyond 0.05");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_is_the_specification),
        cmocka_unit_test(test_unknown_names_have_no_bound),
        cmocka_unit_test(test_just_inside_and_just_outside),
        cmocka_unit_test(test_int8_bounds),
        cmocka_unit_test(test_logits_mean_counts),
        cmocka_unit_test(test_bits_tell_zeros_apart),
        cmocka_unit_test(test_nothing_finite_passes_no_bound),
        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_top1_only_where_the_margin_is_clear),
        cmocka_unit_test(test_bounds_can_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
