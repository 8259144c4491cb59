/*
 * gemm_base.c - matrix product kernels in plain C, and the choice among tables. Any thread; no state; cannot fail.
 */
#include "common/compute/cpu/gemm_kernels.h"
#include "common/compute/tensor.h"

#define BASE_KERNEL(name, value, stored, widen, width)                                                    \
    static void name(int rows, int64_t depth, const value *a, int64_t a_pitch, const stored *b, value *c, \
                     int64_t c_pitch, bool fresh)                                                         \
    {                                                                                                     \
        for (int r = 0; r < rows; r++) {                                                                  \
            value sum[width];                                                                             \
            for (int n = 0; n < width; n++)                                                               \
                sum[n] = fresh ? (value)0 : c[r * c_pitch + n];                                           \
            for (int64_t k = 0; k < depth; k++)                                                           \
                for (int n = 0; n < width; n++)                                                           \
                    sum[n] += a[r * a_pitch + k] * widen(b[k * width + n]);                               \
            for (int n = 0; n < width; n++)                                                               \
                c[r * c_pitch + n] = sum[n];                                                              \
        }                                                                                                 \
    }

#define AS_IS(x) (x)
BASE_KERNEL(base_f32, float, float, AS_IS, GEMM_PANEL)
BASE_KERNEL(base_bf16, float, uint16_t, f32_from_bf16, GEMM_PANEL)
BASE_KERNEL(base_f64, double, double, AS_IS, GEMM_PANEL_F64)

const gemm_kernels gemm_kernels_base = {.name = "base", .rows = 6, .f32 = base_f32, .bf16 = base_bf16, .f64 = base_f64};

const gemm_kernels *gemm_kernels_choose(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return &gemm_kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &gemm_kernels_avx2;
#endif
    return &gemm_kernels_base;
}
