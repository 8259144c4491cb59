/*
 * noise.h - the solver's start: torch.randn([1, 80, 15000]) of the CPU generator seeded with 0, bit for bit.
 *
 * Frame f of every request and every streaming call starts from column f of this one table.
 */
#ifndef CF_FLOW_WORKER_NOISE_H
#define CF_FLOW_WORKER_NOISE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NOISE_VALUES ((size_t)MEL_BINS * FRAMES_MAX)

/* FNV-1a-32 over the little-endian bytes of the table that torch 2.3.1's x86-64 wheel makes (flow.md 4.2). */
#define NOISE_FNV1A32 0x805fe184u

/* Writes the table as torch lays it out: ret_values [80, 15000] f32, channel-major. */
void noise_fill(float *ret_values);

/* The same with the choice of code made by the caller: the FMA instruction (false is returned and nothing written when
 * this machine has none) or libm's fmaf. Both give the same bytes; for tests. */
bool noise_fill_by(bool fma_instruction, float *ret_values);

/* FNV-1a-32 over count values, little-endian. */
uint32_t noise_hash(const float *values, size_t count);

#ifdef __cplusplus
}
#endif
#endif
