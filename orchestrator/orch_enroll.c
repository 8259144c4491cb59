/*
 * orch_enroll.c - rows that name a recording: the program `enroll` is started for it, once for all rows that name the
 * same, and what comes out makes the row an ordinary one. Part of the shell, its one thread.
 *
 *   accepted -> voice in the store? -> waiting for a process -> `enroll` runs -> plan -> the core
 *
 * prompt_wav gives a voice in the store of recordings (config voice_store), source_wav the speech tokens themselves. A
 * decoder that dies is tried again, deaths_max times: what a stranger's file does to it, it does in its own process.
 * One that takes longer than enroll_s is ended, and its rows fail.
 * Owns the processes, their pipes and pidfds. Fails: by ending the row, with what `enroll` said.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/model/voice_store.h"
#include "orchestrator/orch.h"

#define OUTPUT_BYTES_MAX ((size_t)1 << 20)
#define JSON_DEPTH       4
#define ENV_MAX          512
#define ARGV_MAX         16

struct enroll_process {
    pid_t pid; /* 0: free */
    int pid_fd, out_fd;
    char *out; /* owned, OUTPUT_BYTES_MAX + 1 */
    size_t out_bytes;
    session *rows;          /* list of those that wait for it, linked by next */
    bool is_source, killed; /* killed: it took too long, and has no rows any more */
    uint64_t kill_us;
    char key[SHA256_HEX_BYTES]; /* of the voice; unused for a source */
};

/* ---- starting ---- */

/* The child dies with us, not with our supervisor, whose number it would inherit. */
static char **make_env(char text[64], char **ret_env, size_t count_max)
{
    size_t n = 0;
    snprintf(text, 64, "COSYFARM_PARENT=%ld", (long)getpid());
    ret_env[n++] = text;
    for (char **e = environ; *e && n + 1 < count_max; e++)
        if (strncmp(*e, "COSYFARM_PARENT=", 16) != 0)
            ret_env[n++] = *e;
    ret_env[n] = NULL;
    return ret_env;
}

/* What `enroll` is asked for; the strings live in the request, the configuration and mib. */
static void fill_argv(const orch *o, const session *s, const char *mib, const char *argv[ARGV_MAX])
{
    const bool is_source = wire_has(&s->request, "source_wav"), has_text = wire_has(&s->request, "prompt_text");
    int n = 0;
    argv[n++] = "enroll";
    argv[n++] = "--model";
    argv[n++] = o->cfg.model;
    argv[n++] = "--wav";
    argv[n++] = wire_str(&s->request, is_source ? "source_wav" : "prompt_wav");
    if (is_source) {
        argv[n++] = "--tokens";
    } else {
        argv[n++] = "--store";
        argv[n++] = o->cfg.voice_store;
        argv[n++] = "--store-mib";
        argv[n++] = mib;
        argv[n++] = has_text ? "--text" : "--no-text";
        if (has_text)
            argv[n++] = wire_str(&s->request, "prompt_text");
    }
    argv[n] = NULL;
}

static cf_err spawn_enroll(const orch *o, const session *s, enroll_process *p)
{
    cf_err err;
    char program[IO_PATH_BYTES], mib[16], parent[64];
    char *env[ENV_MAX];
    int fds[2] = {-1, -1};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;
    TRY(process_sibling("enroll", program, sizeof program));
    if (pipe2(fds, O_CLOEXEC) != 0) {
        err = err_sys("pipe");
        goto out;
    }
    snprintf(mib, sizeof mib, "%d", o->cfg.voice_store_mib);
    const char *argv[ARGV_MAX];
    fill_argv(o, s, mib, argv);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, fds[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, fds[1], STDERR_FILENO);
    /* It computes: nothing of our own scheduling is for it. */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSCHEDULER);
    posix_spawnattr_setschedpolicy(&attr, SCHED_OTHER);
    posix_spawnattr_setschedparam(&attr, &(struct sched_param){0});
    posix_spawnattr_setsigmask(&attr, &none);
    const int rc = posix_spawn(&p->pid, program, &files, &attr, (char *const *)(uintptr_t)argv,
                               make_env(parent, env, CF_COUNT(env)));
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    if (rc != 0) {
        p->pid = 0;
        FAIL(CF_ERR_SYS, "%s: %s", program, strerror(rc));
    }
    p->out_fd = fds[0];
    fds[0] = -1;
    fcntl(p->out_fd, F_SETFL, O_NONBLOCK);
    TRY(io_pidfd_open(p->pid, &p->pid_fd));
out:
    io_close(&fds[0]);
    io_close(&fds[1]);
    return err;
}

static void end_row(orch *o, session *s, cf_err code, const char *text)
{
    orch_session_end(o, s, code, "enroll", text);
}

static void free_process(enroll_process *p)
{
    io_close(&p->pid_fd);
    io_close(&p->out_fd);
    mem_free(p->out);
    *p = (enroll_process){.pid_fd = -1, .out_fd = -1};
}

static void start_process(orch *o, enroll_process *p, session *s)
{
    cf_err err = mem_alloc(OUTPUT_BYTES_MAX + 1, 1, &p->out);
    p->is_source = wire_has(&s->request, "source_wav");
    p->kill_us = clock_now_us() + (uint64_t)o->cfg.enroll_s * CLOCK_SECOND_US;
    snprintf(p->key, sizeof p->key, "%s", s->enroll_key);
    s->next = NULL;
    p->rows = s;
    if (err == CF_OK)
        err = spawn_enroll(o, s, p);
    if (err == CF_OK) {
        log_info("enroll.started", "utt=%s pid=%ld", s->id, (long)p->pid);
        return;
    }
    free_process(p);
    end_row(o, s, err, err_text());
}

/* ---- what came out ---- */

/* The row's voice or tokens are there: from here on it is as any other. */
static void go_on(orch *o, session *s, json *result)
{
    cf_err err;
    if (result && wire_has(&s->request, "source_wav")) {
        int32_t *tokens;
        size_t count;
        TRY(json_get_i32s(result, "tokens", 0, SPEECH_CODES - 1, TOKENS_MAX, &tokens, &count));
        TRY(requests_set_source(o, s, tokens, (int32_t)count));
    } else {
        char name[SHA256_HEX_BYTES + 1];
        snprintf(name, sizeof name, "@%s", s->enroll_key);
        TRY(requests_set_voice(o, s, name));
    }
    orch_begin_when_room(o, s);
out:
    if (err != CF_OK)
        end_row(o, s, err, err_text());
}

/* The last line of what it said. */
static const char *last_words(enroll_process *p)
{
    p->out[p->out_bytes] = '\0';
    while (p->out_bytes > 0 && p->out[p->out_bytes - 1] == '\n')
        p->out[--p->out_bytes] = '\0';
    const char *line = strrchr(p->out, '\n');
    line = line ? line + 1 : p->out;
    return strncmp(line, "enroll: ", 8) == 0 ? line + 8 : line;
}

/* The line that is the result, among warnings; empty when there is none. */
static const char *result_line(enroll_process *p)
{
    p->out[p->out_bytes] = '\0';
    for (char *line = p->out; *line;) {
        char *end = strchr(line, '\n');
        if (end)
            *end = '\0';
        if (line[0] == '{')
            return line;
        line = end ? end + 1 : line + strlen(line);
    }
    return "";
}

static cf_err code_of_exit(int status)
{
    switch (WEXITSTATUS(status)) {
    case 65:
        return CF_ERR_INVALID;
    case PROCESS_NO_RESOURCES:
        return CF_ERR_NOMEM;
    case PROCESS_CONFIG:
        return CF_ERR_MISMATCH;
    default:
        return CF_ERR_CORRUPT;
    }
}

static void finish_rows(orch *o, session *rows, int status, const char *words)
{
    json *result = NULL;
    const bool died = WIFSIGNALED(status);
    const bool good = !died && WEXITSTATUS(status) == 0;
    const cf_err err = good ? json_parse(words, strlen(words), JSON_DEPTH, &result) : CF_OK;
    while (rows) {
        session *s = rows;
        rows = s->next;
        s->next = NULL;
        if (good && err == CF_OK)
            go_on(o, s, result);
        else if (died && ++s->enroll_deaths < o->cfg.deaths_max)
            orch_enroll_put(o, s);
        else if (died)
            end_row(o, s, CF_ERR_GONE, "the program enroll died of this recording again and again");
        else
            end_row(o, s, good ? CF_ERR_CORRUPT : code_of_exit(status), good ? "enroll said what is no result" : words);
    }
    json_close(result);
}

/* ---- the queue ---- */

static session *pop(orch *o)
{
    session *s = o->to_enroll;
    o->to_enroll = s->next;
    s->next = NULL;
    return s;
}

static bool is_known(const orch *o, const session *s)
{
    char path[IO_PATH_BYTES];
    return s->enroll_key[0] && voice_store_path(o->cfg.voice_store, s->enroll_key, path) == CF_OK &&
           voice_store_has(path);
}

/* The process that makes the same voice already; NULL: none. */
static enroll_process *find_same(const orch *o, const session *s)
{
    for (int i = 0; i < ENROLL_JOBS_MAX; i++) {
        enroll_process *p = o->enrolling[i];
        if (p && p->pid > 0 && !p->is_source && !p->killed && strcmp(p->key, s->enroll_key) == 0)
            return p;
    }
    return NULL;
}

static enroll_process *find_place(orch *o)
{
    for (int i = 0; i < o->cfg.enroll_jobs; i++) {
        if (!o->enrolling[i]) {
            if (mem_alloc(1, sizeof *o->enrolling[i], &o->enrolling[i]) != CF_OK)
                return NULL;
            *o->enrolling[i] = (enroll_process){.pid_fd = -1, .out_fd = -1};
        }
        if (o->enrolling[i]->pid == 0)
            return o->enrolling[i];
    }
    return NULL;
}

/* Ready ones go on, the same ones share a process, the next ones get one while there are places. */
static void advance(orch *o)
{
    while (o->to_enroll) {
        enroll_process *p;
        if (is_known(o, o->to_enroll)) {
            go_on(o, pop(o), NULL);
        } else if ((p = find_same(o, o->to_enroll)) != NULL) {
            session *s = pop(o);
            s->next = p->rows;
            p->rows = s;
        } else if ((p = find_place(o)) != NULL) {
            start_process(o, p, pop(o));
        } else {
            return;
        }
    }
}

void orch_enroll_put(orch *o, session *s)
{
    session_queue_put(&o->to_enroll, s);
}

/* Its rows end now; its place is free when the kernel has let go of it. */
static void end_late(orch *o, enroll_process *p)
{
    char text[128];
    snprintf(text, sizeof text, "this recording took longer than %d s to enroll (enroll_s)", o->cfg.enroll_s);
    p->killed = true;
    log_warn("enroll.late", "pid=%ld text=\"%s\"", (long)p->pid, text);
    if (io_pidfd_kill(p->pid_fd) != CF_OK)
        log_warn("enroll.late", "pid=%ld text=\"%s\"", (long)p->pid, err_text());
    while (p->rows) {
        session *s = p->rows;
        p->rows = s->next;
        s->next = NULL;
        end_row(o, s, CF_ERR_TIMEOUT, text);
    }
}

/* The process goes on without them: others may want the voice. */
static void end_overdue(orch *o, session **rows, uint64_t now_us)
{
    for (session *s; (s = session_queue_take_overdue(rows, now_us)) != NULL;)
        end_row(o, s, CF_ERR_TIMEOUT, "the row's deadline passed before its recording was enrolled");
}

void orch_enroll_tick(orch *o)
{
    const uint64_t now_us = clock_now_us();
    end_overdue(o, &o->to_enroll, now_us);
    for (int i = 0; i < ENROLL_JOBS_MAX; i++) {
        enroll_process *p = o->enrolling[i];
        if (!p || p->pid == 0)
            continue;
        end_overdue(o, &p->rows, now_us);
        if (!p->killed && now_us >= p->kill_us)
            end_late(o, p);
    }
    advance(o);
}

size_t orch_enroll_fds(const orch *o, struct pollfd *fds)
{
    size_t n = 0;
    for (int i = 0; i < ENROLL_JOBS_MAX; i++) {
        const enroll_process *p = o->enrolling[i];
        fds[n++].fd = p && p->pid > 0 ? p->out_fd : -1;
        fds[n++].fd = p && p->pid > 0 ? p->pid_fd : -1;
    }
    return n;
}

/* What is in the pipe now; what exceeds the buffer is dropped, and is then no result. */
static void read_output(enroll_process *p)
{
    char rest[4096];
    for (;;) {
        const bool room = p->out_bytes < OUTPUT_BYTES_MAX;
        const ssize_t got = room ? read(p->out_fd, p->out + p->out_bytes, OUTPUT_BYTES_MAX - p->out_bytes)
                                 : read(p->out_fd, rest, sizeof rest);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return;
        p->out_bytes += room ? (size_t)got : 0;
    }
}

void orch_enroll_read(orch *o, const struct pollfd *fds)
{
    for (int i = 0; i < ENROLL_JOBS_MAX; i++) {
        enroll_process *p = o->enrolling[i];
        int status;
        if (!p || p->pid == 0)
            continue;
        if (fds[2 * i].revents || fds[2 * i + 1].revents)
            read_output(p);
        if (!fds[2 * i + 1].revents || waitpid(p->pid, &status, WNOHANG) != p->pid)
            continue;
        log_info("enroll.ended", "pid=%ld status=%d", (long)p->pid, status);
        session *rows = p->rows;
        const bool good = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        finish_rows(o, rows, status, good ? result_line(p) : last_words(p));
        free_process(p);
    }
}

void orch_enroll_close(orch *o)
{
    for (int i = 0; i < ENROLL_JOBS_MAX; i++) {
        enroll_process *p = o->enrolling[i];
        if (p && p->pid > 0) {
            kill(p->pid, SIGKILL);
            waitpid(p->pid, NULL, 0);
        }
        if (p)
            free_process(p);
        mem_free(p);
        o->enrolling[i] = NULL;
    }
}
