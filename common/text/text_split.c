/*
 * text_split.c - sentence cutting and packing. Any process, any thread; pure but for memory.
 *
 * Sentences are kept one behind another in one buffer, so that every candidate segment is a range of it: a mark that is
 * dropped (the second of a run) never enters, and a quote that belongs to the sentence before is simply appended.
 * Fails: CF_ERR_NOMEM. Asserts that text is not empty and valid UTF-8.
 * Source: cosy cosyvoice/utils/frontend_utils.py split_paragraph @ace7c47.
 */
#include "common/text/text_split.h"

#include <stdint.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/text/text_buf.h"

/* Sentences in their buffer while they are cut and packed. */
typedef struct splitter {
    const tokenizer *tok; /* borrowed */
    text_lang lang;
    text_buf kept;
    size_t *ends; /* owned; end of each sentence, later of each segment */
    size_t end_count;
    size_t capacity_ends;
    id_list ids; /* scratch of measure */
} splitter;

static bool is_mark(text_lang lang, uint32_t cp)
{
    static const uint32_t zh[] = {0x3002, 0xFF1F, 0xFF01, 0xFF1B, 0xFF1A,
                                  0x3001, '.',    '?',    '!',    ';'}; /* 。？！；：、 */
    static const uint32_t en[] = {'.', '?', '!', ';', ':'};
    const uint32_t *marks = lang == TEXT_LANG_ZH ? zh : en;
    const size_t mark_count = lang == TEXT_LANG_ZH ? CF_COUNT(zh) : CF_COUNT(en);
    for (size_t i = 0; i < mark_count; i++)
        if (marks[i] == cp)
            return true;
    return false;
}

/* Bytes of a closing quote at off, or 0. */
static size_t quote_at(const char *text, size_t text_bytes, size_t off)
{
    uint32_t cp;
    const size_t bytes = utf8_decode(text + off, text_bytes - off, &cp);
    return bytes && (cp == '"' || cp == 0x201D) ? bytes : 0;
}

static cf_err push_end(splitter *s)
{
    if (s->end_count == s->capacity_ends) {
        const size_t capacity = s->capacity_ends ? s->capacity_ends * 2 : 32;
        cf_err err = mem_resize(&s->ends, capacity, sizeof *s->ends);
        if (err != CF_OK)
            return err;
        s->capacity_ends = capacity;
    }
    s->ends[s->end_count++] = s->kept.text_bytes;
    return CF_OK;
}

/* Cuts text, which ends with a mark, behind each mark; a mark with nothing before it is dropped. */
static cf_err cut(splitter *s, const char *text, size_t text_bytes, bool *ret_quote_unattached)
{
    cf_err err = CF_OK;
    size_t start = 0, step;
    for (size_t off = 0; off < text_bytes; off += step) {
        uint32_t cp;
        step = utf8_decode(text + off, text_bytes - off, &cp);
        CF_ASSERT(step > 0);
        if (!is_mark(s->lang, cp))
            continue;
        if (off > start) {
            TRY(text_buf_put(&s->kept, text + start, off + step - start));
            TRY(push_end(s));
        }
        const size_t quote_bytes = quote_at(text, text_bytes, off + step);
        if (quote_bytes > 0) {
            if (s->end_count == 0) {
                *ret_quote_unattached = true;
                return CF_OK;
            }
            TRY(text_buf_put(&s->kept, text + off + step, quote_bytes));
            s->ends[s->end_count - 1] = s->kept.text_bytes;
            step += quote_bytes;
        }
        start = off + step;
    }
out:
    return err;
}

/* Length of the kept bytes [start, end): code points, or tokens of the range as a text of its own. */
static cf_err measure(splitter *s, size_t start, size_t end, size_t *ret_length)
{
    if (s->lang == TEXT_LANG_ZH) {
        *ret_length = utf8_count(s->kept.text + start, end - start);
        return CF_OK;
    }
    s->ids.id_count = 0;
    cf_err err = tokenizer_encode(s->tok, s->kept.text + start, end - start, &s->ids);
    if (err == CF_OK)
        *ret_length = s->ids.id_count;
    return err;
}

/* Joins sentences while they fit; ends becomes the ends of segments, in place. */
static cf_err pack(splitter *s)
{
    cf_err err = CF_OK;
    size_t segments = 0, start = 0, end = 0, length = 0, joined;
    for (size_t i = 0; i < s->end_count; i++) {
        const size_t next_end = s->ends[i];
        TRY(measure(s, start, next_end, &joined));
        if (joined > SPLIT_LENGTH_MAX && length > SPLIT_LENGTH_MIN) {
            s->ends[segments++] = end;
            start = end;
            TRY(measure(s, start, next_end, &joined));
        }
        length = joined;
        end = next_end;
    }
    if (end > start) {
        if (length < SPLIT_LENGTH_MERGE && segments > 0)
            segments--; /* a short rest belongs to the segment before */
        s->ends[segments++] = end;
    }
    s->end_count = segments;
out:
    return err;
}

/* The whole text must end with a mark, or its last sentence would be lost. */
static cf_err with_stop(text_lang lang, const char *text, size_t text_bytes, text_buf *ret_buf)
{
    cf_err err;
    uint32_t cp;
    size_t last = text_bytes - 1;
    while (last > 0 && ((unsigned char)text[last] & 0xC0) == 0x80)
        last--;
    CF_ASSERT(utf8_decode(text + last, text_bytes - last, &cp) > 0);
    TRY(text_buf_put(ret_buf, text, text_bytes));
    if (!is_mark(lang, cp))
        TRY(text_buf_put_str(ret_buf, lang == TEXT_LANG_ZH ? "。" : "."));
out:
    return err;
}

cf_err text_split_paragraph(const tokenizer *tok, text_lang lang, const char *text, size_t text_bytes,
                            text_split *ret_split)
{
    cf_err err;
    splitter s = {.tok = tok, .lang = lang};
    text_buf stopped = {0};
    text_split split = {0};
    CF_ASSERT(text_bytes > 0);
    TRY(with_stop(lang, text, text_bytes, &stopped));
    TRY(cut(&s, stopped.text, stopped.text_bytes, &split.quote_unattached));
    if (!split.quote_unattached) {
        TRY(pack(&s));
        split.text = s.kept.text;
        split.ends = s.ends;
        split.segment_count = s.end_count;
        s.kept = (text_buf){0};
        s.ends = NULL;
    }
    *ret_split = split;
out:
    text_buf_done(&stopped);
    text_buf_done(&s.kept);
    mem_free(s.ends);
    id_list_done(&s.ids);
    return err;
}

void text_split_done(text_split *split)
{
    mem_free(split->text);
    mem_free(split->ends);
    *split = (text_split){0};
}
