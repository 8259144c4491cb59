/*
 * text_norm.c - normalisation: Chinese text by a table of replacements, any other by spelling out its numbers, then
 * splitting. Any process, any thread; pure but for memory.
 *
 * Fails: CF_ERR_LIMIT, CF_ERR_INVALID for bad UTF-8, CF_ERR_NOMEM.
 * Source: cosy cosyvoice/cli/frontend.py text_normalize, cosyvoice/utils/frontend_utils.py @ace7c47.
 * Differs: where upstream raises there are no segments and a reason (text_norm.h).
 */
#define _GNU_SOURCE /* memmem */
#include "common/text/text_norm.h"

#include <stdbool.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/text/number_words.h"
#include "common/text/text_buf.h"
#include "common/text/text_split.h"
#include "common/text/unicode.h"

static cf_err check_text(const char *text, size_t text_bytes)
{
    size_t bad_off;
    if (!utf8_valid(text, text_bytes, &bad_off))
        return err_set(CF_ERR_INVALID, "text: invalid UTF-8 at byte %zu", bad_off);
    const size_t chars = utf8_count(text, text_bytes);
    if (chars > TEXT_CHARS_MAX)
        return err_set(CF_ERR_LIMIT, "text: expected at most %d characters, found %zu", TEXT_CHARS_MAX, chars);
    return CF_OK;
}

static bool contains(const char *text, size_t text_bytes, const char *part)
{
    return memmem(text, text_bytes, part, strlen(part)) != NULL;
}

static bool contains_chinese(const char *text, size_t text_bytes)
{
    for (size_t off = 0; off < text_bytes;) {
        uint32_t cp;
        off += utf8_decode(text + off, text_bytes - off, &cp);
        if (unicode_is_han(cp))
            return true;
    }
    return false;
}

/* True for no characters at all, too. */
static bool is_only_punctuation(const char *text, size_t text_bytes)
{
    for (size_t off = 0; off < text_bytes;) {
        uint32_t cp;
        off += utf8_decode(text + off, text_bytes - off, &cp);
        if (!unicode_is_punct_or_symbol(cp))
            return false;
    }
    return true;
}

/* Narrows *text to what lies between leading and trailing white space. */
static void strip(const char **text, size_t *text_bytes)
{
    uint32_t cp;
    while (*text_bytes > 0) {
        const size_t step = utf8_decode(*text, *text_bytes, &cp);
        if (!unicode_is_strip_space(cp))
            break;
        *text += step;
        *text_bytes -= step;
    }
    while (*text_bytes > 0) {
        size_t last = *text_bytes - 1;
        while (((unsigned char)(*text)[last] & 0xC0) == 0x80)
            last--;
        utf8_decode(*text + last, *text_bytes - last, &cp);
        if (!unicode_is_strip_space(cp))
            break;
        *text_bytes = last;
    }
}

/* Replaces buf by itself with every `from`, left to right, changed to `to`. */
static cf_err replace_all(text_buf *buf, const char *from, const char *to)
{
    cf_err err = CF_OK;
    text_buf out = {0};
    const size_t from_bytes = strlen(from);
    const char *p = buf->text, *const end = buf->text + buf->text_bytes, *found;
    if (!contains(buf->text, buf->text_bytes, from))
        return CF_OK;
    while ((found = memmem(p, (size_t)(end - p), from, from_bytes)) != NULL) {
        TRY(text_buf_put(&out, p, (size_t)(found - p)));
        TRY(text_buf_put_str(&out, to));
        p = found + from_bytes;
    }
    TRY(text_buf_put(&out, p, (size_t)(end - p)));
    text_buf_done(buf);
    *buf = out;
    out = (text_buf){0};
out:
    text_buf_done(&out);
    return err;
}

/* Drops each space but those between two ASCII characters that are no spaces. A multi-byte neighbour shows a byte of
 * 0x80 or more on either side. Stripped text neither begins nor ends with a space, where upstream would wrap or raise.
 * */
static cf_err drop_blanks(text_buf *buf)
{
    cf_err err = CF_OK;
    text_buf out = {0};
    for (size_t i = 0; i < buf->text_bytes; i++) {
        const char *c = buf->text + i;
        if (*c == ' ') {
            CF_ASSERT(i > 0 && i + 1 < buf->text_bytes);
            const unsigned char before = (unsigned char)c[-1], behind = (unsigned char)c[1];
            if (before >= 0x80 || behind >= 0x80 || before == ' ' || behind == ' ')
                continue;
        }
        TRY(text_buf_put(&out, c, 1));
    }
    text_buf_done(buf);
    *buf = out;
    out = (text_buf){0};
out:
    text_buf_done(&out);
    return err;
}

/* A run of commas at the end becomes one full stop. */
static cf_err close_with_stop(text_buf *buf)
{
    static const char *const commas[] = {"，", ",", "、"};
    const size_t bytes_before = buf->text_bytes;
    for (bool found = true; found;) {
        found = false;
        for (size_t i = 0; i < CF_COUNT(commas) && !found; i++) {
            const size_t bytes = strlen(commas[i]);
            found = buf->text_bytes >= bytes && memcmp(buf->text + buf->text_bytes - bytes, commas[i], bytes) == 0;
            buf->text_bytes -= found ? bytes : 0;
        }
    }
    return buf->text_bytes < bytes_before ? text_buf_put_str(buf, "。") : CF_OK;
}

static cf_err rewrite_chinese(text_buf *buf)
{
    static const struct {
        const char *from, *to;
    } changes[] = {
        {"²", "平方"}, {"³", "立方"}, {".", "。"}, {" - ", "，"}, {"（", ""},
        {"）", ""},    {"【", ""},    {"】", ""},  {"`", ""},     {"——", " "}, /* two U+2014 */
    };
    cf_err err;
    TRY(replace_all(buf, "\n", ""));
    TRY(drop_blanks(buf));
    for (size_t i = 0; i < CF_COUNT(changes); i++)
        TRY(replace_all(buf, changes[i].from, changes[i].to));
    TRY(close_with_stop(buf));
out:
    return err;
}

/* Takes the split's segments, leaving out those that are punctuation alone. */
static cf_err take_segments(text_split *split, text_norm *norm)
{
    cf_err err;
    size_t start = 0;
    TRY(mem_alloc(split->segment_count, sizeof *norm->segments, &norm->segments));
    for (size_t i = 0; i < split->segment_count; i++) {
        const text_span span = {split->text + start, split->ends[i] - start};
        if (!is_only_punctuation(span.text, span.text_bytes))
            norm->segments[norm->segment_count++] = span;
        start = split->ends[i];
    }
    norm->segment_text = split->text;
    split->text = NULL;
    if (norm->segment_count == 0)
        norm->empty_reason = "the text is punctuation alone";
out:
    return err;
}

/* Stripped text that is not empty: fills norm but for `whole`, which stays in buf. */
static cf_err rewrite_and_split(const tokenizer *tok, const char *text, size_t text_bytes, text_buf *buf,
                                text_norm *norm)
{
    cf_err err;
    text_split split = {0};
    bool out_of_range = false;
    const text_lang lang = contains_chinese(text, text_bytes) ? TEXT_LANG_ZH : TEXT_LANG_EN;
    if (lang == TEXT_LANG_ZH) {
        TRY(text_buf_put(buf, text, text_bytes));
        TRY(rewrite_chinese(buf));
    } else {
        TRY(number_words_spell_out(text, text_bytes, buf, &out_of_range));
    }
    if (out_of_range) {
        norm->empty_reason = "a number has more than 36 digits";
        norm->upstream_raises = true;
        goto out;
    }
    TRY(text_split_paragraph(tok, lang, buf->text, buf->text_bytes, &split));
    if (split.quote_unattached) {
        norm->empty_reason = "a quotation mark follows a dropped punctuation mark and nothing precedes it";
        norm->upstream_raises = true;
        goto out;
    }
    TRY(take_segments(&split, norm));
out:
    text_split_done(&split);
    return err;
}

cf_err text_verbatim(const char *text, size_t text_bytes, text_norm *ret_norm)
{
    cf_err err;
    text_norm norm = {.whole_bytes = text_bytes, .segment_count = 1};
    TRY(check_text(text, text_bytes));
    TRY(mem_strndup(text, text_bytes, &norm.whole));
    TRY(mem_strndup(text, text_bytes, &norm.segment_text));
    TRY(mem_alloc(1, sizeof *norm.segments, &norm.segments));
    norm.segments[0] = (text_span){norm.segment_text, text_bytes};
    *ret_norm = norm;
    norm = (text_norm){0};
out:
    text_norm_done(&norm);
    return err;
}

cf_err text_normalize(const tokenizer *tok, const char *text, size_t text_bytes, text_norm *ret_norm)
{
    cf_err err;
    text_norm norm = {0};
    text_buf buf = {0};
    if (text_bytes == 0 || (contains(text, text_bytes, "<|") && contains(text, text_bytes, "|>")))
        return text_verbatim(text, text_bytes, ret_norm);
    TRY(check_text(text, text_bytes));
    strip(&text, &text_bytes);
    if (text_bytes > 0) {
        TRY(rewrite_and_split(tok, text, text_bytes, &buf, &norm));
    } else {
        norm.empty_reason = "the text is white space alone";
        norm.upstream_raises = true;
    }
    TRY(text_buf_put(&buf, "", 0)); /* a string even when nothing was put */
    norm.whole = buf.text;
    norm.whole_bytes = buf.text_bytes;
    buf = (text_buf){0};
    *ret_norm = norm;
    norm = (text_norm){0};
out:
    text_buf_done(&buf);
    text_norm_done(&norm);
    return err;
}

void text_norm_done(text_norm *norm)
{
    mem_free(norm->whole);
    mem_free(norm->segment_text);
    mem_free(norm->segments);
    *norm = (text_norm){0};
}
