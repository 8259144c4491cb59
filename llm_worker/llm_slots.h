/*
 * llm_slots.h - what decoding knows of the sequences an engine holds, kept on the backend: a slot for each sequence of
 * the cache, by its number. Ops move it from step to step (op_step_rows, op_ras); the host writes when a sequence
 * begins, gets a page, or leaves its place among the rows, and reads drawn ids alone.
 */
#ifndef CF_LLM_WORKER_LLM_SLOTS_H
#define CF_LLM_WORKER_LLM_SLOTS_H

#include "llm_worker/llm_shapes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a sequence draws from; zero: seed 0, no minimum. */
typedef struct llm_draws {
    uint64_t seed;
    uint32_t segment_idx;
    int32_t min_tokens; /* below so many codes `mask` holds */
    ras_mask mask;
} llm_draws;

typedef struct llm_slots {
    tensor rows;         /* [rows_max] i32: slot of each row of a step, -1: inert */
    tensor tokens, past; /* [rows_max] i32: the newest code; cached tokens */
    tensor pages;        /* [rows_max, LLM_PAGES_PER_SEQUENCE] i32 */
    tensor states;       /* [rows_max, RAS_STATE_WORDS] i32 */
    int32_t rows_max;
    int32_t *rows_sent;  /* owned, [rows_max]: what `rows` holds */
    int32_t *pages_sent; /* owned, [rows_max]: pages that a slot's line holds */
} llm_slots;

CF_MUST_CHECK cf_err llm_slots_open(backend *be, int32_t rows_max, llm_slots *ret_slots);
void llm_slots_close(llm_slots *s); /* tensors are the backend's */
uint64_t llm_slots_bytes(int32_t rows_max);

/* A sequence of `past` cached tokens begins to draw; nothing of the slot's last one is left. */
CF_MUST_CHECK cf_err llm_slots_begin(backend *be, llm_slots *s, int32_t slot, int32_t past, const llm_draws *draws);

/* The slot's lent pages; sent when they are more than before. */
CF_MUST_CHECK cf_err llm_slots_pages(backend *be, llm_slots *s, int32_t slot, const int32_t *pages, int32_t count);

/* Makes a code the slot's newest, instead of the one that it has drawn. */
CF_MUST_CHECK cf_err llm_slots_force(backend *be, llm_slots *s, int32_t slot, int32_t token);

/* Slots of the next step's rows, behind them inert rows up to `bucket`; sent when they have changed. */
CF_MUST_CHECK cf_err llm_slots_rows(backend *be, llm_slots *s, const int32_t *slots, int32_t count, int32_t bucket);

#ifdef __cplusplus
}
#endif
#endif
