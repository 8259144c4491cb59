/*
 * tiles_amx.c - tile_kernels.h on the matrix unit of x86-64: one instruction multiplies a 16 x 32 by a 32 x 16 tile.
 * Any thread between begin and end (amx.h); the state is the thread's tile registers; cannot fail.
 *
 * Two row tiles by two halves of a panel use four accumulators, so that each tile that is loaded is used twice. With
 * one row tile the unit waits for memory: the panel is fetched STREAM_BYTES ahead, in time for a read of main memory,
 * and the tiles are as high as there are rows: what is multiplied for nothing keeps the core from asking for more.
 */
#define _GNU_SOURCE
#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/tile_kernels.h"

#if AMX_COMPILED
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")
#include <immintrin.h>
#include <string.h>

#define STREAM_BYTES      2048
#define STREAM_INT8_BYTES 2048
#define LINE_BYTES        64
#define TILE_BYTES        1024
#define ROW_BYTES         64 /* of a bf16 tile */
#define C_BYTES           (TILE_COLS * (int)sizeof(float))

static void narrow_rows(int rows, int read, int64_t depth, const float *x, int64_t x_pitch, uint16_t *tiles)
{
    const int64_t depth_tiles = (depth + TILE_DEPTH - 1) / TILE_DEPTH;
    for (int r = 0; r < read; r++)
        for (int64_t d = 0; d < depth_tiles; d++) {
            uint16_t *to = tiles + d * TILE_VALUES + r * TILE_DEPTH;
            const int64_t left = r < rows ? depth - d * TILE_DEPTH : 0;
            const __mmask32 some = left >= TILE_DEPTH ? 0xFFFFFFFFu : (__mmask32)((1ull << (left > 0 ? left : 0)) - 1);
            const float *from = x + r * x_pitch + d * TILE_DEPTH;
            const __m512 low = _mm512_maskz_loadu_ps((__mmask16)some, from);
            const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(some >> 16), from + TILE_DEPTH / 2);
            const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
            memcpy(to, &both, sizeof both);
        }
}

static inline void fetch_step(const char *from)
{
#pragma GCC unroll 32
    for (int line = 0; line < 2 * TILE_BYTES; line += LINE_BYTES)
        _mm_prefetch(from + line, _MM_HINT_T0);
}

static void one_row_tile(int64_t depth_tiles, const uint16_t *a, const uint16_t *b, bool stream, bool fresh, float *c)
{
    const char *ahead = (const char *)b + STREAM_BYTES;
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        _tile_loadd(0, c, C_BYTES);
        _tile_loadd(1, c + TILE_COLS / 2, C_BYTES);
    }
    for (int64_t d = 0; d < depth_tiles; d++) {
        if (stream)
            fetch_step(ahead + d * 2 * TILE_BYTES);
        _tile_loadd(4, a + d * TILE_VALUES, ROW_BYTES);
        _tile_loadd(6, b + d * 2 * TILE_VALUES, ROW_BYTES);
        _tile_loadd(7, b + d * 2 * TILE_VALUES + TILE_VALUES, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, c, C_BYTES);
    _tile_stored(1, c + TILE_COLS / 2, C_BYTES);
}

static void two_row_tiles(int64_t depth_tiles, const uint16_t *a, const uint16_t *a2, const uint16_t *b, bool stream,
                          bool fresh, float *c)
{
    const char *ahead = (const char *)b + STREAM_BYTES;
    float *c2 = c + TILE_ROWS * TILE_COLS;
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c, C_BYTES);
        _tile_loadd(1, c + TILE_COLS / 2, C_BYTES);
        _tile_loadd(2, c2, C_BYTES);
        _tile_loadd(3, c2 + TILE_COLS / 2, C_BYTES);
    }
    for (int64_t d = 0; d < depth_tiles; d++) {
        if (stream)
            fetch_step(ahead + d * 2 * TILE_BYTES);
        _tile_loadd(6, b + d * 2 * TILE_VALUES, ROW_BYTES);
        _tile_loadd(7, b + d * 2 * TILE_VALUES + TILE_VALUES, ROW_BYTES);
        _tile_loadd(4, a + d * TILE_VALUES, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a2 + d * TILE_VALUES, ROW_BYTES);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, C_BYTES);
    _tile_stored(1, c + TILE_COLS / 2, C_BYTES);
    _tile_stored(2, c2, C_BYTES);
    _tile_stored(3, c2 + TILE_COLS / 2, C_BYTES);
}

/* One depth tile of a panel. */
static inline void widen_step(const int8_t *from, uint16_t *to)
{
    for (int i = 0; i < 2 * TILE_VALUES; i += LINE_BYTES) {
        _mm_prefetch((const char *)from + i + STREAM_INT8_BYTES, _MM_HINT_T0);
        for (int k = i; k < i + LINE_BYTES; k += TILE_DEPTH) {
            const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(from + k));
            const __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(from + k + TILE_DEPTH / 2));
            const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)),
                                                      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)));
            memcpy(to + k, &both, sizeof both);
        }
    }
}

static void widen_tiles(int64_t depth_tiles, const int8_t *from, uint16_t *to)
{
    for (int64_t d = 0; d < depth_tiles; d++)
        widen_step(from + d * 2 * TILE_VALUES, to + d * 2 * TILE_VALUES);
}

/* Widening runs two steps ahead: what a tile load reads has left the store buffer by then. */
static void multiply_int8(int64_t depth_tiles, const uint16_t *a, const int8_t *b, float *c)
{
    enum { RING = 4, AHEAD = 2 };
    _Alignas(LINE_BYTES) uint16_t ring[RING][2 * TILE_VALUES];
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t d = -AHEAD; d < depth_tiles; d++) {
        if (d + AHEAD < depth_tiles)
            widen_step(b + (d + AHEAD) * 2 * TILE_VALUES, ring[(d + AHEAD) % RING]);
        __asm__ volatile("" ::: "memory"); /* tile loads do not tell the compiler what they read */
        if (d < 0)
            continue;
        _tile_loadd(4, a + d * TILE_VALUES, ROW_BYTES);
        _tile_loadd(6, ring[d % RING], ROW_BYTES);
        _tile_loadd(7, ring[d % RING] + TILE_VALUES, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, c, C_BYTES);
    _tile_stored(1, c + TILE_COLS / 2, C_BYTES);
}

static void multiply_tiles(int rows, int64_t depth_tiles, const uint16_t *a, const uint16_t *a2, const uint16_t *b,
                           bool stream, bool fresh, float *c)
{
    if (rows > TILE_ROWS)
        two_row_tiles(depth_tiles, a, a2, b, stream, fresh, c);
    else
        one_row_tile(depth_tiles, a, b, stream, fresh, c);
}

const tile_kernels tile_kernels_amx = {.name = "amx",
                                       .begin = amx_begin_rows,
                                       .end = amx_end,
                                       .narrow = narrow_rows,
                                       .widen = widen_tiles,
                                       .multiply = multiply_tiles,
                                       .multiply_int8 = multiply_int8};

#else

const tile_kernels tile_kernels_amx = {.name = "none"};

#endif
