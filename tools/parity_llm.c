/*
 * parity_llm.c - the LLM's adapter of `cosyfarm parity`: a case's prompt through the stage's own prefill, its forced
 * tokens through the stage's own decode steps with the cache, all cases of a run in packed calls. Command line; owns
 * the engine.
 *
 * A capture without ids gives the embeddings of its text instead (cases.md 2).
 *
 * Fails: what the engine says; CF_ERR_NOTFOUND and CF_ERR_MISMATCH for inputs; CF_ERR_INVALID for ids out of range.
 */
#include "tools/parity.h"

#include "common/base/mem.h"
#include "llm_worker/llm_replay.h"

/* Cases in one packed batch; more run in groups of this. */
#define BATCH_CASES_MAX 64

static cf_err open_adapter(const parity_options *opt, void **ret_ctx)
{
    llm_engine *e;
    const llm_engine_config cfg = {.model_dir = opt->model_dir,
                                   .device = opt->device,
                                   .operands = opt->operands,
                                   .int8_weights = opt->int8_weights,
                                   .naive = opt->naive,
                                   .rows_max = BATCH_CASES_MAX};
    const cf_err err = llm_engine_open(&cfg, &e);
    if (err == CF_OK)
        *ret_ctx = e;
    return err;
}

static void close_adapter(void *ctx)
{
    llm_engine_close(ctx);
}

static cf_err read_case(const llm_model *m, const parity_case *c, llm_replay_item *item)
{
    cf_err err;
    int64_t dims[2], text = 0, prompt_text = 0, speech, forced;
    llm_prompt *p = &item->prompt;
    if (parity_case_has(c, "text_embeds")) {
        TRY(parity_case_f32(c, "text_embeds", 2, dims, &p->text_embeds));
        if (dims[1] != m->shape.hidden)
            FAIL(CF_ERR_MISMATCH, "%s: tensor text_embeds: the model's hidden size is %d, found %lld",
                 parity_case_path(c), (int)m->shape.hidden, (long long)dims[1]);
        text = dims[0];
    } else {
        TRY(parity_case_i32(c, "text", &text, &p->text));
        TRY(parity_case_i32(c, "prompt_text", &prompt_text, &p->prompt_text));
    }
    TRY(parity_case_i32(c, "prompt_speech_token", &speech, &p->speech));
    TRY(parity_case_i32(c, "forced", &forced, &item->forced));
    if (text + prompt_text + speech + forced + 2 > SEQUENCE_TOKENS_MAX)
        FAIL(CF_ERR_LIMIT, "%s: %lld tokens in all: at most %d (SEQUENCE_TOKENS_MAX)", parity_case_path(c),
             (long long)(text + prompt_text + speech + forced + 2), SEQUENCE_TOKENS_MAX);
    p->text_tokens = (int32_t)text;
    p->prompt_text_tokens = (int32_t)prompt_text;
    p->speech_tokens = (int32_t)speech;
    item->forced_tokens = (int32_t)forced;
    TRY(llm_prompt_check(m, p));
    TRY(mem_alloc((size_t)(forced + 1) * (size_t)llm_speech_rows(&m->shape), sizeof *item->logits, &item->logits));
    TRY(mem_alloc((size_t)(forced + 1) * (size_t)m->shape.hidden, sizeof *item->hidden, &item->hidden));
out:
    return err;
}

static cf_err emit_case(const llm_model *m, const llm_replay_item *item, size_t case_idx, parity_sink *sink)
{
    cf_err err;
    float *input = NULL;
    const int32_t rows = llm_prompt_rows(&item->prompt);
    const int64_t input_dims[] = {rows, m->shape.hidden};
    const int64_t hidden_dims[] = {item->forced_tokens + 1, m->shape.hidden};
    const int64_t logits_dims[] = {item->forced_tokens + 1, llm_speech_rows(&m->shape)};
    TRY(mem_alloc((size_t)rows * (size_t)m->shape.hidden, sizeof *input, &input));
    llm_prompt_copy(m, &item->prompt, 0, rows, input);
    TRY(parity_emit(sink, case_idx, "lm_input", 2, input_dims, input));
    TRY(parity_emit(sink, case_idx, "hidden", 2, hidden_dims, item->hidden));
    TRY(parity_emit(sink, case_idx, "logits", 2, logits_dims, item->logits));
out:
    mem_free(input);
    return err;
}

static cf_err run_group(llm_engine *e, const parity_case *const *cases, size_t count, size_t first, parity_sink *sink)
{
    cf_err err = CF_OK;
    const llm_model *m = llm_engine_model(e);
    llm_replay_item items[BATCH_CASES_MAX] = {0};
    for (size_t i = 0; i < count; i++)
        TRY(read_case(m, cases[first + i], &items[i]));
    TRY(llm_replay(e, items, (int32_t)count));
    for (size_t i = 0; i < count; i++)
        TRY(emit_case(m, &items[i], first + i, sink));
out:
    for (size_t i = 0; i < count; i++) {
        mem_free(items[i].logits);
        mem_free(items[i].hidden);
    }
    return err;
}

static cf_err run_adapter(void *ctx, const parity_case *const *cases, size_t count, parity_sink *sink)
{
    cf_err err = CF_OK;
    for (size_t first = 0; first < count; first += BATCH_CASES_MAX) {
        const size_t group = count - first < BATCH_CASES_MAX ? count - first : BATCH_CASES_MAX;
        TRY(run_group(ctx, cases, group, first, sink));
    }
out:
    return err;
}

const parity_stage parity_llm = {.stage = "llm", .open = open_adapter, .run = run_adapter, .close = close_adapter};
