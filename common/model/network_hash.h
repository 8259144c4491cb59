/*
 * network_hash.h - which networks a model directory has: the SHA-256 of a file of a gigabyte, remembered.
 *
 * Voices say which networks made them, and so does the folder of a batch: the question comes up at every enrollment, at
 * every voice that is loaded, and wherever a batch goes on.
 * The answer is kept in MODEL/voices/.networks beside size, inode and times of the file, and believed while none of
 * them has changed. Where that file cannot be written the hash is computed each time.
 */
#ifndef CF_MODEL_NETWORK_HASH_H
#define CF_MODEL_NETWORK_HASH_H

#include "common/base/err.h"
#include "common/base/sha256.h"

#ifdef __cplusplus
extern "C" {
#endif

/* file: a name inside the model directory (model_dir.h: MODEL_TOKENIZER_FILE, MODEL_SPEAKER_FILE, a stage's file).
 * CF_ERR_NOTFOUND when the directory does not have it. */
CF_MUST_CHECK cf_err network_sha256(const char *model_path, const char *file, char ret_hex[SHA256_HEX_BYTES]);

/* One hash over the files of CosyVoice-BlankEN that are used: config.json, merges.txt, vocab.json. They say which ids a
 * text becomes and how the backbone computes, which no weight file tells. CF_ERR_NOTFOUND as above. */
CF_MUST_CHECK cf_err blank_en_sha256(const char *model_path, char ret_hex[SHA256_HEX_BYTES]);

#ifdef __cplusplus
}
#endif
#endif
