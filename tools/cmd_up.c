/*
 * cmd_up.c - `cosyfarm up` starts a farm and is its supervisor; `cosyfarm down` drains it. Where systemd runs the
 * units, neither is needed. Fails: exit codes of tools/cmd.h, one line on stderr.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "tools/client.h"
#include "tools/cmd.h"
#include "tools/farm_options.h"
#include "tools/options.h"

#define READY_US  (600 * CLOCK_SECOND_US) /* full-size weights from a cold disk */
#define ANSWER_US (10 * CLOCK_SECOND_US)
#define ENDING_US (10 * CLOCK_SECOND_US) /* after grace_s: the orchestrator looks at its clock ten times a second */
#define POLL_US   (CLOCK_SECOND_US / 20)

#define LOG_NAME "farm.log" /* of the process in the background, in the run directory */

static const char up_help[] =
    "usage: cosyfarm up -m MODEL [options]\n\n"
    "Starts orchestrator, exchange keeper and workers, restarts what dies, and drains on ^C or "
    "SIGTERM.\n\n" FARM_OPTIONS_HELP "      --run-dir DIR     run directory (default COSYFARM_RUN_DIR, else "
    "$XDG_RUNTIME_DIR/cosyfarm, else /run/cosyfarm)\n"
    "      --detach          in the background, with its log in the run directory; returns when all workers serve\n";

static const char down_help[] = "usage: cosyfarm down [--now] [--run-dir DIR]\n\n"
                                "Lets the running farm finish its rows (at most grace_s seconds; --now: none), then "
                                "ends it. Exit code 75: rows are\n"
                                "left, and the next farm of the run directory goes on with them.\n";

typedef struct up {
    farm_options farm;
    char run_dir[IO_PATH_BYTES];
    bool detach, in_background;
    off_t log_bytes; /* of the log before the process in the background writes to it */
    int ended_code;  /* of that process; -1: it runs */
} up;

static cf_err parse_up(up *u, int argc, char **argv, bool *ret_help)
{
    static const struct option options[] = {FARM_LONG_OPTIONS,
                                            {"run-dir", required_argument, NULL, 'r'},
                                            {"detach", no_argument, NULL, 'd'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    cf_err err;
    opterr = 0;
    TRY(process_run_dir(u->run_dir, sizeof u->run_dir));
    for (int c; (c = getopt_long(argc, argv, FARM_SHORT_OPTIONS "r:dh", options, NULL)) != -1;) {
        if (farm_options_take(&u->farm, c, optarg, &err)) {
            if (err != CF_OK)
                return err;
        } else if (c == 'r') {
            TRY(process_take_run_dir(optarg, u->run_dir, sizeof u->run_dir));
        } else if (c == 'd') {
            u->detach = true;
        } else if (c == 'h') {
            *ret_help = true;
            return CF_OK;
        } else {
            return options_refused(argv, "up");
        }
    }
    err = options_no_operands(argc, argv);
out:
    return err;
}

/* Supervises until the farm ends by itself, cannot run, or a signal asks for a drain. */
static int supervise(spawn *farm, int signal_fd, const config *cfg)
{
    for (;;) {
        struct pollfd fds[SPAWN_FDS_MAX + 1];
        size_t n = spawn_fds(farm, fds);
        fds[n] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
        const uint64_t due_us = spawn_deadline_us(farm);
        poll(fds, n + 1, due_us == UINT64_MAX ? -1 : clock_left_ms(due_us, 60000));
        if (process_read_signal(signal_fd) != 0) {
            spawn_stop(farm, clock_now_us() + ((uint64_t)cfg->grace_s + 2) * CLOCK_SECOND_US);
            return EXIT_AGAIN;
        }
        const cf_err err = spawn_progress(farm, clock_now_us());
        if (err == CF_OK)
            continue;
        if (err != CF_ERR_GONE)
            fprintf(stderr, "cosyfarm up: %s\n", err_text());
        spawn_stop(farm, clock_now_us() + CLOCK_SECOND_US);
        return err == CF_ERR_GONE ? EXIT_DONE : err == CF_ERR_INVALID ? EXIT_CONFIG : EXIT_OURS;
    }
}

static int run_foreground(up *u)
{
    spawn *farm = NULL;
    int signal_fd = -1, code;
    char log_path[IO_PATH_BYTES];
    cf_err err = process_signal_fd(&signal_fd);
    log_open("up", LOG_LEVEL_INFO);
    if (err == CF_OK)
        err = io_join(log_path, sizeof log_path, u->run_dir, LOG_NAME);
    if (err == CF_OK)
        err = spawn_open(&u->farm.cfg, u->run_dir, u->in_background ? log_path : NULL, &farm);
    if (err == CF_OK)
        code = supervise(farm, signal_fd, &u->farm.cfg);
    else {
        fprintf(stderr, "cosyfarm up: %s\n", err_text());
        code = process_exit_code(err);
    }
    spawn_close(farm);
    io_close(&signal_fd);
    return code;
}

static size_t count_serving(const wire_msg *status)
{
    size_t serving = 0;
    for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
        const char *state, *role;
        serving += json_get_str(m, "state", 31, &state) == CF_OK && json_get_str(m, "role", 31, &role) == CF_OK &&
                   strcmp(state, "serving") == 0 && strcmp(role, "keeper") != 0;
    }
    return serving;
}

/* What the process in the background has said last, without its name in front. false: nothing. */
static bool read_last_word(const up *u, const char *log_path, char *ret_text, size_t text_bytes)
{
    static const char name[] = "cosyfarm up: ";
    io_map log = {0};
    bool found = false;
    if (io_map_file(log_path, &log) != CF_OK)
        return false;
    const char *end = (const char *)log.data + log.data_bytes;
    const char *line = (const char *)log.data + (u->log_bytes < (off_t)log.data_bytes ? u->log_bytes : 0);
    while (line < end) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        const size_t bytes = (size_t)((stop ? stop : end) - line);
        if (bytes >= sizeof name - 1 && memcmp(line, name, sizeof name - 1) == 0) {
            snprintf(ret_text, text_bytes, "%.*s", (int)(bytes - (sizeof name - 1)), line + sizeof name - 1);
            found = true;
        }
        line += bytes + 1;
    }
    io_unmap(&log);
    return found;
}

static cf_err tell_end(up *u, int status)
{
    char log_path[IO_PATH_BYTES], word[640];
    u->ended_code = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_OURS;
    const cf_err err = io_join(log_path, sizeof log_path, u->run_dir, LOG_NAME);
    if (err != CF_OK)
        return err;
    const bool said = read_last_word(u, log_path, word, sizeof word);
    return err_set(CF_ERR_GONE, "the farm ended at its start%s%s; its log is %s", said ? ": " : "", said ? word : "",
                   log_path);
}

/* Waits until every configured worker serves, or the background process has ended. */
static cf_err wait_serving(up *u, pid_t pid)
{
    cf_err err = CF_OK;
    client *c = NULL;
    const config *cfg = &u->farm.cfg;
    const size_t wanted = (size_t)(cfg->llm_workers + cfg->flow_workers + cfg->hift_workers);
    const uint64_t deadline_us = clock_now_us() + READY_US;
    size_t serving = 0;
    while (serving < wanted) {
        int status;
        if (waitpid(pid, &status, WNOHANG) == pid)
            TRY(tell_end(u, status));
        if (clock_now_us() > deadline_us)
            FAIL(CF_ERR_TIMEOUT, "%zu of %zu workers serve after %llu s", serving, wanted,
                 (unsigned long long)(READY_US / CLOCK_SECOND_US));
        if (!c && client_farm_runs(u->run_dir))
            TRY(client_open(u->run_dir, &c));
        if (c) {
            wire_msg answer = {0};
            json *m = wire_new(WIRE_query);
            json_put_u64(m, "nonce", 0);
            err = client_ask(c, m, WIRE_status, clock_now_us() + CLOCK_SECOND_US, &answer);
            serving = err == CF_OK ? count_serving(&answer) : 0;
            wire_done(&answer);
            if (err != CF_OK && err != CF_ERR_TIMEOUT)
                goto out;
        }
        poll(NULL, 0, (int)(POLL_US / 1000));
    }
    err = CF_OK;
out:
    client_close(c);
    return err;
}

/* The same command in its own session, writing to the log. A mark in its environment, not its words, says that it is
 * the one in the background: getopt_long takes any unique beginning of --detach. argv: as the verb got it. */
static cf_err start_background(up *u, int argc, char **argv, pid_t *ret_pid)
{
    cf_err err;
    char log_path[IO_PATH_BYTES], program[] = "cosyfarm";
    char **args = NULL;
    TRY(io_make_dirs(u->run_dir, 0700));
    TRY(io_join(log_path, sizeof log_path, u->run_dir, LOG_NAME));
    struct stat log;
    u->log_bytes = stat(log_path, &log) == 0 ? log.st_size : 0;
    TRY(mem_alloc((size_t)argc + 2, sizeof *args, &args));
    args[0] = program;
    memcpy(args + 1, argv, (size_t)argc * sizeof *args); /* getopt has reordered them, which changes nothing */
    unsetenv("COSYFARM_PARENT");                         /* it outlives us */
    setenv("COSYFARM_BACKGROUND", "1", 1);
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID);
    const int rc = posix_spawn(ret_pid, "/proc/self/exe", &files, &attr, args, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    if (rc != 0)
        err = err_set(CF_ERR_SYS, "cannot start in the background: %s", strerror(rc));
out:
    mem_free(args);
    return err;
}

static int run_detached(up *u, int argc, char **argv)
{
    pid_t pid = 0;
    cf_err err = start_background(u, argc, argv, &pid);
    if (err == CF_OK)
        err = wait_serving(u, pid);
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm up: %s\n", err_text());
        if (u->ended_code >= 0)
            return u->ended_code == EXIT_DONE ? EXIT_AGAIN : u->ended_code;
        if (pid > 0)
            kill(pid, SIGTERM);
        return process_exit_code(err);
    }
    printf("farm is serving in %s (supervisor %ld, log %s/" LOG_NAME ")\n", u->run_dir, (long)pid, u->run_dir);
    return EXIT_DONE;
}

int cmd_up(int argc, char **argv)
{
    static up u; /* one per process; long paths */
    bool help = false;
    u.ended_code = -1;
    u.in_background = getenv("COSYFARM_BACKGROUND") != NULL;
    unsetenv("COSYFARM_BACKGROUND"); /* it is for nobody else */
    farm_options_init(&u.farm);
    cf_err err = parse_up(&u, argc, argv, &help);
    if (help) {
        fputs(up_help, stdout);
        return EXIT_DONE;
    }
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm up: %s\n", err_text());
        return EXIT_USAGE;
    }
    err = farm_options_load(&u.farm);
    if (err == CF_OK)
        err = farm_options_check(&u.farm);
    if (err == CF_OK && client_farm_runs(u.run_dir))
        err = err_set(CF_ERR_BUSY, "a farm runs in %s already (cosyfarm status)", u.run_dir);
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm up: %s\n", err_text());
        return EXIT_CONFIG;
    }
    setenv("COSYFARM_RUN_DIR", u.run_dir, 1);
    return u.detach && !u.in_background ? run_detached(&u, argc, argv) : run_foreground(&u);
}

/* ---- down ---- */

/* How long the farm may take for its rows, as it was configured. */
static cf_err ask_grace(client *c, uint64_t *ret_grace_s)
{
    cf_err err;
    wire_msg status = {0};
    TRY(client_status(c, &status));
    TRY(json_get_u64(wire_json(&status, "config"), "grace_s", 0, INT32_MAX, ret_grace_s));
out:
    wire_done(&status);
    return err;
}

/* Its last word, with the rows that are left. CF_ERR_CANCELLED: it has gone without. */
static cf_err wait_last_word(client *c, const char *run_dir, uint64_t deadline_us, uint64_t *ret_left)
{
    for (;;) {
        wire_msg msg = {0};
        const bool runs = client_farm_runs(run_dir); /* looked at before: what it said last is here when it is gone */
        const cf_err err = client_wait(c, WIRE_goodbye, clock_now_us() + POLL_US, &msg);
        const bool told = err == CF_OK && wire_has(&msg, "left");
        if (told)
            *ret_left = wire_u64(&msg, "left");
        wire_done(&msg);
        if (told || (err != CF_OK && err != CF_ERR_TIMEOUT))
            return err;
        if (!runs)
            return err_set(CF_ERR_CANCELLED, "the farm has ended without a last word; rows may be left in its journal");
        if (clock_now_us() > deadline_us)
            return err_set(CF_ERR_CANCELLED, "the farm was told to end and still runs in %s (cosyfarm status)",
                           run_dir);
    }
}

/* CF_ERR_CANCELLED: rows are left. */
static cf_err drain(const char *run_dir, bool now)
{
    cf_err err;
    client *c = NULL;
    wire_msg answer = {0};
    uint64_t grace_s = 0, left = 0;
    if (!client_farm_runs(run_dir))
        FAIL(CF_ERR_GONE, "no farm runs in %s", run_dir);
    TRY(client_open(run_dir, &c));
    TRY(ask_grace(c, &grace_s));
    json *m = wire_new(WIRE_shutdown);
    json_put_bool(m, "now", now);
    TRY(client_ask(c, m, WIRE_goodbye, clock_now_us() + ANSWER_US, &answer));
    const uint64_t deadline_us = clock_now_us() + (now ? 0 : grace_s * CLOCK_SECOND_US) + ENDING_US;
    TRY(wait_last_word(c, run_dir, deadline_us, &left));
    while (client_farm_runs(run_dir) && clock_now_us() < deadline_us)
        poll(NULL, 0, (int)(POLL_US / 1000));
    if (left > 0)
        err =
            err_set(CF_ERR_CANCELLED,
                    "rows left when the farm ended: %llu; its journal keeps them, and the next farm of %s goes on with "
                    "them",
                    (unsigned long long)left, run_dir);
out:
    wire_done(&answer);
    client_close(c);
    return err;
}

int cmd_down(int argc, char **argv)
{
    static const struct option options[] = {{"now", no_argument, NULL, 'n'},
                                            {"run-dir", required_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    char run_dir[IO_PATH_BYTES];
    bool now = false;
    opterr = 0;
    cf_err err = process_run_dir(run_dir, sizeof run_dir);
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, "r:h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(down_help, stdout);
            return EXIT_DONE;
        }
        if (c == 'n')
            now = true;
        else
            err = c == 'r' ? process_take_run_dir(optarg, run_dir, sizeof run_dir) : options_refused(argv, "down");
    }
    if (err == CF_OK)
        err = options_no_operands(argc, argv);
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm down: %s\n", err_text());
        return EXIT_USAGE;
    }
    err = drain(run_dir, now);
    if (err != CF_OK)
        fprintf(stderr, "cosyfarm down: %s\n", err_text());
    switch (err) {
    case CF_OK:
        return EXIT_DONE;
    case CF_ERR_CANCELLED:
        return EXIT_AGAIN;
    case CF_ERR_GONE:
    case CF_ERR_TIMEOUT:
        return EXIT_NO_FARM;
    default:
        return EXIT_OURS;
    }
}
