/*
 * safetensors.c - the reader of the format's header. Any process, any thread; owns nothing, tables borrow the bytes.
 *
 *     u64 N | N bytes of JSON, padded with spaces | tensor data without holes
 *
 * Fails: CF_ERR_CORRUPT when offsets contradict the file, CF_ERR_INVALID for a malformed header, CF_ERR_UNSUPPORTED for
 * element types that no model of ours has, CF_ERR_LIMIT.
 * Source: safetensors safetensors/src/tensor.rs @24b0b28 (bounds and the no-hole rule), formats.md 4.
 */
#include "common/model/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/mem.h"

#define HEADER_DEPTH_MAX  4        /* {name: {data_offsets: [b, e]}} needs 3 */
#define HEADER_VALUES_MAX 2000000u /* bounds the JSON tree: 65,536 tensors of rank 8 stay well below */
#define TENSORS_MAX       65536u
#define NAME_MAX_BYTES    4096u

static const struct {
    const char *name;
    entry_dtype type;
} TYPES[] = {
    {"F32", ENTRY_F32}, {"F64", ENTRY_F64}, {"F16", ENTRY_F16}, {"BF16", ENTRY_BF16}, {"I64", ENTRY_I64},
    {"I32", ENTRY_I32}, {"I16", ENTRY_I16}, {"I8", ENTRY_I8},   {"U8", ENTRY_U8},     {"BOOL", ENTRY_BOOL},
};

/* Where one tensor's data lies, for the check that they tile the buffer. */
typedef struct extent {
    uint64_t begin;
    uint64_t end;
    const char *name; /* borrowed from the JSON tree */
} extent;

/* Outside of strings a header has punctuation, digits and white space only: cJSON would read 1e3, -0 and 1.5 as
 * numbers, and true as a value. */
static cf_err check_characters(const char *text, size_t bytes)
{
    bool in_string = false;
    size_t commas = 0;
    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            in_string = c != '"';
            continue;
        }
        in_string = c == '"';
        if (!in_string && (c == '\0' || !strchr("{}[]:, \t\r\n0123456789", c)))
            return err_set(CF_ERR_INVALID,
                           "header byte %zu: expected non-negative integers outside of strings, found \"%.1s\"", i,
                           (unsigned char)c >= 0x20 && (unsigned char)c < 0x7F ? text + i : "?");
        if (c == '0' && i + 1 < bytes && text[i + 1] >= '0' && text[i + 1] <= '9' &&
            (i == 0 || text[i - 1] < '0' || text[i - 1] > '9'))
            return err_set(CF_ERR_INVALID, "header byte %zu: integer with a leading zero", i);
        if (c == ',' && ++commas > HEADER_VALUES_MAX)
            return err_set(CF_ERR_LIMIT, "header holds more than %u values", HEADER_VALUES_MAX);
    }
    return CF_OK;
}

/* Integers are exact up to 2^53 in our JSON; no file has a larger size or offset. */
static cf_err read_int(const json *v, const char *name, const char *what, uint64_t *ret_value)
{
    if (!json_is_number(v))
        return err_set(CF_ERR_INVALID, "tensor %.200s: %s: expected integers", name, what);
    const cf_err err = json_as_u64(v, what, 0, (uint64_t)1 << 53, ret_value);
    return err == CF_OK ? CF_OK : err_context(err, "tensor %.200s", name);
}

static cf_err read_shape(const json *v, const char *name, tensor_entry *e)
{
    cf_err err = CF_OK;
    if (!json_is_array(v))
        FAIL(CF_ERR_INVALID, "tensor %.200s: shape: expected an array", name);
    if (json_count(v) > ENTRY_RANK_MAX)
        FAIL(CF_ERR_UNSUPPORTED, "tensor %.200s: rank %zu, at most %d is read", name, json_count(v), ENTRY_RANK_MAX);
    int64_t product = 1; /* zeros count as 1, so that every partial product of the shape is bounded */
    for (const json *item = json_first(v); item; item = json_next(item)) {
        uint64_t size;
        TRY(read_int(item, name, "shape", &size));
        e->shape[e->rank++] = (int64_t)size;
        if (__builtin_mul_overflow(product, size ? (int64_t)size : 1, &product) || product > INT64_MAX / 8)
            FAIL(CF_ERR_INVALID, "tensor %.200s: shape: the product of sizes overflows", name);
    }
    int64_t stride = 1;
    for (int d = e->rank - 1; d >= 0; d--) {
        e->strides[d] = stride;
        stride *= e->shape[d] ? e->shape[d] : 1;
    }
    e->contiguous = true;
out:
    return err;
}

static cf_err read_type(const json *v, const char *name, entry_dtype *ret_type)
{
    const char *text;
    const cf_err err = json_as_str(v, "dtype", 32, &text);
    if (err != CF_OK)
        return err_context(err, "tensor %.200s", name);
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++)
        if (strcmp(text, TYPES[i].name) == 0) {
            *ret_type = TYPES[i].type;
            return CF_OK;
        }
    return err_set(CF_ERR_UNSUPPORTED, "tensor %.200s: element type %s is not supported", name, text);
}

static cf_err read_offsets(const json *v, const char *name, size_t buffer_bytes, extent *ret_extent)
{
    cf_err err;
    uint64_t off[2];
    if (!json_is_array(v) || json_count(v) != 2)
        FAIL(CF_ERR_INVALID, "tensor %.200s: data_offsets: expected two integers", name);
    TRY(read_int(json_first(v), name, "data_offsets", &off[0]));
    TRY(read_int(json_next(json_first(v)), name, "data_offsets", &off[1]));
    if (off[0] > off[1] || off[1] > buffer_bytes)
        FAIL(CF_ERR_CORRUPT, "tensor %.200s: data_offsets [%" PRIu64 ", %" PRIu64 "] outside of %zu bytes of data",
             name, off[0], off[1], buffer_bytes);
    *ret_extent = (extent){.begin = off[0], .end = off[1], .name = name};
out:
    return err;
}

static cf_err read_tensor(const json *v, const unsigned char *buffer, size_t buffer_bytes, tensor_table *table,
                          extent *ret_extent)
{
    static const char *const KEYS[] = {"dtype", "shape", "data_offsets", NULL};
    cf_err err;
    const char *name = json_key(v);
    tensor_entry e = {0};
    extent x;
    if (strlen(name) > NAME_MAX_BYTES)
        FAIL(CF_ERR_LIMIT, "tensor name of %zu bytes, at most %u are read", strlen(name), NAME_MAX_BYTES);
    if (!json_is_object(v))
        FAIL(CF_ERR_INVALID, "tensor %.200s: expected an object", name);
    for (const char *const *key = KEYS; *key; key++)
        if (!json_find(v, *key))
            FAIL(CF_ERR_INVALID, "tensor %.200s: \"%s\" is missing", name, *key);
    err = json_only_keys(v, name, KEYS);
    if (err != CF_OK) {
        err = err_context(err, "tensor");
        goto out;
    }
    TRY(read_type(json_find(v, "dtype"), name, &e.type));
    TRY(read_shape(json_find(v, "shape"), name, &e));
    TRY(read_offsets(json_find(v, "data_offsets"), name, buffer_bytes, &x));
    if (x.end - x.begin != entry_bytes(&e))
        FAIL(CF_ERR_CORRUPT, "tensor %.200s: expected %zu bytes for its shape, found %" PRIu64, name, entry_bytes(&e),
             x.end - x.begin);
    e.data = buffer + x.begin;
    TRY(tensor_table_add(table, name, strlen(name), &e));
    *ret_extent = x;
out:
    return err;
}

static cf_err read_metadata(const json *v, tensor_table *table)
{
    cf_err err = CF_OK;
    if (!json_is_object(v))
        FAIL(CF_ERR_INVALID, "__metadata__: expected an object of strings");
    for (const json *item = json_first(v); item; item = json_next(item)) {
        const char *text;
        if (!json_is_string(item))
            FAIL(CF_ERR_INVALID, "__metadata__: key \"%.200s\": expected a string", json_key(item));
        TRY(json_as_str(item, "__metadata__", SAFETENSORS_HEADER_BYTES_MAX, &text));
        TRY(tensor_table_add_text(table, json_key(item), strlen(json_key(item)), text, strlen(text)));
    }
out:
    return err;
}

static int by_begin(const void *a, const void *b)
{
    const extent *x = a;
    const extent *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static cf_err check_tiling(extent *extents, size_t count, size_t buffer_bytes)
{
    uint64_t expected = 0;
    qsort(extents, count, sizeof *extents, by_begin);
    for (size_t i = 0; i < count; i++) {
        if (extents[i].begin != expected)
            return err_set(CF_ERR_CORRUPT, "tensor %.200s: %s: expected its data at %" PRIu64 ", found %" PRIu64,
                           extents[i].name, extents[i].begin > expected ? "hole before it" : "overlap", expected,
                           extents[i].begin);
        expected = extents[i].end;
    }
    if (expected != buffer_bytes)
        return err_set(CF_ERR_CORRUPT, "expected %" PRIu64 " bytes of tensor data, found %zu", expected, buffer_bytes);
    return CF_OK;
}

static cf_err read_members(const json *root, const unsigned char *buffer, size_t buffer_bytes, tensor_table *table)
{
    cf_err err = CF_OK;
    extent *extents = NULL;
    size_t count = 0;
    if (json_count(root) > TENSORS_MAX)
        FAIL(CF_ERR_LIMIT, "%zu tensors, at most %u are read", json_count(root), TENSORS_MAX);
    TRY(mem_alloc(json_count(root), sizeof *extents, &extents));
    for (const json *v = json_first(root); v; v = json_next(v)) {
        if (strcmp(json_key(v), "__metadata__") == 0)
            TRY(read_metadata(v, table));
        else
            TRY(read_tensor(v, buffer, buffer_bytes, table, &extents[count++]));
    }
    TRY(check_tiling(extents, count, buffer_bytes));
    TRY(tensor_table_seal(table));
out:
    mem_free(extents);
    return err;
}

static cf_err header_extent(const unsigned char *data, size_t bytes, size_t *ret_header_bytes)
{
    if (bytes < 8)
        return err_set(CF_ERR_CORRUPT, "%zu bytes are too few for a safetensors file", bytes);
    uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; i--)
        header_bytes = header_bytes << 8 | data[i];
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX)
        return err_set(CF_ERR_LIMIT, "header of %" PRIu64 " bytes, at most %u are read", header_bytes,
                       SAFETENSORS_HEADER_BYTES_MAX);
    if (header_bytes > bytes - 8)
        return err_set(CF_ERR_CORRUPT, "truncated: header of %" PRIu64 " bytes in a file of %zu", header_bytes, bytes);
    if (header_bytes == 0 || data[8] != '{')
        return err_set(CF_ERR_INVALID, "the header does not begin with '{'");
    *ret_header_bytes = (size_t)header_bytes;
    return CF_OK;
}

cf_err safetensors_parse(const unsigned char *data, size_t bytes, tensor_table **ret_table)
{
    cf_err err;
    json *root = NULL;
    tensor_table *table = NULL;
    size_t header_bytes;
    TRY(header_extent(data, bytes, &header_bytes));
    const char *text = (const char *)data + 8;
    size_t text_bytes = header_bytes;
    while (text_bytes > 0 && text[text_bytes - 1] == ' ')
        text_bytes--;
    TRY(check_characters(text, text_bytes));
    TRY(json_parse(text, text_bytes, HEADER_DEPTH_MAX, &root));
    TRY(tensor_table_open(&table));
    TRY(read_members(root, data + 8 + header_bytes, bytes - 8 - header_bytes, table));
    *ret_table = table;
    table = NULL;
out:
    tensor_table_close(table);
    json_close(root);
    return err;
}
