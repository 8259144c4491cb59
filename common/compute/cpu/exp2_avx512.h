/*
 * exp2_avx512.h - 2^x in sixteen lanes, for what is rounded to bf16 or summed in f32 afterwards. Empty unless the
 * target in force has AVX-512.   Source of the polynomial: Cephes exp2f
 */
#ifndef CF_COMPUTE_CPU_EXP2_AVX512_H
#define CF_COMPUTE_CPU_EXP2_AVX512_H

#if defined(__AVX512F__)
#include <immintrin.h>

#define EXP2_MIN (-200.0f) /* as a power of two: zero, and -infinity stays out of the arithmetic */

/* NaN gives NaN, and so does infinity. */
static inline __m512 exp2_lanes(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(EXP2_MIN), x); /* in this order NaN passes */
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.535336188319500e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.339887440266574e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618437357674640e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550332471162809e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402264791363012e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472028550421e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

#endif
#endif
