/*
 * test_members.c - the real orchestrator and those who want to be its members: generations that are given once, what is
 * permitted in which state, refusals that say why, and impostors on both channels. This process plays all of them.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/config.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/transport/bus.h"
#include "common/transport/lifeline.h"
#include "common/transport/outbox.h"
#include "tests/harness/tiny_model.h"
#include "tests/transport/keeper_fixture.h"

#define SHA_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define SHA_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
#define CODES 6561

typedef struct farm {
    char run_dir[256], lifeline_path[300], endpoint[300];
    pid_t pid;
} farm;

static pid_t spawn_orchestrator(const farm *f)
{
    char program[IO_PATH_BYTES], config_path[300], log_path[300], parent[32];
    pid_t pid;
    const char *bin = getenv("COSYFARM_BIN");
    posix_spawn_file_actions_t files;
    snprintf(program, sizeof program, "%s/orchestrator", bin ? bin : "build/default/bin");
    snprintf(config_path, sizeof config_path, "%s/given.json", f->run_dir);
    snprintf(log_path, sizeof log_path, "%s/log", f->run_dir);
    snprintf(parent, sizeof parent, "%ld", (long)getpid());
    const char *const args[] = {"orchestrator", "--config", config_path, "--run-dir", f->run_dir, NULL};
    setenv("COSYFARM_PARENT", parent, 1);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    const int rc = posix_spawn(&pid, program, &files, NULL, (char *const *)(uintptr_t)args, environ);
    posix_spawn_file_actions_destroy(&files);
    unsetenv("COSYFARM_PARENT");
    if (rc != 0)
        fail_msg("%s: %s", program, strerror(rc));
    return pid;
}

/* Connects as soon as the orchestrator listens. */
static int connect_to(const farm *f)
{
    int fd = -1, status;
    const uint64_t deadline_us = clock_now_us() + FIXTURE_WAIT_US;
    for (;;) {
        const cf_err err = lifeline_connect(f->lifeline_path, &fd);
        if (err == CF_OK)
            return fd;
        if (err != CF_ERR_GONE || clock_now_us() > deadline_us || waitpid(f->pid, &status, WNOHANG) == f->pid)
            fail_msg("no orchestrator: %s", err_text());
        poll(NULL, 0, 5);
    }
}

static void start(farm *f)
{
    char config_path[300], text[IO_PATH_BYTES + 64];
    *f = (farm){.pid = 0};
    snprintf(f->run_dir, sizeof f->run_dir, "%s", test_temp_dir());
    snprintf(f->lifeline_path, sizeof f->lifeline_path, "%s/" RUN_LIFELINE_SOCKET, f->run_dir);
    snprintf(f->endpoint, sizeof f->endpoint, "ipc://%s/" RUN_BUS_SOCKET, f->run_dir);
    snprintf(config_path, sizeof config_path, "%s/given.json", f->run_dir);
    snprintf(text, sizeof text, "{\"model\":\"%s\",\"grace_s\":0,\"outbox_mib\":4}", tiny_model_dir());
    assert_ok(io_write_file(config_path, text, strlen(text)));
    f->pid = spawn_orchestrator(f);
    close(connect_to(f)); /* somebody who comes and goes without a word */
}

static int wait_exit(pid_t pid)
{
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void end(farm *f)
{
    assert_int_equal(kill(f->pid, SIGTERM), 0);
    assert_int_equal(wait_exit(f->pid), PROCESS_DRAINED); /* no row was lost, and nothing it was told broke it */
}

/* ---- what a member says ---- */

static void say_hello(int fd, const char *role, const char *build)
{
    json *m = wire_new(WIRE_hello);
    json_put_str(m, "role", role);
    json_put_u64(m, "instance", 0);
    json_put_u64(m, "pid", 1); /* a lie: the kernel's number counts */
    json_put_str(m, "build", build);
    assert_ok(lifeline_send(fd, m, NULL, 0));
}

static void say_join(int fd, uint64_t gen, const char *sha256, int32_t codes)
{
    json *m = wire_new(WIRE_join);
    json_put_u64(m, "gen", gen);
    json_put_str(m, "model_file", "llm.safetensors");
    json_put_str(m, "model_sha256", sha256);
    json_put_str(m, "backend", "test");
    json_put_u64(m, "rows_max", 1);
    json_put_u64(m, "frames_max", 100);
    json_put_u64(m, "weights_bytes", 1);
    json_put_u64(m, "kept_bytes", 1);
    json_put_u64(m, "scratch_bytes", 1);
    json_put_u64(m, "speech_codes", (uint64_t)codes);
    assert_ok(lifeline_send(fd, m, NULL, 0));
}

/* A connection that has been welcomed; its generation, and the boot. */
static int welcomed(const farm *f, const char *role, uint64_t *ret_gen, uint64_t *ret_boot)
{
    wire_msg msg;
    config cfg;
    const int fd = connect_to(f);
    say_hello(fd, role, CF_VERSION);
    assert_ok(fixture_take(fd, WIRE_welcome, &msg, NULL, 0));
    *ret_gen = wire_u64(&msg, "gen");
    *ret_boot = wire_u64(&msg, "boot");
    config_defaults(&cfg);
    assert_ok(config_apply(&cfg, wire_json(&msg, "config"), "welcome"));
    assert_int_equal(cfg.outbox_mib, 4);
    wire_done(&msg);
    return fd;
}

static void expect_hung_up(int fd)
{
    char *text = NULL;
    size_t bytes;
    int fds[LIFELINE_FDS_MAX];
    assert_ok(fixture_wait(fd));
    assert_err(CF_ERR_GONE, "closed its lifeline", lifeline_recv(fd, &text, &bytes, fds));
    close(fd);
}

static void expect_refused(int fd, const char *code, const char *part)
{
    wire_msg msg;
    assert_ok(fixture_take(fd, WIRE_refuse, &msg, NULL, 0));
    assert_string_equal(wire_str(&msg, "code"), code);
    if (!strstr(wire_str(&msg, "text"), part))
        fail_msg("expected ...%s..., found %s", part, wire_str(&msg, "text"));
    wire_done(&msg);
    expect_hung_up(fd);
}

static void test_a_generation_is_given_once(void **state)
{
    (void)state;
    farm f;
    uint64_t gen[4], boot[4];
    start(&f);
    static const char *const ROLES[] = {"llm", "flow", "hift", "llm"};
    for (int i = 0; i < 4; i++) {
        const int fd = welcomed(&f, ROLES[i], &gen[i], &boot[i]);
        assert_true(gen[i] > (i ? gen[i - 1] : 0));
        assert_int_equal(boot[i], boot[0]);
        if (i != 1)
            close(fd); /* the dead one's number does not come back */
        else
            say_join(fd, gen[0], SHA_A, CODES), expect_hung_up(fd); /* an older generation's word */
    }
    end(&f);
}

static void test_what_is_permitted_when(void **state)
{
    (void)state;
    /* After HELLO or without it: the connection that says this next is closed. */
    static const struct {
        bool after_hello;
        const char *text;
    } CASES[] = {
        {false, "{\"v\":1,\"kind\":\"alive\",\"gen\":1}"},
        {true, "{\"v\":1,\"kind\":\"alive\",\"gen\":4711}"},
        {false, "{\"v\":1,\"kind\":\"opened\",\"gen\":1,\"outbox\":1}"},
        {false, "{\"v\":1,\"kind\":\"memory\",\"outbox\":1,\"bytes\":1,\"error\":\"\"}"},
        {false, "{\"v\":1,\"kind\":\"join\",\"gen\":1,\"model_file\":\"\",\"model_sha256\":\"\",\"backend\":\"\","
                "\"rows_max\":1,\"frames_max\":1,\"weights_bytes\":1,\"kept_bytes\":1,\"scratch_bytes\":1,"
                "\"speech_codes\":1}"},
        {false, "{\"v\":1,\"kind\":\"welcome\",\"boot\":1,\"gen\":1,\"config\":{}}"}, /* its own words back */
        {false, "{\"v\":1,\"kind\":\"query\",\"nonce\":1}"},                          /* of the other channel */
        {false, "{\"v\":1,\"kind\":\"hello\",\"role\":\"llm\"}"},
        {false, "{}"},
        {false, "\xff"},
        {true, "{\"v\":1,\"kind\":\"hello\",\"role\":\"llm\",\"instance\":0,\"pid\":1,\"build\":\"" CF_VERSION "\"}"},
        {true, "{\"v\":1,\"kind\":\"opened\",\"gen\":1,\"outbox\":1}"},
        {true, "{\"v\":1,\"kind\":\"memory\",\"outbox\":1,\"bytes\":1,\"error\":\"\"}"},
        {true, "nonsense"},
    };
    farm f;
    uint64_t gen, boot;
    start(&f);
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        const int fd = CASES[i].after_hello ? welcomed(&f, "llm", &gen, &boot) : connect_to(&f);
        assert_int_equal(send(fd, CASES[i].text, strlen(CASES[i].text), MSG_NOSIGNAL), (ssize_t)strlen(CASES[i].text));
        expect_hung_up(fd);
    }
    close(welcomed(&f, "llm", &gen, &boot));
    end(&f);
}

static void test_refusals_say_why(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    wire_msg msg;
    start(&f);
    int fd = connect_to(&f);
    say_hello(fd, "clerk", CF_VERSION);
    expect_refused(fd, "invalid", "role is not llm, flow, hift, keeper or supervisor");
    fd = connect_to(&f);
    say_hello(fd, "llm", "0.0.1");
    expect_refused(fd, "mismatch", "another version of cosyfarm");
    const int keeper = welcomed(&f, "keeper", &gen, &boot);
    fd = connect_to(&f);
    say_hello(fd, "keeper", CF_VERSION);
    expect_refused(fd, "busy", "there is a keeper already");
    close(keeper);
    const int first = welcomed(&f, "llm", &gen, &boot);
    say_join(first, gen, SHA_A, CODES);
    assert_ok(fixture_take(first, WIRE_admit, &msg, NULL, 0));
    assert_string_equal(wire_str(&msg, "endpoint"), f.endpoint);
    wire_done(&msg);
    fd = welcomed(&f, "llm", &gen, &boot);
    say_join(fd, gen, SHA_B, CODES);
    expect_refused(fd, "mismatch", "has SHA-256 bbbbbbbbbbbbbbbb, llm/0 already serves aaaaaaaaaaaaaaaa");
    fd = welcomed(&f, "flow", &gen, &boot);
    say_join(fd, gen, SHA_B, CODES - 1);
    expect_refused(fd, "mismatch", "flow/0 has 6560 speech codes, llm.safetensors of llm/0 has 6561");
    close(first);
    end(&f);
}

/* ---- exchange memory from a keeper that cannot, lies, or goes ---- */

static void answer(int keeper, uint64_t outbox_id, const char *error, const int *fds, size_t count)
{
    json *m = wire_new(WIRE_memory);
    json_put_u64(m, "outbox", outbox_id);
    json_put_u64(m, "bytes", 4u << 20);
    json_put_str(m, "error", error);
    assert_ok(lifeline_send(keeper, m, fds, count));
}

static uint64_t take_alloc(int keeper)
{
    wire_msg msg;
    assert_ok(fixture_take(keeper, WIRE_alloc, &msg, NULL, 0));
    const uint64_t id = wire_u64(&msg, "outbox");
    assert_int_equal(wire_u64(&msg, "bytes"), 4u << 20);
    wire_done(&msg);
    return id;
}

static void test_memory_that_does_not_come(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    wire_msg msg;
    int fds[2];
    start(&f);
    int keeper = welcomed(&f, "keeper", &gen, &boot);
    int worker = welcomed(&f, "hift", &gen, &boot);
    say_join(worker, gen, SHA_A, CODES);
    answer(keeper, take_alloc(keeper), "cut within a character: ?", NULL, 0);
    expect_refused(worker, "nomem", "no exchange memory");
    worker = welcomed(&f, "hift", &gen, &boot);
    say_join(worker, gen, SHA_A, CODES);
    answer(keeper, take_alloc(keeper), "", NULL, 0); /* it says yes and sends nothing */
    expect_refused(worker, "nomem", "no exchange memory");
    worker = welcomed(&f, "hift", &gen, &boot);
    say_join(worker, gen, SHA_A, CODES);
    fds[0] = fds[1] = memfd_create("not-sealed", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fds[0], 4 << 20), 0);
    answer(keeper, take_alloc(keeper), "", fds, 2);
    expect_refused(worker, "nomem", "no memory sealed against shrinking");
    close(fds[0]);
    assert_ok(fixture_take(keeper, WIRE_release, &msg, NULL, 0)); /* of what it did send */
    wire_done(&msg);
    /* The keeper dies with a question open: the next one is asked again, and the worker gets its memory. */
    worker = welcomed(&f, "hift", &gen, &boot);
    say_join(worker, gen, SHA_A, CODES);
    const uint64_t asked = take_alloc(keeper);
    close(keeper);
    uint64_t keeper_gen;
    do /* the orchestrator may not have seen it go */
        keeper = connect_to(&f), say_hello(keeper, "keeper", CF_VERSION);
    while (fixture_take(keeper, WIRE_welcome, &msg, NULL, 0) != CF_OK && close(keeper) == 0);
    keeper_gen = wire_u64(&msg, "gen");
    wire_done(&msg);
    assert_true(keeper_gen > gen);
    assert_int_equal(take_alloc(keeper), asked);
    assert_ok(outbox_make_memfd((uint32_t)asked, 4u << 20, &fds[0], &fds[1]));
    answer(keeper, asked + 7, "", fds, 2); /* nobody asked for that */
    answer(keeper, asked, "", fds, 2);
    int own_fd;
    assert_ok(fixture_take(worker, WIRE_admit, &msg, &own_fd, 1));
    assert_int_equal(wire_u64(&msg, "outbox"), asked);
    const outbox_grant g = {.outbox_id = (uint32_t)asked, .bytes = wire_u64(&msg, "bytes"), .fd = own_fd};
    outbox *box;
    assert_ok(outbox_open(&g, OUTBOX_WRITE, &box));
    outbox_close(box);
    wire_done(&msg);
    close(own_fd);
    close(fds[0]);
    close(fds[1]);
    close(worker);
    close(keeper);
    end(&f);
}

/* ---- the bus ---- */

static void wait_bus(bus *b)
{
    int ready = 0;
    const uint64_t deadline_us = clock_now_us() + FIXTURE_WAIT_US;
    while (!ready && clock_now_us() < deadline_us)
        assert_ok(bus_poll(b, NULL, 0, deadline_us, &ready));
    assert_true(ready);
}

/* The status: how many messages it could not use, and how many members serve. */
static void ask_status(const farm *f, uint64_t *ret_bad, int *ret_serving)
{
    static int client_number;
    char id[32], peer[BUS_ID_BYTES];
    char *text;
    size_t bytes;
    bus *b;
    wire_msg msg;
    snprintf(id, sizeof id, "client.%d", client_number++);
    assert_ok(bus_connect(f->endpoint, id, &b));
    for (cf_err err = CF_ERR_BUSY; err != CF_OK; poll(NULL, 0, 1)) { /* until zmq has connected */
        json *m = wire_new(WIRE_query);
        json_put_u64(m, "nonce", 5);
        err = bus_send(b, NULL, m);
        assert_true(err == CF_OK || err == CF_ERR_BUSY);
    }
    wait_bus(b);
    assert_ok(bus_recv(b, peer, &text, &bytes));
    assert_ok(wire_parse(text, bytes, WIRE_ORCH_CLIENT, &msg));
    assert_int_equal(msg.kind, WIRE_status);
    assert_ok(json_get_u64(wire_json(&msg, "totals"), "messages_bad", 0, UINT64_MAX, ret_bad));
    *ret_serving = 0;
    for (const json *m = json_first(wire_json(&msg, "members")); m; m = json_next(m)) {
        const char *word;
        assert_ok(json_get_str(m, "state", 31, &word));
        *ret_serving += strcmp(word, "serving") == 0;
    }
    wire_done(&msg);
    mem_free(text);
    bus_close(b);
}

static void say_here(bus *b, uint64_t gen, uint64_t boot)
{
    for (cf_err err = CF_ERR_BUSY; err != CF_OK; poll(NULL, 0, 1)) {
        json *m = wire_new(WIRE_here);
        json_put_u64(m, "gen", gen);
        json_put_u64(m, "boot", boot);
        err = bus_send(b, NULL, m);
        assert_true(err == CF_OK || err == CF_ERR_BUSY);
    }
}

/* Asks until the count of bad messages has reached `want`; how many serve then. */
static int serving_after(const farm *f, uint64_t want_bad)
{
    uint64_t bad = 0;
    int serving = 0;
    const uint64_t deadline_us = clock_now_us() + FIXTURE_WAIT_US;
    do
        ask_status(f, &bad, &serving);
    while (bad < want_bad && clock_now_us() < deadline_us);
    assert_int_equal(bad, want_bad);
    return serving;
}

static void test_impostors_on_the_bus(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    wire_msg msg;
    char id[BUS_ID_BYTES];
    bus *stranger, *worker;
    start(&f);
    const int line = welcomed(&f, "llm", &gen, &boot);
    say_join(line, gen, SHA_A, CODES);
    assert_ok(fixture_take(line, WIRE_admit, &msg, NULL, 0));
    wire_done(&msg);
    assert_int_equal(serving_after(&f, 0), 0);
    /* Another routing id with the right generation. */
    assert_ok(bus_connect(f.endpoint, "llm.9.9", &stranger));
    say_here(stranger, gen, boot);
    assert_int_equal(serving_after(&f, 1), 0);
    /* The right routing id with another generation, with another boot; then the truth. */
    snprintf(id, sizeof id, "llm.0.%" PRIu64, gen);
    assert_ok(bus_connect(f.endpoint, id, &worker));
    say_here(worker, gen + 1, boot);
    say_here(worker, gen, boot ^ 1);
    assert_int_equal(serving_after(&f, 3), 0);
    say_here(worker, gen, boot);
    say_here(worker, gen + 1, boot); /* counted behind it: then it has been heard */
    assert_int_equal(serving_after(&f, 4), 1);
    /* A stranger reports work of a member that it is not. */
    json *m = wire_new(WIRE_failed);
    json_put_u64(m, "gen", gen);
    json_put_u64(m, "job", 1);
    json_put_str(m, "code", "corrupt");
    json_put_str(m, "text", "not mine");
    assert_ok(bus_send(stranger, NULL, m));
    assert_int_equal(serving_after(&f, 5), 1);
    close(line); /* the lifeline decides: whatever the bus says afterwards is nobody's */
    int serving = 1;
    const uint64_t deadline_us = clock_now_us() + FIXTURE_WAIT_US;
    for (uint64_t bad; serving > 0 && clock_now_us() < deadline_us;)
        ask_status(&f, &bad, &serving);
    assert_int_equal(serving, 0);
    say_here(worker, gen, boot);
    assert_int_equal(serving_after(&f, 6), 0);
    bus_close(stranger);
    bus_close(worker);
    end(&f);
}

/* It may have told the end of a job: who sent what cannot be read has to come again, with a clear line between. */
static void test_a_message_that_cannot_be_read(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    wire_msg msg;
    char id[BUS_ID_BYTES];
    bus *worker;
    start(&f);
    const int line = welcomed(&f, "llm", &gen, &boot);
    say_join(line, gen, SHA_A, CODES);
    assert_ok(fixture_take(line, WIRE_admit, &msg, NULL, 0));
    wire_done(&msg);
    snprintf(id, sizeof id, "llm.0.%" PRIu64, gen);
    assert_ok(bus_connect(f.endpoint, id, &worker));
    say_here(worker, gen, boot);
    say_here(worker, gen + 1, boot); /* counted behind it: then it has been heard */
    assert_int_equal(serving_after(&f, 1), 1);
    json *m = wire_new(WIRE_drain); /* an orchestrator's word */
    json_put_u64(m, "gen", gen);
    json_put_bool(m, "again", false);
    assert_ok(bus_send(worker, NULL, m));
    assert_int_equal(serving_after(&f, 2), 0);
    assert_err(CF_ERR_GONE, "closed", fixture_take(line, WIRE_refuse, &msg, NULL, 0));
    close(line);
    bus_close(worker);
    end(&f);
}

/* ---- the supervisor ---- */

static int supervisor_anew(const farm *f)
{
    wire_msg msg;
    int supervisor;
    do /* the orchestrator may not have seen the last one go */
        supervisor = connect_to(f), say_hello(supervisor, "supervisor", CF_VERSION);
    while (fixture_take(supervisor, WIRE_welcome, &msg, NULL, 0) != CF_OK && close(supervisor) == 0);
    wire_done(&msg);
    return supervisor;
}

static void expect_served(int supervisor)
{
    wire_msg msg;
    assert_ok(fixture_take(supervisor, WIRE_served, &msg, NULL, 0));
    assert_string_equal(wire_str(&msg, "stage"), "llm");
    assert_int_equal(wire_u64(&msg, "instance"), 0);
    assert_int_equal(wire_u64(&msg, "pid"), getpid());
    wire_done(&msg);
}

/* Whom it starts and does not hear of, hangs: this process is every member. [P-28] */
static void expect_seen(int supervisor, bool here)
{
    wire_msg msg;
    assert_ok(fixture_take(supervisor, WIRE_seen, &msg, NULL, 0));
    assert_int_equal(wire_u64(&msg, "pid"), getpid());
    assert_int_equal(wire_bool(&msg, "here"), here);
    wire_done(&msg);
}

static void test_the_supervisor_hears_who_is_seen(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    start(&f);
    const int early = welcomed(&f, "keeper", &gen, &boot), supervisor = welcomed(&f, "supervisor", &gen, &boot);
    expect_seen(supervisor, true);
    const int late = welcomed(&f, "hift", &gen, &boot);
    expect_seen(supervisor, true);
    json *m = wire_new(WIRE_alive);
    json_put_u64(m, "gen", gen);
    assert_ok(lifeline_send(late, m, NULL, 0));
    close(late);
    expect_seen(supervisor, false);
    close(early);
    expect_seen(supervisor, false);
    close(supervisor);
    end(&f);
}

/* When a worker serves, and the next supervisor at once. [P-25] */
static void test_the_supervisor_hears_who_serves(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot, none;
    wire_msg msg;
    char id[BUS_ID_BYTES];
    bus *worker;
    start(&f);
    int supervisor = welcomed(&f, "supervisor", &none, &boot);
    const int line = welcomed(&f, "llm", &gen, &boot);
    say_join(line, gen, SHA_A, CODES);
    assert_ok(fixture_take(line, WIRE_admit, &msg, NULL, 0));
    wire_done(&msg);
    snprintf(id, sizeof id, "llm.0.%" PRIu64, gen);
    assert_ok(bus_connect(f.endpoint, id, &worker));
    say_here(worker, gen, boot);
    expect_served(supervisor);
    close(supervisor);
    supervisor = supervisor_anew(&f);
    expect_served(supervisor);
    close(supervisor);
    close(line);
    bus_close(worker);
    assert_int_equal(kill(f.pid, SIGTERM), 0);
    assert_int_equal(wait_exit(f.pid), 0);
}

/* A wish that comes before the supervisor waits for it; the last of two is heard last. */
static void test_a_wish_waits_for_the_supervisor(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    wire_msg msg;
    char peer[BUS_ID_BYTES], *text;
    size_t bytes;
    bus *client;
    static const uint64_t COUNTS[] = {3, 1};
    start(&f); /* as a supervisor does: COSYFARM_PARENT is set */
    assert_ok(bus_connect(f.endpoint, "client.scale", &client));
    for (size_t i = 0; i < CF_COUNT(COUNTS); i++)
        for (cf_err err = CF_ERR_BUSY; err != CF_OK; poll(NULL, 0, 1)) {
            json *m = wire_new(WIRE_steer);
            json_put_str(m, "verb", "scale");
            json_put_str(m, "stage", "hift");
            json_put_u64(m, "count", COUNTS[i]);
            err = bus_send(client, NULL, m);
            assert_true(err == CF_OK || err == CF_ERR_BUSY);
        }
    uint64_t bad;
    int serving;
    ask_status(&f, &bad, &serving); /* by now both have been heard */
    const int supervisor = welcomed(&f, "supervisor", &gen, &boot);
    for (size_t i = 0; i < CF_COUNT(COUNTS); i++) {
        assert_ok(fixture_take(supervisor, WIRE_staff, &msg, NULL, 0));
        assert_int_equal(wire_u64(&msg, "count"), COUNTS[i]);
        wire_done(&msg);
        wait_bus(client);
        assert_ok(bus_recv(client, peer, &text, &bytes));
        assert_ok(wire_parse(text, bytes, WIRE_ORCH_CLIENT, &msg));
        assert_int_equal(msg.kind, WIRE_steered);
        assert_string_equal(wire_str(&msg, "code"), "ok");
        assert_int_equal(wire_u64(&msg, "members"), COUNTS[i]);
        wire_done(&msg);
        mem_free(text);
    }
    bus_close(client);
    close(supervisor);
    end(&f);
}

static void expect_staff(int supervisor, const char *stage, uint64_t count)
{
    wire_msg msg;
    assert_ok(fixture_take(supervisor, WIRE_staff, &msg, NULL, 0));
    assert_string_equal(wire_str(&msg, "stage"), stage);
    assert_int_equal(wire_u64(&msg, "count"), count);
    wire_done(&msg);
}

/* A supervisor that could not read its wish hangs up and comes again: the wish was answered, and is not lost. [P-27] */
static void test_a_wish_outlives_the_line(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    bus *client;
    start(&f);
    int supervisor = welcomed(&f, "supervisor", &gen, &boot);
    assert_ok(bus_connect(f.endpoint, "client.scale", &client));
    for (cf_err err = CF_ERR_BUSY; err != CF_OK; poll(NULL, 0, 1)) {
        json *m = wire_new(WIRE_steer);
        json_put_str(m, "verb", "scale");
        json_put_str(m, "stage", "flow");
        json_put_u64(m, "count", 2);
        err = bus_send(client, NULL, m);
        assert_true(err == CF_OK || err == CF_ERR_BUSY);
    }
    expect_staff(supervisor, "flow", 2);
    for (int i = 0; i < 2; i++) {
        close(supervisor);
        supervisor = supervisor_anew(&f);
        expect_staff(supervisor, "flow", 2);
    }
    bus_close(client);
    close(supervisor);
    end(&f);
}

/* ---- limits and locks ---- */

static void test_connections_are_bounded(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    int silent[MEMBERS_MAX];
    start(&f);
    int worker = welcomed(&f, "llm", &gen, &boot); /* by now the first visitor has been seen to go */
    for (int i = 0; i < MEMBERS_MAX - 1; i++)
        silent[i] = connect_to(&f);
    for (int i = 0; i < 3; i++)
        expect_hung_up(connect_to(&f));
    close(silent[0]); /* a place is free again, as soon as the orchestrator has seen it */
    int late = -1;
    const uint64_t deadline_us = clock_now_us() + FIXTURE_WAIT_US;
    for (wire_msg msg = {0}; late < 0 && clock_now_us() < deadline_us;) {
        late = connect_to(&f);
        say_hello(late, "llm", CF_VERSION);
        if (fixture_take(late, WIRE_welcome, &msg, NULL, 0) != CF_OK)
            io_close(&late);
        wire_done(&msg);
    }
    assert_true(late >= 0);
    for (int i = 1; i < MEMBERS_MAX - 1; i++)
        close(silent[i]);
    close(late);
    close(worker);
    end(&f);
}

static void test_a_run_directory_has_one_orchestrator(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    char path[300];
    char *log;
    size_t bytes;
    start(&f);
    assert_int_equal(wait_exit(spawn_orchestrator(&f)), PROCESS_NO_RESOURCES);
    snprintf(path, sizeof path, "%s/log", f.run_dir);
    assert_ok(io_read_file(path, 1 << 20, &log, &bytes));
    assert_non_null(strstr(log, "another orchestrator holds this run directory"));
    mem_free(log);
    close(welcomed(&f, "llm", &gen, &boot)); /* the first one still has its sockets */
    end(&f);
}

/* The keeper and a worker whose model still loads: without a word they would look for another orchestrator, and be
 * started again and again by who supervises them. */
static void test_the_end_of_the_farm_is_told(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    wire_msg msg;
    start(&f);
    const int fds[] = {welcomed(&f, "keeper", &gen, &boot), welcomed(&f, "llm", &gen, &boot)};
    end(&f);
    for (size_t i = 0; i < CF_COUNT(fds); i++) {
        assert_ok(fixture_take(fds[i], WIRE_dismiss, &msg, NULL, 0));
        assert_string_equal(wire_str(&msg, "text"), "the farm has ended");
        wire_done(&msg);
        expect_hung_up(fds[i]);
    }
}

/* Whoever wants another orchestrator in its place tells it to step aside: nobody is told to go. */
static void test_stepping_aside_dismisses_nobody(void **state)
{
    (void)state;
    farm f;
    uint64_t gen, boot;
    start(&f);
    const int keeper = welcomed(&f, "keeper", &gen, &boot), worker = welcomed(&f, "llm", &gen, &boot);
    assert_int_equal(kill(f.pid, PROCESS_STEP_ASIDE), 0);
    assert_int_equal(wait_exit(f.pid), PROCESS_DRAINED);
    expect_hung_up(keeper);
    expect_hung_up(worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_generation_is_given_once),
        cmocka_unit_test(test_what_is_permitted_when),
        cmocka_unit_test(test_refusals_say_why),
        cmocka_unit_test(test_memory_that_does_not_come),
        cmocka_unit_test(test_impostors_on_the_bus),
        cmocka_unit_test(test_a_message_that_cannot_be_read),
        cmocka_unit_test(test_the_supervisor_hears_who_serves),
        cmocka_unit_test(test_the_supervisor_hears_who_is_seen),
        cmocka_unit_test(test_a_wish_waits_for_the_supervisor),
        cmocka_unit_test(test_a_wish_outlives_the_line),
        cmocka_unit_test(test_connections_are_bounded),
        cmocka_unit_test(test_a_run_directory_has_one_orchestrator),
        cmocka_unit_test(test_the_end_of_the_farm_is_told),
        cmocka_unit_test(test_stepping_aside_dismisses_nobody),
    };
    return cmocka_run_group_tests_name("members", tests, NULL, NULL);
}
