/*
 * bpe.h - the tokenizer: text -> token ids, as the released model was trained with (text.md 1).
 *
 * Special tokens are cut out of the raw text, each remaining piece is NFC-normalised, split into words, and merged byte
 * by byte in the order of merges.txt. Nothing is added at either end. A tokenizer is read-only once open: any number of
 * threads may encode with it.
 */
#ifndef CF_TEXT_BPE_H
#define CF_TEXT_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The released vocabulary has 151,643 entries of up to 256 bytes; both files together are 4 MiB. */
#define BPE_VOCAB_MAX       (1 << 18)
#define BPE_TOKEN_BYTES_MAX 1024
#define BPE_FILE_BYTES_MAX  ((size_t)16 << 20)

typedef struct tokenizer tokenizer;

/* A growing list of token ids; start with {0}. */
typedef struct id_list {
    int32_t *ids; /* owned: id_list_done */
    size_t id_count;
    size_t capacity_ids;
} id_list;

/* Appends; on failure the list is as before. */
CF_MUST_CHECK cf_err id_list_put(id_list *list, const int32_t *ids, size_t id_count);
void id_list_done(id_list *list);

/* Reads vocab.json and merges.txt from dir, or from dir/CosyVoice-BlankEN when that exists. CF_ERR_NOTFOUND,
 * CF_ERR_CORRUPT or CF_ERR_LIMIT with file, line or byte, expected and found. Caller closes. */
CF_MUST_CHECK cf_err tokenizer_open(const char *dir, tokenizer **ret_tok);

/* The same from bytes at hand; the two names stand in error texts. The bytes are not kept. */
typedef struct tokenizer_source {
    const char *vocab_name;
    const char *vocab; /* JSON object: token in the byte alphabet -> id */
    size_t vocab_bytes;
    const char *merges_name;
    const char *merges; /* one merge a line */
    size_t merges_bytes;
} tokenizer_source;
CF_MUST_CHECK cf_err tokenizer_open_bytes(const tokenizer_source *src, tokenizer **ret_tok);

void tokenizer_close(tokenizer *tok); /* NULL is fine */

/* Ids are 0 .. tokenizer_id_count - 1: the vocabulary's entries, then the special tokens. The LLM's text embedding must
 * have at least this many rows. */
size_t tokenizer_id_count(const tokenizer *tok);
int32_t tokenizer_special_id(const tokenizer *tok, size_t special_idx);

/* Appends the ids of text to *list. text may hold NUL characters; invalid UTF-8 is CF_ERR_INVALID with the byte. On
 * failure *list is as before. Takes time linear in text_bytes but for a logarithm. */
CF_MUST_CHECK cf_err tokenizer_encode(const tokenizer *tok, const char *text, size_t text_bytes, id_list *list);

#ifdef __cplusplus
}
#endif
#endif
