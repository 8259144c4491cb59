/*
 * test_nsf_source.c - the harmonic source and the two transforms around the vocoder's ladder, against values that
 * need no model: torch's noise table, a source with the released layer's weights, and both transforms of it (hift.md
 * 5.3 and 15).
 */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/compute/ops.h"
#include "hift_worker/nsf_source.h"

#define NOISE_FIRST_DRAW 5052970

static const float RELEASED_W[HIFT_HARMONICS] = {0.335098147f, 0.000591309f, 0.041991003f, 0.002768826f, 0.031757317f,
                                                 0.002215974f, 0.013352673f, 0.000969850f, 0.020223036f};
static const float RELEASED_BIAS = 0.001885876f;

#define GOLDEN_FRAMES  8
#define GOLDEN_SAMPLES (GOLDEN_FRAMES * SAMPLES_PER_FRAME)
static const float GOLDEN_F0[GOLDEN_FRAMES] = {0.5f, 100.0f, 100.5f, 9.99f, 10.01f, 220.0f, 440.0f, 0.0f};

static backend *open_backend(bool naive)
{
    backend *be = NULL;
    const backend_config cfg = {.device = "cpu", .naive = naive, .threads = 2, .scratch_bytes = (size_t)64 << 20};
    assert_ok(backend_open(&cfg, &be));
    return be;
}

/* Each test runs on both variants of the CPU backend. */
static int setup_naive(void **state)
{
    *state = open_backend(true);
    return 0;
}

static int setup_fast(void **state)
{
    *state = open_backend(false);
    return 0;
}

static int teardown(void **state)
{
    backend_close(*state);
    return 0;
}

static tensor take(backend *be, int64_t rows, int64_t cols)
{
    tensor t;
    if (cols)
        assert_ok(backend_take_2d(be, DTYPE_F32, rows, cols, &t));
    else
        assert_ok(backend_take(be, DTYPE_F32, 1, &rows, &t));
    return t;
}

static op_rows rows_of(backend *be, const int32_t *lengths, int32_t count)
{
    op_rows r;
    assert_ok(backend_rows(be, lengths, count, &r));
    return r;
}

/* Runs the source over sequences of f0 laid one behind the other; samples into ret_samples. */
static void run_source(backend *be, nsf_source *s, const float *f0, const int32_t *lengths, int32_t count,
                       float *ret_samples)
{
    const op_rows rows = rows_of(be, lengths, count);
    tensor hz = take(be, rows_total(&rows), 0);
    tensor y = take(be, (int64_t)rows_total(&rows) * SAMPLES_PER_FRAME, 0);
    assert_ok(backend_upload(be, f0, &hz));
    assert_ok(nsf_source_run(s, be, &hz, &rows, &y));
    assert_ok(backend_download(be, &y, ret_samples));
}

static void golden_source(backend *be, float *ret_samples)
{
    nsf_source s;
    const int32_t length = GOLDEN_FRAMES;
    assert_ok(nsf_source_init(be, RELEASED_W, RELEASED_BIAS, &s));
    run_source(be, &s, GOLDEN_F0, &length, 1, ret_samples);
}

/* Rows of U as 24-bit integers. With one weight 1 and the others 0 the table is that column of U, exactly. */
static void test_noise_is_torchs(void **state)
{
    static const struct {
        int64_t sample;
        uint32_t u[HIFT_HARMONICS];
    } want[] = {
        {0, {15482451, 8010240, 13875627, 4755622, 13312412, 2909753, 14300480, 15482931, 12264480}},
        {1, {15440792, 4089161, 13249301, 6005738, 305836, 12914736, 1517898, 222865, 8711183}},
        {479, {14361119, 3161208, 6555775, 2097365, 8973055, 7971413, 10530526, 1692335, 11448874}},
        {24000, {371596, 12463566, 4673378, 211495, 13798432, 2709918, 13361260, 2082623, 3485927}},
    };
    backend *be = *state;
    for (int h = 0; h < HIFT_HARMONICS; h++) {
        nsf_source s;
        float w[HIFT_HARMONICS] = {0};
        w[h] = 1.0f;
        assert_ok(nsf_source_init(be, w, 0.0f, &s));
        assert_ok(nsf_source_prepare(&s, be, 24001));
        for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
            float value;
            const tensor at = tensor_rows(&s.noise, want[i].sample, 1);
            assert_ok(backend_download(be, &at, &value));
            assert_true(value == (float)want[i].u[h] * 0x1p-24f);
        }
    }
}

/* The far end and the sums that hift.md prints: the generator and the number of draws before the table. */
static void test_noise_sums_and_end(void **state)
{
    static const uint32_t last[HIFT_HARMONICS] = {2922513,  14921832, 11674238, 5358682, 1094663,
                                                  14117502, 10827391, 12950448, 11009555};
    (void)state;
    rng_mt mt;
    uint64_t sum = 0;
    rng_mt_init(&mt, 0);
    rng_mt_skip(&mt, NOISE_FIRST_DRAW);
    for (int64_t n = 0; n < 37440; n++) {
        for (int h = 0; h < HIFT_HARMONICS; h++)
            sum += rng_mt_word(&mt) & 0xFFFFFFu;
        if (n == 479)
            assert_true(sum == 36725795089u);
    }
    assert_true(sum == 2826480321203u);
    rng_mt_skip(&mt, (uint64_t)(HIFT_NOISE_SAMPLES - 1 - 37440) * HIFT_HARMONICS);
    for (int h = 0; h < HIFT_HARMONICS; h++)
        assert_int_equal(rng_mt_word(&mt) & 0xFFFFFFu, last[h]);
}

/* The table is made as far as somebody needs it; the order of needs changes nothing, and it ends where 300 s end. */
static void test_noise_grows_alike(void **state)
{
    enum { SAMPLES = 30000 };
    static float once[SAMPLES], grown[SAMPLES];
    backend *be = *state;
    nsf_source a, b;
    assert_ok(nsf_source_init(be, RELEASED_W, RELEASED_BIAS, &a));
    assert_ok(nsf_source_init(be, RELEASED_W, RELEASED_BIAS, &b));
    assert_int_equal(a.ready_samples, 0);
    assert_ok(nsf_source_prepare(&a, be, SAMPLES));
    for (int64_t samples = 1; samples < SAMPLES; samples += 977)
        assert_ok(nsf_source_prepare(&b, be, samples));
    assert_ok(nsf_source_prepare(&b, be, SAMPLES));
    assert_ok(nsf_source_prepare(&b, be, 1));
    tensor part = tensor_rows(&a.noise, 0, SAMPLES);
    assert_ok(backend_download(be, &part, once));
    part = tensor_rows(&b.noise, 0, SAMPLES);
    assert_ok(backend_download(be, &part, grown));
    assert_memory_equal(once, grown, sizeof once);
    assert_true(a.ready_samples >= SAMPLES && a.ready_samples < SAMPLES + SAMPLES_PER_FRAME * 10);
}

static void test_source_values(void **state)
{
    static const struct {
        int sample;
        double value;
    } want[] = {
        {0, 0.015140596},     {1, 0.013775259},     {479, 0.013352523},   {480, 0.008506667},
        {959, 0.007891912},   {960, 0.013292610},   {1440, 0.004606152},  {1920, 0.021770914},
        {2400, -0.024245837}, {2880, -0.021675324}, {3359, -0.021925038}, {3839, 0.004911404},
    };
    float s[GOLDEN_SAMPLES];
    double sum = 0.0, squares = 0.0;
    golden_source(*state, s);
    /* Printed to nine places; the nearest f32 of 0.02 is up to 1e-9 away. */
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        if (fabs((double)s[want[i].sample] - want[i].value) > 1e-8)
            fail_msg("sample %d is %.9f, expected %.9f", want[i].sample, (double)s[want[i].sample], want[i].value);
    for (int n = 0; n < GOLDEN_SAMPLES; n++) {
        sum += (double)s[n];
        squares += (double)s[n] * (double)s[n];
    }
    assert_true(fabs(sum - 12.11387405) <= 1e-6);
    assert_true(fabs(squares - 1.01408710) <= 1e-6);
}

/* atanh(s) - bias - noise_gain * noise is the frame's voiced part, constant over its 480 samples: a staircase. */
static void test_source_is_a_staircase(void **state)
{
    static const double base[GOLDEN_FRAMES] = {
        0, 0.005728972895, 0.010852777774, 0, 0.019469369923, -0.027273951089, -0.024302790124, 0};
    backend *be = *state;
    float s[GOLDEN_SAMPLES], noise[GOLDEN_SAMPLES];
    nsf_source source;
    const int32_t length = GOLDEN_FRAMES;
    assert_ok(nsf_source_init(be, RELEASED_W, RELEASED_BIAS, &source));
    run_source(be, &source, GOLDEN_F0, &length, 1, s);
    const tensor part = tensor_rows(&source.noise, 0, GOLDEN_SAMPLES);
    assert_ok(backend_download(be, &part, noise));
    for (int n = 0; n < GOLDEN_SAMPLES; n++) {
        const int j = n / SAMPLES_PER_FRAME;
        const double gain = GOLDEN_F0[j] > 10.0f ? 0.003 : 0.1 / 3;
        const double found = atanh((double)s[n]) - (double)RELEASED_BIAS - gain * (double)noise[n];
        /* f32 samples of up to 0.03 carry 2e-9; weights printed to nine places 1e-9 more. */
        if (fabs(found - base[j]) > 1e-8)
            fail_msg("frame %d sample %d: base %.10f, expected %.10f", j, n, found, base[j]);
    }
}

/* Phase and noise start anew with each sequence of a batch, whatever stands before it. */
static void test_source_in_a_batch(void **state)
{
    enum { FRAMES = 3 + GOLDEN_FRAMES + 1 };
    backend *be = *state;
    float f0[FRAMES] = {300.0f, 310.0f, 5.0f}, alone[GOLDEN_SAMPLES];
    static float packed[FRAMES * SAMPLES_PER_FRAME];
    nsf_source s;
    memcpy(f0 + 3, GOLDEN_F0, sizeof GOLDEN_F0);
    f0[FRAMES - 1] = 77.0f;
    golden_source(be, alone);
    assert_ok(nsf_source_init(be, RELEASED_W, RELEASED_BIAS, &s));
    run_source(be, &s, f0, (const int32_t[]){3, 0, GOLDEN_FRAMES, 1}, 4, packed);
    assert_memory_equal(packed + 3 * SAMPLES_PER_FRAME, alone, sizeof alone);
}

/* 10 Hz itself is unvoiced; the next f32 above is voiced. */
static void test_voiced_threshold(void **state)
{
    backend *be = *state;
    const float f0[2] = {10.0f, nextafterf(10.0f, 11.0f)};
    float s[2 * SAMPLES_PER_FRAME], noise;
    nsf_source source;
    const int32_t length = 2;
    assert_ok(nsf_source_init(be, RELEASED_W, RELEASED_BIAS, &source));
    run_source(be, &source, f0, &length, 1, s);
    const tensor at = tensor_rows(&source.noise, 0, 1);
    assert_ok(backend_download(be, &at, &noise));
    assert_true(fabs(atanh((double)s[0]) - (double)RELEASED_BIAS - 0.1 / 3 * (double)noise) <= 1e-8);
    double low = 1.0, high = -1.0;
    for (int n = SAMPLES_PER_FRAME; n < 2 * SAMPLES_PER_FRAME; n++) {
        low = fmin(low, (double)s[n]);
        high = fmax(high, (double)s[n]);
    }
    /* 0.003 * sum |w| = 0.0014 is all that the noise of a voiced frame can span; unvoiced it would be ten times that.
     * */
    assert_true(high - low < 0.0014);
}

static void test_stft_values(void **state)
{
    static const struct {
        int frame, column; /* 0..8 real, 9..17 imaginary */
        double value;
    } want[] = {
        {0, 0, 0.0919808},
        {0, 1, -0.0493253},
        {0, 4, 0.0076310},
        {0, 8, -0.0037420},
        {0, 10, 0},
        {0, 13, 0},
        {1, 0, 0.0864128},
        {1, 10, -0.0053878},
        {1, 13, -0.0090788},
        {120, 0, 0.0752899},
        {120, 10, -0.0052479},
        {480, 0, 0.1292557},
        {480, 8, 0.0167944},
        {480, 10, 0.0338506},
        {960, 0, 0.0776851},
        {960, 8, 0.0153641},
        {960, 10, -0.0001754},
        {960, 13, -0.0081385},
    };
    enum { FRAMES = GOLDEN_FRAMES * HIFT_LINES + 1 };
    static float spectrum[FRAMES][HIFT_STFT_COLUMNS];
    backend *be = *state;
    float s[GOLDEN_SAMPLES];
    golden_source(be, s);
    const op_rows in = rows_of(be, (const int32_t[]){GOLDEN_SAMPLES}, 1);
    const op_rows out = rows_of(be, (const int32_t[]){FRAMES}, 1);
    tensor x = take(be, GOLDEN_SAMPLES, 0), y = take(be, FRAMES, HIFT_STFT_COLUMNS);
    assert_ok(backend_upload(be, s, &x));
    assert_ok(op_stft(be, &(op_stft_args){.x = &x, .rows_in = &in, .y = &y, .rows_out = &out}));
    assert_ok(backend_download(be, &y, spectrum));
    /* Printed to seven places. */
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        if (fabs((double)spectrum[want[i].frame][want[i].column] - want[i].value) > 1e-7)
            fail_msg("frame %d column %d is %.8f, expected %.7f", want[i].frame, want[i].column,
                     (double)spectrum[want[i].frame][want[i].column], want[i].value);
    for (int j = 0; j < FRAMES; j++)
        assert_true(spectrum[j][9] == 0.0f && spectrum[j][17] == 0.0f);
}

static void test_istft_values(void **state)
{
    static const double first[8] = {0.01893422,  0.00848518, 0.00858023,  0.00564913,
                                    -0.00544439, 0.00371732, -0.00821059, 0.00885225};
    static const double last[4] = {-0.00544439, 0.00131307, -0.02050806, 0.00266206};
    enum { FRAMES = HIFT_LINES + 1 };
    static float spectrum[FRAMES][HIFT_STFT_COLUMNS];
    float s[SAMPLES_PER_FRAME];
    backend *be = *state;
    for (int j = 0; j < FRAMES; j++)
        for (int k = 0; k < HIFT_STFT_COLUMNS / 2; k++) {
            spectrum[j][k] = -0.1f * (float)k;
            spectrum[j][9 + k] = 0.2f * (float)k - 0.7f;
        }
    const op_rows in = rows_of(be, (const int32_t[]){FRAMES}, 1);
    const op_rows out = rows_of(be, (const int32_t[]){SAMPLES_PER_FRAME}, 1);
    tensor x = take(be, FRAMES, HIFT_STFT_COLUMNS), y = take(be, SAMPLES_PER_FRAME, 0);
    assert_ok(backend_upload(be, spectrum, &x));
    assert_ok(
        op_istft(be, &(op_istft_args){.x = &x, .rows_in = &in, .y = &y, .rows_out = &out, .limit = HIFT_SAMPLE_LIMIT}));
    assert_ok(backend_download(be, &y, s));
    /* Printed to eight places; inputs are f32 of up to 0.9, worth 3e-8. */
    for (int n = 0; n < SAMPLES_PER_FRAME; n++) {
        const double want = n < 8                       ? first[n]
                            : n < SAMPLES_PER_FRAME - 4 ? first[4 + n % 4]
                                                        : last[n - (SAMPLES_PER_FRAME - 4)];
        if (fabs((double)s[n] - want) > 4e-8)
            fail_msg("sample %d is %.9f, expected %.8f", n, (double)s[n], want);
    }
}

#define ON_BOTH(f)                                 \
    {#f " naive", f, setup_naive, teardown, NULL}, \
    {                                              \
#f " fast", f, setup_fast, teardown, NULL  \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_noise_sums_and_end),
        ON_BOTH(test_noise_is_torchs),
        ON_BOTH(test_noise_grows_alike),
        ON_BOTH(test_source_values),
        ON_BOTH(test_source_is_a_staircase),
        ON_BOTH(test_source_in_a_batch),
        ON_BOTH(test_voiced_threshold),
        ON_BOTH(test_stft_values),
        ON_BOTH(test_istft_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
