/* ras.h - one row of op_ras on the host. Included by cpu, and by tests of the law. */
#ifndef CF_COMPUTE_CPU_RAS_H
#define CF_COMPUTE_CPU_RAS_H

#include <stdint.h>

#include "common/compute/cpu/vec.h"

/*
 * The nucleus of probabilities p / total: [count]: ids in descending order of it, ties by smaller id, taken while their
 * f32 sum is below 0.8 and fewer than 25 are taken. Writes ret_ids: [RAS_TOP_K], divides p of these ids by total, and
 * returns how many, at least 1. count >= 1, p >= 0, total > 0.
 */
int32_t ras_nucleus(const vec_ops *vec, float *p, float total, int32_t count, int32_t *ret_ids);

/*
 * Draws an id, or says RAS_REFUSED. vec: any table, all give the same id; logits: [codes + SPEECH_CONTROLS],
 * 2 <= codes <= SPEECH_CODES; mask: ras_mask; window: [RAS_WINDOW_TOKENS], -1: none; uniforms in [0, 1).
 */
int32_t ras_sample(const vec_ops *vec, const float *logits, int32_t codes, const int32_t *window, int32_t mask,
                   float nucleus_uniform, float fallback_uniform);

#endif
