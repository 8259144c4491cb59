/*
 * outbox_cuda_ipc.c - device memory shared by CUDA's handles.
 *
 * The keeper's thread makes and frees, a worker's thread opens and closes. Rules of CUDA that shape it: a handle names
 * a whole allocation, so each outbox is one of its own, rounded to MEMORY_ALIGN; the maker cannot open its own handle;
 * an importer that opens a handle twice gets one mapping, counted; freeing before importers have closed is undefined:
 * the keeper frees when told that they have.
 * Fails: CF_ERR_UNSUPPORTED, CF_ERR_NOMEM, CF_ERR_GONE, CF_ERR_DEVICE, CF_ERR_INVALID (text of a handle).
 */
#include "common/transport/outbox_cuda_ipc.h"

#include <cuda_runtime_api.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/mem.h"
#include "common/transport/outbox_impl.h"

#define MEMORY_ALIGN ((uint64_t)2 << 20) /* smaller allocations share a block of the driver, and the handle with it */

struct outbox_cuda_memory {
    void *dev; /* owned */
    int device;
};

_Static_assert(sizeof(cudaIpcMemHandle_t) == OUTBOX_HANDLE_BYTES, "a handle has 64 bytes");

static cf_err status_of(cudaError_t status, const char *what)
{
    if (status == cudaSuccess)
        return CF_OK;
    (void)cudaGetLastError();
    const cf_err code = status == cudaErrorMemoryAllocation        ? CF_ERR_NOMEM
                        : status == cudaErrorMapBufferObjectFailed ? CF_ERR_GONE
                        : status == cudaErrorNotSupported          ? CF_ERR_UNSUPPORTED
                                                                   : CF_ERR_DEVICE;
    return err_set(code, "outbox: %s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

cf_err outbox_cuda_probe(int device)
{
    outbox_cuda_memory *memory;
    outbox_handle handle;
    const cf_err err = outbox_cuda_make(device, MEMORY_ALIGN, &memory, &handle);
    if (err == CF_OK)
        outbox_cuda_free(memory);
    return err == CF_OK || err == CF_ERR_NOMEM
               ? err
               : err_context(err_set(CF_ERR_UNSUPPORTED, "%s", err_text()),
                             "device cuda:%d cannot share memory between processes", device);
}

cf_err outbox_cuda_make(int device, uint64_t bytes, outbox_cuda_memory **ret_memory, outbox_handle *ret_handle)
{
    cf_err err;
    cudaIpcMemHandle_t handle;
    outbox_cuda_memory *memory = NULL;
    const size_t rounded = (size_t)((bytes + MEMORY_ALIGN - 1) / MEMORY_ALIGN * MEMORY_ALIGN);
    TRY(mem_alloc(1, sizeof *memory, &memory));
    memory->device = device;
    if (fault_hit("outbox.make"))
        FAIL(CF_ERR_NOMEM, "outbox: fault point outbox.make");
    TRY(status_of(cudaSetDevice(device), "device"));
    TRY(status_of(cudaMalloc(&memory->dev, rounded), "exchange memory"));
    TRY(status_of(cudaMemset(memory->dev, 0, rounded), "clearing exchange memory"));
    TRY(status_of(cudaDeviceSynchronize(), "clearing exchange memory"));
    TRY(status_of(cudaIpcGetMemHandle(&handle, memory->dev), "handle of exchange memory"));
    memcpy(ret_handle->bytes, &handle, sizeof handle);
    *ret_memory = memory;
    memory = NULL;
out:
    outbox_cuda_free(memory);
    return err;
}

void outbox_cuda_free(outbox_cuda_memory *memory)
{
    if (!memory)
        return;
    if (memory->dev) {
        (void)cudaSetDevice(memory->device);
        (void)cudaFree(memory->dev);
    }
    mem_free(memory);
}

static void release(outbox *box)
{
    (void)cudaIpcCloseMemHandle(box->base);
}

cf_err outbox_cuda_open(int device, uint32_t outbox_id, const outbox_handle *handle, uint64_t bytes,
                        outbox **ret_outbox)
{
    cf_err err;
    cudaIpcMemHandle_t theirs;
    void *dev;
    outbox *box = NULL;
    TRY(mem_alloc(1, sizeof *box, &box));
    memcpy(&theirs, handle->bytes, sizeof theirs);
    if (fault_hit("outbox.open"))
        FAIL(CF_ERR_GONE, "outbox %u: fault point outbox.open", outbox_id);
    TRY(status_of(cudaSetDevice(device), "device"));
    err = status_of(cudaIpcOpenMemHandle(&dev, theirs, cudaIpcMemLazyEnablePeerAccess), "opening exchange memory");
    if (err != CF_OK) {
        err = err_context(err, "outbox %u", outbox_id);
        goto out;
    }
    box->outbox_id = outbox_id;
    box->bytes = bytes;
    box->base = dev;
    box->release = release;
    *ret_outbox = box;
    box = NULL;
out:
    outbox_close(box);
    return err;
}

void outbox_handle_format(const outbox_handle *handle, char ret_text[2 * OUTBOX_HANDLE_BYTES + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < OUTBOX_HANDLE_BYTES; i++) {
        ret_text[2 * i] = digits[handle->bytes[i] >> 4];
        ret_text[2 * i + 1] = digits[handle->bytes[i] & 15];
    }
    ret_text[2 * OUTBOX_HANDLE_BYTES] = '\0';
}

static int digit_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

cf_err outbox_handle_parse(const char *text, outbox_handle *ret_handle)
{
    outbox_handle h;
    if (strlen(text) != 2 * OUTBOX_HANDLE_BYTES)
        return err_set(CF_ERR_INVALID, "a memory handle of %zu characters, expected %d hex digits", strlen(text),
                       2 * OUTBOX_HANDLE_BYTES);
    for (int i = 0; i < OUTBOX_HANDLE_BYTES; i++) {
        const int high = digit_of(text[2 * i]), low = digit_of(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return err_set(CF_ERR_INVALID, "a memory handle with characters that are not hex digits, at %d", 2 * i);
        h.bytes[i] = (unsigned char)(high << 4 | low);
    }
    *ret_handle = h;
    return CF_OK;
}
