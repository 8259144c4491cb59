/*
 * noise.c - torch's CPU normal distribution for tensors of at least 16 elements, reproduced bit for bit.
 *
 * Runs once, in stage open, on the compute thread; owns nothing. The whole buffer is filled with uniforms first, then
 * blocks of 16 are turned into normals by Box-Muller with the polynomials of torch's AVX2 kernel. fmaf stands exactly
 * where the released wheel fuses; the build forbids any other contraction.
 *
 * Fails: never.
 * Source: torch 2.3.1 aten/src/ATen/native/cpu/DistributionTemplates.h normal_fill_AVX2, avx_mathfun.h; flow.md 4.2.
 */
#include "flow_worker/noise.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/rng.h"

#define NOISE_SEED  0u
#define NOISE_BLOCK 16

/* Inlined into both variants below, so that fmaf becomes an instruction in one and a call in the other. */
#define NOISE_INLINE static inline __attribute__((always_inline))

NOISE_INLINE float noise_log(float x)
{
    static const float coef[] = {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                                 -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    float e = (float)((int32_t)(bits >> 23) - 127) + 1.0f;
    bits = (bits & 0x007FFFFFu) | 0x3F000000u;
    float m; /* in [0.5, 1) */
    memcpy(&m, &bits, sizeof m);
    float y0 = m - 1.0f;
    if (m < 0.707106781186547524f) {
        e -= 1.0f;
        y0 += m;
    }
    const float z = y0 * y0;
    float y = 7.0376836292e-2f;
    for (size_t i = 0; i < CF_COUNT(coef); i++)
        y = fmaf(y, y0, coef[i]);
    y = y * y0;
    y = fmaf(y, z, e * -2.12194440e-4f);
    y = fmaf(z, -0.5f, y);
    return fmaf(e, 0.693359375f, y0 + y);
}

NOISE_INLINE void noise_sincos(float a, float *ret_sin, float *ret_cos)
{
    const int32_t j = ((int32_t)(a * 1.27323954473516f) + 1) & ~1;
    const float f = (float)j;
    a = fmaf(f, -0.78515625f, a);
    a = fmaf(f, -2.4187564849853515625e-4f, a);
    a = fmaf(f, -3.77489497744594108e-8f, a);
    const float z = a * a;
    float c = fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f);
    c = fmaf(c, z, 4.166664568298827e-2f);
    c = c * z;
    c = fmaf(c, z, -(z * 0.5f));
    c = c + 1.0f;
    float s = fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f);
    s = fmaf(s, z, -1.6666654611e-1f);
    s = s * z;
    s = fmaf(s, a, a);
    const bool swap = (j & 2) != 0;
    const float sin_abs = swap ? c : s, cos_abs = swap ? s : c;
    *ret_sin = (j & 4) ? -sin_abs : sin_abs;
    *ret_cos = ((j - 2) & 4) ? cos_abs : -cos_abs;
}

/* Box-Muller on one block: values: [16] uniform in, normal out. */
NOISE_INLINE void noise_block(float *values)
{
    for (int j = 0; j < NOISE_BLOCK / 2; j++) {
        const float u1 = 1.0f - values[j]; /* (0, 1]: the logarithm stays finite */
        const float theta = 6.28318530717958647692f * values[j + NOISE_BLOCK / 2];
        const float radius = sqrtf(-2.0f * noise_log(u1));
        float s, c;
        noise_sincos(theta, &s, &c);
        values[j] = radius * c;
        values[j + NOISE_BLOCK / 2] = radius * s;
    }
}

static void noise_normal_plain(float *values)
{
    for (size_t i = 0; i < NOISE_VALUES; i += NOISE_BLOCK)
        noise_block(values + i);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"), optimize("O3"))) static void noise_normal_fma(float *values)
{
    for (size_t i = 0; i < NOISE_VALUES; i += NOISE_BLOCK)
        noise_block(values + i);
}

static bool noise_has_fma(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#else
/* Elsewhere fmaf is an instruction of the base set, or libm's. */
static void noise_normal_fma(float *values)
{
    noise_normal_plain(values);
}

static bool noise_has_fma(void)
{
    return true;
}
#endif

static void noise_uniform(float *ret_values)
{
    rng_mt mt;
    rng_mt_init(&mt, NOISE_SEED);
    for (size_t i = 0; i < NOISE_VALUES; i++)
        ret_values[i] = rng_mt_uniform(&mt);
}

bool noise_fill_by(bool fma_instruction, float *ret_values)
{
    _Static_assert(NOISE_VALUES % NOISE_BLOCK == 0, "torch redraws a tail; this table has none");
    if (fma_instruction && !noise_has_fma())
        return false;
    noise_uniform(ret_values);
    if (fma_instruction)
        noise_normal_fma(ret_values);
    else
        noise_normal_plain(ret_values);
    return true;
}

void noise_fill(float *ret_values)
{
    if (!noise_fill_by(true, ret_values))
        CF_ASSERT(noise_fill_by(false, ret_values));
}

uint32_t noise_hash(const float *values, size_t count)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        for (int b = 0; b < 4; b++)
            hash = (hash ^ (bits >> (8 * b) & 0xFFu)) * 16777619u;
    }
    return hash;
}
