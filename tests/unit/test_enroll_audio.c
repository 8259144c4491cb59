/*
 * test_enroll_audio.c - recordings as users have them: wave files of every form, refusals, lengths after resampling,
 * the transform against its definition.
 */
#define _GNU_SOURCE /* M_PI */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/model/byte_buf.h"
#include "enroll/audio_read.h"
#include "enroll/dft.h"
#include "enroll/features.h"
#include "enroll/resample.h"

/* A wave file in the making. */
typedef struct wave {
    unsigned format, channels, rate_hz, bits;
    bool extensible, odd_chunk;
    uint32_t claimed_bytes; /* 0 and 0xFFFFFFFF: what programs write that stream */
    bool honest;            /* the true size instead */
} wave;

static void wave_build(const wave *w, const void *data, size_t data_bytes, byte_buf *b)
{
    static const unsigned char tail[14] = {0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71};
    const uint32_t frame = w->channels * w->bits / 8;
    byte_buf_add(b, "RIFF", 4);
    byte_buf_add_u32(b, w->honest ? (uint32_t)data_bytes + 36 : w->claimed_bytes);
    byte_buf_add(b, "WAVE", 4);
    if (w->odd_chunk) {
        byte_buf_add(b, "junk", 4);
        byte_buf_add_u32(b, 3);
        byte_buf_add(b, "abc\0", 4); /* padded to even */
    }
    byte_buf_add(b, "fmt ", 4);
    byte_buf_add_u32(b, w->extensible ? 40 : 16);
    byte_buf_add_u16(b, w->extensible ? 0xFFFE : w->format);
    byte_buf_add_u16(b, w->channels);
    byte_buf_add_u32(b, w->rate_hz);
    byte_buf_add_u32(b, w->rate_hz * frame);
    byte_buf_add_u16(b, frame);
    byte_buf_add_u16(b, w->bits);
    if (w->extensible) {
        byte_buf_add_u16(b, 22);
        byte_buf_add_u16(b, w->bits);
        byte_buf_add_u32(b, 0);
        byte_buf_add_u16(b, w->format);
        byte_buf_add(b, tail, sizeof tail);
    }
    byte_buf_add(b, "data", 4);
    byte_buf_add_u32(b, w->honest ? (uint32_t)data_bytes : w->claimed_bytes);
    byte_buf_add(b, data, data_bytes);
    assert_ok(byte_buf_check(b));
}

static cf_err wave_read(const wave *w, const void *data, size_t data_bytes, recording *r)
{
    byte_buf b = {0};
    wave_build(w, data, data_bytes, &b);
    const cf_err err = recording_parse("x.wav", b.data, b.bytes, r);
    byte_buf_done(&b);
    return err;
}

static const wave PLAIN = {.format = 1, .channels = 1, .rate_hz = 16000, .bits = 16, .honest = true};

static void test_scales(void **state)
{
    (void)state;
    recording r;
    const int16_t s16[] = {-32768, 16384, 1, 0};
    assert_ok(wave_read(&PLAIN, s16, sizeof s16, &r));
    assert_int_equal(r.sample_count, 4);
    assert_float_equal(r.samples[0], -1.0f, 0);
    assert_float_equal(r.samples[1], 0.5f, 0);
    assert_float_equal(r.samples[2], 1.0f / 32768, 0);
    assert_float_equal(r.peak, 1.0f, 0);
    recording_done(&r);

    wave w = PLAIN;
    w.bits = 8;
    const unsigned char u8[] = {0, 128, 255, 64};
    assert_ok(wave_read(&w, u8, sizeof u8, &r));
    assert_float_equal(r.samples[0], -1.0f, 0);
    assert_float_equal(r.samples[1], 0.0f, 0);
    assert_float_equal(r.samples[2], 127.0f / 128, 0);
    recording_done(&r);

    w.bits = 24;
    const unsigned char s24[] = {0, 0, 0x80, 0xFF, 0xFF, 0x7F, 1, 0, 0, 0, 0, 0};
    assert_ok(wave_read(&w, s24, sizeof s24, &r));
    assert_float_equal(r.samples[0], -1.0f, 0);
    assert_float_equal(r.samples[1], 8388607.0f / 8388608, 0);
    assert_float_equal(r.samples[2], 1.0f / 8388608, 0);
    recording_done(&r);

    w.format = 3;
    w.bits = 32;
    const float f32[] = {1.5f, -2.0f, 1e-9f}; /* neither clipped nor scaled */
    assert_ok(wave_read(&w, f32, sizeof f32, &r));
    assert_memory_equal(r.samples, f32, sizeof f32);
    assert_float_equal(r.peak, 2.0f, 0);
    recording_done(&r);
}

static void test_channels_are_averaged(void **state)
{
    (void)state;
    recording r;
    wave w = PLAIN;
    w.channels = 3;
    w.format = 3;
    w.bits = 32;
    const float x[] = {0.5f, 0.25f, -0.15f, 1.0f, -1.0f, 0.5f};
    assert_ok(wave_read(&w, x, sizeof x, &r));
    assert_int_equal(r.sample_count, 2);
    assert_int_equal(r.channels, 3);
    assert_float_equal(r.samples[0], ((0.5f + 0.25f) + -0.15f) / 3.0f, 0);
    assert_float_equal(r.samples[1], 0.5f / 3.0f, 0);
    recording_done(&r);
}

/* What recorders and encoders leave behind. */
static void test_odd_headers(void **state)
{
    (void)state;
    recording r;
    const int16_t s16[] = {100, -200, 300, -400};
    const wave forms[] = {
        {.format = 1, .channels = 1, .rate_hz = 16000, .bits = 16, .honest = true, .odd_chunk = true},
        {.format = 1, .channels = 1, .rate_hz = 16000, .bits = 16, .honest = true, .extensible = true},
        {.format = 1, .channels = 1, .rate_hz = 16000, .bits = 16, .claimed_bytes = 0},
        {.format = 1, .channels = 1, .rate_hz = 16000, .bits = 16, .claimed_bytes = 0xFFFFFFFFu},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        assert_ok(wave_read(&forms[i], s16, sizeof s16, &r));
        assert_int_equal(r.sample_count, 4);
        assert_float_equal(r.samples[3], -400.0f / 32768, 0);
        recording_done(&r);
    }
}

static void test_clipping_is_counted(void **state)
{
    (void)state;
    recording r;
    const int16_t s16[] = {32767, 32767, 0, 32767, 32767, 32767, 32767, 0, -32768, -32768, -32768};
    assert_ok(wave_read(&PLAIN, s16, sizeof s16, &r));
    assert_int_equal(r.clipped_runs, 2);
    recording_done(&r);
}

static void test_refusals(void **state)
{
    (void)state;
    recording r;
    const int16_t s16[16] = {0};
    wave w = PLAIN;
    w.rate_hz = 11025;
    assert_err(CF_ERR_UNSUPPORTED, "x.wav: 11025 Hz, expected at least 16000 Hz", wave_read(&w, s16, 32, &r));
    w.rate_hz = 1000000;
    assert_err(CF_ERR_LIMIT, "1000000 Hz, at most 768000", wave_read(&w, s16, 32, &r));
    w = PLAIN;
    w.format = 3;
    w.bits = 32;
    const float nan_sample[] = {0.0f, NAN};
    assert_err(CF_ERR_NUMERIC, "x.wav: sample 1 is nan, expected at most 1e+06 of full scale",
               wave_read(&w, nan_sample, sizeof nan_sample, &r));
    const float infinite[] = {-INFINITY};
    assert_err(CF_ERR_NUMERIC, "sample 0 is -inf, expected", wave_read(&w, infinite, sizeof infinite, &r));
    assert_err(CF_ERR_CORRUPT, "x.wav: an empty file", recording_parse("x.wav", "", 0, &r));
    assert_err(CF_ERR_UNSUPPORTED, "x.wav: not readable as audio", recording_parse("x.wav", "hello", 5, &r));
    assert_err(CF_ERR_UNSUPPORTED, "not readable as audio", recording_parse("x.wav", "RIFF\0\0\0\0WAVE", 12, &r));
    assert_err(CF_ERR_NOTFOUND, "/nothing: no such recording", recording_read("/nothing", &r));
}

static void test_length_bound(void **state)
{
    (void)state;
    recording r;
    int16_t *x;
    assert_ok(mem_alloc(480001, sizeof *x, &x));
    assert_ok(wave_read(&PLAIN, x, 480000 * sizeof *x, &r));
    assert_int_equal(r.sample_count, 480000);
    assert_float_equal(r.seconds, 30.0, 0);
    recording_done(&r);
    assert_err(CF_ERR_LIMIT, "30.0 s, a voice is made from at most 30 s", wave_read(&PLAIN, x, 480001 * sizeof *x, &r));
    mem_free(x);
}

/* A length that upstream rounds to f32 before the ceiling, one sample short of the exact one; its neighbours; and
 * ratios that are exact. */
static void test_resampled_lengths(void **state)
{
    (void)state;
    static const struct {
        int32_t from_hz, to_hz;
        int64_t count, want;
    } rows[] = {{44100, 16000, 180697, 65559},  {44100, 16000, 180696, 65559}, {22050, 16000, 90569, 65719},
                {44100, 24000, 240854, 131077}, {48000, 16000, 180697, 60233}, {16000, 24000, 3, 5},
                {16001, 16000, 16001, 16000},   {96000, 24000, 1, 1},          {24000, 24000, 77, 77}};
    float *x;
    assert_ok(mem_alloc(300000, sizeof *x, &x));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float *y;
        int64_t count;
        assert_ok(resample(x, rows[i].count, rows[i].from_hz, rows[i].to_hz, &y, &count));
        if (count != rows[i].want)
            fail_msg("%d -> %d Hz: %lld of %lld samples, expected %lld", rows[i].from_hz, rows[i].to_hz,
                     (long long)count, (long long)rows[i].count, (long long)rows[i].want);
        mem_free(y);
    }
    mem_free(x);
}

/* A tone stays that tone. 1e-3: the ripple of a filter of six zero crossings. */
static void test_resampled_tone(void **state)
{
    (void)state;
    static const int32_t rates[] = {16000, 22050, 44100, 48000, 96000, 31999};
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        const int64_t count = rates[i] / 2;
        float *x, *y;
        int64_t got;
        assert_ok(mem_alloc((size_t)count, sizeof *x, &x));
        for (int64_t t = 0; t < count; t++)
            x[t] = (float)sin(2.0 * M_PI * 440.0 * (double)t / rates[i]);
        assert_ok(resample(x, count, rates[i], 24000, &y, &got));
        for (int64_t t = 200; t < got - 200; t++)
            assert_float_equal(y[t], (float)sin(2.0 * M_PI * 440.0 * (double)t / 24000.0), 1e-3);
        mem_free(x);
        mem_free(y);
    }
}

static void fill_random(uint32_t key, double *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t words[4];
        rng_philox(key, (const uint32_t[4]){(uint32_t)i, 0, 0, 0}, words);
        x[i] = (double)words[0] / 4294967296.0 - 0.5;
    }
}

/* Against the sum of its definition. 1e-11 of a power of about 100: f64 sums in another order. */
static void test_transform(void **state)
{
    (void)state;
    static const int32_t sizes[] = {16, 24, 400, 512, 1920};
    for (int naive = 0; naive < 2; naive++) {
        backend *be;
        const backend_config cfg = {.device = "cpu", .naive = naive, .threads = 2, .scratch_bytes = 32u << 20};
        assert_ok(backend_open(&cfg, &be));
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            const int32_t n = sizes[s];
            double frames[3 * 1920], power[3 * 961];
            dft d;
            fill_random(7, frames, (size_t)(3 * n));
            assert_ok(dft_init(be, n, &d));
            assert_ok(dft_power(&d, frames, 3, power));
            for (int32_t k = 0; k <= n / 2; k += n > 100 ? 7 : 1) {
                double re = 0, im = 0;
                for (int32_t i = 0; i < n; i++) {
                    re += frames[2 * n + i] * cos(2.0 * M_PI * (i * k % n) / n);
                    im -= frames[2 * n + i] * sin(2.0 * M_PI * (i * k % n) / n);
                }
                assert_true(fabs(power[2 * (n / 2 + 1) + k] - (re * re + im * im)) < 1e-11 * n);
            }
            dft_done(&d);
        }
        backend_close(be);
    }
}

/* More frames than a chunk, and a frame alone gives the same bytes as among others. */
static void test_transform_chunks(void **state)
{
    (void)state;
    enum { FRAMES = 300, N = 400, BINS = N / 2 + 1 };
    backend *be;
    dft d;
    double *frames, *power, alone[BINS];
    const backend_config cfg = {.device = "cpu", .threads = 2, .scratch_bytes = 32u << 20};
    assert_ok(backend_open(&cfg, &be));
    assert_ok(mem_alloc(FRAMES * N, sizeof *frames, &frames));
    assert_ok(mem_alloc(FRAMES * BINS, sizeof *power, &power));
    fill_random(8, frames, FRAMES * N);
    assert_ok(dft_init(be, N, &d));
    assert_ok(dft_power(&d, frames, FRAMES, power));
    for (int t = 0; t < FRAMES; t += 59) {
        assert_ok(dft_power(&d, frames + t * N, 1, alone));
        assert_memory_equal(alone, power + t * BINS, sizeof alone);
    }
    dft_done(&d);
    mem_free(frames);
    mem_free(power);
    backend_close(be);
}

/* Every triangle of a Slaney bank has the area one, as far as its bins resolve it. */
static void test_banks(void **state)
{
    (void)state;
    mel_bank b;
    assert_ok(mel_bank_slaney(24000, 1920, 80, 0.0, 12000.0, &b));
    for (int32_t band = 0; band < b.bands; band++) {
        double sum = 0;
        assert_true(b.count[band] > 0);
        for (int32_t k = 0; k < b.count[band]; k++)
            sum += (double)b.weights[band * b.bins + b.first[band] + k];
        assert_true(fabs(sum * 12.5 - 1.0) < 0.06);
    }
    mel_bank_done(&b);
    assert_ok(mel_bank_kaldi(16000, 512, 80, 20.0, 8000.0, &b));
    for (int32_t band = 0; band < b.bands; band++)
        for (int32_t k = 0; k < b.bins; k++)
            assert_true(b.weights[band * b.bins + k] <= 1.0f);
    assert_float_equal(b.weights[79 * b.bins + 256], 0.0f, 0);
    mel_bank_done(&b);
}

static void test_short_recordings(void **state)
{
    (void)state;
    backend *be;
    features f;
    frame_table t;
    const float x[1024] = {0};
    const backend_config cfg = {.device = "cpu", .threads = 1, .scratch_bytes = 32u << 20};
    assert_ok(backend_open(&cfg, &be));
    assert_ok(features_init(be, &f));
    assert_err(CF_ERR_INVALID, "200 samples, at least 201", features_token_mel(&f, x, 200, &t));
    assert_err(CF_ERR_INVALID, "399 samples, at least 400", features_fbank(&f, x, 399, &t));
    assert_err(CF_ERR_INVALID, "720 samples, at least 721", features_prompt_mel(&f, x, 720, &t));
    assert_ok(features_token_mel(&f, x, 201, &t));
    assert_int_equal(t.frames, 1);
    assert_float_equal(t.values[0], (-10.0f + 4.0f) / 4.0f, 0); /* silence is the floor */
    frame_table_done(&t);
    assert_ok(features_fbank(&f, x, 400, &t));
    assert_int_equal(t.frames, 1);
    frame_table_done(&t);
    assert_ok(features_prompt_mel(&f, x, 721, &t));
    assert_int_equal(t.frames, 1);
    frame_table_done(&t);
    features_done(&f);
    backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_channels_are_averaged),
        cmocka_unit_test(test_odd_headers),
        cmocka_unit_test(test_clipping_is_counted),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_length_bound),
        cmocka_unit_test(test_resampled_lengths),
        cmocka_unit_test(test_resampled_tone),
        cmocka_unit_test(test_transform),
        cmocka_unit_test(test_transform_chunks),
        cmocka_unit_test(test_banks),
        cmocka_unit_test(test_short_recordings),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
