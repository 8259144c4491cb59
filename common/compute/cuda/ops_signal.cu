/*
 * ops_signal.cu - interpolation along time, harmonic source, 16-point transform and its inverse. The backend's thread.
 *
 * The phase of the source is a sum of f32 in the order of the frames: one thread per harmonic walks a sequence. Its
 * sine, like the hyperbolic tangent of the samples, is taken in f64, so that nothing but that order decides the bits.
 * Fails: CF_ERR_DEVICE, CF_ERR_NOMEM. Source: cosy hifigan/generator.py SineGen2, _stft, _istft @ace7c47.
 */
#include "common/compute/cuda/cuda_impl.cuh"

#define HARMONICS   9
#define POINTS      16
#define BINS        9
#define COLUMNS     18
#define HOP_SAMPLES 4

static __global__ void lerp_time_kernel(const float *x, float *y, const int32_t *offs_in, const int32_t *offs_out,
                                        int sequences, int64_t count, int64_t width)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int b = rows_find(offs_out, sequences, i / width);
    const int in = offs_in[b + 1] - offs_in[b], out = offs_out[b + 1] - offs_out[b];
    const int t = (int)(i / width - offs_out[b]);
    float at = fmaf((float)in / (float)out, (float)t + 0.5f, -0.5f); /* rounded once */
    if (at < 0.0f)
        at = 0.0f;
    const int low = (int)at < in - 1 ? (int)at : in - 1, high = low + (low < in - 1);
    const float part = at - (float)low < 1.0f ? at - (float)low : 1.0f;
    const float *first = x + offs_in[b] * width + i % width;
    y[i] = (1.0f - part) * first[low * width] + part * first[high * width];
}

cf_err cuda_lerp_time(backend *be, const op_lerp_time_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(lerp_time_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                       (float *)a->y->data, a->rows_in->dev, a->rows_out->dev, a->rows_in->count, count, a->x->dims[1]);
}

/* phase: [R, 9]. Thread (b, h) adds up the turns of one harmonic. */
static __global__ void source_phase_kernel(const float *f0, float *phase, const int32_t *offs, int sequences)
{
    const int64_t i = cuda_item();
    if (i >= (int64_t)sequences * HARMONICS)
        return;
    const int b = (int)(i / HARMONICS), h = (int)(i % HARMONICS);
    float turns = 0.0f;
    for (int64_t r = offs[b]; r < offs[b + 1]; r++) {
        turns += fmodf(f0[r] * (float)(h + 1) * (1.0f / 24000.0f), 1.0f);
        phase[r * HARMONICS + h] = turns * 2.0f * 3.14159274101257324f * (float)SOURCE_FRAME_SAMPLES;
    }
}

/* voiced: [R], the sum of the nine sines of a frame. */
static __global__ void source_voiced_kernel(const float *phase, const float *w, double *voiced, int64_t rows)
{
    const int64_t r = cuda_item();
    if (r >= rows)
        return;
    double sum = 0.0;
    for (int h = 0; h < HARMONICS; h++)
        sum += (double)w[h] * (0.1 * sin((double)phase[r * HARMONICS + h]));
    voiced[r] = sum;
}

static __global__ void source_kernel(const float *f0, const double *voiced, const float *bias, const float *noise,
                                     float *y, const int32_t *offs, int sequences, int64_t samples)
{
    const int64_t i = cuda_item();
    if (i >= samples)
        return;
    const int64_t r = i / SOURCE_FRAME_SAMPLES;
    const int64_t first = (int64_t)offs[rows_find(offs, sequences, r)] * SOURCE_FRAME_SAMPLES;
    const bool is_voiced = f0[r] > 10.0f;
    const double gain = is_voiced ? 0.003 : 0.1 / 3.0, base = is_voiced ? voiced[r] : 0.0;
    y[i] = (float)tanh((double)bias[0] + base + gain * (double)noise[i - first]);
}

cf_err cuda_source(backend *be, const op_source_args *a)
{
    cudaStream_t stream = cuda_of(be)->stream;
    const int64_t rows = a->f0->dims[0], samples = rows * SOURCE_FRAME_SAMPLES;
    const int sequences = a->rows->count;
    const float *f0 = (const float *)a->f0->data;
    const size_t mark = backend_scratch_mark(be);
    void *phase, *voiced;
    CUDA_TRY(cuda_take(be, (size_t)rows * HARMONICS * sizeof(float), &phase));
    CUDA_TRY(cuda_take(be, (size_t)rows * sizeof(double), &voiced));
    CUDA_TRY(CUDA_LAUNCH(source_phase_kernel, cuda_blocks((int64_t)sequences * HARMONICS), CUDA_BLOCK, stream, f0,
                         (float *)phase, a->rows->dev, sequences));
    CUDA_TRY(CUDA_LAUNCH(source_voiced_kernel, cuda_blocks(rows), CUDA_BLOCK, stream, (const float *)phase,
                         (const float *)a->w->data, (double *)voiced, rows));
    CUDA_TRY(CUDA_LAUNCH(source_kernel, cuda_blocks(samples), CUDA_BLOCK, stream, f0, (const double *)voiced,
                         (const float *)a->bias->data, (const float *)a->noise->data, (float *)a->y->data, a->rows->dev,
                         sequences, samples));
    backend_scratch_reset(be, mark);
    return CF_OK;
}

/* Thread (frame, column). */
static __global__ void stft_kernel(const float *x, float *y, const double *waves, const int32_t *offs_in,
                                   const int32_t *offs_out, int sequences, int64_t count)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int64_t frame = i / COLUMNS;
    const int column = (int)(i % COLUMNS), bin = column % BINS;
    const int b = rows_find(offs_out, sequences, frame);
    const float *first = x + offs_in[b];
    const int64_t samples = offs_in[b + 1] - offs_in[b], begin = HOP_SAMPLES * (frame - offs_out[b]) - POINTS / 2;
    const double *wave = waves + (column < BINS ? WAVES_COS : WAVES_SIN);
    double sum = 0.0;
    for (int p = 0; p < POINTS; p++) {
        int64_t at = begin + p < 0 ? -(begin + p) : begin + p;
        if (at >= samples)
            at = 2 * (samples - 1) - at;
        sum += waves[WAVES_HANN + p] * (double)first[at] * wave[bin * p % POINTS];
    }
    if (column < BINS)
        y[i] = (float)sum;
    else
        y[i] = bin % (BINS - 1) == 0 ? 0.0f : (float)-sum; /* exactly zero at both real bins */
}

cf_err cuda_stft(backend *be, const op_stft_args *a)
{
    const int64_t count = tensor_count(a->y);
    return CUDA_LAUNCH(stft_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)a->x->data,
                       (float *)a->y->data, cuda_of(be)->waves, a->rows_in->dev, a->rows_out->dev, a->rows_in->count,
                       count);
}

/* Thread (frame, bin): log magnitude and phase become real and imaginary part. z: [F, 18] */
static __global__ void polar_kernel(const float *x, double *z, int64_t count)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const float *frame = x + i / BINS * COLUMNS;
    const int bin = (int)(i % BINS);
    const double grown = exp((double)frame[bin]), magnitude = grown > 100.0 ? 100.0 : grown; /* NaN stays */
    const double phase = sin((double)frame[BINS + bin]);
    z[i / BINS * COLUMNS + bin] = magnitude * cos(phase);
    z[i / BINS * COLUMNS + BINS + bin] = magnitude * sin(phase);
}

/* Point p of the inverse transform of one frame. */
static __device__ double inverse_point(const double *z, const double *waves, int p)
{
    double sum = z[0] + (p % 2 == 0 ? z[BINS - 1] : -z[BINS - 1]);
    for (int k = 1; k < BINS - 1; k++) {
        const int turn = k * p % POINTS;
        sum += 2.0 * (z[k] * waves[WAVES_COS + turn] - z[BINS + k] * waves[WAVES_SIN + turn]);
    }
    return sum / POINTS;
}

/* Thread per sample: the frames that cover it, windowed, over the sum of squared windows. */
static __global__ void istft_kernel(const double *z, float *y, const double *waves, const int32_t *offs_in,
                                    const int32_t *offs_out, int sequences, int64_t count, float limit)
{
    const int64_t i = cuda_item();
    if (i >= count)
        return;
    const int b = rows_find(offs_out, sequences, i);
    const int64_t frames = offs_in[b + 1] - offs_in[b], q = i - offs_out[b] + POINTS / 2;
    const int64_t last = q / HOP_SAMPLES < frames - 1 ? q / HOP_SAMPLES : frames - 1;
    const int64_t from = (q - POINTS + HOP_SAMPLES) / HOP_SAMPLES;
    double sum = 0.0, squares = 0.0;
    for (int64_t j = from > 0 ? from : 0; j <= last; j++) {
        const int p = (int)(q - HOP_SAMPLES * j);
        const double window = waves[WAVES_HANN + p];
        sum += window * inverse_point(z + (offs_in[b] + j) * COLUMNS, waves, p);
        squares += window * window;
    }
    const double v = sum / squares;
    y[i] = (float)(v > (double)limit ? (double)limit : v < -(double)limit ? -(double)limit : v);
}

cf_err cuda_istft(backend *be, const op_istft_args *a)
{
    cudaStream_t stream = cuda_of(be)->stream;
    const int64_t bins = a->x->dims[0] * BINS, samples = tensor_count(a->y);
    const size_t mark = backend_scratch_mark(be);
    void *z;
    CUDA_TRY(cuda_take(be, 2 * tensor_bytes(a->x), &z));
    CUDA_TRY(
        CUDA_LAUNCH(polar_kernel, cuda_blocks(bins), CUDA_BLOCK, stream, (const float *)a->x->data, (double *)z, bins));
    CUDA_TRY(CUDA_LAUNCH(istft_kernel, cuda_blocks(samples), CUDA_BLOCK, stream, (const double *)z, (float *)a->y->data,
                         cuda_of(be)->waves, a->rows_in->dev, a->rows_out->dev, a->rows_in->count, samples, a->limit));
    backend_scratch_reset(be, mark);
    return CF_OK;
}
