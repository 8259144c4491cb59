/*
 * llm_stage.h - the LLM behind stage.h: continuous batching, the length law, sampling and the silence filter.
 */
#ifndef CF_LLM_WORKER_LLM_STAGE_H
#define CF_LLM_WORKER_LLM_STAGE_H

#include "common/worker/stage.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const stage_ops llm_stage;

/* Speech tokens a job may have (llm.md 6.1). */
typedef struct llm_lengths {
    int32_t min_tokens; /* no stop id is drawn before */
    int32_t max_tokens; /* generation ends here */
    bool capped;        /* max_tokens is what the frame limit leaves, not 20 per text token */
} llm_lengths;

/* text_tokens: of the text to speak alone, prompt text excluded; voice_tokens: the voice's prompt, which the flow
 * renders before the text whether the LLM hears it or not. */
llm_lengths llm_lengths_of(int32_t text_tokens, int32_t voice_tokens);

/* The silence filter of llm.md 9: true when this token, the run so far being *run, is to be left out of the output. */
bool llm_silence_drops(int32_t token, int32_t *run);

#ifdef __cplusplus
}
#endif
#endif
