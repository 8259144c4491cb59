/*
 * signal_loops.h - the loops of rotary embedding, source and transforms. Part of vec_loops.h: compiled once per
 * instruction set, the same bytes from each.
 */
#ifndef CF_COMPUTE_CPU_SIGNAL_LOOPS_H
#define CF_COMPUTE_CPU_SIGNAL_LOOPS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "common/compute/cpu/vec_lanes.h"
#include "common/compute/cpu/vmath.h"
#include "common/compute/tensor.h"

/* x cos + partner sin, the sine negative in the first of a pair. */
static inline void rotate_64(const float *cos, const float *sin, bool adjacent, float *x)
{
    float c[64], s[64], partner[64];
    for (int j = 0; j < 32; j++) {
        const int first = adjacent ? 2 * j : j, second = adjacent ? 2 * j + 1 : j + 32;
        c[first] = cos[j];
        c[second] = cos[j];
        s[first] = -sin[j];
        s[second] = sin[j];
        partner[first] = x[second];
        partner[second] = x[first];
    }
    for (int i = 0; i < 64; i++)
        x[i] = x[i] * c[i] + partner[i] * s[i];
}

static void loop_rope_64(const float *cos, const float *sin, bool adjacent, float *x)
{
    if (adjacent)
        rotate_64(cos, sin, true, x);
    else
        rotate_64(cos, sin, false, x);
}

static void loop_rope_64_bf16(const float *cos, const float *sin, bool adjacent, uint16_t *x)
{
    float values[64];
    for (int i = 0; i < 64; i++)
        values[i] = f32_from_bf16(x[i]);
    loop_rope_64(cos, sin, adjacent, values);
    for (int i = 0; i < 64; i++)
        x[i] = bf16_from_f32(values[i]);
}

/* Angles that dsin does not reduce are rare, so one by one in libm. */
static void loop_polar(const float *log_magnitude, const float *angle, int64_t count, double *re, double *im)
{
    int far = 0;
    for (int64_t i = 0; i < count; i++) {
        far |= !(fabs((double)angle[i]) <= DSIN_MAX);
        im[i] = dsin((double)angle[i]);
    }
    for (int64_t i = 0; far && i < count; i++)
        if (!(fabs((double)angle[i]) <= DSIN_MAX))
            im[i] = sin((double)angle[i]);
    for (int64_t i = 0; i < count; i++) {
        const double grown = dexp((double)log_magnitude[i]), phase = im[i];
        const double magnitude = grown > 100.0 ? 100.0 : grown;
        re[i] = magnitude * dcos_one(phase);
        im[i] = magnitude * dsin_one(phase);
    }
}

static void loop_tanh_line(double offset, double gain, const float *x, int64_t count, float *y)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = (float)dtanh(offset + gain * (double)x[i]);
}

typedef double widest64 __attribute__((vector_size(4 * WIDEST)));

static inline void loop_mix_16(const double *shares, const double *table, int64_t count, double *sum)
{
    widest64 acc[32 / WIDEST] = {{0}};
    for (int64_t k = 0; k < count; k++)
        for (int v = 0; v < 32 / WIDEST; v++) {
            widest64 value;
            memcpy(&value, table + k * 16 + v * (WIDEST / 2), sizeof value);
            acc[v] += shares[k] * value;
        }
    memcpy(sum, acc, sizeof acc);
}

#endif
