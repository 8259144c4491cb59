/*
 * line_reader.c - bounded lines. Any process, one owner. Owns a buffer of twice the longest line.
 * Fails: CF_ERR_LIMIT (that line alone), CF_ERR_SYS, CF_ERR_NOMEM.
 */
#define _GNU_SOURCE
#include "orchestrator/line_reader.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/mem.h"

#define NAME_SHOWN_BYTES 200 /* a longer path would leave an error text no room for what is wrong */

struct line_reader {
    int fd; /* borrowed */
    char name[NAME_SHOWN_BYTES + 4];
    char *buf; /* owned, 2 * line_bytes_max + 1 and a NUL */
    size_t capacity_bytes, line_bytes_max;
    size_t begin, end; /* unread bytes of buf */
    uint64_t read_off; /* in the file, of buf[end] */
    uint64_t number;
    bool at_end; /* of the file: nothing behind buf[end] */
};

cf_err line_reader_open(int fd, const char *name, size_t line_bytes_max, line_reader **ret_reader)
{
    cf_err err;
    line_reader *r = NULL;
    const size_t name_bytes = strlen(name);
    TRY(mem_alloc(1, sizeof *r, &r));
    r->fd = fd;
    r->line_bytes_max = line_bytes_max;
    r->capacity_bytes = 2 * line_bytes_max + 1;
    if (name_bytes > NAME_SHOWN_BYTES)
        snprintf(r->name, sizeof r->name, "...%s", name + name_bytes - NAME_SHOWN_BYTES);
    else
        snprintf(r->name, sizeof r->name, "%s", name);
    TRY(mem_alloc(r->capacity_bytes + 1, 1, &r->buf));
    *ret_reader = r;
    r = NULL;
out:
    line_reader_close(r);
    return err;
}

void line_reader_close(line_reader *r)
{
    if (!r)
        return;
    mem_free(r->buf);
    mem_free(r);
}

void line_reader_rewind(line_reader *r)
{
    r->begin = r->end = 0;
    r->read_off = r->number = 0;
    r->at_end = false;
}

uint64_t line_reader_number(const line_reader *r)
{
    return r->number;
}

const char *line_reader_name(const line_reader *r)
{
    return r->name;
}

/* Moves what is unread to the front and reads once. */
static cf_err fill(line_reader *r)
{
    memmove(r->buf, r->buf + r->begin, r->end - r->begin);
    r->end -= r->begin;
    r->begin = 0;
    ssize_t n;
    do
        n = fault_hit("line.read") ? (errno = EIO, -1)
                                   : pread(r->fd, r->buf + r->end, r->capacity_bytes - r->end, (off_t)r->read_off);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_sys("%s: read", r->name);
    r->at_end = n == 0;
    r->end += (size_t)n;
    r->read_off += (uint64_t)n;
    return CF_OK;
}

/* Drops bytes until behind the next line feed. */
static cf_err skip_line(line_reader *r)
{
    for (;;) {
        const char *feed = memchr(r->buf + r->begin, '\n', r->end - r->begin);
        if (feed) {
            r->begin = (size_t)(feed - r->buf) + 1;
            return CF_OK;
        }
        r->begin = r->end;
        if (r->at_end)
            return CF_OK;
        const cf_err err = fill(r);
        if (err != CF_OK)
            return err;
    }
}

cf_err line_reader_next(line_reader *r, line_view *ret_line)
{
    cf_err err = CF_OK;
    const char *feed;
    size_t looked = 0;
    while (!(feed = memchr(r->buf + r->begin + looked, '\n', r->end - r->begin - looked)) && !r->at_end &&
           r->end - r->begin <= r->line_bytes_max) {
        looked = r->end - r->begin;
        TRY(fill(r));
    }
    const size_t bytes = feed ? (size_t)(feed - r->buf) - r->begin : r->end - r->begin;
    if (bytes == 0 && !feed) {
        *ret_line = (line_view){.number = r->number + 1, .off = r->read_off};
        return CF_OK;
    }
    r->number++;
    if (bytes > r->line_bytes_max) {
        TRY(skip_line(r));
        FAIL(CF_ERR_LIMIT, "%s:%" PRIu64 ": line longer than %zu bytes", r->name, r->number, r->line_bytes_max);
    }
    char *text = r->buf + r->begin;
    *ret_line = (line_view){text, bytes, r->number, r->read_off - (r->end - r->begin), feed != NULL};
    text[bytes] = '\0';
    r->begin += bytes + (feed != NULL);
out:
    return err;
}
