/*
 * backend.h - a place where ops run: its memory, its packed weights, its scratch arena, its threads or stream.
 *
 * One backend belongs to one thread. Results exist on return on the CPU; on a device after backend_sync or a download.
 * Two CPU variants share this interface: `naive`, plain loops that are the truth of the op suite, and `fast`.
 */
#ifndef CF_COMPUTE_BACKEND_H
#define CF_COMPUTE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/compute/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct backend backend;
typedef struct weight weight; /* a matrix or filter bank in the backend's own layout */

/* Of GEMM operands; sums are f32. A pair is bf16 of the value and bf16 of what that left: three products, errors of
 * 2^-16 of a row instead of 2^-8. Where there is no unit for it that is f32. */
typedef enum precision { PRECISION_F32, PRECISION_BF16, PRECISION_FP16, PRECISION_BF16_PAIR } precision;

typedef struct backend_config {
    const char *device;   /* "cpu" or "cuda:N" */
    bool naive;           /* plain loops: the reference variant */
    int threads;          /* 0: as many as this process may run on */
    size_t scratch_bytes; /* address space reserved for backend_scratch; pages are used when touched */
} backend_config;

/* CF_ERR_UNSUPPORTED names a device this build does not have. */
CF_MUST_CHECK cf_err backend_open(const backend_config *cfg, backend **ret_backend);
void backend_close(backend *be); /* NULL is fine */

/* Whether this build and host have the device; takes no memory of it. */
CF_MUST_CHECK cf_err backend_check_device(const char *device);

/* Free and total memory of the device; of the CPU: what this process may still take (free memory of the host and limit
 * of its control group). Begins to use the device. */
CF_MUST_CHECK cf_err backend_memory(const char *device, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes);

/* What a backend of the device takes besides the memory it is asked for: workspace of the products, ends of pieces. */
uint64_t backend_library_bytes(const char *device);

/* Bytes that a packed value of a weight takes, padding aside. kinds: GEMM_*_BIT, as for backend_pack_linear. */
size_t backend_value_bytes(const char *device, precision operands, unsigned kinds);

/* "cpu fast avx2 f32 threads=2": what was found, for the READY line. */
const char *backend_describe(const backend *be);
int backend_threads(const backend *be);

/* Waits for all submitted work and reports its errors. A no-op on the CPU. */
CF_MUST_CHECK cf_err backend_sync(backend *be);

/* Memory that lives as long as the backend (tables, caches). Zeroed. */
CF_MUST_CHECK cf_err backend_keep(backend *be, dtype type, int rank, const int64_t *dims, tensor *ret_tensor);

/* Scratch of one step: not zeroed, freed by backend_scratch_reset to a mark. */
CF_MUST_CHECK cf_err backend_take(backend *be, dtype type, int rank, const int64_t *dims, tensor *ret_tensor);
CF_MUST_CHECK cf_err backend_take_2d(backend *be, dtype type, int64_t d0, int64_t d1, tensor *ret_tensor);
/* As backend_take, in memory that the host reads and writes, whatever the device. */
CF_MUST_CHECK cf_err backend_take_host(backend *be, size_t bytes, void *ret_ptr);
/* So much scratch is there from now on: a device takes the memory at once, so that it lacks before a stage is ready and
 * not in a step. None may be in use. Nothing to do on a CPU. */
CF_MUST_CHECK cf_err backend_scratch_reserve(backend *be, size_t bytes);
size_t backend_scratch_mark(const backend *be);
void backend_scratch_reset(backend *be, size_t mark);
size_t backend_scratch_peak_bytes(const backend *be);

CF_MUST_CHECK cf_err backend_upload(backend *be, const void *host, tensor *dst);   /* all of dst */
CF_MUST_CHECK cf_err backend_download(backend *be, const tensor *src, void *host); /* all of src; synchronises */
CF_MUST_CHECK cf_err backend_zero(backend *be, tensor *dst);
CF_MUST_CHECK cf_err backend_copy(backend *be, const tensor *src, tensor *dst); /* same count and type */

/* Whether tensors lie in memory that the host does not read. */
bool backend_is_device(const backend *be);

/* Memory of the host that lives as long as the backend and into which the device writes without being waited for. */
CF_MUST_CHECK cf_err backend_keep_host(backend *be, size_t bytes, void *ret_ptr);
/* As backend_download of all of src into such memory, without the wait: it is there after backend_sync. */
CF_MUST_CHECK cf_err backend_fetch(backend *be, const tensor *src, void *kept_host);

/*
 * Work that is the same each time, but for what its tensors hold: a device records it and replays the record with one
 * call. `submit` submits the work through ops, backend_take, backend_copy, backend_zero and backend_fetch alone, the
 * same each time, from the same mark of scratch on; nothing in it may come from the host.
 */
typedef struct backend_record backend_record;
typedef cf_err backend_submit_fn(void *ctx);

/*
 * Does the work once. The first call for *record (NULL) submits it and then records it, the following ones replay it;
 * when the backend has taken device memory since, it is submitted and recorded again. A device that refuses to record
 * is told in the log (cuda.record), and the work is submitted each time. On a CPU there are no records: each call
 * submits.
 */
CF_MUST_CHECK cf_err backend_replay(backend *be, backend_record **record, backend_submit_fn *submit, void *ctx);
void backend_record_close(backend *be, backend_record *record); /* NULL is fine; before the backend closes */

/* Calls of backend_replay on a device, each in one of three. Zero on a CPU. */
typedef struct backend_record_counts {
    uint64_t recorded, replayed; /* submitted and recorded; replays */
    uint64_t eager;              /* submitted, and not recorded: recording was refused */
} backend_record_counts;
backend_record_counts backend_records(const backend *be);

/*
 * Packed rows: `count` sequences laid one behind the other along the leading dimension. Sequence b is rows
 * [offs[b], offs[b+1]). `offs` is host memory, `dev` the backend's copy (the same pointer on the CPU).
 */
typedef struct op_rows {
    int32_t count;
    const int32_t *offs; /* [count + 1], offs[0] = 0; in scratch */
    const int32_t *dev;
} op_rows;

/* Builds offsets from lengths, in scratch. Lengths may be zero. */
CF_MUST_CHECK cf_err backend_rows(backend *be, const int32_t *lengths, int32_t count, op_rows *ret_rows);

static inline int32_t rows_total(const op_rows *r)
{
    return r->offs[r->count];
}

static inline int32_t rows_length(const op_rows *r, int32_t seq_idx)
{
    return r->offs[seq_idx + 1] - r->offs[seq_idx];
}

/*
 * How many rows a GEMM tile has. Never chosen by the batch: a kind belongs to a place in the model, so that a row's
 * bytes do not depend on its neighbours. Short tiles are padded.
 */
typedef enum gemm_kind { GEMM_BULK, GEMM_DECODE } gemm_kind; /* 128 rows; 16 rows */

#define GEMM_BULK_BIT   1u
#define GEMM_DECODE_BIT 2u
/* With the two above and bf16 operands: weights are kept as int8 with one scale for each output channel. */
#define GEMM_INT8_BIT 4u

/* Whether this backend multiplies by such weights. */
bool backend_has_int8(const backend *be);

/* Packs y = x W^T: w is [n_out, k_in] f32 on the host, not needed afterwards. `kinds` says with which tiles it will
 * run. The weight lives until the backend closes. */
CF_MUST_CHECK cf_err backend_pack_linear(backend *be, const float *w, int64_t n_out, int64_t k_in, precision operands,
                                         unsigned kinds, weight **ret_weight);

/* Packs a filter bank [c_out, c_in / groups, kernel], as torch stores it. */
CF_MUST_CHECK cf_err backend_pack_conv(backend *be, const float *w, int64_t c_out, int64_t c_in, int64_t kernel,
                                       int64_t groups, precision operands, weight **ret_weight);
CF_MUST_CHECK cf_err backend_pack_conv_f64(backend *be, const double *w, int64_t c_out, int64_t c_in, int64_t kernel,
                                           weight **ret_weight);

/* One piece of a matrix that lies in somebody else's memory. */
typedef struct weight_part {
    const void *data; /* f32, little-endian, any alignment */
    int64_t n_out;
} weight_part;

#define WEIGHT_PARTS_MAX 4

/* How a matrix lies there: [k_in, n_out] as ONNX keeps operands of MatMul, or [n_out, k_in] as torch keeps layers. */
typedef enum weight_order { ORDER_IN_OUT, ORDER_OUT_IN } weight_order;

/*
 * For weights that are used once: nothing is packed ahead; a product packs what it needs, in scratch, and forgets it.
 * The parts' bytes (a mapped file) have to stay until the backend closes. f32 operands, GEMM_BULK. The parts stand
 * side by side: y = [x W_0^T | x W_1^T | ...]. A backend without such weights packs them ahead. Results are those of
 * packed weights of the same values on the engine that multiplies mapped ones.
 */
CF_MUST_CHECK cf_err backend_map_linear(backend *be, const weight_part *parts, int part_count, weight_order order,
                                        int64_t k_in, weight **ret_weight);
/* A filter bank [c_out, c_in, kernel] that stays where it is. */
CF_MUST_CHECK cf_err backend_map_conv(backend *be, const void *w, int64_t c_out, int64_t c_in, int64_t kernel,
                                      weight **ret_weight);

size_t backend_weight_bytes(const backend *be); /* sum over all packed weights */
size_t backend_kept_bytes(const backend *be);   /* those and backend_keep */

#ifdef __cplusplus
}
#endif
#endif
