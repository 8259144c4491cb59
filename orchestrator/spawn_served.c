/*
 * spawn_served.c - processes that end before they serve, again and again: a restart cures a crash, but not a
 * worker that finds too little memory each time. Counts their ends, gives them pauses, and says when the owner may give
 * up. The supervisor's one thread.
 *
 * A worker has served when a status names one of its stage as fed, barred, on parole or drained; the keeper when each
 * stage has such a worker, since workers wait for its memory; the orchestrator when a row has ended.
 * Fails: CF_ERR_GONE of spawn_check_served, CF_ERR_INVALID of spawn_refused. A log that cannot be read is an error
 * without a last line.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "orchestrator/farm_watch.h"
#include "orchestrator/spawn_impl.h"

#define LOG_TAIL_BYTES 65536
#define LAST_WORD_MAX  240 /* of a log line, in an error */

uint64_t spawn_rest_us(child *c)
{
    c->vain_ends = c->served ? 0 : c->vain_ends + 1;
    return process_rest_us(c->vain_ends);
}

void spawn_note_served(spawn *s, const wire_msg *served)
{
    char program[32];
    snprintf(program, sizeof program, "%s_worker", wire_str(served, "stage"));
    for (size_t i = 0; i < s->count; i++) {
        child *c = &s->children[i];
        if (c->role != CHILD_WORKER)
            c->served = true; /* it came through their hands */
        else if (strcmp(c->program, program) == 0 && c->instance == (int)wire_u64(served, "instance") &&
                 c->pid == (pid_t)wire_u64(served, "pid"))
            c->served = true;
    }
}

void spawn_count_end(child *c, int status, uint64_t now_us)
{
    if (c->ends == 0)
        c->ends_since_us = now_us;
    c->ends++;
    c->end_status = status;
}

/* Programs of this role, of this stage only where one is given. */
static void forget_ends(spawn *s, child_role role, const char *stage)
{
    char program[32] = "";
    if (stage)
        snprintf(program, sizeof program, "%s_worker", stage);
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].role == role && (!stage || strcmp(s->children[i].program, program) == 0))
            s->children[i].ends = 0;
}

static bool stage_serves(const wire_msg *status, model_stage stage)
{
    return farm_workers(status, stage) & (WORKERS_FED | WORKERS_BARRED | WORKERS_PAUSED);
}

void spawn_hear(spawn *s, const wire_msg *msg)
{
    int serving = 0;
    if (msg->kind == WIRE_done)
        forget_ends(s, CHILD_ORCHESTRATOR, NULL);
    if (msg->kind != WIRE_status)
        return;
    for (int i = 0; i < MODEL_STAGE_COUNT; i++)
        if (stage_serves(msg, (model_stage)i)) {
            forget_ends(s, CHILD_WORKER, model_stage_name((model_stage)i));
            serving++;
        }
    if (serving == MODEL_STAGE_COUNT)
        forget_ends(s, CHILD_KEEPER, NULL);
}

/* The last line of text that holds all of the parts, without its end; NULL: none. A NULL part is none. */
static char *last_line(char *text, const char *a, const char *b, bool is_log_line)
{
    char *found = NULL;
    for (char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        *end = '\0';
        if (at < end && (strstr(at, " ev=") != NULL) == is_log_line && (!a || strstr(at, a)) && (!b || strstr(at, b)))
            found = at;
        *end = '\n';
    }
    if (found)
        *strchr(found, '\n') = '\0';
    return found;
}

/* What the log has last of a child: its last warning or error, else the last line of somebody who does not log as our
 * programs do: a shell, a loader. */
static char *last_word(const spawn *s, const child *c, char buf[LOG_TAIL_BYTES + 1])
{
    char unit[80];
    const int fd = open(s->log_path, O_RDONLY | O_CLOEXEC);
    const off_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
    const ssize_t n = fd >= 0 ? pread(fd, buf, LOG_TAIL_BYTES, end > LOG_TAIL_BYTES ? end - LOG_TAIL_BYTES : 0) : -1;
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return NULL;
    buf[n] = '\0';
    if (c->end_status == SPAWN_NOT_STARTED) {
        snprintf(unit, sizeof unit, " program=%s instance=%d", c->program, c->instance);
        return last_line(buf, " ev=child.not_started", unit, true);
    }
    if (c->role == CHILD_WORKER)
        snprintf(unit, sizeof unit, " unit=%.*s/%d ", (int)strcspn(c->program, "_"), c->program, c->instance);
    else
        snprintf(unit, sizeof unit, " unit=%s ", c->role == CHILD_KEEPER ? "keeper" : c->program);
    char *line = last_line(buf, " lvl=error", unit, true);
    if (!line)
        line = last_line(buf, " lvl=warn", unit, true);
    return line ? line : last_line(buf, NULL, NULL, false);
}

cf_err spawn_refused(const spawn *s, const child *c, int code)
{
    char buf[LOG_TAIL_BYTES + 1];
    char *word = last_word(s, c, buf), *text = word ? strstr(word, " text=\"") : NULL;
    if (text) {
        word = text + strlen(" text=\"");
        text = strrchr(word, '"');
        if (text)
            *text = '\0';
    }
    return err_set(CF_ERR_INVALID, "%s/%d ended with code %d: %s", c->program, c->instance, code,
                   word ? word : "its last line says why");
}

static const char *end_words(int status, char buf[64])
{
    if (status == SPAWN_NOT_STARTED)
        return "it cannot be started";
    if (WIFSIGNALED(status)) {
        snprintf(buf, 64, "signal %d", WTERMSIG(status));
        return buf;
    }
    const int code = WEXITSTATUS(status);
    snprintf(buf, 64, "exit code %d%s", code,
             code == PROCESS_NO_RESOURCES  ? " (out of memory or other resources)"
             : code == PROCESS_DEVICE_LOST ? " (device lost)"
                                           : "");
    return buf;
}

static cf_err give_up(const spawn *s, const child *c, uint64_t now_us)
{
    char buf[LOG_TAIL_BYTES + 1], end[64];
    const char *word = last_word(s, c, buf);
    return err_set(CF_ERR_GONE, "%s/%d ends before it serves: %u times in %.1f s, the last time with %s; %s%.*s%s",
                   c->program, c->instance, c->ends, (double)clock_since_us(c->ends_since_us, now_us) / 1e6,
                   end_words(c->end_status, end), word ? "its last line: \"" : "it left no line", LAST_WORD_MAX,
                   word ? word : "", word ? "\"" : "");
}

/* Of the same program as c, all that ought to run. The last of them to begin to fail; NULL: one may still serve. */
static const child *failing(const spawn *s, const child *c)
{
    const child *latest = NULL;
    for (size_t i = 0; i < s->count; i++) {
        const child *other = &s->children[i];
        if (other->surplus || strcmp(other->program, c->program) != 0)
            continue;
        if (other->ends < UNSERVED_ENDS_MAX)
            return NULL;
        if (!latest || other->ends_since_us > latest->ends_since_us)
            latest = other;
    }
    return latest;
}

cf_err spawn_check_served(const spawn *s, uint64_t now_us, uint64_t patience_us)
{
    for (size_t i = 0; i < s->count && !s->stopping; i++) {
        const child *c = failing(s, &s->children[i]);
        if (c && clock_since_us(c->ends_since_us, now_us) >= patience_us)
            return give_up(s, c, now_us);
    }
    return CF_OK;
}
