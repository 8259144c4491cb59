/*
 * bench_ceiling.h - what this machine can do at best, measured by loops that do nothing else: the figures that rates
 * of stages are shares of.
 */
#ifndef CF_TOOLS_BENCH_CEILING_H
#define CF_TOOLS_BENCH_CEILING_H

#include "common/worker/stage.h"

typedef struct bench_ceiling {
    double gemm_f32_gflops;  /* CPU: 512 x 1024 x 1024 a thread, operands in the caches; a device: 2048 x 1024 x 1024 */
    double gemm_bf16_gflops; /* the same with operands of 16 bits, a device's in fp16, and f32 sums */
    double gemm_gflops;      /* that of the run's precision */
    double read_gbs; /* the host's memory: summing 1 GiB in huge pages, all threads; a device: 0, not measured */
    int threads;
} bench_ceiling;

CF_MUST_CHECK cf_err bench_ceilings(const stage_config *cfg, bench_ceiling *ret_ceiling);

#endif
