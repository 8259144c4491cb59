/*
 * orch_shell.c - the orchestrator's loop: waits, feeds events to the core, performs its actions. It decides nothing.
 *
 * Runs in the orchestrator's one thread; the writer thread only ever holds finished sessions.
 * Fails: orch_run returns an exit code; a session that cannot go on is answered with its error.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/model/stage_tables.h"
#include "common/text/special_tokens.h"
#include "orchestrator/guard.h"
#include "orchestrator/orch.h"

#define TICK_US (CLOCK_SECOND_US / 2)

/* ---- actions ---- */

static void put_slot(json *m, const char *prefix, const core_slot *where)
{
    char key[32];
    snprintf(key, sizeof key, "%s_outbox", prefix);
    json_put_u64(m, key, where->outbox_id);
    snprintf(key, sizeof key, "%s_off", prefix);
    json_put_u64(m, key, where->off_bytes);
    snprintf(key, sizeof key, "%s_bytes", prefix);
    json_put_u64(m, key, where->bytes);
}

static void put_voice(json *m, const session *s)
{
    if (!s->voice_name[0])
        return;
    json_put_str(m, "voice", s->voice_name);
    json_put_str(m, "voice_sha256", s->voice_sha256);
}

static json *work_message(orch *o, const core_action *a, session *s)
{
    const text_segment *text = &s->plan.segments[a->segment];
    const session_segment *seg = &s->segments[a->segment];
    json *m = wire_new(WIRE_work);
    json_put_u64(m, "gen", o->conns[a->member].gen);
    json_put_u64(m, "job", a->job);
    json_put_str(m, "utterance", s->id);
    json_put_u64(m, "segment", (uint64_t)a->segment);
    json_put_u64(m, "sent_us", clock_now_us());
    json_put_u64(m, "caused_us", a->stage == CORE_LLM ? 0 : o->caused_us);
    if (a->stage == CORE_LLM) {
        put_voice(m, s);
        json_put_i32s(m, "text", text->ids, text->id_count);
        json_put_i32s(m, "prompt_text", s->plan.prompt_ids, s->plan.prompt_id_count);
        json_put_bool(m, "prompt_speech", s->prompt_speech);
        json_put_u64(m, "end_of_prompt", (uint64_t)tokenizer_special_id(o->tok, SPECIAL_END_OF_PROMPT));
        json_put_u64(m, "seed", guard_seed(s->seed, s->attempt));
    } else if (a->stage == CORE_FLOW) {
        put_voice(m, s);
        json_put_i32s(m, "tokens", seg->tokens, (size_t)seg->tokens_count);
        json_put_f64(m, "speed", s->speed);
        put_slot(m, "out", &a->out);
    } else {
        json_put_u64(m, "frames", (uint64_t)a->frames);
        put_slot(m, "in", &a->in);
        put_slot(m, "out", &a->out);
    }
    return m;
}

static void do_work(orch *o, const core_action *a)
{
    session *s = o->sessions[a->utterance];
    if (o->conns[a->member].state != CONN_SERVING || !s)
        return; /* lost meanwhile: the waiting CORE_LOST takes the job back */
    if (s->first_work_us == 0)
        s->first_work_us = clock_now_us();
    if (bus_send(o->b, o->conns[a->member].routing_id, work_message(o, a, s)) != CF_OK)
        members_lose(o, a->member, err_text());
}

static void do_cancel(orch *o, const core_action *a)
{
    const conn *c = &o->conns[a->member];
    if (c->state != CONN_SERVING)
        return;
    json *m = wire_new(WIRE_cancel);
    json_put_u64(m, "gen", c->gen);
    json_put_u64(m, "job", a->job);
    if (bus_send(o->b, c->routing_id, m) != CF_OK)
        members_lose(o, a->member, err_text());
}

/* Copies samples out of the hift's outbox at once, so that its slot is free for the next job. */
static void do_collect(orch *o, const core_action *a)
{
    session *s = o->sessions[a->utterance];
    const box_entry *box = members_find_box(o, a->in.outbox_id);
    void *data;
    if (!s)
        return;
    session_segment *seg = &s->segments[a->segment];
    CF_ASSERT(box && box->map);
    const uint64_t bytes = (uint64_t)a->samples * sizeof(float);
    cf_err err = outbox_view(box->map, a->in.off_bytes, bytes, &data);
    mem_free(seg->samples);
    seg->samples = NULL;
    if (err == CF_OK)
        err = mem_alloc((size_t)a->samples, sizeof(float), &seg->samples);
    if (err != CF_OK) {
        s->write_err = err;
        snprintf(s->write_text, sizeof s->write_text, "%s", err_text());
        return;
    }
    memcpy(seg->samples, data, bytes);
    seg->samples_count = a->samples;
}

static void leave_core(orch *o, session *s)
{
    s->dispatches += o->core.utterances[s->utterance].attempts;
    o->sessions[s->utterance] = NULL;
    s->utterance = -1;
}

static void do_finish(orch *o, const core_action *a)
{
    session *s = o->sessions[a->utterance];
    if (!s)
        return;
    leave_core(o, s);
    if (s->write_err != CF_OK)
        orch_session_end(o, s, s->write_err, "collect", s->write_text);
    else {
        s->speech_codes = o->speech_codes;
        writer_put(o->out, s);
    }
}

static void do_fail(orch *o, const core_action *a)
{
    session *s = o->sessions[a->utterance];
    char text[512];
    if (!s)
        return;
    leave_core(o, s);
    if (a->code == CF_ERR_GONE)
        snprintf(text, sizeof text, "segment %d was in flight in %d worker deaths (deaths_max %d)", a->segment,
                 a->deaths, o->cfg.deaths_max);
    else if (a->code == CF_ERR_TIMEOUT)
        snprintf(text, sizeof text, "segment %d was not done by the row's deadline", a->segment);
    else if (a->code == CF_ERR_LIMIT && !s->write_text[0])
        snprintf(text, sizeof text, "segment %d needs a larger outbox (outbox_mib %d)", a->segment, o->cfg.outbox_mib);
    else
        snprintf(text, sizeof text, "segment %d: %s", a->segment,
                 s->write_text[0] ? s->write_text : "a worker reported what cannot be");
    orch_session_end(o, s, a->code, model_stage_name(a->stage), text);
}

static void log_standing(const core_action *a)
{
    const char *role = model_stage_name(a->stage);
    if (a->kind == CORE_DO_BAR)
        log_error("member.barred",
                  "role=%s instance=%d deaths=%d pause_s=%" PRIu64 " text=\"died before a first finished job; is tried "
                  "with one when the pause is over, or fed after `cosyfarm resume %s/%d`\"",
                  role, a->segment, a->deaths, a->pause_us / CLOCK_SECOND_US, role, a->segment);
    else if (a->kind == CORE_DO_PAROLE)
        log_warn("member.parole", "role=%s instance=%d deaths=%d text=\"fed one job alone\"", role, a->segment,
                 a->deaths);
    else
        log_info("member.cleared", "role=%s instance=%d text=\"finished a job on parole\"", role, a->segment);
}

static void perform(orch *o, const core_action *a)
{
    switch (a->kind) {
    case CORE_DO_WORK:
        do_work(o, a);
        break;
    case CORE_DO_CANCEL:
        do_cancel(o, a);
        break;
    case CORE_DO_COLLECT:
        do_collect(o, a);
        break;
    case CORE_DO_FINISH:
        do_finish(o, a);
        break;
    case CORE_DO_FAIL:
        do_fail(o, a);
        break;
    case CORE_DO_FORGET:
        o->sessions[a->utterance] = NULL;
        break;
    case CORE_DO_RELEASE:
        members_release_box(o, a->in.outbox_id);
        break;
    case CORE_DO_BAR:
    case CORE_DO_PAROLE:
    case CORE_DO_CLEAR:
        log_standing(a);
        break;
    }
}

/* Performing an action can lose a member, which is an event: it waits until the present actions are done. */
void orch_apply(orch *o, const core_event *event)
{
    if (o->applying) {
        CF_ASSERT(event->kind == CORE_LOST && o->lost_count < CONNS_MAX);
        o->lost[o->lost_count++] = event->member;
        return;
    }
    o->applying = true;
    core_event next = *event;
    for (;;) {
        orch_core_step(&o->core, &next, clock_now_us());
        for (int32_t i = 0; i < o->core.actions_count; i++) {
            const core_action a = o->core.actions[i];
            perform(o, &a);
        }
        if (o->lost_count > 0)
            next = (core_event){.kind = CORE_LOST, .member = o->lost[--o->lost_count]};
        else if (o->core.more)
            next = (core_event){.kind = CORE_TICK};
        else
            break;
    }
    o->applying = false;
}

void orch_session_end(orch *o, session *s, cf_err code, const char *stage, const char *text)
{
    const uint64_t now_us = clock_now_us();
    requests_answer(o, s, code, stage, text);
    if (code == CF_OK) {
        o->rows_done++;
        rates_add(&o->rows_ended, now_us, (double)session_samples(s) / SAMPLE_RATE_HZ);
        o->samples_done += (uint64_t)session_samples(s);
        log_info("row.done",
                 "utt=%s seconds=%.3f segments=%zu tokens=%" PRId64 " attempts=%d wall_ms=%" PRIu64
                 " sha256=%.16s file=%s",
                 s->id, (double)session_samples(s) / SAMPLE_RATE_HZ, s->plan.segment_count, session_tokens(s),
                 s->dispatches, (now_us - s->accepted_us) / 1000, s->file_sha256, s->path);
    } else {
        o->rows_failed++;
        log_error("row.failed", "utt=%s stage=%s code=%s attempts=%d text=\"%s\"", s->id, stage, err_name(code),
                  s->dispatches, text);
    }
    for (int i = 0; i < ROWS_OPEN_MAX; i++)
        if (o->live[i] == s)
            o->live[i] = NULL;
    journal_put_end(o->log, s->journal_row);
    o->text_tokens_held -= s->text_tokens;
    o->sessions_live--;
    session_close(s);
}

/* ---- the loop ---- */

static void read_bus(orch *o)
{
    for (int n = 0; n < 256; n++) { /* bounded, so that lifelines are heard too */
        char peer[BUS_ID_BYTES];
        char *text = NULL;
        size_t bytes;
        wire_msg msg = {0};
        cf_err err = bus_recv(o->b, peer, &text, &bytes);
        if (err == CF_ERR_TIMEOUT)
            return;
        if (err == CF_OK)
            err = wire_parse(text, bytes, WIRE_MEMBER_BUS | WIRE_CLIENT_BUS, &msg);
        if (err != CF_OK) {
            o->messages_bad++;
            log_warn("bus.bad", "peer=%s text=\"%s\"", peer, err_text());
            members_unread(o, peer, err_text());
        } else if (msg.kind == WIRE_steer) {
            steer_on_bus(o, peer, &msg);
        } else if (msg.kind == WIRE_submit || msg.kind == WIRE_query || msg.kind == WIRE_shutdown) {
            requests_on_bus(o, peer, &msg);
        } else {
            members_on_bus(o, peer, &msg);
        }
        wire_done(&msg);
        mem_free(text);
    }
}

/* Rows with a plan, new or sent back by the guard, begin when there is room for their segments. */
static void begin_again(orch *o)
{
    while (o->again && requests_has_segments(o, o->again)) {
        session *s = o->again;
        o->again = s->next;
        s->next = NULL;
        const cf_err err = s->again ? session_next_attempt(s) : CF_OK;
        if (err != CF_OK)
            orch_session_end(o, s, err, "guard", err_text());
        else
            requests_begin_attempt(o, s);
    }
}

/* The core sees the deadlines of its own rows alone. */
static void end_overdue(orch *o, uint64_t now_us)
{
    for (session *s; (s = session_queue_take_overdue(&o->again, now_us)) != NULL;)
        orch_session_end(o, s, CF_ERR_TIMEOUT, s->again ? "guard" : "front",
                         "the row's deadline passed while it waited for room");
}

void orch_begin_when_room(orch *o, session *s)
{
    session_queue_put(&o->again, s);
}

static void take_written(orch *o)
{
    for (session *s; (s = writer_take(o->out)) != NULL;) {
        if (s->again) {
            o->attempts_again++;
            log_debug("row.again", "utt=%s attempt=%d flags=%#x", s->id, s->attempt, s->flags);
            orch_begin_when_room(o, s);
        } else
            orch_session_end(o, s, s->write_err, s->write_err == CF_ERR_NUMERIC ? "guard" : "write", s->write_text);
    }
}

static void on_signal(orch *o)
{
    const int number = process_read_signal(o->signal_fd);
    if (number == 0)
        return;
    if (number == PROCESS_STEP_ASIDE) {
        log_info("orch.steps_aside", "rows=%d text=\"workers and journal are left to a successor\"", o->sessions_live);
        notify_stopping(&o->note);
        o->exit_code = PROCESS_DRAINED;
        return;
    }
    if (o->draining) {
        o->exit_code = PROCESS_NO_RESOURCES; /* the second signal: at once */
        return;
    }
    o->draining = true;
    o->drain_by_us = clock_now_us() + (uint64_t)o->cfg.grace_s * CLOCK_SECOND_US;
    log_info("orch.draining", "rows=%d", o->sessions_live);
}

static void progress_drain(orch *o, uint64_t now_us)
{
    if (!o->draining)
        return;
    notify_stopping(&o->note);
    const bool late = now_us >= o->drain_by_us;
    if (o->sessions_live > 0 && !late)
        return;
    if (!o->drain_sent && !late) {
        members_drain_all(o);
        o->drain_sent = true;
    }
    if (members_count_serving(o) == 0 || late) {
        log_info("orch.drained", "rows_done=%" PRIu64 " rows_failed=%" PRIu64 " left=%d", o->rows_done, o->rows_failed,
                 o->sessions_live);
        /* A client wants the farm gone, whatever is left. Who sent a signal may want a successor. */
        const bool for_good = o->sessions_live == 0 || o->drain_client[0];
        o->exit_code = for_good ? PROCESS_DRAINED : PROCESS_NO_RESOURCES;
        if (for_good) {
            members_dismiss_all(o);
            kept_forget(o);
        }
        if (o->drain_client[0])
            requests_tell_end(o);
    }
}

#define ENROLL_FDS 4
#define FIXED_FDS  (ENROLL_FDS + 2 * ENROLL_JOBS_MAX)

/* fds: listen, signal, writer, journal, two per enrollment, then two per connection: lifeline, pidfd. */
static size_t collect_fds(const orch *o, struct pollfd *fds, int *conn_of)
{
    size_t n = 0;
    fds[n++].fd = o->listen_fd;
    fds[n++].fd = o->signal_fd;
    fds[n++].fd = writer_fd(o->out);
    fds[n++].fd = journal_fd(o->log);
    n += orch_enroll_fds(o, fds + n);
    for (int i = 0; i < CONNS_MAX; i++)
        if (o->conns[i].state != CONN_FREE) {
            conn_of[n] = i;
            fds[n++].fd = o->conns[i].fd;
            conn_of[n] = i;
            fds[n++].fd = o->conns[i].pid_fd;
        }
    return n;
}

static void read_conns(orch *o, const struct pollfd *fds, const int *conn_of, size_t count)
{
    for (size_t n = FIXED_FDS; n + 1 < count; n += 2) {
        conn *c = &o->conns[conn_of[n]];
        if (fds[n].revents && c->state != CONN_FREE && c->fd == fds[n].fd)
            members_read(o, conn_of[n]);
        /* What it said before it died has been read above; end of file may come first or the pidfd, either decides. */
        if (fds[n + 1].revents && c->state != CONN_FREE && c->pid_fd == fds[n + 1].fd)
            members_lose(o, conn_of[n], "process ended");
    }
}

static cf_err run_once(orch *o, uint64_t *last_us)
{
    cf_err err;
    struct pollfd fds[FIXED_FDS + 2 * CONNS_MAX] = {{0}};
    int conn_of[FIXED_FDS + 2 * CONNS_MAX];
    int bus_ready = 0;
    const size_t count = collect_fds(o, fds, conn_of);
    TRY(bus_poll(o->b, fds, count, *last_us + TICK_US, &bus_ready));
    const uint64_t now_us = clock_now_us();
    notify_alive(&o->note, now_us);
    const bool was_asleep = health_overslept(*last_us, now_us, TICK_US);
    if (bus_ready)
        read_bus(o);
    if (fds[2].revents)
        take_written(o);
    orch_enroll_read(o, fds + ENROLL_FDS);
    orch_enroll_tick(o);
    begin_again(o);
    if (fds[3].revents)
        requests_tell_accepted(o);
    read_conns(o, fds, conn_of, count);
    if (fds[0].revents)
        TRY(members_accept(o));
    if (fds[1].revents)
        on_signal(o);
    if (now_us - *last_us >= TICK_US) {
        members_check_silence(o, now_us, was_asleep);
        steer_tick(o, now_us);
        end_overdue(o, now_us);
        orch_apply(o, &(core_event){.kind = CORE_TICK});
        *last_us = now_us;
    }
    progress_drain(o, now_us);
out:
    return err;
}

int orch_run(orch *o)
{
    uint64_t last_us = clock_now_us();
    while (o->exit_code < 0) {
        const cf_err err = run_once(o, &last_us);
        if (err != CF_OK) {
            log_error("orch.broken", "code=%s text=\"%s\"", err_name(err), err_text());
            return PROCESS_NO_RESOURCES;
        }
    }
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL); /* zmq's thread sends the last answers; LINGER is 0 */
    return o->exit_code;
}
