/*
 * json_scan.c - strings and small integers read straight from JSON text. Any process, any thread; owns nothing.
 * Fails: CF_ERR_INVALID with the byte offset, CF_ERR_LIMIT; leaves the offset where the trouble is.
 */
#include "common/base/json_scan.h"

#include <string.h>

#include "common/base/utf8.h"

#define NUMBER_BYTES_MAX 63 /* what cJSON reads, and far more than any number of ours needs */

static void skip_space(json_scan *s)
{
    while (s->off < s->text_bytes &&
           (s->text[s->off] == ' ' || s->text[s->off] == '\n' || s->text[s->off] == '\r' || s->text[s->off] == '\t'))
        s->off++;
}

bool json_scan_take(json_scan *s, char c)
{
    skip_space(s);
    if (s->off >= s->text_bytes || s->text[s->off] != c)
        return false;
    s->off++;
    return true;
}

bool json_scan_end(json_scan *s)
{
    skip_space(s);
    return s->off == s->text_bytes;
}

static bool hex4(json_scan *s, uint32_t *ret_unit)
{
    uint32_t unit = 0;
    if (s->text_bytes - s->off < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        const char c = s->text[s->off + (size_t)i];
        const int digit = c >= '0' && c <= '9'                 ? c - '0'
                          : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                               : -1;
        if (digit < 0)
            return false;
        unit = unit << 4 | (uint32_t)digit;
    }
    s->off += 4;
    *ret_unit = unit;
    return true;
}

/* Behind a backslash and 'u': one code unit, or two that make a pair. */
static bool unicode_escape(json_scan *s, uint32_t *ret_code_point)
{
    uint32_t unit, low;
    if (!hex4(s, &unit))
        return false;
    if (unit >= 0xD800 && unit <= 0xDBFF) {
        if (s->text_bytes - s->off < 2 || memcmp(s->text + s->off, "\\u", 2) != 0)
            return false;
        s->off += 2;
        if (!hex4(s, &low) || low < 0xDC00 || low > 0xDFFF)
            return false;
        unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
    } else if (unit >= 0xDC00 && unit <= 0xDFFF) {
        return false;
    }
    *ret_code_point = unit;
    return true;
}

/* Behind a backslash: at most 4 bytes of UTF-8; 0 when it is no escape. */
static size_t escape(json_scan *s, char ret_bytes[4])
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (s->off >= s->text_bytes)
        return 0;
    const char c = s->text[s->off++];
    if (c == 'u') {
        uint32_t cp;
        return unicode_escape(s, &cp) ? utf8_encode(cp, ret_bytes) : 0;
    }
    const char *found = c ? strchr(from, c) : NULL;
    if (!found)
        return 0;
    ret_bytes[0] = to[found - from];
    return 1;
}

/* Bytes from off on that stand for themselves. */
static size_t plain_run(const json_scan *s)
{
    size_t off = s->off;
    while (off < s->text_bytes && s->text[off] != '"' && s->text[off] != '\\' && (unsigned char)s->text[off] >= 0x20)
        off++;
    return off - s->off;
}

cf_err json_scan_string(json_scan *s, char *buf, size_t buf_bytes, size_t *ret_bytes)
{
    size_t used = 0;
    if (!json_scan_take(s, '"'))
        return err_set(CF_ERR_INVALID, "JSON: expected a string at byte %zu", s->off);
    const size_t start = s->off;
    while (s->off < s->text_bytes && s->text[s->off] != '"') {
        char escaped[4];
        const char *from = s->text + s->off;
        size_t count = plain_run(s);
        s->off += count;
        if (count == 0) {
            if (*from != '\\')
                return err_set(CF_ERR_INVALID, "JSON: control character at byte %zu", s->off);
            s->off++;
            count = escape(s, escaped);
            from = escaped;
            if (count == 0)
                return err_set(CF_ERR_INVALID, "JSON: bad escape before byte %zu", s->off);
        }
        if (count > buf_bytes - used)
            return err_set(CF_ERR_LIMIT, "JSON: the string at byte %zu is longer than %zu bytes", start, buf_bytes);
        if (buf)
            memcpy(buf + used, from, count);
        used += count;
    }
    if (s->off == s->text_bytes)
        return err_set(CF_ERR_INVALID, "JSON: the string at byte %zu does not end", start);
    s->off++;
    *ret_bytes = used;
    return CF_OK;
}

cf_err json_scan_u32(json_scan *s, uint32_t max, uint32_t *ret_value)
{
    uint64_t value = 0;
    skip_space(s);
    const size_t start = s->off;
    while (s->off < s->text_bytes && s->text[s->off] >= '0' && s->text[s->off] <= '9' && value <= max)
        value = value * 10 + (uint64_t)(s->text[s->off++] - '0');
    const bool leading_zero = s->off - start > 1 && s->text[start] == '0';
    if (s->off == start || value > max || leading_zero)
        return err_set(CF_ERR_INVALID, "JSON: expected an integer in 0..%u at byte %zu", max, start);
    *ret_value = (uint32_t)value;
    return CF_OK;
}

static size_t skip_digits(json_scan *s)
{
    const size_t start = s->off;
    while (s->off < s->text_bytes && s->text[s->off] >= '0' && s->text[s->off] <= '9')
        s->off++;
    return s->off - start;
}

static bool next_is(const json_scan *s, const char *set)
{
    return s->off < s->text_bytes && s->text[s->off] && strchr(set, s->text[s->off]);
}

/* -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?, in at most NUMBER_BYTES_MAX bytes. */
static bool skip_number(json_scan *s)
{
    const size_t first = s->off;
    if (next_is(s, "-"))
        s->off++;
    const size_t start = s->off;
    const size_t digits = skip_digits(s);
    if (digits == 0 || (digits > 1 && s->text[start] == '0'))
        return false;
    if (next_is(s, ".")) {
        s->off++;
        if (skip_digits(s) == 0)
            return false;
    }
    if (next_is(s, "eE")) {
        s->off++;
        if (next_is(s, "+-"))
            s->off++;
        if (skip_digits(s) == 0)
            return false;
    }
    return s->off - first <= NUMBER_BYTES_MAX;
}

static bool skip_literal(json_scan *s)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < 3; i++) {
        const size_t bytes = strlen(words[i]);
        if (s->text_bytes - s->off >= bytes && memcmp(s->text + s->off, words[i], bytes) == 0) {
            s->off += bytes;
            return true;
        }
    }
    return false;
}

/* Behind the opening bracket; keys says whether each item is a member. */
static cf_err skip_items(json_scan *s, char close, bool keys, int depth_max)
{
    cf_err err = CF_OK;
    size_t key_bytes;
    if (json_scan_take(s, close))
        return CF_OK;
    do {
        if (keys) {
            TRY(json_scan_string(s, NULL, SIZE_MAX, &key_bytes));
            if (!json_scan_take(s, ':'))
                FAIL(CF_ERR_INVALID, "JSON: expected ':' at byte %zu", s->off);
        }
        TRY(json_scan_skip(s, depth_max - 1));
    } while (json_scan_take(s, ','));
    if (!json_scan_take(s, close))
        FAIL(CF_ERR_INVALID, "JSON: expected ',' or '%c' at byte %zu", close, s->off);
out:
    return err;
}

cf_err json_scan_skip(json_scan *s, int depth_max)
{
    size_t bytes;
    if (depth_max <= 0)
        return err_set(CF_ERR_INVALID, "JSON: nested too deep at byte %zu", s->off);
    if (json_scan_take(s, '{'))
        return skip_items(s, '}', true, depth_max);
    if (json_scan_take(s, '['))
        return skip_items(s, ']', false, depth_max);
    if (next_is(s, "\""))
        return json_scan_string(s, NULL, SIZE_MAX, &bytes);
    if (next_is(s, "tfn") ? skip_literal(s) : skip_number(s))
        return CF_OK;
    return err_set(CF_ERR_INVALID, "JSON: expected a value at byte %zu", s->off);
}
