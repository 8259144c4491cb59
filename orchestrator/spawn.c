/*
 * spawn.c - posix_spawn, pidfds, back-off. Used by `cosyfarm up` and by the private farm of `say`; one thread.
 * Owns the children and their pidfds. Fails: CF_ERR_SYS, CF_ERR_LIMIT, and the verdicts of spawn_progress.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/transport/lifeline.h"
#include "common/transport/wire.h"
#include "orchestrator/spawn_impl.h"

#define RETRY_START_US CLOCK_SECOND_US
#define REST_ENDED_US  CLOCK_SECOND_US /* of one that ended in order: it is wanted, unless the farm ends meanwhile */
#define CONNECT_US     100000          /* between two attempts to reach the orchestrator */

cf_err spawn_make_env(const spawn *s, bool first, spawn_own_env text, char ***ret_env)
{
    static const char *const replaced[SPAWN_OWN_VARIABLES] = {
        "COSYFARM_RUN_DIR=", "COSYFARM_PARENT=", "OMP_WAIT_POLICY="};
    char **env;
    size_t n = 0, inherited = 0;
    while (environ[inherited])
        inherited++;
    const cf_err err = mem_alloc(SPAWN_OWN_VARIABLES + inherited + 1, sizeof *env, &env);
    if (err != CF_OK)
        return err;
    snprintf(text[0], sizeof text[0], "%s%s", replaced[0], s->run_dir);
    snprintf(text[1], sizeof text[1], "%s%ld", replaced[1], (long)getpid());
    snprintf(text[2], sizeof text[2], "%spassive",
             replaced[2]); /* read by libgomp at load: idle threads must not spin */
    for (; n < SPAWN_OWN_VARIABLES; n++)
        env[n] = text[n];
    for (char **e = environ; *e; e++) {
        bool skip = !first && strncmp(*e, "COSYFARM_FAULT=", 15) == 0;
        for (size_t r = 0; r < SPAWN_OWN_VARIABLES; r++)
            skip = skip || strncmp(*e, replaced[r], strlen(replaced[r])) == 0;
        if (!skip)
            env[n++] = *e;
    }
    env[n] = NULL;
    *ret_env = env;
    return CF_OK;
}

static cf_err start_child(spawn *s, child *c)
{
    cf_err err;
    char path[IO_PATH_BYTES], instance[16];
    spawn_own_env env_text;
    char **env = NULL;
    TRY(process_sibling(c->program, path, sizeof path));
    snprintf(instance, sizeof instance, "%d", c->instance);
    char *worker_argv[] = {c->program, "--instance", instance, NULL};
    char *orch_argv[] = {c->program, "--config", s->config_path, NULL};
    char *keeper_argv[] = {c->program, NULL};
    char *const *argv = c->role == CHILD_WORKER ? worker_argv : c->role == CHILD_ORCHESTRATOR ? orch_argv : keeper_argv;
    TRY(spawn_make_env(s, c->starts == 0, env_text, &env));

    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, s->log_fd >= 0 ? s->log_fd : STDERR_FILENO, STDERR_FILENO);
    posix_spawn_file_actions_adddup2(&files, STDERR_FILENO, STDOUT_FILENO);
    /* Its own group: ^C on the terminal is for us, who drain. Our blocked signals are not its. */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setsigmask(&attr, &none);
    const int rc = posix_spawn(&c->pid, path, &files, &attr, argv, env);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    if (rc != 0) {
        c->pid = 0;
        FAIL(CF_ERR_SYS, "%s: %s", path, strerror(rc));
    }
    c->starts++;
    c->served = c->leaving = false;
    c->unseen_us = clock_now_us();
    TRY(io_pidfd_open(c->pid, &c->pid_fd));
out:
    mem_free(env);
    return err;
}

static cf_err add_children(spawn *s, child_role role, const char *program, int first, int end)
{
    for (int i = first; i < end; i++) {
        if (s->count == SPAWN_CHILDREN_MAX)
            return err_set(CF_ERR_LIMIT, "more than %d processes in one farm", SPAWN_CHILDREN_MAX);
        child *c = &s->children[s->count++];
        *c = (child){.role = role, .instance = i, .pid_fd = -1, .restart_us = UINT64_MAX};
        snprintf(c->program, sizeof c->program, "%s", program);
    }
    return CF_OK;
}

static cf_err write_config(const config *cfg, const char *path)
{
    cf_err err;
    json *root = config_to_json(cfg);
    char *text = NULL;
    TRY(json_print(root, true, &text));
    TRY(io_write_file(path, text, strlen(text)));
out:
    json_close(root);
    mem_free(text);
    return err;
}

cf_err spawn_open(const config *cfg, const char *run_dir, const char *log_path, spawn **ret_spawn)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    spawn *s = NULL;
    TRY(mem_alloc(1, sizeof *s, &s));
    s->log_fd = s->lifeline_fd = -1;
    s->silence_us = (uint64_t)cfg->silence_s * CLOCK_SECOND_US;
    s->stall_us = (uint64_t)cfg->stall_s * CLOCK_SECOND_US;
    snprintf(s->run_dir, sizeof s->run_dir, "%s", run_dir);
    TRY(io_make_dirs(run_dir, 0700));
    TRY(io_join(s->config_path, sizeof s->config_path, run_dir, "config.json"));
    TRY(io_join(s->lifeline_path, sizeof s->lifeline_path, run_dir, RUN_LIFELINE_SOCKET));
    TRY(write_config(cfg, s->config_path));
    TRY(io_join(path, sizeof path, run_dir, RUN_KEPT));
    unlink(path); /* of a farm that was killed */
    if (log_path) {
        snprintf(s->log_path, sizeof s->log_path, "%s", log_path);
        s->log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (s->log_fd < 0) {
            err = err_sys("%s: open", log_path);
            goto out;
        }
        log_to(s->log_fd); /* what its supervisor has to say belongs there too */
    }
    TRY(add_children(s, CHILD_ORCHESTRATOR, "orchestrator", 0, 1));
    TRY(add_children(s, CHILD_KEEPER, "exchange_keeper", 0, 1));
    TRY(add_children(s, CHILD_WORKER, "llm_worker", 0, cfg->llm_workers));
    TRY(add_children(s, CHILD_WORKER, "flow_worker", 0, cfg->flow_workers));
    TRY(add_children(s, CHILD_WORKER, "hift_worker", 0, cfg->hift_workers));
    for (size_t i = 0; i < s->count; i++)
        TRY(start_child(s, &s->children[i]));
    *ret_spawn = s;
    s = NULL;
out:
    spawn_close(s);
    return err;
}

size_t spawn_fds(const spawn *s, struct pollfd fds[SPAWN_FDS_MAX])
{
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].pid > 0)
            fds[n++] = (struct pollfd){.fd = s->children[i].pid_fd, .events = POLLIN};
    if (s->lifeline_fd >= 0)
        fds[n++] = (struct pollfd){.fd = s->lifeline_fd, .events = POLLIN};
    return n;
}

uint64_t spawn_deadline_us(const spawn *s)
{
    uint64_t deadline_us = s->lifeline_fd >= 0 || s->stopping ? UINT64_MAX : s->connect_us;
    for (size_t i = 0; i < s->count && !s->stopping; i++) {
        const child *c = &s->children[i];
        const uint64_t due_us = c->pid == 0 ? c->restart_us : spawn_hung_us(s, c);
        deadline_us = due_us < deadline_us ? due_us : deadline_us;
    }
    return deadline_us;
}

static void tell_end(const child *c, int status, uint64_t rest_us)
{
    const unsigned long long rest_ms = rest_us / 1000;
    const bool in_order = WIFEXITED(status) && WEXITSTATUS(status) == PROCESS_DRAINED;
    if (WIFSIGNALED(status))
        log_warn("child.died", "program=%s instance=%d pid=%ld signal=%d restart_ms=%llu", c->program, c->instance,
                 (long)c->pid, WTERMSIG(status), rest_ms);
    else
        log_line(in_order ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "child.ended",
                 "program=%s instance=%d pid=%ld code=%d restart_ms=%llu", c->program, c->instance, (long)c->pid,
                 WEXITSTATUS(status), rest_ms);
}

cf_err spawn_judge(spawn *s, child *c, int status, uint64_t now_us)
{
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (s->stopping)
        return CF_OK;
    if (code == PROCESS_CONFIG || code == PROCESS_USAGE)
        return spawn_refused(s, c, code);
    if (code == PROCESS_DRAINED && c->role == CHILD_ORCHESTRATOR)
        return err_set(CF_ERR_GONE, "the farm has ended");
    if (c->surplus)
        return CF_OK;
    if (c->leaving) { /* wanted again meanwhile */
        c->restart_us = now_us;
        return CF_OK;
    }
    uint64_t rest_us = spawn_rest_us(c);
    /* Somebody's SIGTERM; or the farm is draining, and its orchestrator about to end. */
    if (code == PROCESS_DRAINED && rest_us < REST_ENDED_US)
        rest_us = REST_ENDED_US;
    c->restart_us = now_us + rest_us;
    spawn_count_end(c, status, now_us);
    tell_end(c, status, rest_us);
    return CF_OK;
}

/* ---- the orchestrator's wishes ---- */

static void hang_up(spawn *s, uint64_t now_us)
{
    io_close(&s->lifeline_fd);
    spawn_note_line(s, false, now_us);
    s->connect_us = now_us + CONNECT_US;
}

static cf_err connect_lifeline(spawn *s)
{
    cf_err err;
    TRY(lifeline_connect(s->lifeline_path, &s->lifeline_fd));
    json *m = wire_new(WIRE_hello);
    json_put_str(m, "role", "supervisor");
    json_put_u64(m, "instance", 0);
    json_put_u64(m, "pid", (uint64_t)getpid());
    json_put_str(m, "build", CF_VERSION);
    TRY(lifeline_send(s->lifeline_fd, m, NULL, 0));
out:
    return err;
}

static child *find_worker(spawn *s, const char *program, int instance)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].instance == instance && strcmp(s->children[i].program, program) == 0)
            return &s->children[i];
    return NULL;
}

/* Makes room: those that were scaled away, and have ended. */
static void drop_surplus(spawn *s)
{
    size_t kept = 0;
    for (size_t i = 0; i < s->count; i++)
        if (!s->children[i].surplus || s->children[i].pid > 0)
            s->children[kept++] = s->children[i];
    s->count = kept;
}

/* A worker that is told hands back what it holds, and another one goes on with it. */
static void set_wanted(child *c, bool wanted, uint64_t now_us)
{
    c->surplus = !wanted;
    if (wanted && c->pid == 0 && c->restart_us == UINT64_MAX)
        c->restart_us = now_us;
    if (wanted || c->pid == 0 || c->leaving)
        return;
    c->leaving = true;
    log_info("child.surplus", "program=%s instance=%d pid=%ld", c->program, c->instance, (long)c->pid);
    kill(c->pid, SIGTERM);
}

cf_err spawn_set_staff(spawn *s, const char *stage, int wanted, uint64_t now_us)
{
    cf_err err = CF_OK;
    char program[32];
    snprintf(program, sizeof program, "%.15s_worker", stage);
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].role == CHILD_WORKER && strcmp(s->children[i].program, program) == 0)
            set_wanted(&s->children[i], s->children[i].instance < wanted, now_us);
    drop_surplus(s);
    for (int i = 0; i < wanted; i++) {
        if (find_worker(s, program, i))
            continue;
        TRY(add_children(s, CHILD_WORKER, program, i, i + 1));
        s->children[s->count - 1].restart_us = now_us;
    }
out:
    return err;
}

static cf_err read_wish(spawn *s, uint64_t now_us)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    wire_msg msg = {0};
    int fds[LIFELINE_FDS_MAX] = {-1, -1};
    TRY(lifeline_recv(s->lifeline_fd, &text, &bytes, fds));
    TRY(wire_parse(text, bytes, WIRE_ORCH_LIFELINE, &msg));
    if (msg.kind == WIRE_staff) {
        TRY(spawn_set_staff(s, wire_str(&msg, "stage"), (int)wire_u64(&msg, "count"), now_us));
    } else if (msg.kind == WIRE_served) {
        spawn_note_served(s, &msg);
    } else if (msg.kind == WIRE_seen) {
        spawn_note_seen(s, &msg, now_us);
    } else if (msg.kind == WIRE_welcome) {
        spawn_note_line(s, true, now_us);
    } else if (msg.kind == WIRE_refuse) {
        err = err_set(CF_ERR_GONE, "refused: %s", wire_str(&msg, "text"));
    }
out:
    wire_done(&msg);
    mem_free(text);
    for (int i = 0; i < LIFELINE_FDS_MAX; i++)
        io_close(&fds[i]);
    return err;
}

/* Hears what is to be scaled, and who serves. Losing the line is no failure of the farm: it is tried again. */
static void listen_to_orchestrator(spawn *s, uint64_t now_us)
{
    if (s->stopping)
        return;
    if (s->lifeline_fd < 0 && now_us >= s->connect_us && connect_lifeline(s) != CF_OK)
        hang_up(s, now_us);
    for (int n = 0; n < 8 && s->lifeline_fd >= 0; n++) {
        const cf_err err = read_wish(s, now_us);
        if (err == CF_ERR_TIMEOUT)
            return;
        if (err != CF_OK)
            hang_up(s, now_us);
    }
}

cf_err spawn_progress(spawn *s, uint64_t now_us)
{
    listen_to_orchestrator(s, now_us);
    for (size_t i = 0; i < s->count; i++) {
        child *c = &s->children[i];
        int status;
        if (c->pid > 0 && waitpid(c->pid, &status, WNOHANG) == c->pid) {
            const cf_err verdict = spawn_judge(s, c, status, now_us);
            io_close(&c->pid_fd);
            c->pid = 0;
            if (verdict != CF_OK)
                return verdict;
        }
        if (!s->stopping)
            spawn_end_hung(s, c, now_us);
        if (c->pid == 0 && !s->stopping && !c->surplus && now_us >= c->restart_us) {
            c->restart_us = UINT64_MAX;
            if (start_child(s, c) != CF_OK) { /* its file is being replaced, or the system is short of something */
                log_warn("child.not_started", "program=%s instance=%d text=\"%s\"", c->program, c->instance,
                         err_text());
                c->restart_us = now_us + RETRY_START_US;
                spawn_count_end(c, SPAWN_NOT_STARTED, now_us);
            }
        }
    }
    return CF_OK;
}

static size_t alive(const spawn *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++)
        n += s->children[i].pid > 0;
    return n;
}

static void signal_all(const spawn *s, int number, bool orchestrator_only)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].pid > 0 && (!orchestrator_only || s->children[i].role == CHILD_ORCHESTRATOR))
            kill(s->children[i].pid, number);
}

/* Waits until nobody (or no orchestrator) is left, or the deadline. */
static bool wait_gone(spawn *s, bool orchestrator_only, uint64_t deadline_us)
{
    for (;;) {
        const cf_err err = spawn_progress(s, clock_now_us());
        CF_ASSERT(err == CF_OK); /* stopping: nothing is judged or restarted */
        struct pollfd fds[SPAWN_CHILDREN_MAX];
        size_t n = 0;
        for (size_t i = 0; i < s->count; i++)
            if (s->children[i].pid > 0 && (!orchestrator_only || s->children[i].role == CHILD_ORCHESTRATOR))
                fds[n++] = (struct pollfd){.fd = s->children[i].pid_fd, .events = POLLIN};
        if (n == 0)
            return true;
        if (clock_now_us() >= deadline_us)
            return false;
        poll(fds, n, clock_left_ms(deadline_us, 1000));
    }
}

void spawn_stop(spawn *s, uint64_t deadline_us)
{
    s->stopping = true;
    signal_all(s, SIGTERM, true);
    wait_gone(s, true, deadline_us);
    signal_all(s, SIGTERM, false);
    if (!wait_gone(s, false, clock_now_us() + CLOCK_SECOND_US))
        log_warn("farm.killed", "processes=%zu", alive(s));
}

void spawn_close(spawn *s)
{
    if (!s)
        return;
    s->stopping = true;
    signal_all(s, SIGKILL, false);
    wait_gone(s, false, clock_now_us() + 5 * CLOCK_SECOND_US);
    log_to(STDERR_FILENO);
    io_close(&s->log_fd);
    io_close(&s->lifeline_fd);
    mem_free(s);
}
