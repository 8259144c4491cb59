/*
 * attn_mma.cu - attention inside packed sequences with the matrix units: 64 queries to a block, 16 to a warp, 64 keys
 * at a time (after Dao 2023, "FlashAttention-2"). Two instructions: of depth 16 from sm_80 on, of depth 8 on sm_75.
 * Which one is chosen when the backend opens, by the card and by the code that this build has for it. The backend's
 * thread.
 *
 * q, k, v and the shares are fp16, all sums and the softmax are f32. Tiles of queries begin with their sequence and
 * tiles of keys with key 0, so a row's bytes do not depend on its neighbours; keys that a row does not see add exact
 * zeros. Scores stay in the registers: a pair of their fragments is the left operand of the second product.
 * Fails: CF_ERR_NOMEM, CF_ERR_DEVICE.
 */
#include "common/base/check.h"
#include "common/compute/cuda/cuda_impl.cuh"

#define TILE    64 /* queries of a block, and keys at a time */
#define THREADS 128
#define DEPTH   (CUDA_HEAD / 16) /* products along the channels of a head, and along the keys of a tile */
#define COLUMNS 8                /* products along the keys of a tile, and along the channels of the result */
#define PITCH   36               /* words of a row of 64 values in fp16, and 4 that keep rows in different banks */

typedef struct attn_tile {
    int32_t sequence, first; /* query, counted in its sequence */
} attn_tile;

typedef struct attn_view {
    const void *qkv;
    void *y;
    dtype type; /* of both */
    const int32_t *offs, *block;
    const attn_tile *tiles;
    int heads;
} attn_view;

/* What one thread knows of its two query rows. */
typedef struct attn_rows {
    int64_t limit[2]; /* keys that the row sees */
    float max[2], sum[2];
    float mixed[COLUMNS][4];
} attn_rows;

static __device__ inline float value_or_zero(const attn_view *v, bool exists, int64_t i)
{
    return exists ? load_value(v->qkv, v->type, i) : 0.0f;
}

/* Keys [first, first + 64) of a head: rows of keys as they are, values turned, so that both are read in pairs along the
 * depth of their product. Keys behind the sequence's end are zero. keys, values: index of the head's first. */
template <typename S>
static __device__ void load_tile(const attn_view *view, int64_t keys, int64_t values, int64_t pitch, int64_t first,
                                 int64_t length, S &key_words, S &value_words)
{
    for (int i = (int)threadIdx.x; i < TILE * CUDA_HEAD / 2; i += THREADS) {
        const int key = i / (CUDA_HEAD / 2), pair = i % (CUDA_HEAD / 2), d = i % CUDA_HEAD, two = i / CUDA_HEAD;
        const int64_t k = keys + (first + key) * pitch + 2 * pair, v = values + (first + 2 * two) * pitch + d;
        const bool has_key = first + key < length;
        const bool has_even = first + 2 * two < length, has_odd = first + 2 * two + 1 < length;
        key_words[key * PITCH + pair] = pack_f16(value_or_zero(view, has_key, k), value_or_zero(view, has_key, k + 1));
        value_words[d * PITCH + two] =
            pack_f16(value_or_zero(view, has_even, v), value_or_zero(view, has_odd, v + pitch));
    }
}

/* score = q k^T / 8 of this warp's 16 rows and 64 keys; keys that a row does not see are -infinity. */
template <int MMA, typename S>
static __device__ void score_tile(const uint32_t q[DEPTH][4], S &key_words, const attn_rows *r, int64_t first,
                                  float score[COLUMNS][4])
{
    const int lane = (int)threadIdx.x % CUDA_WARP;
    CUDA_UNROLL
    for (int n = 0; n < COLUMNS; n++) {
        CUDA_UNROLL
        for (int i = 0; i < 4; i++)
            score[n][i] = 0.0f;
        CUDA_UNROLL
        for (int k = 0; k < DEPTH; k++) {
            const int at = (n * 8 + lane / 4) * PITCH + k * 8 + lane % 4;
            const uint32_t b[2] = {key_words[at], key_words[at + 4]};
            mma_f16<MMA>(score[n], q[k], b);
        }
        CUDA_UNROLL
        for (int i = 0; i < 4; i++) {
            const int64_t key = first + n * 8 + lane % 4 * 2 + i % 2;
            score[n][i] = key < r->limit[i / 2] ? score[n][i] * CUDA_HEAD_SCALE : -INFINITY;
        }
    }
}

/* Scores become shares of the running maximum; what was mixed before shrinks with it. The four lanes of a row agree. */
static __device__ void share_tile(attn_rows *r, float score[COLUMNS][4])
{
    CUDA_UNROLL
    for (int half = 0; half < 2; half++) {
        float max = r->max[half], sum = 0.0f;
        CUDA_UNROLL
        for (int n = 0; n < COLUMNS; n++)
            max = fmaxf(max, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
        const float shrink = expf(r->max[half] - max);
        CUDA_UNROLL
        for (int n = 0; n < COLUMNS; n++) {
            CUDA_UNROLL
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                score[n][i] = expf(score[n][i] - max);
                sum += score[n][i];
                r->mixed[n][i] *= shrink;
            }
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        r->sum[half] = r->sum[half] * shrink + sum;
        r->max[half] = max;
    }
}

/* mixed += shares v */
template <int MMA, typename S>
static __device__ void mix_tile(attn_rows *r, const float share[COLUMNS][4], S &value_words)
{
    const int lane = (int)threadIdx.x % CUDA_WARP;
    CUDA_UNROLL
    for (int k = 0; k < DEPTH; k++) {
        const float *low = share[2 * k], *high = share[2 * k + 1];
        const uint32_t a[4] = {pack_f16(low[0], low[1]), pack_f16(low[2], low[3]), pack_f16(high[0], high[1]),
                               pack_f16(high[2], high[3])};
        CUDA_UNROLL
        for (int n = 0; n < COLUMNS; n++) {
            const int at = (n * 8 + lane / 4) * PITCH + k * 8 + lane % 4;
            const uint32_t b[2] = {value_words[at], value_words[at + 4]};
            mma_f16<MMA>(r->mixed[n], a, b);
        }
    }
}

/* Fragments of 16 query rows; rows behind the end of the sequence are zero. */
static __device__ void load_query(const attn_view *v, int64_t q, int64_t pitch, int64_t first, int64_t length,
                                  uint32_t ret_q[DEPTH][4])
{
    const int lane = (int)threadIdx.x % CUDA_WARP;
    CUDA_UNROLL
    for (int k = 0; k < DEPTH; k++) {
        CUDA_UNROLL
        for (int i = 0; i < 4; i++) {
            const int64_t row = first + lane / 4 + i % 2 * 8;
            const int64_t at = q + row * pitch + k * 16 + i / 2 * 8 + lane % 4 * 2;
            ret_q[k][i] = pack_f16(value_or_zero(v, row < length, at), value_or_zero(v, row < length, at + 1));
        }
    }
}

/* Block (tile, head). MMA: depth of the instruction. With 16 it fits in 128 registers: four blocks at a time. */
template <int MMA> static __global__ void __launch_bounds__(THREADS, MMA == 16 ? 4 : 3) attn_mma_kernel(attn_view v)
{
    CUDA_SHARED(uint32_t, key_words, TILE * PITCH);
    CUDA_SHARED(uint32_t, value_words, TILE * PITCH);
    const attn_tile tile = v.tiles[blockIdx.x / v.heads];
    const int64_t head = blockIdx.x % v.heads, width = (int64_t)v.heads * CUDA_HEAD, pitch = 3 * width;
    const int64_t begin = v.offs[tile.sequence], length = v.offs[tile.sequence + 1] - begin;
    const int64_t step = v.block[tile.sequence];
    const int64_t base = begin * pitch + head * CUDA_HEAD;
    const int lane = (int)threadIdx.x % CUDA_WARP, first = tile.first + (int)threadIdx.x / CUDA_WARP * 16;
    int64_t last = tile.first + TILE - 1 < length - 1 ? tile.first + TILE - 1 : length - 1; /* query of this tile */
    const int64_t keys = step > 0 && step * (last / step + 1) < length ? step * (last / step + 1) : length;
    uint32_t q[DEPTH][4];
    float score[COLUMNS][4];
    attn_rows r;
    CUDA_UNROLL
    for (int half = 0; half < 2; half++) {
        const int64_t row = first + lane / 4 + half * 8, seen = step > 0 ? step * (row / step + 1) : length;
        r.limit[half] = seen < length ? seen : length;
        r.max[half] = -INFINITY;
        r.sum[half] = 0.0f;
    }
    CUDA_UNROLL
    for (int n = 0; n < COLUMNS; n++) {
        CUDA_UNROLL
        for (int i = 0; i < 4; i++)
            r.mixed[n][i] = 0.0f;
    }
    load_query(&v, base, pitch, first, length, q);
    for (int64_t at = 0; at < keys; at += TILE) {
        load_tile(&v, base + width, base + 2 * width, pitch, at, length, key_words, value_words);
        __syncthreads(); // the tile is there
        score_tile<MMA>(q, key_words, &r, at, score);
        share_tile(&r, score);
        mix_tile<MMA>(&r, score, value_words);
        __syncthreads(); // all have read it before the next is loaded
    }
    CUDA_UNROLL
    for (int n = 0; n < COLUMNS; n++) {
        CUDA_UNROLL
        for (int i = 0; i < 4; i++) {
            const int64_t row = first + lane / 4 + i / 2 * 8;
            if (row < length)
                store_value(v.y, v.type, (begin + row) * width + head * CUDA_HEAD + n * 8 + lane % 4 * 2 + i % 2,
                            r.mixed[n][i] / r.sum[i / 2]);
        }
    }
}

cf_err cuda_attn_block_mma(backend *be, const op_attn_block_args *a)
{
    attn_tile *tiles;
    const void *dev_tiles, *block;
    int64_t count = 0;
    for (int32_t b = 0; b < a->rows->count; b++)
        count += (rows_length(a->rows, b) + TILE - 1) / TILE;
    CUDA_TRY(cuda_list_upload(be, a->block, (size_t)a->rows->count * sizeof(int32_t), &block));
    CUDA_TRY(mem_alloc((size_t)count, sizeof *tiles, &tiles));
    count = 0;
    for (int32_t b = 0; b < a->rows->count; b++)
        for (int32_t first = 0; first < rows_length(a->rows, b); first += TILE)
            tiles[count++] = attn_tile{b, first};
    const cf_err err = cuda_list_upload(be, tiles, (size_t)count * sizeof *tiles, &dev_tiles);
    mem_free(tiles);
    CUDA_TRY(err);
    const attn_view v = {
        a->qkv->data, a->y->data, a->qkv->type, a->rows->dev, (const int32_t *)block, (const attn_tile *)dev_tiles,
        a->heads};
    if (cuda_of(be)->mma_depth == 16)
        return CUDA_LAUNCH(attn_mma_kernel<16>, count * a->heads, THREADS, cuda_of(be)->stream, v);
    return CUDA_LAUNCH(attn_mma_kernel<8>, count * a->heads, THREADS, cuda_of(be)->stream, v);
}

cf_err cuda_mma_choose(int capability, int *ret_depth)
{
    cudaFuncAttributes code;
    *ret_depth = 8;
    if (capability < 80)
        return CF_OK;
    CUDA_CALL(cudaFuncGetAttributes(&code, (const void *)attn_mma_kernel<16>));
    if (code.ptxVersion >= 80)
        *ret_depth = 16;
    return CF_OK;
}
