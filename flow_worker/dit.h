/*
 * dit.h - the velocity estimator: a diffusion transformer over packed requests, each at its own solver step.
 */
#ifndef CF_FLOW_WORKER_DIT_H
#define CF_FLOW_WORKER_DIT_H

#include "flow_worker/flow_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* B requests, R packed frames. */
typedef struct dit_batch {
    const tensor *x, *cond, *mu; /* [R, 80] */
    const tensor *spk;           /* [B, 80] */
    const op_rows *rows;         /* frames of each request */
    const int32_t *steps;        /* host [B], 0 .. 9 */
    const int32_t *blocks;       /* host [B]: frames of an attention block, 0: all see all */
} dit_batch;

/* Evaluates the estimator with and without conditions.
 * ret_v: [2R, 80], caller's tensor: request b's conditional rows, then its unconditional ones. */
CF_MUST_CHECK cf_err dit_velocity(backend *be, const flow_model *m, const dit_batch *in, tensor *ret_v);

#ifdef __cplusplus
}
#endif
#endif
