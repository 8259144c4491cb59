/*
 * outbox_cuda_ipc.c - device memory shared by CUDA's handles.
 *
 * The keeper's thread makes and frees, a worker's thread opens and closes. Rules of CUDA that shape it: a handle names
 * a whole allocation, so each outbox is one of its own, rounded to MEMORY_ALIGN; the maker cannot open its own handle;
 * an importer that opens a handle twice gets one mapping, counted; freeing before importers have closed is undefined:
 * the keeper frees when the pipe has hung up. What CUDA refuses is CF_ERR_UNSUPPORTED, and the farm goes on with memory
 * of the host. Any error that is not known to be a refusal is CF_ERR_DEVICE: those of a broken context above all.
 * Fails: CF_ERR_UNSUPPORTED, CF_ERR_NOMEM, CF_ERR_GONE, CF_ERR_DEVICE, CF_ERR_SYS.
 */
#define _GNU_SOURCE
#include "common/transport/outbox_cuda_ipc.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/transport/outbox_impl.h"

#define MIB          1048576.0
#define MEMORY_ALIGN ((uint64_t)2 << 20) /* smaller allocations share a block of the driver, and the handle with it */

struct outbox_cuda_memory {
    void *dev; /* owned */
    int device;
};

_Static_assert(sizeof(cudaIpcMemHandle_t) == OUTBOX_HANDLE_BYTES, "a handle has 64 bytes");

/* What CUDA's manual lists for the calls below and leaves the context as it was. */
static bool is_refusal(cudaError_t status)
{
    static const cudaError_t refusals[] = {
        cudaErrorInvalidValue,                /* a handle or a range that this driver does not take */
        cudaErrorInsufficientDriver,          /* no driver, or one that is too old */
        cudaErrorCallRequiresNewerDriver,     /* the same */
        cudaErrorNoDevice,                    /* none that this process may use */
        cudaErrorInvalidDevice,               /* the same */
        cudaErrorDeviceUninitialized,         /* a handle of this process itself, or of another context */
        cudaErrorAlreadyMapped,               /* an overlapping mapping */
        cudaErrorPeerAccessUnsupported,       /* between these devices */
        cudaErrorOperatingSystem,             /* handles of processes in separate containers */
        cudaErrorInvalidResourceHandle,       /* a handle whose memory is gone */
        cudaErrorTooManyPeers,                /* no room for another device's memory */
        cudaErrorHostMemoryAlreadyRegistered, /* pinning what is pinned */
        cudaErrorNotPermitted,                /* of this device or user */
        cudaErrorNotSupported,                /* handles under WSL, pinning on some hosts */
    };
    for (size_t i = 0; i < CF_COUNT(refusals); i++)
        if (status == refusals[i])
            return true;
    return false;
}

static cf_err status_of(cudaError_t status, const char *what)
{
    cf_err code = CF_ERR_DEVICE;
    if (status == cudaSuccess)
        return CF_OK;
    (void)cudaGetLastError(); /* or the next kernel's launch is blamed for it */
    if (status == cudaErrorMemoryAllocation)
        code = CF_ERR_NOMEM;
    else if (status == cudaErrorMapBufferObjectFailed)
        code = CF_ERR_GONE;
    else if (is_refusal(status))
        code = CF_ERR_UNSUPPORTED;
    return err_set(code, "outbox: %s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

cf_err outbox_cuda_check_readers(int device, const int32_t *readers, size_t readers_count)
{
    for (size_t i = 0; i < readers_count; i++) {
        int can = 0;
        if (readers[i] == device)
            continue;
        const cf_err err = status_of(cudaDeviceCanAccessPeer(&can, readers[i], device), "peer access");
        if (err != CF_OK || !can)
            return err_set(err == CF_OK ? CF_ERR_UNSUPPORTED : err, "cuda:%d cannot read memory of cuda:%d%s%s",
                           (int)readers[i], device, err == CF_OK ? "" : ": ", err == CF_OK ? "" : err_text());
    }
    return CF_OK;
}

/* Cleared memory of a device; CF_ERR_NOMEM says how much there is. */
static cf_err take_memory(outbox_cuda_memory *memory, size_t bytes)
{
    cf_err err;
    size_t free_bytes = 0, total_bytes = 0;
    TRY(status_of(cudaSetDevice(memory->device), "device"));
    TRY(status_of(cudaMemGetInfo(&free_bytes, &total_bytes), "free memory"));
    if (bytes > free_bytes)
        FAIL(CF_ERR_NOMEM, "exchange memory needs %.1f MiB, %.1f free on cuda:%d", (double)bytes / MIB,
             (double)free_bytes / MIB, memory->device);
    TRY(status_of(cudaMalloc(&memory->dev, bytes), "exchange memory"));
    TRY(status_of(cudaMemset(memory->dev, 0, bytes), "clearing exchange memory"));
    TRY(status_of(cudaDeviceSynchronize(), "clearing exchange memory"));
out:
    return err;
}

/* watch_fd becomes the reading end. */
static cf_err open_pipe(int watch_fd, int *ret_hold_fd)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_sys("outbox: pipe");
    const int rc = dup3(ends[0], watch_fd, O_CLOEXEC);
    const cf_err err = rc < 0 ? err_sys("outbox: dup3") : CF_OK;
    io_close(&ends[0]);
    if (err != CF_OK)
        io_close(&ends[1]);
    else
        *ret_hold_fd = ends[1];
    return err;
}

cf_err outbox_cuda_make(int device, uint64_t bytes, int watch_fd, outbox_cuda_memory **ret_memory,
                        outbox_handle *ret_handle, int *ret_hold_fd)
{
    cf_err err;
    cudaIpcMemHandle_t handle;
    outbox_cuda_memory *memory = NULL;
    const size_t rounded = (size_t)((bytes + MEMORY_ALIGN - 1) / MEMORY_ALIGN * MEMORY_ALIGN);
    TRY(mem_alloc(1, sizeof *memory, &memory));
    memory->device = device;
    if (fault_hit("outbox.make"))
        FAIL(CF_ERR_NOMEM, "outbox: fault point outbox.make");
    TRY(take_memory(memory, rounded));
    TRY(status_of(cudaIpcGetMemHandle(&handle, memory->dev), "handle of exchange memory"));
    TRY(open_pipe(watch_fd, ret_hold_fd));
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

cf_err outbox_cuda_open(int device, const outbox_grant *grant, const outbox_handle *handle, outbox **ret_outbox)
{
    cf_err err;
    cudaIpcMemHandle_t theirs;
    void *dev;
    outbox *box = NULL;
    TRY(mem_alloc(1, sizeof *box, &box));
    box->outbox_id = grant->outbox_id;
    box->bytes = grant->bytes;
    box->on_device = true;
    box->hold_fd = fcntl(grant->fd, F_DUPFD_CLOEXEC, 0);
    if (box->hold_fd < 0) {
        err = err_sys("outbox %u: descriptor of its owner", grant->outbox_id);
        goto out;
    }
    memcpy(&theirs, handle->bytes, sizeof theirs);
    if (fault_hit("outbox.open"))
        FAIL(CF_ERR_UNSUPPORTED, "outbox %u: fault point outbox.open", grant->outbox_id);
    TRY(status_of(cudaSetDevice(device), "device"));
    err = status_of(cudaIpcOpenMemHandle(&dev, theirs, cudaIpcMemLazyEnablePeerAccess), "opening exchange memory");
    if (err != CF_OK) {
        err = err_context(err, "outbox %u on cuda:%d", grant->outbox_id, device);
        /* Drivers differ in what they say of a handle whose process is gone; the pipe knows. */
        if (err == CF_ERR_UNSUPPORTED && outbox_check(box) != CF_OK)
            err = CF_ERR_GONE;
        goto out;
    }
    box->base = dev;
    box->release = release;
    TRY(outbox_check(box)); /* a handle that is open here already opens again, whatever has become of its owner */
    *ret_outbox = box;
    box = NULL;
out:
    outbox_close(box);
    return err;
}

static void unpin(outbox *box)
{
    (void)cudaHostUnregister(box->base);
    box->release_mapping(box);
}

cf_err outbox_cuda_pin(int device, outbox *box, outbox_access access)
{
    cf_err err;
    const unsigned flags = cudaHostRegisterPortable | (access == OUTBOX_READ ? cudaHostRegisterReadOnly : 0u);
    CF_ASSERT(!box->on_device && !box->release_mapping);
    TRY(status_of(cudaSetDevice(device), "device"));
    TRY(status_of(cudaHostRegister(box->base, box->bytes, flags), "pinning exchange memory"));
    box->release_mapping = box->release;
    box->release = unpin;
out:
    return err;
}
