/*
 * ops_index.cu - gathers and copies of rows. The backend's thread.
 * Fails: CF_ERR_DEVICE, also for an id that its table does not have, which ends the context.
 */
#include "common/compute/cuda/cuda_impl.cuh"

#define MEL 80

static __global__ void embedding_kernel(const float *table, const int32_t *ids, float *y, int64_t count, int64_t width,
                                        int64_t lines)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t id = ids[i / width];
    CUDA_ASSERT(id < lines);
    y[i] = id < 0 ? 0.0f : table[id * width + i % width];
}

cf_err cuda_embedding(backend *be, const op_embedding_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(embedding_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream,
                       (const float *)a->table->data, (const int32_t *)a->ids->data, (float *)a->y->data, count,
                       a->y->dims[1], a->table->dims[0]);
}

static __global__ void step_rows_kernel(const int32_t *slots, const int32_t *tokens, int32_t *past, int32_t *ids,
                                        int32_t *pos, int64_t count)
{
    const int64_t r = cuda_item();
    if (r >= count)
        return;
    const int32_t slot = slots[r];
    ids[r] = slot < 0 ? -1 : tokens[slot];
    pos[r] = slot < 0 ? 0 : past[slot];
    if (slot >= 0)
        past[slot] = pos[r] + 1;
}

cf_err cuda_step_rows(backend *be, const op_step_rows_args *a)
{
    const int64_t count = a->slots->dims[0];
    return CUDA_LAUNCH(step_rows_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream,
                       (const int32_t *)a->slots->data, (const int32_t *)a->tokens->data, (int32_t *)a->past->data,
                       (int32_t *)a->ids->data, (int32_t *)a->pos->data, count);
}

/* Thread i writes value i of y, whose rows are 4 MEL wide: sequence b's conditional rows, then its others. */
static __global__ void dit_input_kernel(const float *x, const float *cond, const float *mu, const float *spk, float *y,
                                        const int32_t *offs, int sequences, int64_t count)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t row = i / (4 * MEL);
    const int part = (int)(i / MEL % 4), c = (int)(i % MEL);
    const int b = rows_find(offs, sequences, row / 2); /* rows of y begin at twice those of x */
    const int64_t length = offs[b + 1] - offs[b], t = row - 2 * (int64_t)offs[b];
    const int64_t from = (offs[b] + t % length) * MEL + c;
    float v = part == 0 ? x[from] : 0.0f;
    if (t < length && part == 1)
        v = cond[from];
    if (t < length && part == 2)
        v = mu[from];
    if (t < length && part == 3)
        v = spk[b * MEL + c];
    y[i] = v;
}

cf_err cuda_dit_input(backend *be, const op_dit_input_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(dit_input_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                       (const float *)a->cond->data, (const float *)a->mu->data, (const float *)a->spk->data,
                       (float *)a->y->data, a->rows->dev, a->rows->count, count);
}

/* Row 1 of each sequence in front of it. */
static __global__ void reflect_first_kernel(const float *x, float *y, const int32_t *offs_in, const int32_t *offs_out,
                                            int sequences, int64_t count, int64_t width)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int b = rows_find(offs_out, sequences, i / width);
    const int64_t t = i / width - offs_out[b], from = t == 0 ? 1 : t - 1;
    y[i] = x[(offs_in[b] + from) * width + i % width];
}

cf_err cuda_reflect_first(backend *be, const op_reflect_first_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(reflect_first_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream,
                       (const float *)a->x->data, (float *)a->y->data, a->rows_in->dev, a->rows_out->dev,
                       a->rows_in->count, count, a->x->dims[1]);
}
