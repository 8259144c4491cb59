/* keeper_fixture.c - see keeper_fixture.h. Fails: by return value. */
#define _GNU_SOURCE
#include "tests/transport/keeper_fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/config.h"
#include "common/base/io.h"
#include "common/base/mem.h"

cf_err fixture_wait(int fd)
{
    const uint64_t deadline_us = clock_now_us() + FIXTURE_WAIT_US;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (poll(&p, 1, clock_left_ms(deadline_us, 60000)) <= 0)
        if (clock_now_us() >= deadline_us)
            return err_set(CF_ERR_TIMEOUT, "nothing came in %d s", (int)(FIXTURE_WAIT_US / CLOCK_SECOND_US));
    return CF_OK;
}

cf_err fixture_accept(int listen_fd, int *ret_fd, pid_t *ret_pid)
{
    const cf_err err = fixture_wait(listen_fd);
    return err == CF_OK ? lifeline_accept(listen_fd, ret_fd, ret_pid) : err;
}

static cf_err take_any(int fd, wire_msg *ret_msg, int ret_fds[LIFELINE_FDS_MAX])
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    TRY(fixture_wait(fd));
    TRY(lifeline_recv(fd, &text, &bytes, ret_fds));
    TRY(wire_parse(text, bytes, WIRE_MEMBER_LIFELINE | WIRE_ORCH_LIFELINE, ret_msg));
out:
    mem_free(text);
    return err;
}

cf_err fixture_take(int fd, wire_kind kind, wire_msg *ret_msg, int *ret_fds, size_t fds_count)
{
    cf_err err;
    wire_msg msg = {0};
    int fds[LIFELINE_FDS_MAX] = {-1, -1};
    do {
        wire_done(&msg);
        TRY(take_any(fd, &msg, fds));
    } while (msg.kind != kind && (msg.kind == WIRE_alive || msg.kind == WIRE_seen));
    if (msg.kind != kind)
        FAIL(CF_ERR_INVALID, "expected %s, found %s", wire_kind_name(kind), wire_kind_name(msg.kind));
    for (size_t i = 0; i < LIFELINE_FDS_MAX; i++)
        if (fds_count != FIXTURE_FDS_ANY && (fds[i] >= 0) != (i < fds_count))
            FAIL(CF_ERR_INVALID, "expected %zu descriptors, found another number", fds_count);
    for (size_t i = 0; i < fds_count && i < LIFELINE_FDS_MAX; i++) {
        ret_fds[i] = fds[i];
        fds[i] = -1;
    }
    *ret_msg = msg;
    msg = (wire_msg){0};
out:
    for (int i = 0; i < LIFELINE_FDS_MAX; i++)
        io_close(&fds[i]);
    wire_done(&msg);
    return err;
}

cf_err fixture_say_hello(int fd, const char *role)
{
    json *m = wire_new(WIRE_hello);
    json_put_str(m, "role", role);
    json_put_u64(m, "instance", 0);
    json_put_u64(m, "pid", (uint64_t)getpid());
    json_put_str(m, "build", CF_VERSION);
    return lifeline_send(fd, m, NULL, 0);
}

cf_err fixture_say_welcome(int fd, uint64_t gen)
{
    config cfg;
    config_defaults(&cfg);
    json *m = wire_new(WIRE_welcome);
    json_put_u64(m, "boot", 1);
    json_put_u64(m, "gen", gen);
    json_put(m, "config", config_to_json(&cfg));
    return lifeline_send(fd, m, NULL, 0);
}

cf_err keeper_start(const char *run_dir, const char *fault, pid_t *ret_pid)
{
    char program[IO_PATH_BYTES], log_path[IO_PATH_BYTES], parent[32];
    const char *bin = getenv("COSYFARM_BIN");
    const char *const args[] = {"exchange_keeper", "--run-dir", run_dir, NULL};
    posix_spawn_file_actions_t files;
    snprintf(program, sizeof program, "%s/exchange_keeper", bin ? bin : "build/default/bin");
    snprintf(log_path, sizeof log_path, "%s/keeper.log", run_dir);
    snprintf(parent, sizeof parent, "%ld", (long)getpid());
    setenv("COSYFARM_PARENT", parent, 1);
    if (fault)
        setenv("COSYFARM_FAULT", fault, 1);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    const int rc = posix_spawn(ret_pid, program, &files, NULL, (char *const *)(uintptr_t)args, environ);
    posix_spawn_file_actions_destroy(&files);
    unsetenv("COSYFARM_FAULT");
    unsetenv("COSYFARM_PARENT");
    return rc == 0 ? CF_OK : err_set(CF_ERR_SYS, "%s: %s", program, strerror(rc));
}

cf_err keeper_alloc(int fd, uint32_t outbox_id, uint64_t bytes, int ret_fds[2])
{
    cf_err err;
    char *text = NULL;
    size_t text_bytes;
    wire_msg msg = {0};
    int fds[LIFELINE_FDS_MAX] = {-1, -1};
    json *m = wire_new(WIRE_alloc);
    json_put_u64(m, "outbox", outbox_id);
    json_put_u64(m, "bytes", bytes);
    TRY(lifeline_send(fd, m, NULL, 0));
    TRY(fixture_wait(fd));
    TRY(lifeline_recv(fd, &text, &text_bytes, fds));
    TRY(wire_parse(text, text_bytes, WIRE_MEMBER_LIFELINE, &msg));
    if (msg.kind != WIRE_memory || wire_u64(&msg, "outbox") != outbox_id || wire_u64(&msg, "bytes") != bytes)
        FAIL(CF_ERR_INVALID, "no answer to the question: %s", text);
    if (wire_str(&msg, "error")[0])
        FAIL(fds[0] < 0 && fds[1] < 0 ? CF_ERR_NOMEM : CF_ERR_INVALID, "%s", wire_str(&msg, "error"));
    if (fds[0] < 0 || fds[1] < 0)
        FAIL(CF_ERR_INVALID, "memory without its two descriptors");
    ret_fds[0] = fds[0];
    ret_fds[1] = fds[1];
    fds[0] = fds[1] = -1;
out:
    for (int i = 0; i < LIFELINE_FDS_MAX; i++)
        io_close(&fds[i]);
    wire_done(&msg);
    mem_free(text);
    return err;
}

cf_err keeper_release(int fd, uint32_t outbox_id)
{
    json *m = wire_new(WIRE_release);
    json_put_u64(m, "outbox", outbox_id);
    return lifeline_send(fd, m, NULL, 0);
}

/* Links of /proc/PID/fd that name the memory. */
static int holding_fds(const char *pid, const char *name)
{
    char path[300], target[256];
    int count = 0;
    snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
    DIR *dir = opendir(path);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        const ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof target - 1);
        target[n > 0 ? n : 0] = '\0';
        count += strstr(target, name) != NULL;
    }
    if (dir)
        closedir(dir);
    return count;
}

static int holding_maps(const char *pid, const char *name)
{
    char path[300];
    char *line = NULL;
    size_t line_bytes = 0;
    int count = 0;
    snprintf(path, sizeof path, "/proc/%.20s/maps", pid);
    FILE *f = fopen(path, "re");
    while (f && getline(&line, &line_bytes, f) > 0)
        count += strstr(line, name) != NULL;
    free(line);
    if (f)
        fclose(f);
    return count;
}

int outbox_holders(uint32_t outbox_id, pid_t pid)
{
    char name[64], only[32];
    int count = 0;
    snprintf(name, sizeof name, "memfd:cosyfarm-outbox-%" PRIu32 " ", outbox_id);
    snprintf(only, sizeof only, "%ld", (long)pid);
    DIR *proc = opendir("/proc");
    for (struct dirent *e = proc ? readdir(proc) : NULL; e; e = readdir(proc))
        if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && (pid == 0 || strcmp(e->d_name, only) == 0))
            count += holding_fds(e->d_name, name) + holding_maps(e->d_name, name);
    if (proc)
        closedir(proc);
    return count;
}
