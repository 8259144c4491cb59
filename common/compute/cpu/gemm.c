/*
 * gemm.c - linear layers and convolutions as tiles of gathered rows times packed weights. Run by the pool's threads.
 *
 *   packed weight, per group:  [depth block of 256][column panel][depth in block][16 columns]      depth = tap *
 *   inner + i
 *
 * so that a tile walks memory forwards. A tile takes one depth block at a time: gathers its rows, then multiplies all
 * its panels, the block and one panel staying in the caches. A row's sums run over depth ascending in one chain (kept
 * in y between blocks), hence its bytes are the same in any tile, on any thread, in any batch.
 *
 * Fails: CF_ERR_NOMEM while packing; oneDNN's refusals as CF_ERR_DEVICE. Source: ops.h linear, conv1d, conv2d.
 */
#include "common/compute/cpu/gemm.h"

#include <string.h>

#include "common/base/check.h"

#define TASKS_PER_THREAD 4                    /* so that threads end together */
#define TASK_COLS_MIN    64                   /* narrower tiles gather more than they multiply */
#define INLINE_WORK_MAX  ((int64_t)128 << 10) /* multiplications below which waking threads costs more */

/* Cell `first` and those behind it: time steps of freq_out frequencies each. */
static void locate_2d(const op_conv2d_args *a, int64_t first, int64_t count, gather_line *lines)
{
    int32_t b = rows_find(a->rows, first / a->freq_out);
    for (int64_t r = 0; r < count; r++) {
        const int64_t t = (first + r) / a->freq_out, f = (first + r) % a->freq_out;
        while (t >= a->rows->offs[b + 1])
            b++;
        lines[r] = (gather_line){.first_row = a->rows->offs[b],
                                 .span = rows_length(a->rows, b),
                                 .at = t - a->rows->offs[b] - a->kernel / 2,
                                 .freq = a->stride * f - a->kernel / 2};
    }
}

void gemm_locate(const gemm_job *job, int64_t first, int64_t count, gather_line *lines)
{
    if (job->conv2d) {
        locate_2d(job->conv2d, first, count, lines);
        return;
    }
    if (!job->conv) {
        for (int64_t r = 0; r < count; r++)
            lines[r] = (gather_line){.first_row = 0, .span = job->rows, .at = first + r};
        return;
    }
    const op_conv1d_args *a = job->conv;
    int32_t low = rows_find(a->rows_out, first);
    for (int64_t r = 0; r < count; r++) {
        while (first + r >= a->rows_out->offs[low + 1])
            low++;
        lines[r].first_row = a->rows_in->offs[low];
        lines[r].span = (int64_t)rows_length(a->rows_in, low) * a->repeat;
        lines[r].at = a->stride * (first + r - a->rows_out->offs[low]) - a->pad_left;
    }
}

/* As gather_row below for taps over frequency and time. */
static void gather_row_2d(const gemm_job *job, const gather_line *line, int64_t from, int64_t count, unsigned char *dst)
{
    const op_conv2d_args *a = job->conv2d;
    int64_t tap = from / job->inner, channel = from % job->inner;

    while (count > 0) {
        const int64_t n = min_i64(job->inner - channel, count);
        const int64_t at = line->at + tap % a->kernel, freq = line->freq + tap / a->kernel;
        const size_t bytes = (size_t)n * sizeof(float);
        if (at < 0 || at >= line->span || freq < 0 || freq >= a->freq_in)
            memset(dst, 0, bytes);
        else
            memcpy(dst, tensor_f32(job->x) + ((line->first_row + at) * a->freq_in + freq) * job->inner + channel,
                   bytes);
        dst += bytes;
        count -= n;
        channel = 0;
        tap++;
    }
}

/* Copies depth values [from, from + count) of one row, zeros where a tap reads outside the sequence. */
static void gather_row(const gemm_job *job, const gather_line *line, int64_t group, int64_t from, int64_t count,
                       unsigned char *dst)
{
    const int64_t dilation = job->conv ? job->conv->dilation : 1, repeat = job->conv ? job->conv->repeat : 1;
    int64_t tap = from / job->inner, channel = from % job->inner;

    while (count > 0) {
        const int64_t n = min_i64(job->inner - channel, count), at = line->at + tap * dilation;
        const size_t bytes = (size_t)n * job->item_bytes;
        if (at < 0 || at >= line->span) {
            memset(dst, 0, bytes);
        } else {
            const int64_t row = line->first_row + (repeat == 1 ? at : at / repeat);
            const int64_t value_idx = row * job->w->k_in + group * job->inner + channel;
            memcpy(dst, (const unsigned char *)job->x->data + (size_t)value_idx * job->item_bytes, bytes);
        }
        dst += bytes;
        count -= n;
        channel = 0;
        tap++;
    }
}

void gemm_gather(const gemm_job *job, const gather_line *lines, int64_t rows, int64_t group, int64_t from,
                 int64_t count, int64_t pitch, void *block)
{
    for (int64_t r = 0; r < rows; r++) {
        unsigned char *dst = (unsigned char *)block + (size_t)(r * pitch) * job->item_bytes;
        if (job->conv2d)
            gather_row_2d(job, &lines[r], from, count, dst);
        else
            gather_row(job, &lines[r], group, from, count, dst);
        if (job->w->operands == PRECISION_BF16)
            job->cpu->vec->round_bf16(count, (float *)(void *)dst);
    }
}

/* One kernel call; b_idx counts items of the packed weight. */
static void multiply(const gemm_job *job, int rows, int64_t depth, const unsigned char *a, int64_t a_pitch,
                     int64_t b_idx, unsigned char *c, int64_t c_pitch, bool fresh)
{
    const gemm_kernels *k = job->cpu->kernels;
    if (job->wide)
        k->f64(rows, depth, (const double *)(const void *)a, a_pitch, (const double *)job->packed + b_idx,
               (double *)(void *)c, c_pitch, fresh);
    else if (job->w->operands == PRECISION_BF16)
        k->bf16(rows, depth, (const float *)(const void *)a, a_pitch, (const uint16_t *)job->packed + b_idx,
                (float *)(void *)c, c_pitch, fresh);
    else
        k->f32(rows, depth, (const float *)(const void *)a, a_pitch, (const float *)job->packed + b_idx,
               (float *)(void *)c, c_pitch, fresh);
}

/* A panel whose last columns do not exist: through a panel of its own. */
static void multiply_narrow(const gemm_job *job, int rows, int64_t cols, int64_t depth, const unsigned char *a,
                            int64_t a_pitch, int64_t b_idx, unsigned char *c, int64_t c_pitch, bool fresh)
{
    double panel[GEMM_ROWS_MAX * GEMM_PANEL] = {0};
    unsigned char *bytes = (unsigned char *)panel;
    const size_t row_bytes = (size_t)cols * job->item_bytes, c_bytes = (size_t)c_pitch * job->item_bytes;
    const size_t panel_bytes = (size_t)job->panel_cols * job->item_bytes;

    for (int r = 0; r < rows && !fresh; r++)
        memcpy(bytes + (size_t)r * panel_bytes, c + (size_t)r * c_bytes, row_bytes);
    multiply(job, rows, depth, a, a_pitch, b_idx, bytes, job->panel_cols, fresh);
    for (int r = 0; r < rows; r++)
        memcpy(c + (size_t)r * c_bytes, bytes + (size_t)r * panel_bytes, row_bytes);
}

static void multiply_block(const gemm_job *job, const gemm_tile *t, const unsigned char *block, int64_t from,
                           int64_t depth)
{
    const int64_t n_out = job->w->n_out, pitch = GEMM_DEPTH + GEMM_ROW_PAD, rows_max = job->cpu->kernels->rows;
    const int64_t group_items = job->depth * job->panels * job->panel_cols;

    for (int64_t col = t->first_col; col < t->first_col + t->cols; col += job->panel_cols) {
        const int64_t cols = min_i64(job->panel_cols, job->group_cols - col);
        const int64_t b_idx = t->group * group_items + from * job->panels * job->panel_cols + col * depth;
        const int64_t c_idx = t->first_row * n_out + t->group * job->group_cols + col;
        for (int64_t r = 0; r < t->rows; r += rows_max) {
            const int rows = (int)min_i64(rows_max, t->rows - r);
            const unsigned char *a = block + (size_t)(r * pitch) * job->item_bytes;
            unsigned char *c = (unsigned char *)job->y->data + (size_t)(c_idx + r * n_out) * job->item_bytes;
            if (cols == job->panel_cols)
                multiply(job, rows, depth, a, pitch, b_idx, c, n_out, from == 0);
            else
                multiply_narrow(job, rows, cols, depth, a, pitch, b_idx, c, n_out, from == 0);
        }
    }
}

void gemm_finish(const gemm_job *job, const gemm_tile *t)
{
    const int64_t first_col = t->group * job->group_cols + t->first_col;

    if (!job->bias && job->act == ACT_NONE)
        return;
    for (int64_t r = t->first_row; r < t->first_row + t->rows; r++) {
        if (!job->wide) {
            const float *bias = job->bias ? tensor_f32(job->bias) + first_col : NULL;
            job->cpu->vec->bias_act(bias, t->cols, job->act, job->slope,
                                    tensor_f32(job->y) + r * job->w->n_out + first_col);
            continue;
        }
        double *y = tensor_f64(job->y) + r * job->w->n_out + first_col;
        for (int64_t n = 0; n < t->cols; n++)
            y[n] = act_f64(job->bias ? y[n] + tensor_f64(job->bias)[first_col + n] : y[n], job->act, job->slope);
    }
}

static void run_tile(void *ctx, int32_t task_idx, int thread_idx)
{
    const gemm_job *job = ctx;
    cpu_worker *worker = &job->cpu->workers[thread_idx];
    const int64_t row_tile = task_idx % job->row_tiles, rest = task_idx / job->row_tiles;
    const gemm_tile t = {
        .first_row = row_tile * job->tile_rows,
        .rows = min_i64(job->tile_rows, job->rows - row_tile * job->tile_rows),
        .group = rest / job->col_tiles,
        .first_col = rest % job->col_tiles * job->tile_cols,
        .cols = min_i64(job->tile_cols, job->group_cols - rest % job->col_tiles * job->tile_cols),
    };

    gemm_locate(job, t.first_row, t.rows, worker->lines);
    for (int64_t from = 0; from < job->depth; from += GEMM_DEPTH) {
        const int64_t depth = min_i64(GEMM_DEPTH, job->depth - from);
        gemm_gather(job, worker->lines, t.rows, t.group, from, depth, GEMM_DEPTH + GEMM_ROW_PAD, worker->block);
        multiply_block(job, &t, worker->block, from, depth);
    }
    gemm_finish(job, &t);
}

/* Cuts the job into tasks: rows first, then columns until every thread has a few. The cut does not show in the bytes.
 * */
static void plan_tasks(gemm_job *job)
{
    const int64_t threads = pool_threads(job->cpu->threads);
    job->tile_rows = GEMM_TILE_ROWS;
    job->row_tiles = div_ceil(job->rows, GEMM_TILE_ROWS);
    const int64_t wanted = div_ceil(TASKS_PER_THREAD * threads, job->row_tiles * job->w->groups);
    const int64_t possible = div_ceil(job->group_cols, TASK_COLS_MIN);
    const int64_t pieces = threads == 1 ? 1 : min_i64(wanted, possible);
    job->tile_cols = div_ceil(div_ceil(job->group_cols, pieces), job->panel_cols) * job->panel_cols;
    job->col_tiles = div_ceil(job->group_cols, job->tile_cols);
}

static void run_tiles(gemm_job *job)
{
    plan_tasks(job);
    const int64_t tasks = job->row_tiles * job->col_tiles * job->w->groups;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    if (job->rows * job->depth * job->w->n_out >= INLINE_WORK_MAX) {
        pool_run(job->cpu->threads, (int32_t)tasks, run_tile, job);
        return;
    }
    for (int32_t i = 0; i < tasks; i++)
        run_tile(job, i, 0);
}

static cf_err run_job(backend *be, gemm_job *job)
{
    cf_err err = CF_OK;
    const weight *w = job->w;
    const size_t mark = backend_scratch_mark(be);

    job->cpu = cpu_of(be);
    job->rows = job->conv2d ? job->y->dims[0] * job->conv2d->freq_out : job->y->dims[0];
    if (job->rows == 0)
        return CF_OK;
    job->wide = w->form == WEIGHT_CONV_F64;
    job->item_bytes = job->wide ? sizeof(double) : sizeof(float);
    job->inner = w->k_in / w->groups;
    job->depth = w->kernel * job->inner;
    job->group_cols = w->n_out / w->groups;
    job->panel_cols = job->wide ? GEMM_PANEL_F64 : GEMM_PANEL;
    job->panels = div_ceil(job->group_cols, job->panel_cols);
    if (gemm_amx_take(job->cpu, w)) {
        err = gemm_amx_run(be, job);
        goto out;
    }
    if (w->impl)
        return gemm_dnnl_run(job);
    if (w->tiled) {
        err = gemm_tiles_run(be, job);
        goto out;
    }
    job->packed = w->data;
    if (w->part_count > 0)
        TRY(gemm_map_pack(be, w, &job->packed));
    run_tiles(job);
out:
    backend_scratch_reset(be, mark);
    return err;
}

/* y += gate * part, or y = part, each row of y in its own type. */
static void give_rows(const op_linear_args *a, const tensor *part)
{
    const int64_t width = a->w->n_out;
    int32_t b = 0;
    if (!a->gate) {
        cpu_narrow(part, a->y);
        return;
    }
    for (int64_t r = 0; r < a->y->dims[0]; r++) {
        while (r >= a->gate->rows->offs[b + 1])
            b++;
        const float *gate = modulation_line(a->gate, b, a->gate_off), *from = tensor_f32(part) + r * width;
        for (int64_t c = 0; c < width; c++)
            tensor_f32(a->y)[r * width + c] += gate[c] * from[c];
    }
}

cf_err fast_linear(backend *be, const op_linear_args *a)
{
    cf_err err;
    gemm_job job = {.w = a->w,
                    .x = a->x,
                    .bias = a->bias,
                    .y = a->y,
                    .act = a->act,
                    .slope = a->slope,
                    .kind = a->kind,
                    .gate = a->gate,
                    .gate_off = a->gate_off};
    const size_t mark = backend_scratch_mark(be);
    tensor x, y;

    if (gemm_amx_take(cpu_of(be), a->w) || (a->x->type == DTYPE_F32 && a->y->type == DTYPE_F32 && !a->gate))
        return run_job(be, &job);
    TRY(cpu_widen(be, a->x, &x));
    TRY(backend_take_2d(be, DTYPE_F32, a->y->dims[0], a->y->dims[1], &y));
    job.x = &x;
    job.y = &y;
    TRY(run_job(be, &job));
    give_rows(a, &y);
out:
    backend_scratch_reset(be, mark);
    return err;
}

/* The tile engine does snake and residual on the way. */
cf_err fast_conv1d(backend *be, const op_conv1d_args *a)
{
    cf_err err;
    op_conv1d_args read = *a;
    const bool fused = gemm_amx_take(cpu_of(be), a->w);
    if (a->snake && !fused) {
        TRY(fast_snake(be, &(op_snake_args){.x = a->x, .alpha = a->snake, .y = a->work}));
        read.x = a->work;
    }
    gemm_job job = {.w = a->w,
                    .conv = &read,
                    .x = read.x,
                    .bias = a->bias,
                    .y = a->y,
                    .act = a->act,
                    .slope = a->slope,
                    .kind = GEMM_BULK};
    TRY(run_job(be, &job));
    if (a->residual && !fused)
        TRY(fast_add(be, &(op_add_args){.a = a->y, .b = a->residual, .y = a->y}));
out:
    return err;
}

cf_err fast_conv2d(backend *be, const op_conv2d_args *a)
{
    gemm_job job = {.w = a->w,
                    .conv2d = a,
                    .x = a->x,
                    .bias = a->bias,
                    .y = a->y,
                    .act = a->act,
                    .slope = a->slope,
                    .kind = GEMM_BULK};
    return run_job(be, &job);
}

/* Where w[o][i][k] goes in the packed order, counted in items. */
static int64_t packed_idx(const weight *w, int64_t panel_cols, int64_t o, int64_t i, int64_t k)
{
    const int64_t inner = w->k_in / w->groups, depth = inner * w->kernel, group_cols = w->n_out / w->groups;
    const int64_t panels = div_ceil(group_cols, panel_cols), group = o / group_cols, col = o % group_cols;
    const int64_t at = k * inner + i, from = at / GEMM_DEPTH * GEMM_DEPTH;
    const int64_t block_depth = min_i64(GEMM_DEPTH, depth - from);
    return group * depth * panels * panel_cols + from * panels * panel_cols +
           col / panel_cols * block_depth * panel_cols + (at - from) * panel_cols + col % panel_cols;
}

static cf_err take_packed(backend *be, int64_t panel_cols, size_t item_bytes, weight *out)
{
    const int64_t depth = out->k_in / out->groups * out->kernel;
    const int64_t cols = div_ceil(out->n_out / out->groups, panel_cols) * panel_cols;
    out->bytes = (size_t)(out->groups * depth * cols) * item_bytes;
    return backend_keep_bytes(be, out->bytes, &out->data);
}

cf_err gemm_pack(backend *be, const float *w, weight *out)
{
    cf_err err;
    const int64_t inner = out->k_in / out->groups;
    const bool narrow = out->operands == PRECISION_BF16;

    if (gemm_tiles_take(cpu_of(be), out))
        return gemm_tiles_pack(be, w, out);
    if (gemm_amx_take(cpu_of(be), out))
        return gemm_amx_pack(be, w, out);
    if (cpu_of(be)->use_dnnl)
        return gemm_dnnl_pack(be, w, out);
    TRY(take_packed(be, GEMM_PANEL, narrow ? sizeof(uint16_t) : sizeof(float), out));
    for (int64_t o = 0; o < out->n_out; o++)
        for (int64_t i = 0; i < inner; i++)
            for (int64_t k = 0; k < out->kernel; k++) {
                const float v = w[(o * inner + i) * out->kernel + k];
                const int64_t idx = packed_idx(out, GEMM_PANEL, o, i, k);
                if (narrow)
                    ((uint16_t *)out->data)[idx] = bf16_from_f32(v);
                else
                    ((float *)out->data)[idx] = v;
            }
out:
    return err;
}

cf_err gemm_pack_f64(backend *be, const double *w, weight *out)
{
    cf_err err;

    TRY(take_packed(be, GEMM_PANEL_F64, sizeof(double), out));
    for (int64_t o = 0; o < out->n_out; o++)
        for (int64_t i = 0; i < out->k_in; i++)
            for (int64_t k = 0; k < out->kernel; k++)
                ((double *)out->data)[packed_idx(out, GEMM_PANEL_F64, o, i, k)] =
                    w[(o * out->k_in + i) * out->kernel + k];
out:
    return err;
}
