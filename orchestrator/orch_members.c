/*
 * orch_members.c - who is alive: lifelines, generations, admission, exchange memory. Part of the shell, its one thread.
 *
 *   accept -> HELLO -> WELCOME(gen, configuration) ... JOIN(model hash) -> [keeper: ALLOC -> MEMORY] ->
 *   ADMIT(+descriptor)
 *          -> bus: HERE -> core: JOINED.   End of file or pidfd: LOST.
 *
 * A worker of another model than its stage's first member, or another build, is refused with "mismatch" and exits 78.
 * A generation is given once; whatever names another one is dropped and counted.
 * Fails: nothing is returned to the loop but errors of accept; a connection that misbehaves is closed and logged.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/stage_tables.h"
#include "common/transport/lifeline.h"
#include "orchestrator/orch.h"

_Static_assert(SLOT_ALIGN_BYTES == OUTBOX_ALIGN, "slots must start where views may");
_Static_assert(CORE_STAGES == (int)MODEL_STAGE_COUNT && CORE_HIFT == (int)MODEL_HIFT, "the core's stages, by name");

cf_err members_accept(orch *o)
{
    for (;;) {
        int fd = -1;
        pid_t pid;
        const cf_err err = lifeline_accept(o->listen_fd, &fd, &pid);
        if (err != CF_OK)
            return err == CF_ERR_TIMEOUT ? CF_OK : err;
        int at = 0;
        while (at < CONNS_MAX && o->conns[at].state != CONN_FREE)
            at++;
        if (at == CONNS_MAX) {
            log_warn("member.full", "pid=%ld limit=%d", (long)pid, CONNS_MAX);
            io_close(&fd);
            continue;
        }
        const uint64_t now_us = clock_now_us();
        o->conns[at] = (conn){.state = CONN_NEW, .fd = fd, .pid_fd = -1, .pid = pid, .stage = -1, .since_us = now_us};
        health_begin(&o->conns[at].alive, now_us);
        if (io_pidfd_open(pid, &o->conns[at].pid_fd) != CF_OK)
            members_lose(o, at, err_text());
    }
}

/* Whose line is full does not read it: it hangs. */
static void send_to(orch *o, int conn_idx, json *msg, const int *fds, size_t count)
{
    const cf_err err = lifeline_send(o->conns[conn_idx].fd, msg, fds, count);
    if (err == CF_ERR_BUSY && o->conns[conn_idx].state != CONN_SUPERVISOR)
        members_end_process(o, conn_idx, err_text());
    else if (err != CF_OK)
        members_lose(o, conn_idx, err_text());
}

static void refuse(orch *o, int conn_idx, cf_err code, const char *text)
{
    log_error("member.refused", "role=%s instance=%d pid=%ld code=%s text=\"%s\"", o->conns[conn_idx].role,
              o->conns[conn_idx].instance, (long)o->conns[conn_idx].pid, err_name(code), text);
    json *m = wire_new(WIRE_refuse);
    json_put_str(m, "code", err_name(code));
    json_put_text(m, "text", text);
    send_to(o, conn_idx, m, NULL, 0);
    members_lose(o, conn_idx, "refused");
}

/* ---- exchange memory ---- */

box_entry *members_find_box(orch *o, uint32_t outbox_id)
{
    for (int i = 0; i < BOX_TABLE_MAX; i++)
        if (outbox_id != 0 && o->boxes[i].outbox_id == outbox_id)
            return &o->boxes[i];
    return NULL;
}

int members_in_state(const orch *o, conn_state state)
{
    for (int i = 0; i < CONNS_MAX; i++)
        if (o->conns[i].state == state)
            return i;
    return -1;
}

/* The device of the memory, and those whose workers will read it. */
static void put_device(const orch *o, json *m, const box_entry *box)
{
    int32_t readers[DEVICES_MAX];
    size_t count = 0;
    char text[DEVICE_TEXT_BYTES];
    int device;
    const char *list = config_device_list(&o->cfg, model_stage_name(MODEL_HIFT));
    for (int i = 0; i < device_list_count(list) && count < DEVICES_MAX; i++)
        if (device_of_instance(list, i, text, &device) == CF_OK)
            readers[count++] = device;
    json_put_u64(m, "device", (uint64_t)box->device);
    json_put_i32s(m, "readers", readers, count);
}

/* Mel stays on the device of its writer when every hift runs on some device too. Samples are read by the orchestrator,
 * which knows no devices. */
static int device_of_box(const orch *o, const conn *c)
{
    char text[DEVICE_TEXT_BYTES];
    int device, reader;
    const char *readers = config_device_list(&o->cfg, model_stage_name(MODEL_HIFT));
    if (c->stage != CORE_FLOW ||
        device_of_instance(config_device_list(&o->cfg, model_stage_name(MODEL_FLOW)), c->instance, text, &device) !=
            CF_OK ||
        device == DEVICE_CPU || o->host_memory[device])
        return DEVICE_CPU;
    for (int i = 0; i < device_list_count(readers); i++)
        if (device_of_instance(readers, i, text, &reader) != CF_OK || reader == DEVICE_CPU)
            return DEVICE_CPU;
    return device;
}

/* Said once a device: from now on its workers exchange through host memory. */
static void use_host_memory(orch *o, int device, const char *why)
{
    if (device == DEVICE_CPU || o->host_memory[device])
        return;
    o->host_memory[device] = true;
    log_warn("exchange.host",
             "device=cuda:%d text=\"device memory cannot be shared between processes here, exchange memory is a memfd: "
             "%s\"",
             device, why);
}

/* Asks the keeper for every box that is still missing; repeated when a keeper (re)joins. */
static void ask_keeper(orch *o)
{
    const int keeper = members_in_state(o, CONN_KEEPER);
    for (int i = 0; i < BOX_TABLE_MAX && keeper >= 0 && o->conns[keeper].state == CONN_KEEPER; i++) {
        box_entry *box = &o->boxes[i];
        if (box->outbox_id == 0 || box->read_fd >= 0 || box->asked_us != 0)
            continue;
        box->asked_us = clock_now_us();
        json *m = wire_new(WIRE_alloc);
        json_put_u64(m, "outbox", box->outbox_id);
        json_put_u64(m, "bytes", box->bytes);
        if (box->device != DEVICE_CPU)
            put_device(o, m, box);
        send_to(o, keeper, m, NULL, 0);
    }
}

static void close_box(box_entry *box)
{
    outbox_close(box->map);
    io_close(&box->write_fd);
    io_close(&box->read_fd);
    *box = (box_entry){.write_fd = -1, .read_fd = -1};
}

void members_release_box(orch *o, uint32_t outbox_id)
{
    box_entry *box = members_find_box(o, outbox_id);
    if (!box)
        return;
    for (int i = 0; i < CONNS_MAX; i++) {
        const conn *c = &o->conns[i];
        const bool reader = box->stage == CORE_FLOW && c->state == CONN_SERVING && c->stage == CORE_HIFT;
        if (!reader && c->state != CONN_KEEPER)
            continue;
        json *m = wire_new(c->state == CONN_KEEPER ? WIRE_release : WIRE_revoke);
        json_put_u64(m, "outbox", outbox_id);
        send_to(o, i, m, NULL, 0);
    }
    close_box(box);
}

static void grant(orch *o, int conn_idx, const box_entry *box)
{
    json *m = wire_new(WIRE_grant);
    json_put_u64(m, "outbox", box->outbox_id);
    json_put_u64(m, "bytes", box->bytes);
    if (box->handle[0])
        json_put_str(m, "handle", box->handle);
    send_to(o, conn_idx, m, &box->read_fd, 1);
}

static void admit(orch *o, int conn_idx, const box_entry *box)
{
    conn *c = &o->conns[conn_idx];
    snprintf(c->routing_id, sizeof c->routing_id, "%s.%d.%" PRIu64, model_stage_name(c->stage), c->instance, c->gen);
    c->state = CONN_ADMITTED;
    c->since_us = clock_now_us();
    json *m = wire_new(WIRE_admit);
    json_put_u64(m, "gen", c->gen);
    json_put_str(m, "endpoint", o->endpoint);
    json_put_u64(m, "outbox", box ? box->outbox_id : 0);
    json_put_u64(m, "bytes", box ? box->bytes : 0);
    if (box && box->handle[0])
        json_put_str(m, "handle", box->handle);
    send_to(o, conn_idx, m, !box ? NULL : box->handle[0] ? &box->read_fd : &box->write_fd, box ? 1 : 0);
}

static void on_memory(orch *o, const wire_msg *msg, int fds[LIFELINE_FDS_MAX])
{
    box_entry *box = members_find_box(o, (uint32_t)wire_u64(msg, "outbox"));
    if (!box || box->read_fd >= 0)
        return; /* its worker has died meanwhile */
    const int conn_idx = box->conn_idx;
    if (wire_has(msg, "fallback"))
        use_host_memory(o, box->device, wire_str(msg, "fallback"));
    const bool on_device = wire_has(msg, "handle");
    if (wire_str(msg, "error")[0] || fds[0] < 0 || (!on_device && fds[1] < 0)) {
        log_error("exchange.failed", "outbox=%u text=\"%s\"", box->outbox_id, wire_str(msg, "error"));
        close_box(box);
        o->conns[conn_idx].outbox_id = 0;
        refuse(o, conn_idx, CF_ERR_NOMEM, "no exchange memory");
        return;
    }
    snprintf(box->handle, sizeof box->handle, "%s", on_device ? wire_str(msg, "handle") : "");
    box->write_fd = on_device ? -1 : fds[0];
    box->read_fd = on_device ? fds[0] : fds[1];
    fds[0] = -1;
    if (!on_device)
        fds[1] = -1;
    if (box->stage == CORE_HIFT) {
        const outbox_grant g = {.outbox_id = box->outbox_id, .bytes = box->bytes, .fd = box->read_fd};
        if (outbox_open(&g, OUTBOX_READ, &box->map) != CF_OK) {
            refuse(o, conn_idx, CF_ERR_NOMEM, err_text());
            return;
        }
    }
    admit(o, conn_idx, box);
}

static void want_box(orch *o, int conn_idx)
{
    for (int i = 0; i < BOX_TABLE_MAX; i++) {
        box_entry *box = &o->boxes[i];
        if (box->outbox_id != 0)
            continue;
        *box = (box_entry){.outbox_id = ++o->next_outbox,
                           .bytes = (uint64_t)o->cfg.outbox_mib << 20,
                           .write_fd = -1,
                           .read_fd = -1,
                           .device = device_of_box(o, &o->conns[conn_idx]),
                           .conn_idx = conn_idx,
                           .stage = o->conns[conn_idx].stage};
        o->conns[conn_idx].outbox_id = box->outbox_id;
        ask_keeper(o);
        return;
    }
    refuse(o, conn_idx, CF_ERR_LIMIT, "too many outboxes");
}

/* ---- lifeline messages ---- */

/* How a supervisor treats a worker's death depends on it. */
static void tell_served(orch *o, const conn *c)
{
    const int supervisor = members_in_state(o, CONN_SUPERVISOR);
    if (supervisor < 0)
        return;
    json *m = wire_new(WIRE_served);
    json_put_str(m, "stage", model_stage_name(c->stage));
    json_put_u64(m, "instance", (uint64_t)c->instance);
    json_put_u64(m, "pid", (uint64_t)c->pid);
    send_to(o, supervisor, m, NULL, 0);
}

/* Whom it starts and does not hear of hangs. */
static void tell_seen(orch *o, pid_t pid, bool here)
{
    const int supervisor = members_in_state(o, CONN_SUPERVISOR);
    if (supervisor < 0)
        return;
    json *m = wire_new(WIRE_seen);
    json_put_u64(m, "pid", (uint64_t)pid);
    json_put_bool(m, "here", here);
    send_to(o, supervisor, m, NULL, 0);
}

static bool is_staff(conn_state state)
{
    return state >= CONN_LOADING && state <= CONN_KEEPER;
}

static void on_hello(orch *o, int conn_idx, const wire_msg *msg)
{
    conn *c = &o->conns[conn_idx];
    snprintf(c->role, sizeof c->role, "%s", wire_str(msg, "role"));
    c->instance = (int)wire_u64(msg, "instance");
    for (int s = 0; s < CORE_STAGES; s++)
        if (strcmp(c->role, model_stage_name(s)) == 0)
            c->stage = s;
    const conn_state single = strcmp(c->role, "keeper") == 0       ? CONN_KEEPER
                              : strcmp(c->role, "supervisor") == 0 ? CONN_SUPERVISOR
                                                                   : CONN_FREE;
    if (c->stage < 0 && single == CONN_FREE) {
        refuse(o, conn_idx, CF_ERR_INVALID, "role is not llm, flow, hift, keeper or supervisor");
        return;
    }
    if (strcmp(wire_str(msg, "build"), CF_VERSION) != 0) {
        refuse(o, conn_idx, CF_ERR_MISMATCH, "another version of cosyfarm than the orchestrator's " CF_VERSION);
        return;
    }
    if (single != CONN_FREE && members_in_state(o, single) >= 0) {
        refuse(o, conn_idx, CF_ERR_BUSY,
               single == CONN_KEEPER ? "there is a keeper already" : "there is a supervisor already");
        return;
    }
    c->gen = ++o->next_gen;
    json *m = wire_new(WIRE_welcome);
    json_put_u64(m, "boot", o->boot);
    json_put_u64(m, "gen", c->gen);
    json_put(m, "config", config_to_json(&o->cfg));
    c->state = single != CONN_FREE ? single : CONN_LOADING;
    c->since_us = clock_now_us();
    health_begin(&c->alive, c->since_us);
    c->alive.has_jobs = c->state == CONN_LOADING; /* its model: a step that has load_s */
    const pid_t pid = c->pid;
    send_to(o, conn_idx, m, NULL, 0);
    if (single != CONN_SUPERVISOR)
        tell_seen(o, pid, c->state != CONN_FREE);
    if (single == CONN_KEEPER) {
        for (int i = 0; i < BOX_TABLE_MAX; i++)
            o->boxes[i].asked_us = 0;
        ask_keeper(o);
    }
    for (int i = 0; i < CONNS_MAX && single == CONN_SUPERVISOR; i++) {
        if (is_staff(o->conns[i].state))
            tell_seen(o, o->conns[i].pid, true);
        if (o->conns[i].state == CONN_SERVING)
            tell_served(o, &o->conns[i]);
    }
    if (single == CONN_SUPERVISOR)
        steer_tell_staff(o);
}

/* Whether two members can serve one farm; if not, why. */
static bool same_model(const conn *a, const conn *b, char *ret_why, size_t why_bytes)
{
    if (a->stage == b->stage && strcmp(a->model_sha256, b->model_sha256) != 0)
        snprintf(ret_why, why_bytes, "%s of %s/%d has SHA-256 %.16s, %s/%d already serves %.16s: a farm has one model",
                 a->model_file, a->role, a->instance, a->model_sha256, b->role, b->instance, b->model_sha256);
    else if (a->stage != CORE_HIFT && b->stage != CORE_HIFT && a->speech_codes != b->speech_codes)
        snprintf(ret_why, why_bytes, "%s of %s/%d has %d speech codes, %s of %s/%d has %d: a farm has one model",
                 a->model_file, a->role, a->instance, a->speech_codes, b->model_file, b->role, b->instance,
                 b->speech_codes);
    else
        return true;
    return false;
}

static void on_join(orch *o, int conn_idx, const wire_msg *msg)
{
    conn *c = &o->conns[conn_idx];
    int device;
    snprintf(c->model_file, sizeof c->model_file, "%s", wire_str(msg, "model_file"));
    snprintf(c->model_sha256, sizeof c->model_sha256, "%s", wire_str(msg, "model_sha256"));
    snprintf(c->backend, sizeof c->backend, "%s", wire_str(msg, "backend"));
    c->rows_max = (int)wire_u64(msg, "rows_max");
    c->frames_max = (int)wire_u64(msg, "frames_max");
    c->weights_bytes = wire_u64(msg, "weights_bytes");
    if (device_of_instance(config_device_list(&o->cfg, c->role), c->instance, c->device, &device) == CF_OK)
        c->device_bytes = device == DEVICE_CPU ? 0 : wire_u64(msg, "kept_bytes") + wire_u64(msg, "scratch_bytes");
    c->speech_codes = (int32_t)wire_u64(msg, "speech_codes");
    for (int i = 0; i < CONNS_MAX; i++) {
        const conn *other = &o->conns[i];
        char why[512];
        if (i != conn_idx && other->state >= CONN_JOINED && other->state <= CONN_SERVING &&
            !same_model(c, other, why, sizeof why)) {
            refuse(o, conn_idx, CF_ERR_MISMATCH, why);
            return;
        }
    }
    if (c->stage != CORE_HIFT)
        o->speech_codes = c->speech_codes;
    c->state = CONN_JOINED;
    health_begin(&c->alive, clock_now_us());
    if (c->stage != CORE_LLM && !orch_core_has_box(&o->core))
        refuse(o, conn_idx, CF_ERR_BUSY, "too many outboxes are still being read");
    else if (c->stage == CORE_LLM)
        admit(o, conn_idx, NULL);
    else
        want_box(o, conn_idx);
}

/* A worker that could not open device memory says why. The writer connects again then, and its next outbox is a memfd.
 * When it was only that the memory's owner has died, a writer sees that itself, and gives its jobs back first. */
static void on_opened(orch *o, int conn_idx, const wire_msg *msg)
{
    const uint32_t id = (uint32_t)wire_u64(msg, "outbox");
    const box_entry *box = members_find_box(o, id);
    if (!wire_has(msg, "code")) {
        orch_apply(o, &(core_event){.kind = CORE_OPENED, .member = conn_idx, .outbox_id = id});
        return;
    }
    if (!box || !box->handle[0]) {
        members_lose(o, conn_idx, wire_has(msg, "text") ? wire_str(msg, "text") : "could not open its outbox");
        return;
    }
    const bool gone = err_from_name(wire_str(msg, "code")) == CF_ERR_GONE;
    if (!gone)
        use_host_memory(o, box->device, wire_has(msg, "text") ? wire_str(msg, "text") : wire_str(msg, "code"));
    if (box->in_core)
        orch_apply(o, &(core_event){.kind = CORE_SPOILED, .outbox_id = id});
    box = members_find_box(o, id); /* the core may have released it */
    if (box && box->conn_idx >= 0 && (!gone || box->conn_idx == conn_idx))
        members_lose(o, box->conn_idx, "its outbox could not be opened");
}

static void on_lifeline_message(orch *o, int conn_idx, const wire_msg *msg, int fds[LIFELINE_FDS_MAX])
{
    conn *c = &o->conns[conn_idx];
    /* Permit table: which kind in which state. */
    if (msg->kind == WIRE_hello && c->state == CONN_NEW)
        on_hello(o, conn_idx, msg);
    else if (msg->kind == WIRE_join && c->state == CONN_LOADING && wire_u64(msg, "gen") == c->gen)
        on_join(o, conn_idx, msg);
    else if (msg->kind == WIRE_memory && c->state == CONN_KEEPER)
        on_memory(o, msg, fds);
    else if (msg->kind == WIRE_alive && c->state >= CONN_LOADING && c->state <= CONN_ADMITTED &&
             wire_u64(msg, "gen") == c->gen)
        return; /* that it was heard is all */
    else if (msg->kind == WIRE_opened && (c->state == CONN_ADMITTED || c->state == CONN_SERVING))
        on_opened(o, conn_idx, msg);
    else
        members_lose(o, conn_idx, "message not permitted in its state");
}

void members_read(orch *o, int conn_idx)
{
    const uint64_t gen = o->conns[conn_idx].gen;
    char *text = NULL;
    size_t bytes;
    wire_msg msg = {0};
    int fds[LIFELINE_FDS_MAX];
    cf_err err = lifeline_recv(o->conns[conn_idx].fd, &text, &bytes, fds);
    if (err == CF_OK)
        err = wire_parse(text, bytes, WIRE_MEMBER_LIFELINE, &msg);
    if (err == CF_OK) {
        health_heard(&o->conns[conn_idx].alive, clock_now_us());
        on_lifeline_message(o, conn_idx, &msg, fds);
    } else if (err != CF_ERR_TIMEOUT && o->conns[conn_idx].gen == gen) {
        members_lose(o, conn_idx, err_text());
    }
    wire_done(&msg);
    mem_free(text);
    for (int i = 0; i < LIFELINE_FDS_MAX; i++)
        io_close(&fds[i]);
}

void members_lose(orch *o, int conn_idx, const char *why)
{
    conn *c = &o->conns[conn_idx];
    if (c->state == CONN_FREE)
        return;
    const conn_state state = c->state;
    const pid_t pid = c->pid;
    char reason[256];
    snprintf(reason, sizeof reason, "%s", why);
    log_line(o->draining || c->draining ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "member.lost",
             "role=%s instance=%d gen=%" PRIu64 " pid=%ld held=%" PRIu64 " text=\"%s\"", c->role[0] ? c->role : "?",
             c->instance, c->gen, (long)c->pid, c->held, reason);
    io_close(&c->fd);
    io_close(&c->pid_fd);
    c->state = CONN_FREE;
    box_entry *box = members_find_box(o, c->outbox_id);
    if (box) {
        box->conn_idx = -1;
        io_close(&box->write_fd);
        if (state != CONN_SERVING) /* the core never heard of it: nobody reads it */
            members_release_box(o, box->outbox_id);
    }
    if (state == CONN_SERVING)
        orch_apply(o, &(core_event){.kind = CORE_LOST, .member = conn_idx});
    if (is_staff(state))
        tell_seen(o, pid, false);
}

/* ---- bus ---- */

/* A new hift reads every flow's outbox, a new flow is read by every hift. Only now: the core must know both before the
 * answer, OPENED, means anything to it. */
static void exchange_grants(orch *o, int conn_idx)
{
    const int stage = o->conns[conn_idx].stage;
    for (int i = 0; i < BOX_TABLE_MAX && stage == CORE_HIFT; i++)
        if (o->boxes[i].stage == CORE_FLOW && o->boxes[i].in_core && o->conns[conn_idx].state == CONN_SERVING)
            grant(o, conn_idx, &o->boxes[i]);
    for (int i = 0; i < CONNS_MAX && stage == CORE_FLOW; i++) {
        const box_entry *box = members_find_box(o, o->conns[conn_idx].outbox_id);
        if (box && o->conns[i].state == CONN_SERVING && o->conns[i].stage == CORE_HIFT)
            grant(o, i, box);
    }
}

static void on_here(orch *o, int conn_idx, const wire_msg *msg)
{
    conn *c = &o->conns[conn_idx];
    if (c->state != CONN_ADMITTED || wire_u64(msg, "boot") != o->boot) {
        o->messages_bad++;
        return;
    }
    c->state = CONN_SERVING;
    health_begin(&c->alive, clock_now_us());
    log_info("member.serving",
             "role=%s instance=%d gen=%" PRIu64 " pid=%ld model=%s sha256=%.16s backend=\"%s\" weights_bytes=%" PRIu64
             " load_ms=%" PRIu64,
             c->role, c->instance, c->gen, (long)c->pid, c->model_file, c->model_sha256, c->backend, c->weights_bytes,
             (clock_now_us() - c->since_us) / 1000);
    tell_served(o, c);
    box_entry *box = members_find_box(o, c->outbox_id);
    if (box)
        box->in_core = true;
    orch_apply(o, &(core_event){.kind = CORE_JOINED,
                                .member = conn_idx,
                                .stage = c->stage,
                                .instance = c->instance,
                                .paused = o->paused[c->stage][c->instance],
                                .rows_max = c->rows_max,
                                .frames_max = c->frames_max > 0 ? c->frames_max : 1,
                                .outbox_id = c->outbox_id,
                                .outbox_bytes = box ? box->bytes : 0});
    exchange_grants(o, conn_idx);
    if (o->drain_sent) /* the others have been told before it came */
        members_drain_one(o, conn_idx, false);
}

static void on_beat(orch *o, int conn_idx, const wire_msg *msg)
{
    conn *c = &o->conns[conn_idx];
    health_beat(&c->alive, wire_u64(msg, "steps"), o->core.members[conn_idx].rows_held > 0, clock_now_us());
    c->jobs_done = wire_u64(msg, "jobs_done");
    c->steps = wire_u64(msg, "steps");
    c->held = wire_u64(msg, "held");
    c->busy_us = wire_u64(msg, "busy_us");
    c->rss_bytes = wire_u64(msg, "rss_bytes");
    c->records = wire_has(msg, "steps_recorded") && wire_has(msg, "steps_replayed") && wire_has(msg, "steps_eager");
    if (c->records) {
        c->steps_recorded = wire_u64(msg, "steps_recorded");
        c->steps_replayed = wire_u64(msg, "steps_replayed");
        c->steps_eager = wire_u64(msg, "steps_eager");
    }
    latency_ring *ring = &o->handover[c->stage];
    for (const json *v = json_first(wire_json(msg, "handover_us")); v; v = json_next(v)) {
        uint64_t us;
        if (json_as_u64(v, "handover_us", 0, INT32_MAX, &us) == CF_OK)
            ring->us[ring->count++ % HANDOVERS_KEPT] = (int32_t)us;
    }
}

/* The segment's speech tokens, to the journal too. */
static cf_err take_tokens(orch *o, const conn *from, session *row, int32_t segment, const wire_msg *msg)
{
    cf_err err;
    int32_t *tokens;
    size_t count;
    session_segment *seg = &row->segments[segment];
    TRY(wire_i32s(msg, "tokens", &tokens, &count));
    mem_free(seg->tokens);
    seg->tokens = tokens;
    seg->tokens_count = (int32_t)count;
    seg->stopped = wire_bool(msg, "stopped");
    seg->capped = wire_bool(msg, "capped");
    requests_keep_tokens(o, row, segment, from->model_sha256);
out:
    return err;
}

/* Seconds of speech that a job has brought forward. */
static double audio_of(const core_event *ready, int stage)
{
    switch (stage) {
    case CORE_LLM:
        return (double)ready->tokens / TOKENS_PER_SECOND;
    case CORE_FLOW:
        return (double)ready->frames * SAMPLES_PER_FRAME / SAMPLE_RATE_HZ;
    default:
        return (double)ready->samples / SAMPLE_RATE_HZ;
    }
}

static void on_ready(orch *o, int conn_idx, const wire_msg *msg)
{
    core_event e = {.kind = CORE_READY,
                    .member = conn_idx,
                    .job = wire_u64(msg, "job"),
                    .frames = (int32_t)wire_u64(msg, "frames"),
                    .samples = (int64_t)wire_u64(msg, "samples")};
    /* Which segment it was must be asked before the core moves it on. */
    const core_segment *s = orch_core_find_job(&o->core, conn_idx, e.job);
    session *row = s ? o->sessions[s->utterance] : NULL;
    if (row) {
        if (s->stage == CORE_LLM && wire_has(msg, "tokens")) {
            if (take_tokens(o, &o->conns[conn_idx], row, s->idx, msg) != CF_OK) {
                members_lose(o, conn_idx, err_text()); /* no memory for them: the job is done again */
                return;
            }
            e.tokens = row->segments[s->idx].tokens_count;
        }
        row->compute_us[s->stage] += wire_u64(msg, "compute_us");
        rates_add(&o->jobs_ended[s->stage], clock_now_us(), audio_of(&e, s->stage));
    }
    o->caused_us = wire_u64(msg, "sent_us");
    orch_apply(o, &e);
    o->caused_us = 0;
}

static void on_failed(orch *o, int conn_idx, const wire_msg *msg)
{
    /* The text goes to the session the core will name in CORE_DO_FAIL. */
    const core_segment *s = orch_core_find_job(&o->core, conn_idx, wire_u64(msg, "job"));
    session *row = s ? o->sessions[s->utterance] : NULL;
    if (row)
        snprintf(row->write_text, sizeof row->write_text, "%s", wire_str(msg, "text"));
    orch_apply(o, &(core_event){.kind = CORE_FAILED,
                                .member = conn_idx,
                                .job = wire_u64(msg, "job"),
                                .code = err_from_name(wire_str(msg, "code"))});
}

void members_on_bus(orch *o, const char *peer, const wire_msg *msg)
{
    for (int i = 0; i < CONNS_MAX; i++) {
        conn *c = &o->conns[i];
        if ((c->state != CONN_ADMITTED && c->state != CONN_SERVING) || strcmp(c->routing_id, peer) != 0 ||
            wire_u64(msg, "gen") != c->gen)
            continue;
        health_heard(&c->alive, clock_now_us());
        if (msg->kind == WIRE_here)
            on_here(o, i, msg);
        else if (c->state != CONN_SERVING)
            break;
        else if (msg->kind == WIRE_beat)
            on_beat(o, i, msg);
        else if (msg->kind == WIRE_ready)
            on_ready(o, i, msg);
        else if (msg->kind == WIRE_failed)
            on_failed(o, i, msg);
        else {
            c->draining = true;
            orch_apply(o, &(core_event){.kind = CORE_DRAINING, .member = i});
        }
        return;
    }
    o->messages_bad++; /* an old generation, or nobody we know */
}

/* It may have been the end of a job, which is told once: its jobs are done again when it has connected anew. */
void members_unread(orch *o, const char *peer, const char *why)
{
    for (int i = 0; i < CONNS_MAX; i++) {
        const conn *c = &o->conns[i];
        if ((c->state == CONN_ADMITTED || c->state == CONN_SERVING) && strcmp(c->routing_id, peer) == 0)
            members_lose(o, i, why);
    }
}

void members_drain_one(orch *o, int conn_idx, bool again)
{
    conn *c = &o->conns[conn_idx];
    if (c->state != CONN_SERVING)
        return;
    c->draining = true;
    orch_apply(o, &(core_event){.kind = CORE_DRAINING, .member = conn_idx});
    json *m = wire_new(WIRE_drain);
    json_put_u64(m, "gen", c->gen);
    json_put_bool(m, "again", again);
    if (bus_send(o->b, c->routing_id, m) != CF_OK)
        members_lose(o, conn_idx, err_text());
}

void members_drain_all(orch *o)
{
    for (int i = 0; i < CONNS_MAX; i++)
        members_drain_one(o, i, false);
}

/* They would look for an orchestrator, and be started again and again by who supervises them. */
void members_dismiss_all(orch *o)
{
    for (int i = 0; i < CONNS_MAX; i++) {
        const conn_state state = o->conns[i].state;
        if (state < CONN_LOADING || state > CONN_KEEPER)
            continue;
        json *m = wire_new(WIRE_dismiss);
        json_put_str(m, "text", "the farm has ended");
        send_to(o, i, m, NULL, 0);
    }
}

void members_send(orch *o, int conn_idx, json *msg)
{
    send_to(o, conn_idx, msg, NULL, 0);
}

int members_count_serving(const orch *o)
{
    int count = 0;
    for (int i = 0; i < CONNS_MAX; i++)
        count += o->conns[i].state == CONN_SERVING;
    return count;
}
