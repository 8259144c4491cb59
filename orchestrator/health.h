/*
 * health.h - PURE: does this worker still do its part? Judged by what it said and when, never by a clock of its own.
 *
 *   silent    nothing was heard of it for silence_us
 *   stalled   it was given jobs, and its count of steps has not changed for stall_us
 *
 * Whether it has jobs is known by who gave them: what a worker says may be a lie, or a job was lost on the way.
 * A judge who slept himself judges nobody by that time: health_overslept, then health_excuse for each.
 */
#ifndef CF_ORCHESTRATOR_HEALTH_H
#define CF_ORCHESTRATOR_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

#define HEALTH_ASLEEP_US UINT64_C(2000000) /* a loop this late was stopped itself */

typedef struct health {
    uint64_t heard_us; /* its last word */
    uint64_t step_us;  /* when its count of steps last changed, or it had nothing to do */
    uint64_t steps;
    bool has_jobs; /* at its last beat */
} health;

typedef struct health_limits {
    uint64_t silence_us, stall_us;
} health_limits;

typedef enum health_verdict { HEALTH_FINE, HEALTH_SILENT, HEALTH_STALLED } health_verdict;

void health_begin(health *h, uint64_t now_us); /* everything counts from now */
void health_heard(health *h, uint64_t now_us); /* any message */
void health_beat(health *h, uint64_t steps, bool has_jobs, uint64_t now_us);
void health_excuse(health *h, uint64_t now_us); /* as if it had spoken and stepped just now */

health_verdict health_judge(const health *h, const health_limits *limits, uint64_t now_us);

/* Was the loop that should judge every tick_us stopped since it last did? */
bool health_overslept(uint64_t last_us, uint64_t now_us, uint64_t tick_us);

#endif
