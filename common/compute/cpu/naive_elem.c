/*
 * naive_elem.c - reference variant: element-wise ops, norms, rotary embedding, gathers. One thread, plain loops.
 *
 * The truth of the op suite: functions and sums in f64, rounded once; where a spec prescribes f32 steps, those steps.
 * Fails: never. Source: the citations in ops.h.
 */
#define _GNU_SOURCE /* M_PI */
#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/cpu_impl.h"

double act_f64(double x, act_kind act, float slope)
{
    switch (act) {
    case ACT_NONE:
        return x;
    case ACT_LEAKY:
        return x >= 0.0 ? x : (double)slope * x;
    case ACT_ELU:
        return x > 0.0 ? x : expm1(x);
    case ACT_MISH:
        return x * tanh(log1p(exp(x)));
    case ACT_SILU:
        return x / (1.0 + exp(-x));
    case ACT_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACT_ABS:
        return fabs(x);
    case ACT_GELU:
        return 0.5 * x * erfc(-x * M_SQRT1_2);
    case ACT_RELU:
        return x < 0.0 ? 0.0 : x;
    case ACT_SIGMOID:
        return 1.0 / (1.0 + exp(-x));
    }
    cf_panic(__FILE__, __LINE__, "unknown activation");
}

cf_err naive_embedding(backend *be, const op_embedding_args *a)
{
    (void)be;
    const int32_t *ids = tensor_i32(a->ids);
    const float *table = tensor_f32(a->table);
    float *y = tensor_f32(a->y);
    const int64_t width = a->y->dims[1];

    for (int64_t r = 0; r < a->y->dims[0]; r++) {
        CF_ASSERT(ids[r] < a->table->dims[0]);
        if (ids[r] < 0)
            memset(y + r * width, 0, (size_t)width * sizeof *y);
        else
            memcpy(y + r * width, table + ids[r] * width, (size_t)width * sizeof *y);
    }
    return CF_OK;
}

cf_err naive_act(backend *be, const op_act_args *a)
{
    (void)be;
    const int64_t count = tensor_count(a->x);

    for (int64_t i = 0; i < count; i++) {
        if (a->x->type == DTYPE_F32)
            tensor_f32(a->y)[i] = (float)act_f64((double)tensor_f32(a->x)[i], a->act, a->slope);
        else
            tensor_f64(a->y)[i] = act_f64(tensor_f64(a->x)[i], a->act, a->slope);
    }
    return CF_OK;
}

cf_err naive_add(backend *be, const op_add_args *a)
{
    (void)be;
    const int64_t count = tensor_count(a->y);

    for (int64_t i = 0; i < count; i++)
        tensor_f32(a->y)[i] = tensor_f32(a->a)[i] + tensor_f32(a->b)[i];
    return CF_OK;
}

cf_err naive_mean3(backend *be, const op_mean3_args *a)
{
    (void)be;
    const int64_t count = tensor_count(a->y);
    const float third = 1.0f / 3.0f;

    for (int64_t i = 0; i < count; i++)
        tensor_f32(a->y)[i] = ((tensor_f32(a->a)[i] + tensor_f32(a->b)[i]) + tensor_f32(a->c)[i]) * third;
    return CF_OK;
}

cf_err naive_snake(backend *be, const op_snake_args *a)
{
    (void)be;
    const float *x = tensor_f32(a->x), *alpha = tensor_f32(a->alpha);
    const int64_t width = a->x->dims[1];

    for (int64_t r = 0; r < a->x->dims[0]; r++)
        for (int64_t c = 0; c < width; c++) {
            const float v = x[r * width + c];
            const float phase = v * alpha[c]; /* rounded, as upstream's product is */
            const double s = sin((double)phase);
            const double scale = 1.0 / (double)(alpha[c] + 1e-9f);
            tensor_f32(a->y)[r * width + c] = (float)((double)v + scale * (s * s));
        }
    return CF_OK;
}

cf_err naive_swiglu(backend *be, const op_swiglu_args *a)
{
    (void)be;
    const int64_t width = a->y->dims[1];

    for (int64_t r = 0; r < a->y->dims[0]; r++)
        for (int64_t i = 0; i < width; i++) {
            const double gate = (double)tensor_f32(a->x)[r * 2 * width + i];
            const double up = (double)tensor_f32(a->x)[r * 2 * width + width + i];
            tensor_f32(a->y)[r * width + i] = (float)(act_f64(gate, ACT_SILU, 0.0f) * up);
        }
    return CF_OK;
}

cf_err naive_rms_norm(backend *be, const op_rms_norm_args *a)
{
    (void)be;
    const float *gain = tensor_f32(a->gain);
    const int64_t width = a->x->dims[1];

    for (int64_t r = 0; r < a->x->dims[0]; r++) {
        const float *x = tensor_f32(a->x) + r * width;
        float *y = tensor_f32(a->y) + r * width;
        double sum = 0.0;
        for (int64_t c = 0; c < width; c++)
            sum += (double)x[c] * (double)x[c];
        const double scale = 1.0 / sqrt(sum / (double)width + (double)a->eps);
        for (int64_t c = 0; c < width; c++)
            y[c] = (float)((double)x[c] * scale * (double)gain[c]);
    }
    return CF_OK;
}

static void layer_norm_row(const float *x, int64_t width, const float *scale, const float *shift, double eps, float *y)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t c = 0; c < width; c++)
        sum += (double)x[c];
    const double mean = sum / (double)width;
    for (int64_t c = 0; c < width; c++)
        squares += ((double)x[c] - mean) * ((double)x[c] - mean);
    const double inverse = 1.0 / sqrt(squares / (double)width + eps);
    for (int64_t c = 0; c < width; c++)
        y[c] = (float)(((double)x[c] - mean) * inverse * (1.0 + (double)scale[c]) + (double)shift[c]);
}

cf_err naive_layer_norm_mod(backend *be, const op_layer_norm_mod_args *a)
{
    cf_err err;
    const int64_t width = a->x->dims[1];
    const size_t mark = backend_scratch_mark(be);
    float *row;

    TRY(arena_take(&be->scratch, (size_t)width * sizeof *row, &row));
    for (int32_t b = 0; b < a->mod.rows->count; b++) {
        const float *scale = modulation_line(&a->mod, b, a->scale_off);
        const float *shift = modulation_line(&a->mod, b, a->shift_off);
        for (int64_t r = a->mod.rows->offs[b]; r < a->mod.rows->offs[b + 1]; r++) {
            layer_norm_row(tensor_f32(a->x) + r * width, width, scale, shift, (double)a->eps, row);
            for (int64_t c = 0; c < width; c++)
                store_value(a->y, r * width + c, row[c]);
        }
    }
out:
    backend_scratch_reset(be, mark);
    return err;
}

cf_err naive_rope(backend *be, const op_rope_args *a)
{
    (void)be;
    const int32_t *pos = tensor_i32(a->pos);
    const int64_t width = a->x->dims[1];
    const int pairs = HEAD_VALUES / 2;

    for (int64_t r = 0; r < a->x->dims[0]; r++) {
        CF_ASSERT(pos[r] >= 0 && pos[r] < a->cos_table->dims[0]);
        const float *cos_line = tensor_f32(a->cos_table) + (int64_t)pos[r] * pairs;
        const float *sin_line = tensor_f32(a->sin_table) + (int64_t)pos[r] * pairs;
        for (int32_t h = 0; h < a->head_count; h++) {
            const int64_t head = r * width + a->first_channel + h * HEAD_VALUES;
            for (int j = 0; j < pairs; j++) {
                const int64_t first = a->adjacent ? head + 2 * j : head + j;
                const int64_t second = a->adjacent ? head + 2 * j + 1 : head + j + pairs;
                const float u = load_value(a->x, first), v = load_value(a->x, second);
                store_value(a->x, first, u * cos_line[j] - v * sin_line[j]);
                store_value(a->x, second, v * cos_line[j] + u * sin_line[j]);
            }
        }
    }
    return CF_OK;
}

cf_err naive_dit_input(backend *be, const op_dit_input_args *a)
{
    (void)be;
    const int64_t mel = a->x->dims[1];
    float *y = tensor_f32(a->y);

    memset(y, 0, tensor_bytes(a->y));
    for (int32_t b = 0; b < a->rows->count; b++) {
        const int64_t first = a->rows->offs[b], length = rows_length(a->rows, b);
        for (int64_t t = 0; t < length; t++) {
            float *cond_row = y + (2 * first + t) * 4 * mel;
            float *uncond_row = y + (2 * first + length + t) * 4 * mel;
            const size_t bytes = (size_t)mel * sizeof *y;
            memcpy(cond_row, tensor_f32(a->x) + (first + t) * mel, bytes);
            memcpy(cond_row + mel, tensor_f32(a->cond) + (first + t) * mel, bytes);
            memcpy(cond_row + 2 * mel, tensor_f32(a->mu) + (first + t) * mel, bytes);
            memcpy(cond_row + 3 * mel, tensor_f32(a->spk) + b * mel, bytes);
            memcpy(uncond_row, tensor_f32(a->x) + (first + t) * mel, bytes);
        }
    }
    return CF_OK;
}

cf_err naive_cfg_euler(backend *be, const op_cfg_euler_args *a)
{
    (void)be;
    const int64_t width = a->x->dims[1];

    for (int32_t b = 0; b < a->rows->count; b++) {
        const int64_t first = a->rows->offs[b], values = rows_length(a->rows, b) * width;
        const float *cond = tensor_f32(a->v) + 2 * first * width, *uncond = cond + values;
        float *x = tensor_f32(a->x) + first * width;
        for (int64_t i = 0; i < values; i++)
            x[i] = x[i] + a->dt[b] * (1.7f * cond[i] - 0.7f * uncond[i]);
    }
    return CF_OK;
}

cf_err naive_reflect_first(backend *be, const op_reflect_first_args *a)
{
    (void)be;
    const int64_t width = a->x->dims[1];

    for (int32_t b = 0; b < a->rows_in->count; b++) {
        const float *x = tensor_f32(a->x) + a->rows_in->offs[b] * width;
        float *y = tensor_f32(a->y) + a->rows_out->offs[b] * width;
        memcpy(y, x + width, (size_t)width * sizeof *y);
        memcpy(y + width, x, (size_t)(rows_length(a->rows_in, b) * width) * sizeof *y);
    }
    return CF_OK;
}

cf_err naive_cast(backend *be, const op_cast_args *a)
{
    (void)be;
    const int64_t count = tensor_count(a->x);

    for (int64_t i = 0; i < count; i++) {
        if (a->x->type == DTYPE_F32)
            tensor_f64(a->y)[i] = (double)tensor_f32(a->x)[i];
        else
            tensor_f32(a->y)[i] = (float)tensor_f64(a->x)[i];
    }
    return CF_OK;
}
