/*
 * ras_rule.h - the arithmetic of op_ras, once for host and device: exponential, order of sums, draws, what a line of
 * states remembers. Same logits and same line, same id, to the bit. Included by the files that implement the op, and by
 * the op suite.
 *
 * Sums over all ids run inside RAS_PIECES pieces of consecutive ids, from a piece's first id on, then over the pieces
 * from the first: a device's block sums them side by side, and everybody rounds alike.
 */
#ifndef CF_COMPUTE_RAS_RULE_H
#define CF_COMPUTE_RAS_RULE_H

#include <string.h>

#include "common/base/limits.h"
#include "common/base/rng.h"
#include "common/compute/ops.h"

#define RAS_PIECES 256 /* threads of a device's block */

/* Ids [ras_piece(count, i), ras_piece(count, i + 1)) of `count` are piece i. */
CF_HOST_DEVICE static inline int32_t ras_piece(int32_t count, int32_t piece)
{
    const int32_t first = (count + RAS_PIECES - 1) / RAS_PIECES * piece;
    return first < count ? first : count;
}

/*
 * exp(x) of x <= 0 in f64 without fused operations, rounded once to f32: within 0.5001 of a unit, and on every machine
 * the same bits, which nobody promises of a library's expf. x = k ln 2 + r; 2^k by its bits, exp(r) by 13 terms.
 */
CF_HOST_DEVICE static inline float ras_exp(float x)
{
    const double shift = 0x1.8p52; /* added, it rounds to an integer, whose bits then stand lowest */
    const double at = x < -104.0f ? -104.0 : (double)x; /* exp(-104) is 0 in f32 */
    const double shifted = at * 0x1.71547652b82fep+0 + shift, k = shifted - shift;
    const double r = (at - k * 0x1.62e42fefa0000p-1) - k * 0x1.cf79abc9e3b3ap-40;
    double y = 1.0 / 6227020800.0, power;
    uint64_t bits;
    y = y * r + 1.0 / 479001600.0;
    y = y * r + 1.0 / 39916800.0;
    y = y * r + 1.0 / 3628800.0;
    y = y * r + 1.0 / 362880.0;
    y = y * r + 1.0 / 40320.0;
    y = y * r + 1.0 / 5040.0;
    y = y * r + 1.0 / 720.0;
    y = y * r + 1.0 / 120.0;
    y = y * r + 1.0 / 24.0;
    y = y * r + 1.0 / 6.0;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 1023) << 52;
    memcpy(&power, &bits, sizeof power);
    return (float)(y * power);
}

/* Whether id can be drawn: neither masked nor `excluded` (-1: none). */
CF_HOST_DEVICE static inline bool ras_open(int32_t id, int32_t codes, int32_t mask, int32_t excluded)
{
    if (id == excluded || (mask == RAS_MASK_STOP && id >= codes))
        return false;
    return mask != RAS_MASK_SOS || id != TOKEN_SOS(codes);
}

/* Sum of the pieces' sums. */
CF_HOST_DEVICE static inline double ras_total(const double *sums)
{
    double total = 0;
    for (int32_t i = 0; i < RAS_PIECES; i++)
        total += sums[i];
    return total;
}

/* The first of `count` ids whose weight, with `before` in front and those between, exceeds target; -1: none. ids NULL:
 * first, first + 1, ... An id of weight 0 is never the first. */
CF_HOST_DEVICE static inline int32_t ras_reach(const float *p, const int32_t *ids, int32_t first, int32_t count,
                                               double before, double target)
{
    double sum = 0;
    for (int32_t i = 0; i < count; i++) {
        const int32_t id = ids ? ids[i] : first + i;
        sum += (double)p[id];
        if (before + sum > target)
            return id;
    }
    return -1;
}

/* Draws one of the `count` ids of a nucleus by p: uniform < 1, so the total exceeds what is to be reached. */
CF_HOST_DEVICE static inline int32_t ras_draw_nucleus(const float *p, const int32_t *ids, int32_t count, float uniform)
{
    double total = 0;
    for (int32_t i = 0; i < count; i++)
        total += (double)p[ids[i]];
    return ras_reach(p, ids, 0, count, 0.0, (double)uniform * total);
}

/* Draws one of all `count` ids by p; sums: [RAS_PIECES] of p, not all 0. */
CF_HOST_DEVICE static inline int32_t ras_draw_all(const float *p, int32_t count, const double *sums, float uniform)
{
    const double target = (double)uniform * ras_total(sums);
    double before = 0;
    int32_t piece = 0;
    while (before + sums[piece] <= target)
        before += sums[piece++];
    const int32_t first = ras_piece(count, piece);
    return ras_reach(p, NULL, first, ras_piece(count, piece + 1) - first, before, target);
}

/* What is masked at the line's position. */
CF_HOST_DEVICE static inline int32_t ras_mask_now(const int32_t *state)
{
    return state[RAS_COUNT] < state[RAS_MIN_TOKENS] ? state[RAS_MASK] : (int32_t)RAS_MASK_NONE;
}

CF_HOST_DEVICE static inline float ras_uniform(const int32_t *state, uint32_t draw)
{
    const uint64_t seed = (uint64_t)(uint32_t)state[RAS_SEED_HIGH] << 32 | (uint32_t)state[RAS_SEED_LOW];
    return rng_uniform(seed, (uint32_t)state[RAS_SEGMENT], (uint32_t)state[RAS_COUNT], draw);
}

CF_HOST_DEVICE static inline bool ras_in_window(const int32_t *window, int32_t id)
{
    for (int32_t i = 0; i < RAS_WINDOW_TOKENS; i++)
        if (window[i] == id)
            return true;
    return false;
}

/* Remembers a drawn id, unless it is a control id. */
CF_HOST_DEVICE static inline void ras_remember(int32_t id, int32_t codes, int32_t *state, int32_t *token)
{
    if (id >= codes)
        return;
    state[RAS_WINDOW + state[RAS_COUNT] % RAS_WINDOW_TOKENS] = id;
    state[RAS_COUNT]++;
    *token = id;
}

#endif
