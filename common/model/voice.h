/*
 * voice.h - what makes the model speak like someone: prompt tokens, their mel, a speaker vector and the prompt's text.
 *
 * Voices lie in MODEL/voices/NAME.safetensors: prompt_token i32 [n], prompt_feat f32 [2n, 80], embedding f32 [192],
 * transcript in the metadata `prompt_text` or, imported from spk2info.pt, its token ids as prompt_text i32 [L]. Voices
 * enrolled here also say what made them: `speech_tokenizer_sha256`, `campplus_sha256`, `recording_sha256`.
 * A voice of SFT style has an embedding only: n = 0. Bounds: PROMPT_TOKENS_MAX and PROMPT_TEXT_TOKENS_MAX (limits.h).
 */
#ifndef CF_MODEL_VOICE_H
#define CF_MODEL_VOICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/limits.h"
#include "common/base/sha256.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VOICE_TEXT_BYTES_MAX 16384
#define VOICE_NAME_BYTES_MAX 128

typedef struct voice {
    char name[VOICE_NAME_BYTES_MAX + 1];
    size_t prompt_tokens;            /* n; 0 for an SFT voice */
    int32_t *prompt_token;           /* [n] in [0, 6561), owned */
    float *prompt_feat;              /* [2n, 80] f32, frames at 50/s, owned */
    float embedding[SPEAKER_VALUES]; /* raw, not normalised */
    char *prompt_text;               /* UTF-8 as stored, owned; NULL when the ids are known instead, or neither */
    int32_t *prompt_text_id;         /* [prompt_text_ids], owned; NULL when the text is known */
    size_t prompt_text_ids;
    /* Hex, or "" where the file does not say: the networks that made the voice, and the recording it was made from. */
    char tokenizer_sha256[SHA256_HEX_BYTES], speaker_sha256[SHA256_HEX_BYTES], recording_sha256[SHA256_HEX_BYTES];
    size_t trimmed_tokens; /* prompt tokens dropped to fit 2n = frames */
    size_t trimmed_frames;
    char sha256[SHA256_HEX_BYTES]; /* of the content, independent of file format, name and trimming */
} voice;

/* Loads and validates MODEL/voices/NAME.safetensors. CF_ERR_NOTFOUND lists nothing: the caller knows the folder.
 * CF_ERR_MISMATCH when the voice says that other networks made it than the directory has. */
CF_MUST_CHECK cf_err voice_load(const char *model_path, const char *name, voice **ret_voice);

/* As voice_load for a plain name; "@KEY" is the voice of a recording, store_path/KEY.safetensors (voice_store.h). Its
 * name is then "@KEY". */
CF_MUST_CHECK cf_err voice_load_any(const char *model_path, const char *store_path, const char *name,
                                    voice **ret_voice);

/* Loads one voice file by path; its name is the file's base name. */
CF_MUST_CHECK cf_err voice_load_file(const char *path, voice **ret_voice);
void voice_close(voice *v); /* NULL is fine */

/* A voice made here, out of arrays that stay the caller's. */
typedef struct voice_parts {
    const int32_t *prompt_token; /* [token_count] */
    size_t token_count;
    const float *prompt_feat; /* [frame_count, 80] */
    size_t frame_count;
    const float *embedding;  /* [192] */
    const char *prompt_text; /* NULL: none */
    const char *tokenizer_sha256, *speaker_sha256, *recording_sha256;
} voice_parts;

/* Validates as a file would be: what is over in tokens or frames is dropped, both stay in the ratio 1:2. */
CF_MUST_CHECK cf_err voice_make(const char *name, const voice_parts *parts, voice **ret_voice);

/* CF_ERR_MISMATCH when v says that other networks made it than the directory has. A voice that says nothing, or a
 * directory without networks, passes. */
CF_MUST_CHECK cf_err voice_check_networks(const char *model_path, const voice *v);

/* Reads every voice of a spk2info.pt or the one of a .safetensors (named after the file). All or error, which names
 * voice and field. Free with voices_close. */
CF_MUST_CHECK cf_err voices_import(const char *path, voice ***ret_voices, size_t *ret_count);
void voices_close(voice **voices, size_t count);

/* Is there a file of that voice? */
bool voice_exists(const char *model_path, const char *name);

/* Writes MODEL/voices/NAME.safetensors atomically; CF_ERR_BUSY when it exists and replace is false. */
CF_MUST_CHECK cf_err voice_save(const char *model_path, const voice *v, bool replace);

/* The same to a path. */
CF_MUST_CHECK cf_err voice_save_file(const char *path, const voice *v);

/* Deletes the voice's file. */
CF_MUST_CHECK cf_err voice_remove(const char *model_path, const char *name);

/* Names of MODEL/voices, sorted bytewise; an absent folder is an empty list, an absent model directory
 * CF_ERR_NOTFOUND. Free with voice_names_close. */
CF_MUST_CHECK cf_err voice_names(const char *model_path, char ***ret_names, size_t *ret_count);
void voice_names_close(char **names, size_t count);

/* The voice of whoever names none: the first of voice_names. CF_ERR_NOTFOUND when there is no voice. */
CF_MUST_CHECK cf_err voice_default_name(const char *model_path, char ret_name[VOICE_NAME_BYTES_MAX + 1]);

/* 1..128 bytes of UTF-8 without '/', control characters, a leading dot (what can be a file name) or a leading @. */
CF_MUST_CHECK cf_err voice_name_check(const char *name);

#ifdef __cplusplus
}
#endif
#endif
