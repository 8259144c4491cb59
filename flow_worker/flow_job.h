/*
 * flow_job.h - one utterance at the flow: what is asked, whether it can be done, how many frames it takes. Pure.
 */
#ifndef CF_FLOW_WORKER_FLOW_JOB_H
#define CF_FLOW_WORKER_FLOW_JOB_H

#include "common/worker/stage.h"
#include "flow_worker/token_encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

#define FLOW_SPEED_MIN 0.5
#define FLOW_SPEED_MAX 2.0

typedef struct flow_job {
    uint64_t job_id;
    flow_inputs in; /* pointers borrowed until the job's result or its cancellation */
    bool streaming; /* block-causal attention, 50 frames a block */
    double speed;   /* frames made = int(frames generated / speed) */
    float *out;     /* [out_frames, 80], borrowed */
    bool out_on_device;
    size_t out_bytes;

    /* Filled by flow_job_check. */
    int32_t frames;     /* of the whole sequence, prompt included */
    int32_t out_frames; /* behind the prompt, after the change of speed */
} flow_job;

/* A worker's job in the flow's terms; no voice means no prompt and a zero speaker vector. */
flow_job flow_job_from(const stage_job *job);

/* Checks everything that could make the job fail later, and fills the derived members. speech_codes: of the model.
 * CF_ERR_INVALID for ids, counts, speed and memory that do not fit; CF_ERR_LIMIT beyond 15000 frames. The text says
 * what, expected and found. */
CF_MUST_CHECK cf_err flow_job_check(int64_t speech_codes, flow_job *job);

#ifdef __cplusplus
}
#endif
#endif
