/*
 * vec_loops.h - the loops behind vec.h, included once by each vec_*.c, which defines VEC_TABLE and VEC_NAME and may
 * set a target. No state. Fails: asserts on an unknown activation.
 */
#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/signal_loops.h"
#include "common/compute/cpu/vec.h"
#include "common/compute/cpu/vec_lanes.h"
#include "common/compute/cpu/vmath.h"
#include "common/compute/ras_rule.h"

/* In front of a loop: no value that it writes is one that a later turn reads. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* sum of x[i] */
static inline float lane_sum(const float *x, int64_t count)
{
    vec8 low = {0}, high = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        low += load8(x + i);
        high += load8(x + i + 8);
    }
    float rest[LANES] = {0};
    for (int l = 0; i + l < count; l++)
        rest[l] = x[i + l];
    low += load8(rest);
    high += load8(rest + 8);
    return join_lanes(&low, &high);
}

/* sum of (x[i] - mean)^2 */
static inline float lane_squares(const float *x, float mean, int64_t count)
{
    const vec8 m = {mean, mean, mean, mean, mean, mean, mean, mean};
    vec8 low = {0}, high = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const vec8 a = load8(x + i) - m, b = load8(x + i + 8) - m;
        low += a * a;
        high += b * b;
    }
    float rest[LANES] = {0};
    for (int l = 0; i + l < count; l++)
        rest[l] = x[i + l] - mean;
    const vec8 a = load8(rest), b = load8(rest + 8);
    low += a * a;
    high += b * b;
    return join_lanes(&low, &high);
}

static inline float leaky(float x, float slope)
{
    return x >= 0.0f ? x : slope * x;
}

static void elu(const float *x, int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i] > 0.0f ? x[i] : (float)expm1((double)x[i]);
}

/* One loop over the array for each function. */
#define EACH(value)                     \
    for (int64_t i = 0; i < count; i++) \
        y[i] = (value);                 \
    return

static void loop_act(const float *x, int64_t count, act_kind act, float slope, float *y)
{
    switch (act) {
    case ACT_NONE:
        if (x != y)
            memcpy(y, x, (size_t)count * sizeof *y);
        return;
    case ACT_LEAKY:
        EACH(leaky(x[i], slope));
    case ACT_ELU:
        elu(x, count, y);
        return;
    case ACT_MISH:
        EACH(vmish(x[i]));
    case ACT_SILU:
        EACH(vsilu(x[i]));
    case ACT_GELU_TANH:
        EACH(vgelu_tanh(x[i]));
    case ACT_ABS:
        EACH(bits_f32(f32_bits(x[i]) & 0x7FFFFFFF));
    case ACT_GELU:
        EACH(vgelu(x[i]));
    case ACT_RELU:
        EACH(x[i] < 0.0f ? 0.0f : x[i]);
    case ACT_SIGMOID:
        EACH(vsigmoid(x[i]));
    }
    cf_panic(__FILE__, __LINE__, "unknown activation");
}

static void loop_bias_act(const float *bias, int64_t count, act_kind act, float slope, float *y)
{
    if (bias)
        for (int64_t i = 0; i < count; i++)
            y[i] = y[i] + bias[i];
    if (act != ACT_NONE)
        loop_act(y, count, act, slope, y);
}

static void loop_add(const float *a, const float *b, int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = a[i] + b[i];
}

static void loop_mean3(const float *a, const float *b, const float *c, int64_t count, float *y)
{
    const float third = 1.0f / 3.0f;
    for (int64_t i = 0; i < count; i++)
        y[i] = ((a[i] + b[i]) + c[i]) * third;
}

/* Arguments that vsin2 does not reduce are rare, so those calls go one by one. y may be x: no value meets another. */
static void loop_snake(const float *x, const float *alpha, const float *inverse, int64_t count, float *y)
{
    int far = 0;
    for (int64_t i = 0; i < count; i++)
        far |= !(fabsf(x[i] * alpha[i]) <= VSIN2_MAX);
    if (!far) {
        INDEPENDENT
        for (int64_t i = 0; i < count; i++)
            y[i] = x[i] + inverse[i] * vsin2(x[i] * alpha[i]);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const float phase = x[i] * alpha[i];
        float square = vsin2(phase);
        if (!(fabsf(phase) <= VSIN2_MAX)) {
            const float s = (float)sin((double)phase);
            square = s * s;
        }
        y[i] = x[i] + inverse[i] * square;
    }
}

static void loop_swiglu(const float *gate, const float *up, int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = vsilu(gate[i]) * up[i];
}

static void loop_rms_norm(const float *x, const float *gain, float eps, int64_t count, float *y)
{
    const float scale = 1.0f / sqrtf(lane_squares(x, 0.0f, count) / (float)count + eps);
    for (int64_t i = 0; i < count; i++)
        y[i] = (x[i] * scale) * gain[i];
}

/* Mean, and one over the deviation. */
static inline float spread(const float *x, float eps, int64_t count, float *ret_mean)
{
    *ret_mean = lane_sum(x, count) / (float)count;
    return 1.0f / sqrtf(lane_squares(x, *ret_mean, count) / (float)count + eps);
}

#define LAYER_NORM(name, type, gain, rounded)                                                                   \
    static void name(const float *x, const float *scale, const float *shift, float eps, int64_t count, type *y) \
    {                                                                                                           \
        float mean;                                                                                             \
        const float inverse = spread(x, eps, count, &mean);                                                     \
        for (int64_t i = 0; i < count; i++)                                                                     \
            y[i] = rounded(((x[i] - mean) * inverse) * (gain) + shift[i]);                                      \
    }

LAYER_NORM(loop_layer_norm, float, 1.0f + scale[i], )
LAYER_NORM(loop_layer_norm_bf16, uint16_t, 1.0f + scale[i], bf16_from_f32)
LAYER_NORM(loop_layer_norm_gain, float, scale[i], )

static void loop_gate_add(const float *gate, const float *y, int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = x[i] + gate[i] * y[i];
}

static void loop_cfg_euler(const float *cond, const float *uncond, float dt, int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = x[i] + dt * (1.7f * cond[i] - 0.7f * uncond[i]);
}

static void loop_lerp(const float *a, const float *b, float part, int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = (1.0f - part) * a[i] + part * b[i];
}

static void loop_round_bf16(int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = f32_from_bf16(bf16_from_f32(x[i]));
}

static float loop_max(const float *x, int64_t count, float start)
{
    float lanes[LANES];
    int64_t i = 0;
    for (int l = 0; l < LANES; l++)
        lanes[l] = start;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    for (int l = 0; i + l < count; l++)
        lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    float max = start;
    for (int l = 0; l < LANES; l++)
        max = lanes[l] > max ? lanes[l] : max;
    return max;
}

static float loop_exp_shift(float shift, int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = vexp(x[i] - shift);
    return lane_sum(x, count);
}

static void loop_ras_exp_shift(float top, int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = ras_exp(x[i] - top);
}

static void loop_scale(float factor, int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = x[i] * factor;
}

const vec_ops VEC_TABLE = {
    .name = VEC_NAME,
    .act = loop_act,
    .bias_act = loop_bias_act,
    .add = loop_add,
    .mean3 = loop_mean3,
    .snake = loop_snake,
    .swiglu = loop_swiglu,
    .rms_norm = loop_rms_norm,
    .layer_norm = loop_layer_norm,
    .layer_norm_bf16 = loop_layer_norm_bf16,
    .layer_norm_gain = loop_layer_norm_gain,
    .gate_add = loop_gate_add,
    .cfg_euler = loop_cfg_euler,
    .lerp = loop_lerp,
    .round_bf16 = loop_round_bf16,
    .max = loop_max,
    .exp_shift = loop_exp_shift,
    .ras_exp_shift = loop_ras_exp_shift,
    .scale = loop_scale,
    .dots_64 = loop_dots_64,
    .mix_64 = loop_mix_64,
    .rope_64 = loop_rope_64,
    .rope_64_bf16 = loop_rope_64_bf16,
    .polar = loop_polar,
    .tanh_line = loop_tanh_line,
    .mix_16 = loop_mix_16,
};
