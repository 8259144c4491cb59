/*
 * llm_plan.c - memory of a llm worker: matrices as the device packs them, vectors in f32, rope tables, the cache.
 * Text embeddings stay in the file's mapping, on a CPU those of speech as well. Any thread.
 * Fails: as model_dir, weights and llm_dims_derive.
 */
#include "llm_worker/llm_plan.h"

#include <string.h>

#include "common/model/model_dir.h"
#include "common/worker/memory_plan.h"
#include "llm_worker/llm_forward.h"
#include "llm_worker/llm_model.h"

static double bytes_per_value(const stage_tensor *t, const stage_config *cfg)
{
    if (strstr(t->name, "embed_tokens") || strstr(t->name, "lm_head") || strstr(t->name, "speech_embedding"))
        return 0;
    if (t->rank < 2)
        return sizeof(float);
    const llm_packing how = llm_packing_of(cfg->operands, cfg->int8_weights);
    return (double)backend_value_bytes(cfg->device, cfg->operands,
                                       strstr(t->name, ".layers.") ? how.layer_kinds : how.head_kinds);
}

cf_err llm_plan(const stage_config *cfg, stage_memory *ret_memory)
{
    cf_err err;
    model_config config;
    char path[IO_PATH_BYTES];
    weights *w = NULL;
    llm_dims dims;
    stage_table table = {0};
    TRY(model_dir_stage_file(cfg->model_dir, MODEL_LLM, cfg->base_weights, path));
    TRY(model_dir_config(cfg->model_dir, &config));
    TRY(weights_open(path, &w));
    TRY(llm_dims_derive(w, &config, &dims));
    TRY(stage_table_llm(&dims, &table));
    const llm_shape shape = {.hidden = (int32_t)dims.hidden,
                             .layers = (int32_t)dims.layers,
                             .heads = (int32_t)dims.heads,
                             .kv_heads = (int32_t)dims.kv_heads,
                             .intermediate = (int32_t)dims.intermediate,
                             .speech_codes = (int32_t)dims.speech_codes};
    const uint64_t library_bytes = backend_library_bytes(cfg->device);
    const kv_cache_config cache = llm_cache_config(&shape, cfg->rows_max);
    *ret_memory = (stage_memory){.weights_bytes = memory_of_table(&table, bytes_per_value, cfg),
                                 .tables_bytes = kv_cache_plan_bytes(&cache) +
                                                 llm_plan_kept_bytes(&shape, cfg->rows_max, library_bytes > 0) +
                                                 2 * sizeof(float) * (uint64_t)SEQUENCE_TOKENS_MAX * LLM_ROPE_PAIRS,
                                 .scratch_bytes = llm_plan_scratch_bytes(&shape, cfg->rows_max),
                                 .library_bytes = library_bytes};
out:
    stage_table_done(&table);
    weights_close(w);
    return err;
}
