/*
 * row_plan.h - what the LLM is fed for a row: its words in its mode, with the voice's transcript. For the orchestrator,
 * which accepts a row with it, and `cosyfarm batch --check`, where there is no farm.
 */
#ifndef CF_ORCHESTRATOR_ROW_PLAN_H
#define CF_ORCHESTRATOR_ROW_PLAN_H

#include "common/base/err.h"
#include "common/model/voice.h"
#include "common/text/frontend.h"

/* words has mode, text, raw and instruct; the transcript is v's. v NULL: the row brings a recording, and prompt_text in
 * words. Fails as text_prepare, and with CF_ERR_INVALID where there is nothing to say or the voice has no prompt speech
 * in a mode that wants it. The caller releases with text_plan_done. */
CF_MUST_CHECK cf_err row_plan(const tokenizer *tok, const text_request *words, const voice *v, text_plan *ret_plan);

#endif
