/*
 * tile_kernels.h - innermost loops for bf16 weights that are kept once, in tiles, and read straight from memory.
 *
 *   left operand    [row tile][depth tile][16 rows][32 values]          bf16
 *   weight          [panel of 32 columns][depth tile][2 halves][16 pairs of values][16 columns][2]   bf16
 *
 * A depth tile is 32 values; what does not exist is zero. Each element of the result is one chain over the depth tiles
 * in ascending order, so its bytes depend on its own row and its own column alone: not on rows, nor on the row's place.
 */
#ifndef CF_COMPUTE_CPU_TILE_KERNELS_H
#define CF_COMPUTE_CPU_TILE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#define TILE_ROWS   16
#define TILE_DEPTH  32
#define TILE_COLS   32                       /* of a panel */
#define TILE_VALUES (TILE_ROWS * TILE_DEPTH) /* of the left operand's tile, and of half a panel's */

typedef struct tile_kernels {
    const char *name;
    /* The calling thread's matrix unit, around any number of products. rows: of each product, or 16 where they have
     * more, or different numbers. */
    void (*begin)(int rows);
    void (*end)(void);
    /* rows <= 16 rows of f32, x_pitch values apart, rounded to bf16 into one row tile of depth_tiles tiles; zeros in
     * its rows behind them as far as `read`. */
    void (*narrow)(int rows, int read, int64_t depth, const float *x, int64_t x_pitch, uint16_t *tiles);
    /* depth_tiles tiles of half the bytes, int8 in the same order, to bf16, which holds such numbers exactly. */
    void (*widen)(int64_t depth_tiles, const int8_t *from, uint16_t *to);
    /* c[r][n] (+)= sum_k a[r][k] b[k][n], r < rows <= 32, c: [rows rounded up to 16][TILE_COLS]; fresh: c starts at
     * zero. a2: the second row tile's operand, read when rows > 16. stream: b comes from memory, and what follows it is
     * next. */
    void (*multiply)(int rows, int64_t depth_tiles, const uint16_t *a, const uint16_t *a2, const uint16_t *b,
                     bool stream, bool fresh, float *c);
    /* The two above for rows <= 16 at once, so that memory is read while the unit multiplies. NULL: not faster. */
    void (*multiply_int8)(int64_t depth_tiles, const uint16_t *a, const int8_t *b, float *c);
} tile_kernels;

extern const tile_kernels tile_kernels_amx;    /* AMX with bf16; asks the system for the tiles when chosen */
extern const tile_kernels tile_kernels_avx512; /* widened in registers: f32 arithmetic, half the bytes of f32 */

/* The best table for this machine; NULL: none that would be better than gemm_kernels.h. */
const tile_kernels *tile_kernels_choose(void);

#endif
