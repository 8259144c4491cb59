/* test_fft1920.c - the f32 transform of the prompt's mel: the bits of upstream's, near f64, frames independent
 * of each other. */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/sha256.h"
#include "common/compute/backend.h"
#include "enroll/dft.h"
#include "enroll/fft1920.h"

#define FRAMES 8

/* 24 bits of a linear congruential generator in -1 .. 1, as f32 holds them. */
static void fill(double *frames)
{
    uint32_t state = 1;
    for (int i = 0; i < FRAMES * FFT1920_POINTS; i++) {
        state = state * 1664525u + 1013904223u;
        frames[i] = (double)(float)((double)(state >> 8) / 16777216.0 * 2.0 - 1.0);
    }
}

typedef struct fixture {
    double *frames, *power;
    fft1920 *fft;
} fixture;

static fixture open_fixture(void)
{
    fixture f;
    assert_ok(mem_alloc(FRAMES * FFT1920_POINTS, sizeof *f.frames, &f.frames));
    assert_ok(mem_alloc(FRAMES * FFT1920_BINS, sizeof *f.power, &f.power));
    assert_ok(fft1920_open(&f.fft));
    fill(f.frames);
    fft1920_power(f.fft, f.frames, FRAMES, f.power);
    return f;
}

static void close_fixture(fixture *f)
{
    fft1920_close(f->fft);
    mem_free(f->frames);
    mem_free(f->power);
}

/* SHA-256 of re * re + im * im in f64 of what torch.fft.rfft gives for these frames: PyTorch 2.3.1, oneMKL 2022.2 with
 * AVX-512. One rounding in another place of any frame changes it. */
static void test_bits_of_upstream(void **state)
{
    (void)state;
    fixture f = open_fixture();
    char hex[SHA256_HEX_BYTES];
    assert_ok(sha256_of(f.power, FRAMES * FFT1920_BINS * sizeof *f.power, hex));
    assert_string_equal(hex, "082bc8e5856ab7b5d796b87544246dc3018910b1c81d991c3c5c141eb4105cd2");
    close_fixture(&f);
}

static void test_near_f64(void **state)
{
    (void)state;
    fixture f = open_fixture();
    double *exact;
    backend *be;
    dft d;
    const backend_config cfg = {.device = "cpu", .threads = 1, .scratch_bytes = 32u << 20};
    assert_ok(backend_open(&cfg, &be));
    assert_ok(dft_init(be, FFT1920_POINTS, &d));
    assert_ok(mem_alloc(FRAMES * FFT1920_BINS, sizeof *exact, &exact));
    assert_ok(dft_power(&d, f.frames, FRAMES, exact));
    for (int i = 0; i < FRAMES * FFT1920_BINS; i++) /* a frame has the norm 25: 4e-5 is six times the noise */
        if (!(fabs(sqrt(f.power[i]) - sqrt(exact[i])) <= 4e-5))
            fail_msg("bin %d of frame %d: %g, expected %g", i % FFT1920_BINS, i / FFT1920_BINS, f.power[i], exact[i]);
    mem_free(exact);
    dft_done(&d);
    backend_close(be);
    close_fixture(&f);
}

static void test_a_frame_alone(void **state)
{
    (void)state;
    fixture f = open_fixture();
    double alone[FFT1920_BINS];
    fft1920_power(f.fft, f.frames + 5 * FFT1920_POINTS, 1, alone);
    assert_memory_equal(alone, f.power + 5 * FFT1920_BINS, sizeof alone);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_of_upstream),
        cmocka_unit_test(test_near_f64),
        cmocka_unit_test(test_a_frame_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
