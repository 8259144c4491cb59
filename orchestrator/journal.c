/*
 * journal.c - records of open rows, group-committed by one thread.
 *
 * Owned by the orchestrator's loop; the journal thread touches the file and, under the mutex, the gathered text and the
 * texts of open rows (kept for the rewriting of the file). Rows in memory are bounded by ROWS_OPEN_MAX. A write that
 * fails is cut off again and repeated: no record is ever half there. Nothing counts as written before the file that the
 * path names, and that name, are on disk.
 * Fails: CF_ERR_BUSY, CF_ERR_CORRUPT, CF_ERR_LIMIT, CF_ERR_NOMEM, CF_ERR_STORAGE, CF_ERR_SYS.
 */
#define _GNU_SOURCE
#include "orchestrator/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"

#define HEADER           "{\"k\":\"journal\",\"v\":1}\n"
#define FILE_BYTES_MAX   (1ull << 31)  /* at start; a journal is rewritten long before */
#define REWRITE_BYTES    (16ull << 20) /* rewritten when larger than this and than twice what is open */
#define RETRY_S          1
#define GATHER_MS        200 /* tokens and ends wait for others: a crash costs what they saved, same bytes again */
#define RECORD_DEPTH_MAX MESSAGE_DEPTH_MAX
#define TOKEN_SETS_MAX   (SEGMENTS_MAX * 16) /* segments x attempts of one row */
#define TOKEN_ID_MAX     ((1 << 24) - 1)

typedef struct text_block {
    char *bytes; /* owned */
    size_t used, capacity;
} text_block;

typedef struct open_row {
    uint64_t number;  /* 0: free */
    text_block lines; /* its records */
} open_row;

struct journal {
    char path[IO_PATH_BYTES];
    int fd, event_fd;
    pthread_t thread;
    bool running;
    bool is_long;    /* the thread's: bytes behind file_bytes could not be cut off yet */
    bool is_unnamed; /* the thread's, once it runs: the folder that names the file is not on disk yet */
    open_row *rows;  /* owned, ROWS_OPEN_MAX */
    uint64_t next_number;

    pthread_mutex_t mutex; /* guards all below, and rows while the thread runs */
    pthread_cond_t wake;
    text_block gathered, unwritten; /* unwritten: its write failed; it goes before what has gathered since */
    uint64_t ticket, unwritten_ticket, synced, file_bytes, open_bytes, busy_us;
    cf_err state;
    char state_text[256];
    bool urgent; /* somebody waits for what has gathered */
    bool stop;
};

static cf_err text_append(text_block *t, const char *bytes, size_t count)
{
    if (t->used + count > t->capacity) {
        const size_t doubled = 2 * t->capacity, needed = t->used + count + 256;
        const size_t capacity = doubled > needed ? doubled : needed;
        const cf_err err = mem_resize(&t->bytes, capacity, 1);
        if (err != CF_OK)
            return err;
        t->capacity = capacity;
    }
    memcpy(t->bytes + t->used, bytes, count);
    t->used += count;
    return CF_OK;
}

static void text_done(text_block *t)
{
    mem_free(t->bytes);
    *t = (text_block){0};
}

/* ---- open rows: under the mutex, or before the thread runs ---- */

/* A row sits at its number's remainder, unless that place was taken: the search begins, and mostly ends, there. */
static open_row *find_from(const journal *j, uint64_t start, uint64_t number)
{
    for (uint64_t i = 0; i < ROWS_OPEN_MAX; i++) {
        open_row *row = &j->rows[(start + i) % ROWS_OPEN_MAX];
        if (row->number == number)
            return row;
    }
    return NULL;
}

static open_row *find_row(const journal *j, uint64_t number)
{
    return find_from(j, number, number);
}

/* For a new row of that number; NULL: all are taken. */
static open_row *free_row(const journal *j, uint64_t number)
{
    return find_from(j, number, 0);
}

static cf_err keep_line(journal *j, open_row *row, const char *line, size_t bytes)
{
    const cf_err err = text_append(&row->lines, line, bytes);
    if (err == CF_OK)
        j->open_bytes += bytes;
    return err;
}

static void drop_row(journal *j, open_row *row)
{
    j->open_bytes -= row->lines.used;
    text_done(&row->lines);
    row->number = 0;
}

/* ---- the thread ---- */

static cf_err lock(int fd, const char *path)
{
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return CF_OK;
    return errno == EWOULDBLOCK ? err_set(CF_ERR_BUSY, "%s: another orchestrator writes this journal", path)
                                : err_sys("%s: flock", path);
}

static cf_err open_file(const char *path, int *ret_fd)
{
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys("%s: open", path);
    const cf_err err = lock(fd, path);
    if (err == CF_OK)
        *ret_fd = fd;
    else
        io_close(&fd);
    return err;
}

static cf_err cut(const journal *j, uint64_t file_bytes)
{
    if ((fault_hit("journal.cut") ? (errno = EIO, -1) : ftruncate(j->fd, (off_t)file_bytes)) == 0)
        return CF_OK;
    return err_sys("%s: cannot be cut to %llu bytes", j->path, (unsigned long long)file_bytes);
}

/* What earlier failures have left undone: until it is done nothing that is appended would be found again. */
static cf_err make_good(journal *j, uint64_t file_bytes)
{
    cf_err err = CF_OK;
    if (j->is_long)
        TRY(cut(j, file_bytes));
    j->is_long = false;
    if (j->is_unnamed)
        TRY(io_sync_folder_of(j->path));
    j->is_unnamed = false;
out:
    return err;
}

static cf_err append_to_file(journal *j, const text_block *t, uint64_t file_bytes)
{
    cf_err err = make_good(j, file_bytes);
    if (err != CF_OK)
        return err;
    err = io_write_all(j->fd, t->bytes, t->used);
    if (err == CF_OK && (fault_hit("journal.sync") ? (errno = EIO, -1) : fdatasync(j->fd)) != 0)
        err = err_sys("fdatasync");
    if (err == CF_OK)
        return CF_OK;
    j->is_long = true; /* cut off before the next try; should we end before that, the next start does it */
    return err_context(err, "%s", j->path);
}

/* A new file of header and open rows takes the old one's place; what was gathered is part of the rows. Until it has the
 * name, the old one is the journal; from then on it is, whatever else fails. */
static cf_err rewrite_file(journal *j, const text_block *open)
{
    cf_err err;
    char temp[IO_PATH_BYTES] = "";
    int fd = -1;
    TRY(io_create_beside(j->path, temp, &fd));
    TRY(lock(fd, temp));
    if (fchmod(fd, 0600) != 0 || fcntl(fd, F_SETFL, O_APPEND) != 0) {
        err = err_sys("%s: fchmod, fcntl", temp);
        goto out;
    }
    TRY(io_write_all(fd, open->bytes, open->used));
    TRY(io_put_in_place(fd, temp, j->path));
    close(j->fd);
    j->fd = fd;
    fd = -1;
    j->is_long = false;
    j->is_unnamed = true;
out:
    if (fd >= 0)
        unlink(temp);
    io_close(&fd);
    return err;
}

static void remember(journal *j, cf_err err)
{
    j->state = err;
    snprintf(j->state_text, sizeof j->state_text, "%s", err == CF_OK ? "" : err_text());
}

/* Called and left with the mutex held. */
static void maybe_rewrite(journal *j)
{
    text_block open = {0};
    if (j->file_bytes < REWRITE_BYTES || j->file_bytes < 2 * j->open_bytes)
        return;
    cf_err err = text_append(&open, HEADER, strlen(HEADER));
    for (int i = 0; i < ROWS_OPEN_MAX && err == CF_OK; i++)
        if (j->rows[i].number != 0)
            err = text_append(&open, j->rows[i].lines.bytes, j->rows[i].lines.used);
    if (err == CF_OK)
        err = rewrite_file(j, &open); /* the loop waits for this once in 16 MiB */
    if (err == CF_OK) {
        j->file_bytes = open.used;
        j->gathered.used = 0; /* counts as written when the next commit has found the folder on disk */
    } else {
        log_warn("journal.rewrite", "path=%s text=\"%s\"", j->path, err_text());
    }
    text_done(&open);
}

/* By the monotonic clock: the time of day may be set back meanwhile. */
static struct timespec moment(long after_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += after_ms % 1000 * 1000000;
    t.tv_sec += after_ms / 1000 + t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void wait_a_moment(journal *j)
{
    const struct timespec until = moment(1000 * RETRY_S);
    pthread_cond_clockwait(&j->wake, &j->mutex, CLOCK_MONOTONIC, &until);
}

/* More may come for the same sync, unless a row waits to be accepted. */
static void wait_for_others(journal *j)
{
    const struct timespec until = moment(GATHER_MS);
    while (!j->stop && !j->urgent && pthread_cond_clockwait(&j->wake, &j->mutex, CLOCK_MONOTONIC, &until) == 0)
        ;
}

static bool has_work(const journal *j)
{
    return j->gathered.used > 0 || j->unwritten.used > 0 || j->is_unnamed;
}

/* Writes what could not be written before, or else what has gathered. When it fails nothing is needed to keep it: were
 * memory short too, a row could be lost that the next sync would call accepted. Called and left with the mutex held. */
static void commit(journal *j)
{
    const bool again = j->unwritten.used > 0;
    text_block *from = again ? &j->unwritten : &j->gathered;
    text_block taken = *from;
    const uint64_t up_to = again ? j->unwritten_ticket : j->ticket, file_bytes = j->file_bytes;
    *from = (text_block){0};
    j->urgent = j->urgent && again; /* what has gathered meanwhile is next */
    pthread_mutex_unlock(&j->mutex);
    const uint64_t began_us = clock_now_us();
    cf_err err = append_to_file(j, &taken, file_bytes);
    const uint64_t spent_us = clock_now_us() - began_us;
    pthread_mutex_lock(&j->mutex);
    j->busy_us += spent_us;
    if (err == CF_OK) {
        j->file_bytes += taken.used;
        j->synced = up_to;
        text_done(&taken);
        remember(j, CF_OK);
        return;
    }
    remember(j, err);
    if (taken.used == 0) { /* it was the folder alone */
        text_done(&taken);
        return;
    }
    j->unwritten = taken;
    j->unwritten_ticket = up_to;
}

static void *journal_main(void *arg)
{
    journal *j = arg;
    process_name_thread("journal");
    pthread_mutex_lock(&j->mutex);
    for (;;) {
        while (!j->stop && !has_work(j))
            pthread_cond_wait(&j->wake, &j->mutex);
        if (!has_work(j))
            break;
        wait_for_others(j);
        commit(j);
        const bool failed = j->state != CF_OK;
        if (!failed)
            maybe_rewrite(j);
        const uint64_t one = 1;
        CF_ASSERT(write(j->event_fd, &one, sizeof one) == (ssize_t)sizeof one);
        if (failed && j->stop)
            break;
        if (failed)
            wait_a_moment(j);
    }
    pthread_mutex_unlock(&j->mutex);
    return NULL;
}

/* ---- reading at start ---- */

static cf_err on_record(journal *j, const json *root, const char *line, size_t bytes)
{
    cf_err err;
    const char *kind;
    uint64_t number;
    TRY(json_get_str(root, "k", 15, &kind));
    if (strcmp(kind, "journal") == 0) {
        TRY(json_get_u64(root, "v", 1, 1, &number));
        return CF_OK;
    }
    TRY(json_get_u64(root, "n", 1, UINT64_MAX, &number));
    open_row *row = find_row(j, number);
    if (strcmp(kind, "row") == 0) {
        if (row)
            FAIL(CF_ERR_CORRUPT, "row %llu begins twice", (unsigned long long)number);
        row = free_row(j, number);
        if (!row)
            FAIL(CF_ERR_LIMIT, "more than %d open rows", ROWS_OPEN_MAX);
        row->number = number;
        if (number >= j->next_number)
            j->next_number = number + 1;
        TRY(keep_line(j, row, line, bytes));
    } else if (strcmp(kind, "tokens") == 0) {
        if (row)
            TRY(keep_line(j, row, line, bytes));
    } else if (strcmp(kind, "end") == 0) {
        if (row)
            drop_row(j, row);
    } else {
        FAIL(CF_ERR_INVALID, "record \"%s\" is not known", kind);
    }
out:
    return err;
}

/* True when a crash while we were appending could have left these first bytes of a file: a beginning of the header,
 * some of it zero where the file's length reached the disk before its bytes. Another file is not cut. */
static bool could_be_header(const char *line, size_t bytes)
{
    for (size_t i = 0; i < bytes && i < sizeof HEADER - 2; i++)
        if (line[i] != '\0' && line[i] != HEADER[i])
            return false;
    return true;
}

/* A last line that is none: its write did not finish, so nothing in it was ever acknowledged. */
static cf_err cut_torn(journal *j, const char *line, size_t bytes, uint64_t off, unsigned long long number)
{
    if (off == 0 && !could_be_header(line, bytes))
        return err_set(CF_ERR_CORRUPT, "expected a journal; is this another file?");
    log_warn("journal.torn", "path=%s line=%llu bytes=%zu", j->path, number, bytes);
    return cut(j, off);
}

/* One line at the offset `at` of all; *ret_torn: it was the end of the file, and has been cut off. */
static cf_err read_line(journal *j, const char *all, size_t all_bytes, size_t at, unsigned long long number,
                        size_t *ret_bytes, bool *ret_torn)
{
    cf_err err;
    json *root = NULL;
    const char *line = all + at, *end = memchr(line, '\n', all_bytes - at);
    const size_t bytes = end ? (size_t)(end - line) : all_bytes - at;
    err = end ? json_parse(line, bytes, RECORD_DEPTH_MAX, &root) : CF_ERR_INVALID;
    *ret_torn = err != CF_OK && err != CF_ERR_NOMEM && at + bytes + 1 >= all_bytes;
    if (*ret_torn)
        err = cut_torn(j, line, bytes, at, number);
    else if (err == CF_OK)
        err = on_record(j, root, line, bytes + 1);
    *ret_bytes = bytes + 1;
    json_close(root);
    return err;
}

static cf_err read_records(journal *j)
{
    cf_err err;
    char *all = NULL;
    size_t bytes = 0, line_bytes = 0;
    bool torn = false;
    TRY(io_read_file(j->path, FILE_BYTES_MAX, &all, &bytes));
    for (unsigned long long line = 1; j->file_bytes < bytes && !torn; line++) {
        err = read_line(j, all, bytes, (size_t)j->file_bytes, line, &line_bytes, &torn);
        if (err == CF_ERR_NOMEM || err == CF_ERR_SYS ||
            err == CF_ERR_STORAGE) /* the file is fine, and nobody shall move it away */
            err = err_context(err, "%s:%llu", j->path, line);
        else if (err != CF_OK)
            err = err_context(CF_ERR_CORRUPT, "%s:%llu (move the file away to begin without its rows)", j->path, line);
        if (err != CF_OK)
            goto out;
        j->file_bytes += torn ? 0 : line_bytes;
    }
out:
    mem_free(all);
    return err;
}

cf_err journal_open(const char *path, journal **ret_journal)
{
    cf_err err;
    journal *j = NULL;
    TRY(mem_alloc(1, sizeof *j, &j));
    j->fd = j->event_fd = -1;
    j->next_number = 1;
    process_mutex_init(&j->mutex);
    pthread_cond_init(&j->wake, NULL);
    snprintf(j->path, sizeof j->path, "%s", path);
    TRY(mem_alloc(ROWS_OPEN_MAX, sizeof *j->rows, &j->rows));
    TRY(open_file(path, &j->fd));
    TRY(read_records(j));
    if (j->file_bytes == 0)
        TRY(text_append(&j->gathered, HEADER, strlen(HEADER)));
    j->is_unnamed = j->file_bytes == 0; /* it may be new */
    j->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (j->event_fd < 0 || pthread_create(&j->thread, NULL, journal_main, j) != 0) {
        err = err_sys("journal thread");
        goto out;
    }
    j->running = true;
    *ret_journal = j;
    j = NULL;
out:
    journal_close(j);
    return err;
}

void journal_close(journal *j)
{
    if (!j)
        return;
    if (j->running) {
        pthread_mutex_lock(&j->mutex);
        j->stop = true;
        pthread_cond_signal(&j->wake);
        pthread_mutex_unlock(&j->mutex);
        pthread_join(j->thread, NULL);
    }
    for (int i = 0; j->rows && i < ROWS_OPEN_MAX; i++)
        text_done(&j->rows[i].lines);
    mem_free(j->rows);
    text_done(&j->gathered);
    text_done(&j->unwritten);
    io_close(&j->fd);
    io_close(&j->event_fd);
    pthread_cond_destroy(&j->wake);
    pthread_mutex_destroy(&j->mutex);
    mem_free(j);
}

/* ---- handing open rows over ---- */

static cf_err read_tokens(const json *root, journal_tokens *t)
{
    cf_err err;
    uint64_t attempt, segment;
    size_t count;
    const char *origin = "";
    if (json_find(root, "origin"))
        TRY(json_get_str(root, "origin", SHA256_HEX_BYTES - 1, &origin));
    TRY(json_get_u64(root, "attempt", 0, 1000, &attempt));
    TRY(json_get_u64(root, "segment", 0, SEGMENTS_MAX - 1, &segment));
    TRY(json_get_bool(root, "stopped", &t->stopped));
    TRY(json_get_bool(root, "capped", &t->capped));
    TRY(json_get_i32s(root, "tokens", 0, TOKEN_ID_MAX, TOKENS_MAX, &t->tokens, &count));
    t->attempt = (int32_t)attempt;
    t->segment = (int32_t)segment;
    t->tokens_count = (int32_t)count;
    snprintf(t->origin_sha256, sizeof t->origin_sha256, "%s", origin);
out:
    return err;
}

/* The first line of an open row is its "row" record, the others are "tokens". */
static cf_err hand_over(uint64_t number, const text_block *lines, void (*found)(void *, const journal_row *), void *ctx)
{
    cf_err err;
    json *head = NULL, *root = NULL;
    journal_tokens *tokens = NULL;
    int32_t count = 0;
    size_t lines_count = 0;
    for (size_t i = 0; i < lines->used; i++)
        lines_count += lines->bytes[i] == '\n';
    TRY(mem_alloc(lines_count, sizeof *tokens, &tokens));
    for (size_t at = 0; at < lines->used;) {
        const char *end = memchr(lines->bytes + at, '\n', lines->used - at);
        CF_ASSERT(end != NULL);
        const size_t bytes = (size_t)(end - (lines->bytes + at));
        TRY(json_parse(lines->bytes + at, bytes, RECORD_DEPTH_MAX, at == 0 ? &head : &root));
        if (at > 0)
            TRY(read_tokens(root, &tokens[count++]));
        json_close(root);
        root = NULL;
        at += bytes + 1;
    }
    const char *client;
    uint64_t ends_ms = 0;
    const json *submit = json_find(head, "submit");
    if (json_find(head, "ends_ms"))
        TRY(json_get_u64(head, "ends_ms", 0, UINT64_MAX, &ends_ms));
    TRY(json_get_str(head, "client", 255, &client));
    if (!json_is_object(submit))
        FAIL(CF_ERR_CORRUPT, "row %llu has no submission", (unsigned long long)number);
    found(ctx, &(journal_row){number, client, submit, tokens, count, ends_ms});
out:
    json_close(head);
    json_close(root);
    for (int32_t i = 0; tokens && i < count; i++)
        mem_free(tokens[i].tokens);
    mem_free(tokens);
    return err;
}

cf_err journal_recover(journal *j, void (*found)(void *ctx, const journal_row *row), void *ctx)
{
    cf_err err = CF_OK;
    for (uint64_t last = 0;;) {
        uint64_t number = UINT64_MAX;
        text_block copy = {0};
        pthread_mutex_lock(&j->mutex);
        for (int i = 0; i < ROWS_OPEN_MAX; i++)
            if (j->rows[i].number > last && j->rows[i].number < number)
                number = j->rows[i].number;
        if (number != UINT64_MAX) {
            const open_row *row = find_row(j, number);
            err = text_append(&copy, row->lines.bytes, row->lines.used);
        }
        pthread_mutex_unlock(&j->mutex);
        if (number == UINT64_MAX)
            return CF_OK;
        if (err == CF_OK)
            err = hand_over(number, &copy, found, ctx); /* unlocked: the callback may write records */
        text_done(&copy);
        if (err != CF_OK)
            return err_context(err, "%s: row %llu", j->path, (unsigned long long)number);
        last = number;
    }
}

/* ---- new records ---- */

/* Gathers a line; row: the open row that keeps it too, or NULL; urgent: somebody waits for it. */
static cf_err put_line(journal *j, open_row *row, bool urgent, char *line, size_t bytes, uint64_t *ret_ticket)
{
    cf_err err;
    if (row) /* first, so that a row which is refused here leaves no record */
        TRY(keep_line(j, row, line, bytes));
    TRY(text_append(&j->gathered, line, bytes));
    *ret_ticket = ++j->ticket;
    j->urgent |= urgent;
    pthread_cond_signal(&j->wake);
out:
    return err;
}

/* "{...}" and, behind its last member, a tail -> one line; *ret_line is owned. */
static cf_err print_line(json *head, const char *tail_key, const char *tail, char **ret_line, size_t *ret_bytes)
{
    cf_err err;
    char *text = NULL, *line = NULL;
    TRY(json_print(head, false, &text));
    const size_t head_bytes = strlen(text) - 1, bytes = head_bytes + strlen(tail_key) + strlen(tail) + 3;
    TRY(mem_alloc(bytes, 1, &line));
    *ret_bytes = (size_t)snprintf(line, bytes, "%.*s%s%s}\n", (int)head_bytes, text, tail_key, tail);
    *ret_line = line;
out:
    mem_free(text);
    json_close(head);
    return err;
}

cf_err journal_put_row(journal *j, const char *client, const char *submit, uint64_t ends_ms, uint64_t *ret_number,
                       uint64_t *ret_ticket)
{
    cf_err err;
    char *line = NULL;
    size_t bytes = 0;
    const uint64_t number = j->next_number;
    json *head = json_object();
    json_put_str(head, "k", "row");
    json_put_u64(head, "n", number);
    json_put_str(head, "client", client);
    if (ends_ms > 0)
        json_put_u64(head, "ends_ms", ends_ms);
    TRY(print_line(head, ",\"submit\":", submit, &line, &bytes));
    pthread_mutex_lock(&j->mutex);
    open_row *row = free_row(j, number);
    if (row) {
        row->number = number;
        err = put_line(j, row, true, line, bytes, ret_ticket);
        if (err != CF_OK)
            drop_row(j, row);
    } else {
        err = err_set(CF_ERR_BUSY, "journal: more than %d open rows", ROWS_OPEN_MAX);
    }
    pthread_mutex_unlock(&j->mutex);
    if (err == CF_OK)
        *ret_number = j->next_number++;
out:
    mem_free(line);
    return err;
}

cf_err journal_put_tokens(journal *j, uint64_t number, const journal_tokens *t)
{
    cf_err err;
    char *line = NULL;
    size_t bytes = 0;
    uint64_t ticket;
    json *head = json_object();
    json_put_str(head, "k", "tokens");
    json_put_u64(head, "n", number);
    json_put_u64(head, "attempt", (uint64_t)t->attempt);
    json_put_u64(head, "segment", (uint64_t)t->segment);
    json_put_bool(head, "stopped", t->stopped);
    json_put_bool(head, "capped", t->capped);
    if (t->origin_sha256[0])
        json_put_str(head, "origin", t->origin_sha256);
    json_put_i32s(head, "tokens", t->tokens, (size_t)t->tokens_count);
    TRY(print_line(head, "", "", &line, &bytes));
    pthread_mutex_lock(&j->mutex);
    open_row *row = find_row(j, number);
    if (row)
        err = put_line(j, row, false, line, bytes, &ticket);
    pthread_mutex_unlock(&j->mutex);
out:
    mem_free(line);
    return err;
}

void journal_put_end(journal *j, uint64_t number)
{
    char line[64];
    uint64_t ticket;
    const int bytes = snprintf(line, sizeof line, "{\"k\":\"end\",\"n\":\"%llu\"}\n", (unsigned long long)number);
    pthread_mutex_lock(&j->mutex);
    open_row *row = find_row(j, number);
    if (row) {
        drop_row(j, row);
        if (put_line(j, NULL, false, line, (size_t)bytes, &ticket) != CF_OK)
            log_warn("journal.end", "row=%llu text=\"%s\"", (unsigned long long)number, err_text());
    }
    pthread_mutex_unlock(&j->mutex);
}

int journal_fd(const journal *j)
{
    return j->event_fd;
}

uint64_t journal_synced(journal *j)
{
    uint64_t events;
    const ssize_t n = read(j->event_fd, &events, sizeof events);
    (void)n; /* EAGAIN: it was clear already */
    pthread_mutex_lock(&j->mutex);
    const uint64_t synced = j->synced;
    pthread_mutex_unlock(&j->mutex);
    return synced;
}

uint64_t journal_busy_us(journal *j)
{
    pthread_mutex_lock(&j->mutex);
    const uint64_t busy_us = j->busy_us;
    pthread_mutex_unlock(&j->mutex);
    return busy_us;
}

cf_err journal_state(journal *j, char *ret_text, size_t text_bytes, uint64_t *ret_waiting_bytes)
{
    pthread_mutex_lock(&j->mutex);
    const cf_err state = j->state;
    snprintf(ret_text, text_bytes, "%s", j->state_text);
    *ret_waiting_bytes = j->gathered.used + j->unwritten.used;
    pthread_mutex_unlock(&j->mutex);
    return state;
}
