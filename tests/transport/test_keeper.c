/*
 * test_keeper.c - the real exchange_keeper at the end of a lifeline: memory and its two descriptors, refusals that say
 * why, release, the limit of its table, an orchestrator that goes away, that talks nonsense, that refuses it.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/process.h"
#include "common/transport/outbox.h"
#include "tests/transport/keeper_fixture.h"

#define BOX_BYTES 65536u

/* A keeper that has been welcomed. */
typedef struct farm {
    char run_dir[256];
    int listen_fd, fd;
    pid_t keeper;
    uint32_t next_outbox; /* names that no other test on this machine uses */
} farm;

static void take_hello(farm *f)
{
    wire_msg hello;
    pid_t pid;
    assert_ok(fixture_accept(f->listen_fd, &f->fd, &pid));
    assert_int_equal(pid, f->keeper);
    assert_ok(fixture_take(f->fd, WIRE_hello, &hello, NULL, 0));
    assert_string_equal(wire_str(&hello, "role"), "keeper");
    assert_string_equal(wire_str(&hello, "build"), CF_VERSION);
    assert_int_equal(wire_u64(&hello, "pid"), f->keeper);
    wire_done(&hello);
    assert_ok(fixture_say_welcome(f->fd, 1));
}

static void listen_again(farm *f)
{
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s/" RUN_LIFELINE_SOCKET, f->run_dir);
    assert_ok(lifeline_listen(path, &f->listen_fd));
}

static void start(farm *f, const char *fault)
{
    static uint32_t used;
    *f = (farm){.listen_fd = -1, .fd = -1};
    f->next_outbox = 1000000u + (uint32_t)getpid() % 1000000u * 800u + 300u * used++;
    snprintf(f->run_dir, sizeof f->run_dir, "%s", test_temp_dir());
    listen_again(f);
    assert_ok(keeper_start(f->run_dir, fault, &f->keeper));
    take_hello(f);
}

static int wait_exit(pid_t pid)
{
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void end(farm *f)
{
    assert_int_equal(kill(f->keeper, SIGTERM), 0);
    assert_int_equal(wait_exit(f->keeper), PROCESS_DRAINED);
    io_close(&f->fd);
    io_close(&f->listen_fd);
}

/* An answer proves that everything said before has been dealt with. */
static void wait_until_heard(farm *f)
{
    int fds[2];
    assert_ok(keeper_alloc(f->fd, f->next_outbox, 4096, fds));
    assert_ok(keeper_release(f->fd, f->next_outbox++));
    io_close(&fds[0]);
    io_close(&fds[1]);
}

static void test_memory_and_release(void **state)
{
    (void)state;
    farm f;
    int fds[2];
    outbox *box;
    start(&f, NULL);
    const uint32_t id = f.next_outbox++;
    assert_ok(keeper_alloc(f.fd, id, BOX_BYTES, fds));
    assert_int_equal(outbox_holders(id, f.keeper), 2);
    const outbox_grant write = {.outbox_id = id, .bytes = BOX_BYTES, .fd = fds[0]};
    const outbox_grant read = {.outbox_id = id, .bytes = BOX_BYTES, .fd = fds[1]};
    assert_ok(outbox_open(&write, OUTBOX_WRITE, &box));
    outbox_close(box);
    assert_err(CF_ERR_SYS, "mmap", outbox_open(&read, OUTBOX_WRITE, &box));
    io_close(&fds[0]);
    io_close(&fds[1]);
    assert_int_equal(outbox_holders(id, 0), 2); /* the keeper's own: it keeps */
    assert_ok(keeper_release(f.fd, id));
    wait_until_heard(&f);
    assert_int_equal(outbox_holders(id, 0), 0);
    assert_ok(keeper_release(f.fd, id)); /* of nothing: no answer, no harm */
    wait_until_heard(&f);
    end(&f);
}

static void test_refusals_say_why(void **state)
{
    (void)state;
    farm f;
    int fds[2];
    start(&f, "keeper.alloc#2=fail,outbox.make#2=fail"); /* the second question, and the second that got through */
    assert_ok(keeper_alloc(f.fd, f.next_outbox, 4096, fds));
    io_close(&fds[0]);
    io_close(&fds[1]);
    assert_err(CF_ERR_NOMEM, "fault keeper.alloc", keeper_alloc(f.fd, f.next_outbox + 1, 4096, fds));
    assert_err(CF_ERR_NOMEM, "memfd of 4096 bytes: Cannot allocate memory",
               keeper_alloc(f.fd, f.next_outbox + 2, 4096, fds));
    assert_err(CF_ERR_NOMEM, "0 bytes, expected 1..", keeper_alloc(f.fd, f.next_outbox + 3, 0, fds));
    wait_until_heard(&f);
    end(&f);
}

static void test_its_table_is_bounded(void **state)
{
    (void)state;
    farm f;
    int fds[2];
    start(&f, NULL);
    for (uint32_t i = 0; i < 4 * MEMBERS_MAX; i++) {
        assert_ok(keeper_alloc(f.fd, f.next_outbox + i, 4096, fds));
        io_close(&fds[0]);
        io_close(&fds[1]);
    }
    assert_err(CF_ERR_NOMEM, "more than 256 outboxes", keeper_alloc(f.fd, f.next_outbox + 256, 4096, fds));
    assert_ok(keeper_release(f.fd, f.next_outbox + 100));
    assert_ok(keeper_alloc(f.fd, f.next_outbox + 256, 4096, fds));
    io_close(&fds[0]);
    io_close(&fds[1]);
    assert_int_equal(outbox_holders(f.next_outbox + 100, 0), 0);
    assert_int_equal(outbox_holders(f.next_outbox + 256, 0), 2);
    end(&f);
    assert_int_equal(outbox_holders(f.next_outbox + 256, 0), 0);
}

/* A message that no orchestrator sends; the keeper hangs up, forgets everything and comes again. */
static void expect_reconnect(farm *f, uint32_t held_outbox)
{
    take_hello(f);
    assert_int_equal(outbox_holders(held_outbox, f->keeper), 0);
}

static void test_another_orchestrator(void **state)
{
    (void)state;
    farm f;
    int fds[2];
    start(&f, NULL);
    const uint32_t id = f.next_outbox++;
    assert_ok(keeper_alloc(f.fd, id, BOX_BYTES, fds));
    io_close(&fds[0]);
    io_close(&fds[1]);
    assert_int_equal(outbox_holders(id, 0), 2);
    io_close(&f.fd); /* the orchestrator is gone, and its socket with it; the next one listens at the same place */
    io_close(&f.listen_fd);
    listen_again(&f);
    expect_reconnect(&f, id);
    wait_until_heard(&f);
    end(&f);
}

static void test_nonsense(void **state)
{
    (void)state;
    static const char *const WORDS[] = {
        "{}",
        "nonsense",
        "{\"v\":1,\"kind\":\"alloc\",\"outbox\":1}",
        "{\"v\":1,\"kind\":\"hello\"}",
        "{\"v\":2,\"kind\":\"release\",\"outbox\":1}",
    };
    farm f;
    int fds[2];
    start(&f, NULL);
    for (size_t i = 0; i < sizeof WORDS / sizeof WORDS[0]; i++) {
        const uint32_t id = f.next_outbox++;
        assert_ok(keeper_alloc(f.fd, id, 4096, fds));
        io_close(&fds[0]);
        io_close(&fds[1]);
        assert_int_equal(send(f.fd, WORDS[i], strlen(WORDS[i]), 0), (ssize_t)strlen(WORDS[i]));
        const int old_fd = f.fd;
        expect_reconnect(&f, id);
        close(old_fd);
    }
    end(&f);
}

static void test_it_goes_when_refused(void **state)
{
    (void)state;
    farm f;
    start(&f, NULL);
    json *m = wire_new(WIRE_refuse);
    json_put_str(m, "code", "busy");
    json_put_str(m, "text", "there is a keeper already");
    assert_ok(lifeline_send(f.fd, m, NULL, 0));
    assert_int_equal(wait_exit(f.keeper), PROCESS_NO_RESOURCES); /* busy may pass: its supervisor starts it again */
    io_close(&f.fd);
    io_close(&f.listen_fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_and_release),
        cmocka_unit_test(test_refusals_say_why),
        cmocka_unit_test(test_its_table_is_bounded),
        cmocka_unit_test(test_another_orchestrator),
        cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_it_goes_when_refused),
    };
    return cmocka_run_group_tests_name("keeper", tests, NULL, NULL);
}
