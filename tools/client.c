/*
 * client.c - requests over one DEALER. One thread; also looks after a private farm's children while it waits.
 * Fails: CF_ERR_TIMEOUT, CF_ERR_CANCELLED, what spawn_progress says, what the bus says.
 */
#define _GNU_SOURCE
#include "tools/client.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
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
#define CONNECTING_US   10000
#define STATUS_US       (10 * CLOCK_SECOND_US) /* an orchestrator that answers at all has long answered */
#define ASK_AGAIN_US    (2 * CLOCK_SECOND_US)  /* a request or its answer may be lost where memory runs out */

struct client {
    bus *b;      /* owned */
    spawn *farm; /* borrowed */
    uint64_t nonce, resubmit_us, unserved_us;
};

typedef enum flight_state { FLIGHT_FREE, FLIGHT_WAITING, FLIGHT_SENT } flight_state;

/* One row between the source and its end. */
typedef struct flight {
    flight_state state;
    client_row row;    /* its strings lie in `strings` */
    char *strings;     /* owned */
    uint64_t retry_us; /* when it may be submitted; SENT: again, because its answer may be lost */
} flight;

typedef struct client_job {
    client *c;
    const client_plan *plan;
    flight *flights; /* owned, plan->in_flight_max of them */
    size_t in_flight;
    bool exhausted, draining, full; /* full: the farm refused a row as busy; pull no more until one ends */
    uint64_t boot, heard_us, asked_us, source_us, drain_by_us;
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
    c->resubmit_us = CLIENT_RESUBMIT_US;
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

void client_resubmit_after(client *c, uint64_t resubmit_us)
{
    c->resubmit_us = resubmit_us;
}

void client_supervise(client *c, spawn *farm, uint64_t unserved_us)
{
    c->farm = farm;
    c->unserved_us = unserved_us;
}

static cf_err look_after(client *c)
{
    cf_err err;
    TRY(spawn_progress(c->farm, clock_now_us()));
    TRY(spawn_check_served(c->farm, clock_now_us(), c->unserved_us));
out:
    return err;
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
            if (err == CF_OK && c->farm)
                spawn_hear(c->farm, ret_msg);
            return err;
        }
        if (err != CF_ERR_TIMEOUT || clock_now_us() >= deadline_us)
            return err;
        struct pollfd fds[SPAWN_FDS_MAX];
        const size_t n = c->farm ? spawn_fds(c->farm, fds) : 0;
        const uint64_t restart_us = c->farm ? spawn_deadline_us(c->farm) : UINT64_MAX;
        int ready;
        err = bus_poll(c->b, fds, n, restart_us < deadline_us ? restart_us : deadline_us, &ready);
        if (err == CF_OK && c->farm)
            err = look_after(c);
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

cf_err client_wait(client *c, wire_kind kind, uint64_t deadline_us, wire_msg *ret_msg)
{
    for (;;) {
        const cf_err err = wait_message(c, deadline_us, ret_msg);
        if (err != CF_OK || ret_msg->kind == kind)
            return err;
        wire_done(ret_msg);
    }
}

/* Until a connection takes it. */
static cf_err send_request(client *c, const char *text, uint64_t deadline_us)
{
    cf_err err;
    for (;;) {
        json *again = NULL;
        TRY(json_parse(text, strlen(text), 8, &again));
        err = bus_send(c->b, NULL, again);
        if (err != CF_ERR_BUSY)
            return err;
        if (clock_now_us() >= deadline_us)
            FAIL(CF_ERR_TIMEOUT, "no orchestrator takes the request");
        wire_msg none = {0};
        err = wait_message(c, clock_now_us() + 5000, &none);
        wire_done(&none);
        if (err != CF_OK && err != CF_ERR_TIMEOUT)
            goto out;
    }
out:
    return err;
}

cf_err client_ask(client *c, json *request, wire_kind answer, uint64_t deadline_us, wire_msg *ret_answer)
{
    cf_err err;
    char *text = NULL;
    TRY(json_print(request, false, &text)); /* as text it can be sent again */
    do {
        TRY(send_request(c, text, deadline_us));
        const uint64_t again_us = clock_now_us() + ASK_AGAIN_US;
        err = client_wait(c, answer, again_us < deadline_us ? again_us : deadline_us, ret_answer);
    } while (err == CF_ERR_TIMEOUT && clock_now_us() < deadline_us);
    if (err == CF_ERR_TIMEOUT)
        err = err_set(err, "the orchestrator has not answered with \"%s\"", wire_kind_name(answer));
out:
    json_close(request);
    mem_free(text);
    return err;
}

cf_err client_status(client *c, wire_msg *ret_status)
{
    return client_ask(c, query_message(c), WIRE_status, clock_now_us() + STATUS_US, ret_status);
}

cf_err client_check_model(client *c, const char *wanted_dir)
{
    cf_err err;
    wire_msg status = {0};
    static char wanted[PATH_MAX]; /* one thread; realpath wants this much */
    const char *running;
    TRY(client_status(c, &status));
    TRY(json_get_str(wire_json(&status, "config"), "model", IO_PATH_BYTES, &running));
    if (wanted_dir && (!realpath(wanted_dir, wanted) || strcmp(wanted, running) != 0))
        err = err_set(CF_ERR_MISMATCH,
                      "the running farm serves %s, not %s; end it (cosyfarm down) or use another run directory",
                      running, wanted_dir);
out:
    wire_done(&status);
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
    if (r->prompt_wav)
        json_put_str(m, "prompt_wav", r->prompt_wav);
    if (r->prompt_text)
        json_put_str(m, "prompt_text", r->prompt_text);
    if (r->source_wav)
        json_put_str(m, "source_wav", r->source_wav);
    json_put_str(m, "mode", r->mode);
    if (r->instruct)
        json_put_str(m, "instruct", r->instruct);
    json_put_u64(m, "seed", r->seed);
    json_put_f64(m, "speed", r->speed);
    json_put_bool(m, "raw", r->raw);
    json_put_str(m, "path", r->path);
    json_put_str(m, "format", r->format);
    json_put_u64(m, "priority", (uint64_t)r->priority);
    json_put_u64(m, "deadline_ms", r->deadline_ms);
    if (r->impatient)
        json_put_bool(m, "patient", false);
    return m;
}

/* A copy of the row whose strings live as long as the flight. */
static cf_err board(flight *f, const client_row *row)
{
    cf_err err;
    const char *const from[] = {row->id,   row->text,   row->voice,      row->mode,        row->instruct,
                                row->path, row->format, row->prompt_wav, row->prompt_text, row->source_wav};
    const char **const to[] = {&f->row.id,          &f->row.text,      &f->row.voice,  &f->row.mode,
                               &f->row.instruct,    &f->row.path,      &f->row.format, &f->row.prompt_wav,
                               &f->row.prompt_text, &f->row.source_wav};
    size_t bytes = 0, at = 0;
    for (size_t i = 0; i < CF_COUNT(from); i++)
        bytes += from[i] ? strlen(from[i]) + 1 : 0;
    TRY(mem_alloc(bytes, 1, &f->strings));
    f->row = *row;
    for (size_t i = 0; i < CF_COUNT(from); i++) {
        if (!from[i])
            continue;
        *to[i] = f->strings + at;
        memcpy(f->strings + at, from[i], strlen(from[i]) + 1);
        at += strlen(from[i]) + 1;
    }
    f->state = FLIGHT_WAITING;
    f->retry_us = 0;
out:
    return err;
}

static void leave(client_job *j, flight *f)
{
    mem_free(f->strings);
    *f = (flight){0};
    j->in_flight--;
    j->full = false;
}

/* Fills free flights from the source. */
static cf_err pull(client_job *j, uint64_t now_us)
{
    cf_err err = CF_OK;
    const client_plan *p = j->plan;
    for (size_t i = 0; i < p->in_flight_max && !j->exhausted && !j->draining && !j->full; i++) {
        client_row row = {0};
        client_next next = CLIENT_ROW;
        if (j->flights[i].state != FLIGHT_FREE)
            continue;
        if (now_us < j->source_us)
            break;
        TRY(p->next(p->ctx, &row, &next));
        if (next == CLIENT_LATER) {
            j->source_us = now_us + (j->in_flight == 0 ? CONNECTING_US : BUSY_RETRY_US);
            break;
        }
        j->exhausted = next == CLIENT_END;
        if (j->exhausted)
            break;
        TRY(board(&j->flights[i], &row));
        j->in_flight++;
    }
out:
    return err;
}

/* The row does not fit a message: it ends here, as the farm would have ended it, and the others go on. */
static cf_err end_unsent(client_job *j, flight *f)
{
    cf_err err;
    char why[512], *text = NULL;
    wire_msg done = {0};
    json *m = wire_new(WIRE_done), *error = json_object();
    static const char *const none[] = {"bytes", "samples", "attempts", "segments", "tokens"};
    snprintf(why, sizeof why, "%s", err_text());
    json_put_str(m, "id", f->row.id);
    json_put_str(m, "status", "failed");
    json_put_str(m, "file", "");
    json_put_str(m, "sha256", "");
    json_put_u64(m, "seed", f->row.seed);
    json_put_f64(m, "seconds", 0);
    for (size_t i = 0; i < CF_COUNT(none); i++)
        json_put_u64(m, none[i], 0);
    json_put(m, "flags", json_array());
    json_put(m, "ms", json_object());
    json_put_str(error, "code", err_name(CF_ERR_LIMIT));
    json_put_str(error, "stage", "client");
    json_put_text(error, "text", why);
    json_put(m, "error", error);
    TRY(json_print(m, false, &text));
    TRY(wire_parse(text, strlen(text), WIRE_ORCH_CLIENT, &done));
    TRY(j->plan->ended(j->plan->ctx, &f->row, &done));
    leave(j, f);
out:
    wire_done(&done);
    json_close(m);
    mem_free(text);
    return err;
}

/* Nothing is sent before the orchestrator has told its number: a row given to one that then dies could not be told from
 * a row given to its successor. */
static cf_err submit_due(client_job *j, uint64_t now_us)
{
    for (size_t i = 0; j->boot != 0 && i < j->plan->in_flight_max; i++) {
        flight *f = &j->flights[i];
        if (f->state == FLIGHT_FREE || now_us < f->retry_us)
            continue;
        cf_err err = bus_send(j->c->b, NULL, submit_message(&f->row));
        if (err == CF_ERR_BUSY)
            return CF_OK; /* not connected: the next turn tries again */
        if (err == CF_ERR_LIMIT) {
            err = end_unsent(j, f);
            if (err == CF_OK)
                continue;
        }
        if (err != CF_OK)
            return err;
        f->state = FLIGHT_SENT;
        f->retry_us = now_us + j->c->resubmit_us;
    }
    return CF_OK;
}

static bool refused_as_busy(const wire_msg *done)
{
    const char *code = "";
    return strcmp(wire_str(done, "status"), "refused") == 0 && wire_has(done, "error") &&
           json_get_str(wire_json(done, "error"), "code", 31, &code) == CF_OK &&
           strcmp(code, err_name(CF_ERR_BUSY)) == 0;
}

static cf_err on_done(client_job *j, const wire_msg *msg)
{
    for (size_t i = 0; i < j->plan->in_flight_max; i++) {
        flight *f = &j->flights[i];
        if (f->state != FLIGHT_SENT || strcmp(f->row.id, wire_str(msg, "id")) != 0)
            continue;
        if (j->plan->wait_when_busy && refused_as_busy(msg)) {
            f->state = FLIGHT_WAITING;
            f->retry_us = clock_now_us() + BUSY_RETRY_US;
            j->full = true;
            return CF_OK;
        }
        const cf_err err = j->plan->ended(j->plan->ctx, &f->row, msg);
        leave(j, f);
        return err;
    }
    return CF_OK; /* an answer given twice */
}

/* Another orchestrator than the one that took our rows: it knows what its journal kept. Asking again hurts nothing. */
static void on_boot(client_job *j, uint64_t boot)
{
    for (size_t i = 0; j->boot != boot && i < j->plan->in_flight_max; i++)
        if (j->flights[i].state == FLIGHT_SENT) {
            j->flights[i].state = FLIGHT_WAITING;
            j->flights[i].retry_us = 0;
        }
    j->boot = boot;
}

static cf_err on_message(client_job *j, const wire_msg *msg, client_stop *stop)
{
    if (msg->kind == WIRE_status || msg->kind == WIRE_accepted)
        on_boot(j, wire_u64(msg, "boot"));
    if (msg->kind == WIRE_status)
        *stop = j->plan->tick(j->plan->ctx, msg);
    return msg->kind == WIRE_done ? on_done(j, msg) : CF_OK;
}

/* Asks for a sign of life when it is time. */
static cf_err ask(client_job *j, uint64_t now_us)
{
    /* A source that waits for the farm is told soon. */
    const bool idle = j->in_flight == 0 && !j->exhausted;
    if (now_us - j->asked_us < (idle ? CONNECTING_US : SIGN_OF_LIFE_US))
        return CF_OK;
    const cf_err err = bus_send(j->c->b, NULL, query_message(j->c));
    if (err == CF_OK)
        j->asked_us = now_us;
    return err == CF_ERR_BUSY ? CF_OK : err; /* not connected: the next turn tries again */
}

static cf_err obey(client_job *j, client_stop stop, uint64_t now_us)
{
    if (stop == CLIENT_STOP)
        return err_set(CF_ERR_CANCELLED, "interrupted");
    if (stop == CLIENT_DRAIN && !j->draining) {
        j->draining = true;
        j->drain_by_us = now_us + j->plan->drain_us;
        for (size_t i = 0; i < j->plan->in_flight_max; i++)
            if (j->flights[i].state == FLIGHT_WAITING) {
                leave(j, &j->flights[i]);
                j->exhausted = false; /* this one is left */
            }
    }
    if (j->draining && j->in_flight > 0 && now_us >= j->drain_by_us)
        return err_set(CF_ERR_CANCELLED, "interrupted; %zu rows did not end within %llu s", j->in_flight,
                       (unsigned long long)(j->plan->drain_us / CLOCK_SECOND_US));
    return CF_OK;
}

static cf_err one_turn(client_job *j)
{
    cf_err err;
    wire_msg msg = {0};
    uint64_t now_us = clock_now_us();
    client_stop stop = CLIENT_GO_ON;
    TRY(pull(j, now_us));
    TRY(ask(j, now_us));
    TRY(submit_due(j, now_us));
    stop = j->plan->tick(j->plan->ctx, NULL);
    if (stop == CLIENT_GO_ON && (j->in_flight > 0 || !j->exhausted)) {
        err = wait_message(j->c, now_us + (j->in_flight == 0 ? CONNECTING_US : BUSY_RETRY_US), &msg);
        now_us = clock_now_us();
        if (err == CF_OK) {
            j->heard_us = now_us;
            TRY(on_message(j, &msg, &stop));
        } else if (err == CF_ERR_TIMEOUT && now_us - j->heard_us > j->plan->silence_us) {
            FAIL(CF_ERR_TIMEOUT, "no orchestrator has answered for %llu s",
                 (unsigned long long)(j->plan->silence_us / CLOCK_SECOND_US));
        } else if (err != CF_ERR_TIMEOUT) {
            goto out;
        }
    }
    err = obey(j, stop, now_us);
out:
    wire_done(&msg);
    return err;
}

cf_err client_run(client *c, const client_plan *plan)
{
    cf_err err;
    client_job j = {.c = c, .plan = plan, .heard_us = clock_now_us()};
    TRY(mem_alloc(plan->in_flight_max, sizeof *j.flights, &j.flights));
    while (j.in_flight > 0 || !(j.exhausted || j.draining))
        TRY(one_turn(&j));
    if (!j.exhausted)
        err = err_set(CF_ERR_CANCELLED, "interrupted");
out:
    for (size_t i = 0; j.flights && i < plan->in_flight_max; i++)
        mem_free(j.flights[i].strings);
    mem_free(j.flights);
    return err;
}

/* ---- a list of rows ---- */

typedef struct row_list {
    const client_row *rows;
    size_t count, at;
    const client_handler *handler;
} row_list;

static cf_err next_of_list(void *ctx, client_row *ret_row, client_next *ret_next)
{
    row_list *l = ctx;
    *ret_next = l->at == l->count ? CLIENT_END : CLIENT_ROW;
    if (l->at == l->count)
        return CF_OK;
    *ret_row = l->rows[l->at];
    ret_row->tag = l->at++;
    return CF_OK;
}

static cf_err list_ended(void *ctx, const client_row *row, const wire_msg *done)
{
    const row_list *l = ctx;
    l->handler->ended(l->handler->ctx, (size_t)row->tag, done);
    return CF_OK;
}

static client_stop list_tick(void *ctx, const wire_msg *status)
{
    const row_list *l = ctx;
    return l->handler->tick(l->handler->ctx, status);
}

cf_err client_run_list(client *c, const client_row *rows, size_t count, bool wait_when_busy, uint64_t silence_us,
                       const client_handler *handler)
{
    row_list list = {.rows = rows, .count = count, .handler = handler};
    const client_plan plan = {.ctx = &list,
                              .next = next_of_list,
                              .ended = list_ended,
                              .tick = list_tick,
                              .in_flight_max = count < CLIENT_ROWS_MAX ? count : CLIENT_ROWS_MAX,
                              .wait_when_busy = wait_when_busy,
                              .silence_us = silence_us};
    return client_run(c, &plan);
}
