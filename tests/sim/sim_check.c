/*
 * sim_check.c - each action of the core is held against the promises: rows end once and for a reason, work goes only to
 * who may have it, once at a time, slots never overlap. The simulator's one thread. Fails: sim_fail.
 */
#include "tests/sim/sim_book.h"

#include <inttypes.h>
#include <stddef.h>

static void lease(const book_member *m, const core_action *a, uint64_t bytes)
{
    book_box *box = book_find_box(a->out.outbox_id);
    SIM_CHECK(box == &book.boxes[m->box] && !box->retired, "job %" PRIu64 " may write into a foreign outbox", a->job);
    SIM_CHECK(a->out.bytes == bytes, "a slot of %" PRIu64 " bytes, %" PRIu64 " are needed", a->out.bytes, bytes);
    SIM_CHECK(a->out.off_bytes % SLOT_ALIGN_BYTES == 0, "a slot at %" PRIu64, a->out.off_bytes);
    SIM_CHECK(a->out.off_bytes + bytes <= the_sim.plan.outbox_bytes, "a slot beyond the outbox's end");
    for (int32_t i = 0; i < box->count; i++)
        SIM_CHECK(a->out.off_bytes + book_aligned(bytes) <= box->regions[i].off ||
                      box->regions[i].off + box->regions[i].bytes <= a->out.off_bytes,
                  "slots overlap in outbox %u", box->outbox_id);
    SIM_CHECK(box->count < SLOTS_PER_BOX_MAX, "more than %d slots", SLOTS_PER_BOX_MAX);
    box->regions[box->count++] = (book_region){a->out.off_bytes, book_aligned(bytes), a->utterance, a->segment, false};
}

static void check_work(const core_action *a)
{
    book_row *r = &book.rows[a->utterance];
    SIM_CHECK(r->used && !r->ended, "work for a row that has ended");
    SIM_CHECK(a->segment < r->count, "work for segment %d of %d", a->segment, r->count);
    book_segment *s = &r->segments[a->segment];
    SIM_CHECK(s->state == BOOK_WAITS && s->stage == a->stage, "row %d segment %d is dispatched twice at once", r->row,
              a->segment);
    SIM_CHECK(a->job / CORE_SEGMENTS_MAX > book.last_job, "job number %" PRIu64 " is given again", a->job);
    book.last_job = a->job / CORE_SEGMENTS_MAX;
    book_member *m = &book.members[a->member];
    SIM_CHECK(book_may_be_fed(m, a->stage), "member %d gets work, and is %s", a->member,
              !m->live      ? "not there"
              : m->draining ? "leaving"
              : m->paused   ? "paused"
                            : "barred or of another stage");
    SIM_CHECK(m->rows == 0 || !book_is_on_parole(m), "member %d gets a second job, and is on parole", a->member);
    SIM_CHECK(book_can_read(m, s), "member %d cannot read outbox %u", a->member, s->in.outbox_id);
    s->credit = book_credit(s);
    s->suspect = book_is_suspect(s);
    SIM_CHECK(m->rows == 0 || m->rows < m->rows_max, "member %d holds %d rows of %d", a->member, m->rows, m->rows_max);
    SIM_CHECK(m->rows == 0 || m->frames + s->credit <= m->frames_max, "member %d holds too many frames", a->member);
    SIM_CHECK(!s->suspect || m->rows == 0, "a suspect is not alone");
    for (int32_t n = 0; n < book.live_count && m->rows == 1; n++)
        for (int32_t i = 0; i < book.rows[book.live[n]].count; i++) {
            const book_segment *other = &book.rows[book.live[n]].segments[i];
            SIM_CHECK(other->state != BOOK_RUNS || other->member != a->member || !other->suspect,
                      "work is put beside a suspect");
        }
    SIM_CHECK(a->frames == (a->stage == CORE_LLM ? a->frames : s->frames), "%d frames are asked for", a->frames);
    SIM_CHECK(a->in.outbox_id == s->in.outbox_id && a->in.off_bytes == s->in.off_bytes, "the job reads elsewhere");
    if (a->stage != CORE_LLM)
        lease(m, a, book_slot_bytes(s));
    s->out = a->out;
    s->state = BOOK_RUNS;
    s->member = a->member;
    s->job = a->job;
    m->rows++;
    m->frames += s->credit;
    r->running++;
    book.works[book.works_count++] = *a;
}

static void check_fail(const core_action *a)
{
    book_row *r = &book.rows[a->utterance];
    SIM_CHECK(r->used && !r->ended, "a row that has ended fails");
    const book_segment *s = &r->segments[a->segment];
    if (r->must_fail == BOOK_NO_CODE) {
        SIM_CHECK(a->code == CF_ERR_LIMIT && s->state == BOOK_WAITS &&
                      book_aligned(book_slot_bytes(s)) > the_sim.plan.outbox_bytes,
                  "row %d fails with %s for no reason", r->row, err_name(a->code));
        book.limit_failed = true;
    } else {
        SIM_CHECK(a->code == r->must_fail, "row %d fails with %s instead of %s", r->row, err_name(a->code),
                  err_name(r->must_fail));
        SIM_CHECK(a->code != CF_ERR_GONE || a->deaths == s->deaths, "row %d: %d deaths are reported, %d happened",
                  r->row, a->deaths, s->deaths);
    }
    r->must_fail = BOOK_NO_CODE;
    book_end(r);
}

static void check_collect(const core_action *a)
{
    SIM_CHECK(book.collect_due && a->utterance == book.collect_utterance && a->segment == book.collect_segment,
              "samples are collected that nobody made");
    book.collect_due = false;
    book_segment *s = &book.rows[a->utterance].segments[a->segment];
    SIM_CHECK(a->in.outbox_id == s->out.outbox_id && a->in.off_bytes == s->out.off_bytes &&
                  a->samples == (int64_t)s->frames * SAMPLES_PER_FRAME,
              "samples are collected elsewhere");
    book_drop_slot(&s->out);
}

static void check_forget(const core_action *a)
{
    book_row *r = &book.rows[a->utterance];
    SIM_CHECK(r->used && r->ended && r->running == 0, "an utterance is forgotten that is still needed");
    for (int32_t i = 0; i < r->count; i++)
        book_drop_slot(&r->segments[i].in);
    r->used = false;
    for (int32_t n = 0; n < book.live_count; n++)
        if (book.live[n] == a->utterance)
            book.live[n] = book.live[--book.live_count];
}

static void check_cancel(const core_action *a)
{
    book_row *r;
    const book_segment *s = book_find_running(a->member, a->job, &r);
    SIM_CHECK(s && r->ended && r->cancels_due > 0, "a job is cancelled that is wanted, or is none");
    r->cancels_due--;
}

void check_action(const core_action *a)
{
    switch (a->kind) {
    case CORE_DO_WORK:
        check_work(a);
        break;
    case CORE_DO_CANCEL:
        check_cancel(a);
        break;
    case CORE_DO_COLLECT:
        check_collect(a);
        break;
    case CORE_DO_FINISH:
        SIM_CHECK(book.rows[a->utterance].must_finish && !book.collect_due, "a row finishes before all is collected");
        book.rows[a->utterance].must_finish = false;
        book_end(&book.rows[a->utterance]);
        break;
    case CORE_DO_FAIL:
        check_fail(a);
        break;
    case CORE_DO_FORGET:
        check_forget(a);
        break;
    case CORE_DO_RELEASE:
        SIM_CHECK(!book_find_box(a->in.outbox_id)->released, "an outbox is released twice");
        book_find_box(a->in.outbox_id)->released = true;
        break;
    case CORE_DO_BAR:
        SIM_CHECK(book.bar_due && a->stage == book.bar_stage && a->segment == book.bar_instance,
                  "worker %d.%d is barred for no reason", a->stage, a->segment);
        SIM_CHECK(a->pause_us == book_pause_us(&book.records[a->stage][a->segment]),
                  "worker %d.%d is barred for %" PRIu64 " us", a->stage, a->segment, a->pause_us);
        book.bar_due = false;
        break;
    case CORE_DO_PAROLE:
        SIM_CHECK(book.paroles_due > 0 && book.records[a->stage][a->segment].on_parole,
                  "worker %d.%d is on parole before its time", a->stage, a->segment);
        book.paroles_due--;
        break;
    case CORE_DO_CLEAR:
        SIM_CHECK(book.clear_due && a->stage == book.bar_stage && a->segment == book.bar_instance,
                  "worker %d.%d has passed a parole that was none", a->stage, a->segment);
        book.clear_due = false;
        break;
    }
}
