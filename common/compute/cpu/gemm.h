/*
 * gemm.h - y = act(gather(x) W + bias): what op_linear, op_conv1d and op_conv2d have in common on the CPU.
 *
 * The left operand is never built as a whole: a tile of rows gathers the values it needs, tap by tap, in a thread's own
 * buffer. Two engines multiply: our own kernels (gemm_kernels.h), and oneDNN where it has better ones (dnnl_matmul.h).
 */
#ifndef CF_COMPUTE_CPU_GEMM_H
#define CF_COMPUTE_CPU_GEMM_H

#include "common/compute/cpu/cpu_impl.h"
#include "common/compute/cpu/dnnl_matmul.h"

/* Rows of a tile. With our kernels the height never shows in the bytes; oneDNN's tiles are fixed (GEMM_BULK 128, 16).
 * */
#define GEMM_TILE_ROWS   120
#define DNNL_BULK_ROWS   128
#define DNNL_DECODE_ROWS 16

/* Depth of a block: 256 x 16 f32 of the right operand are half of a 32 KiB L1. */
#define GEMM_DEPTH 256

/* The padding of a row of the gathered block, so that rows 4 KiB apart do not share cache sets. */
#define GEMM_ROW_PAD 16

/* A gathered block of the widest type fits here, per thread. */
#define GEMM_BLOCK_BYTES ((size_t)DNNL_BULK_ROWS * (GEMM_DEPTH + GEMM_ROW_PAD) * sizeof(double))

typedef struct gemm_job {
    cpu_state *cpu;
    const weight *w;
    const op_conv1d_args *conv; /* this, the next, or neither: a linear layer, row r reads row r of x */
    const op_conv2d_args *conv2d;
    const void *packed;     /* the weight in our kernels' order: kept, or made for this product */
    const tensor *x, *bias; /* bias may be NULL */
    tensor *y;
    act_kind act;
    float slope;
    gemm_kind kind;
    const op_modulation *gate; /* the tile engine alone: y += gate * the result */
    int64_t gate_off;
    int64_t rows, inner, depth; /* depth = kernel * inner */
    int64_t group_cols, panel_cols, panels;
    int64_t tile_rows, tile_cols; /* of one task */
    int64_t row_tiles, col_tiles;
    size_t item_bytes;
    bool wide; /* f64 */
} gemm_job;

/* A piece of y. */
typedef struct gemm_tile {
    int64_t first_row, rows;
    int64_t group;
    int64_t first_col, cols; /* within the group */
} gemm_tile;

static inline int64_t div_ceil(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Finds for each of `count` rows of the left operand where its taps begin; count <= GATHER_LINES_MAX. */
void gemm_locate(const gemm_job *job, int64_t first, int64_t count, gather_line *lines);

/* Builds depth values [from, from + count) of the located rows, `pitch` values apart, rounded to bf16 when w is. */
void gemm_gather(const gemm_job *job, const gather_line *lines, int64_t rows, int64_t group, int64_t from,
                 int64_t count, int64_t pitch, void *block);

/* Adds the bias and applies the activation to the tile's part of y. */
void gemm_finish(const gemm_job *job, const gemm_tile *t);

/* Packs a mapped weight for our kernels, in scratch: gemm_map.c. */
cf_err gemm_map(backend *be, weight *out);
cf_err gemm_map_pack(backend *be, const weight *w, const void **ret_packed);

/* Packs w [n_out, k_in / groups, kernel] for the engine of this backend. */
cf_err gemm_pack(backend *be, const float *w, weight *out);
cf_err gemm_pack_f64(backend *be, const double *w, weight *out);

/* The oneDNN engine: gemm_dnnl.c. */
#define DNNL_OPERAND_BYTES_MAX ((size_t)64 << 20) /* of one tile, per thread: address space */
cf_err gemm_dnnl_open(cpu_state *cpu, backend *be);
void gemm_dnnl_close(cpu_state *cpu, int threads);
cf_err gemm_dnnl_pack(backend *be, const float *w, weight *out);
cf_err gemm_dnnl_run(gemm_job *job);
void gemm_dnnl_weight_close(weight *w);

/* bf16 weights in tiles, kept once for both kinds: gemm_tiles.c. take: whether this weight goes there. */
bool gemm_tiles_take(const cpu_state *cpu, const weight *w);
cf_err gemm_tiles_pack(backend *be, const float *values, weight *out);
cf_err gemm_tiles_run(backend *be, gemm_job *job);

/* The tile engine: gemm_amx.c. take: whether it holds and multiplies this weight. */
bool gemm_amx_take(const cpu_state *cpu, const weight *w);
cf_err gemm_amx_pack(backend *be, const float *values, weight *out);
cf_err gemm_amx_run(backend *be, gemm_job *job);

#endif
