/*
 * vec_avx2.c - the loops of vec_loops.h for x86-64 with AVX2 and FMA. Same bytes as vec_base.c: no
 * contraction is allowed (Makefile).
 */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif
#define VEC_TABLE vec_avx2
#define VEC_NAME  "avx2"
#include "common/compute/cpu/vec_loops.h"
