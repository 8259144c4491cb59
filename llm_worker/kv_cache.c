/*
 * kv_cache.c - the page pool behind kv_cache.h. Compute thread of an LLM worker. Owns page tables and counters; the
 * pages themselves belong to the backend.
 *
 *     pages = free_count + sum of lent      unclaimed = pages - sum of claimed >= 0      lent <= claimed of each
 *
 * Free pages form a stack: what was given back last is lent first.
 *
 * Fails: CF_ERR_BUSY, CF_ERR_LIMIT from claim; CF_ERR_NOMEM from open. Asserts sequence numbers, claims and balance.
 */
#include "llm_worker/kv_cache.h"

#include "common/base/check.h"
#include "common/base/mem.h"

typedef struct kv_sequence {
    bool held;
    int32_t claimed, lent; /* pages */
    int32_t past;          /* tokens */
    int32_t *pages;        /* [LLM_PAGES_PER_SEQUENCE], into the cache's tables */
} kv_sequence;

struct kv_cache {
    kv_cache_config cfg;
    kv_sequence *sequences; /* owned, [sequences_max] */
    int32_t *tables;        /* owned, [sequences_max, LLM_PAGES_PER_SEQUENCE] */
    int32_t *free_pages;    /* owned, [pages]: a stack */
    tensor *layers;         /* owned descriptions, [layers]; data is the backend's */
    int32_t free_count, unclaimed, held, touched;
};

static int32_t pages_for(int32_t tokens)
{
    return (tokens + CACHE_PAGE_TOKENS - 1) / CACHE_PAGE_TOKENS;
}

uint64_t kv_cache_plan_bytes(const kv_cache_config *cfg)
{
    const uint64_t page_floats = (uint64_t)cfg->kv_heads * (2 * CACHE_PAGE_TOKENS * LLM_HEAD_DIM);
    return (uint64_t)cfg->layers * (uint64_t)cfg->pages * page_floats * sizeof(float);
}

static cf_err open_tables(kv_cache *c)
{
    cf_err err;
    const size_t sequences = (size_t)c->cfg.sequences_max;
    TRY(mem_alloc(sequences, sizeof *c->sequences, &c->sequences));
    TRY(mem_alloc(sequences * LLM_PAGES_PER_SEQUENCE, sizeof *c->tables, &c->tables));
    TRY(mem_alloc((size_t)c->cfg.pages, sizeof *c->free_pages, &c->free_pages));
    TRY(mem_alloc((size_t)c->cfg.layers, sizeof *c->layers, &c->layers));
    for (int32_t i = 0; i < c->cfg.sequences_max; i++)
        c->sequences[i].pages = c->tables + (size_t)i * LLM_PAGES_PER_SEQUENCE;
    for (int32_t i = 0; i < c->cfg.pages; i++)
        c->free_pages[i] = c->cfg.pages - 1 - i; /* page 0 is lent first */
    c->free_count = c->unclaimed = c->cfg.pages;
out:
    return err;
}

cf_err kv_cache_open(backend *be, const kv_cache_config *cfg, kv_cache **ret_cache)
{
    cf_err err;
    kv_cache *c = NULL;
    const int64_t dims[] = {cfg->pages, 2, cfg->kv_heads, CACHE_PAGE_TOKENS, LLM_HEAD_DIM};
    CF_ASSERT(cfg->layers > 0 && cfg->kv_heads > 0);
    CF_ASSERT(cfg->sequences_max > 0 && cfg->pages > 0);
    TRY(mem_alloc(1, sizeof *c, &c));
    c->cfg = *cfg;
    TRY(open_tables(c));
    for (int32_t i = 0; i < cfg->layers; i++)
        TRY(backend_keep(be, DTYPE_F32, 5, dims, &c->layers[i]));
    *ret_cache = c;
    c = NULL;
out:
    kv_cache_close(c);
    return err;
}

void kv_cache_close(kv_cache *c)
{
    if (!c)
        return;
    CF_ASSERT(c->held == 0 && c->unclaimed == c->free_count);
    mem_free(c->sequences);
    mem_free(c->tables);
    mem_free(c->free_pages);
    mem_free(c->layers);
    mem_free(c);
}

cf_err kv_cache_claim(kv_cache *c, int32_t tokens_max, int32_t *ret_seq_idx)
{
    CF_ASSERT(tokens_max >= 1);
    const int32_t pages = pages_for(tokens_max);
    if (tokens_max > SEQUENCE_TOKENS_MAX)
        return err_set(CF_ERR_LIMIT, "a sequence of %d tokens: at most %d (SEQUENCE_TOKENS_MAX)", (int)tokens_max,
                       SEQUENCE_TOKENS_MAX);
    if (pages > c->cfg.pages)
        return err_set(CF_ERR_LIMIT, "a sequence of %d tokens needs %d cache pages: the pool has %d", (int)tokens_max,
                       (int)pages, (int)c->cfg.pages);
    if (c->held == c->cfg.sequences_max)
        return err_set(CF_ERR_BUSY, "all %d sequences of the cache are in use", (int)c->cfg.sequences_max);
    if (pages > c->unclaimed)
        return err_set(CF_ERR_BUSY, "a sequence of %d tokens needs %d cache pages: %d of %d are unclaimed",
                       (int)tokens_max, (int)pages, (int)c->unclaimed, (int)c->cfg.pages);
    int32_t idx = 0;
    while (c->sequences[idx].held)
        idx++;
    kv_sequence *s = &c->sequences[idx];
    s->held = true;
    s->claimed = pages;
    s->lent = s->past = 0;
    c->unclaimed -= pages;
    c->held++;
    *ret_seq_idx = idx;
    return CF_OK;
}

static kv_sequence *sequence_of(const kv_cache *c, int32_t seq_idx)
{
    CF_ASSERT(seq_idx >= 0 && seq_idx < c->cfg.sequences_max);
    CF_ASSERT(c->sequences[seq_idx].held);
    return &c->sequences[seq_idx];
}

void kv_cache_give_back(kv_cache *c, int32_t seq_idx)
{
    kv_sequence *s = sequence_of(c, seq_idx);
    while (s->lent > 0) /* backwards: the page lent first is on top again */
        c->free_pages[c->free_count++] = s->pages[--s->lent];
    c->unclaimed += s->claimed;
    c->held--;
    s->held = false;
    CF_ASSERT(c->free_count <= c->cfg.pages && c->unclaimed <= c->cfg.pages);
}

int32_t kv_cache_past(const kv_cache *c, int32_t seq_idx)
{
    return sequence_of(c, seq_idx)->past;
}

void kv_cache_extend(kv_cache *c, int32_t seq_idx, int32_t tokens)
{
    kv_sequence *s = sequence_of(c, seq_idx);
    const int32_t need = pages_for(s->past + tokens);
    CF_ASSERT(need <= s->claimed);
    while (s->lent < need) {
        CF_ASSERT(c->free_count > 0);
        const int32_t page = c->free_pages[--c->free_count];
        if (page >= c->touched)
            c->touched = page + 1;
        s->pages[s->lent++] = page;
    }
}

void kv_cache_advance(kv_cache *c, int32_t seq_idx, int32_t tokens)
{
    kv_sequence *s = sequence_of(c, seq_idx);
    s->past += tokens;
    CF_ASSERT(pages_for(s->past) <= s->lent);
}

const int32_t *kv_cache_pages(const kv_cache *c, int32_t seq_idx, int32_t *ret_count)
{
    const kv_sequence *s = sequence_of(c, seq_idx);
    *ret_count = s->lent;
    return s->pages;
}

tensor *kv_cache_layer(kv_cache *c, int32_t layer_idx)
{
    CF_ASSERT(layer_idx >= 0 && layer_idx < c->cfg.layers);
    return &c->layers[layer_idx];
}

int32_t kv_cache_pages_unclaimed(const kv_cache *c)
{
    return c->unclaimed;
}

int32_t kv_cache_pages_touched(const kv_cache *c)
{
    return c->touched;
}
