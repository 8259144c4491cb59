/*
 * ops_norm.cu - RMS norm and modulated layer norm: a block per row, statistics in f32 in one order. The backend's
 * thread. Fails: CF_ERR_DEVICE. Source: the citations in ops.h.
 */
#include "common/compute/cuda/cuda_impl.cuh"

/* Threads of a row's block, by its width alone. */
static unsigned norm_threads(int64_t width)
{
    return width <= CUDA_BLOCK / 2 ? CUDA_BLOCK / 2 : CUDA_BLOCK;
}

static __global__ void rms_norm_kernel(const float *x, const float *gain, float *y, int64_t width, float eps)
{
    const float *row = x + blockIdx.x * width;
    float sum = 0.0f;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        sum = fma_f32(row[c], row[c], sum);
    const float scale = 1.0f / sqrtf(block_sum(sum) / (float)width + eps);
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        y[blockIdx.x * width + c] = row[c] * scale * gain[c];
}

cf_err cuda_rms_norm(backend *be, const op_rms_norm_args *a)
{
    return CUDA_LAUNCH(rms_norm_kernel, a->x->dims[0], norm_threads(a->x->dims[1]), cuda_of(be)->stream,
                       (const float *)a->x->data, (const float *)a->gain->data, (float *)a->y->data, a->x->dims[1],
                       a->eps);
}

/* Two passes: the residual stream grows to 1400, and its squares would swallow the variance. */
static __global__ void layer_norm_mod_kernel(const float *x, void *y, dtype type, const float *scale,
                                             const float *shift, int64_t line_values, const int32_t *offs,
                                             const int32_t *steps, int sequences, int64_t width, float eps)
{
    const float *row = x + blockIdx.x * width;
    const int64_t line = steps[rows_find(offs, sequences, blockIdx.x)] * line_values;
    float sum = 0.0f, squares = 0.0f;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        sum += row[c];
    const float mean = block_sum(sum) / (float)width;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        squares = fma_f32(row[c] - mean, row[c] - mean, squares);
    const float inverse = 1.0f / sqrtf(block_sum(squares) / (float)width + eps);
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        store_value(y, type, blockIdx.x * width + c,
                    (row[c] - mean) * inverse * (1.0f + scale[line + c]) + shift[line + c]);
}

cf_err cuda_layer_norm_mod(backend *be, const op_layer_norm_mod_args *a)
{
    const op_modulation *mod = &a->mod;
    const float *table = (const float *)mod->table->data;
    const void *steps;
    CUDA_TRY(cuda_list_upload(be, mod->steps, (size_t)mod->rows->count * sizeof(int32_t), &steps));
    return CUDA_LAUNCH(layer_norm_mod_kernel, a->x->dims[0], norm_threads(a->x->dims[1]), cuda_of(be)->stream,
                       (const float *)a->x->data, a->y->data, a->y->type, table + a->scale_off, table + a->shift_off,
                       mod->table->dims[1], mod->rows->dev, (const int32_t *)steps, mod->rows->count, a->x->dims[1],
                       a->eps);
}

static __global__ void layer_norm_kernel(const float *x, const float *gain, const float *bias, float *y, int64_t width,
                                         float eps)
{
    const float *row = x + blockIdx.x * width;
    float sum = 0.0f, squares = 0.0f;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        sum += row[c];
    const float mean = block_sum(sum) / (float)width;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        squares = fma_f32(row[c] - mean, row[c] - mean, squares);
    const float inverse = 1.0f / sqrtf(block_sum(squares) / (float)width + eps);
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        y[blockIdx.x * width + c] = (row[c] - mean) * inverse * gain[c] + bias[c];
}

cf_err cuda_layer_norm(backend *be, const op_layer_norm_args *a)
{
    return CUDA_LAUNCH(layer_norm_kernel, a->x->dims[0], norm_threads(a->x->dims[1]), cuda_of(be)->stream,
                       (const float *)a->x->data, (const float *)a->gain->data, (const float *)a->bias->data,
                       (float *)a->y->data, a->x->dims[1], a->eps);
}
