/*
 * gemm_avx2.c - matrix product kernels for AVX2 and FMA: 6 rows x 2 vectors, so 12 accumulators, 2 vectors of b and one
 * broadcast of a fill 15 of the 16 registers. Any thread; no state; cannot fail.
 *
 * Each kernel is one inline body for a constant number of rows; the switch makes six copies of it.
 */
#include "common/compute/cpu/gemm_kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define ROWS   6

INLINE void load_f32(const float *b, __m256 *low, __m256 *high)
{
    *low = _mm256_loadu_ps(b);
    *high = _mm256_loadu_ps(b + 8);
}

/* bf16 is the upper half of an f32. */
INLINE void load_bf16(const uint16_t *b, __m256 *low, __m256 *high)
{
    const __m256i low_bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)b));
    const __m256i high_bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(b + 8)));
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(low_bits, 16));
    *high = _mm256_castsi256_ps(_mm256_slli_epi32(high_bits, 16));
}

#define BODY_F32(name, stored, load)                                                                            \
    INLINE void name(const int rows, int64_t depth, const float *a, int64_t a_pitch, const stored *b, float *c, \
                     int64_t c_pitch, bool fresh)                                                               \
    {                                                                                                           \
        __m256 sum[ROWS][2];                                                                                    \
        _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)                                                  \
        {                                                                                                       \
            sum[r][0] = fresh ? _mm256_setzero_ps() : _mm256_loadu_ps(c + r * c_pitch);                         \
            sum[r][1] = fresh ? _mm256_setzero_ps() : _mm256_loadu_ps(c + r * c_pitch + 8);                     \
        }                                                                                                       \
        for (int64_t k = 0; k < depth; k++) {                                                                   \
            __m256 low, high;                                                                                   \
            load(b + k * GEMM_PANEL, &low, &high);                                                              \
            _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)                                              \
            {                                                                                                   \
                const __m256 v = _mm256_broadcast_ss(a + r * a_pitch + k);                                      \
                sum[r][0] = _mm256_fmadd_ps(v, low, sum[r][0]);                                                 \
                sum[r][1] = _mm256_fmadd_ps(v, high, sum[r][1]);                                                \
            }                                                                                                   \
        }                                                                                                       \
        _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)                                                  \
        {                                                                                                       \
            _mm256_storeu_ps(c + r * c_pitch, sum[r][0]);                                                       \
            _mm256_storeu_ps(c + r * c_pitch + 8, sum[r][1]);                                                   \
        }                                                                                                       \
    }

BODY_F32(body_f32, float, load_f32)
BODY_F32(body_bf16, uint16_t, load_bf16)

INLINE void body_f64(const int rows, int64_t depth, const double *a, int64_t a_pitch, const double *b, double *c,
                     int64_t c_pitch, bool fresh)
{
    __m256d sum[ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        sum[r][0] = fresh ? _mm256_setzero_pd() : _mm256_loadu_pd(c + r * c_pitch);
        sum[r][1] = fresh ? _mm256_setzero_pd() : _mm256_loadu_pd(c + r * c_pitch + 4);
    }
    for (int64_t k = 0; k < depth; k++) {
        const __m256d low = _mm256_loadu_pd(b + k * GEMM_PANEL_F64);
        const __m256d high = _mm256_loadu_pd(b + k * GEMM_PANEL_F64 + 4);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m256d v = _mm256_broadcast_sd(a + r * a_pitch + k);
            sum[r][0] = _mm256_fmadd_pd(v, low, sum[r][0]);
            sum[r][1] = _mm256_fmadd_pd(v, high, sum[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_pd(c + r * c_pitch, sum[r][0]);
        _mm256_storeu_pd(c + r * c_pitch + 4, sum[r][1]);
    }
}

#define KERNEL(name, body, value, stored)                                                                 \
    static void name(int rows, int64_t depth, const value *a, int64_t a_pitch, const stored *b, value *c, \
                     int64_t c_pitch, bool fresh)                                                         \
    {                                                                                                     \
        switch (rows) {                                                                                   \
        case 1:                                                                                           \
            body(1, depth, a, a_pitch, b, c, c_pitch, fresh);                                             \
            return;                                                                                       \
        case 2:                                                                                           \
            body(2, depth, a, a_pitch, b, c, c_pitch, fresh);                                             \
            return;                                                                                       \
        case 3:                                                                                           \
            body(3, depth, a, a_pitch, b, c, c_pitch, fresh);                                             \
            return;                                                                                       \
        case 4:                                                                                           \
            body(4, depth, a, a_pitch, b, c, c_pitch, fresh);                                             \
            return;                                                                                       \
        case 5:                                                                                           \
            body(5, depth, a, a_pitch, b, c, c_pitch, fresh);                                             \
            return;                                                                                       \
        default:                                                                                          \
            body(ROWS, depth, a, a_pitch, b, c, c_pitch, fresh);                                          \
            return;                                                                                       \
        }                                                                                                 \
    }

KERNEL(avx2_f32, body_f32, float, float)
KERNEL(avx2_bf16, body_bf16, float, uint16_t)
KERNEL(avx2_f64, body_f64, double, double)

const gemm_kernels gemm_kernels_avx2 = {
    .name = "avx2+fma", .rows = ROWS, .f32 = avx2_f32, .bf16 = avx2_bf16, .f64 = avx2_f64};

#else

const gemm_kernels gemm_kernels_avx2 = {.name = "none"};

#endif
