/*
 * flow_model.h - the flow's weights on a backend: packed matrices, tables that depend on the model alone, and the
 * memory that a batch needs.
 */
#ifndef CF_FLOW_WORKER_FLOW_MODEL_H
#define CF_FLOW_WORKER_FLOW_MODEL_H

#include "common/compute/backend.h"
#include "common/model/stage_tables.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A packed matrix or filter bank and its bias [out] f32; both live as long as the backend. */
typedef struct flow_linear {
    weight *w;
    tensor bias;
} flow_linear;

typedef struct flow_block {
    flow_linear qkv;     /* [3 dim, dim]: to_q, to_k, to_v, one below the other */
    flow_linear out;     /* [dim, dim] */
    flow_linear ff_up;   /* [2 dim, dim] */
    flow_linear ff_down; /* [dim, 2 dim] */
} flow_block;

typedef struct flow_model {
    flow_dims dims;
    tensor embedding;             /* [codes, 80] */
    float *speaker_w, *speaker_b; /* [80, 192], [80]; host, owned: one small product per job */
    flow_linear look1, look2;     /* [look, 80, 4], [80, look, 3] */
    flow_linear input;            /* [dim, 320] */
    flow_linear position[2];      /* [dim, dim / 16, 31] */
    flow_block *blocks;           /* [depth], owned */
    flow_linear output;           /* [80, dim] */
    tensor modulation;            /* [10, modulation_line_values] */
    tensor rope_cos, rope_sin;    /* [15000, 32] */
    tensor noise;                 /* [15000, 80]: the table of noise.h, time-major */
    tensor frame_idx;             /* [15000] i32: 0, 1, 2, ... */
    precision operands;           /* of the estimator's products */
} flow_model;

/* Packs everything. operands rounds the estimator's matrices; the token encoder stays f32 (0.3 % of the work).
 * w may be closed afterwards. Errors name the tensor; tensors nobody needs are CF_ERR_MISMATCH. */
CF_MUST_CHECK cf_err flow_model_open(backend *be, weights *w, const flow_dims *dims, precision operands,
                                     flow_model **ret_model);
void flow_model_close(flow_model *m); /* NULL is fine; what lies on the backend dies with it */

/* Address space of backend_take that one step with `frames` packed frames needs. */
size_t flow_model_scratch_bytes(const flow_dims *dims, int64_t frames);

#ifdef __cplusplus
}
#endif
#endif
