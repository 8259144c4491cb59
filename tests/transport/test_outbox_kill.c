/*
 * test_outbox_kill.c - SIGKILL of each process that has to do with an outbox, while a slot of it is committed and the
 * next one is being written: whoever is left reads the committed bytes, in the mapping it has and in one it makes
 * afterwards; and when the last has gone, nobody on this machine holds the memory any more.
 *
 *   test ── fork ──> allocator (listens, asks the keeper, grants)      test and reader read slot 0
 *        ── spawn ─> exchange_keeper, the real one                     writer has committed slot 0 and scribbles on
 *        ── fork ──> writer, reader                                    slot 1 until it is killed
 *
 * The allocator is the orchestrator's part. Children never touch cmocka: they end with a status, and die with the test.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/process.h"
#include "common/base/rng.h"
#include "common/transport/outbox.h"
#include "tests/transport/keeper_fixture.h"

#define SLOT_BYTES 65536u
#define BOX_BYTES  (16 * SLOT_BYTES)
#define MEMBERS    16 /* connections an allocator serves before it has seen enough */

typedef enum role { ALLOCATOR, KEEPER, WRITER, READER, ROLE_COUNT } role;

typedef struct scene {
    char run_dir[256], path[300];
    uint32_t outbox_id;
    int listen_fd, committed_fd, ask_fd; /* the writer's word; questions to the reader and its answers */
    int lifeline_fd, read_fd;            /* the test's own as a reader */
    outbox *box;
    pid_t pids[ROLE_COUNT];
} scene;

/* Word i of slot 0. */
static uint32_t pattern(uint32_t outbox_id, uint32_t i)
{
    uint32_t words[4];
    rng_philox(outbox_id, (const uint32_t[4]){i, 0, 0, 0}, words);
    return words[0];
}

static bool slot_is_whole(const outbox *box)
{
    void *data;
    if (outbox_view(box, 0, SLOT_BYTES, &data) != CF_OK)
        return false;
    for (uint32_t i = 0; i < SLOT_BYTES / 4; i++)
        if (((const uint32_t *)data)[i] != pattern(outbox_id(box), i))
            return false;
    return true;
}

/* ---- the children ---- */

static void die_with_the_test(pid_t test)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != test)
        _exit(1);
}

/* One member has said hello: the writer gets the memory to write, readers to read, the keeper is asked to make it. */
static cf_err welcome_one(int fd, uint32_t outbox_id, int fds[2])
{
    cf_err err;
    wire_msg hello = {0};
    TRY(fixture_take(fd, WIRE_hello, &hello, NULL, 0));
    const bool is_keeper = strcmp(wire_str(&hello, "role"), "keeper") == 0;
    const bool is_writer = strcmp(wire_str(&hello, "role"), "flow") == 0;
    if (is_keeper) {
        TRY(fixture_say_welcome(fd, 1));
        TRY(keeper_alloc(fd, outbox_id, BOX_BYTES, fds));
    } else {
        json *m = wire_new(is_writer ? WIRE_admit : WIRE_grant);
        if (is_writer) {
            json_put_u64(m, "gen", 2);
            json_put_str(m, "endpoint", "ipc://nowhere");
        }
        json_put_u64(m, "outbox", outbox_id);
        json_put_u64(m, "bytes", BOX_BYTES);
        TRY(lifeline_send(fd, m, &fds[is_writer ? 0 : 1], 1));
    }
out:
    wire_done(&hello);
    return err;
}

/* Serves whoever comes, the keeper first: nobody else is started before the memory is there. */
static void run_allocator(const scene *s)
{
    int fds[2] = {-1, -1};
    for (int i = 0; i < MEMBERS; i++) {
        int fd;
        pid_t pid;
        if (fixture_accept(s->listen_fd, &fd, &pid) != CF_OK || welcome_one(fd, s->outbox_id, fds) != CF_OK)
            _exit(2);
        const char word = 'm'; /* one more member has what it needs */
        if (write(s->committed_fd, &word, 1) != 1)
            _exit(3);
    }
    _exit(4);
}

static cf_err join(const scene *s, const char *name, wire_kind answer, int *ret_lifeline, int *ret_fd)
{
    cf_err err;
    wire_msg msg = {0};
    TRY(lifeline_connect(s->path, ret_lifeline));
    TRY(fixture_say_hello(*ret_lifeline, name));
    TRY(fixture_take(*ret_lifeline, answer, &msg, ret_fd, 1));
    if (wire_u64(&msg, "outbox") != s->outbox_id || wire_u64(&msg, "bytes") != BOX_BYTES)
        err = err_set(CF_ERR_MISMATCH, "another outbox");
    wire_done(&msg);
out:
    return err;
}

static void run_writer(const scene *s)
{
    int lifeline, fd;
    outbox *box;
    void *data;
    if (join(s, "flow", WIRE_admit, &lifeline, &fd) != CF_OK)
        _exit(2);
    const outbox_grant g = {.outbox_id = s->outbox_id, .bytes = BOX_BYTES, .fd = fd};
    if (outbox_open(&g, OUTBOX_WRITE, &box) != CF_OK || outbox_view(box, 0, BOX_BYTES, &data) != CF_OK)
        _exit(3);
    uint32_t *words = data;
    for (uint32_t i = 0; i < SLOT_BYTES / 4; i++)
        words[i] = pattern(s->outbox_id, i);
    const char word = 'c';
    if (write(s->committed_fd, &word, 1) != 1)
        _exit(4);
    for (uint32_t round = 0;; round++) /* always in the middle of slot 1 */
        for (uint32_t i = 0; i < SLOT_BYTES / 4; i++)
            ((volatile uint32_t *)words)[SLOT_BYTES / 4 + i] = round + i;
}

static void run_reader(const scene *s)
{
    int lifeline, fd;
    outbox *box;
    if (join(s, "hift", WIRE_grant, &lifeline, &fd) != CF_OK)
        _exit(2);
    const outbox_grant g = {.outbox_id = s->outbox_id, .bytes = BOX_BYTES, .fd = fd};
    if (outbox_open(&g, OUTBOX_READ, &box) != CF_OK)
        _exit(3);
    for (;;) { /* always reading */
        const char answer = slot_is_whole(box) ? 'y' : 'n';
        struct pollfd p = {.fd = s->ask_fd, .events = POLLIN};
        char question;
        if (poll(&p, 1, 0) == 1 && (read(s->ask_fd, &question, 1) != 1 || write(s->ask_fd, &answer, 1) != 1))
            _exit(4);
    }
}

/* ---- the test's side ---- */

static char next_word(int fd)
{
    char word = 0;
    assert_ok(fixture_wait(fd));
    assert_int_equal(read(fd, &word, 1), 1);
    return word;
}

static void expect_word(int fd, char want)
{
    assert_int_equal(next_word(fd), want);
}

static pid_t fork_role(scene *s, role r, void (*run)(const scene *), int own_committed_fd, int own_ask_fd)
{
    const pid_t test = getpid();
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        die_with_the_test(test);
        scene mine = *s;
        mine.committed_fd = own_committed_fd;
        mine.ask_fd = own_ask_fd;
        run(&mine);
    }
    s->pids[r] = pid;
    return pid;
}

static void read_as_test(scene *s)
{
    assert_ok(join(s, "hift", WIRE_grant, &s->lifeline_fd, &s->read_fd));
    expect_word(s->committed_fd, 'm');
    const outbox_grant g = {.outbox_id = s->outbox_id, .bytes = BOX_BYTES, .fd = s->read_fd};
    assert_ok(outbox_open(&g, OUTBOX_READ, &s->box));
}

/* All four run, slot 0 is committed, reader and test have it before their eyes. */
static void set(scene *s)
{
    static uint32_t used;
    int words[2], asks[2];
    *s = (scene){.outbox_id = 900000000u + (uint32_t)getpid() % 10000000u * 8u + used++};
    snprintf(s->run_dir, sizeof s->run_dir, "%s", test_temp_dir());
    snprintf(s->path, sizeof s->path, "%s/" RUN_LIFELINE_SOCKET, s->run_dir);
    assert_int_equal(pipe2(words, O_CLOEXEC), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, asks), 0);
    s->committed_fd = words[0];
    s->ask_fd = asks[0];
    assert_ok(lifeline_listen(s->path, &s->listen_fd));
    fork_role(s, ALLOCATOR, run_allocator, words[1], -1);
    close(s->listen_fd); /* the allocator's alone */
    s->listen_fd = -1;
    assert_ok(keeper_start(s->run_dir, NULL, &s->pids[KEEPER]));
    expect_word(s->committed_fd, 'm');
    fork_role(s, WRITER, run_writer, words[1], -1);
    char first = next_word(s->committed_fd), second = next_word(s->committed_fd);
    assert_int_equal(first + second, 'c' + 'm'); /* two senders */
    fork_role(s, READER, run_reader, words[1], asks[1]);
    expect_word(s->committed_fd, 'm');
    close(words[1]);
    close(asks[1]);
    read_as_test(s);
}

static void end_role(scene *s, role r)
{
    int status = 0;
    if (s->pids[r] == 0)
        return;
    assert_int_equal(kill(s->pids[r], SIGKILL), 0);
    assert_int_equal(waitpid(s->pids[r], &status, 0), s->pids[r]);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* it had not ended by itself */
    s->pids[r] = 0;
}

static void expect_committed(scene *s)
{
    outbox *fresh;
    const outbox_grant g = {.outbox_id = s->outbox_id, .bytes = BOX_BYTES, .fd = s->read_fd};
    assert_true(slot_is_whole(s->box));
    assert_ok(outbox_open(&g, OUTBOX_READ, &fresh));
    assert_true(slot_is_whole(fresh));
    outbox_close(fresh);
    if (s->pids[READER] != 0) {
        assert_int_equal(write(s->ask_fd, "?", 1), 1);
        expect_word(s->ask_fd, 'y');
    }
}

/* A reader that comes only now. */
static void expect_newcomer_reads(const scene *s)
{
    scene other = *s;
    read_as_test(&other);
    assert_true(slot_is_whole(other.box));
    outbox_close(other.box);
    io_close(&other.read_fd);
    io_close(&other.lifeline_fd);
}

static void expect_freed(scene *s)
{
    assert_true(outbox_holders(s->outbox_id, 0) > 0);
    for (int r = 0; r < ROLE_COUNT; r++)
        end_role(s, (role)r);
    assert_true(slot_is_whole(s->box)); /* the test is the last to hold it */
    assert_int_equal(outbox_holders(s->outbox_id, 0), 2);
    outbox_close(s->box);
    io_close(&s->read_fd);
    assert_int_equal(outbox_holders(s->outbox_id, 0), 0);
    io_close(&s->lifeline_fd);
    io_close(&s->committed_fd);
    io_close(&s->ask_fd);
}

static void test_writer_killed(void **state)
{
    (void)state;
    scene s;
    set(&s);
    end_role(&s, WRITER);
    expect_committed(&s);
    expect_newcomer_reads(&s);
    expect_freed(&s);
}

static void test_reader_killed(void **state)
{
    (void)state;
    scene s;
    set(&s);
    end_role(&s, READER);
    expect_committed(&s);
    expect_newcomer_reads(&s);
    expect_freed(&s);
}

static void test_keeper_killed(void **state)
{
    (void)state;
    scene s;
    set(&s);
    end_role(&s, KEEPER);
    expect_committed(&s);
    expect_newcomer_reads(&s); /* the allocator still has the descriptor to hand out */
    expect_freed(&s);
}

static void test_allocator_killed(void **state)
{
    (void)state;
    scene s;
    char *text;
    size_t bytes;
    int fds[LIFELINE_FDS_MAX], fd;
    pid_t pid;
    set(&s);
    assert_int_equal(outbox_holders(s.outbox_id, s.pids[KEEPER]), 2);
    end_role(&s, ALLOCATOR);
    assert_ok(fixture_wait(s.lifeline_fd));
    assert_err(CF_ERR_GONE, "closed its lifeline", lifeline_recv(s.lifeline_fd, &text, &bytes, fds));
    expect_committed(&s);
    /* The keeper forgets what the dead one asked for before it greets the next. */
    assert_ok(lifeline_listen(s.path, &s.listen_fd));
    assert_ok(fixture_accept(s.listen_fd, &fd, &pid));
    assert_int_equal(pid, s.pids[KEEPER]);
    assert_int_equal(outbox_holders(s.outbox_id, s.pids[KEEPER]), 0);
    expect_committed(&s);
    io_close(&fd);
    io_close(&s.listen_fd);
    expect_freed(&s);
}

static void test_everybody_else_killed(void **state)
{
    (void)state;
    scene s;
    set(&s);
    static const role ORDER[] = {KEEPER, WRITER, ALLOCATOR, READER};
    for (int i = 0; i < ROLE_COUNT; i++) {
        expect_committed(&s);
        end_role(&s, ORDER[i]);
    }
    expect_committed(&s);
    expect_freed(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writer_killed),         cmocka_unit_test(test_reader_killed),
        cmocka_unit_test(test_keeper_killed),         cmocka_unit_test(test_allocator_killed),
        cmocka_unit_test(test_everybody_else_killed),
    };
    return cmocka_run_group_tests_name("outbox_kill", tests, NULL, NULL);
}
