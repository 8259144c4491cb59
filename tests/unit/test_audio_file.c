/* test_audio_file.c - samples to files of every format: what libsndfile reads back, the same bytes each time, however
 * the samples are cut into pieces, and formats that are none. */
#include "tests/harness/test.h"

#include <math.h>
#include <sndfile.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "orchestrator/audio_file.h"

#define SAMPLES 30000

static float samples[SAMPLES], back[SAMPLES + 8192];

/* Lossy ones are compared in length alone: how much they lose is libsndfile's affair. */
static const struct {
    const char *name, *file;
    double step;  /* largest difference of a sample; 0: lossy */
    int64_t more; /* samples that the format may add at the end */
} FORMATS[] = {
    {"wav", "a.wav", 1.0 / 32768, 0}, /* half a step of rounding, and 32767 or 32768 as full scale */
    {"wav-float", "b.wav", 1e-9, 0},  /* f32 as it is */
    {"flac", "c.flac", 1.0 / 32768, 0}, {"ogg", "d.ogg", 0, 0},
    {"mp3", "e.mp3", 0, 4096}, /* whole frames and the encoder's delay */
};

static void fill(void)
{
    for (uint32_t i = 0; i < SAMPLES; i++)
        samples[i] = (float)sin(i * 0.05) * 0.4f + (rng_uniform(1, 0, i, 0) - 0.5f) * 0.1f;
}

static void encode(const char *format, const audio_piece *pieces, size_t count, void **ret_data, size_t *ret_bytes)
{
    assert_ok(audio_encode(pieces, count, format, ret_data, ret_bytes));
    assert_true(*ret_bytes > 0);
}

static void test_reads_back(void **state)
{
    (void)state;
    const audio_piece whole = {samples, SAMPLES};
    fill();
    for (size_t f = 0; f < CF_COUNT(FORMATS); f++) {
        char path[IO_PATH_BYTES];
        void *data;
        size_t bytes;
        SF_INFO info = {0};
        encode(FORMATS[f].name, &whole, 1, &data, &bytes);
        snprintf(path, sizeof path, "%s/%s", test_temp_dir(), FORMATS[f].file);
        assert_ok(io_write_file(path, data, bytes));
        mem_free(data);
        SNDFILE *snd = sf_open(path, SFM_READ, &info);
        assert_non_null(snd);
        assert_int_equal(info.samplerate, SAMPLE_RATE_HZ);
        assert_int_equal(info.channels, 1);
        const sf_count_t got = sf_read_float(snd, back, SAMPLES + 8192);
        assert_true(got >= SAMPLES && got <= SAMPLES + FORMATS[f].more);
        assert_int_equal(sf_close(snd), 0);
        for (int i = 0; i < SAMPLES && FORMATS[f].step > 0; i++)
            assert_true(fabs((double)back[i] - (double)samples[i]) <= FORMATS[f].step);
        const char *format = NULL;
        assert_ok(audio_format_of_path(path, strcmp(FORMATS[f].name, "wav-float") == 0, &format));
        assert_string_equal(format, FORMATS[f].name);
    }
}

static void test_same_samples_same_bytes(void **state)
{
    (void)state;
    const audio_piece whole = {samples, SAMPLES};
    const audio_piece cut[] = {{samples, 1}, {samples + 1, 12345}, {samples, 0}, {samples + 12346, SAMPLES - 12346}};
    fill();
    for (size_t f = 0; f < CF_COUNT(FORMATS); f++) {
        void *first, *second, *pieces;
        size_t first_bytes, second_bytes, pieces_bytes;
        encode(FORMATS[f].name, &whole, 1, &first, &first_bytes);
        encode(FORMATS[f].name, &whole, 1, &second, &second_bytes);
        encode(FORMATS[f].name, cut, CF_COUNT(cut), &pieces, &pieces_bytes);
        assert_int_equal(first_bytes, second_bytes);
        assert_memory_equal(first, second, first_bytes);
        assert_int_equal(first_bytes, pieces_bytes);
        assert_memory_equal(first, pieces, first_bytes);
        mem_free(first);
        mem_free(second);
        mem_free(pieces);
    }
}

static void test_clips(void **state)
{
    (void)state;
    static const float LOUD[4] = {2.0f, -2.0f, 1.0f, -1.0f};
    const audio_piece piece = {LOUD, 4};
    void *data;
    size_t bytes;
    int16_t last[4];
    encode("wav", &piece, 1, &data, &bytes);
    memcpy(last, (const char *)data + bytes - sizeof last, sizeof last);
    assert_true(last[0] == 32767 && last[1] == -32768 && last[2] >= 32767 - 1 && last[3] <= -32767);
    mem_free(data);
}

static void test_refuses_formats(void **state)
{
    (void)state;
    const audio_piece none = {samples, 0};
    const char *format = NULL;
    void *data = NULL;
    size_t bytes;
    assert_err(CF_ERR_UNSUPPORTED, "audio format \"aiff\": expected wav", audio_format_check("aiff"));
    assert_err(CF_ERR_UNSUPPORTED, "audio format \"\"", audio_format_check(""));
    assert_err(CF_ERR_UNSUPPORTED, "audio format \"WAV\"", audio_encode(&none, 1, "WAV", &data, &bytes));
    assert_null(data);
    assert_err(CF_ERR_UNSUPPORTED, "x: no extension", audio_format_of_path("x", false, &format));
    assert_err(CF_ERR_UNSUPPORTED, "a.wav/x: no extension", audio_format_of_path("a.wav/x", false, &format));
    assert_err(CF_ERR_UNSUPPORTED, "x.xyz: expected .wav", audio_format_of_path("x.xyz", false, &format));
    assert_err(CF_ERR_UNSUPPORTED, "float samples need .wav", audio_format_of_path("x.flac", true, &format));
    assert_null(format);
    encode("wav", &none, 1, &data, &bytes); /* no samples are a file too */
    assert_int_equal(bytes, 44);
    mem_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_back),
        cmocka_unit_test(test_same_samples_same_bytes),
        cmocka_unit_test(test_clips),
        cmocka_unit_test(test_refuses_formats),
    };
    return cmocka_run_group_tests_name("audio_file", tests, NULL, NULL);
}
