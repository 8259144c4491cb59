/*
 * test_worker_join.c - a real worker on the lifeline of this process, which plays its orchestrator: what it says when
 * orchestrators change while its model loads, and when the farm ends. Loading is held up by a fault point.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/config.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/base/sha256.h"
#include "tests/harness/tiny_model.h"
#include "tests/transport/keeper_fixture.h"

typedef struct stage_run {
    char run_dir[256];
    int listen_fd;
    pid_t pid;
} stage_run;

/* The program with its lifeline here; it dies with this process. */
static void start(stage_run *r, const char *program, const char *fault)
{
    char path[IO_PATH_BYTES], log_path[300], lifeline_path[300], parent[32];
    const char *bin = getenv("COSYFARM_BIN");
    posix_spawn_file_actions_t files;
    snprintf(r->run_dir, sizeof r->run_dir, "%s", test_temp_dir());
    snprintf(path, sizeof path, "%s/%s", bin ? bin : "build/default/bin", program);
    snprintf(log_path, sizeof log_path, "%s/log", r->run_dir);
    snprintf(lifeline_path, sizeof lifeline_path, "%s/" RUN_LIFELINE_SOCKET, r->run_dir);
    snprintf(parent, sizeof parent, "%ld", (long)getpid());
    assert_ok(lifeline_listen(lifeline_path, &r->listen_fd));
    setenv("COSYFARM_PARENT", parent, 1);
    if (fault)
        setenv("COSYFARM_FAULT", fault, 1);
    const char *const args[] = {program, "--run-dir", r->run_dir, NULL};
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    assert_int_equal(posix_spawn(&r->pid, path, &files, NULL, (char *const *)(uintptr_t)args, environ), 0);
    posix_spawn_file_actions_destroy(&files);
    unsetenv("COSYFARM_FAULT");
    unsetenv("COSYFARM_PARENT");
}

/* The next lifeline, up to its hello. */
static int hear_hello(const stage_run *r)
{
    int fd;
    pid_t pid;
    wire_msg msg;
    assert_ok(fixture_accept(r->listen_fd, &fd, &pid));
    assert_ok(fixture_take(fd, WIRE_hello, &msg, NULL, 0));
    wire_done(&msg);
    return fd;
}

/* The same, up to our welcome. */
static int welcome_traced(const stage_run *r, uint64_t boot, uint64_t gen, const char *trace)
{
    static config cfg;
    const int fd = hear_hello(r);
    config_defaults(&cfg);
    snprintf(cfg.trace, sizeof cfg.trace, "%s", trace);
    snprintf(cfg.model, sizeof cfg.model, "%s", tiny_model_dir());
    cfg.threads = 1;
    json *m = wire_new(WIRE_welcome);
    json_put_u64(m, "boot", boot);
    json_put_u64(m, "gen", gen);
    json_put(m, "config", config_to_json(&cfg));
    assert_ok(lifeline_send(fd, m, NULL, 0));
    return fd;
}

static int welcome(const stage_run *r, uint64_t boot, uint64_t gen)
{
    return welcome_traced(r, boot, gen, "");
}

static int wait_exit(pid_t pid)
{
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void dismiss(int fd)
{
    json *m = wire_new(WIRE_dismiss);
    json_put_str(m, "text", "the farm has ended");
    assert_ok(lifeline_send(fd, m, NULL, 0));
}

/* A worker that still loads when its second orchestrator welcomes it joins when it knows what it has loaded. */
static void test_joins_with_facts(void **state)
{
    (void)state;
    stage_run r;
    wire_msg join;
    start(&r, "llm_worker", "mem.alloc#200=sleep"); /* a second, in the thread that loads */
    close(welcome(&r, 1, 1));                       /* this orchestrator dies at once */
    const int fd = welcome(&r, 2, 2);
    assert_ok(fixture_take(fd, WIRE_join, &join, NULL, 0));
    assert_int_equal(wire_u64(&join, "gen"), 2);
    assert_int_equal(strlen(wire_str(&join, "model_sha256")), SHA256_HEX_BYTES - 1);
    assert_non_null(strstr(wire_str(&join, "model_file"), "llm"));
    assert_true(wire_u64(&join, "weights_bytes") > 0);
    wire_done(&join);
    dismiss(fd);
    assert_int_equal(wait_exit(r.pid), PROCESS_DRAINED);
    close(fd);
    close(r.listen_fd);
}

/* Dismissed while its model loads, and the keeper: exit 0, which no supervisor answers by starting it again. */
static void test_ends_when_dismissed(void **state)
{
    (void)state;
    static const char *const programs[] = {"llm_worker", "exchange_keeper"};
    for (int i = 0; i < 2; i++) {
        stage_run r;
        start(&r, programs[i], "mem.alloc#200=sleep");
        const int fd = welcome(&r, 1, 1);
        dismiss(fd);
        assert_int_equal(wait_exit(r.pid), PROCESS_DRAINED);
        close(fd);
        close(r.listen_fd);
    }
}

/* No memory for a socket: the next start may have it. No exit code that ends the farm. */
static void test_a_shortage_is_no_configuration(void **state)
{
    (void)state;
    static const char *const programs[] = {"llm_worker", "exchange_keeper"};
    for (int i = 0; i < 2; i++) {
        stage_run r;
        start(&r, programs[i], "lifeline.connect=fail");
        assert_int_equal(wait_exit(r.pid), PROCESS_NO_RESOURCES);
        close(r.listen_fd);
    }
}

/* What keeps its engine from starting is there at the next connection, too: the process ends, and its supervisor rests
 * between two starts. */
static void test_an_engine_that_cannot_start(void **state)
{
    (void)state;
    char log_path[300], *text;
    size_t bytes;
    stage_run r;
    start(&r, "hift_worker", NULL);
    const int fd = welcome_traced(&r, 1, 1, "/nonexistent/trace");
    assert_int_equal(wait_exit(r.pid), PROCESS_NO_RESOURCES);
    snprintf(log_path, sizeof log_path, "%s/log", r.run_dir);
    assert_ok(io_read_file(log_path, 1 << 16, &text, &bytes));
    assert_non_null(strstr(text, "ev=worker.broken"));
    assert_non_null(strstr(text, "/nonexistent/trace"));
    mem_free(text);
    close(fd);
    close(r.listen_fd);
}

/* Connections that end before they serve are no reason to spin. */
static void test_it_rests_between_vain_connections(void **state)
{
    (void)state;
    stage_run r;
    start(&r, "llm_worker", NULL);
    const uint64_t began_us = clock_now_us();
    for (int i = 0; i < 6; i++) /* at once, at once, after 0.1 s, 0.2 s, 0.4 s, 0.8 s */
        close(hear_hello(&r));
    assert_true(clock_now_us() - began_us > 1400000);
    dismiss(welcome(&r, 1, 1));
    assert_int_equal(wait_exit(r.pid), PROCESS_DRAINED);
    close(r.listen_fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_joins_with_facts),
        cmocka_unit_test(test_ends_when_dismissed),
        cmocka_unit_test(test_a_shortage_is_no_configuration),
        cmocka_unit_test(test_an_engine_that_cannot_start),
        cmocka_unit_test(test_it_rests_between_vain_connections),
    };
    return cmocka_run_group_tests_name("worker_join", tests, NULL, NULL);
}
