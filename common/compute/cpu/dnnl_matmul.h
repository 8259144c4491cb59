/*
 * dnnl_matmul.h - fixed-shape single-threaded matrix products from oneDNN. dnnl_matmul.c is the only file that knows
 * oneDNN, and hides what differs between its versions 2 and 3.
 *
 * A product's bytes then depend on neither the batch nor the number of threads: its shape is fixed when it is packed,
 * the caller pads with zero rows, and every call runs on one thread.
 */
#ifndef CF_COMPUTE_CPU_DNNL_MATMUL_H
#define CF_COMPUTE_CPU_DNNL_MATMUL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

typedef struct onednn_context onednn_context; /* engine and one stream per thread */
typedef struct onednn_product onednn_product; /* c[rows, cols] = a[rows, depth] b[depth, cols] */

/* True where oneDNN has better f32 kernels than ours (AVX-512), and where it has bf16 ones that pay (AMX). */
bool onednn_has_fast_f32(void);
bool onednn_has_fast_bf16(void);

CF_MUST_CHECK cf_err onednn_context_open(int threads, onednn_context **ret_context);
void onednn_context_close(onednn_context *ctx); /* NULL is fine */

typedef struct onednn_shape {
    int64_t rows, depth, cols;
    bool bf16; /* a and b are bf16 in memory; c is f32 */
} onednn_shape;

/* b: row-major f32 [depth, cols], not needed afterwards. Borrows ctx. CF_ERR_DEVICE with oneDNN's status when it
 * refuses. */
CF_MUST_CHECK cf_err onednn_product_open(onednn_context *ctx, const onednn_shape *shape, const float *b,
                                         onednn_product **ret_gemm);
void onednn_product_close(onednn_product *g); /* NULL is fine */
size_t onednn_product_bytes(const onednn_product *g);

/* a: row-major, contiguous; c: f32, contiguous. Called by pool thread thread_idx. */
CF_MUST_CHECK cf_err onednn_product_run(const onednn_product *g, int thread_idx, void *a, float *c);

#endif
