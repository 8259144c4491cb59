/*
 * naive_enroll.c - reference variant: what the two networks of enrollment need beside the rest. One thread, plain
 * loops, sums in f64 rounded once.
 * Fails: never. Source: the citations in ops.h.
 */
#include <math.h>
#include <string.h>

#include "common/compute/cpu/cpu_impl.h"

cf_err naive_layer_norm(backend *be, const op_layer_norm_args *a)
{
    (void)be;
    const int64_t width = a->x->dims[1];

    for (int64_t r = 0; r < a->x->dims[0]; r++) {
        const float *x = tensor_f32(a->x) + r * width;
        double sum = 0.0, squares = 0.0;
        for (int64_t c = 0; c < width; c++)
            sum += (double)x[c];
        const double mean = sum / (double)width;
        for (int64_t c = 0; c < width; c++)
            squares += ((double)x[c] - mean) * ((double)x[c] - mean);
        const double inverse = 1.0 / sqrt(squares / (double)width + (double)a->eps);
        for (int64_t c = 0; c < width; c++)
            tensor_f32(a->y)[r * width + c] = (float)(((double)x[c] - mean) * inverse * (double)tensor_f32(a->gain)[c] +
                                                      (double)tensor_f32(a->bias)[c]);
    }
    return CF_OK;
}

cf_err naive_affine(backend *be, const op_affine_args *a)
{
    (void)be;
    const int64_t width = a->y->dims[1];

    for (int64_t r = 0; r < a->x->dims[0]; r++)
        for (int64_t c = 0; c < width; c++) {
            const double x = (double)tensor_f32(a->x)[r * a->x->dims[1] + c];
            const double v = x * (double)tensor_f32(a->scale)[c] + (double)tensor_f32(a->shift)[c];
            tensor_f32(a->y)[r * width + c] = (float)act_f64(v, a->act, a->slope);
        }
    return CF_OK;
}

static double fsmn_sum(const op_fsmn_args *a, int32_t b, int64_t r, int64_t c)
{
    const int64_t taps = a->w->dims[0], width = a->x->dims[1];
    double sum = 0.0;
    for (int64_t k = 0; k < taps; k++) {
        const int64_t at = r + k - taps / 2;
        if (at >= a->rows->offs[b] && at < a->rows->offs[b + 1])
            sum += (double)tensor_f32(a->w)[k * a->w->dims[1] + c] *
                   (double)tensor_f32(a->x)[at * width + a->first_channel + c];
    }
    return sum;
}

cf_err naive_fsmn(backend *be, const op_fsmn_args *a)
{
    (void)be;
    for (int32_t b = 0; b < a->rows->count; b++)
        for (int64_t r = a->rows->offs[b]; r < a->rows->offs[b + 1]; r++)
            for (int64_t c = 0; c < a->y->dims[1]; c++) {
                const double v = (double)tensor_f32(a->x)[r * a->x->dims[1] + a->first_channel + c];
                float *y = &tensor_f32(a->y)[r * a->y->dims[1] + c];
                *y = (float)((double)*y + (fsmn_sum(a, b, r, c) + v));
            }
    return CF_OK;
}

#define SUM_COLUMNS 128

/* sum[c] += x[r][first_column + c] over rows [first, first + count). */
static void sum_rows(const tensor *x, int64_t first, int64_t count, int64_t first_column, int64_t columns, double *sum)
{
    for (int64_t r = first; r < first + count; r++) {
        const float *row = tensor_f32(x) + r * x->dims[1] + first_column;
        for (int64_t c = 0; c < columns; c++)
            sum[c] += (double)row[c];
    }
}

static void segment_means(const op_segment_mean_args *a, int32_t b, int64_t first_column, int64_t columns)
{
    const int64_t begin = a->rows_in->offs[b], length = rows_length(a->rows_in, b);
    double all[SUM_COLUMNS] = {0};

    sum_rows(a->x, begin, length, first_column, columns, all);
    for (int64_t s = 0; s < rows_length(a->rows_out, b); s++) {
        const int64_t left = length - s * a->segment, count = left < a->segment ? left : a->segment;
        const double divisor = (double)(a->whole ? a->segment : count);
        double part[SUM_COLUMNS] = {0};
        float *y = tensor_f32(a->y) + (a->rows_out->offs[b] + s) * a->x->dims[1] + first_column;
        sum_rows(a->x, begin + s * a->segment, count, first_column, columns, part);
        for (int64_t c = 0; c < columns; c++)
            y[c] = (float)(all[c] / (double)length + part[c] / divisor);
    }
}

cf_err naive_segment_mean(backend *be, const op_segment_mean_args *a)
{
    (void)be;
    const int64_t width = a->x->dims[1];

    for (int32_t b = 0; b < a->rows_in->count; b++)
        for (int64_t c = 0; c < width; c += SUM_COLUMNS)
            segment_means(a, b, c, width - c < SUM_COLUMNS ? width - c : SUM_COLUMNS);
    return CF_OK;
}

cf_err naive_segment_gate(backend *be, const op_segment_gate_args *a)
{
    (void)be;
    const int64_t width = a->x->dims[1];

    for (int32_t b = 0; b < a->rows->count; b++)
        for (int64_t t = 0; t < rows_length(a->rows, b); t++) {
            const int64_t r = a->rows->offs[b] + t;
            const float *x = tensor_f32(a->x) + r * width;
            float *y = tensor_f32(a->y) + r * a->y->dims[1] + a->first_channel;
            if (!a->gate) {
                memcpy(y, x, (size_t)width * sizeof *y);
                continue;
            }
            const float *gate = tensor_f32(a->gate) + (a->segments->offs[b] + t / a->segment) * width;
            for (int64_t c = 0; c < width; c++)
                y[c] = x[c] * gate[c];
        }
    return CF_OK;
}

/* sum[o] of one output cell. w: [taps][C_in][C_out], as naive_pack lays it out */
static void conv2d_cell(const op_conv2d_args *a, int32_t b, int64_t t, int64_t f, double *sum)
{
    const int64_t c_in = a->w->k_in, c_out = a->w->n_out, half = a->kernel / 2;
    const float *w = a->w->data;

    for (int64_t p = 0; p < a->kernel; p++)
        for (int64_t q = 0; q < a->kernel; q++) {
            const int64_t at = t + q - half, from = a->stride * f + p - half;
            if (at < 0 || at >= rows_length(a->rows, b) || from < 0 || from >= a->freq_in)
                continue;
            const float *x = tensor_f32(a->x) + (a->rows->offs[b] + at) * a->x->dims[1] + from * c_in;
            const float *tap = w + (p * a->kernel + q) * c_in * c_out;
            for (int64_t i = 0; i < c_in; i++)
                for (int64_t o = 0; o < c_out; o++)
                    sum[o] += (double)x[i] * (double)tap[i * c_out + o];
        }
}

cf_err naive_conv2d(backend *be, const op_conv2d_args *a)
{
    cf_err err;
    const int64_t c_out = a->w->n_out;
    const size_t mark = backend_scratch_mark(be);
    double *sum;

    TRY(arena_take(&be->scratch, (size_t)c_out * sizeof *sum, &sum));
    for (int32_t b = 0; b < a->rows->count; b++)
        for (int64_t t = 0; t < rows_length(a->rows, b); t++)
            for (int64_t f = 0; f < a->freq_out; f++) {
                float *y = tensor_f32(a->y) + (a->rows->offs[b] + t) * a->y->dims[1] + f * c_out;
                for (int64_t o = 0; o < c_out; o++)
                    sum[o] = a->bias ? (double)tensor_f32(a->bias)[o] : 0.0;
                conv2d_cell(a, b, t, f, sum);
                for (int64_t o = 0; o < c_out; o++)
                    y[o] = (float)act_f64(sum[o], a->act, a->slope);
            }
out:
    backend_scratch_reset(be, mark);
    return err;
}
