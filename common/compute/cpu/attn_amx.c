/*
 * attn_amx.c - attention inside packed sequences on tiles (amx.h): 32 queries of one head against all the keys that
 * they see. q, k, v and the shares are bf16; scores, softmax and sums are f32.
 *
 * Everything is turned, so that a vector holds one key's score for 16 queries and nothing is reduced across a vector:
 *
 *   scores^T [keys][32 queries] = K q^T        result^T [64][32 queries] = V^T shares^T
 *
 * Keys and values of a (sequence, head) are laid out first: K as it is, V turned. Keys of each causal block are padded
 * with zeros to whole chunks of 32 and queries of two blocks never share a task, so a task sees whole chunks. A padded
 * key's share is zero. A query's bytes depend on its own row and on the keys that it sees alone.
 *
 * Run by the pool's threads. Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted.
 */
#include <math.h>

#include "common/base/check.h"
#include "common/compute/cpu/amx.h"
#include "common/compute/cpu/cpu_impl.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#include <immintrin.h>

#include "common/compute/cpu/exp2_avx512.h"

#define HALF        16 /* lanes of a vector */
#define HEAD_CHUNKS (HEAD_VALUES / AMX_SIDE)
#define SCORE_LOG2  (0.125f * 1.44269504f) /* a score's scale, and from e to 2 */

typedef struct amx_attn {
    const op_attn_block_args *a;
    uint16_t *packed;    /* per sequence and head: K [keys][64], then V^T [64][keys], padded keys */
    int64_t *packed_off; /* [B] */
    int64_t *first_task; /* [B + 1] */
    int64_t keys_max;    /* padded, of the longest sequence */
    float *scores;       /* [threads][keys_max][32] */
    uint16_t *shares;    /* [threads][keys_max][32], steps of amx.h */
} amx_attn;

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

/* 32 keys from packed row `row` on, of which `count` exist. */
static void pack_keys(const op_attn_block_args *a, int32_t head, int64_t row, int64_t count, uint16_t *keys)
{
    for (int64_t j = 0; j < AMX_SIDE; j++)
        for (int d = 0; d < HEAD_VALUES; d += HALF) {
            const __m256i v = j < count ? load_bf16(a->qkv, qkv_idx(a, row + j, 1, head) + d) : _mm256_setzero_si256();
            _mm256_storeu_si256((__m256i *)(void *)(keys + j * HEAD_VALUES + d), v);
        }
}

/* The same of values, turned: 64 rows, `pitch` apart. */
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
        for (int i = 0; i < HALF; i++)
            _mm512_storeu_si512(values + (d + i) * pitch, r[i]);
    }
}

static uint16_t *packed_head(const amx_attn *job, int32_t b, int32_t head)
{
    return job->packed + job->packed_off[b] + head * 2 * padded_keys(job->a, b) * HEAD_VALUES;
}

static void pack_head(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const amx_attn *job = ctx;
    const op_attn_block_args *a = job->a;
    const int32_t b = task_idx / a->heads, head = task_idx % a->heads;
    const int64_t length = rows_length(a->rows, b), block = block_of(a, b), pitch = padded_keys(a, b);
    uint16_t *keys = packed_head(job, b, head), *values = keys + pitch * HEAD_VALUES;

    for (int64_t first = 0, at = 0; first < length; first += block, at += padded(block)) {
        const int64_t end = first + block < length ? first + block : length;
        for (int64_t j = 0; j < padded(block); j += AMX_SIDE) {
            const int64_t row = a->rows->offs[b] + first + j, count = end - first - j;
            pack_keys(a, head, row, count, keys + (at + j) * HEAD_VALUES);
            pack_values(a, head, row, count, pitch, values + at + j);
        }
    }
}

/* What a task is: queries [first, first + rows) of the sequence, all in one causal block. */
typedef struct amx_queries {
    int32_t b, head;
    int64_t first, rows;
    int64_t blocks; /* of keys that they see */
} amx_queries;

static int64_t tasks_of_block(int64_t block)
{
    return (block + AMX_SIDE - 1) / AMX_SIDE;
}

static amx_queries queries_of(const amx_attn *job, int32_t task_idx)
{
    const op_attn_block_args *a = job->a;
    int32_t b = 0;
    while (task_idx >= job->first_task[b + 1])
        b++;
    const int64_t length = rows_length(a->rows, b), block = block_of(a, b), in_block = tasks_of_block(block);
    const int64_t of_head = blocks_of(a, b) * in_block, at = task_idx - job->first_task[b];
    const int64_t block_idx = at % of_head / in_block, first = block_idx * block + at % in_block * AMX_SIDE;
    const int64_t end = (block_idx + 1) * block < length ? (block_idx + 1) * block : length;
    return (amx_queries){.b = b,
                         .head = (int32_t)(at / of_head),
                         .first = first,
                         .rows = end - first < AMX_SIDE ? end - first : AMX_SIDE,
                         .blocks = block_idx + 1};
}

/* q^T as steps: [2 chunks of the head][2 halves of the queries][16 pairs of channels][16 queries] */
static void load_queries(const op_attn_block_args *a, const amx_queries *q, uint16_t *steps)
{
    for (int chunk = 0; chunk < HEAD_CHUNKS; chunk++)
        for (int64_t half = 0; half < 2; half++) {
            __m512i r[HALF];
            for (int64_t n = 0; n < HALF; n++) {
                const int64_t i = half * HALF + n, row = a->rows->offs[q->b] + q->first + i;
                const int64_t at = qkv_idx(a, row, 0, q->head) + chunk * AMX_SIDE;
                r[n] = i < q->rows ? _mm512_inserti64x4(_mm512_castsi256_si512(load_bf16(a->qkv, at)),
                                                        load_bf16(a->qkv, at + HALF), 1)
                                   : _mm512_setzero_si512();
            }
            turn(r);
            for (int n = 0; n < HALF; n++)
                _mm512_storeu_si512(steps + (chunk * 2 + half) * (AMX_STEP_VALUES / 2) + n * AMX_SIDE, r[n]);
        }
}

/* Keys of block `idx` that exist. */
static int64_t block_keys(const op_attn_block_args *a, int32_t b, int64_t idx)
{
    const int64_t length = rows_length(a->rows, b), block = block_of(a, b), left = length - idx * block;
    return left < block ? left : block;
}

/* The largest score of 16 queries. NaN is passed over, and shows in the shares. */
static __m512 largest(const op_attn_block_args *a, const amx_queries *q, const float *scores)
{
    __m512 max[4];
    for (int i = 0; i < 4; i++)
        max[i] = _mm512_set1_ps(-INFINITY);
    for (int64_t k = 0; k < q->blocks; k++) {
        const float *from = scores + k * padded(block_of(a, q->b)) * AMX_SIDE;
        const int64_t keys = block_keys(a, q->b, k);
        for (int64_t j = 0; j < keys; j++)
            max[j % 4] = _mm512_max_ps(_mm512_load_ps(from + j * AMX_SIDE), max[j % 4]);
    }
    return _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3]));
}

/* Scores of 16 queries (half of the columns) become shares in steps; gives one over their sum. */
static __m512 share_half(const op_attn_block_args *a, const amx_queries *q, int half, const float *scores,
                         uint16_t *shares)
{
    const __m512 scale = _mm512_set1_ps(SCORE_LOG2);
    const __m512 offset = _mm512_mul_ps(largest(a, q, scores + half * HALF), scale);
    __m512 even_sum = _mm512_setzero_ps(), odd_sum = _mm512_setzero_ps();
    int64_t at = 0;
    for (int64_t k = 0; k < q->blocks; k++) {
        const int64_t keys = block_keys(a, q->b, k), all = padded(block_of(a, q->b));
        for (int64_t j = 0; j < all; j += 2, at += 2) {
            const float *from = scores + at * AMX_SIDE + half * HALF;
            __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
            if (j < keys)
                even = exp2_lanes(_mm512_fmsub_ps(_mm512_load_ps(from), scale, offset));
            if (j + 1 < keys)
                odd = exp2_lanes(_mm512_fmsub_ps(_mm512_load_ps(from + AMX_SIDE), scale, offset));
            even_sum = _mm512_add_ps(even_sum, even);
            odd_sum = _mm512_add_ps(odd_sum, odd);
            uint16_t *to =
                shares + at / AMX_SIDE * AMX_STEP_VALUES + half * (AMX_STEP_VALUES / 2) + at % AMX_SIDE * HALF;
            _mm512_storeu_si512(to, pair_rows((__m256i)_mm512_cvtneps_pbh(even), (__m256i)_mm512_cvtneps_pbh(odd)));
        }
    }
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(even_sum, odd_sum));
}

/* 32 channels of the result, turned back.   c: [32 channels][32 queries] */
static void store_result(const op_attn_block_args *a, const amx_queries *q, int chunk, const __m512 inverse[2],
                         const float *c)
{
    for (int64_t half = 0; half < 2; half++)
        for (int d = 0; d < AMX_SIDE; d += HALF) {
            __m512i r[HALF];
            for (int i = 0; i < HALF; i++)
                r[i] = _mm512_castps_si512(
                    _mm512_mul_ps(_mm512_load_ps(c + (d + i) * AMX_SIDE + half * HALF), inverse[half]));
            turn(r);
            for (int64_t n = 0; n < HALF && half * HALF + n < q->rows; n++) {
                const int64_t row = a->rows->offs[q->b] + q->first + half * HALF + n;
                const int64_t at = (row * a->heads + q->head) * HEAD_VALUES + chunk * AMX_SIDE + d;
                const __m512 v = _mm512_castsi512_ps(r[n]);
                if (a->y->type == DTYPE_BF16)
                    _mm256_storeu_si256((__m256i *)(void *)((uint16_t *)a->y->data + at),
                                        (__m256i)_mm512_cvtneps_pbh(v));
                else
                    _mm512_storeu_ps((float *)a->y->data + at, v);
            }
        }
}

static void attend(void *ctx, int32_t task_idx, int thread_idx)
{
    const amx_attn *job = ctx;
    const op_attn_block_args *a = job->a;
    const amx_queries q = queries_of(job, task_idx);
    const int64_t pitch = padded_keys(a, q.b), seen = q.blocks * padded(block_of(a, q.b));
    const uint16_t *keys = packed_head(job, q.b, q.head), *values = keys + pitch * HEAD_VALUES;
    float *scores = job->scores + thread_idx * job->keys_max * AMX_SIDE;
    uint16_t *shares = job->shares + thread_idx * job->keys_max * AMX_SIDE;
    const amx_shape score_shape = {.row_pitch = HEAD_VALUES, .taps = 1, .chunks = HEAD_CHUNKS};
    const amx_shape mix_shape = {.row_pitch = pitch, .taps = 1, .chunks = seen / AMX_SIDE};
    _Alignas(64) uint16_t query[HEAD_CHUNKS * AMX_STEP_VALUES];
    _Alignas(64) float c[AMX_BLOCK_VALUES];
    const uint16_t *query_steps = query, *share_steps = shares;

    load_queries(a, &q, query);
    amx_begin();
    for (int64_t j = 0; j < seen; j += AMX_SIDE) {
        const uint16_t *from = keys + j * HEAD_VALUES;
        amx_multiply(&score_shape, 1, &from, &query_steps, scores + j * AMX_SIDE);
    }
    const __m512 inverse[2] = {share_half(a, &q, 0, scores, shares), share_half(a, &q, 1, scores, shares)};
    for (int chunk = 0; chunk < HEAD_CHUNKS; chunk++) {
        const uint16_t *from = values + chunk * AMX_SIDE * pitch;
        amx_multiply(&mix_shape, 1, &from, &share_steps, c);
        store_result(a, &q, chunk, inverse, c);
    }
    amx_end();
}

cf_err amx_attn_block(backend *be, const op_attn_block_args *a)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be), sequences = (size_t)a->rows->count;
    amx_attn job = {.a = a};
    int64_t values = 0, tasks = 0;

    TRY(arena_take(&be->scratch, (sequences + 1) * sizeof *job.packed_off, &job.packed_off));
    TRY(arena_take(&be->scratch, (sequences + 1) * sizeof *job.first_task, &job.first_task));
    for (int32_t b = 0; b < a->rows->count; b++) {
        const int64_t keys = padded_keys(a, b);
        job.packed_off[b] = values;
        job.first_task[b] = tasks;
        job.keys_max = keys > job.keys_max ? keys : job.keys_max;
        values += keys * 2 * HEAD_VALUES * a->heads;
        tasks += blocks_of(a, b) * tasks_of_block(block_of(a, b)) * a->heads;
    }
    job.first_task[a->rows->count] = tasks;
    CF_ASSERT(tasks <= POOL_TASKS_MAX);
    const size_t own = (size_t)(be->threads * job.keys_max * AMX_SIDE);
    TRY(arena_take(&be->scratch, (size_t)values * sizeof *job.packed, &job.packed));
    TRY(arena_take(&be->scratch, own * sizeof *job.scores, &job.scores));
    TRY(arena_take(&be->scratch, own * sizeof *job.shares, &job.shares));
    pool_run(cpu_of(be)->threads, a->rows->count * a->heads, pack_head, &job);
    pool_run(cpu_of(be)->threads, (int32_t)tasks, attend, &job);
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
