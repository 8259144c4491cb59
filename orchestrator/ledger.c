/*
 * ledger.c - an append-only file under a lock. Runs in the command. Owns the descriptor, which carries the lock; after
 * a rewrite the new file's descriptor carries it, locked before it got the name.
 * Fails: CF_ERR_BUSY (locked), CF_ERR_STORAGE (disk full), CF_ERR_CORRUPT with file and line, CF_ERR_GONE,
 * CF_ERR_SYS, CF_ERR_LIMIT.
 */
#define _GNU_SOURCE
#include "orchestrator/ledger.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/base/sha256.h"
#include "common/base/utf8.h"
#include "orchestrator/line_reader.h"

#define LINE_DEPTH_MAX   4
#define LOCK_TRIES       100 /* each is lost only to a rewrite that ended between our open and our lock */
#define LINE_OPENING     "{\"id\":"
#define COPY_CHUNK_BYTES 65536

struct ledger {
    char dir[IO_PATH_BYTES], path[IO_PATH_BYTES];
    int fd; /* owned, locked, opened for appending */
    uint64_t end_off;
    bool is_long;   /* bytes behind end_off could not be cut off yet */
    bool is_broken; /* a sync failed */
    line_reader *lines;
};

/* ---- a line ---- */

/* At most LEDGER_ERROR_BYTES_MAX bytes of valid UTF-8: a line that cannot be parsed would end every later resume. */
static void put_error_text(json *obj, const char *text)
{
    char safe[LEDGER_ERROR_BYTES_MAX + 1];
    size_t at = 0, bytes;
    const size_t text_bytes = strlen(text);
    for (size_t i = 0; i < text_bytes; i += bytes) {
        uint32_t code_point;
        bytes = utf8_decode(text + i, text_bytes - i, &code_point);
        const bool bad = bytes == 0;
        bytes = bad ? 1 : bytes;
        if (at + bytes > LEDGER_ERROR_BYTES_MAX)
            break;
        memcpy(safe + at, bad ? "?" : text + i, bytes);
        at += bytes;
    }
    safe[at] = '\0';
    json_put_str(obj, "text", safe);
}

cf_err ledger_line(const ledger_entry *e, json **ret_line)
{
    json *line = json_object(), *flags = json_array(), *ms = json_object(), *error = NULL;
    json_put_str(line, "id", e->id);
    json_put_str(line, "status", e->done ? "done" : "failed");
    json_put_str(line, "file", e->done ? e->file : NULL);
    json_put_u64(line, "bytes", e->done ? e->bytes : 0);
    json_put_f64(line, "seconds", (double)e->samples / SAMPLE_RATE_HZ);
    json_put_u64(line, "samples", e->samples);
    json_put_str(line, "sha256", e->done ? e->sha256 : NULL);
    json_put_u64(line, "seed", e->seed);
    json_put_u64(line, "attempts", e->attempts);
    json_put_u64(line, "segments", e->segments);
    json_put_u64(line, "tokens", e->tokens);
    for (uint32_t i = 0; i < e->flag_count; i++)
        json_push(flags, json_str(e->flags[i]));
    json_put(line, "flags", flags);
    json_put_f64(ms, "llm", e->llm_ms);
    json_put_f64(ms, "flow", e->flow_ms);
    json_put_f64(ms, "hift", e->hift_ms);
    json_put_f64(ms, "queue", e->queue_ms);
    json_put(line, "ms", ms);
    if (e->done) {
        json_put_str(line, "error", NULL);
    } else {
        error = json_object();
        json_put_str(error, "code", err_name(e->error_code));
        json_put_str(error, "stage", e->error_stage);
        put_error_text(error, e->error_text);
        json_put(line, "error", error);
    }
    if (!line)
        return err_set(CF_ERR_NOMEM, "out of memory while building a ledger line");
    *ret_line = line;
    return CF_OK;
}

/* The values of a parsed line. */
static cf_err view_of(const json *obj, ledger_view *ret_view)
{
    cf_err err;
    const char *status;
    ledger_view v = {.line = ret_view->line};
    if (!json_is_object(obj))
        FAIL(CF_ERR_CORRUPT, "expected an object");
    TRY(json_get_str(obj, "id", NAME_BYTES_MAX, &v.id));
    TRY(json_get_str(obj, "status", 15, &status));
    v.done = strcmp(status, "done") == 0;
    if (!v.done && strcmp(status, "failed") != 0)
        FAIL(CF_ERR_CORRUPT, "status: expected done or failed, found \"%.40s\"", status);
    TRY(json_get_u64(obj, "bytes", 0, UINT64_MAX, &v.bytes));
    if (v.done) {
        TRY(json_get_str(obj, "file", IO_PATH_BYTES - 1, &v.file));
        TRY(json_get_str(obj, "sha256", SHA256_HEX_BYTES - 1, &v.sha256));
    }
    *ret_view = v;
out:
    return err;
}

/* *ret_root owns the strings of the view. */
static cf_err parse_line(const line_view *line, json **ret_root, ledger_view *ret_view)
{
    cf_err err;
    json *root = NULL;
    ret_view->line = line->number;
    TRY(json_parse(line->text, line->text_bytes, LINE_DEPTH_MAX, &root));
    TRY(view_of(root, ret_view));
    *ret_root = root;
    root = NULL;
out:
    json_close(root);
    return err == CF_OK || err == CF_ERR_NOMEM ? err : CF_ERR_CORRUPT; /* whatever it was, with its text */
}

/* ---- opening ---- */

cf_err ledger_path(const char *dir, shard mine, char ret_path[IO_PATH_BYTES])
{
    char name[64];
    if (mine.count == 0)
        snprintf(name, sizeof name, "ledger.jsonl");
    else
        snprintf(name, sizeof name, "ledger.%" PRIu32 "-of-%" PRIu32 ".jsonl", mine.idx, mine.count);
    return io_join(ret_path, IO_PATH_BYTES, dir, name);
}

static int open_for_appending(const char *path, int flags)
{
    return fault_hit("ledger.open") ? (errno = ENOSPC, -1)
                                    : open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | flags, 0644);
}

static int cut(int fd, uint64_t bytes)
{
    return fault_hit("ledger.cut") ? (errno = EIO, -1) : ftruncate(fd, (off_t)bytes);
}

static cf_err lock(int fd, const char *path)
{
    if (!fault_hit("ledger.lock") ? flock(fd, LOCK_EX | LOCK_NB) == 0 : (errno = ENOLCK, false))
        return CF_OK;
    return errno == EWOULDBLOCK ? err_set(CF_ERR_BUSY, "%s: another batch is writing it", path)
                                : err_sys("%s: flock", path);
}

/* The file that has the path, locked. */
static cf_err open_locked(const char *path, int *ret_fd)
{
    cf_err err;
    int fd = -1;
    for (int i = 0; i < LOCK_TRIES; i++) {
        struct stat ours, named;
        fd = open_for_appending(path, 0);
        if (fd < 0 || fstat(fd, &ours) != 0) {
            err = err_sys("%s: open", path);
            goto out;
        }
        if (!S_ISREG(ours.st_mode))
            FAIL(CF_ERR_INVALID, "%s: not a regular file", path);
        TRY(lock(fd, path));
        if (stat(path, &named) == 0 && named.st_ino == ours.st_ino && named.st_dev == ours.st_dev) {
            *ret_fd = fd;
            return CF_OK;
        }
        io_close(&fd); /* rewritten before we had the lock: this one is nobody's */
    }
    err = err_set(CF_ERR_BUSY, "%s: another batch is rewriting it", path);
out:
    io_close(&fd);
    return err;
}

static cf_err sync_folder(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys("%s: open", dir);
    const int failed = fault_hit("ledger.sync") ? (errno = EIO, -1) : fsync(fd);
    io_close(&fd);
    return failed ? err_sys("%s: fsync", dir) : CF_OK;
}

/* True when a crash while we were appending could have left these last bytes: a beginning of a line, some of it zero
 * where the file's length reached the disk before its bytes. */
static bool is_torn(const line_view *line)
{
    for (size_t i = 0; i < line->text_bytes && i < sizeof LINE_OPENING - 1; i++)
        if (line->text[i] != '\0' && line->text[i] != LINE_OPENING[i])
            return false;
    return true;
}

/* Finds the end of the last whole line, and cuts off what follows. Lines before the last are not looked into here. */
static cf_err repair(ledger *l, uint64_t *ret_torn_line)
{
    cf_err err;
    line_view line, last = {0};
    char *kept = NULL; /* the last line's bytes: the reader's own are overwritten */
    json *root = NULL;
    ledger_view view;
    uint64_t torn = 0;
    TRY(mem_alloc(LEDGER_LINE_BYTES_MAX + 1, 1, &kept));
    for (;;) {
        err = line_reader_next(l->lines, &line);
        if (err == CF_ERR_LIMIT)
            err = CF_ERR_CORRUPT;
        if (err != CF_OK)
            goto out;
        if (!line.text)
            break;
        last = line;
        memcpy(kept, line.text, line.text_bytes + 1);
        last.text = kept;
    }
    l->end_off = line.off;
    err = last.text && last.ended ? parse_line(&last, &root, &view) : CF_OK;
    if (err == CF_ERR_NOMEM)
        goto out;
    if (last.text && !root) {
        if (!is_torn(&last))
            FAIL(CF_ERR_CORRUPT,
                 "%s:%" PRIu64 ": the last line is none of a ledger; is this another file? If not, remove the line",
                 l->path, last.number);
        if (cut(l->fd, last.off) != 0) {
            err = err_sys("%s: truncate", l->path);
            goto out;
        }
        l->end_off = last.off;
        torn = last.number;
    }
    err = CF_OK;
    *ret_torn_line = torn;
out:
    json_close(root);
    mem_free(kept);
    return err;
}

cf_err ledger_open(const char *dir, shard mine, ledger **ret_ledger, uint64_t *ret_torn_line)
{
    cf_err err;
    ledger *l = NULL;
    TRY(mem_alloc(1, sizeof *l, &l));
    l->fd = -1;
    if (snprintf(l->dir, sizeof l->dir, "%s", dir) >= (int)sizeof l->dir)
        FAIL(CF_ERR_LIMIT, "%s: path longer than %d bytes", dir, IO_PATH_BYTES);
    TRY(ledger_path(dir, mine, l->path));
    TRY(open_locked(l->path, &l->fd));
    TRY(line_reader_open(l->fd, l->path, LEDGER_LINE_BYTES_MAX, &l->lines));
    TRY(repair(l, ret_torn_line));
    if (l->end_off == 0)
        TRY(sync_folder(dir)); /* the name of a new file; one with lines had it done before the first */
    *ret_ledger = l;
    l = NULL;
out:
    ledger_close(l);
    return err;
}

void ledger_close(ledger *l)
{
    if (!l)
        return;
    line_reader_close(l->lines);
    io_close(&l->fd);
    mem_free(l);
}

/* ---- reading ---- */

#define WAY_OUT "; remove the line, and its row is done again"

/* The next line and what it says; root NULL at the end. */
static cf_err next_line(line_reader *lines, line_view *line, json **root, ledger_view *view)
{
    char why[512];
    json_close(*root);
    *root = NULL;
    if (process_stop_asked())
        return err_set(CF_ERR_CANCELLED, "%s: interrupted while it was read", line_reader_name(lines));
    cf_err err = line_reader_next(lines, line);
    if (err == CF_ERR_LIMIT)
        return err_context(CF_ERR_CORRUPT, "damaged" WAY_OUT);
    if (err != CF_OK || !line->text)
        return err;
    err = parse_line(line, root, view);
    if (err != CF_ERR_CORRUPT)
        return err;
    snprintf(why, sizeof why, "%s", err_text());
    return err_set(err, "%s:%" PRIu64 ": %s" WAY_OUT, line_reader_name(lines), line->number, why);
}

static cf_err check_usable(ledger *l)
{
    if (l->is_broken)
        return err_set(CF_ERR_SYS, "%s: writing to the disk has failed before; start again", l->path);
    if (l->is_long && cut(l->fd, l->end_off) != 0)
        return err_sys("%s: truncate", l->path);
    l->is_long = false;
    return CF_OK;
}

cf_err ledger_each(ledger *l, ledger_visit *on_line, void *ctx)
{
    cf_err err;
    line_view line;
    json *root = NULL;
    ledger_view view;
    TRY(check_usable(l));
    line_reader_rewind(l->lines);
    for (;;) {
        TRY(next_line(l->lines, &line, &root, &view));
        if (!root)
            break;
        TRY(on_line(ctx, &view));
    }
out:
    json_close(root);
    return err;
}

static bool is_ledger(const char *name)
{
    unsigned idx, count;
    int bytes = 0;
    return strcmp(name, "ledger.jsonl") == 0 ||
           (sscanf(name, "ledger.%u-of-%u.jsonl%n", &idx, &count, &bytes) == 2 && bytes > 0 && name[bytes] == '\0');
}

static cf_err each_of(const char *path, ledger_visit *on_line, void *ctx)
{
    cf_err err;
    line_view line = {.ended = true};
    json *root = NULL;
    ledger_view view;
    line_reader *lines = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? CF_OK : err_sys("%s: open", path);
    TRY(line_reader_open(fd, path, LEDGER_LINE_BYTES_MAX, &lines));
    for (;;) {
        err = next_line(lines, &line, &root, &view);
        if (err == CF_ERR_CORRUPT && !line.ended)
            err = CF_OK; /* torn, or not written to its end yet: that batch sees to it */
        if (err != CF_OK || !root)
            break;
        TRY(on_line(ctx, &view));
    }
out:
    json_close(root);
    line_reader_close(lines);
    io_close(&fd);
    return err;
}

cf_err ledger_each_other(const ledger *l, ledger_visit *on_line, void *ctx)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    DIR *dir = opendir(l->dir);
    if (!dir)
        return err_sys("%s: open", l->dir);
    for (;;) {
        struct dirent *e;
        TRY(io_next_entry(dir, l->dir, &e));
        if (!e)
            break;
        if (!is_ledger(e->d_name) || strcmp(e->d_name, strrchr(l->path, '/') + 1) == 0)
            continue;
        TRY(io_join(path, sizeof path, l->dir, e->d_name));
        TRY(each_of(path, on_line, ctx));
    }
out:
    closedir(dir);
    return err;
}

/* ---- rewriting ---- */

typedef struct rewrite {
    char path[IO_PATH_BYTES];
    int fd; /* owned; -1 until the first line is dropped */
    uint64_t bytes;
    line_reader *lines; /* owned; of the new file */
    char *chunk;        /* owned, COPY_CHUNK_BYTES */
} rewrite;

static cf_err copy_bytes(int from, uint64_t off, uint64_t bytes, rewrite *w)
{
    cf_err err = CF_OK;
    while (bytes > 0) {
        ssize_t n;
        do
            n = pread(from, w->chunk, bytes < COPY_CHUNK_BYTES ? bytes : COPY_CHUNK_BYTES, (off_t)off);
        while (n < 0 && errno == EINTR);
        if (n <= 0) {
            err = n < 0 ? err_sys("read") : err_set(CF_ERR_CORRUPT, "shrank while being read");
            goto out;
        }
        TRY(io_write_all(w->fd, w->chunk, (size_t)n));
        off += (uint64_t)n;
        bytes -= (uint64_t)n;
        w->bytes += (uint64_t)n;
    }
out:
    return err;
}

/* A file beside the ledger, locked before it can be found by the ledger's name. One that a crash left is written over:
 * we hold the ledger's lock. */
static cf_err rewrite_begin(const ledger *l, rewrite *w)
{
    cf_err err;
    if (snprintf(w->path, sizeof w->path, "%s.new", l->path) >= (int)sizeof w->path)
        FAIL(CF_ERR_LIMIT, "%s: path longer than %d bytes", l->path, IO_PATH_BYTES);
    w->fd = open_for_appending(w->path, O_TRUNC);
    if (w->fd < 0) {
        err = err_sys("create");
        goto out;
    }
    TRY(lock(w->fd, w->path));
    TRY(mem_alloc(COPY_CHUNK_BYTES, 1, &w->chunk));
out:
    return err;
}

static cf_err rewrite_end(ledger *l, rewrite *w)
{
    cf_err err;
    TRY(line_reader_open(w->fd, l->path, LEDGER_LINE_BYTES_MAX, &w->lines));
    if ((fault_hit("ledger.sync") ? (errno = EIO, -1) : fsync(w->fd)) != 0) {
        err = err_sys("fsync");
        goto out;
    }
    if ((fault_hit("ledger.rename") ? (errno = EIO, -1) : rename(w->path, l->path)) != 0) {
        err = err_sys("rename");
        goto out;
    }
    const int old_fd = l->fd;
    l->fd = w->fd;
    w->fd = old_fd;
    line_reader *old_lines = l->lines;
    l->lines = w->lines;
    w->lines = old_lines;
    l->end_off = w->bytes;
    TRY(sync_folder(l->dir));
out:
    return err;
}

static cf_err in_rewrite(const ledger *l, cf_err err)
{
    return err == CF_OK ? err : err_context(err, "%s: rewriting", l->path);
}

cf_err ledger_drop(ledger *l, ledger_predicate *drop, void *ctx, uint64_t *ret_dropped)
{
    cf_err err;
    line_view line;
    json *root = NULL;
    ledger_view view;
    rewrite w = {.fd = -1};
    uint64_t dropped = 0, kept_from = 0; /* lines from there on are kept, and not copied yet */
    TRY(check_usable(l));
    line_reader_rewind(l->lines);
    for (;;) {
        TRY(next_line(l->lines, &line, &root, &view));
        if (!root)
            break;
        bool is_dropped = false;
        TRY(drop(ctx, &view, &is_dropped));
        if (!is_dropped)
            continue;
        if (dropped++ == 0)
            TRY(in_rewrite(l, rewrite_begin(l, &w)));
        TRY(in_rewrite(l, copy_bytes(l->fd, kept_from, line.off - kept_from, &w)));
        kept_from = line.off + line.text_bytes + 1;
    }
    if (dropped > 0) {
        TRY(in_rewrite(l, copy_bytes(l->fd, kept_from, l->end_off - kept_from, &w)));
        TRY(in_rewrite(l, rewrite_end(l, &w)));
    }
    *ret_dropped = dropped;
out:
    if (w.fd >= 0 && err != CF_OK)
        unlink(w.path);
    io_close(&w.fd);
    mem_free(w.chunk);
    line_reader_close(w.lines);
    json_close(root);
    return err;
}

/* ---- writing ---- */

static bool is_full(int code)
{
    return code == ENOSPC || code == EDQUOT;
}

cf_err ledger_append(ledger *l, const json *line)
{
    cf_err err;
    char *text = NULL;
    TRY(check_usable(l));
    TRY(json_print(line, false, &text));
    const size_t bytes = strlen(text);
    if (bytes > LEDGER_LINE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "%s: a line of %zu bytes, at most %d", l->path, bytes, LEDGER_LINE_BYTES_MAX);
    text[bytes] = '\n'; /* takes the place of the NUL: one write, so one line or none as far as others see */
    err = io_write_all(l->fd, text, bytes + 1);
    if (err == CF_OK) {
        l->end_off += bytes + 1;
        goto out;
    }
    const int code = errno;
    err = err_context(is_full(code) ? CF_ERR_STORAGE : err, "%s", l->path);
    l->is_long = cut(l->fd, l->end_off) != 0; /* if even that fails, the next call tries again */
out:
    mem_free(text);
    return err;
}

cf_err ledger_sync(ledger *l)
{
    struct stat ours, named;
    cf_err err = check_usable(l);
    if (err != CF_OK)
        return err;
    if ((fault_hit("ledger.sync") ? (errno = EIO, -1) : fdatasync(l->fd)) != 0) {
        l->is_broken = true; /* the kernel may have dropped the pages: a second call would succeed and mean nothing */
        return err_sys("%s: fdatasync", l->path);
    }
    if (fstat(l->fd, &ours) != 0 || stat(l->path, &named) != 0 || ours.st_ino != named.st_ino ||
        ours.st_dev != named.st_dev) {
        l->is_broken = true;
        return err_set(CF_ERR_GONE, "%s: was deleted or replaced while the batch was writing it", l->path);
    }
    return CF_OK;
}
