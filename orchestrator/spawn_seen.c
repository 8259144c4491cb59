/*
 * spawn_seen.c - processes that hang where the orchestrator cannot see it: before they have said who they are, or after
 * their line to it was lost. Whom it sees it judges itself (members_check_silence). The supervisor's one thread.
 *
 * The orchestrator tells whom it sees, and whom no more. Out of its sight a child has silence_s to come, or stall_s
 * when it has served: it may have to finish a step before it connects again. Without a line to the orchestrator nobody
 * is judged. While the orchestrator itself is stopped it sees nobody: who starts meanwhile may be started once more,
 * for nothing. Fails: never.
 */
#define _GNU_SOURCE
#include <signal.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "orchestrator/health.h"
#include "orchestrator/spawn_impl.h"

void spawn_note_seen(spawn *s, const wire_msg *seen, uint64_t now_us)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->children[i].pid == (pid_t)wire_u64(seen, "pid"))
            s->children[i].unseen_us = wire_bool(seen, "here") ? 0 : now_us;
}

void spawn_note_line(spawn *s, bool is_up, uint64_t now_us)
{
    s->is_line_up = is_up;
    for (size_t i = 0; i < s->count; i++)
        s->children[i].unseen_us = now_us;
}

uint64_t spawn_hung_us(const spawn *s, const child *c)
{
    if (!s->is_line_up || c->role == CHILD_ORCHESTRATOR || c->pid == 0 || c->unseen_us == 0)
        return UINT64_MAX;
    return c->unseen_us + (c->served && c->role == CHILD_WORKER ? s->stall_us : s->silence_us);
}

void spawn_end_hung(const spawn *s, child *c, uint64_t now_us)
{
    const uint64_t due_us = spawn_hung_us(s, c);
    if (now_us < due_us)
        return;
    if (now_us - due_us < HEALTH_ASLEEP_US) { /* later than that we were stopped ourselves, and did not listen */
        log_warn("child.hung", "program=%s instance=%d pid=%ld unseen_s=%.1f", c->program, c->instance, (long)c->pid,
                 (double)(now_us - c->unseen_us) / 1e6);
        kill(c->pid, SIGKILL);
    }
    c->unseen_us = now_us;
}
