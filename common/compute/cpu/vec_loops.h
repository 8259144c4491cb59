/*
 * vec_loops.h - the loops behind vec.h, included once by each vec_*.c, which defines VEC_TABLE and VEC_NAME and may
 * set a target. No state. Fails: asserts on an unknown activation.
 */
#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/norm_loops.h"
#include "common/compute/cpu/signal_loops.h"
#include "common/compute/cpu/vec.h"
#include "common/compute/cpu/vec_lanes.h"
#include "common/compute/cpu/vmath.h"
#include "common/compute/ras_rule.h"

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

/* Arguments that vsin2 does not reduce are rare: those calls go one by one, afterwards. */
static void loop_snake(const float *restrict x, const float *alpha, const float *inverse, int64_t count,
                       float *restrict y)
{
    int32_t largest = 0; /* bits: rise with the magnitude, and those of NaN are above all */
    for (int64_t i = 0; i < count; i++) {
        const float phase = x[i] * alpha[i];
        const int32_t magnitude = f32_bits(phase) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
        y[i] = vfma(inverse[i], vsin2(phase), x[i]);
    }
    for (int64_t i = 0; i < count && largest > f32_bits(VSIN2_MAX); i++) {
        const float phase = x[i] * alpha[i];
        if (fabsf(phase) <= VSIN2_MAX)
            continue;
        const float s = (float)sin((double)phase);
        y[i] = vfma(inverse[i], s * s, x[i]);
    }
}

static void loop_swiglu(const float *gate, const float *up, int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = vsilu(gate[i]) * up[i];
}

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

/* The first i for which `condition` holds, or count: pieces without a way out are vectors. */
#define FIND(condition)                                                    \
    enum { PIECE = 32 };                                                   \
    for (int64_t first = 0; first < count; first += PIECE) {               \
        const int64_t end = first + PIECE < count ? first + PIECE : count; \
        int some = 0;                                                      \
        for (int64_t i = first; i < end; i++)                              \
            some |= (condition);                                           \
        for (int64_t i = first; some && i < end; i++)                      \
            if (condition)                                                 \
                return i;                                                  \
    }                                                                      \
    return count

static int64_t loop_find_nonfinite(const float *x, int64_t count)
{
    FIND((f32_bits(x[i]) & 0x7F800000) == 0x7F800000);
}

static int64_t loop_find_above(const float *x, int64_t count, float bound)
{
    FIND(x[i] > bound);
}

static float loop_exp_shift(float shift, int64_t count, float *x)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = vexp(x[i] - shift);
    float sum;
    lane_sums(x, 1, count, &sum);
    return sum;
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
    .find_nonfinite = loop_find_nonfinite,
    .find_above = loop_find_above,
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
