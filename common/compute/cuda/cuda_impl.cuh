/*
 * cuda_impl.cuh - the inside of the CUDA backend: its state and what its files call of each other.
 *
 * Scratch is one range of offsets with two sides. The host's arena hands out offsets and keeps what lists of the host
 * said; device segments, reserved by the stage or allocated when first needed, stand behind the same offsets. A mark is
 * an offset, so both sides are reset together.
 */
#ifndef CF_COMPUTE_CUDA_IMPL_CUH
#define CF_COMPUTE_CUDA_IMPL_CUH

#include "common/compute/backend_impl.h"
#include "common/compute/cuda/cuda_common.cuh"
#include "common/compute/cuda/gemm.cuh"

#define CUDA_SEGMENTS_MAX 64
#define CUDA_LISTS_MAX    32
/* Parts of the table of waves: cos and sin of 2 pi i / 16, i = 0..15, and the periodic window. */
#define WAVES_COS    0
#define WAVES_SIN    16
#define WAVES_HANN   32
#define WAVES_VALUES 48

#define CUDA_ALIGN ((size_t)256) /* of every piece of device memory */

typedef struct cuda_segment {
    unsigned char *dev; /* owned */
    size_t first_off, bytes;
} cuda_segment;

/* A host array that was uploaded to scratch and is still there. */
typedef struct cuda_list {
    size_t off, bytes;
    const void *dev;
} cuda_list;

typedef struct cuda_block {
    struct cuda_block *next;
    unsigned char *dev; /* owned */
    size_t bytes, used_bytes;
} cuda_block;

typedef struct cuda_pinned {
    struct cuda_pinned *next;
    void *host; /* owned */
} cuda_pinned;

typedef struct cuda_state {
    int device, capability; /* 90 for 9.0 */
    int mma_depth;          /* of the matrix instruction that kernels use: 16, or 8 */
    cudaStream_t stream;    /* owned */
    gemm *products;         /* owned */
    cuda_segment segments[CUDA_SEGMENTS_MAX];
    int segment_count;
    bool scratch_given_back; /* all of it, and none was taken since */
    cuda_list lists[CUDA_LISTS_MAX];
    int list_count;
    cuda_block *kept;    /* owned */
    size_t shared_bytes; /* of the last block of kept memory that small tables share */
    cuda_pinned *pinned; /* owned */
    unsigned char *ring; /* of uploads that the device may not have read yet; one of `pinned` */
    size_t ring_used_bytes;
    bool recording;      /* nothing may wait, come from the host, or take memory: cuda_not_recorded */
    size_t device_bytes; /* allocated in all */
    uint64_t generation; /* of the memory: one more with each allocation and each segment given back */
    const double *waves; /* kept: cosines, sines, Hann window of 16 points (WAVES_*) */
} cuda_state;

static inline cuda_state *cuda_of(const backend *be)
{
    return (cuda_state *)be->impl;
}

/* Scratch of the device; the range of offsets it took is the host side's too. */
cf_err cuda_take(backend *be, size_t bytes, void **ret_dev);
cf_err cuda_keep(backend *be, size_t bytes, void **ret_dev);
cf_err cuda_scratch_reserve(backend *be, size_t bytes);
void cuda_scratch_reset(backend *be, size_t mark);

/* The device's copy of a host array, until the caller's scratch is reset. The same contents are uploaded once. */
cf_err cuda_list_upload(backend *be, const void *values, size_t bytes, const void **ret_dev);

/* Work that is submitted once and replayed: graph.cu. */
cf_err cuda_replay(backend *be, backend_record **record, backend_submit_fn *submit, void *ctx);
void cuda_record_close(backend *be, backend_record *record);
/* CF_ERR_DEVICE while work is recorded. */
cf_err cuda_not_recorded(const cuda_state *cuda, const char *what);

/* Copies; the host's bytes may be freed or changed when it returns: upload.cu. CF_ERR_DEVICE while work is recorded. */
cf_err cuda_send(cuda_state *cuda, const void *host, void *dev, size_t bytes);
/* Until the device has done everything. The same. */
cf_err cuda_wait(cuda_state *cuda);
cf_err cuda_uploads_open(backend *be);

cf_err cuda_keep_host(backend *be, size_t bytes, void **ret_ptr);

/* Allocates; CF_ERR_NOMEM says how much was wanted and how much is free. */
cf_err cuda_memory(cuda_state *cuda, size_t bytes, const char *what, unsigned char **ret_dev);

#define CUDA_OP(name, args) cf_err cuda_##name(backend *be, const args *a);
CF_OPS(CUDA_OP)
#undef CUDA_OP

/* The depth for a card: 8 below 8.0, and where this build's code for the card was compiled for less. */
cf_err cuda_mma_choose(int capability, int *ret_depth);

/* op_attn_block with the matrix units. */
cf_err cuda_attn_block_mma(backend *be, const op_attn_block_args *a);

/* op_conv1d with the matrix units: fp16 filters, every row read, taps that reach at most 64 rows. */
bool cuda_conv_fits_mma(const op_conv1d_args *a);
cf_err cuda_conv1d_mma(backend *be, const op_conv1d_args *a);

/* What the kernels of the cache know. Rows are packed sequences (offs, past: [B], pages: [B, pages_max]), or, with
 * slots, one of each (past: [R], pages: [S, pages_max], offs NULL). */
typedef struct cache_view {
    float *cache;
    const int32_t *offs, *pages, *past, *slots;
    int sequences, pages_max, heads, kv_heads;
} cache_view;

/* The line of pages of row `row`, or NULL for an inert one; the row is token *ret_token of its sequence. */
static __device__ inline const int32_t *cache_row(const cache_view *c, int64_t row, int64_t *ret_token)
{
    const int64_t b = c->slots ? c->slots[row] : rows_find(c->offs, c->sequences, row);
    if (b < 0)
        return NULL;
    *ret_token = c->slots ? c->past[row] : c->past[b] + row - c->offs[b];
    return c->pages + b * c->pages_max;
}

#define CUDA_GROUP_MAX    8   /* heads that share a key, on the path of decoding */
#define CUDA_DECODE_PIECE 256 /* keys of a block of that path */

/* The attention of decoding for `rows` rows of at most pieces_max pieces, when their keys and values have been
 * appended. */
cf_err cuda_attn_decode(backend *be, const tensor *qkv, tensor *y, const cache_view *c, int pieces_max);

cf_err cuda_pack_linear(backend *be, const float *w, weight *out);
cf_err cuda_pack_conv(backend *be, const float *w, weight *out);
cf_err cuda_pack_conv_f64(backend *be, const double *w, weight *out);

#endif
