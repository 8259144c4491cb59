/*
 * tensor.h - a contiguous row-major array on one backend: type, dims and a borrowed pointer. Nothing is
 * reference-counted:
 * whoever took the memory (a weight file, an arena) gives it back.
 */
#ifndef CF_COMPUTE_TENSOR_H
#define CF_COMPUTE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TENSOR_RANK_MAX 5

typedef enum dtype { DTYPE_F32, DTYPE_F64, DTYPE_I32, DTYPE_BF16, DTYPE_F16 } dtype;

typedef struct tensor {
    void *data; /* borrowed; device memory on a device backend */
    dtype type;
    int rank;
    int64_t dims[TENSOR_RANK_MAX];
} tensor;

size_t dtype_bytes(dtype type);
const char *dtype_name(dtype type);

/* Describes memory that the caller owns. */
tensor tensor_1d(void *data, dtype type, int64_t d0);
tensor tensor_2d(void *data, dtype type, int64_t d0, int64_t d1);

int64_t tensor_count(const tensor *t); /* product of dims */
size_t tensor_bytes(const tensor *t);

/* Rows [first, first + count) of the leading dimension, as a view. */
tensor tensor_rows(const tensor *t, int64_t first, int64_t count);

/* Typed host access; asserts the type. Valid where the backend's memory is the host's. */
float *tensor_f32(const tensor *t);
double *tensor_f64(const tensor *t);
int32_t *tensor_i32(const tensor *t);

/* bf16 with round to nearest even; NaN stays NaN. */
static inline uint16_t bf16_from_f32(float x)
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    if ((v.u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(v.u >> 16 | 0x40);
    return (uint16_t)((v.u + 0x7FFFu + (v.u >> 16 & 1)) >> 16);
}

static inline float f32_from_bf16(uint16_t x)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)x << 16};
    return v.f;
}

#ifdef __cplusplus
}
#endif
#endif
