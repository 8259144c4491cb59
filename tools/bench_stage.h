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
    double snr_db;        /* of the first row against the same in f32, when asked for */
} bench_rate;

typedef struct bench_stage_wish {
    int32_t rows;
    double seconds;        /* of audio a row, about */
    int32_t prompt_tokens; /* of a random voice; 0: the model's first voice */
    bool snr;              /* also run one row in f32 */
} bench_stage_wish;

/* Runs equal jobs at once, after one step that is not counted: of all of them, of one for hift on a CPU, whose step is
 * the whole work. CF_ERR_LIMIT: rows that are not in 1..STAGE_ROWS_MAX. */
CF_MUST_CHECK cf_err bench_stage(const stage_ops *ops, const stage_config *cfg, const bench_stage_wish *wish,
                                 const bench_ceiling *ceiling, bench_rate *ret_rate);

#endif
