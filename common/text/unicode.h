/*
 * unicode.h - properties of code points and NFC: all this folder needs of ICU, behind one door.
 *
 * The classes are those of the engines upstream runs on: the regular expressions of the Hugging Face tokenizer, and
 * Python's str methods.
 */
#ifndef CF_TEXT_UNICODE_H
#define CF_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum char_class { CHAR_OTHER, CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE } char_class;

/* What the pre-tokenizer distinguishes: \p{L}, \p{N}, \s, anything else. */
char_class unicode_class(uint32_t code_point);

/* Python: what str.strip() removes. */
bool unicode_is_strip_space(uint32_t code_point);

/* Python: str.isdigit() of one character (decimal digits, superscripts, circled digits, ...). */
bool unicode_is_digit(uint32_t code_point);

/* 0..9 for a decimal digit of any script (category Nd), else -1. */
int unicode_decimal_value(uint32_t code_point);

/* \p{P} or \p{S}. */
bool unicode_is_punct_or_symbol(uint32_t code_point);

/* CJK unified ideographs U+4E00..U+9FFF, upstream's test for Chinese. */
bool unicode_is_han(uint32_t code_point);

/* Scratch for unicode_nfc, reused between calls; start with {0}. */
typedef struct nfc_scratch {
    uint16_t *units; /* owned; UTF-16 input, then output */
    size_t capacity_units;
    char *text; /* owned; UTF-8 result */
    size_t capacity_bytes;
} nfc_scratch;
void nfc_scratch_done(nfc_scratch *scratch);

/* text (valid UTF-8) in normal form C: text itself when nothing in it can change, else bytes in scratch, valid until
 * its next use. */
CF_MUST_CHECK cf_err unicode_nfc(nfc_scratch *scratch, const char *text, size_t text_bytes, const char **ret_text,
                                 size_t *ret_bytes);

#ifdef __cplusplus
}
#endif
#endif
