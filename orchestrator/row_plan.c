/* row_plan.c - see row_plan.h. Pure; any thread. */
#include "orchestrator/row_plan.h"

cf_err row_plan(const tokenizer *tok, const text_request *words, const voice *v, text_plan *ret_plan)
{
    cf_err err;
    text_request req = *words;
    text_plan plan = {0};
    if (v && req.mode == TEXT_ZERO_SHOT && v->prompt_tokens == 0)
        FAIL(CF_ERR_INVALID, "voice %s has no prompt speech: use mode cross_lingual or instruct", v->name);
    if (v) {
        req.prompt_text = v->prompt_text_id ? NULL : v->prompt_text ? v->prompt_text : "";
        req.prompt_ids = v->prompt_text_id;
        req.prompt_id_count = v->prompt_text_ids;
    }
    TRY(text_prepare(tok, &req, &plan));
    if (plan.segment_count == 0)
        FAIL(CF_ERR_INVALID, "nothing to say: %s", plan.empty_reason ? plan.empty_reason : "no segments");
    *ret_plan = plan;
    plan = (text_plan){0};
out:
    text_plan_done(&plan);
    return err;
}
