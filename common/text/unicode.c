/*
 * unicode.c - the only file that includes ICU. Any process, any thread; ICU's property tables and its NFC instance are
 * static data of the library, so nothing is opened and nothing is loaded.
 *
 * Fails: CF_ERR_NOMEM; CF_ERR_INVALID when ICU refuses, which valid UTF-8 within its 2^31 limit cannot cause.
 */
#include "common/text/unicode.h"

#include <string.h>
#include <unicode/uchar.h>
#include <unicode/unorm2.h>
#include <unicode/ustring.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"

_Static_assert(sizeof(UChar) == sizeof(uint16_t), "ICU's code unit");

#define NFC_TEXT_BYTES_MAX ((size_t)1 << 26) /* keeps three times the units below ICU's int32 lengths */

/* The tokenizer's normaliser knows Unicode 9.0: marks that came later do not move past others and combine with nothing
 * (measured on every code point against tokenizers 0.21.4). Holding ICU to it also makes the ids independent of ICU's
 * version. */
#define NFC_UNICODE_VERSION 9

char_class unicode_class(uint32_t cp)
{
    const uint32_t mask = U_GET_GC_MASK((UChar32)cp);
    if (mask & U_GC_L_MASK)
        return CHAR_LETTER;
    if (mask & U_GC_N_MASK)
        return CHAR_NUMBER;
    return u_isUWhiteSpace((UChar32)cp) ? CHAR_SPACE : CHAR_OTHER;
}

/* The four information separators U+001C..U+001F are white space to Python and not to Unicode. */
bool unicode_is_strip_space(uint32_t cp)
{
    return u_isUWhiteSpace((UChar32)cp) || (cp >= 0x1C && cp <= 0x1F);
}

bool unicode_is_digit(uint32_t cp)
{
    const int32_t type = u_getIntPropertyValue((UChar32)cp, UCHAR_NUMERIC_TYPE);
    return type == U_NT_DECIMAL || type == U_NT_DIGIT;
}

int unicode_decimal_value(uint32_t cp)
{
    return u_charType((UChar32)cp) == U_DECIMAL_DIGIT_NUMBER ? u_charDigitValue((UChar32)cp) : -1;
}

bool unicode_is_punct_or_symbol(uint32_t cp)
{
    return (U_GET_GC_MASK((UChar32)cp) & (U_GC_P_MASK | U_GC_S_MASK)) != 0;
}

bool unicode_is_han(uint32_t cp)
{
    return cp >= 0x4E00 && cp <= 0x9FFF;
}

void nfc_scratch_done(nfc_scratch *scratch)
{
    mem_free(scratch->units);
    mem_free(scratch->text);
    *scratch = (nfc_scratch){0};
}

/* Nothing below U+0300 combines with its neighbours or changes by itself. */
static bool is_trivially_nfc(const char *text, size_t text_bytes)
{
    for (size_t i = 0; i < text_bytes; i++)
        if ((unsigned char)text[i] >= 0xCC)
            return false;
    return true;
}

static cf_err grow(nfc_scratch *scratch, size_t units, size_t bytes)
{
    cf_err err = CF_OK;
    if (units > scratch->capacity_units) {
        TRY(mem_resize(&scratch->units, units, sizeof *scratch->units));
        scratch->capacity_units = units;
    }
    if (bytes > scratch->capacity_bytes) {
        TRY(mem_resize(&scratch->text, bytes, 1));
        scratch->capacity_bytes = bytes;
    }
out:
    return err;
}

/* Start of the first character at or behind off that came after NFC_UNICODE_VERSION, else text_bytes. */
static size_t old_span_end(const char *text, size_t text_bytes, size_t off)
{
    while (off < text_bytes) {
        uint32_t cp;
        UVersionInfo age;
        const size_t step = utf8_decode(text + off, text_bytes - off, &cp);
        CF_ASSERT(step > 0);
        u_charAge((UChar32)cp, age);
        if (age[0] > NFC_UNICODE_VERSION)
            break;
        off += step;
    }
    return off;
}

/* Appends NFC of text to scratch->text at *used. */
static cf_err put_nfc(nfc_scratch *scratch, const char *text, size_t text_bytes, size_t *used)
{
    UErrorCode status = U_ZERO_ERROR;
    int32_t source_units = 0, result_bytes = 0;
    UChar *const source = scratch->units;
    UChar *const result = scratch->units + text_bytes;
    const UNormalizer2 *nfc = unorm2_getNFCInstance(&status);
    u_strFromUTF8(source, (int32_t)text_bytes, &source_units, text, (int32_t)text_bytes, &status);
    const int32_t result_units =
        unorm2_normalize(nfc, source, source_units, result, (int32_t)(text_bytes * 3), &status);
    u_strToUTF8(scratch->text + *used, (int32_t)(scratch->capacity_bytes - *used), &result_bytes, result, result_units,
                &status);
    if (U_FAILURE(status))
        return err_set(CF_ERR_INVALID, "text: normalisation to NFC failed: %s", u_errorName(status));
    *used += (size_t)result_bytes;
    return CF_OK;
}

cf_err unicode_nfc(nfc_scratch *scratch, const char *text, size_t text_bytes, const char **ret_text, size_t *ret_bytes)
{
    cf_err err = CF_OK;
    size_t used = 0;
    if (is_trivially_nfc(text, text_bytes)) {
        *ret_text = text;
        *ret_bytes = text_bytes;
        return CF_OK;
    }
    if (text_bytes > NFC_TEXT_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "text: %zu bytes, at most %zu can be normalised", text_bytes, NFC_TEXT_BYTES_MAX);
    /* A byte gives at most one unit; NFC gives at most three units for one (UAX 15), and a unit at most three bytes. */
    TRY(grow(scratch, text_bytes * 4, text_bytes * 9));
    for (size_t off = 0; off < text_bytes;) {
        uint32_t cp;
        const size_t end = old_span_end(text, text_bytes, off);
        if (end > off)
            TRY(put_nfc(scratch, text + off, end - off, &used));
        const size_t newer_bytes = utf8_decode(text + end, text_bytes - end, &cp); /* 0 at the end */
        memcpy(scratch->text + used, text + end, newer_bytes);
        used += newer_bytes;
        off = end + newer_bytes;
    }
    *ret_text = scratch->text;
    *ret_bytes = used;
out:
    return err;
}
