/*
 * llm_model.h - the LLM's weights on one backend, its rotary tables, and the embedding rows that make up an input.
 *
 * Linear weights are packed at open; the embedding tables stay in the model file's mapping and are read row by row.
 */
#ifndef CF_LLM_WORKER_LLM_MODEL_H
#define CF_LLM_WORKER_LLM_MODEL_H

#include <stdbool.h>

#include "common/base/sha256.h"
#include "llm_worker/llm_shapes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct llm_layer {
    tensor norm_in, norm_post; /* [H] */
    tensor qkv_bias;           /* [llm_qkv_channels] */
    weight *qkv;               /* [llm_qkv_channels, H]: q, k, v one behind the other */
    weight *o;                 /* [H, heads * 64] */
    weight *gate_up;           /* [2I, H]: gate, then up */
    weight *down;              /* [H, I] */
} llm_layer;

typedef struct llm_model {
    llm_shape shape;
    llm_layer *layers;         /* owned, [L] */
    tensor norm_out;           /* [H] */
    weight *head;              /* [speech rows, H], decode tiles only */
    tensor rope_cos, rope_sin; /* [SEQUENCE_TOKENS_MAX, 32] */
    const float *text_table;   /* [text_rows, H] f32, in the mapping */
    const float *speech_table; /* [speech rows, H] f32, in the mapping */
    struct weights *file;      /* owned: keeps the mapping */
    char path[256];            /* of the model file, its end when longer */
    char sha256[SHA256_HEX_BYTES];
} llm_model;

/* How the matrices of a model are packed; kinds: GEMM_*_BIT. */
typedef struct llm_packing {
    precision operands;
    unsigned layer_kinds, head_kinds;
} llm_packing;

llm_packing llm_packing_of(precision operands, bool int8_weights);

typedef struct llm_model_config {
    const char *model_dir;
    bool base_weights; /* take llm.pt although llm.rl.pt exists */
    precision operands;
    bool int8_weights; /* of the matrices; operands are bf16 then */
} llm_model_config;

/* Finds, maps, checks, hashes and packs the model. Errors name the file and the tensor or the configuration key.
 * Packed weights belong to the backend, which must outlive the model. */
CF_MUST_CHECK cf_err llm_model_open(backend *be, const llm_model_config *cfg, llm_model **ret_model);
void llm_model_close(llm_model *m); /* NULL is fine */

/*
 * What a sequence begins with (llm.md 4.1): sos, prompt text, text, task, prompt speech. Pointers are borrowed.
 * Counts may be zero. Ids must be in range: llm_prompt_check.
 */
typedef struct llm_prompt {
    const int32_t *prompt_text, *text, *speech;
    int32_t prompt_text_tokens, text_tokens, speech_tokens;
    const float *text_embeds; /* [text_tokens, H] instead of ids of prompt_text and text: captures. NULL otherwise */
} llm_prompt;

int32_t llm_prompt_rows(const llm_prompt *p);

/* All ids within the model's tables, prompt speech within the codes: CF_ERR_INVALID names list, position and id. */
CF_MUST_CHECK cf_err llm_prompt_check(const llm_model *m, const llm_prompt *p);

/* Rows [first, first + count) of the prompt's embedding into ret_rows: [count, H]. */
void llm_prompt_copy(const llm_model *m, const llm_prompt *p, int32_t first, int32_t count, float *ret_rows);

/* A speech token's embedding: [H], borrowed from the model. */
const float *llm_speech_row(const llm_model *m, int32_t id);

#ifdef __cplusplus
}
#endif
#endif
