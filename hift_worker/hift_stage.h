/*
 * hift_stage.h - the vocoder as a stage. What a worker uses is hift_stage (common/worker/stage.h), which renders whole
 * utterances: every job accepted is finished by the step that takes it.
 */
#ifndef CF_HIFT_WORKER_HIFT_STAGE_H
#define CF_HIFT_WORKER_HIFT_STAGE_H

#include "common/worker/stage.h"
#include "hift_worker/hift_batch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Samples that a job gives: stage_samples(frames) when it is final, 8 frames less otherwise. */
static inline int64_t hift_job_samples(const stage_job *job)
{
    return hift_span_samples((hift_span){.frames = job->frames, .finalize = job->finalize});
}

#ifdef __cplusplus
}
#endif
#endif
