/*
 * onnx_bind.c - see onnx_bind.h. One thread; a binder owns its lists.
 *
 * Fails: CF_ERR_NOTFOUND, CF_ERR_MISMATCH, CF_ERR_UNSUPPORTED, CF_ERR_NUMERIC, CF_ERR_NOMEM.
 * Source: S3Tokenizer utils.py onnx2torch (the idea of mapping by consumer); voice.md 3.2, 4.3.
 */
#include "enroll/onnx_bind.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

#define SHAPE_BYTES 96

/* "onnx::Conv_3986" or "3986": a number of the exporter, not a parameter's name. */
static bool is_anonymous(const char *name)
{
    return strstr(name, "::") != NULL || name[strspn(name, "0123456789")] == '\0';
}

cf_err binder_init(const onnx *file, onnx_binder *ret_binder)
{
    cf_err err;
    onnx_binder b = {.file = file};
    const size_t count = onnx_tensor_count(file);

    TRY(mem_alloc(count, sizeof *b.used, &b.used));
    TRY(mem_alloc(count, sizeof *b.anonymous, &b.anonymous));
    for (size_t i = 0; i < count; i++) {
        const onnx_tensor *t = onnx_tensor_at(file, i);
        if (!t->is_constant && is_anonymous(t->name))
            b.anonymous[b.anonymous_count++] = i;
    }
    for (size_t i = 0; i < onnx_node_count(file); i++)
        b.named = b.named || strchr(onnx_node_at(file, i)->name, '/') != NULL;
    *ret_binder = b;
    b = (onnx_binder){0};
out:
    binder_done(&b);
    return err;
}

void binder_done(onnx_binder *b)
{
    mem_free(b->used);
    mem_free(b->anonymous);
    *b = (onnx_binder){0};
}

/* name ends with path, and path begins a component of it. */
static bool ends_with_path(const char *name, const char *path)
{
    const size_t n = strlen(name), p = strlen(path);
    return n >= p && strcmp(name + n - p, path) == 0 && (n == p || name[n - p - 1] == '/');
}

/* NULL: none. */
static const onnx_node *node_of_path(const onnx_binder *b, const wanted *w, size_t *ret_count)
{
    const onnx_node *found = NULL;
    *ret_count = 0;
    for (size_t i = 0; i < onnx_node_count(b->file); i++) {
        const onnx_node *n = onnx_node_at(b->file, i);
        if (strcmp(n->op, w->op) == 0 && ends_with_path(n->name, w->path)) {
            found = n;
            ++*ret_count;
        }
    }
    return found;
}

static const onnx_node *consumer_of(const onnx_binder *b, const onnx_tensor *t, const char *op)
{
    for (size_t i = 0; i < onnx_node_count(b->file); i++) {
        const onnx_node *n = onnx_node_at(b->file, i);
        for (int k = 0; k < n->input_count && strcmp(n->op, op) == 0; k++)
            if (strcmp(n->inputs[k], t->name) == 0)
                return n;
    }
    return NULL;
}

static const onnx_tensor *input_tensor(const onnx_binder *b, const onnx_node *n, int slot)
{
    for (int i = 0; i < n->input_count; i++) {
        const onnx_tensor *t = slot == BIND_CONSTANT || slot == i ? onnx_tensor_find(b->file, n->inputs[i]) : NULL;
        if (t)
            return t;
    }
    return NULL;
}

static cf_err find_by_node(const onnx_binder *b, const wanted *w, bound *ret_bound)
{
    size_t count;
    const onnx_node *n = node_of_path(b, w, &count);
    if (!n)
        return err_set(CF_ERR_NOTFOUND, "%s: no %s node .../%s: not the network expected here", onnx_path(b->file),
                       w->op, w->path);
    if (count > 1)
        return err_set(CF_ERR_MISMATCH, "%s: %zu %s nodes .../%s, expected one", onnx_path(b->file), count, w->op,
                       w->path);
    const onnx_tensor *t = input_tensor(b, n, w->slot);
    if (!t)
        return err_set(CF_ERR_NOTFOUND, "%s: node %s: its weight is not a tensor of the file", onnx_path(b->file),
                       n->name);
    *ret_bound = (bound){.node = n, .tensor = t};
    return CF_OK;
}

static cf_err find_by_order(const onnx_binder *b, const wanted *w, bound *ret_bound)
{
    const onnx_tensor *t = NULL;
    if (w->name)
        t = onnx_tensor_find(b->file, w->name);
    else if ((size_t)w->order < b->anonymous_count)
        t = onnx_tensor_at(b->file, b->anonymous[w->order]);
    if (!t)
        return err_set(CF_ERR_NOTFOUND, "%s: nodes have no names, and there is no initializer %s for %s",
                       onnx_path(b->file), w->name ? w->name : "left", w->path);
    const onnx_node *n = consumer_of(b, t, w->op);
    if (!n)
        return err_set(CF_ERR_MISMATCH, "%s: tensor %s: no %s node takes it, expected it for %s", onnx_path(b->file),
                       t->name, w->op, w->path);
    *ret_bound = (bound){.node = n, .tensor = t};
    return CF_OK;
}

static void shape_text(const int64_t *dims, int rank, char ret_text[SHAPE_BYTES])
{
    size_t at = (size_t)snprintf(ret_text, SHAPE_BYTES, "[");
    for (int i = 0; i < rank && at < SHAPE_BYTES; i++)
        at += (size_t)snprintf(ret_text + at, SHAPE_BYTES - at, dims[i] < 0 ? "%sany" : "%s%lld", i ? ", " : "",
                               (long long)dims[i]);
    if (at < SHAPE_BYTES)
        snprintf(ret_text + at, SHAPE_BYTES - at, "]");
}

static cf_err check_tensor(const onnx_binder *b, const wanted *w, const onnx_tensor *t)
{
    char expected[SHAPE_BYTES], found[SHAPE_BYTES];
    bool fits = t->rank == w->rank;
    for (int i = 0; i < w->rank && fits; i++)
        fits = w->dims[i] < 0 ? t->dims[i] > 0 : t->dims[i] == w->dims[i];
    shape_text(w->dims, w->rank, expected);
    shape_text(t->dims, t->rank, found);
    if (!fits)
        return err_set(CF_ERR_MISMATCH, "%s: tensor %s of %s: expected %s, found %s", onnx_path(b->file), t->name,
                       w->path, expected, found);
    if (t->type != ONNX_F32 || !t->data)
        return err_set(CF_ERR_UNSUPPORTED, "%s: tensor %s of %s: expected f32, found %s", onnx_path(b->file), t->name,
                       w->path, onnx_type_name(t->type));
    return CF_OK;
}

cf_err binder_find(onnx_binder *b, const wanted *w, bound *ret_bound)
{
    cf_err err;
    bound found;
    TRY(b->named ? find_by_node(b, w, &found) : find_by_order(b, w, &found));
    TRY(check_tensor(b, w, found.tensor));
    b->used[onnx_tensor_idx(b->file, found.tensor)] = true;
    *ret_bound = found;
out:
    return err;
}

bool binder_has(const onnx_binder *b, const wanted *w)
{
    size_t count;
    if (b->named)
        return node_of_path(b, w, &count) != NULL;
    return w->name ? onnx_tensor_find(b->file, w->name) != NULL : (size_t)w->order < b->anonymous_count;
}

cf_err binder_check_ints(const onnx_binder *b, const onnx_node *n, const char *attribute, const int64_t *expected,
                         int count, int64_t absent)
{
    const onnx_attribute *a = onnx_node_attribute(n, attribute);
    for (int i = 0; i < count; i++) {
        const bool scalar = a && a->ints_count == 0 && count == 1;
        const int64_t found = !a ? absent : scalar ? a->i : i < a->ints_count ? a->ints[i] : absent;
        if (found != expected[i])
            return err_set(CF_ERR_MISMATCH, "%s: %s node %s: %s[%d] is %lld, expected %lld", onnx_path(b->file), n->op,
                           n->name, attribute, i, (long long)found, (long long)expected[i]);
    }
    return CF_OK;
}

cf_err binder_check_nodes(const onnx_binder *b, const char *op, size_t expected)
{
    size_t count = 0;
    for (size_t i = 0; i < onnx_node_count(b->file); i++)
        count += strcmp(onnx_node_at(b->file, i)->op, op) == 0;
    if (count != expected)
        return err_set(CF_ERR_MISMATCH, "%s: %zu %s nodes, expected %zu", onnx_path(b->file), count, op, expected);
    return CF_OK;
}

cf_err binder_check_rest(const onnx_binder *b)
{
    for (size_t i = 0; i < onnx_tensor_count(b->file); i++) {
        const onnx_tensor *t = onnx_tensor_at(b->file, i);
        if (!t->is_constant && !b->used[i])
            return err_set(CF_ERR_MISMATCH, "%s: tensor %s: nothing in the network expected here takes it",
                           onnx_path(b->file), t->name);
    }
    return CF_OK;
}

cf_err binder_values(const onnx_binder *b, const onnx_tensor *t, float **ret_values)
{
    cf_err err;
    float *values = NULL;
    TRY(mem_alloc((size_t)t->count, sizeof *values, &values));
    memcpy(values, t->data, (size_t)t->count * sizeof *values);
    for (int64_t i = 0; i < t->count; i++)
        if (!isfinite(values[i]))
            FAIL(CF_ERR_NUMERIC, "%s: tensor %s: value %lld is not finite", onnx_path(b->file), t->name, (long long)i);
    *ret_values = values;
    values = NULL;
out:
    mem_free(values);
    return err;
}
