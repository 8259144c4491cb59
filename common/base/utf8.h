/*
 * utf8.h - strict UTF-8 (RFC 3629: no surrogates, no overlong forms, nothing above U+10FFFF).
 */
#ifndef CF_BASE_UTF8_H
#define CF_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* True when all bytes are valid; else *ret_bad_off (may be NULL) is the first offending byte. */
bool utf8_valid(const char *text, size_t text_bytes, size_t *ret_bad_off);

/* Decodes one code point at text; returns its length in bytes, or 0 when invalid or text_bytes is 0. */
size_t utf8_decode(const char *text, size_t text_bytes, uint32_t *ret_code_point);

/* Encodes into at least 4 bytes; returns the length. code_point must be valid. */
size_t utf8_encode(uint32_t code_point, char *ret_bytes);

/* Number of code points in valid text. */
size_t utf8_count(const char *text, size_t text_bytes);

#ifdef __cplusplus
}
#endif
#endif
