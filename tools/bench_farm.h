/*
 * bench_farm.h - rates and latencies of a whole private farm: all processes, messages, files.
 */
#ifndef CF_TOOLS_BENCH_FARM_H
#define CF_TOOLS_BENCH_FARM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/config.h"
#include "common/base/err.h"

#define BENCH_FARM_ROWS_MAX 10000

typedef struct bench_farm_wish {
    const config *cfg;
    int32_t count;       /* rows, the fixed sentences over and over, with growing seeds */
    bool farm, handover; /* what to report */
    bool as_json;
    const char *trace_path; /* Chrome trace of the run, all workers in one file; NULL: none */
} bench_farm_wish;

/* Starts a farm, speaks one row to warm it, one alone for its latency, then `count` together; reports on stdout. */
CF_MUST_CHECK cf_err bench_farm(const bench_farm_wish *wish, int32_t *ret_failed);

#endif
