/*
 * weights.h - binds a stage's named weights to a model file: all or error.
 *
 * Names are upstream's, as in `llm.model.model.layers.0.mlp.up_proj.weight`; spellings of known converters, the prefix
 * `generator.` and every form of weight norm are mapped when the file is opened. A stage asks for each tensor it needs
 * with the shape it expects, then calls weights_done, which refuses a file that holds anything else: upstream loads
 * strictly, and an unknown tensor means another model.
 *
 *     TRY(weights_open(path, &w));
 *     TRY(weights_dims(w, "llm_decoder.weight", 2, dims));              derive the architecture
 *     TRY(weights_f32(w, "llm_decoder.weight", 2, (int64_t[]){6761, hidden}, &m->decoder));
 *     TRY(weights_done(w));
 */
#ifndef CF_MODEL_WEIGHTS_H
#define CF_MODEL_WEIGHTS_H

#include <stdbool.h>

#include "common/model/tensor_file.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weights weights;

/* Opens a .pt or .safetensors file. CF_ERR_UNSUPPORTED for CosyVoice 1 and 2, CF_ERR_INVALID when two tensors claim
 * one name. */
CF_MUST_CHECK cf_err weights_open(const char *path, weights **ret_w);
void weights_close(weights *w); /* NULL is fine; every pointer lent by w dies with it */

const tensor_file *weights_file(const weights *w);

/* True when the tensor exists (under any accepted spelling). Does not count as asking. */
bool weights_has(const weights *w, const char *name);

/* Shape of a tensor of this rank into ret_dims[rank], unchecked sizes. Does not count as asking. */
CF_MUST_CHECK cf_err weights_dims(const weights *w, const char *name, int rank, int64_t *ret_dims);

/* Shape of the weight that weights_folded_* gives for prefix: original1, weight_v or plain weight. */
CF_MUST_CHECK cf_err weights_folded_dims(const weights *w, const char *prefix, int rank, int64_t *ret_dims);

/* The tensor as contiguous f32: straight from the mapping when it is stored so and 4-byte aligned, else a converted
 * copy owned by w. Either way borrowed until weights_close. CF_ERR_NOTFOUND, or CF_ERR_MISMATCH for another shape or
 * an integer type. */
CF_MUST_CHECK cf_err weights_f32(weights *w, const char *name, int rank, const int64_t *dims, const float **ret_values);

/* The same as f64, always a copy owned by w. */
CF_MUST_CHECK cf_err weights_f64(weights *w, const char *name, int rank, const int64_t *dims,
                                 const double **ret_values);

/* `prefix`.weight with weight norm folded, W[o] = v[o] * (g[o] / ||v[o]||) evaluated in double, dims = v's shape.
 * Accepts prefix.{parametrizations.weight.original0/1, weight.original0/1, weight_g/weight_v, weight}.
 * f32 rounds once at the end; f64 keeps the double result. Owned by w. CF_ERR_NUMERIC when a norm is 0. */
CF_MUST_CHECK cf_err weights_folded_f32(weights *w, const char *prefix, int rank, const int64_t *dims,
                                        const float **ret_values);
CF_MUST_CHECK cf_err weights_folded_f64(weights *w, const char *prefix, int rank, const int64_t *dims,
                                        const double **ret_values);

/* Counts as asking and checks shape and type without touching data; for `model check`. */
CF_MUST_CHECK cf_err weights_check(weights *w, const char *name, int rank, const int64_t *dims);
CF_MUST_CHECK cf_err weights_check_folded(weights *w, const char *prefix, int rank, const int64_t *dims);

/* CF_ERR_MISMATCH naming the first tensor nobody asked for. Not counted: llm.model.lm_head.weight (tied, unused) and
 * discriminator.* beside a vocoder. */
CF_MUST_CHECK cf_err weights_done(const weights *w);

#ifdef __cplusplus
}
#endif
#endif
