/*
 * byte_buf.c - growable byte string. Any process; owned by whoever declared it. Fails: only through byte_buf_check.
 */
#include "common/model/byte_buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"

void byte_buf_done(byte_buf *b)
{
    mem_free(b->data);
    *b = (byte_buf){0};
}

static bool reserve(byte_buf *b, size_t bytes)
{
    if (b->failed)
        return false;
    if (bytes <= b->capacity_bytes - b->bytes)
        return true;
    size_t larger = b->capacity_bytes ? b->capacity_bytes : 256;
    while (larger - b->bytes < bytes)
        larger *= 2;
    if (mem_resize(&b->data, larger, 1) != CF_OK) {
        b->failed = true;
        return false;
    }
    b->capacity_bytes = larger;
    return true;
}

void byte_buf_add(byte_buf *b, const void *data, size_t bytes)
{
    if (bytes == 0 || !reserve(b, bytes))
        return;
    memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
}

void byte_buf_add_text(byte_buf *b, const char *text)
{
    byte_buf_add(b, text, strlen(text));
}

void byte_buf_printf(byte_buf *b, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    const int bytes = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    CF_ASSERT(bytes >= 0 && (size_t)bytes < sizeof line); /* callers print numbers and bounded names */
    byte_buf_add(b, line, (size_t)bytes);
}

void byte_buf_add_u8(byte_buf *b, unsigned value)
{
    const unsigned char byte = (unsigned char)value;
    byte_buf_add(b, &byte, 1);
}

static void add_le(byte_buf *b, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        byte_buf_add_u8(b, (unsigned)(value >> (8 * i) & 0xFFu));
}

void byte_buf_add_u16(byte_buf *b, unsigned value)
{
    add_le(b, value, 2);
}

void byte_buf_add_u32(byte_buf *b, uint32_t value)
{
    add_le(b, value, 4);
}

void byte_buf_add_u64(byte_buf *b, uint64_t value)
{
    add_le(b, value, 8);
}

static void add_escape(byte_buf *b, uint32_t code_point)
{
    static const char SHORT[] = "\b\t\n\f\r\"\\";
    static const char LETTER[] = "btnfr\"\\";
    const char *p = code_point > 0 && code_point < 128 ? strchr(SHORT, (int)code_point) : NULL;
    if (p)
        byte_buf_printf(b, "\\%c", LETTER[p - SHORT]);
    else if (code_point >= 0x10000)
        byte_buf_printf(b, "\\u%04x\\u%04x", 0xD800u + ((code_point - 0x10000) >> 10),
                        0xDC00u + ((code_point - 0x10000) & 0x3FFu));
    else if (code_point < 0x20 || code_point > 0x7F)
        byte_buf_printf(b, "\\u%04x", code_point);
    else
        byte_buf_add_u8(b, code_point);
}

void byte_buf_add_json_str(byte_buf *b, const char *text)
{
    size_t left = strlen(text);
    byte_buf_add_u8(b, '"');
    while (left > 0) {
        uint32_t code_point;
        const size_t used = utf8_decode(text, left, &code_point);
        CF_ASSERT(used > 0);
        add_escape(b, code_point);
        text += used;
        left -= used;
    }
    byte_buf_add_u8(b, '"');
}

cf_err byte_buf_check(const byte_buf *b)
{
    return b->failed ? err_set(CF_ERR_NOMEM, "out of memory after %zu bytes of output", b->bytes) : CF_OK;
}
