/*
 * llm_forward.h - the LLM as an engine: model, cache, slots and backend together, and two packed calls. Prefill takes
 * the next piece of every unfinished prompt, decode takes one token of every running sequence; both draw the next token
 * where there are logits. A sequence's bytes never depend on what else is in a call.
 *
 * On a device a step of decoding is recorded once for each bucket of rows (1, 2, 4, ... up to rows_max) and replayed;
 * the rows that fill a bucket up are inert.
 *
 *     TRY(llm_engine_open(&cfg, &e));
 *     TRY(kv_cache_claim(llm_engine_cache(e), llm_prompt_rows(&p) + tokens_max, &seq_idx));
 *     do TRY(llm_prefill(e, &item, 1)); while (item.result_idx < 0);
 *     TRY(llm_decode(e, &next, 1));                         drawn for row i: llm_engine_drawn(e, i)
 */
#ifndef CF_LLM_WORKER_LLM_FORWARD_H
#define CF_LLM_WORKER_LLM_FORWARD_H

#include "llm_worker/kv_cache.h"
#include "llm_worker/llm_model.h"
#include "llm_worker/llm_slots.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct llm_engine_config {
    const char *model_dir, *device;
    precision operands;
    bool int8_weights; /* with bf16 operands */
    int threads;       /* 0: as many as the process may use */
    bool naive;        /* the reference backend */
    bool base_weights; /* llm.pt although llm.rl.pt exists */
    int32_t rows_max;  /* sequences held at once, >= 1 */
} llm_engine_config;

typedef struct llm_engine llm_engine;

/* Opens backend, model and cache. All memory is taken here. */
CF_MUST_CHECK cf_err llm_engine_open(const llm_engine_config *cfg, llm_engine **ret_engine);
void llm_engine_close(llm_engine *e); /* NULL is fine; sequences must have been given back */

/* Borrowed; live as long as the engine. */
const llm_model *llm_engine_model(const llm_engine *e);
backend *llm_engine_backend(const llm_engine *e);
kv_cache *llm_engine_cache(const llm_engine *e); /* for claim and give_back */

/* The cache of an engine that holds so many sequences. */
kv_cache_config llm_cache_config(const llm_shape *s, int32_t rows_max);

/* Bytes that an engine keeps beside weights, rotary tables and cache: slots, results, and on a device the table of
 * speech embeddings. */
uint64_t llm_plan_kept_bytes(const llm_shape *s, int32_t rows_max, bool is_device);

/* Bytes of activations and staging at capacity; the cache is kv_cache_plan_bytes. */
uint64_t llm_plan_scratch_bytes(const llm_shape *s, int32_t rows_max);
uint64_t llm_engine_scratch_bytes(const llm_engine *e); /* that plus the cache, for this engine */

/* One unfinished prompt. */
typedef struct llm_prefill_item {
    int32_t seq_idx;
    const llm_prompt *prompt; /* borrowed */
    llm_draws draws;          /* once the prompt is complete */
    int32_t result_idx;       /* written: index of its result when the prompt is complete now, else -1 */
    bool carried;             /* written: this call advanced it */
} llm_prefill_item;

/*
 * Advances prompts in order, whole or by pieces of LLM_PREFILL_ROWS_MAX rows, until one packed call is full. Prompts
 * must be unfinished; items behind the first that does not fit are left for the next call. count >= 1; at least one
 * is carried.
 */
CF_MUST_CHECK cf_err llm_prefill(llm_engine *e, llm_prefill_item *items, int32_t count);

/* One token of a sequence whose prompt is complete. */
typedef struct llm_decode_item {
    int32_t seq_idx;
    int32_t token; /* speech id; LLM_DRAWN: the code that the sequence has drawn */
} llm_decode_item;

#define LLM_DRAWN (-1)

/* Feeds one token to each of count sequences, 1 <= count <= rows_max; result i belongs to item i. */
CF_MUST_CHECK cf_err llm_decode(llm_engine *e, const llm_decode_item *items, int32_t count);

/* What op_ras drew for result idx of the last call: an id, or RAS_REFUSED. */
int32_t llm_engine_drawn(const llm_engine *e, int32_t idx);
/* One logit of it, for the words of a refusal. */
CF_MUST_CHECK cf_err llm_engine_logit(const llm_engine *e, int32_t idx, int32_t id, float *ret_logit);

/* Brings the last call's results to the host: [llm_speech_rows] logits and, behind the final norm, [H], until the next
 * call. */
CF_MUST_CHECK cf_err llm_engine_fetch(llm_engine *e);
const float *llm_engine_logits(const llm_engine *e, int32_t idx);
const float *llm_engine_hidden(const llm_engine *e, int32_t idx);

/* Steps of decoding on a device: calls of llm_decode by how they were submitted. */
backend_record_counts llm_engine_records(const llm_engine *e);

#ifdef __cplusplus
}
#endif
#endif
