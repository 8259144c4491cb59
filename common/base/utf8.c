/* utf8.c - strict UTF-8 decoding and encoding. Pure. Fails: by return value, never asserts on input bytes. */
#include "common/base/utf8.h"

#include <string.h>

size_t utf8_decode(const char *text, size_t text_bytes, uint32_t *ret_code_point)
{
    const unsigned char *s = (const unsigned char *)text;
    if (text_bytes == 0)
        return 0;
    if (s[0] < 0x80) {
        *ret_code_point = s[0];
        return 1;
    }
    const size_t need = s[0] >= 0xF0 && s[0] <= 0xF4  ? 4
                        : s[0] >= 0xE0 && s[0] < 0xF0 ? 3
                        : s[0] >= 0xC2 && s[0] < 0xE0 ? 2
                                                      : 0;
    if (need == 0 || need > text_bytes)
        return 0;
    uint32_t cp = s[0] & (0x7Fu >> need);
    for (size_t i = 1; i < need; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
        cp = cp << 6 | (s[i] & 0x3Fu);
    }
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (cp < smallest[need] || cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF))
        return 0;
    *ret_code_point = cp;
    return need;
}

bool utf8_valid(const char *text, size_t text_bytes, size_t *ret_bad_off)
{
    size_t off = 0;
    while (off < text_bytes) {
        uint64_t eight;
        uint32_t cp;
        if (text_bytes - off >= sizeof eight) { /* ASCII, as most of it is, eight bytes at a time */
            memcpy(&eight, text + off, sizeof eight);
            if (!(eight & 0x8080808080808080u)) {
                off += sizeof eight;
                continue;
            }
        }
        const size_t n = utf8_decode(text + off, text_bytes - off, &cp);
        if (n == 0) {
            if (ret_bad_off)
                *ret_bad_off = off;
            return false;
        }
        off += n;
    }
    return true;
}

size_t utf8_encode(uint32_t cp, char *ret_bytes)
{
    if (cp < 0x80) {
        ret_bytes[0] = (char)cp;
        return 1;
    }
    const size_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; cp >>= 6)
        ret_bytes[i] = (char)(0x80 | (cp & 0x3F));
    ret_bytes[0] = (char)((0xF00u >> n & 0xF0u) | cp);
    return n;
}

size_t utf8_count(const char *text, size_t text_bytes)
{
    size_t count = 0;
    for (size_t i = 0; i < text_bytes; i++)
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}
