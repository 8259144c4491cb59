/*
 * cpu_impl.h - the inside of the CPU backend: its state, and the functions of both variants. Included by cpu alone,
 * and by the op suite.
 */
#ifndef CF_COMPUTE_CPU_IMPL_H
#define CF_COMPUTE_CPU_IMPL_H

#include "common/compute/backend_impl.h"
#include "common/compute/cpu/gemm_kernels.h"
#include "common/compute/cpu/pool.h"
#include "common/compute/cpu/tile_kernels.h"
#include "common/compute/cpu/vec.h"

#define HEAD_VALUES      64
#define HEAD_SCALE       0.125f /* 1 / sqrt(HEAD_VALUES), exact */
#define STFT_POINTS      16
#define STFT_BINS        9
#define STFT_COLUMNS     18
#define STFT_HOP_SAMPLES 4
#define SOURCE_HARMONICS 9

/* Where a row of a gathered left operand begins in x. */
typedef struct gather_line {
    int64_t first_row; /* of its sequence in x */
    int64_t span;      /* rows of its sequence, repeats counted */
    int64_t at;        /* row that tap 0 reads; may be negative */
    int64_t freq;      /* conv2d: frequency that tap 0 reads; may be negative */
} gather_line;

#define GATHER_LINES_MAX 128

/* What one thread of the pool owns. */
typedef struct cpu_worker {
    void *block;                         /* gathered left operand of one depth block, GEMM_BLOCK_BYTES */
    gather_line lines[GATHER_LINES_MAX]; /* of the current tile */
    arena tile_in, tile_out;             /* whole operands of one oneDNN tile; empty without oneDNN */
} cpu_worker;

typedef struct cpu_state {
    pool *threads; /* owned */
    const vec_ops *vec;
    const gemm_kernels *kernels;
    const tile_kernels *tiles;   /* NULL: not used */
    struct onednn_context *dnnl; /* owned; NULL: not used */
    bool use_amx;                /* bulk products with bf16 operands, and attention, go through tiles (amx.h) */
    bool use_dnnl;               /* f32 and bf16 products go through oneDNN */
    bool dnnl_bf16;              /* its bf16 products read bf16; otherwise values rounded to bf16, in f32 */
    cpu_worker *workers;         /* [threads], owned; their buffers are the backend's kept memory */
} cpu_state;

static inline cpu_state *cpu_of(const backend *be)
{
    return (cpu_state *)be->impl; /* the cast is for C++ */
}

/* Value i of a tensor of f32 or bf16, the CPU's types of activations. */
static inline float load_value(const tensor *t, int64_t i)
{
    return t->type == DTYPE_BF16 ? f32_from_bf16(((const uint16_t *)t->data)[i]) : tensor_f32(t)[i];
}

static inline void store_value(const tensor *t, int64_t i, float v)
{
    if (t->type == DTYPE_BF16)
        ((uint16_t *)t->data)[i] = bf16_from_f32(v);
    else
        tensor_f32(t)[i] = v;
}

/* Column `off` of the table line that sequence seq_idx is at. */
static inline const float *modulation_line(const op_modulation *mod, int32_t seq_idx, int64_t off)
{
    return tensor_f32(mod->table) + mod->steps[seq_idx] * mod->table->dims[1] + off;
}

/* The sequence that holds packed row `row`, which must exist. */
static inline int32_t rows_find(const op_rows *rows, int64_t row)
{
    int32_t low = 0, high = rows->count - 1;
    while (low < high) {
        const int32_t mid = low + (high - low) / 2;
        if (rows->offs[mid + 1] > row)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* Does rows [first, first + count) of an op. */
typedef void rows_fn(const cpu_state *cpu, const void *args, int64_t first, int64_t count);

/* Spreads `rows` independent rows over the threads; row_cost is about the number of additions in one. */
void cpu_run_rows(const backend *be, int64_t rows, int64_t row_cost, rows_fn *fn, const void *args);

/* The reference variant: plain loops, sums in f64 rounded once, libm in f64. */
#define CF_OP_NAIVE(name, args) cf_err naive_##name(backend *be, const args *a);
CF_OPS(CF_OP_NAIVE)
#undef CF_OP_NAIVE

/* The fast variant. */
#define CF_OP_FAST(name, args) cf_err fast_##name(backend *be, const args *a);
CF_OPS(CF_OP_FAST)
#undef CF_OP_FAST

/* What snake needs for as many rows as make about a thousand values: a few channels leave lanes idle. In scratch. */
typedef struct snake_lines {
    const float *alpha, *inverse; /* [rows][C]: alpha, and 1 / (alpha + 1e-9) */
    int64_t rows;
} snake_lines;
cf_err cpu_snake_lines(backend *be, const tensor *alpha, snake_lines *ret_lines);

/* fast_attn_block where there are tiles and the operands permit it: attn_amx.c. */
cf_err amx_attn_block(backend *be, const op_attn_block_args *a);

/* Fills be with the fast variant. use_dnnl: products through oneDNN, which is right on any machine but slow on some. */
cf_err cpu_fast_open(backend *be, int threads, bool use_dnnl);

/* x itself, or when it is bf16 a copy in f32, in scratch; and the way back, into a result of bf16. */
cf_err cpu_widen(backend *be, const tensor *x, tensor *ret_wide);
void cpu_narrow(const tensor *wide, const tensor *y);

/* f(x) in f64. */
double act_f64(double x, act_kind act, float slope);

/* Key (which 0) or value (which 1) of one cached token of sequence seq_idx. */
float *cache_line(const op_attn_cache_args *a, int32_t seq_idx, int64_t token, int which, int32_t kv_head);

/* Writes this call's keys and values of one sequence behind its cached tokens. */
void cache_append(const op_attn_cache_args *a, int32_t seq_idx);

cf_err naive_pack(backend *be, const float *w, weight *out);
cf_err naive_pack_conv_f64(backend *be, const double *w, weight *out);

/* Frames and samples of the signal ops; both variants share them. */
double source_frame(float f0, const float *w, float *phase_turns);
/* Where row t of the output reads the input: max(0, ratio (t + 0.5) - 0.5), rounded once. */
float lerp_position(float ratio, int32_t t);

#endif
