/*
 * hift_batch.h - how long each utterance of a packed batch is at every place of the vocoder. Pure arithmetic: the rule
 * which frames a call that is not the last one keeps back lives here and nowhere else.
 */
#ifndef CF_HIFT_WORKER_HIFT_BATCH_H
#define CF_HIFT_WORKER_HIFT_BATCH_H

#include <stdbool.h>

#include "common/compute/backend.h"
#include "hift_worker/hift_shapes.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HIFT_BATCH_ROWS_MAX JOBS_PER_MEMBER_MAX

/* One utterance as far as lengths go. */
typedef struct hift_span {
    int32_t frames; /* M, mel frames given: HIFT_FRAMES_MIN or HIFT_FRAMES_MIN_OPEN .. FRAMES_MAX */
    bool finalize;  /* no more frames follow: zeros do */
} hift_span;

/* Lengths with finalize / without. Offsets lie in scratch. */
typedef struct hift_batch {
    op_rows mel;                /* M */
    op_rows f0;                 /* M      / M - 3 */
    op_rows source;             /* 480 per row of f0 */
    op_rows stft;               /* 120 per row of f0, + 1 */
    op_rows body;               /* M      / M - 7: what conv_pre makes */
    op_rows raised[HIFT_RUNGS]; /* behind the upsampling of each rung: 8, 40, 120 per row of body */
    op_rows lines;              /* 120 per row of body, + 1: the last rung with its reflected row, and conv_post */
    op_rows audio;              /* 480 M  / 480 (M - 8) */
} hift_batch;

/* spans: [count], 1 .. HIFT_BATCH_ROWS_MAX; lengths out of range are asserted. */
CF_MUST_CHECK cf_err hift_batch_init(backend *be, const hift_span *spans, int32_t count, hift_batch *ret_batch);

/* Samples that come out of one utterance. */
int64_t hift_span_samples(hift_span s);

/* f0 values and source frames of one utterance. */
int32_t hift_span_f0_frames(hift_span s);

#ifdef __cplusplus
}
#endif
#endif
