/*
 * fft1920.c - the transform of fft1920.h. The caller's thread; owns its tables.
 *
 *   z[n] = x[2n] + i x[2n + 1]                                  960 complex points, n = 192 j + 16 m + b
 *   Y[k1][m][b]      = sum_j z W5^(j k1)                        k1 < 5
 *   V[k1 + 5 k2][b]  = sum_m Y W60^(m k1) W12^(m k2)            k2 < 12
 *   Z[k + 60 q]      = sum_b V W960^(b k) W16^(b q)             k < 60, q < 16
 *   X[k], X[960 - k] = from Z[k], Z[960 - k]
 *
 * Roots of unity are those of the angle t / n rounded to f32. Each step is rounded to f32 where it is written so; fmaf
 * is one rounding. -ffp-contract=off (Makefile) keeps the compiler from others.
 *
 * Fails: CF_ERR_NOMEM.
 * Source: found by experiment, from outputs alone: inputs with few values set show the roots and each butterfly; order
 * and fusion of the sums were varied until every bit of 261 frames agreed. test_fft1920 holds what torch gave.
 */
#define _GNU_SOURCE /* M_PI */
#include "enroll/fft1920.h"

#include <math.h>

#include "common/base/mem.h"

#define COMPLEX_POINTS (FFT1920_POINTS / 2)
#define FIFTH          (COMPLEX_POINTS / 5)
#define LEAF           16
#define LEAVES         (COMPLEX_POINTS / LEAF)

#define INLINE static inline __attribute__((always_inline))

typedef struct c32 {
    float re, im;
} c32;

struct fft1920 {
    c32 inner[5][12];            /* W60^(m k1) */
    c32 outer[LEAVES][LEAF];     /* W960^(b k) */
    c32 split[FFT1920_BINS / 2]; /* -i/2 W1920^k */
};

/* e^(-2 pi i t / n) */
static c32 root(int t, int n)
{
    const double turns = (double)((float)t / (float)n), quarters = 4.0 * turns;
    if (quarters == floor(quarters)) {
        static const c32 exact[4] = {{1.0f, 0.0f}, {0.0f, -1.0f}, {-1.0f, 0.0f}, {0.0f, 1.0f}};
        return exact[(int)quarters % 4];
    }
    return (c32){(float)cos(2.0 * M_PI * turns), (float)-sin(2.0 * M_PI * turns)};
}

cf_err fft1920_open(fft1920 **ret_fft)
{
    cf_err err;
    fft1920 *f = NULL;
    TRY(mem_alloc(1, sizeof *f, &f));
    for (int k = 0; k < 5; k++)
        for (int m = 0; m < 12; m++)
            f->inner[k][m] = root(k * m, 60);
    for (int k = 0; k < LEAVES; k++)
        for (int b = 0; b < LEAF; b++)
            f->outer[k][b] = root(k * b, COMPLEX_POINTS);
    for (int k = 0; k < FFT1920_BINS / 2; k++) {
        const c32 w = root(k, FFT1920_POINTS);
        f->split[k] = (c32){0.5f * w.im, -0.5f * w.re};
    }
    *ret_fft = f;
out:
    return err;
}

void fft1920_close(fft1920 *f)
{
    mem_free(f);
}

INLINE c32 add(c32 a, c32 b)
{
    return (c32){a.re + b.re, a.im + b.im};
}

INLINE c32 sub(c32 a, c32 b)
{
    return (c32){a.re - b.re, a.im - b.im};
}

INLINE c32 scale(float x, c32 a)
{
    return (c32){x * a.re, x * a.im};
}

/* x a + b, one rounding. */
INLINE c32 scale_add(float x, c32 a, c32 b)
{
    return (c32){fmaf(x, a.re, b.re), fmaf(x, a.im, b.im)};
}

/* -i a */
INLINE c32 turn(c32 a)
{
    return (c32){a.im, -a.re};
}

INLINE c32 mul(c32 a, c32 w)
{
    return (c32){fmaf(a.re, w.re, -(a.im * w.im)), fmaf(a.im, w.re, a.re * w.im)};
}

INLINE void dft3(c32 a0, c32 a1, c32 a2, c32 y[3])
{
    const c32 sum = add(a1, a2), middle = sub(a0, scale(0.5f, sum));
    const c32 side = scale((float)0.86602540378443865, turn(sub(a1, a2)));
    y[0] = add(a0, sum);
    y[1] = add(middle, side);
    y[2] = sub(middle, side);
}

INLINE void dft4(c32 a0, c32 a1, c32 a2, c32 a3, c32 y[4])
{
    const c32 s0 = add(a0, a2), d0 = sub(a0, a2), s1 = add(a1, a3), d1 = turn(sub(a1, a3));
    y[0] = add(s0, s1);
    y[1] = add(d0, d1);
    y[2] = sub(s0, s1);
    y[3] = sub(d0, d1);
}

/* sines and cosines of 72 and 144 degrees, as they enter: a / 4 of sqrt(5), s1, s1 + s2, s2 - s1 */
INLINE void dft5(const c32 a[5], c32 y[5])
{
    const float root5 = (float)0.55901699437494742, s1 = (float)0.95105651629515357;
    const float s1_plus_s2 = (float)1.5388417685876267, s2_minus_s1 = (float)-0.36327126400268045;
    const c32 t1 = add(a[1], a[4]), t2 = add(a[2], a[3]), t3 = sub(a[1], a[4]), t4 = sub(a[2], a[3]);
    const c32 sum = add(t1, t2), difference = sub(t1, t2), turned = sub(t3, t4);
    y[0] = add(a[0], sum);
    const c32 base = scale_add(-1.25f, sum, y[0]);
    const c32 m1 = scale_add(root5, difference, base), m2 = scale_add(-root5, difference, base);
    const c32 n1 = turn(scale_add(s1, turned, scale(s1_plus_s2, t4)));
    const c32 n2 = turn(scale_add(s1, turned, scale(s2_minus_s1, t3)));
    y[1] = add(m1, n1);
    y[2] = add(m2, n2);
    y[3] = sub(m2, n2);
    y[4] = sub(m1, n1);
}

/* Six values that lie two apart, without roots inside: 2 and 3 have no common divisor. */
INLINE void dft6(const c32 *a, c32 y[6])
{
    c32 even[3], odd[3];
    const c32 d1 = sub(a[8], a[2]); /* with its sign turned */
    dft3(add(a[0], a[6]), add(a[2], a[8]), add(a[4], a[10]), even);
    dft3(sub(a[0], a[6]), d1, sub(a[4], a[10]), odd);
    for (int k = 0; k < 3; k++)
        y[2 * k] = even[k];
    y[3] = odd[0];
    y[5] = odd[1];
    y[1] = odd[2];
}

INLINE void dft12(const c32 a[12], c32 y[12])
{
    const float half = 0.5f, long_leg = (float)0.86602540378443865;
    const c32 w[6] = {{1.0f, 0.0f},  {long_leg, -half},  {half, -long_leg},
                      {0.0f, -1.0f}, {-half, -long_leg}, {-long_leg, -half}};
    c32 even[6], odd[6];
    dft6(a, even);
    dft6(a + 1, odd);
    for (int k = 0; k < 6; k++) {
        const c32 t = k == 0 ? odd[k] : k == 3 ? turn(odd[k]) : mul(odd[k], w[k]);
        y[k] = add(even[k], t);
        y[k + 6] = sub(even[k], t);
    }
}

/* As four by four; in two of the four rows the root of 45 degrees is fused with the sum behind it. */
INLINE void dft16(const c32 a[LEAF], c32 y[LEAF])
{
    const float eighth = (float)0.70710678118654752, c = (float)0.92387953251128674, s = (float)0.38268343236508977;
    c32 x[4][4], r[4];
    for (int j = 0; j < 4; j++)
        dft4(a[j], a[4 + j], a[8 + j], a[12 + j], x[j]);
    for (int k = 0; k < 4; k++) {
        if (k == 0) {
            dft4(x[0][0], x[1][0], x[2][0], x[3][0], r);
        } else if (k == 2) {
            const c32 b1 = mul(x[1][2], (c32){eighth, -eighth}), b3 = mul(x[3][2], (c32){-eighth, -eighth});
            dft4(x[0][2], b1, turn(x[2][2]), b3, r);
        } else {
            const c32 b1 = mul(x[1][k], k == 1 ? (c32){c, -s} : (c32){s, -c});
            const c32 b3 = mul(x[3][k], k == 1 ? (c32){s, -c} : (c32){-c, s});
            const c32 v = x[2][k];
            const c32 t = k == 1 ? (c32){v.re + v.im, v.im - v.re} : (c32){v.im - v.re, -(v.im + v.re)};
            const c32 s0 = scale_add(eighth, t, x[0][k]), d0 = scale_add(-eighth, t, x[0][k]);
            const c32 s1 = add(b1, b3), d1 = turn(sub(b1, b3));
            r[0] = add(s0, s1);
            r[1] = add(d0, d1);
            r[2] = sub(s0, s1);
            r[3] = sub(d0, d1);
        }
        for (int q = 0; q < 4; q++)
            y[k + 4 * q] = r[q];
    }
}

/* z: [960], overwritten -> out: [960] */
INLINE void transform(const fft1920 *f, c32 *z, c32 *out)
{
    c32 rows[LEAVES][LEAF];
    for (int n = 0; n < FIFTH; n++) {
        c32 a[5], y[5];
        for (int j = 0; j < 5; j++)
            a[j] = z[FIFTH * j + n];
        dft5(a, y);
        for (int k = 0; k < 5; k++)
            z[FIFTH * k + n] = k == 0 || n < LEAF ? y[k] : mul(y[k], f->inner[k][n / LEAF]);
    }
    for (int k = 0; k < 5; k++)
        for (int b = 0; b < LEAF; b++) {
            c32 a[12], y[12];
            for (int m = 0; m < 12; m++)
                a[m] = z[FIFTH * k + LEAF * m + b];
            dft12(a, y);
            for (int k2 = 0; k2 < 12; k2++)
                rows[k + 5 * k2][b] = k + k2 == 0 || b == 0 ? y[k2] : mul(y[k2], f->outer[k + 5 * k2][b]);
        }
    for (int k = 0; k < LEAVES; k++) {
        c32 y[LEAF];
        dft16(rows[k], y);
        for (int q = 0; q < LEAF; q++)
            out[k + LEAVES * q] = y[q];
    }
}

INLINE double square(float re, float im)
{
    return (double)re * (double)re + (double)im * (double)im;
}

/* Spectrum of the real frame from that of its pairs. */
INLINE void split_power(const fft1920 *f, const c32 *z, double *power)
{
    const int half = COMPLEX_POINTS / 2;
    power[0] = square(z[0].re + z[0].im, 0.0f);
    power[COMPLEX_POINTS] = square(z[0].re - z[0].im, 0.0f);
    power[half] = square(z[half].re, z[half].im);
    for (int k = 1; k < half; k++) {
        const c32 a = z[k], b = {z[COMPLEX_POINTS - k].re, -z[COMPLEX_POINTS - k].im}, w = f->split[k];
        const c32 s = scale(0.5f, add(a, b)), d = sub(a, b);
        power[k] = square(fmaf(-d.im, w.im, fmaf(d.re, w.re, s.re)), fmaf(d.re, w.im, fmaf(d.im, w.re, s.im)));
        power[COMPLEX_POINTS - k] =
            square(fmaf(-d.re, w.re, fmaf(d.im, w.im, s.re)), fmaf(-d.im, w.re, fmaf(-d.re, w.im, s.im)));
    }
}

INLINE void power_all(const fft1920 *f, const double *frames, int64_t frame_count, double *power)
{
    c32 z[COMPLEX_POINTS], out[COMPLEX_POINTS];
    for (int64_t t = 0; t < frame_count; t++) {
        const double *frame = frames + t * FFT1920_POINTS;
        for (int n = 0; n < COMPLEX_POINTS; n++)
            z[n] = (c32){(float)frame[2 * n], (float)frame[2 * n + 1]};
        transform(f, z, out);
        split_power(f, out, power + t * FFT1920_BINS);
    }
}

/* With fmaf as an instruction, and as a call of libm's, which gives the same bytes much more slowly. */
static void power_any(const fft1920 *f, const double *frames, int64_t frame_count, double *power)
{
    power_all(f, frames, frame_count, power);
}

#if defined(__x86_64__)
__attribute__((target("fma"))) static void power_fma(const fft1920 *f, const double *frames, int64_t frame_count,
                                                     double *power)
{
    power_all(f, frames, frame_count, power);
}

void fft1920_power(const fft1920 *f, const double *frames, int64_t frame_count, double *power)
{
    (__builtin_cpu_supports("fma") ? power_fma : power_any)(f, frames, frame_count, power);
}
#else
void fft1920_power(const fft1920 *f, const double *frames, int64_t frame_count, double *power)
{
    power_any(f, frames, frame_count, power);
}
#endif
