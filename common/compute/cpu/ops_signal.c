/*
 * ops_signal.c - fast variant: source, STFT and its inverse, interpolation. Sequences or rows spread over the pool.
 *
 * Sums are in f64 from fixed tables: the work is small (a few thousand frames per second of audio), so accuracy is
 * free.
 * Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted. Source: the citations in ops.h.
 */
#define _GNU_SOURCE /* M_PI */
#include <math.h>
#include <string.h>

#include "common/compute/cpu/cpu_impl.h"

#define COST_STFT_FRAME   (STFT_COLUMNS * STFT_POINTS)
#define COST_ISTFT_FRAME  (STFT_BINS * 80)
#define COST_SOURCE_FRAME (SOURCE_FRAME_SAMPLES * 10)
#define ISTFT_BLOCK       16 /* frames whose angles are taken together */

typedef struct source_job {
    const op_source_args *a;
    const double *base; /* [R]: voiced part, zero where unvoiced */
} source_job;

static void source_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const source_job *job = args;
    const float *f0 = tensor_f32(job->a->f0), *noise = tensor_f32(job->a->noise);
    const double bias = (double)tensor_f32(job->a->bias)[0];
    int32_t b = rows_find(job->a->rows, first);

    for (int64_t r = first; r < first + count; r++) {
        while (r >= job->a->rows->offs[b + 1])
            b++;
        const double noise_gain = f0[r] > 10.0f ? 0.003 : 0.1 / 3.0;
        const float *frame_noise = noise + (r - job->a->rows->offs[b]) * SOURCE_FRAME_SAMPLES;
        cpu->vec->tanh_line(bias + job->base[r], noise_gain, frame_noise, SOURCE_FRAME_SAMPLES,
                            tensor_f32(job->a->y) + r * SOURCE_FRAME_SAMPLES);
    }
}

cf_err fast_source(backend *be, const op_source_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    const float *f0 = tensor_f32(a->f0), *w = tensor_f32(a->w);
    double *base;

    TRY(arena_take(&be->scratch, (size_t)a->f0->dims[0] * sizeof *base, &base));
    for (int32_t b = 0; b < a->rows->count; b++) {
        float phase_turns[SOURCE_HARMONICS] = {0};
        for (int64_t r = a->rows->offs[b]; r < a->rows->offs[b + 1]; r++) {
            const double voiced = source_frame(f0[r], w, phase_turns);
            base[r] = f0[r] > 10.0f ? voiced : 0.0;
        }
    }
    const source_job job = {.a = a, .base = base};
    cpu_run_rows(be, a->f0->dims[0], COST_SOURCE_FRAME, source_rows, &job);
out:
    backend_scratch_reset(be, mark);
    return err;
}

static double hann(int i)
{
    return 0.5 - 0.5 * cos(2.0 * M_PI * i / STFT_POINTS);
}

/* Both transforms have sixteen numbers on either side: the imaginary parts of bins 0 and 8 are zero. */
static int spectrum_column(int part)
{
    return part < STFT_BINS ? part : part + 1; /* of 18; 9 and 17 are the zeros */
}

typedef struct stft_job {
    const op_stft_args *a;
    double table[STFT_POINTS][STFT_POINTS]; /* window times cos, then minus window times sin */
} stft_job;

static void stft_frame(const stft_job *job, const vec_ops *vec, const float *x, int64_t samples, int64_t frame,
                       float *y)
{
    double point[STFT_POINTS], sum[STFT_POINTS];

    const int64_t begin = STFT_HOP_SAMPLES * frame - STFT_POINTS / 2;
    const bool inside = begin >= 0 && begin + STFT_POINTS <= samples;
    for (int i = 0; inside && i < STFT_POINTS; i++)
        point[i] = (double)x[begin + i];
    for (int i = 0; !inside && i < STFT_POINTS; i++) {
        int64_t at = begin + i;
        at = at < 0 ? -at : at;
        at = at >= samples ? 2 * (samples - 1) - at : at;
        point[i] = (double)x[at];
    }
    vec->mix_16(point, job->table[0], STFT_POINTS, sum);
    for (int part = 0; part < STFT_POINTS; part++)
        y[spectrum_column(part)] = (float)sum[part];
    y[STFT_BINS] = 0.0f; /* both real bins, also where x is NaN */
    y[STFT_COLUMNS - 1] = 0.0f;
}

static void stft_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const stft_job *job = args;
    const op_stft_args *a = job->a;
    int32_t b = rows_find(a->rows_out, first);

    for (int64_t r = first; r < first + count; r++) {
        while (r >= a->rows_out->offs[b + 1])
            b++;
        stft_frame(job, cpu->vec, tensor_f32(a->x) + a->rows_in->offs[b], rows_length(a->rows_in, b),
                   r - a->rows_out->offs[b], tensor_f32(a->y) + r * STFT_COLUMNS);
    }
}

cf_err fast_stft(backend *be, const op_stft_args *a)
{
    stft_job job = {.a = a};

    for (int i = 0; i < STFT_POINTS; i++)
        for (int part = 0; part < STFT_POINTS; part++) {
            const int k = spectrum_column(part) % STFT_BINS;
            const double turn = 2.0 * M_PI * (k * i % STFT_POINTS) / STFT_POINTS;
            job.table[i][part] = part < STFT_BINS ? hann(i) * cos(turn) : -hann(i) * sin(turn);
        }
    cpu_run_rows(be, a->y->dims[0], COST_STFT_FRAME, stft_rows, &job);
    return CF_OK;
}

typedef struct istft_job {
    const op_istft_args *a;
    double *frames; /* [F, 16]: windowed inverse transforms */
    double table[STFT_POINTS][STFT_POINTS];
    double window_squares[STFT_POINTS];
} istft_job;

/* The inverse transforms of up to ISTFT_BLOCK frames.   x: [count, 18], y: [count, 16] */
static void istft_frames(const istft_job *job, const vec_ops *vec, const float *x, int64_t count, double *y)
{
    float logs[ISTFT_BLOCK * STFT_BINS], angles[ISTFT_BLOCK * STFT_BINS];
    double re[ISTFT_BLOCK * STFT_BINS], im[ISTFT_BLOCK * STFT_BINS], parts[STFT_POINTS];

    for (int64_t f = 0; f < count; f++) {
        memcpy(logs + f * STFT_BINS, x + f * STFT_COLUMNS, STFT_BINS * sizeof *x);
        memcpy(angles + f * STFT_BINS, x + f * STFT_COLUMNS + STFT_BINS, STFT_BINS * sizeof *x);
    }
    vec->polar(logs, angles, count * STFT_BINS, re, im);
    for (int64_t f = 0; f < count; f++) {
        memcpy(parts, re + f * STFT_BINS, STFT_BINS * sizeof *parts);
        memcpy(parts + STFT_BINS, im + f * STFT_BINS + 1, (STFT_POINTS - STFT_BINS) * sizeof *parts);
        vec->mix_16(parts, job->table[0], STFT_POINTS, y + f * STFT_POINTS);
    }
}

static void istft_frame_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const istft_job *job = args;

    for (int64_t f = 0; f < count; f += ISTFT_BLOCK) {
        const int64_t block = count - f < ISTFT_BLOCK ? count - f : ISTFT_BLOCK;
        istft_frames(job, cpu->vec, tensor_f32(job->a->x) + (first + f) * STFT_COLUMNS, block,
                     job->frames + (first + f) * STFT_POINTS);
    }
}

static float istft_limit(const istft_job *job, double y)
{
    const double limit = (double)job->a->limit;
    return (float)(y > limit ? limit : y < -limit ? -limit : y);
}

/* Overlap and add: four frames a sample, fewer at the ends. */
static float istft_sample(const istft_job *job, const double *frames, int64_t count, int64_t sample_idx)
{
    const int64_t q = sample_idx + STFT_POINTS / 2;
    const int64_t last = q / STFT_HOP_SAMPLES < count - 1 ? q / STFT_HOP_SAMPLES : count - 1;
    const int64_t from = (q - STFT_POINTS + STFT_HOP_SAMPLES) / STFT_HOP_SAMPLES;
    double sum = 0.0, squares = 0.0;

    for (int64_t j = from > 0 ? from : 0; j <= last; j++) {
        const int i = (int)(q - STFT_HOP_SAMPLES * j);
        sum += frames[j * STFT_POINTS + i];
        squares += job->window_squares[i];
    }
    return istft_limit(job, sum / squares);
}

/* The hop's samples that begin where `frame` does, with the three frames before it: the same sums, side by side. */
static void istft_hop(const istft_job *job, const double *frame, float *y)
{
    enum { HOP = STFT_HOP_SAMPLES };
    const double *w = job->window_squares;
    for (int i = 0; i < HOP; i++) {
        double sum = 0.0, squares = 0.0;
        for (int back = STFT_POINTS / HOP - 1; back >= 0; back--) {
            sum += frame[back * HOP + i - back * STFT_POINTS];
            squares += w[back * HOP + i];
        }
        y[i] = istft_limit(job, sum / squares);
    }
}

/* Samples [first, first + count) of one sequence of `frames`. */
static void istft_samples(const istft_job *job, const double *frames, int64_t frame_count, int64_t first, int64_t count,
                          float *y)
{
    for (int64_t n = first; n < first + count;) {
        const int64_t frame = (n + STFT_POINTS / 2) / STFT_HOP_SAMPLES;
        const bool whole = n % STFT_HOP_SAMPLES == 0 && n + STFT_HOP_SAMPLES <= first + count &&
                           frame >= STFT_POINTS / STFT_HOP_SAMPLES - 1 && frame < frame_count;
        if (whole)
            istft_hop(job, frames + frame * STFT_POINTS, y + n);
        else
            y[n] = istft_sample(job, frames, frame_count, n);
        n += whole ? STFT_HOP_SAMPLES : 1;
    }
}

static void istft_sample_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    (void)cpu;
    const istft_job *job = args;
    const op_istft_args *a = job->a;
    int32_t b = rows_find(a->rows_out, first);

    for (int64_t n = first, stop; n < first + count; n = stop, b++) {
        const int64_t begin = a->rows_out->offs[b];
        stop = a->rows_out->offs[b + 1] < first + count ? a->rows_out->offs[b + 1] : first + count;
        istft_samples(job, job->frames + (int64_t)a->rows_in->offs[b] * STFT_POINTS, rows_length(a->rows_in, b),
                      n - begin, stop - n, tensor_f32(a->y) + begin);
    }
}

cf_err fast_istft(backend *be, const op_istft_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    istft_job job = {.a = a};

    TRY(arena_take(&be->scratch, (size_t)(a->x->dims[0] * STFT_POINTS) * sizeof *job.frames, &job.frames));
    for (int part = 0; part < STFT_POINTS; part++)
        for (int i = 0; i < STFT_POINTS; i++) {
            const int k = spectrum_column(part) % STFT_BINS;
            const double turn = 2.0 * M_PI * (k * i % STFT_POINTS) / STFT_POINTS;
            const double share =
                hann(i) * (k == 0 || k == STFT_BINS - 1 ? 1.0 : 2.0) / STFT_POINTS; /* real bins once */
            job.table[part][i] = part < STFT_BINS ? share * cos(turn) : -share * sin(turn);
        }
    for (int i = 0; i < STFT_POINTS; i++)
        job.window_squares[i] = hann(i) * hann(i);
    cpu_run_rows(be, a->x->dims[0], COST_ISTFT_FRAME, istft_frame_rows, &job);
    cpu_run_rows(be, a->y->dims[0], STFT_POINTS, istft_sample_rows, &job);
out:
    backend_scratch_reset(be, mark);
    return err;
}

static void lerp_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_lerp_time_args *a = args;
    const int64_t width = a->x->dims[1];
    int32_t b = rows_find(a->rows_out, first);

    for (int64_t r = first; r < first + count; r++) {
        while (r >= a->rows_out->offs[b + 1])
            b++;
        const int32_t in = rows_length(a->rows_in, b);
        const float ratio = (float)in / (float)rows_length(a->rows_out, b);
        const float at = lerp_position(ratio, (int32_t)(r - a->rows_out->offs[b]));
        const int32_t low = (int32_t)at < in - 1 ? (int32_t)at : in - 1;
        const int32_t high = low + (low < in - 1);
        const float part = at - (float)low < 1.0f ? at - (float)low : 1.0f;
        const float *x = tensor_f32(a->x) + a->rows_in->offs[b] * width;
        cpu->vec->lerp(x + low * width, x + high * width, part, width, tensor_f32(a->y) + r * width);
    }
}

cf_err fast_lerp_time(backend *be, const op_lerp_time_args *a)
{
    cpu_run_rows(be, a->y->dims[0], a->y->dims[1], lerp_rows, a);
    return CF_OK;
}
