/*
 * kv_cache.h - keys and values of running sequences, in pages of CACHE_PAGE_TOKENS tokens that are counted at open,
 * lent to sequences and given back. A page number means the same page in every layer.
 *
 * A sequence is admitted with its worst case: pages are set aside for all of it, so a running sequence never lacks
 * one. They are lent as tokens arrive, the most recently used first, so memory is touched only as far as it was
 * needed.
 */
#ifndef CF_LLM_WORKER_KV_CACHE_H
#define CF_LLM_WORKER_KV_CACHE_H

#include "llm_worker/llm_shapes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kv_cache kv_cache;

typedef struct kv_cache_config {
    int32_t layers, kv_heads;
    int32_t sequences_max; /* held at once */
    int32_t pages;         /* in the pool */
} kv_cache_config;

/* Bytes of the pool when every page is in use. */
uint64_t kv_cache_plan_bytes(const kv_cache_config *cfg);

/* Takes the pool from the backend's lasting memory; the backend must outlive the cache. */
CF_MUST_CHECK cf_err kv_cache_open(backend *be, const kv_cache_config *cfg, kv_cache **ret_cache);
void kv_cache_close(kv_cache *c); /* NULL is fine; asserts that every sequence was given back */

/* Admits a sequence of at most tokens_max >= 1 tokens. CF_ERR_BUSY when sequences or pages are in use now,
 * CF_ERR_LIMIT when the pool could never hold it. */
CF_MUST_CHECK cf_err kv_cache_claim(kv_cache *c, int32_t tokens_max, int32_t *ret_seq_idx);
void kv_cache_give_back(kv_cache *c, int32_t seq_idx);

/* Tokens whose keys and values are in the cache. */
int32_t kv_cache_past(const kv_cache *c, int32_t seq_idx);

/* Lends pages for `tokens` more tokens behind the past ones; asserts that the claim covers them. */
void kv_cache_extend(kv_cache *c, int32_t seq_idx, int32_t tokens);

/* Counts `tokens` appended tokens; extend came before. */
void kv_cache_advance(kv_cache *c, int32_t seq_idx, int32_t tokens);

/* Page numbers lent to the sequence, in order of tokens. Borrowed until the next extend or give_back. */
const int32_t *kv_cache_pages(const kv_cache *c, int32_t seq_idx, int32_t *ret_count);

/* A layer's pages: [pages, 2, kv_heads, CACHE_PAGE_TOKENS, 64] f32. Borrowed. */
tensor *kv_cache_layer(kv_cache *c, int32_t layer_idx);

int32_t kv_cache_pages_unclaimed(const kv_cache *c); /* pages no sequence has a claim to */
int32_t kv_cache_pages_touched(const kv_cache *c);   /* pages that were ever lent */

#ifdef __cplusplus
}
#endif
#endif
