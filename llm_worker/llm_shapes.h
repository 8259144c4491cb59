/*
 * llm_shapes.h - dimensions of the LLM and what follows from them. Sizes come from a model's tensors; what never
 * changes between models is a constant here.
 */
#ifndef CF_LLM_WORKER_LLM_SHAPES_H
#define CF_LLM_WORKER_LLM_SHAPES_H

#include <stdint.h>

#include "common/base/limits.h"
#include "common/compute/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LLM_HEAD_DIM   64
#define LLM_ROPE_PAIRS (LLM_HEAD_DIM / 2)

/* Prompt rows in one packed prefill call, and the piece into which a longer prompt is cut. It bounds scratch and the
 * time that running rows wait for newcomers; the cut depends on the sequence alone, so bytes do not depend on
 * neighbours. */
#define LLM_PREFILL_ROWS_MAX 1024

/* Pages of the longest sequence that limits.h permits. */
#define LLM_PAGES_PER_SEQUENCE ((SEQUENCE_TOKENS_MAX + CACHE_PAGE_TOKENS - 1) / CACHE_PAGE_TOKENS)

/* Pages in the pool for each row held at once: a segment of 80 text tokens with a 30 s prompt at its worst case,
 * 2 + 22 + 80 + 750 + 20 * 80 = 2454 tokens, takes 39. The pool never has less than one longest sequence. */
#define LLM_PAGES_PER_ROW 40

typedef struct llm_shape {
    int32_t hidden;       /* H */
    int32_t layers;       /* L */
    int32_t heads;        /* query heads; heads * 64 channels */
    int32_t kv_heads;     /* each serves heads / kv_heads query heads */
    int32_t intermediate; /* I */
    int32_t text_rows;    /* rows of the text table */
    int32_t speech_codes; /* N, at most SPEECH_CODES */
    double rope_theta;
    float rms_eps;
} llm_shape;

/* Rows of the speech table and of the head: codes, then control ids. */
static inline int32_t llm_speech_rows(const llm_shape *s)
{
    return s->speech_codes + SPEECH_CONTROLS;
}

/* Channels of the fused projection: all query heads, then key heads, then value heads. */
static inline int32_t llm_qkv_channels(const llm_shape *s)
{
    return (s->heads + 2 * s->kv_heads) * LLM_HEAD_DIM;
}

/* Weights that one decode step multiplies by, whatever the rows: matrices of all layers and the head. */
static inline uint64_t llm_step_values(const llm_shape *s)
{
    const uint64_t hidden = (uint64_t)s->hidden, q = (uint64_t)s->heads * LLM_HEAD_DIM;
    const uint64_t layer = (uint64_t)llm_qkv_channels(s) + q + 3 * (uint64_t)s->intermediate;
    return ((uint64_t)s->layers * layer + SPEECH_ROWS) * hidden;
}

#ifdef __cplusplus
}
#endif
#endif
