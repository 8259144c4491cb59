/*
 * special_tokens.h - the 281 strings that are one token each: control marks, ARPAbet phones, pinyin parts (text.md
 * 1.5).
 *
 * Their order is their numbering: id = number of vocabulary entries + index, so 151643.. with the released vocabulary
 * and 511.. with the tiny one. Matching is byte-exact on the raw text, before any normalisation.
 */
#ifndef CF_TEXT_SPECIAL_TOKENS_H
#define CF_TEXT_SPECIAL_TOKENS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPECIAL_COUNT         281
#define SPECIAL_END_OF_TEXT   0  /* <|endoftext|> */
#define SPECIAL_END_OF_PROMPT 3  /* <|endofprompt|>: without it the LLM refuses a sequence (llm.md 4.2) */
#define SPECIAL_BYTES_MAX     20 /* longest string, checked by a test */

/* The string of the special token with this index; index < SPECIAL_COUNT. Static. */
const char *special_text(size_t special_idx);

/* The special token that starts exactly at text, or -1; *ret_bytes is its length, written on a match only. Every string
 * opens with '[' or '<' and closes with its only ']' or '>', so at most one can match and it is the longest. */
int special_match(const char *text, size_t text_bytes, size_t *ret_bytes);

/* Leftmost special token in text: its index and place, or -1. Linear in text_bytes. */
int special_find(const char *text, size_t text_bytes, size_t *ret_off, size_t *ret_bytes);

#ifdef __cplusplus
}
#endif
#endif
