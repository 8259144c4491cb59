/*
 * sim_client.c - rows: drawn from the seed, submitted, repeated until accepted, withdrawn; every end is counted here.
 * Fails: sim_fail, when a row ends twice.
 */
#include "tests/sim/sim.h"

#define SECOND_US UINT64_C(1000000)

void client_plan(void)
{
    const sim_plan *p = &the_sim.plan;
    const double poison = sim_chance(0.3) ? 0.06 : 0, hasty = sim_chance(0.5) ? 0.1 : 0;
    for (int32_t i = 0; i < p->rows_count; i++) {
        sim_row *r = &the_sim.rows[i];
        *r = (sim_row){.segments_count = p->flood           ? 1
                                         : sim_chance(0.04) ? 1 + sim_below(SIM_SEGMENTS_MAX)
                                                            : 1 + sim_below(4),
                       .priority = sim_chance(0.5) ? 0 : sim_below(10),
                       .age = sim_chance(0.1) ? 0 : (uint64_t)i,
                       .speed = 0.5 + 1.5 * sim_draw(),
                       .poison_stage = -1,
                       .utterance = -1,
                       .ends_due = 1};
        const int32_t prompt = sim_below(120);
        for (int32_t n = 0; n < r->segments_count; n++)
            r->costs[n] =
                (core_cost){.text_tokens = 1 + sim_below(sim_chance(0.05) ? 250 : 60), .prompt_tokens = prompt};
        if (p->flood || sim_chance(hasty))
            r->deadline_us = sim_between(SECOND_US / 2, p->flood ? 3 * SECOND_US : 20 * SECOND_US);
        if (sim_chance(poison)) {
            r->poison_stage = sim_below(CORE_STAGES);
            r->poison_segment = sim_below(r->segments_count);
        }
        if (sim_chance(0.02))
            r->withdraw_us = sim_between(1, 5 * SECOND_US);
        const uint64_t at_us = p->flood ? sim_between(0, 4 * SECOND_US) : sim_between(0, p->submit_us);
        sim_at(at_us, (sim_event){.kind = SIM_SUBMIT, .who = i});
    }
}

static void hand_over(int32_t row)
{
    sim_row *r = &the_sim.rows[row];
    int32_t u = 0;
    while (u < UTTERANCES_MAX && the_sim.core.utterances[u].state != UTTERANCE_FREE)
        u++;
    SIM_CHECK(u < UTTERANCES_MAX, "the core says it has room, and no utterance is free");
    r->utterance = u;
    r->asked = true;
    the_sim.row_of[u] = row;
    the_sim.live_rows++;
    sim_trace("row %d: utterance %d, %d segments, priority %d%s", row, u, r->segments_count, r->priority,
              r->poison_stage >= 0 ? ", poison" : "");
    shell_apply(&(core_event){.kind = CORE_SUBMIT,
                              .utterance = u,
                              .priority = r->priority,
                              .row = r->age,
                              .speed = r->speed,
                              .deadline_us = r->deadline_us ? the_sim.now_us + r->deadline_us : 0,
                              .segments = r->costs,
                              .segments_count = r->segments_count});
}

/* number 1: the journal gives it back, and it was accepted before. */
static void submit(const sim_event *e)
{
    sim_row *r = &the_sim.rows[e->who];
    if (e->number == 1) {
        hand_over(e->who);
        return;
    }
    if (r->ended || r->accepted)
        return;
    sim_at(the_sim.now_us + 2 * SECOND_US, *e); /* no answer by then: again */
    if (r->utterance >= 0 || !the_sim.orch_up || the_sim.now_us < the_sim.asleep_until_us ||
        the_sim.live_rows >= the_sim.plan.rows_live_max || !orch_core_has_room(&the_sim.core, r->segments_count))
        return;
    sim_at(the_sim.now_us + sim_between(0, 20000), (sim_event){.kind = SIM_SYNC, .who = e->who, .boot = the_sim.boot});
    if (r->withdraw_us)
        sim_at(the_sim.now_us + r->withdraw_us, (sim_event){.kind = SIM_WITHDRAW, .who = e->who});
    hand_over(e->who);
}

void client_ended(int32_t row, bool finished, cf_err code)
{
    sim_row *r = &the_sim.rows[row];
    sim_trace("row %d %s%s", row,
              finished       ? "done"
              : r->withdrawn ? "withdrawn"
                             : "failed: ",
              finished || r->withdrawn ? "" : err_name(code));
    r->ends++;
    SIM_CHECK(r->ends <= r->ends_due, "row %d ended %d times, %d were due", row, r->ends, r->ends_due);
    SIM_CHECK(!finished || r->poison_stage < 0, "row %d is poison, and finished", row);
    r->accepted = true;
    if (r->ended)
        return; /* the client knows: it hears the second answer, after a restart, and drops it */
    r->ended = true;
    r->finished = finished;
    the_sim.rows_ended++;
    the_sim.done += finished;
    the_sim.failed += !finished;
}

void client_event(const sim_event *e)
{
    sim_row *r = &the_sim.rows[e->who];
    if (e->kind == SIM_SUBMIT) {
        submit(e);
        return;
    }
    if (r->utterance < 0 || r->ended)
        return;
    const int32_t u = r->utterance;
    r->withdrawn = true;
    r->utterance = the_sim.row_of[u] = -1;
    the_sim.live_rows--;
    r->end_synced = true;
    client_ended(e->who, false, CF_OK);
    shell_apply(&(core_event){.kind = CORE_WITHDRAW, .utterance = u});
}
