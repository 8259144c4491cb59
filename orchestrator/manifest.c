/*
 * manifest.c - opening, spooling and streaming of manifests; the rules of a row are in manifest_row.c. Runs in the
 * command. Owns the descriptor, the line buffer and the parsed row at hand.
 * Fails: see manifest_open and manifest_next.
 */
#define _GNU_SOURCE
#include "orchestrator/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "orchestrator/line_reader.h"
#include "orchestrator/manifest_impl.h"

#define ROW_DEPTH_MAX     4 /* a row is flat: deeper values are refused by their type, with the key's name */
#define SPOOL_CHUNK_BYTES 65536
#define WHERE_BYTES       256

struct manifest {
    int fd; /* owned */
    bool is_columns;
    manifest_defaults defaults; /* strings borrowed from the caller */
    struct stat opened;         /* to notice that the file is changed under us */
    line_reader *lines;         /* owned */
    json *row;                  /* owned; the strings of the last row */
};

static cf_err find_format(const char *path, const char *format_name, bool *ret_is_columns)
{
    const char *dot = strrchr(path, '.');
    const char *name = format_name                          ? format_name
                       : strcmp(path, "-") == 0             ? "jsonl"
                       : dot && !strchr(dot, '/') && dot[1] ? dot + 1
                                                            : "";
    const bool is_columns = strcasecmp(name, "csv") == 0 || strcasecmp(name, "txt") == 0;
    if (!is_columns && strcasecmp(name, "jsonl") != 0)
        return format_name ? err_set(CF_ERR_INVALID, "manifest format \"%.40s\": expected jsonl, csv or txt", name)
                           : err_set(CF_ERR_INVALID, "%s: expected .jsonl, .csv or .txt, or --format", path);
    *ret_is_columns = is_columns;
    return CF_OK;
}

/* A temporary file without a name. */
static cf_err open_spool(int *ret_fd)
{
    char path[IO_PATH_BYTES];
    if (snprintf(path, sizeof path, "%s/cosyfarm-rows-XXXXXX", io_temp_root()) >= (int)sizeof path)
        return err_set(CF_ERR_LIMIT, "TMPDIR: longer than %d bytes", IO_PATH_BYTES);
    const int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return err_sys("%s: create", path);
    unlink(path);
    *ret_fd = fd;
    return CF_OK;
}

static cf_err spool(int from, const char *name, int *ret_fd)
{
    cf_err err;
    int fd = -1;
    char *chunk = NULL;
    ssize_t n;
    TRY(mem_alloc(SPOOL_CHUNK_BYTES, 1, &chunk));
    TRY(open_spool(&fd));
    for (;;) {
        if (!process_wait_readable(from)) /* somebody wants the command to end, and a pipe may stay open for ever */
            FAIL(CF_ERR_CANCELLED, "%s: interrupted", name);
        n = read(from, chunk, SPOOL_CHUNK_BYTES);
        if (n <= 0)
            break;
        err = io_write_all(fd, chunk, (size_t)n);
        if (err != CF_OK) {
            err = err_context(err, "temporary copy of %s", name);
            goto out;
        }
    }
    if (n < 0) {
        err = err_sys("%s: read", name);
        goto out;
    }
    *ret_fd = fd;
    fd = -1;
out:
    io_close(&fd);
    mem_free(chunk);
    return err;
}

/* A descriptor that can be read more than once. */
static cf_err open_rows(const char *path, const char *name, int *ret_fd)
{
    cf_err err = CF_OK;
    struct stat st;
    const bool is_stdin = strcmp(path, "-") == 0;
    int fd = is_stdin ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
                      : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO's writer is waited for in spool */
    if (fd < 0 && errno == ENOENT)
        FAIL(CF_ERR_NOTFOUND, "%s: no such file", name);
    if (fd < 0 || fstat(fd, &st) != 0) {
        err = err_sys("%s: open", name);
        goto out;
    }
    if (S_ISDIR(st.st_mode))
        FAIL(CF_ERR_INVALID, "%s: is a folder", name);
    if (is_stdin || !S_ISREG(st.st_mode)) { /* of a file on standard input some may have been read already */
        TRY(spool(fd, name, ret_fd));
    } else {
        *ret_fd = fd;
        fd = -1;
    }
out:
    io_close(&fd);
    return err;
}

cf_err manifest_check_arguments(const char *path, const char *format_name, const manifest_defaults *defaults)
{
    cf_err err;
    bool is_columns;
    TRY(find_format(path, format_name, &is_columns));
    TRY(manifest_defaults_check(defaults));
out:
    return err;
}

cf_err manifest_open(const char *path, const char *format_name, const manifest_defaults *defaults,
                     manifest **ret_manifest)
{
    cf_err err;
    manifest *m = NULL;
    const char *name = strcmp(path, "-") == 0 ? "standard input" : path;
    TRY(mem_alloc(1, sizeof *m, &m));
    m->fd = -1;
    m->defaults = *defaults;
    TRY(manifest_check_arguments(path, format_name, defaults));
    TRY(find_format(path, format_name, &m->is_columns));
    TRY(open_rows(path, name, &m->fd));
    if (fstat(m->fd, &m->opened) != 0) {
        err = err_sys("%s: fstat", name);
        goto out;
    }
    TRY(line_reader_open(m->fd, name, MANIFEST_LINE_BYTES_MAX, &m->lines));
    *ret_manifest = m;
    m = NULL;
out:
    manifest_close(m);
    return err;
}

void manifest_close(manifest *m)
{
    if (!m)
        return;
    json_close(m->row);
    line_reader_close(m->lines);
    io_close(&m->fd);
    mem_free(m);
}

const char *manifest_name(const manifest *m)
{
    return line_reader_name(m->lines);
}

static cf_err check_unchanged(const manifest *m)
{
    struct stat now;
    if (fstat(m->fd, &now) != 0)
        return err_sys("%s: fstat", line_reader_name(m->lines));
    if (now.st_size != m->opened.st_size || now.st_mtim.tv_sec != m->opened.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != m->opened.st_mtim.tv_nsec)
        return err_set(CF_ERR_MISMATCH, "%s: was changed while it was being read", line_reader_name(m->lines));
    return CF_OK;
}

static bool is_blank(const line_view *line)
{
    for (size_t i = 0; i < line->text_bytes; i++)
        if (line->text[i] != ' ' && line->text[i] != '\t')
            return false;
    return true;
}

/* Byte-order mark and carriage return are no part of a line. */
static void trim(line_view *line)
{
    if (line->number == 1 && line->text_bytes >= 3 && memcmp(line->text, "\xEF\xBB\xBF", 3) == 0) {
        line->text += 3;
        line->text_bytes -= 3;
    }
    if (line->text_bytes > 0 && line->text[line->text_bytes - 1] == '\r')
        line->text[--line->text_bytes] = '\0';
}

static cf_err read_row(manifest *m, const line_view *line, manifest_row *ret_row)
{
    cf_err err;
    char where[WHERE_BYTES];
    snprintf(where, sizeof where, "%s:%" PRIu64, line_reader_name(m->lines), line->number);
    if (m->is_columns) {
        TRY(manifest_row_from_columns(line->text, line->text_bytes, where, &m->defaults, ret_row));
    } else {
        err = json_parse(line->text, line->text_bytes, ROW_DEPTH_MAX, &m->row);
        if (err != CF_OK)
            return err_context(err, "%s", where);
        TRY(manifest_row_from_json(m->row, where, &m->defaults, ret_row));
    }
    ret_row->line = line->number;
out:
    return err;
}

cf_err manifest_next(manifest *m, manifest_row *ret_row, bool *ret_end)
{
    line_view line;
    json_close(m->row);
    m->row = NULL;
    do {
        const cf_err err = line_reader_next(m->lines, &line);
        if (err != CF_OK)
            return err == CF_ERR_LIMIT ? CF_ERR_INVALID : err;
        if (line.text)
            trim(&line);
    } while (line.text && is_blank(&line));
    *ret_end = line.text == NULL;
    return line.text ? read_row(m, &line, ret_row) : check_unchanged(m);
}

cf_err manifest_rewind(manifest *m)
{
    json_close(m->row);
    m->row = NULL;
    line_reader_rewind(m->lines);
    return check_unchanged(m);
}
