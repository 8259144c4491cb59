/*
 * rng.c - MT19937. Pure; states belong to the caller. Fails: never.
 * Source: Matsumoto and Nishimura 2002; torch aten/src/ATen/core/MT19937RNGEngine.h.
 */
#include "common/base/rng.h"

#define MT_N 624
#define MT_M 397

void rng_mt_init(rng_mt *mt, uint32_t seed)
{
    mt->state[0] = seed;
    for (uint32_t j = 1; j < MT_N; j++)
        mt->state[j] = 1812433253u * (mt->state[j - 1] ^ mt->state[j - 1] >> 30) + j;
    mt->next = MT_N;
}

static void mt_refill(rng_mt *mt)
{
    uint32_t *s = mt->state;
    for (uint32_t j = 0; j < MT_N; j++) {
        const uint32_t y = (s[j] & 0x80000000u) | (s[(j + 1) % MT_N] & 0x7FFFFFFFu);
        s[j] = s[(j + MT_M) % MT_N] ^ y >> 1 ^ (y & 1u ? 0x9908B0DFu : 0u);
    }
    mt->next = 0;
}

uint32_t rng_mt_word(rng_mt *mt)
{
    if (mt->next == MT_N)
        mt_refill(mt);
    uint32_t y = mt->state[mt->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9D2C5680u;
    y ^= y << 15 & 0xEFC60000u;
    return y ^ y >> 18;
}

void rng_mt_skip(rng_mt *mt, uint64_t words)
{
    while (words > 0) {
        if (mt->next == MT_N)
            mt_refill(mt);
        const uint64_t here = MT_N - mt->next;
        const uint64_t n = words < here ? words : here;
        mt->next += (uint32_t)n;
        words -= n;
    }
}
