/*
 * tensor_table.h - what a model file holds, whatever its format: named, typed, possibly strided views into its bytes.
 *
 * safetensors.c and pt.c fill a table from bytes that the caller keeps alive; the table owns names and lists, never
 * tensor data. Element types are the file's own (a wider set than compute's dtype). All data is little-endian.
 */
#ifndef CF_MODEL_TENSOR_TABLE_H
#define CF_MODEL_TENSOR_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/sha256.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENTRY_RANK_MAX 8 /* formats.md 2.3 rule 7 */

typedef enum entry_dtype {
    ENTRY_F32,
    ENTRY_F64,
    ENTRY_F16,
    ENTRY_BF16,
    ENTRY_I64,
    ENTRY_I32,
    ENTRY_I16,
    ENTRY_I8,
    ENTRY_U8,
    ENTRY_BOOL,
    ENTRY_DTYPE_COUNT
} entry_dtype;

/* Lower-case name ("f32", "bf16", "bool") and element size in bytes. */
const char *entry_dtype_name(entry_dtype type);
size_t entry_dtype_bytes(entry_dtype type);

/* One tensor of a file: shape[rank], element strides[rank] and where its first element lies. */
typedef struct tensor_entry {
    const char *name;          /* owned by the table, UTF-8 */
    const unsigned char *data; /* first element, borrowed from the file's bytes; need not be aligned */
    entry_dtype type;
    int rank;
    bool contiguous; /* row-major without gaps: data is a plain array */
    int64_t shape[ENTRY_RANK_MAX];
    int64_t strides[ENTRY_RANK_MAX]; /* in elements, >= 0; 0 in an expanded dimension */
} tensor_entry;

/* Number of elements, and bytes when written out contiguously; bounded by the reader, cannot overflow. */
int64_t entry_count(const tensor_entry *e);
size_t entry_bytes(const tensor_entry *e);

/* True when *e is f32, f64, f16 or bf16. */
bool entry_is_float(const tensor_entry *e);

/* Gathers all elements in row-major order with conversion into ret_values[count]; count must equal entry_count.
 * f32 and f64 take any type (f64 -> f32 rounds to nearest even); i32 takes integer types and refuses values that do
 * not fit with CF_ERR_INVALID. CF_ERR_MISMATCH for another count or a float read as i32. */
CF_MUST_CHECK cf_err entry_read_f32(const tensor_entry *e, float *ret_values, size_t count);
CF_MUST_CHECK cf_err entry_read_f64(const tensor_entry *e, double *ret_values, size_t count);
CF_MUST_CHECK cf_err entry_read_i32(const tensor_entry *e, int32_t *ret_values, size_t count);

/* SHA-256 of the contiguous little-endian bytes in the file's own element type. */
CF_MUST_CHECK cf_err entry_sha256(const tensor_entry *e, char ret_hex[SHA256_HEX_BYTES]);

/* CF_ERR_NUMERIC naming the first NaN or infinity; integers are always fine. Reads every value. */
CF_MUST_CHECK cf_err entry_check_finite(const tensor_entry *e);

/* "[80, 1024]" into ret_text, cut when it does not fit. */
#define ENTRY_SHAPE_BYTES 160
void entry_shape_text(const int64_t *shape, int rank, char ret_text[ENTRY_SHAPE_BYTES]);

/* A text pair of the file (safetensors metadata) or a number beside the tensors of a .pt (epoch, step). */
typedef struct table_text {
    const char *key; /* owned by the table */
    const char *value;
} table_text;

typedef struct tensor_table tensor_table;

CF_MUST_CHECK cf_err tensor_table_open(tensor_table **ret_table);
void tensor_table_close(tensor_table *t); /* NULL is fine */

/* Filling, by the readers: copies name and texts. CF_ERR_LIMIT above 65,536 entries. */
CF_MUST_CHECK cf_err tensor_table_add(tensor_table *t, const char *name, size_t name_bytes, const tensor_entry *e);
CF_MUST_CHECK cf_err tensor_table_add_text(tensor_table *t, const char *key, size_t key_bytes, const char *value,
                                           size_t value_bytes);
/* Remembers that something odd was accepted; kept is the first text. */
void tensor_table_warn(tensor_table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Sorts the names for lookup and refuses two entries or two texts of one name with CF_ERR_INVALID. Call once, last. */
CF_MUST_CHECK cf_err tensor_table_seal(tensor_table *t);

/* Reading: entries in the file's order; find is NULL when absent. */
size_t tensor_table_count(const tensor_table *t);
const tensor_entry *tensor_table_at(const tensor_table *t, size_t idx);
const tensor_entry *tensor_table_find(const tensor_table *t, const char *name);
size_t tensor_table_text_count(const tensor_table *t);
const table_text *tensor_table_text_at(const tensor_table *t, size_t idx);
const char *tensor_table_text(const tensor_table *t, const char *key); /* NULL when absent */
/* NULL when nothing was odd; else the first warning. */
const char *tensor_table_warning(const tensor_table *t);

#ifdef __cplusplus
}
#endif
#endif
