/*
 * bench_ops.h - single ops at the shapes of the full model: bytes and products a second, as shares of what the device
 * does at best in the same run.
 */
#ifndef CF_TOOLS_BENCH_OPS_H
#define CF_TOOLS_BENCH_OPS_H

#include "common/worker/stage.h"

typedef struct bench_op_rate {
    const char *name;
    double seconds; /* of one call, many being queued */
    double gbs;     /* bytes that the op has to read and write; 0: bound by its products */
    double gflops;  /* 0: bound by its bytes */
    double share;   /* of copying, or of the large product */
} bench_op_rate;

#define BENCH_OPS_MAX 24

/* `rows` sequences of `frames` mel frames each, at the widths of the full model. ret_rates: [BENCH_OPS_MAX], the
 * ceilings first. */
CF_MUST_CHECK cf_err bench_ops(const stage_config *cfg, int32_t rows, int32_t frames, bench_op_rate *ret_rates,
                               int *ret_count);

#endif
