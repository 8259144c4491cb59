/*
 * writer.c - encode, hash, temporary file, fsync, rename. One thread, one mutex around two lists.
 * Fails: writer_open with CF_ERR_NOMEM or CF_ERR_SYS; a file that cannot be written is told in its session.
 */
#define _GNU_SOURCE
#include "orchestrator/writer.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "orchestrator/audio_file.h"

typedef struct session_list {
    session *head, **tail;
} session_list;

struct writer {
    pthread_t thread;
    int event_fd;
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t wake;
    session_list todo, done;
    int32_t waiting;
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

static cf_err write_session(session *s)
{
    cf_err err;
    audio_piece *pieces = NULL;
    void *data = NULL;
    size_t bytes;
    const size_t count = s->plan.segment_count;
    TRY(mem_alloc(count, sizeof *pieces, &pieces));
    for (size_t i = 0; i < count; i++)
        pieces[i] = (audio_piece){s->segments[i].samples, s->segments[i].samples_count};
    TRY(audio_encode(pieces, count, s->format, &data, &bytes));
    TRY(sha256_of(data, bytes, s->file_sha256));
    TRY(make_folder(s->path));
    TRY(io_write_file(s->path, data, bytes));
out:
    mem_free(pieces);
    mem_free(data);
    return err;
}

static void *writer_main(void *arg)
{
    writer *w = arg;
    for (;;) {
        pthread_mutex_lock(&w->mutex);
        while (!w->stop && !w->todo.head)
            pthread_cond_wait(&w->wake, &w->mutex);
        session *s = w->stop ? NULL : pop(&w->todo);
        pthread_mutex_unlock(&w->mutex);
        if (!s)
            return NULL;
        s->write_err = write_session(s);
        snprintf(s->write_text, sizeof s->write_text, "%s", s->write_err == CF_OK ? "" : err_text());
        pthread_mutex_lock(&w->mutex);
        push(&w->done, s);
        pthread_mutex_unlock(&w->mutex);
        const uint64_t one = 1;
        CF_ASSERT(write(w->event_fd, &one, sizeof one) == (ssize_t)sizeof one);
    }
}

cf_err writer_open(writer **ret_writer)
{
    cf_err err;
    writer *w = NULL;
    TRY(mem_alloc(1, sizeof *w, &w));
    w->todo.tail = &w->todo.head;
    w->done.tail = &w->done.head;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, NULL);
    w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->event_fd < 0 || pthread_create(&w->thread, NULL, writer_main, w) != 0) {
        err = err_sys("writer thread");
        io_close(&w->event_fd);
        mem_free(w);
        goto out;
    }
    *ret_writer = w;
out:
    return err;
}

void writer_close(writer *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->stop = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    session *s;
    while ((s = pop(&w->todo)) != NULL || (s = pop(&w->done)) != NULL)
        session_close(s);
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
