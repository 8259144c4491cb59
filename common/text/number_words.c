/*
 * number_words.c - cardinal numbers in words. Any process, any thread; pure but for memory.
 *
 * ICU's spell-out rules join and punctuate differently ("one thousand one hundred"), so the words are a table of our
 * own. Groups of three digits are joined by ", "; a last group below one hundred is joined by " and ".
 * Fails: CF_ERR_NOMEM.
 * Source: cosy cosyvoice/utils/frontend_utils.py spell_out_number @ace7c47 over inflect 7.3.1 number_to_words.
 */
#include "common/text/number_words.h"

#include <stdint.h>

#include "common/base/check.h"
#include "common/base/utf8.h"
#include "common/text/unicode.h"

static const char *const ones[] = {"",         "one",     "two",     "three",     "four",     "five",    "six",
                                   "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",  "thirteen",
                                   "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
static const char *const tens[] = {"",      "",      "twenty",  "thirty", "forty",
                                   "fifty", "sixty", "seventy", "eighty", "ninety"};
static const char *const scales[] = {"",
                                     " thousand",
                                     " million",
                                     " billion",
                                     " trillion",
                                     " quadrillion",
                                     " quintillion",
                                     " sextillion",
                                     " septillion",
                                     " octillion",
                                     " nonillion",
                                     " decillion"};

/* "two hundred and one thousand": value 0..999, then the scale's word. */
static cf_err put_group(text_buf *out, unsigned value, size_t scale_idx)
{
    cf_err err = CF_OK;
    const unsigned rest = value % 100;
    if (value >= 100) {
        TRY(text_buf_put_str(out, ones[value / 100]));
        TRY(text_buf_put_str(out, rest ? " hundred and " : " hundred"));
    }
    if (rest < 20) {
        TRY(text_buf_put_str(out, ones[rest]));
    } else {
        TRY(text_buf_put_str(out, tens[rest / 10]));
        if (rest % 10) {
            TRY(text_buf_put_str(out, "-"));
            TRY(text_buf_put_str(out, ones[rest % 10]));
        }
    }
    TRY(text_buf_put_str(out, scales[scale_idx]));
out:
    return err;
}

/* digits: values 0..9 of a number that is neither 0 nor 1, most significant first. Only zeros of ASCII were stripped,
 * so an incomplete first group may be 0 in other scripts; upstream then names its scale alone ("thousand and five"). */
static cf_err put_digits(text_buf *out, const char *digits, size_t digit_count, bool *ret_out_of_range)
{
    cf_err err = CF_OK;
    bool first = true;
    for (size_t i = 0, take = digit_count % 3; i < digit_count; i += take, take = 3) {
        take = take ? take : 3;
        unsigned value = 0;
        for (size_t k = 0; k < take; k++)
            value = value * 10 + (unsigned)digits[i + k];
        if (value == 0 && take == 3)
            continue;
        const size_t scale_idx = (digit_count - i - take) / 3;
        if (scale_idx >= CF_COUNT(scales)) {
            *ret_out_of_range = true;
            break;
        }
        if (!first)
            TRY(text_buf_put_str(out, scale_idx == 0 && value < 100 ? " and " : ", "));
        first = false;
        if (value == 0)
            TRY(text_buf_put_str(out, scales[scale_idx] + 1)); /* without its space */
        else
            TRY(put_group(out, value, scale_idx));
    }
out:
    return err;
}

/* One run of digit characters. Those that are not decimal (superscripts, circled digits) count for nothing. */
static cf_err put_number(text_buf *out, const char *run, size_t run_bytes, text_buf *digits, bool *ret_out_of_range)
{
    cf_err err = CF_OK;
    size_t step, tail_sum = 0;
    digits->text_bytes = 0;
    for (size_t off = 0; off < run_bytes; off += step) {
        uint32_t cp;
        step = utf8_decode(run + off, run_bytes - off, &cp);
        const int value = unicode_decimal_value(cp);
        if (value < 0 || (digits->text_bytes == 0 && cp == '0'))
            continue;
        const char digit = (char)value;
        TRY(text_buf_put(digits, &digit, 1));
        tail_sum += (size_t)value;
    }
    if (tail_sum == 0)
        TRY(text_buf_put_str(out, "zero"));
    else if (tail_sum == 1 && digits->text[digits->text_bytes - 1] == 1)
        TRY(text_buf_put_str(out, "one"));
    else
        TRY(put_digits(out, digits->text, digits->text_bytes, ret_out_of_range));
out:
    return err;
}

cf_err number_words_spell_out(const char *text, size_t text_bytes, text_buf *out, bool *ret_out_of_range)
{
    cf_err err = CF_OK;
    text_buf digits = {0};
    size_t run_start = 0; /* start of the run of equal kind that off is in */
    bool in_number = false, out_of_range = false;
    for (size_t off = 0, step; off <= text_bytes; off += step) {
        uint32_t cp = 0;
        step = off < text_bytes ? utf8_decode(text + off, text_bytes - off, &cp) : 1;
        CF_ASSERT(step > 0);
        if (off < text_bytes && unicode_is_digit(cp) == in_number)
            continue;
        if (in_number)
            TRY(put_number(out, text + run_start, off - run_start, &digits, &out_of_range));
        else
            TRY(text_buf_put(out, text + run_start, off - run_start));
        run_start = off;
        in_number = !in_number;
    }
    *ret_out_of_range = out_of_range;
out:
    text_buf_done(&digits);
    return err;
}
