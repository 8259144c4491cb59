/*
 * gemm_tiles.c - the engine of gemm.h for bf16 weights that single rows run with: kept once, in the tiles of
 * tile_kernels.h, for single rows and prompts alike. A panel of 32 columns lies in one piece, so a task reads memory
 * forwards, and what one row needs is read once for all rows of a step.
 *
 * The left operand is rounded into tiles in scratch before the product. Tasks are runs of panels by blocks of rows;
 * the cut does not show in the bytes (tile_kernels.h).
 * Run by the pool's threads. Owns nothing: weights are the backend's kept memory. Fails: CF_ERR_NOMEM.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm.h"

#define TASK_BYTES      ((int64_t)192 << 10) /* of weights: a few microseconds of reading */
#define ROW_BLOCK_BYTES ((int64_t)1 << 20)   /* of the left operand: half of a second cache */
#define PAIR_ROWS       (2 * TILE_ROWS)

typedef struct tiles_job {
    const gemm_job *job;
    const tile_kernels *kernels;
    uint16_t *a; /* [row tiles][depth tiles][TILE_VALUES], in scratch */
    int64_t depth_tiles, panels, task_panels, row_blocks, block_rows;
} tiles_job;

static int64_t depth_tiles_of(const weight *w)
{
    return div_ceil(w->k_in, TILE_DEPTH);
}

bool gemm_tiles_take(const cpu_state *cpu, const weight *w)
{
    return cpu->tiles && w->form == WEIGHT_LINEAR && w->operands == PRECISION_BF16 && (w->kinds & GEMM_DECODE_BIT);
}

typedef struct pack_job {
    const float *values;
    const weight *w;
} pack_job;

static void pack_panel(void *ctx, int32_t panel, int thread_idx)
{
    (void)thread_idx;
    const pack_job *job = ctx;
    const weight *w = job->w;
    uint16_t *to = (uint16_t *)w->data + panel * depth_tiles_of(w) * 2 * TILE_VALUES;
    for (int64_t n = panel * TILE_COLS; n < min_i64((panel + 1) * TILE_COLS, w->n_out); n++) {
        const int64_t col = n % TILE_COLS, half = col / (TILE_COLS / 2);
        for (int64_t k = 0; k < w->k_in; k++) {
            const int64_t pair = k % TILE_DEPTH / 2;
            to[(k / TILE_DEPTH * 2 + half) * TILE_VALUES + (pair * (TILE_COLS / 2) + col % (TILE_COLS / 2)) * 2 +
               k % 2] = bf16_from_f32(job->values[n * w->k_in + k]);
        }
    }
}

cf_err gemm_tiles_pack(backend *be, const float *values, weight *out)
{
    cf_err err;
    const int64_t panels = div_ceil(out->n_out, TILE_COLS);
    pack_job job = {values, out};

    out->bytes = (size_t)(panels * depth_tiles_of(out) * 2 * TILE_VALUES) * sizeof(uint16_t);
    TRY(backend_keep_bytes(be, out->bytes, &out->data));
    out->tiled = true;
    pool_run(cpu_of(be)->threads, (int32_t)panels, pack_panel, &job);
out:
    return err;
}

static void narrow_tile(void *ctx, int32_t tile_idx, int thread_idx)
{
    (void)thread_idx;
    const tiles_job *tj = ctx;
    const int64_t first = (int64_t)tile_idx * TILE_ROWS, depth = tj->job->w->k_in;
    tj->kernels->narrow((int)min_i64(TILE_ROWS, tj->job->rows - first), depth, tensor_f32(tj->job->x) + first * depth,
                        depth, tj->a + tile_idx * tj->depth_tiles * TILE_VALUES);
}

static void finish_rows(const gemm_job *job, const float *c, int64_t first_row, int64_t rows, int64_t first_col)
{
    const int64_t cols = min_i64(TILE_COLS, job->w->n_out - first_col);
    for (int64_t r = 0; r < rows; r++)
        memcpy(tensor_f32(job->y) + (first_row + r) * job->w->n_out + first_col, c + r * TILE_COLS,
               (size_t)cols * sizeof *c);
    gemm_finish(job, &(gemm_tile){.first_row = first_row, .rows = rows, .first_col = first_col, .cols = cols});
}

static void run_panels(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const tiles_job *tj = ctx;
    const gemm_job *job = tj->job;
    const int64_t first_row = task_idx % tj->row_blocks * tj->block_rows;
    const int64_t end_row = min_i64(first_row + tj->block_rows, job->rows);
    const int64_t first_panel = task_idx / tj->row_blocks * tj->task_panels;
    const int64_t tile_values = tj->depth_tiles * TILE_VALUES;
    float c[PAIR_ROWS * TILE_COLS];

    tj->kernels->begin();
    for (int64_t p = first_panel; p < min_i64(first_panel + tj->task_panels, tj->panels); p++)
        for (int64_t row = first_row; row < end_row; row += PAIR_ROWS) {
            const int64_t rows = min_i64(PAIR_ROWS, end_row - row);
            const uint16_t *a = tj->a + row / TILE_ROWS * tile_values;
            tj->kernels->multiply((int)rows, tj->depth_tiles, a, a + tile_values,
                                  (const uint16_t *)job->w->data + p * 2 * tile_values, row == first_row, c);
            finish_rows(job, c, row, rows, p * TILE_COLS);
        }
    tj->kernels->end();
}

cf_err gemm_tiles_run(backend *be, gemm_job *job)
{
    cf_err err;
    const weight *w = job->w;
    tiles_job tj = {.job = job,
                    .kernels = job->cpu->tiles,
                    .depth_tiles = depth_tiles_of(w),
                    .panels = div_ceil(w->n_out, TILE_COLS)};
    const int64_t row_tiles = div_ceil(job->rows, TILE_ROWS), tile_bytes = tj.depth_tiles * TILE_VALUES * 2;
    const int64_t block_pairs = min_i64(div_ceil(job->rows, PAIR_ROWS), ROW_BLOCK_BYTES / (2 * tile_bytes));

    tj.block_rows = PAIR_ROWS * (block_pairs > 0 ? block_pairs : 1);
    tj.row_blocks = div_ceil(job->rows, tj.block_rows);
    tj.task_panels = TASK_BYTES / (2 * tile_bytes);
    if (tj.task_panels < 1)
        tj.task_panels = 1;
    TRY(arena_take(&be->scratch, (size_t)(row_tiles * tile_bytes), &tj.a));
    pool_run(job->cpu->threads, (int32_t)row_tiles, narrow_tile, &tj);
    const int64_t tasks = tj.row_blocks * div_ceil(tj.panels, tj.task_panels);
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    pool_run(job->cpu->threads, (int32_t)tasks, run_panels, &tj);
out:
    return err;
}
