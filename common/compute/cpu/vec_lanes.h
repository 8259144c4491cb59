/*
 * vec_lanes.h - vectors of f32 in sixteen lanes, and the loops over heads of 64 values that are made of them. Part of
 * vec_loops.h: compiled once per instruction set, the same bytes from each.
 */
#ifndef CF_COMPUTE_CPU_VEC_LANES_H
#define CF_COMPUTE_CPU_VEC_LANES_H

#include <stdint.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed between functions of one file alone */

#define LANES 16

typedef float vec8 __attribute__((vector_size(32)));

/* For loops whose elements have nothing to do with each other. */
#if defined(__AVX512F__)
#define WIDEST 16
#else
#define WIDEST 8
#endif
typedef float widest __attribute__((vector_size(4 * WIDEST)));

static inline vec8 load8(const float *x)
{
    vec8 v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* Lanes are joined as a tree: l + l+8, then +4, +2, +1. */
static inline float join_lanes(const vec8 *low, const vec8 *high)
{
    const vec8 s = *low + *high;
    const float a = s[0] + s[4], b = s[1] + s[5], c = s[2] + s[6], d = s[3] + s[7];
    return (a + c) + (b + d);
}

/* The products of one key, lanes l and l+8 joined. */
static inline vec8 dot_lanes(const float *q, const float *key)
{
    vec8 low = {0}, high = {0};
    for (int d = 0; d < 64; d += LANES) {
        low += load8(q + d) * load8(key + d);
        high += load8(q + d + 8) * load8(key + d + 8);
    }
    return low + high;
}

/* Four keys at a time share the tree of join_lanes: each line below is one of its levels. */
static inline void loop_dots_64(const float *q, const float *keys, int64_t count, float *scores)
{
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
        const vec8 s0 = dot_lanes(q, keys + j * 64), s1 = dot_lanes(q, keys + (j + 1) * 64);
        const vec8 s2 = dot_lanes(q, keys + (j + 2) * 64), s3 = dot_lanes(q, keys + (j + 3) * 64);
        const vec8 first = __builtin_shufflevector(s0, s1, 0, 1, 2, 3, 8, 9, 10, 11) +
                           __builtin_shufflevector(s0, s1, 4, 5, 6, 7, 12, 13, 14, 15);
        const vec8 last = __builtin_shufflevector(s2, s3, 0, 1, 2, 3, 8, 9, 10, 11) +
                          __builtin_shufflevector(s2, s3, 4, 5, 6, 7, 12, 13, 14, 15);
        const vec8 pairs = __builtin_shufflevector(first, last, 0, 1, 4, 5, 8, 9, 12, 13) +
                           __builtin_shufflevector(first, last, 2, 3, 6, 7, 10, 11, 14, 15);
        const vec8 sums = pairs + __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2, 5, 4, 7, 6);
        for (int k = 0; k < 4; k++)
            scores[j + k] = sums[2 * k];
    }
    for (; j < count; j++) {
        const vec8 s = dot_lanes(q, keys + j * 64);
        const float a = s[0] + s[4], b = s[1] + s[5], c = s[2] + s[6], d = s[3] + s[7];
        scores[j] = (a + c) + (b + d);
    }
}

static inline void loop_mix_64(const float *shares, const float *values, int64_t count, float *sum)
{
    widest acc[64 / WIDEST];
    memcpy(acc, sum, sizeof acc);
    for (int64_t j = 0; j < count; j++)
        for (int v = 0; v < 64 / WIDEST; v++) {
            widest value;
            memcpy(&value, values + j * 64 + v * WIDEST, sizeof value);
            acc[v] += shares[j] * value;
        }
    memcpy(sum, acc, sizeof acc);
}

#endif
