/*
 * client.c - requests over one DEALER. One thread; also looks after a private farm's children while it waits.
 * Fails: CF_ERR_TIMEOUT, CF_ERR_CANCELLED, what spawn_progress says, what the bus says.
 */
#define _GNU_SOURCE
#include "tools/client.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/transport/bus.h"

#define SIGN_OF_LIFE_US (CLOCK_SECOND_US / 2)
#define BUSY_RETRY_US   (CLOCK_SECOND_US / 5)

struct client {
    bus *b;      /* owned */
    spawn *farm; /* borrowed */
    uint64_t nonce;
};

typedef enum row_state { ROW_WAITING, ROW_SENT, ROW_ENDED } row_state;

typedef struct client_job {
    client *c;
    const client_row *rows;
    size_t count, left;
    bool wait_when_busy;
    const client_handler *handler;
    row_state *states;  /* owned */
    uint64_t *retry_us; /* owned; when a waiting row may be submitted */
    uint64_t boot, heard_us, asked_us;
} client_job;

bool client_farm_runs(const char *run_dir)
{
    char path[IO_PATH_BYTES];
    if (io_join(path, sizeof path, run_dir, RUN_LOCK) != CF_OK)
        return false;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    const bool runs = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    io_close(&fd);
    return runs;
}

cf_err client_open(const char *run_dir, client **ret_client)
{
    cf_err err;
    char endpoint[IO_PATH_BYTES + 32], id[BUS_ID_BYTES];
    client *c = NULL;
    TRY(mem_alloc(1, sizeof *c, &c));
    snprintf(endpoint, sizeof endpoint, "ipc://%s/" RUN_BUS_SOCKET, run_dir);
    snprintf(id, sizeof id, "client.%ld.%" PRIu64, (long)getpid(), clock_now_us());
    TRY(bus_connect(endpoint, id, &c->b));
    *ret_client = c;
    c = NULL;
out:
    client_close(c);
    return err;
}

void client_close(client *c)
{
    if (!c)
        return;
    bus_close(c->b);
    mem_free(c);
}

void client_supervise(client *c, spawn *farm)
{
    c->farm = farm;
}

/* Waits for a message, looking after the farm meanwhile. CF_ERR_TIMEOUT at the deadline. */
static cf_err wait_message(client *c, uint64_t deadline_us, wire_msg *ret_msg)
{
    for (;;) {
        char peer[BUS_ID_BYTES];
        char *text = NULL;
        size_t bytes;
        cf_err err = bus_recv(c->b, peer, &text, &bytes);
        if (err == CF_OK) {
            err = wire_parse(text, bytes, WIRE_ORCH_CLIENT, ret_msg);
            mem_free(text);
            return err;
        }
        if (err != CF_ERR_TIMEOUT || clock_now_us() >= deadline_us)
            return err;
        struct pollfd fds[SPAWN_CHILDREN_MAX];
        const size_t n = c->farm ? spawn_fds(c->farm, fds) : 0;
        const uint64_t restart_us = c->farm ? spawn_deadline_us(c->farm) : UINT64_MAX;
        int ready;
        err = bus_poll(c->b, fds, n, restart_us < deadline_us ? restart_us : deadline_us, &ready);
        if (err == CF_OK && c->farm)
            err = spawn_progress(c->farm, clock_now_us());
        if (err != CF_OK)
            return err;
    }
}

static json *query_message(client *c)
{
    json *m = wire_new(WIRE_query);
    json_put_u64(m, "nonce", ++c->nonce);
    return m;
}

cf_err client_ask(client *c, json *request, wire_kind answer, uint64_t deadline_us, wire_msg *ret_answer)
{
    cf_err err;
    char *text = NULL;
    /* Kept as text, so that the request can be sent again until a connection takes it. */
    TRY(json_print(request, false, &text));
    for (;;) {
        json *again = NULL;
        TRY(json_parse(text, strlen(text), 8, &again));
        err = bus_send(c->b, NULL, again);
        if (err != CF_ERR_BUSY)
            break;
        if (clock_now_us() >= deadline_us)
            FAIL(CF_ERR_TIMEOUT, "no orchestrator takes the request");
        wire_msg none = {0};
        err = wait_message(c, clock_now_us() + 5000, &none);
        wire_done(&none);
        if (err != CF_OK && err != CF_ERR_TIMEOUT)
            goto out;
    }
    while (err == CF_OK) {
        TRY(wait_message(c, deadline_us, ret_answer));
        if (ret_answer->kind == answer)
            break;
        wire_done(ret_answer);
    }
out:
    json_close(request);
    mem_free(text);
    return err;
}

/* ---- rows ---- */

static json *submit_message(const client_row *r)
{
    json *m = wire_new(WIRE_submit);
    json_put_str(m, "id", r->id);
    json_put_str(m, "text", r->text);
    if (r->voice)
        json_put_str(m, "voice", r->voice);
    json_put_str(m, "mode", r->mode);
    if (r->instruct)
        json_put_str(m, "instruct", r->instruct);
    json_put_u64(m, "seed", r->seed);
    json_put_f64(m, "speed", r->speed);
    json_put_bool(m, "raw", r->raw);
    json_put_str(m, "path", r->path);
    json_put_str(m, "format", r->format);
    json_put_u64(m, "priority", (uint64_t)r->priority);
    return m;
}

static cf_err submit_due(client_job *j, uint64_t now_us)
{
    for (size_t i = 0; i < j->count; i++) {
        if (j->states[i] != ROW_WAITING || now_us < j->retry_us[i])
            continue;
        const cf_err err = bus_send(j->c->b, NULL, submit_message(&j->rows[i]));
        if (err == CF_ERR_BUSY)
            return CF_OK; /* not connected yet: the next tick tries again */
        if (err != CF_OK)
            return err;
        j->states[i] = ROW_SENT;
    }
    return CF_OK;
}

static void on_done(client_job *j, const wire_msg *msg)
{
    for (size_t i = 0; i < j->count; i++) {
        if (j->states[i] != ROW_SENT || strcmp(j->rows[i].id, wire_str(msg, "id")) != 0)
            continue;
        const char *code = "";
        const cf_err read = wire_has(msg, "error") ? json_get_str(wire_json(msg, "error"), "code", 31, &code) : CF_OK;
        if (read == CF_OK && j->wait_when_busy && strcmp(wire_str(msg, "status"), "refused") == 0 &&
            strcmp(code, err_name(CF_ERR_BUSY)) == 0) {
            j->states[i] = ROW_WAITING;
            j->retry_us[i] = clock_now_us() + BUSY_RETRY_US;
            return;
        }
        j->states[i] = ROW_ENDED;
        j->left--;
        j->handler->ended(j->handler->ctx, i, msg);
        return;
    }
}

/* Another orchestrator than the one that took our rows: it knows nothing of them. */
static void on_boot(client_job *j, uint64_t boot)
{
    if (j->boot != 0 && j->boot != boot)
        for (size_t i = 0; i < j->count; i++)
            if (j->states[i] == ROW_SENT) {
                j->states[i] = ROW_WAITING;
                j->retry_us[i] = 0;
            }
    j->boot = boot;
}

static cf_err one_turn(client_job *j, uint64_t silence_us)
{
    cf_err err;
    wire_msg msg = {0};
    uint64_t now_us = clock_now_us();
    client_stop stop = CLIENT_GO_ON;
    TRY(submit_due(j, now_us));
    if (now_us - j->asked_us >= SIGN_OF_LIFE_US) {
        err = bus_send(j->c->b, NULL, query_message(j->c));
        if (err != CF_OK && err != CF_ERR_BUSY)
            goto out;
        j->asked_us = now_us;
        stop = j->handler->tick(j->handler->ctx, NULL);
    }
    const bool connecting = j->boot == 0;
    err = wait_message(j->c, now_us + (connecting ? 10000 : BUSY_RETRY_US), &msg);
    now_us = clock_now_us();
    if (err == CF_OK) {
        j->heard_us = now_us;
        if (msg.kind == WIRE_status || msg.kind == WIRE_accepted)
            on_boot(j, wire_u64(&msg, "boot"));
        if (msg.kind == WIRE_done)
            on_done(j, &msg);
        if (msg.kind == WIRE_status)
            stop = j->handler->tick(j->handler->ctx, &msg);
    } else if (err == CF_ERR_TIMEOUT) {
        err = CF_OK;
        if (now_us - j->heard_us > silence_us)
            FAIL(CF_ERR_TIMEOUT, "no orchestrator has answered for %llu s",
                 (unsigned long long)(silence_us / CLOCK_SECOND_US));
    }
    if (err == CF_OK && stop == CLIENT_STOP)
        err = err_set(CF_ERR_CANCELLED, "interrupted");
out:
    wire_done(&msg);
    return err;
}

cf_err client_run(client *c, const client_row *rows, size_t count, bool wait_when_busy, uint64_t silence_us,
                  const client_handler *handler)
{
    cf_err err;
    client_job j = {.c = c,
                    .rows = rows,
                    .count = count,
                    .left = count,
                    .wait_when_busy = wait_when_busy,
                    .handler = handler,
                    .heard_us = clock_now_us()};
    TRY(mem_alloc(count, sizeof *j.states, &j.states));
    TRY(mem_alloc(count, sizeof *j.retry_us, &j.retry_us));
    while (j.left > 0)
        TRY(one_turn(&j, silence_us));
out:
    mem_free(j.states);
    mem_free(j.retry_us);
    return err;
}
