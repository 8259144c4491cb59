/*
 * hift_plan.c - memory of a hift worker: filters with the operands' width, upsampling as three taps a phase, the F0
 * predictor in f64, the table of noise. Any thread. Fails: as model_dir, weights and hift_dims_derive.
 */
#include "hift_worker/hift_plan.h"

#include <stdlib.h>
#include <string.h>

#include "common/model/model_dir.h"
#include "common/worker/memory_plan.h"
#include "hift_worker/hift_model.h"
#include "hift_worker/hift_shapes.h"

static double bytes_per_value(const stage_tensor *t, const stage_config *cfg)
{
    const double operand_bytes = (double)backend_value_bytes(cfg->device, cfg->operands, GEMM_BULK_BIT);
    if (t->kind == STAGE_NORM_G)
        return 0; /* folded into the direction */
    if (strncmp(t->name, "f0_predictor", 12) == 0)
        return sizeof(double);
    if (strncmp(t->name, "ups.", 4) == 0) {
        const hift_rung *rung = &HIFT_LADDER[strtol(t->name + 4, NULL, 10) % HIFT_RUNGS];
        return t->rank < 2 ? (double)rung->rate * sizeof(float)
                           : operand_bytes * (double)(rung->rate * HIFT_UPS_TAPS) / (double)rung->ups_kernel;
    }
    return t->rank >= 2 ? operand_bytes : sizeof(float);
}

cf_err hift_plan(const stage_config *cfg, stage_memory *ret_memory)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    weights *w = NULL;
    hift_dims dims;
    stage_table table = {0};
    const uint64_t library_bytes = backend_library_bytes(cfg->device);
    TRY(model_dir_stage_file(cfg->model_dir, MODEL_HIFT, false, path));
    TRY(weights_open(path, &w));
    TRY(hift_dims_derive(w, &dims));
    TRY(stage_table_hift(&dims, 0, &table));
    stage_config kept = *cfg;
    kept.operands = hift_operands(cfg->device, cfg->operands);
    *ret_memory =
        (stage_memory){.weights_bytes = memory_of_table(&table, bytes_per_value, &kept),
                       .tables_bytes = HIFT_NOISE_SAMPLES * sizeof(float),
                       .scratch_bytes = hift_model_scratch_bytes(&dims, cfg->frames_max, cfg->rows_max, kept.operands),
                       .library_bytes = library_bytes};
out:
    stage_table_done(&table);
    weights_close(w);
    return err;
}
