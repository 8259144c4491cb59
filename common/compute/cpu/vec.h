/*
 * vec.h - inner loops over f32 arrays, compiled once per instruction set from vec_loops.h. All tables give the same
 * bytes:
 * nothing is fused, and sums run in 16 lanes, element i in lane i mod 16, joined in one fixed order.
 */
#ifndef CF_COMPUTE_CPU_VEC_H
#define CF_COMPUTE_CPU_VEC_H

#include <stdbool.h>
#include <stdint.h>

#include "common/compute/ops.h"

typedef struct vec_ops {
    const char *name;
    /* y[i] = act(x[i]); y may be x */
    void (*act)(const float *x, int64_t count, act_kind act, float slope, float *y);
    /* y[i] = act(y[i] + bias[i]); bias NULL: nothing added */
    void (*bias_act)(const float *bias, int64_t count, act_kind act, float slope, float *y);
    void (*add)(const float *a, const float *b, int64_t count, float *y);
    void (*mean3)(const float *a, const float *b, const float *c, int64_t count, float *y);
    /* y = x + inverse * sin(alpha x)^2; y apart from the others */
    void (*snake)(const float *x, const float *alpha, const float *inverse, int64_t count, float *y);
    void (*swiglu)(const float *gate, const float *up, int64_t count, float *y);
    void (*rms_norm)(const float *x, const float *gain, float eps, int64_t count, float *y);
    /* y = (x - mean) / deviation * (1 + scale) + shift of each row.   x, y: [rows][count]   scale, shift: [count] */
    void (*layer_norm)(const float *x, const float *scale, const float *shift, float eps, int64_t rows, int64_t count,
                       float *y);
    /* the same, rounded to bf16 */
    void (*layer_norm_bf16)(const float *x, const float *scale, const float *shift, float eps, int64_t rows,
                            int64_t count, uint16_t *y);
    /* the same with gain for 1 + scale */
    void (*layer_norm_gain)(const float *x, const float *gain, const float *bias, float eps, int64_t rows,
                            int64_t count, float *y);
    /* x += gate * y */
    void (*gate_add)(const float *gate, const float *y, int64_t count, float *x);
    /* x += dt (1.7 cond - 0.7 uncond) */
    void (*cfg_euler)(const float *cond, const float *uncond, float dt, int64_t count, float *x);
    /* y = (1 - part) a + part b */
    void (*lerp)(const float *a, const float *b, float part, int64_t count, float *y);
    void (*round_bf16)(int64_t count, float *x);
    /* The largest of x and start; NaN elements are skipped, they come back through exp_shift. */
    float (*max)(const float *x, int64_t count, float start);
    /* The first i of which x[i] is NaN or infinite, or count. */
    int64_t (*find_nonfinite)(const float *x, int64_t count);
    /* The first i of which x[i] > bound, or count. */
    int64_t (*find_above)(const float *x, int64_t count, float bound);
    /* x[i] = exp(x[i] - shift); returns the sum */
    float (*exp_shift)(float shift, int64_t count, float *x);
    /* x[i] = ras_exp(x[i] - top), top at least each of x; ras_rule.h */
    void (*ras_exp_shift)(float top, int64_t count, float *x);
    void (*scale)(float factor, int64_t count, float *x);
    /* Rotates 64 values of x in place: value 2j with 2j + 1 when adjacent, else j with j + 32. cos, sin: [32] */
    void (*rope_64)(const float *cos, const float *sin, bool adjacent, float *x);
    void (*rope_64_bf16)(const float *cos, const float *sin, bool adjacent, uint16_t *x);
    /* re + i im = min(exp(log_magnitude), 100) e^(i sin(angle)), in f64 */
    void (*polar)(const float *log_magnitude, const float *angle, int64_t count, double *re, double *im);
    /* y[i] = tanh(offset + gain x[i]), in f64 and rounded once */
    void (*tanh_line)(double offset, double gain, const float *x, int64_t count, float *y);
    /* sum[0..16) = the sum of shares[k] table[k], k ascending */
    void (*mix_16)(const double *shares, const double *table, int64_t count, double *sum);
    /* scores[j] = q . keys[j] over 64 values, keys one behind the other */
    void (*dots_64)(const float *q, const float *keys, int64_t count, float *scores);
    /* sum[0..64) += shares[j] values[j], j ascending */
    void (*mix_64)(const float *shares, const float *values, int64_t count, float *sum);
} vec_ops;

extern const vec_ops vec_base;   /* any machine */
extern const vec_ops vec_avx2;   /* x86-64 with AVX2 and FMA; the same as vec_base elsewhere */
extern const vec_ops vec_avx512; /* x86-64 with FMA and AVX-512 F, BW, DQ, VL */

/* The best table for this machine. */
const vec_ops *vec_choose(void);

#endif
