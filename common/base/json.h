/*
 * json.h - JSON with limits: the only door to cJSON.
 *
 * Parsing refuses what cJSON would let pass: bytes after the value, too much depth, invalid UTF-8, NUL characters,
 * duplicate keys, and whatever else RFC 8259 does not allow. Getters check type and range and name the key in the error
 * text. Values borrowed from a document live until json_close of its root.
 */
#ifndef CF_BASE_JSON_H
#define CF_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cJSON json; /* a value; the root is owned by who parsed or made it */

/* Parses exactly one value. text need not be NUL-terminated. CF_ERR_INVALID with the byte offset. */
CF_MUST_CHECK cf_err json_parse(const char *text, size_t text_bytes, int depth_max, json **ret_root);
void json_close(json *root); /* NULL is fine */

/* Kinds. */
bool json_is_object(const json *v);
bool json_is_array(const json *v);
bool json_is_string(const json *v);
bool json_is_number(const json *v);

/* The member of an object, or NULL. Keys are compared byte for byte. */
const json *json_find(const json *obj, const char *key);

/* Iteration over members or items: for (v = json_first(x); v; v = json_next(v)). json_key: NULL inside arrays. */
const json *json_first(const json *v);
const json *json_next(const json *v);
const char *json_key(const json *v);
size_t json_count(const json *v);

/* Value readers. `what` names the value in the error text ("tensor x: shape"). */
CF_MUST_CHECK cf_err json_as_u64(const json *v, const char *what, uint64_t min, uint64_t max, uint64_t *ret_value);
CF_MUST_CHECK cf_err json_as_f64(const json *v, const char *what, double min, double max, double *ret_value);
CF_MUST_CHECK cf_err json_as_bool(const json *v, const char *what, bool *ret_value);
CF_MUST_CHECK cf_err json_as_str(const json *v, const char *what, size_t bytes_max, const char **ret_text);
/* Checks alone: an array of at most count_max integers in [min, max]. */
CF_MUST_CHECK cf_err json_as_i32s(const json *v, const char *what, int32_t min, int32_t max, size_t count_max);

/* Member readers: a missing key is CF_ERR_INVALID. Full 64-bit integers travel as decimal strings: json_get_u64
 * accepts both forms, so that seeds above 2^53 survive. */
CF_MUST_CHECK cf_err json_get_u64(const json *obj, const char *key, uint64_t min, uint64_t max, uint64_t *ret_value);
CF_MUST_CHECK cf_err json_get_f64(const json *obj, const char *key, double min, double max, double *ret_value);
CF_MUST_CHECK cf_err json_get_bool(const json *obj, const char *key, bool *ret_value);
CF_MUST_CHECK cf_err json_get_str(const json *obj, const char *key, size_t bytes_max, const char **ret_text);
/* Array of integers in [min, max]; *ret_items is owned by the caller (mem_free). */
CF_MUST_CHECK cf_err json_get_i32s(const json *obj, const char *key, int32_t min, int32_t max, size_t count_max,
                                   int32_t **ret_items, size_t *ret_count);

/* Refuses any member whose key is not in the NULL-terminated list, naming it and the closest known key. */
CF_MUST_CHECK cf_err json_only_keys(const json *obj, const char *what, const char *const *keys);

/* Writing. All return NULL or false only when memory is exhausted; json_put_* on a NULL object is a no-op, so a
 * builder checks once, in json_print or json_check_built. */
json *json_object(void);
json *json_array(void);
void json_put(json *obj, const char *key, json *value);          /* takes value */
void json_put_str(json *obj, const char *key, const char *text); /* NULL text: JSON null */
/* A text for people, an error's: bytes that are not UTF-8 (it may have been cut within a character) become '?'. */
void json_put_text(json *obj, const char *key, const char *text);
void json_put_u64(json *obj, const char *key, uint64_t value); /* a string above 2^53 */
void json_put_f64(json *obj, const char *key, double value);   /* as many digits as give it again; NaN: null */
void json_put_bool(json *obj, const char *key, bool value);
void json_put_i32s(json *obj, const char *key, const int32_t *items, size_t count);
void json_push(json *arr, json *value); /* takes value */
json *json_str(const char *text);
json *json_num(double value);

/* CF_ERR_NOMEM if any step of the building failed: of what is read again without having been printed. */
CF_MUST_CHECK cf_err json_check_built(const json *root);

/* One line, or indented for people. CF_ERR_NOMEM if any step of the building failed, CF_ERR_INVALID for a string that
 * is not UTF-8: what is printed can be parsed. Caller owns the text: mem_free. */
CF_MUST_CHECK cf_err json_print(const json *root, bool indented, char **ret_text);

/* Bytes that json_print writes for a string, its quotes included. */
size_t json_printed_bytes(const char *text);

#ifdef __cplusplus
}
#endif
#endif
