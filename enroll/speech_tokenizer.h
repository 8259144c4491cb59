/*
 * speech_tokenizer.h - whisper log-mel -> speech tokens: the encoder of speech_tokenizer_v3.onnx on our ops, f32.
 *
 * 100 mel frames/s -> two strided convolutions -> 25 tokens/s in [0, 6561). Attention spans the whole recording.
 */
#ifndef CF_ENROLL_SPEECH_TOKENIZER_H
#define CF_ENROLL_SPEECH_TOKENIZER_H

#include <stdint.h>

#include "common/compute/backend.h"
#include "common/model/onnx.h"
#include "enroll/features.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct speech_tokenizer speech_tokenizer;

/* Binds the weights; sizes come from the tensors. file and backend outlive the object: the big matrices stay in the
 * file. CF_ERR_NOTFOUND or CF_ERR_MISMATCH name file and tensor when it is another network. */
CF_MUST_CHECK cf_err speech_tokenizer_open(backend *be, const onnx *file, speech_tokenizer **ret_tokenizer);
void speech_tokenizer_close(speech_tokenizer *t); /* NULL is fine */

/* Tokens of a recording of `frames` mel frames. */
static inline int64_t speech_tokenizer_tokens(int64_t frames)
{
    return (frames + 3) / 4;
}

/* mel: [frames, 128], frames >= 1 -> ret_tokens: [speech_tokenizer_tokens(frames)]. CF_ERR_NUMERIC when the network's
 * output is not finite. */
CF_MUST_CHECK cf_err speech_tokenizer_run(speech_tokenizer *t, const frame_table *mel, int32_t *ret_tokens);

/* "12 blocks of 1280, 20 heads" for a log line. */
void speech_tokenizer_describe(const speech_tokenizer *t, char *ret_text, size_t text_bytes);

#ifdef __cplusplus
}
#endif
#endif
