/*
 * gemm_avx512.c - matrix product kernels for AVX-512: 12 rows x 1 vector, so 12 accumulators, more than two units with
 * four cycles of latency need, and broadcasts of a inside the multiplications. Any thread; no state; cannot fail.
 *
 * Each element is the chain of gemm_avx2.c, so it has the same bytes.
 */
#include "common/compute/cpu/gemm_kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f")
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define ROWS   12
_Static_assert(ROWS == GEMM_ROWS_MAX, "the widest table decides");

INLINE __m512 load_f32(const float *b)
{
    return _mm512_loadu_ps(b);
}

/* bf16 is the upper half of an f32. */
INLINE __m512 load_bf16(const uint16_t *b)
{
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)b));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

INLINE __m512d load_f64(const double *b)
{
    return _mm512_loadu_pd(b);
}

/* p: the suffix of the instructions' names; one vector of them is one panel */
#define BODY(name, vector, value, stored, load, width, p)                                                       \
    INLINE void name(const int rows, int64_t depth, const value *a, int64_t a_pitch, const stored *b, value *c, \
                     int64_t c_pitch, bool fresh)                                                               \
    {                                                                                                           \
        vector sum[ROWS];                                                                                       \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) sum[r] =                                        \
            fresh ? _mm512_setzero_##p() : _mm512_loadu_##p(c + r * c_pitch);                                   \
        for (int64_t k = 0; k < depth; k++) {                                                                   \
            const vector line = load(b + k * width);                                                            \
            _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) sum[r] =                                    \
                _mm512_fmadd_##p(_mm512_set1_##p(a[r * a_pitch + k]), line, sum[r]);                            \
        }                                                                                                       \
        _Pragma("GCC unroll 12") for (int r = 0; r < rows; r++) _mm512_storeu_##p(c + r * c_pitch, sum[r]);     \
    }

BODY(body_f32, __m512, float, float, load_f32, GEMM_PANEL, ps)
BODY(body_bf16, __m512, float, uint16_t, load_bf16, GEMM_PANEL, ps)
BODY(body_f64, __m512d, double, double, load_f64, GEMM_PANEL_F64, pd)

#define CASE(n, body)                                     \
    case n:                                               \
        body(n, depth, a, a_pitch, b, c, c_pitch, fresh); \
        return;

#define KERNEL(name, body, value, stored)                                                                 \
    static void name(int rows, int64_t depth, const value *a, int64_t a_pitch, const stored *b, value *c, \
                     int64_t c_pitch, bool fresh)                                                         \
    {                                                                                                     \
        switch (rows) {                                                                                   \
            CASE(1, body)                                                                                 \
            CASE(2, body)                                                                                 \
            CASE(3, body)                                                                                 \
            CASE(4, body)                                                                                 \
            CASE(5, body)                                                                                 \
            CASE(6, body)                                                                                 \
            CASE(7, body)                                                                                 \
            CASE(8, body)                                                                                 \
            CASE(9, body)                                                                                 \
            CASE(10, body)                                                                                \
            CASE(11, body)                                                                                \
        default:                                                                                          \
            body(ROWS, depth, a, a_pitch, b, c, c_pitch, fresh);                                          \
            return;                                                                                       \
        }                                                                                                 \
    }

KERNEL(avx512_f32, body_f32, float, float)
KERNEL(avx512_bf16, body_bf16, float, uint16_t)
KERNEL(avx512_f64, body_f64, double, double)

const gemm_kernels gemm_kernels_avx512 = {
    .name = "avx512", .rows = ROWS, .f32 = avx512_f32, .bf16 = avx512_bf16, .f64 = avx512_f64};

#else

const gemm_kernels gemm_kernels_avx512 = {.name = "none"};

#endif
