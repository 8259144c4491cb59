/*
 * attn_amx.c - attention inside packed sequences on tiles (amx.h): 32 queries of one head against all the keys that
 * they see, a chunk of keys at a time. q, k, v and the shares are bf16; scores, softmax and sums are f32.
 *
 * Everything is turned, so that a vector holds one key's score for 16 queries and nothing is reduced across a vector:
 *
 *   scores^T [keys][32 queries] = K q^T        result^T [64][32 queries] = V^T shares^T
 *
 * Scores of a chunk stay in the first cache: its shares are of the largest score so far, and sums and result of the
 * chunks before are multiplied down when a larger one comes (Milakov and Gimelshein, Online normalizer calculation for
 * softmax, 2018).
 *
 * A task is a head of a sequence, or a part of its queries where there are few heads for the threads. It lays keys and
 * values out first, in units of 32 keys that stay in the second cache: K as it is, V turned. Keys of each causal block
 * are padded with zeros to whole units, and queries of two blocks are never taken together, so that those that are see
 * whole units. A padded key's share is zero. A query's bytes depend on its own row and on the keys that it sees alone:
 * chunks are counted from the sequence's first key.
 *
 * Run by the pool's threads. Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted.
 */
#include <math.h>

#include "common/base/check.h"
#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/cpu_impl.h"

#if AMX_COMPILED
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#include <immintrin.h>

#include "common/compute/cpu/exp2_avx512.h"

#define HALF         16 /* lanes of a vector */
#define HEAD_CHUNKS  (HEAD_VALUES / AMX_SIDE)
#define UNIT_VALUES  (AMX_SIDE * HEAD_VALUES) /* of the keys, or the values, of a unit */
#define CHUNK_UNITS  2                        /* of keys whose scores are held */
#define GROUPS_MAX   2                        /* of 32 queries taken together, which share what is read of K and V */
#define TAKEN_ROWS   (GROUPS_MAX * AMX_SIDE)
#define SCORE_LOG2   (0.125f * 1.44269504f) /* a score's scale, and from e to 2 */
#define THREAD_TASKS 4                      /* at least, so that threads end together */

typedef struct amx_attn {
    const op_attn_block_args *a;
    int64_t parts_max;   /* tasks of a head */
    int64_t *first_task; /* [B + 1] */
    int64_t packed_values;
    uint16_t *packed; /* [threads][packed_values]: K [units][2 steps of a], then V^T [2 steps of a][units], amx.h */
} amx_attn;

/* 32 queries on their way. */
typedef struct amx_group {
    __m512 top[2], sum[2]; /* of each half: the largest score so far, and the sum of shares */
    _Alignas(64) uint16_t query[HEAD_CHUNKS * AMX_STEP_VALUES];
    _Alignas(64) float result[HEAD_CHUNKS * AMX_BLOCK_VALUES]; /* [64 channels][32 queries] */
} amx_group;

static int64_t padded(int64_t keys)
{
    return (keys + AMX_SIDE - 1) / AMX_SIDE * AMX_SIDE;
}

/* Frames of a causal block; a sequence without is one block. */
static int64_t block_of(const op_attn_block_args *a, int32_t b)
{
    const int64_t length = rows_length(a->rows, b);
    return a->block[b] > 0 && a->block[b] < length ? a->block[b] : length;
}

static int64_t blocks_of(const op_attn_block_args *a, int32_t b)
{
    const int64_t length = rows_length(a->rows, b), block = block_of(a, b);
    return length == 0 ? 0 : (length + block - 1) / block;
}

static int64_t padded_keys(const op_attn_block_args *a, int32_t b)
{
    return blocks_of(a, b) * padded(block_of(a, b));
}

/* 16 x 16 words. */
static inline __attribute__((always_inline)) void turn(__m512i r[HALF])
{
    __m512i t[HALF];
    for (int i = 0; i < HALF; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < HALF; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    }
}

/* 16 values as bf16, from either type. */
static inline __m256i load_bf16(const tensor *x, int64_t value_idx)
{
    if (x->type == DTYPE_BF16)
        return _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)x->data + value_idx));
    return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps((const float *)x->data + value_idx));
}

/* Two rows of 16 values as pairs: word n is (even[n], odd[n]). */
static inline __m512i pair_rows(__m256i even, __m256i odd)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

/* First value of q (which 0), k (1) or v (2) of one head and packed row. */
static int64_t qkv_idx(const op_attn_block_args *a, int64_t row, int which, int32_t head)
{
    return ((row * 3 + which) * a->heads + head) * HEAD_VALUES;
}

/* Asks for a head's part of 32 packed rows from `row` on, which need not exist. */
static void fetch_rows(const op_attn_block_args *a, int64_t row, int which, int32_t head)
{
    const size_t value_bytes = dtype_bytes(a->qkv->type);
    for (int64_t j = 0; j < AMX_SIDE; j++) {
        const char *from = (const char *)a->qkv->data + (size_t)qkv_idx(a, row + j, which, head) * value_bytes;
        for (size_t i = 0; i < HEAD_VALUES * value_bytes; i += AMX_LINE_BYTES)
            _mm_prefetch(from + i, _MM_HINT_T0);
    }
}

/* 32 keys from packed row `row` on, of which `count` exist. */
static void pack_keys(const op_attn_block_args *a, int32_t head, int64_t row, int64_t count, uint16_t *keys)
{
    for (int64_t j = 0; j < AMX_SIDE; j++)
        for (int d = 0; d < HEAD_VALUES; d += HALF) {
            const __m256i v = j < count ? load_bf16(a->qkv, qkv_idx(a, row + j, 1, head) + d) : _mm256_setzero_si256();
            uint16_t *to = keys + d / AMX_SIDE * AMX_STEP_VALUES + j * AMX_SIDE + d % AMX_SIDE;
            _mm256_storeu_si256((__m256i *)(void *)to, v);
        }
}

/* The same of values, turned: 32 channels to a step, and the steps of other channels `pitch` apart. */
static void pack_values(const op_attn_block_args *a, int32_t head, int64_t row, int64_t count, int64_t pitch,
                        uint16_t *values)
{
    for (int d = 0; d < HEAD_VALUES; d += HALF) {
        __m512i r[HALF];
        for (int64_t j = 0; j < AMX_SIDE; j += 2) {
            const __m256i zero = _mm256_setzero_si256();
            const __m256i even = j < count ? load_bf16(a->qkv, qkv_idx(a, row + j, 2, head) + d) : zero;
            const __m256i odd = j + 1 < count ? load_bf16(a->qkv, qkv_idx(a, row + j + 1, 2, head) + d) : zero;
            r[j / 2] = pair_rows(even, odd);
        }
        turn(r);
        uint16_t *to = values + d / AMX_SIDE * pitch + d % AMX_SIDE * AMX_SIDE;
        for (int i = 0; i < HALF; i++)
            _mm512_storeu_si512(to + i * AMX_SIDE, r[i]);
    }
}

/* All keys and values of a head. */
static void pack_head(const op_attn_block_args *a, int32_t b, int32_t head, uint16_t *keys, uint16_t *values)
{
    const int64_t length = rows_length(a->rows, b), block = block_of(a, b), pitch = padded_keys(a, b);
    for (int64_t first = 0, at = 0; first < length; first += block, at += padded(block)) {
        const int64_t end = first + block < length ? first + block : length;
        for (int64_t j = 0; j < padded(block); j += AMX_SIDE) {
            const int64_t row = a->rows->offs[b] + first + j, count = end - first - j;
            fetch_rows(a, row + AMX_SIDE, 1, head);
            fetch_rows(a, row + AMX_SIDE, 2, head);
            pack_keys(a, head, row, count, keys + (at + j) * HEAD_VALUES);
            pack_values(a, head, row, count, pitch * AMX_SIDE, values + (at + j) * AMX_SIDE);
        }
    }
}

/* Queries that are taken together: [first, first + rows) of the sequence, all in one causal block. */
typedef struct amx_queries {
    int64_t first, rows;
    int64_t blocks; /* of keys that they see */
} amx_queries;

static int64_t takes_of_block(int64_t block)
{
    return (block + TAKEN_ROWS - 1) / TAKEN_ROWS;
}

static int64_t takes_of(const op_attn_block_args *a, int32_t b)
{
    return blocks_of(a, b) * takes_of_block(block_of(a, b));
}

static amx_queries take_queries(const op_attn_block_args *a, int32_t b, int64_t take)
{
    const int64_t length = rows_length(a->rows, b), block = block_of(a, b), in_block = takes_of_block(block);
    const int64_t block_idx = take / in_block, first = block_idx * block + take % in_block * TAKEN_ROWS;
    const int64_t end = (block_idx + 1) * block < length ? (block_idx + 1) * block : length;
    return (amx_queries){
        .first = first, .rows = end - first < TAKEN_ROWS ? end - first : TAKEN_ROWS, .blocks = block_idx + 1};
}

/* q^T of a group's queries, which begin at packed row `first`, as steps:
 * [2 chunks of the head][2 halves of the queries][16 pairs of channels][16 queries] */
static void load_queries(const op_attn_block_args *a, int32_t head, int64_t first, int64_t rows, uint16_t *steps)
{
    for (int chunk = 0; chunk < HEAD_CHUNKS; chunk++)
        for (int64_t half = 0; half < 2; half++) {
            __m512i r[HALF];
            for (int64_t n = 0; n < HALF; n++) {
                const int64_t i = half * HALF + n, at = qkv_idx(a, first + i, 0, head) + chunk * AMX_SIDE;
                r[n] = i < rows ? _mm512_inserti64x4(_mm512_castsi256_si512(load_bf16(a->qkv, at)),
                                                     load_bf16(a->qkv, at + HALF), 1)
                                : _mm512_setzero_si512();
            }
            turn(r);
            for (int n = 0; n < HALF; n++)
                _mm512_storeu_si512(steps + (chunk * 2 + half) * (AMX_STEP_VALUES / 2) + n * AMX_SIDE, r[n]);
        }
}

static void begin_group(const op_attn_block_args *a, int32_t head, int64_t first, int64_t rows, amx_group *g)
{
    for (int half = 0; half < 2; half++) {
        g->top[half] = _mm512_set1_ps(-INFINITY);
        g->sum[half] = _mm512_setzero_ps();
    }
    load_queries(a, head, first, rows, g->query);
}

/* Keys of a unit that exist. */
static int64_t unit_keys(const op_attn_block_args *a, int32_t b, int64_t unit)
{
    const int64_t length = rows_length(a->rows, b), block = block_of(a, b), in_block = padded(block) / AMX_SIDE;
    const int64_t block_idx = unit / in_block, first = unit % in_block * AMX_SIDE, left = length - block_idx * block;
    const int64_t keys = (left < block ? left : block) - first;
    return keys < 0 ? 0 : keys < AMX_SIDE ? keys : AMX_SIDE;
}

/* The largest of `top` and of a unit's scores of 16 queries. NaN is passed over, and shows in the shares. */
static inline __m512 largest(const float *scores, int64_t keys, __m512 top)
{
    __m512 a = top, b = top, c = top, d = top;
    int64_t j = 0;
    for (; j + 4 <= keys; j += 4) {
        a = _mm512_max_ps(_mm512_load_ps(scores + j * AMX_SIDE), a);
        b = _mm512_max_ps(_mm512_load_ps(scores + (j + 1) * AMX_SIDE), b);
        c = _mm512_max_ps(_mm512_load_ps(scores + (j + 2) * AMX_SIDE), c);
        d = _mm512_max_ps(_mm512_load_ps(scores + (j + 3) * AMX_SIDE), d);
    }
    for (; j < keys; j++)
        a = _mm512_max_ps(_mm512_load_ps(scores + j * AMX_SIDE), a);
    return _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
}

/* Pairs of bf16, word n is (even[n], odd[n]): rounded to nearest, halves upwards. None is negative. */
static inline __m512i pair_shares(__m512 even, __m512 odd)
{
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xFFFF0000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    return _mm512_ternarylogic_epi32(high, upper, low, 0xEA); /* (high & upper) | low */
}

/* A unit's scores of 16 queries become shares, in a step of b; gives their sum. */
static inline __attribute__((always_inline)) __m512 share_keys(const float *scores, int64_t keys, __m512 offset,
                                                               uint16_t *shares)
{
    const __m512 scale = _mm512_set1_ps(SCORE_LOG2);
    __m512 even_sum = _mm512_setzero_ps(), odd_sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < AMX_SIDE; j += 2) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        if (j < keys)
            even = exp2_lanes(_mm512_fmsub_ps(_mm512_load_ps(scores + j * AMX_SIDE), scale, offset));
        if (j + 1 < keys)
            odd = exp2_lanes(_mm512_fmsub_ps(_mm512_load_ps(scores + (j + 1) * AMX_SIDE), scale, offset));
        even_sum = _mm512_add_ps(even_sum, even);
        odd_sum = _mm512_add_ps(odd_sum, odd);
        _mm512_storeu_si512(shares + j * HALF, pair_shares(even, odd));
    }
    return _mm512_add_ps(even_sum, odd_sum);
}

static inline __m512 share_unit(const float *scores, int64_t keys, __m512 offset, uint16_t *shares)
{
    return keys == AMX_SIDE ? share_keys(scores, AMX_SIDE, offset, shares) : share_keys(scores, keys, offset, shares);
}

/* Scores of a chunk become shares of the largest score so far; gives by what the sums before are multiplied. */
static __m512 share_half(amx_group *g, int half, const int64_t *keys, int64_t units, const float *scores,
                         uint16_t *shares)
{
    const __m512 scale = _mm512_set1_ps(SCORE_LOG2), before = g->top[half];
    for (int64_t u = 0; u < units; u++)
        g->top[half] = largest(scores + u * AMX_BLOCK_VALUES + half * HALF, keys[u], g->top[half]);
    const __m512 offset = _mm512_mul_ps(g->top[half], scale);
    /* From the offset that the shares before were made with, rounded as it was: one where the largest stays. */
    const __m512 down = exp2_lanes(_mm512_sub_ps(_mm512_mul_ps(before, scale), offset));
    g->sum[half] = _mm512_mul_ps(g->sum[half], down);
    for (int64_t u = 0; u < units; u++)
        g->sum[half] =
            _mm512_add_ps(g->sum[half], share_unit(scores + u * AMX_BLOCK_VALUES + half * HALF, keys[u], offset,
                                                   shares + u * AMX_STEP_VALUES + half * (AMX_STEP_VALUES / 2)));
    return down;
}

static void multiply_down(float *result, const __m512 down[2])
{
    for (int i = 0; i < HEAD_VALUES * AMX_SIDE; i += AMX_SIDE)
        for (int half = 0; half < 2; half++)
            _mm512_store_ps(result + i + half * HALF,
                            _mm512_mul_ps(_mm512_load_ps(result + i + half * HALF), down[half]));
}

/* The result of a group's queries, which begin at packed row `first`, turned back. */
static void store_result(const op_attn_block_args *a, int32_t head, int64_t first, int64_t rows, const amx_group *g)
{
    for (int64_t half = 0; half < 2; half++) {
        const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), g->sum[half]);
        for (int d = 0; d < HEAD_VALUES; d += HALF) {
            __m512i r[HALF];
            for (int i = 0; i < HALF; i++)
                r[i] = _mm512_castps_si512(
                    _mm512_mul_ps(_mm512_load_ps(g->result + (d + i) * AMX_SIDE + half * HALF), inverse));
            turn(r);
            for (int64_t n = 0; n < HALF && half * HALF + n < rows; n++) {
                const int64_t at = ((first + half * HALF + n) * a->heads + head) * HEAD_VALUES + d;
                const __m512 v = _mm512_castsi512_ps(r[n]);
                if (a->y->type == DTYPE_BF16)
                    _mm256_storeu_si256((__m256i *)(void *)((uint16_t *)a->y->data + at),
                                        (__m256i)_mm512_cvtneps_pbh(v));
                else
                    _mm512_storeu_ps((float *)a->y->data + at, v);
            }
        }
    }
}

/* One chunk of keys. keys: [units] how many of each exist; values: of the first 32 channels, the others `pitch` on. */
static void attend_chunk(amx_group *g, bool is_first, const int64_t *keys, int64_t units, const uint16_t *packed_keys,
                         const uint16_t *values, int64_t pitch)
{
    _Alignas(64) float scores[CHUNK_UNITS * AMX_BLOCK_VALUES];
    _Alignas(64) uint16_t shares[CHUNK_UNITS * AMX_STEP_VALUES];
    for (int64_t u = 0; u < units; u++)
        amx_add_part(packed_keys + u * UNIT_VALUES, g->query, HEAD_CHUNKS, true, packed_keys, 0,
                     scores + u * AMX_BLOCK_VALUES);
    const __m512 down[2] = {share_half(g, 0, keys, units, scores, shares),
                            share_half(g, 1, keys, units, scores, shares)};
    if (!is_first)
        multiply_down(g->result, down);
    for (int c = 0; c < HEAD_CHUNKS; c++)
        amx_add_part(values + c * pitch, shares, units, is_first, values, 0, g->result + c * AMX_BLOCK_VALUES);
}

static void attend_queries(const op_attn_block_args *a, int32_t b, int32_t head, const amx_queries *q,
                           const uint16_t *keys, const uint16_t *values)
{
    const int64_t pitch = padded_keys(a, b), units = q->blocks * padded(block_of(a, b)) / AMX_SIDE;
    const int64_t first = a->rows->offs[b] + q->first, groups = (q->rows + AMX_SIDE - 1) / AMX_SIDE;
    amx_group group[GROUPS_MAX];

    for (int64_t i = 0; i < groups; i++) {
        begin_group(a, head, first + i * AMX_SIDE, q->rows - i * AMX_SIDE, &group[i]);
        fetch_rows(a, first + TAKEN_ROWS + i * AMX_SIDE, 0, head);
    }
    for (int64_t u = 0; u < units; u += CHUNK_UNITS) {
        int64_t counts[CHUNK_UNITS], n = 0;
        for (; n < CHUNK_UNITS && u + n < units; n++)
            counts[n] = unit_keys(a, b, u + n);
        for (int64_t i = 0; i < groups; i++)
            attend_chunk(&group[i], u == 0, counts, n, keys + u * UNIT_VALUES, values + u * AMX_STEP_VALUES,
                         pitch * AMX_SIDE);
    }
    for (int64_t i = 0; i < groups; i++)
        store_result(a, head, first + i * AMX_SIDE, q->rows - i * AMX_SIDE, &group[i]);
}

static int64_t parts_of(const amx_attn *job, int32_t b)
{
    const int64_t takes = takes_of(job->a, b);
    return takes < job->parts_max ? takes : job->parts_max;
}

static void attend(void *ctx, int32_t task_idx, int thread_idx)
{
    const amx_attn *job = ctx;
    const op_attn_block_args *a = job->a;
    int32_t b = 0;
    while (task_idx >= job->first_task[b + 1])
        b++;
    const int64_t parts = parts_of(job, b), takes = takes_of(a, b), at = task_idx - job->first_task[b];
    const int64_t part = at % parts;
    const int32_t head = (int32_t)(at / parts);
    uint16_t *keys = job->packed + thread_idx * job->packed_values, *values = keys + padded_keys(a, b) * HEAD_VALUES;

    pack_head(a, b, head, keys, values);
    amx_begin();
    for (int64_t take = part * takes / parts; take < (part + 1) * takes / parts; take++) {
        const amx_queries q = take_queries(a, b, take);
        attend_queries(a, b, head, &q, keys, values);
    }
    amx_end();
}

cf_err amx_attn_block(backend *be, const op_attn_block_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be), sequences = (size_t)a->rows->count;
    const int64_t wanted = (int64_t)THREAD_TASKS * be->threads, heads = (int64_t)sequences * a->heads;
    amx_attn job = {.a = a, .parts_max = heads > 0 ? (wanted + heads - 1) / heads : 1};

    TRY(arena_take(&be->scratch, (sequences + 1) * sizeof *job.first_task, &job.first_task));
    job.first_task[0] = 0;
    for (int32_t b = 0; b < a->rows->count; b++) {
        const int64_t values = padded_keys(a, b) * 2 * HEAD_VALUES;
        job.first_task[b + 1] = job.first_task[b] + parts_of(&job, b) * a->heads;
        job.packed_values = values > job.packed_values ? values : job.packed_values;
    }
    CF_ASSERT(job.first_task[sequences] <= POOL_TASKS_MAX);
    TRY(arena_take(&be->scratch, (size_t)(be->threads * job.packed_values) * sizeof *job.packed, &job.packed));
    pool_run(cpu_of(be)->threads, (int32_t)job.first_task[sequences], attend, &job);
out:
    backend_scratch_reset(be, mark);
    return err;
}

#else

cf_err amx_attn_block(backend *be, const op_attn_block_args *a)
{
    (void)be, (void)a;
    cf_panic(__FILE__, __LINE__, "no tile unit in this build");
}

#endif
