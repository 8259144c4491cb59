/*
 * norm_loops.h - sums over rows in sixteen lanes, and the norms made of them. Part of vec_loops.h: compiled once per
 * instruction set, the same bytes from each.
 */
#ifndef CF_COMPUTE_CPU_NORM_LOOPS_H
#define CF_COMPUTE_CPU_NORM_LOOPS_H

#include <math.h>
#include <stdint.h>

#include "common/compute/cpu/vec_lanes.h"
#include "common/compute/tensor.h"

/* A row's sum waits for itself; several side by side do not wait. */
#define ROWS_AT_ONCE    4
#define UNROLLED_INLINE static inline __attribute__((always_inline))

/* The last lanes of a row, filled up with `rest`. */
static inline void load_rest(const float *x, int64_t count, float rest, float lanes[LANES])
{
    for (int l = 0; l < LANES; l++)
        lanes[l] = l < count ? x[l] : rest;
}

/* sums[r] of row r, x[r * count + i] for i below count; rows: a constant, at most ROWS_AT_ONCE */
UNROLLED_INLINE void lane_sums(const float *x, int rows, int64_t count, float *ret_sums)
{
    vec8 low[ROWS_AT_ONCE] = {{0}}, high[ROWS_AT_ONCE] = {{0}};
    float rest[LANES];
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int r = 0; r < rows; r++) {
            low[r] += load8(x + r * count + i);
            high[r] += load8(x + r * count + i + 8);
        }
    for (int r = 0; r < rows && i < count; r++) {
        load_rest(x + r * count + i, count - i, 0.0f, rest);
        low[r] += load8(rest);
        high[r] += load8(rest + 8);
    }
    for (int r = 0; r < rows; r++)
        ret_sums[r] = join_lanes(&low[r], &high[r]);
}

/* The same of (x[i] - mean of the row)^2 */
UNROLLED_INLINE void lane_squares(const float *x, const float *means, int rows, int64_t count, float *ret_sums)
{
    vec8 low[ROWS_AT_ONCE] = {{0}}, high[ROWS_AT_ONCE] = {{0}};
    float rest[LANES];
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int r = 0; r < rows; r++) {
            const vec8 a = load8(x + r * count + i) - means[r], b = load8(x + r * count + i + 8) - means[r];
            low[r] += a * a;
            high[r] += b * b;
        }
    for (int r = 0; r < rows && i < count; r++) {
        load_rest(x + r * count + i, count - i, means[r], rest);
        const vec8 a = load8(rest) - means[r], b = load8(rest + 8) - means[r];
        low[r] += a * a;
        high[r] += b * b;
    }
    for (int r = 0; r < rows; r++)
        ret_sums[r] = join_lanes(&low[r], &high[r]);
}

static void loop_rms_norm(const float *x, const float *gain, float eps, int64_t count, float *y)
{
    const float zero = 0.0f;
    float sum;
    lane_squares(x, &zero, 1, count, &sum);
    const float scale = 1.0f / sqrtf(sum / (float)count + eps);
    for (int64_t i = 0; i < count; i++)
        y[i] = (x[i] * scale) * gain[i];
}

/* Mean, and one over the deviation, of each row. */
UNROLLED_INLINE void spread(const float *x, int rows, float eps, int64_t count, float *means, float *inverses)
{
    float sums[ROWS_AT_ONCE];
    lane_sums(x, rows, count, sums);
    for (int r = 0; r < rows; r++)
        means[r] = sums[r] / (float)count;
    lane_squares(x, means, rows, count, sums);
    for (int r = 0; r < rows; r++)
        inverses[r] = 1.0f / sqrtf(sums[r] / (float)count + eps);
}

#define LAYER_NORM(name, type, gain, rounded)                                                                        \
    static void name(const float *x, const float *scale, const float *shift, float eps, int64_t rows, int64_t count, \
                     type *y)                                                                                        \
    {                                                                                                                \
        float means[ROWS_AT_ONCE], inverses[ROWS_AT_ONCE];                                                           \
        for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {                                               \
            const int some = rows - first < ROWS_AT_ONCE ? (int)(rows - first) : ROWS_AT_ONCE;                       \
            if (some == ROWS_AT_ONCE)                                                                                \
                spread(x, ROWS_AT_ONCE, eps, count, means, inverses);                                                \
            else                                                                                                     \
                for (int r = 0; r < some; r++)                                                                       \
                    spread(x + r * count, 1, eps, count, &means[r], &inverses[r]);                                   \
            for (int r = 0; r < some; r++, x += count, y += count)                                                   \
                for (int64_t i = 0; i < count; i++)                                                                  \
                    y[i] = rounded(((x[i] - means[r]) * inverses[r]) * (gain) + shift[i]);                           \
        }                                                                                                            \
    }

LAYER_NORM(loop_layer_norm, float, 1.0f + scale[i], )
LAYER_NORM(loop_layer_norm_bf16, uint16_t, 1.0f + scale[i], bf16_from_f32)
LAYER_NORM(loop_layer_norm_gain, float, scale[i], )

#endif
