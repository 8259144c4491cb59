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
 * A task is a run of panels that stays in the second cache, times a piece of rows. The cut does not show in the bytes.
 * Run by the pool's threads. Owns nothing: weights are the backend's kept memory. Fails: CF_ERR_NOMEM.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm_amx.h"

#define PIECE_ROWS       256                /* of one task */
#define PANEL_BYTES_MAX  ((int64_t)1 << 20) /* of one task: half of a second cache */
#define TASKS_PER_THREAD 4
#define PLANE_TASK_ROWS  64

/* Rows of y that one sequence, or a part of it, gives; and the row of the plane that tap 0 of the first reads. */
typedef struct amx_piece {
    int64_t first_row, rows, plane_row;
} amx_piece;

typedef struct amx_job {
    const gemm_job *job;
    uint16_t *plane;    /* [parts][plane_rows][row_values], in scratch */
    int64_t row_values; /* of one row of the left operand */
    int64_t plane_rows;
    int64_t *plane_first; /* [sequences + 1], rows of the plane */
    amx_piece *pieces;
    int64_t piece_count, taps, chunks, panels, task_panels, col_tasks;
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
            const int64_t step = (tap * amx_chunks(w) + i / AMX_SIDE) * AMX_STEP_VALUES;
            const int64_t at = step + amx_step_idx((int)(i % AMX_SIDE), col);
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

/* Row `row` of the plane, counted in sequence b, as a row of x; -1: zeros. */
static int64_t plane_source(const amx_job *aj, int32_t b, int64_t row)
{
    const gemm_job *job = aj->job;
    const op_conv1d_args *a = job->conv;
    if (!a)
        return row < job->rows ? row : -1;
    const int64_t at = row - a->pad_left;
    if (at < 0 || at >= (int64_t)rows_length(a->rows_in, b) * a->repeat)
        return -1;
    return a->rows_in->offs[b] + at / a->repeat;
}

/* One row of bf16, padded to whole chunks. */
static void copy_row(const amx_job *aj, const uint16_t *x, int64_t row)
{
    const int64_t inner = aj->job->w->k_in;
    uint16_t *to = aj->plane + row * aj->row_values;
    memcpy(to, x, (size_t)inner * sizeof *to);
    memset(to + inner, 0, (size_t)(aj->row_values - inner) * sizeof *to);
}

/* One row of f32 into the parts, each group padded to whole chunks. */
static void narrow_row(const amx_job *aj, const float *x, int64_t row)
{
    const weight *w = aj->job->w;
    const int64_t inner = w->k_in / w->groups, padded = aj->chunks * AMX_SIDE;
    for (int64_t g = 0; g < w->groups; g++) {
        uint16_t *high = aj->plane + row * aj->row_values + g * padded;
        uint16_t *low = aj->parts > 1 ? high + aj->plane_rows * aj->row_values : NULL;
        amx_narrow(x + g * inner, inner, high, low);
        memset(high + inner, 0, (size_t)(padded - inner) * sizeof *high);
        if (low)
            memset(low + inner, 0, (size_t)(padded - inner) * sizeof *low);
    }
}

static void fill_plane(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const amx_job *aj = ctx;
    const gemm_job *job = aj->job;
    const int64_t first = (int64_t)task_idx * PLANE_TASK_ROWS, end = min_i64(first + PLANE_TASK_ROWS, aj->plane_rows);
    int32_t b = 0;
    for (int64_t row = first; row < end; row++) {
        while (row >= aj->plane_first[b + 1])
            b++;
        const int64_t from = plane_source(aj, b, row - aj->plane_first[b]);
        if (from >= 0 && job->x->type == DTYPE_BF16) {
            copy_row(aj, (const uint16_t *)job->x->data + from * job->w->k_in, row);
            continue;
        }
        if (from >= 0) {
            narrow_row(aj, tensor_f32(job->x) + from * job->w->k_in, row);
            continue;
        }
        for (int p = 0; p < aj->parts; p++)
            memset(aj->plane + (p * aj->plane_rows + row) * aj->row_values, 0,
                   (size_t)aj->row_values * sizeof *aj->plane);
    }
}

/* Every row that a block of 32 may read is in the plane, those behind the last row of y too. */
static cf_err make_plane(backend *be, amx_job *aj)
{
    cf_err err;
    const gemm_job *job = aj->job;
    const int32_t sequences = sequences_of(job);
    const int64_t stride = job->conv ? job->conv->stride : 1;
    const int64_t reach = job->conv ? (job->conv->kernel - 1) * (int64_t)job->conv->dilation : 0;

    TRY(arena_take(&be->scratch, ((size_t)sequences + 1) * sizeof *aj->plane_first, &aj->plane_first));
    aj->plane_first[0] = 0;
    for (int32_t b = 0; b < sequences; b++) {
        const int64_t blocks = div_ceil(rows_out_of(job, b), AMX_SIDE);
        const int64_t rows = blocks == 0 ? 0 : stride * (blocks * AMX_SIDE - 1) + reach + 1;
        aj->plane_first[b + 1] = aj->plane_first[b] + rows;
    }
    aj->plane_rows = aj->plane_first[sequences];
    const int64_t values = aj->parts * aj->plane_rows * aj->row_values;
    TRY(arena_take(&be->scratch, (size_t)values * sizeof *aj->plane, &aj->plane));
    pool_run(job->cpu->threads, (int32_t)div_ceil(aj->plane_rows, PLANE_TASK_ROWS), fill_plane, aj);
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
        count += div_ceil(rows_out_of(job, b), PIECE_ROWS);
    TRY(arena_take(&be->scratch, (size_t)count * sizeof *aj->pieces, &aj->pieces));
    aj->piece_count = 0;
    for (int32_t b = 0; b < sequences_of(job); b++) {
        const int64_t rows = rows_out_of(job, b);
        for (int64_t r = 0; r < rows; r += PIECE_ROWS)
            aj->pieces[aj->piece_count++] = (amx_piece){
                .first_row = done + r,
                .rows = min_i64(PIECE_ROWS, rows - r),
                .plane_row = aj->plane_first[b] + r * (job->conv ? job->conv->stride : 1),
            };
        done += rows;
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

void gemm_amx_finish(const gemm_job *job, float *c, int64_t row, int64_t rows, int64_t col, int64_t cols, bool streamed)
{
    const int64_t pitch = job->w->n_out;
    uint16_t *narrow = (uint16_t *)job->y->data + row * pitch + col;
    if (job->bias)
        amx_add_bias(tensor_f32(job->bias) + col, cols, c);
    if (job->act == ACT_GELU_TANH)
        amx_gelu_tanh(c);
    else if (job->act != ACT_NONE)
        job->cpu->vec->act(c, AMX_BLOCK_VALUES, job->act, job->slope, c);
    if (job->gate)
        gate_block(job, c, row, rows, col, cols);
    else if (streamed)
        amx_stream_bf16(c, rows, pitch, narrow);
    else if (job->y->type == DTYPE_BF16)
        amx_store_bf16(c, rows, cols, pitch, narrow);
    else
        amx_store_f32(c, rows, cols, pitch, tensor_f32(job->y) + row * pitch + col);
}

/* A block of 32 rows of one panel. */
static void run_panel(const amx_job *aj, const amx_piece *piece, int64_t group, int64_t panel, int64_t r)
{
    const gemm_job *job = aj->job;
    const weight *w = job->w;
    const int64_t stride = job->conv ? job->conv->stride : 1, dilation = job->conv ? job->conv->dilation : 1;
    const amx_shape shape = {.row_pitch = stride * aj->row_values,
                             .tap_pitch = dilation * aj->row_values,
                             .taps = aj->taps,
                             .chunks = aj->chunks};
    const uint16_t *high = (const uint16_t *)w->data + (group * aj->panels + panel) * aj->parts * amx_part_values(w);
    const uint16_t *low = high + amx_part_values(w);
    const uint16_t *left = aj->plane + (piece->plane_row + r * stride) * aj->row_values + group * aj->chunks * AMX_SIDE;
    const uint16_t *left_low = left + (aj->parts - 1) * aj->plane_rows * aj->row_values;
    const uint16_t *a[AMX_TERMS_MAX] = {left, left_low, left}, *b[AMX_TERMS_MAX] = {high, high, low};
    const int64_t col = panel * AMX_SIDE;
    _Alignas(64) float c[AMX_BLOCK_VALUES];

    amx_multiply(&shape, aj->parts > 1 ? 3 : 1, a, b, c);
    gemm_amx_finish(job, c, piece->first_row + r, min_i64(AMX_SIDE, piece->rows - r), group * job->group_cols + col,
                    min_i64(AMX_SIDE, job->group_cols - col), false);
}

static void run_piece(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const amx_job *aj = ctx;
    const amx_piece *piece = &aj->pieces[task_idx % aj->piece_count];
    const int64_t rest = task_idx / aj->piece_count, group = rest / aj->col_tasks;
    const int64_t first = rest % aj->col_tasks * aj->task_panels;

    amx_begin();
    for (int64_t r = 0; r < piece->rows; r += AMX_SIDE)
        for (int64_t p = first; p < min_i64(first + aj->task_panels, aj->panels); p++)
            run_panel(aj, piece, group, p, r);
    amx_end();
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
        .job = job, .parts = amx_parts(w), .taps = w->kernel, .chunks = amx_chunks(w), .panels = amx_panels(w)};

    aj.row_values = w->groups * aj.chunks * AMX_SIDE;
    TRY(make_plane(be, &aj));
    TRY(cut_pieces(be, &aj));
    plan_tasks(&aj);
    const int64_t tasks = aj.piece_count * aj.col_tasks * w->groups;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    pool_run(job->cpu->threads, (int32_t)tasks, run_piece, &aj);
out:
    return err;
}
