/*
 * modulation.h - AdaLN folded over time: shifts, scales and gates depend on t alone, and t takes ten values, so that
 * 42.7 % of the weights become one table at load.
 */
#ifndef CF_FLOW_WORKER_MODULATION_H
#define CF_FLOW_WORKER_MODULATION_H

#include "common/model/stage_tables.h"
#include "flow_worker/cfm_solver.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values of one line: columns of flow_shapes.h times dim. */
int64_t modulation_line_values(const flow_dims *dims);

/* Evaluates the time embedding and every AdaLN projection in f64 at the grid's ten times and rounds once.
 * ret_table: [10, modulation_line_values] f32, caller's memory. Errors of weights_f32. */
CF_MUST_CHECK cf_err modulation_fill(weights *w, const flow_dims *dims, const cfm_grid *grid, float *ret_table);

#ifdef __cplusplus
}
#endif
#endif
