/*
 * line_reader.h - a file as numbered lines of bounded length, in a buffer of fixed size: manifests and ledgers are
 * streamed, never held. Reads with pread, so the descriptor's own position is of no account.
 */
#ifndef CF_ORCHESTRATOR_LINE_READER_H
#define CF_ORCHESTRATOR_LINE_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

typedef struct line_reader line_reader;

typedef struct line_view {
    char *text;        /* borrowed until the next call, the caller may change it; NUL behind it; NULL at the end */
    size_t text_bytes; /* without line feed */
    uint64_t number;   /* from 1 */
    uint64_t off;      /* of its first byte in the file */
    bool ended;        /* with a line feed; only the last line may lack it */
} line_view;

/* name, copied, begins error texts; of a long one the end is kept. */
CF_MUST_CHECK cf_err line_reader_open(int fd, const char *name, size_t line_bytes_max, line_reader **ret_reader);
void line_reader_close(line_reader *r); /* NULL is fine; leaves fd open */
void line_reader_rewind(line_reader *r);

/* CF_ERR_LIMIT, "name:number: ...", for a line that is too long: the next call goes on behind it. CF_ERR_SYS: read. */
CF_MUST_CHECK cf_err line_reader_next(line_reader *r, line_view *ret_line);

/* Of the line that was read last, also of one that was too long. */
uint64_t line_reader_number(const line_reader *r);
const char *line_reader_name(const line_reader *r);

#endif
