/*
 * bpe.c - text to token ids. Any process, any thread: the tokenizer is read-only, scratch lives for one call.
 *
 *   raw text --special tokens cut out--> pieces --NFC--> --words--> bytes --merges by rank--> ids
 *
 * A word's merges are taken from a heap of candidate pairs over a linked list of symbols, so that a word of n bytes
 * costs n log n: text without a single space must not stall a farm. Candidates whose symbols have changed are dropped
 * when they come up.
 * Fails: CF_ERR_INVALID for bad UTF-8, CF_ERR_LIMIT, CF_ERR_NOMEM.
 * Source: transformers 4.51.3 Qwen2Converter (NFC, the word pattern, byte-level BPE), cosy CosyVoice3Tokenizer.encode
 * @ace7c47 (no template: nothing is added).
 */
#include "common/text/bpe.h"

#include <stdbool.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/text/bpe_impl.h"
#include "common/text/special_tokens.h"
#include "common/text/unicode.h"

#define ENCODE_BYTES_MAX ((size_t)1 << 24) /* far above any request; keeps positions in 32 bits */

typedef struct symbol {
    uint32_t id;   /* BPE_NO_ID: merged into the one before */
    uint32_t prev; /* BPE_NO_ID at either end */
    uint32_t next;
} symbol;

/* A pair that may be merged: the lowest rank first, among equals the leftmost. */
typedef struct candidate {
    uint64_t order; /* rank << 32 | position of the left symbol */
    uint32_t left;
    uint32_t right;
    uint32_t result;
} candidate;

typedef struct encoder {
    const tokenizer *tok; /* borrowed */
    id_list *list;        /* borrowed: the output */
    nfc_scratch nfc;
    symbol *symbols; /* owned; one per byte of the longest word so far */
    candidate *heap; /* owned; a word of n bytes never holds more than 3n candidates */
    size_t heap_count;
    size_t capacity_bytes;
} encoder;

void id_list_done(id_list *list)
{
    mem_free(list->ids);
    *list = (id_list){0};
}

cf_err id_list_put(id_list *list, const int32_t *ids, size_t id_count)
{
    const size_t need = list->id_count + id_count;
    if (need > list->capacity_ids) {
        const size_t capacity = need < 64 ? 64 : need * 2;
        cf_err err = mem_resize(&list->ids, capacity, sizeof *list->ids);
        if (err != CF_OK)
            return err;
        list->capacity_ids = capacity;
    }
    if (id_count > 0)
        memcpy(list->ids + list->id_count, ids, id_count * sizeof *ids);
    list->id_count = need;
    return CF_OK;
}

static cf_err id_push(id_list *list, uint32_t id)
{
    const int32_t value = (int32_t)id;
    return id_list_put(list, &value, 1);
}

static void heap_push(encoder *e, candidate c)
{
    size_t i = e->heap_count++;
    for (; i > 0 && e->heap[(i - 1) / 2].order > c.order; i = (i - 1) / 2)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
}

static candidate heap_pop(encoder *e)
{
    const candidate top = e->heap[0];
    const candidate last = e->heap[--e->heap_count];
    size_t i = 0;
    for (size_t child = 1; child < e->heap_count; child = 2 * i + 1) {
        if (child + 1 < e->heap_count && e->heap[child + 1].order < e->heap[child].order)
            child++;
        if (e->heap[child].order >= last.order)
            break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return top;
}

/* Offers the pair of symbol at and its right neighbour, if the merges know it. */
static void offer(encoder *e, uint32_t at)
{
    const uint32_t next = e->symbols[at].next;
    if (next == BPE_NO_ID)
        return;
    const uint32_t left = e->symbols[at].id, right = e->symbols[next].id;
    const merge_slot *m = merge_find(e->tok->slots, e->tok->slot_mask, left, right);
    if (m->left != BPE_NO_ID)
        heap_push(e, (candidate){(uint64_t)m->rank << 32 | at, left, right, m->result});
}

static cf_err reserve(encoder *e, size_t word_bytes)
{
    cf_err err = CF_OK;
    if (word_bytes <= e->capacity_bytes)
        return CF_OK;
    const size_t capacity = word_bytes < 64 ? 64 : word_bytes * 2;
    TRY(mem_resize(&e->symbols, capacity, sizeof *e->symbols));
    TRY(mem_resize(&e->heap, capacity * 3, sizeof *e->heap));
    e->capacity_bytes = capacity;
out:
    return err;
}

static cf_err encode_word(encoder *e, const char *word, size_t word_bytes)
{
    cf_err err;
    TRY(reserve(e, word_bytes));
    symbol *const s = e->symbols;
    e->heap_count = 0;
    for (uint32_t i = 0; i < word_bytes; i++)
        s[i] = (symbol){.id = e->tok->byte_ids[(unsigned char)word[i]],
                        .prev = i == 0 ? BPE_NO_ID : i - 1,
                        .next = i + 1 == word_bytes ? BPE_NO_ID : i + 1};
    for (uint32_t i = 0; i < word_bytes; i++)
        offer(e, i);
    while (e->heap_count > 0) {
        const candidate c = heap_pop(e);
        const uint32_t at = (uint32_t)c.order, next = s[at].next;
        if (s[at].id != c.left || next == BPE_NO_ID || s[next].id != c.right)
            continue; /* one of the two has been merged since */
        s[at].id = c.result;
        s[at].next = s[next].next;
        s[next].id = BPE_NO_ID;
        if (s[at].next != BPE_NO_ID)
            s[s[at].next].prev = at;
        if (s[at].prev != BPE_NO_ID)
            offer(e, s[at].prev);
        offer(e, at);
    }
    for (uint32_t i = 0; i != BPE_NO_ID; i = s[i].next)
        TRY(id_push(e->list, s[i].id));
out:
    return err;
}

/* One decoded character of a piece; class is CHAR_END behind the last. */
typedef struct char_at {
    uint32_t code_point;
    size_t bytes;
    int class; /* char_class or CHAR_END */
} char_at;

#define CHAR_END -1

static char_at look(const char *text, size_t text_bytes, size_t off)
{
    char_at c = {.class = CHAR_END};
    if (off < text_bytes) {
        c.bytes = utf8_decode(text + off, text_bytes - off, &c.code_point);
        CF_ASSERT(c.bytes > 0); /* checked by tokenizer_encode, kept by NFC */
        c.class = (int)unicode_class(c.code_point);
    }
    return c;
}

static bool is_newline(const char_at *c)
{
    return c->class != CHAR_END && (c->code_point == '\n' || c->code_point == '\r');
}

/* End of the run of characters of one class that starts at off. */
static size_t run_end(const char *text, size_t text_bytes, size_t off, int class)
{
    for (char_at c = look(text, text_bytes, off); c.class == class; c = look(text, text_bytes, off))
        off += c.bytes;
    return off;
}

/* 's 't 're 've 'm 'll 'd in any case: their length, or 0. The pattern's engine folds U+017F (long s) to s. */
static size_t contraction(const char *text, size_t text_bytes)
{
    static const char two[][2] = {{'r', 'e'}, {'v', 'e'}, {'l', 'l'}};
    if (text_bytes < 2 || text[0] != '\'')
        return 0;
    const char first = (char)(text[1] | 32);
    if (first == 's' || first == 't' || first == 'm' || first == 'd')
        return 2;
    for (size_t i = 0; i < CF_COUNT(two) && text_bytes >= 3; i++)
        if (first == two[i][0] && (text[2] | 32) == two[i][1])
            return 3;
    if (text_bytes >= 3 && memcmp(text + 1, "\xc5\xbf", 2) == 0)
        return 3;
    return 0;
}

/* White space at off: \s*[\r\n]+ takes all up to the last line end of the run; else \s+(?!\S) leaves the last character
 * to the word that follows; else \s+ takes what there is. */
static size_t space_end(const char *text, size_t text_bytes, size_t off)
{
    size_t end = off, last_off = off, newline_end = 0;
    char_at c = look(text, text_bytes, off);
    for (; c.class == CHAR_SPACE; c = look(text, text_bytes, end)) {
        last_off = end;
        end += c.bytes;
        if (is_newline(&c))
            newline_end = end;
    }
    if (newline_end)
        return newline_end;
    return c.class == CHAR_END || last_off == off ? end : last_off;
}

/* End of the word that starts at off < text_bytes. The alternatives of the pattern, first match wins:
 * (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N} | ?[^\s\p{L}\p{N}]+[\r\n]* | space_end */
static size_t word_end(const char *text, size_t text_bytes, size_t off)
{
    const size_t short_bytes = contraction(text + off, text_bytes - off);
    if (short_bytes)
        return off + short_bytes;
    const char_at c = look(text, text_bytes, off);
    const size_t behind = off + c.bytes;
    if (c.class == CHAR_LETTER)
        return run_end(text, text_bytes, off, CHAR_LETTER);
    if (c.class == CHAR_NUMBER)
        return behind;
    const char_at next = look(text, text_bytes, behind);
    if (next.class == CHAR_LETTER && !is_newline(&c))
        return run_end(text, text_bytes, behind, CHAR_LETTER);
    if (c.class == CHAR_OTHER || (c.code_point == ' ' && next.class == CHAR_OTHER)) {
        size_t end = run_end(text, text_bytes, behind, CHAR_OTHER);
        while (end < text_bytes && (text[end] == '\n' || text[end] == '\r'))
            end++;
        return end;
    }
    return space_end(text, text_bytes, off);
}

/* Text between special tokens. */
static cf_err encode_piece(encoder *e, const char *text, size_t text_bytes)
{
    cf_err err = CF_OK;
    const char *nfc;
    size_t nfc_bytes, end;
    TRY(unicode_nfc(&e->nfc, text, text_bytes, &nfc, &nfc_bytes));
    for (size_t off = 0; off < nfc_bytes; off = end) {
        end = word_end(nfc, nfc_bytes, off);
        TRY(encode_word(e, nfc + off, end - off));
    }
out:
    return err;
}

cf_err tokenizer_encode(const tokenizer *tok, const char *text, size_t text_bytes, id_list *list)
{
    cf_err err = CF_OK;
    encoder e = {.tok = tok, .list = list};
    const size_t count_before = list->id_count;
    size_t bad_off, off = 0, special_off = 0, special_bytes = 0;
    if (text_bytes > ENCODE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "text: %zu bytes, at most %zu can be encoded", text_bytes, ENCODE_BYTES_MAX);
    if (!utf8_valid(text, text_bytes, &bad_off))
        FAIL(CF_ERR_INVALID, "text: invalid UTF-8 at byte %zu", bad_off);
    while (off < text_bytes) {
        const int special_idx = special_find(text + off, text_bytes - off, &special_off, &special_bytes);
        TRY(encode_piece(&e, text + off, special_idx < 0 ? text_bytes - off : special_off));
        if (special_idx < 0)
            break;
        TRY(id_push(list, (uint32_t)tokenizer_special_id(tok, (size_t)special_idx)));
        off += special_off + special_bytes;
    }
out:
    if (err != CF_OK)
        list->id_count = count_before;
    nfc_scratch_done(&e.nfc);
    mem_free(e.symbols);
    mem_free(e.heap);
    return err;
}

size_t tokenizer_id_count(const tokenizer *tok)
{
    return tok->vocab_count + SPECIAL_COUNT;
}

int32_t tokenizer_special_id(const tokenizer *tok, size_t special_idx)
{
    CF_ASSERT(special_idx < SPECIAL_COUNT);
    return (int32_t)(tok->vocab_count + special_idx);
}
