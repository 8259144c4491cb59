/*
 * attn_decode.cu - attention of decoding: few rows, long pasts. A key or value is read once for all heads that share
 * it (7 of them in the LLM), and a long past is cut into pieces of PIECE keys that blocks take side by side: with one
 * row a head or two a card would be empty otherwise. A second kernel brings the pieces together, from the first to the
 * last.
 *
 * f32 throughout. The order of all sums follows from the number of keys alone, so a row has the same bytes in any
 * batch. Loops over the group have a constant bound and a guard, so that what a thread holds of each head is in
 * registers. The backend's thread. Fails: CF_ERR_DEVICE, CF_ERR_NOMEM.
 * Source: Dao et al. 2023, "Flash-Decoding for long-context inference": the merging of partial softmaxes.
 */
#include "common/compute/cuda/cuda_impl.cuh"

#define KEYS    128 /* scored at a time, and threads of a block */
#define PIECE   CUDA_DECODE_PIECE
#define PARTIAL (CUDA_HEAD + 2) /* what a piece leaves of a head: channels, maximum, sum */

/* Of `shares` and `halves`: one line for each head of the group. */
static __device__ inline int line(int g, int t)
{
    return g * KEYS + t;
}

/* Values that one load brings. */
typedef struct alignas(16) key_part {
    float value[4];
} key_part;

/* Block (row, kv head, piece). */
static __global__ void attn_pieces_kernel(const float *qkv, cache_view c, int pieces_max, float *partial)
{
    CUDA_SHARED(float, query, CUDA_GROUP_MAX *CUDA_HEAD);
    CUDA_SHARED(float, shares, CUDA_GROUP_MAX *KEYS);
    const int t = (int)threadIdx.x, channel = t % CUDA_HEAD, half = t / CUDA_HEAD, group = c.heads / c.kv_heads;
    const int piece = (int)(blockIdx.x % pieces_max), kv_head = (int)(blockIdx.x / pieces_max % c.kv_heads);
    const int64_t row = blockIdx.x / pieces_max / c.kv_heads, plane = (int64_t)CACHE_PAGE_TOKENS * CUDA_HEAD;
    int64_t token = -1; /* of an inert row: nothing is seen */
    const int32_t *pages = cache_row(&c, row, &token);
    const int64_t seen = token + 1, begin = (int64_t)piece * PIECE;
    const int64_t end = begin + PIECE < seen ? begin + PIECE : seen;
    const float *keys = c.cache + kv_head * plane, *values = keys + c.kv_heads * plane;
    const float *q = qkv + (row * (c.heads + 2 * c.kv_heads) + kv_head * group) * CUDA_HEAD;
    float max[CUDA_GROUP_MAX], sum[CUDA_GROUP_MAX], mixed[CUDA_GROUP_MAX];
    if (begin >= seen)
        return; // the whole block: nothing is waited for
    for (int i = t; i < group * CUDA_HEAD; i += KEYS)
        query[i] = q[i];
    CUDA_UNROLL
    for (int g = 0; g < CUDA_GROUP_MAX; g++) {
        max[g] = -INFINITY;
        sum[g] = mixed[g] = 0.0f;
    }
    __syncthreads(); // the queries are read by all
    for (int64_t first = begin; first < end; first += KEYS) {
        const int64_t mine = first + t;
        float score[CUDA_GROUP_MAX] = {0.0f};
        if (mine < end) {
            const key_part *key = (const key_part *)(keys + pages[mine / CACHE_PAGE_TOKENS] * 2 * c.kv_heads * plane +
                                                     mine % CACHE_PAGE_TOKENS * CUDA_HEAD);
            for (int d = 0; d < CUDA_HEAD; d += 4) {
                const key_part k = key[d / 4];
                CUDA_UNROLL
                for (int g = 0; g < CUDA_GROUP_MAX; g++) {
                    CUDA_UNROLL
                    for (int i = 0; i < 4 && g < group; i++)
                        score[g] = fma_f32(query[g * CUDA_HEAD + d + i], k.value[i], score[g]);
                }
            }
        }
        CUDA_UNROLL
        for (int g = 0; g < CUDA_GROUP_MAX; g++) {
            if (g >= group)
                break; // of the whole block
            const float scaled = mine < end ? score[g] * CUDA_HEAD_SCALE : -INFINITY;
            const float larger =
                fmaxf(max[g], block_max(scaled)); // its barrier also ends the reading of the last shares
            const float share = mine < end ? expf(scaled - larger) : 0.0f, shrink = expf(max[g] - larger);
            shares[line(g, t)] = share;
            sum[g] = sum[g] * shrink + block_sum(share); // its barriers also publish the shares
            mixed[g] = mixed[g] * shrink;
            max[g] = larger;
        }
        for (int j = half * CUDA_HEAD; j < (half + 1) * CUDA_HEAD && first + j < end; j++) {
            const int64_t at = first + j;
            const float v = values[pages[at / CACHE_PAGE_TOKENS] * 2 * c.kv_heads * plane +
                                   at % CACHE_PAGE_TOKENS * CUDA_HEAD + channel];
            CUDA_UNROLL
            for (int g = 0; g < CUDA_GROUP_MAX; g++)
                if (g < group)
                    mixed[g] = fma_f32(shares[line(g, j)], v, mixed[g]);
        }
    }
    __syncthreads(); // the last shares are read: their lines hold halves now
    CUDA_UNROLL
    for (int g = 0; g < CUDA_GROUP_MAX; g++)
        if (g < group)
            shares[line(g, t)] = mixed[g];
    __syncthreads(); // both halves of a channel are there
    CUDA_UNROLL
    for (int g = 0; g < CUDA_GROUP_MAX; g++) {
        if (g >= group || t >= CUDA_HEAD)
            break;
        float *left = partial + ((row * c.heads + kv_head * group + g) * pieces_max + piece) * PARTIAL;
        left[t] = shares[line(g, t)] + shares[line(g, t + CUDA_HEAD)];
        if (t == 0) {
            left[CUDA_HEAD] = max[g];
            left[CUDA_HEAD + 1] = sum[g];
        }
    }
}

/* Thread per channel of y; inert rows get zeros. */
static __global__ void attn_merge_kernel(const float *partial, cache_view c, int pieces_max, float *y, int64_t count)
{
    const int64_t i = cuda_item(), row = i / (c.heads * CUDA_HEAD);
    if (i >= count)
        return;
    int64_t token;
    if (!cache_row(&c, row, &token)) {
        y[i] = 0.0f;
        return;
    }
    const int pieces = (int)(token / PIECE + 1), channel = (int)(i % CUDA_HEAD);
    const float *lefts = partial + i / CUDA_HEAD * pieces_max * PARTIAL;
    float max = -INFINITY, sum = 0.0f, mixed = 0.0f;
    for (int p = 0; p < pieces; p++)
        max = fmaxf(max, lefts[p * PARTIAL + CUDA_HEAD]);
    for (int p = 0; p < pieces; p++) {
        const float *left = lefts + p * PARTIAL;
        const float weight = expf(left[CUDA_HEAD] - max);
        sum = fma_f32(left[CUDA_HEAD + 1], weight, sum);
        mixed = fma_f32(left[channel], weight, mixed);
    }
    y[i] = mixed / sum;
}

static cf_err run_pieces(backend *be, const tensor *qkv, tensor *y, const cache_view *c, int pieces_max)
{
    const int64_t rows = qkv->dims[0], count = rows * c->heads * CUDA_HEAD;
    void *partial;
    CUDA_TRY(cuda_take(be, (size_t)(rows * c->heads * pieces_max * PARTIAL) * sizeof(float), &partial));
    CUDA_TRY(CUDA_LAUNCH(attn_pieces_kernel, rows * c->kv_heads * pieces_max, KEYS, cuda_of(be)->stream,
                         (const float *)qkv->data, *c, pieces_max, (float *)partial));
    return CUDA_LAUNCH(attn_merge_kernel, cuda_blocks(count), CUDA_BLOCK, cuda_of(be)->stream, (const float *)partial,
                       *c, pieces_max, (float *)y->data, count);
}

cf_err cuda_attn_decode(backend *be, const tensor *qkv, tensor *y, const cache_view *c, int pieces_max)
{
    const size_t mark = backend_scratch_mark(be);
    const cf_err err = run_pieces(be, qkv, y, c, pieces_max);
    backend_scratch_reset(be, mark); /* the stream keeps the order: whoever takes it next writes later */
    return err;
}
