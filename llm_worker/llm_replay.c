/*
 * llm_replay.c - teacher forcing over llm_forward.h. Any one thread; owns nothing after return.
 *
 * Fails: CF_ERR_INVALID for ids out of range, CF_ERR_BUSY and CF_ERR_LIMIT of the cache, what the backend says.
 */
#include "llm_worker/llm_replay.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"

static cf_err check_item(const llm_engine *e, const llm_replay_item *item)
{
    const cf_err err = llm_prompt_check(llm_engine_model(e), &item->prompt);
    if (err != CF_OK)
        return err;
    const int32_t rows = llm_speech_rows(&llm_engine_model(e)->shape);
    for (int32_t k = 0; k < item->forced_tokens; k++)
        if (item->forced[k] < 0 || item->forced[k] >= rows)
            return err_set(CF_ERR_INVALID, "forced id %d at position %d: expected 0..%d", (int)item->forced[k], (int)k,
                           (int)rows - 1);
    return CF_OK;
}

/* Stores result result_idx of the last call as row k of the item. */
static void keep_row(const llm_engine *e, const llm_replay_item *item, int32_t k, int32_t result_idx)
{
    const size_t hidden = (size_t)llm_engine_model(e)->shape.hidden;
    const size_t rows = (size_t)llm_speech_rows(&llm_engine_model(e)->shape);
    memcpy(item->logits + (size_t)k * rows, llm_engine_logits(e, result_idx), rows * sizeof(float));
    if (item->hidden)
        memcpy(item->hidden + (size_t)k * hidden, llm_engine_hidden(e, result_idx), hidden * sizeof(float));
}

static cf_err run_prefills(llm_engine *e, const llm_replay_item *items, int32_t count, const int32_t *seqs,
                           llm_prefill_item *work)
{
    cf_err err = CF_OK;
    for (int32_t done = 0; done < count;) {
        for (int32_t i = done; i < count; i++)
            work[i] = (llm_prefill_item){.seq_idx = seqs[i], .prompt = &items[i].prompt};
        TRY(llm_prefill(e, work + done, count - done));
        TRY(llm_engine_fetch(e));
        while (done < count && work[done].result_idx >= 0) {
            keep_row(e, &items[done], 0, work[done].result_idx);
            done++;
        }
    }
out:
    return err;
}

static cf_err run_decodes(llm_engine *e, const llm_replay_item *items, int32_t count, const int32_t *seqs,
                          llm_decode_item *work)
{
    cf_err err = CF_OK;
    for (int32_t k = 0;; k++) {
        int32_t active = 0;
        for (int32_t i = 0; i < count; i++)
            if (k < items[i].forced_tokens)
                work[active++] = (llm_decode_item){.seq_idx = seqs[i], .token = items[i].forced[k]};
        if (active == 0)
            break;
        TRY(llm_decode(e, work, active));
        TRY(llm_engine_fetch(e));
        for (int32_t i = 0, result = 0; i < count; i++)
            if (k < items[i].forced_tokens)
                keep_row(e, &items[i], k + 1, result++);
    }
out:
    return err;
}

cf_err llm_replay(llm_engine *e, const llm_replay_item *items, int32_t count)
{
    cf_err err;
    int32_t *seqs = NULL, claimed = 0;
    llm_prefill_item *prefills = NULL;
    llm_decode_item *decodes = NULL;
    CF_ASSERT(count >= 1);
    TRY(mem_alloc((size_t)count, sizeof *seqs, &seqs));
    TRY(mem_alloc((size_t)count, sizeof *prefills, &prefills));
    TRY(mem_alloc((size_t)count, sizeof *decodes, &decodes));
    for (; claimed < count; claimed++) {
        const llm_replay_item *item = &items[claimed];
        TRY(check_item(e, item));
        const int64_t tokens = (int64_t)llm_prompt_rows(&item->prompt) + item->forced_tokens;
        if (tokens > SEQUENCE_TOKENS_MAX)
            FAIL(CF_ERR_LIMIT, "a sequence of %lld tokens: at most %d (SEQUENCE_TOKENS_MAX)", (long long)tokens,
                 SEQUENCE_TOKENS_MAX);
        TRY(kv_cache_claim(llm_engine_cache(e), (int32_t)tokens, &seqs[claimed]));
    }
    TRY(run_prefills(e, items, count, seqs, prefills));
    TRY(run_decodes(e, items, count, seqs, decodes));
out:
    while (claimed > 0)
        kv_cache_give_back(llm_engine_cache(e), seqs[--claimed]);
    mem_free(seqs);
    mem_free(prefills);
    mem_free(decodes);
    return err;
}
