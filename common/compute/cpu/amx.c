/*
 * amx.c - amx.h for x86-64 with AMX-BF16, which comes with AVX-512 BF16. Any thread.
 *
 * Eight tiles of 16 rows and 64 bytes: four hold the block of c, two a pair of row tiles of a, two a pair of column
 * tiles of b, so that a step of depth 32 loads four tiles for four products. b is stored as the instruction reads it:
 * a tile row holds two neighbouring depths of 16 columns.
 * Owns nothing but the calling thread's tiles between amx_begin and amx_end. Fails: never; elsewhere, asserts.
 * Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3.
 */
#define _GNU_SOURCE
#include "common/compute/cpu/amx.h"

#include "common/base/check.h"

#if AMX_COMPILED
#include <sys/syscall.h>
#include <unistd.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#include <immintrin.h>

#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define TILE_DATA          18     /* the state component of tile contents */
#define TILE_ROWS          16
#define TILE_BYTES         64 /* of a row */
#define HALF               16 /* columns of a vector */

static bool processor_has_tiles(void)
{
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool amx_usable(void)
{
    return processor_has_tiles() && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* Eight tiles of 16 rows and 64 bytes. In memory for good: gcc's intrinsic reads it without saying how much of it. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config = {.palette = 1,
                 .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                 .rows = {TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS}};

void amx_begin(void)
{
    _tile_loadconfig(&tile_config);
}

void amx_end(void)
{
    _tile_release();
}

/* Tiles 0..3 are c (above left, above right, below left, below right), 4 and 5 a, 6 and 7 b. */
static inline __attribute__((always_inline)) void add_chunks(const uint16_t *a, int64_t row_bytes, const uint16_t *b,
                                                             int64_t chunks)
{
    for (int64_t i = 0; i < chunks; i++) {
        _tile_loadd(6, b, TILE_BYTES);
        _tile_loadd(4, a, row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + TILE_ROWS * (row_bytes / 2), row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b + AMX_STEP_VALUES / 2, TILE_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        a += AMX_SIDE;
        b += AMX_STEP_VALUES;
    }
}

void amx_multiply(const amx_shape *shape, int terms, const uint16_t *const *a, const uint16_t *const *b, float *c)
{
    const int64_t row_bytes = shape->row_pitch * (int64_t)sizeof(uint16_t);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int t = 0; t < terms; t++)
        for (int64_t tap = 0; tap < shape->taps; tap++)
            add_chunks(a[t] + tap * shape->tap_pitch, row_bytes, b[t] + tap * shape->chunks * AMX_STEP_VALUES,
                       shape->chunks);
    _tile_stored(0, c, AMX_SIDE * sizeof *c);
    _tile_stored(1, c + HALF, AMX_SIDE * sizeof *c);
    _tile_stored(2, c + TILE_ROWS * AMX_SIDE, AMX_SIDE * sizeof *c);
    _tile_stored(3, c + TILE_ROWS * AMX_SIDE + HALF, AMX_SIDE * sizeof *c);
}

static inline __mmask16 columns_mask(int64_t cols)
{
    const unsigned count = cols >= HALF ? HALF : cols > 0 ? (unsigned)cols : 0;
    return (__mmask16)((1u << count) - 1u);
}

void amx_narrow(const float *x, int64_t count, uint16_t *ret_high, uint16_t *ret_low)
{
    for (int64_t i = 0; i < count; i += HALF) {
        const __mmask16 some = columns_mask(count - i);
        const __m512 v = _mm512_maskz_loadu_ps(some, x + i);
        const __m256i high = (__m256i)_mm512_cvtneps_pbh(v);
        _mm256_mask_storeu_epi16(ret_high + i, some, high);
        if (ret_low) {
            const __m512 rounded = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
            _mm256_mask_storeu_epi16(ret_low + i, some, (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, rounded)));
        }
    }
}

void amx_add_bias(const float *bias, int64_t cols, float *c)
{
    const __m512 low = _mm512_maskz_loadu_ps(columns_mask(cols), bias);
    const __m512 high = _mm512_maskz_loadu_ps(columns_mask(cols - HALF), cols > HALF ? bias + HALF : bias);
    for (int r = 0; r < AMX_SIDE; r++) {
        float *row = c + r * AMX_SIDE;
        _mm512_store_ps(row, _mm512_add_ps(_mm512_load_ps(row), low));
        _mm512_store_ps(row + HALF, _mm512_add_ps(_mm512_load_ps(row + HALF), high));
    }
}

/* Runs `statement` for each half row that exists, with its mask `some`, column `n` and values `v`. */
#define EACH_HALF(statement)                                       \
    for (int64_t r = 0; r < rows; r++)                             \
        for (int64_t n = 0; n < cols; n += HALF) {                 \
            const __mmask16 some = columns_mask(cols - n);         \
            const __m512 v = _mm512_load_ps(c + r * AMX_SIDE + n); \
            statement;                                             \
        }

void amx_store_f32(const float *c, int64_t rows, int64_t cols, int64_t pitch, float *y)
{
    EACH_HALF(_mm512_mask_storeu_ps(y + r * pitch + n, some, v))
}

void amx_store_bf16(const float *c, int64_t rows, int64_t cols, int64_t pitch, uint16_t *y)
{
    EACH_HALF(_mm256_mask_storeu_epi16(y + r * pitch + n, some, (__m256i)_mm512_cvtneps_pbh(v)))
}

void amx_store_sum(const float *c, int64_t rows, int64_t cols, int64_t pitch, const float *add, float *y)
{
    EACH_HALF(_mm512_mask_storeu_ps(y + r * pitch + n, some,
                                    _mm512_add_ps(v, _mm512_maskz_loadu_ps(some, add + r * pitch + n))))
}

void amx_store_gated(const float *c, int64_t rows, int64_t cols, int64_t pitch, const float *const *gate, float *y)
{
    EACH_HALF(const __m512 g = _mm512_maskz_loadu_ps(some, gate[r] + n);
              const __m512 old = _mm512_maskz_loadu_ps(some, y + r * pitch + n);
              _mm512_mask_storeu_ps(y + r * pitch + n, some, _mm512_add_ps(old, _mm512_mul_ps(g, v))))
}

#else

#define ABSENT() cf_panic(__FILE__, __LINE__, "no tile unit in this build")

bool amx_usable(void)
{
    return false;
}

void amx_begin(void)
{
    ABSENT();
}

void amx_end(void)
{
    ABSENT();
}

void amx_multiply(const amx_shape *shape, int terms, const uint16_t *const *a, const uint16_t *const *b, float *c)
{
    (void)shape, (void)terms, (void)a, (void)b, (void)c;
    ABSENT();
}

void amx_narrow(const float *x, int64_t count, uint16_t *ret_high, uint16_t *ret_low)
{
    (void)x, (void)count, (void)ret_high, (void)ret_low;
    ABSENT();
}

void amx_add_bias(const float *bias, int64_t cols, float *c)
{
    (void)bias, (void)cols, (void)c;
    ABSENT();
}

void amx_store_f32(const float *c, int64_t rows, int64_t cols, int64_t pitch, float *y)
{
    (void)c, (void)rows, (void)cols, (void)pitch, (void)y;
    ABSENT();
}

void amx_store_bf16(const float *c, int64_t rows, int64_t cols, int64_t pitch, uint16_t *y)
{
    (void)c, (void)rows, (void)cols, (void)pitch, (void)y;
    ABSENT();
}

void amx_store_sum(const float *c, int64_t rows, int64_t cols, int64_t pitch, const float *add, float *y)
{
    (void)c, (void)rows, (void)cols, (void)pitch, (void)add, (void)y;
    ABSENT();
}

void amx_store_gated(const float *c, int64_t rows, int64_t cols, int64_t pitch, const float *const *gate, float *y)
{
    (void)c, (void)rows, (void)cols, (void)pitch, (void)gate, (void)y;
    ABSENT();
}

#endif
