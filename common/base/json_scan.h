/*
 * json_scan.h - a strict forward reader for flat JSON, for the two places that json.h's tree cannot serve: an object of
 * 150,000 members on the start-up path of every `say` (the tree alone takes 0.13 s, all of the loading with this reader
 * 0.1 s), and strings that hold the NUL character. The caller has checked that the bytes are valid UTF-8.
 */
#ifndef CF_BASE_JSON_SCAN_H
#define CF_BASE_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct json_scan {
    const char *text; /* borrowed */
    size_t text_bytes;
    size_t off; /* the next byte to be read */
} json_scan;

/* Skips white space; takes byte c if it is next. */
bool json_scan_take(json_scan *s, char c);

/* Skips white space; true when nothing is left. */
bool json_scan_end(json_scan *s);

/* Reads a string with its escapes resolved into buf; CF_ERR_LIMIT when longer than buf_bytes, CF_ERR_INVALID with the
 * byte offset for anything RFC 8259 refuses, and for a lone surrogate. The result may hold NUL, and has none behind.
 * A NULL buf measures only. */
CF_MUST_CHECK cf_err json_scan_string(json_scan *s, char *buf, size_t buf_bytes, size_t *ret_bytes);

/* Reads an integer written in digits alone, in 0..max. */
CF_MUST_CHECK cf_err json_scan_u32(json_scan *s, uint32_t max, uint32_t *ret_value);

/* Passes over one value of any kind, checking its syntax. */
CF_MUST_CHECK cf_err json_scan_skip(json_scan *s, int depth_max);

#ifdef __cplusplus
}
#endif
#endif
