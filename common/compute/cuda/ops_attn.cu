/*
 * ops_attn.cu - attention, the plain path: one block per query and head, f32 throughout. It runs on every card and is
 * what the faster kernels are compared with. The backend's thread.
 *
 * Keys are taken KEYS at a time: a thread computes one score, the block agrees on the running maximum, and each thread
 * adds the values of half of the keys to one channel. The order of all sums follows from the number of keys alone.
 * Fails: CF_ERR_DEVICE, CF_ERR_NOMEM.
 */
#include "common/compute/cuda/cuda_impl.cuh"

#define KEYS 128 /* scored at a time, and threads of a block */

/* Where keys and values of one query lie: packed rows, or pages. */
typedef struct key_lines {
    const float *keys, *values;
    int64_t pitch;        /* packed rows: from one to the next */
    const int32_t *pages; /* NULL: packed */
    int64_t page_values;  /* a page: [2][kv_heads][CACHE_PAGE_TOKENS][64] */
} key_lines;

static __device__ inline int64_t key_off(const key_lines *l, int64_t j)
{
    if (!l->pages)
        return j * l->pitch;
    return l->pages[j / CACHE_PAGE_TOKENS] * l->page_values + j % CACHE_PAGE_TOKENS * CUDA_HEAD;
}

/* y[0..63] = softmax(q K^T / 8) V over `count` keys, at least one. All threads of the block. */
static __device__ void attend(const float *q, const key_lines *lines, int64_t count, float *y)
{
    CUDA_SHARED(float, query, CUDA_HEAD);
    CUDA_SHARED(float, shares, KEYS);
    CUDA_SHARED(float, halves, KEYS);
    const int t = (int)threadIdx.x, channel = t % CUDA_HEAD, half = t / CUDA_HEAD;
    float max = -INFINITY, sum = 0.0f, mixed = 0.0f;
    if (t < CUDA_HEAD)
        query[t] = q[t];
    __syncthreads(); // the query is read by all
    for (int64_t first = 0; first < count; first += KEYS) {
        float score = -INFINITY;
        if (first + t < count) {
            const float *key = lines->keys + key_off(lines, first + t);
            float dot = 0.0f;
            for (int d = 0; d < CUDA_HEAD; d++)
                dot = fma_f32(query[d], key[d], dot);
            score = dot * CUDA_HEAD_SCALE;
        }
        const float larger = fmaxf(max, block_max(score)); // its barrier also ends the reading of the last shares
        const float share = first + t < count ? expf(score - larger) : 0.0f;
        const float shrink = expf(max - larger);
        shares[t] = share;
        sum = sum * shrink + block_sum(share); // its barriers also publish the shares
        mixed = mixed * shrink;
        max = larger;
        for (int j = half * CUDA_HEAD; j < (half + 1) * CUDA_HEAD && first + j < count; j++)
            mixed = fma_f32(shares[j], lines->values[key_off(lines, first + j) + channel], mixed);
    }
    halves[t] = mixed;
    __syncthreads(); // both halves of a channel are there
    if (t < CUDA_HEAD)
        y[t] = (halves[t] + halves[t + CUDA_HEAD]) / sum;
}

/* Block (row, head). */
static __global__ void attn_block_kernel(const float *qkv, float *y, const int32_t *offs, const int32_t *block,
                                         int sequences, int heads)
{
    const int64_t row = blockIdx.x / heads, head = blockIdx.x % heads, width = (int64_t)heads * CUDA_HEAD;
    const int b = rows_find(offs, sequences, row);
    const int64_t first = offs[b], length = offs[b + 1] - first, step = block[b];
    int64_t count = length;
    if (step > 0 && step * ((row - first) / step + 1) < length)
        count = step * ((row - first) / step + 1);
    const float *base = qkv + first * 3 * width + head * CUDA_HEAD;
    const key_lines lines = {base + width, base + 2 * width, 3 * width, NULL, 0};
    attend(base + (row - first) * 3 * width, &lines, count, y + row * width + head * CUDA_HEAD);
}

cf_err cuda_attn_block(backend *be, const op_attn_block_args *a)
{
    const void *block;
    if (a->operands != PRECISION_F32)
        return cuda_attn_block_mma(be, a);
    CUDA_TRY(cuda_list_upload(be, a->block, (size_t)a->rows->count * sizeof(int32_t), &block));
    return CUDA_LAUNCH(attn_block_kernel, a->qkv->dims[0] * a->heads, KEYS, cuda_of(be)->stream,
                       (const float *)a->qkv->data, (float *)a->y->data, a->rows->dev, (const int32_t *)block,
                       a->rows->count, a->heads);
}

/* Thread per value of this call's keys and values. */
static __global__ void cache_append_kernel(const float *qkv, cache_view c, int64_t count)
{
    const int64_t i = cuda_item();
    const int kv_values = c.kv_heads * CUDA_HEAD;
    if (i >= count)
        return;
    const int64_t row = i / (2 * kv_values);
    const int which = (int)(i / kv_values % 2), head = (int)(i / CUDA_HEAD % c.kv_heads), d = (int)(i % CUDA_HEAD);
    int64_t token;
    const int32_t *pages = cache_row(&c, row, &token);
    if (!pages)
        return;
    const int64_t page = pages[token / CACHE_PAGE_TOKENS];
    const int64_t line = ((page * 2 + which) * c.kv_heads + head) * CACHE_PAGE_TOKENS + token % CACHE_PAGE_TOKENS;
    const int64_t from = row * (c.heads + 2 * c.kv_heads) + c.heads + which * c.kv_heads + head;
    c.cache[line * CUDA_HEAD + d] = qkv[from * CUDA_HEAD + d];
}

/* Block (row, head). */
static __global__ void attn_cache_kernel(const float *qkv, float *y, cache_view c)
{
    const int64_t row = blockIdx.x / c.heads;
    const int head = (int)(blockIdx.x % c.heads), kv_head = head / (c.heads / c.kv_heads);
    const int64_t plane = (int64_t)CACHE_PAGE_TOKENS * CUDA_HEAD;
    const float *keys = c.cache + kv_head * plane;
    int64_t token;
    const int32_t *pages = cache_row(&c, row, &token);
    y += (row * c.heads + head) * CUDA_HEAD;
    if (!pages) { // the whole block: nothing is waited for
        if (threadIdx.x < CUDA_HEAD)
            y[threadIdx.x] = 0.0f;
        return;
    }
    const key_lines lines = {keys, keys + c.kv_heads * plane, 0, pages, 2 * c.kv_heads * plane};
    attend(qkv + (row * (c.heads + 2 * c.kv_heads) + head) * CUDA_HEAD, &lines, token + 1, y);
}

/* Appends and attends. pieces_max: of the longest row on the path of decoding; 0: the plain path. */
static cf_err run_cached(backend *be, const tensor *qkv, tensor *y, const cache_view *c, int pieces_max)
{
    cudaStream_t stream = cuda_of(be)->stream;
    const int64_t rows = qkv->dims[0], count = rows * 2 * c->kv_heads * CUDA_HEAD;
    CUDA_TRY(
        CUDA_LAUNCH(cache_append_kernel, cuda_blocks(count), CUDA_BLOCK, stream, (const float *)qkv->data, *c, count));
    if (pieces_max > 0 && c->heads <= CUDA_GROUP_MAX * c->kv_heads)
        return cuda_attn_decode(be, qkv, y, c, pieces_max);
    return CUDA_LAUNCH(attn_cache_kernel, rows * c->heads, KEYS, stream, (const float *)qkv->data, (float *)y->data,
                       *c);
}

cf_err cuda_attn_cache(backend *be, const op_attn_cache_args *a)
{
    const size_t sequences = (size_t)a->rows->count;
    const void *pages, *past;
    int pieces_max = 0;
    CUDA_TRY(cuda_list_upload(be, a->pages, sequences * (size_t)a->pages_max * sizeof(int32_t), &pages));
    CUDA_TRY(cuda_list_upload(be, a->past, sequences * sizeof(int32_t), &past));
    const cache_view c = {(float *)a->cache->data,
                          a->rows->dev,
                          (const int32_t *)pages,
                          (const int32_t *)past,
                          NULL,
                          a->rows->count,
                          a->pages_max,
                          a->heads,
                          a->kv_heads};
    for (int32_t b = 0; b < a->rows->count && a->kind == GEMM_DECODE; b++) {
        const int pieces = (a->past[b] + rows_length(a->rows, b) + CUDA_DECODE_PIECE - 1) / CUDA_DECODE_PIECE;
        pieces_max = pieces > pieces_max ? pieces : pieces_max;
    }
    return run_cached(be, a->qkv, a->y, &c, pieces_max);
}

/* Blocks for as many pieces as a line of pages can hold: those behind a row's last key end at once. */
cf_err cuda_attn_step(backend *be, const op_attn_step_args *a)
{
    const int pages_max = (int)a->pages->dims[1];
    const cache_view c = {(float *)a->cache->data,
                          NULL,
                          (const int32_t *)a->pages->data,
                          (const int32_t *)a->pos->data,
                          (const int32_t *)a->slots->data,
                          0,
                          pages_max,
                          a->heads,
                          a->kv_heads};
    const int pieces_max = (pages_max * CACHE_PAGE_TOKENS + CUDA_DECODE_PIECE - 1) / CUDA_DECODE_PIECE;
    return run_cached(be, a->qkv, a->y, &c, pieces_max);
}
