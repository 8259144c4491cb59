/*
 * bench_stage.h - flow or hift alone, in this process, through the functions that its worker runs.
 */
#ifndef CF_TOOLS_BENCH_STAGE_H
#define CF_TOOLS_BENCH_STAGE_H

#include "common/base/limits.h"
#include "tools/bench_ceiling.h"

#define STAGE_ROWS_MAX JOBS_PER_MEMBER_MAX

typedef struct bench_rate {
    int32_t rows;
    double seconds; /* of stepping */
    double audio_s; /* rendered */
    double audio_per_s;
    double ceiling_share; /* flow: GEMM work / gemm_gflops; hift: not given (-1) */
} bench_rate;

/* Runs `rows` equal jobs of about `seconds` of audio with the first voice of the model. */
CF_MUST_CHECK cf_err bench_stage(const stage_ops *ops, const stage_config *cfg, int32_t rows, double seconds,
                                 const bench_ceiling *ceiling, bench_rate *ret_rate);

#endif
