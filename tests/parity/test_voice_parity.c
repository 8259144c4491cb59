/*
 * test_voice_parity.c - decoding, resampling and the three feature extractors against what upstream's extractors make
 * of the same files (docs/model/cases.md, stage voice).
 */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/tensor_file.h"
#include "enroll/audio_read.h"
#include "enroll/features.h"
#include "enroll/resample.h"

/* Upstream resamples in f32: sums of up to 150 products of magnitudes below 1. */
#define WAVE_BOUND 1e-6
/* Logarithms of f32 transforms there, of f64 ones here. In a cell 80 dB below the loudest of its frame the noise of
 * f32 shows: SciPy's f32 transform differs from upstream's by 5e-4 there. So few cells may exceed the bound, by ten
 * times. */
#define LOG_BOUND       2e-4
#define QUIET_BOUND     2e-3
#define CELLS_PER_QUIET 800

static backend *be;
static features plan;

static int open_plan(void **state)
{
    (void)state;
    const backend_config cfg = {.device = "cpu", .threads = 2, .scratch_bytes = (size_t)64 << 20};
    assert_ok(backend_open(&cfg, &be));
    assert_ok(features_init(be, &plan));
    return 0;
}

static int close_plan(void **state)
{
    (void)state;
    features_done(&plan);
    backend_close(be);
    return 0;
}

/* The tensor's values, rows and columns swapped when asked; caller frees. */
static float *read_tensor(const tensor_file *f, const char *name, bool swap, size_t *ret_count)
{
    const tensor_entry *e = tensor_file_find(f, name);
    float *values, *out;
    assert_non_null(e);
    const size_t count = (size_t)entry_count(e);
    assert_ok(mem_alloc(count, sizeof *values, &values));
    assert_ok(entry_read_f32(e, values, count));
    *ret_count = count;
    if (!swap)
        return values;
    assert_int_equal(e->rank, 2);
    assert_ok(mem_alloc(count, sizeof *out, &out));
    for (int64_t i = 0; i < e->shape[0]; i++)
        for (int64_t j = 0; j < e->shape[1]; j++)
            out[j * e->shape[0] + i] = values[i * e->shape[1] + j];
    mem_free(values);
    return out;
}

static void check_values(const char *what, const tensor_file *f, const char *name, bool swap, const float *got,
                         size_t got_count, double bound, size_t quiet_max)
{
    size_t count, quiet = 0;
    float *want = read_tensor(f, name, swap, &count);
    if (count != got_count)
        fail_msg("%s %s: %zu values, expected %zu", what, name, got_count, count);
    const test_diff d = test_compare(got, want, count);
    for (size_t i = 0; i < count; i++)
        quiet += !(fabs((double)got[i] - (double)want[i]) <= bound);
    print_message("# %-36s %-11s max %.2e mean %.2e, %zu above %.0e\n", what, name, d.max_abs, d.mean_abs, quiet,
                  bound);
    if (d.nonfinite || quiet > quiet_max || d.max_abs > (quiet_max > 0 ? QUIET_BOUND : bound))
        fail_msg("%s %s: max %.3e at %zu, %zu values above %.1e", what, name, d.max_abs, d.worst_idx, quiet, bound);
    mem_free(want);
}

static void check_table(const char *what, const tensor_file *f, const char *name, bool swap, frame_table *t)
{
    const size_t cells = (size_t)(t->frames * t->bands);
    check_values(what, f, name, swap, t->values, cells, LOG_BOUND, cells / CELLS_PER_QUIET);
    frame_table_done(t);
}

static void check_recording(const char *wav_path, const char *case_path)
{
    recording r;
    tensor_file *f;
    float *y16, *y24;
    int64_t count16, count24;
    frame_table table;

    assert_ok(recording_read(wav_path, &r));
    assert_ok(tensor_file_open(case_path, &f));
    assert_ok(resample(r.samples, r.sample_count, r.rate_hz, NETWORK_RATE_HZ, &y16, &count16));
    assert_ok(resample(r.samples, r.sample_count, r.rate_hz, SAMPLE_RATE_HZ, &y24, &count24));
    const char *what = strrchr(case_path, '/') + 1;
    if (tensor_file_find(f, "wave_16k")) {
        check_values(what, f, "wave_16k", false, y16, (size_t)count16, WAVE_BOUND, 0);
        check_values(what, f, "wave_24k", false, y24, (size_t)count24, WAVE_BOUND, 0);
    }
    assert_ok(features_token_mel(&plan, y16, count16, &table));
    check_table(what, f, "token_mel", true, &table);
    assert_ok(features_fbank(&plan, y16, count16, &table));
    check_table(what, f, "fbank", false, &table);
    assert_ok(features_prompt_mel(&plan, y24, count24, &table));
    check_table(what, f, "prompt_feat", false, &table);
    mem_free(y16);
    mem_free(y24);
    tensor_file_close(f);
    recording_done(&r);
}

static void check_shared(const char *wav, const char *name)
{
    char wav_path[4096], case_path[4096];
    snprintf(wav_path, sizeof wav_path, "%s", test_shared(wav));
    snprintf(case_path, sizeof case_path, "golden/voice/%s.safetensors", name);
    check_recording(wav_path, test_shared(case_path));
}

static void check_golden(const char *name)
{
    char wav_path[4096], case_path[4096];
    snprintf(case_path, sizeof case_path, "tests/golden/voice/%s.wav", name);
    snprintf(wav_path, sizeof wav_path, "%s", test_path(case_path));
    snprintf(case_path, sizeof case_path, "tests/golden/voice/%s.safetensors", name);
    check_recording(wav_path, test_path(case_path));
}

static void test_u8_16k(void **state)
{
    (void)state;
    check_golden("u8-16k-mono");
}

static void test_s16_22k_stereo(void **state)
{
    (void)state;
    check_golden("s16-22k-stereo");
}

static void test_s24_48k(void **state)
{
    (void)state;
    check_golden("s24-48k-mono");
}

static void test_s16_16k(void **state)
{
    (void)state;
    check_shared("golden/voice/s16-16k-mono.wav", "s16-16k-mono");
}

static void test_s16_24k(void **state)
{
    (void)state;
    check_shared("golden/voice/s16-24k-mono.wav", "s16-24k-mono");
}

static void test_s32_32k(void **state)
{
    (void)state;
    check_shared("golden/voice/s32-32k-mono.wav", "s32-32k-mono");
}

static void test_f32_44k_stereo(void **state)
{
    (void)state;
    check_shared("golden/voice/f32-44k-stereo.wav", "f32-44k-stereo");
}

static void test_f64_96k(void **state)
{
    (void)state;
    check_shared("golden/voice/f64-96k-mono.wav", "f64-96k-mono");
}

/* Real speech: upstream's own prompt. */
static void test_zero_shot_prompt(void **state)
{
    (void)state;
    check_shared("data/real/zero_shot_prompt.wav", "zero_shot_prompt");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_u8_16k),           cmocka_unit_test(test_s16_22k_stereo),
        cmocka_unit_test(test_s24_48k),          cmocka_unit_test(test_s16_16k),
        cmocka_unit_test(test_s16_24k),          cmocka_unit_test(test_s32_32k),
        cmocka_unit_test(test_f32_44k_stereo),   cmocka_unit_test(test_f64_96k),
        cmocka_unit_test(test_zero_shot_prompt),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_plan, close_plan);
}
