/*
 * orch_silence.c - members that hang: nothing is heard of them, a step or a model does not come to its end, the keeper
 * makes no memory. They are killed, and whoever supervises them starts them again. Part of the shell, its one thread.
 * Fails: never; what cannot be killed is logged, and lost all the same.
 */
#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "orchestrator/orch.h"

/* Its death is then seen as any other. */
void members_end_process(orch *o, int conn_idx, const char *why)
{
    const conn *c = &o->conns[conn_idx];
    if (io_pidfd_kill(c->pid_fd) != CF_OK)
        log_warn("member.unkillable", "role=%s instance=%d pid=%ld text=\"%s\"", c->role, c->instance, (long)c->pid,
                 err_text());
    members_lose(o, conn_idx, why);
}

static const char *failing_text(conn_state state, health_verdict verdict)
{
    if (state == CONN_SERVING)
        return verdict == HEALTH_SILENT ? "no heartbeat for silence_s" : "holds jobs and made no step for stall_s";
    return verdict == HEALTH_SILENT ? "said nothing for silence_s before it served"
                                    : "did not load its model in load_s";
}

static void check_member(orch *o, int conn_idx, uint64_t now_us)
{
    const conn *c = &o->conns[conn_idx];
    const int32_t step_s = c->state == CONN_LOADING ? o->cfg.load_s : o->cfg.stall_s;
    const health_limits limits = {.silence_us = (uint64_t)o->cfg.silence_s * CLOCK_SECOND_US,
                                  .stall_us = (uint64_t)step_s * CLOCK_SECOND_US};
    const health_verdict verdict = health_judge(&c->alive, &limits, now_us);
    if (verdict == HEALTH_FINE)
        return;
    if (c->state >= CONN_LOADING && c->state <= CONN_SERVING)
        members_end_process(o, conn_idx, failing_text(c->state, verdict));
    else if (c->state == CONN_NEW) /* it may be anybody; its supervisor knows whether it is one of us */
        members_lose(o, conn_idx, "never said who it is");
}

/* Workers that wait for their memory do their part: it is the keeper that has not answered since it was asked, or since
 * its last answer. */
static void check_keeper(orch *o, uint64_t now_us)
{
    const int keeper = members_in_state(o, CONN_KEEPER);
    for (int i = 0; i < BOX_TABLE_MAX && keeper >= 0; i++) {
        const box_entry *box = &o->boxes[i];
        const uint64_t heard_us = o->conns[keeper].alive.heard_us;
        const uint64_t since_us = box->asked_us > heard_us ? box->asked_us : heard_us;
        if (box->outbox_id == 0 || box->read_fd >= 0 || box->asked_us == 0 ||
            clock_since_us(since_us, now_us) <= (uint64_t)o->cfg.silence_s * CLOCK_SECOND_US)
            continue;
        members_end_process(o, keeper, "made no exchange memory for silence_s");
        return;
    }
}

void members_check_silence(orch *o, uint64_t now_us, bool was_asleep)
{
    for (int i = 0; i < CONNS_MAX; i++) {
        if (was_asleep)
            health_excuse(&o->conns[i].alive, now_us); /* it was us who did not listen */
        check_member(o, i, now_us);
    }
    check_keeper(o, now_us);
}
