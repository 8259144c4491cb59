/*
 * worker.c - the control thread of every worker: one loop over lifeline, bus, engine and signals.
 *
 *   connect -> HELLO -> WELCOME (configuration) -> engine loads the model -> JOIN -> ADMIT (outbox) -> bus: HERE ->
 *   serving
 *
 * When the orchestrator goes away the worker gives up its jobs and its outbox, keeps its weights, and connects again
 * for RECONNECT_US; then it exits 69. SIGTERM: it says LEAVE, hands every job back as cancelled, and exits 0. When its
 * outbox is device memory and the owner of that dies, it does the same, and connects again for another outbox; a job
 * that read such memory is stale, whatever came of it.
 * Owns the lifeline, the bus, the mappings, the engine. One thread besides the engine's.
 * Fails: exit codes of process.h; each is preceded by one log line that says why.
 */
#define _GNU_SOURCE
#include "common/worker/worker.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/config.h"
#include "common/base/device.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/notify.h"
#include "common/base/process.h"
#include "common/transport/bus.h"
#include "common/transport/lifeline.h"
#include "common/transport/outbox_cuda_ipc.h"
#include "common/transport/wire.h"
#include "common/worker/engine.h"

#define RECONNECT_US  (60 * CLOCK_SECOND_US)
#define RETRY_US      20000 /* between two attempts to connect */
#define BEAT_US       (CLOCK_SECOND_US / 2)
#define LEAVE_US      (5 * CLOCK_SECOND_US) /* to hand everything back */
#define MAPS_MAX      (2 * MEMBERS_MAX)
#define HANDOVERS_MAX 512 /* latencies between two beats */

typedef struct worker_map {
    outbox *box; /* owned; NULL: free */
    int32_t users;
    bool revoked;
} worker_map;

typedef struct worker {
    const stage_ops *ops;
    int instance, signal_fd, lifeline_fd;
    char run_dir[IO_PATH_BYTES], lifeline_path[IO_PATH_BYTES];
    uint64_t boot, gen;
    config cfg; /* what the engine was started with */
    bool configured, joined, draining;
    bool memory_lost; /* of its outbox: what it holds goes back, then it connects again */
    int device;       /* DEVICE_CPU, or the number of its CUDA device */
    int drain_code;   /* how a drain ends: DRAINED, or NO_RESOURCES, which a supervisor answers by starting it again */
    engine *eng;      /* owned; NULL before the first WELCOME */
    bus *b;           /* owned; NULL until admitted */
    outbox *own;      /* owned; NULL for the llm */
    worker_map maps[MAPS_MAX];
    uint64_t next_beat_us, leave_by_us;
    int32_t handovers[HANDOVERS_MAX];
    int32_t handovers_count;
    int exit_code; /* -1: go on */
    notify note;
} worker;

static void quit(worker *w, int code)
{
    if (w->exit_code < 0)
        w->exit_code = code;
}

/* ---- mappings ---- */

static int32_t find_map(const worker *w, uint64_t outbox_number)
{
    for (int32_t i = 0; i < MAPS_MAX; i++)
        if (w->maps[i].box && outbox_id(w->maps[i].box) == outbox_number)
            return i;
    return -1;
}

static void close_map_if_idle(worker_map *m)
{
    if (!m->box || m->users > 0 || !m->revoked)
        return;
    outbox_close(m->box);
    *m = (worker_map){0};
}

static void give_back_job(worker *w, engine_job *j)
{
    if (j->in_map >= 0) {
        w->maps[j->in_map].users--;
        close_map_if_idle(&w->maps[j->in_map]);
    }
    engine_job_free(j);
}

/* ---- the orchestrator's lifeline messages ---- */

static cf_err start_engine(worker *w)
{
    cf_err err;
    char device[DEVICE_TEXT_BYTES];
    const stage_kind kind = w->ops->kind;
    TRY(device_of_instance(config_device_list(&w->cfg, stage_name(kind)), w->instance, device, &w->device));
    const stage_config sc = {
        .model_dir = w->cfg.model,
        .voice_store = w->cfg.voice_store,
        .device = device,
        .operands = stage_precision(w->cfg.precision),
        .int8_weights = stage_int8_weights(w->cfg.precision),
        .threads = w->cfg.threads,
        .naive = w->cfg.naive,
        .base_weights = w->cfg.base_weights,
        .strict_head = w->cfg.strict_head,
        .rows_max = kind == STAGE_LLM    ? w->cfg.llm_rows
                    : kind == STAGE_FLOW ? w->cfg.flow_rows
                                         : w->cfg.hift_rows,
        .frames_max = kind == STAGE_HIFT ? w->cfg.hift_frames : w->cfg.flow_frames,
    };
    trace *events = NULL;
    if (w->cfg.trace[0])
        TRY(trace_open(w->cfg.trace, stage_name(kind), w->instance, &events));
    TRY(engine_start(w->ops, &sc, events, &w->eng));
out:
    return err;
}

static cf_err send_join(worker *w)
{
    stage_facts facts;
    engine_facts(w->eng, &facts);
    const stage_kind kind = w->ops->kind;
    json *m = wire_new(WIRE_join);
    json_put_u64(m, "gen", w->gen);
    json_put_str(m, "model_file", facts.model_file);
    json_put_str(m, "model_sha256", facts.model_sha256);
    json_put_str(m, "backend", facts.backend);
    json_put_u64(m, "rows_max",
                 (uint64_t)(kind == STAGE_LLM    ? w->cfg.llm_rows
                            : kind == STAGE_FLOW ? w->cfg.flow_rows
                                                 : w->cfg.hift_rows));
    json_put_u64(m, "frames_max",
                 (uint64_t)(kind == STAGE_LLM    ? 0
                            : kind == STAGE_FLOW ? w->cfg.flow_frames
                                                 : w->cfg.hift_frames));
    json_put_u64(m, "weights_bytes", facts.weights_bytes);
    json_put_u64(m, "kept_bytes", facts.kept_bytes);
    json_put_u64(m, "scratch_bytes", facts.scratch_bytes);
    json_put_u64(m, "speech_codes", (uint64_t)facts.speech_codes);
    w->joined = true;
    return lifeline_send(w->lifeline_fd, m, NULL, 0);
}

static cf_err on_engine(worker *w); /* below: what it waits for may have happened already */

static cf_err on_welcome(worker *w, const wire_msg *msg)
{
    cf_err err;
    config cfg;
    config_defaults(&cfg);
    TRY(config_apply(&cfg, wire_json(msg, "config"), "welcome"));
    if (w->configured && memcmp(&cfg, &w->cfg, sizeof cfg) != 0) {
        log_warn("worker.reconfigured", "text=\"another configuration than the loaded one; restarting\"");
        quit(w, PROCESS_NO_RESOURCES);
        return CF_OK;
    }
    w->cfg = cfg;
    w->configured = true;
    w->boot = wire_u64(msg, "boot");
    w->gen = wire_u64(msg, "gen");
    if (w->eng)
        return on_engine(w); /* joins if the model is loaded; one that still loads joins later */
    const cf_err broken = start_engine(w);
    if (broken != CF_OK) { /* another connection would not help */
        log_error("worker.broken", "code=%s text=\"%s\"", err_name(broken), err_text());
        quit(w, process_exit_code(broken));
    }
out:
    return err;
}

/* Maps what ADMIT or GRANT gives: device memory where there is a handle, else a memfd, pinned for a device. */
static cf_err open_outbox(const worker *w, const wire_msg *msg, int fd, outbox_access access, outbox **ret_box)
{
    cf_err err;
    outbox_handle handle;
    const outbox_grant grant = {
        .outbox_id = (uint32_t)wire_u64(msg, "outbox"), .bytes = wire_u64(msg, "bytes"), .fd = fd};
    if (wire_has(msg, "handle")) {
        TRY(outbox_handle_parse(wire_str(msg, "handle"), &handle));
        return outbox_cuda_open(w->device, &grant, &handle, ret_box);
    }
    TRY(outbox_open(&grant, access, ret_box));
    if (w->device != DEVICE_CPU && outbox_cuda_pin(w->device, *ret_box, access) != CF_OK)
        log_warn("worker.unpinned", "text=\"%s; copies are staged\"", err_text());
out:
    return err;
}

/* The answer about a box; why: CF_OK, or the error whose text is err_text(). */
static cf_err send_opened(worker *w, const wire_msg *msg, cf_err why)
{
    json *m = wire_new(WIRE_opened);
    json_put_u64(m, "gen", w->gen);
    json_put_u64(m, "outbox", wire_u64(msg, "outbox"));
    if (why != CF_OK) {
        json_put_str(m, "code", err_name(why));
        json_put_text(m, "text", err_text());
    }
    return lifeline_send(w->lifeline_fd, m, NULL, 0);
}

/* Device memory that this process cannot open is the orchestrator's to replace; all else ends the connection. */
static bool is_answered(const wire_msg *msg, cf_err err)
{
    return wire_has(msg, "handle") && (err == CF_ERR_UNSUPPORTED || err == CF_ERR_GONE || err == CF_ERR_NOMEM);
}

static cf_err on_admit(worker *w, const wire_msg *msg, int fd)
{
    cf_err err = CF_OK;
    char id[BUS_ID_BYTES];
    if (wire_u64(msg, "outbox") != 0) {
        err = open_outbox(w, msg, fd, OUTBOX_WRITE, &w->own);
        if (err != CF_OK)
            return is_answered(msg, err) ? send_opened(w, msg, err) : err;
    }
    snprintf(id, sizeof id, "%s.%d.%" PRIu64, stage_name(w->ops->kind), w->instance, w->gen);
    TRY(bus_connect(wire_str(msg, "endpoint"), id, &w->b));
    w->next_beat_us = clock_now_us();
out:
    return err;
}

static cf_err on_grant(worker *w, const wire_msg *msg, int fd)
{
    int32_t at = 0;
    while (at < MAPS_MAX && w->maps[at].box)
        at++;
    if (at == MAPS_MAX)
        return err_set(CF_ERR_LIMIT, "more than %d outboxes granted", MAPS_MAX);
    const cf_err err = open_outbox(w, msg, fd, OUTBOX_READ, &w->maps[at].box);
    return err == CF_OK || is_answered(msg, err) ? send_opened(w, msg, err) : err;
}

static cf_err on_lifeline_message(worker *w, const wire_msg *msg, int fd)
{
    switch (msg->kind) {
    case WIRE_welcome:
        return on_welcome(w, msg);
    case WIRE_admit:
        return on_admit(w, msg, fd);
    case WIRE_grant:
        return on_grant(w, msg, fd);
    case WIRE_revoke: {
        const int32_t at = find_map(w, wire_u64(msg, "outbox"));
        if (at >= 0) {
            w->maps[at].revoked = true;
            close_map_if_idle(&w->maps[at]);
        }
        return CF_OK;
    }
    case WIRE_dismiss:
        log_info("worker.dismissed", "text=\"%s\"", wire_str(msg, "text"));
        quit(w, PROCESS_DRAINED);
        return CF_OK;
    case WIRE_refuse:
        log_error("worker.refused", "code=%s text=\"%s\"", wire_str(msg, "code"), wire_str(msg, "text"));
        quit(w, err_from_name(wire_str(msg, "code")) == CF_ERR_MISMATCH ? PROCESS_CONFIG : PROCESS_NO_RESOURCES);
        return CF_OK;
    default:
        return err_set(CF_ERR_INVALID, "message \"%s\" is not for a worker", wire_kind_name(msg->kind));
    }
}

/* CF_ERR_GONE: the orchestrator is away. */
static cf_err read_lifeline(worker *w)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    wire_msg msg = {0};
    int fds[LIFELINE_FDS_MAX] = {-1, -1};
    TRY(lifeline_recv(w->lifeline_fd, &text, &bytes, fds));
    TRY(wire_parse(text, bytes, WIRE_ORCH_LIFELINE, &msg));
    TRY(on_lifeline_message(w, &msg, fds[0]));
out:
    wire_done(&msg);
    mem_free(text);
    for (int i = 0; i < LIFELINE_FDS_MAX; i++)
        io_close(&fds[i]);
    return err == CF_ERR_TIMEOUT ? CF_OK : err;
}

/* ---- bus messages ---- */

static cf_err read_ids(const wire_msg *msg, const char *key, int32_t **ret_ids, int32_t *ret_count)
{
    size_t count = 0;
    cf_err err = wire_has(msg, key) ? wire_i32s(msg, key, ret_ids, &count) : CF_OK;
    *ret_count = (int32_t)count;
    return err;
}

static cf_err read_slots(worker *w, const wire_msg *msg, engine_job *j)
{
    cf_err err = CF_OK;
    if (wire_has(msg, "in_outbox")) {
        const int32_t at = find_map(w, wire_u64(msg, "in_outbox"));
        void *data;
        if (at < 0)
            FAIL(CF_ERR_STALE, "outbox %" PRIu64 " is not mapped here", wire_u64(msg, "in_outbox"));
        TRY(outbox_view(w->maps[at].box, wire_u64(msg, "in_off"), wire_u64(msg, "in_bytes"), &data));
        j->job.frames = (int32_t)wire_u64(msg, "frames");
        if (wire_u64(msg, "in_bytes") < (uint64_t)j->job.frames * MEL_BINS * sizeof(float))
            FAIL(CF_ERR_INVALID, "in slot of %" PRIu64 " bytes is too small for %d frames", wire_u64(msg, "in_bytes"),
                 j->job.frames);
        j->job.mel = data;
        j->job.mel_on_device = outbox_on_device(w->maps[at].box);
        j->in_map = at;
        w->maps[at].users++;
    }
    if (wire_has(msg, "out_outbox")) {
        if (!w->own || outbox_id(w->own) != wire_u64(msg, "out_outbox"))
            FAIL(CF_ERR_STALE, "outbox %" PRIu64 " is not mine", wire_u64(msg, "out_outbox"));
        j->job.out_bytes = wire_u64(msg, "out_bytes");
        TRY(outbox_view(w->own, wire_u64(msg, "out_off"), j->job.out_bytes, &j->job.out));
        j->job.out_on_device = outbox_on_device(w->own);
    }
out:
    return err;
}

static cf_err read_job(worker *w, const wire_msg *msg, engine_job *j)
{
    cf_err err;
    stage_job *s = &j->job;
    s->job_id = wire_u64(msg, "job");
    s->segment_idx = (uint32_t)wire_u64(msg, "segment");
    snprintf(j->utterance, sizeof j->utterance, "%s", wire_str(msg, "utterance"));
    TRY(read_ids(msg, "text", &j->text, &s->text_tokens));
    TRY(read_ids(msg, "prompt_text", &j->prompt_text, &s->prompt_text_tokens));
    TRY(read_ids(msg, "tokens", &j->tokens, &s->tokens_count));
    s->text = j->text;
    s->prompt_text = j->prompt_text;
    s->tokens = j->tokens;
    s->seed = wire_has(msg, "seed") ? wire_u64(msg, "seed") : 0;
    s->end_of_prompt_id = wire_has(msg, "end_of_prompt") ? (int32_t)wire_u64(msg, "end_of_prompt") : 0;
    s->prompt_speech = wire_has(msg, "prompt_speech") && wire_bool(msg, "prompt_speech");
    s->speed = wire_has(msg, "speed") ? wire_f64(msg, "speed") : 1;
    s->streaming = w->cfg.streaming_mask;
    s->finalize = true;
    if (wire_has(msg, "voice")) {
        if (!wire_has(msg, "voice_sha256"))
            FAIL(CF_ERR_INVALID, "work: field \"voice_sha256\" is missing beside \"voice\"");
        snprintf(j->voice_name, sizeof j->voice_name, "%s", wire_str(msg, "voice"));
        snprintf(j->voice_sha256, sizeof j->voice_sha256, "%s", wire_str(msg, "voice_sha256"));
    }
    TRY(read_slots(w, msg, j));
out:
    return err;
}

static void count_handover(worker *w, const wire_msg *msg)
{
    const uint64_t caused_us = wire_u64(msg, "caused_us"), now_us = clock_now_us();
    if (caused_us != 0 && now_us >= caused_us && w->handovers_count < HANDOVERS_MAX)
        w->handovers[w->handovers_count++] = (int32_t)(now_us - caused_us < 1u << 23 ? now_us - caused_us : 1u << 23);
}

static cf_err send_failed(worker *w, uint64_t job_id, cf_err code, const char *text)
{
    json *m = wire_new(WIRE_failed);
    json_put_u64(m, "gen", w->gen);
    json_put_u64(m, "job", job_id);
    json_put_str(m, "code", err_name(code));
    json_put_text(m, "text", text);
    return bus_send(w->b, NULL, m);
}

static cf_err on_work(worker *w, const wire_msg *msg)
{
    cf_err err;
    engine_job *j = NULL;
    count_handover(w, msg);
    TRY(engine_job_new(&j));
    err = read_job(w, msg, j);
    if (err != CF_OK) {
        const cf_err sent = send_failed(w, wire_u64(msg, "job"), err, err_text());
        give_back_job(w, j);
        return sent;
    }
    engine_submit(w->eng, j);
out:
    return err;
}

static cf_err on_bus_message(worker *w, const wire_msg *msg)
{
    if (wire_u64(msg, "gen") != w->gen) {
        log_debug("worker.stale", "kind=%s", wire_kind_name(msg->kind));
        return CF_OK;
    }
    if (msg->kind == WIRE_work)
        return on_work(w, msg);
    if (msg->kind == WIRE_cancel)
        engine_cancel(w->eng, wire_u64(msg, "job"));
    else {
        w->draining = true;
        w->drain_code = wire_bool(msg, "again") ? PROCESS_NO_RESOURCES : PROCESS_DRAINED;
    }
    return CF_OK;
}

static cf_err read_bus(worker *w)
{
    for (;;) {
        char peer[BUS_ID_BYTES];
        char *text = NULL;
        size_t bytes;
        wire_msg msg = {0};
        cf_err err = bus_recv(w->b, peer, &text, &bytes);
        if (err == CF_OK)
            err = wire_parse(text, bytes, WIRE_ORCH_BUS, &msg);
        if (err == CF_OK)
            err = on_bus_message(w, &msg);
        wire_done(&msg);
        mem_free(text);
        if (err != CF_OK)
            return err == CF_ERR_TIMEOUT ? CF_OK : err;
    }
}

static cf_err send_ready(worker *w, const engine_result *r)
{
    json *m = wire_new(WIRE_ready);
    json_put_u64(m, "gen", w->gen);
    json_put_u64(m, "job", r->stage.job_id);
    json_put_u64(m, "frames", (uint64_t)r->stage.frames);
    json_put_u64(m, "samples", (uint64_t)r->stage.samples);
    json_put_bool(m, "stopped", r->stage.stopped);
    json_put_bool(m, "capped", r->stage.capped);
    json_put_u64(m, "compute_us", r->stage.compute_us);
    json_put_u64(m, "sent_us", clock_now_us());
    if (r->stage.tokens_count > 0)
        json_put_i32s(m, "tokens", r->stage.tokens, (size_t)r->stage.tokens_count);
    return bus_send(w->b, NULL, m);
}

/* Hands everything back and asks for no more, as one that is stopped: the same messages, but it comes again. */
static void leave_for_memory(worker *w)
{
    if (w->memory_lost || !w->b || w->leave_by_us != 0)
        return;
    log_warn("worker.memory", "text=\"%s; connecting again\"", err_text());
    w->memory_lost = true;
    json *m = wire_new(WIRE_leave);
    json_put_u64(m, "gen", w->gen);
    const cf_err err = bus_send(w->b, NULL, m);
    if (err != CF_OK)
        log_warn("worker.memory", "text=\"%s\"", err_text()); /* it will be seen to disconnect */
    engine_cancel_all(w->eng);
}

/* What may be said of a result, now that its device has finished: nothing good when the memory's owner has died. */
static cf_err judge_memory(worker *w, const engine_result *r)
{
    const int32_t in = r->job->in_map;
    if (w->own && outbox_check(w->own) != CF_OK)
        leave_for_memory(w);
    if (in >= 0 && outbox_check(w->maps[in].box) != CF_OK)
        return CF_ERR_STALE;
    return w->memory_lost ? CF_ERR_CANCELLED : CF_OK;
}

static cf_err send_result(worker *w, const engine_result *r)
{
    const cf_err lost = judge_memory(w, r);
    if (lost != CF_OK)
        return send_failed(w, r->stage.job_id, lost, err_text());
    return r->stage.code == CF_OK ? send_ready(w, r) : send_failed(w, r->stage.job_id, r->stage.code, r->stage.text);
}

static cf_err send_results(worker *w)
{
    cf_err err = CF_OK;
    for (engine_result r; engine_take_result(w->eng, &r);) {
        if (w->b && err == CF_OK && !fault_hit("worker.result"))
            err = send_result(w, &r);
        mem_free((void *)(uintptr_t)r.stage.tokens);
        give_back_job(w, r.job);
    }
    return err;
}

static cf_err send_beat(worker *w, uint64_t now_us)
{
    engine_counters c;
    engine_count(w->eng, &c);
    json *m = wire_new(WIRE_beat);
    json_put_u64(m, "gen", w->gen);
    json_put_u64(m, "jobs_done", c.jobs_done);
    json_put_u64(m, "steps", c.steps);
    json_put_u64(m, "held", (uint64_t)c.held);
    json_put_u64(m, "oldest_us", c.oldest_us);
    json_put_u64(m, "busy_us", c.busy_us);
    json_put_u64(m, "rss_bytes", process_rss_bytes());
    json_put_i32s(m, "handover_us", w->handovers, (size_t)w->handovers_count);
    if (w->device != DEVICE_CPU && w->ops->records) {
        json_put_u64(m, "steps_recorded", c.records.recorded);
        json_put_u64(m, "steps_replayed", c.records.replayed);
        json_put_u64(m, "steps_eager", c.records.eager);
    }
    w->handovers_count = 0;
    w->next_beat_us = now_us + BEAT_US;
    return bus_send(w->b, NULL, m);
}

/* While the model loads and memory is made: a process that hangs says nothing. One that the line has no room for is
 * not needed. */
static cf_err say_alive(worker *w, uint64_t now_us)
{
    json *m = wire_new(WIRE_alive);
    json_put_u64(m, "gen", w->gen);
    w->next_beat_us = now_us + BEAT_US;
    const cf_err err = lifeline_send(w->lifeline_fd, m, NULL, 0);
    return err == CF_ERR_BUSY ? CF_OK : err;
}

/* The first word on a new bus may have to wait until zmq has connected: BUSY is then no error. */
static cf_err greet(worker *w)
{
    json *m = wire_new(WIRE_here);
    json_put_u64(m, "gen", w->gen);
    json_put_u64(m, "boot", w->boot);
    return bus_send(w->b, NULL, m);
}

/* ---- the loop ---- */

static void let_go(worker *w)
{
    if (w->eng) {
        /* A step that ends within stall_s is no reason for the watchdog; one that never ends is. */
        const uint64_t patient_until_us = clock_now_us() + (uint64_t)w->cfg.stall_s * CLOCK_SECOND_US;
        engine_cancel_all(w->eng);
        for (;;) { /* every job must come back before its memory goes */
            engine_counters c;
            const cf_err err = send_results(w);
            (void)err; /* nobody listens any more */
            engine_count(w->eng, &c);
            cf_err broken;
            char text[64];
            if (c.held == 0 || engine_state_now(w->eng, &broken, text, sizeof text) == ENGINE_BROKEN)
                break;
            if (clock_now_us() < patient_until_us)
                notify_alive(&w->note, clock_now_us());
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
    }
    bus_close(w->b);
    w->b = NULL;
    outbox_close(w->own);
    w->own = NULL;
    for (int32_t i = 0; i < MAPS_MAX; i++)
        outbox_close(w->maps[i].box);
    memset(w->maps, 0, sizeof w->maps);
    io_close(&w->lifeline_fd);
    w->joined = w->memory_lost = false;
}

static cf_err on_engine(worker *w)
{
    cf_err broken;
    char text[512];
    const engine_state state = engine_state_now(w->eng, &broken, text, sizeof text);
    if (state == ENGINE_BROKEN) {
        log_error("worker.broken", "code=%s text=\"%s\"", err_name(broken), text);
        quit(w, process_exit_code(broken));
        return CF_OK;
    }
    if (state == ENGINE_RUNNING && !w->joined && w->gen != 0)
        return send_join(w);
    return w->b ? send_results(w) : CF_OK;
}

static void on_signal(worker *w)
{
    if (process_read_signal(w->signal_fd) == 0)
        return;
    notify_stopping(&w->note);
    if (!w->b || w->leave_by_us != 0) {
        quit(w, PROCESS_DRAINED);
        return;
    }
    json *m = wire_new(WIRE_leave);
    json_put_u64(m, "gen", w->gen);
    const cf_err err = bus_send(w->b, NULL, m);
    if (err != CF_OK)
        quit(w, PROCESS_DRAINED);
    w->leave_by_us = clock_now_us() + LEAVE_US;
    engine_cancel_all(w->eng);
}

/* CF_ERR_GONE: nothing is held any more, and the next outbox can be asked for. */
static cf_err leave_when_empty(worker *w, uint64_t now_us)
{
    if (!w->draining && !w->memory_lost && w->leave_by_us == 0)
        return CF_OK;
    engine_counters c;
    engine_count(w->eng, &c);
    if (c.held > 0 && (w->leave_by_us == 0 || now_us < w->leave_by_us))
        return CF_OK;
    if (w->memory_lost && !w->draining && w->leave_by_us == 0) {
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* as below */
        return err_set(CF_ERR_GONE, "its outbox went with the exchange_keeper");
    }
    log_info("worker.drained", "jobs_done=%" PRIu64 " steps=%" PRIu64 " peak_bytes=%" PRIu64, c.jobs_done, c.steps,
             process_peak_bytes());
    notify_stopping(&w->note);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* zmq's thread sends the last words; LINGER is 0 */
    quit(w, w->draining ? w->drain_code : PROCESS_DRAINED);
    return CF_OK;
}

/* Until the connection or the process ends. *ret_greeted: it was on the bus. */
static cf_err serve(worker *w, bool *ret_greeted)
{
    cf_err err = CF_OK;
    bool greeted = false;
    while (w->exit_code < 0) {
        const uint64_t now_us = clock_now_us();
        uint64_t wake_us = now_us + BEAT_US;
        notify_alive(&w->note, now_us);
        if (w->b && !greeted) {
            err = greet(w);
            *ret_greeted = greeted = err == CF_OK;
            if (err != CF_OK && err != CF_ERR_BUSY)
                return err;
            wake_us = greeted ? wake_us : now_us + 1000;
            if (greeted)
                notify_ready(&w->note, "serving");
        } else if (w->b && now_us >= w->next_beat_us) {
            err = send_beat(w, now_us);
            if (err != CF_OK && err != CF_ERR_BUSY)
                return err;
        } else if (!w->b && w->gen != 0 && now_us >= w->next_beat_us) {
            TRY(say_alive(w, now_us));
        }
        struct pollfd fds[4] = {{.fd = w->lifeline_fd}, {.fd = w->signal_fd}, {.fd = w->eng ? engine_fd(w->eng) : -1}};
        int bus_ready = 0;
        const bool watched = w->own && !w->memory_lost && outbox_owner_fd(w->own) >= 0;
        if (watched)
            fds[3].fd = outbox_owner_fd(w->own);
        TRY(bus_poll(w->b, fds, watched ? 4 : w->eng ? 3 : 2, wake_us, &bus_ready));
        if (watched && outbox_check(w->own) != CF_OK)
            leave_for_memory(w);
        if (fds[0].revents)
            TRY(read_lifeline(w));
        if (bus_ready)
            TRY(read_bus(w));
        if (w->eng && fds[2].revents)
            TRY(on_engine(w));
        if (fds[1].revents)
            on_signal(w);
        if (w->b)
            TRY(leave_when_empty(w, clock_now_us()));
    }
out:
    return err;
}

static cf_err say_hello(worker *w)
{
    json *m = wire_new(WIRE_hello);
    json_put_str(m, "role", stage_name(w->ops->kind));
    json_put_u64(m, "instance", (uint64_t)w->instance);
    json_put_u64(m, "pid", (uint64_t)getpid());
    json_put_str(m, "build", CF_VERSION);
    w->gen = 0;
    return lifeline_send(w->lifeline_fd, m, NULL, 0);
}

/* Connects, from a time on, and greets; false when it could not for RECONNECT_US or a signal came. */
static bool connect_again(worker *w, uint64_t from_us)
{
    const uint64_t deadline_us = clock_now_us() + RECONNECT_US;
    while (w->exit_code < 0) {
        notify_alive(&w->note, clock_now_us());
        cf_err err = clock_now_us() < from_us ? CF_ERR_GONE : lifeline_connect(w->lifeline_path, &w->lifeline_fd);
        if (err == CF_OK && say_hello(w) == CF_OK)
            return true;
        io_close(&w->lifeline_fd);
        if (err != CF_OK && err != CF_ERR_GONE) {
            log_error("worker.connect", "text=\"%s\"", err_text());
            quit(w, err == CF_ERR_LIMIT ? PROCESS_CONFIG : PROCESS_NO_RESOURCES);
        } else if (clock_now_us() > deadline_us) {
            log_error("worker.alone", "text=\"no orchestrator at %s\"", w->lifeline_path);
            quit(w, PROCESS_ORCHESTRATOR_GONE);
        } else if (process_read_signal(w->signal_fd) != 0) {
            quit(w, PROCESS_DRAINED);
        } else {
            nanosleep(&(struct timespec){.tv_nsec = RETRY_US * 1000}, NULL);
        }
    }
    return false;
}

/* What ends each connection before it serves would otherwise fill the log, and a core. */
static void run(worker *w)
{
    unsigned vain = 0; /* such ends in a row */
    uint64_t from_us = 0;
    while (w->exit_code < 0 && connect_again(w, from_us)) {
        bool greeted = false;
        const cf_err err = serve(w, &greeted);
        if (err != CF_OK)
            log_warn("worker.disconnected", "code=%s text=\"%s\"", err_name(err), err_text());
        notify_status(&w->note, w->exit_code < 0 ? "no orchestrator; weights are kept" : "ending");
        let_go(w);
        vain = greeted ? 0 : vain + 1;
        from_us = clock_now_us() + process_rest_us(vain);
    }
}

static int parse_options(worker *w, int argc, char **argv)
{
    static const struct option options[] = {{"instance", required_argument, NULL, 'i'},
                                            {"run-dir", required_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'V'},
                                            {0}};
    cf_err err = process_run_dir(w->run_dir, sizeof w->run_dir);
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, "i:r:hV", options, NULL)) != -1;) {
        char *end;
        if (c == 'i') {
            const long n = strtol(optarg, &end, 10);
            if (*end || end == optarg || n < 0 || n > 999) {
                fprintf(stderr, "%s: --instance: expected 0..999, found \"%s\"\n", argv[0], optarg);
                return PROCESS_USAGE;
            }
            w->instance = (int)n;
        } else if (c == 'r') {
            err = process_take_run_dir(optarg, w->run_dir, sizeof w->run_dir);
        } else if (c == 'h' || c == 'V') {
            fprintf(stdout,
                    c == 'V' ? "%s_worker " CF_VERSION "\n"
                             : "usage: %s_worker [--instance N] [--run-dir DIR]\n"
                               "Serves the orchestrator of the run directory; started by cosyfarm up or systemd.\n",
                    stage_name(w->ops->kind));
            return PROCESS_DRAINED;
        } else {
            return PROCESS_USAGE;
        }
    }
    if (err == CF_OK && optind != argc)
        err = err_set(CF_ERR_INVALID, "unexpected argument \"%s\"", argv[optind]);
    if (err != CF_OK) {
        fprintf(stderr, "%s: %s\n", argv[0], err_text());
        return PROCESS_USAGE;
    }
    return -1;
}

int worker_main(const stage_ops *ops, int argc, char **argv)
{
    static worker w; /* one per process; large tables */
    process_hold_standard();
    w = (worker){.ops = ops, .lifeline_fd = -1, .signal_fd = -1, .exit_code = -1};
    const int code = parse_options(&w, argc, argv);
    if (code >= 0)
        return code;
    char unit[64];
    snprintf(unit, sizeof unit, "%s/%d", stage_name(ops->kind), w.instance);
    log_open(unit, LOG_LEVEL_INFO);
    notify_open(&w.note);
    process_follow_parent();
    if (io_join(w.lifeline_path, sizeof w.lifeline_path, w.run_dir, RUN_LIFELINE_SOCKET) != CF_OK ||
        fault_arm(getenv("COSYFARM_FAULT")) != CF_OK || process_signal_fd(&w.signal_fd) != CF_OK) {
        log_error("worker.start", "text=\"%s\"", err_text());
        return PROCESS_USAGE;
    }
    process_thread_goes_first(); /* permitted or not: the orchestrator's log says which it is here */
    run(&w);
    let_go(&w);
    engine_stop(w.eng);
    io_close(&w.signal_fd);
    return w.exit_code;
}
