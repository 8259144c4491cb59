/*
 * memory.cu - device memory of the backend: what is kept, scratch, and host arrays that follow a call.
 *
 * The backend's thread. A stage reserves one segment of scratch for a step at capacity before it is ready, so a running
 * worker allocates nothing. A step that needs more gets further segments; when all scratch has been given back, the
 * next step begins with one segment as large as they were together. So no step meets what the batches before it left
 * lying in pieces, and scratch stays within a step's peak and what the last growth left at the ends of its segments.
 * Everything runs on one stream, so memory may be handed out again while work that read it is still queued.
 * Fails: CF_ERR_NOMEM naming what was wanted and what is free; CF_ERR_LIMIT (segments of one step); CF_ERR_DEVICE.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/compute/cuda/cuda_impl.cuh"

#define PIECE_BYTES ((size_t)2 << 20)  /* the first piece; what the driver hands out anyway */
#define GROWN_BYTES ((size_t)64 << 20) /* pieces double up to this */
#define ALONE_BYTES ((size_t)4 << 20)  /* kept tables from here on have blocks of their own: see cuda_keep */
#define MIB         1048576.0

/* Of the next piece: what is wanted, or twice the last one. */
static size_t piece_bytes(size_t wanted, size_t last_bytes)
{
    size_t bytes = last_bytes ? 2 * last_bytes : PIECE_BYTES;
    bytes = bytes < GROWN_BYTES ? bytes : GROWN_BYTES;
    return wanted > bytes ? wanted : bytes;
}

static size_t aligned(size_t bytes)
{
    return (bytes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

cf_err cuda_memory(cuda_state *cuda, size_t bytes, const char *what, unsigned char **ret_dev)
{
    void *dev = NULL;
    size_t free_bytes = 0, total_bytes = 0;
    CUDA_TRY(cuda_not_recorded(cuda, "allocation"));
    const cudaError_t status = fault_hit("cuda.malloc") ? cudaErrorMemoryAllocation : cudaMalloc(&dev, bytes);
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* not sticky */
        (void)cudaMemGetInfo(&free_bytes, &total_bytes);
        return err_set(CF_ERR_NOMEM, "cuda:%d: %s needs %.1f MiB, %.1f of %.1f MiB are free, %.1f are in use here",
                       cuda->device, what, (double)bytes / MIB, (double)free_bytes / MIB, (double)total_bytes / MIB,
                       (double)cuda->device_bytes / MIB);
    }
    CUDA_TRY(cuda_status(status, what));
    cuda->device_bytes += bytes;
    cuda->generation++;
    *ret_dev = (unsigned char *)dev;
    return CF_OK;
}

static size_t whole_pieces(size_t bytes)
{
    return (bytes + PIECE_BYTES - 1) / PIECE_BYTES * PIECE_BYTES;
}

/* A new block of kept memory with room for `wanted`. */
static cf_err add_block(cuda_state *cuda, size_t wanted, cuda_block **ret_block)
{
    cuda_block *block;
    CUDA_TRY(mem_alloc(1, sizeof *block, &block));
    if (wanted < ALONE_BYTES)
        cuda->shared_bytes = piece_bytes(wanted, cuda->shared_bytes);
    block->bytes = wanted < ALONE_BYTES ? cuda->shared_bytes : whole_pieces(wanted);
    const cf_err err = cuda_memory(cuda, block->bytes, "model", &block->dev);
    if (err != CF_OK) {
        mem_free(block);
        return err;
    }
    block->next = cuda->kept;
    cuda->kept = *ret_block = block;
    return CF_OK;
}

/* Any block with room, or a new one: shared by small tables, of its own for a large one, which would leave the end of
 * a shared one to nobody. So ends stay below what the memory plan allows them (BACKEND_CUDA_LIBRARY_BYTES). */
cf_err cuda_keep(backend *be, size_t bytes, void **ret_dev)
{
    cuda_state *cuda = cuda_of(be);
    const size_t wanted = aligned(bytes ? bytes : 1);
    cuda_block *block = cuda->kept;
    while (block && wanted > block->bytes - block->used_bytes)
        block = block->next;
    if (!block)
        CUDA_TRY(add_block(cuda, wanted, &block));
    unsigned char *dev = block->dev + block->used_bytes;
    CUDA_CALL(cudaMemsetAsync(dev, 0, wanted, cuda->stream));
    block->used_bytes += wanted;
    *ret_dev = dev;
    return CF_OK;
}

cf_err cuda_keep_host(backend *be, size_t bytes, void **ret_ptr)
{
    cuda_state *cuda = cuda_of(be);
    cuda_pinned *piece;
    CUDA_TRY(mem_alloc(1, sizeof *piece, &piece));
    const cf_err err = cuda_status(cudaMallocHost(&piece->host, bytes ? bytes : 1), "memory of the host");
    if (err != CF_OK) {
        mem_free(piece);
        return err;
    }
    memset(piece->host, 0, bytes);
    piece->next = cuda->pinned;
    cuda->pinned = piece;
    *ret_ptr = piece->host;
    return CF_OK;
}

/* The first offset from `off` on behind which a segment has room, or the end of all segments. */
static size_t find_room(const cuda_state *cuda, size_t off, size_t wanted, const cuda_segment **ret_segment)
{
    *ret_segment = NULL;
    for (int i = 0; i < cuda->segment_count; i++) {
        const cuda_segment *s = &cuda->segments[i];
        const size_t end = s->first_off + s->bytes;
        const size_t from = off > s->first_off ? off : s->first_off;
        if (from < end && wanted <= end - from) {
            *ret_segment = s;
            return from;
        }
        if (off < end)
            off = end;
    }
    return off;
}

static size_t scratch_bytes(const cuda_state *cuda)
{
    size_t sum = 0;
    for (int i = 0; i < cuda->segment_count; i++)
        sum += cuda->segments[i].bytes;
    return sum;
}

/* A segment behind the others. They grow with their number, so that the table holds any step a card has room for. */
static cf_err add_segment(cuda_state *cuda, size_t off, size_t wanted)
{
    const int count = cuda->segment_count;
    const size_t share = aligned(scratch_bytes(cuda) / 8);
    cuda_segment fresh = {NULL, off, piece_bytes(wanted, count > 0 ? cuda->segments[count - 1].bytes : 0)};
    if (count == CUDA_SEGMENTS_MAX)
        return err_set(CF_ERR_LIMIT,
                       "cuda:%d: scratch of one step: %zu bytes more after %d segments of %.1f MiB, expected at most "
                       "%d segments",
                       cuda->device, wanted, count, (double)scratch_bytes(cuda) / MIB, CUDA_SEGMENTS_MAX);
    if (count > 0 && fresh.bytes < share)
        fresh.bytes = share;
    CUDA_TRY(cuda_memory(cuda, fresh.bytes, "scratch", &fresh.dev));
    cuda->segments[cuda->segment_count++] = fresh;
    return CF_OK;
}

/* One segment of `bytes` in place of all; nothing of them may be in use by the host's side. */
static cf_err replace_segments(cuda_state *cuda, size_t bytes)
{
    CUDA_TRY(cuda_wait(cuda));
    while (cuda->segment_count > 0) {
        const cuda_segment *last = &cuda->segments[cuda->segment_count - 1];
        CUDA_CALL(cudaFree(last->dev));
        cuda->device_bytes -= last->bytes;
        cuda->generation++;
        cuda->segment_count--;
    }
    cuda->list_count = 0;
    return add_segment(cuda, 0, bytes);
}

cf_err cuda_scratch_reserve(backend *be, size_t bytes)
{
    cuda_state *cuda = cuda_of(be);
    const size_t held = scratch_bytes(cuda), wanted = whole_pieces(bytes);
    CF_ASSERT(be->scratch.used_bytes == 0);
    return cuda->segment_count == 1 && held >= wanted ? CF_OK : replace_segments(cuda, held > wanted ? held : wanted);
}

cf_err cuda_take(backend *be, size_t bytes, void **ret_dev)
{
    cuda_state *cuda = cuda_of(be);
    const size_t wanted = aligned(bytes ? bytes : 1);
    const cuda_segment *segment;
    const bool in_pieces = cuda->scratch_given_back && cuda->segment_count > 1;
    cuda->scratch_given_back = false;
    if (in_pieces && !cuda->recording)
        CUDA_TRY(replace_segments(cuda, scratch_bytes(cuda)));
    const size_t before = be->scratch.used_bytes, off = find_room(cuda, aligned(before), wanted, &segment);
    void *host;
    if (off > be->scratch.reserved_bytes)
        return err_set(CF_ERR_NOMEM, "cuda:%d: scratch of %zu bytes is exhausted", cuda->device,
                       be->scratch.reserved_bytes);
    be->scratch.used_bytes = off;
    cf_err err = arena_take(&be->scratch, wanted, &host);
    if (err == CF_OK && !segment)
        err = add_segment(cuda, off, wanted);
    if (err != CF_OK) {
        be->scratch.used_bytes = before;
        return err;
    }
    if (!segment)
        segment = &cuda->segments[cuda->segment_count - 1];
    *ret_dev = segment->dev + (off - segment->first_off);
    return CF_OK;
}

void cuda_scratch_reset(backend *be, size_t mark)
{
    cuda_state *cuda = cuda_of(be);
    int left = 0;
    for (int i = 0; i < cuda->list_count; i++)
        if (cuda->lists[i].off + cuda->lists[i].bytes <= mark)
            cuda->lists[left++] = cuda->lists[i];
    cuda->list_count = left;
    cuda->scratch_given_back = cuda->scratch_given_back || mark == 0;
}

cf_err cuda_list_upload(backend *be, const void *values, size_t bytes, const void **ret_dev)
{
    cuda_state *cuda = cuda_of(be);
    void *dev;
    CUDA_TRY(cuda_not_recorded(cuda, "a list of the host's"));
    for (int i = 0; i < cuda->list_count; i++) {
        const cuda_list *l = &cuda->lists[i];
        if (l->bytes == bytes && memcmp(be->scratch.base + l->off, values, bytes) == 0) {
            *ret_dev = l->dev;
            return CF_OK;
        }
    }
    CUDA_TRY(cuda_take(be, bytes, &dev));
    const size_t off = be->scratch.used_bytes - aligned(bytes ? bytes : 1);
    if (bytes > 0)
        memcpy(be->scratch.base + off, values, bytes); /* what the list said, for the next one */
    CUDA_TRY(cuda_send(cuda, values, dev, bytes));
    if (cuda->list_count < CUDA_LISTS_MAX) /* beyond that a list is uploaded each time */
        cuda->lists[cuda->list_count++] = cuda_list{off, bytes, dev};
    *ret_dev = dev;
    return CF_OK;
}
