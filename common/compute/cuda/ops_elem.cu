/*
 * ops_elem.cu - element-wise ops, one thread per value. The backend's thread; f32 with every product rounded where
 * ops.h says so (this file is compiled without contraction).
 * Fails: CF_ERR_DEVICE. Source: the citations in ops.h.
 */
#include "common/compute/cuda/cuda_impl.cuh"

static __global__ void act_f32_kernel(const float *x, float *y, int64_t count, act_kind act, float slope)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = act_f32(x[i], act, slope);
}

static __global__ void act_f64_kernel(const double *x, double *y, int64_t count, act_kind act, float slope)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = act_f64(x[i], act, slope);
}

cf_err cuda_act(backend *be, const op_act_args *a)
{
    const int64_t count = tensor_count(a->x);
    if (a->x->type == DTYPE_F64)
        return CUDA_LAUNCH(act_f64_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream,
                           (const double *)a->x->data, (double *)a->y->data, count, a->act, a->slope);
    return CUDA_LAUNCH(act_f32_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                       (float *)a->y->data, count, a->act, a->slope);
}

static __global__ void add_kernel(const float *a, const float *b, float *y, int64_t count)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = a[i] + b[i];
}

cf_err cuda_add(backend *be, const op_add_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(add_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->a->data,
                       (const float *)a->b->data, (float *)a->y->data, count);
}

static __global__ void mean3_kernel(const float *a, const float *b, const float *c, float *y, int64_t count)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = ((a[i] + b[i]) + c[i]) * (1.0f / 3.0f);
}

cf_err cuda_mean3(backend *be, const op_mean3_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(mean3_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->a->data,
                       (const float *)a->b->data, (const float *)a->c->data, (float *)a->y->data, count);
}

static __global__ void snake_kernel(const float *x, const float *alpha, float *y, int64_t count, int64_t width)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    y[i] = snake_f32(x[i], alpha[i % width]);
}

cf_err cuda_snake(backend *be, const op_snake_args *a)
{
    const int64_t count = tensor_count(a->x);
    return CUDA_LAUNCH(snake_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                       (const float *)a->alpha->data, (float *)a->y->data, count, a->x->dims[1]);
}

static __global__ void swiglu_kernel(const float *x, float *y, int64_t count, int64_t width)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const float *row = x + i / width * 2 * width;
    y[i] = act_f32(row[i % width], ACT_SILU, 0.0f) * row[width + i % width];
}

cf_err cuda_swiglu(backend *be, const op_swiglu_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(swiglu_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                       (float *)a->y->data, count, a->y->dims[1]);
}

/* One thread per pair. */
static __global__ void rope_kernel(void *x, dtype type, const float *cos_table, const float *sin_table,
                                   const int32_t *pos, int64_t pairs, int64_t positions, int64_t width,
                                   int64_t first_channel, int heads, int adjacent)
{
    const int64_t i = cuda_item();
    const int half = CUDA_HEAD / 2;
    if (i >= pairs)
        return;
    const int64_t row = i / (heads * half);
    const int head = (int)(i / half % heads), j = (int)(i % half);
    const int64_t at = pos[row];
    CUDA_ASSERT(at >= 0 && at < positions);
    const int64_t base = row * width + first_channel + head * CUDA_HEAD;
    const int64_t first = adjacent ? base + 2 * j : base + j, second = adjacent ? first + 1 : first + half;
    const float c = cos_table[at * half + j], s = sin_table[at * half + j];
    const float u = load_value(x, type, first), v = load_value(x, type, second);
    store_value(x, type, first, u * c - v * s);
    store_value(x, type, second, v * c + u * s);
}

cf_err cuda_rope(backend *be, const op_rope_args *a)
{
    const int64_t pairs = a->x->dims[0] * a->head_count * (CUDA_HEAD / 2);
    return CUDA_LAUNCH(rope_kernel, cuda_blocks(pairs), CUDA_BLOCK, cuda_of(be)->stream, a->x->data, a->x->type,
                       (const float *)a->cos_table->data, (const float *)a->sin_table->data,
                       (const int32_t *)a->pos->data, pairs, a->cos_table->dims[0], a->x->dims[1],
                       (int64_t)a->first_channel, a->head_count, (int)a->adjacent);
}

static __global__ void cfg_euler_kernel(float *x, const float *v, const int32_t *offs, const float *dt, int sequences,
                                        int64_t count, int64_t width)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int b = rows_find(offs, sequences, i / width);
    const int64_t cond = i + offs[b] * width, uncond = cond + (offs[b + 1] - offs[b]) * width;
    x[i] = x[i] + dt[b] * (1.7f * v[cond] - 0.7f * v[uncond]);
}

cf_err cuda_cfg_euler(backend *be, const op_cfg_euler_args *a)
{
    const int64_t count = tensor_count(a->x);
    const void *dt;
    CUDA_TRY(cuda_list_upload(be, a->dt, (size_t)a->rows->count * sizeof(float), &dt));
    return CUDA_LAUNCH(cfg_euler_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (float *)a->x->data,
                       (const float *)a->v->data, a->rows->dev, (const float *)dt, a->rows->count, count,
                       a->x->dims[1]);
}

static __global__ void widen_kernel(const float *x, double *y, int64_t count)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = (double)x[i];
}

static __global__ void narrow_kernel(const double *x, float *y, int64_t count)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = (float)x[i];
}

cf_err cuda_cast(backend *be, const op_cast_args *a)
{
    const int64_t count = tensor_count(a->x);
    if (a->x->type == DTYPE_F32)
        return CUDA_LAUNCH(widen_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                           (double *)a->y->data, count);
    return CUDA_LAUNCH(narrow_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const double *)a->x->data,
                       (float *)a->y->data, count);
}
