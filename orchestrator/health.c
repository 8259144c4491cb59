/*
 * health.c - silence and standstill of workers. Pure; runs in the orchestrator's one thread and in the simulator.
 * Owns nothing: a health belongs to its connection. Fails: never.
 */
#include "orchestrator/health.h"

void health_begin(health *h, uint64_t now_us)
{
    *h = (health){.heard_us = now_us, .step_us = now_us};
}

void health_heard(health *h, uint64_t now_us)
{
    h->heard_us = now_us;
}

void health_beat(health *h, uint64_t steps, bool has_jobs, uint64_t now_us)
{
    h->heard_us = now_us;
    if (h->steps != steps || !has_jobs)
        h->step_us = now_us;
    h->steps = steps;
    h->has_jobs = has_jobs;
}

void health_excuse(health *h, uint64_t now_us)
{
    h->heard_us = h->step_us = now_us;
}

/* Heard later than the loop's idea of now is not silence: a beat may come in the turn of a tick. */
static bool is_longer(uint64_t since_us, uint64_t now_us, uint64_t limit_us)
{
    return now_us > since_us && now_us - since_us > limit_us;
}

health_verdict health_judge(const health *h, const health_limits *limits, uint64_t now_us)
{
    if (is_longer(h->heard_us, now_us, limits->silence_us))
        return HEALTH_SILENT;
    return h->has_jobs && is_longer(h->step_us, now_us, limits->stall_us) ? HEALTH_STALLED : HEALTH_FINE;
}

bool health_overslept(uint64_t last_us, uint64_t now_us, uint64_t tick_us)
{
    return now_us - last_us > tick_us + HEALTH_ASLEEP_US;
}
