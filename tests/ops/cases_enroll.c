/*
 * cases_enroll.c - cases of conv2d, layer_norm, affine, fsmn, segment_mean and segment_gate. Test code.
 *
 * Real shapes: the front of CAM++ (80 to 10 frequencies of 32 channels), its layers of 128 and 32 channels in segments
 * of 100 frames, the token encoder's width of 1280 and memory of 31 taps. Sequences shorter than a kernel or a segment
 * are part of most cases.
 */
#include "tests/ops/suite.h"

#include <math.h>

/* conv2d: x, w, y, bias */

typedef struct conv2d_case {
    suite_case head;
    int32_t kernel, stride, freq_in, c_in, c_out;
    bool bias;
    act_kind act;
    dist x;
} conv2d_case;

static const conv2d_case *conv2d(const suite_case *c)
{
    return (const conv2d_case *)(const void *)c;
}

static int32_t freq_out(const conv2d_case *k)
{
    return (k->freq_in + k->stride - 1) / k->stride;
}

#define CHAIN                                                                               \
    {                                                                                       \
        .row = 2e-6, .floor = 1e-7, .why = "an f32 chain of up to 288 terms: sqrt(K) 2^-24" \
    }

static const conv2d_case conv2d_cases[] = {
    {.head = {"one value", SEQS(1), .bound = CHAIN}, .kernel = 1, .stride = 1, .freq_in = 1, .c_in = 1, .c_out = 1},
    {.head = {"one cell, nine taps", SEQS(1, 1), .bound = CHAIN},
     .kernel = 3,
     .stride = 1,
     .freq_in = 1,
     .c_in = 1,
     .c_out = 1,
     .bias = true},
    {.head = {"prime", SEQS(0, 3, 1, 0, 2), .bound = CHAIN},
     .kernel = 3,
     .stride = 1,
     .freq_in = 7,
     .c_in = 3,
     .c_out = 5,
     .bias = true,
     .act = ACT_RELU},
    {.head = {"odd frequencies, stride 2", SEQS(5, 2), .bound = CHAIN},
     .kernel = 3,
     .stride = 2,
     .freq_in = 11,
     .c_in = 5,
     .c_out = 19},
    {.head = {"shortcut", SEQS(4, 9), .bound = CHAIN},
     .kernel = 1,
     .stride = 2,
     .freq_in = 8,
     .c_in = 17,
     .c_out = 33,
     .bias = true},
    {.head = {"front, first", SEQS(13, 5, 1), .bound = CHAIN, .heavy = true},
     .kernel = 3,
     .stride = 1,
     .freq_in = 80,
     .c_in = 1,
     .c_out = 32,
     .bias = true,
     .act = ACT_RELU,
     .x = {.amplitude = 6}},
    {.head = {"front, halving", SEQS(3, 9), .bound = CHAIN, .heavy = true},
     .kernel = 3,
     .stride = 2,
     .freq_in = 40,
     .c_in = 32,
     .c_out = 32,
     .bias = true,
     .act = ACT_RELU},
};

static int32_t conv2d_ports(const suite_case *c, port *p)
{
    const conv2d_case *k = conv2d(c);
    const int64_t taps = (int64_t)k->kernel * k->kernel;
    p[0] = (port){.name = "x", .role = PORT_IN, .width = k->freq_in * k->c_in, .values = k->x};
    p[1] = (port){.name = "w",
                  .role = PORT_WEIGHT,
                  .width = k->c_in * taps,
                  .table_rows = k->c_out,
                  .values = {.amplitude = sqrt(3.0 / (double)(k->c_in * taps))}};
    p[2] = (port){.name = "y", .role = PORT_OUT, .width = freq_out(k) * k->c_out};
    p[3] = (port){.name = "bias", .role = PORT_TABLE, .width = k->c_out, .table_rows = 1};
    return k->bias ? 4 : 3;
}

static cf_err conv2d_pack(const suite_case *c, backend *be, const void *values, weight **ret_weight)
{
    const conv2d_case *k = conv2d(c);
    return backend_pack_conv(be, values, k->c_out, k->c_in, (int64_t)k->kernel * k->kernel, 1, PRECISION_F32,
                             ret_weight);
}

static cf_err conv2d_call(const op_run *run)
{
    const conv2d_case *k = conv2d(run->c);
    const tensor bias = k->bias ? flat(&run->t[3]) : (tensor){0};
    tensor y = run->t[2];
    return op_conv2d(run->be, &(op_conv2d_args){.x = &run->t[0],
                                                .w = run->w,
                                                .bias = k->bias ? &bias : NULL,
                                                .y = &y,
                                                .rows = &run->rows[0],
                                                .kernel = k->kernel,
                                                .stride = k->stride,
                                                .freq_in = k->freq_in,
                                                .freq_out = freq_out(k),
                                                .act = k->act});
}

/* x[time of the sequence][frequency][channel], zero outside. */
static double cell(const op_run *run, int32_t seq, int64_t t, int64_t f, int64_t i)
{
    const conv2d_case *k = conv2d(run->c);
    if (t < 0 || t >= rows_length(&run->rows[0], seq) || f < 0 || f >= k->freq_in)
        return 0.0;
    return value_at(&run->t[0], ((run->rows[0].offs[seq] + t) * k->freq_in + f) * k->c_in + i);
}

static double conv2d_sum(const op_run *run, int32_t seq, int64_t t, int64_t f, int64_t o)
{
    const conv2d_case *k = conv2d(run->c);
    const int64_t half = k->kernel / 2;
    double sum = k->bias ? value_at(&run->t[3], o) : 0.0;
    for (int64_t i = 0; i < k->c_in; i++)
        for (int64_t q = -half; q <= half; q++)
            for (int64_t p = -half; p <= half; p++) {
                const int64_t tap = (p + half) * k->kernel + q + half;
                sum += cell(run, seq, t + q, f * k->stride + p, i) *
                       value_at(&run->t[1], (o * k->c_in + i) * k->kernel * k->kernel + tap);
            }
    return elem_act(sum, k->act, 0.0f);
}

static void conv2d_direct(const op_run *run, double *const *ret)
{
    const conv2d_case *k = conv2d(run->c);
    const int64_t width = (int64_t)freq_out(k) * k->c_out;
    for (int32_t b = 0; b < run->seqs; b++)
        for (int64_t at = 0; at < rows_length(&run->rows[0], b) * width; at++)
            ret[2][run->rows[0].offs[b] * width + at] =
                conv2d_sum(run, b, at / width, at % width / k->c_out, at % k->c_out);
}

/* layer_norm: x, gain, bias, y */

typedef struct row_case {
    suite_case head;
    int64_t width, columns; /* columns: of x where it is wider than y */
    int32_t taps, segment, first;
    bool whole, plain;
    act_kind act;
    dist x;
} row_case;

static const row_case *row(const suite_case *c)
{
    return (const row_case *)(const void *)c;
}

#define LAYER                                                                                                  \
    {                                                                                                          \
        .row = 1e-6, .why = "x - mean cancels to the rounding of the row's largest value; lanes of C/16 terms" \
    }

static const row_case layer_cases[] = {
    {.head = {"one value", SEQS(1), .bound = LAYER}, .width = 1},
    {.head = {"prime", SEQS(0, 2, 0, 3), .bound = LAYER}, .width = 31},
    {.head = {"17 channels", SEQS(1, 2), .bound = LAYER}, .width = 17},
    {.head = {"token encoder", SEQS(1, 50, 2), .bound = LAYER}, .width = 1280},
    {.head = {"large residual", SEQS(3), .bound = LAYER}, .width = 1280, .x = {DIST_OUTLIERS, 0, 500}},
};

static port vector_port(const char *name, int64_t width, double centre)
{
    return (port){.name = name, .role = PORT_TABLE, .width = width, .table_rows = 1, .values = {.centre = centre}};
}

static int32_t layer_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = row(c)->width, .values = row(c)->x};
    p[1] = vector_port("gain", row(c)->width, 1.5);
    p[2] = vector_port("bias", row(c)->width, 0.2);
    p[3] = (port){.name = "y", .role = PORT_OUT, .width = row(c)->width};
    return 4;
}

static cf_err layer_call(const op_run *run)
{
    const tensor gain = flat(&run->t[1]), bias = flat(&run->t[2]);
    tensor y = run->t[3];
    return op_layer_norm(run->be,
                         &(op_layer_norm_args){.x = &run->t[0], .gain = &gain, .bias = &bias, .y = &y, .eps = 1e-5f});
}

/* Variance from pairs of columns, which needs no mean. */
static void layer_direct(const op_run *run, double *const *ret)
{
    const int64_t width = row(run->c)->width;
    for (int64_t r = 0; r < run->t[0].dims[0]; r++) {
        double mean = 0.0, pairs = 0.0;
        for (int64_t c = 0; c < width; c++) {
            const double x = value_at(&run->t[0], r * width + c);
            mean += x / (double)width;
            for (int64_t d = 0; d < c; d++)
                pairs += pow(x - value_at(&run->t[0], r * width + d), 2.0);
        }
        const double root = sqrt(pairs / (double)width / (double)width + (double)1e-5f);
        for (int64_t c = 0; c < width; c++)
            ret[3][r * width + c] =
                (value_at(&run->t[0], r * width + c) - mean) / root * value_at(&run->t[1], c) + value_at(&run->t[2], c);
    }
}

/* affine: x, scale, shift, y */

#define AFFINE                                                                                   \
    {                                                                                            \
        .elem = 1e-6, .floor = 3e-7, .why = "a product and a sum, each rounded; they may cancel" \
    }

static const row_case affine_cases[] = {
    {.head = {"one value", SEQS(1), .bound = AFFINE}, .width = 1, .columns = 1},
    {.head = {"prime, of more columns", SEQS(0, 2, 3), .bound = AFFINE}, .width = 31, .columns = 37, .act = ACT_RELU},
    {.head = {"sigmoid", SEQS(4, 1), .bound = AFFINE}, .width = 33, .columns = 33, .act = ACT_SIGMOID},
    {.head = {"speaker network", SEQS(60, 1, 20), .bound = AFFINE}, .width = 544, .columns = 1024, .act = ACT_RELU},
};

static int32_t affine_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = row(c)->columns, .values = row(c)->x};
    p[1] = vector_port("scale", row(c)->width, 1.0);
    p[2] = vector_port("shift", row(c)->width, -0.1);
    p[3] = (port){.name = "y", .role = PORT_OUT, .width = row(c)->width};
    return 4;
}

static cf_err affine_call(const op_run *run)
{
    const tensor scale = flat(&run->t[1]), shift = flat(&run->t[2]);
    tensor y = run->t[3];
    return op_affine(run->be, &(op_affine_args){
                                  .x = &run->t[0], .scale = &scale, .shift = &shift, .y = &y, .act = row(run->c)->act});
}

static void affine_direct(const op_run *run, double *const *ret)
{
    const row_case *k = row(run->c);
    for (int64_t r = 0; r < run->t[0].dims[0]; r++)
        for (int64_t c = 0; c < k->width; c++)
            ret[3][r * k->width + c] = elem_act(
                fma(value_at(&run->t[0], r * k->columns + c), value_at(&run->t[1], c), value_at(&run->t[2], c)), k->act,
                0.0f);
}

/* fsmn: x, w, y; y changes */

#define MEMORY                                                              \
    {                                                                       \
        .row = 2e-6, .why = "31 products and three sums, each rounded once" \
    }

static const row_case fsmn_cases[] = {
    {.head = {"one value", SEQS(1), .bound = {.row = 2e-6, .floor = 1e-6, .why = "three terms may cancel"}},
     .width = 1,
     .columns = 1,
     .taps = 1},
    {.head = {"prime", SEQS(0, 2, 5, 1), .bound = MEMORY}, .width = 7, .columns = 13, .taps = 3, .first = 5},
    {.head = {"over a piece of channels", SEQS(40, 3), .bound = MEMORY},
     .width = 257,
     .columns = 300,
     .taps = 31,
     .first = 43},
    {.head = {"token encoder", SEQS(33, 1, 16), .bound = MEMORY, .heavy = true},
     .width = 1280,
     .columns = 3840,
     .taps = 31,
     .first = 2560},
};

static int32_t fsmn_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = row(c)->columns};
    p[1] = (port){.name = "w", .role = PORT_TABLE, .width = row(c)->width, .table_rows = row(c)->taps};
    p[2] = (port){.name = "y", .role = PORT_INOUT, .width = row(c)->width};
    return 3;
}

static cf_err fsmn_call(const op_run *run)
{
    tensor y = run->t[2];
    return op_fsmn(
        run->be,
        &(op_fsmn_args){
            .x = &run->t[0], .w = &run->t[1], .y = &y, .rows = &run->rows[0], .first_channel = row(run->c)->first});
}

static void fsmn_direct(const op_run *run, double *const *ret)
{
    const row_case *k = row(run->c);
    for (int32_t b = 0; b < run->seqs; b++)
        for (int64_t t = 0; t < rows_length(&run->rows[0], b); t++)
            for (int64_t c = 0; c < k->width; c++) {
                const int64_t r = run->rows[0].offs[b] + t;
                double sum = value_at(&run->t[2], r * k->width + c);
                for (int64_t other = 0; other < rows_length(&run->rows[0], b); other++) {
                    const int64_t tap = other - t + k->taps / 2;
                    const double x = value_at(&run->t[0], (run->rows[0].offs[b] + other) * k->columns + k->first + c);
                    sum += tap >= 0 && tap < k->taps ? x * value_at(&run->t[1], tap * k->width + c) : 0.0;
                    sum += other == t ? x : 0.0;
                }
                ret[2][r * k->width + c] = sum;
            }
}

/* segment_mean: x, y */

#define MEANS                                                          \
    {                                                                  \
        .elem = 1.2e-7, .floor = 1e-9, .why = "f64 sums, rounded once" \
    }

static const row_case mean_cases[] = {
    {.head = {"one value", SEQS(1), .bound = MEANS}, .width = 1, .segment = 1},
    {.head = {"short last segment", SEQS(0, 5, 1, 7), .bound = MEANS}, .width = 9, .segment = 3},
    {.head = {"divided by the whole", SEQS(0, 5, 1, 7), .bound = MEANS}, .width = 9, .segment = 3, .whole = true},
    {.head = {"over a piece of columns", SEQS(11), .bound = MEANS}, .width = 131, .segment = 4},
    {.head = {"speaker network", SEQS(173, 100, 99), .bound = MEANS}, .width = 128, .segment = 100},
};

static int64_t segments(const suite_case *c, int32_t seq)
{
    return (c->lengths[seq] + row(c)->segment - 1) / row(c)->segment;
}

static int32_t mean_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = row(c)->width, .values = {.centre = 0.5}};
    p[1] = (port){.name = "y", .role = PORT_OUT, .width = row(c)->width, .rows = segments};
    return 2;
}

static cf_err mean_call(const op_run *run)
{
    tensor y = run->t[1];
    return op_segment_mean(run->be, &(op_segment_mean_args){.x = &run->t[0],
                                                            .rows_in = &run->rows[0],
                                                            .y = &y,
                                                            .rows_out = &run->rows[1],
                                                            .segment = row(run->c)->segment,
                                                            .whole = row(run->c)->whole});
}

static void mean_direct(const op_run *run, double *const *ret)
{
    const row_case *k = row(run->c);
    for (int32_t b = 0; b < run->seqs; b++)
        for (int64_t s = 0; s < rows_length(&run->rows[1], b); s++)
            for (int64_t c = 0; c < k->width; c++) {
                const int64_t length = rows_length(&run->rows[0], b), end = (s + 1) * k->segment;
                const double parts = k->whole || end <= length ? k->segment : (double)(length - s * k->segment);
                double all = 0.0, part = 0.0;
                for (int64_t t = length; t-- > 0;) {
                    const double x = value_at(&run->t[0], (run->rows[0].offs[b] + t) * k->width + c);
                    all += x;
                    part += t / k->segment == s ? x : 0.0;
                }
                ret[1][(run->rows[1].offs[b] + s) * k->width + c] = all / (double)length + part / parts;
            }
}

/* segment_gate: x, y, gate; columns of y change */

#define ONE_PRODUCT                     \
    {                                   \
        .why = "one product, or a copy" \
    }

static const row_case gate_cases[] = {
    {.head = {"one value", SEQS(1), .bound = ONE_PRODUCT}, .width = 1, .columns = 1, .segment = 1},
    {.head = {"prime", SEQS(0, 5, 1, 7), .bound = ONE_PRODUCT}, .width = 9, .columns = 14, .segment = 3, .first = 4},
    {.head = {"copy", SEQS(3, 0, 2), .bound = ONE_PRODUCT},
     .width = 7,
     .columns = 9,
     .segment = 1,
     .first = 2,
     .plain = true},
    {.head = {"speaker network", SEQS(173, 100, 99), .bound = ONE_PRODUCT},
     .width = 32,
     .columns = 512,
     .segment = 100,
     .first = 480},
};

static int32_t gate_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = row(c)->width};
    p[1] = (port){.name = "y", .role = PORT_INOUT, .width = row(c)->columns};
    p[2] = (port){.name = "gate", .role = PORT_IN, .width = row(c)->width, .rows = segments};
    return row(c)->plain ? 2 : 3;
}

static cf_err gate_call(const op_run *run)
{
    const bool plain = row(run->c)->plain;
    tensor y = run->t[1];
    return op_segment_gate(run->be, &(op_segment_gate_args){.x = &run->t[0],
                                                            .gate = plain ? NULL : &run->t[2],
                                                            .rows = &run->rows[0],
                                                            .segments = plain ? NULL : &run->rows[2],
                                                            .y = &y,
                                                            .segment = row(run->c)->segment,
                                                            .first_channel = row(run->c)->first});
}

static void gate_direct(const op_run *run, double *const *ret)
{
    const row_case *k = row(run->c);
    for (int64_t i = 0; i < tensor_count(&run->t[1]); i++)
        ret[1][i] = value_at(&run->t[1], i);
    for (int32_t b = 0; b < run->seqs; b++)
        for (int64_t at = 0; at < rows_length(&run->rows[0], b) * k->width; at++) {
            const int64_t t = at / k->width, c = at % k->width, r = run->rows[0].offs[b] + t;
            const double x = value_at(&run->t[0], r * k->width + c);
            const int64_t s = k->plain ? 0 : run->rows[2].offs[b] + t / k->segment;
            ret[1][r * k->columns + k->first + c] =
                k->plain ? x : (double)(float)(x * value_at(&run->t[2], s * k->width + c));
        }
}

#define ROUNDED                                                                                   \
    {                                                                                             \
        .elem = 1.2e-7, .row = 1e-12, .floor = 1e-14, .why = "f64 in another order, rounded once" \
    }

const op_driver enroll_drivers[] = {
    {.op = OP_conv2d,
     DRIVER_CASES(conv2d_cases),
     .ports = conv2d_ports,
     .pack = conv2d_pack,
     .call = conv2d_call,
     .direct = conv2d_direct,
     .direct_bound = ROUNDED},
    {.op = OP_layer_norm,
     DRIVER_CASES(layer_cases),
     .ports = layer_ports,
     .call = layer_call,
     .direct = layer_direct,
     .direct_bound = ROUNDED},
    {.op = OP_affine,
     DRIVER_CASES(affine_cases),
     .ports = affine_ports,
     .call = affine_call,
     .direct = affine_direct,
     .direct_bound = ROUNDED},
    {.op = OP_fsmn,
     DRIVER_CASES(fsmn_cases),
     .ports = fsmn_ports,
     .call = fsmn_call,
     .direct = fsmn_direct,
     .direct_bound = ROUNDED},
    {.op = OP_segment_mean,
     DRIVER_CASES(mean_cases),
     .ports = mean_ports,
     .call = mean_call,
     .direct = mean_direct,
     .direct_bound = MEANS},
    {.op = OP_segment_gate,
     DRIVER_CASES(gate_cases),
     .ports = gate_ports,
     .call = gate_call,
     .direct = gate_direct,
     .direct_bound = ONE_PRODUCT},
    {.cases = NULL},
};
