/*
 * parity_mel.h - what the adapters of flow, stream and speed share: inputs of a case, mel layouts, running jobs.
 */
#ifndef CF_TOOLS_PARITY_MEL_H
#define CF_TOOLS_PARITY_MEL_H

#include "common/worker/stage.h"
#include "flow_worker/token_encoder.h"
#include "tools/parity.h"

/* Jobs that one step of a parity run may carry. */
#define PARITY_ROWS_MAX   64
#define PARITY_FRAMES_MAX (2 * FRAMES_MAX)

/* Tokens, prompt and speaker of a flow or stream case; finalize is left to the caller. Pointers are the case's. */
CF_MUST_CHECK cf_err parity_mel_inputs(const parity_case *c, flow_inputs *ret_in);

/* dst: [cols, rows] = transposed src: [rows, cols] */
void parity_mel_transpose(const float *src, int64_t rows, int64_t cols, float *dst);

/* Emits time-major values [frames, 80] as [80, frames]. */
CF_MUST_CHECK cf_err parity_mel_emit(parity_sink *sink, size_t case_idx, const char *name, int64_t frames,
                                     const float *values);

/* A metadata flag that is "1". */
bool parity_mel_flag(const parity_case *c, const char *key);

/* Opens a stage for parity: wide enough that cases travel together. */
CF_MUST_CHECK cf_err parity_stage_open(const stage_ops *ops, const parity_options *opt, void **ret_stage);

/* Gives jobs [0, count) to a stage in order, as many at once as it takes, and steps until all have ended.
 * accept(ctx, i): gives job i, whose id is i; samples[i] or frames[i] of the result go to ret_units[i] (may be NULL).
 * The first job that fails ends the run with its error; the stage holds nothing afterwards. */
typedef struct parity_jobs {
    const stage_ops *ops;
    void *stage;
    size_t count;
    cf_err (*accept)(void *ctx, size_t job_idx);
    void *ctx;
    int64_t *ret_units;
} parity_jobs;
CF_MUST_CHECK cf_err parity_jobs_run(const parity_jobs *jobs);

#endif
