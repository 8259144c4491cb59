/*
 * gemm_amx.c - the tile engine of gemm.h: bulk products and convolutions with bf16 operands, or with pairs of them,
 * as blocks of 32 rows and 32 columns (amx.h). Layers with bf16 operands are multiplied by gemm_amx_dense.c.
 *
 *   packed weight, per group:  [panel of 32 columns][part][tap][chunk of 32 channels][step of amx.h]
 *
 * The left operand lies in a plane (gemm_amx_plane.c), where a tap is a shift by rows and nothing is gathered. A part
 * is bf16 of an operand, or, of a pair, of what the first rounding left; a pair's product is three: high high, low
 * high, high low.
 *
 * Few channels fill no chunk. Their rows lie in the plane without padding, so that the taps of an output are one run of
 * values, [tap][channel], which overlaps its neighbour's: a chunk holds several taps, and there is but one "tap".
 *
 * Few filters fill no block. Eight of them are packed twice, the second time a tap further down, so that a row of the
 * block is two rows of y, twins. A sum's way through the chunks then depends on its place in the sequence, and on
 * whether the sequence goes without twins since it holds a value that is not finite, which times zero is not zero.
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

bool gemm_amx_take(const cpu_state *cpu, const weight *w)
{
    return cpu->use_amx && (w->operands == PRECISION_BF16 || w->operands == PRECISION_BF16_PAIR) &&
           w->form != WEIGHT_CONV_F64 && w->kinds == GEMM_BULK_BIT && w->part_count == 0;
}

typedef struct pack_job {
    const float *values;
    const weight *w;
} pack_job;

/* One column: filter o, [k_in / groups][kernel], `later` taps further down. */
static void pack_column(const weight *w, const float *filter, uint16_t *panel, int col, int64_t later)
{
    const int64_t inner = w->k_in / w->groups;
    for (int64_t i = 0; i < inner; i++)
        for (int64_t tap = 0; tap < w->kernel; tap++) {
            const float v = filter[i * w->kernel + tap];
            const int64_t depth = (tap + later) * (amx_merged(w) ? inner : amx_chunks(w) * AMX_SIDE) + i;
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
    for (int64_t col = panel * AMX_SIDE; col < min_i64((panel + 1) * AMX_SIDE, group_cols); col++) {
        const float *filter = job->values + (group * group_cols + col) * w->k_in / w->groups * w->kernel;
        pack_column(w, filter, to, (int)(col % AMX_SIDE), 0);
        if (amx_twin(w))
            pack_column(w, filter, to, (int)col + AMX_TWIN_COLS, 1);
    }
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

static cf_err cut_pieces(backend *be, amx_job *aj)
{
    cf_err err;
    const gemm_job *job = aj->job;
    int64_t count = 0, done = 0;
    for (int32_t b = 0; b < amx_sequences(job); b++)
        count += aj->row_step * div_ceil(amx_rows_out(job, b), aj->row_step * PIECE_ROWS * amx_way_of(aj, b)->twins);
    TRY(arena_take(&be->scratch, (size_t)count * sizeof *aj->pieces, &aj->pieces));
    aj->piece_count = 0;
    for (int32_t b = 0; b < amx_sequences(job); b++) {
        const amx_way *way = amx_way_of(aj, b);
        const int64_t all = amx_rows_out(job, b), piece_rows = PIECE_ROWS * way->twins;
        for (int64_t i = 0; i < aj->row_step; i++) {
            const int64_t rows = div_ceil(all - i, aj->row_step), phase = i * aj->stride % aj->phases;
            const int64_t plane_row = aj->plane_first[b] + phase * amx_phase_rows(aj, b) + i * aj->stride / aj->phases;
            for (int64_t r = 0; r < rows; r += piece_rows)
                aj->pieces[aj->piece_count++] = (amx_piece){
                    .way = way,
                    .first_row = done + i + r * aj->row_step,
                    .rows = min_i64(piece_rows, rows - r),
                    .plane_row = plane_row + r / way->twins * way->plane_step,
                };
        }
        done += all;
    }
out:
    return err;
}

/* y += gate * c, rows of several sequences. */
static void gate_block(const gemm_job *job, const amx_sums *s, const amx_place *at)
{
    const float *gates[AMX_SIDE];
    int32_t b = rows_find(job->gate->rows, at->row);
    for (int64_t r = 0; r < s->rows; r++) {
        while (at->row + r >= job->gate->rows->offs[b + 1])
            b++;
        gates[r] = modulation_line(job->gate, b, job->gate_off) + at->col;
    }
    amx_store_gated(s, gates, job->w->n_out, tensor_f32(job->y) + at->row * job->w->n_out + at->col);
}

/* c = act(c + bias), of whole rows: what lies in columns that do not exist is nothing before and after. */
static void activate(const gemm_job *job, amx_sums *s)
{
    if (job->act == ACT_GELU_TANH) {
        amx_gelu_tanh(s);
    } else {
        if (s->bias)
            amx_add_bias(s);
        job->cpu->vec->act(s->c, s->rows * s->pitch, job->act, job->slope, s->c);
    }
    s->bias = NULL;
}

/* The residual at value `first` of y, or NULL. */
static const float *residual_at(const gemm_job *job, int64_t first)
{
    return job->conv && job->conv->residual ? tensor_f32(job->conv->residual) + first : NULL;
}

void gemm_amx_finish(const gemm_job *job, float *c, int64_t c_pitch, const amx_place *at, bool streamed)
{
    const int64_t pitch = job->w->n_out * at->row_step, first = at->row * job->w->n_out + at->col;
    uint16_t *narrow = (uint16_t *)job->y->data + first;
    amx_sums s = {.c = c,
                  .bias = job->bias ? tensor_f32(job->bias) + at->col : NULL,
                  .rows = at->rows,
                  .cols = at->cols,
                  .pitch = c_pitch};
    if (job->act != ACT_NONE)
        activate(job, &s);
    if (job->gate)
        gate_block(job, &s, at);
    else if (streamed)
        amx_stream_bf16(&s, pitch, narrow);
    else if (job->y->type == DTYPE_BF16)
        amx_store_bf16(&s, pitch, narrow);
    else
        amx_store_f32(&s, residual_at(job, first), pitch, tensor_f32(job->y) + first);
}

/* The same for a block of twins: its columns [0, cols) are the rows at->row, + 2 row_step, ..., and from AMX_TWIN_COLS
 * on those between them. at->rows counts both. */
static void finish_twins(const gemm_job *job, float *c, const amx_place *at)
{
    const int64_t n_out = job->w->n_out, pairs = at->rows / 2, first = at->row * n_out + at->col;
    const int64_t next = first + at->row_step * n_out, pitch = 2 * at->row_step * n_out;
    float *y = tensor_f32(job->y), bias[2 * AMX_TWIN_COLS] = {0};
    amx_sums s = {.c = c, .rows = at->rows - pairs, .cols = 2 * AMX_TWIN_COLS, .pitch = AMX_HALF_COLS};
    if (job->bias) {
        memcpy(bias, tensor_f32(job->bias) + at->col, (size_t)at->cols * sizeof *c);
        memcpy(bias + AMX_TWIN_COLS, bias, AMX_TWIN_COLS * sizeof *c);
        s.bias = bias;
    }
    if (job->act != ACT_NONE)
        activate(job, &s);
    if (pitch == s.cols && at->cols == AMX_TWIN_COLS && at->rows % 2 == 0) { /* twins are neighbours in y as well */
        amx_store_f32(&s, residual_at(job, first), pitch, y + first);
        return;
    }
    s.cols = at->cols;
    amx_store_f32(&s, residual_at(job, first), pitch, y + first);
    s.c += AMX_TWIN_COLS;
    s.rows = pairs;
    amx_store_f32(&s, residual_at(job, next), pitch, y + next);
}

/* A block of one panel, from row r of the block's rows on. */
static void run_panel(const amx_job *aj, const amx_piece *piece, int64_t group, int64_t panel, int64_t r)
{
    const gemm_job *job = aj->job;
    const weight *w = job->w;
    const amx_way *way = piece->way;
    const amx_shape shape = {.row_pitch = way->plane_step * aj->row_values,
                             .tap_pitch = aj->dilation * aj->row_values,
                             .taps = aj->taps,
                             .chunks = way->chunks};
    const uint16_t *high = (const uint16_t *)w->data + (group * aj->panels + panel) * aj->parts * amx_part_values(w);
    const uint16_t *low = high + amx_part_values(w);
    const uint16_t *left = amx_plane_at(aj, group, piece->plane_row + r * way->plane_step);
    const uint16_t *left_low = left + (aj->parts - 1) * aj->part_pitch;
    const uint16_t *a[AMX_TERMS_MAX] = {left, left_low, left}, *b[AMX_TERMS_MAX] = {high, high, low};
    const int64_t col = panel * AMX_SIDE;
    amx_place at = {.row_step = aj->row_step,
                    .col = group * job->group_cols + col,
                    .cols = min_i64(AMX_SIDE, job->group_cols - col)};
    const int64_t c_pitch = amx_half(w) ? AMX_HALF_COLS : AMX_SIDE;
    const int terms = aj->parts > 1 ? AMX_TERMS_MAX : 1;
    _Alignas(64) float c[AMX_BLOCK_VALUES];

    if (amx_half(w))
        amx_multiply_half(&shape, terms, a, b, c);
    else
        amx_multiply(&shape, terms, a, b, c);
    for (int64_t i = 0; i < aj->block_rows && (r + i) * way->twins < piece->rows; i += AMX_SIDE) {
        at.row = piece->first_row + (r + i) * way->twins * aj->row_step;
        at.rows = min_i64(AMX_SIDE * way->twins, piece->rows - (r + i) * way->twins);
        if (way->twins > 1)
            finish_twins(job, c + i * c_pitch, &at);
        else
            gemm_amx_finish(job, c + i * c_pitch, c_pitch, &at, false);
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
        amx_begin_halves(piece->way->tail);
    else
        amx_begin();
    for (int64_t r = 0; r * piece->way->twins < piece->rows; r += aj->block_rows)
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
        .job = job, .parts = amx_parts(w), .taps = amx_taps(w), .chunks = amx_chunks(w), .panels = amx_panels(w)};

    TRY(gemm_amx_make_plane(be, &aj));
    TRY(cut_pieces(be, &aj));
    plan_tasks(&aj);
    const int64_t tasks = aj.piece_count * aj.col_tasks * w->groups;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    pool_run(job->cpu->threads, (int32_t)tasks, run_piece, &aj);
out:
    return err;
}
