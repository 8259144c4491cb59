/*
 * rng.h - random numbers without state to lose (Philox4x32-10), and torch's CPU Mersenne Twister for the fixed tables.
 */
#ifndef CF_BASE_RNG_H
#define CF_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Philox4x32-10: four 32-bit words from a 64-bit key and a 128-bit counter.
 * Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", and the Random123 known answers.
 */
void rng_philox(uint64_t key, const uint32_t counter[4], uint32_t ret_words[4]);

/* Uniform in [0, 1) with 24 bits for draw `draw` of token `position` in segment `segment` of the row with this seed.
 * The counter is (segment, position, draw, 0): the same on CPU and GPU, in any batch and replay. */
float rng_uniform(uint64_t seed, uint32_t segment, uint32_t position, uint32_t draw);

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
