/*
 * cases_norm.c - cases of rms_norm and layer_norm_mod. Test code.
 *
 * Statistics run in 16 lanes, so widths around 16 are edges. aux of a sequence is its solver step, the line of the
 * modulation table. Large inputs: Flow's residual stream grows to 1436 in a few channels, the language model's beyond.
 */
#include "tests/ops/suite.h"

#include <math.h>

#define STEPS 4 /* lines of a modulation table; step 0 occurs in each case, so that its poison is read */

typedef struct norm_case {
    suite_case head;
    int64_t width;
    double eps;
    dist x;
    int64_t first_off, second_off; /* columns of the modulation line: scale and shift */
} norm_case;

static const norm_case *norm(const suite_case *c)
{
    return (const norm_case *)(const void *)c;
}

/* rms_norm: x, gain, y */

#define RMS                                                                                                  \
    {                                                                                                        \
        .elem = 6e-7, .why = "sums of squares have no cancellation: lanes of C/16 terms, root, two products" \
    }

static const norm_case rms_cases[] = {
    {.head = {"one value", SEQS(1), .bound = RMS}, .width = 1, .eps = 1e-6},
    {.head = {"prime", SEQS(2, 0, 3), .bound = RMS}, .width = 31, .eps = 1e-6},
    {.head = {"15 channels", SEQS(1, 1), .bound = RMS}, .width = 15, .eps = 1e-5},
    {.head = {"16 channels", SEQS(1, 1), .bound = RMS}, .width = 16, .eps = 1e-6},
    {.head = {"language model", SEQS(1, 60, 2, 1), .bound = RMS}, .width = 896, .eps = 1e-6},
    {.head = {"large residual", SEQS(1, 3), .bound = RMS}, .width = 896, .eps = 1e-6, .x = {DIST_OUTLIERS, 0, 2e4}},
    {.head = {"eps decides", SEQS(3), .bound = RMS}, .width = 128, .eps = 1e-6, .x = {.amplitude = 1e-4}},
    {.head = {"all zero", SEQS(2), .bound = RMS}, .width = 37, .eps = 1e-6, .x = {.amplitude = 1e-60}},
};

static int32_t rms_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = norm(c)->width, .values = norm(c)->x};
    p[1] = (port){.name = "gain",
                  .role = PORT_TABLE,
                  .width = norm(c)->width,
                  .table_rows = 1,
                  .values = {.centre = 1.5, .amplitude = 2}};
    p[2] = (port){.name = "y", .role = PORT_OUT, .width = norm(c)->width};
    return 3;
}

static cf_err rms_call(const op_run *run)
{
    const tensor gain = flat(&run->t[1]);
    tensor y = run->t[2];
    return op_rms_norm(run->be,
                       &(op_rms_norm_args){.x = &run->t[0], .gain = &gain, .y = &y, .eps = (float)norm(run->c)->eps});
}

static void rms_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[0].dims[1];
    for (int64_t r = 0; r < run->t[0].dims[0]; r++) {
        double squares = 0.0;
        for (int64_t c = 0; c < width; c++)
            squares += pow(value_at(&run->t[0], r * width + c), 2.0);
        const double root = sqrt(squares / (double)width + (double)(float)norm(run->c)->eps);
        for (int64_t c = 0; c < width; c++)
            ret[2][r * width + c] = value_at(&run->t[0], r * width + c) / root * value_at(&run->t[1], c);
    }
}

/* layer_norm_mod: x, table, y */

#define LAYER                                                                                                  \
    {                                                                                                          \
        .row = 1e-6, .why = "x - mean cancels to the rounding of the row's largest value; lanes of C/16 terms" \
    }

static const norm_case layer_cases[] = {
    {.head = {"one value", SEQS(1), .bound = LAYER}, .width = 1, .eps = 1e-6, .second_off = 1},
    {.head = {"prime", SEQS(0, 2, 0, 0, 3, 0), AUX(3, 1, 3, 2, 0, 3), .bound = LAYER},
     .width = 31,
     .eps = 1e-6,
     .first_off = 31},
    {.head = {"15 channels", SEQS(1, 1, 2), AUX(0, 1, 2), .bound = LAYER},
     .width = 15,
     .eps = 1e-5,
     .first_off = 2,
     .second_off = 20},
    {.head = {"17 channels", SEQS(1, 1, 2), AUX(2, 1, 0), .bound = LAYER}, .width = 17, .eps = 1e-6, .first_off = 17},
    {.head = {"flow", SEQS(1, 50, 2, 40), AUX(3, 0, 1, 1), .bound = LAYER},
     .width = 1024,
     .eps = 1e-6,
     .first_off = 1024},
    {.head = {"flow, second half of a block", SEQS(3, 1), AUX(0, 2), .bound = LAYER},
     .width = 1024,
     .eps = 1e-6,
     .first_off = 4096,
     .second_off = 3072},
    {.head = {"residual of 1436", SEQS(1, 2, 4), AUX(0, 1, 2), .bound = LAYER},
     .width = 1024,
     .eps = 1e-6,
     .first_off = 1024,
     .x = {DIST_OUTLIERS, 0, 1436}},
    {.head = {"far from zero", SEQS(2), .bound = {.row = 4e-5, .why = "mean 300, deviation 1: 300 2^-24 of 0.6"}},
     .width = 256,
     .eps = 1e-6,
     .first_off = 256,
     .x = {.centre = 300, .amplitude = 1}},
    {.head = {"prime to bf16", SEQS(0, 2, 0, 0, 3, 0), AUX(3, 1, 3, 2, 0, 3), .bound = LAYER, .narrow = true},
     .width = 31,
     .eps = 1e-6,
     .first_off = 31},
    {.head = {"flow to bf16", SEQS(1, 50, 2), AUX(3, 0, 1), .bound = LAYER, .narrow = true},
     .width = 1024,
     .eps = 1e-6,
     .first_off = 1024},
    {.head = {"constant row", SEQS(2), .bound = LAYER},
     .width = 64,
     .eps = 1e-6,
     .first_off = 64,
     .x = {.centre = 2, .amplitude = 1e-30}},
};

static int64_t line_values(const norm_case *n)
{
    const int64_t last = n->first_off > n->second_off ? n->first_off : n->second_off;
    return last + n->width;
}

static port mod_table(const norm_case *n)
{
    return (port){.name = "table",
                  .role = PORT_TABLE,
                  .width = line_values(n),
                  .table_rows = STEPS,
                  .values = {.centre = 0.2, .amplitude = 1}};
}

static op_modulation mod_of(const op_run *run, int rows_port, int table_port)
{
    return (op_modulation){.table = &run->t[table_port], .steps = run->aux, .rows = &run->rows[rows_port]};
}

/* Value of the modulation line of the sequence that holds row r. */
static double mod_value(const op_run *run, int rows_port, int table_port, int64_t r, int64_t column)
{
    int32_t b = 0;
    while (run->rows[rows_port].offs[b + 1] <= r)
        b++;
    return value_at(&run->t[table_port], run->aux[b] * run->t[table_port].dims[1] + column);
}

static int32_t layer_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = norm(c)->width, .values = norm(c)->x};
    p[1] = mod_table(norm(c));
    p[2] = (port){.name = "y", .role = PORT_OUT, .type = c->narrow ? DTYPE_BF16 : DTYPE_F32, .width = norm(c)->width};
    return 3;
}

static cf_err layer_call(const op_run *run)
{
    tensor y = run->t[2];
    return op_layer_norm_mod(run->be, &(op_layer_norm_mod_args){.x = &run->t[0],
                                                                .y = &y,
                                                                .mod = mod_of(run, 0, 1),
                                                                .scale_off = norm(run->c)->first_off,
                                                                .shift_off = norm(run->c)->second_off,
                                                                .eps = (float)norm(run->c)->eps});
}

/* Variance as a mean over pairs of columns, which needs no mean: sum over c < d of (x_c - x_d)^2 / C^2. */
static double pair_variance(const tensor *x, int64_t row, int64_t width)
{
    double sum = 0.0;
    for (int64_t c = 0; c < width; c++)
        for (int64_t d = 0; d < c; d++)
            sum += pow(value_at(x, row * width + c) - value_at(x, row * width + d), 2.0);
    return sum / (double)width / (double)width;
}

static void layer_direct(const op_run *run, double *const *ret)
{
    const norm_case *n = norm(run->c);
    for (int64_t r = 0; r < run->t[0].dims[0]; r++) {
        double mean = 0.0;
        for (int64_t c = 0; c < n->width; c++)
            mean += value_at(&run->t[0], r * n->width + c) / (double)n->width;
        const double root = sqrt(pair_variance(&run->t[0], r, n->width) + (double)(float)n->eps);
        for (int64_t c = 0; c < n->width; c++)
            ret[2][r * n->width + c] = (value_at(&run->t[0], r * n->width + c) - mean) / root *
                                           (1.0 + mod_value(run, 0, 1, r, n->first_off + c)) +
                                       mod_value(run, 0, 1, r, n->second_off + c);
    }
}

const op_driver norm_drivers[] = {
    {.op = OP_rms_norm,
     DRIVER_CASES(rms_cases),
     .ports = rms_ports,
     .call = rms_call,
     .direct = rms_direct,
     .direct_bound = {.elem = 1.2e-7, .why = "f64 rounded once: neighbours at most"}},
    {.op = OP_layer_norm_mod,
     DRIVER_CASES(layer_cases),
     .ports = layer_ports,
     .call = layer_call,
     .direct = layer_direct,
     .direct_bound = {.elem = 1.2e-7, .row = 1e-12, .why = "f64 rounded once: neighbours at most, cancellation"}},
    {.cases = NULL},
};
