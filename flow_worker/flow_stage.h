/*
 * flow_stage.h - the flow as a stage: what a worker uses is flow_stage (common/worker/stage.h); this adds what parity
 * runs and captures need beside it.
 */
#ifndef CF_FLOW_WORKER_FLOW_STAGE_H
#define CF_FLOW_WORKER_FLOW_STAGE_H

#include "common/compute/probe.h"
#include "common/worker/stage.h"
#include "flow_worker/flow_job.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Lets p see the forward passes of every job: "mu" [T, 80], "spk" [1, 80], "v1_cond", "v1_uncond", "v10_cond",
 * "v10_uncond" [T, 80], "x_1" .. "x_9" [T, 80], "mel" [frames made, 80]; row_idx is the job's id. p is borrowed; NULL
 * ends it.
 */
void flow_stage_watch(void *stage, const probe *p);

/* accept() for a job in the flow's own terms: a prompt whose frames are not twice its tokens (voice conversion). */
CF_MUST_CHECK cf_err flow_stage_accept_job(void *stage, const flow_job *job);

/* The backend, for ops outside a job. Borrowed. */
backend *flow_stage_backend(void *stage);

#ifdef __cplusplus
}
#endif
#endif
