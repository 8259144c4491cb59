/*
 * rng.c - Philox4x32-10 and MT19937. Pure; states belong to the caller. Fails: never.
 * Source: Random123's constants; Matsumoto and Nishimura 2002; torch aten/src/ATen/core/MT19937RNGEngine.h.
 */
#include "common/base/rng.h"

#define PHILOX_ROUNDS 10

void rng_philox(uint64_t key, const uint32_t counter[4], uint32_t ret_words[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    ret_words[0] = c0;
    ret_words[1] = c1;
    ret_words[2] = c2;
    ret_words[3] = c3;
}

float rng_uniform(uint64_t seed, uint32_t segment, uint32_t position, uint32_t draw)
{
    const uint32_t counter[4] = {segment, position, draw, 0};
    uint32_t words[4];
    rng_philox(seed, counter, words);
    return (float)(words[0] >> 8) * 0x1p-24f;
}

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
