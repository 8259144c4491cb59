/* hift_decoder.h - mel and harmonic source -> samples: the convolutional ladder between two short Fourier transforms.
 * */
#ifndef CF_HIFT_WORKER_HIFT_DECODER_H
#define CF_HIFT_WORKER_HIFT_DECODER_H

#include "common/compute/probe.h"
#include "hift_worker/hift_batch.h"
#include "hift_worker/hift_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * mel: [rows of batch->mel, 80]   source: [rows of batch->source]   audio: [rows of batch->audio] within +-0.99
 * p (may be NULL) sees, row_idx being the place in the batch: "conv_pre" [rows of body, B], "conv_post" [rows of
 * lines, 18]. NaN in a sequence stays in that sequence and reaches its audio.
 */
CF_MUST_CHECK cf_err hift_decoder_run(const hift_model *m, backend *be, const hift_batch *batch, const tensor *mel,
                                      const tensor *source, const probe *p, tensor *audio);

#ifdef __cplusplus
}
#endif
#endif
