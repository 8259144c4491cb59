/*
 * parity_flow.c - flow cases through the stage that workers run, watched by a probe.
 * Command line only; owns the stage and, during a run, one list of solver states per case.
 * Fails: as flow_stage and the readers of a case.
 * Source: cases.md 2; the layouts are upstream's [80, T], the stage's are time-major.
 */
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "flow_worker/cfm_solver.h"
#include "flow_worker/flow_stage.h"
#include "tools/parity.h"
#include "tools/parity_mel.h"

#define SOLVER_STATES (CFM_STEPS - 1) /* x after the last step is the mel */

typedef struct flow_case {
    flow_job job;
    float *mel;     /* owned; what the job writes */
    float *x_steps; /* [9, 80, T], owned */
} flow_case;

typedef struct flow_run {
    void *stage;
    parity_sink *sink;
    flow_case *cases; /* [count], owned */
    size_t count;
    cf_err err; /* the first failure inside the probe, which cannot return one */
} flow_run;

static cf_err case_prepare(const parity_case *c, size_t case_idx, flow_case *ret_case)
{
    cf_err err = CF_OK;
    flow_job *job = &ret_case->job;
    *job = (flow_job){.job_id = case_idx, .streaming = parity_mel_flag(c, "streaming"), .speed = 1.0};
    TRY(parity_mel_inputs(c, &job->in));
    job->in.finalize = parity_mel_flag(c, "finalize");
    const int64_t frames = flow_inputs_frames(&job->in);
    const size_t values = (size_t)(frames > 0 ? frames : 0) * MEL_BINS;
    TRY(mem_alloc(values, sizeof(float), &ret_case->mel));
    TRY(mem_alloc(values * SOLVER_STATES, sizeof(float), &ret_case->x_steps));
    job->out = ret_case->mel;
    job->out_bytes = values * sizeof(float);
out:
    return err;
}

static cf_err run_emit(flow_run *run, size_t case_idx, const char *name, const int64_t *dims, const float *data)
{
    flow_case *c = &run->cases[case_idx];
    int step;
    if (strcmp(name, "spk") == 0)
        return parity_emit(run->sink, case_idx, name, 1, &dims[1], data);
    if (sscanf(name, "x_%d", &step) != 1)
        return parity_mel_emit(run->sink, case_idx, name, dims[0], data);
    CF_ASSERT(step >= 1 && step <= SOLVER_STATES);
    parity_mel_transpose(data, dims[0], dims[1], c->x_steps + (step - 1) * dims[0] * dims[1]);
    if (step < SOLVER_STATES)
        return CF_OK;
    return parity_emit(run->sink, case_idx, "x_steps", 3, (const int64_t[]){SOLVER_STATES, dims[1], dims[0]},
                       c->x_steps);
}

static void run_watch(void *ctx, int32_t row_idx, const char *name, int rank, const int64_t *dims, const float *data)
{
    flow_run *run = ctx;
    CF_ASSERT(rank == 2 && row_idx >= 0 && (size_t)row_idx < run->count);
    if (run->err == CF_OK)
        run->err = run_emit(run, (size_t)row_idx, name, dims, data);
}

static cf_err run_accept(void *ctx, size_t job_idx)
{
    flow_run *run = ctx;
    return flow_stage_accept_job(run->stage, &run->cases[job_idx].job);
}

static cf_err flow_parity_open(const parity_options *opt, void **ret_ctx)
{
    return parity_stage_open(&flow_stage, opt, ret_ctx);
}

static cf_err flow_parity_run(void *ctx, const parity_case *const *cases, size_t count, parity_sink *sink)
{
    cf_err err = CF_OK;
    flow_run run = {.stage = ctx, .sink = sink, .count = count};
    const probe watch = {.ctx = &run, .emit = run_watch};
    cfm_grid grid;
    cfm_grid_init(&grid);
    TRY(mem_alloc(count, sizeof *run.cases, &run.cases));
    for (size_t i = 0; i < count; i++) {
        TRY(case_prepare(cases[i], i, &run.cases[i]));
        TRY(parity_emit(sink, i, "t", 1, (const int64_t[]){CFM_STEPS}, grid.t));
    }
    flow_stage_watch(ctx, &watch);
    TRY(parity_jobs_run(
        &(parity_jobs){.ops = &flow_stage, .stage = ctx, .count = count, .accept = run_accept, .ctx = &run}));
    TRY(run.err);
out:
    flow_stage_watch(ctx, NULL);
    for (size_t i = 0; run.cases != NULL && i < count; i++) {
        mem_free(run.cases[i].mel);
        mem_free(run.cases[i].x_steps);
    }
    mem_free(run.cases);
    return err;
}

static void flow_parity_close(void *ctx)
{
    flow_stage.close(ctx);
}

const parity_stage parity_flow = {
    .stage = "flow", .open = flow_parity_open, .run = flow_parity_run, .close = flow_parity_close};
