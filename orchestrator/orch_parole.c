/*
 * orch_parole.c - the records of worker instances: who is to blame for a death, who is barred, on parole, fed again.
 * Part of the pure core (orch_core.h): no clock, no allocation.
 * Fails: never.
 */
#include "orchestrator/orch_core_impl.h"

core_record *core_record_of(orch_core *core, const core_member *m)
{
    return &core->records[m->stage][m->instance];
}

/* Tells of a change in the standing of m's instance. */
core_action *core_act_on_record(orch_core *core, core_action_kind kind, const core_member *m)
{
    core_action *a = core_act(core, kind);
    a->stage = m->stage;
    a->segment = m->instance;
    a->deaths = core_record_of(core, m)->deaths;
    return a;
}

/* No more work for this instance until its pause, twice as long each time, is over. */
static void bar(orch_core *core, const core_member *m, uint64_t now_us)
{
    core_record *r = core_record_of(core, m);
    const uint64_t max_us = core->limits.parole_max_us;
    r->pause_us = r->pause_us == 0 ? core->limits.parole_us : 2 * r->pause_us;
    r->pause_us = r->pause_us < max_us ? r->pause_us : max_us;
    r->parole_at_us = now_us + r->pause_us;
    r->standing = STANDING_BARRED;
    core_act_on_record(core, CORE_DO_BAR, m)->pause_us = r->pause_us;
}

/*
 * Row or worker: who is to blame? A worker that dies UNPROVEN_DEATHS_MAX times without having finished a job is barred.
 * But while a row runs alone it may be the poison, so a worker gets the benefit of the doubt until one such row has
 * been given up. Rows of the death that bars a worker are not charged: a broken worker costs at most one row.
 * A death on parole is the worker's own, too; see take_back.
 */
culprit core_blame(orch_core *core, const core_member *m, bool alone, uint64_t now_us)
{
    core_record *r = core_record_of(core, m);
    const core_standing before = r->standing;
    if (m->rows_held == 0)
        return CULPRIT_WORKER;
    if (r->deaths < UINT8_MAX)
        r->deaths++;
    if (before == STANDING_FED && (r->deaths < UNPROVEN_DEATHS_MAX || (alone && !r->gave_up_a_row)))
        return CULPRIT_ROWS;
    if (before != STANDING_BARRED)
        bar(core, m, now_us);
    return before == STANDING_PAROLE ? CULPRIT_PAROLE : CULPRIT_WORKER;
}

core_standing orch_core_standing(const orch_core *core, int32_t stage, int32_t instance)
{
    return core->records[stage][instance].standing;
}

/* Barred instances whose pause is over, and that are here. */
void core_begin_paroles(orch_core *core, uint64_t now_us)
{
    for (int32_t i = 0; i < MEMBERS_MAX; i++) {
        const core_member *m = &core->members[i];
        if (!m->live || core_record_of(core, m)->standing != STANDING_BARRED ||
            now_us < core_record_of(core, m)->parole_at_us)
            continue;
        core_record_of(core, m)->standing = STANDING_PAROLE;
        core_act_on_record(core, CORE_DO_PAROLE, m);
    }
}
