/*
 * byte_buf.h - a growable byte string for writers of headers, pickles and directories. An append that fails leaves the
 * buffer marked, later appends do nothing, and byte_buf_check reports it once: builders stay free of error branches.
 */
#ifndef CF_MODEL_BYTE_BUF_H
#define CF_MODEL_BYTE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct byte_buf {
    unsigned char *data; /* owned */
    size_t bytes;
    size_t capacity_bytes;
    bool failed; /* memory ran out */
} byte_buf;      /* {0} is an empty buffer */

void byte_buf_done(byte_buf *b);

void byte_buf_add(byte_buf *b, const void *data, size_t bytes);
void byte_buf_add_text(byte_buf *b, const char *text);
void byte_buf_printf(byte_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Little-endian integers. */
void byte_buf_add_u8(byte_buf *b, unsigned value);
void byte_buf_add_u16(byte_buf *b, unsigned value);
void byte_buf_add_u32(byte_buf *b, uint32_t value);
void byte_buf_add_u64(byte_buf *b, uint64_t value);
/* A JSON string with its quotes, in ASCII: everything else as \uXXXX. text must be valid UTF-8. */
void byte_buf_add_json_str(byte_buf *b, const char *text);

/* CF_ERR_NOMEM when any append failed. */
CF_MUST_CHECK cf_err byte_buf_check(const byte_buf *b);

#ifdef __cplusplus
}
#endif
#endif
