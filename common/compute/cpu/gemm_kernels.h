/*
 * gemm_kernels.h - the innermost loops of the matrix product, one table per instruction set.
 *
 *   c[r][n] (+)= sum_k a[r][k] b[k][n]        r < rows, n < the panel's width
 *
 * Each element is one chain over k ascending that starts at zero or at c, so its bytes depend on its own row of a,
 * its own column of b and the block length alone: not on rows, on the row's place, or on other columns.
 */
#ifndef CF_COMPUTE_CPU_GEMM_KERNELS_H
#define CF_COMPUTE_CPU_GEMM_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#define GEMM_ROWS_MAX  12 /* rows of one kernel call, in any table */
#define GEMM_PANEL     16 /* f32 columns of one kernel call: two vectors of AVX, one of AVX-512 */
#define GEMM_PANEL_F64 8

typedef struct gemm_kernels {
    const char *name;
    int rows; /* of one call at most */
    /* b: [depth][GEMM_PANEL]; a_pitch, c_pitch in values; fresh: c starts at zero */
    void (*f32)(int rows, int64_t depth, const float *a, int64_t a_pitch, const float *b, float *c, int64_t c_pitch,
                bool fresh);
    /* as f32 with b stored as bf16 */
    void (*bf16)(int rows, int64_t depth, const float *a, int64_t a_pitch, const uint16_t *b, float *c, int64_t c_pitch,
                 bool fresh);
    /* b: [depth][GEMM_PANEL_F64] */
    void (*f64)(int rows, int64_t depth, const double *a, int64_t a_pitch, const double *b, double *c, int64_t c_pitch,
                bool fresh);
} gemm_kernels;

extern const gemm_kernels gemm_kernels_base;   /* any machine: product and sum rounded apart */
extern const gemm_kernels gemm_kernels_avx2;   /* x86-64 with AVX2 and FMA */
extern const gemm_kernels gemm_kernels_avx512; /* x86-64 with AVX-512; the same bytes as avx2 */

/* The best table for this machine. */
const gemm_kernels *gemm_kernels_choose(void);

#endif
