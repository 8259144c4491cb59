/*
 * ops_matmul.cu - linear layers and convolutions. The backend's thread.
 *
 * A convolution gathers the rows that its taps read into a matrix, a bounded number of output rows at a time, and
 * multiplies. The gathered matrix is in the operand type, so rounding happens on the way. Filter banks are packed
 * [c_out][kernel][c_in / groups], the order of the gathered columns. The f64 convolutions of the F0 predictor are small
 * and have a kernel of their own: taps outside, channels inside, whatever the batch.
 * Fails: CF_ERR_NOMEM, CF_ERR_DEVICE.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cuda/cuda_impl.cuh"

/* Gathered operand of one piece: stays within the second-level cache of a large card. */
#define GATHER_BYTES ((int64_t)24 << 20)
#define GATHER_ROWS  ((int64_t)128) /* pieces are multiples of this */

static size_t operand_bytes(precision operands)
{
    return operands == PRECISION_F32 ? sizeof(float) : sizeof(uint16_t);
}

/* Packing ---------------------------------------------------------------------------------------------------- */

static void convert(const float *from, int64_t count, precision operands, void *to)
{
    if (operands == PRECISION_F32) {
        memcpy(to, from, (size_t)count * sizeof *from);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        ((uint16_t *)to)[i] = operands == PRECISION_BF16 ? f32_to_bf16(from[i]) : f32_to_f16_soft(from[i]);
}

/* values: [n_out, columns] f32, in the order of the gathered columns. */
static cf_err pack_values(backend *be, const float *values, int64_t count, weight *out)
{
    cf_err err;
    void *host = NULL;
    if (out->operands == PRECISION_BF16_PAIR)
        out->operands = PRECISION_F32;
    out->bytes = (size_t)count * operand_bytes(out->operands);
    CUDA_TRY(cuda_keep(be, out->bytes, &out->data));
    CUDA_TRY(mem_alloc(out->bytes, 1, &host));
    convert(values, count, out->operands, host);
    err = cuda_send(cuda_of(be), host, out->data, out->bytes);
    mem_free(host);
    return err;
}

cf_err cuda_pack_linear(backend *be, const float *w, weight *out)
{
    return pack_values(be, w, out->n_out * out->k_in, out);
}

cf_err cuda_pack_conv(backend *be, const float *w, weight *out)
{
    const int64_t inner = out->k_in / out->groups, columns = inner * out->kernel;
    float *ordered;
    CUDA_TRY(mem_alloc((size_t)(out->n_out * columns), sizeof *ordered, &ordered));
    for (int64_t o = 0; o < out->n_out; o++)
        for (int64_t i = 0; i < inner; i++)
            for (int64_t k = 0; k < out->kernel; k++)
                ordered[o * columns + k * inner + i] = w[(o * inner + i) * out->kernel + k];
    const cf_err err = pack_values(be, ordered, out->n_out * columns, out);
    mem_free(ordered);
    return err;
}

/* [kernel][k_in][n_out]: neighbouring threads read neighbouring filters. */
cf_err cuda_pack_conv_f64(backend *be, const double *w, weight *out)
{
    double *ordered;
    out->bytes = (size_t)(out->n_out * out->k_in * out->kernel) * sizeof *ordered;
    CUDA_TRY(cuda_keep(be, out->bytes, &out->data));
    CUDA_TRY(mem_alloc(out->bytes, 1, &ordered));
    for (int64_t o = 0; o < out->n_out; o++)
        for (int64_t i = 0; i < out->k_in; i++)
            for (int64_t k = 0; k < out->kernel; k++)
                ordered[(k * out->k_in + i) * out->n_out + o] = w[(o * out->k_in + i) * out->kernel + k];
    const cf_err err = cuda_send(cuda_of(be), ordered, out->data, out->bytes);
    mem_free(ordered);
    return err;
}

/* Linear ----------------------------------------------------------------------------------------------------- */

static __global__ void to_bf16_kernel(const float *x, uint16_t *y, int64_t count)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = f32_to_bf16(x[i]);
}

static __global__ void to_f16_kernel(const float *x, uint16_t *y, int64_t count)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = f32_to_f16(x[i]);
}

/* In place on `count` values. */
static __global__ void act_kernel(float *y, int64_t count, act_kind act, float slope)
{
    const int64_t i = cuda_item();
    if (i < count)
        y[i] = act_f32(y[i], act, slope);
}

static cf_err activate(cuda_state *cuda, float *y, int64_t count, act_kind act, float slope)
{
    if (act == ACT_NONE)
        return CF_OK;
    return CUDA_LAUNCH(act_kernel, cuda_blocks(count), CUDA_BLOCK, cuda->stream, y, count, act, slope);
}

/* x in the operand type: itself, or a copy in scratch. */
static cf_err rounded(backend *be, const tensor *x, precision operands, const void **ret_x)
{
    const int64_t count = tensor_count(x);
    cudaStream_t stream = cuda_of(be)->stream;
    void *copy;
    *ret_x = x->data;
    if (operands == PRECISION_F32 || x->type != DTYPE_F32)
        return CF_OK;
    CUDA_TRY(cuda_take(be, (size_t)count * sizeof(uint16_t), &copy));
    *ret_x = copy;
    if (operands == PRECISION_BF16)
        return CUDA_LAUNCH(to_bf16_kernel, cuda_blocks(count), CUDA_BLOCK, stream, (const float *)x->data,
                           (uint16_t *)copy, count);
    return CUDA_LAUNCH(to_f16_kernel, cuda_blocks(count), CUDA_BLOCK, stream, (const float *)x->data, (uint16_t *)copy,
                       count);
}

/* y = act(z) in y's type. */
static __global__ void store_kernel(const float *z, void *y, dtype type, int64_t count, act_kind act, float slope)
{
    const int64_t i = cuda_item();
    if (i < count)
        store_value(y, type, i, act_f32(z[i], act, slope));
}

/* y += gate * act(z), rows of several sequences. */
static __global__ void gate_kernel(const float *z, float *y, const float *gate, int64_t line_values,
                                   const int32_t *offs, const int32_t *steps, int sequences, int64_t count,
                                   int64_t width, act_kind act, float slope)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t step = steps[rows_find(offs, sequences, i / width)];
    y[i] = y[i] + gate[step * line_values + i % width] * act_f32(z[i], act, slope);
}

/* What the product left in z goes to y: activated, gated or rounded. */
static cf_err linear_finish(backend *be, const op_linear_args *a, float *z)
{
    cuda_state *cuda = cuda_of(be);
    const int64_t count = tensor_count(a->y);
    const void *steps;
    if (!a->gate && a->y->type == DTYPE_F32)
        return activate(cuda, z, count, a->act, a->slope);
    if (!a->gate)
        return CUDA_LAUNCH(store_kernel, cuda_blocks(count), CUDA_BLOCK, cuda->stream, z, a->y->data, a->y->type, count,
                           a->act, a->slope);
    CUDA_TRY(cuda_list_upload(be, a->gate->steps, (size_t)a->gate->rows->count * sizeof(int32_t), &steps));
    return CUDA_LAUNCH(gate_kernel, cuda_blocks(count), CUDA_BLOCK, cuda->stream, z, (float *)a->y->data,
                       (const float *)a->gate->table->data + a->gate_off, a->gate->table->dims[1], a->gate->rows->dev,
                       (const int32_t *)steps, a->gate->rows->count, count, a->w->n_out, a->act, a->slope);
}

/* Where the library writes y itself: no gate, y of the operands' own type, which has 16 bits, and an activation that it
 * has. The bias is then of that type as well. */
static cf_err linear_narrow(backend *be, const op_linear_args *a, const void *x)
{
    cuda_state *cuda = cuda_of(be);
    const void *bias = NULL;
    if (a->bias)
        CUDA_TRY(rounded(be, a->bias, a->w->operands, &bias));
    const gemm_call call = {
        x,          a->w->data,  bias,           a->y->data, a->x->dims[0], a->w->n_out,
        a->w->k_in, a->w->n_out, a->w->operands, a->kind,    true,          a->act == ACT_GELU_TANH};
    return gemm_run(cuda->products, cuda->stream, &call);
}

/* The bias of `count` filters from `first` on, or NULL; where a group's part lies crooked, a copy in scratch. */
static cf_err straight_bias(backend *be, const tensor *bias, int64_t first, int64_t count, const void **ret_bias)
{
    const float *part = bias ? (const float *)bias->data + first : NULL;
    void *copy;
    *ret_bias = part;
    if ((uintptr_t)part % GEMM_BIAS_ALIGN == 0)
        return CF_OK;
    CUDA_TRY(cuda_take(be, (size_t)count * sizeof *part, &copy));
    *ret_bias = copy;
    return cuda_status(
        cudaMemcpyAsync(copy, part, (size_t)count * sizeof *part, cudaMemcpyDeviceToDevice, cuda_of(be)->stream),
        "copy of a bias");
}

static cf_err linear_wide(backend *be, const op_linear_args *a, const void *x)
{
    cuda_state *cuda = cuda_of(be);
    void *z = a->y->data;
    const void *bias;
    CUDA_TRY(straight_bias(be, a->bias, 0, a->w->n_out, &bias));
    if (a->gate || a->y->type != DTYPE_F32)
        CUDA_TRY(cuda_take(be, (size_t)tensor_count(a->y) * sizeof(float), &z));
    const gemm_call call = {x,          a->w->data,  bias,           z,       a->x->dims[0], a->w->n_out,
                            a->w->k_in, a->w->n_out, a->w->operands, a->kind, false,         false};
    CUDA_TRY(gemm_run(cuda->products, cuda->stream, &call));
    return linear_finish(be, a, (float *)z);
}

cf_err cuda_linear(backend *be, const op_linear_args *a)
{
    const size_t mark = backend_scratch_mark(be);
    const bool narrow = !a->gate && a->y->type != DTYPE_F32 && (a->act == ACT_NONE || a->act == ACT_GELU_TANH);
    cf_err err = CF_ERR_UNSUPPORTED;
    const void *x;
    if (a->x->dims[0] == 0)
        return CF_OK;
    CUDA_TRY(rounded(be, a->x, a->w->operands, &x));
    if (narrow)
        err = linear_narrow(be, a, x);
    if (err == CF_ERR_UNSUPPORTED)
        err = linear_wide(be, a, x);
    CUDA_TRY(err);
    backend_scratch_reset(be, mark);
    return CF_OK;
}

/* Convolution ------------------------------------------------------------------------------------------------ */

typedef struct conv_shape {
    const int32_t *offs_in, *offs_out;
    int sequences, stride, pad_left, dilation, repeat;
    int64_t kernel, channels, inner; /* inner: channels of a group */
} conv_shape;

/* Row of x that tap k of packed output row `row` reads, or -1 outside the sequence. */
static __device__ inline int64_t conv_source(const conv_shape *s, int64_t row, int64_t k)
{
    const int b = rows_find(s->offs_out, s->sequences, row);
    const int64_t at = s->stride * (row - s->offs_out[b]) - s->pad_left + k * s->dilation;
    const int64_t span = (int64_t)(s->offs_in[b + 1] - s->offs_in[b]) * s->repeat;
    return at < 0 || at >= span ? -1 : s->offs_in[b] + at / s->repeat;
}

/* z: [rows, kernel * inner] of one group, output rows from `first` on. */
template <typename T, int OPERANDS>
static __global__ void gather_kernel(const float *x, T *z, conv_shape s, int64_t first, int64_t count,
                                     int64_t first_channel)
{
    const int64_t i = cuda_item(), columns = s.kernel * s.inner;
    if (i >= count)
        return;
    const int64_t from = conv_source(&s, first + i / columns, i % columns / s.inner);
    const float v = from < 0 ? 0.0f : x[from * s.channels + first_channel + i % s.inner];
    if (OPERANDS == PRECISION_F32)
        z[i] = (T)v;
    else
        z[i] = (T)(OPERANDS == PRECISION_BF16 ? f32_to_bf16(v) : f32_to_f16(v));
}

static cf_err gather(cuda_state *cuda, const float *x, void *z, precision operands, const conv_shape *s, int64_t first,
                     int64_t count, int64_t first_channel)
{
    const int64_t blocks = cuda_blocks(count);
    if (operands == PRECISION_BF16)
        return CUDA_LAUNCH((gather_kernel<uint16_t, PRECISION_BF16>), blocks, CUDA_BLOCK, cuda->stream, x,
                           (uint16_t *)z, *s, first, count, first_channel);
    if (operands == PRECISION_FP16)
        return CUDA_LAUNCH((gather_kernel<uint16_t, PRECISION_FP16>), blocks, CUDA_BLOCK, cuda->stream, x,
                           (uint16_t *)z, *s, first, count, first_channel);
    return CUDA_LAUNCH((gather_kernel<float, PRECISION_F32>), blocks, CUDA_BLOCK, cuda->stream, x, (float *)z, *s,
                       first, count, first_channel);
}

static conv_shape shape_of(const op_conv1d_args *a)
{
    conv_shape s;
    s.offs_in = a->rows_in->dev;
    s.offs_out = a->rows_out->dev;
    s.sequences = a->rows_out->count;
    s.stride = a->stride;
    s.pad_left = a->pad_left;
    s.dilation = a->dilation;
    s.repeat = a->repeat;
    s.kernel = a->kernel;
    s.channels = a->w->k_in;
    s.inner = a->w->k_in / a->groups;
    return s;
}

/* Output rows [first, first + rows) of group g. */
static cf_err conv_piece(backend *be, const op_conv1d_args *a, const conv_shape *s, void *z, int64_t first,
                         int64_t rows, int64_t g)
{
    cuda_state *cuda = cuda_of(be);
    const size_t mark = backend_scratch_mark(be);
    const void *bias;
    const int64_t columns = s->kernel * s->inner, filters = a->w->n_out / a->groups;
    const unsigned char *w = (const unsigned char *)a->w->data;
    CUDA_TRY(gather(cuda, (const float *)a->x->data, z, a->w->operands, s, first, rows * columns, g * s->inner));
    CUDA_TRY(straight_bias(be, a->bias, g * filters, filters, &bias));
    const gemm_call call = {z,
                            w + (size_t)(g * filters * columns) * operand_bytes(a->w->operands),
                            bias,
                            (float *)a->y->data + first * a->w->n_out + g * filters,
                            rows,
                            filters,
                            columns,
                            a->w->n_out,
                            a->w->operands,
                            GEMM_BULK,
                            false,
                            false};
    CUDA_TRY(gemm_run(cuda->products, cuda->stream, &call));
    backend_scratch_reset(be, mark); /* the stream keeps the order */
    return CF_OK;
}

static cf_err conv_f32(backend *be, const op_conv1d_args *a)
{
    cuda_state *cuda = cuda_of(be);
    const conv_shape s = shape_of(a);
    const int64_t rows = a->y->dims[0], row_bytes = s.kernel * s.inner * (int64_t)operand_bytes(a->w->operands);
    const size_t mark = backend_scratch_mark(be);
    int64_t piece = GATHER_BYTES / row_bytes / GATHER_ROWS * GATHER_ROWS;
    void *z;
    piece = piece < GATHER_ROWS ? GATHER_ROWS : piece;
    piece = piece < rows ? piece : rows;
    CUDA_TRY(cuda_take(be, (size_t)(piece * row_bytes), &z));
    for (int64_t first = 0; first < rows; first += piece)
        for (int64_t g = 0; g < a->groups; g++)
            CUDA_TRY(conv_piece(be, a, &s, z, first, rows - first < piece ? rows - first : piece, g));
    CUDA_TRY(activate(cuda, (float *)a->y->data, rows * a->w->n_out, a->act, a->slope));
    backend_scratch_reset(be, mark);
    return CF_OK;
}

/* Thread (row, filter). w: [kernel][k_in][n_out] */
static __global__ void conv_f64_kernel(const double *x, const double *w, const double *bias, double *y, conv_shape s,
                                       int64_t count, int64_t n_out, act_kind act, float slope)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t o = i % n_out;
    double sum = bias ? bias[o] : 0.0;
    for (int64_t k = 0; k < s.kernel; k++) {
        const int64_t from = conv_source(&s, i / n_out, k);
        for (int64_t c = 0; from >= 0 && c < s.channels; c++)
            sum = fma_f64(x[from * s.channels + c], w[(k * s.channels + c) * n_out + o], sum);
    }
    y[i] = act_f64(sum, act, slope);
}

cf_err cuda_conv1d(backend *be, const op_conv1d_args *a)
{
    const int64_t count = tensor_count(a->y);
    const op_snake_args snaked = {a->x, a->snake, a->work};
    op_conv1d_args read = *a;
    if (count == 0)
        return CF_OK;
    if (cuda_conv_fits_mma(a))
        return cuda_conv1d_mma(be, a);
    if (a->snake) {
        CUDA_TRY(cuda_snake(be, &snaked));
        read.x = a->work;
        a = &read;
    }
    if (a->w->form != WEIGHT_CONV_F64) {
        const op_add_args added = {a->y, a->residual, a->y};
        CUDA_TRY(conv_f32(be, a));
        return a->residual ? cuda_add(be, &added) : CF_OK;
    }
    return CUDA_LAUNCH(conv_f64_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const double *)a->x->data,
                       (const double *)a->w->data, (const double *)(a->bias ? a->bias->data : NULL),
                       (double *)a->y->data, shape_of(a), count, a->w->n_out, a->act, a->slope);
}

/* Two dimensions: a row holds freq_in cells of c_in channels, a cell of the result reads kernel x kernel of them. */
typedef struct conv2d_shape {
    const int32_t *offs;
    int sequences;
    int64_t kernel, stride, freq_in, freq_out, channels;
} conv2d_shape;

/* z: [cells, kernel * kernel * channels], cells of y from `first` on. */
static __global__ void gather_2d_kernel(const float *x, float *z, conv2d_shape s, int64_t first, int64_t count)
{
    const int64_t i = cuda_item(), columns = s.kernel * s.kernel * s.channels;
    if (i >= count)
        return;
    const int64_t cell = first + i / columns, tap = i % columns / s.channels;
    const int64_t row = cell / s.freq_out, half = s.kernel / 2;
    const int b = rows_find(s.offs, s.sequences, row);
    const int64_t at = row + tap % s.kernel - half, freq = s.stride * (cell % s.freq_out) + tap / s.kernel - half;
    const bool inside = at >= s.offs[b] && at < s.offs[b + 1] && freq >= 0 && freq < s.freq_in;
    z[i] = inside ? x[(at * s.freq_in + freq) * s.channels + i % s.channels] : 0.0f;
}

cf_err cuda_conv2d(backend *be, const op_conv2d_args *a)
{
    cuda_state *cuda = cuda_of(be);
    const int64_t n_out = a->w->n_out, columns = a->w->kernel * a->w->k_in, cells = a->y->dims[0] * a->freq_out;
    const conv2d_shape s = {a->rows->dev, a->rows->count, a->kernel, a->stride, a->freq_in, a->freq_out, a->w->k_in};
    const int64_t fitting = GATHER_BYTES / (columns * (int64_t)sizeof(float)) / GATHER_ROWS * GATHER_ROWS;
    const int64_t piece = fitting < GATHER_ROWS ? GATHER_ROWS : fitting < cells ? fitting : cells;
    const size_t mark = backend_scratch_mark(be);
    void *z;
    const void *bias;
    CUDA_TRY(straight_bias(be, a->bias, 0, n_out, &bias));
    CUDA_TRY(cuda_take(be, (size_t)(piece * columns) * sizeof(float), &z));
    for (int64_t first = 0; first < cells; first += piece) {
        const int64_t rows = cells - first < piece ? cells - first : piece;
        const gemm_call call = {z,
                                a->w->data,
                                bias,
                                (float *)a->y->data + first * n_out,
                                rows,
                                n_out,
                                columns,
                                n_out,
                                PRECISION_F32,
                                GEMM_BULK,
                                false,
                                false};
        CUDA_TRY(CUDA_LAUNCH(gather_2d_kernel, cuda_blocks(rows * columns), CUDA_BLOCK, cuda->stream,
                             (const float *)a->x->data, (float *)z, s, first, rows * columns));
        CUDA_TRY(gemm_run(cuda->products, cuda->stream, &call));
    }
    CUDA_TRY(activate(cuda, (float *)a->y->data, cells * n_out, a->act, a->slope));
    backend_scratch_reset(be, mark);
    return CF_OK;
}
