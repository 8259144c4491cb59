/*
 * recipe.h - synthetic models: every value a function of (seed, tensor name, flat index) alone, so that any language
 * makes the same bytes. Structured noise with the released architecture, names and file layout.
 */
#ifndef CF_MODEL_RECIPE_H
#define CF_MODEL_RECIPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/stage_tables.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum recipe_size { RECIPE_TINY, RECIPE_SMALL, RECIPE_FULL } recipe_size;
typedef enum recipe_format { RECIPE_SAFETENSORS, RECIPE_PT } recipe_format;

typedef struct recipe {
    recipe_size size;
    uint64_t seed;
    bool harsh; /* the Flow with the released one's magnitudes: synthetic.md 5 */
} recipe;

/* The stage's tensors at this size. text_rows of the LLM follow the vocabulary. Release with stage_table_done. */
CF_MUST_CHECK cf_err recipe_table(const recipe *r, model_stage stage, stage_table *ret_table);

/* Values [first, first + count) of a tensor of recipe_table into ret_values. */
void recipe_values(const recipe *r, const stage_tensor *t, uint64_t first, size_t count, float *ret_values);

/* Writes a whole model directory. tokenizer_path: a folder with vocab.json and merges.txt, needed for RECIPE_FULL and
 * NULL otherwise. Refuses to write into a directory that holds another model. */
CF_MUST_CHECK cf_err recipe_make_dir(const recipe *r, recipe_format format, const char *tokenizer_path,
                                     const char *path);

/* Writes the two networks of enrollment into a model directory: speech_tokenizer_v3.onnx and campplus.onnx, with the
 * released names and order, sizes by recipe (full: 970 MB and 28 MB). */
CF_MUST_CHECK cf_err recipe_make_networks(const recipe *r, const char *path);
/* One of them; node_names false: as from an exporter that names initializers alone. */
CF_MUST_CHECK cf_err recipe_write_tokenizer(const recipe *r, bool node_names, const char *path);
CF_MUST_CHECK cf_err recipe_write_speaker(const recipe *r, bool node_names, const char *path);

#ifdef __cplusplus
}
#endif
#endif
