/*
 * gemm_amx.h - what the two files of the tile engine share: gemm_amx.c for convolutions and for pairs, gemm_amx_dense.c
 * for layers with bf16 operands.
 */
#ifndef CF_COMPUTE_CPU_GEMM_AMX_H
#define CF_COMPUTE_CPU_GEMM_AMX_H

#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/gemm.h"

/* bf16 operands a value: one, or a pair. */
static inline int amx_parts(const weight *w)
{
    return w->operands == PRECISION_BF16_PAIR ? 2 : 1;
}

static inline int64_t amx_chunks(const weight *w)
{
    return div_ceil(w->k_in / w->groups, AMX_SIDE);
}

static inline int64_t amx_panels(const weight *w)
{
    return div_ceil(w->n_out / w->groups, AMX_SIDE);
}

/* Of one part of a packed panel. */
static inline int64_t amx_part_values(const weight *w)
{
    return w->kernel * amx_chunks(w) * AMX_STEP_VALUES;
}

/* Bias, activation, and a block's way into y: rows [row, + rows), columns [col, + cols). c: [32][32], changed.
 * streamed: y is bf16, its blocks have 32 columns, and it goes past the caches; amx_stream_end ends that. */
void gemm_amx_finish(const gemm_job *job, float *c, int64_t row, int64_t rows, int64_t col, int64_t cols,
                     bool streamed);

/* y = act(x W + bias) or y += gate * (x W + bias), a weight of one part, no convolution. Fails: CF_ERR_NOMEM. */
cf_err gemm_amx_dense(backend *be, const gemm_job *job);

#endif
