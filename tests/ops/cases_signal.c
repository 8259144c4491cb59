/*
 * cases_signal.c - cases of lerp_time, source, stft and istft. Test code.
 *
 * Formulas of the direct computations: hift.md 5.2, 6 and 8; flow.md, interpolation along time. Lengths at which an
 * edge reaches the other edge (two or three frames) are part of the transforms' cases.
 */
#define _GNU_SOURCE /* M_PI */
#include "tests/ops/suite.h"

#include <math.h>

#define POINTS  16
#define BINS    9
#define COLUMNS 18
#define HOP     4

/* lerp_time: x, y. aux: rows out of a sequence */

typedef struct lerp_case {
    suite_case head;
    int64_t width;
} lerp_case;

#define LERP                                \
    {                                       \
        .why = "f32 steps in torch's order" \
    }

static const lerp_case lerp_cases[] = {
    {.head = {"one row to one", SEQS(1), AUX(1), .bound = LERP}, .width = 1},
    {.head = {"one row to five", SEQS(1, 2), AUX(5, 7), .bound = LERP}, .width = 3},
    {.head = {"prime", SEQS(0, 13, 0, 0, 5, 0), AUX(0, 29, 0, 0, 3, 0), .bound = LERP}, .width = 17},
    {.head = {"mel at 1.25", SEQS(50, 1, 33), AUX(40, 1, 26), .bound = LERP}, .width = 80},
    {.head = {"mel at 0.5", SEQS(21), AUX(42), .bound = LERP}, .width = 80},
    {.head = {"to nothing", SEQS(3, 4), AUX(0, 4), .bound = LERP}, .width = 5},
    {.head = {"over a task", SEQS(300, 200), AUX(1100, 900), .bound = LERP}, .width = 80},
};

static int64_t aux_rows(const suite_case *c, int32_t seq)
{
    return c->aux[seq];
}

static int32_t lerp_ports(const suite_case *c, port *p)
{
    const int64_t width = ((const lerp_case *)(const void *)c)->width;
    p[0] = (port){.name = "x", .role = PORT_IN, .width = width, .values = {.centre = -6, .amplitude = 4}};
    p[1] = (port){.name = "y", .role = PORT_OUT, .width = width, .rows = aux_rows};
    return 2;
}

static cf_err lerp_call(const op_run *run)
{
    tensor y = run->t[1];
    return op_lerp_time(
        run->be, &(op_lerp_time_args){.x = &run->t[0], .rows_in = &run->rows[0], .y = &y, .rows_out = &run->rows[1]});
}

/* Positions in f64; behind the last row both neighbours are the last row. */
static void lerp_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[0].dims[1];
    for (int32_t b = 0; b < run->seqs; b++) {
        const int32_t in = rows_length(&run->rows[0], b), out = rows_length(&run->rows[1], b);
        for (int64_t t = 0; t < out; t++) {
            const double at = fmax(((double)t + 0.5) * (double)in / (double)out - 0.5, 0.0);
            const double low = fmin(floor(at), (double)(in - 1)), high = fmin(low + 1.0, (double)(in - 1));
            for (int64_t c = 0; c < width; c++) {
                const double a = value_at(&run->t[0], (run->rows[0].offs[b] + (int64_t)low) * width + c);
                const double z = value_at(&run->t[0], (run->rows[0].offs[b] + (int64_t)high) * width + c);
                ret[1][(run->rows[1].offs[b] + t) * width + c] = a * (1.0 - (at - low)) + z * (at - low);
            }
        }
    }
}

/* source: f0, w, bias, noise, y */

typedef struct source_case {
    suite_case head;
    int64_t noise_samples;
    double lowest_hz; /* 0: a third unvoiced; else all between it and it + span_hz */
    double span_hz;
} source_case;

#define SOURCE                                                          \
    {                                                                   \
        .elem = 1.2e-7, .why = "f64 from the same phases, rounded once" \
    }

static const source_case source_cases[] = {
    {.head = {"one frame", SEQS(1), .bound = SOURCE}, .noise_samples = 480, .lowest_hz = 200, .span_hz = 1},
    {.head = {"speech", SEQS(0, 7, 0, 0, 1, 19, 0), .bound = SOURCE}, .noise_samples = 9121},
    {.head = {"unvoiced", SEQS(3, 2), .bound = SOURCE}, .noise_samples = 1440, .lowest_hz = 1, .span_hz = 9},
    {.head = {"around 10 Hz", SEQS(11), .bound = SOURCE}, .noise_samples = 6000, .lowest_hz = 9.9, .span_hz = 0.2},
    {.head = {"a minute", SEQS(60, 41), .bound = SOURCE}, .noise_samples = 28800, .lowest_hz = 2000, .span_hz = 500},
};

static int64_t source_rows(const suite_case *c, int32_t seq)
{
    return (int64_t)c->lengths[seq] * SOURCE_FRAME_SAMPLES;
}

static int32_t source_ports(const suite_case *c, port *p)
{
    const source_case *s = (const source_case *)(const void *)c;
    const dist narrow = {.centre = s->lowest_hz + s->span_hz / 2.0, .amplitude = s->span_hz / 2.0};
    p[0] = (port){
        .name = "f0", .role = PORT_IN, .width = 1, .values = s->lowest_hz > 0.0 ? narrow : (dist){DIST_HZ, 0, 0}};
    p[1] = (port){.name = "w", .role = PORT_TABLE, .width = 9, .table_rows = 1, .values = {.amplitude = 0.4}};
    p[2] = (port){.name = "bias", .role = PORT_TABLE, .width = 1, .table_rows = 1, .values = {.amplitude = 0.01}};
    p[3] = (port){.name = "noise",
                  .role = PORT_TABLE,
                  .width = 1,
                  .table_rows = s->noise_samples,
                  .values = {.centre = 0.2, .amplitude = 0.2}};
    p[4] = (port){.name = "y", .role = PORT_OUT, .width = 1, .rows = source_rows};
    return 5;
}

static cf_err source_call(const op_run *run)
{
    const tensor f0 = flat(&run->t[0]), w = flat(&run->t[1]), bias = flat(&run->t[2]), noise = flat(&run->t[3]);
    tensor y = flat(&run->t[4]);
    return op_source(
        run->be, &(op_source_args){.f0 = &f0, .w = &w, .bias = &bias, .noise = &noise, .y = &y, .rows = &run->rows[0]});
}

/* The phase in the order and with the roundings of hift.md 5.2; everything behind it in f64. */
static void source_direct(const op_run *run, double *const *ret)
{
    for (int32_t b = 0; b < run->seqs; b++) {
        float turns[9] = {0};
        for (int64_t r = run->rows[0].offs[b]; r < run->rows[0].offs[b + 1]; r++) {
            const double hz = value_at(&run->t[0], r);
            double voice = 0.0;
            for (int h = 0; h < 9; h++) {
                const double p = (double)(float)(hz * (double)(h + 1));
                const double q = (double)(float)(p * (double)(float)(1.0 / 24000.0));
                turns[h] = (float)((double)turns[h] + (q - floor(q)));
                const double doubled = (double)(float)((double)turns[h] * 2.0 * (double)(float)M_PI);
                voice += value_at(&run->t[1], h) * 0.1 * sin((double)(float)(doubled * 480.0));
            }
            const bool voiced = hz > 10.0;
            const int64_t begin = (r - run->rows[0].offs[b]) * SOURCE_FRAME_SAMPLES;
            for (int64_t n = 0; n < SOURCE_FRAME_SAMPLES; n++)
                ret[4][r * SOURCE_FRAME_SAMPLES + n] =
                    tanh(value_at(&run->t[2], 0) + (voiced ? voice : 0.0) +
                         (voiced ? 0.003 : 0.1 / 3.0) * value_at(&run->t[3], begin + n));
        }
    }
}

/* stft: x, y. Lengths are samples */

typedef struct signal_case {
    suite_case head;
    double amplitude; /* of x */
    double limit;     /* istft */
    int32_t fewer;    /* istft: samples not asked for at the end */
} signal_case;

static const signal_case *signal_of(const suite_case *c)
{
    return (const signal_case *)(const void *)c;
}

#define TRANSFORM                                                                                             \
    {                                                                                                         \
        .elem = 1.2e-7, .row = 1e-14, .floor = 1e-15, .why = "16 terms in f64 in another order, rounded once" \
    }

static const signal_case stft_cases[] = {
    {.head = {"12 samples", SEQS(12), .bound = TRANSFORM}},
    {.head = {"edges that meet", SEQS(0, 12, 0, 0, 16, 20, 0), .bound = TRANSFORM}},
    {.head = {"a frame of speech", SEQS(480, 964), .bound = TRANSFORM}, .amplitude = 0.1},
    {.head = {"over a task", SEQS(4804, 12, 2920), .bound = TRANSFORM}, .amplitude = 0.5},
};

static int64_t stft_rows(const suite_case *c, int32_t seq)
{
    return c->lengths[seq] ? c->lengths[seq] / HOP + 1 : 0;
}

static int32_t stft_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = 1, .values = {.amplitude = signal_of(c)->amplitude}};
    p[1] = (port){.name = "y", .role = PORT_OUT, .width = COLUMNS, .rows = stft_rows};
    return 2;
}

static cf_err stft_call(const op_run *run)
{
    const tensor x = flat(&run->t[0]);
    tensor y = run->t[1];
    return op_stft(run->be, &(op_stft_args){.x = &x, .rows_in = &run->rows[0], .y = &y, .rows_out = &run->rows[1]});
}

static double window_at(int i)
{
    return pow(sin(M_PI * i / POINTS), 2.0); /* periodic Hann */
}

/* Padding written out, then the sum over the points. Bins 0 and 8 of a real signal are real by definition. */
static void stft_direct(const op_run *run, double *const *ret)
{
    for (int32_t b = 0; b < run->seqs; b++) {
        const int64_t count = rows_length(&run->rows[0], b), first = run->rows[0].offs[b];
        double *x = test_calloc((size_t)(count + POINTS), sizeof *x);
        for (int64_t m = 0; m < count; m++)
            x[m + POINTS / 2] = value_at(&run->t[0], first + m);
        for (int i = 1; i <= POINTS / 2 && count; i++) {
            x[POINTS / 2 - i] = x[POINTS / 2 + i];
            x[POINTS / 2 + count - 1 + i] = x[POINTS / 2 + count - 1 - i];
        }
        for (int64_t r = 0; r < rows_length(&run->rows[1], b); r++)
            for (int k = 0; k < BINS; k++) {
                double re = 0.0, im = 0.0;
                double *y = ret[1] + (run->rows[1].offs[b] + r) * COLUMNS;
                for (int i = 0; i < POINTS; i++) {
                    const double turn = -2.0 * M_PI * (double)(k * i % POINTS) / POINTS;
                    re += window_at(i) * x[HOP * r + i] * cos(turn);
                    im += window_at(i) * x[HOP * r + i] * sin(turn);
                }
                y[k] = re;
                y[BINS + k] = k % (BINS - 1) == 0 ? 0.0 : im;
            }
        test_free(x);
    }
}

/* istft: x, y. Lengths are frames; columns 0..8 of x are logarithms, 9..17 phases before their sine */

#define INVERSE                                                                                                      \
    {                                                                                                                \
        .elem = 1.2e-7, .floor = 1e-13, .why = "sums of up to 100 in f64 in another order, rounded once; may cancel" \
    }

static const signal_case istft_cases[] = {
    {.head = {"two frames", SEQS(2), .bound = INVERSE}, .limit = 0.99},
    {.head = {"edges that meet", SEQS(0, 2, 0, 0, 3, 4, 0), .bound = INVERSE}, .limit = 50},
    {.head = {"one frame gives nothing", SEQS(1, 5), .bound = INVERSE}, .limit = 50},
    {.head = {"a frame of speech", SEQS(121, 241), .bound = INVERSE}, .amplitude = 5, .limit = 0.99},
    {.head = {"samples left out", SEQS(61, 10), .bound = INVERSE}, .amplitude = 2, .limit = 9, .fewer = 7},
    /* exp(x) up to 1e4, where the magnitude stops at 100; exp overflows further on */
    {.head = {"loud", SEQS(31, 7), .bound = INVERSE}, .amplitude = 9, .limit = 400},
    {.head = {"angles around 2^20", SEQS(9, 2), .bound = INVERSE}, .amplitude = 2e6, .limit = 400},
    {.head = {"beyond exp", SEQS(9), .bound = INVERSE}, .amplitude = 2000, .limit = 400},
};

static int64_t istft_rows(const suite_case *c, int32_t seq)
{
    return c->lengths[seq] ? (c->lengths[seq] - 1) * HOP - signal_of(c)->fewer : 0;
}

static int32_t istft_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = COLUMNS, .values = {.amplitude = signal_of(c)->amplitude}};
    p[1] = (port){.name = "y", .role = PORT_OUT, .width = 1, .rows = istft_rows};
    return 2;
}

static cf_err istft_call(const op_run *run)
{
    tensor y = flat(&run->t[1]);
    return op_istft(run->be, &(op_istft_args){.x = &run->t[0],
                                              .rows_in = &run->rows[0],
                                              .y = &y,
                                              .rows_out = &run->rows[1],
                                              .limit = (float)signal_of(run->c)->limit});
}

/* All 16 bins of the spectrum of a real signal, transformed back, windowed and added at the frame's place. */
static void add_frame(const double *spectrum, double *sum, double *squares)
{
    for (int i = 0; i < POINTS; i++) {
        double v = 0.0;
        for (int k = 0; k < POINTS; k++) {
            const int bin = k < BINS ? k : POINTS - k;
            const double magnitude = spectrum[bin], phase = bin % (BINS - 1) == 0 ? 0.0 : spectrum[BINS + bin];
            const double real = bin % (BINS - 1) == 0 ? cos(spectrum[BINS + bin]) : 1.0; /* its real part is kept */
            v += magnitude * real * cos((k < BINS ? phase : -phase) + 2.0 * M_PI * k * i / POINTS) / POINTS;
        }
        sum[i] += window_at(i) * v;
        squares[i] += window_at(i) * window_at(i);
    }
}

static void istft_direct(const op_run *run, double *const *ret)
{
    const double limit = (double)(float)signal_of(run->c)->limit;
    for (int32_t b = 0; b < run->seqs; b++) {
        const int64_t frames = rows_length(&run->rows[0], b);
        double *sum = test_calloc((size_t)(frames * HOP + POINTS), sizeof *sum);
        double *squares = test_calloc((size_t)(frames * HOP + POINTS), sizeof *squares);
        for (int64_t r = 0; r < frames; r++) {
            double spectrum[COLUMNS];
            for (int k = 0; k < BINS; k++) {
                const int64_t at = (run->rows[0].offs[b] + r) * COLUMNS + k;
                const double grown = exp(value_at(&run->t[0], at));
                spectrum[k] = isnan(grown) ? grown : fmin(grown, 100.0);
                spectrum[BINS + k] = sin(value_at(&run->t[0], at + BINS));
            }
            add_frame(spectrum, sum + r * HOP, squares + r * HOP);
        }
        for (int64_t n = 0; n < rows_length(&run->rows[1], b); n++) {
            const double v = sum[n + POINTS / 2] / squares[n + POINTS / 2];
            ret[1][run->rows[1].offs[b] + n] = isnan(v) ? v : fmin(fmax(v, -limit), limit);
        }
        test_free(sum);
        test_free(squares);
    }
}

const op_driver signal_drivers[] = {
    {.op = OP_lerp_time,
     DRIVER_CASES(lerp_cases),
     .ports = lerp_ports,
     .call = lerp_call,
     .direct = lerp_direct,
     .direct_bound = {.row = 5e-5, .why = "positions up to 300 in f32 are wrong by 2e-5 of the step between rows"}},
    {.op = OP_source,
     DRIVER_CASES(source_cases),
     .ports = source_ports,
     .call = source_call,
     .direct = source_direct,
     .direct_bound = SOURCE},
    {.op = OP_stft,
     DRIVER_CASES(stft_cases),
     .ports = stft_ports,
     .call = stft_call,
     .direct = stft_direct,
     .direct_bound = TRANSFORM},
    {.op = OP_istft,
     DRIVER_CASES(istft_cases),
     .ports = istft_ports,
     .call = istft_call,
     .direct = istft_direct,
     .direct_bound = INVERSE},
    {.cases = NULL},
};
