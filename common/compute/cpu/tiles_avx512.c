/*
 * tiles_avx512.c - tile_kernels.h for AVX-512 without a matrix unit, and the choice among tables. A bf16 is the upper
 * half of an f32: pairs of values lie in one lane, so a shift and a mask widen sixteen columns at once.
 * Any thread; no state; cannot fail.
 */
#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/tile_kernels.h"

#include <stddef.h>
#include <string.h>

#include "common/compute/cpu/dnnl_matmul.h"
#include "common/compute/tensor.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f")
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

#define STREAM_BYTES 4096
#define ROWS_AT_ONCE 8 /* 16 accumulators; widened columns and one broadcast value take 5 more registers */

static void begin_nothing(int rows)
{
    (void)rows;
}

static void nothing(void)
{
}

static void plain_narrow(int rows, int read, int64_t depth, const float *x, int64_t x_pitch, uint16_t *tiles)
{
    const int64_t depth_tiles = (depth + TILE_DEPTH - 1) / TILE_DEPTH;
    (void)read; /* rows are taken several at once */
    memset(tiles, 0, (size_t)(depth_tiles * TILE_VALUES) * sizeof *tiles);
    for (int r = 0; r < rows; r++)
        for (int64_t k = 0; k < depth; k++)
            tiles[k / TILE_DEPTH * TILE_VALUES + r * TILE_DEPTH + k % TILE_DEPTH] = bf16_from_f32(x[r * x_pitch + k]);
}

INLINE __m512 even_values(__m512i pairs)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

INLINE __m512 odd_values(__m512i pairs)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xFFFF0000)));
}

/* Rows [0, rows) of one row tile; a constant, so that the accumulators are registers. */
INLINE void some_rows(const int rows, int64_t depth_tiles, const uint16_t *a, const uint16_t *b, bool fresh, float *c)
{
    __m512 sum[ROWS_AT_ONCE][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        sum[r][0] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * TILE_COLS);
        sum[r][1] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * TILE_COLS + TILE_COLS / 2);
    }
    for (int64_t d = 0; d < depth_tiles; d++)
        for (int p = 0; p < TILE_DEPTH / 2; p++) {
            const uint16_t *low = b + d * 2 * TILE_VALUES + p * 2 * (TILE_COLS / 2), *high = low + TILE_VALUES;
            _mm_prefetch((const char *)low + STREAM_BYTES, _MM_HINT_T0);
            _mm_prefetch((const char *)high + STREAM_BYTES, _MM_HINT_T0);
            const __m512i w0 = _mm512_loadu_si512(low), w1 = _mm512_loadu_si512(high);
            const __m512 even0 = even_values(w0), odd0 = odd_values(w0), even1 = even_values(w1), odd1 = odd_values(w1);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int pair;
                memcpy(&pair, a + d * TILE_VALUES + r * TILE_DEPTH + 2 * p, sizeof pair);
                const __m512i both = _mm512_set1_epi32(pair);
                const __m512 even = even_values(both), odd = odd_values(both);
                sum[r][0] = _mm512_fmadd_ps(odd, odd0, _mm512_fmadd_ps(even, even0, sum[r][0]));
                sum[r][1] = _mm512_fmadd_ps(odd, odd1, _mm512_fmadd_ps(even, even1, sum[r][1]));
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(c + r * TILE_COLS, sum[r][0]);
        _mm512_storeu_ps(c + r * TILE_COLS + TILE_COLS / 2, sum[r][1]);
    }
}

/* A whole number of 8 bits loses nothing with the lower half of its f32. */
static void avx512_widen(int64_t depth_tiles, const int8_t *from, uint16_t *to)
{
    for (int64_t i = 0; i < depth_tiles * 2 * TILE_VALUES; i += 16) {
        const __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(from + i)));
        const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(whole)), 16);
        _mm256_storeu_si256((__m256i *)(void *)(to + i), _mm512_cvtepi32_epi16(bits));
        _mm_prefetch((const char *)from + i + STREAM_BYTES, _MM_HINT_T0);
    }
}

static void avx512_multiply(int rows, int64_t depth_tiles, const uint16_t *a, const uint16_t *a2, const uint16_t *b,
                            bool stream, bool fresh, float *c)
{
    (void)stream;
    for (int r = 0; r < rows; r += ROWS_AT_ONCE) {
        const uint16_t *tile = (r < TILE_ROWS ? a : a2) + r % TILE_ROWS * TILE_DEPTH;
        if (rows - r == 1)
            some_rows(1, depth_tiles, tile, b, fresh, c + r * TILE_COLS);
        else if (rows - r <= 4)
            some_rows(4, depth_tiles, tile, b, fresh, c + r * TILE_COLS);
        else
            some_rows(ROWS_AT_ONCE, depth_tiles, tile, b, fresh, c + r * TILE_COLS);
    }
}

const tile_kernels tile_kernels_avx512 = {.name = "avx512",
                                          .begin = begin_nothing,
                                          .end = nothing,
                                          .narrow = plain_narrow,
                                          .widen = avx512_widen,
                                          .multiply = avx512_multiply};

#else

const tile_kernels tile_kernels_avx512 = {.name = "none"};

#endif

const tile_kernels *tile_kernels_choose(void)
{
    if (amx_usable())
        return &tile_kernels_amx;
    return onednn_has_fast_f32() ? &tile_kernels_avx512 : NULL;
}
