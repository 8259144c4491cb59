/*
 * trace.c - trace events gathered in memory and written a buffer at a time.
 *
 * Owns the file. Fails: trace_open with CF_ERR_SYS, CF_ERR_LIMIT (path), CF_ERR_NOMEM.
 */
#define _GNU_SOURCE
#include "common/worker/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#define BUFFER_BYTES 65536

struct trace {
    int fd; /* -1: given up */
    int64_t written;
    size_t used;
    char path[IO_PATH_BYTES], buffer[BUFFER_BYTES];
};

static void give_up(trace *t, const char *why)
{
    log_warn("trace.end", "path=%s text=\"%s\"", t->path, why);
    io_close(&t->fd);
}

static void flush(trace *t)
{
    if (t->fd >= 0 && t->used > 0 && io_write_all(t->fd, t->buffer, t->used) != CF_OK)
        give_up(t, err_text());
    t->written += (int64_t)t->used;
    t->used = 0;
}

static void append(trace *t, json *event)
{
    char *text = NULL;
    if (t->fd >= 0 && json_print(event, false, &text) == CF_OK) {
        const size_t bytes = strlen(text);
        if (t->written + (int64_t)(t->used + bytes) + 2 > TRACE_BYTES_MAX) {
            flush(t);
            give_up(t, "the file has reached TRACE_BYTES_MAX");
        } else if (bytes + 2 <= BUFFER_BYTES) {
            if (t->used + bytes + 2 > BUFFER_BYTES)
                flush(t);
            memcpy(t->buffer + t->used, text, bytes);
            memcpy(t->buffer + t->used + bytes, ",\n", 2);
            t->used += bytes + 2;
        }
    }
    mem_free(text);
    json_close(event);
}

static json *new_event(const char *phase, const char *name, uint64_t at_us)
{
    json *event = json_object();
    json_put_str(event, "ph", phase);
    json_put_str(event, "name", name);
    json_put_u64(event, "pid", (uint64_t)getpid());
    json_put_u64(event, "tid", 0);
    json_put_u64(event, "ts", at_us);
    return event;
}

cf_err trace_open(const char *folder, const char *role, int instance, trace **ret_trace)
{
    cf_err err;
    trace *t = NULL;
    char name[64];

    TRY(mem_alloc(1, sizeof *t, &t));
    t->fd = -1;
    snprintf(name, sizeof name, "%s.%d.%ld.json", role, instance, (long)getpid());
    TRY(io_join(t->path, sizeof t->path, folder, name));
    t->fd = open(t->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (t->fd < 0)
        FAIL(CF_ERR_SYS, "trace %s: %s", t->path, strerror(errno));
    memcpy(t->buffer, "[\n", 2);
    t->used = 2;
    json *event = new_event("M", "process_name", 0), *args = json_object();
    snprintf(name, sizeof name, "%s/%d", role, instance);
    json_put_str(args, "name", name);
    json_put(event, "args", args);
    append(t, event);
    flush(t);
    *ret_trace = t;
    t = NULL;
out:
    trace_close(t);
    return err;
}

void trace_close(trace *t)
{
    if (!t)
        return;
    flush(t);
    io_close(&t->fd);
    mem_free(t);
}

void trace_step(trace *t, uint64_t start_us, uint64_t spent_us, int32_t jobs)
{
    if (!t)
        return;
    json *event = new_event("X", "step", start_us), *args = json_object();
    json_put_u64(event, "dur", spent_us);
    json_put_u64(args, "jobs", (uint64_t)jobs);
    json_put(event, "args", args);
    append(t, event);
}

static void put_edge(trace *t, const char *phase, uint64_t job_id, const char *utterance, uint32_t segment_idx,
                     uint64_t at_us)
{
    char id[24];
    json *event = new_event(phase, utterance, at_us), *args = json_object();
    snprintf(id, sizeof id, "%" PRIu64, job_id);
    json_put_str(event, "cat", "job");
    json_put_str(event, "id", id);
    json_put_u64(args, "segment", segment_idx);
    json_put(event, "args", args);
    append(t, event);
}

void trace_job(trace *t, uint64_t job_id, const char *utterance, uint32_t segment_idx, uint64_t start_us,
               uint64_t end_us)
{
    if (!t)
        return;
    put_edge(t, "b", job_id, utterance, segment_idx, start_us);
    put_edge(t, "e", job_id, utterance, segment_idx, end_us);
    flush(t); /* a worker that is killed leaves the jobs it has done */
}
