/*
 * exp2_avx512.h - 2^x in sixteen lanes, for what is rounded to bf16 or summed in f32 afterwards. Empty unless the
 * target in force has AVX-512 DQ.
 */
#ifndef CF_COMPUTE_CPU_EXP2_AVX512_H
#define CF_COMPUTE_CPU_EXP2_AVX512_H

#if defined(__AVX512DQ__)
#include <immintrin.h>

/* To 2e-7 of the value, below the normal numbers to two of their steps, and exact at whole numbers. The polynomial is
 * ours: least relative error for powers of 0 to 1, 8e-8, with 1 at 0; the rest is rounding. -infinity gives zero,
 * infinity infinity, NaN NaN. */
static inline __m512 exp2_lanes(__m512 x)
{
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* x less the whole number below */
    __m512 p = _mm512_set1_ps(1.8671297704046e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.017030945041e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5799912690314e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4016445024775e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9315131180072e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x); /* times two to the whole number below */
}

#endif
#endif
