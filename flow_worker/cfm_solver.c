/*
 * cfm_solver.c - the solver's time grid, reproduced in upstream's order of f32 operations.
 *
 * Pure. Each dt is the distance from the accumulated t to the next point of the schedule: rounding never drifts.
 *
 * Fails: never.
 * Source: cosy cosyvoice/flow/flow_matching.py ConditionalCFM.forward (cosine schedule), solve_euler @ace7c47.
 */
#include "flow_worker/cfm_solver.h"

#include <math.h>

/* torch.linspace(0, 1, 11) in f32: counted from both ends. */
static float cfm_linspace(int i)
{
    const float step = 0.1f;
    return i < (CFM_STEPS + 1) / 2 ? (float)i * step : 1.0f - (float)(CFM_STEPS - i) * step;
}

/* 1 - cos(lin * 0.5 * pi), the cosine correctly rounded. */
static float cfm_schedule(int i)
{
    const float angle = cfm_linspace(i) * 0.5f * 3.14159274101257324f;
    return 1.0f - (float)cos((double)angle);
}

void cfm_grid_init(cfm_grid *ret_grid)
{
    float t = cfm_schedule(0);
    float dt = cfm_schedule(1) - t;
    for (int k = 0; k < CFM_STEPS; k++) {
        ret_grid->t[k] = t;
        ret_grid->dt[k] = dt;
        t = t + dt;
        if (k + 2 <= CFM_STEPS)
            dt = cfm_schedule(k + 2) - t;
    }
}
