/*
 * recipe_impl.h - pieces of the synthetic recipe shared by recipe.c (values) and recipe_dir.c (files).
 */
#ifndef CF_MODEL_RECIPE_IMPL_H
#define CF_MODEL_RECIPE_IMPL_H

#include "common/model/recipe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Word `idx` of the stream that belongs to a name. */
uint64_t recipe_key(uint64_t seed, const char *name);
uint64_t recipe_word(uint64_t key, uint64_t idx);
/* Values [first, first + count) with these f32 parameters. */
void recipe_uniform(uint64_t key, uint64_t first, size_t count, double centre, double amplitude, float *ret_values);

/* Dimensions of a size; text_rows are those of its usual vocabulary. */
void recipe_dims(recipe_size size, llm_dims *ret_llm, flow_dims *ret_flow, hift_dims *ret_hift);
const char *recipe_size_name(recipe_size size);

/* The merges of the tiny vocabulary, one a line. */
extern const char RECIPE_TINY_MERGES[];

#ifdef __cplusplus
}
#endif
#endif
