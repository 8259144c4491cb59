/*
 * test_client.c - the command's client against an orchestrator that this process plays inside of its tick: it dies
 * before it has told its number, and after a row was given to it. No row is lost, none ends twice.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/transport/bus.h"
#include "tools/client.h"

typedef struct stage {
    const char *name;
    uint64_t boot;
    bool answers;         /* queries */
    wire_kind dies_after; /* having received this kind */
    int forgets;          /* that many rows, without a word */
    int queries, submits; /* that it saw */
} stage;

typedef struct play {
    char endpoint[300];
    bus *b; /* of the stage at hand */
    stage *stages;
    int count, at, ended;
    uint64_t deadline_us;
} play;

static void send_status(play *p, const char *peer, uint64_t nonce)
{
    json *m = wire_new(WIRE_status);
    json_put_u64(m, "nonce", nonce);
    json_put_u64(m, "boot", p->stages[p->at].boot);
    json_put(m, "members", json_array());
    json_put(m, "queues", json_object());
    json_put(m, "totals", json_object());
    json_put(m, "config", json_object());
    assert_ok(bus_send(p->b, peer, m));
}

static void send_done(play *p, const char *peer, const char *id)
{
    json *m = wire_new(WIRE_done);
    json_put_str(m, "id", id);
    json_put_str(m, "status", "done");
    json_put_str(m, "file", "/x.wav");
    json_put_u64(m, "bytes", 1);
    json_put_u64(m, "samples", 1);
    json_put_f64(m, "seconds", 1);
    json_put_str(m, "sha256", "");
    json_put_u64(m, "seed", 0);
    json_put_u64(m, "attempts", 1);
    json_put_u64(m, "segments", 1);
    json_put_u64(m, "tokens", 1);
    json_put(m, "flags", json_array());
    json_put(m, "ms", json_object());
    assert_ok(bus_send(p->b, peer, m));
}

/* What one orchestrator does with one message; true: it dies now. */
static bool hear(play *p, const char *peer, const wire_msg *msg)
{
    stage *s = &p->stages[p->at];
    s->queries += msg->kind == WIRE_query;
    s->submits += msg->kind == WIRE_submit;
    if (msg->kind == s->dies_after)
        return true;
    if (msg->kind == WIRE_query && s->answers)
        send_status(p, peer, wire_u64(msg, "nonce"));
    if (msg->kind == WIRE_submit && s->submits > s->forgets)
        send_done(p, peer, wire_str(msg, "id"));
    return false;
}

/* The next orchestrator: the address is free when the former socket is closed. */
static void succeed(play *p)
{
    bus_close(p->b);
    p->at++;
    assert_true(p->at < p->count);
    assert_ok(bus_bind(p->endpoint, &p->b));
}

static client_stop tick(void *ctx, const wire_msg *status)
{
    play *p = ctx;
    (void)status;
    assert_true(clock_now_us() < p->deadline_us);
    for (;;) {
        char peer[BUS_ID_BYTES], *text = NULL;
        size_t bytes;
        wire_msg msg = {0};
        if (bus_recv(p->b, peer, &text, &bytes) != CF_OK)
            return CLIENT_GO_ON;
        assert_ok(wire_parse(text, bytes, WIRE_CLIENT_BUS, &msg));
        const bool dies = hear(p, peer, &msg);
        wire_done(&msg);
        mem_free(text);
        if (dies)
            succeed(p);
    }
}

static void ended(void *ctx, size_t row_idx, const wire_msg *done)
{
    play *p = ctx;
    assert_int_equal(row_idx, 0);
    assert_string_equal(wire_str(done, "status"), "done");
    p->ended++;
}

/* resubmit_us: so long that a busy machine does not ask twice, unless that is the test. */
static void perform(stage *stages, int count, uint64_t resubmit_us)
{
    client *c;
    const char *run_dir = test_temp_dir();
    play p = {.stages = stages, .count = count, .deadline_us = clock_now_us() + 60 * CLOCK_SECOND_US};
    const client_row row = {
        .id = "row", .text = "It rained.", .mode = "zero_shot", .path = "/x.wav", .format = "wav", .speed = 1};
    const client_handler handler = {&p, ended, tick};
    snprintf(p.endpoint, sizeof p.endpoint, "ipc://%s/" RUN_BUS_SOCKET, run_dir);
    assert_ok(bus_bind(p.endpoint, &p.b));
    assert_ok(client_open(run_dir, &c));
    client_resubmit_after(c, resubmit_us);
    assert_ok(client_run_list(c, &row, 1, true, 60 * CLOCK_SECOND_US, &handler));
    assert_int_equal(p.ended, 1);
    assert_int_equal(p.at, count - 1);
    client_close(c);
    bus_close(p.b);
}

/* The first one dies without having told its number. A row given to it would be one given to nobody: the second one's
 * number would look like that of the one that has it, and the client would wait for ever. */
static void test_nothing_is_given_to_a_nameless_orchestrator(void **state)
{
    (void)state;
    stage stages[] = {{.name = "dies unknown", .boot = 1, .answers = false, .dies_after = WIRE_query},
                      {.name = "lives", .boot = 2, .answers = true, .dies_after = WIRE_KIND_COUNT}};
    perform(stages, 2, CLIENT_RESUBMIT_US);
    assert_int_equal(stages[0].submits, 0);
    assert_int_equal(stages[1].submits, 1);
}

/* It waits for the number, however long that takes: many queries, no row. */
static void test_waits_for_the_number(void **state)
{
    (void)state;
    stage stages[] = {{.name = "mute", .boot = 1, .answers = false, .dies_after = WIRE_submit},
                      {.name = "never", .boot = 2, .answers = true, .dies_after = WIRE_KIND_COUNT}};
    play p = {.stages = stages, .count = 2, .deadline_us = clock_now_us() + 60 * CLOCK_SECOND_US};
    client *c;
    const char *run_dir = test_temp_dir();
    const client_row row = {
        .id = "row", .text = "It rained.", .mode = "zero_shot", .path = "/x.wav", .format = "wav", .speed = 1};
    const client_handler handler = {&p, ended, tick};
    snprintf(p.endpoint, sizeof p.endpoint, "ipc://%s/" RUN_BUS_SOCKET, run_dir);
    assert_ok(bus_bind(p.endpoint, &p.b));
    assert_ok(client_open(run_dir, &c));
    assert_err(CF_ERR_TIMEOUT, "no orchestrator has answered",
               client_run_list(c, &row, 1, true, CLOCK_SECOND_US, &handler));
    assert_true(stages[0].queries > 0);
    assert_int_equal(stages[0].submits, 0);
    assert_int_equal(p.at, 0);
    client_close(c);
    bus_close(p.b);
}

/* One that is known dies with the row in its hands: its successor is asked again. */
static void test_a_row_is_given_again(void **state)
{
    (void)state;
    stage stages[] = {{.name = "dies with it", .boot = 1, .answers = true, .dies_after = WIRE_submit},
                      {.name = "dies again", .boot = 2, .answers = true, .dies_after = WIRE_submit},
                      {.name = "lives", .boot = 3, .answers = true, .dies_after = WIRE_KIND_COUNT}};
    perform(stages, 3, CLIENT_RESUBMIT_US);
    assert_int_equal(stages[2].submits, 1);
}

/* One that lives forgets the row, or its answer is lost: it is asked again after a while. */
static void test_a_lost_answer_is_asked_for(void **state)
{
    (void)state;
    stage stages[] = {{.name = "forgets", .boot = 1, .answers = true, .dies_after = WIRE_KIND_COUNT, .forgets = 2}};
    perform(stages, 1, CLOCK_SECOND_US);
    assert_int_equal(stages[0].submits, 3);
}

/* An orchestrator in a thread of its own: client_ask does not return meanwhile. */
typedef struct mute {
    bus *b;
    int heard, answers_from; /* the first of so many queries that it answers; 0: none */
    atomic_bool stop;
} mute;

static void *mute_main(void *arg)
{
    mute *m = arg;
    while (!atomic_load(&m->stop)) {
        char peer[BUS_ID_BYTES], *text = NULL;
        size_t bytes;
        wire_msg msg = {0};
        stage stages[] = {{.boot = 7}};
        play p = {.b = m->b, .stages = stages};
        poll(NULL, 0, 1);
        if (bus_recv(m->b, peer, &text, &bytes) != CF_OK)
            continue;
        assert_ok(wire_parse(text, bytes, WIRE_CLIENT_BUS, &msg));
        if (++m->heard >= m->answers_from && m->answers_from > 0)
            send_status(&p, peer, wire_u64(&msg, "nonce"));
        wire_done(&msg);
        mem_free(text);
    }
    return NULL;
}

/* A lost request, or a lost answer, is asked for again; one that is deaf is named as what it is. */
static void test_a_lost_request_is_sent_again(void **state)
{
    (void)state;
    char endpoint[300];
    client *c;
    pthread_t thread;
    wire_msg status = {0};
    mute m = {.answers_from = 2};
    const char *run_dir = test_temp_dir();
    snprintf(endpoint, sizeof endpoint, "ipc://%s/" RUN_BUS_SOCKET, run_dir);
    assert_ok(bus_bind(endpoint, &m.b));
    assert_int_equal(pthread_create(&thread, NULL, mute_main, &m), 0);
    assert_ok(client_open(run_dir, &c));
    assert_ok(client_status(c, &status));
    assert_int_equal(wire_u64(&status, "boot"), 7);
    wire_done(&status);
    atomic_store(&m.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(m.heard, 2);
    json *query = wire_new(WIRE_query);
    json_put_u64(query, "nonce", 1);
    assert_err(CF_ERR_TIMEOUT, "the orchestrator has not answered with \"status\"",
               client_ask(c, query, WIRE_status, clock_now_us() + CLOCK_SECOND_US / 10, &status));
    client_close(c);
    bus_close(m.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_given_to_a_nameless_orchestrator),
        cmocka_unit_test(test_waits_for_the_number),
        cmocka_unit_test(test_a_row_is_given_again),
        cmocka_unit_test(test_a_lost_answer_is_asked_for),
        cmocka_unit_test(test_a_lost_request_is_sent_again),
    };
    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
