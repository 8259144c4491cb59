/*
 * token_encoder.h - the front half of the flow: speech tokens -> mu, prompt -> cond, speaker vector -> spk.
 *
 * 25 speech tokens/s -> 50 mel frames/s. Any number of requests in one packed batch.
 */
#ifndef CF_FLOW_WORKER_TOKEN_ENCODER_H
#define CF_FLOW_WORKER_TOKEN_ENCODER_H

#include "flow_worker/flow_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is rendered. Pointers are borrowed. Ids lie below the model's speech_codes; negative ones count as 0, as
 * upstream clamps. */
typedef struct flow_inputs {
    const int32_t *prompt_tokens;
    int32_t prompt_tokens_count;
    const float *prompt_feat; /* [prompt_frames, 80], natural-log mel */
    int32_t prompt_frames;    /* usually 2 * prompt_tokens_count */
    const float *embedding;   /* [192]; NULL: zeros */
    const int32_t *tokens;
    int32_t tokens_count;
    bool finalize; /* false: the last 3 tokens are right context only */
} flow_inputs;

/* Mel frames of the whole sequence, prompt included: 2 * (P + N), less the look-ahead when not final. */
int64_t flow_inputs_frames(const flow_inputs *in);

/* mu of count requests, one behind the other.   ret_mu: [sum of frames, 80], caller's tensor */
CF_MUST_CHECK cf_err token_encoder_mu(backend *be, const flow_model *m, const flow_inputs *const *in, int32_t count,
                                      tensor *ret_mu);

/* Prompt mel in front, zeros behind.   ret_cond: [frames of in, 80], caller's tensor */
CF_MUST_CHECK cf_err token_encoder_cond(backend *be, const flow_inputs *in, tensor *ret_cond);

/* The projected unit vector.   ret_spk: [80], host */
void token_encoder_speaker(const flow_model *m, const float *embedding, float *ret_spk);

#ifdef __cplusplus
}
#endif
#endif
