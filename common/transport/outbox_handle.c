/*
 * outbox_handle.c - the text of a memory handle: what travels in messages. Pure; any process, with or without CUDA.
 * Fails: CF_ERR_INVALID.
 */
#include <string.h>

#include "common/transport/outbox_cuda_ipc.h"

void outbox_handle_format(const outbox_handle *handle, char ret_text[2 * OUTBOX_HANDLE_BYTES + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < OUTBOX_HANDLE_BYTES; i++) {
        ret_text[2 * i] = digits[handle->bytes[i] >> 4];
        ret_text[2 * i + 1] = digits[handle->bytes[i] & 15];
    }
    ret_text[2 * OUTBOX_HANDLE_BYTES] = '\0';
}

static int digit_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

cf_err outbox_handle_parse(const char *text, outbox_handle *ret_handle)
{
    outbox_handle h;
    if (strlen(text) != 2 * OUTBOX_HANDLE_BYTES)
        return err_set(CF_ERR_INVALID, "a memory handle of %zu characters, expected %d hex digits", strlen(text),
                       2 * OUTBOX_HANDLE_BYTES);
    for (int i = 0; i < OUTBOX_HANDLE_BYTES; i++) {
        const int high = digit_of(text[2 * i]), low = digit_of(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return err_set(CF_ERR_INVALID, "a memory handle with characters that are not hex digits, at %d", 2 * i);
        h.bytes[i] = (unsigned char)(high << 4 | low);
    }
    *ret_handle = h;
    return CF_OK;
}
