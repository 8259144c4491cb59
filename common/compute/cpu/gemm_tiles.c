/*
 * gemm_tiles.c - the engine of gemm.h for bf16 weights that single rows run with: kept once, in the tiles of
 * tile_kernels.h, for single rows and prompts alike; or half as large, in int8 with a scale for each output channel.
 * A panel of 32 columns lies in one piece, so a task reads memory forwards, and what one row needs is read once for all
 * rows of a step.
 *
 * The left operand is rounded into tiles in scratch before the product. A piece is a few panels by a block of rows;
 * each thread has a run of neighbouring pieces, because memory is read fastest in one stream, and takes from the
 * runs of others when its own is done. The cut does not show in the bytes (tile_kernels.h).
 * Run by the pool's threads. Owns nothing: weights are the backend's kept memory. Fails: CF_ERR_NOMEM.
 */
#include <stdatomic.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm.h"

#define PIECE_BYTES     ((int64_t)128 << 10) /* of weights: a few microseconds of reading */
#define ROW_BLOCK_BYTES ((int64_t)1 << 20)   /* of the left operand: half of a second cache */
#define PAIR_ROWS       (2 * TILE_ROWS)
#define BLOCK_ROWS_MAX  256 /* their results for a panel are 32 KiB */
#define WIDEN_DEPTH     8   /* depth tiles of int8 that are widened at once: 16 KiB of bf16, in the first cache */

/* The pieces of one thread, on a cache line of its own. */
typedef struct piece_run {
    _Alignas(64) _Atomic int64_t next;
    int64_t end;
} piece_run;

typedef struct tiles_job {
    const gemm_job *job;
    const tile_kernels *kernels;
    uint16_t *a;     /* [row tiles][depth tiles][TILE_VALUES], in scratch */
    piece_run *runs; /* [threads], in scratch */
    int threads;
    int64_t depth_tiles, panels, piece_panels, row_blocks, block_rows;
} tiles_job;

static int64_t depth_tiles_of(const weight *w)
{
    return div_ceil(w->k_in, TILE_DEPTH);
}

bool gemm_tiles_take(const cpu_state *cpu, const weight *w)
{
    return cpu->tiles && w->form == WEIGHT_LINEAR && w->operands == PRECISION_BF16 && (w->kinds & GEMM_DECODE_BIT);
}

static size_t value_bytes(const weight *w)
{
    return w->kinds & GEMM_INT8_BIT ? sizeof(int8_t) : sizeof(uint16_t);
}

typedef struct pack_job {
    const float *values;
    const weight *w;
} pack_job;

/* Where value k of column n lies, counted from the panel. */
static int64_t value_idx(int64_t n, int64_t k)
{
    const int64_t half_cols = TILE_COLS / 2, col = n % TILE_COLS, pair = k % TILE_DEPTH / 2;
    return (k / TILE_DEPTH * 2 + col / half_cols) * TILE_VALUES + (pair * half_cols + col % half_cols) * 2 + k % 2;
}

static void pack_panel(void *ctx, int32_t panel, int thread_idx)
{
    (void)thread_idx;
    const pack_job *job = ctx;
    const weight *w = job->w;
    const int64_t first = panel * depth_tiles_of(w) * 2 * TILE_VALUES;
    for (int64_t n = panel * TILE_COLS; n < min_i64((panel + 1) * TILE_COLS, w->n_out); n++) {
        const float *values = job->values + n * w->k_in;
        if (!w->scales) {
            for (int64_t k = 0; k < w->k_in; k++)
                ((uint16_t *)w->data)[first + value_idx(n, k)] = bf16_from_f32(values[k]);
            continue;
        }
        w->scales[n] = int8_scale(values, w->k_in);
        for (int64_t k = 0; k < w->k_in; k++)
            ((int8_t *)w->data)[first + value_idx(n, k)] = int8_from_f32(values[k], w->scales[n]);
    }
}

cf_err gemm_tiles_pack(backend *be, const float *values, weight *out)
{
    cf_err err;
    const int64_t panels = div_ceil(out->n_out, TILE_COLS);
    pack_job job = {values, out};

    out->bytes = (size_t)(panels * depth_tiles_of(out) * 2 * TILE_VALUES) * value_bytes(out);
    TRY(backend_keep_bytes(be, out->bytes, &out->data));
    if (out->kinds & GEMM_INT8_BIT)
        TRY(backend_keep_bytes(be, (size_t)out->n_out * sizeof *out->scales, &out->scales));
    out->tiled = true;
    pool_run(cpu_of(be)->threads, (int32_t)panels, pack_panel, &job);
out:
    return err;
}

/* Rows of a row tile that are multiplied. */
static int rows_read(const tiles_job *tj)
{
    return (int)min_i64(TILE_ROWS, tj->job->rows);
}

static void narrow_tile(void *ctx, int32_t tile_idx, int thread_idx)
{
    (void)thread_idx;
    const tiles_job *tj = ctx;
    const int64_t first = (int64_t)tile_idx * TILE_ROWS, depth = tj->job->w->k_in;
    tj->kernels->narrow((int)min_i64(TILE_ROWS, tj->job->rows - first), rows_read(tj), depth,
                        tensor_f32(tj->job->x) + first * depth, depth,
                        tj->a + tile_idx * tj->depth_tiles * TILE_VALUES);
}

static void finish_rows(const gemm_job *job, const float *c, int64_t first_row, int64_t rows, int64_t first_col)
{
    const int64_t cols = min_i64(TILE_COLS, job->w->n_out - first_col);
    for (int64_t r = 0; r < rows; r++) {
        float *y = tensor_f32(job->y) + (first_row + r) * job->w->n_out + first_col;
        memcpy(y, c + r * TILE_COLS, (size_t)cols * sizeof *c);
        for (int64_t n = 0; n < cols && job->w->scales; n++)
            y[n] *= job->w->scales[first_col + n];
    }
    gemm_finish(job, &(gemm_tile){.first_row = first_row, .rows = rows, .first_col = first_col, .cols = cols});
}

/* One panel under rows [first_row, end_row): bf16 whole, int8 widened block by block, the sums waiting in c. */
static void run_panel(const tiles_job *tj, int64_t panel, int64_t first_row, int64_t end_row, uint16_t *wide, float *c)
{
    const weight *w = tj->job->w;
    const int64_t tile_values = tj->depth_tiles * TILE_VALUES, first = panel * 2 * tile_values;
    const int64_t step = w->scales ? WIDEN_DEPTH : tj->depth_tiles;

    for (int64_t d = 0; d < tj->depth_tiles; d += step) {
        const int64_t tiles = min_i64(step, tj->depth_tiles - d);
        const uint16_t *b = w->scales ? wide : (const uint16_t *)w->data + first;
        if (w->scales)
            tj->kernels->widen(tiles, (const int8_t *)w->data + first + d * 2 * TILE_VALUES, wide);
        for (int64_t row = first_row; row < end_row; row += PAIR_ROWS) {
            const uint16_t *a = tj->a + row / TILE_ROWS * tile_values + d * TILE_VALUES;
            tj->kernels->multiply((int)min_i64(PAIR_ROWS, end_row - row), tiles, a, a + tile_values, b,
                                  !w->scales && row == first_row, d == 0, c + (row - first_row) * TILE_COLS);
        }
    }
    finish_rows(tj->job, c, first_row, end_row - first_row, panel * TILE_COLS);
}

/* Panels of a piece under a single row tile: little on the stack, since this is what memory is read for. */
static void run_single(const tiles_job *tj, int64_t first_row, int64_t end_row, int64_t first_panel, int64_t end_panel)
{
    const weight *w = tj->job->w;
    const int64_t tile_values = tj->depth_tiles * TILE_VALUES;
    const uint16_t *a = tj->a + first_row / TILE_ROWS * tile_values;
    _Alignas(64) float c[TILE_ROWS * TILE_COLS];

    for (int64_t p = first_panel; p < end_panel; p++) {
        if (w->scales)
            tj->kernels->multiply_int8(tj->depth_tiles, a, (const int8_t *)w->data + p * 2 * tile_values, c);
        else
            tj->kernels->multiply((int)(end_row - first_row), tj->depth_tiles, a, a,
                                  (const uint16_t *)w->data + p * 2 * tile_values, true, true, c);
        finish_rows(tj->job, c, first_row, end_row - first_row, p * TILE_COLS);
    }
}

static void run_block(const tiles_job *tj, int64_t first_row, int64_t end_row, int64_t first_panel, int64_t end_panel)
{
    _Alignas(64) uint16_t wide[WIDEN_DEPTH * 2 * TILE_VALUES];
    _Alignas(64) float c[BLOCK_ROWS_MAX * TILE_COLS];

    for (int64_t p = first_panel; p < end_panel; p++)
        run_panel(tj, p, first_row, end_row, wide, c);
}

static void run_piece(const tiles_job *tj, int64_t piece)
{
    const int64_t first_row = piece % tj->row_blocks * tj->block_rows;
    const int64_t end_row = min_i64(first_row + tj->block_rows, tj->job->rows);
    const int64_t first_panel = piece / tj->row_blocks * tj->piece_panels;
    const int64_t end_panel = min_i64(first_panel + tj->piece_panels, tj->panels);

    if (end_row - first_row <= TILE_ROWS && (!tj->job->w->scales || tj->kernels->multiply_int8))
        run_single(tj, first_row, end_row, first_panel, end_panel);
    else
        run_block(tj, first_row, end_row, first_panel, end_panel);
}

/* The thread's own run, then what is left of the others'. */
static void run_pieces(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)task_idx;
    const tiles_job *tj = ctx;
    tj->kernels->begin(rows_read(tj));
    for (int i = 0; i < tj->threads; i++) {
        piece_run *run = &tj->runs[(thread_idx + i) % tj->threads];
        for (int64_t piece; (piece = atomic_fetch_add(&run->next, 1)) < run->end;)
            run_piece(tj, piece);
    }
    tj->kernels->end();
}

/* How rows and columns are cut. */
static void plan_pieces(tiles_job *tj)
{
    const int64_t rows = tj->job->rows, tile_bytes = tj->depth_tiles * TILE_VALUES * (int64_t)sizeof(uint16_t);
    const int64_t block_pairs = min_i64(div_ceil(rows, PAIR_ROWS), ROW_BLOCK_BYTES / (2 * tile_bytes));
    tj->block_rows = min_i64(PAIR_ROWS * (block_pairs > 0 ? block_pairs : 1), BLOCK_ROWS_MAX);
    tj->row_blocks = div_ceil(rows, tj->block_rows);
    tj->piece_panels = PIECE_BYTES / (tj->depth_tiles * 2 * TILE_VALUES * (int64_t)value_bytes(tj->job->w));
    if (tj->piece_panels < 1)
        tj->piece_panels = 1;
    const int64_t pieces = tj->row_blocks * div_ceil(tj->panels, tj->piece_panels);
    for (int t = 0; t < tj->threads; t++) {
        atomic_init(&tj->runs[t].next, pieces * t / tj->threads);
        tj->runs[t].end = pieces * (t + 1) / tj->threads;
    }
}

cf_err gemm_tiles_run(backend *be, gemm_job *job)
{
    cf_err err;
    tiles_job tj = {.job = job,
                    .kernels = job->cpu->tiles,
                    .threads = pool_threads(job->cpu->threads),
                    .depth_tiles = depth_tiles_of(job->w),
                    .panels = div_ceil(job->w->n_out, TILE_COLS)};
    const int64_t row_tiles = div_ceil(job->rows, TILE_ROWS);

    TRY(arena_take(&be->scratch, (size_t)(row_tiles * tj.depth_tiles * TILE_VALUES) * sizeof *tj.a, &tj.a));
    TRY(arena_take(&be->scratch, (size_t)tj.threads * sizeof *tj.runs, &tj.runs));
    plan_pieces(&tj);
    pool_run(job->cpu->threads, (int32_t)row_tiles, narrow_tile, &tj);
    pool_run(job->cpu->threads, tj.threads, run_pieces, &tj);
out:
    return err;
}
