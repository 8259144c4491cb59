/*
 * test_bus.c - the ZeroMQ bus at both ends, and what strangers may do to it with libzmq or with a bare socket:
 * deadlines, peers that are not there, full queues, messages too long, of several parts, of nothing, and bytes that are
 * no message.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/transport/bus.h"
#include "common/transport/wire.h"

#define WAIT_US   (30 * CLOCK_SECOND_US)
#define SENDS_MAX 200000 /* far above both queues of 10000 and what the sockets between them hold */

typedef struct place {
    char endpoint[300], path[300];
    bus *orch;
} place;

static void start(place *p)
{
    snprintf(p->path, sizeof p->path, "%s/bus.sock", test_temp_dir());
    snprintf(p->endpoint, sizeof p->endpoint, "ipc://%.290s", p->path);
    assert_ok(bus_bind(p->endpoint, &p->orch));
}

static json *query(uint64_t nonce)
{
    json *m = wire_new(WIRE_query);
    json_put_u64(m, "nonce", nonce);
    return m;
}

static void wait_ready(bus *b)
{
    int ready = 0;
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    while (!ready && clock_now_us() < deadline_us)
        assert_ok(bus_poll(b, NULL, 0, deadline_us, &ready));
    assert_true(ready);
}

/* Sends as soon as there is somebody to send to. */
static void send_when_connected(bus *b, const char *peer, uint64_t nonce)
{
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    cf_err err;
    while ((err = bus_send(b, peer, query(nonce))) == CF_ERR_BUSY || err == CF_ERR_GONE) {
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 1);
    }
    assert_ok(err);
}

/* Takes one query: its nonce, and who sent it. */
static uint64_t take(bus *b, char peer[BUS_ID_BYTES])
{
    char *text;
    size_t bytes;
    wire_msg msg;
    wait_ready(b);
    assert_ok(bus_recv(b, peer, &text, &bytes));
    assert_int_equal(text[bytes], '\0');
    assert_ok(wire_parse(text, bytes, WIRE_CLIENT_BUS, &msg));
    const uint64_t nonce = wire_u64(&msg, "nonce");
    wire_done(&msg);
    mem_free(text);
    return nonce;
}

static void expect_nothing(bus *b)
{
    char peer[BUS_ID_BYTES] = "x";
    char *text = NULL;
    size_t bytes;
    assert_err(CF_ERR_TIMEOUT, "no message", bus_recv(b, peer, &text, &bytes));
    assert_null(text);
}

static void refuse_next(bus *b, const char *part)
{
    char peer[BUS_ID_BYTES];
    char *text = NULL;
    size_t bytes;
    wait_ready(b);
    assert_err(CF_ERR_INVALID, part, bus_recv(b, peer, &text, &bytes));
    assert_null(text);
}

static void test_both_ways(void **state)
{
    (void)state;
    place p;
    bus *a, *b;
    char peer[BUS_ID_BYTES];
    start(&p);
    expect_nothing(p.orch);
    assert_ok(bus_connect(p.endpoint, "flow.0.17", &a));
    assert_ok(bus_connect(p.endpoint, "hift.1.18", &b));
    expect_nothing(a);
    for (uint64_t i = 0; i < 100; i++)
        send_when_connected(a, NULL, i);
    for (uint64_t i = 0; i < 100; i++) {
        assert_int_equal(take(p.orch, peer), i); /* in the order they were sent */
        assert_string_equal(peer, "flow.0.17");
    }
    send_when_connected(b, NULL, 7);
    assert_int_equal(take(p.orch, peer), 7);
    assert_string_equal(peer, "hift.1.18");
    assert_ok(bus_send(p.orch, "hift.1.18", query(8)));
    assert_ok(bus_send(p.orch, "flow.0.17", query(9)));
    assert_int_equal(take(b, peer), 8);
    assert_string_equal(peer, "");
    assert_int_equal(take(a, peer), 9);
    expect_nothing(a);
    expect_nothing(b);
    bus_close(a);
    bus_close(b);
    bus_close(p.orch);
    bus_close(NULL);
}

static void test_deadlines(void **state)
{
    (void)state;
    place p;
    int ready = 7, pipe_fds[2];
    start(&p);
    uint64_t before_us = clock_now_us();
    assert_ok(bus_poll(p.orch, NULL, 0, before_us + 30000, &ready));
    assert_int_equal(ready, 0);
    assert_true(clock_now_us() >= before_us + 30000);
    before_us = clock_now_us();
    assert_ok(bus_poll(p.orch, NULL, 0, 0, &ready)); /* long passed: a look, no wait */
    assert_ok(bus_poll(p.orch, NULL, 0, before_us - 1, &ready));
    assert_ok(bus_poll(NULL, NULL, 0, 0, &ready));
    assert_true(clock_now_us() < before_us + 10 * CLOCK_SECOND_US);
    assert_int_equal(ready, 0);
    /* A descriptor wakes it long before the deadline, with and without a bus; nothing else is said to be ready. */
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    struct pollfd fds[] = {{.fd = pipe_fds[1], .revents = 7}, {.fd = pipe_fds[0]}}; /* nobody reads a writing end */
    assert_int_equal(write(pipe_fds[1], "x", 1), 1);
    for (int i = 0; i < 2; i++) {
        assert_ok(bus_poll(i ? p.orch : NULL, fds, 2, clock_now_us() + WAIT_US, &ready));
        assert_int_equal(ready, 0);
        assert_int_equal(fds[0].revents, 0);
        assert_int_equal(fds[1].revents, POLLIN);
    }
    close(pipe_fds[1]);
    char byte;
    assert_int_equal(read(pipe_fds[0], &byte, 1), 1);
    assert_ok(bus_poll(p.orch, fds + 1, 1, clock_now_us() + WAIT_US, &ready)); /* end of file is an event too */
    assert_int_equal(fds[1].revents, POLLIN);
    close(pipe_fds[0]);
    bus_close(p.orch);
}

static void test_places(void **state)
{
    (void)state;
    char longer[200];
    bus *b = NULL;
    snprintf(longer, sizeof longer, "ipc://%s/", test_temp_dir());
    memset(longer + strlen(longer), 'a', sizeof longer - 1 - strlen(longer));
    longer[sizeof longer - 1] = '\0';
    assert_err(CF_ERR_LIMIT, "longer than 107 bytes", bus_bind(longer, &b));
    assert_err(CF_ERR_LIMIT, "longer than 107 bytes", bus_connect(longer, "a", &b));
    assert_err(CF_ERR_SYS, "ipc:///nonexistent/bus.sock: bind", bus_bind("ipc:///nonexistent/bus.sock", &b));
    assert_err(CF_ERR_SYS, "nonsense: connect", bus_connect("nonsense", "a", &b));
    assert_null(b);
}

static void test_nobody_there(void **state)
{
    (void)state;
    place p;
    bus *lonely, *guest;
    char peer[BUS_ID_BYTES], endpoint[300];
    start(&p);
    assert_err(CF_ERR_GONE, "peer is not connected", bus_send(p.orch, "flow.0.1", query(1)));
    snprintf(endpoint, sizeof endpoint, "%.290s.no", p.endpoint);
    assert_ok(bus_connect(endpoint, "flow.0.1", &lonely));
    assert_err(CF_ERR_BUSY, "nobody is connected", bus_send(lonely, NULL, query(1)));
    bus_close(lonely);
    /* A peer that was there and left. */
    assert_ok(bus_connect(p.endpoint, "flow.0.2", &guest));
    send_when_connected(guest, NULL, 3);
    assert_int_equal(take(p.orch, peer), 3);
    bus_close(guest);
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    cf_err err;
    while ((err = bus_send(p.orch, "flow.0.2", query(4))) == CF_OK) { /* zmq has not seen it go */
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 1);
    }
    assert_int_equal(err, CF_ERR_GONE);
    bus_close(p.orch);
}

/* Fills the way from one end to the other, then empties it: BUSY at a bound, and not one message lost. */
static void fill_and_drain(bus *from, const char *peer_id, bus *to)
{
    char peer[BUS_ID_BYTES];
    uint64_t sent = 0;
    cf_err err = CF_OK;
    while (sent < SENDS_MAX && (err = bus_send(from, peer_id, query(sent))) == CF_OK)
        sent++;
    assert_err(CF_ERR_BUSY, "send queue is full", err);
    for (uint64_t i = 0; i < sent; i++)
        assert_int_equal(take(to, peer), i);
    send_when_connected(from, peer_id, 99);
    assert_int_equal(take(to, peer), 99);
    expect_nothing(to);
}

static void test_full_queue(void **state)
{
    (void)state;
    place p;
    bus *worker;
    char peer[BUS_ID_BYTES];
    start(&p);
    assert_ok(bus_connect(p.endpoint, "llm.0.1", &worker));
    send_when_connected(worker, NULL, 1);
    assert_int_equal(take(p.orch, peer), 1);
    fill_and_drain(worker, NULL, p.orch);
    fill_and_drain(p.orch, "llm.0.1", worker);
    bus_close(worker);
    bus_close(p.orch);
}

/* ---- strangers with libzmq ---- */

typedef struct stranger {
    void *ctx, *socket;
} stranger;

static stranger stranger_open(const place *p, const void *id, size_t id_bytes)
{
    const int zero = 0;
    stranger s = {.ctx = zmq_ctx_new()};
    s.socket = zmq_socket(s.ctx, ZMQ_DEALER);
    assert_non_null(s.socket);
    assert_int_equal(zmq_setsockopt(s.socket, ZMQ_ROUTING_ID, id, id_bytes), 0);
    assert_int_equal(zmq_setsockopt(s.socket, ZMQ_LINGER, &zero, sizeof zero), 0);
    assert_int_equal(zmq_connect(s.socket, p->endpoint), 0);
    return s;
}

static void stranger_close(stranger *s)
{
    zmq_close(s->socket);
    zmq_ctx_term(s->ctx);
}

static void stranger_say(const stranger *s, const void *data, size_t bytes, int flags)
{
    assert_int_equal(zmq_send(s->socket, data, bytes, flags), (int)bytes);
}

#define QUERY(nonce) "{\"v\":1,\"kind\":\"query\",\"nonce\":" nonce "}"

static void test_several_parts(void **state)
{
    (void)state;
    place p;
    char peer[BUS_ID_BYTES];
    start(&p);
    stranger s = stranger_open(&p, "client.1", 8);
    for (int parts = 2; parts < 6; parts++) {
        for (int i = 0; i < parts; i++)
            stranger_say(&s, QUERY("1"), strlen(QUERY("1")), i + 1 < parts ? ZMQ_SNDMORE : 0);
        refuse_next(p.orch, "message of several parts");
        expect_nothing(p.orch); /* all of it is gone */
    }
    stranger_say(&s, "", 0, ZMQ_SNDMORE); /* as a REQ socket begins */
    stranger_say(&s, QUERY("1"), strlen(QUERY("1")), 0);
    refuse_next(p.orch, "message of several parts");
    stranger_say(&s, QUERY("5"), strlen(QUERY("5")), 0);
    assert_int_equal(take(p.orch, peer), 5);
    assert_string_equal(peer, "client.1");
    stranger_close(&s);
    bus_close(p.orch);
}

static void test_bodies_that_are_no_message(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        size_t bytes;
    } CASES[] = {{"", 0}, {"\0", 1}, {"x", 1}, {"{}", 2}, {QUERY("1") "\0", sizeof QUERY("1")}, {"\xff\xff", 2}};
    place p;
    char peer[BUS_ID_BYTES];
    start(&p);
    stranger s = stranger_open(&p, "client.1", 8);
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        char *text;
        size_t bytes;
        wire_msg msg = {0};
        stranger_say(&s, CASES[i].body, CASES[i].bytes, 0);
        wait_ready(p.orch);
        assert_ok(bus_recv(p.orch, peer, &text, &bytes)); /* whole, as it came: judging it is wire.h's */
        assert_int_equal(bytes, CASES[i].bytes);
        assert_int_equal(text[bytes], '\0');
        assert_err(CF_ERR_INVALID, "", wire_parse(text, bytes, WIRE_CLIENT_BUS, &msg));
        mem_free(text);
    }
    stranger_close(&s);
    bus_close(p.orch);
}

static void test_too_long(void **state)
{
    (void)state;
    static char body[MESSAGE_BYTES_MAX + 1];
    place p;
    bus *good;
    char peer[BUS_ID_BYTES];
    char *text;
    size_t bytes;
    start(&p);
    memset(body, ' ', sizeof body);
    stranger s = stranger_open(&p, "client.1", 8);
    stranger_say(&s, body, MESSAGE_BYTES_MAX, 0); /* the longest that passes */
    wait_ready(p.orch);
    assert_ok(bus_recv(p.orch, peer, &text, &bytes));
    assert_int_equal(bytes, MESSAGE_BYTES_MAX);
    mem_free(text);
    stranger_say(&s, body, MESSAGE_BYTES_MAX + 1, 0); /* zmq hangs up; the stranger is a new connection then */
    assert_ok(bus_connect(p.endpoint, "flow.0.1", &good));
    send_when_connected(good, NULL, 4);
    assert_int_equal(take(p.orch, peer), 4);
    assert_string_equal(peer, "flow.0.1");
    expect_nothing(p.orch);
    /* Our own end never sends one. */
    json *m = wire_new(WIRE_status);
    json_put_u64(m, "nonce", 1);
    json_put_u64(m, "boot", 1);
    static const char *const TREES[] = {"members", "queues", "totals", "config"};
    for (int t = 0; t < 4; t++) {
        json *tree = json_array();
        for (int i = 0; i < 5000; i++)
            json_push(tree, json_num(100 + i));
        json_put(m, TREES[t], tree);
    }
    assert_err(CF_ERR_LIMIT, "at most 65536", bus_send(p.orch, "flow.0.1", m));
    expect_nothing(good);
    assert_ok(bus_send(p.orch, "flow.0.1", query(5))); /* no half of it is left in the way */
    assert_int_equal(take(good, peer), 5);
    bus_close(good);
    stranger_close(&s);
    bus_close(p.orch);
}

/* Routing ids that no program of ours takes: heard, but nobody's. */
static void test_strange_names(void **state)
{
    (void)state;
    static char longest[255];
    place p;
    char peer[BUS_ID_BYTES];
    start(&p);
    memset(longest, 'a', sizeof longest);
    static const struct {
        const char *id;
        size_t id_bytes;
        const char *shown;
    } CASES[] = {
        {longest, 255, ""},      {longest, BUS_ID_BYTES, ""}, {longest, BUS_ID_BYTES - 1, longest},
        {"flow.0.1\0x", 10, ""}, {"\xff\n", 2, "\xff\n"},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        stranger s = stranger_open(&p, CASES[i].id, CASES[i].id_bytes);
        stranger_say(&s, QUERY("6"), strlen(QUERY("6")), 0);
        assert_int_equal(take(p.orch, peer), 6);
        assert_int_equal(strlen(peer), CASES[i].shown[0] ? CASES[i].id_bytes : 0);
        assert_memory_equal(peer, CASES[i].shown, strlen(peer));
        stranger_close(&s);
    }
    bus_close(p.orch);
}

/* Whoever takes a name that is in use is not heard, and the one who has it loses nothing. */
static void test_a_name_is_taken_once(void **state)
{
    (void)state;
    place p;
    bus *first, *other;
    char peer[BUS_ID_BYTES];
    start(&p);
    assert_ok(bus_connect(p.endpoint, "flow.0.1", &first));
    send_when_connected(first, NULL, 1);
    assert_int_equal(take(p.orch, peer), 1);
    stranger thief = stranger_open(&p, "flow.0.1", 8);
    stranger_say(&thief, QUERY("666"), strlen(QUERY("666")), 0);
    assert_ok(bus_connect(p.endpoint, "flow.0.2", &other));
    for (uint64_t i = 2; i < 50; i++) { /* time for the thief to be heard, if it could be */
        send_when_connected(first, NULL, i);
        assert_int_equal(take(p.orch, peer), i);
        send_when_connected(other, NULL, i);
        assert_int_equal(take(p.orch, peer), i);
        assert_string_equal(peer, "flow.0.2");
        assert_ok(bus_send(p.orch, "flow.0.1", query(i)));
        assert_int_equal(take(first, peer), i);
    }
    expect_nothing(p.orch);
    stranger_close(&thief);
    bus_close(first);
    bus_close(other);
    bus_close(p.orch);
}

/* The name was sent and the body was not: this message is lost, and its sender knows; the next goes where it ought. */
static void test_a_message_that_is_half_sent(void **state)
{
    (void)state;
    place p;
    bus *a, *b;
    char peer[BUS_ID_BYTES];
    start(&p);
    assert_ok(bus_connect(p.endpoint, "flow.0.17", &a));
    assert_ok(bus_connect(p.endpoint, "hift.1.18", &b));
    send_when_connected(a, NULL, 1);
    assert_int_equal(take(p.orch, peer), 1);
    send_when_connected(b, NULL, 2);
    assert_int_equal(take(p.orch, peer), 2);
    for (int frame = 1; frame <= 2; frame++) {
        char spec[32];
        snprintf(spec, sizeof spec, "zmq.send#%d=fail", frame);
        assert_ok(fault_arm(spec));
        assert_err(CF_ERR_SYS, "zmq send", bus_send(p.orch, "flow.0.17", query(3)));
        assert_ok(fault_arm(NULL));
        assert_ok(bus_send(p.orch, "hift.1.18", query(4)));
        assert_ok(bus_send(p.orch, "flow.0.17", query(5)));
        assert_int_equal(take(b, peer), 4);
        assert_int_equal(take(a, peer), 5); /* the end of what was begun is passed over */
    }
    bus_close(a);
    bus_close(b);
    bus_close(p.orch);
}

/* The name was taken and the body was not: the body that is left is nobody's message, and those behind it are heard. */
static void test_a_message_that_is_half_taken(void **state)
{
    (void)state;
    place p;
    bus *a;
    char peer[BUS_ID_BYTES];
    char *text = NULL;
    size_t bytes;
    start(&p);
    assert_ok(bus_connect(p.endpoint, "flow.0.17", &a));
    send_when_connected(a, NULL, 1);
    send_when_connected(a, NULL, 2);
    wait_ready(p.orch);
    assert_ok(fault_arm("zmq.recv#2=fail"));
    assert_err(CF_ERR_SYS, "zmq receive", bus_recv(p.orch, peer, &text, &bytes));
    assert_ok(fault_arm(NULL));
    assert_string_equal(peer, "flow.0.17"); /* whose it was is known */
    refuse_next(p.orch, "message without a body");
    assert_int_equal(take(p.orch, peer), 2);
    bus_close(a);
    bus_close(p.orch);
}

/* ---- strangers with a bare socket ---- */

static void test_bytes_that_are_no_zmq(void **state)
{
    (void)state;
    static const char GREETING[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL";
    static const char OTHER[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\0EVIL"; /* a mechanism that nobody speaks */
    static const struct {
        const char *data;
        size_t bytes;
    } CASES[] = {
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16},
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12},
        {GREETING, 10}, /* begun and left */
        {GREETING, sizeof GREETING},
        {OTHER, sizeof OTHER},
        {"", 0},
    };
    place p;
    bus *good;
    char peer[BUS_ID_BYTES];
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    start(&p);
    snprintf(addr.sun_path, sizeof addr.sun_path, "%.100s", p.path);
    assert_ok(bus_connect(p.endpoint, "flow.0.1", &good));
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (const struct sockaddr *)&addr, sizeof addr), 0);
        assert_int_equal(send(fd, CASES[i].data, CASES[i].bytes, MSG_NOSIGNAL), (ssize_t)CASES[i].bytes);
        send_when_connected(good, NULL, i);
        assert_int_equal(take(p.orch, peer), i);
        assert_string_equal(peer, "flow.0.1");
        close(fd);
    }
    expect_nothing(p.orch);
    bus_close(good);
    bus_close(p.orch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_ways),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_full_queue),
        cmocka_unit_test(test_several_parts),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_bodies_that_are_no_message),
        cmocka_unit_test(test_strange_names),
        cmocka_unit_test(test_a_name_is_taken_once),
        cmocka_unit_test(test_a_message_that_is_half_sent),
        cmocka_unit_test(test_a_message_that_is_half_taken),
        cmocka_unit_test(test_bytes_that_are_no_zmq),
    };
    return cmocka_run_group_tests_name("bus", tests, NULL, NULL);
}
