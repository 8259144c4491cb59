/*
 * backend.c - the part of a backend that is the same on every device: choice of device, scratch, kept memory, weights.
 *
 * Called by the one thread that owns the backend. Owns the arenas and the list of weights.
 * Fails: CF_ERR_UNSUPPORTED (device, operand type), CF_ERR_NOMEM, CF_ERR_INVALID (thread count). Asserts on shapes.
 */
#include "common/compute/backend.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/device.h"
#include "common/base/process.h"
#include "common/compute/backend_impl.h"

#define THREADS_MAX 1024

/* Address space for what a device's scratch leaves unused at the ends of its segments. */
#define SEGMENT_SLACK_BYTES ((size_t)512 << 20)

cf_err backend_open(const backend_config *cfg, backend **ret_backend)
{
    cf_err err;
    backend *be = NULL;
    int device = DEVICE_CPU;

    if (cfg->threads < 0 || cfg->threads > THREADS_MAX)
        FAIL(CF_ERR_INVALID, "backend: %d threads, expected 0 (all) to %d", cfg->threads, THREADS_MAX);
    TRY(device_parse(cfg->device, &device));
    TRY(mem_alloc(1, sizeof *be, &be));
    const size_t scratch = cfg->scratch_bytes ? cfg->scratch_bytes : 4096;
    TRY(arena_open(device < 0 ? scratch : 2 * scratch + SEGMENT_SLACK_BYTES, &be->scratch));
    if (device < 0)
        TRY(backend_cpu_open(cfg, be));
    else
        TRY(backend_cuda_open(cfg, device, be));
    *ret_backend = be;
    be = NULL;
out:
    backend_close(be);
    return err;
}

cf_err backend_check_device(const char *device)
{
    int number;
    const cf_err err = device_parse(device, &number);
    return err == CF_OK && number >= 0 ? backend_cuda_probe(number) : err;
}

cf_err backend_memory(const char *device, uint64_t *ret_free_bytes, uint64_t *ret_total_bytes)
{
    int number;
    const cf_err err = device_parse(device, &number);
    if (err != CF_OK)
        return err;
    if (number != DEVICE_CPU)
        return backend_cuda_memory(number, ret_free_bytes, ret_total_bytes);
    return process_memory_left(ret_free_bytes, ret_total_bytes);
}

uint64_t backend_library_bytes(const char *device)
{
    int number;
    return device_parse(device, &number) == CF_OK && number != DEVICE_CPU ? BACKEND_CUDA_LIBRARY_BYTES : 0;
}

size_t backend_value_bytes(const char *device, precision operands, unsigned kinds)
{
    int number;
    if (device_parse(device, &number) == CF_OK && number == DEVICE_CPU)
        return cpu_value_bytes(operands, kinds);
    return operands == PRECISION_F32 ? sizeof(float) : sizeof(uint16_t);
}

void backend_close(backend *be)
{
    if (!be)
        return;
    while (be->weights) {
        weight *w = be->weights;
        be->weights = w->next;
        if (be->device->weight_close)
            be->device->weight_close(be, w);
        mem_free(w);
    }
    if (be->device)
        be->device->close(be);
    while (be->kept) {
        keep_block *block = be->kept;
        be->kept = block->next;
        arena_close(&block->memory);
        mem_free(block);
    }
    arena_close(&be->scratch);
    mem_free(be);
}

const char *backend_describe(const backend *be)
{
    return be->describe;
}

int backend_threads(const backend *be)
{
    return be->threads;
}

cf_err backend_sync(backend *be)
{
    return be->device->sync(be);
}

cf_err backend_keep_bytes(backend *be, size_t bytes, void *ret_ptr)
{
    cf_err err;
    keep_block *block = be->kept;

    if (!block || bytes + 64 > block->memory.reserved_bytes - block->memory.used_bytes) {
        keep_block *fresh;
        TRY(mem_alloc(1, sizeof *fresh, &fresh));
        const size_t wanted = bytes + 64;
        err = arena_open(wanted > KEEP_BLOCK_BYTES ? wanted : KEEP_BLOCK_BYTES, &fresh->memory);
        if (err != CF_OK) {
            mem_free(fresh);
            goto out;
        }
        fresh->next = be->kept;
        be->kept = block = fresh;
    }
    TRY(arena_take(&block->memory, bytes, ret_ptr));
out:
    return err;
}

/* A tensor of these dims without memory. */
static tensor shape_of(dtype type, int rank, const int64_t *dims)
{
    CF_ASSERT(rank >= 1 && rank <= TENSOR_RANK_MAX);
    tensor t = {.type = type, .rank = rank};
    memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    return t;
}

cf_err backend_keep(backend *be, dtype type, int rank, const int64_t *dims, tensor *ret_tensor)
{
    tensor t = shape_of(type, rank, dims);
    cf_err err;
    if (be->device->keep)
        TRY(be->device->keep(be, tensor_bytes(&t), &t.data));
    else
        TRY(backend_keep_bytes(be, tensor_bytes(&t), &t.data));
    be->table_bytes += tensor_bytes(&t);
    *ret_tensor = t;
out:
    return err;
}

cf_err backend_take(backend *be, dtype type, int rank, const int64_t *dims, tensor *ret_tensor)
{
    tensor t = shape_of(type, rank, dims);
    cf_err err;
    if (be->device->take)
        TRY(be->device->take(be, tensor_bytes(&t), &t.data));
    else
        TRY(arena_take(&be->scratch, tensor_bytes(&t), &t.data));
    *ret_tensor = t;
out:
    return err;
}

cf_err backend_take_host(backend *be, size_t bytes, void *ret_ptr)
{
    return arena_take(&be->scratch, bytes, ret_ptr);
}

cf_err backend_take_2d(backend *be, dtype type, int64_t d0, int64_t d1, tensor *ret_tensor)
{
    return backend_take(be, type, 2, (const int64_t[]){d0, d1}, ret_tensor);
}

cf_err backend_scratch_reserve(backend *be, size_t bytes)
{
    return be->device->scratch_reserve ? be->device->scratch_reserve(be, bytes) : CF_OK;
}

size_t backend_scratch_mark(const backend *be)
{
    return arena_mark(&be->scratch);
}

void backend_scratch_reset(backend *be, size_t mark)
{
    if (be->device->scratch_reset)
        be->device->scratch_reset(be, mark);
    arena_reset(&be->scratch, mark);
}

size_t backend_scratch_peak_bytes(const backend *be)
{
    return be->scratch.peak_bytes;
}

cf_err backend_upload(backend *be, const void *host, tensor *dst)
{
    return be->device->upload(be, host, dst);
}

cf_err backend_download(backend *be, const tensor *src, void *host)
{
    return be->device->download(be, src, host);
}

bool backend_is_device(const backend *be)
{
    return be->device->keep != NULL;
}

cf_err backend_keep_host(backend *be, size_t bytes, void *ret_ptr)
{
    return be->device->keep_host ? be->device->keep_host(be, bytes, ret_ptr) : backend_keep_bytes(be, bytes, ret_ptr);
}

cf_err backend_fetch(backend *be, const tensor *src, void *kept_host)
{
    return be->device->fetch ? be->device->fetch(be, src, kept_host) : be->device->download(be, src, kept_host);
}

cf_err backend_replay(backend *be, backend_record **record, backend_submit_fn *submit, void *ctx)
{
    return be->device->replay ? be->device->replay(be, record, submit, ctx) : submit(ctx);
}

void backend_record_close(backend *be, backend_record *record)
{
    if (record)
        be->device->record_close(be, record);
}

backend_record_counts backend_records(const backend *be)
{
    return be->records;
}

cf_err backend_zero(backend *be, tensor *dst)
{
    return be->device->zero(be, dst);
}

cf_err backend_copy(backend *be, const tensor *src, tensor *dst)
{
    CF_ASSERT(src->type == dst->type);
    CF_ASSERT(tensor_count(src) == tensor_count(dst));
    return be->device->copy(be, src, dst);
}

cf_err backend_rows(backend *be, const int32_t *lengths, int32_t count, op_rows *ret_rows)
{
    cf_err err;
    int32_t *offs;

    CF_ASSERT(count >= 0);
    TRY(arena_take(&be->scratch, ((size_t)count + 1) * sizeof *offs, &offs));
    offs[0] = 0;
    for (int32_t b = 0; b < count; b++) {
        CF_ASSERT(lengths[b] >= 0);
        CF_ASSERT(!__builtin_add_overflow(offs[b], lengths[b], &offs[b + 1]));
    }
    const void *dev = offs;
    if (be->device->list)
        TRY(be->device->list(be, offs, ((size_t)count + 1) * sizeof *offs, &dev));
    *ret_rows = (op_rows){.count = count, .offs = offs, .dev = dev};
out:
    return err;
}

/* A new weight of this shape, not yet in the backend's list. */
static cf_err weight_new(const backend *be, const weight *shape, weight **ret_weight)
{
    cf_err err;
    weight *w;

    CF_ASSERT(shape->n_out > 0 && shape->k_in > 0 && shape->kernel > 0 && shape->groups > 0);
    CF_ASSERT(shape->n_out % shape->groups == 0 && shape->k_in % shape->groups == 0);
    TRY(be->device->check_operands(be, shape->operands));
    TRY(mem_alloc(1, sizeof *w, &w));
    *w = *shape;
    *ret_weight = w;
out:
    return err;
}

/* Hands w to the backend when it was packed, drops it when not. */
static cf_err weight_finish(backend *be, cf_err err, weight *w, weight **ret_weight)
{
    if (err != CF_OK) {
        if (be->device->weight_close)
            be->device->weight_close(be, w);
        mem_free(w);
        return err;
    }
    w->next = be->weights;
    be->weights = w;
    be->weight_bytes += w->bytes;
    *ret_weight = w;
    return CF_OK;
}

cf_err backend_pack_linear(backend *be, const float *w, int64_t n_out, int64_t k_in, precision operands, unsigned kinds,
                           weight **ret_weight)
{
    cf_err err;
    weight *packed;
    const weight shape = {.form = WEIGHT_LINEAR,
                          .n_out = n_out,
                          .k_in = k_in,
                          .kernel = 1,
                          .groups = 1,
                          .operands = operands,
                          .kinds = kinds};

    CF_ASSERT((kinds & (GEMM_BULK_BIT | GEMM_DECODE_BIT)) != 0);
    CF_ASSERT((kinds & ~(GEMM_BULK_BIT | GEMM_DECODE_BIT | GEMM_INT8_BIT)) == 0);
    if (kinds & GEMM_INT8_BIT) {
        CF_ASSERT(kinds & GEMM_DECODE_BIT && operands == PRECISION_BF16);
        if (!backend_has_int8(be))
            FAIL(CF_ERR_UNSUPPORTED, "weights in int8: expected a CPU with AVX-512, found %s", backend_describe(be));
    }
    TRY(weight_new(be, &shape, &packed));
    TRY(weight_finish(be, be->device->pack_linear(be, w, packed), packed, ret_weight));
out:
    return err;
}

cf_err backend_pack_conv(backend *be, const float *w, int64_t c_out, int64_t c_in, int64_t kernel, int64_t groups,
                         precision operands, weight **ret_weight)
{
    cf_err err;
    weight *packed;
    const weight shape = {.form = WEIGHT_CONV,
                          .n_out = c_out,
                          .k_in = c_in,
                          .kernel = kernel,
                          .groups = groups,
                          .operands = operands,
                          .kinds = GEMM_BULK_BIT};

    TRY(weight_new(be, &shape, &packed));
    TRY(weight_finish(be, be->device->pack_conv(be, w, packed), packed, ret_weight));
out:
    return err;
}

cf_err backend_pack_conv_f64(backend *be, const double *w, int64_t c_out, int64_t c_in, int64_t kernel,
                             weight **ret_weight)
{
    cf_err err;
    weight *packed;
    const weight shape = {.form = WEIGHT_CONV_F64, .n_out = c_out, .k_in = c_in, .kernel = kernel, .groups = 1};

    TRY(weight_new(be, &shape, &packed));
    TRY(weight_finish(be, be->device->pack_conv_f64(be, w, packed), packed, ret_weight));
out:
    return err;
}

/* The parts as one array [n_out, k_in], for a device that packs. */
static cf_err gather_parts(const weight *shape, float **ret_values)
{
    cf_err err;
    float *values = NULL;
    int64_t first = 0;

    TRY(mem_alloc((size_t)(shape->n_out * shape->k_in * shape->kernel), sizeof *values, &values));
    for (int p = 0; p < shape->part_count; p++) {
        const unsigned char *from = shape->parts[p].data;
        const int64_t n_out = shape->parts[p].n_out, row = shape->k_in * shape->kernel;
        if (shape->order == ORDER_OUT_IN)
            memcpy(values + first * row, from, (size_t)(n_out * row) * sizeof *values);
        for (int64_t k = 0; k < row && shape->order == ORDER_IN_OUT; k++)
            for (int64_t n = 0; n < n_out; n++)
                memcpy(values + (first + n) * row + k, from + (size_t)(k * n_out + n) * sizeof *values, sizeof *values);
        first += n_out;
    }
    *ret_values = values;
out:
    return err;
}

static cf_err weight_map(backend *be, const weight *shape, weight **ret_weight)
{
    cf_err err;
    weight *mapped;
    float *values = NULL;

    if (be->device->map) {
        TRY(weight_new(be, shape, &mapped));
        TRY(weight_finish(be, be->device->map(be, mapped), mapped, ret_weight));
        goto out;
    }
    TRY(gather_parts(shape, &values));
    if (shape->form == WEIGHT_LINEAR)
        TRY(backend_pack_linear(be, values, shape->n_out, shape->k_in, shape->operands, shape->kinds, ret_weight));
    else
        TRY(backend_pack_conv(be, values, shape->n_out, shape->k_in, shape->kernel, 1, shape->operands, ret_weight));
out:
    mem_free(values);
    return err;
}

cf_err backend_map_linear(backend *be, const weight_part *parts, int part_count, weight_order order, int64_t k_in,
                          weight **ret_weight)
{
    weight shape = {.form = WEIGHT_LINEAR,
                    .k_in = k_in,
                    .kernel = 1,
                    .groups = 1,
                    .operands = PRECISION_F32,
                    .kinds = GEMM_BULK_BIT,
                    .part_count = part_count,
                    .order = order};

    CF_ASSERT(part_count >= 1 && part_count <= WEIGHT_PARTS_MAX);
    for (int p = 0; p < part_count; p++) {
        CF_ASSERT(parts[p].n_out > 0);
        shape.parts[p] = parts[p];
        shape.n_out += parts[p].n_out;
    }
    return weight_map(be, &shape, ret_weight);
}

cf_err backend_map_conv(backend *be, const void *w, int64_t c_out, int64_t c_in, int64_t kernel, weight **ret_weight)
{
    const weight shape = {.form = WEIGHT_CONV,
                          .n_out = c_out,
                          .k_in = c_in,
                          .kernel = kernel,
                          .groups = 1,
                          .operands = PRECISION_F32,
                          .kinds = GEMM_BULK_BIT,
                          .parts = {{.data = w, .n_out = c_out}},
                          .part_count = 1,
                          .order = ORDER_OUT_IN};
    return weight_map(be, &shape, ret_weight);
}

size_t backend_kept_bytes(const backend *be)
{
    return be->weight_bytes + be->table_bytes;
}

bool backend_has_int8(const backend *be)
{
    return be->device->has_int8 && be->device->has_int8(be);
}

size_t backend_weight_bytes(const backend *be)
{
    return be->weight_bytes;
}
