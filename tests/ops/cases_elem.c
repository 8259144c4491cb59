/*
 * cases_elem.c - cases of element-wise ops: act, add, mean3, snake, swiglu, cast. Test code.
 *
 * Rows of 4096 values are the fast variant's unit of work for arrays without rows; more than four tasks' worth are
 * spread over threads, so the long cases have uneven sequences whose edges lie inside such a unit.
 */
#define _GNU_SOURCE /* M_PI */
#include "tests/ops/suite.h"

#include <math.h>

#define EXACT                                                                     \
    {                                                                             \
        .why = "one rounding per step, the same steps: no fused contraction here" \
    }

typedef struct elem_case {
    suite_case head;
    int64_t width;
    dtype type; /* of x and y, f32 unless said; cast: of x */
    act_kind act;
    float slope;
    dist x;
} elem_case;

static const elem_case *elem(const suite_case *c)
{
    return (const elem_case *)(const void *)c;
}

/* act: x, y */

#define EXP_F32                                                                                    \
    {                                                                                              \
        .elem = 6e-7, .floor = 1e-36, .why = "exp 1.5 ulp, three roundings, denormals may be lost" \
    }
/* Both forms are exact functions of u = sqrt(2/pi)(x + 0.044715 x^3), whose rounding grows by 2u in exp(2u). The plain
 * loops cancel in 1 + tanh(u), so below 1e-14 they are no reference. */
#define GELU_NEAR                                                                              \
    {                                                                                          \
        .elem = 3e-6, .floor = 1e-14, .why = "exp(2u) magnifies the rounding of u by 2u <= 10" \
    }
#define GELU_FAR                                                                                \
    {                                                                                           \
        .elem = 1e-4, .floor = 1e-14, .why = "exp(2u) magnifies the rounding of u by 2u <= 160" \
    }

/* x times a normal tail: the rounding of x^2 / 2 grows in the exponent, and the fit is absolute. */
#define GELU_ERF                                                                          \
    {                                                                                     \
        .elem = 2e-6, .floor = 1e-36, .why = "exp(-x^2 / 2) magnifies the rounding of it" \
    }
#define GELU_ERF_FAR                                                                   \
    {                                                                                  \
        .elem = 1e-4, .floor = 1e-30, .why = "the fit of the tail is 6e-10 of 0.4 / x" \
    }

static const elem_case act_cases[] = {
    {.head = {"none, one value", SEQS(1), .bound = EXACT}, .width = 1, .act = ACT_NONE},
    {.head = {"none in place", SEQS(2, 0, 3), .bound = EXACT, .in_place = 1}, .width = 7, .act = ACT_NONE},
    {.head = {"leaky, prime", SEQS(3, 1), .bound = EXACT}, .width = 17, .act = ACT_LEAKY, .slope = 0.1f},
    {.head = {"leaky, specials", SEQS(1), .bound = EXACT},
     .width = 41,
     .act = ACT_LEAKY,
     .slope = 0.01f,
     .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"leaky in place, vocoder", SEQS(30, 1, 19, 90), .bound = EXACT, .in_place = 1},
     .width = 512,
     .act = ACT_LEAKY,
     .slope = 0.1f},
    {.head = {"elu", SEQS(1, 6), .bound = EXACT}, .width = 33, .act = ACT_ELU, .x = {.amplitude = 5}},
    {.head = {"elu, specials", SEQS(1), .bound = EXACT}, .width = 41, .act = ACT_ELU, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"elu, long", SEQS(3, 9, 1, 31), .bound = EXACT}, .width = 512, .act = ACT_ELU},
    {.head = {"mish", SEQS(1, 6), .bound = EXP_F32}, .width = 33, .act = ACT_MISH, .x = {.amplitude = 8}},
    {.head = {"mish, specials", SEQS(1), .bound = EXP_F32}, .width = 41, .act = ACT_MISH, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"mish, long", SEQS(5, 11, 1, 3), .bound = EXP_F32},
     .width = 4099,
     .act = ACT_MISH,
     .x = {.amplitude = 20}},
    {.head = {"silu", SEQS(1, 6), .bound = EXP_F32}, .width = 33, .act = ACT_SILU, .x = {.amplitude = 8}},
    {.head = {"silu, specials", SEQS(1), .bound = EXP_F32}, .width = 41, .act = ACT_SILU, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"silu, long", SEQS(5, 11, 1, 3), .bound = EXP_F32},
     .width = 4099,
     .act = ACT_SILU,
     .x = {.amplitude = 80}},
    {.head = {"gelu", SEQS(1, 6), .bound = GELU_NEAR}, .width = 33, .act = ACT_GELU_TANH, .x = {.amplitude = 3}},
    {.head = {"gelu, specials", SEQS(1), .bound = GELU_FAR},
     .width = 41,
     .act = ACT_GELU_TANH,
     .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"gelu, feed-forward", SEQS(5, 11, 1, 3), .bound = GELU_FAR},
     .width = 2048,
     .act = ACT_GELU_TANH,
     .x = {.amplitude = 10}},
    {.head = {"gelu, erf", SEQS(1, 6), .bound = GELU_ERF}, .width = 33, .act = ACT_GELU, .x = {.amplitude = 3}},
    {.head = {"gelu, erf, specials", SEQS(1), .bound = GELU_ERF_FAR},
     .width = 41,
     .act = ACT_GELU,
     .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"gelu, erf, token encoder", SEQS(5, 11, 1, 3), .bound = GELU_ERF_FAR},
     .width = 5120,
     .act = ACT_GELU,
     .x = {.amplitude = 10}},
    {.head = {"relu", SEQS(1, 6), .bound = EXACT}, .width = 33, .act = ACT_RELU},
    {.head = {"relu, specials", SEQS(1), .bound = EXACT}, .width = 41, .act = ACT_RELU, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"sigmoid", SEQS(1, 6), .bound = EXP_F32}, .width = 33, .act = ACT_SIGMOID, .x = {.amplitude = 20}},
    {.head = {"sigmoid, specials", SEQS(1), .bound = EXP_F32},
     .width = 41,
     .act = ACT_SIGMOID,
     .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"abs", SEQS(1, 6), .bound = EXACT}, .width = 33, .act = ACT_ABS},
    {.head = {"abs, specials", SEQS(1), .bound = EXACT}, .width = 41, .act = ACT_ABS, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"f64 elu in place", SEQS(7, 1), .bound = EXACT, .in_place = 1},
     .width = 13,
     .type = DTYPE_F64,
     .act = ACT_ELU,
     .x = {.amplitude = 5}},
    {.head = {"f64 leaky", SEQS(7, 1), .bound = EXACT},
     .width = 13,
     .type = DTYPE_F64,
     .act = ACT_LEAKY,
     .slope = 0.1f},
    {.head = {"f64 mish, long", SEQS(8, 1, 7), .bound = EXACT}, .width = 1031, .type = DTYPE_F64, .act = ACT_MISH},
    {.head = {"f64 abs, specials", SEQS(1), .bound = EXACT},
     .width = 41,
     .type = DTYPE_F64,
     .act = ACT_ABS,
     .x = {DIST_SPECIALS, 0, 0}},
};

static int32_t act_ports(const suite_case *c, port *p)
{
    const elem_case *e = elem(c);
    p[0] = (port){.name = "x", .role = PORT_IN, .type = e->type, .width = e->width, .values = e->x};
    p[1] = (port){.name = "y", .role = PORT_OUT, .type = e->type, .width = e->width};
    return 2;
}

static cf_err act_call(const op_run *run)
{
    const elem_case *e = elem(run->c);
    tensor y = run->t[1];
    return op_act(run->be, &(op_act_args){.x = &run->t[0], .y = &y, .act = e->act, .slope = e->slope});
}

double elem_act(double x, act_kind act, float slope)
{
    const double e = exp(x), u = sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
    switch (act) {
    case ACT_LEAKY:
        return x < 0.0 || isnan(x) ? x * (double)slope : x;
    case ACT_ELU:
        return x > 0.0 ? x : fabs(x) < 0.5 ? 2.0 * exp(x / 2.0) * sinh(x / 2.0) : e - 1.0;
    case ACT_MISH:
        return x > 40.0 ? x : x * ((e * e + 2.0 * e) / (e * e + 2.0 * e + 2.0));
    case ACT_SILU:
        return x * (1.0 / (1.0 + exp(-x)));
    case ACT_GELU_TANH:
        return x * (1.0 / (1.0 + exp(-2.0 * u)));
    case ACT_ABS:
        return signbit(x) ? -x : x;
    case ACT_GELU:
        return x < 0.0 ? x * (0.5 * erfc(x < 0.0 ? -x / sqrt(2.0) : 0.0)) : x * (0.5 + 0.5 * erf(x / sqrt(2.0)));
    case ACT_RELU:
        return x > 0.0 || isnan(x) || x == 0.0 ? x : 0.0;
    case ACT_SIGMOID:
        return x < -700.0 ? 0.0 : 0.5 + 0.5 * tanh(x / 2.0);
    case ACT_NONE:
        break;
    }
    return x;
}

static void act_direct(const op_run *run, double *const *ret)
{
    const elem_case *e = elem(run->c);
    for (int64_t i = 0; i < tensor_count(&run->t[0]); i++)
        ret[1][i] = elem_act(value_at(&run->t[0], i), e->act, e->slope);
}

/* add: a, b, y; mean3: a, b, c, y */

static const elem_case add_cases[] = {
    {.head = {"one value", SEQS(1), .bound = EXACT}, .width = 1},
    {.head = {"prime", SEQS(2, 0, 3), .bound = EXACT}, .width = 31},
    {.head = {"in place of a, residual", SEQS(1, 5, 2), .bound = EXACT, .in_place = 1},
     .width = 896,
     .x = {.amplitude = 1400}},
    {.head = {"in place of b", SEQS(1, 5, 2), .bound = EXACT, .in_place = 2}, .width = 257},
    {.head = {"long", SEQS(3, 50, 1, 81), .bound = EXACT}, .width = 2003},
};

static const elem_case mean3_cases[] = {
    {.head = {"one value", SEQS(1), .bound = EXACT}, .width = 1},
    {.head = {"prime", SEQS(2, 0, 3), .bound = EXACT}, .width = 31},
    {.head = {"in place of c, vocoder", SEQS(1, 5, 2), .bound = EXACT, .in_place = 3}, .width = 256},
    {.head = {"in place of a", SEQS(1, 5, 2), .bound = EXACT, .in_place = 1}, .width = 63, .x = {.amplitude = 1e5}},
    {.head = {"long", SEQS(3, 50, 1, 81), .bound = EXACT}, .width = 2003},
};

static int32_t sum_ports(const suite_case *c, port *p, int inputs)
{
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < inputs; i++)
        p[i] = (port){.name = names[i], .role = PORT_IN, .width = elem(c)->width, .values = elem(c)->x};
    p[inputs] = (port){.name = "y", .role = PORT_OUT, .width = elem(c)->width};
    return inputs + 1;
}

static int32_t add_ports(const suite_case *c, port *p)
{
    return sum_ports(c, p, 2);
}

static int32_t mean3_ports(const suite_case *c, port *p)
{
    return sum_ports(c, p, 3);
}

static cf_err add_call(const op_run *run)
{
    tensor y = run->t[2];
    return op_add(run->be, &(op_add_args){.a = &run->t[0], .b = &run->t[1], .y = &y});
}

static cf_err mean3_call(const op_run *run)
{
    tensor y = run->t[3];
    return op_mean3(run->be, &(op_mean3_args){.a = &run->t[0], .b = &run->t[1], .c = &run->t[2], .y = &y});
}

static void add_direct(const op_run *run, double *const *ret)
{
    for (int64_t i = 0; i < tensor_count(&run->t[0]); i++)
        ret[2][i] = value_at(&run->t[0], i) + value_at(&run->t[1], i);
}

/* The order of roundings is part of the op. */
static void mean3_direct(const op_run *run, double *const *ret)
{
    for (int64_t i = 0; i < tensor_count(&run->t[0]); i++) {
        const float ab = (float)(value_at(&run->t[0], i) + value_at(&run->t[1], i));
        const float abc = (float)((double)ab + value_at(&run->t[2], i));
        ret[3][i] = (double)abc * (double)(float)(1.0 / 3.0);
    }
}

/* snake: x, alpha, y. amplitude of x in .x, of alpha in .slope */

#define SNAKE                                                                                        \
    {                                                                                                \
        .elem = 4e-7, .row = 3e-7, .why = "the argument is rounded alike; sin^2 2e-7, times 1/alpha" \
    }

static const elem_case snake_cases[] = {
    {.head = {"one value", SEQS(1), .bound = SNAKE}, .width = 1, .slope = 1},
    {.head = {"prime in place", SEQS(2, 0, 3), .bound = SNAKE, .in_place = 1}, .width = 31, .slope = 2},
    {.head = {"vocoder, 64 channels", SEQS(40, 1, 33), .bound = SNAKE}, .width = 64, .slope = 3, .x = {.amplitude = 8}},
    {.head = {"vocoder, 256 channels", SEQS(1, 70, 9), .bound = SNAKE, .in_place = 1},
     .width = 256,
     .slope = 1,
     .x = {.amplitude = 30}},
    {.head = {"many turns", SEQS(2, 5), .bound = SNAKE}, .width = 65, .slope = 100, .x = {.amplitude = 1000}},
    /* 2^13 is where the vector code hands over to libm; values of one vector lie on both sides */
    {.head = {"around 2^13", SEQS(3, 1, 2), .bound = SNAKE}, .width = 48, .slope = 10, .x = {.amplitude = 1600}},
    {.head = {"far beyond 2^13", SEQS(3, 1, 2), .bound = SNAKE}, .width = 48, .slope = 1000, .x = {.amplitude = 4000}},
    {.head = {"specials", SEQS(1), .bound = SNAKE}, .width = 41, .slope = 1, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"alpha near zero", SEQS(2), .bound = SNAKE}, .width = 19, .slope = 1e-8f, .x = {.amplitude = 10}},
};

static int32_t snake_ports(const suite_case *c, port *p)
{
    const elem_case *e = elem(c);
    const double a = (double)e->slope / 2.0;
    p[0] = (port){.name = "x", .role = PORT_IN, .width = e->width, .values = e->x};
    p[1] = (port){.name = "alpha",
                  .role = PORT_TABLE,
                  .width = e->width,
                  .table_rows = 1,
                  .values = {.centre = a, .amplitude = a}};
    p[2] = (port){.name = "y", .role = PORT_OUT, .width = e->width};
    return 3;
}

static cf_err snake_call(const op_run *run)
{
    const tensor alpha = flat(&run->t[1]);
    tensor y = run->t[2];
    return op_snake(run->be, &(op_snake_args){.x = &run->t[0], .alpha = &alpha, .y = &y});
}

/* The product alpha x and the sum alpha + 1e-9 are rounded to f32, as upstream's are. */
static void snake_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[0].dims[1];
    for (int64_t i = 0; i < tensor_count(&run->t[0]); i++) {
        const double x = value_at(&run->t[0], i), alpha = value_at(&run->t[1], i % width);
        const double s = sin((double)(float)(x * alpha));
        ret[2][i] = x + s * s / (double)(float)(alpha + (double)1e-9f);
    }
}

/* swiglu: x, y */

/* What silu loses as a denormal, 1e-36, times an up of at most 104 beside it. */
#define LOST                                                                                       \
    {                                                                                              \
        .elem = 6e-7, .floor = 1.1e-34, .why = "as silu, whose lost denormals are magnified by up" \
    }

static const elem_case swiglu_cases[] = {
    {.head = {"one value", SEQS(1), .bound = EXP_F32}, .width = 1},
    {.head = {"prime", SEQS(2, 0, 3), .bound = EXP_F32}, .width = 31, .x = {.amplitude = 4}},
    {.head = {"specials", SEQS(2), .bound = LOST}, .width = 41, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"language model", SEQS(1, 1, 3), .bound = EXP_F32}, .width = 4864, .x = {.amplitude = 60}},
    {.head = {"over a task", SEQS(20, 1, 33), .bound = EXP_F32}, .width = 641},
};

static int32_t swiglu_ports(const suite_case *c, port *p)
{
    p[0] = (port){.name = "x", .role = PORT_IN, .width = 2 * elem(c)->width, .values = elem(c)->x};
    p[1] = (port){.name = "y", .role = PORT_OUT, .width = elem(c)->width};
    return 2;
}

static cf_err swiglu_call(const op_run *run)
{
    tensor y = run->t[1];
    return op_swiglu(run->be, &(op_swiglu_args){.x = &run->t[0], .y = &y});
}

static void swiglu_direct(const op_run *run, double *const *ret)
{
    const int64_t width = run->t[1].dims[1];
    for (int64_t i = 0; i < run->t[1].dims[0] * width; i++) {
        const int64_t at = i / width * 2 * width + i % width;
        ret[1][i] = elem_act(value_at(&run->t[0], at), ACT_SILU, 0.0f) * value_at(&run->t[0], at + width);
    }
}

/* cast: x, y of the other type */

static const elem_case cast_cases[] = {
    {.head = {"one value up", SEQS(1), .bound = EXACT}, .width = 1},
    {.head = {"mel up", SEQS(3, 0, 2), .bound = EXACT}, .width = 80, .x = {.centre = -6, .amplitude = 4}},
    {.head = {"specials up", SEQS(1), .bound = EXACT}, .width = 41, .x = {DIST_SPECIALS, 0, 0}},
    {.head = {"down", SEQS(3, 0, 2), .bound = EXACT}, .width = 7, .type = DTYPE_F64, .x = {.amplitude = 400}},
    {.head = {"out of range down", SEQS(2), .bound = EXACT}, .width = 31, .type = DTYPE_F64, .x = {.amplitude = 1e39}},
    {.head = {"denormals down", SEQS(2), .bound = EXACT}, .width = 31, .type = DTYPE_F64, .x = {.amplitude = 1e-44}},
};

static int32_t cast_ports(const suite_case *c, port *p)
{
    const dtype from = elem(c)->type;
    p[0] = (port){.name = "x", .role = PORT_IN, .type = from, .width = elem(c)->width, .values = elem(c)->x};
    p[1] = (port){
        .name = "y", .role = PORT_OUT, .type = from == DTYPE_F32 ? DTYPE_F64 : DTYPE_F32, .width = elem(c)->width};
    return 2;
}

static cf_err cast_call(const op_run *run)
{
    tensor y = run->t[1];
    return op_cast(run->be, &(op_cast_args){.x = &run->t[0], .y = &y});
}

static void cast_direct(const op_run *run, double *const *ret)
{
    for (int64_t i = 0; i < tensor_count(&run->t[0]); i++)
        ret[1][i] = value_at(&run->t[0], i);
}

/* One rounding to f32 of two f64 computations: the same, or neighbours. */
#define ONE_ULP                                                                       \
    {                                                                                 \
        .elem = 1.2e-7, .floor = 1e-44, .why = "f64 rounded once: neighbours at most" \
    }

const op_driver elem_drivers[] = {
    {.op = OP_act,
     DRIVER_CASES(act_cases),
     .ports = act_ports,
     .call = act_call,
     .direct = act_direct,
     .direct_bound = {.elem = 1.2e-7, .floor = 1e-14, .why = "f64 rounded once; 1 + tanh(u) cancels near -8"}},
    {.op = OP_add,
     DRIVER_CASES(add_cases),
     .ports = add_ports,
     .call = add_call,
     .direct = add_direct,
     .direct_bound = EXACT},
    {.op = OP_mean3,
     DRIVER_CASES(mean3_cases),
     .ports = mean3_ports,
     .call = mean3_call,
     .direct = mean3_direct,
     .direct_bound = EXACT},
    {.op = OP_snake,
     DRIVER_CASES(snake_cases),
     .ports = snake_ports,
     .call = snake_call,
     .direct = snake_direct,
     .direct_bound = ONE_ULP},
    {.op = OP_swiglu,
     DRIVER_CASES(swiglu_cases),
     .ports = swiglu_ports,
     .call = swiglu_call,
     .direct = swiglu_direct,
     .direct_bound = ONE_ULP},
    {.op = OP_cast,
     DRIVER_CASES(cast_cases),
     .ports = cast_ports,
     .call = cast_call,
     .direct = cast_direct,
     .direct_bound = EXACT},
    {.cases = NULL},
};
