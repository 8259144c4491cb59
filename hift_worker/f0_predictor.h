/* f0_predictor.h - mel frames -> fundamental frequency, in double inside as upstream. */
#ifndef CF_HIFT_WORKER_F0_PREDICTOR_H
#define CF_HIFT_WORKER_F0_PREDICTOR_H

#include "hift_worker/hift_batch.h"
#include "hift_worker/hift_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* mel: [rows of batch->mel, 80] f32   f0: [rows of batch->f0] f32, Hz, >= 0; unvoiced frames are small, not 0. */
CF_MUST_CHECK cf_err f0_predictor_run(const hift_model *m, backend *be, const hift_batch *batch, const tensor *mel,
                                      tensor *f0);

#ifdef __cplusplus
}
#endif
#endif
