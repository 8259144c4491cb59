/*
 * json.c - the only file that includes cJSON.h. Any thread; a document belongs to one.
 *
 * cJSON saturates integers silently, accepts trailing bytes, duplicate keys, 01, "1." and any control character as
 * white space, and stores every number as a double, which it prints with 15 digits: the first are checked here, the
 * printing is ours.
 * Fails: CF_ERR_INVALID for the world's bytes, CF_ERR_NOMEM.
 */
#include "common/base/json.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json_scan.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"

#define EXACT_MAX          9007199254740992.0 /* 2^53: up to here a double holds every integer */
#define JSON_BROKEN        (1 << 16)          /* our flag, above cJSON's own: a child is missing for want of memory */
#define DUPLICATE_SCAN_MAX 64                 /* objects with more members are sorted to find duplicates */

/* Depth and control characters are checked on the bytes, before cJSON recurses. */
static cf_err scan(const char *text, size_t text_bytes, int depth_max)
{
    bool in_string = false;
    int depth = 0;
    for (size_t i = 0; i < text_bytes; i++) {
        const char c = text[i];
        if (c == '\0')
            return err_set(CF_ERR_INVALID, "JSON: byte %zu is NUL", i);
        if (in_string) {
            if (c == '\\') {
                if (text_bytes - i >= 6 && memcmp(text + i, "\\u0000", 6) == 0) /* cJSON would end the string there */
                    return err_set(CF_ERR_INVALID, "JSON: NUL character at byte %zu", i);
                i++;
            } else if (c == '"')
                in_string = false;
            else if ((unsigned char)c < 0x20)
                return err_set(CF_ERR_INVALID, "JSON: control character at byte %zu", i);
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > depth_max)
                return err_set(CF_ERR_INVALID, "JSON: nested deeper than %d at byte %zu", depth_max, i);
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return CF_OK;
}

/* Exactly one value of RFC 8259; cJSON, which comes after, is more forgiving. */
static cf_err check_syntax(const char *text, size_t text_bytes, int depth_max)
{
    json_scan s = {.text = text, .text_bytes = text_bytes};
    if (json_scan_skip(&s, depth_max + 1) != CF_OK) /* a number in the deepest container is a level of its own there */
        return err_set(CF_ERR_INVALID, "JSON: syntax error at byte %zu", s.off);
    if (!json_scan_end(&s))
        return err_set(CF_ERR_INVALID, "JSON: unexpected byte %zu after the value", s.off);
    return CF_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static cf_err refuse_duplicates_sorted(const cJSON *obj)
{
    cf_err err;
    const char **keys = NULL;
    size_t count = 0;
    TRY(mem_alloc((size_t)cJSON_GetArraySize(obj), sizeof *keys, &keys));
    for (const cJSON *v = obj->child; v; v = v->next)
        keys[count++] = v->string;
    qsort(keys, count, sizeof *keys, by_text);
    for (size_t i = 1; i < count; i++)
        if (strcmp(keys[i - 1], keys[i]) == 0)
            FAIL(CF_ERR_INVALID, "JSON: key \"%s\" appears twice", keys[i]);
out:
    mem_free(keys);
    return err;
}

static cf_err refuse_duplicates(const cJSON *v)
{
    if (cJSON_IsObject(v) && v->child && v->child->next) {
        int count = 0;
        for (const cJSON *a = v->child; a && count <= DUPLICATE_SCAN_MAX; a = a->next)
            count++;
        if (count > DUPLICATE_SCAN_MAX) {
            cf_err err = refuse_duplicates_sorted(v);
            if (err != CF_OK)
                return err;
        } else {
            for (const cJSON *a = v->child; a; a = a->next)
                for (const cJSON *b = a->next; b; b = b->next)
                    if (strcmp(a->string, b->string) == 0)
                        return err_set(CF_ERR_INVALID, "JSON: key \"%s\" appears twice", a->string);
        }
    }
    for (const cJSON *c = v->child; c; c = c->next) {
        cf_err err = c->child ? refuse_duplicates(c) : CF_OK;
        if (err != CF_OK)
            return err;
    }
    return CF_OK;
}

cf_err json_parse(const char *text, size_t text_bytes, int depth_max, json **ret_root)
{
    cf_err err;
    cJSON *root = NULL;
    TRY(scan(text, text_bytes, depth_max));
    size_t bad_off;
    if (!utf8_valid(text, text_bytes, &bad_off))
        FAIL(CF_ERR_INVALID, "JSON: invalid UTF-8 at byte %zu", bad_off);
    TRY(check_syntax(text, text_bytes, depth_max));
    root = cJSON_ParseWithLength(text, text_bytes);
    if (!root) /* not its syntax */
        FAIL(CF_ERR_NOMEM, "out of memory for %zu bytes of JSON", text_bytes);
    TRY(refuse_duplicates(root));
    *ret_root = root;
    root = NULL;
out:
    cJSON_Delete(root);
    return err;
}

void json_close(json *root)
{
    cJSON_Delete(root);
}

bool json_is_object(const json *v)
{
    return cJSON_IsObject(v);
}

bool json_is_array(const json *v)
{
    return cJSON_IsArray(v);
}

bool json_is_string(const json *v)
{
    return cJSON_IsString(v);
}

bool json_is_number(const json *v)
{
    return cJSON_IsNumber(v);
}

const json *json_find(const json *obj, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(obj, key);
}

const json *json_first(const json *v)
{
    return v ? v->child : NULL;
}

const json *json_next(const json *v)
{
    return v->next;
}

const char *json_key(const json *v)
{
    return v->string;
}

size_t json_count(const json *v)
{
    size_t count = 0;
    for (const cJSON *c = v ? v->child : NULL; c; c = c->next)
        count++;
    return count;
}

static cf_err u64_from_text(const char *text, const char *what, uint64_t *ret_value)
{
    uint64_t value = 0;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(value, 10u, &value) || __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
            return err_set(CF_ERR_INVALID, "%s: \"%s\" does not fit 64 bits", what, text);
    if (p == text || *p != '\0')
        return err_set(CF_ERR_INVALID, "%s: expected an unsigned integer, found \"%.40s\"", what, text);
    *ret_value = value;
    return CF_OK;
}

cf_err json_as_u64(const json *v, const char *what, uint64_t min, uint64_t max, uint64_t *ret_value)
{
    uint64_t value;
    if (cJSON_IsString(v)) {
        cf_err err = u64_from_text(v->valuestring, what, &value);
        if (err != CF_OK)
            return err;
    } else if (cJSON_IsNumber(v)) {
        const double d = v->valuedouble;
        if (!(d >= 0) || d > EXACT_MAX || floor(d) != d)
            return err_set(CF_ERR_INVALID, "%s: expected an unsigned integer, found %.17g", what, d);
        value = (uint64_t)d;
    } else {
        return err_set(CF_ERR_INVALID, "%s: expected an unsigned integer", what);
    }
    if (value < min || value > max)
        return err_set(CF_ERR_INVALID, "%s: expected %" PRIu64 "..%" PRIu64 ", found %" PRIu64, what, min, max, value);
    *ret_value = value;
    return CF_OK;
}

cf_err json_as_f64(const json *v, const char *what, double min, double max, double *ret_value)
{
    if (!cJSON_IsNumber(v))
        return err_set(CF_ERR_INVALID, "%s: expected a number", what);
    if (!(v->valuedouble >= min && v->valuedouble <= max))
        return err_set(CF_ERR_INVALID, "%s: expected %g..%g, found %.17g", what, min, max, v->valuedouble);
    *ret_value = v->valuedouble;
    return CF_OK;
}

cf_err json_as_bool(const json *v, const char *what, bool *ret_value)
{
    if (!cJSON_IsBool(v))
        return err_set(CF_ERR_INVALID, "%s: expected true or false", what);
    *ret_value = cJSON_IsTrue(v);
    return CF_OK;
}

cf_err json_as_str(const json *v, const char *what, size_t bytes_max, const char **ret_text)
{
    if (!cJSON_IsString(v))
        return err_set(CF_ERR_INVALID, "%s: expected a string", what);
    if (strlen(v->valuestring) > bytes_max)
        return err_set(CF_ERR_INVALID, "%s: expected at most %zu bytes, found %zu", what, bytes_max,
                       strlen(v->valuestring));
    *ret_text = v->valuestring;
    return CF_OK;
}

static cf_err member(const json *obj, const char *key, const json **ret_value)
{
    const json *v = json_find(obj, key);
    if (!v)
        return err_set(CF_ERR_INVALID, "key \"%s\" is missing", key);
    *ret_value = v;
    return CF_OK;
}

cf_err json_get_u64(const json *obj, const char *key, uint64_t min, uint64_t max, uint64_t *ret_value)
{
    cf_err err;
    const json *v;
    TRY(member(obj, key, &v));
    TRY(json_as_u64(v, key, min, max, ret_value));
out:
    return err;
}

cf_err json_get_f64(const json *obj, const char *key, double min, double max, double *ret_value)
{
    cf_err err;
    const json *v;
    TRY(member(obj, key, &v));
    TRY(json_as_f64(v, key, min, max, ret_value));
out:
    return err;
}

cf_err json_get_bool(const json *obj, const char *key, bool *ret_value)
{
    cf_err err;
    const json *v;
    TRY(member(obj, key, &v));
    TRY(json_as_bool(v, key, ret_value));
out:
    return err;
}

cf_err json_get_str(const json *obj, const char *key, size_t bytes_max, const char **ret_text)
{
    cf_err err;
    const json *v;
    TRY(member(obj, key, &v));
    TRY(json_as_str(v, key, bytes_max, ret_text));
out:
    return err;
}

static cf_err check_i32(const cJSON *v, const char *key, size_t idx, int32_t min, int32_t max)
{
    if (!cJSON_IsNumber(v) || floor(v->valuedouble) != v->valuedouble || v->valuedouble < min || v->valuedouble > max)
        return err_set(CF_ERR_INVALID, "%s[%zu]: expected an integer in %d..%d", key, idx, min, max);
    return CF_OK;
}

cf_err json_as_i32s(const json *v, const char *what, int32_t min, int32_t max, size_t count_max)
{
    cf_err err = CF_OK;
    size_t count = 0;
    if (!cJSON_IsArray(v))
        return err_set(CF_ERR_INVALID, "%s: expected an array of integers", what);
    for (const cJSON *c = v->child; c && err == CF_OK; c = c->next)
        err = check_i32(c, what, count++, min, max);
    if (err == CF_OK && count > count_max)
        err = err_set(CF_ERR_LIMIT, "%s: expected at most %zu items, found %zu", what, count_max, count);
    return err;
}

cf_err json_get_i32s(const json *obj, const char *key, int32_t min, int32_t max, size_t count_max, int32_t **ret_items,
                     size_t *ret_count)
{
    cf_err err;
    const json *v;
    int32_t *items = NULL;
    size_t count = 0;
    TRY(member(obj, key, &v));
    TRY(json_as_i32s(v, key, min, max, count_max));
    TRY(mem_alloc(json_count(v), sizeof *items, &items));
    for (const cJSON *c = v->child; c; c = c->next)
        items[count++] = (int32_t)c->valuedouble;
    *ret_items = items;
    *ret_count = count;
out:
    return err;
}

/* Levenshtein distance of two keys of less than 64 bytes (others: far), for "did you mean". */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[64];
    const size_t n = strlen(b);
    if (n >= CF_COUNT(row) || strlen(a) >= CF_COUNT(row))
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            best = row[j] + 1 < best ? row[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

static bool is_one_of(const char *key, const char *const *keys)
{
    while (*keys && strcmp(*keys, key) != 0)
        keys++;
    return *keys != NULL;
}

static cf_err refuse_key(const char *key, const char *what, const char *const *keys)
{
    const char *closest = NULL;
    size_t best = 3; /* more than two edits away is no typo */
    for (const char *const *k = keys; *k; k++) {
        const size_t distance = edit_distance(key, *k);
        if (distance < best) {
            best = distance;
            closest = *k;
        }
    }
    if (closest)
        return err_set(CF_ERR_INVALID, "%s: key \"%s\" is not known; did you mean \"%s\"?", what, key, closest);
    return err_set(CF_ERR_INVALID, "%s: key \"%s\" is not known", what, key);
}

cf_err json_only_keys(const json *obj, const char *what, const char *const *keys)
{
    if (!cJSON_IsObject(obj))
        return err_set(CF_ERR_INVALID, "%s: expected an object", what);
    for (const cJSON *v = obj->child; v; v = v->next)
        if (!is_one_of(v->string, keys))
            return refuse_key(v->string, what, keys);
    return CF_OK;
}

json *json_object(void)
{
    return cJSON_CreateObject();
}

json *json_array(void)
{
    return cJSON_CreateArray();
}

/* A member that could not be added is remembered on its parent, which json_print refuses. */
void json_put(json *obj, const char *key, json *value)
{
    if (obj && value && cJSON_AddItemToObject(obj, key, value))
        return;
    cJSON_Delete(value);
    if (obj)
        obj->type |= JSON_BROKEN;
}

void json_put_str(json *obj, const char *key, const char *text)
{
    json_put(obj, key, text ? cJSON_CreateString(text) : cJSON_CreateNull());
}

void json_put_text(json *obj, const char *key, const char *text)
{
    char *copy = NULL;
    size_t left = strlen(text);
    if (mem_strndup(text, left, &copy) != CF_OK) {
        json_put(obj, key, NULL);
        return;
    }
    for (char *p = copy; left > 0;) {
        uint32_t code_point;
        const size_t bytes = utf8_decode(p, left, &code_point);
        if (bytes == 0)
            *p = '?';
        p += bytes ? bytes : 1;
        left -= bytes ? bytes : 1;
    }
    json_put_str(obj, key, copy);
    mem_free(copy);
}

void json_put_u64(json *obj, const char *key, uint64_t value)
{
    char text[24];
    if (value <= (uint64_t)EXACT_MAX) {
        json_put(obj, key, cJSON_CreateNumber((double)value));
        return;
    }
    snprintf(text, sizeof text, "%" PRIu64, value);
    json_put_str(obj, key, text);
}

void json_put_f64(json *obj, const char *key, double value)
{
    json_put(obj, key, cJSON_CreateNumber(value));
}

void json_put_bool(json *obj, const char *key, bool value)
{
    json_put(obj, key, cJSON_CreateBool(value));
}

void json_put_i32s(json *obj, const char *key, const int32_t *items, size_t count)
{
    cJSON *arr = cJSON_CreateArray();
    cJSON *tail = NULL;
    for (size_t i = 0; arr && i < count; i++) {
        cJSON *item = cJSON_CreateNumber(items[i]);
        if (!item) {
            cJSON_Delete(arr);
            arr = NULL;
            break;
        }
        /* cJSON keeps the tail in child->prev; linking by hand keeps this linear in old versions too. */
        if (!tail)
            cJSON_AddItemToArray(arr, item);
        else {
            tail->next = item;
            item->prev = tail;
            arr->child->prev = item;
        }
        tail = item;
    }
    json_put(obj, key, arr);
}

void json_push(json *arr, json *value)
{
    if (arr && value && cJSON_AddItemToArray(arr, value))
        return;
    cJSON_Delete(value);
    if (arr)
        arr->type |= JSON_BROKEN;
}

json *json_str(const char *text)
{
    return cJSON_CreateString(text);
}

json *json_num(double value)
{
    return cJSON_CreateNumber(value);
}

static bool is_whole(const cJSON *v)
{
    if (v->type & JSON_BROKEN)
        return false;
    for (const cJSON *c = v->child; c; c = c->next)
        if (!is_whole(c))
            return false;
    return true;
}

cf_err json_check_built(const json *root)
{
    return root && is_whole(root) ? CF_OK : err_set(CF_ERR_NOMEM, "out of memory while building JSON");
}

/* ---- printing: cJSON formats each number with printf and reads it back with scanf, half of a message's cost ---- */

typedef struct printer {
    char *text; /* owned */
    size_t used, capacity;
    bool indented, is_short; /* is_short: of memory */
} printer;

/* Room for `bytes` more; NULL: no memory, and all that follows is dropped. */
static char *room(printer *p, size_t bytes)
{
    if (p->is_short)
        return NULL;
    if (p->capacity - p->used < bytes) {
        const size_t capacity = 2 * p->capacity + bytes + 256;
        p->is_short = mem_resize(&p->text, capacity, 1) != CF_OK;
        if (p->is_short)
            return NULL;
        p->capacity = capacity;
    }
    return p->text + p->used;
}

static void put_bytes(printer *p, const char *bytes, size_t count)
{
    char *to = room(p, count);
    if (!to)
        return;
    memcpy(to, bytes, count);
    p->used += count;
}

static void put_text(printer *p, const char *text)
{
    put_bytes(p, text, strlen(text));
}

/* What stands for a character that a string may not hold as it is; 0: it may. */
static size_t escape(unsigned char c, char ret_escaped[8])
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    if (c >= 0x20 && c != '"' && c != '\\')
        return 0;
    const char *short_form = strchr(from, c);
    return (size_t)(short_form ? snprintf(ret_escaped, 8, "\\%c", to[short_form - from])
                               : snprintf(ret_escaped, 8, "\\u%04x", c));
}

static void put_string(printer *p, const char *s)
{
    char escaped[8];
    put_text(p, "\"");
    const char *start = s;
    for (; *s; s++) {
        const size_t bytes = escape((unsigned char)*s, escaped);
        if (bytes == 0)
            continue;
        put_bytes(p, start, (size_t)(s - start));
        put_bytes(p, escaped, bytes);
        start = s + 1;
    }
    put_bytes(p, start, (size_t)(s - start));
    put_text(p, "\"");
}

size_t json_printed_bytes(const char *text)
{
    char escaped[8];
    size_t bytes = 2;
    for (; *text; text++) {
        const size_t escaped_bytes = escape((unsigned char)*text, escaped);
        bytes += escaped_bytes > 0 ? escaped_bytes : 1;
    }
    return bytes;
}

static void put_digits(printer *p, uint64_t value)
{
    char digits[24];
    size_t at = sizeof digits;
    do
        digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    put_bytes(p, digits + at, sizeof digits - at);
}

/* As few digits as give the same double again. */
static void put_number(printer *p, double value)
{
    char text[32];
    if (fabs(value) <= EXACT_MAX && floor(value) == value) {
        if (value < 0)
            put_text(p, "-");
        put_digits(p, (uint64_t)fabs(value));
    } else if (!isfinite(value)) {
        put_text(p, "null"); /* JSON has no word for it */
    } else {
        for (int digits = 15; digits <= 17; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, value);
            if (strtod(text, NULL) == value)
                break;
        }
        put_text(p, text);
    }
}

static void put_line(printer *p, int depth)
{
    if (!p->indented)
        return;
    put_text(p, "\n");
    for (int i = 0; i < depth; i++)
        put_text(p, "\t");
}

static void put_value(printer *p, const cJSON *v, int depth)
{
    const bool is_object = cJSON_IsObject(v);
    if (cJSON_IsString(v)) {
        put_string(p, v->valuestring);
    } else if (cJSON_IsNumber(v)) {
        put_number(p, v->valuedouble);
    } else if (cJSON_IsBool(v) || cJSON_IsNull(v)) {
        put_text(p, cJSON_IsNull(v) ? "null" : cJSON_IsTrue(v) ? "true" : "false");
    } else {
        put_text(p, is_object ? "{" : "[");
        for (const cJSON *c = v->child; c; c = c->next) {
            if (is_object) {
                put_line(p, depth + 1);
                put_string(p, c->string);
                put_text(p, p->indented ? ":\t" : ":");
            }
            put_value(p, c, depth + 1);
            if (c->next)
                put_text(p, p->indented && !is_object ? ", " : ",");
        }
        if (is_object)
            put_line(p, depth);
        put_text(p, is_object ? "}" : "]");
    }
}

cf_err json_print(const json *root, bool indented, char **ret_text)
{
    cf_err err;
    printer p = {.indented = indented};
    size_t bad_off;
    TRY(json_check_built(root));
    put_value(&p, root, 0);
    put_bytes(&p, "", 1);
    if (p.is_short)
        FAIL(CF_ERR_NOMEM, "out of memory while printing JSON");
    if (!utf8_valid(p.text, p.used - 1, &bad_off))
        FAIL(CF_ERR_INVALID, "JSON: invalid UTF-8 before \"%.40s\"", p.text + bad_off);
    *ret_text = p.text;
    p.text = NULL;
out:
    mem_free(p.text);
    return err;
}
