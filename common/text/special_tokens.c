/*
 * special_tokens.c - the table of special tokens and exact matching. Any process, any thread; pure.
 *
 * The order below is the id assignment of the released model and of every model trained with it: never reorder.
 * Fails: asserts that an index is inside the table.
 * Source: cosy cosyvoice/tokenizer/tokenizer.py CosyVoice3Tokenizer @ace7c47 (order); transformers 4.51.3 added tokens
 * (leftmost-longest on the raw text).
 */
#include "common/text/special_tokens.h"

#include <string.h>

#include "common/base/check.h"

#define T(literal)                   \
    {                                \
        literal, sizeof(literal) - 1 \
    }

static const struct {
    const char *text;
    size_t text_bytes;
} table[] = {
    /* clang-format off */
    T("<|endoftext|>"), T("<|im_start|>"), T("<|im_end|>"), T("<|endofprompt|>"), T("[breath]"),
    T("<strong>"), T("</strong>"), T("[noise]"), T("[laughter]"), T("[cough]"), T("[clucking]"),
    T("[accent]"), T("[quick_breath]"), T("<laughter>"), T("</laughter>"), T("[hissing]"), T("[sigh]"),
    T("[vocalized-noise]"), T("[lipsmack]"), T("[mn]"), T("<|endofsystem|>"), T("[AA]"), T("[AA0]"),
    T("[AA1]"), T("[AA2]"), T("[AE]"), T("[AE0]"), T("[AE1]"), T("[AE2]"), T("[AH]"), T("[AH0]"), T("[AH1]"),
    T("[AH2]"), T("[AO]"), T("[AO0]"), T("[AO1]"), T("[AO2]"), T("[AW]"), T("[AW0]"), T("[AW1]"), T("[AW2]"),
    T("[AY]"), T("[AY0]"), T("[AY1]"), T("[AY2]"), T("[B]"), T("[CH]"), T("[D]"), T("[DH]"), T("[EH]"),
    T("[EH0]"), T("[EH1]"), T("[EH2]"), T("[ER]"), T("[ER0]"), T("[ER1]"), T("[ER2]"), T("[EY]"), T("[EY0]"),
    T("[EY1]"), T("[EY2]"), T("[F]"), T("[G]"), T("[HH]"), T("[IH]"), T("[IH0]"), T("[IH1]"), T("[IH2]"),
    T("[IY]"), T("[IY0]"), T("[IY1]"), T("[IY2]"), T("[JH]"), T("[K]"), T("[L]"), T("[M]"), T("[N]"),
    T("[NG]"), T("[OW]"), T("[OW0]"), T("[OW1]"), T("[OW2]"), T("[OY]"), T("[OY0]"), T("[OY1]"), T("[OY2]"),
    T("[P]"), T("[R]"), T("[S]"), T("[SH]"), T("[T]"), T("[TH]"), T("[UH]"), T("[UH0]"), T("[UH1]"),
    T("[UH2]"), T("[UW]"), T("[UW0]"), T("[UW1]"), T("[UW2]"), T("[V]"), T("[W]"), T("[Y]"), T("[Z]"),
    T("[ZH]"), T("[a]"), T("[ai]"), T("[an]"), T("[ang]"), T("[ao]"), T("[b]"), T("[c]"), T("[ch]"), T("[d]"),
    T("[e]"), T("[ei]"), T("[en]"), T("[eng]"), T("[f]"), T("[g]"), T("[h]"), T("[i]"), T("[ian]"), T("[in]"),
    T("[ing]"), T("[iu]"), T("[ià]"), T("[iàn]"), T("[iàng]"), T("[iào]"), T("[iá]"), T("[ián]"), T("[iáng]"),
    T("[iáo]"), T("[iè]"), T("[ié]"), T("[iòng]"), T("[ióng]"), T("[iù]"), T("[iú]"), T("[iā]"), T("[iān]"),
    T("[iāng]"), T("[iāo]"), T("[iē]"), T("[iě]"), T("[iōng]"), T("[iū]"), T("[iǎ]"), T("[iǎn]"), T("[iǎng]"),
    T("[iǎo]"), T("[iǒng]"), T("[iǔ]"), T("[j]"), T("[k]"), T("[l]"), T("[m]"), T("[n]"), T("[o]"),
    T("[ong]"), T("[ou]"), T("[p]"), T("[q]"), T("[r]"), T("[s]"), T("[sh]"), T("[t]"), T("[u]"), T("[uang]"),
    T("[ue]"), T("[un]"), T("[uo]"), T("[uà]"), T("[uài]"), T("[uàn]"), T("[uàng]"), T("[uá]"), T("[uái]"),
    T("[uán]"), T("[uáng]"), T("[uè]"), T("[ué]"), T("[uì]"), T("[uí]"), T("[uò]"), T("[uó]"), T("[uā]"),
    T("[uāi]"), T("[uān]"), T("[uāng]"), T("[uē]"), T("[uě]"), T("[uī]"), T("[uō]"), T("[uǎ]"), T("[uǎi]"),
    T("[uǎn]"), T("[uǎng]"), T("[uǐ]"), T("[uǒ]"), T("[vè]"), T("[w]"), T("[x]"), T("[y]"), T("[z]"),
    T("[zh]"), T("[à]"), T("[ài]"), T("[àn]"), T("[àng]"), T("[ào]"), T("[á]"), T("[ái]"), T("[án]"),
    T("[áng]"), T("[áo]"), T("[è]"), T("[èi]"), T("[èn]"), T("[èng]"), T("[èr]"), T("[é]"), T("[éi]"),
    T("[én]"), T("[éng]"), T("[ér]"), T("[ì]"), T("[ìn]"), T("[ìng]"), T("[í]"), T("[ín]"), T("[íng]"),
    T("[ò]"), T("[òng]"), T("[òu]"), T("[ó]"), T("[óng]"), T("[óu]"), T("[ù]"), T("[ùn]"), T("[ú]"),
    T("[ún]"), T("[ā]"), T("[āi]"), T("[ān]"), T("[āng]"), T("[āo]"), T("[ē]"), T("[ēi]"), T("[ēn]"),
    T("[ēng]"), T("[ě]"), T("[ěi]"), T("[ěn]"), T("[ěng]"), T("[ěr]"), T("[ī]"), T("[īn]"), T("[īng]"),
    T("[ō]"), T("[ōng]"), T("[ōu]"), T("[ū]"), T("[ūn]"), T("[ǎ]"), T("[ǎi]"), T("[ǎn]"), T("[ǎng]"),
    T("[ǎo]"), T("[ǐ]"), T("[ǐn]"), T("[ǐng]"), T("[ǒ]"), T("[ǒng]"), T("[ǒu]"), T("[ǔ]"), T("[ǔn]"),
    T("[ǘ]"), T("[ǚ]"), T("[ǜ]"),
    /* clang-format on */
};
_Static_assert(CF_COUNT(table) == SPECIAL_COUNT, "the table and its count agree");

const char *special_text(size_t special_idx)
{
    CF_ASSERT(special_idx < SPECIAL_COUNT);
    return table[special_idx].text;
}

int special_match(const char *text, size_t text_bytes, size_t *ret_bytes)
{
    if (text_bytes == 0 || (text[0] != '[' && text[0] != '<'))
        return -1;
    const size_t reach_bytes = text_bytes < SPECIAL_BYTES_MAX ? text_bytes : SPECIAL_BYTES_MAX;
    const char *close = memchr(text, text[0] == '[' ? ']' : '>', reach_bytes);
    if (!close)
        return -1;
    const size_t bytes = (size_t)(close - text) + 1;
    for (size_t i = 0; i < SPECIAL_COUNT; i++)
        if (table[i].text_bytes == bytes && memcmp(table[i].text, text, bytes) == 0) {
            *ret_bytes = bytes;
            return (int)i;
        }
    return -1;
}

int special_find(const char *text, size_t text_bytes, size_t *ret_off, size_t *ret_bytes)
{
    for (size_t off = 0; off < text_bytes; off++) {
        const int special_idx = special_match(text + off, text_bytes - off, ret_bytes);
        if (special_idx >= 0) {
            *ret_off = off;
            return special_idx;
        }
    }
    return -1;
}
