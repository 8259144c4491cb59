/*
 * farm.c - starts and hurts real processes for end-to-end tests. Waits for events with deadlines, never for time alone.
 * Fails: through cmocka.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include "tests/harness/farm.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "tests/harness/tiny_model.h"

#define START_US (120 * CLOCK_SECOND_US) /* sanitizers are slow */

static const char *bin_dir(void)
{
    const char *dir = getenv("COSYFARM_BIN");
    return dir ? dir : "build/default/bin";
}

static const char *bin_path(const char *program)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", bin_dir(), program);
    return path;
}

pid_t farm_command_start(const char *const *args, const char *out_path)
{
    pid_t pid;
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (out_path) {
        posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
    }
    char parent[32];
    snprintf(parent, sizeof parent, "%ld", (long)getpid());
    setenv("COSYFARM_PARENT", parent, 1); /* a test that is killed leaves no farm behind */
    const int rc = posix_spawn(&pid, bin_path("cosyfarm"), &files, NULL, (char *const *)(uintptr_t)args, environ);
    posix_spawn_file_actions_destroy(&files);
    if (rc != 0)
        fail_msg("%s: %s", bin_path("cosyfarm"), strerror(rc));
    return pid;
}

int farm_command_wait(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int farm_command_wait_within(pid_t pid, int seconds, const char *what)
{
    struct pollfd end = {.events = POLLIN};
    assert_ok(io_pidfd_open(pid, &end.fd));
    const bool ended = poll(&end, 1, seconds * 1000) == 1;
    io_close(&end.fd);
    if (!ended)
        kill(pid, SIGKILL);
    const int code = farm_command_wait(pid);
    if (!ended)
        fail_msg("%s: did not end within %d s", what, seconds);
    return code;
}

int farm_shell(const char *line)
{
    pid_t pid;
    const char *const args[] = {"sh", "-c", line, NULL};
    setenv("COSYFARM_BIN", bin_dir(), 1);
    const int rc = posix_spawn(&pid, "/bin/sh", NULL, NULL, (char *const *)(uintptr_t)args, environ);
    if (rc != 0)
        fail_msg("/bin/sh: %s", strerror(rc));
    return farm_command_wait(pid);
}

int farm_command(const char *const *args, char *ret_out, size_t out_bytes)
{
    static char path[256]; /* one folder a program: there are not many */
    char *text;
    size_t bytes;
    if (!path[0])
        snprintf(path, sizeof path, "%s/out", test_temp_dir());
    const int code = farm_command_wait(farm_command_start(args, path));
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    snprintf(ret_out, out_bytes, "%s", text);
    mem_free(text);
    return code;
}

void farm_expect(int code, const char *part, const char *const *args)
{
    char out[16384];
    const int got = farm_command(args, out, sizeof out);
    if (got != code || !strstr(out, part))
        fail_msg("exit code %d (want %d), output without \"%s\":\n%s", got, code, part, out);
}

static size_t serving(const wire_msg *status)
{
    size_t n = 0;
    for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
        const char *state = "", *role = "";
        assert_ok(json_get_str(m, "state", 31, &state));
        assert_ok(json_get_str(m, "role", 31, &role));
        n += strcmp(state, "serving") == 0 && strcmp(role, "keeper") != 0;
    }
    return n;
}

static bool ask_status(const farm *f, wire_msg *ret_status)
{
    client *c = NULL;
    if (!client_farm_runs(f->run_dir))
        return false;
    assert_ok(client_open(f->run_dir, &c));
    json *m = wire_new(WIRE_query);
    json_put_u64(m, "nonce", 7);
    const cf_err err = client_ask(c, m, WIRE_status, clock_now_us() + 2 * CLOCK_SECOND_US, ret_status);
    client_close(c);
    return err == CF_OK;
}

void farm_start(farm *f, const char *fault, const char *overrides)
{
    char config_path[256], text[512];
    snprintf(f->run_dir, sizeof f->run_dir, "%s", test_temp_dir());
    snprintf(config_path, sizeof config_path, "%s/given.json", f->run_dir);
    /* bf16: with a matrix unit the small Flow is ten times faster, and what is tested is the farm. */
    snprintf(text, sizeof text, "{\"precision\":\"bf16\",\"silence_s\":60%s%s}", overrides ? "," : "",
             overrides ? overrides : "");
    assert_ok(io_write_file(config_path, text, strlen(text)));
    setenv("COSYFARM_RUN_DIR", f->run_dir, 1);
    if (fault)
        setenv("COSYFARM_FAULT", fault, 1);
    farm_start_again(f);
    unsetenv("COSYFARM_FAULT");
}

const char *farm_of_their_own(void)
{
    const char *dir = test_temp_dir();
    setenv("COSYFARM_RUN_DIR", dir, 1);
    return dir;
}

void farm_start_again(farm *f)
{
    char config_path[256], log_path[256];
    snprintf(config_path, sizeof config_path, "%s/given.json", f->run_dir);
    snprintf(log_path, sizeof log_path, "%s/log", f->run_dir);
    f->supervisor = farm_command_start((const char *const[]){"cosyfarm", "up", "-m", tiny_model_dir(), "--config",
                                                             config_path, "--run-dir", f->run_dir, NULL},
                                       log_path);
    const uint64_t deadline_us = clock_now_us() + START_US;
    for (;;) {
        wire_msg status = {0};
        int exited;
        if (ask_status(f, &status)) {
            const size_t n = serving(&status), wanted = 3;
            wire_done(&status);
            if (n >= wanted)
                return;
        }
        if (waitpid(f->supervisor, &exited, WNOHANG) == f->supervisor)
            fail_msg("the farm ended at its start; see %s", log_path);
        if (clock_now_us() > deadline_us)
            fail_msg("the farm does not serve; see %s", log_path);
        poll(NULL, 0, 20);
    }
}

void farm_end(farm *f)
{
    farm_expect(0, "", (const char *const[]){"cosyfarm", "down", "--run-dir", f->run_dir, NULL});
    assert_int_equal(farm_command_wait(f->supervisor), 0);
}

wire_msg farm_status(const farm *f)
{
    wire_msg status = {0};
    const uint64_t deadline_us = clock_now_us() + START_US;
    while (!ask_status(f, &status))
        if (clock_now_us() > deadline_us)
            fail_msg("no status from the farm");
    return status;
}

pid_t farm_child(pid_t supervisor, const char *program)
{
    char path[128], text[64], line[64];
    snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", (long)supervisor, (long)supervisor);
    snprintf(line, sizeof line, "%.60s\n", program);
    FILE *children = fopen(path, "r");
    assert_non_null(children);
    long pid;
    while (fscanf(children, "%ld", &pid) == 1) {
        snprintf(path, sizeof path, "/proc/%ld/comm", pid);
        FILE *comm = fopen(path, "r");
        if (!comm)
            continue;
        const bool found = fgets(text, sizeof text, comm) && strcmp(text, line) == 0;
        fclose(comm);
        if (found) {
            fclose(children);
            return (pid_t)pid;
        }
    }
    fclose(children);
    return 0;
}

pid_t farm_pid(const farm *f, const char *role)
{
    if (strcmp(role, "orchestrator") == 0)
        return farm_child(f->supervisor, role); /* it is no member of itself */
    wire_msg status = farm_status(f);
    pid_t found = 0;
    for (const json *m = json_first(wire_json(&status, "members")); m; m = json_next(m)) {
        const char *name = "";
        uint64_t pid = 0;
        assert_ok(json_get_str(m, "role", 31, &name));
        assert_ok(json_get_u64(m, "pid", 1, 1 << 30, &pid));
        if (strcmp(name, role) == 0)
            found = (pid_t)pid;
    }
    wire_done(&status);
    return found;
}

typedef struct speaking {
    const farm *f;
    farm_row *rows;
    int ended, after_rows;
    void (*hurt)(const farm *f, void *ctx);
    void *ctx;
} speaking;

static void on_ended(void *ctx, size_t row_idx, const wire_msg *done)
{
    speaking *s = ctx;
    farm_row *row = &s->rows[row_idx];
    snprintf(row->sha256, sizeof row->sha256, "%s", wire_str(done, "sha256"));
    snprintf(row->status, sizeof row->status, "%s", wire_str(done, "status"));
    row->samples = (int64_t)wire_u64(done, "samples");
    row->attempts = wire_u64(done, "attempts");
    const char *text = "";
    if (wire_has(done, "error"))
        assert_ok(json_get_str(wire_json(done, "error"), "text", 4096, &text));
    snprintf(row->text, sizeof row->text, "%s", text);
    if (++s->ended == s->after_rows)
        s->hurt(s->f, s->ctx);
}

static client_stop on_tick(void *ctx, const wire_msg *status)
{
    (void)ctx;
    (void)status;
    return CLIENT_GO_ON;
}

/* Short ones: what is proved is who does what after which death, and each second of speech costs a core 0.1 s. */
static const char *const texts[] = {
    "The lamp went out.",
    "A boat crossed the bay. Nobody saw it.",
    "She said yes.",
    "It rained.",
};

void farm_speak(const farm *f, const char *folder, int count, farm_row *rows, int after_rows,
                void (*hurt)(const farm *f, void *ctx), void *ctx)
{
    client *c = NULL;
    client_row *asked;
    speaking s = {f, rows, 0, after_rows, hurt, ctx};
    const client_handler handler = {&s, on_ended, on_tick};
    assert_ok(mem_alloc((size_t)count, sizeof *asked, &asked));
    for (int i = 0; i < count; i++) {
        rows[i] = (farm_row){0};
        snprintf(rows[i].id, sizeof rows[i].id, "row-%d", i);
        snprintf(rows[i].path, sizeof rows[i].path, "%.100s/row-%d.wav", folder, i);
        asked[i] = (client_row){.id = rows[i].id,
                                .text = texts[i % 4],
                                .voice = i % 3 == 0 ? "vale" : "echo",
                                .mode = i % 5 == 4 ? "cross_lingual" : "zero_shot",
                                .path = rows[i].path,
                                .format = "wav",
                                .seed = (uint64_t)i,
                                .speed = i % 7 == 6 ? 1.25 : 1};
    }
    assert_ok(client_open(f->run_dir, &c));
    assert_ok(client_run_list(c, asked, (size_t)count, true, START_US, &handler));
    client_close(c);
    mem_free(asked);
}
