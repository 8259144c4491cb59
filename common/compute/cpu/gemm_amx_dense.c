/*
 * gemm_amx_dense.c - layers with bf16 operands on the tile unit (gemm_amx.h), without a gathering.
 *
 * A task is a piece of rows times a run of panels. The piece is rounded or copied into the thread's own buffer, in the
 * order in which the unit reads it:
 *
 *   [block of 32 rows][chunk of 32 values][32 rows][32]
 *
 * and stays in the second cache while pairs of panels pass. Both operands of PART_STEPS steps fit the first cache, so
 * the depth is done in such parts and sums wait in memory between them. While a pair is multiplied the next one is
 * fetched. A result that is larger than the caches is written past them. None of the cuts shows in the bytes.
 * Run by the pool's threads. Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm_amx.h"

#define PIECE_BYTES  ((int64_t)1 << 20)                     /* of the left operand: half of a second cache */
#define PIECE_ROWS   192                                    /* fewer pay badly for the panels that pass */
#define PART_STEPS   8                                      /* 16 KiB of each operand */
#define PAIR         2                                      /* panels whose sums wait together */
#define STREAM_BYTES ((int64_t)2 << 20)                     /* of y: more is not read again from a cache */
#define STEP_LINES   (AMX_STEP_VALUES * 2 / AMX_LINE_BYTES) /* of a panel */

typedef struct dense_job {
    const gemm_job *job;
    uint16_t *pieces; /* [threads][piece_rows][chunks * 32], in scratch */
    int64_t chunks, panels, piece_rows, piece_count, task_panels, col_tasks;
    bool streamed;
} dense_job;

/* Rows [first, first + rows); those of an incomplete last block are zeros. */
static void fill_piece(const dense_job *dj, int64_t first, int64_t rows, uint16_t *piece)
{
    const tensor *x = dj->job->x;
    const int64_t depth = dj->job->w->k_in;
    for (int64_t r = 0; r < div_ceil(rows, AMX_SIDE) * AMX_SIDE; r++) {
        uint16_t *to = piece + r / AMX_SIDE * dj->chunks * AMX_STEP_VALUES + r % AMX_SIDE * AMX_SIDE;
        if (r < rows && x->type == DTYPE_BF16)
            amx_lay_bf16((const uint16_t *)x->data + (first + r) * depth, depth, to);
        else if (r < rows)
            amx_lay_f32(tensor_f32(x) + (first + r) * depth, depth, to);
        else
            for (int64_t chunk = 0; chunk < dj->chunks; chunk++)
                memset(to + chunk * AMX_STEP_VALUES, 0, AMX_SIDE * sizeof *to);
    }
}

/* A piece of rows, which lies in `piece`, by `count` panels from `panel`; the next next_count are fetched meanwhile. */
static void run_pair(const dense_job *dj, const uint16_t *piece, int64_t first_row, int64_t rows, int64_t panel,
                     int64_t count, int64_t next_count)
{
    const gemm_job *job = dj->job;
    const int64_t panel_values = dj->chunks * AMX_STEP_VALUES, blocks = div_ceil(rows, AMX_SIDE);
    const uint16_t *panels = (const uint16_t *)job->w->data + panel * panel_values;
    const uint16_t *next = panels + count * panel_values;
    const int64_t lines = div_ceil(next_count * STEP_LINES, count * blocks); /* that a step fetches */
    _Alignas(64) float c[PAIR][AMX_BLOCK_VALUES];

    for (int64_t b = 0; b < blocks; b++, piece += panel_values) {
        for (int64_t step = 0; step < dj->chunks; step += PART_STEPS)
            for (int64_t p = 0; p < count; p++) {
                const int64_t steps = min_i64(PART_STEPS, dj->chunks - step);
                amx_add_part(piece + step * AMX_STEP_VALUES, panels + p * panel_values + step * AMX_STEP_VALUES, steps,
                             step == 0, next, lines, c[p]);
                next += steps * lines * (AMX_LINE_BYTES / (int64_t)sizeof *next);
            }
        for (int64_t p = 0; p < count; p++) {
            const int64_t col = (panel + p) * AMX_SIDE, row = b * AMX_SIDE;
            const amx_place at = {.row = first_row + row,
                                  .rows = min_i64(AMX_SIDE, rows - row),
                                  .row_step = 1,
                                  .col = col,
                                  .cols = min_i64(AMX_SIDE, job->w->n_out - col)};
            gemm_amx_finish(job, c[p], AMX_SIDE, &at, dj->streamed);
        }
    }
}

static void run_task(void *ctx, int32_t task_idx, int thread_idx)
{
    const dense_job *dj = ctx;
    const int64_t first_row = task_idx / dj->col_tasks * dj->piece_rows;
    const int64_t rows = min_i64(dj->piece_rows, dj->job->rows - first_row);
    const int64_t first = task_idx % dj->col_tasks * dj->task_panels;
    const int64_t end = min_i64(first + dj->task_panels, dj->panels);
    uint16_t *piece = dj->pieces + thread_idx * dj->piece_rows * dj->chunks * AMX_SIDE;

    fill_piece(dj, first_row, rows, piece);
    amx_begin();
    for (int64_t p = first; p < end; p += PAIR) {
        const int64_t count = min_i64(PAIR, end - p);
        run_pair(dj, piece, first_row, rows, p, count, min_i64(PAIR, end - p - count));
    }
    amx_end();
    if (dj->streamed)
        amx_stream_end();
}

/* As many pieces as threads, or a multiple, all of one size; fewer rows than that are cut by columns as well. */
static void plan_tasks(dense_job *dj)
{
    const int64_t rows = dj->job->rows, threads = pool_threads(dj->job->cpu->threads);
    const int64_t row_bytes = dj->chunks * AMX_SIDE * (int64_t)sizeof(uint16_t);
    int64_t most = PIECE_BYTES / row_bytes / AMX_SIDE * AMX_SIDE;
    if (most < AMX_SIDE)
        most = AMX_SIDE;
    int64_t pieces = div_ceil(rows, most);
    if (rows >= threads * PIECE_ROWS)
        pieces = div_ceil(pieces, threads) * threads;
    dj->piece_rows = div_ceil(div_ceil(rows, pieces), AMX_SIDE) * AMX_SIDE;
    dj->piece_count = div_ceil(rows, dj->piece_rows);
    dj->task_panels = div_ceil(div_ceil(dj->panels, div_ceil(threads, dj->piece_count)), PAIR) * PAIR;
    dj->col_tasks = div_ceil(dj->panels, dj->task_panels);
}

cf_err gemm_amx_dense(backend *be, const gemm_job *job)
{
    cf_err err;
    const weight *w = job->w;
    dense_job dj = {.job = job, .chunks = amx_chunks(w), .panels = amx_panels(w)};

    plan_tasks(&dj);
    dj.streamed = job->y->type == DTYPE_BF16 && w->n_out % AMX_SIDE == 0 &&
                  (uintptr_t)job->y->data % AMX_LINE_BYTES == 0 &&
                  job->rows * w->n_out * (int64_t)sizeof(uint16_t) > STREAM_BYTES;
    const int64_t values = pool_threads(job->cpu->threads) * dj.piece_rows * dj.chunks * AMX_SIDE;
    TRY(arena_take(&be->scratch, (size_t)values * sizeof *dj.pieces, &dj.pieces));
    const int64_t tasks = dj.piece_count * dj.col_tasks;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    pool_run(job->cpu->threads, (int32_t)tasks, run_task, &dj);
out:
    return err;
}
