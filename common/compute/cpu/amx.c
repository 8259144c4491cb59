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

static _Thread_local tile_shapes shaped_tiles; /* in memory as long as the thread */

static void load_shapes(void)
{
    __asm__ volatile("" ::: "memory"); /* all of it is written before the intrinsic reads it */
    _tile_loadconfig(&shaped_tiles);
}

void amx_begin_halves(int64_t tail)
{
    CF_ASSERT(tail >= 2 && tail <= AMX_SIDE && tail % 2 == 0);
    shaped_tiles = whole_tiles; /* 6 and 7 are the operands of the last chunk */
    shaped_tiles.row_bytes[6] = (uint16_t)(tail * (int64_t)sizeof(uint16_t));
    shaped_tiles.rows[7] = (uint8_t)(tail / 2);
    load_shapes();
}

void amx_begin_rows(int rows)
{
    CF_ASSERT(rows >= 1 && rows <= TILE_ROWS);
    shaped_tiles = whole_tiles;
    shaped_tiles.rows[0] = shaped_tiles.rows[1] = shaped_tiles.rows[4] = (uint8_t)rows;
    load_shapes();
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
    _tile_stored(0, c, TILE_BYTES);
    _tile_stored(1, c + TILE_ROWS * HALF, TILE_BYTES);
    _tile_stored(2, c + 2 * TILE_ROWS * HALF, TILE_BYTES);
    _tile_stored(3, c + 3 * TILE_ROWS * HALF, TILE_BYTES);
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

/* bf16 of what rounding v to `rounded` left. */
static inline __m256i narrow_rest(__m512 v, __m256i rounded)
{
    const __m512 taken = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
    return (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(v, taken));
}

static inline __m256i larger(__m256i largest, __m256i rounded)
{
    return _mm256_max_epu16(largest, _mm256_and_si256(rounded, _mm256_set1_epi16(0x7FFF)));
}

/* Sixteen values as bf16, and with low as bf16 of what the first rounding left; their magnitudes to *largest. */
static inline void narrow_half(__m512 v, uint16_t *high, uint16_t *low, __m256i *largest)
{
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(v);
    *largest = larger(*largest, rounded);
    _mm256_storeu_si256((__m256i *)(void *)high, rounded);
    if (low)
        _mm256_storeu_si256((__m256i *)(void *)low, narrow_rest(v, rounded));
}

static inline void narrow_some(__m512 v, __mmask16 some, uint16_t *high, uint16_t *low, __m256i *largest)
{
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(v);
    *largest = larger(*largest, rounded);
    _mm256_mask_storeu_epi16(high, some, rounded);
    if (low)
        _mm256_mask_storeu_epi16(low, some, narrow_rest(v, rounded));
}

/* Rows of eight values, one behind the other where they go: two of them fill a vector. */
static __m256i narrow_eights(const amx_lines *lines, const float *x, uint16_t *high, uint16_t *low)
{
    __m256i largest = _mm256_setzero_si256();
    int64_t r = 0;
    for (; r + 2 <= lines->rows; r += 2, x += 2 * lines->from_pitch) {
        const __m512 first = _mm512_castps256_ps512(_mm256_loadu_ps(x));
        narrow_half(_mm512_insertf32x8(first, _mm256_loadu_ps(x + lines->from_pitch), 1), high + r * 8,
                    low ? low + r * 8 : NULL, &largest);
    }
    if (r < lines->rows)
        narrow_some(_mm512_maskz_loadu_ps(0xFF, x), 0xFF, high + r * 8, low ? low + r * 8 : NULL, &largest);
    return largest;
}

static __m256i narrow_lines(const amx_lines *lines, const float *x, uint16_t *high, uint16_t *low)
{
    __m256i largest = _mm256_setzero_si256();
    for (int64_t r = 0; r < lines->rows; r++, x += lines->from_pitch) {
        int64_t i = 0, at = r * lines->to_pitch;
        for (; i + HALF <= lines->count; i += HALF)
            narrow_half(_mm512_loadu_ps(x + i), high + at + i, low ? low + at + i : NULL, &largest);
        for (; i < lines->width; i += HALF)
            narrow_some(_mm512_maskz_loadu_ps(columns_mask(lines->count - i), x + i), columns_mask(lines->width - i),
                        high + at + i, low ? low + at + i : NULL, &largest);
    }
    return largest;
}

bool amx_narrow(const amx_lines *lines, const float *x, uint16_t *ret_high, uint16_t *ret_low)
{
    const bool eights = lines->count == 8 && lines->width == 8 && lines->to_pitch == 8;
    const __m256i largest =
        eights ? narrow_eights(lines, x, ret_high, ret_low) : narrow_lines(lines, x, ret_high, ret_low);
    return _mm256_cmpge_epu16_mask(largest, _mm256_set1_epi16(0x7F80)) == 0;
}

void amx_lay_bf16(const uint16_t *x, int64_t count, uint16_t *ret_row)
{
    int64_t i = 0;
    for (; i + AMX_SIDE <= count; i += AMX_SIDE, ret_row += AMX_STEP_VALUES)
        _mm512_storeu_si512(ret_row, _mm512_loadu_si512(x + i));
    if (i < count)
        _mm512_storeu_si512(ret_row, _mm512_maskz_loadu_epi16((1u << (count - i)) - 1u, x + i));
}

void amx_lay_f32(const float *x, int64_t count, uint16_t *ret_row)
{
    for (int64_t i = 0; i < count; i += AMX_SIDE, ret_row += AMX_STEP_VALUES) {
        const __m512 low = _mm512_maskz_loadu_ps(columns_mask(count - i), x + i);
        const __m512 high = _mm512_maskz_loadu_ps(columns_mask(count - i - HALF), x + i + HALF);
        _mm512_storeu_si512(ret_row, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* Runs `statement` for each half row that exists, with its mask `some`, column `n` and values `v`, bias added. */
#define EACH_HALF(statement)                                                                         \
    for (int64_t n = 0; n < s->cols; n += HALF) {                                                    \
        const __mmask16 some = columns_mask(s->cols - n);                                            \
        const __m512 b = s->bias ? _mm512_maskz_loadu_ps(some, s->bias + n) : none();                \
        for (int64_t r = 0; r < s->rows; r++) {                                                      \
            const __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(some, s->c + r * s->pitch + n), b); \
            statement;                                                                               \
        }                                                                                            \
    }

/* What changes no value when it is added, zeros of either sign neither. */
static inline __m512 none(void)
{
    return _mm512_set1_ps(-0.0f);
}

void amx_add_bias(const amx_sums *s)
{
    EACH_HALF(_mm512_mask_storeu_ps(s->c + r * s->pitch + n, some, v))
}

/* x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3), as powers of two; the quotient with one step of Newton's. */
static inline __m512 gelu_tanh(__m512 x)
{
    const __m512 linear = _mm512_set1_ps(-2.30220818f), cubic = _mm512_set1_ps(-0.102943239f);
    const __m512 one = _mm512_set1_ps(1.0f), most = _mm512_set1_ps(126.0f);
    const __m512 turned = _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), cubic, linear));
    const __mmask16 some = _mm512_cmp_ps_mask(turned, most, _CMP_NGE_UQ); /* else zero times x; NaN passes */
    const __m512 below = _mm512_add_ps(one, exp2_lanes(turned));
    const __m512 guess = _mm512_rcp14_ps(below);
    const __m512 inverse = _mm512_maskz_fmadd_ps(some, guess, _mm512_fnmadd_ps(below, guess, one), guess);
    return _mm512_mul_ps(x, inverse);
}

void amx_gelu_tanh(const amx_sums *s)
{
    EACH_HALF(_mm512_mask_storeu_ps(s->c + r * s->pitch + n, some, gelu_tanh(v)))
}

void amx_store_f32(const amx_sums *s, const float *residual, int64_t pitch, float *y)
{
    if (residual)
        EACH_HALF(const __m512 old = _mm512_maskz_loadu_ps(some, residual + r * pitch + n);
                  _mm512_mask_storeu_ps(y + r * pitch + n, some, _mm512_add_ps(v, old)))
    else
        EACH_HALF(_mm512_mask_storeu_ps(y + r * pitch + n, some, v))
}

void amx_store_bf16(const amx_sums *s, int64_t pitch, uint16_t *y)
{
    EACH_HALF(_mm256_mask_storeu_epi16(y + r * pitch + n, some, (__m256i)_mm512_cvtneps_pbh(v)))
}

void amx_stream_bf16(const amx_sums *s, int64_t pitch, uint16_t *y)
{
    const __m512 low = s->bias ? _mm512_loadu_ps(s->bias) : none();
    const __m512 high = s->bias ? _mm512_loadu_ps(s->bias + HALF) : none();
    for (int64_t r = 0; r < s->rows; r++) {
        const float *c = s->c + r * s->pitch;
        const __m512bh line =
            _mm512_cvtne2ps_pbh(_mm512_add_ps(_mm512_load_ps(c + HALF), high), _mm512_add_ps(_mm512_load_ps(c), low));
        _mm512_stream_si512((__m512i *)(void *)(y + r * pitch), (__m512i)line);
    }
}

void amx_stream_end(void)
{
    _mm_sfence();
}

void amx_store_gated(const amx_sums *s, const float *const *gate, int64_t pitch, float *y)
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

void amx_begin_rows(int rows)
{
    (void)rows;
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

void amx_gelu_tanh(const amx_sums *s)
{
    (void)s;
    ABSENT();
}

void amx_stream_bf16(const amx_sums *s, int64_t pitch, uint16_t *y)
{
    (void)s, (void)pitch, (void)y;
    ABSENT();
}

void amx_stream_end(void)
{
    ABSENT();
}

bool amx_narrow(const amx_lines *lines, const float *x, uint16_t *ret_high, uint16_t *ret_low)
{
    (void)lines, (void)x, (void)ret_high, (void)ret_low;
    ABSENT();
}

void amx_add_bias(const amx_sums *s)
{
    (void)s;
    ABSENT();
}

void amx_store_f32(const amx_sums *s, const float *residual, int64_t pitch, float *y)
{
    (void)s, (void)residual, (void)pitch, (void)y;
    ABSENT();
}

void amx_store_bf16(const amx_sums *s, int64_t pitch, uint16_t *y)
{
    (void)s, (void)pitch, (void)y;
    ABSENT();
}

void amx_store_gated(const amx_sums *s, const float *const *gate, int64_t pitch, float *y)
{
    (void)s, (void)gate, (void)pitch, (void)y;
    ABSENT();
}

#endif
