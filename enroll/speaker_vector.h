/*
 * speaker_vector.h - Kaldi filter bank energies -> 192 values that say who speaks: CAM++ of campplus.onnx on our ops,
 * f32.
 */
#ifndef CF_ENROLL_SPEAKER_VECTOR_H
#define CF_ENROLL_SPEAKER_VECTOR_H

#include "common/base/limits.h"
#include "common/compute/backend.h"
#include "common/model/onnx.h"
#include "enroll/features.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct speaker_network speaker_network;

/* Binds the weights; sizes come from the tensors. file and backend outlive the object. CF_ERR_NOTFOUND or
 * CF_ERR_MISMATCH name file and tensor or node when it is another network. */
CF_MUST_CHECK cf_err speaker_network_open(backend *be, const onnx *file, speaker_network **ret_network);
void speaker_network_close(speaker_network *s); /* NULL is fine */

#define SPEAKER_FRAMES_MIN 3 /* the deviation over time needs two frames after the network halved them */

/* fbank: [frames, 80], mean removed -> ret_vector, as the network gives it, not normalised. CF_ERR_INVALID below
 * SPEAKER_FRAMES_MIN frames, CF_ERR_NUMERIC when the output is not finite. */
CF_MUST_CHECK cf_err speaker_network_run(speaker_network *s, const frame_table *fbank,
                                         float ret_vector[SPEAKER_VALUES]);

/* "12+24+16 layers, growth 32, last segment divided by its own length" for a log line. */
void speaker_network_describe(const speaker_network *s, char *ret_text, size_t text_bytes);

#ifdef __cplusplus
}
#endif
#endif
