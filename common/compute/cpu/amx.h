/*
 * amx.h - matrix products with the tile unit of x86-64 (AMX-BF16), and the AVX-512 loops around them. amx.c and
 * tiles_amx.c alone know the instructions.
 *
 * One call multiplies a block of 32 rows and 32 columns:
 *
 *   c[r][n] = sum over taps, chunks and 32 values of a chunk: a[r][tap][chunk][k] b[tap][chunk][k][n]
 *
 * Operands are bf16, sums f32, rounded as the instruction does: pairs of products, in this order. A value of c depends
 * on its own row of a and its own column of b alone, so neither the place in a block nor other rows show in its bytes.
 */
#ifndef CF_COMPUTE_CPU_AMX_H
#define CF_COMPUTE_CPU_AMX_H

#include <stdbool.h>
#include <stdint.h>

/* Whether the compiler knows the instructions as we write them. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define AMX_COMPILED 1
#else
#define AMX_COMPILED 0
#endif

#define AMX_SIDE         32                    /* rows, columns and depth of one step */
#define AMX_LINE_BYTES   64                    /* of a cache */
#define AMX_STEP_VALUES  (AMX_SIDE * AMX_SIDE) /* of b */
#define AMX_BLOCK_VALUES (AMX_SIDE * AMX_SIDE) /* of c */
#define AMX_HALF_COLS    16                    /* of c, where b has no more */
#define AMX_TERMS_MAX    3

/* Whether this processor and kernel let the process use tiles; asks for the permission once. */
bool amx_usable(void);

/* Around the calls of one task: sets the thread's tiles up, and gives them back. begin_halves: for amx_multiply_half
 * whose last chunk has `tail` values, even, 2 to 32; what lies behind them in a is not read. */
void amx_begin(void);
void amx_begin_halves(int64_t tail);
void amx_begin_rows(int rows); /* tiles 0, 1 and 4, sums and left operand of a single row tile, have this many rows */
void amx_end(void);

/* How a's rows lie, in values: a[r][tap][chunk][k] is at[r * row_pitch + tap * tap_pitch + chunk * 32 + k]. */
typedef struct amx_shape {
    int64_t row_pitch, tap_pitch;
    int64_t taps, chunks;
} amx_shape;

/* c = sum of `terms` products of one shape. All 32 rows of a are read.
 * b: [taps][chunks] steps, see amx_step_idx   c: [32][32], 64-byte aligned */
void amx_multiply(const amx_shape *shape, int terms, const uint16_t *const *a, const uint16_t *const *b, float *c);

/* The same where b has at most 16 columns: 64 rows of a.   c: [64][16] */
void amx_multiply_half(const amx_shape *shape, int terms, const uint16_t *const *a, const uint16_t *const *b, float *c);

/* c = or += `steps` steps of one product, for sums that wait in memory between parts of the depth: the same bytes as in
 * one go. Each step also asks for `lines` cache lines of `ahead`, which need not exist.
 * a: [steps][32 rows][32]   b: [steps] steps   c: [32][32], 64-byte aligned; fresh: what it holds is nothing */
void amx_add_part(const uint16_t *a, const uint16_t *b, int64_t steps, bool fresh, const uint16_t *ahead, int64_t lines,
                  float *c);

/* One row of such an a: chunk i of 32 values goes to ret_row + i * AMX_STEP_VALUES, the last one padded with zeros. */
void amx_lay_bf16(const uint16_t *x, int64_t count, uint16_t *ret_row);
void amx_lay_f32(const float *x, int64_t count, uint16_t *ret_row);

/* Where a value of a step of b lies. */
static inline int amx_step_idx(int depth_idx, int col_idx)
{
    return col_idx / 16 * (AMX_STEP_VALUES / 2) + depth_idx / 2 * 32 + col_idx % 16 * 2 + depth_idx % 2;
}

/* Rows of count values and where their bf16 goes, each padded with zeros to `width`. */
typedef struct amx_lines {
    int64_t rows, count, width;
    int64_t from_pitch, to_pitch;
} amx_lines;

/* bf16 of rows of x; with ret_low also bf16 of what the first rounding left. Returns whether all are finite. */
bool amx_narrow(const amx_lines *lines, const float *x, uint16_t *ret_high, uint16_t *ret_low);

/* Sums of a block, or of a part of it: rows `pitch` values apart, and what is added to each of them first. */
typedef struct amx_sums {
    float *c;
    const float *bias; /* [cols], or NULL */
    int64_t rows, cols, pitch;
} amx_sums;

void amx_add_bias(const amx_sums *s);  /* c += bias */
void amx_gelu_tanh(const amx_sums *s); /* c = gelu(c + bias), to 2e-7 of the argument */
/* y = c + bias, and + residual, which lies as y does, or NULL */
void amx_store_f32(const amx_sums *s, const float *residual, int64_t pitch, float *y);
void amx_store_bf16(const amx_sums *s, int64_t pitch, uint16_t *y);
/* The same past the caches, 32 columns: for y of which nothing is read soon. Rows of y are whole cache lines. */
void amx_stream_bf16(const amx_sums *s, int64_t pitch, uint16_t *y);
void amx_stream_end(void); /* before another thread may read what was streamed */
/* y += gate[r] * (c + bias), one line of gates for each row */
void amx_store_gated(const amx_sums *s, const float *const *gate, int64_t pitch, float *y);

#endif
