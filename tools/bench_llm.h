/*
 * bench_llm.h - the LLM stage alone: prompts and steps measured apart, through the functions that its worker runs.
 */
#ifndef CF_TOOLS_BENCH_LLM_H
#define CF_TOOLS_BENCH_LLM_H

#include "tools/bench_ceiling.h"

#define BENCH_PROMPT_ROWS 137 /* 2 control ids, 75 tokens of prompt, 60 of text */

/* Median and best of the single calls: others on the machine make calls slower, never faster. */
typedef struct bench_time {
    double median_s, best_s;
} bench_time;

typedef struct bench_llm_open {
    double open_s;         /* mapping, packing, hashing */
    uint64_t step_bytes;   /* of weights that one decode step reads */
    bench_time prefill;    /* one prompt of BENCH_PROMPT_ROWS rows, its first token included */
    double prefill_gflops; /* of the median */
} bench_llm_open;

typedef struct bench_llm_rate {
    int32_t rows;
    bench_time step;     /* one token of each row, sampling included; BENCH_PROMPT_ROWS to 250 tokens behind each */
    double tokens_per_s; /* of the median */
    double read_gbs;     /* weight bytes of the median */
} bench_llm_rate;

/* Opens the stage once for the largest of count >= 1 row counts, which its prompts warm up; ret_rates: [count].
 * CF_ERR_LIMIT: a count that is not in 1..JOBS_PER_MEMBER_MAX. */
CF_MUST_CHECK cf_err bench_llm(const stage_config *cfg, const int32_t *rows, int count, bench_llm_open *ret_open,
                               bench_llm_rate *ret_rates);

#endif
