/*
 * ptx.cuh - instructions that CUDA C has no word for, one small function each, with the twin that the emulator runs.
 */
#ifndef CF_COMPUTE_CUDA_PTX_CUH
#define CF_COMPUTE_CUDA_PTX_CUH

#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

/* bf16 of x, to nearest even; NaN stays NaN. Integers: the instruction exists from sm_80 on. */
static __host__ __device__ inline uint16_t f32_to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

static __host__ __device__ inline float bf16_to_f32(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* fp16 of x, to nearest even, in integers: the host packs weights with it, the emulator runs it. */
static __host__ __device__ inline uint16_t f32_to_f16_soft(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
    if (rest > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u);
    if (rest >= 0x47800000u) /* 65536 and above, infinity */
        return (uint16_t)(sign | 0x7C00u);
    if (rest < 0x33000001u) /* half of the smallest subnormal rounds to zero */
        return (uint16_t)sign;
    const int32_t exponent = (int32_t)(rest >> 23) - 127;
    uint32_t mantissa = (rest & 0x7FFFFFu) | 0x800000u;
    const int32_t shift = exponent < -14 ? 13 + (-14 - exponent) : 13;
    const uint32_t half = 1u << (shift - 1), odd = mantissa >> shift & 1u;
    mantissa = (mantissa + half - 1 + odd) >> shift;
    if (exponent < -14)
        return (uint16_t)(sign | mantissa); /* may carry into the smallest normal number */
    return (uint16_t)(sign | (((uint32_t)(exponent + 15) << 10) + mantissa - 0x400u)); /* may carry into infinity */
}

static __host__ __device__ inline float f16_to_f32_soft(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000u) << 16, exponent = x >> 10 & 0x1Fu, mantissa = x & 0x3FFu;
    uint32_t bits;
    float value;
    if (exponent == 0) {
        value = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24 */
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | mantissa << 13;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static __device__ inline uint16_t f32_to_f16(float x)
{
#if defined(__CUDA_ARCH__)
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
#else
    return f32_to_f16_soft(x);
#endif
}

static __device__ inline float f16_to_f32(uint16_t x)
{
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
    return value;
#else
    return f16_to_f32_soft(x);
#endif
}

/* a * b + c, rounded once on a device. Its twin rounds twice: no claim about bits is made of the emulator. */
static __device__ inline float fma_f32(float a, float b, float c)
{
#if defined(__CUDA_ARCH__)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

static __device__ inline double fma_f64(double a, double b, double c)
{
#if defined(__CUDA_ARCH__)
    return fma(a, b, c);
#else
    return a * b + c;
#endif
}

/* Two values as fp16 in one register, the first in the low half. */
static __device__ inline uint32_t pack_f16(float low, float high)
{
    return (uint32_t)f32_to_f16(low) | (uint32_t)f32_to_f16(high) << 16;
}

/*
 * c += a b, one product of a warp: a is 16 x 16, b is 16 x 8, both fp16, c is 16 x 8 in f32. Lane l holds
 *   a: rows l/4 (a[0], a[2]) and l/4 + 8 (a[1], a[3]), columns 2(l%4), +1 (a[0], a[1]) and those + 8 (a[2], a[3])
 *   b: column l/4, rows 2(l%4), +1 (b[0]) and those + 8 (b[1])
 *   c: rows l/4 (c[0], c[1]) and l/4 + 8 (c[2], c[3]), columns 2(l%4), +1
 * Exists from sm_80 on; code for older cards traps.
 */
static __device__ inline void mma_f16_k16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
    (void)c, (void)a, (void)b;
    __trap();
#elif defined(CF_CUDA_EMU)
    emu_mma_f16(c, a, b, 16);
#else
    (void)c, (void)a, (void)b; /* the host's half of nvcc */
#endif
}

/* The same of half the depth, the first registers of a and b: a is 16 x 8, b is 8 x 8. From sm_75 on. */
static __device__ inline void mma_f16_k8(float c[4], const uint32_t a[2], const uint32_t b[1])
{
#if defined(__CUDA_ARCH__)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#elif defined(CF_CUDA_EMU)
    emu_mma_f16(c, a, b, 8);
#else
    (void)c, (void)a, (void)b;
#endif
}

/* A product of depth 16 with instructions of depth DEPTH, 16 or 8. */
template <int DEPTH> static __device__ inline void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    if (DEPTH == 16) {
        mma_f16_k16(c, a, b);
    } else {
        mma_f16_k8(c, a, b);
        mma_f16_k8(c, a + 2, b + 1);
    }
}

#endif
