/*
 * orch_core.c - utterances, segments, members and slots as a state machine. Pure: reads no clock, opens nothing,
 * allocates nothing. Runs in the orchestrator's one thread and in the simulator.
 *
 * Invariants: a RUN segment has exactly one live member and counts in its rows_held; an out slot is LEASED exactly
 * while its segment is RUN; an in slot is COMMITTED from flow's READY until hift's answer; a job number is used once.
 * Fails: never by return value. Asserts its invariants. Events that name what no longer exists are ignored.
 */
#include "orchestrator/orch_core_impl.h"

#include <string.h>

#include "common/base/check.h"

void orch_core_init(orch_core *core, const core_limits *limits)
{
    memset(core, 0, sizeof *core);
    core->limits = *limits;
    core->next_job = 1;
    for (int32_t i = 0; i < CORE_SEGMENTS_MAX; i++)
        core->segments[i].next = i + 1 < CORE_SEGMENTS_MAX ? i + 1 : -1;
    core->free_segments_count = CORE_SEGMENTS_MAX;
}

bool orch_core_has_room(const orch_core *core, int32_t segments_count)
{
    if (segments_count > core->free_segments_count)
        return false;
    /* Not order_count: ended ones keep their number until no member holds any of their segments. */
    for (int32_t i = 0; i < UTTERANCES_MAX; i++)
        if (core->utterances[i].state == UTTERANCE_FREE)
            return true;
    return false;
}

bool orch_core_has_box(const orch_core *core)
{
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++)
        if (core->boxes[i].outbox_id == 0)
            return true;
    return false;
}

/* Scheduling and cancelling stop early enough that the rest always fits: in one step at most every utterance fails and
 * is forgotten, every outbox is released, and every member goes on parole (core_act asserts it). */
#define ACTIONS_KEPT_FREE (CORE_ACTIONS_MAX / 2)

core_action *core_act(orch_core *core, core_action_kind kind)
{
    CF_ASSERT(core->actions_count < CORE_ACTIONS_MAX);
    core_action *a = &core->actions[core->actions_count++];
    *a = (core_action){.kind = kind, .member = -1, .utterance = -1, .segment = -1};
    return a;
}

static slot_box *box_of(orch_core *core, uint32_t outbox_id)
{
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++)
        if (core->boxes[i].outbox_id == outbox_id)
            return &core->boxes[i];
    CF_ASSERT(0 && "outbox is unknown");
    return NULL;
}

static void release_if_drained(orch_core *core, slot_box *box)
{
    if (!slots_drained(box))
        return;
    core_act(core, CORE_DO_RELEASE)->in.outbox_id = box->outbox_id;
    const int32_t idx = (int32_t)(box - core->boxes);
    for (int32_t m = 0; m < MEMBERS_MAX; m++)
        core->members[m].opened[idx] = false;
    box->outbox_id = 0;
}

static void consume_in(orch_core *core, core_segment *s)
{
    if (s->in.outbox_id == 0)
        return;
    slot_box *box = box_of(core, s->in.outbox_id);
    slots_consume(box, s->in.off_bytes);
    s->in = (core_slot){0};
    release_if_drained(core, box);
}

/* Takes a RUN segment off its member; its out slot, if still leased, is dropped. */
static void leave_member(orch_core *core, core_segment *s)
{
    core_member *m = &core->members[s->member];
    CF_ASSERT(s->state == SEGMENT_RUN);
    CF_ASSERT(m->rows_held > 0);
    m->rows_held--;
    m->frames_held -= s->credit_frames;
    if (m->reserved_for == (int32_t)(s - core->segments))
        m->reserved_for = -1;
    if (s->out.outbox_id != 0)
        slots_drop(box_of(core, s->out.outbox_id), s->out.off_bytes);
    s->out = (core_slot){0};
    s->member = -1;
    s->credit_frames = 0;
}

static void set_state(core_segment *s, core_segment_state state, uint64_t now_us)
{
    s->state = state;
    s->since_us = now_us;
}

/* An ENDED utterance disappears when no member holds any of its segments. */
static void forget_if_idle(orch_core *core, int32_t utterance)
{
    core_utterance *u = &core->utterances[utterance];
    if (u->state != UTTERANCE_ENDED)
        return;
    for (int32_t i = u->first_segment; i >= 0; i = core->segments[i].next)
        if (core->segments[i].state == SEGMENT_RUN)
            return;
    int32_t last = u->first_segment;
    for (int32_t i = last; i >= 0; i = core->segments[i].next) {
        consume_in(core, &core->segments[i]);
        core->segments[i].state = SEGMENT_FREE;
        for (int32_t m = 0; m < MEMBERS_MAX; m++)
            if (core->members[m].reserved_for == i)
                core->members[m].reserved_for = -1;
        last = i;
    }
    core->segments[last].next = core->free_segment;
    core->free_segment = u->first_segment;
    core->free_segments_count += u->segments_count;
    u->state = UTTERANCE_FREE;
    core_act(core, CORE_DO_FORGET)->utterance = utterance;
}

static void end_utterance(orch_core *core, int32_t utterance)
{
    core_utterance *u = &core->utterances[utterance];
    CF_ASSERT(u->state == UTTERANCE_LIVE);
    u->state = UTTERANCE_ENDED;
    int32_t at = 0;
    while (core->order[at] != utterance)
        at++;
    core->order_count--;
    memmove(&core->order[at], &core->order[at + 1], (size_t)(core->order_count - at) * sizeof core->order[0]);
    for (int32_t i = u->first_segment; i >= 0; i = core->segments[i].next) {
        const core_segment *s = &core->segments[i];
        /* A cancel only saves work: when the list is nearly full, the job runs to its end and is dropped then. */
        if (s->state == SEGMENT_RUN && core->actions_count < ACTIONS_KEPT_FREE) {
            core_action *a = core_act(core, CORE_DO_CANCEL);
            a->member = s->member;
            a->job = s->job;
        }
    }
    forget_if_idle(core, utterance);
}

static void fail_utterance(orch_core *core, const core_segment *s, cf_err code)
{
    core_action *a = core_act(core, CORE_DO_FAIL);
    a->utterance = s->utterance;
    a->segment = s->idx;
    a->stage = s->stage;
    a->code = code;
    a->deaths = s->deaths;
    end_utterance(core, s->utterance);
}

/* ---- events ---- */

static void on_joined(orch_core *core, const core_event *e)
{
    core_member *m = &core->members[e->member];
    CF_ASSERT(!m->live);
    *m = (core_member){.live = true,
                       .stage = e->stage,
                       .instance = e->instance,
                       .paused = e->paused,
                       .rows_max = e->rows_max,
                       .frames_max = e->frames_max,
                       .box = -1,
                       .reserved_for = -1};
    if (e->outbox_id == 0)
        return;
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++)
        if (core->boxes[i].outbox_id == 0) {
            slots_init(&core->boxes[i], e->outbox_id, e->outbox_bytes);
            m->box = i;
            return;
        }
    CF_ASSERT(0 && "no room for an outbox"); /* the shell asks orch_core_has_box first */
}

/* The row that ran alone on a member; NULL: none did. A member may also be kept for a segment while another one, the
 * last that it was given before, still runs there. */
static core_segment *alone_on(orch_core *core, int32_t member)
{
    const core_member *m = &core->members[member];
    core_segment *s = m->reserved_for >= 0 ? &core->segments[m->reserved_for] : NULL;
    return s && s->state == SEGMENT_RUN && s->member == member ? s : NULL;
}

/* Suspected after deaths_max - 1 deaths, it runs alone; given up when two deaths hit it alone: one may come from
 * outside. */
static bool is_poison(const orch_core *core, const core_segment *s)
{
    return s->deaths >= core->limits.deaths_max && s->alone_deaths >= ALONE_DEATHS_MAX;
}

/* Was this death the row's fault? One on parole is charged from the second on that the row was in: were it never
 * charged, poison that is left alone with barred workers would be tried for ever. */
static bool is_charged(core_segment *s, culprit who)
{
    return who == CULPRIT_ROWS || (who == CULPRIT_PAROLE && s->parole_deaths++ > 0);
}

/* Takes back what a lost member held. alone: the row that was there by itself, or NULL. */
static void take_back(orch_core *core, int32_t member, const core_segment *alone, culprit who, uint64_t now_us)
{
    for (int32_t i = 0; i < CORE_SEGMENTS_MAX; i++) {
        core_segment *s = &core->segments[i];
        if (s->state != SEGMENT_RUN || s->member != member)
            continue;
        leave_member(core, s);
        const bool charged = is_charged(s, who);
        s->deaths += charged;
        s->alone_deaths += charged && (s == alone || who == CULPRIT_PAROLE);
        set_state(s, SEGMENT_WAIT, now_us);
        core->jobs_replayed++;
        core->utterances[s->utterance].attempts++;
    }
}

static void on_lost(orch_core *core, const core_event *e, uint64_t now_us)
{
    core_member *m = &core->members[e->member];
    if (!m->live)
        return;
    const core_segment *alone = alone_on(core, e->member);
    const culprit who = core_blame(core, m, alone != NULL, now_us);
    take_back(core, e->member, alone, who, now_us);
    if (alone && who == CULPRIT_ROWS)
        core_record_of(core, m)->gave_up_a_row |= is_poison(core, alone);
    m->live = false;
    if (m->box >= 0) {
        slots_retire(&core->boxes[m->box]);
        release_if_drained(core, &core->boxes[m->box]);
    }
    /* Only now, when nothing runs on the dead member, can utterances end. */
    for (int32_t i = 0; i < CORE_SEGMENTS_MAX; i++) {
        const core_segment *s = &core->segments[i];
        if (s->state != SEGMENT_WAIT)
            continue;
        if (core->utterances[s->utterance].state == UTTERANCE_ENDED)
            forget_if_idle(core, s->utterance);
        else if (is_poison(core, s))
            fail_utterance(core, s, CF_ERR_GONE);
    }
}

static void on_pardon(orch_core *core, const core_event *e)
{
    core->records[e->stage][e->instance] = (core_record){0};
}

static void on_opened(orch_core *core, const core_event *e)
{
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++)
        if (core->boxes[i].outbox_id == e->outbox_id && e->outbox_id != 0)
            core->members[e->member].opened[i] = true;
}

/* The mel of a waiting segment is lost: flow makes it again of the tokens. */
static void back_to_flow(orch_core *core, core_segment *s, uint64_t now_us)
{
    consume_in(core, s);
    s->stage = CORE_FLOW;
    s->deaths = s->alone_deaths = 0;
    set_state(s, SEGMENT_WAIT, now_us);
    core->jobs_replayed++;
    if (++s->rereads > REREADS_MAX)
        fail_utterance(core, s, CF_ERR_STALE);
}

static void on_spoiled(orch_core *core, const core_event *e, uint64_t now_us)
{
    for (int32_t i = 0; i < CORE_SEGMENTS_MAX && e->outbox_id != 0; i++) {
        core_segment *s = &core->segments[i];
        if (s->state == SEGMENT_WAIT && s->in.outbox_id == e->outbox_id &&
            core->utterances[s->utterance].state == UTTERANCE_LIVE)
            back_to_flow(core, s, now_us);
    }
}

static bool goes_before(const core_utterance *u, const core_utterance *than)
{
    return u->priority != than->priority ? u->priority > than->priority : u->row < than->row;
}

static void on_submit(orch_core *core, const core_event *e, uint64_t now_us)
{
    core_utterance *u = &core->utterances[e->utterance];
    CF_ASSERT(u->state == UTTERANCE_FREE);
    CF_ASSERT(e->segments_count > 0 && orch_core_has_room(core, e->segments_count));
    *u = (core_utterance){.state = UTTERANCE_LIVE,
                          .first_segment = core->free_segment,
                          .segments_count = e->segments_count,
                          .priority = e->priority,
                          .attempts = 1,
                          .speed = e->speed,
                          .row = e->row,
                          .deadline_us = e->deadline_us};
    int32_t i = core->free_segment;
    for (int32_t n = 0; n < e->segments_count; n++) {
        core_segment *s = &core->segments[i];
        const int32_t next = s->next;
        *s = (core_segment){.utterance = e->utterance, .idx = n, .next = next, .member = -1, .cost = e->segments[n]};
        s->tokens = s->cost.known_tokens;
        s->stage = s->tokens > 0 ? CORE_FLOW : CORE_LLM;
        set_state(s, SEGMENT_WAIT, now_us);
        if (n + 1 == e->segments_count) {
            s->next = -1;
            core->free_segment = next;
        }
        i = next;
    }
    core->free_segments_count -= e->segments_count;
    int32_t at = core->order_count;
    while (at > 0 && goes_before(u, &core->utterances[core->order[at - 1]]))
        at--;
    memmove(&core->order[at + 1], &core->order[at], (size_t)(core->order_count - at) * sizeof core->order[0]);
    core->order[at] = e->utterance;
    core->order_count++;
}

static core_segment *running_job(orch_core *core, const core_event *e)
{
    core_segment *s = &core->segments[e->job % CORE_SEGMENTS_MAX];
    return s->state == SEGMENT_RUN && s->job == e->job && s->member == e->member ? s : NULL;
}

const core_segment *orch_core_find_job(const orch_core *core, int32_t member, uint64_t job)
{
    return running_job((orch_core *)(uintptr_t)core, &(core_event){.member = member, .job = job});
}

static void collect(orch_core *core, core_segment *s, const core_event *e, uint64_t now_us)
{
    core_utterance *u = &core->utterances[s->utterance];
    core_action *a = core_act(core, CORE_DO_COLLECT);
    a->utterance = s->utterance;
    a->segment = s->idx;
    a->in = s->out;
    a->samples = e->samples;
    leave_member(core, s);
    consume_in(core, s);
    set_state(s, SEGMENT_DONE, now_us);
    if (++u->segments_done < u->segments_count)
        return;
    core_act(core, CORE_DO_FINISH)->utterance = s->utterance;
    end_utterance(core, s->utterance);
}

/* A worker's figures are gossip until they fit what it was asked for. */
static bool plausible(const core_segment *s, const core_event *e)
{
    if (s->stage == CORE_LLM)
        return e->tokens > 0 && e->tokens <= TOKENS_MAX;
    if (s->stage == CORE_FLOW)
        return e->frames == s->frames;
    return e->samples == (int64_t)s->frames * SAMPLES_PER_FRAME;
}

static void on_ready(orch_core *core, const core_event *e, uint64_t now_us)
{
    core_segment *s = running_job(core, e);
    if (!s)
        return;
    const int32_t utterance = s->utterance;
    const core_member *m = &core->members[s->member];
    if (core_record_of(core, m)->standing == STANDING_PAROLE)
        core_act_on_record(core, CORE_DO_CLEAR, m);
    *core_record_of(core, m) = (core_record){0};
    if (core->utterances[utterance].state == UTTERANCE_ENDED) {
        leave_member(core, s);
        set_state(s, SEGMENT_DONE, now_us);
        forget_if_idle(core, utterance);
        return;
    }
    if (!plausible(s, e)) {
        leave_member(core, s);
        set_state(s, SEGMENT_DONE, now_us);
        fail_utterance(core, s, CF_ERR_CORRUPT);
        return;
    }
    if (s->stage == CORE_HIFT) {
        collect(core, s, e, now_us);
        return;
    }
    if (s->stage == CORE_LLM) {
        s->tokens = e->tokens;
    } else {
        slots_commit(box_of(core, s->out.outbox_id), s->out.off_bytes);
        s->in = s->out;
        s->out = (core_slot){0};
    }
    leave_member(core, s);
    s->stage++;
    s->deaths = s->alone_deaths = s->parole_deaths = 0; /* what one stage survived says nothing about the next */
    set_state(s, SEGMENT_WAIT, now_us);
}

static void on_failed(orch_core *core, const core_event *e, uint64_t now_us)
{
    core_segment *s = running_job(core, e);
    if (!s)
        return;
    const int32_t utterance = s->utterance;
    leave_member(core, s);
    if (core->utterances[utterance].state == UTTERANCE_ENDED) {
        set_state(s, SEGMENT_DONE, now_us);
        forget_if_idle(core, utterance);
    } else if (e->code == CF_ERR_CANCELLED) {
        set_state(s, SEGMENT_WAIT, now_us); /* given back by a member that leaves: nobody's fault */
        core->jobs_replayed++;
    } else if (e->code == CF_ERR_STALE && s->in.outbox_id != 0) {
        back_to_flow(core, s, now_us);
    } else {
        set_state(s, SEGMENT_DONE, now_us);
        fail_utterance(core, s, e->code == CF_OK ? CF_ERR_CORRUPT : e->code); /* "failed: ok" is no end of a row */
    }
}

/* ---- scheduling ---- */

static int32_t frames_of(const orch_core *core, const core_segment *s)
{
    return (int32_t)((double)(s->tokens * FRAMES_PER_TOKEN) / core->utterances[s->utterance].speed);
}

/* Frames a job occupies in its stage's packed batch. */
static int32_t credit_frames(const core_segment *s)
{
    if (s->stage == CORE_FLOW)
        return FRAMES_PER_TOKEN * (s->cost.prompt_tokens + s->tokens);
    return s->stage == CORE_HIFT ? s->frames : 0;
}

static bool is_fed(const orch_core *core, const core_member *m, int32_t stage)
{
    return m->live && !m->draining && !m->paused && m->stage == stage &&
           orch_core_standing(core, stage, m->instance) != STANDING_BARRED;
}

static bool is_on_parole(const orch_core *core, const core_member *m)
{
    return orch_core_standing(core, m->stage, m->instance) == STANDING_PAROLE;
}

static bool is_suspect(const orch_core *core, const core_segment *s)
{
    return s->deaths > 0 && s->deaths >= core->limits.deaths_max - 1;
}

/* A row that may be the reason of deaths is no fair trial: a worker on parole gets it when nothing else waits. */
static bool is_doubtful(const orch_core *core, const core_segment *s)
{
    return s->parole_deaths > 0 || is_suspect(core, s);
}

/* One going through what waits at a stage. */
typedef struct turn {
    uint64_t now_us;
    bool kept; /* a member is kept already for the first of this stage that is out of patience; there is one at most */
    bool any_trial;               /* nothing but doubtful rows is left for workers on parole */
    bool is_pace_known, is_paced; /* of the LLM */
} turn;

static bool has_credit(const orch_core *core, const core_member *m, const core_segment *s, int32_t segment_idx,
                       const turn *t)
{
    if (!is_fed(core, m, s->stage))
        return false;
    if (m->reserved_for >= 0 && m->reserved_for != segment_idx)
        return false;
    if (is_on_parole(core, m))
        return m->rows_held == 0 && (t->any_trial || !is_doubtful(core, s));
    if (m->rows_held == 0)
        return true;
    return !is_suspect(core, s) && m->rows_held < m->rows_max && m->frames_held + credit_frames(s) <= m->frames_max;
}

static bool can_read(const orch_core *core, const core_member *m, const core_segment *s)
{
    if (s->in.outbox_id == 0)
        return true;
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++)
        if (core->boxes[i].outbox_id == s->in.outbox_id)
            return m->opened[i];
    return false;
}

static uint64_t out_bytes(const core_segment *s)
{
    if (s->stage == CORE_FLOW)
        return (uint64_t)s->frames * CORE_FRAME_BYTES;
    return s->stage == CORE_HIFT ? (uint64_t)s->frames * SAMPLES_PER_FRAME * CORE_SAMPLE_BYTES : 0;
}

/* Leases the out slot on member m; true when the job can go there. */
static cf_err lease_out(orch_core *core, const core_member *m, core_segment *s)
{
    const uint64_t bytes = out_bytes(s);
    if (bytes == 0)
        return CF_OK;
    CF_ASSERT(m->box >= 0);
    slot_box *box = &core->boxes[m->box];
    cf_err err = slots_lease(box, bytes, &s->out.off_bytes);
    if (err == CF_OK) {
        s->out.outbox_id = box->outbox_id;
        s->out.bytes = bytes;
    }
    return err;
}

static void dispatch(orch_core *core, core_segment *s, int32_t member, bool alone, uint64_t now_us)
{
    core_member *m = &core->members[member];
    s->member = member;
    s->job = core->next_job++ * CORE_SEGMENTS_MAX + (uint64_t)(s - core->segments);
    s->credit_frames = credit_frames(s);
    m->rows_held++;
    m->frames_held += s->credit_frames;
    m->reserved_for = alone ? (int32_t)(s - core->segments) : -1; /* until it leaves */
    core->jobs_dispatched++;
    set_state(s, SEGMENT_RUN, now_us);
    core_action *a = core_act(core, CORE_DO_WORK);
    a->member = member;
    a->utterance = s->utterance;
    a->segment = s->idx;
    a->stage = s->stage;
    a->job = s->job;
    a->in = s->in;
    a->out = s->out;
    a->frames = s->frames;
}

/* The member with the smallest load that has credit; -1: none. */
static int32_t least_loaded(const orch_core *core, const core_segment *s, int32_t segment_idx, const turn *t,
                            const bool *tried)
{
    int32_t best = -1;
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        const core_member *m = &core->members[i];
        if (tried[i] || !has_credit(core, m, s, segment_idx, t) || !can_read(core, m, s))
            continue;
        if (best < 0 || m->rows_held < core->members[best].rows_held)
            best = i;
    }
    return best;
}

/* Members are kept only for suspects that wait for them, or run there. One that has found another member, has moved
 * on, or waits for a member that is fed no more, would keep it idle until its whole row has ended, which may need it.
 * Who is kept a member for out of patience is decided anew each time: somebody may have come who goes first. */
static void drop_stale_reservations(orch_core *core)
{
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        core_member *m = &core->members[i];
        if (!m->live || m->reserved_for < 0)
            continue;
        const core_segment *s = &core->segments[m->reserved_for];
        const bool runs_here = s->state == SEGMENT_RUN && s->member == i;
        const bool waits = s->state == SEGMENT_WAIT && s->stage == m->stage && is_suspect(core, s) &&
                           is_fed(core, m, m->stage) && can_read(core, m, s);
        if (!runs_here && !waits)
            m->reserved_for = -1;
    }
}

static bool is_less_loaded(const core_member *a, const core_member *b)
{
    return a->frames_held != b->frames_held ? a->frames_held < b->frames_held : a->rows_held < b->rows_held;
}

/* Keeps a member for the segment: it gets nothing else and empties meanwhile. The one with the least load, so that a
 * choice made anew is never further from being ready; none on parole, which is idle by itself. False: there is none. */
static bool reserve(orch_core *core, const core_segment *s, int32_t segment_idx)
{
    int32_t best = -1;
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        const core_member *m = &core->members[i];
        if (m->live && m->reserved_for == segment_idx)
            return true;
        if (is_fed(core, m, s->stage) && !is_on_parole(core, m) && m->reserved_for < 0 && can_read(core, m, s) &&
            (best < 0 || is_less_loaded(m, &core->members[best])))
            best = i;
    }
    if (best >= 0)
        core->members[best].reserved_for = segment_idx;
    return best >= 0;
}

/* Dispatches the segment if some member can take it now. Its utterance may fail here: no outbox is large enough. */
static void try_segment(orch_core *core, int32_t segment_idx, turn *t)
{
    core_segment *s = &core->segments[segment_idx];
    const bool alone = is_suspect(core, s);
    bool tried[MEMBERS_MAX] = {false};
    if (s->stage == CORE_FLOW)
        s->frames = frames_of(core, s);
    for (;;) {
        const int32_t member = least_loaded(core, s, segment_idx, t, tried);
        if (member < 0)
            break;
        const cf_err err = lease_out(core, &core->members[member], s);
        if (err == CF_OK) {
            dispatch(core, s, member, alone, t->now_us);
            return;
        }
        if (err == CF_ERR_LIMIT) {
            fail_utterance(core, s, CF_ERR_LIMIT);
            return;
        }
        tried[member] = true;
    }
    if (alone)
        reserve(core, s, segment_idx);
    else if (!t->kept && t->now_us - s->since_us > CORE_PATIENCE_US)
        t->kept = reserve(core, s, segment_idx);
}

static bool room_for(const orch_core *core, int32_t stage)
{
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        const core_member *m = &core->members[i];
        if (is_fed(core, m, stage) && m->rows_held < (is_on_parole(core, m) ? 1 : m->rows_max))
            return true;
    }
    return false;
}

static int32_t rows_of_stage(const orch_core *core, int32_t stage)
{
    int32_t rows = 0;
    for (int32_t i = 0; i < MEMBERS_MAX; i++)
        if (is_fed(core, &core->members[i], stage))
            rows += core->members[i].rows_max;
    return rows;
}

/* What waits for Flow or is held there, of rows of this priority and higher ones. */
static int32_t held_at_flow(const orch_core *core, int32_t priority)
{
    int32_t count = 0;
    for (int32_t o = 0; o < core->order_count && core->utterances[core->order[o]].priority >= priority; o++)
        for (int32_t i = core->utterances[core->order[o]].first_segment; i >= 0; i = core->segments[i].next)
            count += core->segments[i].stage == CORE_FLOW &&
                     (core->segments[i].state == SEGMENT_WAIT || core->segments[i].state == SEGMENT_RUN);
    return count;
}

/* Whether the LLM lets what waits for it wait, of which the first has this priority. A step reads all weights, for one
 * row as for many, and Flow is slower: given one row whenever Flow has ended one it would read them for each token of
 * each row. So it rests while Flow has all that it may hold and as many as the LLM may besides, until Flow has less
 * than its own, and then has many at once. Who is more urgent than those at Flow waits for nobody. */
static bool is_paced(orch_core *core, int32_t priority)
{
    const int32_t low = rows_of_stage(core, CORE_FLOW), high = low + rows_of_stage(core, CORE_LLM);
    core->llm_rests = low > 0 && held_at_flow(core, priority) >= (core->llm_rests ? low : high);
    return core->llm_rests;
}

/* By priority, arrival, segment. Stops, and says `more`, when the list of actions is nearly full. */
static void schedule_stage(orch_core *core, int32_t stage, turn *t)
{
    for (int32_t o = 0; o < core->order_count && room_for(core, stage); o++) {
        const int32_t utterance = core->order[o];
        for (int32_t i = core->utterances[utterance].first_segment; i >= 0; i = core->segments[i].next) {
            const core_segment *s = &core->segments[i];
            if (s->state != SEGMENT_WAIT || s->stage != stage)
                continue;
            if (stage == CORE_LLM && !t->is_pace_known) {
                t->is_paced = is_paced(core, core->utterances[utterance].priority);
                t->is_pace_known = true;
            }
            if (stage == CORE_LLM && t->is_paced && !is_suspect(core, s))
                continue;
            if (core->actions_count >= ACTIONS_KEPT_FREE) {
                core->more = true;
                return;
            }
            try_segment(core, i, t);
            if (core->utterances[utterance].state != UTTERANCE_LIVE) {
                o--; /* it failed and left the order */
                break;
            }
        }
    }
}

static bool is_trial_due(const orch_core *core, int32_t stage)
{
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        const core_member *m = &core->members[i];
        if (is_fed(core, m, stage) && is_on_parole(core, m) && m->rows_held == 0)
            return true;
    }
    return false;
}

/* Downstream first, so that work finishes and memory frees. */
static void schedule(orch_core *core, uint64_t now_us)
{
    drop_stale_reservations(core);
    for (int32_t stage = CORE_HIFT; stage >= CORE_LLM && !core->more; stage--) {
        turn t = {.now_us = now_us};
        schedule_stage(core, stage, &t);
        t.any_trial = true;
        if (!core->more && is_trial_due(core, stage))
            schedule_stage(core, stage, &t);
    }
}

/* Utterances whose deadline has passed; stops while the rest of the list still fits, the next tick goes on. */
static void end_overdue(orch_core *core, uint64_t now_us)
{
    for (int32_t o = 0; o < core->order_count && core->actions_count < ACTIONS_KEPT_FREE; o++) {
        const core_utterance *u = &core->utterances[core->order[o]];
        if (u->deadline_us == 0 || now_us < u->deadline_us)
            continue;
        int32_t i = u->first_segment;
        while (core->segments[i].state == SEGMENT_DONE)
            i = core->segments[i].next;
        fail_utterance(core, &core->segments[i], CF_ERR_TIMEOUT);
        o--; /* it left the order */
    }
}

void orch_core_step(orch_core *core, const core_event *event, uint64_t now_us)
{
    core->actions_count = 0;
    core->more = false;
    switch (event->kind) {
    case CORE_JOINED:
        on_joined(core, event);
        break;
    case CORE_LOST:
        on_lost(core, event, now_us);
        break;
    case CORE_DRAINING:
        core->members[event->member].draining = true;
        break;
    case CORE_PAUSE:
        core->members[event->member].paused = event->paused;
        break;
    case CORE_PARDON:
        on_pardon(core, event);
        break;
    case CORE_OPENED:
        on_opened(core, event);
        break;
    case CORE_SPOILED:
        on_spoiled(core, event, now_us);
        break;
    case CORE_SUBMIT:
        on_submit(core, event, now_us);
        break;
    case CORE_READY:
        on_ready(core, event, now_us);
        break;
    case CORE_FAILED:
        on_failed(core, event, now_us);
        break;
    case CORE_WITHDRAW:
        if (core->utterances[event->utterance].state == UTTERANCE_LIVE)
            end_utterance(core, event->utterance);
        break;
    case CORE_TICK:
        end_overdue(core, now_us);
        core_begin_paroles(core, now_us);
        break;
    }
    schedule(core, now_us);
}

void orch_core_count(const orch_core *core, int32_t ret_waiting[CORE_STAGES], int32_t ret_running[CORE_STAGES])
{
    memset(ret_waiting, 0, CORE_STAGES * sizeof *ret_waiting);
    memset(ret_running, 0, CORE_STAGES * sizeof *ret_running);
    for (int32_t i = 0; i < CORE_SEGMENTS_MAX; i++) {
        const core_segment *s = &core->segments[i];
        if (s->state == SEGMENT_WAIT)
            ret_waiting[s->stage]++;
        else if (s->state == SEGMENT_RUN)
            ret_running[s->stage]++;
    }
}
