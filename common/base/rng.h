/*
 * rng.h - random numbers without state to lose (Philox4x32-10), and torch's CPU Mersenne Twister for the fixed tables.
 */
#ifndef CF_BASE_RNG_H
#define CF_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/host_device.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PHILOX_ROUNDS 10

/*
 * Philox4x32-10: four 32-bit words from a 64-bit key and a 128-bit counter.
 * Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", and the Random123 known answers.
 */
CF_HOST_DEVICE static inline void rng_philox(uint64_t key, const uint32_t counter[4], uint32_t ret_words[4])
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

/* Uniform in [0, 1) with 24 bits for draw `draw` of token `position` in segment `segment` of the row with this seed.
 * The counter is (segment, position, draw, 0): the same on CPU and GPU, in any batch and replay. */
CF_HOST_DEVICE static inline float rng_uniform(uint64_t seed, uint32_t segment, uint32_t position, uint32_t draw)
{
    const uint32_t counter[4] = {segment, position, draw, 0};
    uint32_t words[4];
    rng_philox(seed, counter, words);
    return (float)(words[0] >> 8) * 0x1p-24f;
}

/* MT19937 seeded by init_genrand, as torch's CPU generator. */
typedef struct rng_mt {
    uint32_t state[624];
    uint32_t next;
} rng_mt;

void rng_mt_init(rng_mt *mt, uint32_t seed);
uint32_t rng_mt_word(rng_mt *mt);
void rng_mt_skip(rng_mt *mt, uint64_t words);

/* torch.rand in f32: 24 bits of one word, [0, 1). */
static inline float rng_mt_uniform(rng_mt *mt)
{
    return (float)(rng_mt_word(mt) & 0xFFFFFFu) * 0x1p-24f;
}

#ifdef __cplusplus
}
#endif
#endif
