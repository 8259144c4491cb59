/*
 * naive_dense.c - reference variant: linear, convolution, attention. One thread, plain loops, sums in f64 rounded once.
 *
 * Weights are kept as [taps][k_in / groups][n_out] so that the inner loop runs along n_out; the order of each sum is
 * taps outside, inputs inside. With bf16 operands both sides are rounded to bf16 first.
 * Fails: CF_ERR_NOMEM when scratch is exhausted. Source: the citations in ops.h.
 */
#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/cpu_impl.h"

static float operand(float x, precision operands)
{
    return operands == PRECISION_BF16 ? f32_from_bf16(bf16_from_f32(x)) : x;
}

cf_err naive_pack(backend *be, const float *w, weight *out)
{
    cf_err err;
    const int64_t inner = out->k_in / out->groups;
    float *packed;

    out->bytes = (size_t)(out->n_out * inner * out->kernel) * sizeof *packed;
    TRY(backend_keep_bytes(be, out->bytes, &packed));
    if (out->kinds & GEMM_INT8_BIT)
        TRY(backend_keep_bytes(be, (size_t)out->n_out * sizeof *out->scales, &out->scales));
    for (int64_t o = 0; o < out->n_out; o++) {
        const float *row = w + o * inner * out->kernel;
        if (out->scales)
            out->scales[o] = int8_scale(row, inner);
        for (int64_t i = 0; i < inner; i++)
            for (int64_t k = 0; k < out->kernel; k++) {
                const float v = row[i * out->kernel + k];
                packed[(k * inner + i) * out->n_out + o] =
                    out->scales ? (float)int8_from_f32(v, out->scales[o]) : operand(v, out->operands);
            }
    }
    out->data = packed;
out:
    return err;
}

static void linear_store(const op_linear_args *a, int32_t seq_idx, int64_t row, int64_t col, double v)
{
    const int64_t at = row * a->w->n_out + col;
    if (a->gate)
        v = (double)load_value(a->y, at) + (double)modulation_line(a->gate, seq_idx, a->gate_off)[col] * v;
    store_value(a->y, at, (float)v);
}

cf_err naive_linear(backend *be, const op_linear_args *a)
{
    cf_err err;
    const int64_t n_out = a->w->n_out, k_in = a->w->k_in;
    const float *w = a->w->data;
    const size_t mark = backend_scratch_mark(be);
    double *sum;
    int32_t b = 0;

    TRY(arena_take(&be->scratch, (size_t)n_out * sizeof *sum, &sum));
    for (int64_t r = 0; r < a->x->dims[0]; r++) {
        if (a->gate)
            while (r >= a->gate->rows->offs[b + 1])
                b++;
        for (int64_t n = 0; n < n_out; n++)
            sum[n] = 0.0;
        for (int64_t k = 0; k < k_in; k++) {
            const double xk = (double)operand(load_value(a->x, r * k_in + k), a->w->operands);
            for (int64_t n = 0; n < n_out; n++)
                sum[n] += xk * (double)w[k * n_out + n];
        }
        for (int64_t n = 0; n < n_out; n++) {
            const double scaled = a->w->scales ? sum[n] * (double)a->w->scales[n] : sum[n];
            const double y = a->bias ? scaled + (double)tensor_f32(a->bias)[n] : scaled;
            linear_store(a, b, r, n, act_f64(y, a->act, a->slope));
        }
    }
out:
    backend_scratch_reset(be, mark);
    return err;
}

/* Row of x that tap k of output row t reads, or -1 outside the sequence. */
static int64_t conv_source(const op_conv1d_args *a, int64_t rows_in, int64_t t, int64_t k)
{
    const int64_t at = a->stride * t - a->pad_left + k * a->dilation;
    return at < 0 || at >= rows_in * a->repeat ? -1 : at / a->repeat;
}

/* sum[o] += sum_i W[k][i][o] x[i], group by group. */
static void conv_add_tap(const op_conv1d_args *a, const void *x_row, int64_t k, double *sum)
{
    const int64_t n_out = a->w->n_out, per_group = n_out / a->groups, inner = a->w->k_in / a->groups;
    const bool wide = a->w->form == WEIGHT_CONV_F64;

    for (int64_t g = 0; g < a->groups; g++)
        for (int64_t i = 0; i < inner; i++) {
            const int64_t line = (k * inner + i) * n_out;
            const int64_t from = g * per_group, to = from + per_group;
            if (wide) {
                const double v = ((const double *)x_row)[g * inner + i];
                for (int64_t o = from; o < to; o++)
                    sum[o] += v * ((const double *)a->w->data)[line + o];
            } else {
                const double v = (double)operand(((const float *)x_row)[g * inner + i], a->w->operands);
                for (int64_t o = from; o < to; o++)
                    sum[o] += v * (double)((const float *)a->w->data)[line + o];
            }
        }
}

static void conv_row(const op_conv1d_args *a, int32_t seq_idx, int64_t t, double *sum)
{
    const int64_t n_out = a->w->n_out, y_row = a->rows_out->offs[seq_idx] + t;
    const size_t item_bytes = dtype_bytes(a->x->type);

    for (int64_t o = 0; o < n_out; o++) {
        sum[o] = 0.0;
        if (a->bias)
            sum[o] = a->x->type == DTYPE_F64 ? tensor_f64(a->bias)[o] : (double)tensor_f32(a->bias)[o];
    }
    for (int64_t k = 0; k < a->kernel; k++) {
        const int64_t row = conv_source(a, rows_length(a->rows_in, seq_idx), t, k);
        if (row >= 0) {
            const size_t value_idx = (size_t)((a->rows_in->offs[seq_idx] + row) * a->w->k_in);
            conv_add_tap(a, (const unsigned char *)a->x->data + value_idx * item_bytes, k, sum);
        }
    }
    for (int64_t o = 0; o < n_out; o++) {
        const double v = act_f64(sum[o], a->act, a->slope);
        if (a->y->type == DTYPE_F64)
            tensor_f64(a->y)[y_row * n_out + o] = v;
        else
            tensor_f32(a->y)[y_row * n_out + o] =
                (float)(a->residual ? v + (double)tensor_f32(a->residual)[y_row * n_out + o] : v);
    }
}

cf_err naive_conv1d(backend *be, const op_conv1d_args *args)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    op_conv1d_args read = *args;
    const op_conv1d_args *a = &read;
    double *sum;

    if (read.snake) {
        TRY(naive_snake(be, &(op_snake_args){.x = read.x, .alpha = read.snake, .y = read.work}));
        read.x = read.work;
    }
    TRY(arena_take(&be->scratch, (size_t)a->w->n_out * sizeof *sum, &sum));
    for (int32_t b = 0; b < a->rows_out->count; b++)
        for (int64_t t = 0; t < rows_length(a->rows_out, b); t++)
            conv_row(a, b, t, sum);
out:
    backend_scratch_reset(be, mark);
    return err;
}

cf_err naive_pack_conv_f64(backend *be, const double *w, weight *out)
{
    cf_err err;
    double *packed;

    out->bytes = (size_t)(out->n_out * out->k_in * out->kernel) * sizeof *packed;
    TRY(backend_keep_bytes(be, out->bytes, &packed));
    for (int64_t o = 0; o < out->n_out; o++)
        for (int64_t i = 0; i < out->k_in; i++)
            for (int64_t k = 0; k < out->kernel; k++)
                packed[(k * out->k_in + i) * out->n_out + o] = w[(o * out->k_in + i) * out->kernel + k];
    out->data = packed;
out:
    return err;
}

cf_err cpu_widen(backend *be, const tensor *x, tensor *ret_wide)
{
    cf_err err = CF_OK;
    tensor wide = *x;
    if (x->type == DTYPE_BF16) {
        TRY(backend_take(be, DTYPE_F32, x->rank, x->dims, &wide));
        for (int64_t i = 0; i < tensor_count(x); i++)
            tensor_f32(&wide)[i] = load_value(x, i);
    }
    *ret_wide = wide;
out:
    return err;
}

void cpu_narrow(const tensor *wide, const tensor *y)
{
    for (int64_t i = 0; i < tensor_count(y); i++)
        store_value(y, i, tensor_f32(wide)[i]);
}

static double dot_head(const float *a, const float *b)
{
    double sum = 0.0;
    for (int d = 0; d < HEAD_VALUES; d++)
        sum += (double)a[d] * (double)b[d];
    return sum;
}

/* scores[j] becomes softmax(scores)[j]. */
static void softmax_row(double *scores, int64_t count)
{
    double max = scores[0], sum = 0.0;
    for (int64_t j = 1; j < count; j++)
        max = scores[j] > max || isnan(scores[j]) ? scores[j] : max;
    for (int64_t j = 0; j < count; j++) {
        scores[j] = exp(scores[j] - max);
        sum += scores[j];
    }
    for (int64_t j = 0; j < count; j++)
        scores[j] /= sum;
}

static void mix_values(const double *shares, const float *values, int64_t pitch, int64_t count, double *sum)
{
    for (int64_t j = 0; j < count; j++)
        for (int d = 0; d < HEAD_VALUES; d++)
            sum[d] += shares[j] * (double)values[j * pitch + d];
}

/* values: qkv in f32 */
static void attn_block_query(const op_attn_block_args *a, const float *values, int32_t b, int64_t i, int32_t head,
                             double *scores)
{
    const int64_t width = (int64_t)a->heads * HEAD_VALUES, length = rows_length(a->rows, b);
    const float *first = values + a->rows->offs[b] * 3 * width + head * HEAD_VALUES;
    const float *q = first + i * 3 * width;
    int64_t keys = length;
    if (a->block[b] > 0 && a->block[b] * (i / a->block[b] + 1) < length)
        keys = a->block[b] * (i / a->block[b] + 1);
    for (int64_t j = 0; j < keys; j++)
        scores[j] = dot_head(q, first + width + j * 3 * width) * (double)HEAD_SCALE;
    softmax_row(scores, keys);
    double sum[HEAD_VALUES] = {0};
    mix_values(scores, first + 2 * width, 3 * width, keys, sum);
    for (int d = 0; d < HEAD_VALUES; d++)
        store_value(a->y, (a->rows->offs[b] + i) * width + head * HEAD_VALUES + d, (float)sum[d]);
}

cf_err naive_attn_block(backend *be, const op_attn_block_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    double *scores;
    tensor qkv;

    TRY(cpu_widen(be, a->qkv, &qkv));
    TRY(arena_take(&be->scratch, (size_t)a->qkv->dims[0] * sizeof *scores, &scores));
    for (int32_t b = 0; b < a->rows->count; b++)
        for (int64_t i = 0; i < rows_length(a->rows, b); i++)
            for (int32_t head = 0; head < a->heads; head++)
                attn_block_query(a, tensor_f32(&qkv), b, i, head, scores);
out:
    backend_scratch_reset(be, mark);
    return err;
}

float *cache_line(const op_attn_cache_args *a, int32_t seq_idx, int64_t token, int which, int32_t kv_head)
{
    const int64_t page = a->pages[(int64_t)seq_idx * a->pages_max + token / CACHE_PAGE_TOKENS];
    const int64_t plane = (page * 2 + which) * a->kv_heads + kv_head;
    return tensor_f32(a->cache) + (plane * CACHE_PAGE_TOKENS + token % CACHE_PAGE_TOKENS) * HEAD_VALUES;
}

void cache_append(const op_attn_cache_args *a, int32_t seq_idx)
{
    const int64_t width = ((int64_t)a->heads + 2 * a->kv_heads) * HEAD_VALUES;
    for (int64_t t = 0; t < rows_length(a->rows, seq_idx); t++) {
        const float *row = tensor_f32(a->qkv) + (a->rows->offs[seq_idx] + t) * width;
        const float *keys = row + (int64_t)a->heads * HEAD_VALUES;
        const float *values = keys + (int64_t)a->kv_heads * HEAD_VALUES;
        for (int32_t h = 0; h < a->kv_heads; h++) {
            memcpy(cache_line(a, seq_idx, a->past[seq_idx] + t, 0, h), keys + h * HEAD_VALUES,
                   HEAD_VALUES * sizeof *keys);
            memcpy(cache_line(a, seq_idx, a->past[seq_idx] + t, 1, h), values + h * HEAD_VALUES,
                   HEAD_VALUES * sizeof *values);
        }
    }
}

static void attn_cache_query(const op_attn_cache_args *a, int32_t b, int64_t t, int32_t head, double *scores)
{
    const int64_t row = a->rows->offs[b] + t, keys = a->past[b] + t + 1;
    const int32_t kv_head = head / (a->heads / a->kv_heads);
    const float *q =
        tensor_f32(a->qkv) + row * ((int64_t)a->heads + 2 * a->kv_heads) * HEAD_VALUES + (int64_t)head * HEAD_VALUES;
    double sum[HEAD_VALUES] = {0};

    for (int64_t j = 0; j < keys; j++)
        scores[j] = dot_head(q, cache_line(a, b, j, 0, kv_head)) * (double)HEAD_SCALE;
    softmax_row(scores, keys);
    for (int64_t j = 0; j < keys; j++)
        mix_values(&scores[j], cache_line(a, b, j, 1, kv_head), 0, 1, sum);
    for (int d = 0; d < HEAD_VALUES; d++)
        tensor_f32(a->y)[(row * a->heads + head) * HEAD_VALUES + d] = (float)sum[d];
}

cf_err naive_attn_cache(backend *be, const op_attn_cache_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    double *scores;

    TRY(arena_take(&be->scratch, (size_t)a->pages_max * CACHE_PAGE_TOKENS * sizeof *scores, &scores));
    for (int32_t b = 0; b < a->rows->count; b++) {
        cache_append(a, b);
        for (int64_t t = 0; t < rows_length(a->rows, b); t++)
            for (int32_t head = 0; head < a->heads; head++)
                attn_cache_query(a, b, t, head, scores);
    }
out:
    backend_scratch_reset(be, mark);
    return err;
}
