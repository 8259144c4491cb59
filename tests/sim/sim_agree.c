/*
 * sim_agree.c - after each step both books have to agree: rows, credits, slots, deaths; and nobody waits for a member
 * that has room, nor behind a later row. At the end nothing is left. The simulator's one thread. Fails: sim_fail.
 */
#include "tests/sim/sim_book.h"

#include <inttypes.h>
#include <stddef.h>

/* For so long the first of its stage, which fits nowhere, may be overtaken; a member is kept for it by then. */
#define OVERTAKEN_US (3 * CORE_PATIENCE_US / 2)

static void check_rows(void)
{
    int32_t not_ended = 0;
    for (int32_t n = 0; n < book.live_count; n++) {
        const book_row *r = &book.rows[book.live[n]];
        not_ended += !r->ended;
        SIM_CHECK(r->must_fail == BOOK_NO_CODE, "row %d should have failed with %s", r->row, err_name(r->must_fail));
        SIM_CHECK(!r->must_finish, "row %d should have finished", r->row);
        SIM_CHECK(!r->ended || r->running > 0, "row %d has ended, nobody holds it, and it is not forgotten", r->row);
        SIM_CHECK(r->cancels_due == 0, "row %d: %d jobs are not cancelled", r->row, r->cancels_due);
        const core_utterance *u = &the_sim.core.utterances[book.live[n]];
        int32_t at = u->first_segment;
        for (int32_t i = 0; i < r->count; i++, at = the_sim.core.segments[at].next) {
            const core_segment *s = &the_sim.core.segments[at];
            const book_segment *b = &r->segments[i];
            SIM_CHECK(at >= 0 && (s->state == SEGMENT_RUN) == (b->state == BOOK_RUNS),
                      "row %d segment %d: states differ", r->row, i);
            if (r->ended || b->state == BOOK_DONE)
                continue;
            SIM_CHECK(s->deaths == b->deaths && s->alone_deaths == b->alone_deaths,
                      "row %d segment %d is charged with %d deaths, %d alone; it was in %d, %d alone", r->row, i,
                      s->deaths, s->alone_deaths, b->deaths, b->alone_deaths);
        }
    }
    SIM_CHECK(the_sim.core.order_count == not_ended, "%d utterances wait their turn, %d are live",
              the_sim.core.order_count, not_ended);
    SIM_CHECK(!book.collect_due, "samples are not collected");
    SIM_CHECK(!book.bar_due, "worker %d.%d should be barred", book.bar_stage, book.bar_instance);
    SIM_CHECK(!book.clear_due, "worker %d.%d has passed its parole", book.bar_stage, book.bar_instance);
    SIM_CHECK(book.paroles_due == 0, "%d workers should be on parole", book.paroles_due);
}

static bool is_dispatched_now(uint64_t job)
{
    for (int32_t i = 0; i < book.works_count; i++)
        if (book.works[i].job == job)
            return true;
    return false;
}

static void check_members(void)
{
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        const book_member *b = &book.members[i];
        const core_member *m = &the_sim.core.members[i];
        SIM_CHECK(b->live == m->live, "member %d lives in one book only", i);
        if (!b->live)
            continue;
        SIM_CHECK(b->rows == m->rows_held && b->frames == m->frames_held,
                  "member %d holds %d rows, %d frames; the core counts %d, %d", i, b->rows, b->frames, m->rows_held,
                  m->frames_held);
        if (m->reserved_for < 0)
            continue;
        const core_segment *kept = &the_sim.core.segments[m->reserved_for];
        const bool runs_here = kept->state == SEGMENT_RUN && kept->member == i;
        const bool waits = kept->state == SEGMENT_WAIT && kept->stage == b->stage && book_may_be_fed(b, b->stage);
        SIM_CHECK(runs_here || waits || is_dispatched_now(kept->job),
                  "member %d is kept for a segment that neither waits for it nor runs there", i);
    }
}

static void check_boxes(void)
{
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++) {
        book_box *b = &book.boxes[i];
        if (b->outbox_id == 0)
            continue;
        SIM_CHECK(b->released == (b->retired && b->count == 0), "outbox %u is %sreleased", b->outbox_id,
                  b->released ? "" : "not ");
        if (b->released) {
            b->outbox_id = 0;
            continue;
        }
        const slot_box *c = NULL;
        for (int32_t k = 0; k < CORE_BOXES_MAX && !c; k++)
            c = the_sim.core.boxes[k].outbox_id == b->outbox_id ? &the_sim.core.boxes[k] : NULL;
        SIM_CHECK(c && c->count == b->count, "outbox %u: the core counts %d slots, %d are in use", b->outbox_id,
                  c ? c->count : -1, b->count);
    }
}

/* Is there a gap of that many bytes, were the region at `without` not there? */
static bool has_gap(const book_box *box, uint64_t bytes, uint64_t without)
{
    uint64_t off = 0;
    for (;;) {
        uint64_t end = the_sim.plan.outbox_bytes, next = end;
        for (int32_t i = 0; i < box->count; i++) {
            const book_region *r = &box->regions[i];
            if (r->off >= off && r->off < end && r->off != without) {
                end = r->off;
                next = r->off + r->bytes;
            }
        }
        if (end - off >= bytes)
            return true;
        if (end == the_sim.plan.outbox_bytes)
            return false;
        off = next;
    }
}

/* Could the segment, whose number in the core is `at`, be on m now, if `without` were not there? */
static bool would_fit(const book_segment *s, int32_t at, int32_t member, const book_segment *without)
{
    const book_member *m = &book.members[member];
    const int32_t kept_for = the_sim.core.members[member].reserved_for;
    if (!book_may_be_fed(m, s->stage) || !book_can_read(m, s) || (kept_for >= 0 && kept_for != at))
        return false;
    const int32_t rows = m->rows - (without != NULL), frames = m->frames - (without ? without->credit : 0);
    if (book_is_on_parole(m) && (rows > 0 || (without && book_is_doubtful(s) && !book_is_doubtful(without))))
        return false;
    if (rows > 0 && (book_is_suspect(s) || rows >= m->rows_max || frames + book_credit(s) > m->frames_max))
        return false;
    return s->stage == CORE_LLM || (book.boxes[m->box].count < SLOTS_PER_BOX_MAX &&
                                    has_gap(&book.boxes[m->box], book_aligned(book_slot_bytes(s)),
                                            without ? without->out.off_bytes : UINT64_MAX));
}

static bool goes_first(const book_row *r, int32_t segment, const book_row *than, int32_t than_segment)
{
    if (r->priority != than->priority)
        return r->priority > than->priority;
    if (r->age != than->age)
        return r->age < than->age;
    return r->seq != than->seq ? r->seq < than->seq : segment < than_segment;
}

/* The LLM may rest as long as Flow has as many segments, of rows as urgent, as it may hold. */
static bool may_be_paced(const book_row *r, int32_t segment)
{
    const book_segment *s = &r->segments[segment];
    int32_t rows_max = 0, at_flow = 0;
    if (s->stage != CORE_LLM || book_is_suspect(s))
        return false;
    for (int32_t m = 0; m < MEMBERS_MAX; m++)
        if (book_may_be_fed(&book.members[m], CORE_FLOW))
            rows_max += book.members[m].rows_max;
    for (int32_t n = 0; n < book.live_count; n++) {
        const book_row *other = &book.rows[book.live[n]];
        for (int32_t i = 0; i < other->count && !other->ended && other->priority >= r->priority; i++)
            at_flow += other->segments[i].stage == CORE_FLOW && other->segments[i].state != BOOK_DONE;
    }
    return rows_max > 0 && at_flow >= rows_max;
}

/* A waiting segment is in its right place: no member has room for it, nothing that comes later took its place. */
static void check_waiting(const book_row *r, int32_t segment, int32_t at)
{
    const book_segment *s = &r->segments[segment];
    if (may_be_paced(r, segment))
        return;
    for (int32_t m = 0; m < MEMBERS_MAX; m++)
        SIM_CHECK(!book.members[m].live || !would_fit(s, at, m, NULL),
                  "row %d segment %d waits, and member %d has room", r->row, segment, m);
    for (int32_t i = 0; i < book.works_count; i++) {
        const core_action *a = &book.works[i];
        const book_row *other = &book.rows[a->utterance];
        if (a->stage != s->stage || !other->used || !goes_first(r, segment, other, a->segment))
            continue;
        const book_segment *late = &other->segments[a->segment];
        if (late->state == BOOK_RUNS && late->job == a->job)
            SIM_CHECK(!would_fit(s, at, a->member, late), "row %d segment %d waits behind row %d", r->row, segment,
                      other->row);
    }
}

static int32_t core_index(int32_t utterance, int32_t segment)
{
    int32_t at = the_sim.core.utterances[utterance].first_segment;
    while (segment-- > 0)
        at = the_sim.core.segments[at].next;
    return at;
}

static bool is_kept_for(int32_t at)
{
    for (int32_t m = 0; m < MEMBERS_MAX; m++)
        if (the_sim.core.members[m].live && the_sim.core.members[m].reserved_for == at)
            return true;
    return false;
}

/* The first that waits at this stage and may run on the member; NULL: nobody. */
static book_segment *first_waiting(int32_t stage, int32_t member, book_row **ret_row)
{
    book_segment *first = NULL;
    for (int32_t n = 0; n < book.live_count; n++) {
        book_row *r = &book.rows[book.live[n]];
        for (int32_t i = 0; i < r->count && !r->ended; i++) {
            book_segment *s = &r->segments[i];
            if (s->state == BOOK_WAITS && s->stage == stage && !book_is_suspect(s) &&
                (s->parole_deaths == 0 || !book_is_on_parole(&book.members[member])) &&
                book_can_read(&book.members[member], s) && !may_be_paced(r, i) &&
                (!first || goes_first(r, i, *ret_row, (int32_t)(first - (*ret_row)->segments)))) {
                first = s;
                *ret_row = r;
            }
        }
    }
    return first;
}

/* The first of its stage may be overtaken where it does not fit, but not for ever. With a member kept for it, it waits
 * for that one's outbox to be read by the next stage. */
static void check_overtaken(void)
{
    for (int32_t i = 0; i < book.works_count; i++) {
        const core_action *a = &book.works[i];
        book_row *r = NULL, *by = &book.rows[a->utterance];
        book_segment *s = first_waiting(a->stage, a->member, &r);
        const int32_t idx = s ? (int32_t)(s - r->segments) : 0;
        if (!s || !by->used || !goes_first(r, idx, by, a->segment) ||
            is_kept_for(core_index((int32_t)(r - book.rows), idx)))
            continue;
        if (s->overtaken_us == 0 || the_sim.now_us - s->overtaken_last_us > CORE_PATIENCE_US / 2)
            s->overtaken_us = the_sim.now_us;
        s->overtaken_last_us = the_sim.now_us;
        SIM_CHECK(the_sim.now_us - s->overtaken_us < OVERTAKEN_US,
                  "row %d segment %d is overtaken for too long, by row %d", r->row, idx, by->row);
    }
}

/* A suspect that waits has a member kept for it, if there is one; who is only out of patience, one for its stage. */
static void check_kept(const book_row *r, int32_t segment, int32_t at, int32_t *patient)
{
    const book_segment *s = &r->segments[segment];
    const bool kept = is_kept_for(at);
    if (!book_is_suspect(s)) {
        patient[s->stage] += kept;
        SIM_CHECK(patient[s->stage] <= 1, "two members are kept for segments that wait at one stage");
        return;
    }
    for (int32_t m = 0; m < MEMBERS_MAX && !kept; m++) {
        const book_member *b = &book.members[m];
        SIM_CHECK(!b->live || !book_may_be_fed(b, s->stage) || book_is_on_parole(b) || !book_can_read(b, s) ||
                      b->rows >= b->rows_max || the_sim.core.members[m].reserved_for >= 0,
                  "row %d segment %d has to run alone, and no member is kept for it", r->row, segment);
    }
}

/* A doubtful row is no fair trial: it is one only where no other that waits could have been. */
static void check_trials(void)
{
    for (int32_t w = 0; w < book.works_count; w++) {
        const core_action *a = &book.works[w];
        const book_segment *trial = &book.rows[a->utterance].segments[a->segment];
        if (!book_is_on_parole(&book.members[a->member]) || trial->state != BOOK_RUNS || !book_is_doubtful(trial))
            continue;
        for (int32_t n = 0; n < book.live_count; n++) {
            const book_row *r = &book.rows[book.live[n]];
            for (int32_t i = 0; i < r->count && !r->ended; i++) {
                const book_segment *s = &r->segments[i];
                SIM_CHECK(s->state != BOOK_WAITS || s->stage != a->stage || book_is_doubtful(s) ||
                              !would_fit(s, core_index(book.live[n], i), a->member, trial),
                          "row %d segment %d, under suspicion, is tried on parole before row %d",
                          book.rows[a->utterance].row, a->segment, r->row);
            }
        }
    }
}

void check_after(void)
{
    int32_t patient[CORE_STAGES] = {0};
    check_rows();
    check_members();
    check_boxes();
    /* An utterance that ends inside the scheduling, or a list that filled up, leaves room that the next event gives. */
    if (book.limit_failed || the_sim.core.more)
        return;
    check_overtaken();
    check_trials();
    for (int32_t n = 0; n < book.live_count; n++) {
        const book_row *r = &book.rows[book.live[n]];
        int32_t at = the_sim.core.utterances[book.live[n]].first_segment;
        for (int32_t i = 0; i < r->count && !r->ended; i++, at = the_sim.core.segments[at].next)
            if (r->segments[i].state == BOOK_WAITS) {
                check_waiting(r, i, at);
                check_kept(r, i, at, patient);
            }
    }
}

/* ---- the whole core ---- */

void check_deep(void)
{
    const orch_core *c = &the_sim.core;
    int32_t free_count = 0, used = 0;
    for (int32_t i = c->free_segment, n = 0; n < c->free_segments_count; n++, i = c->segments[i].next) {
        SIM_CHECK(i >= 0 && c->segments[i].state == SEGMENT_FREE, "the list of free segments is broken");
        free_count++;
    }
    for (int32_t i = 0; i < CORE_SEGMENTS_MAX; i++)
        used += c->segments[i].state != SEGMENT_FREE;
    SIM_CHECK(free_count + used == CORE_SEGMENTS_MAX, "%d segments are neither free nor used",
              CORE_SEGMENTS_MAX - free_count - used);
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++) {
        uint64_t end = 0;
        for (int32_t k = 0; k < c->boxes[i].count && c->boxes[i].outbox_id != 0; k++) {
            SIM_CHECK(c->boxes[i].slots[k].off_bytes >= end, "slots overlap");
            end = c->boxes[i].slots[k].off_bytes + c->boxes[i].slots[k].bytes;
        }
        SIM_CHECK(end <= c->boxes[i].bytes, "a slot beyond the end");
    }
}

void check_final(void)
{
    const orch_core *c = &the_sim.core;
    check_deep();
    SIM_CHECK(c->order_count == 0 && book.live_count == 0, "%d utterances are left", book.live_count);
    SIM_CHECK(c->free_segments_count == CORE_SEGMENTS_MAX, "%d segments are left",
              CORE_SEGMENTS_MAX - c->free_segments_count);
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++)
        SIM_CHECK(c->boxes[i].outbox_id == 0 || (c->boxes[i].count == 0 && !c->boxes[i].retired), "slots are left");
    for (int32_t i = 0; i < MEMBERS_MAX; i++)
        SIM_CHECK(!c->members[i].live || (c->members[i].rows_held == 0 && c->members[i].frames_held == 0 &&
                                          c->members[i].reserved_for < 0),
                  "member %d is not free", i);
    for (int32_t i = 0; i < the_sim.plan.rows_count; i++)
        SIM_CHECK(the_sim.rows[i].ended && the_sim.rows[i].ends == the_sim.rows[i].ends_due,
                  "row %d ended %d times, %d were due", i, the_sim.rows[i].ends, the_sim.rows[i].ends_due);
}
