/*
 * orch_core_impl.h - what the files of the core share: orch_core.c (utterances, segments, scheduling), orch_parole.c
 * (records of worker instances).
 */
#ifndef CF_ORCHESTRATOR_ORCH_CORE_IMPL_H
#define CF_ORCHESTRATOR_ORCH_CORE_IMPL_H

#include "orchestrator/orch_core.h"

typedef enum culprit { CULPRIT_WORKER, CULPRIT_ROWS, CULPRIT_PAROLE } culprit;

/* Appends an action, without member, utterance and segment. */
core_action *core_act(orch_core *core, core_action_kind kind);

core_record *core_record_of(orch_core *core, const core_member *m);
/* Tells of a change in the standing of m's instance. */
core_action *core_act_on_record(orch_core *core, core_action_kind kind, const core_member *m);
/* A member is lost: its record is charged, and may bar its instance. alone: a row was there by itself, suspected. */
culprit core_blame(orch_core *core, const core_member *m, bool alone, uint64_t now_us);
void core_begin_paroles(orch_core *core, uint64_t now_us);

#endif
