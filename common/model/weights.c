/*
 * weights.c - the tensors of a stage's file under their upstream names, each asked for once. One owner, one thread,
 * at start-up; owns the file and every converted or folded copy until weights_close.
 *
 * Fails: CF_ERR_NOTFOUND for a missing tensor, CF_ERR_MISMATCH for another shape or an unknown tensor,
 * CF_ERR_UNSUPPORTED for CosyVoice 1 and 2, CF_ERR_NUMERIC for a weight norm of zero.
 * Source: cosy cosyvoice/cli/model.py CosyVoice3Model.load @ace7c47 (strict loading, "generator." removed);
 * formats.md 4 and llm.md 2.3 for the spellings of converters.
 */
#include "common/model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#define NAME_BYTES 256 /* of a logical name; longer stored names are kept as they are, no stage asks for them */

/* One tensor of the file under its logical name. */
typedef struct binding {
    char *name; /* owned */
    const tensor_entry *entry;
    bool asked;
} binding;

struct weights {
    tensor_file *file; /* owned */
    binding *bindings; /* owned, sorted by name */
    size_t binding_count;
    void **copies; /* owned: converted and folded tensors */
    size_t copy_count;
    size_t copy_capacity;
    const char *base_name; /* of the path, for error texts */
};

/* Prefixes of other spellings and what upstream writes instead; the first that fits is applied. */
static const struct {
    const char *from;
    const char *to;
} ALIASES[] = {
    {"dit.", "decoder.estimator."},
    {"llm.lm_head.", "llm.model.lm_head."},
    {"llm.embed_tokens.", "llm.model.model.embed_tokens."},
    {"llm.layers.", "llm.model.model.layers."},
    {"llm.norm.", "llm.model.model.norm."},
    {"embed_tokens.", "llm.model.model.embed_tokens."},
    {"layers.", "llm.model.model.layers."},
    {"norm.", "llm.model.model.norm."},
};

/* Spellings of weight norm: suffixes of magnitude and direction. */
static const struct {
    const char *g;
    const char *v;
} NORM_FORMS[] = {
    {".parametrizations.weight.original0", ".parametrizations.weight.original1"},
    {".weight.original0", ".weight.original1"},
    {".weight_g", ".weight_v"},
};

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* The upstream name of a stored one. */
static cf_err logical_name(const char *stored, char **ret_name)
{
    static const char GENERATOR[] = "generator.";
    char name[2 * NAME_BYTES];
    if (strlen(stored) >= NAME_BYTES)
        return mem_strndup(stored, strlen(stored), ret_name);
    memcpy(name, stored, strlen(stored) + 1);
    for (char *p = strstr(name, GENERATOR); p; p = strstr(p, GENERATOR))
        memmove(p, p + sizeof GENERATOR - 1, strlen(p + sizeof GENERATOR - 1) + 1);
    for (size_t i = 0; i < CF_COUNT(ALIASES); i++)
        if (starts_with(name, ALIASES[i].from)) {
            const size_t from_bytes = strlen(ALIASES[i].from);
            const size_t to_bytes = strlen(ALIASES[i].to);
            memmove(name + to_bytes, name + from_bytes, strlen(name + from_bytes) + 1);
            memcpy(name, ALIASES[i].to, to_bytes);
            break;
        }
    return mem_strndup(name, strlen(name), ret_name);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const binding *)a)->name, ((const binding *)b)->name);
}

static cf_err bind_names(weights *w)
{
    cf_err err;
    const size_t count = tensor_file_count(w->file);
    TRY(mem_alloc(count, sizeof *w->bindings, &w->bindings));
    for (size_t i = 0; i < count; i++) {
        binding *b = &w->bindings[w->binding_count];
        b->entry = tensor_file_at(w->file, i);
        TRY(logical_name(b->entry->name, &b->name));
        w->binding_count++;
    }
    qsort(w->bindings, count, sizeof *w->bindings, by_name);
    for (size_t i = 1; i < count; i++)
        if (strcmp(w->bindings[i - 1].name, w->bindings[i].name) == 0)
            FAIL(CF_ERR_INVALID, "%s: tensors %.200s and %.200s both stand for %.200s", w->base_name,
                 w->bindings[i - 1].entry->name, w->bindings[i].entry->name, w->bindings[i].name);
out:
    return err;
}

static binding *find(const weights *w, const char *name)
{
    size_t low = 0;
    size_t high = w->binding_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(name, w->bindings[middle].name);
        if (order == 0)
            return &w->bindings[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* Models of other generations have tensors of the same roles, so they are named before a shape disagrees. */
static cf_err refuse_other_models(const weights *w)
{
    static const char *const SIGNS[] = {"llm_embedding.weight", "llm_decoder.bias", "text_encoder.embed.out.0.weight",
                                        "encoder.embed.out.0.weight", "decoder.estimator.down_blocks.0.0.mlp.1.weight"};
    for (size_t i = 0; i < CF_COUNT(SIGNS); i++)
        if (find(w, SIGNS[i]))
            return err_set(CF_ERR_UNSUPPORTED, "%s: a CosyVoice 1 or 2 model (it has %s); expected Fun-CosyVoice3-0.5B",
                           w->base_name, SIGNS[i]);
    const binding *speech = find(w, "speech_embedding.weight");
    if (speech && speech->entry->rank == 2 && speech->entry->shape[0] == 6564)
        return err_set(CF_ERR_UNSUPPORTED,
                       "%s: a CosyVoice 2 model (speech_embedding.weight has 6564 rows, CosyVoice 3 has %d)",
                       w->base_name, SPEECH_ROWS);
    return CF_OK;
}

cf_err weights_open(const char *path, weights **ret_w)
{
    cf_err err;
    weights *w = NULL;
    TRY(mem_alloc(1, sizeof *w, &w));
    TRY(tensor_file_open(path, &w->file));
    const char *slash = strrchr(tensor_file_path(w->file), '/');
    w->base_name = slash ? slash + 1 : tensor_file_path(w->file);
    TRY(bind_names(w));
    TRY(refuse_other_models(w));
    *ret_w = w;
    w = NULL;
out:
    weights_close(w);
    return err;
}

void weights_close(weights *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->copy_count; i++)
        mem_free(w->copies[i]);
    for (size_t i = 0; i < w->binding_count; i++)
        mem_free(w->bindings[i].name);
    mem_free(w->copies);
    mem_free(w->bindings);
    tensor_file_close(w->file);
    mem_free(w);
}

const tensor_file *weights_file(const weights *w)
{
    return w->file;
}

bool weights_has(const weights *w, const char *name)
{
    return find(w, name) != NULL;
}

static cf_err missing(const weights *w, const char *name)
{
    return err_set(CF_ERR_NOTFOUND, "%s: tensor %s is missing", w->base_name, name);
}

static cf_err dims_of(const weights *w, const binding *b, const char *name, int rank, int64_t *ret_dims)
{
    char found[ENTRY_SHAPE_BYTES];
    if (!b)
        return missing(w, name);
    if (b->entry->rank != rank) {
        entry_shape_text(b->entry->shape, b->entry->rank, found);
        return err_set(CF_ERR_MISMATCH, "%s: tensor %s: expected %d dimensions, found %s", w->base_name, name, rank,
                       found);
    }
    memcpy(ret_dims, b->entry->shape, (size_t)rank * sizeof *ret_dims);
    return CF_OK;
}

cf_err weights_dims(const weights *w, const char *name, int rank, int64_t *ret_dims)
{
    return dims_of(w, find(w, name), name, rank, ret_dims);
}

/* Finds the tensor, marks it as asked for, and checks shape and type. */
static cf_err ask(weights *w, const char *name, int rank, const int64_t *dims, const tensor_entry **ret_entry)
{
    char expected[ENTRY_SHAPE_BYTES];
    char found[ENTRY_SHAPE_BYTES];
    binding *b = find(w, name);
    if (!b)
        return missing(w, name);
    const tensor_entry *e = b->entry;
    b->asked = true;
    bool fits = e->rank == rank;
    for (int d = 0; d < rank && fits; d++)
        fits = e->shape[d] == dims[d];
    if (!fits || !entry_is_float(e)) {
        entry_shape_text(dims, rank, expected);
        entry_shape_text(e->shape, e->rank, found);
        return err_set(CF_ERR_MISMATCH, "%s: tensor %s: expected %s f32, found %s%s%s", w->base_name, name, expected,
                       found, entry_is_float(e) ? "" : " ", entry_is_float(e) ? "" : entry_dtype_name(e->type));
    }
    *ret_entry = e;
    return CF_OK;
}

/* Memory that lives as long as w. */
static cf_err own_copy(weights *w, size_t count, size_t item_bytes, void *ret_ptr)
{
    cf_err err;
    if (w->copy_count == w->copy_capacity) {
        const size_t larger = w->copy_capacity ? w->copy_capacity * 2 : 64;
        TRY(mem_resize(&w->copies, larger, sizeof *w->copies));
        w->copy_capacity = larger;
    }
    TRY(mem_alloc(count, item_bytes, &w->copies[w->copy_count]));
    memcpy(ret_ptr, &w->copies[w->copy_count++], sizeof(void *));
out:
    return err;
}

cf_err weights_f32(weights *w, const char *name, int rank, const int64_t *dims, const float **ret_values)
{
    cf_err err;
    const tensor_entry *e;
    float *copy;
    TRY(ask(w, name, rank, dims, &e));
    if (e->type == ENTRY_F32 && e->contiguous && (uintptr_t)e->data % sizeof(float) == 0) {
        *ret_values = (const float *)(const void *)e->data;
        return CF_OK;
    }
    TRY(own_copy(w, (size_t)entry_count(e), sizeof *copy, &copy));
    TRY(entry_read_f32(e, copy, (size_t)entry_count(e)));
    *ret_values = copy;
out:
    return err;
}

cf_err weights_f64(weights *w, const char *name, int rank, const int64_t *dims, const double **ret_values)
{
    cf_err err;
    const tensor_entry *e;
    double *copy;
    TRY(ask(w, name, rank, dims, &e));
    TRY(own_copy(w, (size_t)entry_count(e), sizeof *copy, &copy));
    TRY(entry_read_f64(e, copy, (size_t)entry_count(e)));
    *ret_values = copy;
out:
    return err;
}

/* ---- weight norm ---- */

/* The names of a filter's parts in this file. g is empty when the weight is stored fused. */
typedef struct norm_names {
    char g[NAME_BYTES];
    char v[NAME_BYTES];
} norm_names;

static void find_norm(const weights *w, const char *prefix, norm_names *ret_names)
{
    norm_names n;
    for (size_t i = 0; i < CF_COUNT(NORM_FORMS); i++) {
        snprintf(n.g, sizeof n.g, "%s%s", prefix, NORM_FORMS[i].g);
        snprintf(n.v, sizeof n.v, "%s%s", prefix, NORM_FORMS[i].v);
        if (find(w, n.g) || find(w, n.v)) {
            *ret_names = n;
            return;
        }
    }
    n.g[0] = '\0';
    snprintf(n.v, sizeof n.v, "%s.weight", prefix);
    *ret_names = n;
}

cf_err weights_folded_dims(const weights *w, const char *prefix, int rank, int64_t *ret_dims)
{
    norm_names n;
    find_norm(w, prefix, &n);
    return dims_of(w, find(w, n.v), n.v, rank, ret_dims);
}

/* Direction and, when not fused, magnitude; *ret_g is NULL for a fused weight. */
static cf_err ask_norm(weights *w, const char *prefix, int rank, const int64_t *dims, const tensor_entry **ret_g,
                       const tensor_entry **ret_v)
{
    cf_err err;
    norm_names n;
    int64_t g_dims[ENTRY_RANK_MAX];
    const tensor_entry *g = NULL;
    const tensor_entry *v;
    CF_ASSERT(rank >= 1 && rank <= ENTRY_RANK_MAX);
    for (int d = 0; d < rank; d++)
        g_dims[d] = d == 0 ? dims[0] : 1;
    find_norm(w, prefix, &n);
    if (n.g[0])
        TRY(ask(w, n.g, rank, g_dims, &g));
    TRY(ask(w, n.v, rank, dims, &v));
    *ret_g = g;
    *ret_v = v;
out:
    return err;
}

/* Scales each row of v by g / ||v||. */
static cf_err fold_rows(const weights *w, const char *prefix, const double *g, double *v, size_t rows, size_t columns)
{
    for (size_t o = 0; o < rows; o++) {
        double *row = v + o * columns;
        double sum = 0.0;
        for (size_t i = 0; i < columns; i++)
            sum += row[i] * row[i];
        const double norm = sqrt(sum);
        if (!(norm > 0.0) || !isfinite(norm) || !isfinite(g[o]))
            return err_set(CF_ERR_NUMERIC, "%s: weight norm of %s: row %zu has norm %g and magnitude %g", w->base_name,
                           prefix, o, norm, g[o]);
        const double factor = g[o] / norm;
        for (size_t i = 0; i < columns; i++)
            row[i] *= factor;
    }
    return CF_OK;
}

/* Fills ret_values[count of v] with the folded weight in double. */
static cf_err fold(const weights *w, const char *prefix, const tensor_entry *g, const tensor_entry *v,
                   double *ret_values)
{
    cf_err err;
    double *magnitude = NULL;
    const size_t count = (size_t)entry_count(v);
    TRY(entry_read_f64(v, ret_values, count));
    if (!g || count == 0)
        return CF_OK;
    const size_t rows = (size_t)v->shape[0];
    TRY(mem_alloc(rows, sizeof *magnitude, &magnitude));
    TRY(entry_read_f64(g, magnitude, rows));
    TRY(fold_rows(w, prefix, magnitude, ret_values, rows, count / rows));
out:
    mem_free(magnitude);
    return err;
}

cf_err weights_folded_f64(weights *w, const char *prefix, int rank, const int64_t *dims, const double **ret_values)
{
    cf_err err;
    const tensor_entry *g;
    const tensor_entry *v;
    double *values;
    TRY(ask_norm(w, prefix, rank, dims, &g, &v));
    TRY(own_copy(w, (size_t)entry_count(v), sizeof *values, &values));
    TRY(fold(w, prefix, g, v, values));
    *ret_values = values;
out:
    return err;
}

cf_err weights_folded_f32(weights *w, const char *prefix, int rank, const int64_t *dims, const float **ret_values)
{
    cf_err err;
    const tensor_entry *g;
    const tensor_entry *v;
    double *values = NULL;
    float *rounded;
    TRY(ask_norm(w, prefix, rank, dims, &g, &v));
    const size_t count = (size_t)entry_count(v);
    TRY(mem_alloc(count, sizeof *values, &values));
    TRY(own_copy(w, count, sizeof *rounded, &rounded));
    TRY(fold(w, prefix, g, v, values));
    for (size_t i = 0; i < count; i++)
        rounded[i] = (float)values[i];
    *ret_values = rounded;
out:
    mem_free(values);
    return err;
}

cf_err weights_check(weights *w, const char *name, int rank, const int64_t *dims)
{
    const tensor_entry *e;
    return ask(w, name, rank, dims, &e);
}

cf_err weights_check_folded(weights *w, const char *prefix, int rank, const int64_t *dims)
{
    const tensor_entry *g;
    const tensor_entry *v;
    return ask_norm(w, prefix, rank, dims, &g, &v);
}

static bool is_ignored(const weights *w, const char *name)
{
    if (strcmp(name, "llm.model.lm_head.weight") == 0)
        return true;
    return starts_with(name, "discriminator.") && find(w, "m_source.l_linear.weight");
}

cf_err weights_done(const weights *w)
{
    const binding *first = NULL; /* in the file's order, which is the order people know */
    size_t count = 0;
    for (size_t i = 0; i < w->binding_count; i++) {
        const binding *b = &w->bindings[i];
        if (b->asked || is_ignored(w, b->name))
            continue;
        count++;
        first = !first || b->entry < first->entry ? b : first;
    }
    if (!first)
        return CF_OK;
    if (count == 1)
        return err_set(CF_ERR_MISMATCH, "%s: tensor %.200s does not belong to this model", w->base_name,
                       first->entry->name);
    return err_set(CF_ERR_MISMATCH, "%s: %zu tensors do not belong to this model, the first is %.200s", w->base_name,
                   count, first->entry->name);
}
