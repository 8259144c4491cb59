/*
 * vmath.h - exp, sin and tanh as straight-line code, in f32 and in f64, that the compiler vectorises. No branch
 * depends on a value, and nothing is fused but what says so, so a vector lane, a tail and any instruction set give the
 * same bytes.
 *
 * Errors against f64, over all finite arguments unless said (tests/ops checks them): exp 1.5 ulp (results below
 * 2^-126 may lose bits), tanh 2 ulp, gelu 3e-7 |x|, sin^2 for |x| <= VSIN2_MAX 2e-7, and of itself below 0.7.
 * In f64 1e-13 of the result: dexp, which stays where it is beyond -708 and 709, dtanh, dsin for |x| <= DSIN_MAX,
 * dsin_one and dcos_one for |x| <= 1. NaN gives NaN.
 */
#ifndef CF_COMPUTE_CPU_VMATH_H
#define CF_COMPUTE_CPU_VMATH_H

#include <stdbool.h>
#include <stdint.h>

static inline float bits_f32(int32_t bits)
{
    union {
        int32_t i;
        float f;
    } v = {bits};
    return v.f;
}

static inline int32_t f32_bits(float x)
{
    union {
        float f;
        int32_t i;
    } v = {x};
    return v.i;
}

static inline int64_t f64_bits(double x)
{
    union {
        double f;
        int64_t i;
    } v = {x};
    return v.i;
}

static inline double bits_f64(int64_t bits)
{
    union {
        int64_t i;
        double f;
    } v = {bits};
    return v.f;
}

/* a b + c, rounded once. Where no instruction does that the sum is made in f64, in which the product is exact, with its
 * last bit odd when something was lost: so the second rounding goes the right way (Boldo and Melquiond, Emulation of
 * FMA and correctly rounded sums: proved algorithms using rounding to odd, 2008). */
static inline float vfma(float a, float b, float c)
{
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    const double product = (double)a * (double)b, addend = (double)c, sum = product + addend;
    const double part = sum - product, lost = (product - (sum - part)) + (addend - part);
    const uint64_t bits = (uint64_t)f64_bits(sum), toward = (lost > 0.0) == (sum > 0.0) ? 1 : ~(uint64_t)0;
    const bool wrong = lost != 0.0 && lost - lost == 0.0 && (bits & 1) == 0;
    return (float)bits_f64((int64_t)(wrong ? bits + toward : bits));
#endif
}

/* 2^exponent for -126..127; any bits for others, which only NaN arguments reach. */
static inline float power_of_two(int32_t exponent)
{
    return bits_f32((int32_t)(((uint32_t)exponent + 127u) << 23));
}

/* exp(x) = 2^n exp(r), |r| <= ln2/2. 2^n is applied in two factors so that denormal results and n = 128 work. */
static inline float vexp(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    x = x > 89.0f ? 89.0f : x;       /* written so that NaN passes */
    x = x < -104.0f ? -104.0f : x;
    const float shifted = vfma(x, 1.44269504f, magic);
    const float n = shifted - magic;
    const int32_t ni = (int32_t)((uint32_t)f32_bits(shifted) - (uint32_t)f32_bits(magic));
    const float r = vfma(n, -1.42860677e-6f, vfma(n, -0.693145752f, x)); /* ln2 in two parts */
    float p = 0.00019899277f; /* (exp(r) - 1 - r) / r^2, fitted at Chebyshev nodes */
    p = vfma(p, r, 0.00139336439f);
    p = vfma(p, r, 0.00833329838f);
    p = vfma(p, r, 0.0416664667f);
    p = vfma(p, r, 0.166666672f);
    p = vfma(p, r, 0.5f);
    const float y = 1.0f + vfma(p, r * r, r);
    const int32_t half = ni >> 1;
    return y * power_of_two(half) * power_of_two(ni - half);
}

/* Larger arguments are for libm (loop_snake in vec_loops.h): to here pi/2 in two parts is good enough. */
#define VSIN2_MAX 8192.0f

/* sin(x)^2: the fourth of a turn it lies in is odd or even, and the square of the rest or one less it. */
static inline float vsin2(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23 */
    const float shifted = vfma(x, 0.636619772f, magic);
    const float n = shifted - magic;
    const float r = vfma(n, 4.37113883e-8f, vfma(n, -1.57079637f, x));
    const float z = r * r;
    float p = 0.000135915456f; /* (sin(r)^2 - z) / z^2, fitted at Chebyshev nodes */
    p = vfma(p, z, -0.00317261857f);
    p = vfma(p, z, 0.0444441997f);
    p = vfma(p, z, -0.333333343f);
    p = vfma(p, z * z, z);
    return (f32_bits(shifted) & 1) ? 1.0f - p : p;
}

static inline float vtanh(float x)
{
    const float z = x * x;
    float p = -5.70498872e-3f;
    p = p * z + 2.06390887e-2f;
    p = p * z - 5.37397155e-2f;
    p = p * z + 1.33314422e-1f;
    p = p * z - 3.33332819e-1f;
    const float small = p * z * x + x;
    const float magnitude = x < 0.0f ? -x : x;
    const float large = 1.0f - 2.0f / (vexp(2.0f * magnitude) + 1.0f);
    const float signed_large = x < 0.0f ? -large : large;
    return magnitude < 0.625f ? small : signed_large;
}

static inline float vsilu(float x)
{
    return x / (1.0f + vexp(-x));
}

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)), without the cancellation of the first form. */
static inline float vgelu_tanh(float x)
{
    const float u = 0.797884561f * (x + 0.044715f * x * x * x);
    return x / (1.0f + vexp(-2.0f * u));
}

/* x Phi(x). The tail Phi(-|x|) is exp(-x^2 / 2) t p(t) with t = 1 / (1 + 0.22 |x|), p fitted at Chebyshev nodes. */
static inline float vgelu(float x)
{
    const float magnitude = x < 0.0f ? -x : x;
    const float t = 1.0f / (1.0f + 0.22f * magnitude);
    float p = -0.112264358f;
    p = p * t + 0.50494808f;
    p = p * t - 0.676718056f;
    p = p * t + 0.699865401f;
    p = p * t - 0.269111633f;
    p = p * t + 0.197187409f;
    p = p * t + 0.0666247383f;
    p = p * t + 0.089468427f;
    const float tail = p * t * vexp(-0.5f * (magnitude * magnitude));
    const float part = x * (magnitude > 14.0f ? 0.0f : tail); /* smaller than any f32; NaN passes */
    return x > 14.0f ? x : x < 0.0f ? part : x - part;
}

static inline float vsigmoid(float x)
{
    return 1.0f / (1.0f + vexp(-x));
}

/* The f64 functions are for results that are rounded to f32 once. What a device has to repeat to the bit is ras_exp's
 * (ras_rule.h). */

/* 2^n and e^r - 1, x = n ln2 + r, |r| <= ln2/2, for -708 <= x <= 709; NaN gives NaN. */
static inline double dexp_parts(double x, double *ret_power)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    const double shifted = x * 1.4426950408889634 + magic;
    const double n = shifted - magic;
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10; /* ln2 in two parts */
    double p = 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    const uint64_t exponent = (uint64_t)f64_bits(shifted) - (uint64_t)f64_bits(magic) + 1023;
    *ret_power = bits_f64((int64_t)(exponent << 52));
    return r + p * (r * r);
}

static inline double dexp(double x)
{
    x = x > 709.0 ? 709.0 : x; /* written so that NaN passes */
    x = x < -708.0 ? -708.0 : x;
    double power;
    const double rest = dexp_parts(x, &power);
    return power + power * rest;
}

/* w / (w + 2), w = e^(2x) - 1; from x = 20 on it is 1. */
static inline double dtanh(double x)
{
    x = x > 20.0 ? 20.0 : x;
    x = x < -20.0 ? -20.0 : x;
    double power;
    const double rest = dexp_parts(2.0 * x, &power);
    const double w = (power - 1.0) + power * rest;
    return w / (w + 2.0);
}

/* For |x| <= 1. */
static inline double dsin_one(double x)
{
    const double z = x * x;
    double p = -1.0 / 1307674368000.0;
    p = p * z + 1.0 / 6227020800.0;
    p = p * z - 1.0 / 39916800.0;
    p = p * z + 1.0 / 362880.0;
    p = p * z - 1.0 / 5040.0;
    p = p * z + 1.0 / 120.0;
    p = p * z - 1.0 / 6.0;
    return p * z * x + x;
}

static inline double dcos_one(double x)
{
    const double z = x * x;
    double p = 1.0 / 20922789888000.0;
    p = p * z - 1.0 / 87178291200.0;
    p = p * z + 1.0 / 479001600.0;
    p = p * z - 1.0 / 3628800.0;
    p = p * z + 1.0 / 40320.0;
    p = p * z - 1.0 / 720.0;
    p = p * z + 1.0 / 24.0;
    p = p * z - 0.5;
    return p * z + 1.0;
}

/* Larger arguments are for libm (loop_polar): to here n times the first part of pi/2 is exact. */
#define DSIN_MAX 1048576.0

static inline double dsin(double x)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    const double turns = x * 0.63661977236758134 + magic;
    const double n = turns - magic;
    const double r = (x - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11; /* pi/2 in two parts */
    const uint64_t quadrant = (uint64_t)f64_bits(turns);
    const double y = (quadrant & 1) ? dcos_one(r) : dsin_one(r);
    return bits_f64((int64_t)((uint64_t)f64_bits(y) ^ (quadrant & 2u) << 62));
}

/* tanh(log1p(w)) = (w^2 + 2w) / (w^2 + 2w + 2), w = exp(x); from x = 20 on it is 1 in f32. */
static inline float vmish(float x)
{
    const float w = vexp(x);
    const float q = w * (w + 2.0f);
    const float y = x * (q / (q + 2.0f));
    return x > 20.0f ? x : y;
}

#endif
