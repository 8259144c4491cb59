/*
 * voice_store.h - voices of recordings that rows name directly: a bounded folder of files named by what they were made
 * from, so that a recording is enrolled once however many rows name it.
 *
 * The key covers the recording's bytes, the transcript and both networks; equal keys mean equal voices.
 */
#ifndef CF_MODEL_VOICE_STORE_H
#define CF_MODEL_VOICE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/io.h"
#include "common/base/sha256.h"

#ifdef __cplusplus
extern "C" {
#endif

/* prompt_text NULL: a voice without transcript. Reads the recording. CF_ERR_NOTFOUND names recording or network. */
CF_MUST_CHECK cf_err voice_store_key(const char *model_path, const char *recording_path, const char *prompt_text,
                                     char ret_key[SHA256_HEX_BYTES]);
/* The same when the recording's hash is known. */
CF_MUST_CHECK cf_err voice_store_key_of(const char *model_path, const char *recording_sha256, const char *prompt_text,
                                        char ret_key[SHA256_HEX_BYTES]);

/* FOLDER/KEY.safetensors. */
CF_MUST_CHECK cf_err voice_store_path(const char *folder, const char *key, char ret_path[IO_PATH_BYTES]);

/* True when the file is there; it then counts as used now. */
bool voice_store_has(const char *path);

/* Removes what was used longest ago until the folder holds at most bytes_max. `keep` (may be NULL) stays in any case.
 */
CF_MUST_CHECK cf_err voice_store_trim(const char *folder, uint64_t bytes_max, const char *keep);

#ifdef __cplusplus
}
#endif
#endif
