/*
 * test_lifeline.c - lifelines between real processes and at both ends of one: whole messages in order, descriptors and
 * where they go, the peer's pid from the kernel, end of file however it comes, and senders that do not keep to the
 * rules: too long, too many descriptors, nothing at all.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/transport/lifeline.h"
#include "common/transport/wire.h"

#define WAIT_US (30 * CLOCK_SECOND_US)

/* Both ends of one connection, and what it came from. */
typedef struct line {
    char path[300];
    int listen_fd, orch_fd, member_fd;
    int fds; /* open descriptors before */
} line;

static void wait_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    while (poll(&p, 1, clock_left_ms(deadline_us, 30000)) <= 0)
        assert_true(clock_now_us() < deadline_us);
}

static void start(line *l)
{
    pid_t pid;
    *l = (line){.listen_fd = -1, .orch_fd = -1, .member_fd = -1, .fds = test_open_fds()};
    snprintf(l->path, sizeof l->path, "%s/lifeline.sock", test_temp_dir());
    assert_ok(lifeline_listen(l->path, &l->listen_fd));
    assert_err(CF_ERR_TIMEOUT, "nobody waits", lifeline_accept(l->listen_fd, &l->orch_fd, &pid));
    assert_ok(lifeline_connect(l->path, &l->member_fd));
    assert_ok(lifeline_accept(l->listen_fd, &l->orch_fd, &pid));
    assert_int_equal(pid, getpid());
}

/* Every descriptor that came or went on the way must be gone. */
static void end(line *l)
{
    io_close(&l->listen_fd);
    io_close(&l->orch_fd);
    io_close(&l->member_fd);
    assert_int_equal(test_open_fds(), l->fds);
}

static cf_err say(int fd, uint64_t gen, const int *fds, size_t count)
{
    json *m = wire_new(WIRE_opened);
    json_put_u64(m, "gen", gen);
    json_put_u64(m, "outbox", 1);
    return lifeline_send(fd, m, fds, count);
}

/* Receives one message of say() and returns its generation; ret_fds as lifeline_recv. */
static uint64_t hear(int fd, int ret_fds[LIFELINE_FDS_MAX])
{
    char *text;
    size_t bytes;
    wire_msg msg;
    assert_ok(lifeline_recv(fd, &text, &bytes, ret_fds));
    assert_int_equal(text[bytes], '\0');
    assert_ok(wire_parse(text, bytes, WIRE_MEMBER_LIFELINE, &msg));
    const uint64_t gen = wire_u64(&msg, "gen");
    wire_done(&msg);
    mem_free(text);
    return gen;
}

static void expect_silence(int fd)
{
    char *text = NULL;
    size_t bytes;
    int fds[LIFELINE_FDS_MAX];
    assert_err(CF_ERR_TIMEOUT, "no message", lifeline_recv(fd, &text, &bytes, fds));
    assert_null(text);
}

static void expect_refusal(int fd, cf_err code, const char *part)
{
    char *text = NULL;
    size_t bytes;
    int fds[LIFELINE_FDS_MAX] = {7, 7};
    assert_err(code, part, lifeline_recv(fd, &text, &bytes, fds));
    assert_null(text);
    assert_int_equal(fds[0], -1);
    assert_int_equal(fds[1], -1);
}

static void test_messages_stay_whole_and_in_order(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX];
    start(&l);
    expect_silence(l.orch_fd);
    for (uint64_t i = 0; i < 50; i++) {
        assert_ok(say(l.member_fd, i, NULL, 0));
        assert_ok(say(l.orch_fd, 1000 + i, NULL, 0));
    }
    for (uint64_t i = 0; i < 50; i++) {
        assert_int_equal(hear(l.orch_fd, fds), i);
        assert_int_equal(hear(l.member_fd, fds), 1000 + i);
        assert_int_equal(fds[0], -1);
        assert_int_equal(fds[1], -1);
    }
    expect_silence(l.orch_fd);
    expect_silence(l.member_fd);
    end(&l);
}

static void test_descriptors_arrive(void **state)
{
    (void)state;
    line l;
    int got[LIFELINE_FDS_MAX], sent[2];
    struct stat want, found;
    start(&l);
    for (int i = 0; i < 2; i++) {
        sent[i] = memfd_create("sent", 0); /* not close-on-exec: that is the receiver's affair */
        assert_true(sent[i] >= 0);
    }
    for (size_t count = 1; count <= 2; count++) {
        assert_ok(say(l.orch_fd, count, sent, count));
        assert_int_equal(hear(l.member_fd, got), count);
        for (size_t i = 0; i < 2; i++) {
            assert_int_equal(got[i] >= 0, i < count);
            if (got[i] < 0)
                continue;
            assert_int_equal(fstat(sent[i], &want) | fstat(got[i], &found), 0);
            assert_int_equal(found.st_ino, want.st_ino);
            assert_int_equal(fcntl(got[i], F_GETFD), FD_CLOEXEC);
            close(got[i]);
        }
    }
    close(sent[0]);
    close(sent[1]);
    end(&l);
}

/* What a process of our own would never send. */
static void send_raw(int fd, const void *data, size_t bytes, int fds_count)
{
    int fds[8];
    union {
        char bytes[CMSG_SPACE(sizeof fds)];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds_count > 0) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)fds_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)fds_count);
        for (int i = 0; i < fds_count; i++)
            fds[i] = STDERR_FILENO;
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)fds_count);
    }
    assert_int_equal(sendmsg(fd, &header, MSG_NOSIGNAL), (ssize_t)bytes);
}

static void test_too_long(void **state)
{
    (void)state;
    static char text[MESSAGE_BYTES_MAX + 1];
    line l;
    char *got;
    size_t bytes;
    int fds[LIFELINE_FDS_MAX];
    start(&l);
    memset(text, 'x', sizeof text);
    send_raw(l.member_fd, text, MESSAGE_BYTES_MAX + 1, 0);
    send_raw(l.member_fd, text, MESSAGE_BYTES_MAX + 1, 2); /* with descriptors, which must not stay */
    send_raw(l.member_fd, text, MESSAGE_BYTES_MAX, 0);     /* the longest that may be */
    assert_ok(say(l.member_fd, 5, NULL, 0));
    expect_refusal(l.orch_fd, CF_ERR_INVALID, "longer than 65536 bytes");
    expect_refusal(l.orch_fd, CF_ERR_INVALID, "longer than 65536 bytes");
    assert_ok(lifeline_recv(l.orch_fd, &got, &bytes, fds));
    assert_int_equal(bytes, MESSAGE_BYTES_MAX);
    mem_free(got);
    assert_int_equal(hear(l.orch_fd, fds), 5); /* the connection has not suffered */
    end(&l);
}

static void test_too_many_descriptors(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX];
    start(&l);
    const int before = test_open_fds();
    for (int count = LIFELINE_FDS_MAX + 1; count <= 8; count++) {
        send_raw(l.member_fd, "{}", 2, count);
        expect_refusal(l.orch_fd, CF_ERR_INVALID, "more than 2 descriptors");
        assert_int_equal(test_open_fds(), before);
    }
    assert_ok(say(l.member_fd, 6, NULL, 0));
    assert_int_equal(hear(l.orch_fd, fds), 6);
    end(&l);
}

/* The process is at its limit of open descriptors: the message that brings one more is refused, not taken without. */
static void test_no_room_for_descriptors(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX];
    struct rlimit old, tight;
    start(&l);
    assert_ok(say(l.member_fd, 1, &l.listen_fd, 1));
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    tight = (struct rlimit){.rlim_cur = STDERR_FILENO + 1, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    char *text = NULL;
    size_t bytes;
    const cf_err err = lifeline_recv(l.orch_fd, &text, &bytes, fds);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_int_equal(err, CF_ERR_INVALID);
    assert_non_null(strstr(err_text(), "than this process may open"));
    assert_int_equal(fds[0], -1);
    assert_ok(say(l.member_fd, 2, NULL, 0));
    assert_int_equal(hear(l.orch_fd, fds), 2);
    end(&l);
}

static void test_words_that_are_none(void **state)
{
    (void)state;
    static const char *const WORDS[] = {"x", "\0\0\0", "{\"v\":1}", "\xff\xfe", "[]"};
    line l;
    start(&l);
    for (size_t i = 0; i < sizeof WORDS / sizeof WORDS[0]; i++) {
        char *text;
        size_t bytes;
        int fds[LIFELINE_FDS_MAX];
        wire_msg msg = {0};
        send_raw(l.member_fd, WORDS[i], i == 1 ? 3 : strlen(WORDS[i]), 0);
        assert_ok(lifeline_recv(l.orch_fd, &text, &bytes, fds));
        assert_err(CF_ERR_INVALID, "", wire_parse(text, bytes, WIRE_MEMBER_LIFELINE, &msg));
        mem_free(text);
    }
    send_raw(l.member_fd, "", 0, 1); /* a message of nothing cannot be told from the end: it is taken for it */
    expect_refusal(l.orch_fd, CF_ERR_GONE, "closed its lifeline");
    end(&l);
}

static void test_end_of_file(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX];
    start(&l);
    assert_ok(say(l.member_fd, 1, NULL, 0));
    assert_ok(say(l.member_fd, 2, NULL, 0));
    io_close(&l.member_fd);
    assert_int_equal(hear(l.orch_fd, fds), 1); /* last words are heard first */
    assert_int_equal(hear(l.orch_fd, fds), 2);
    expect_refusal(l.orch_fd, CF_ERR_GONE, "closed its lifeline");
    assert_err(CF_ERR_GONE, "closed", say(l.orch_fd, 3, NULL, 0));
    assert_err(CF_ERR_GONE, "closed", say(l.orch_fd, 3, &l.listen_fd, 1));
    end(&l);
    /* With words of ours still unread at its side the kernel resets the connection instead. */
    start(&l);
    assert_ok(say(l.orch_fd, 4, &l.listen_fd, 1));
    io_close(&l.member_fd);
    expect_refusal(l.orch_fd, CF_ERR_GONE, "closed its lifeline");
    end(&l);
}

static void test_the_kernel_says_who(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX], fd, go[2];
    pid_t pid;
    char word = 'g';
    start(&l);
    assert_int_equal(pipe2(go, O_CLOEXEC), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        /* An impostor may say what it likes in its HELLO: its number comes from the kernel. */
        if (lifeline_connect(l.path, &fd) != CF_OK || say(fd, 9, NULL, 0) != CF_OK || read(go[0], &word, 1) != 1)
            _exit(1);
        _exit(0);
    }
    wait_readable(l.listen_fd);
    assert_ok(lifeline_accept(l.listen_fd, &fd, &pid));
    assert_int_equal(pid, child);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    wait_readable(fd);
    assert_int_equal(hear(fd, fds), 9);
    expect_silence(fd);
    assert_int_equal(kill(child, SIGKILL), 0); /* no farewell */
    wait_readable(fd);
    expect_refusal(fd, CF_ERR_GONE, "closed its lifeline");
    assert_int_equal(waitpid(child, NULL, 0), child);
    close(fd);
    close(go[0]);
    close(go[1]);
    end(&l);
}

/* A member that does not read must not stop the orchestrator, nor make it lose anything silently. */
static void test_full(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX];
    uint64_t sent = 0;
    cf_err err;
    start(&l);
    const int before = test_open_fds();
    while ((err = say(l.orch_fd, sent, NULL, 0)) == CF_OK && sent < 100000)
        sent++;
    assert_int_equal(err, CF_ERR_BUSY);
    assert_err(CF_ERR_BUSY, "lifeline is full", say(l.orch_fd, sent, &l.listen_fd, 1));
    assert_true(sent > 4); /* a few of the largest messages fit; these are small */
    for (uint64_t i = 0; i < sent; i++)
        assert_int_equal(hear(l.member_fd, fds), i);
    expect_silence(l.member_fd);
    assert_ok(say(l.orch_fd, 77, NULL, 0));
    assert_int_equal(hear(l.member_fd, fds), 77);
    assert_int_equal(test_open_fds(), before);
    end(&l);
}

static void test_places(void **state)
{
    (void)state;
    char path[300], longer[300];
    int fd = -7, other;
    pid_t pid;
    const char *dir = test_temp_dir();
    const int fds = test_open_fds();
    snprintf(path, sizeof path, "%s/socket", dir);
    assert_err(CF_ERR_GONE, "nobody listens there", lifeline_connect(path, &fd));
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    memcpy(longer, dir, strlen(dir));
    longer[strlen(dir)] = '/';
    assert_err(CF_ERR_LIMIT, "longer than 107 bytes", lifeline_connect(longer, &fd));
    assert_err(CF_ERR_LIMIT, "longer than 107 bytes", lifeline_listen(longer, &fd));
    assert_err(CF_ERR_SYS, "listen", lifeline_listen("/nonexistent/socket", &fd));
    assert_int_equal(fd, -7);
    /* A socket left behind by a dead orchestrator: nobody answers, and the next one takes its place. */
    assert_ok(lifeline_listen(path, &fd));
    io_close(&fd);
    assert_true(io_exists(path));
    assert_err(CF_ERR_GONE, "nobody listens there", lifeline_connect(path, &fd));
    assert_ok(lifeline_listen(path, &fd));
    assert_ok(lifeline_connect(path, &other));
    io_close(&other);
    int accepted = -1; /* somebody who came and went is still shown, and then found gone */
    assert_ok(lifeline_accept(fd, &accepted, &pid));
    expect_refusal(accepted, CF_ERR_GONE, "closed its lifeline");
    io_close(&accepted);
    io_close(&fd);
    assert_int_equal(test_open_fds(), fds);
}

/* A stranger with another kind of socket does not get in, and does not harm. */
static void test_other_sockets(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX], other = -1;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    start(&l);
    snprintf(addr.sun_path, sizeof addr.sun_path, "%.100s", l.path);
    const int stream = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(stream, (const struct sockaddr *)&addr, sizeof addr), -1);
    assert_int_equal(errno, EPROTOTYPE);
    snprintf(addr.sun_path, sizeof addr.sun_path, "%.90s.stream", l.path);
    assert_int_equal(bind(stream, (const struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(listen(stream, 1), 0);
    assert_err(CF_ERR_SYS, "connect", lifeline_connect(addr.sun_path, &other));
    assert_int_equal(other, -1);
    close(stream);
    assert_ok(say(l.member_fd, 3, NULL, 0));
    assert_int_equal(hear(l.orch_fd, fds), 3);
    end(&l);
}

static void test_memory_runs_out(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX];
    start(&l);
    assert_ok(say(l.member_fd, 1, NULL, 0));
    assert_ok(fault_arm("mem.alloc=fail"));
    expect_refusal(l.orch_fd, CF_ERR_NOMEM, "out of memory");
    assert_ok(fault_arm(NULL));
    assert_int_equal(hear(l.orch_fd, fds), 1); /* nothing is lost */
    end(&l);
}

/* What the system refuses says so, and the next try finds everything as it was. */
static void test_the_system_refuses(void **state)
{
    (void)state;
    line l;
    int fds[LIFELINE_FDS_MAX], other = -1;
    pid_t pid;
    start(&l);
    assert_ok(fault_arm("lifeline.connect=fail,lifeline.accept=fail,lifeline.send=fail,lifeline.recv=fail"));
    assert_err(CF_ERR_SYS, "connect", lifeline_connect(l.path, &other));
    assert_err(CF_ERR_SYS, "accept", lifeline_accept(l.listen_fd, &other, &pid));
    assert_int_equal(other, -1);
    assert_err(CF_ERR_SYS, "lifeline send", say(l.member_fd, 1, NULL, 0));
    assert_ok(say(l.member_fd, 2, NULL, 0));
    expect_refusal(l.orch_fd, CF_ERR_SYS, "lifeline receive");
    assert_int_equal(hear(l.orch_fd, fds), 2);
    assert_ok(fault_arm(NULL));
    end(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_stay_whole_and_in_order),
        cmocka_unit_test(test_descriptors_arrive),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_too_many_descriptors),
        cmocka_unit_test(test_no_room_for_descriptors),
        cmocka_unit_test(test_words_that_are_none),
        cmocka_unit_test(test_end_of_file),
        cmocka_unit_test(test_the_kernel_says_who),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_other_sockets),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_the_system_refuses),
    };
    return cmocka_run_group_tests_name("lifeline", tests, NULL, NULL);
}
