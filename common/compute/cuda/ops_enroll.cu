/*
 * ops_enroll.cu - what the two networks of enrollment need beside the rest, one thread per value of the result. The
 * backend's thread. Sums of means and of the memory are f64, as ops.h asks of the first: both are short.
 * Fails: CF_ERR_DEVICE. Source: the citations in ops.h.
 */
#include "common/compute/cuda/cuda_impl.cuh"

static __global__ void affine_kernel(const float *x, const float *scale, const float *shift, float *y, int64_t count,
                                     int64_t width, int64_t pitch, act_kind act, float slope)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t c = i % width;
    const double v = (double)x[i / width * pitch + c] * (double)scale[c] + (double)shift[c];
    y[i] = (float)act_f64(v, act, slope);
}

cf_err cuda_affine(backend *be, const op_affine_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(affine_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                       (const float *)a->scale->data, (const float *)a->shift->data, (float *)a->y->data, count,
                       a->y->dims[1], a->x->dims[1], a->act, a->slope);
}

/* x begins with the channels that are taken; its rows are `pitch` apart. */
static __global__ void fsmn_kernel(const float *x, const float *w, float *y, const int32_t *offs, int sequences,
                                   int64_t count, int64_t width, int64_t pitch, int64_t taps)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t r = i / width, c = i % width;
    const int b = rows_find(offs, sequences, r);
    double sum = 0.0;
    for (int64_t k = 0; k < taps; k++) {
        const int64_t at = r + k - taps / 2;
        if (at >= offs[b] && at < offs[b + 1])
            sum += (double)w[k * width + c] * (double)x[at * pitch + c];
    }
    y[i] = (float)((double)y[i] + (sum + (double)x[r * pitch + c]));
}

cf_err cuda_fsmn(backend *be, const op_fsmn_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(fsmn_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream,
                       (const float *)a->x->data + a->first_channel, (const float *)a->w->data, (float *)a->y->data,
                       a->rows->dev, a->rows->count, count, a->y->dims[1], a->x->dims[1], a->w->dims[0]);
}

/* The sum of one column over rows [first, first + count), from the first on. */
static __device__ double sum_column(const float *x, int64_t width, int64_t first, int64_t count, int64_t c)
{
    double sum = 0.0;
    for (int64_t r = first; r < first + count; r++)
        sum += (double)x[r * width + c];
    return sum;
}

/* Thread (sequence, column): means of whole sequences, [B, C] f64. */
static __global__ void sequence_mean_kernel(const float *x, double *means, const int32_t *offs, int64_t count,
                                            int64_t width)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t b = i / width, length = offs[b + 1] - offs[b];
    means[i] = length > 0 ? sum_column(x, width, offs[b], length, i % width) / (double)length : 0.0;
}

/* Thread (segment, column). */
static __global__ void segment_mean_kernel(const float *x, const double *means, float *y, const int32_t *offs_in,
                                           const int32_t *offs_out, int sequences, int64_t count, int64_t width,
                                           int64_t segment, int whole)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int b = rows_find(offs_out, sequences, i / width);
    const int64_t first = (i / width - offs_out[b]) * segment, left = offs_in[b + 1] - offs_in[b] - first;
    const int64_t rows = left < segment ? left : segment;
    const double sum = sum_column(x, width, offs_in[b] + first, rows, i % width);
    y[i] = (float)(means[b * width + i % width] + sum / (double)(whole ? segment : rows));
}

cf_err cuda_segment_mean(backend *be, const op_segment_mean_args *a)
{
    cudaStream_t stream = cuda_of(be)->stream;
    const int64_t width = a->x->dims[1], means_count = a->rows_in->count * width, count = tensor_count(a->y);
    const float *x = (const float *)a->x->data;
    const size_t mark = backend_scratch_mark(be);
    void *means;
    CUDA_TRY(cuda_take(be, (size_t)means_count * sizeof(double), &means));
    CUDA_TRY(CUDA_LAUNCH(sequence_mean_kernel, cuda_blocks(means_count), CUDA_BLOCK, stream, x, (double *)means,
                         a->rows_in->dev, means_count, width));
    CUDA_TRY(CUDA_LAUNCH(segment_mean_kernel, cuda_blocks(count), CUDA_BLOCK, stream, x, (const double *)means,
                         (float *)a->y->data, a->rows_in->dev, a->rows_out->dev, a->rows_out->count, count, width,
                         a->segment, (int)a->whole));
    backend_scratch_reset(be, mark);
    return CF_OK;
}

/* y begins with the columns that are written; its rows are `pitch` apart. gate NULL: a copy. */
static __global__ void segment_gate_kernel(const float *x, const float *gate, float *y, const int32_t *offs,
                                           const int32_t *segments, int sequences, int64_t count, int64_t width,
                                           int64_t pitch, int64_t segment)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t r = i / width, c = i % width;
    float v = x[i];
    if (gate) {
        const int b = rows_find(offs, sequences, r);
        v = v * gate[(segments[b] + (r - offs[b]) / segment) * width + c];
    }
    y[r * pitch + c] = v;
}

cf_err cuda_segment_gate(backend *be, const op_segment_gate_args *a)
{
    const int64_t count = tensor_count(a->x);
    return CUDA_LAUNCH(segment_gate_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream,
                       (const float *)a->x->data, (const float *)(a->gate ? a->gate->data : NULL),
                       (float *)a->y->data + a->first_channel, a->rows->dev,
                       (const int32_t *)(a->segments ? a->segments->dev : NULL), a->rows->count, count, a->x->dims[1],
                       a->y->dims[1], (int64_t)a->segment);
}
