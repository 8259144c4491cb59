/*
 * naive_signal.c - reference variant: interpolation, harmonic source, STFT and its inverse. One thread, plain loops.
 * Fails: never. Source: spec of the vocoder; cosy hifigan/generator.py SineGen2, _stft, _istft @ace7c47, order as on
 * CUDA.
 */
#define _GNU_SOURCE /* M_PI */
#include <math.h>

#include "common/compute/cpu/cpu_impl.h"

float lerp_position(float ratio, int32_t t)
{
    const float at = fmaf(ratio, (float)t + 0.5f, -0.5f);
    return at < 0.0f ? 0.0f : at;
}

cf_err naive_lerp_time(backend *be, const op_lerp_time_args *a)
{
    (void)be;
    const int64_t width = a->x->dims[1];

    for (int32_t b = 0; b < a->rows_in->count; b++) {
        const int32_t in = rows_length(a->rows_in, b), out = rows_length(a->rows_out, b);
        const float *x = tensor_f32(a->x) + a->rows_in->offs[b] * width;
        float *y = tensor_f32(a->y) + a->rows_out->offs[b] * width;
        const float ratio = (float)in / (float)out;
        for (int32_t t = 0; t < out; t++) {
            const float at = lerp_position(ratio, t);
            const int32_t low = (int32_t)at < in - 1 ? (int32_t)at : in - 1;
            const int32_t high = low + (low < in - 1);
            const float part = at - (float)low < 1.0f ? at - (float)low : 1.0f;
            for (int64_t c = 0; c < width; c++)
                y[t * width + c] = (1.0f - part) * x[low * width + c] + part * x[high * width + c];
        }
    }
    return CF_OK;
}

/* Advances the nine phases by one frame and gives the voiced part of the source, sum_h w[h] 0.1 sin(phase). */
double source_frame(float f0, const float *w, float *phase_turns)
{
    const float per_rate = 1.0f / 24000.0f;
    double base = 0.0;

    for (int h = 0; h < SOURCE_HARMONICS; h++) {
        const float hz = f0 * (float)(h + 1);
        const float turns = fmodf(hz * per_rate, 1.0f);
        phase_turns[h] += turns;
        const float phase = phase_turns[h] * 2.0f * (float)M_PI * (float)SOURCE_FRAME_SAMPLES;
        base += (double)w[h] * (0.1 * sin((double)phase));
    }
    return base;
}

cf_err naive_source(backend *be, const op_source_args *a)
{
    (void)be;
    const float *noise = tensor_f32(a->noise), *w = tensor_f32(a->w);
    const double bias = (double)tensor_f32(a->bias)[0];

    for (int32_t b = 0; b < a->rows->count; b++) {
        const float *f0 = tensor_f32(a->f0) + a->rows->offs[b];
        float *y = tensor_f32(a->y) + (int64_t)a->rows->offs[b] * SOURCE_FRAME_SAMPLES;
        float phase_turns[SOURCE_HARMONICS] = {0};
        for (int64_t t = 0; t < rows_length(a->rows, b); t++) {
            const double voiced = source_frame(f0[t], w, phase_turns);
            const double base = f0[t] > 10.0f ? voiced : 0.0;
            const double noise_gain = f0[t] > 10.0f ? 0.003 : 0.1 / 3.0;
            for (int64_t n = t * SOURCE_FRAME_SAMPLES; n < (t + 1) * SOURCE_FRAME_SAMPLES; n++)
                y[n] = (float)tanh(bias + base + noise_gain * (double)noise[n]);
        }
    }
    return CF_OK;
}

/* Periodic Hann window. */
static double hann(int i)
{
    return 0.5 - 0.5 * cos(2.0 * M_PI * i / STFT_POINTS);
}

/* Sample m - 8 of the reflected signal. */
static float reflected(const float *x, int64_t samples, int64_t at)
{
    if (at < 0)
        at = -at;
    if (at >= samples)
        at = 2 * (samples - 1) - at;
    return x[at];
}

cf_err naive_stft(backend *be, const op_stft_args *a)
{
    (void)be;
    for (int32_t b = 0; b < a->rows_in->count; b++) {
        const float *x = tensor_f32(a->x) + a->rows_in->offs[b];
        float *y = tensor_f32(a->y) + (int64_t)a->rows_out->offs[b] * STFT_COLUMNS;
        for (int64_t j = 0; j < rows_length(a->rows_out, b); j++)
            for (int k = 0; k < STFT_BINS; k++) {
                double re = 0.0, im = 0.0;
                for (int i = 0; i < STFT_POINTS; i++) {
                    const int64_t at = STFT_HOP_SAMPLES * j + i - STFT_POINTS / 2;
                    const double v = hann(i) * (double)reflected(x, rows_length(a->rows_in, b), at);
                    re += v * cos(2.0 * M_PI * ((k * i) % STFT_POINTS) / STFT_POINTS);
                    im -= v * sin(2.0 * M_PI * ((k * i) % STFT_POINTS) / STFT_POINTS);
                }
                y[j * STFT_COLUMNS + k] = (float)re;
                /* Exactly zero at both real bins, where sin(pi) is not in f64. */
                y[j * STFT_COLUMNS + STFT_BINS + k] = k == 0 || k == STFT_BINS - 1 ? 0.0f : (float)im;
            }
    }
    return CF_OK;
}

/* Sample i of the inverse transform of one frame of [log magnitude | phase before its sine]. */
static double inverse_sample(const float *frame, int i)
{
    double sum = 0.0;
    for (int k = 0; k < STFT_BINS; k++) {
        const double grown = exp((double)frame[k]);
        const double magnitude = grown > 100.0 ? 100.0 : grown;
        const double phase = sin((double)frame[STFT_BINS + k]);
        const double turn = 2.0 * M_PI * ((k * i) % STFT_POINTS) / STFT_POINTS;
        if (k == 0 || k == STFT_BINS - 1)
            sum += magnitude * cos(phase) * (k == 0 || i % 2 == 0 ? 1.0 : -1.0);
        else
            sum += 2.0 * (magnitude * cos(phase) * cos(turn) - magnitude * sin(phase) * sin(turn));
    }
    return sum / STFT_POINTS;
}

static float istft_sample(const float *frames, int64_t count, int64_t sample_idx, double limit)
{
    const int64_t q = sample_idx + STFT_POINTS / 2;
    const int64_t last = q / STFT_HOP_SAMPLES < count - 1 ? q / STFT_HOP_SAMPLES : count - 1;
    const int64_t from = (q - STFT_POINTS + STFT_HOP_SAMPLES) / STFT_HOP_SAMPLES;
    double sum = 0.0, squares = 0.0;

    for (int64_t j = from > 0 ? from : 0; j <= last; j++) {
        const int i = (int)(q - STFT_HOP_SAMPLES * j);
        sum += hann(i) * inverse_sample(frames + j * STFT_COLUMNS, i);
        squares += hann(i) * hann(i);
    }
    const double y = sum / squares;
    return (float)(y > limit ? limit : y < -limit ? -limit : y);
}

cf_err naive_istft(backend *be, const op_istft_args *a)
{
    (void)be;
    for (int32_t b = 0; b < a->rows_in->count; b++) {
        const float *x = tensor_f32(a->x) + (int64_t)a->rows_in->offs[b] * STFT_COLUMNS;
        float *y = tensor_f32(a->y) + a->rows_out->offs[b];
        for (int64_t n = 0; n < rows_length(a->rows_out, b); n++)
            y[n] = istft_sample(x, rows_length(a->rows_in, b), n, (double)a->limit);
    }
    return CF_OK;
}
