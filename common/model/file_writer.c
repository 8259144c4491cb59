/*
 * file_writer.c - streaming counterpart of io_write_file. Any process; one owner. Owns a descriptor, a buffer and the
 * temporary file. Fails: CF_ERR_SYS with path and errno's words, CF_ERR_LIMIT for a path that is too long.
 */
#define _GNU_SOURCE
#include "common/model/file_writer.h"

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"

#define BUFFER_BYTES (1u << 20) /* one system call a MiB */

struct file_writer {
    char path[IO_PATH_BYTES];
    char temp[IO_PATH_BYTES];
    int fd; /* -1 until temp exists */
    bool is_finished;
    uint64_t off;
    size_t buffered_bytes;
    unsigned char buffer[BUFFER_BYTES];
};

cf_err file_writer_create(const char *path, file_writer **ret_writer)
{
    cf_err err;
    file_writer *w = NULL;
    TRY(mem_alloc(1, sizeof *w, &w));
    w->fd = -1;
    TRY(io_create_beside(path, w->temp, &w->fd));
    memcpy(w->path, path, strlen(path) + 1); /* shorter than the temporary name */
    *ret_writer = w;
    w = NULL;
out:
    file_writer_close(w);
    return err;
}

static cf_err flush(file_writer *w)
{
    const cf_err err = io_write_all(w->fd, w->buffer, w->buffered_bytes);
    w->buffered_bytes = 0;
    return err == CF_OK ? CF_OK : err_context(err, "%s", w->path);
}

cf_err file_writer_append(file_writer *w, const void *data, size_t bytes)
{
    cf_err err = CF_OK;
    const unsigned char *p = data;
    w->off += bytes;
    while (bytes > 0) {
        const size_t room = BUFFER_BYTES - w->buffered_bytes;
        const size_t n = bytes < room ? bytes : room;
        memcpy(w->buffer + w->buffered_bytes, p, n);
        w->buffered_bytes += n;
        p += n;
        bytes -= n;
        if (w->buffered_bytes == BUFFER_BYTES)
            TRY(flush(w));
    }
out:
    return err;
}

uint64_t file_writer_off(const file_writer *w)
{
    return w->off;
}

cf_err file_writer_finish(file_writer *w)
{
    cf_err err;
    TRY(flush(w));
    TRY(io_commit(w->fd, w->temp, w->path));
    w->is_finished = true;
out:
    return err;
}

void file_writer_close(file_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0 && !w->is_finished)
        unlink(w->temp);
    io_close(&w->fd);
    mem_free(w);
}
