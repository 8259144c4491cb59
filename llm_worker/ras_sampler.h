/*
 * ras_sampler.h - repetition-aware sampling: one speech id from logits, the ids generated so far and two uniforms.
 *
 * A pure function: the caller draws the uniforms (rng_uniform with RAS_DRAW_*), so that a row samples alike in any
 * batch, process and replay.
 */
#ifndef CF_LLM_WORKER_RAS_SAMPLER_H
#define CF_LLM_WORKER_RAS_SAMPLER_H

#include <stdint.h>

#include "common/base/err.h"
#include "common/base/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Source: cosy examples/libritts/cosyvoice3/conf/cosyvoice3.yaml, ras_sampling arguments @ace7c47. */
#define RAS_TOP_K         25
#define RAS_TOP_P         0.8f
#define RAS_WINDOW_TOKENS 10 /* tau_r 0.1 of it is one: any id seen in the window is rejected */

/* Draws of one position, for rng_uniform. */
#define RAS_DRAW_NUCLEUS  0u
#define RAS_DRAW_FALLBACK 1u

/* Which control ids cannot be drawn. */
typedef enum ras_mask {
    RAS_MASK_NONE, /* all ids */
    RAS_MASK_SOS,  /* not sos, id `codes`: what upstream's HEAD does below the minimum length */
    RAS_MASK_STOP  /* no control id: the minimum length is kept */
} ras_mask;

/*
 * The nucleus of probabilities p: [count]: ids in descending order of p, ties by smaller id, taken while their f32
 * sum is below 0.8 and fewer than 25 are taken. Writes ret_ids: [RAS_TOP_K] and returns how many, at least 1. count
 * >= 1.
 */
int32_t ras_nucleus(const float *p, int32_t count, int32_t *ret_ids);

/*
 * Draws an id. logits: [codes + SPEECH_CONTROLS], codes at most SPEECH_CODES; hist: [hist_count] ids of this request,
 * oldest first, never prompt ids; uniforms in [0, 1). CF_ERR_NUMERIC when a logit is NaN or infinite.
 */
CF_MUST_CHECK cf_err ras_sample(const float *logits, int32_t codes, const int32_t *hist, int32_t hist_count,
                                ras_mask mask, float nucleus_uniform, float fallback_uniform, int32_t *ret_id);

#ifdef __cplusplus
}
#endif
#endif
