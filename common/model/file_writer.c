/*
 * file_writer.c - streaming counterpart of io_write_file. Any process; one owner. Owns a descriptor, a buffer and the
 * temporary file. Fails: CF_ERR_SYS with path and errno's words, CF_ERR_LIMIT for a path that is too long.
 */
#define _GNU_SOURCE
#include "common/model/file_writer.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"

#define BUFFER_BYTES (1u << 20) /* one system call a MiB */

struct file_writer {
    char path[IO_PATH_BYTES];
    char temp[IO_PATH_BYTES]; /* empty once renamed */
    int fd;
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
    if (snprintf(w->path, sizeof w->path, "%s", path) >= (int)sizeof w->path ||
        snprintf(w->temp, sizeof w->temp, "%s.tmp.%ld", path, (long)getpid()) >= (int)sizeof w->temp) {
        w->temp[0] = '\0';
        FAIL(CF_ERR_LIMIT, "%s: path longer than %d bytes", path, IO_PATH_BYTES);
    }
    w->fd = open(w->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (w->fd < 0) {
        err = err_sys("%s: create", w->temp);
        w->temp[0] = '\0';
        goto out;
    }
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

static cf_err sync_folder(const char *path)
{
    char folder[IO_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder ? 1 : 0] = '\0';
    else
        snprintf(folder, sizeof folder, ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys("%s: open", folder);
    const cf_err err = fsync(fd) == 0 ? CF_OK : err_sys("%s: fsync", folder);
    io_close(&fd);
    return err;
}

cf_err file_writer_finish(file_writer *w)
{
    cf_err err;
    TRY(flush(w));
    if (fsync(w->fd) != 0) {
        err = err_sys("%s: fsync", w->temp);
        goto out;
    }
    if (rename(w->temp, w->path) != 0) {
        err = err_sys("%s: rename", w->path);
        goto out;
    }
    w->temp[0] = '\0';
    TRY(sync_folder(w->path));
out:
    return err;
}

void file_writer_close(file_writer *w)
{
    if (!w)
        return;
    io_close(&w->fd);
    if (w->temp[0])
        unlink(w->temp);
    mem_free(w);
}
