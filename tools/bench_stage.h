/*
 * bench_stage.h - one stage alone, in this process, through the functions that its worker runs; and the ceilings of
 * the machine.
 */
#ifndef CF_TOOLS_BENCH_STAGE_H
#define CF_TOOLS_BENCH_STAGE_H

#include "common/base/limits.h"
#include "common/worker/stage.h"

#define STAGE_ROWS_MAX JOBS_PER_MEMBER_MAX

typedef struct bench_ceiling {
    double gemm_gflops; /* op_linear, 2048 x 1024 x 1024, operands of the run's precision, its threads */
    double read_gbs;    /* summing 512 MiB, the run's threads */
} bench_ceiling;

CF_MUST_CHECK cf_err bench_ceilings(const stage_config *cfg, bench_ceiling *ret_ceiling);

typedef struct bench_rate {
    int32_t rows;
    double seconds;       /* of stepping */
    double units;         /* llm: tokens; flow, hift: audio seconds */
    double audio_per_s;   /* audio seconds a second */
    double ceiling_share; /* llm: weight bytes read / read_gbs; flow: GEMM work / gemm_gflops; hift: not given (-1) */
} bench_rate;

/* Runs `rows` equal jobs of about `seconds` of audio with the first voice of the model. */
CF_MUST_CHECK cf_err bench_stage(const stage_ops *ops, const stage_config *cfg, int32_t rows, double seconds,
                                 const bench_ceiling *ceiling, bench_rate *ret_rate);

#endif
