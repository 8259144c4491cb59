// gemm_naive.cc - the emulator's twin of gemm.cu: the same contract in plain loops, run in the order of the stream.
//
// Operands are read in their type, sums are f32 with the inner index outside, so that the loop over outputs is the one
// that is vectorised. Says nothing about cuBLASLt's own choices.
#include "common/compute/cuda/gemm.cuh"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/compute/cuda/ptx.cuh"

struct gemm {
    int device;
};

cf_err gemm_open(int device, gemm **ret_gemm)
{
    gemm *g;
    const cf_err err = mem_alloc(1, sizeof *g, &g);
    if (err != CF_OK)
        return err;
    g->device = device;
    *ret_gemm = g;
    return CF_OK;
}

void gemm_close(gemm *g)
{
    mem_free(g);
}

static float value_of(const void *values, int64_t idx, precision operands)
{
    if (operands == PRECISION_F32)
        return ((const float *)values)[idx];
    const uint16_t bits = ((const uint16_t *)values)[idx];
    return operands == PRECISION_BF16 ? bf16_to_f32(bits) : f16_to_f32_soft(bits);
}

// The value that y gets of a sum: as cuBLASLt's epilogue has it, in f32, rounded once.
static void store(const gemm_call &c, int64_t at, int64_t n, float sum)
{
    if (!c.narrow) {
        ((float *)c.y)[at] = sum + (c.bias ? ((const float *)c.bias)[n] : 0);
        return;
    }
    if (c.bias)
        sum += value_of(c.bias, n, c.operands);
    if (c.gelu)
        sum = sum / (1.0f + expf(-1.5957691216057308f * (sum + 0.044715f * sum * sum * sum)));
    ((uint16_t *)c.y)[at] = c.operands == PRECISION_BF16 ? f32_to_bf16(sum) : f32_to_f16_soft(sum);
}

#define ROWS  8 // of x multiplied together
#define LANES 8 // partial sums of one dot product, added up in one order

static float dot(const float *a, const float *b, int64_t count)
{
    float lanes[LANES] = {0}, sum = 0.0f;
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] += a[k + l] * b[k + l];
    for (int l = 0; l < LANES; l++)
        sum += lanes[l];
    for (; k < count; k++)
        sum += a[k] * b[k];
    return sum;
}

static void product(const gemm_call &c)
{
    std::vector<float> x((size_t)(ROWS * c.k_in)), w((size_t)c.k_in);
    for (int64_t first = 0; first < c.rows; first += ROWS) {
        const int64_t rows = c.rows - first < ROWS ? c.rows - first : ROWS;
        for (int64_t i = 0; i < rows * c.k_in; i++)
            x[(size_t)i] = value_of(c.x, first * c.k_in + i, c.operands);
        for (int64_t n = 0; n < c.n_out; n++) {
            const float *line = (const float *)c.w + n * c.k_in;
            if (c.operands != PRECISION_F32) {
                for (int64_t k = 0; k < c.k_in; k++)
                    w[(size_t)k] = value_of(c.w, n * c.k_in + k, c.operands);
                line = w.data();
            }
            for (int64_t r = 0; r < rows; r++)
                store(c, (first + r) * c.y_pitch + n, n, dot(&x[(size_t)(r * c.k_in)], line, c.k_in));
        }
    }
}

cf_err gemm_run(gemm *g, cudaStream_t stream, const gemm_call *call)
{
    const gemm_call held = *call;
    const char *narrow = getenv("COSYFARM_EMU_GEMM_NARROW");
    (void)g;
    if (call->narrow && narrow && strcmp(narrow, "0") == 0)
        return err_set(CF_ERR_UNSUPPORTED, "product: no results of 16 bits");
    CF_ASSERT((uintptr_t)call->bias % GEMM_BIAS_ALIGN == 0);
    const cudaError_t status = emu_enqueue(stream, [held]() { product(held); });
    return status == cudaSuccess ? CF_OK : err_set(CF_ERR_DEVICE, "product: %s", cudaGetErrorString(status));
}
