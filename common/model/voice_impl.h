/*
 * voice_impl.h - between voice.c (one voice) and voice_import.c (files of many).
 */
#ifndef CF_MODEL_VOICE_IMPL_H
#define CF_MODEL_VOICE_IMPL_H

#include "common/model/tensor_file.h"
#include "common/model/voice.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where a voice's parts lie; NULL for a part it lacks. Leading axes of size 1 are fine. */
typedef struct voice_fields {
    const tensor_entry *token;
    const tensor_entry *feat;
    const tensor_entry *embedding;
    const tensor_entry *text_ids;
    const char *text;
    const char *tokenizer_sha256, *speaker_sha256, *recording_sha256;
} voice_fields;

/* Reads and validates; error texts begin with the voice's name. */
CF_MUST_CHECK cf_err voice_from_fields(const char *name, const voice_fields *f, voice **ret_voice);

/* The one voice of a voice file, named after the file. */
CF_MUST_CHECK cf_err voice_from_file(const tensor_file *f, voice **ret_voice);

/* Every voice of a file's table, in the file's order. */
CF_MUST_CHECK cf_err voices_from_table(const tensor_table *table, voice ***ret_voices, size_t *ret_count);

#ifdef __cplusplus
}
#endif
#endif
