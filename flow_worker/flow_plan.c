/*
 * flow_plan.c - memory of a flow worker: matrices of the estimator with the operands' width, the token encoder in f32;
 * tables of noise, rope and modulations; the state of the frames that it holds. What modulations are computed from is
 * read once and not kept. Any thread. Fails: as model_dir, weights and flow_dims_derive.
 */
#include "flow_worker/flow_plan.h"

#include <string.h>

#include "common/model/model_dir.h"
#include "common/worker/memory_plan.h"
#include "flow_worker/cfm_solver.h"
#include "flow_worker/flow_model.h"
#include "flow_worker/flow_shapes.h"
#include "flow_worker/modulation.h"

#define ANGLES (2 * FLOW_ROPE_PAIRS) /* cos, sin of a frame */

static double bytes_per_value(const stage_tensor *t, const stage_config *cfg)
{
    if (strstr(t->name, "attn_norm") || strstr(t->name, "norm_out") || strstr(t->name, "time_embed") ||
        strstr(t->name, "spk_embed") || t->kind == STAGE_INV_FREQ)
        return 0;
    if (strncmp(t->name, "input_embedding", 15) == 0 || strncmp(t->name, "pre_lookahead", 13) == 0)
        return sizeof(float);
    return t->rank >= 2 ? (double)backend_value_bytes(cfg->device, cfg->operands, GEMM_BULK_BIT) : sizeof(float);
}

cf_err flow_plan(const stage_config *cfg, stage_memory *ret_memory)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    weights *w = NULL;
    flow_dims dims;
    stage_table table = {0};
    const uint64_t frames = cfg->frames_max > FRAMES_MAX ? (uint64_t)cfg->frames_max : FRAMES_MAX;
    TRY(model_dir_stage_file(cfg->model_dir, MODEL_FLOW, false, path));
    TRY(weights_open(path, &w));
    TRY(flow_dims_derive(w, &dims));
    TRY(stage_table_flow(&dims, &table));
    const uint64_t state_values = 2 * MEL_BINS * (3 * frames + (uint64_t)cfg->rows_max); /* flow_pack.c: both sides */
    const uint64_t table_values =
        (uint64_t)FRAMES_MAX * (ANGLES + MEL_BINS + 1) + (uint64_t)CFM_STEPS * (uint64_t)modulation_line_values(&dims);
    *ret_memory = (stage_memory){.weights_bytes = memory_of_table(&table, bytes_per_value, cfg),
                                 .tables_bytes = (state_values + table_values) * sizeof(float),
                                 .scratch_bytes = flow_model_scratch_bytes(&dims, cfg->frames_max),
                                 .library_bytes = backend_library_bytes(cfg->device)};
out:
    stage_table_done(&table);
    weights_close(w);
    return err;
}
