/*
 * vec_base.c - the loops of vec_loops.h for any machine, and the choice among tables. Any thread; no state; cannot
 * fail.
 */
#define VEC_TABLE vec_base
#define VEC_NAME  "base"
#include "common/compute/cpu/vec_loops.h"

const vec_ops *vec_choose(void)
{
#if defined(__x86_64__)
    const bool fused = __builtin_cpu_supports("fma");
    if (fused && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &vec_avx512;
    if (fused && __builtin_cpu_supports("avx2"))
        return &vec_avx2;
#endif
    return &vec_base;
}
