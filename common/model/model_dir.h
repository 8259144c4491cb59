/*
 * model_dir.h - a model directory in upstream's layout: which file each stage uses, the backbone's configuration, and
 * the hashes of the released files.
 */
#ifndef CF_MODEL_MODEL_DIR_H
#define CF_MODEL_MODEL_DIR_H

#include <stdbool.h>

#include "common/base/io.h"
#include "common/base/sha256.h"
#include "common/model/stage_tables.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The networks that make voices out of recordings. */
#define MODEL_TOKENIZER_FILE "speech_tokenizer_v3.onnx"
#define MODEL_SPEAKER_FILE   "campplus.onnx"

typedef struct model_dir {
    char path[IO_PATH_BYTES];
    char stage_path[MODEL_STAGE_COUNT][IO_PATH_BYTES]; /* the file each stage loads */
    bool is_rl;                                        /* the LLM file is a llm.rl.* */
    model_config config;
} model_dir;

/* Resolves the directory: detection, stage files, config.json. base skips the llm.rl.* files.
 * CF_ERR_NOTFOUND names the missing file and what would have been accepted, CF_ERR_UNSUPPORTED is CosyVoice 1 or 2. */
CF_MUST_CHECK cf_err model_dir_open(const char *path, bool base, model_dir *ret_dir);

/* The parts, for a process that needs one: a worker knows its stage only. */
CF_MUST_CHECK cf_err model_dir_detect(const char *path);
CF_MUST_CHECK cf_err model_dir_stage_file(const char *path, model_stage stage, bool base, char ret_path[IO_PATH_BYTES]);
CF_MUST_CHECK cf_err model_dir_config(const char *path, model_config *ret_config);

/* Name of the released file with this hash ("llm.rl.pt"), or NULL: synthetic, converted or fine-tuned. */
const char *model_dir_released_name(const char *sha256_hex);

#ifdef __cplusplus
}
#endif
#endif
