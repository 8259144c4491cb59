/*
 * gemm_amx.c - the tile engine of gemm.h: bulk products and convolutions with bf16 operands, or with pairs of them,
 * as blocks of 32 rows and 32 columns (amx.h). Layers with bf16 operands are multiplied by gemm_amx_dense.c.
 *
 *   packed weight, per group:  [panel of 32 columns][part][tap][chunk of 32 channels][step of amx.h]
 *
 * The left operand is rounded once, into a plane in scratch: each sequence with the zeros that its taps read outside
 * it, so that a tap is a shift by rows and nothing is gathered. A part is bf16 of the operand, or, of a pair, of what
 * the first rounding left; a pair's product is three: high high, low high, high low.
 *
 * Few channels fill no chunk. Their rows lie in the plane without padding, so that the taps of an output are one run of
 * values, [tap][channel], which overlaps its neighbour's: a chunk holds several taps, and there is but one "tap". With
 * a dilation d, row t is in phase t % d of the plane, where taps are neighbours again.
 *
 * A task is a run of panels that stays in the second cache, times a piece of rows. The cut does not show in the bytes.
 * Run by the pool's threads. Owns nothing: weights are the backend's kept memory. Fails: CF_ERR_NOMEM.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm_amx.h"

#define PIECE_ROWS        256                /* of one task */
#define PANEL_BYTES_MAX   ((int64_t)1 << 20) /* of one task: half of a second cache */
#define TASKS_PER_THREAD  4
#define PLANE_TASK_VALUES ((int64_t)1 << 15)

/* Rows of y that one sequence, or a part of it, gives, row_step apart; and the row of the plane that tap 0 of the first
 * reads. */
typedef struct amx_piece {
    int64_t first_row, rows, plane_row;
} amx_piece;

typedef struct amx_job {
    const gemm_job *job;
    uint16_t *plane; /* [parts][plane_rows][row_values], merged [parts][groups][plane_rows][row_values]; in scratch */
    int64_t row_values; /* of one row of the left operand */
    int64_t group_pitch, part_pitch;
    int64_t plane_rows, plane_task_rows;
    int64_t *plane_first; /* [sequences + 1], rows of the plane */
    amx_piece *pieces;
    int64_t piece_count, taps, chunks, panels, task_panels, col_tasks;
    int64_t stride, dilation, phases; /* phases of the plane: 1, or the dilation of merged taps */
    int64_t row_step;                 /* rows of y between two that read one phase */
    int64_t plane_step;               /* rows of the plane between their taps */
    int64_t block_rows, tail;         /* tail: values of the last chunk that are multiplied */
    int parts;
} amx_job;

bool gemm_amx_take(const cpu_state *cpu, const weight *w)
{
    return cpu->use_amx && (w->operands == PRECISION_BF16 || w->operands == PRECISION_BF16_PAIR) &&
           w->form != WEIGHT_CONV_F64 && w->kinds == GEMM_BULK_BIT && w->part_count == 0;
}

typedef struct pack_job {
    const float *values;
    const weight *w;
} pack_job;

/* One column: filter o, [k_in / groups][kernel]. */
static void pack_column(const weight *w, const float *filter, uint16_t *panel, int col)
{
    const int64_t inner = w->k_in / w->groups;
    for (int64_t i = 0; i < inner; i++)
        for (int64_t tap = 0; tap < w->kernel; tap++) {
            const float v = filter[i * w->kernel + tap];
            const int64_t depth = tap * (amx_merged(w) ? inner : amx_chunks(w) * AMX_SIDE) + i;
            const int64_t at = depth / AMX_SIDE * AMX_STEP_VALUES + amx_step_idx((int)(depth % AMX_SIDE), col);
            panel[at] = bf16_from_f32(v);
            if (amx_parts(w) > 1)
                panel[amx_part_values(w) + at] = bf16_from_f32(v - f32_from_bf16(panel[at]));
        }
}

static void pack_panel(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const pack_job *job = ctx;
    const weight *w = job->w;
    const int64_t group_cols = w->n_out / w->groups, group = task_idx / amx_panels(w), panel = task_idx % amx_panels(w);
    uint16_t *to = (uint16_t *)w->data + task_idx * amx_parts(w) * amx_part_values(w);
    for (int64_t col = panel * AMX_SIDE; col < min_i64((panel + 1) * AMX_SIDE, group_cols); col++)
        pack_column(w, job->values + (group * group_cols + col) * w->k_in / w->groups * w->kernel, to,
                    (int)(col % AMX_SIDE));
}

cf_err gemm_amx_pack(backend *be, const float *values, weight *out)
{
    cf_err err;
    const int64_t panels = out->groups * amx_panels(out);
    pack_job job = {values, out};

    out->bytes = (size_t)(panels * amx_parts(out) * amx_part_values(out)) * sizeof(uint16_t);
    TRY(backend_keep_bytes(be, out->bytes, &out->data)); /* zeroed: depths and columns that do not exist */
    pool_run(cpu_of(be)->threads, (int32_t)panels, pack_panel, &job);
out:
    return err;
}

/* ---- the left operand ---- */

static int32_t sequences_of(const gemm_job *job)
{
    return job->conv ? job->conv->rows_out->count : 1;
}

static int64_t rows_out_of(const gemm_job *job, int32_t b)
{
    return job->conv ? rows_length(job->conv->rows_out, b) : job->rows;
}

static int64_t phase_rows(const amx_job *aj, int32_t b)
{
    return (aj->plane_first[b + 1] - aj->plane_first[b]) / aj->phases;
}

/* Row `row` of the plane, counted in sequence b, as a row of x; -1: zeros. */
static int64_t plane_source(const amx_job *aj, int32_t b, int64_t row)
{
    const gemm_job *job = aj->job;
    const op_conv1d_args *a = job->conv;
    if (!a)
        return row < job->rows ? row : -1;
    const int64_t in_phase = phase_rows(aj, b), at = row / in_phase + row % in_phase * aj->phases - a->pad_left;
    if (at < 0 || at >= (int64_t)rows_length(a->rows_in, b) * a->repeat)
        return -1;
    return a->rows_in->offs[b] + at / a->repeat;
}

/* How many rows of the plane, from the one on that is row `from` of x, are rows of x, each `phases` after the last. */
static int64_t run_of(const amx_job *aj, int32_t b, int64_t row, int64_t from)
{
    const op_conv1d_args *a = aj->job->conv;
    if (!a)
        return aj->job->rows - from;
    if (a->repeat > 1)
        return 1;
    const int64_t in_phase = phase_rows(aj, b), left = in_phase - (row - aj->plane_first[b]) % in_phase;
    return min_i64(left, div_ceil(a->rows_in->offs[b + 1] - from, aj->phases));
}

/* Where the values of a group and row lie, of the first part. */
static uint16_t *plane_at(const amx_job *aj, int64_t group, int64_t row)
{
    return aj->plane + group * aj->group_pitch + row * aj->row_values;
}

/* Channels of one group in a row of the plane: without padding when taps are merged, else whole chunks. */
static int64_t group_values(const amx_job *aj)
{
    return amx_merged(aj->job->w) ? aj->row_values : aj->chunks * AMX_SIDE;
}

/* Rows of f32 into the parts. */
static void narrow_rows(const amx_job *aj, const float *x, int64_t row, int64_t rows)
{
    const weight *w = aj->job->w;
    const int64_t inner = w->k_in / w->groups;
    const amx_lines lines = {.rows = rows,
                             .count = inner,
                             .width = group_values(aj),
                             .from_pitch = aj->phases * w->k_in,
                             .to_pitch = aj->row_values};
    for (int64_t g = 0; g < w->groups; g++) {
        uint16_t *high = plane_at(aj, g, row), *low = aj->parts > 1 ? high + aj->part_pitch : NULL;
        amx_narrow(&lines, x + g * inner, high, low);
    }
}

static void zero_row(const amx_job *aj, int64_t row)
{
    for (int p = 0; p < aj->parts; p++)
        for (int64_t g = 0; g < aj->job->w->groups; g++)
            memset(plane_at(aj, g, row) + p * aj->part_pitch, 0, (size_t)group_values(aj) * sizeof *aj->plane);
}

static void fill_plane(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const amx_job *aj = ctx;
    const gemm_job *job = aj->job;
    const int64_t first = task_idx * aj->plane_task_rows, end = min_i64(first + aj->plane_task_rows, aj->plane_rows);
    int32_t b = 0;
    for (int64_t row = first, rows; row < end; row += rows) {
        while (row >= aj->plane_first[b + 1])
            b++;
        const int64_t from = plane_source(aj, b, row - aj->plane_first[b]);
        rows = from < 0 ? 1 : min_i64(end - row, run_of(aj, b, row, from));
        if (from < 0)
            zero_row(aj, row);
        else
            narrow_rows(aj, tensor_f32(job->x) + from * job->w->k_in, row, rows);
    }
}

/* Rows of the plane that one output reads, from its first tap on. */
static int64_t rows_read(const amx_job *aj)
{
    const int64_t taps = aj->job->w->kernel;
    return amx_merged(aj->job->w) ? taps : (taps - 1) * aj->dilation + 1;
}

/* Every row that a block may read is in the plane, those behind the last row of y too. */
static cf_err make_plane(backend *be, amx_job *aj)
{
    cf_err err;
    const gemm_job *job = aj->job;
    const int32_t sequences = sequences_of(job);
    const int64_t last_first = (aj->row_step - 1) * aj->stride / aj->phases;

    TRY(arena_take(&be->scratch, ((size_t)sequences + 1) * sizeof *aj->plane_first, &aj->plane_first));
    aj->plane_first[0] = 0;
    for (int32_t b = 0; b < sequences; b++) {
        const int64_t blocks = div_ceil(div_ceil(rows_out_of(job, b), aj->row_step), aj->block_rows);
        const int64_t rows =
            blocks == 0 ? 0 : last_first + aj->plane_step * (blocks * aj->block_rows - 1) + rows_read(aj);
        aj->plane_first[b + 1] = aj->plane_first[b] + aj->phases * rows;
    }
    aj->plane_rows = aj->plane_first[sequences];
    aj->plane_task_rows = div_ceil(PLANE_TASK_VALUES, job->w->k_in);
    aj->group_pitch = amx_merged(job->w) ? aj->plane_rows * aj->row_values : group_values(aj);
    aj->part_pitch = aj->plane_rows * group_values(aj) * job->w->groups;
    const int64_t values = aj->parts * aj->part_pitch;
    TRY(arena_take(&be->scratch, (size_t)values * sizeof *aj->plane, &aj->plane));
    pool_run(job->cpu->threads, (int32_t)div_ceil(aj->plane_rows, aj->plane_task_rows), fill_plane, aj);
out:
    return err;
}

/* ---- multiplying ---- */

static cf_err cut_pieces(backend *be, amx_job *aj)
{
    cf_err err;
    const gemm_job *job = aj->job;
    int64_t count = 0, done = 0;
    for (int32_t b = 0; b < sequences_of(job); b++)
        count += aj->row_step * div_ceil(rows_out_of(job, b), aj->row_step * PIECE_ROWS);
    TRY(arena_take(&be->scratch, (size_t)count * sizeof *aj->pieces, &aj->pieces));
    aj->piece_count = 0;
    for (int32_t b = 0; b < sequences_of(job); b++) {
        const int64_t all = rows_out_of(job, b);
        for (int64_t i = 0; i < aj->row_step; i++) {
            const int64_t rows = div_ceil(all - i, aj->row_step), phase = i * aj->stride % aj->phases;
            const int64_t plane_row = aj->plane_first[b] + phase * phase_rows(aj, b) + i * aj->stride / aj->phases;
            for (int64_t r = 0; r < rows; r += PIECE_ROWS)
                aj->pieces[aj->piece_count++] = (amx_piece){
                    .first_row = done + i + r * aj->row_step,
                    .rows = min_i64(PIECE_ROWS, rows - r),
                    .plane_row = plane_row + r * aj->plane_step,
                };
        }
        done += all;
    }
out:
    return err;
}

/* y += gate * c, rows of several sequences. */
static void gate_block(const gemm_job *job, const float *c, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    const float *gates[AMX_SIDE];
    int32_t b = rows_find(job->gate->rows, row);
    for (int64_t r = 0; r < rows; r++) {
        while (row + r >= job->gate->rows->offs[b + 1])
            b++;
        gates[r] = modulation_line(job->gate, b, job->gate_off) + col;
    }
    amx_store_gated(c, rows, cols, job->w->n_out, gates, tensor_f32(job->y) + row * job->w->n_out + col);
}

/* Where amx_multiply_half has all columns, the right half is nothing: those that exist are moved together. */
static void activate(const gemm_job *job, float *c, const amx_place *at)
{
    enum { HALF_SIDE = AMX_SIDE / 2 };
    float few[AMX_SIDE * HALF_SIDE];
    if (at->cols > HALF_SIDE) {
        job->cpu->vec->act(c, AMX_BLOCK_VALUES, job->act, job->slope, c);
        return;
    }
    for (int64_t r = 0; r < at->rows; r++) /* a row's columns that do not exist make way for the next row */
        memcpy(few + r * at->cols, c + r * AMX_SIDE, HALF_SIDE * sizeof *c);
    job->cpu->vec->act(few, at->rows * at->cols, job->act, job->slope, few);
    for (int64_t r = 0; r < at->rows; r++)
        memcpy(c + r * AMX_SIDE, few + r * at->cols, HALF_SIDE * sizeof *c);
}

void gemm_amx_finish(const gemm_job *job, float *c, const amx_place *at, bool streamed)
{
    const int64_t pitch = job->w->n_out * at->row_step, first = at->row * job->w->n_out + at->col;
    uint16_t *narrow = (uint16_t *)job->y->data + first;
    if (job->bias)
        amx_add_bias(tensor_f32(job->bias) + at->col, at->cols, c);
    if (job->act == ACT_GELU_TANH)
        amx_gelu_tanh(c);
    else if (job->act != ACT_NONE)
        activate(job, c, at);
    if (job->gate)
        gate_block(job, c, at->row, at->rows, at->col, at->cols);
    else if (streamed)
        amx_stream_bf16(c, at->rows, pitch, narrow);
    else if (job->y->type == DTYPE_BF16)
        amx_store_bf16(c, at->rows, at->cols, pitch, narrow);
    else
        amx_store_f32(c, at->rows, at->cols, pitch, tensor_f32(job->y) + first);
}

/* A block of rows of one panel. */
static void run_panel(const amx_job *aj, const amx_piece *piece, int64_t group, int64_t panel, int64_t r)
{
    const gemm_job *job = aj->job;
    const weight *w = job->w;
    const amx_shape shape = {.row_pitch = aj->plane_step * aj->row_values,
                             .tap_pitch = aj->dilation * aj->row_values,
                             .taps = aj->taps,
                             .chunks = aj->chunks};
    const uint16_t *high = (const uint16_t *)w->data + (group * aj->panels + panel) * aj->parts * amx_part_values(w);
    const uint16_t *low = high + amx_part_values(w);
    const uint16_t *left = plane_at(aj, group, piece->plane_row + r * aj->plane_step);
    const uint16_t *left_low = left + (aj->parts - 1) * aj->part_pitch;
    const uint16_t *a[AMX_TERMS_MAX] = {left, left_low, left}, *b[AMX_TERMS_MAX] = {high, high, low};
    const int64_t col = panel * AMX_SIDE;
    amx_place at = {.row_step = aj->row_step,
                    .col = group * job->group_cols + col,
                    .cols = min_i64(AMX_SIDE, job->group_cols - col)};
    const int terms = aj->parts > 1 ? AMX_TERMS_MAX : 1;
    _Alignas(64) float c[2 * AMX_BLOCK_VALUES];

    if (amx_half(w))
        amx_multiply_half(&shape, terms, a, b, c);
    else
        amx_multiply(&shape, terms, a, b, c);
    for (int64_t i = 0; i < aj->block_rows && r + i < piece->rows; i += AMX_SIDE) {
        at.row = piece->first_row + (r + i) * aj->row_step;
        at.rows = min_i64(AMX_SIDE, piece->rows - r - i);
        gemm_amx_finish(job, c + i * AMX_SIDE, &at, false);
    }
}

static void run_piece(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const amx_job *aj = ctx;
    const amx_piece *piece = &aj->pieces[task_idx % aj->piece_count];
    const int64_t rest = task_idx / aj->piece_count, group = rest / aj->col_tasks;
    const int64_t first = rest % aj->col_tasks * aj->task_panels;

    if (amx_half(aj->job->w))
        amx_begin_halves(aj->tail);
    else
        amx_begin();
    for (int64_t r = 0; r < piece->rows; r += aj->block_rows)
        for (int64_t p = first; p < min_i64(first + aj->task_panels, aj->panels); p++)
            run_panel(aj, piece, group, p, r);
    amx_end();
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

static void plan_plane(amx_job *aj)
{
    const weight *w = aj->job->w;
    const op_conv1d_args *conv = aj->job->conv;
    const bool merged = amx_merged(w);
    aj->stride = conv ? conv->stride : 1;
    aj->dilation = conv ? conv->dilation : 1;
    aj->phases = merged ? aj->dilation : 1;
    aj->row_step = aj->phases / common_divisor(aj->phases, aj->stride);
    aj->plane_step = aj->row_step * aj->stride / aj->phases;
    aj->row_values = merged ? w->k_in / w->groups : w->groups * aj->chunks * AMX_SIDE;
    aj->block_rows = amx_half(w) ? 2 * AMX_SIDE : AMX_SIDE;
    aj->tail = merged ? w->kernel * aj->row_values - (aj->chunks - 1) * AMX_SIDE : AMX_SIDE;
}

static void plan_tasks(amx_job *aj)
{
    const weight *w = aj->job->w;
    const int64_t panel_bytes = aj->parts * amx_part_values(w) * (int64_t)sizeof(uint16_t);
    const int64_t wanted = TASKS_PER_THREAD * pool_threads(aj->job->cpu->threads);
    aj->task_panels = min_i64(aj->panels, PANEL_BYTES_MAX / panel_bytes);
    if (aj->task_panels < 1)
        aj->task_panels = 1;
    while (aj->task_panels > 1 && aj->piece_count * w->groups * div_ceil(aj->panels, aj->task_panels) < wanted)
        aj->task_panels = div_ceil(aj->task_panels, 2);
    aj->col_tasks = div_ceil(aj->panels, aj->task_panels);
}

cf_err gemm_amx_run(backend *be, gemm_job *job)
{
    cf_err err;
    const weight *w = job->w;
    if (!job->conv && amx_parts(w) == 1)
        return gemm_amx_dense(be, job);
    amx_job aj = {
        .job = job, .parts = amx_parts(w), .taps = amx_taps(w), .chunks = amx_chunks(w), .panels = amx_panels(w)};

    plan_plane(&aj);
    TRY(make_plane(be, &aj));
    TRY(cut_pieces(be, &aj));
    plan_tasks(&aj);
    const int64_t tasks = aj.piece_count * aj.col_tasks * w->groups;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    pool_run(job->cpu->threads, (int32_t)tasks, run_piece, &aj);
out:
    return err;
}
