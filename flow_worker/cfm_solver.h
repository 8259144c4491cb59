/*
 * cfm_solver.h - the time grid of conditional flow matching: ten Euler steps on a cosine schedule. Pure; no model.
 *
 * With v = 1.7 v_cond - 0.7 v_uncond evaluated at t[k], one step is x += dt[k] v (op_cfg_euler); the last x is mel.
 */
#ifndef CF_FLOW_WORKER_CFM_SOLVER_H
#define CF_FLOW_WORKER_CFM_SOLVER_H

#ifdef __cplusplus
extern "C" {
#endif

#define CFM_STEPS 10 /* hard-coded at upstream's call: flow.py:409 */

/* Step k, counted from 0, evaluates the estimator at t[k] and moves x by dt[k]. */
typedef struct cfm_grid {
    float t[CFM_STEPS];
    float dt[CFM_STEPS];
} cfm_grid;

/* The grid in upstream's f32 arithmetic. */
void cfm_grid_init(cfm_grid *ret_grid);

#ifdef __cplusplus
}
#endif
#endif
