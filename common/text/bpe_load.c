/*
 * bpe_load.c - vocab.json and merges.txt into the tokenizer's tables. Any process, one thread while loading.
 *
 * The vocabulary is one flat JSON object of 151,643 members. It is read by json_scan, not by json.h: a tree of that
 * many nodes costs more than all the rest of a cold `say` before the models. Token texts are needed only here, to
 * resolve the merges; what stays is the id of each byte and one hash table of merges.
 *
 * Checked: keys spelled in the byte alphabet, ids a bijection onto 0..n-1, all 256 bytes present, no special token
 * among the keys, every merge's parts and result present, no merge twice. Entries that no merge can make are normal:
 * the released merges are a trimmed list (formats.md 7).
 * Fails: CF_ERR_NOTFOUND, CF_ERR_LIMIT, CF_ERR_INVALID for bytes that are no such file, CF_ERR_CORRUPT for
 * contradictions.
 * Source: transformers 4.51.3 convert_slow_tokenizer Qwen2Converter; GPT-2's bytes_to_unicode alphabet.
 */
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/json_scan.h"
#include "common/base/mem.h"
#include "common/base/sha256.h"
#include "common/base/utf8.h"
#include "common/text/bpe.h"
#include "common/text/bpe_impl.h"
#include "common/text/special_tokens.h"

#define ALPHABET_END 0x144 /* one past the highest code point of the byte alphabet */
#define FOUND_BYTES  64    /* how much of a file's text an error shows */

typedef struct vocab_entry {
    uint32_t off;   /* into vocab_table.pool */
    uint32_t bytes; /* 0: the id is not taken */
} vocab_entry;

/* The vocabulary while loading: raw bytes of each token by id, and a hash from bytes to id. */
typedef struct vocab_table {
    char *pool;           /* owned */
    vocab_entry *entries; /* owned; BPE_VOCAB_MAX of them, by id */
    uint32_t *slots;      /* owned; id or BPE_NO_ID */
    size_t slot_mask;
    size_t count;
    size_t pool_bytes;
    int16_t byte_of[ALPHABET_END]; /* alphabet code point -> byte, or -1 */
} vocab_table;

/* Text from a file as it may stand in an error: at most FOUND_BYTES, whole code points, no control characters. */
static const char *shown(const char *text, size_t bytes, char ret_text[FOUND_BYTES])
{
    size_t off = 0, used = 0;
    while (off < bytes) {
        uint32_t cp;
        size_t step = utf8_decode(text + off, bytes - off, &cp);
        if (used + (step ? step : 1) > FOUND_BYTES - 4) {
            memcpy(ret_text + used, "...", 3);
            used += 3;
            break;
        }
        if (step == 0 || cp < 0x20 || cp == 0x7F) {
            ret_text[used++] = '?';
            off += step ? step : 1;
        } else {
            memcpy(ret_text + used, text + off, step);
            used += step;
            off += step;
        }
    }
    ret_text[used] = '\0';
    return ret_text;
}

/* Printable bytes stand for themselves; the other 68 take U+0100 and up, in order. */
static void fill_alphabet(int16_t ret_byte_of[ALPHABET_END])
{
    int moved = 0;
    for (int i = 0; i < ALPHABET_END; i++)
        ret_byte_of[i] = -1;
    for (int byte = 0; byte < 256; byte++) {
        const bool own = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        ret_byte_of[own ? byte : 0x100 + moved++] = (int16_t)byte;
    }
}

/* Alphabet text -> raw bytes (never longer); false at a character outside the alphabet. */
static bool to_bytes(const vocab_table *v, const char *text, size_t text_bytes, char *ret_bytes, size_t *ret_count)
{
    size_t used = 0;
    for (size_t off = 0; off < text_bytes;) {
        uint32_t cp = (unsigned char)text[off];
        const size_t step = cp < 0x80 ? 1 : utf8_decode(text + off, text_bytes - off, &cp);
        if (step == 0 || cp >= ALPHABET_END || v->byte_of[cp] < 0)
            return false;
        ret_bytes[used++] = (char)v->byte_of[cp];
        off += step;
    }
    *ret_count = used;
    return true;
}

/* The slot that holds these bytes' id, or the free one where it would be. */
static uint32_t *vocab_slot(const vocab_table *v, const char *bytes, size_t count)
{
    size_t i = (size_t)fnv1a64(FNV64_OFFSET, bytes, count) & v->slot_mask;
    for (; v->slots[i] != BPE_NO_ID; i = (i + 1) & v->slot_mask) {
        const vocab_entry *e = &v->entries[v->slots[i]];
        if (e->bytes == count && memcmp(v->pool + e->off, bytes, count) == 0)
            break;
    }
    return &v->slots[i];
}

static size_t power_of_two_above(size_t count)
{
    size_t size = 16;
    while (size < count)
        size *= 2;
    return size;
}

/* One member, "token": id. */
static cf_err read_entry(const tokenizer_source *src, json_scan *s, vocab_table *v)
{
    cf_err err;
    char key[2 * BPE_TOKEN_BYTES_MAX], text[FOUND_BYTES];
    size_t key_bytes, count;
    uint32_t id;
    TRY(json_scan_string(s, key, sizeof key, &key_bytes));
    if (key_bytes == 0 || !to_bytes(v, key, key_bytes, v->pool + v->pool_bytes, &count))
        FAIL(CF_ERR_INVALID, "token \"%s\" before byte %zu: expected characters of the byte alphabet alone",
             shown(key, key_bytes, text), s->off);
    if (!json_scan_take(s, ':'))
        FAIL(CF_ERR_INVALID, "expected ':' at byte %zu", s->off);
    TRY(json_scan_u32(s, BPE_VOCAB_MAX - 1, &id));
    if (v->entries[id].bytes)
        FAIL(CF_ERR_CORRUPT, "token \"%s\": id %u is taken by another token", shown(key, key_bytes, text), id);
    v->entries[id] = (vocab_entry){.off = (uint32_t)v->pool_bytes, .bytes = (uint32_t)count};
    v->pool_bytes += count;
    v->count++;
out:
    return err == CF_OK ? err : err_context(err, "%s", src->vocab_name);
}

static cf_err read_entries(const tokenizer_source *src, vocab_table *v)
{
    cf_err err = CF_OK;
    json_scan s = {.text = src->vocab, .text_bytes = src->vocab_bytes};
    if (!json_scan_take(&s, '{'))
        FAIL(CF_ERR_INVALID, "%s: expected a JSON object", src->vocab_name);
    do {
        TRY(read_entry(src, &s, v));
    } while (json_scan_take(&s, ','));
    if (!json_scan_take(&s, '}') || !json_scan_end(&s))
        FAIL(CF_ERR_INVALID, "%s: expected ',' or the end of the object at byte %zu", src->vocab_name, s.off);
out:
    return err;
}

/* Ids have no gap, texts are distinct; fills the hash. */
static cf_err index_entries(const tokenizer_source *src, vocab_table *v)
{
    cf_err err;
    char text[FOUND_BYTES];
    const size_t slot_count = power_of_two_above(2 * v->count);
    TRY(mem_alloc(slot_count, sizeof *v->slots, &v->slots));
    memset(v->slots, 0xFF, slot_count * sizeof *v->slots); /* BPE_NO_ID */
    v->slot_mask = slot_count - 1;
    for (size_t id = 0; id < v->count; id++) {
        const vocab_entry *e = &v->entries[id];
        if (e->bytes == 0)
            FAIL(CF_ERR_CORRUPT, "%s: expected ids 0..%zu without a gap, found none with id %zu", src->vocab_name,
                 v->count - 1, id);
        uint32_t *slot = vocab_slot(v, v->pool + e->off, e->bytes);
        if (*slot != BPE_NO_ID)
            FAIL(CF_ERR_CORRUPT, "%s: token \"%s\" has ids %u and %zu", src->vocab_name,
                 shown(v->pool + e->off, e->bytes, text), *slot, id);
        *slot = (uint32_t)id;
    }
out:
    return err;
}

/* The 256 bytes must be there, so that no text is unknown; special tokens must not, as they are numbered behind. */
static cf_err check_entries(const tokenizer_source *src, const vocab_table *v, tokenizer *tok)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        const char c = (char)byte;
        tok->byte_ids[byte] = *vocab_slot(v, &c, 1);
        if (tok->byte_ids[byte] == BPE_NO_ID)
            return err_set(CF_ERR_CORRUPT, "%s: expected all 256 single bytes, found no token for byte 0x%02x",
                           src->vocab_name, byte);
    }
    for (size_t i = 0; i < SPECIAL_COUNT; i++)
        if (*vocab_slot(v, special_text(i), strlen(special_text(i))) != BPE_NO_ID)
            return err_set(CF_ERR_CORRUPT, "%s: the special token %s must not be an entry of the vocabulary",
                           src->vocab_name, special_text(i));
    return CF_OK;
}

static cf_err refuse_bad_text(const char *name, const char *text, size_t bytes)
{
    static const char pointer[] = "version https://git-lfs.github.com/spec/";
    size_t bad_off;
    if (bytes >= sizeof pointer - 1 && memcmp(text, pointer, sizeof pointer - 1) == 0)
        return err_set(CF_ERR_INVALID, "%s: is a Git LFS pointer, not the file itself; run `git lfs pull`", name);
    if (bytes > BPE_FILE_BYTES_MAX)
        return err_set(CF_ERR_LIMIT, "%s: %zu bytes, at most %zu are read", name, bytes, BPE_FILE_BYTES_MAX);
    if (!utf8_valid(text, bytes, &bad_off))
        return err_set(CF_ERR_INVALID, "%s: invalid UTF-8 at byte %zu", name, bad_off);
    return CF_OK;
}

static cf_err load_vocab(const tokenizer_source *src, vocab_table *v, tokenizer *tok)
{
    cf_err err;
    TRY(refuse_bad_text(src->vocab_name, src->vocab, src->vocab_bytes));
    fill_alphabet(v->byte_of);
    /* A key's bytes are fewer than its characters in the file, but the last one may be tried before it is refused. */
    TRY(mem_alloc(src->vocab_bytes + BPE_TOKEN_BYTES_MAX * 2, 1, &v->pool));
    TRY(mem_alloc(BPE_VOCAB_MAX, sizeof *v->entries, &v->entries));
    TRY(read_entries(src, v));
    TRY(index_entries(src, v));
    TRY(check_entries(src, v, tok));
    tok->vocab_count = v->count;
out:
    return err;
}

/* The id of a merge's part or result. */
static cf_err find_part(const vocab_table *v, const char *what, const char *bytes, size_t count, uint32_t *ret_id)
{
    char text[FOUND_BYTES];
    *ret_id = *vocab_slot(v, bytes, count);
    if (*ret_id == BPE_NO_ID)
        return err_set(CF_ERR_CORRUPT, "the merge's %s \"%s\" is not in the vocabulary", what,
                       shown(bytes, count, text));
    return CF_OK;
}

/* One line "left right" without its end. */
static cf_err read_merge(const vocab_table *v, tokenizer *tok, const char *line, size_t line_bytes, uint32_t rank)
{
    cf_err err;
    char bytes[2 * BPE_TOKEN_BYTES_MAX], text[FOUND_BYTES];
    size_t left_count, right_count;
    uint32_t left, right, result;
    const char *space = memchr(line, ' ', line_bytes);
    if (line_bytes > sizeof bytes)
        FAIL(CF_ERR_LIMIT, "%zu bytes, expected at most %zu", line_bytes, sizeof bytes);
    if (!space || space == line || space == line + line_bytes - 1)
        FAIL(CF_ERR_INVALID, "expected two tokens with one space between, found \"%s\"", shown(line, line_bytes, text));
    const size_t left_bytes = (size_t)(space - line);
    if (!to_bytes(v, line, left_bytes, bytes, &left_count) ||
        !to_bytes(v, space + 1, line_bytes - left_bytes - 1, bytes + left_count, &right_count))
        FAIL(CF_ERR_INVALID, "expected two tokens in the byte alphabet with one space between, found \"%s\"",
             shown(line, line_bytes, text));
    TRY(find_part(v, "first part", bytes, left_count, &left));
    TRY(find_part(v, "second part", bytes + left_count, right_count, &right));
    TRY(find_part(v, "result", bytes, left_count + right_count, &result));
    merge_slot *slot = merge_find(tok->slots, tok->slot_mask, left, right);
    if (slot->left != BPE_NO_ID)
        FAIL(CF_ERR_CORRUPT, "the merge \"%s\" stands already as number %u", shown(line, line_bytes, text),
             slot->rank + 1);
    *slot = (merge_slot){.left = left, .right = right, .rank = rank, .result = result};
out:
    return err;
}

static cf_err load_merges(const tokenizer_source *src, const vocab_table *v, tokenizer *tok)
{
    cf_err err;
    uint32_t rank = 0;
    size_t line_no = 0, line_count = 1;
    const char *p = src->merges, *const end = src->merges + src->merges_bytes;
    TRY(refuse_bad_text(src->merges_name, src->merges, src->merges_bytes));
    for (size_t i = 0; i < src->merges_bytes; i++)
        line_count += src->merges[i] == '\n';
    const size_t slot_count = power_of_two_above(2 * line_count);
    TRY(mem_alloc(slot_count, sizeof *tok->slots, &tok->slots));
    memset(tok->slots, 0xFF, slot_count * sizeof *tok->slots); /* left = BPE_NO_ID */
    tok->slot_mask = slot_count - 1;
    while (p < end) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        const size_t bytes = (size_t)((newline ? newline : end) - p);
        line_no++;
        /* Only this exact word on line 1 is a header: many merges begin with '#'. */
        if (!(line_no == 1 && bytes >= 9 && memcmp(p, "#version:", 9) == 0)) {
            err = read_merge(v, tok, p, bytes, rank++);
            if (err != CF_OK) {
                err = err_context(err, "%s:%zu", src->merges_name, line_no);
                goto out;
            }
        }
        p += bytes + 1;
    }
    if (rank == 0)
        FAIL(CF_ERR_INVALID, "%s: expected one merge a line, found none", src->merges_name);
out:
    return err;
}

cf_err tokenizer_open_bytes(const tokenizer_source *src, tokenizer **ret_tok)
{
    cf_err err;
    tokenizer *tok = NULL;
    vocab_table v = {0};
    TRY(mem_alloc(1, sizeof *tok, &tok));
    TRY(load_vocab(src, &v, tok));
    TRY(load_merges(src, &v, tok));
    *ret_tok = tok;
    tok = NULL;
out:
    mem_free(v.slots);
    mem_free(v.entries);
    mem_free(v.pool);
    tokenizer_close(tok);
    return err;
}

cf_err tokenizer_open(const char *dir, tokenizer **ret_tok)
{
    cf_err err;
    char folder[IO_PATH_BYTES], vocab_path[IO_PATH_BYTES], merges_path[IO_PATH_BYTES];
    char *vocab = NULL, *merges = NULL;
    tokenizer_source src = {.vocab_name = vocab_path, .merges_name = merges_path};
    bool is_there;
    TRY(io_join(folder, sizeof folder, dir, "CosyVoice-BlankEN"));
    TRY(io_find(folder, &is_there));
    if (is_there)
        dir = folder;
    TRY(io_join(vocab_path, sizeof vocab_path, dir, "vocab.json"));
    TRY(io_join(merges_path, sizeof merges_path, dir, "merges.txt"));
    TRY(io_read_file(vocab_path, BPE_FILE_BYTES_MAX, &vocab, &src.vocab_bytes));
    TRY(io_read_file(merges_path, BPE_FILE_BYTES_MAX, &merges, &src.merges_bytes));
    src.vocab = vocab;
    src.merges = merges;
    TRY(tokenizer_open_bytes(&src, ret_tok));
out:
    mem_free(vocab);
    mem_free(merges);
    return err;
}

void tokenizer_close(tokenizer *tok)
{
    if (!tok)
        return;
    mem_free(tok->slots);
    mem_free(tok);
}
