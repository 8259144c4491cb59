/*
 * tensor_table.c - entries of a model file, their conversion and their hashes. Any process, any thread; a table belongs
 * to whoever parsed it and owns names and texts, never tensor data.
 *
 * Fails: CF_ERR_NOMEM, CF_ERR_LIMIT above ENTRIES_MAX, CF_ERR_INVALID for duplicates, CF_ERR_MISMATCH for reads of
 * another count or kind.
 */
#include "common/model/tensor_table.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/compute/tensor.h"

#define ENTRIES_MAX   65536 /* formats.md 2.2: as many records as a checkpoint may have */
#define WARNING_BYTES 512
#define CHUNK_VALUES  4096 /* gather buffer of hashes */

struct tensor_table {
    tensor_entry *entries; /* owned; names owned one by one */
    size_t entry_count;
    size_t entry_capacity;
    uint32_t *by_name; /* owned: indices of entries sorted by name, after seal */
    table_text *texts; /* owned, with their strings */
    size_t text_count;
    size_t text_capacity;
    char warning[WARNING_BYTES];
};

static const struct {
    const char *name;
    size_t bytes;
} DTYPES[ENTRY_DTYPE_COUNT] = {
    [ENTRY_F32] = {"f32", 4}, [ENTRY_F64] = {"f64", 8},   [ENTRY_F16] = {"f16", 2}, [ENTRY_BF16] = {"bf16", 2},
    [ENTRY_I64] = {"i64", 8}, [ENTRY_I32] = {"i32", 4},   [ENTRY_I16] = {"i16", 2}, [ENTRY_I8] = {"i8", 1},
    [ENTRY_U8] = {"u8", 1},   [ENTRY_BOOL] = {"bool", 1},
};

const char *entry_dtype_name(entry_dtype type)
{
    CF_ASSERT((unsigned)type < ENTRY_DTYPE_COUNT);
    return DTYPES[type].name;
}

size_t entry_dtype_bytes(entry_dtype type)
{
    CF_ASSERT((unsigned)type < ENTRY_DTYPE_COUNT);
    return DTYPES[type].bytes;
}

int64_t entry_count(const tensor_entry *e)
{
    int64_t count = 1;
    for (int i = 0; i < e->rank; i++)
        count *= e->shape[i];
    return count;
}

size_t entry_bytes(const tensor_entry *e)
{
    return (size_t)entry_count(e) * entry_dtype_bytes(e->type);
}

bool entry_is_float(const tensor_entry *e)
{
    return e->type == ENTRY_F32 || e->type == ENTRY_F64 || e->type == ENTRY_F16 || e->type == ENTRY_BF16;
}

void entry_shape_text(const int64_t *shape, int rank, char ret_text[ENTRY_SHAPE_BYTES])
{
    size_t used = (size_t)snprintf(ret_text, ENTRY_SHAPE_BYTES, "[");
    for (int i = 0; i < rank && used < ENTRY_SHAPE_BYTES; i++)
        used += (size_t)snprintf(ret_text + used, ENTRY_SHAPE_BYTES - used, "%s%" PRId64, i ? ", " : "", shape[i]);
    if (used < ENTRY_SHAPE_BYTES)
        snprintf(ret_text + used, ENTRY_SHAPE_BYTES - used, "]");
}

/* Walks the elements in row-major order. off is in elements from data. */
typedef struct walk {
    const tensor_entry *e;
    int64_t index[ENTRY_RANK_MAX];
    int64_t off;
} walk;

static void walk_next(walk *w)
{
    for (int d = w->e->rank - 1; d >= 0; d--) {
        w->off += w->e->strides[d];
        if (++w->index[d] < w->e->shape[d])
            return;
        w->off -= w->e->strides[d] * w->e->shape[d];
        w->index[d] = 0;
    }
}

/* Copies the next `count` elements of item_bytes each to out. The common case of contiguous data is one memcpy. */
static void gather(walk *w, size_t item_bytes, size_t count, unsigned char *out)
{
    if (w->e->contiguous) {
        if (count > 0)
            memcpy(out, w->e->data + (size_t)w->off * item_bytes, count * item_bytes);
        w->off += (int64_t)count;
        return;
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(out + i * item_bytes, w->e->data + (size_t)w->off * item_bytes, item_bytes);
        walk_next(w);
    }
}

/* IEEE half to float, exact. Subnormals are m * 2^-24. */
static float f32_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = h >> 10 & 31u;
    const uint32_t mantissa = h & 0x3FFu;
    union {
        uint32_t u;
        float f;
    } v;
    if (exponent == 0) {
        v.f = (float)mantissa * 0x1p-24f;
        v.u |= sign;
    } else if (exponent == 31) {
        v.u = sign | 0x7F800000u | mantissa << 13;
    } else {
        v.u = sign | (exponent + 112u) << 23 | mantissa << 13;
    }
    return v.f;
}

static int64_t int_at(entry_dtype type, const unsigned char *p)
{
    int64_t i64;
    int32_t i32;
    int16_t i16;
    switch (type) {
    case ENTRY_I64:
        memcpy(&i64, p, sizeof i64);
        return i64;
    case ENTRY_I32:
        memcpy(&i32, p, sizeof i32);
        return i32;
    case ENTRY_I16:
        memcpy(&i16, p, sizeof i16);
        return i16;
    case ENTRY_I8:
        return (int8_t)*p;
    default:
        return type == ENTRY_BOOL ? *p != 0 : *p;
    }
}

static double float_at(entry_dtype type, const unsigned char *p)
{
    double f64;
    float f32;
    uint16_t u16;
    switch (type) {
    case ENTRY_F64:
        memcpy(&f64, p, sizeof f64);
        return f64;
    case ENTRY_F32:
        memcpy(&f32, p, sizeof f32);
        return (double)f32;
    case ENTRY_F16:
        memcpy(&u16, p, sizeof u16);
        return (double)f32_from_f16(u16);
    case ENTRY_BF16:
        memcpy(&u16, p, sizeof u16);
        return (double)f32_from_bf16(u16);
    default:
        return (double)int_at(type, p);
    }
}

static cf_err check_count(const tensor_entry *e, size_t count)
{
    if ((size_t)entry_count(e) != count)
        return err_set(CF_ERR_MISMATCH, "tensor %s: expected %zu values, found %" PRId64, e->name, count,
                       entry_count(e));
    return CF_OK;
}

cf_err entry_read_f64(const tensor_entry *e, double *ret_values, size_t count)
{
    cf_err err;
    const size_t item_bytes = entry_dtype_bytes(e->type);
    unsigned char item[8];
    walk w = {.e = e};
    TRY(check_count(e, count));
    for (size_t i = 0; i < count; i++) {
        gather(&w, item_bytes, 1, item);
        ret_values[i] = float_at(e->type, item);
    }
out:
    return err;
}

cf_err entry_read_f32(const tensor_entry *e, float *ret_values, size_t count)
{
    cf_err err;
    const size_t item_bytes = entry_dtype_bytes(e->type);
    unsigned char item[8];
    walk w = {.e = e};
    TRY(check_count(e, count));
    if (e->type == ENTRY_F32) {
        gather(&w, item_bytes, count, (unsigned char *)ret_values);
        return CF_OK;
    }
    for (size_t i = 0; i < count; i++) {
        gather(&w, item_bytes, 1, item);
        ret_values[i] = (float)float_at(e->type, item);
    }
out:
    return err;
}

cf_err entry_read_i32(const tensor_entry *e, int32_t *ret_values, size_t count)
{
    cf_err err;
    const size_t item_bytes = entry_dtype_bytes(e->type);
    unsigned char item[8];
    walk w = {.e = e};
    TRY(check_count(e, count));
    if (entry_is_float(e))
        FAIL(CF_ERR_MISMATCH, "tensor %s: expected integers, found %s", e->name, entry_dtype_name(e->type));
    for (size_t i = 0; i < count; i++) {
        gather(&w, item_bytes, 1, item);
        const int64_t value = int_at(e->type, item);
        if (value < INT32_MIN || value > INT32_MAX)
            FAIL(CF_ERR_INVALID, "tensor %s: value %" PRId64 " at index %zu does not fit 32 bits", e->name, value, i);
        ret_values[i] = (int32_t)value;
    }
out:
    return err;
}

/* The quick answer for the common case; an exponent of all ones is an infinity or a NaN. */
static bool all_finite_f32(const unsigned char *data, size_t count)
{
    bool is_finite = true;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, data + i * sizeof bits, sizeof bits);
        is_finite &= (bits & 0x7F800000u) != 0x7F800000u;
    }
    return is_finite;
}

cf_err entry_check_finite(const tensor_entry *e)
{
    if (!entry_is_float(e))
        return CF_OK;
    const size_t item_bytes = entry_dtype_bytes(e->type);
    const size_t count = (size_t)entry_count(e);
    unsigned char item[8];
    walk w = {.e = e};
    if (e->type == ENTRY_F32 && e->contiguous && all_finite_f32(e->data, count))
        return CF_OK;
    for (size_t i = 0; i < count; i++) {
        gather(&w, item_bytes, 1, item);
        if (!isfinite(float_at(e->type, item)))
            return err_set(CF_ERR_NUMERIC, "tensor %s: value %zu is not finite", e->name, i);
    }
    return CF_OK;
}

cf_err entry_sha256(const tensor_entry *e, char ret_hex[SHA256_HEX_BYTES])
{
    const size_t item_bytes = entry_dtype_bytes(e->type);
    if (e->contiguous)
        return sha256_of(e->data, entry_bytes(e), ret_hex);
    cf_err err;
    sha256 *hash = NULL;
    unsigned char chunk[CHUNK_VALUES * 8];
    walk w = {.e = e};
    TRY(sha256_open(&hash));
    for (size_t left = (size_t)entry_count(e); left > 0;) {
        const size_t n = left < CHUNK_VALUES ? left : CHUNK_VALUES;
        gather(&w, item_bytes, n, chunk);
        sha256_update(hash, chunk, n * item_bytes);
        left -= n;
    }
    sha256_finish(hash, ret_hex);
out:
    return err;
}

cf_err tensor_table_open(tensor_table **ret_table)
{
    return mem_alloc(1, sizeof(tensor_table), ret_table);
}

void tensor_table_close(tensor_table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->entry_count; i++)
        mem_free((void *)(uintptr_t)t->entries[i].name);
    for (size_t i = 0; i < t->text_count; i++) {
        mem_free((void *)(uintptr_t)t->texts[i].key);
        mem_free((void *)(uintptr_t)t->texts[i].value);
    }
    mem_free(t->entries);
    mem_free(t->texts);
    mem_free(t->by_name);
    mem_free(t);
}

/* Room for one more item in an array that doubles. */
static cf_err grow(void *ptr_to_items, size_t item_bytes, size_t count, size_t *capacity)
{
    if (count >= ENTRIES_MAX)
        return err_set(CF_ERR_LIMIT, "more than %d entries", ENTRIES_MAX);
    if (count < *capacity)
        return CF_OK;
    const size_t larger = *capacity ? *capacity * 2 : 64;
    const cf_err err = mem_resize(ptr_to_items, larger, item_bytes);
    if (err == CF_OK)
        *capacity = larger;
    return err;
}

cf_err tensor_table_add(tensor_table *t, const char *name, size_t name_bytes, const tensor_entry *e)
{
    cf_err err;
    char *copy = NULL;
    TRY(grow(&t->entries, sizeof *t->entries, t->entry_count, &t->entry_capacity));
    TRY(mem_strndup(name, name_bytes, &copy));
    t->entries[t->entry_count] = *e;
    t->entries[t->entry_count++].name = copy;
out:
    return err;
}

cf_err tensor_table_add_text(tensor_table *t, const char *key, size_t key_bytes, const char *value, size_t value_bytes)
{
    cf_err err;
    char *key_copy = NULL;
    char *value_copy = NULL;
    TRY(grow(&t->texts, sizeof *t->texts, t->text_count, &t->text_capacity));
    TRY(mem_strndup(key, key_bytes, &key_copy));
    TRY(mem_strndup(value, value_bytes, &value_copy));
    t->texts[t->text_count++] = (table_text){.key = key_copy, .value = value_copy};
    key_copy = NULL;
out:
    mem_free(key_copy);
    return err;
}

void tensor_table_warn(tensor_table *t, const char *fmt, ...)
{
    if (t->warning[0])
        return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(t->warning, sizeof t->warning, fmt, args);
    va_end(args);
}

typedef struct name_ref {
    const char *name;
    uint32_t idx;
} name_ref;

static int by_ref_name(const void *a, const void *b)
{
    return strcmp(((const name_ref *)a)->name, ((const name_ref *)b)->name);
}

/* Sorted references to `count` names; refuses equal neighbours. */
static cf_err sort_names(name_ref *refs, size_t count, const char *what)
{
    qsort(refs, count, sizeof *refs, by_ref_name);
    for (size_t i = 1; i < count; i++)
        if (strcmp(refs[i - 1].name, refs[i].name) == 0)
            return err_set(CF_ERR_INVALID, "%s %.200s appears twice", what, refs[i].name);
    return CF_OK;
}

cf_err tensor_table_seal(tensor_table *t)
{
    cf_err err;
    name_ref *refs = NULL;
    const size_t most = t->entry_count > t->text_count ? t->entry_count : t->text_count;
    CF_ASSERT(!t->by_name);
    TRY(mem_alloc(most, sizeof *refs, &refs));
    for (size_t i = 0; i < t->text_count; i++)
        refs[i] = (name_ref){t->texts[i].key, (uint32_t)i};
    TRY(sort_names(refs, t->text_count, "metadata key"));
    for (size_t i = 0; i < t->entry_count; i++)
        refs[i] = (name_ref){t->entries[i].name, (uint32_t)i};
    TRY(sort_names(refs, t->entry_count, "tensor"));
    TRY(mem_alloc(t->entry_count, sizeof *t->by_name, &t->by_name));
    for (size_t i = 0; i < t->entry_count; i++)
        t->by_name[i] = refs[i].idx;
out:
    mem_free(refs);
    return err;
}

size_t tensor_table_count(const tensor_table *t)
{
    return t->entry_count;
}

const tensor_entry *tensor_table_at(const tensor_table *t, size_t idx)
{
    CF_ASSERT(idx < t->entry_count);
    return &t->entries[idx];
}

const tensor_entry *tensor_table_find(const tensor_table *t, const char *name)
{
    CF_ASSERT(t->by_name);
    size_t low = 0;
    size_t high = t->entry_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const tensor_entry *e = &t->entries[t->by_name[middle]];
        const int order = strcmp(name, e->name);
        if (order == 0)
            return e;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

size_t tensor_table_text_count(const tensor_table *t)
{
    return t->text_count;
}

const table_text *tensor_table_text_at(const tensor_table *t, size_t idx)
{
    CF_ASSERT(idx < t->text_count);
    return &t->texts[idx];
}

const char *tensor_table_text(const tensor_table *t, const char *key)
{
    for (size_t i = 0; i < t->text_count; i++)
        if (strcmp(t->texts[i].key, key) == 0)
            return t->texts[i].value;
    return NULL;
}

const char *tensor_table_warning(const tensor_table *t)
{
    return t->warning[0] ? t->warning : NULL;
}
