/*
 * sim_shell.c - what the orchestrator's shell does around the core, in virtual time: joins and outboxes, messages of
 * workers, silence, the journal, restarts, actions. The simulator's one thread.
 *
 * Messages of dead lives are handed to the core on purpose (the real shell drops them by generation): the core says
 * that it ignores what names unknown jobs. Only those of a former orchestrator are dropped, since job numbers begin
 * anew. Fails: sim_fail.
 */
#include "tests/sim/sim.h"

#include <inttypes.h>
#include <string.h>

/* Outboxes of flow workers that the core knows: what a new hift has to be shown. */
static uint32_t flow_boxes[CORE_BOXES_MAX];
static int32_t flow_boxes_count;
static int32_t lost[MEMBERS_MAX];
static int32_t lost_count;
static bool applying;

/* ---- actions ---- */

static void lose(int32_t member)
{
    const int32_t worker = the_sim.worker_of[member];
    sim_trace("member %d lost", member);
    the_sim.worker_of[member] = -1;
    the_sim.workers[worker].member = -1;
    if (the_sim.workers[worker].state != WORKER_DOWN &&
        the_sim.workers[worker].member_life == the_sim.workers[worker].life)
        worker_end(worker, 0); /* killed */
    shell_apply(&(core_event){.kind = CORE_LOST, .member = member});
}

static void do_work(const core_action *a)
{
    const int32_t worker = the_sim.worker_of[a->member], row = the_sim.row_of[a->utterance];
    if (worker < 0 || row < 0)
        return;
    sim_trace("row %d segment %d: job %" PRIu64 " stage %d, %d frames, to member %d", row, a->segment,
              a->job / CORE_SEGMENTS_MAX, a->stage, a->frames, a->member);
    if (sim_chance(0.001) && !the_sim.calm)
        lose(a->member); /* the send failed */
    else
        worker_take(worker, a, row);
}

static void end_row(int32_t utterance, bool finished, cf_err code)
{
    const int32_t row = the_sim.row_of[utterance];
    SIM_CHECK(row >= 0, "utterance %d ends, and is no row", utterance);
    sim_row *r = &the_sim.rows[row];
    the_sim.row_of[utterance] = -1;
    r->utterance = -1;
    the_sim.live_rows--;
    r->end_synced = false;
    sim_at(the_sim.now_us + sim_between(0, 20000), (sim_event){.kind = SIM_END_SYNC, .who = row, .boot = the_sim.boot});
    client_ended(row, finished, code);
}

static void do_bar(const core_action *a)
{
    the_sim.bars++;
    sim_trace("worker %d.%d barred for %.1f s", a->stage, a->segment, (double)a->pause_us / 1e6);
    for (int32_t i = 0; i < the_sim.workers_count; i++)
        if (the_sim.workers[i].stage == a->stage && the_sim.workers[i].instance == a->segment && !the_sim.calm &&
            sim_chance(0.2))
            sim_at(the_sim.now_us + 5000000, (sim_event){.kind = SIM_RESUME, .who = i});
}

static void perform(const core_action *a)
{
    switch (a->kind) {
    case CORE_DO_WORK:
        do_work(a);
        break;
    case CORE_DO_CANCEL:
        if (the_sim.worker_of[a->member] >= 0)
            worker_cancel(the_sim.worker_of[a->member], a->job);
        break;
    case CORE_DO_FINISH:
        end_row(a->utterance, true, CF_OK);
        break;
    case CORE_DO_FAIL:
        end_row(a->utterance, false, a->code);
        break;
    case CORE_DO_RELEASE:
        for (int32_t i = 0; i < flow_boxes_count; i++)
            if (flow_boxes[i] == a->in.outbox_id)
                flow_boxes[i] = flow_boxes[--flow_boxes_count];
        break;
    case CORE_DO_BAR:
        do_bar(a);
        break;
    case CORE_DO_PAROLE:
        the_sim.paroles++;
        sim_trace("worker %d.%d on parole", a->stage, a->segment);
        break;
    case CORE_DO_CLEAR:
        the_sim.clears++;
        sim_trace("worker %d.%d passed its parole", a->stage, a->segment);
        break;
    case CORE_DO_COLLECT: /* sim_check.c looks at what it reads */
    case CORE_DO_FORGET:
        break;
    }
}

void shell_apply(const core_event *event)
{
    if (applying) {
        SIM_CHECK(event->kind == CORE_LOST && lost_count < MEMBERS_MAX, "an event inside of an event");
        lost[lost_count++] = event->member;
        return;
    }
    static core_action actions[CORE_ACTIONS_MAX];
    applying = true;
    core_event next = *event;
    for (;;) {
        check_before(&next);
        orch_core_step(&the_sim.core, &next, the_sim.now_us);
        the_sim.steps++;
        const int32_t count = the_sim.core.actions_count;
        memcpy(actions, the_sim.core.actions, (size_t)count * sizeof actions[0]);
        for (int32_t i = 0; i < count; i++)
            check_action(&actions[i]);
        check_after();
        for (int32_t i = 0; i < count; i++)
            perform(&actions[i]);
        if (lost_count > 0)
            next = (core_event){.kind = CORE_LOST, .member = lost[--lost_count]};
        else if (the_sim.core.more)
            next = (core_event){.kind = CORE_TICK};
        else
            break;
    }
    applying = false;
}

/* ---- joining ---- */

static void grant(int32_t hift, uint32_t outbox_id)
{
    const sim_worker *w = &the_sim.workers[hift];
    const uint64_t after_us = sim_chance(0.1) ? sim_between(0, 3000000) : sim_between(100, 50000);
    sim_at(the_sim.now_us + after_us,
           (sim_event){.kind = SIM_OPENED, .who = hift, .life = w->life, .boot = the_sim.boot, .number = outbox_id});
}

static void serve(int32_t worker)
{
    sim_worker *w = &the_sim.workers[worker];
    int32_t member = 0;
    while (the_sim.worker_of[member] >= 0)
        member++;
    the_sim.worker_of[member] = worker;
    w->member = member;
    w->member_life = w->life;
    w->state = WORKER_SERVING;
    w->served = true;
    health_begin(&the_sim.alive[member], the_sim.now_us);
    sim_trace("member %d: worker %d.%d life %u, outbox %u", member, w->stage, w->instance, w->life, w->outbox_id);
    if (w->stage == CORE_FLOW)
        flow_boxes[flow_boxes_count++] = w->outbox_id;
    shell_apply(&(core_event){.kind = CORE_JOINED,
                              .member = member,
                              .stage = w->stage,
                              .instance = w->instance,
                              .paused = the_sim.paused[worker],
                              .rows_max = w->rows_max,
                              .frames_max = w->frames_max,
                              .outbox_id = w->outbox_id,
                              .outbox_bytes = w->outbox_id ? the_sim.plan.outbox_bytes : 0});
    for (int32_t i = 0; i < flow_boxes_count && w->stage == CORE_HIFT && w->member >= 0; i++)
        grant(worker, flow_boxes[i]);
    for (int32_t i = 0; i < the_sim.workers_count && w->stage == CORE_FLOW && w->member >= 0; i++)
        if (the_sim.workers[i].stage == CORE_HIFT && the_sim.workers[i].state == WORKER_SERVING)
            grant(i, w->outbox_id);
}

static void on_hello(const sim_event *e)
{
    sim_worker *w = &the_sim.workers[e->who];
    if (w->life != e->life || w->state != WORKER_LOADING || w->hello_boot == the_sim.boot)
        return;
    if (w->silent || w->deaf) { /* what is deaf waits for its last step before it connects again */
        sim_at(the_sim.now_us + 200000, *e);
        return;
    }
    w->hello_boot = the_sim.boot;
    health_begin(&w->coming, the_sim.now_us);
    w->coming.has_jobs = true;
    sim_at(the_sim.now_us + sim_between(100000, 2000000),
           (sim_event){.kind = SIM_JOIN, .who = e->who, .life = w->life, .boot = the_sim.boot});
}

static void on_join(const sim_event *e)
{
    sim_worker *w = &the_sim.workers[e->who];
    if (w->life != e->life || w->state != WORKER_LOADING || w->stuck)
        return;
    if (w->silent) {
        sim_at(the_sim.now_us + 200000, *e); /* when it goes on */
        return;
    }
    if (w->stage != CORE_LLM && !orch_core_has_box(&the_sim.core)) {
        sim_at(the_sim.now_us + 1000000, *e);
        return;
    }
    w->outbox_id = w->stage == CORE_LLM ? 0 : ++the_sim.next_outbox;
    if (w->stage == CORE_LLM) {
        serve(e->who);
        return;
    }
    w->state = WORKER_JOINING;
    health_begin(&w->coming, the_sim.now_us);
    sim_at(the_sim.now_us + sim_between(1000, 20000),
           (sim_event){.kind = SIM_MEMORY, .who = e->who, .life = w->life, .boot = the_sim.boot});
}

static void on_memory(const sim_event *e)
{
    sim_worker *w = &the_sim.workers[e->who];
    if (w->life != e->life || w->state != WORKER_JOINING)
        return;
    if (the_sim.keeper_up && w->asked_us == 0)
        w->asked_us = the_sim.now_us;
    if (!the_sim.keeper_up || the_sim.keeper_hangs || w->silent) { /* asked again when there is one; says it then */
        sim_at(the_sim.now_us + 300000, *e);
        return;
    }
    w->asked_us = 0;
    serve(e->who);
}

/* ---- messages, silence ---- */

/* The journal keeps tokens of rows that live, before the core moves the segment on. */
static void keep_tokens(const core_event *m)
{
    const core_segment *s = orch_core_find_job(&the_sim.core, m->member, m->job);
    const int32_t row = s ? the_sim.row_of[s->utterance] : -1;
    if (row >= 0 && s->stage == CORE_LLM && m->tokens > 0 && m->tokens <= TOKENS_MAX)
        the_sim.rows[row].costs[s->idx].known_tokens = m->tokens;
}

static void on_message(const sim_event *e)
{
    const sim_worker *w = &the_sim.workers[e->who];
    const bool present = w->life == e->life && w->member == e->message.member;
    const core_event *m = &e->message;
    if (present)
        health_heard(&the_sim.alive[m->member], the_sim.now_us);
    if (m->kind == CORE_TICK) { /* a beat */
        if (present)
            health_beat(&the_sim.alive[m->member], e->number, the_sim.core.members[m->member].rows_held > 0,
                        the_sim.now_us);
        return;
    }
    if (!present && m->kind != CORE_READY && m->kind != CORE_FAILED)
        return;
    sim_trace("member %d%s: %s %" PRIu64, m->member, present ? "" : " (gone)",
              m->kind == CORE_READY    ? "ready"
              : m->kind == CORE_FAILED ? err_name(m->code)
                                       : "draining",
              m->job / CORE_SEGMENTS_MAX);
    if (m->kind == CORE_READY)
        keep_tokens(m);
    shell_apply(m);
}

static void check_silence(bool overslept)
{
    for (int32_t m = 0; m < MEMBERS_MAX; m++) {
        if (the_sim.worker_of[m] < 0)
            continue;
        if (overslept)
            health_excuse(&the_sim.alive[m], the_sim.now_us);
        if (health_judge(&the_sim.alive[m], &the_sim.plan.limits, the_sim.now_us) == HEALTH_FINE)
            continue;
        const sim_worker *w = &the_sim.workers[the_sim.worker_of[m]];
        const health_limits *l = &the_sim.plan.limits;
        const uint64_t least_us = l->silence_us < l->stall_us ? l->silence_us : l->stall_us;
        /* Its last word may have been half a second old, and two on the way. */
        const bool ended = w->state == WORKER_DOWN || w->life != w->member_life;
        SIM_CHECK(ended || (w->deaf_us > 0 && the_sim.now_us - w->deaf_us + 2500000 >= least_us),
                  "worker %d.%d is ended, and did its part", w->stage, w->instance);
        the_sim.kills++;
        lose(m);
    }
}

/* ---- who hangs before it serves ---- */

void shell_hear_coming(int32_t worker)
{
    sim_worker *w = &the_sim.workers[worker];
    if (the_sim.orch_up && w->hello_boot == the_sim.boot)
        health_heard(&w->coming, the_sim.now_us);
}

static void end_hung(int32_t worker, const char *why)
{
    sim_trace("worker %d.%d %s", the_sim.workers[worker].stage, the_sim.workers[worker].instance, why);
    the_sim.hangs++;
    worker_end(worker, 0);
}

/* It may have gone on a moment ago, or be about to end. */
static bool has_hung(const sim_worker *w)
{
    const uint64_t silence_us = the_sim.plan.limits.silence_us, load_us = the_sim.plan.load_us;
    const uint64_t least_us = silence_us < load_us ? silence_us : load_us;
    return w->ending || w->stuck || (w->deaf_us > 0 && the_sim.now_us - w->deaf_us + 2500000 >= least_us);
}

/* The supervisor's part: whom the orchestrator has not seen. It does not know that the orchestrator was asleep. */
static void check_unseen(int32_t worker)
{
    const sim_worker *w = &the_sim.workers[worker];
    const uint64_t limit_us = w->served ? the_sim.plan.limits.stall_us : the_sim.plan.limits.silence_us;
    const uint64_t since_us = w->unseen_us > the_sim.boot_us ? w->unseen_us : the_sim.boot_us;
    if (the_sim.now_us - since_us <= limit_us)
        return;
    SIM_CHECK(has_hung(w) || the_sim.asleep_until_us > w->unseen_us, "worker %d.%d is ended unseen, and did come",
              w->stage, w->instance);
    end_hung(worker, "never says who it is");
}

static void check_coming(int32_t worker, bool overslept)
{
    sim_worker *w = &the_sim.workers[worker];
    const bool loads = w->state == WORKER_LOADING;
    const health_limits limits = {.silence_us = the_sim.plan.limits.silence_us,
                                  .stall_us = loads ? the_sim.plan.load_us : the_sim.plan.limits.stall_us};
    if (overslept)
        health_excuse(&w->coming, the_sim.now_us);
    if (health_judge(&w->coming, &limits, the_sim.now_us) == HEALTH_FINE)
        return;
    SIM_CHECK(has_hung(w), "worker %d.%d is ended before it serves, and did its part", w->stage, w->instance);
    end_hung(worker, "hangs before it serves");
}

/* Whoever waits for memory does its part. */
static void check_keeper(bool overslept)
{
    bool late = false;
    for (int32_t i = 0; i < the_sim.workers_count; i++) {
        sim_worker *w = &the_sim.workers[i];
        if (overslept && w->asked_us > 0)
            w->asked_us = the_sim.now_us;
        late = late || (the_sim.keeper_up && the_sim.keeper_hangs && w->state == WORKER_JOINING && w->asked_us > 0 &&
                        the_sim.now_us - w->asked_us > the_sim.plan.limits.silence_us);
    }
    if (!late)
        return;
    sim_trace("keeper is ended");
    the_sim.hangs++;
    the_sim.keeper_up = false;
    sim_at(the_sim.now_us + sim_between(100000, 2000000), (sim_event){.kind = SIM_KEEPER_UP});
}

static void check_starting(bool overslept)
{
    for (int32_t i = 0; i < the_sim.workers_count; i++) {
        const sim_worker *w = &the_sim.workers[i];
        if (w->state != WORKER_LOADING && w->state != WORKER_JOINING)
            continue;
        if (w->hello_boot == the_sim.boot)
            check_coming(i, overslept);
        else
            check_unseen(i);
    }
    check_keeper(overslept);
}

static void on_tick(void)
{
    const bool overslept = health_overslept(the_sim.last_tick_us, the_sim.now_us, SIM_TICK_US);
    check_silence(overslept);
    check_starting(overslept);
    the_sim.last_tick_us = the_sim.now_us;
    shell_apply(&(core_event){.kind = CORE_TICK});
    if (the_sim.steps % 64 == 0)
        check_deep();
    sim_at(the_sim.now_us + SIM_TICK_US, (sim_event){.kind = SIM_TICK, .boot = the_sim.boot});
}

static void on_resume(const sim_event *e)
{
    const sim_worker *w = &the_sim.workers[e->who];
    const bool paused = e->number != 0;
    if (paused && the_sim.calm)
        return; /* an order that came late */
    the_sim.paused[e->who] = paused;
    sim_trace("operator: worker %d.%d %s", w->stage, w->instance, paused ? "drain" : "resume");
    if (!paused)
        shell_apply(&(core_event){.kind = CORE_PARDON, .stage = w->stage, .instance = w->instance});
    if (w->member >= 0)
        shell_apply(&(core_event){.kind = CORE_PAUSE, .member = w->member, .paused = paused});
}

void shell_spoil(void)
{
    uint32_t boxes[CORE_BOXES_MAX];
    const int32_t count = flow_boxes_count;
    sim_trace("its memory is lost");
    memcpy(boxes, flow_boxes, sizeof boxes); /* releases change the list */
    for (int32_t i = 0; i < the_sim.workers_count; i++)
        worker_spoil(i);
    for (int32_t i = 0; i < count; i++)
        shell_apply(&(core_event){.kind = CORE_SPOILED, .outbox_id = boxes[i]});
}

/* ---- restarts ---- */

void shell_crash(void)
{
    sim_trace("orchestrator dies");
    the_sim.restarts++;
    the_sim.orch_up = false;
    the_sim.boot++;
    the_sim.asleep_until_us = 0;
    for (int32_t i = 0; i < the_sim.plan.rows_count; i++)
        the_sim.rows[i].utterance = -1;
    for (int32_t i = 0; i < the_sim.workers_count; i++) /* drained ones stay drained */
        worker_disconnect(i);
    sim_at(the_sim.now_us + sim_between(100000, 3000000), (sim_event){.kind = SIM_ORCH_UP});
}

/* Rows that the journal holds go on; those whose end it had not written end once more. */
static void recover(void)
{
    for (int32_t i = 0; i < the_sim.plan.rows_count; i++) {
        sim_row *r = &the_sim.rows[i];
        if (!r->accepted || (r->ends > 0 && r->end_synced))
            continue;
        r->ends_due = r->ends + 1;
        client_event(&(sim_event){.kind = SIM_SUBMIT, .who = i, .number = 1});
        SIM_CHECK(r->utterance >= 0 || r->ends > 0, "row %d was accepted, and is not taken on after a restart", i);
    }
}

void shell_boot(void)
{
    the_sim.orch_up = true;
    the_sim.boot++;
    the_sim.boot_us = the_sim.now_us;
    the_sim.next_outbox = 0;
    the_sim.live_rows = 0;
    the_sim.last_tick_us = the_sim.now_us;
    flow_boxes_count = lost_count = 0;
    applying = false;
    for (int32_t i = 0; i < MEMBERS_MAX; i++)
        the_sim.worker_of[i] = -1;
    for (int32_t i = 0; i < UTTERANCES_MAX; i++)
        the_sim.row_of[i] = -1;
    orch_core_init(&the_sim.core, &the_sim.plan.core);
    check_reset();
    sim_trace("orchestrator boot %" PRIu64, the_sim.boot);
    recover();
    sim_at(the_sim.now_us + SIM_TICK_US, (sim_event){.kind = SIM_TICK, .boot = the_sim.boot});
}

void shell_sleep(uint64_t until_us)
{
    sim_trace("orchestrator is stopped for %.1f s", (double)(until_us - the_sim.now_us) / 1e6);
    the_sim.asleep_until_us = until_us;
}

static void keeper_comes(void)
{
    the_sim.keeper_up = true;
    the_sim.keeper_hangs = false;
    for (int32_t i = 0; i < the_sim.workers_count; i++)
        the_sim.workers[i].asked_us = 0;
}

bool shell_hears(sim_event *e)
{
    if (e->kind == SIM_ORCH_UP || e->kind == SIM_KEEPER_UP)
        return true;
    if (!the_sim.orch_up && (e->kind == SIM_HELLO || e->kind == SIM_RESUME)) {
        sim_at(the_sim.now_us + 200000, *e);
        return false;
    }
    if (e->kind != SIM_HELLO && e->kind != SIM_RESUME && e->boot != the_sim.boot)
        return false;
    if (the_sim.now_us < the_sim.asleep_until_us) {
        sim_at(the_sim.asleep_until_us, *e);
        return false;
    }
    return true;
}

void shell_event(const sim_event *e)
{
    if (e->kind == SIM_SYNC || e->kind == SIM_END_SYNC) { /* of a row, all others are of workers */
        the_sim.rows[e->who].accepted |= e->kind == SIM_SYNC;
        the_sim.rows[e->who].end_synced |= e->kind == SIM_END_SYNC;
        return;
    }
    const sim_worker *w = &the_sim.workers[e->who];
    if (e->kind == SIM_ORCH_UP)
        shell_boot();
    else if (e->kind == SIM_KEEPER_UP)
        keeper_comes();
    else if (e->kind == SIM_HELLO)
        on_hello(e);
    else if (e->kind == SIM_JOIN)
        on_join(e);
    else if (e->kind == SIM_MEMORY)
        on_memory(e);
    else if (e->kind == SIM_OPENED && w->life == e->life && w->member >= 0)
        shell_apply(&(core_event){.kind = CORE_OPENED, .member = w->member, .outbox_id = (uint32_t)e->number});
    else if (e->kind == SIM_MESSAGE)
        on_message(e);
    else if (e->kind == SIM_LOST && w->member >= 0 && w->member == (int32_t)e->number)
        lose(w->member);
    else if (e->kind == SIM_TICK)
        on_tick();
    else if (e->kind == SIM_RESUME)
        on_resume(e);
}
