/* number_words.h - numbers in English words, as upstream's number library writes them (text.md 2.1). */
#ifndef CF_TEXT_NUMBER_WORDS_H
#define CF_TEXT_NUMBER_WORDS_H

#include <stdbool.h>

#include "common/text/text_buf.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Appends text to out with every run of digit characters of any script spelled out in words; all else is copied.
 * text is valid UTF-8. *ret_out_of_range is set, and out is of no use, when a number has a scale beyond decillion. */
CF_MUST_CHECK cf_err number_words_spell_out(const char *text, size_t text_bytes, text_buf *out, bool *ret_out_of_range);

#ifdef __cplusplus
}
#endif
#endif
