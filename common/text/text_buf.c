/* text_buf.c - growing byte strings. Any process, one thread per buffer. Fails: CF_ERR_NOMEM. */
#include "common/text/text_buf.h"

#include <string.h>

#include "common/base/mem.h"

cf_err text_buf_put(text_buf *buf, const char *text, size_t text_bytes)
{
    const size_t need = buf->text_bytes + text_bytes + 1;
    if (need > buf->capacity_bytes) {
        const size_t capacity = need < 64 ? 64 : need * 2;
        cf_err err = mem_resize(&buf->text, capacity, 1);
        if (err != CF_OK)
            return err;
        buf->capacity_bytes = capacity;
    }
    if (text_bytes > 0)
        memcpy(buf->text + buf->text_bytes, text, text_bytes);
    buf->text_bytes += text_bytes;
    buf->text[buf->text_bytes] = '\0';
    return CF_OK;
}

cf_err text_buf_put_str(text_buf *buf, const char *text)
{
    return text_buf_put(buf, text, strlen(text));
}

void text_buf_done(text_buf *buf)
{
    mem_free(buf->text);
    *buf = (text_buf){0};
}
