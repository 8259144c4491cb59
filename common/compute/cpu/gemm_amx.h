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

/* So few columns that amx_multiply_half has them all. */
static inline bool amx_half(const weight *w)
{
    return w->n_out / w->groups <= AMX_SIDE / 2;
}

/* And so few channels that taps share chunks: the depth runs over taps and channels together. It comes in pairs. */
static inline bool amx_merged(const weight *w)
{
    const int64_t inner = w->k_in / w->groups;
    return amx_half(w) && w->kernel > 1 && inner < AMX_SIDE && inner % 2 == 0;
}

static inline int64_t amx_taps(const weight *w)
{
    return amx_merged(w) ? 1 : w->kernel;
}

static inline int64_t amx_chunks(const weight *w)
{
    const int64_t inner = w->k_in / w->groups;
    return div_ceil(amx_merged(w) ? w->kernel * inner : inner, AMX_SIDE);
}

static inline int64_t amx_panels(const weight *w)
{
    return div_ceil(w->n_out / w->groups, AMX_SIDE);
}

/* Of one part of a packed panel. */
static inline int64_t amx_part_values(const weight *w)
{
    return amx_taps(w) * amx_chunks(w) * AMX_STEP_VALUES;
}

/* Where a block lies in y: rows row, row + row_step, ...; a layer's row_step is 1. */
typedef struct amx_place {
    int64_t row, rows, row_step, col, cols;
} amx_place;

/* Bias, activation, and a block's way into y. c: [32][32], changed. streamed: y is bf16, its blocks have 32 columns,
 * and it goes past the caches; amx_stream_end ends that. */
void gemm_amx_finish(const gemm_job *job, float *c, const amx_place *at, bool streamed);

/* y = act(x W + bias) or y += gate * (x W + bias), a weight of one part, no convolution. Fails: CF_ERR_NOMEM. */
cf_err gemm_amx_dense(backend *be, const gemm_job *job);

#endif
