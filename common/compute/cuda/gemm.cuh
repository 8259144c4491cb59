/*
 * gemm.cuh - matrix products of the CUDA backend. Two files implement it: gemm.cu with cuBLASLt, the only file that
 * knows that library, and the naive twin of the emulator.
 */
#ifndef CF_COMPUTE_CUDA_GEMM_CUH
#define CF_COMPUTE_CUDA_GEMM_CUH

#include <cuda_runtime.h>

#include "common/compute/backend.h"

typedef struct gemm gemm;

#define GEMM_BIAS_ALIGN ((uintptr_t)16)

/* y = act(x W^T + bias), sums in f32, nothing in TF32.
 *   x: [rows, k_in] of the operand type   w: [n_out, k_in] of the operand type
 *   bias: [n_out] of y's type or NULL, at a multiple of GEMM_BIAS_ALIGN bytes: the library vectorises its reads
 *   y: [rows, n_out], rows y_pitch values apart: f32; or, where `narrow` is set and operands have 16 bits, of their
 *      type, rounded once
 *   gelu: with narrow alone; ACT_GELU_TANH of ops.h
 * The order of a row's sums follows from n_out, k_in, operands and kind, never from `rows`. */
typedef struct gemm_call {
    const void *x, *w, *bias;
    void *y;
    int64_t rows, n_out, k_in, y_pitch;
    precision operands;
    gemm_kind kind;
    bool narrow, gelu;
} gemm_call;

/* CF_ERR_UNSUPPORTED: the library is not on this host; the text says what to install. */
cf_err gemm_open(int device, gemm **ret_gemm);
void gemm_close(gemm *g);
/* CF_ERR_UNSUPPORTED: the library has no algorithm for a narrow y of this shape; said once in the log, every time here.
 */
cf_err gemm_run(gemm *g, cudaStream_t stream, const gemm_call *call);

#endif
