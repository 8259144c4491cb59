/*
 * llm_slots.c - the slots behind llm_slots.h. Compute thread of an LLM worker. Owns the host's memory of what was sent.
 * Fails: what the backend says. Asserts slots.
 */
#include "llm_worker/llm_slots.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"

uint64_t llm_slots_bytes(int32_t rows_max)
{
    return (uint64_t)rows_max * (3 + LLM_PAGES_PER_SEQUENCE + RAS_STATE_WORDS) * sizeof(int32_t);
}

cf_err llm_slots_open(backend *be, int32_t rows_max, llm_slots *ret_slots)
{
    cf_err err;
    llm_slots s = {.rows_max = rows_max};
    const int64_t pages[] = {rows_max, LLM_PAGES_PER_SEQUENCE}, words[] = {rows_max, RAS_STATE_WORDS};
    TRY(backend_keep(be, DTYPE_I32, 1, pages, &s.rows));
    TRY(backend_keep(be, DTYPE_I32, 1, pages, &s.tokens));
    TRY(backend_keep(be, DTYPE_I32, 1, pages, &s.past));
    TRY(backend_keep(be, DTYPE_I32, 2, pages, &s.pages));
    TRY(backend_keep(be, DTYPE_I32, 2, words, &s.states));
    TRY(mem_alloc((size_t)rows_max, sizeof *s.rows_sent, &s.rows_sent)); /* zeros, as the kept tensors */
    TRY(mem_alloc((size_t)rows_max, sizeof *s.pages_sent, &s.pages_sent));
    *ret_slots = s;
    s = (llm_slots){0};
out:
    llm_slots_close(&s);
    return err;
}

void llm_slots_close(llm_slots *s)
{
    mem_free(s->rows_sent);
    mem_free(s->pages_sent);
}

/* One line of a tensor of slots. */
static cf_err send_line(backend *be, const tensor *of, int32_t slot, const int32_t *values)
{
    CF_ASSERT(slot >= 0 && slot < of->dims[0]);
    tensor line = tensor_rows(of, slot, 1);
    return backend_upload(be, values, &line);
}

cf_err llm_slots_begin(backend *be, llm_slots *s, int32_t slot, int32_t past, const llm_draws *draws)
{
    cf_err err;
    int32_t words[RAS_STATE_WORDS] = {0};
    words[RAS_SEED_LOW] = (int32_t)(uint32_t)draws->seed;
    words[RAS_SEED_HIGH] = (int32_t)(uint32_t)(draws->seed >> 32);
    words[RAS_SEGMENT] = (int32_t)draws->segment_idx;
    words[RAS_MIN_TOKENS] = draws->min_tokens;
    words[RAS_MASK] = (int32_t)draws->mask;
    for (int i = 0; i < RAS_WINDOW_TOKENS; i++)
        words[RAS_WINDOW + i] = -1;
    TRY(send_line(be, &s->states, slot, words));
    TRY(send_line(be, &s->past, slot, &past));
    s->pages_sent[slot] = 0;
out:
    return err;
}

cf_err llm_slots_pages(backend *be, llm_slots *s, int32_t slot, const int32_t *pages, int32_t count)
{
    cf_err err = CF_OK;
    int32_t line[LLM_PAGES_PER_SEQUENCE];
    CF_ASSERT(slot >= 0 && slot < s->rows_max && count <= LLM_PAGES_PER_SEQUENCE);
    if (s->pages_sent[slot] == count)
        return CF_OK;
    for (int32_t i = 0; i < LLM_PAGES_PER_SEQUENCE; i++)
        line[i] = i < count ? pages[i] : -1;
    TRY(send_line(be, &s->pages, slot, line));
    s->pages_sent[slot] = count;
out:
    return err;
}

cf_err llm_slots_force(backend *be, llm_slots *s, int32_t slot, int32_t token)
{
    return send_line(be, &s->tokens, slot, &token);
}

cf_err llm_slots_rows(backend *be, llm_slots *s, const int32_t *slots, int32_t count, int32_t bucket)
{
    bool changed = false;
    CF_ASSERT(count >= 1 && count <= bucket && bucket <= s->rows_max);
    for (int32_t i = 0; i < bucket; i++) {
        const int32_t slot = i < count ? slots[i] : -1;
        changed |= s->rows_sent[i] != slot;
        s->rows_sent[i] = slot;
    }
    if (!changed)
        return CF_OK;
    tensor rows = tensor_rows(&s->rows, 0, bucket);
    return backend_upload(be, s->rows_sent, &rows);
}
