/*
 * sim_book.c - figures and look-ups of the second book-keeping. The simulator's one thread; owns the book.
 * Fails: sim_fail.
 */
#include "tests/sim/sim_book.h"

#include <inttypes.h>
#include <string.h>

sim_book book;

void check_reset(void)
{
    memset(&book, 0, sizeof book);
}

book_box *book_find_box(uint32_t outbox_id)
{
    for (int32_t i = 0; i < CORE_BOXES_MAX; i++)
        if (outbox_id != 0 && book.boxes[i].outbox_id == outbox_id)
            return &book.boxes[i];
    sim_fail("outbox %u does not exist", outbox_id);
}

static void free_region(const core_slot *s)
{
    book_box *box = book_find_box(s->outbox_id);
    for (int32_t i = 0; i < box->count; i++)
        if (box->regions[i].off == s->off_bytes) {
            box->regions[i] = box->regions[--box->count];
            return;
        }
    sim_fail("outbox %u has nothing at %" PRIu64, s->outbox_id, s->off_bytes);
}

void book_drop_slot(core_slot *s)
{
    if (s->outbox_id != 0)
        free_region(s);
    *s = (core_slot){0};
}

uint64_t book_aligned(uint64_t bytes)
{
    return (bytes + SLOT_ALIGN_BYTES - 1) / SLOT_ALIGN_BYTES * SLOT_ALIGN_BYTES;
}

uint64_t book_slot_bytes(const book_segment *s)
{
    return s->stage == CORE_LLM    ? 0
           : s->stage == CORE_FLOW ? (uint64_t)s->frames * MEL_BINS * 4
                                   : (uint64_t)s->frames * SAMPLES_PER_FRAME * 4;
}

int32_t book_credit(const book_segment *s)
{
    return s->stage == CORE_LLM ? 0 : s->stage == CORE_FLOW ? 2 * (s->prompt_tokens + s->tokens) : s->frames;
}

bool book_is_suspect(const book_segment *s)
{
    return s->deaths > 0 && s->deaths >= the_sim.plan.core.deaths_max - 1;
}

bool book_is_doubtful(const book_segment *s)
{
    return book_is_suspect(s) || s->parole_deaths > 0;
}

bool book_is_on_parole(const book_member *m)
{
    return book.records[m->stage][m->instance].on_parole;
}

uint64_t book_pause_us(const book_record *r)
{
    uint64_t us = the_sim.plan.core.parole_us;
    for (int32_t i = 1; i < r->pauses && us < the_sim.plan.core.parole_max_us; i++)
        us *= 2;
    return us < the_sim.plan.core.parole_max_us ? us : the_sim.plan.core.parole_max_us;
}

bool book_may_be_fed(const book_member *m, int32_t stage)
{
    return m->live && m->stage == stage && !m->draining && !m->paused && !book.records[stage][m->instance].barred;
}

bool book_can_read(const book_member *m, const book_segment *s)
{
    return s->in.outbox_id == 0 || m->opened[book_find_box(s->in.outbox_id) - book.boxes];
}

book_segment *book_find_running(int32_t member, uint64_t job, book_row **ret_row)
{
    for (int32_t n = 0; n < book.live_count; n++) {
        book_row *r = &book.rows[book.live[n]];
        for (int32_t i = 0; i < r->count && r->running > 0; i++)
            if (r->segments[i].state == BOOK_RUNS && r->segments[i].job == job && r->segments[i].member == member) {
                *ret_row = r;
                return &r->segments[i];
            }
    }
    return NULL;
}

void book_end(book_row *r)
{
    SIM_CHECK(!r->ended, "row %d ends twice", r->row);
    r->ended = true;
    r->cancels_due = r->running;
}
