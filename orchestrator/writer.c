/*
 * writer.c - judge, encode, hash, temporary file, fsync, rename. A few threads, one mutex around three lists.
 *
 * Sessions are borrowed: whoever put one takes it back, or closes it after writer_close. What full or read-only storage
 * refuses waits in a list of its own, so that files of other folders are written meanwhile.
 * Fails: writer_open with CF_ERR_NOMEM or CF_ERR_SYS; a file that cannot be written is told in its session.
 */
#define _GNU_SOURCE
#include "orchestrator/writer.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "orchestrator/audio_file.h"
#include "orchestrator/guard.h"

#define GROUP_MAX 32 /* files whose fsyncs overlap: measured 0.36 ms a file instead of 0.69 (docs/PERF.md) */
#define THREADS   3  /* while some wait for the disk, another encodes (docs/PERF.md) */

/* Between two tries of a refused file: longer for those that wait long already, since each try encodes anew. */
#define PAUSE_MIN_US (1 * CLOCK_SECOND_US)
#define PAUSE_MAX_US (5 * CLOCK_SECOND_US)

typedef struct session_list {
    session *head, **tail;
} session_list;

struct writer {
    pthread_t threads[THREADS];
    int started;
    int event_fd;
    int32_t wait_s, guard_attempts;
    bool guard_fail;
    guard_limits limits;
    pthread_mutex_t mutex;          /* guards all below */
    pthread_cond_t wake;            /* something to do, or the end */
    session_list todo, stuck, done; /* stuck: storage refused the file, retry_us is when to try again */
    int32_t waiting, stuck_count;
    bool retrying; /* a thread has some that were stuck: the others leave these alone */
    bool stop;
};

static void push(session_list *l, session *s)
{
    s->next = NULL;
    *l->tail = s;
    l->tail = &s->next;
}

static session *pop(session_list *l)
{
    session *s = l->head;
    if (s) {
        l->head = s->next;
        if (!l->head)
            l->tail = &l->head;
    }
    return s;
}

static cf_err make_folder(const char *path)
{
    char folder[IO_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash || slash == folder)
        return CF_OK;
    *slash = '\0';
    return io_make_dirs(folder, 0777);
}

/* The quality guard's look at a finished attempt. False: it is to be tried again, nothing is written. */
static bool passes_guard(const writer *w, session *s)
{
    guard_segment judged[SEGMENTS_MAX];
    const size_t count = s->plan.segment_count;
    for (size_t i = 0; i < count; i++) {
        const session_segment *seg = &s->segments[i];
        const text_segment *text = &s->plan.segments[i];
        judged[i] = (guard_segment){.speech_codes = s->speech_codes,
                                    .tokens = seg->tokens,
                                    .tokens_count = seg->tokens_count,
                                    .samples = seg->samples,
                                    .samples_count = seg->samples_count,
                                    .text = s->is_source ? (guard_text){.loose = seg->tokens_count}
                                                         : guard_text_of(text->text, text->text_bytes),
                                    .stopped = seg->stopped,
                                    .prompt_tokens = s->prompt_token,
                                    .prompt_tokens_count = s->prompt_token ? s->prompt_tokens : 0,
                                    .speed = s->speed};
    }
    s->flags = guard_check(&w->limits, judged, count);
    s->again = s->flags != 0 && s->attempt < w->guard_attempts && !s->is_source;
    if (!s->again)
        session_take_best(s);
    return !s->again;
}

static void name_flags(uint32_t flags, char *ret_text, size_t text_bytes)
{
    size_t n = 0;
    ret_text[0] = '\0';
    for (int i = 0; i < GUARD_FLAG_COUNT && n < text_bytes; i++)
        if (flags & GUARD_BIT(i))
            n += (size_t)snprintf(ret_text + n, text_bytes - n, "%s%s", n ? ", " : "", guard_flag_name(i));
}

/* guard_fail: a row that stays flagged is no result. */
static cf_err check_flags(const writer *w, const session *s)
{
    char names[160];
    if (!w->guard_fail || s->flags == 0)
        return CF_OK;
    name_flags(s->flags, names, sizeof names);
    return err_set(CF_ERR_NUMERIC, "the quality guard flags each of %d attempts; the best: %s", s->attempt + 1, names);
}

/* Encodes and begins the file; its writing goes on in the background until commit. */
static cf_err begin_session(const writer *w, session *s, int *ret_fd)
{
    cf_err err;
    audio_piece *pieces = NULL;
    void *data = NULL;
    size_t bytes;
    const size_t count = s->plan.segment_count;
    TRY(check_flags(w, s));
    TRY(mem_alloc(count, sizeof *pieces, &pieces));
    for (size_t i = 0; i < count; i++)
        pieces[i] = (audio_piece){s->segments[i].samples, s->segments[i].samples_count};
    TRY(audio_encode(pieces, count, s->format, &data, &bytes));
    TRY(sha256_of(data, bytes, s->file_sha256));
    TRY(make_folder(s->path));
    TRY(io_file_begin(s->path, data, bytes, ret_fd));
    s->file_bytes = bytes;
out:
    mem_free(pieces);
    mem_free(data);
    return err;
}

static bool same_folder(const char *a, const char *b)
{
    const size_t bytes = (size_t)(strrchr(a, '/') - a);
    return bytes == (size_t)(strrchr(b, '/') - b) && memcmp(a, b, bytes) == 0;
}

static void note(session *s, cf_err err)
{
    s->write_err = err;
    snprintf(s->write_text, sizeof s->write_text, "%s", err == CF_OK ? "" : err_text());
}

/* Writes the files of a group so that their waits overlap. Paths are absolute (the request was checked). */
static void write_group(const writer *w, session *const *group, int count)
{
    int fds[GROUP_MAX];
    for (int i = 0; i < count; i++) {
        fds[i] = -1;
        note(group[i], begin_session(w, group[i], &fds[i]));
    }
    for (int i = 0; i < count; i++)
        if (group[i]->write_err == CF_OK)
            note(group[i], io_file_commit(group[i]->path, &fds[i]));
    const char *synced = NULL;
    for (int i = 0; i < count; i++) {
        if (group[i]->write_err != CF_OK || (synced && same_folder(group[i]->path, synced)))
            continue; /* one sync serves neighbours in one folder: all were renamed before */
        note(group[i], io_sync_folder_of(group[i]->path));
        synced = group[i]->write_err == CF_OK ? group[i]->path : NULL;
    }
}

/* ---- what storage refuses: full or read-only, it may recover. The mutex is held ---- */

static void put_aside(writer *w, session *s, uint64_t now_us)
{
    const uint64_t limit_us = s->stuck_us + (uint64_t)w->wait_s * CLOCK_SECOND_US;
    uint64_t pause_us = PAUSE_MIN_US + (now_us - s->stuck_us) / 8;
    if (pause_us > PAUSE_MAX_US)
        pause_us = PAUSE_MAX_US;
    s->retry_us = now_us + pause_us < limit_us ? now_us + pause_us : limit_us;
    push(&w->stuck, s);
    w->stuck_count++;
}

/* Storage takes files again: the others need not wait for their time. */
static void make_all_due(writer *w, uint64_t now_us)
{
    for (session *s = w->stuck.head; s; s = s->next)
        s->retry_us = now_us;
}

static int take_due(writer *w, session **group)
{
    const uint64_t now_us = clock_now_us();
    int count = 0;
    for (int32_t left = w->stuck_count; left > 0; left--) {
        session *s = pop(&w->stuck);
        if (s->retry_us <= now_us && count < GROUP_MAX)
            group[count++] = s;
        else
            push(&w->stuck, s);
    }
    w->stuck_count -= count;
    return count;
}

/* Until there may be something to do. */
static void wait_for_work(writer *w)
{
    uint64_t until_us = UINT64_MAX;
    for (const session *s = w->stuck.head; s; s = s->next)
        if (s->retry_us < until_us)
            until_us = s->retry_us;
    if (until_us == UINT64_MAX || w->retrying) {
        pthread_cond_wait(&w->wake, &w->mutex);
        return;
    }
    /* By the monotonic clock: the time of day may be set back meanwhile. */
    const struct timespec until = {.tv_sec = (time_t)(until_us / CLOCK_SECOND_US),
                                   .tv_nsec = (long)(until_us % CLOCK_SECOND_US) * 1000};
    pthread_cond_clockwait(&w->wake, &w->mutex, CLOCK_MONOTONIC, &until);
}

/* ---- the threads ---- */

/* What is due of the stuck ones, for one thread at a time, or else what is new. 0: the end. The mutex is held. */
static int take_group(writer *w, session **group, bool *ret_retries)
{
    int count = 0;
    *ret_retries = false;
    while (!w->stop) {
        if (!w->retrying)
            count = take_due(w, group);
        w->retrying |= *ret_retries = count > 0;
        while (w->todo.head && count < GROUP_MAX && !*ret_retries)
            group[count++] = pop(&w->todo);
        if (count > 0)
            break;
        wait_for_work(w);
    }
    return count;
}

/* What became of a group, for the log. */
typedef struct group_news {
    int refused, recovered; /* for the first time; after it was refused */
    uint64_t waited_us;     /* the longest of the recovered */
    char text[256];
} group_news;

/* Sorts a group into done and stuck. The mutex is held. */
static group_news put_back(writer *w, session *const *group, int count)
{
    const uint64_t now_us = clock_now_us(), wait_us = (uint64_t)w->wait_s * CLOCK_SECOND_US;
    group_news news = {0};
    for (int i = 0; i < count; i++) {
        session *s = group[i];
        const bool refused = s->write_err == CF_ERR_STORAGE && !s->impatient;
        if (refused && s->stuck_us == 0) {
            s->stuck_us = now_us;
            if (news.refused++ == 0)
                memcpy(news.text, s->write_text, sizeof news.text);
        }
        if (refused && now_us - s->stuck_us < wait_us) {
            put_aside(w, s, now_us);
            continue;
        }
        if (s->stuck_us != 0 && s->write_err == CF_OK) {
            news.recovered++;
            if (now_us - s->stuck_us > news.waited_us)
                news.waited_us = now_us - s->stuck_us;
        }
        push(&w->done, s);
    }
    if (news.recovered > 0)
        make_all_due(w, now_us);
    return news;
}

static void tell(const writer *w, const group_news *news)
{
    if (news->refused > 0)
        log_warn("storage.waits", "rows=%d limit_s=%d text=\"%s\"", news->refused, w->wait_s, news->text);
    if (news->recovered > 0)
        log_info("storage.recovered", "rows=%d waited_s=%.1f", news->recovered, (double)news->waited_us / 1e6);
}

/* Judges those that are new, and writes. */
static void do_group(const writer *w, session *const *group, int count)
{
    session *good[GROUP_MAX];
    int good_count = 0;
    for (int i = 0; i < count; i++)
        if (group[i]->stuck_us != 0 || passes_guard(w, group[i]))
            good[good_count++] = group[i];
    write_group(w, good, good_count);
}

static void *writer_main(void *arg)
{
    writer *w = arg;
    session *group[GROUP_MAX];
    bool retries;
    int count;
    process_name_thread("writer");
    process_thread_gives_way();
    pthread_mutex_lock(&w->mutex);
    while ((count = take_group(w, group, &retries)) > 0) {
        pthread_mutex_unlock(&w->mutex);
        do_group(w, group, count);
        pthread_mutex_lock(&w->mutex);
        const group_news news = put_back(w, group, count);
        if (retries)
            w->retrying = false;
        if (w->stuck.head)
            pthread_cond_signal(&w->wake); /* who waits has to know until when */
        pthread_mutex_unlock(&w->mutex);
        tell(w, &news);
        const uint64_t one = 1;
        CF_ASSERT(write(w->event_fd, &one, sizeof one) == (ssize_t)sizeof one);
        pthread_mutex_lock(&w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

cf_err writer_open(const config *cfg, writer **ret_writer)
{
    cf_err err;
    writer *w = NULL;
    TRY(mem_alloc(1, sizeof *w, &w));
    w->event_fd = -1;
    w->todo.tail = &w->todo.head;
    w->stuck.tail = &w->stuck.head;
    w->done.tail = &w->done.head;
    process_mutex_init(&w->mutex);
    pthread_cond_init(&w->wake, NULL);
    w->wait_s = cfg->storage_wait_s;
    w->guard_attempts = cfg->guard_attempts;
    w->guard_fail = cfg->guard_fail;
    TRY(guard_limits_of(cfg, &w->limits));
    w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->event_fd < 0) {
        err = err_sys("eventfd");
        goto out;
    }
    for (; w->started < THREADS; w->started++)
        if (pthread_create(&w->threads[w->started], NULL, writer_main, w) != 0) {
            err = err_sys("writer thread");
            goto out;
        }
    *ret_writer = w;
    w = NULL;
out:
    writer_close(w);
    return err;
}

void writer_close(writer *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->stop = true;
    pthread_cond_broadcast(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    for (int i = 0; i < w->started; i++)
        pthread_join(w->threads[i], NULL);
    io_close(&w->event_fd);
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->mutex);
    mem_free(w);
}

int writer_fd(const writer *w)
{
    return w->event_fd;
}

void writer_put(writer *w, session *s)
{
    pthread_mutex_lock(&w->mutex);
    push(&w->todo, s);
    w->waiting++;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
}

session *writer_take(writer *w)
{
    uint64_t events;
    pthread_mutex_lock(&w->mutex);
    session *s = pop(&w->done);
    w->waiting -= s != NULL;
    if (!s) {
        const ssize_t n = read(w->event_fd, &events, sizeof events);
        (void)n; /* EAGAIN: it was clear already */
    }
    pthread_mutex_unlock(&w->mutex);
    return s;
}

int32_t writer_waiting(writer *w)
{
    pthread_mutex_lock(&w->mutex);
    const int32_t waiting = w->waiting;
    pthread_mutex_unlock(&w->mutex);
    return waiting;
}
