/*
 * flow_pack.h - the solver's state of all held jobs, packed along time: x, mu and cond of job b are the rows behind
 * those of job b - 1. Jobs are appended at the end; when some leave, the rest moves together.
 */
#ifndef CF_FLOW_WORKER_FLOW_PACK_H
#define CF_FLOW_WORKER_FLOW_PACK_H

#include "common/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct flow_pack {
    backend *be; /* borrowed */
    struct flow_pack_side {
        tensor x, mu, cond; /* [frames_cap, 80] */
        tensor spk;         /* [rows_cap, 80] */
    } side[2];              /* one in use, the other for moving: a move never overlaps */
    int in_use;
    int64_t frames_cap, rows_cap;
} flow_pack;

/* Takes memory that lives as long as the backend; nothing to close. */
CF_MUST_CHECK cf_err flow_pack_open(backend *be, int64_t frames_cap, int64_t rows_cap, flow_pack *ret_pack);

/* Views of rows [first, first + count) in use. */
tensor flow_pack_x(const flow_pack *p, int64_t first, int64_t count);
tensor flow_pack_mu(const flow_pack *p, int64_t first, int64_t count);
tensor flow_pack_cond(const flow_pack *p, int64_t first, int64_t count);
tensor flow_pack_spk(const flow_pack *p, int64_t first, int64_t count);

/* Keeps the jobs whose keep[b] is set, in order. lengths: frames of each of count jobs as they lie now. */
CF_MUST_CHECK cf_err flow_pack_keep(flow_pack *p, const bool *keep, const int32_t *lengths, int32_t count);

#ifdef __cplusplus
}
#endif
#endif
