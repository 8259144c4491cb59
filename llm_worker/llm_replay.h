/*
 * llm_replay.h - teacher forcing: prompts and given continuations through the engine's own prefill and decode, several
 * sequences in packed calls, keeping every row's logits. Parity runs and tests use it, workers do not.
 */
#ifndef CF_LLM_WORKER_LLM_REPLAY_H
#define CF_LLM_WORKER_LLM_REPLAY_H

#include "llm_worker/llm_forward.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct llm_replay_item {
    llm_prompt prompt;
    const int32_t *forced; /* [forced_tokens] speech ids, borrowed */
    int32_t forced_tokens;
    float *logits; /* caller's, [forced_tokens + 1, speech rows]: row 0 after the prompt, row k after forced[k-1] */
    float *hidden; /* caller's, [forced_tokens + 1, H], behind the final norm; NULL: not wanted */
} llm_replay_item;

/* Runs all items together; count is at most the engine's rows_max. Nothing else may be held by the engine.
 * CF_ERR_INVALID names an id that is out of range, CF_ERR_LIMIT a sequence that is too long. */
CF_MUST_CHECK cf_err llm_replay(llm_engine *e, const llm_replay_item *items, int32_t count);

#ifdef __cplusplus
}
#endif
#endif
