/*
 * resample.c - windowed-sinc resampling by a ratio of integers. One thread; owns nothing between calls.
 *
 * With both rates divided by their greatest divisor, `in` samples become `out`. Output b * out + j is the sum of taps
 * K[j][k] over x[b * in + k - width]: one filter per phase j. Upstream's filters have 2 * width + in taps, of which
 * all but about 2 * width are zero; only the others are kept, so any ratio is cheap.
 *
 * Sums run in f32, tap after tap, fused: what upstream's convolution does on a processor with FMA. On the reference
 * recordings that gives upstream's samples bit for bit; sums in f64 are up to 1e-7 off, and a quiet band hears that.
 *
 * Fails: CF_ERR_NOMEM. Asserts on rates that are not positive.
 * Source: torchaudio 2.3.1 functional/functional.py _get_sinc_resample_kernel, _apply_sinc_resample_kernel.
 */
#define _GNU_SOURCE /* M_PI */
#include "enroll/resample.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"

#define ZERO_CROSSINGS 6
#define ROLL_OFF       0.99

typedef struct phase {
    int64_t first_tap; /* of upstream's filter */
    int64_t taps;
    const float *tap; /* [taps], in the shared array */
} phase;

typedef struct filter_bank {
    int64_t in, out, width, taps_max;
    phase *phases; /* [out], owned */
    float *taps;   /* [out * taps_max], owned */
} filter_bank;

static int64_t greatest_divisor(int64_t a, int64_t b)
{
    while (b != 0) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Tap k of phase j. The phase is rounded to f32 because upstream's grid of phases is f32. */
static float tap_value(const filter_bank *f, int64_t j, int64_t k)
{
    const double base = (double)(f->in < f->out ? f->in : f->out) * ROLL_OFF;
    const double shift = (double)(-(float)j / (float)f->out);
    double t = (shift + (double)(k - f->width) / (double)f->in) * base;
    t = t < -ZERO_CROSSINGS ? -ZERO_CROSSINGS : t > ZERO_CROSSINGS ? ZERO_CROSSINGS : t;
    const double hann = cos(M_PI * t / (2 * ZERO_CROSSINGS));
    const double sinc = t == 0.0 ? 1.0 : sin(M_PI * t) / (M_PI * t);
    return (float)(sinc * hann * hann * (base / (double)f->in));
}

static void fill_phase(const filter_bank *f, int64_t j)
{
    const double base = (double)(f->in < f->out ? f->in : f->out) * ROLL_OFF;
    const double middle = (double)f->width + (double)j / (double)f->out * (double)f->in;
    const double reach = ZERO_CROSSINGS * (double)f->in / base;
    const int64_t end = 2 * f->width + f->in;
    int64_t first = (int64_t)floor(middle - reach), last = (int64_t)ceil(middle + reach);
    float *taps = f->taps + j * f->taps_max;

    first = first < 0 ? 0 : first;
    last = last >= end ? end - 1 : last;
    CF_ASSERT(last - first + 1 <= f->taps_max);
    for (int64_t k = first; k <= last; k++)
        taps[k - first] = tap_value(f, j, k);
    f->phases[j] = (phase){.first_tap = first, .taps = last - first + 1, .tap = taps};
}

static cf_err filter_bank_init(int32_t from_hz, int32_t to_hz, filter_bank *ret_bank)
{
    cf_err err;
    const int64_t divisor = greatest_divisor(from_hz, to_hz);
    filter_bank f = {.in = from_hz / divisor, .out = to_hz / divisor};
    const double base = (double)(f.in < f.out ? f.in : f.out) * ROLL_OFF;

    f.width = (int64_t)ceil(ZERO_CROSSINGS * (double)f.in / base);
    f.taps_max = 2 * f.width + 3;
    TRY(mem_alloc((size_t)f.out, sizeof *f.phases, &f.phases));
    TRY(mem_alloc((size_t)(f.out * f.taps_max), sizeof *f.taps, &f.taps));
    for (int64_t j = 0; j < f.out; j++)
        fill_phase(&f, j);
    *ret_bank = f;
    f = (filter_bank){0};
out:
    mem_free(f.phases);
    mem_free(f.taps);
    return err;
}

/* Outputs [0, count) of x. Inlined twice: with fmaf as an instruction, and as a call of libm's, which gives the same
 * bytes at a tenth of the speed. */
static inline __attribute__((always_inline)) void filter_all(const filter_bank *f, const float *x, int64_t x_count,
                                                             int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i++) {
        const phase *p = &f->phases[i % f->out];
        const int64_t at = i / f->out * f->in + p->first_tap - f->width;
        const int64_t first = at < 0 ? -at : 0, end = at + p->taps > x_count ? x_count - at : p->taps;
        float sum = 0.0f;
        for (int64_t k = first; k < end; k++)
            sum = fmaf(p->tap[k], x[at + k], sum);
        y[i] = sum;
    }
}

static void filter_any(const filter_bank *f, const float *x, int64_t x_count, int64_t count, float *y)
{
    filter_all(f, x, x_count, count, y);
}

#if defined(__x86_64__)
__attribute__((target("fma"))) static void filter_fma(const filter_bank *f, const float *x, int64_t x_count,
                                                      int64_t count, float *y)
{
    filter_all(f, x, x_count, count, y);
}

static void filter(const filter_bank *f, const float *x, int64_t x_count, int64_t count, float *y)
{
    (__builtin_cpu_supports("fma") ? filter_fma : filter_any)(f, x, x_count, count, y);
}
#else
static void filter(const filter_bank *f, const float *x, int64_t x_count, int64_t count, float *y)
{
    filter_any(f, x, x_count, count, y);
}
#endif

cf_err resample(const float *x, int64_t count, int32_t from_hz, int32_t to_hz, float **ret_y, int64_t *ret_count)
{
    cf_err err;
    filter_bank f = {0};
    float *y = NULL;

    CF_ASSERT(from_hz > 0 && to_hz > 0);
    CF_ASSERT(count >= 0);
    if (from_hz == to_hz) {
        TRY(mem_alloc((size_t)count, sizeof *y, &y));
        if (count > 0)
            memcpy(y, x, (size_t)count * sizeof *y);
        *ret_count = count;
    } else {
        TRY(filter_bank_init(from_hz, to_hz, &f));
        /* Rounded to f32 before the ceiling, as upstream does: long inputs may lose their last sample by it. */
        const int64_t wanted = (int64_t)ceilf((float)((double)(f.out * count) / (double)f.in));
        const int64_t filtered = f.out * (count / f.in + 1), produced = wanted < filtered ? wanted : filtered;
        TRY(mem_alloc((size_t)produced, sizeof *y, &y));
        filter(&f, x, count, produced, y);
        *ret_count = produced;
    }
    *ret_y = y;
    y = NULL;
out:
    mem_free(f.phases);
    mem_free(f.taps);
    mem_free(y);
    return err;
}
