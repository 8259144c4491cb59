/*
 * text_norm.h - upstream's text normalisation without a TN engine (text.md 2): what the model is given for a text.
 *
 * Where upstream raises an exception we return no segments and say why (text.md 7): text that is white space alone, a
 * closing quote behind a discarded mark with nothing before it, and a number of more than 36 digits outside Chinese.
 */
#ifndef CF_TEXT_TEXT_NORM_H
#define CF_TEXT_TEXT_NORM_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/err.h"
#include "common/text/bpe.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct text_span {
    const char *text; /* borrowed from the text_norm it belongs to; not NUL-terminated */
    size_t text_bytes;
} text_span;

typedef struct text_norm {
    char *whole; /* owned; the text as one string, without the full stop that splitting appends; NUL-terminated */
    size_t whole_bytes;
    char *segment_text;  /* owned; what the spans point into */
    text_span *segments; /* owned; in order of speaking */
    size_t segment_count;
    const char *empty_reason; /* static; why there are no segments, NULL when there are some */
    bool upstream_raises;     /* the reason is one of the three above, and whole is not upstream's either */
} text_norm;

/* Normalises and splits text (UTF-8, at most TEXT_CHARS_MAX code points, NUL characters allowed). Text that contains
 * both "<|" and "|>" and the empty text are one segment, verbatim. CF_ERR_LIMIT, CF_ERR_INVALID for bad UTF-8. The
 * caller releases with text_norm_done. */
CF_MUST_CHECK cf_err text_normalize(const tokenizer *tok, const char *text, size_t text_bytes, text_norm *ret_norm);

/* The same structure with the whole text as its only segment, verbatim: what `raw` asks for. */
CF_MUST_CHECK cf_err text_verbatim(const char *text, size_t text_bytes, text_norm *ret_norm);

void text_norm_done(text_norm *norm);

#ifdef __cplusplus
}
#endif
#endif
