/*
 * ops_ras.cu - repetition-aware sampling, one block a row. The arithmetic is ras_rule.h's: ids are cut into pieces, a
 * thread a piece, and what has an order is done by one thread. Probabilities lie in scratch. The backend's thread.
 * Fails: CF_ERR_DEVICE, CF_ERR_NOMEM.
 */
#include "common/compute/cuda/cuda_impl.cuh"
#include "common/compute/ras_rule.h"

typedef struct ras_view {
    const float *logits;
    const int32_t *slots;
    int32_t *states, *tokens, *ids;
    float *p;     /* [R, V] */
    double *sums; /* [R, RAS_PIECES] */
    int32_t codes;
} ras_view;

/* What a block knows of its row. */
typedef struct ras_line {
    const float *logits;
    float *p;
    double *sums;
    int32_t count, codes, mask, first, end; /* ids of this thread: [first, end) */
} ras_line;

/* Writes the sum of this thread's ids, and waits until all have. */
static __device__ inline void sum_pieces(const ras_line *l)
{
    double sum = 0;
    for (int32_t id = l->first; id < l->end; id++)
        sum += (double)l->p[id];
    l->sums[threadIdx.x] = sum;
    __syncthreads(); // all sums are there
}

static __device__ void softmax_line(const ras_line *l, int32_t excluded)
{
    CUDA_SHARED(float, total, 1);
    float top = -INFINITY;
    for (int32_t id = l->first; id < l->end; id++)
        if (l->logits[id] > top && ras_open(id, l->codes, l->mask, excluded))
            top = l->logits[id];
    top = block_max(top);
    for (int32_t id = l->first; id < l->end; id++)
        l->p[id] = ras_open(id, l->codes, l->mask, excluded) ? ras_exp(l->logits[id] - top) : 0.0f;
    sum_pieces(l);
    if (threadIdx.x == 0)
        total[0] = (float)ras_total(l->sums);
    __syncthreads(); // the total is read by all, and the sums may be written again
    for (int32_t id = l->first; id < l->end; id++)
        l->p[id] /= total[0];
}

/* Of this thread's ids the first in the order of the nucleus behind (p, id): smaller p, or the same and a larger id. */
static __device__ inline void next_of_mine(const ras_line *l, float p, int32_t id, float *ret_p, int32_t *ret_id)
{
    *ret_p = -1.0f;
    *ret_id = l->count;
    for (int32_t i = l->first; i < l->end; i++)
        if ((l->p[i] < p || (l->p[i] == p && i > id)) && l->p[i] > *ret_p) {
            *ret_p = l->p[i];
            *ret_id = i;
        }
}

/* The largest p of the block, of equal ones the smallest id; the same in all threads. */
static __device__ inline void block_first(float *p, int32_t *id)
{
    CUDA_SHARED(float, warp_p, CUDA_WARPS_MAX);
    CUDA_SHARED(int32_t, warp_id, CUDA_WARPS_MAX);
    for (int step = CUDA_WARP / 2; step > 0; step /= 2) {
        const float other_p = __shfl_xor_sync(0xffffffffu, *p, step);
        const int32_t other_id = __shfl_xor_sync(0xffffffffu, *id, step);
        if (other_p > *p || (other_p == *p && other_id < *id)) {
            *p = other_p;
            *id = other_id;
        }
    }
    if (threadIdx.x % CUDA_WARP == 0) {
        warp_p[threadIdx.x / CUDA_WARP] = *p;
        warp_id[threadIdx.x / CUDA_WARP] = *id;
    }
    __syncthreads(); // all warps have written their first
    for (int w = 0; w < RAS_PIECES / CUDA_WARP; w++)
        if (warp_p[w] > *p || (warp_p[w] == *p && warp_id[w] < *id)) {
            *p = warp_p[w];
            *id = warp_id[w];
        }
    __syncthreads(); // all have read before the next call writes
}

/* ids: [RAS_TOP_K], the same in all threads. Returns how many. */
static __device__ int32_t nucleus_of(const ras_line *l, int32_t *ids)
{
    float sum = 0.0f, mine_p;
    int32_t taken = 0, mine_id;
    next_of_mine(l, INFINITY, -1, &mine_p, &mine_id);
    while (taken < RAS_TOP_K && taken < l->count && sum < RAS_TOP_P) {
        float p = mine_p;
        int32_t id = mine_id;
        block_first(&p, &id);
        ids[taken++] = id;
        sum += p;
        if (id == mine_id)
            next_of_mine(l, p, id, &mine_p, &mine_id);
    }
    return taken;
}

/* The first of this block's ids whose logit is not finite, or -1; in all threads. */
static __device__ int32_t refused_id(const ras_line *l)
{
    float found = -INFINITY; /* minus the id, which f32 holds exactly */
    for (int32_t id = l->end - 1; id >= l->first; id--)
        if (!isfinite(l->logits[id]))
            found = -(float)id;
    found = block_max(found);
    __syncthreads(); // before the next call of block_max
    return found > -INFINITY ? -(int32_t)found : -1;
}

static __global__ void ras_kernel(ras_view v)
{
    CUDA_SHARED(int32_t, drawn, 1);
    const int64_t row = blockIdx.x;
    const int32_t slot = v.slots[row], t = (int32_t)threadIdx.x, count = v.codes + SPEECH_CONTROLS;
    if (slot < 0) { // the whole block: nothing is waited for
        if (t == 0)
            v.ids[row] = RAS_INERT;
        return;
    }
    int32_t *state = v.states + (int64_t)slot * RAS_STATE_WORDS, nucleus[RAS_TOP_K];
    const ras_line l = {v.logits + row * count, v.p + row * count,   v.sums + row * RAS_PIECES, count, v.codes,
                        ras_mask_now(state),    ras_piece(count, t), ras_piece(count, t + 1)};
    const int32_t refused = refused_id(&l);
    if (refused >= 0) {
        if (t == 0)
            v.ids[row] = RAS_REFUSED(refused);
        return;
    }
    softmax_line(&l, -1);
    const int32_t taken = nucleus_of(&l, nucleus);
    if (t == 0)
        drawn[0] = ras_draw_nucleus(l.p, nucleus, taken, ras_uniform(state, RAS_DRAW_NUCLEUS));
    __syncthreads(); // the draw is read by all
    int32_t id = drawn[0];
    if (ras_in_window(state + RAS_WINDOW, id)) {
        softmax_line(&l, id);
        sum_pieces(&l);
        if (t == 0)
            id = ras_draw_all(l.p, count, l.sums, ras_uniform(state, RAS_DRAW_FALLBACK));
    }
    __syncthreads(); // all have read the line that thread 0 is about to change
    if (t == 0) {
        v.ids[row] = id;
        ras_remember(id, v.codes, state, &v.tokens[slot]);
    }
}

cf_err cuda_ras(backend *be, const op_ras_args *a)
{
    const int64_t rows = a->logits->dims[0], count = a->logits->dims[1];
    const size_t mark = backend_scratch_mark(be);
    void *p, *sums;
    CUDA_TRY(cuda_take(be, (size_t)(rows * count) * sizeof(float), &p));
    CUDA_TRY(cuda_take(be, (size_t)(rows * RAS_PIECES) * sizeof(double), &sums));
    const ras_view v = {(const float *)a->logits->data,
                        (const int32_t *)a->slots->data,
                        (int32_t *)a->states->data,
                        (int32_t *)a->tokens->data,
                        (int32_t *)a->ids->data,
                        (float *)p,
                        (double *)sums,
                        (int32_t)count - SPEECH_CONTROLS};
    const cf_err err = CUDA_LAUNCH(ras_kernel, rows, RAS_PIECES, cuda_of(be)->stream, v);
    backend_scratch_reset(be, mark); /* the stream keeps the order */
    return err;
}
