/*
 * vec_avx512.c - the loops of vec_loops.h for x86-64 with AVX-512, whole vectors wide. Same bytes as vec_base.c: no
 * contraction is allowed (Makefile).
 */
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC target("fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define VEC_TABLE vec_avx512
#define VEC_NAME  "avx512"
#include "common/compute/cpu/vec_loops.h"
