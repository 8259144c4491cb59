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

#include "common/compute/cpu/exp2_avx512.h"

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

/* In memory for good: gcc's intrinsic reads it without saying how much of it. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Eight tiles of 16 rows and 64 bytes. */
static const tile_shapes whole_tiles = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS}};

void amx_begin(void)
{
    _tile_loadconfig(&whole_tiles);
}

void amx_begin_halves(int64_t tail)
{
    static _Thread_local tile_shapes tiles; /* 6 and 7 are the operands of the last chunk */
    CF_ASSERT(tail >= 2 && tail <= AMX_SIDE && tail % 2 == 0);
    tiles = whole_tiles;
    tiles.row_bytes[6] = (uint16_t)(tail * (int64_t)sizeof(uint16_t));
    tiles.rows[7] = (uint8_t)(tail / 2);
    __asm__ volatile("" ::: "memory"); /* all of it is written before the intrinsic reads it */
    _tile_loadconfig(&tiles);
}

void amx_end(void)
{
    _tile_release();
}

/* Tiles 0..3 are c (above left, above right, below left, below right), 4 and 5 a, 6 and 7 b. */
static inline __attribute__((always_inline)) void add_step(const uint16_t *a, int64_t row_bytes, const uint16_t *b)
{
    _tile_loadd(6, b, TILE_BYTES);
    _tile_loadd(4, a, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + TILE_ROWS * (row_bytes / 2), row_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, b + AMX_STEP_VALUES / 2, TILE_BYTES);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
}

/* Tiles 0..3 are c, one below the other; A and B number the tiles of the operands. */
#define ADD_HALF_STEP(A, B)                                \
    do {                                                   \
        _tile_loadd(B, right, TILE_BYTES);                 \
        _tile_loadd(A, left, row_bytes);                   \
        _tile_dpbf16ps(0, A, B);                           \
        _tile_loadd(A, left + tile_values, row_bytes);     \
        _tile_dpbf16ps(1, A, B);                           \
        _tile_loadd(A, left + 2 * tile_values, row_bytes); \
        _tile_dpbf16ps(2, A, B);                           \
        _tile_loadd(A, left + 3 * tile_values, row_bytes); \
        _tile_dpbf16ps(3, A, B);                           \
    } while (0)

static inline void zero_block(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void store_block(float *c)
{
    _tile_stored(0, c, AMX_SIDE * sizeof *c);
    _tile_stored(1, c + HALF, AMX_SIDE * sizeof *c);
    _tile_stored(2, c + TILE_ROWS * AMX_SIDE, AMX_SIDE * sizeof *c);
    _tile_stored(3, c + TILE_ROWS * AMX_SIDE + HALF, AMX_SIDE * sizeof *c);
}

static inline void store_halves(float *c)
{
    _tile_stored(0, c, AMX_SIDE * sizeof *c);
    _tile_stored(1, c + TILE_ROWS * AMX_SIDE, AMX_SIDE * sizeof *c);
    _tile_stored(2, c + AMX_BLOCK_VALUES, AMX_SIDE * sizeof *c);
    _tile_stored(3, c + AMX_BLOCK_VALUES + TILE_ROWS * AMX_SIDE, AMX_SIDE * sizeof *c);
}

void amx_multiply(const amx_shape *shape, int terms, const uint16_t *const *a, const uint16_t *const *b, float *c)
{
    const int64_t row_bytes = shape->row_pitch * (int64_t)sizeof(uint16_t);
    zero_block();
    for (int t = 0; t < terms; t++)
        for (int64_t tap = 0; tap < shape->taps; tap++) {
            const uint16_t *left = a[t] + tap * shape->tap_pitch;
            const uint16_t *right = b[t] + tap * shape->chunks * AMX_STEP_VALUES;
            for (int64_t i = 0; i < shape->chunks; i++, left += AMX_SIDE, right += AMX_STEP_VALUES)
                add_step(left, row_bytes, right);
        }
    store_block(c);
}

void amx_multiply_half(const amx_shape *shape, int terms, const uint16_t *const *a, const uint16_t *const *b, float *c)
{
    const int64_t row_bytes = shape->row_pitch * (int64_t)sizeof(uint16_t), tile_values = TILE_ROWS * shape->row_pitch;
    zero_block();
    for (int t = 0; t < terms; t++)
        for (int64_t tap = 0; tap < shape->taps; tap++) {
            const uint16_t *left = a[t] + tap * shape->tap_pitch;
            const uint16_t *right = b[t] + tap * shape->chunks * AMX_STEP_VALUES;
            for (int64_t i = 0; i + 1 < shape->chunks; i++, left += AMX_SIDE, right += AMX_STEP_VALUES)
                ADD_HALF_STEP(4, 5);
            ADD_HALF_STEP(6, 7);
        }
    store_halves(c);
}

static inline void load_block(const float *c)
{
    _tile_loadd(0, c, AMX_SIDE * sizeof *c);
    _tile_loadd(1, c + HALF, AMX_SIDE * sizeof *c);
    _tile_loadd(2, c + TILE_ROWS * AMX_SIDE, AMX_SIDE * sizeof *c);
    _tile_loadd(3, c + TILE_ROWS * AMX_SIDE + HALF, AMX_SIDE * sizeof *c);
}

void amx_add_part(const uint16_t *a, const uint16_t *b, int64_t steps, bool fresh, const uint16_t *ahead, int64_t lines,
                  float *c)
{
    const char *line = (const char *)ahead;
    if (fresh)
        zero_block();
    else
        load_block(c);
    for (int64_t i = 0; i < steps; i++, a += AMX_STEP_VALUES, b += AMX_STEP_VALUES) {
        for (int64_t n = 0; n < lines; n++, line += AMX_LINE_BYTES)
            _mm_prefetch(line, _MM_HINT_T1);
        add_step(a, TILE_BYTES, b);
    }
    store_block(c);
}

static inline __mmask16 columns_mask(int64_t cols)
{
    const unsigned count = cols >= HALF ? HALF : cols > 0 ? (unsigned)cols : 0;
    return (__mmask16)((1u << count) - 1u);
}

void amx_narrow(const amx_lines *lines, const float *x, uint16_t *ret_high, uint16_t *ret_low)
{
    const int64_t count = lines->count, width = lines->width;
    for (int64_t r = 0; r < lines->rows; r++, x += lines->from_pitch, ret_high += lines->to_pitch) {
        for (int64_t i = 0; i < width; i += HALF) {
            const __mmask16 some = columns_mask(width - i);
            const __m512 v = _mm512_maskz_loadu_ps(columns_mask(count - i), x + i);
            const __m256i high = (__m256i)_mm512_cvtneps_pbh(v);
            _mm256_mask_storeu_epi16(ret_high + i, some, high);
            if (ret_low) {
                const __m512 rounded = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
                _mm256_mask_storeu_epi16(ret_low + i, some, (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, rounded)));
            }
        }
        if (ret_low)
            ret_low += lines->to_pitch;
    }
}

void amx_lay_bf16(const uint16_t *x, int64_t count, uint16_t *ret_row)
{
    for (int64_t i = 0; i < count; i += AMX_SIDE, ret_row += AMX_STEP_VALUES) {
        const __mmask32 some = count - i >= AMX_SIDE ? ~0u : (1u << (count - i)) - 1u;
        _mm512_storeu_si512(ret_row, _mm512_maskz_loadu_epi16(some, x + i));
    }
}

void amx_lay_f32(const float *x, int64_t count, uint16_t *ret_row)
{
    for (int64_t i = 0; i < count; i += AMX_SIDE, ret_row += AMX_STEP_VALUES) {
        const __m512 low = _mm512_maskz_loadu_ps(columns_mask(count - i), x + i);
        const __m512 high = _mm512_maskz_loadu_ps(columns_mask(count - i - HALF), x + i + HALF);
        _mm512_storeu_si512(ret_row, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3), as powers of two; the quotient with one step of Newton's. */
void amx_gelu_tanh(float *c)
{
    const __m512 linear = _mm512_set1_ps(-2.30220818f), cubic = _mm512_set1_ps(-0.102943239f);
    const __m512 one = _mm512_set1_ps(1.0f), most = _mm512_set1_ps(126.0f);
    for (int i = 0; i < AMX_BLOCK_VALUES; i += HALF) {
        const __m512 x = _mm512_load_ps(c + i);
        const __m512 turned = _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), cubic, linear));
        const __mmask16 some = _mm512_cmp_ps_mask(turned, most, _CMP_NGE_UQ); /* else zero times x; NaN passes */
        const __m512 below = _mm512_add_ps(one, exp2_lanes(turned));
        const __m512 guess = _mm512_rcp14_ps(below);
        const __m512 inverse = _mm512_maskz_fmadd_ps(some, guess, _mm512_fnmadd_ps(below, guess, one), guess);
        _mm512_store_ps(c + i, _mm512_mul_ps(x, inverse));
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

void amx_stream_bf16(const float *c, int64_t rows, int64_t pitch, uint16_t *y)
{
    for (int64_t r = 0; r < rows; r++) {
        const __m512bh line =
            _mm512_cvtne2ps_pbh(_mm512_load_ps(c + r * AMX_SIDE + HALF), _mm512_load_ps(c + r * AMX_SIDE));
        _mm512_stream_si512((__m512i *)(void *)(y + r * pitch), (__m512i)line);
    }
}

void amx_stream_end(void)
{
    _mm_sfence();
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

void amx_begin_halves(int64_t tail)
{
    (void)tail;
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

void amx_multiply_half(const amx_shape *shape, int terms, const uint16_t *const *a, const uint16_t *const *b, float *c)
{
    (void)shape, (void)terms, (void)a, (void)b, (void)c;
    ABSENT();
}

void amx_add_part(const uint16_t *a, const uint16_t *b, int64_t steps, bool fresh, const uint16_t *ahead, int64_t lines,
                  float *c)
{
    (void)a, (void)b, (void)steps, (void)fresh, (void)ahead, (void)lines, (void)c;
    ABSENT();
}

void amx_lay_bf16(const uint16_t *x, int64_t count, uint16_t *ret_row)
{
    (void)x, (void)count, (void)ret_row;
    ABSENT();
}

void amx_lay_f32(const float *x, int64_t count, uint16_t *ret_row)
{
    (void)x, (void)count, (void)ret_row;
    ABSENT();
}

void amx_gelu_tanh(float *c)
{
    (void)c;
    ABSENT();
}

void amx_stream_bf16(const float *c, int64_t rows, int64_t pitch, uint16_t *y)
{
    (void)c, (void)rows, (void)pitch, (void)y;
    ABSENT();
}

void amx_stream_end(void)
{
    ABSENT();
}

void amx_narrow(const amx_lines *lines, const float *x, uint16_t *ret_high, uint16_t *ret_low)
{
    (void)lines, (void)x, (void)ret_high, (void)ret_low;
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

void amx_store_gated(const float *c, int64_t rows, int64_t cols, int64_t pitch, const float *const *gate, float *y)
{
    (void)c, (void)rows, (void)cols, (void)pitch, (void)gate, (void)y;
    ABSENT();
}

#endif
