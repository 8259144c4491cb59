/* text_buf.h - a growing byte string for this folder's passes over a text. */
#ifndef CF_TEXT_TEXT_BUF_H
#define CF_TEXT_TEXT_BUF_H

#include <stddef.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Start with {0}. */
typedef struct text_buf {
    char *text; /* owned: text_buf_done; NUL-terminated once anything was put; NULL before */
    size_t text_bytes;
    size_t capacity_bytes;
} text_buf;

/* Appends. CF_ERR_NOMEM leaves the buffer as it was. */
CF_MUST_CHECK cf_err text_buf_put(text_buf *buf, const char *text, size_t text_bytes);
CF_MUST_CHECK cf_err text_buf_put_str(text_buf *buf, const char *text);

void text_buf_done(text_buf *buf);

#ifdef __cplusplus
}
#endif
#endif
