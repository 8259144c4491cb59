/*
 * cases_matmul.c - cases of linear. Test code.
 *
 * Edges: kernels of 6 rows and 16 columns, row tiles of 120 (own kernels), 128 and 16 (oneDNN), depth blocks of 256,
 * column pieces of 512 (bulk) and at least 128 (decode). Real shapes: Flow 1024 -> 3072, 1024 -> 2048 -> 1024, 320 ->
 * 1024, 1024 -> 80; language model 896 -> 1152, 896, 9728, 4864 -> 896, 896 -> 6761.
 */
#include "tests/ops/suite.h"

#include <math.h>

typedef struct linear_case {
    suite_case head;
    int64_t k_in, n_out;
    bool bias;
    act_kind act;
    float slope;
    gemm_kind kind;
    bool both_kinds; /* packed for bulk and decode */
    bool gated;      /* y += gate * the result; aux: line of the table */
    int64_t gate_off;
    dist x;
} linear_case;

static const linear_case *linear(const suite_case *c)
{
    return (const linear_case *)(const void *)c;
}

/* Weights have variance 1/K, so a row of y is about as large as one of x, and its largest value a few times that. */
#define CHAIN_SHORT                                                                     \
    {                                                                                   \
        .row = 2e-6, .why = "an f32 chain of up to 600 terms: sqrt(K) 2^-24 of the row" \
    }
#define CHAIN_LONG                                                                       \
    {                                                                                    \
        .row = 6e-6, .why = "an f32 chain of up to 4864 terms: sqrt(K) 2^-24 of the row" \
    }
#define CHAIN_ACT                                                                     \
    {                                                                                 \
        .row = 2e-6, .why = "the chain, then an activation with a slope of up to 1.1" \
    }
/* Biases are up to 1, half a unit of bf16 is 2^-9 of one, and a row's largest value is about 2. */
#define NARROW_BIAS                                                                  \
    {                                                                                \
        .row = 1e-3, .why = "the chain, and a device's bias rounded to bf16 as y is" \
    }
/* A sum that cancels is as wrong as its terms are large, not as it is small itself: few columns show it best. */
#define CHAIN_NARROW                                                                                        \
    {                                                                                                       \
        .row = 1e-5, .floor = 3e-7, .why = "an f32 chain of up to 513 terms near 1; few columns may cancel" \
    }

static const linear_case linear_cases[] = {
    {.head = {"one value", SEQS(1), .bound = CHAIN_NARROW}, .k_in = 1, .n_out = 1},
    {.head = {"no rows", SEQS(0), .bound = CHAIN_SHORT}, .k_in = 5, .n_out = 3, .bias = true},
    {.head = {"prime", SEQS(1, 0, 7, 3), .bound = CHAIN_SHORT}, .k_in = 37, .n_out = 53},
    {.head = {"prime, bf16", SEQS(1, 0, 7, 3), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 37,
     .n_out = 53,
     .bias = true},
    {.head = {"prime, decode", SEQS(1, 0, 7, 3), .bound = CHAIN_SHORT},
     .k_in = 37,
     .n_out = 53,
     .bias = true,
     .kind = GEMM_DECODE},
    {.head = {"rows over a kernel", SEQS(5, 6, 7, 1), .bound = CHAIN_SHORT}, .k_in = 32, .n_out = 31, .bias = true},
    {.head = {"rows over a tile", SEQS(1, 121, 129, 2), .bound = CHAIN_SHORT}, .k_in = 64, .n_out = 48, .bias = true},
    {.head = {"rows over a tile, bf16", SEQS(1, 121, 129, 2), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 64,
     .n_out = 48},
    {.head = {"rows over a decode tile", SEQS(1, 15, 1, 17, 1), .bound = CHAIN_SHORT},
     .k_in = 96,
     .n_out = 161,
     .kind = GEMM_DECODE},
    {.head = {"rows over a decode tile, bf16", SEQS(1, 15, 1, 17, 1), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 96,
     .n_out = 161,
     .kind = GEMM_DECODE},
    {.head = {"packed for both, bulk", SEQS(3, 2), .bound = CHAIN_SHORT}, .k_in = 40, .n_out = 150, .both_kinds = true},
    {.head = {"packed for both, decode, bf16", SEQS(3, 2), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 40,
     .n_out = 150,
     .kind = GEMM_DECODE,
     .both_kinds = true},
    {.head = {"depth over a block", SEQS(2, 7), .bound = CHAIN_NARROW}, .k_in = 257, .n_out = 17},
    {.head = {"depth over two blocks", SEQS(2, 7), .bound = CHAIN_NARROW}, .k_in = 513, .n_out = 33, .bias = true},
    {.head = {"columns over a piece", SEQS(2, 19), .bound = CHAIN_SHORT}, .k_in = 40, .n_out = 513, .bias = true},
    {.head = {"columns over a piece, bf16", SEQS(2, 19), .bound = CHAIN_SHORT, .bf16 = true}, .k_in = 40, .n_out = 513},
    {.head = {"columns over a decode piece", SEQS(2, 3), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 24,
     .n_out = 1031,
     .bias = true,
     .kind = GEMM_DECODE},
    {.head = {"rows over two decode tiles, bf16", SEQS(1, 31, 1, 33, 2), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 65,
     .n_out = 97,
     .bias = true,
     .kind = GEMM_DECODE},
    {.head = {"decode weight run in bulk, bf16", SEQS(9, 32, 33, 101), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 160,
     .n_out = 63,
     .bias = true,
     .act = ACT_SILU,
     .both_kinds = true},
    {.head = {"one value, bf16 decode", SEQS(1), .bound = CHAIN_NARROW, .bf16 = true},
     .k_in = 1,
     .n_out = 1,
     .kind = GEMM_DECODE},
    {.head = {"blocks of rows, bf16", SEQS(1, 300, 7), .bound = CHAIN_LONG, .bf16 = true, .heavy = true},
     .k_in = 4864,
     .n_out = 70,
     .both_kinds = true},
    {.head = {"one value, int8", SEQS(1), .bound = CHAIN_NARROW, .bf16 = true, .int8 = true},
     .k_in = 1,
     .n_out = 1,
     .kind = GEMM_DECODE},
    {.head = {"odd sizes, int8", SEQS(1, 15, 1, 17, 1), .bound = CHAIN_SHORT, .bf16 = true, .int8 = true},
     .k_in = 289,
     .n_out = 97,
     .bias = true,
     .kind = GEMM_DECODE},
    {.head = {"rows in bulk, int8", SEQS(9, 32, 33, 101), .bound = CHAIN_SHORT, .bf16 = true, .int8 = true},
     .k_in = 160,
     .n_out = 63,
     .bias = true,
     .act = ACT_SILU,
     .both_kinds = true},
    {.head = {"blocks of rows, int8", SEQS(1, 300, 7), .bound = CHAIN_LONG, .bf16 = true, .int8 = true, .heavy = true},
     .k_in = 4864,
     .n_out = 70,
     .both_kinds = true},
    {.head = {"one column", SEQS(3, 8), .bound = CHAIN_NARROW}, .k_in = 100, .n_out = 1, .bias = true},
    {.head = {"leaky", SEQS(2, 5), .bound = CHAIN_ACT},
     .k_in = 48,
     .n_out = 35,
     .bias = true,
     .act = ACT_LEAKY,
     .slope = 0.1f},
    {.head = {"elu", SEQS(2, 5), .bound = CHAIN_ACT}, .k_in = 48, .n_out = 35, .act = ACT_ELU},
    {.head = {"mish", SEQS(2, 5), .bound = CHAIN_ACT}, .k_in = 48, .n_out = 35, .bias = true, .act = ACT_MISH},
    {.head = {"silu", SEQS(2, 5), .bound = CHAIN_ACT}, .k_in = 48, .n_out = 35, .bias = true, .act = ACT_SILU},
    {.head = {"gelu", SEQS(2, 5), .bound = CHAIN_ACT}, .k_in = 48, .n_out = 35, .act = ACT_GELU_TANH},
    {.head = {"abs", SEQS(2, 5), .bound = CHAIN_ACT}, .k_in = 48, .n_out = 35, .bias = true, .act = ACT_ABS},
    {.head = {"prime, of bf16 to bf16", SEQS(1, 0, 7, 3), .bound = NARROW_BIAS, .bf16 = true, .narrow = true},
     .k_in = 37,
     .n_out = 53,
     .bias = true},
    {.head = {"whole chunks, of bf16 to bf16", SEQS(1, 31, 33, 270), .bound = NARROW_BIAS, .bf16 = true,
              .narrow = true},
     .k_in = 64,
     .n_out = 96,
     .bias = true,
     .act = ACT_GELU_TANH},
    {.head = {"whole chunks, exactly a block", SEQS(31, 1), .bound = CHAIN_SHORT, .bf16 = true, .narrow = true},
     .k_in = 96,
     .n_out = 33},
    {.head = {"pieces of rows and parts of the depth, bf16", SEQS(1, 0, 250, 160), .bound = CHAIN_LONG, .bf16 = true,
              .narrow = true, .heavy = true},
     .k_in = 1345,
     .n_out = 70},
    {.head = {"pieces of rows, gated, of bf16", SEQS(290, 1, 33), AUX(2, 0, 3), .bound = CHAIN_LONG, .bf16 = true,
              .narrow = true, .heavy = true},
     .k_in = 2048,
     .n_out = 96,
     .bias = true,
     .gated = true,
     .gate_off = 5},
    {.head = {"a result larger than a cache, of bf16 to bf16", SEQS(1, 449), .bound = NARROW_BIAS, .bf16 = true,
              .narrow = true, .heavy = true},
     .k_in = 40,
     .n_out = 2432,
     .bias = true},
    {.head = {"gated", SEQS(1, 0, 7, 3), AUX(2, 1, 0, 3), .bound = CHAIN_SHORT},
     .k_in = 37,
     .n_out = 53,
     .bias = true,
     .gated = true,
     .gate_off = 5},
    {.head = {"gated, of bf16", SEQS(1, 0, 70, 33), AUX(2, 1, 0, 3), .bound = CHAIN_SHORT, .bf16 = true,
              .narrow = true},
     .k_in = 96,
     .n_out = 53,
     .bias = true,
     .gated = true,
     .gate_off = 5},
    {.head = {"gated, decode, leaky", SEQS(2, 3), AUX(0, 1), .bound = CHAIN_SHORT, .bf16 = true},
     .k_in = 40,
     .n_out = 150,
     .act = ACT_LEAKY,
     .slope = 0.1f,
     .kind = GEMM_DECODE,
     .gated = true},
    {.head = {"flow qkv", SEQS(1, 2), .bound = CHAIN_LONG, .heavy = true}, .k_in = 1024, .n_out = 3072, .bias = true},
    {.head = {"flow qkv, bf16", SEQS(1, 2), .bound = CHAIN_LONG, .bf16 = true, .heavy = true},
     .k_in = 1024,
     .n_out = 3072,
     .bias = true},
    {.head = {"flow feed-forward up, bf16", SEQS(1, 3), .bound = CHAIN_LONG, .bf16 = true, .heavy = true},
     .k_in = 1024,
     .n_out = 2048,
     .bias = true,
     .act = ACT_GELU_TANH},
    {.head = {"flow feed-forward down", SEQS(1, 3), .bound = CHAIN_LONG, .heavy = true},
     .k_in = 2048,
     .n_out = 1024,
     .bias = true},
    {.head = {"flow feed-forward down, bf16", SEQS(1, 3), .bound = CHAIN_LONG, .bf16 = true, .heavy = true},
     .k_in = 2048,
     .n_out = 1024,
     .bias = true},
    {.head = {"flow input", SEQS(2, 5), .bound = CHAIN_SHORT, .heavy = true}, .k_in = 320, .n_out = 1024, .bias = true},
    {.head = {"flow output, residual of 1436", SEQS(2, 5), .bound = CHAIN_LONG, .heavy = true},
     .k_in = 1024,
     .n_out = 80,
     .bias = true,
     .x = {DIST_OUTLIERS, 0, 1436}},
    {.head = {"model qkv, decode", SEQS(1, 1, 1), .bound = CHAIN_LONG, .heavy = true},
     .k_in = 896,
     .n_out = 1152,
     .bias = true,
     .kind = GEMM_DECODE},
    {.head = {"model output, bf16", SEQS(1, 4), .bound = CHAIN_LONG, .bf16 = true, .heavy = true},
     .k_in = 896,
     .n_out = 896},
    {.head = {"model gate and up, bf16 decode", SEQS(1, 1), .bound = CHAIN_LONG, .bf16 = true, .heavy = true},
     .k_in = 896,
     .n_out = 9728,
     .kind = GEMM_DECODE},
    {.head = {"model down, decode", SEQS(1, 1), .bound = CHAIN_LONG, .heavy = true},
     .k_in = 4864,
     .n_out = 896,
     .kind = GEMM_DECODE},
    {.head = {"model down, bf16", SEQS(2, 1), .bound = CHAIN_LONG, .bf16 = true, .heavy = true},
     .k_in = 4864,
     .n_out = 896},
    {.head = {"model head, decode", SEQS(1, 1), .bound = CHAIN_LONG, .heavy = true},
     .k_in = 896,
     .n_out = 6761,
     .kind = GEMM_DECODE},
};

#define STEPS 4 /* lines of a modulation table; step 0 occurs in each gated case, so that its poison is read */

static int32_t linear_ports(const suite_case *c, port *p)
{
    const linear_case *l = linear(c);
    const dtype type = c->narrow ? DTYPE_BF16 : DTYPE_F32;
    p[0] = (port){.name = "x", .role = PORT_IN, .type = type, .width = l->k_in, .values = l->x};
    p[1] = (port){.name = "w",
                  .role = PORT_WEIGHT,
                  .width = l->k_in,
                  .table_rows = l->n_out,
                  .values = {.amplitude = sqrt(3.0 / (double)l->k_in)}};
    p[2] = (port){
        .name = "y", .role = l->gated ? PORT_INOUT : PORT_OUT, .type = l->gated ? DTYPE_F32 : type, .width = l->n_out};
    p[3] = (port){.name = "bias", .role = PORT_TABLE, .width = l->n_out, .table_rows = 1};
    p[3 + l->bias] = l->gated ? (port){.name = "table",
                                       .role = PORT_TABLE,
                                       .width = l->gate_off + l->n_out,
                                       .table_rows = STEPS,
                                       .values = {.centre = 0.2}}
                              : p[3 + l->bias];
    return 3 + l->bias + l->gated;
}

static cf_err linear_pack(const suite_case *c, backend *be, const void *values, weight **ret_weight)
{
    const linear_case *l = linear(c);
    const unsigned kind = l->kind == GEMM_BULK ? GEMM_BULK_BIT : GEMM_DECODE_BIT;
    return backend_pack_linear(
        be, values, l->n_out, l->k_in, c->bf16 ? PRECISION_BF16 : PRECISION_F32,
        (l->both_kinds ? GEMM_BULK_BIT | GEMM_DECODE_BIT : kind) | (c->int8 ? GEMM_INT8_BIT : 0u), ret_weight);
}

static cf_err linear_call(const op_run *run)
{
    const linear_case *l = linear(run->c);
    const tensor bias = l->bias ? flat(&run->t[3]) : (tensor){0};
    const op_modulation gate = {.table = &run->t[3 + l->bias], .steps = run->aux, .rows = &run->rows[2]};
    tensor y = run->t[2];
    return op_linear(run->be, &(op_linear_args){.x = &run->t[0],
                                                .w = run->w,
                                                .bias = l->bias ? &bias : NULL,
                                                .y = &y,
                                                .act = l->act,
                                                .slope = l->slope,
                                                .kind = l->kind,
                                                .gate = l->gated ? &gate : NULL,
                                                .gate_off = l->gate_off});
}

/* What y holds when the product gives v. */
static double linear_given(const op_run *run, int64_t row, int64_t col, double v)
{
    const linear_case *l = linear(run->c);
    const tensor *table = &run->t[3 + l->bias];
    int32_t b = 0;
    if (!l->gated)
        return v;
    while (row >= run->rows[2].offs[b + 1])
        b++;
    return value_at(&run->t[2], row * l->n_out + col) +
           value_at(table, run->aux[b] * table->dims[1] + l->gate_off + col) * v;
}

/* A channel after int8 with the channel's scale, its largest magnitude being 127. */
static void whole_values(const float *channel, int64_t count, double *ret)
{
    float max = 0.0f;
    for (int64_t k = 0; k < count; k++)
        max = fmaxf(max, fabsf(channel[k]));
    const float scale = max / 127.0f; /* in f32, as a backend stores it: a tie may round either way otherwise */
    for (int64_t k = 0; k < count; k++)
        ret[k] = max > 0.0f ? nearbyint((double)(channel[k] / scale)) * (double)scale : 0.0;
}

static void linear_direct(const op_run *run, double *const *ret)
{
    const linear_case *l = linear(run->c);
    const int64_t rows = run->t[0].dims[0];
    double *x = test_calloc((size_t)(rows * l->k_in + 1), sizeof *x);
    double *w = test_calloc((size_t)l->k_in, sizeof *w);

    for (int64_t i = 0; i < rows * l->k_in; i++)
        x[i] = operand_value((float)value_at(&run->t[0], i), run->c->bf16);
    for (int64_t n = 0; n < l->n_out; n++) {
        const float *channel = tensor_f32(&run->t[1]) + n * l->k_in;
        for (int64_t k = 0; k < l->k_in; k++)
            w[k] = operand_value(channel[k], run->c->bf16);
        if (run->c->int8)
            whole_values(channel, l->k_in, w);
        for (int64_t r = 0; r < rows; r++) {
            double sum = 0.0;
            for (int64_t k = 0; k < l->k_in; k++)
                sum += x[r * l->k_in + k] * w[k];
            sum += l->bias ? value_at(&run->t[3], n) : 0.0;
            ret[2][r * l->n_out + n] = linear_given(run, r, n, elem_act(sum, l->act, l->slope));
        }
    }
    test_free(x);
    test_free(w);
}

const op_driver matmul_drivers[] = {
    {.op = OP_linear,
     DRIVER_CASES(linear_cases),
     .ports = linear_ports,
     .pack = linear_pack,
     .call = linear_call,
     .direct = linear_direct,
     .direct_bound = {.elem = 1.2e-7, .row = 1e-13, .floor = 4e-15, .why = "f64 sums in another order, rounded once"}},
    {.cases = NULL},
};
