/*
 * backend_impl.h - the inside of a backend: what a device implements. Included by common/compute only.
 */
#ifndef CF_COMPUTE_BACKEND_IMPL_H
#define CF_COMPUTE_BACKEND_IMPL_H

#include <math.h>

#include "common/base/mem.h"
#include "common/compute/backend.h"
#include "common/compute/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One function per op; NULL means unsupported. Arguments have been checked by ops.c. */
typedef struct backend_ops {
#define CF_OP_MEMBER(name, args) cf_err (*name)(backend * be, const args *a);
    CF_OPS(CF_OP_MEMBER)
#undef CF_OP_MEMBER
} backend_ops;

typedef enum weight_form { WEIGHT_LINEAR, WEIGHT_CONV, WEIGHT_CONV_F64 } weight_form;

/* What every backend knows of a packed weight. `data` and `impl` are the device's own layout. */
struct weight {
    weight *next; /* the backend's list; owned by it */
    weight_form form;
    int64_t n_out, k_in;    /* k_in: input channels, of all groups */
    int64_t kernel, groups; /* 1, 1 for linear */
    precision operands;
    unsigned kinds; /* GEMM_*_BIT: tiles a linear may run with */
    size_t bytes;
    void *data;    /* in the backend's kept memory */
    void *impl;    /* the device's own; freed by weight_close */
    bool tiled;    /* CPU: data is in tiles (cpu/tile_kernels.h) */
    float *scales; /* [n_out], kept memory: data holds int8, value = scale * int8; NULL: it does not */
    /* Of mapped weights; part_count 0: packed. */
    weight_part parts[WEIGHT_PARTS_MAX]; /* data borrowed until the backend closes */
    int part_count;
    weight_order order;
};

/* What a device implements besides ops. */
typedef struct backend_device {
    cf_err (*sync)(backend *be);
    cf_err (*upload)(backend *be, const void *host, tensor *dst);
    cf_err (*download)(backend *be, const tensor *src, void *host);
    cf_err (*zero)(backend *be, tensor *dst);
    cf_err (*copy)(backend *be, const tensor *src, tensor *dst);
    cf_err (*check_operands)(const backend *be, precision operands);
    cf_err (*pack_linear)(backend *be, const float *w, weight *out);
    cf_err (*pack_conv)(backend *be, const float *w, weight *out);
    cf_err (*pack_conv_f64)(backend *be, const double *w, weight *out);
    cf_err (*map)(backend *be, weight *out);      /* NULL: mapped weights are packed */
    void (*weight_close)(backend *be, weight *w); /* NULL: nothing to do */
    void (*close)(backend *be);                   /* the device's part of the object */
    /* All five NULL: tensors and lists lie in the host's arenas. */
    cf_err (*keep)(backend *be, size_t bytes, void **ret_dev); /* zeroed */
    cf_err (*take)(backend *be, size_t bytes, void **ret_dev);
    cf_err (*scratch_reserve)(backend *be, size_t bytes);
    void (*scratch_reset)(backend *be, size_t mark); /* before the host's arena is reset */
    cf_err (*list)(backend *be, const void *values, size_t bytes, const void **ret_dev); /* in scratch */
    /* All four NULL: memory of the host is what it is, and work is submitted each time. */
    cf_err (*keep_host)(backend *be, size_t bytes, void **ret_ptr);
    cf_err (*fetch)(backend *be, const tensor *src, void *kept_host);
    cf_err (*replay)(backend *be, backend_record **record, backend_submit_fn *submit, void *ctx);
    void (*record_close)(backend *be, backend_record *record);
    bool (*has_int8)(const backend *be); /* NULL: no */
} backend_device;

/* Kept memory comes in big pieces of address space; pages are used when touched. */
#define KEEP_BLOCK_BYTES ((size_t)64 << 20)

typedef struct keep_block {
    struct keep_block *next;
    arena memory;
} keep_block;

struct backend {
    const backend_ops *ops;       /* static */
    const backend_device *device; /* static */
    void *impl;                   /* the device's state, owned by it */
    arena scratch;
    keep_block *kept;
    weight *weights;
    size_t weight_bytes, table_bytes; /* table: of backend_keep */
    backend_record_counts records;
    int threads;
    char describe[128];
};

/* Zeroed, 64-byte aligned memory that lives as long as the backend. */
CF_MUST_CHECK cf_err backend_keep_bytes(backend *be, size_t bytes, void *ret_ptr);

/* Symmetrical int8 of an output channel: value = scale * [-127, 127]. A channel of zeros has scale 0. */
static inline float int8_scale(const float *values, int64_t count)
{
    float max = 0;
    for (int64_t k = 0; k < count; k++)
        max = fabsf(values[k]) > max ? fabsf(values[k]) : max;
    return max / 127.0f;
}

static inline int8_t int8_from_f32(float value, float scale)
{
    return scale > 0 ? (int8_t)lrintf(value / scale) : (int8_t)0;
}

/* Fills ops, device, impl, threads and describe of a zeroed backend. */
CF_MUST_CHECK /* backend_value_bytes on a CPU: as the fast backend opens on this machine. */
    size_t
    cpu_value_bytes(precision operands, unsigned kinds);

cf_err backend_cpu_open(const backend_config *cfg, backend *be);

/* The same for CUDA device `device`. CF_ERR_UNSUPPORTED: no such device, no driver, a build without CUDA. */
CF_MUST_CHECK cf_err backend_cuda_open(const backend_config *cfg, int device, backend *be);
CF_MUST_CHECK cf_err backend_cuda_probe(int device);
CF_MUST_CHECK cf_err backend_cuda_memory(int device, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes);
/* Workspace 32 MiB; ends of blocks of kept memory, below 64 MiB for the full models; the rest for the libraries. */
#define BACKEND_CUDA_LIBRARY_BYTES ((uint64_t)160 << 20)

#ifdef __cplusplus
}
#endif
#endif
