/*
 * cuda_common.cuh - what every kernel file of the backend uses: launches, errors, reductions, lookups.
 *
 * Kernels are written for one dimension of blocks and threads. The same files compile with nvcc and, under
 * CF_CUDA_EMU, as plain C++ against the emulation of tests/cuda_emu, which executes them on a host without a card. So
 * launches go through CUDA_LAUNCH, shared arrays through CUDA_SHARED, and instructions that CUDA C does not have
 * through ptx.cuh.
 */
#ifndef CF_COMPUTE_CUDA_COMMON_CUH
#define CF_COMPUTE_CUDA_COMMON_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/compute/cuda/ptx.cuh"
#include "common/compute/ops.h"

#ifndef CF_CUDA_EMU
#define CUDA_SHARED(type, name, count)                    __shared__ type name[count]
#define CUDA_TRAP()                                       __trap()
#define CUDA_UNROLL                                       _Pragma("unroll") /* what it indexes stays in registers */
#define CUDA_LAUNCH_RAW(kernel, grid, block, stream, ...) kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
#endif

/* Submits one kernel; no blocks is no work. Gives what cudaGetLastError says of the launch itself. */
#define CUDA_LAUNCH(kernel, grid, block, stream, ...)                                                  \
    ((grid) == 0 ? CF_OK                                                                               \
                 : (CUDA_LAUNCH_RAW(kernel, (unsigned)(grid), (unsigned)(block), stream, __VA_ARGS__), \
                    cuda_launch_status(#kernel)))

/* Leaves the function with the error of a cf_err or a runtime call. C++ forbids TRY's jump over declarations. */
#define CUDA_TRY(expr)              \
    do {                            \
        const cf_err err_ = (expr); \
        if (err_ != CF_OK)          \
            return err_;            \
    } while (0)
#define CUDA_CALL(expr) CUDA_TRY(cuda_status((expr), #expr))

/* CF_OK, CF_ERR_NOMEM, CF_ERR_UNSUPPORTED (no device, no driver) or CF_ERR_DEVICE, with CUDA's words. */
cf_err cuda_status(cudaError_t status, const char *what);
cf_err cuda_launch_status(const char *kernel);

/* What only our own code or a table of ours could break: ends the context with a sticky error. */
#define CUDA_ASSERT(cond) \
    do {                  \
        if (!(cond))      \
            CUDA_TRAP();  \
    } while (0)

#define CUDA_BLOCK      256
#define CUDA_WARP       32
#define CUDA_WARPS_MAX  (CUDA_BLOCK / CUDA_WARP)
#define CUDA_HEAD       64     /* channels of a head, in every attention */
#define CUDA_HEAD_SCALE 0.125f /* 1 / sqrt(CUDA_HEAD), exact */

/* Blocks of CUDA_BLOCK threads for `count` items, one thread each. */
static inline int64_t cuda_blocks(int64_t count)
{
    return (count + CUDA_BLOCK - 1) / CUDA_BLOCK;
}

/* This thread's item, of a launch over cuda_blocks(count). */
static __device__ inline int64_t cuda_item()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

/* Value i of an array of f32, bf16 or f16. */
static __device__ inline float load_value(const void *x, dtype type, int64_t i)
{
    if (type == DTYPE_F32)
        return ((const float *)x)[i];
    const uint16_t bits = ((const uint16_t *)x)[i];
    return type == DTYPE_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

static __device__ inline void store_value(void *y, dtype type, int64_t i, float v)
{
    if (type == DTYPE_F32)
        ((float *)y)[i] = v;
    else
        ((uint16_t *)y)[i] = type == DTYPE_BF16 ? f32_to_bf16(v) : f32_to_f16(v);
}

/* The sequence of packed row `row`: offs[b] <= row < offs[b + 1]. Empty sequences hold no row. */
static __device__ inline int rows_find(const int32_t *offs, int count, int64_t row)
{
    int low = 0, high = count - 1;
    while (low < high) {
        const int mid = low + (high - low) / 2;
        if (offs[mid + 1] > row)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* Sum over a block of whole warps, the same in all threads, in one order: lanes as a tree, then warps from the first.
 * Every thread of the block calls it. */
static __device__ inline float block_sum(float value)
{
    CUDA_SHARED(float, part, CUDA_WARPS_MAX);
    for (int step = CUDA_WARP / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    if (threadIdx.x % CUDA_WARP == 0)
        part[threadIdx.x / CUDA_WARP] = value;
    __syncthreads(); // all warps have written their part
    float sum = part[0];
    for (unsigned w = 1; w < blockDim.x / CUDA_WARP; w++)
        sum += part[w];
    __syncthreads(); // all have read before the next call writes
    return sum;
}

/* Largest value of a block; NaN is passed over, and shows in the sum that follows. Between two calls there has to be a
 * barrier: block_sum's serve. */
static __device__ inline float block_max(float value)
{
    CUDA_SHARED(float, part, CUDA_WARPS_MAX);
    for (int step = CUDA_WARP / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (threadIdx.x % CUDA_WARP == 0)
        part[threadIdx.x / CUDA_WARP] = value;
    __syncthreads(); // all warps have written their part
    float max = part[0];
    for (unsigned w = 1; w < blockDim.x / CUDA_WARP; w++)
        max = fmaxf(max, part[w]);
    return max;
}

/* op_snake. sinf reduces its argument over the full range. */
static __device__ inline float snake_f32(float x, float alpha)
{
    const float s = sinf(x * alpha);
    return x + 1.0f / (alpha + 1e-9f) * (s * s);
}

/* f(x) of ops.h in f32. expf, tanhf and log1pf are within two units of the last place. */
static __device__ inline float act_f32(float x, act_kind act, float slope)
{
    switch (act) {
    case ACT_NONE:
        return x;
    case ACT_LEAKY:
        return x >= 0.0f ? x : slope * x;
    case ACT_ELU:
        return x > 0.0f ? x : (float)expm1((double)x);
    case ACT_MISH:
        return x * tanhf(log1pf(expf(x)));
    case ACT_SILU:
        return x / (1.0f + expf(-x));
    case ACT_GELU_TANH: /* (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), which does not cancel */
        return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case ACT_ABS:
        return fabsf(x);
    case ACT_GELU: /* erfc does not cancel */
        return 0.5f * x * erfcf(-0.70710678118654752f * x);
    case ACT_RELU:
        return x < 0.0f ? 0.0f : x;
    case ACT_SIGMOID:
        return 1.0f / (1.0f + expf(-x));
    }
    return x;
}

static __device__ inline double act_f64(double x, act_kind act, float slope)
{
    switch (act) {
    case ACT_LEAKY:
        return x >= 0.0 ? x : (double)slope * x;
    case ACT_ELU:
        return x > 0.0 ? x : expm1(x);
    case ACT_ABS:
        return fabs(x);
    case ACT_MISH:
        return x * tanh(log1p(exp(x)));
    case ACT_SILU:
        return x / (1.0 + exp(-x));
    case ACT_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case ACT_GELU:
        return 0.5 * x * erfc(-0.70710678118654752440 * x);
    case ACT_RELU:
        return x < 0.0 ? 0.0 : x;
    case ACT_SIGMOID:
        return 1.0 / (1.0 + exp(-x));
    case ACT_NONE:
        break;
    }
    return x;
}

#endif
