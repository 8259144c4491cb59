/*
 * stage_tables.h - which tensors each stage's file holds, as a function of a few dimensions: the one list that the
 * synthetic recipe writes, `model check` compares and the stages derive their architecture from.
 */
#ifndef CF_MODEL_STAGE_TABLES_H
#define CF_MODEL_STAGE_TABLES_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "common/model/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum model_stage { MODEL_LLM, MODEL_FLOW, MODEL_HIFT, MODEL_STAGE_COUNT } model_stage;

/* "llm", "flow", "hift": also the base name of the stage's file. */
const char *model_stage_name(model_stage stage);

#define MODEL_HEAD_DIM 64 /* width of every attention head, LLM and DiT */

/* CosyVoice-BlankEN/config.json: what tensor shapes alone cannot tell. */
typedef struct model_config {
    int64_t hidden;
    int64_t layers;
    int64_t heads;
    int64_t kv_heads;
    int64_t intermediate;
    int64_t vocab_rows;
    double rope_theta;
    double rms_norm_eps;
} model_config;

typedef struct llm_dims {
    int64_t hidden;
    int64_t layers;
    int64_t heads;
    int64_t kv_heads;
    int64_t intermediate;
    int64_t text_rows;
    int64_t speech_codes; /* N: rows of the speech tables less SPEECH_CONTROLS */
} llm_dims;

typedef struct flow_dims {
    int64_t dim;
    int64_t depth;
    int64_t heads; /* dim / 64 */
    int64_t lookahead_channels;
    int64_t speech_codes; /* rows of the embedding */
} flow_dims;

typedef struct hift_dims {
    int64_t base_channels;
    int64_t f0_channels;
} hift_dims;

/* Dimensions from a file's tensors. The LLM's heads are rows of q_proj and k_proj over 64; config may be NULL, else
 * CF_ERR_MISMATCH names the first value that disagrees. CF_ERR_LIMIT for sizes no machine of ours would hold. */
CF_MUST_CHECK cf_err llm_dims_derive(const weights *w, const model_config *config, llm_dims *ret_dims);
CF_MUST_CHECK cf_err flow_dims_derive(const weights *w, flow_dims *ret_dims);
CF_MUST_CHECK cf_err hift_dims_derive(const weights *w, hift_dims *ret_dims);

typedef enum stage_tensor_kind {
    STAGE_UNIFORM, /* an ordinary tensor */
    STAGE_NORM_G,  /* weight norm magnitude: <prefix>.parametrizations.weight.original0 */
    STAGE_NORM_V,  /* weight norm direction: <prefix>.parametrizations.weight.original1 */
    STAGE_INV_FREQ /* rotary frequencies: a fixed function of the index */
} stage_tensor_kind;

/* One tensor; centre and amplitude belong to the synthetic recipe. */
typedef struct stage_tensor {
    char name[96];
    stage_tensor_kind kind;
    int rank;
    int64_t shape[3];
    double centre;
    double amplitude;
} stage_tensor;

typedef struct stage_table {
    stage_tensor *items; /* owned */
    size_t count;
    size_t capacity;
} stage_table;

/* The whole list in the order of released and synthetic files. Release with stage_table_done. */
CF_MUST_CHECK cf_err stage_table_llm(const llm_dims *dims, stage_table *ret_table);
CF_MUST_CHECK cf_err stage_table_flow(const flow_dims *dims, stage_table *ret_table);
/* f0_bias: centre of the F0 classifier's bias, a value of the recipe; any number when only names and shapes count. */
CF_MUST_CHECK cf_err stage_table_hift(const hift_dims *dims, double f0_bias, stage_table *ret_table);
void stage_table_done(stage_table *t);

/* Derives the dimensions of a stage's open file and checks every tensor of its table, then weights_done. */
CF_MUST_CHECK cf_err stage_check(weights *w, model_stage stage, const model_config *config);

#ifdef __cplusplus
}
#endif
#endif
