/*
 * probe.h - a window into a forward pass. Stage code calls probe_emit at the places that model/cases.md names; without
 * a probe it costs one test of a pointer. Parity runs and captures use it, workers do not.
 */
#ifndef CF_COMPUTE_PROBE_H
#define CF_COMPUTE_PROBE_H

#include "common/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct probe {
    void *ctx; /* borrowed */
    /* row_idx: which job of the batch; data: host memory, valid during the call, row-major as the pass holds it. */
    void (*emit)(void *ctx, int32_t row_idx, const char *name, int rank, const int64_t *dims, const float *data);
} probe;

/* Downloads rows [first, first + count) of a 2-D f32 tensor and emits them as [count, C]. No-op when p is NULL. */
CF_MUST_CHECK cf_err probe_emit(const probe *p, backend *be, int32_t row_idx, const char *name, const tensor *x,
                                int64_t first, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
