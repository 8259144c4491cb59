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
    const int b = rows_find(c.offs, c.sequences, row);
    const int64_t token = c.past[b] + row - c.offs[b];
    const int64_t page = c.pages[(int64_t)b * c.pages_max + token / CACHE_PAGE_TOKENS];
    const int64_t line = ((page * 2 + which) * c.kv_heads + head) * CACHE_PAGE_TOKENS + token % CACHE_PAGE_TOKENS;
    const int64_t from = row * (c.heads + 2 * c.kv_heads) + c.heads + which * c.kv_heads + head;
    c.cache[line * CUDA_HEAD + d] = qkv[from * CUDA_HEAD + d];
}

/* Block (row, head). */
static __global__ void attn_cache_kernel(const float *qkv, float *y, cache_view c)
{
    const int64_t row = blockIdx.x / c.heads;
    const int head = (int)(blockIdx.x % c.heads), kv_head = head / (c.heads / c.kv_heads);
    const int b = rows_find(c.offs, c.sequences, row);
    const int64_t plane = (int64_t)CACHE_PAGE_TOKENS * CUDA_HEAD;
    const float *keys = c.cache + kv_head * plane;
    const key_lines lines = {keys, keys + c.kv_heads * plane, 0, c.pages + (int64_t)b * c.pages_max,
                             2 * c.kv_heads * plane};
    const float *q = qkv + (row * (c.heads + 2 * c.kv_heads) + head) * CUDA_HEAD;
    attend(q, &lines, c.past[b] + row - c.offs[b] + 1, y + (row * c.heads + head) * CUDA_HEAD);
}

cf_err cuda_attn_cache(backend *be, const op_attn_cache_args *a)
{
    cudaStream_t stream = cuda_of(be)->stream;
    const size_t sequences = (size_t)a->rows->count;
    const int64_t rows = a->qkv->dims[0], count = rows * 2 * a->kv_heads * CUDA_HEAD;
    const void *pages, *past;
    CUDA_TRY(cuda_list_upload(be, a->pages, sequences * (size_t)a->pages_max * sizeof(int32_t), &pages));
    CUDA_TRY(cuda_list_upload(be, a->past, sequences * sizeof(int32_t), &past));
    const cache_view c = {(float *)a->cache->data,
                          a->rows->dev,
                          (const int32_t *)pages,
                          (const int32_t *)past,
                          a->rows->count,
                          a->pages_max,
                          a->heads,
                          a->kv_heads};
    CUDA_TRY(CUDA_LAUNCH(cache_append_kernel, cuda_blocks(count), CUDA_BLOCK, stream, (const float *)a->qkv->data, c,
                         count));
    if (a->kind == GEMM_DECODE && a->heads <= CUDA_GROUP_MAX * a->kv_heads)
        return cuda_attn_decode(be, a, &c);
    return CUDA_LAUNCH(attn_cache_kernel, rows * a->heads, KEYS, stream, (const float *)a->qkv->data,
                       (float *)a->y->data, c);
}
