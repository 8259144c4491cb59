/*
 * sim_expect.c - what an event must lead to, worked out before the core sees it: who ends and why, who is charged with
 * a death, who is barred, what is free again. The simulator's one thread. Fails: sim_fail.
 */
#include "tests/sim/sim_book.h"

#include <stddef.h>
#include <string.h>

static void begin_waiting(book_segment *s)
{
    s->state = BOOK_WAITS;
    s->overtaken_us = 0;
    s->member = -1;
}

static void leave(book_row *r, book_segment *s)
{
    book_member *m = &book.members[s->member];
    m->rows--;
    m->frames -= s->credit;
    r->running--;
    s->state = BOOK_DONE;
}

static void enter_flow(const book_row *r, book_segment *s)
{
    s->frames = (int32_t)((double)(s->tokens * FRAMES_PER_TOKEN) / r->speed);
}

static void before_submit(const core_event *e)
{
    book_row *r = &book.rows[e->utterance];
    SIM_CHECK(!r->used, "utterance %d is given twice", e->utterance);
    memset(r, 0, offsetof(book_row, segments));
    r->used = true;
    r->row = the_sim.row_of[e->utterance];
    r->priority = e->priority;
    r->count = e->segments_count;
    r->age = e->row;
    r->seq = book.next_seq++;
    r->deadline_us = e->deadline_us;
    r->speed = e->speed;
    for (int32_t i = 0; i < r->count; i++) {
        book_segment *s = &r->segments[i];
        *s = (book_segment){.prompt_tokens = e->segments[i].prompt_tokens, .tokens = e->segments[i].known_tokens};
        begin_waiting(s);
        if (s->tokens > 0) {
            s->stage = CORE_FLOW;
            enter_flow(r, s);
        }
    }
    book.live[book.live_count++] = e->utterance;
}

static void before_ready(const core_event *e)
{
    book_row *r;
    book_segment *s = book_find_running(e->member, e->job, &r);
    if (!s)
        return;
    book_record *record = &book.records[s->stage][book.members[s->member].instance];
    book.clear_due = record->on_parole;
    book.bar_stage = s->stage;
    book.bar_instance = book.members[s->member].instance;
    *record = (book_record){0};
    leave(r, s);
    const bool fits = s->stage == CORE_LLM    ? e->tokens > 0 && e->tokens <= TOKENS_MAX
                      : s->stage == CORE_FLOW ? e->frames == s->frames
                                              : e->samples == (int64_t)s->frames * SAMPLES_PER_FRAME;
    if (r->ended || !fits) {
        book_drop_slot(&s->out);
        if (!r->ended)
            r->must_fail = CF_ERR_CORRUPT;
        return;
    }
    if (s->stage == CORE_HIFT) {
        book_drop_slot(&s->in);
        book.collect_due = true; /* its samples stay untouchable until then */
        book.collect_utterance = (int32_t)(r - book.rows);
        book.collect_segment = (int32_t)(s - r->segments);
        r->must_finish = ++r->done == r->count;
        return;
    }
    s->deaths = s->alone_deaths = s->parole_deaths = 0;
    if (s->stage++ == CORE_LLM) {
        s->tokens = e->tokens;
        enter_flow(r, s);
    } else {
        book_box *box = book_find_box(s->out.outbox_id);
        for (int32_t i = 0; i < box->count; i++)
            box->regions[i].committed |= box->regions[i].off == s->out.off_bytes;
        s->in = s->out;
        s->out = (core_slot){0};
    }
    begin_waiting(s);
}

/* Its mel is lost: flow has to make it again, so often and no more. */
static void make_again(book_row *r, book_segment *s)
{
    book_drop_slot(&s->in);
    s->stage = CORE_FLOW;
    s->deaths = s->alone_deaths = 0;
    begin_waiting(s);
    if (++s->rereads > REREADS_MAX)
        r->must_fail = CF_ERR_STALE;
}

static void before_spoiled(const core_event *e)
{
    for (int32_t n = 0; n < book.live_count; n++) {
        book_row *r = &book.rows[book.live[n]];
        for (int32_t i = 0; i < r->count && !r->ended; i++)
            if (r->segments[i].state == BOOK_WAITS && r->segments[i].in.outbox_id == e->outbox_id)
                make_again(r, &r->segments[i]);
    }
}

static void before_failed(const core_event *e)
{
    book_row *r;
    book_segment *s = book_find_running(e->member, e->job, &r);
    if (!s)
        return;
    leave(r, s);
    book_drop_slot(&s->out);
    if (r->ended)
        return;
    if (e->code == CF_ERR_CANCELLED)
        begin_waiting(s);
    else if (e->code == CF_ERR_STALE && s->in.outbox_id != 0)
        make_again(r, s);
    else /* "failed: ok" is a lie too */
        r->must_fail = e->code == CF_OK ? CF_ERR_CORRUPT : e->code;
}

/* [P-14], [P-21]: true when the rows that the member held are charged with its death, each row on parole by itself. */
static bool death_is_charged(const book_member *m, const book_segment *alone, bool on_parole, book_record *record)
{
    if (m->rows == 0)
        return false;
    record->deaths++;
    if (!record->barred && !on_parole && (record->deaths < UNPROVEN_DEATHS_MAX || (alone && !record->gave_up)))
        return true;
    book.bar_due = !record->barred;
    if (book.bar_due) {
        record->barred = true;
        record->on_parole = false;
        record->barred_us = the_sim.now_us;
        record->pauses++;
    }
    return false;
}

static void take_back(book_row *r, book_segment *s, bool charge, bool alone, bool on_parole, book_record *record)
{
    leave(r, s);
    s->out = (core_slot){0}; /* its outbox is retired, which drops what is leased */
    begin_waiting(s);
    charge |= on_parole && s->parole_deaths > 0; /* poison that nobody else is here to show */
    s->parole_deaths += on_parole;
    if (!charge)
        return;
    const int32_t deaths_max = the_sim.plan.core.deaths_max;
    const int32_t deaths_most = (deaths_max > 1 ? deaths_max - 1 : 1) + ALONE_DEATHS_MAX;
    SIM_CHECK(++s->deaths <= deaths_most, "a segment was in flight in %d deaths, at most %d are allowed", s->deaths,
              deaths_most);
    s->alone_deaths += alone || on_parole;
    if (s->deaths < deaths_max || s->alone_deaths < ALONE_DEATHS_MAX)
        return;
    record->gave_up |= alone && !on_parole;
    if (!r->ended) {
        r->must_fail = CF_ERR_GONE;
        const sim_row *row = &the_sim.rows[r->row];
        if (row->poison_stage != s->stage && !on_parole)
            SIM_CHECK(++record->rows_lost <= 1, "a second row is lost to one worker that finishes nothing");
    }
}

static void retire(book_box *box)
{
    box->retired = true;
    for (int32_t i = box->count; i-- > 0;)
        if (!box->regions[i].committed)
            box->regions[i] = box->regions[--box->count];
}

static void before_lost(const core_event *e)
{
    book_member *m = &book.members[e->member];
    book_record *record = &book.records[m->stage][m->instance];
    SIM_CHECK(m->live, "member %d is lost twice", e->member);
    const book_segment *alone = NULL;
    for (int32_t n = 0; n < book.live_count && m->rows == 1; n++)
        for (int32_t i = 0; i < book.rows[book.live[n]].count; i++) {
            const book_segment *s = &book.rows[book.live[n]].segments[i];
            if (s->state == BOOK_RUNS && s->member == e->member && s->suspect)
                alone = s;
        }
    book.bar_stage = m->stage;
    book.bar_instance = m->instance;
    const bool on_parole = record->on_parole;
    const bool charge = death_is_charged(m, alone, on_parole, record);
    for (int32_t n = 0; n < book.live_count; n++) {
        book_row *r = &book.rows[book.live[n]];
        for (int32_t i = 0; i < r->count && r->running > 0; i++)
            if (r->segments[i].state == BOOK_RUNS && r->segments[i].member == e->member)
                take_back(r, &r->segments[i], charge, &r->segments[i] == alone, on_parole, record);
    }
    SIM_CHECK(m->rows == 0 && m->frames == 0, "the book is wrong");
    m->live = false;
    if (m->box >= 0)
        retire(&book.boxes[m->box]);
}

static void before_joined(const core_event *e)
{
    book_member *m = &book.members[e->member];
    *m = (book_member){.live = true,
                       .paused = e->paused,
                       .stage = e->stage,
                       .instance = e->instance,
                       .rows_max = e->rows_max,
                       .frames_max = e->frames_max,
                       .box = -1};
    for (int32_t i = 0; i < CORE_BOXES_MAX && e->outbox_id != 0 && m->box < 0; i++)
        if (book.boxes[i].outbox_id == 0) {
            m->box = i;
            book.boxes[i].outbox_id = e->outbox_id;
            book.boxes[i].retired = book.boxes[i].released = false;
            book.boxes[i].count = 0;
            for (int32_t k = 0; k < MEMBERS_MAX; k++)
                book.members[k].opened[i] = false;
        }
}

static void before_tick(void)
{
    for (int32_t n = 0; n < book.live_count; n++) {
        book_row *r = &book.rows[book.live[n]];
        if (!r->ended && r->deadline_us > 0 && r->deadline_us <= the_sim.now_us)
            r->must_fail = CF_ERR_TIMEOUT;
    }
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        const book_member *m = &book.members[i];
        book_record *r = &book.records[m->stage][m->instance];
        if (!m->live || !r->barred || the_sim.now_us - r->barred_us < book_pause_us(r))
            continue;
        r->barred = false;
        r->on_parole = true;
        book.paroles_due++;
    }
}

void check_before(const core_event *e)
{
    book.bar_due = book.clear_due = book.collect_due = book.limit_failed = false;
    book.paroles_due = 0;
    book.works_count = 0;
    for (int32_t n = 0; n < book.live_count; n++) {
        book_row *r = &book.rows[book.live[n]];
        r->must_fail = BOOK_NO_CODE;
        r->must_finish = r->failed_now = false;
        r->cancels_due = 0;
    }
    if (e->kind == CORE_JOINED)
        before_joined(e);
    else if (e->kind == CORE_LOST)
        before_lost(e);
    else if (e->kind == CORE_DRAINING)
        book.members[e->member].draining = true;
    else if (e->kind == CORE_PAUSE)
        book.members[e->member].paused = e->paused;
    else if (e->kind == CORE_PARDON)
        book.records[e->stage][e->instance] = (book_record){0};
    else if (e->kind == CORE_SPOILED)
        before_spoiled(e);
    else if (e->kind == CORE_SUBMIT)
        before_submit(e);
    else if (e->kind == CORE_READY)
        before_ready(e);
    else if (e->kind == CORE_FAILED)
        before_failed(e);
    else if (e->kind == CORE_WITHDRAW)
        book_end(&book.rows[e->utterance]);
    else if (e->kind == CORE_TICK)
        before_tick();
    for (int32_t i = 0; i < CORE_BOXES_MAX && e->kind == CORE_OPENED; i++)
        if (book.boxes[i].outbox_id == e->outbox_id)
            book.members[e->member].opened[i] = true;
}
