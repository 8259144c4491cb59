/*
 * text_split.h - cuts a paragraph at sentence marks and packs the sentences into segments of a speakable length
 * (text.md 3). Nothing is ever cut between two marks, so a segment can be long.
 */
#ifndef CF_TEXT_TEXT_SPLIT_H
#define CF_TEXT_TEXT_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/err.h"
#include "common/text/bpe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Lengths are code points for Chinese and tokens for every other language. */
#define SPLIT_LENGTH_MAX   80 /* a segment is closed before it would exceed this ... */
#define SPLIT_LENGTH_MIN   60 /* ... but only if it is longer than this */
#define SPLIT_LENGTH_MERGE 20 /* a shorter last segment joins the one before it */

typedef enum text_lang { TEXT_LANG_ZH, TEXT_LANG_EN } text_lang; /* EN is every language but Chinese */

/* Segments lie one after another in one buffer: segment i is bytes [ends[i-1], ends[i]). */
typedef struct text_split {
    char *text;   /* owned: text_split_done */
    size_t *ends; /* owned */
    size_t segment_count;
    bool quote_unattached; /* a closing quote follows a discarded mark and nothing precedes it: upstream raises */
} text_split;

/* text: valid UTF-8, not empty. tok is used for TEXT_LANG_EN only. There are no segments when quote_unattached is
 * set. */
CF_MUST_CHECK cf_err text_split_paragraph(const tokenizer *tok, text_lang lang, const char *text, size_t text_bytes,
                                          text_split *ret_split);
void text_split_done(text_split *split);

#ifdef __cplusplus
}
#endif
#endif
