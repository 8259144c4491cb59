/*
 * ops_norm.c - fast variant: the norms, rows spread over the pool; a row's sums run in 16 fixed lanes (vec.h).
 * Owns nothing. Fails: never. Source: the citations in ops.h.
 */
#include <string.h>

#include "common/compute/cpu/cpu_impl.h"

#define COST_NORM 3 /* passes over a row */

static void rms_norm_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_rms_norm_args *a = args;
    const int64_t width = a->x->dims[1];
    const float *gain = tensor_f32(a->gain);
    for (int64_t r = first; r < first + count; r++)
        cpu->vec->rms_norm(tensor_f32(a->x) + r * width, gain, a->eps, width, tensor_f32(a->y) + r * width);
}

cf_err fast_rms_norm(backend *be, const op_rms_norm_args *a)
{
    cpu_run_rows(be, a->x->dims[0], a->x->dims[1] * COST_NORM, rms_norm_rows, a);
    return CF_OK;
}

static void layer_norm_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_layer_norm_mod_args *a = args;
    const int64_t width = a->x->dims[1], end = first + count;
    int32_t b = rows_find(a->mod.rows, first);

    for (int64_t r = first, stop; r < end; r = stop, b++) {
        stop = a->mod.rows->offs[b + 1] < end ? a->mod.rows->offs[b + 1] : end;
        const float *x = tensor_f32(a->x) + r * width;
        const float *scale = modulation_line(&a->mod, b, a->scale_off);
        const float *shift = modulation_line(&a->mod, b, a->shift_off);
        if (a->y->type == DTYPE_BF16)
            cpu->vec->layer_norm_bf16(x, scale, shift, a->eps, stop - r, width, (uint16_t *)a->y->data + r * width);
        else
            cpu->vec->layer_norm(x, scale, shift, a->eps, stop - r, width, tensor_f32(a->y) + r * width);
    }
}

cf_err fast_layer_norm_mod(backend *be, const op_layer_norm_mod_args *a)
{
    cpu_run_rows(be, a->x->dims[0], a->x->dims[1] * COST_NORM, layer_norm_rows, a);
    return CF_OK;
}

static void layer_norm_gain_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_layer_norm_args *a = args;
    const int64_t width = a->x->dims[1];
    cpu->vec->layer_norm_gain(tensor_f32(a->x) + first * width, tensor_f32(a->gain), tensor_f32(a->bias), a->eps, count,
                              width, tensor_f32(a->y) + first * width);
}

cf_err fast_layer_norm(backend *be, const op_layer_norm_args *a)
{
    cpu_run_rows(be, a->x->dims[0], a->x->dims[1] * COST_NORM, layer_norm_gain_rows, a);
    return CF_OK;
}

static void affine_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_affine_args *a = args;
    const int64_t width = a->y->dims[1];
    for (int64_t r = first; r < first + count; r++) {
        float *y = tensor_f32(a->y) + r * width;
        memcpy(y, tensor_f32(a->shift), (size_t)width * sizeof *y);
        cpu->vec->gate_add(tensor_f32(a->scale), tensor_f32(a->x) + r * a->x->dims[1], width, y);
        if (a->act != ACT_NONE)
            cpu->vec->act(y, width, a->act, a->slope, y);
    }
}

cf_err fast_affine(backend *be, const op_affine_args *a)
{
    cpu_run_rows(be, a->x->dims[0], a->y->dims[1] * COST_NORM, affine_rows, a);
    return CF_OK;
}
