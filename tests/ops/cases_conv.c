/*
 * cases_conv.c - cases of conv1d: causal, look-ahead, dilated, strided, upsampling, grouped, f32, bf16 and f64. Test
 * code.
 *
 * Sequences shorter than the kernel are part of most cases: every tap of theirs that lies outside reads zero, not the
 * neighbour. Edges of products as in cases_matmul.c; f64 kernels have 8 columns. Real shapes: Flow's position
 * convolution (1024 channels, 16 groups, 31 taps) and look-ahead, HiFT's ladder (512, 256, 128, 64 channels; 3, 7, 11
 * taps; dilation 1, 3, 5) and its f0 predictor in f64.
 */
#include "tests/ops/suite.h"

#include <math.h>

typedef struct conv_case {
    suite_case head;
    int32_t c_in, c_out, kernel;
    int32_t pad_left;
    int32_t dilation, stride, repeat, groups; /* 0 stands for 1 */
    int32_t out_div;                          /* rows out: rows in * repeat / out_div + out_add; 0 stands for 1 */
    int32_t out_add;
    bool bias, wide, snake, residual; /* wide: f64; snake: x is read through it */
    act_kind act;
    float slope;
    dist x;
} conv_case;

static const conv_case *conv(const suite_case *c)
{
    return (const conv_case *)(const void *)c;
}

static int32_t or_one(int32_t v)
{
    return v ? v : 1;
}

static int64_t conv_rows_out(const suite_case *c, int32_t seq)
{
    const conv_case *k = conv(c);
    const int32_t length = c->lengths[seq];
    return length ? length * or_one(k->repeat) / or_one(k->out_div) + k->out_add : 0;
}

#define CHAIN                                                                            \
    {                                                                                    \
        .row = 3e-6, .why = "an f32 chain of up to 3072 terms: sqrt(K) 2^-24 of the row" \
    }
#define CHAIN_ONE                                                                                                \
    {                                                                                                            \
        .elem = 1e-5, .floor = 1e-6, .why = "few columns: a sum that cancels is as wrong as its terms are large" \
    }
#define CHAIN_F64                                                            \
    {                                                                        \
        .row = 1e-14, .floor = 1e-15, .why = "an f64 chain in another order" \
    }

/* Where pairs are f32 the chain's bound holds too. What low times low would add is left out: 2^-16 of each term. */
#define PAIRS                                                                                              \
    {                                                                                                      \
        .row = 4e-5, .floor = 1e-5, .why = "products of pairs lack low times low", .nonfinite_alike = true \
    }

/* fp16 has 11 significant bits: each of two factors is off by 2^-12 of itself at most, and a sum by that of a row. An
 * infinity times a filter may also come out as NaN, and large inputs as infinity. */
#define HALVES                                                                                        \
    {                                                                                                 \
        .row = 1e-3, .floor = 1e-4, .why = "operands of 11 bits on a device", .nonfinite_alike = true \
    }

static const conv_case conv_cases[] = {
    {.head = {"one value", SEQS(1), .bound = CHAIN_ONE}, .c_in = 1, .c_out = 1, .kernel = 1},
    {.head = {"no rows", SEQS(0, 0), .bound = CHAIN_ONE},
     .c_in = 3,
     .c_out = 2,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"prime, causal", SEQS(0, 1, 0, 0, 2, 11, 0), .bound = CHAIN},
     .c_in = 7,
     .c_out = 19,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"prime, causal, bf16", SEQS(1, 0, 2, 11), .bound = CHAIN, .bf16 = true},
     .c_in = 7,
     .c_out = 19,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"look-ahead, leaky", SEQS(1, 3, 9), .bound = CHAIN},
     .c_in = 13,
     .c_out = 29,
     .kernel = 4,
     .bias = true,
     .act = ACT_LEAKY,
     .slope = 0.01f},
    {.head = {"look-ahead of held frames", SEQS(7, 12, 6), .bound = CHAIN},
     .c_in = 20,
     .c_out = 31,
     .kernel = 5,
     .out_add = -4,
     .bias = true},
    {.head = {"dilated, rows over a tile", SEQS(3, 121, 60, 1), .bound = CHAIN},
     .c_in = 24,
     .c_out = 21,
     .kernel = 11,
     .dilation = 5,
     .pad_left = 50,
     .bias = true},
    {.head = {"dilated, rows over a tile, bf16", SEQS(3, 121, 60, 1), .bound = CHAIN, .bf16 = true},
     .c_in = 24,
     .c_out = 21,
     .kernel = 11,
     .dilation = 5,
     .pad_left = 50,
     .bias = true},
    {.head = {"strided", SEQS(1, 31, 46), .bound = CHAIN},
     .c_in = 18,
     .c_out = 25,
     .kernel = 30,
     .stride = 15,
     .pad_left = 14,
     .out_div = 15,
     .out_add = 1,
     .bias = true},
    {.head = {"repeated rows", SEQS(1, 5, 2), .bound = CHAIN},
     .c_in = 12,
     .c_out = 17,
     .kernel = 16,
     .repeat = 8,
     .pad_left = 15,
     .bias = true},
    {.head = {"repeated rows, strided", SEQS(4, 7), .bound = CHAIN},
     .c_in = 5,
     .c_out = 16,
     .kernel = 5,
     .repeat = 3,
     .stride = 2,
     .dilation = 2,
     .pad_left = 3,
     .out_div = 2},
    {.head = {"groups, mish", SEQS(1, 9, 33), .bound = CHAIN},
     .c_in = 48,
     .c_out = 64,
     .kernel = 7,
     .groups = 16,
     .pad_left = 6,
     .bias = true,
     .act = ACT_MISH},
    {.head = {"a group per channel", SEQS(2, 9), .bound = CHAIN},
     .c_in = 19,
     .c_out = 19,
     .kernel = 3,
     .groups = 19,
     .pad_left = 1,
     .bias = true},
    {.head = {"groups over a piece", SEQS(2, 3), .bound = CHAIN, .bf16 = true},
     .c_in = 6,
     .c_out = 1034,
     .kernel = 2,
     .groups = 2,
     .pad_left = 1},
    {.head = {"depth over a block", SEQS(1, 9), .bound = CHAIN}, .c_in = 86, .c_out = 23, .kernel = 3, .pad_left = 2},
    {.head = {"one column", SEQS(2, 9), .bound = CHAIN_ONE},
     .c_in = 11,
     .c_out = 1,
     .kernel = 3,
     .pad_left = 2,
     .bias = true,
     .act = ACT_ABS},
    {.head = {"flow position", SEQS(1, 6), .bound = CHAIN, .heavy = true},
     .c_in = 1024,
     .c_out = 1024,
     .kernel = 31,
     .groups = 16,
     .pad_left = 30,
     .bias = true,
     .act = ACT_MISH},
    {.head = {"flow position, bf16", SEQS(1, 6), .bound = CHAIN, .bf16 = true, .heavy = true},
     .c_in = 1024,
     .c_out = 1024,
     .kernel = 31,
     .groups = 16,
     .pad_left = 30,
     .bias = true,
     .act = ACT_MISH},
    {.head = {"flow look-ahead", SEQS(1, 5), .bound = CHAIN, .heavy = true},
     .c_in = 80,
     .c_out = 1024,
     .kernel = 4,
     .bias = true,
     .act = ACT_LEAKY,
     .slope = 0.01f},
    {.head = {"flow look-back", SEQS(1, 5), .bound = CHAIN, .heavy = true},
     .c_in = 1024,
     .c_out = 80,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"vocoder first", SEQS(9, 5), .bound = CHAIN, .heavy = true},
     .c_in = 80,
     .c_out = 512,
     .kernel = 5,
     .out_add = -4,
     .bias = true,
     .x = {.centre = -6, .amplitude = 4}},
    {.head = {"vocoder raise by 8", SEQS(1, 4), .bound = CHAIN, .heavy = true},
     .c_in = 512,
     .c_out = 2048,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"vocoder 256, 3 taps", SEQS(2, 8), .bound = CHAIN, .heavy = true},
     .c_in = 256,
     .c_out = 256,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"vocoder 128, 7 taps by 3", SEQS(2, 20), .bound = CHAIN, .heavy = true},
     .c_in = 128,
     .c_out = 128,
     .kernel = 7,
     .dilation = 3,
     .pad_left = 18,
     .bias = true,
     .x = {.amplitude = 50}},
    {.head = {"vocoder 64, 11 taps by 5", SEQS(2, 61), .bound = CHAIN, .heavy = true},
     .c_in = 64,
     .c_out = 64,
     .kernel = 11,
     .dilation = 5,
     .pad_left = 50,
     .bias = true},
    {.head = {"vocoder source down by 15", SEQS(121, 31), .bound = CHAIN, .heavy = true},
     .c_in = 18,
     .c_out = 256,
     .kernel = 30,
     .stride = 15,
     .pad_left = 14,
     .out_div = 15,
     .bias = true},
    {.head = {"prime, causal, pairs", SEQS(1, 0, 2, 11), .bound = PAIRS, .pair = true},
     .c_in = 7,
     .c_out = 13,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"dilated, rows over blocks, pairs", SEQS(3, 121, 32, 33, 1), .bound = PAIRS, .pair = true},
     .c_in = 33,
     .c_out = 40,
     .kernel = 3,
     .dilation = 5,
     .pad_left = 10,
     .act = ACT_LEAKY,
     .slope = 0.1f},
    {.head = {"repeated, groups, pairs", SEQS(5, 1, 20), .bound = PAIRS, .pair = true},
     .c_in = 12,
     .c_out = 66,
     .kernel = 5,
     .pad_left = 4,
     .repeat = 3,
     .groups = 2,
     .bias = true},
    {.head = {"few channels, dilated, pairs", SEQS(3, 121, 0, 64, 365, 1), .bound = PAIRS, .pair = true},
     .c_in = 8,
     .c_out = 8,
     .kernel = 11,
     .dilation = 5,
     .pad_left = 50,
     .bias = true,
     .act = ACT_LEAKY,
     .slope = 0.1f},
    {.head = {"few channels, strided and dilated, pairs", SEQS(9, 2, 140), .bound = PAIRS, .pair = true},
     .c_in = 6,
     .c_out = 5,
     .kernel = 4,
     .stride = 2,
     .dilation = 3,
     .pad_left = 5,
     .out_div = 2,
     .bias = true},
    {.head = {"few channels, a stride within the dilation, bf16", SEQS(9, 4, 300), .bound = CHAIN, .bf16 = true},
     .c_in = 10,
     .c_out = 16,
     .kernel = 5,
     .stride = 4,
     .dilation = 6,
     .pad_left = 24,
     .out_div = 4,
     .out_add = 1},
    {.head = {"few channels, repeated, rows over a piece, bf16", SEQS(1, 180, 7), .bound = CHAIN, .bf16 = true},
     .c_in = 16,
     .c_out = 16,
     .kernel = 3,
     .repeat = 3,
     .dilation = 2,
     .pad_left = 4,
     .bias = true},
    {.head = {"few channels, one chunk, pairs", SEQS(66, 1), .bound = PAIRS, .pair = true},
     .c_in = 16,
     .c_out = 16,
     .kernel = 2,
     .pad_left = 1},
    {.head = {"few channels, whole blocks of rows, bf16", SEQS(64, 128, 0, 63), .bound = CHAIN, .bf16 = true},
     .c_in = 8,
     .c_out = 12,
     .kernel = 5,
     .pad_left = 4,
     .bias = true},
    {.head = {"few channels, strided, rows over a piece, bf16", SEQS(2, 810), .bound = CHAIN, .bf16 = true},
     .c_in = 6,
     .c_out = 5,
     .kernel = 6,
     .stride = 3,
     .pad_left = 5,
     .out_div = 3,
     .bias = true},
    {.head = {"few columns of many channels, whole blocks of rows, pairs", SEQS(64, 65, 3), .bound = PAIRS,
              .pair = true},
     .c_in = 40,
     .c_out = 16,
     .kernel = 3,
     .dilation = 2,
     .pad_left = 4,
     .act = ACT_LEAKY,
     .slope = 0.1f},
    {.head = {"groups of few channels, mish, bf16", SEQS(1, 0, 70, 5), .bound = CHAIN, .bf16 = true},
     .c_in = 48,
     .c_out = 42,
     .kernel = 31,
     .groups = 6,
     .pad_left = 30,
     .bias = true,
     .act = ACT_MISH},
    {.head = {"two channels, one column, bf16", SEQS(2, 70), .bound = CHAIN_ONE, .bf16 = true},
     .c_in = 2,
     .c_out = 1,
     .kernel = 17,
     .pad_left = 8},
    {.head = {"twins over a piece, snake, residual, pairs", SEQS(3, 0, 1101), .bound = PAIRS, .pair = true},
     .c_in = 8,
     .c_out = 8,
     .kernel = 7,
     .dilation = 2,
     .pad_left = 12,
     .bias = true,
     .snake = true,
     .residual = true},
    {.head = {"twins side by side, snake, residual, pairs", SEQS(1, 63, 64, 2), .bound = PAIRS, .pair = true},
     .c_in = 8,
     .c_out = 8,
     .kernel = 3,
     .pad_left = 2,
     .bias = true,
     .snake = true,
     .residual = true},
    {.head = {"twins of four, two phases, bf16", SEQS(4, 260, 64), .bound = CHAIN, .bf16 = true},
     .c_in = 4,
     .c_out = 4,
     .kernel = 3,
     .dilation = 2,
     .pad_left = 4,
     .bias = true,
     .residual = true},
    {.head = {"twins of four in two groups, pairs", SEQS(64, 2, 128), .bound = PAIRS, .pair = true},
     .c_in = 8,
     .c_out = 8,
     .kernel = 3,
     .groups = 2,
     .pad_left = 2,
     .bias = true},
    {.head = {"twins of seven, leaky, residual, bf16", SEQS(1, 129, 2), .bound = CHAIN, .bf16 = true},
     .c_in = 6,
     .c_out = 7,
     .kernel = 5,
     .pad_left = 4,
     .bias = true,
     .act = ACT_LEAKY,
     .slope = 0.1f,
     .residual = true},
    {.head = {"twins that look ahead, fewer rows out, pairs", SEQS(200, 9), .bound = PAIRS, .pair = true},
     .c_in = 4,
     .c_out = 3,
     .kernel = 5,
     .out_add = -4},
    {.head = {"channels over a chunk, snake, residual, pairs", SEQS(5, 0, 40), .bound = PAIRS, .pair = true},
     .c_in = 40,
     .c_out = 40,
     .kernel = 3,
     .dilation = 3,
     .pad_left = 6,
     .bias = true,
     .snake = true,
     .residual = true},
    {.head = {"channels over a piece of snake, pairs", SEQS(1, 5), .bound = PAIRS, .pair = true},
     .c_in = 300,
     .c_out = 24,
     .kernel = 1,
     .snake = true},
    {.head = {"snake, residual", SEQS(2, 0, 9), .bound = CHAIN},
     .c_in = 13,
     .c_out = 11,
     .kernel = 3,
     .pad_left = 2,
     .bias = true,
     .act = ACT_LEAKY,
     .slope = 0.1f,
     .snake = true,
     .residual = true},
    {.head = {"snake, residual, halves", SEQS(12, 0, 70), .bound = HALVES, .half = true},
     .c_in = 16,
     .c_out = 18,
     .kernel = 5,
     .dilation = 3,
     .pad_left = 12,
     .bias = true,
     .snake = true,
     .residual = true},
    {.head = {"vocoder 64, 11 taps by 5, pairs", SEQS(2, 261), .bound = PAIRS, .pair = true, .heavy = true},
     .c_in = 64,
     .c_out = 64,
     .kernel = 11,
     .dilation = 5,
     .pad_left = 50,
     .bias = true},
    {.head = {"vocoder source down by 15, pairs", SEQS(121, 31), .bound = PAIRS, .pair = true, .heavy = true},
     .c_in = 18,
     .c_out = 256,
     .kernel = 30,
     .stride = 15,
     .pad_left = 14,
     .out_div = 15,
     .bias = true},
    {.head = {"prime, causal, halves", SEQS(0, 1, 0, 2, 11, 0), .bound = HALVES, .half = true},
     .c_in = 7,
     .c_out = 19,
     .kernel = 3,
     .pad_left = 2,
     .bias = true},
    {.head = {"rows and filters over a tile, halves", SEQS(3, 130, 64, 65, 1), .bound = HALVES, .half = true},
     .c_in = 33,
     .c_out = 70,
     .kernel = 5,
     .dilation = 3,
     .pad_left = 12,
     .act = ACT_LEAKY,
     .slope = 0.1f},
    {.head = {"groups, look-ahead, halves", SEQS(9, 1, 66), .bound = HALVES, .half = true},
     .c_in = 34,
     .c_out = 134,
     .kernel = 2,
     .groups = 2,
     .bias = true},
    {.head = {"taps beyond a tile's span, halves", SEQS(90, 2), .bound = HALVES, .half = true},
     .c_in = 9,
     .c_out = 5,
     .kernel = 7,
     .dilation = 11,
     .pad_left = 66},
    {.head = {"snake", SEQS(2, 0, 9), .bound = CHAIN},
     .c_in = 13,
     .c_out = 11,
     .kernel = 3,
     .pad_left = 2,
     .snake = true},
    {.head = {"snake, strided, halves", SEQS(12, 31), .bound = HALVES, .half = true},
     .c_in = 5,
     .c_out = 6,
     .kernel = 4,
     .stride = 2,
     .pad_left = 1,
     .out_div = 2,
     .snake = true},
    {.head = {"vocoder 64, 11 taps by 5, snake, halves", SEQS(2, 130), .bound = HALVES, .half = true, .heavy = true},
     .c_in = 64,
     .c_out = 64,
     .kernel = 11,
     .dilation = 5,
     .pad_left = 50,
     .bias = true,
     .snake = true},
    {.head = {"vocoder last", SEQS(1, 30), .bound = CHAIN},
     .c_in = 64,
     .c_out = 18,
     .kernel = 7,
     .pad_left = 6,
     .bias = true},
    {.head = {"f64 one value", SEQS(1), .bound = CHAIN_F64}, .c_in = 1, .c_out = 1, .kernel = 1, .wide = true},
    {.head = {"f64 prime", SEQS(1, 0, 2, 11), .bound = CHAIN_F64},
     .c_in = 7,
     .c_out = 13,
     .kernel = 3,
     .pad_left = 2,
     .bias = true,
     .wide = true},
    {.head = {"f64 rows over a tile", SEQS(3, 121, 4), .bound = CHAIN_F64},
     .c_in = 90,
     .c_out = 17,
     .kernel = 3,
     .pad_left = 2,
     .bias = true,
     .wide = true,
     .act = ACT_ELU},
    {.head = {"f0 first", SEQS(4, 9), .bound = CHAIN_F64, .heavy = true},
     .c_in = 80,
     .c_out = 512,
     .kernel = 4,
     .out_add = -3,
     .bias = true,
     .wide = true,
     .act = ACT_ELU,
     .x = {.centre = -6, .amplitude = 4}},
    {.head = {"f0 second", SEQS(1, 6), .bound = CHAIN_F64, .heavy = true},
     .c_in = 512,
     .c_out = 512,
     .kernel = 3,
     .pad_left = 2,
     .bias = true,
     .wide = true,
     .act = ACT_ELU},
    {.head = {"f0 last", SEQS(1, 6), .bound = {.elem = 1e-12, .floor = 1e-13, .why = "an f64 chain of 512 terms"}},
     .c_in = 512,
     .c_out = 1,
     .kernel = 1,
     .bias = true,
     .wide = true,
     .act = ACT_ABS,
     .x = {.amplitude = 100}},
};

static int32_t conv_ports(const suite_case *c, port *p)
{
    const conv_case *k = conv(c);
    const dtype type = k->wide ? DTYPE_F64 : DTYPE_F32;
    const int64_t inner = k->c_in / or_one(k->groups);
    p[0] = (port){.name = "x", .role = PORT_IN, .type = type, .width = k->c_in, .values = k->x};
    p[1] = (port){.name = "w",
                  .role = PORT_WEIGHT,
                  .type = type,
                  .width = inner * k->kernel,
                  .table_rows = k->c_out,
                  .values = {.amplitude = sqrt(3.0 / (double)(inner * k->kernel))}};
    p[2] = (port){.name = "y", .role = PORT_OUT, .type = type, .width = k->c_out, .rows = conv_rows_out};
    p[3] = (port){.name = "bias", .role = PORT_TABLE, .type = type, .width = k->c_out, .table_rows = 1};
    if (k->snake)
        p[3 + k->bias] = (port){.name = "alpha",
                                .role = PORT_TABLE,
                                .width = k->c_in,
                                .table_rows = 1,
                                .values = {.centre = 1.5, .amplitude = 1}};
    if (k->residual)
        p[3 + k->bias + k->snake] =
            (port){.name = "residual", .role = PORT_IN, .type = type, .width = k->c_out, .rows = conv_rows_out};
    return 3 + k->bias + k->snake + k->residual;
}

static cf_err conv_pack(const suite_case *c, backend *be, const void *values, weight **ret_weight)
{
    const conv_case *k = conv(c);
    cf_err err = CF_ERR_UNSUPPORTED;
    if (c->half)
        err =
            backend_pack_conv(be, values, k->c_out, k->c_in, k->kernel, or_one(k->groups), PRECISION_FP16, ret_weight);
    if (err != CF_ERR_UNSUPPORTED)
        return err;
    if (k->wide)
        return backend_pack_conv_f64(be, values, k->c_out, k->c_in, k->kernel, ret_weight);
    return backend_pack_conv(be, values, k->c_out, k->c_in, k->kernel, or_one(k->groups),
                             c->bf16   ? PRECISION_BF16
                             : c->pair ? PRECISION_BF16_PAIR
                                       : PRECISION_F32,
                             ret_weight);
}

static const tensor *residual_of(const op_run *run)
{
    const conv_case *k = conv(run->c);
    return k->residual ? &run->t[3 + k->bias + k->snake] : NULL;
}

static cf_err conv_call(const op_run *run)
{
    const conv_case *k = conv(run->c);
    const tensor bias = k->bias ? flat(&run->t[3]) : (tensor){0};
    const tensor alpha = k->snake ? flat(&run->t[3 + k->bias]) : (tensor){0};
    const size_t mark = backend_scratch_mark(run->be);
    tensor y = run->t[2], work;
    cf_err err;
    TRY(backend_take_2d(run->be, DTYPE_F32, run->t[0].dims[0], k->c_in, &work));
    err = op_conv1d(run->be, &(op_conv1d_args){.x = &run->t[0],
                                               .rows_in = &run->rows[0],
                                               .w = run->w,
                                               .bias = k->bias ? &bias : NULL,
                                               .y = &y,
                                               .rows_out = &run->rows[2],
                                               .kernel = k->kernel,
                                               .dilation = or_one(k->dilation),
                                               .stride = or_one(k->stride),
                                               .pad_left = k->pad_left,
                                               .repeat = or_one(k->repeat),
                                               .groups = or_one(k->groups),
                                               .act = k->act,
                                               .slope = k->slope,
                                               .snake = k->snake ? &alpha : NULL,
                                               .work = k->snake ? &work : NULL,
                                               .residual = residual_of(run)});
out:
    backend_scratch_reset(run->be, mark);
    return err;
}

/* Input value i, through Snake where there is one. */
static double conv_input(const op_run *run, int64_t i)
{
    const conv_case *k = conv(run->c);
    const double v = value_at(&run->t[0], i);
    if (!k->snake)
        return v;
    const float alpha = (float)value_at(&run->t[3 + k->bias], i % k->c_in), phase = alpha * (float)v;
    const double s = sin((double)phase);
    return (double)(float)(v + s * s / (double)(alpha + 1e-9f));
}

static double conv_operand(const tensor *t, int64_t i, bool bf16)
{
    return t->type == DTYPE_F64 ? tensor_f64(t)[i] : operand_value(tensor_f32(t)[i], bf16);
}

/* First value of repeated row r of a sequence. */
static int64_t row_of(const conv_case *k, int64_t first, int64_t r)
{
    return (first + r / or_one(k->repeat)) * k->c_in;
}

/* The sequence with its repetitions and zeros on both sides written out: [pad_left + repeated rows + zeros, c_in]. */
static double *padded(const op_run *run, int32_t seq, int64_t rows)
{
    const conv_case *k = conv(run->c);
    const int64_t first = run->rows[0].offs[seq],
                  repeated = (int64_t)rows_length(&run->rows[0], seq) * or_one(k->repeat);
    double *x = test_calloc((size_t)(rows * k->c_in + 1), sizeof *x);
    for (int64_t r = 0; r < repeated && r + k->pad_left < rows; r++)
        for (int64_t i = 0; i < k->c_in; i++)
            x[(r + k->pad_left) * k->c_in + i] = run->c->bf16 ? conv_operand(&run->t[0], row_of(k, first, r) + i, true)
                                                              : conv_input(run, row_of(k, first, r) + i);
    return x;
}

static void conv_direct(const op_run *run, double *const *ret)
{
    const conv_case *k = conv(run->c);
    const int64_t inner = k->c_in / or_one(k->groups), per_group = k->c_out / or_one(k->groups);
    for (int32_t b = 0; b < run->seqs; b++) {
        const int64_t rows_out = rows_length(&run->rows[2], b);
        const int64_t rows = (rows_out - 1) * or_one(k->stride) + (k->kernel - 1) * or_one(k->dilation) + 1;
        double *x = padded(run, b, rows_out ? rows : 0);
        for (int64_t at = 0; at < rows_out * k->c_out; at++) {
            const int64_t t = at / k->c_out, o = at % k->c_out;
            double sum = k->bias ? value_at(&run->t[3], o) : 0.0;
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = 0; j < k->kernel; j++)
                    sum += x[(t * or_one(k->stride) + j * or_one(k->dilation)) * k->c_in + o / per_group * inner + i] *
                           conv_operand(&run->t[1], (o * inner + i) * k->kernel + j, run->c->bf16);
            const int64_t idx = run->rows[2].offs[b] * k->c_out + at;
            ret[2][idx] = elem_act(sum, k->act, k->slope) + (k->residual ? value_at(residual_of(run), idx) : 0.0);
        }
        test_free(x);
    }
}

const op_driver conv_drivers[] = {
    {.op = OP_conv1d,
     DRIVER_CASES(conv_cases),
     .ports = conv_ports,
     .pack = conv_pack,
     .call = conv_call,
     .direct = conv_direct,
     .direct_bound = {.elem = 1.2e-7, .row = 4e-15, .floor = 4e-15, .why = "f64 sums in another order, rounded once"}},
    {.cases = NULL},
};
