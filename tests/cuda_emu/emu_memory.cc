// emu_memory.cc - device memory, pinned memory, copies, handles between processes.
//
// Every allocation is a memfd of its own, mapped with a page that nobody may touch behind it, ending as close to that
// page as CUDA's alignment of 256 bytes lets it. The mapping is closed to the host except while device work runs, so
// code that follows a device pointer crashes as it would on a device. Fresh memory is full of NaN.
//
// A handle names process, descriptor and a number that is never used twice. Opening it looks for exactly that
// descriptor in the exporter: a dead exporter, a freed allocation, the exporter itself and a second opening of an
// overlapping mapping are refused as CUDA's manual says.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "emu_impl.hh"

#define GUARD_BYTES  ((size_t)4096)
#define POISON_BYTES ((size_t)64 << 20) // of larger allocations the first LARGE_BYTES: filling costs memory
#define LARGE_BYTES  ((size_t)16 << 20)

struct allocation {
    unsigned char *map; // the whole mapping, guard included
    unsigned char *base;
    size_t map_bytes, bytes;
    int fd, device;
    bool imported;
    bool orphaned;       // an import whose exporter has freed it or has died
    int opened;          // times, for imports
    int owner, owner_fd; // of an import: the exporter's process and descriptor
    char name[64];
};

struct pinned_range {
    unsigned char *base;
    size_t bytes;
    bool registered; // not ours to free
};

static std::vector<allocation> all;
static std::vector<pinned_range> pinned;
static int reveal_depth;
static bool revealed; // what the mappings are now

static size_t device_bytes()
{
    size_t sum = 0;
    for (const allocation &a : all)
        if (!a.imported && a.device == emu_ctx().device)
            sum += a.bytes;
    return sum;
}

static bool hides()
{
    static const long strict = emu_env("COSYFARM_EMU_HIDE", 1);
    return strict != 0;
}

static void set_visible(const allocation &a, bool visible)
{
    if (mprotect(a.map, a.map_bytes - GUARD_BYTES, visible ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
        abort();
}

static bool is_owned(int pid, int fd, const char *name)
{
    char path[64], target[128], wanted[80];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    const ssize_t target_bytes = readlink(path, target, sizeof target - 1);
    if (target_bytes < 0)
        return false;
    target[target_bytes] = '\0';
    snprintf(wanted, sizeof wanted, "/memfd:%.40s (deleted)", name);
    return strcmp(target, wanted) == 0;
}

// What is left of imports whose exporter has freed them or has died is undefined in CUDA: here it is NaN.
static void orphan_imports()
{
    for (allocation &a : all) {
        if (!a.imported || a.orphaned || is_owned(a.owner, a.owner_fd, a.name))
            continue;
        a.orphaned = true;
        const size_t bytes = a.map_bytes - GUARD_BYTES;
        if (mmap(a.map, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            abort();
        memset(a.map, 0xFF, bytes);
        if (!revealed && hides())
            set_visible(a, false);
    }
}

// Closing and opening costs a walk through all pages: the first HIDE_ALWAYS times it is done each time, then now and
// again.
#define HIDE_ALWAYS 64
#define HIDE_EVERY  32

void emu_memory_reveal(bool visible)
{
    static unsigned times;
    if (!hides())
        return;
    reveal_depth += visible ? 1 : -1;
    if (visible ? reveal_depth != 1 : reveal_depth != 0)
        return;
    if (visible)
        orphan_imports();
    if (!visible && times++ >= HIDE_ALWAYS && times % HIDE_EVERY != 0)
        return;
    if (visible != revealed)
        for (const allocation &a : all)
            set_visible(a, visible);
    revealed = visible;
}

static const allocation *find(const void *ptr)
{
    for (const allocation &a : all)
        if ((const unsigned char *)ptr >= a.base && (const unsigned char *)ptr < a.base + a.bytes)
            return &a;
    return nullptr;
}

bool emu_is_device(const void *ptr)
{
    return find(ptr) != nullptr;
}

bool emu_is_pinned(const void *ptr)
{
    for (const auto &p : pinned)
        if ((const unsigned char *)ptr >= p.base && (const unsigned char *)ptr < p.base + p.bytes)
            return true;
    return false;
}

#define ENTER(call)                               \
    emu_lock lock;                                \
    const cudaError_t entered = emu_enter(#call); \
    if (entered != cudaSuccess)                   \
    return emu_leave(entered)

extern "C" cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    ENTER(cudaMemGetInfo);
    *total_bytes = (size_t)emu_env("COSYFARM_EMU_MEMORY_MIB", 8192) << 20;
    const size_t used = device_bytes();
    *free_bytes = used < *total_bytes ? *total_bytes - used : 0;
    return cudaSuccess;
}

// Maps an allocation's descriptor with a guard behind it.
static bool map_allocation(allocation *a)
{
    const size_t aligned = (a->bytes + 255) / 256 * 256,
                 pages = (aligned + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
    a->map_bytes = pages + GUARD_BYTES;
    void *map = mmap(nullptr, a->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return false;
    a->map = (unsigned char *)map;
    if (mmap(a->map, pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, a->fd, 0) == MAP_FAILED) {
        munmap(a->map, a->map_bytes);
        return false;
    }
    a->base = a->map + (pages - aligned);
    return true;
}

extern "C" cudaError_t cudaMalloc(void **ptr, size_t bytes)
{
    static unsigned long long serial;
    ENTER(cudaMalloc);
    for (const emu_stream *s : emu_ctx().streams)
        if (s->capture)
            return emu_leave(cudaErrorStreamCaptureUnsupported);
    const size_t total = (size_t)emu_env("COSYFARM_EMU_MEMORY_MIB", 8192) << 20;
    if (bytes == 0) {
        *ptr = nullptr;
        return cudaSuccess;
    }
    if (device_bytes() + bytes > total)
        return emu_leave(cudaErrorMemoryAllocation);
    allocation a = {};
    a.bytes = bytes;
    a.device = emu_ctx().device;
    snprintf(a.name, sizeof a.name, "cuda_emu-%d-%llu", (int)getpid(), ++serial);
    a.fd = memfd_create(a.name, MFD_CLOEXEC);
    if (a.fd < 0 || ftruncate(a.fd, (off_t)((bytes + 2 * GUARD_BYTES) / GUARD_BYTES * GUARD_BYTES)) != 0 ||
        !map_allocation(&a)) {
        if (a.fd >= 0)
            close(a.fd);
        return emu_leave(cudaErrorMemoryAllocation);
    }
    memset(a.base, 0xFF, bytes <= POISON_BYTES ? bytes : LARGE_BYTES);
    all.push_back(a);
    if (hides() && !revealed)
        set_visible(a, false);
    *ptr = a.base;
    return cudaSuccess;
}

static void drop(size_t idx)
{
    munmap(all[idx].map, all[idx].map_bytes);
    close(all[idx].fd);
    all.erase(all.begin() + (long)idx);
}

extern "C" cudaError_t cudaFree(void *ptr)
{
    emu_lock lock;
    if (!ptr)
        return cudaSuccess;
    if (emu_enter("cudaFree") == cudaErrorInitializationError)
        return cudaErrorInitializationError;
    emu_drain_all();
    for (size_t i = 0; i < all.size(); i++)
        if (all[i].base == ptr && !all[i].imported) {
            drop(i);
            return emu_ctx().sticky;
        }
    return emu_leave(cudaErrorInvalidValue);
}

extern "C" cudaError_t cudaMallocHost(void **ptr, size_t bytes)
{
    ENTER(cudaMallocHost);
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        return emu_leave(cudaErrorMemoryAllocation);
    pinned.push_back({(unsigned char *)p, bytes, false});
    *ptr = p;
    return cudaSuccess;
}

extern "C" cudaError_t cudaFreeHost(void *ptr)
{
    emu_lock lock;
    emu_drain_all();
    for (size_t i = 0; i < pinned.size(); i++)
        if (pinned[i].base == ptr && !pinned[i].registered) {
            pinned.erase(pinned.begin() + (long)i);
            free(ptr);
            return cudaSuccess;
        }
    return ptr ? emu_leave(cudaErrorInvalidValue) : cudaSuccess;
}

// Memory that can only be read must be registered as such, as a driver's own write access would fail.
extern "C" cudaError_t cudaHostRegister(void *ptr, size_t bytes, unsigned flags)
{
    ENTER(cudaHostRegister);
    if (!ptr || bytes == 0 || emu_is_device(ptr) || (flags & ~(cudaHostRegisterPortable | cudaHostRegisterReadOnly)))
        return emu_leave(cudaErrorInvalidValue);
    if (emu_is_pinned(ptr))
        return emu_leave(cudaErrorHostMemoryAlreadyRegistered);
    pinned.push_back({(unsigned char *)ptr, bytes, true});
    return cudaSuccess;
}

extern "C" cudaError_t cudaHostUnregister(void *ptr)
{
    emu_lock lock;
    emu_drain_all();
    for (size_t i = 0; i < pinned.size(); i++)
        if (pinned[i].base == ptr && pinned[i].registered) {
            pinned.erase(pinned.begin() + (long)i);
            return cudaSuccess;
        }
    return emu_leave(cudaErrorHostMemoryNotRegistered);
}

// Copies ------------------------------------------------------------------------------------------------------

// A range that begins in an allocation has to end in it.
static bool range_fits(const void *ptr, size_t bytes)
{
    const allocation *a = find(ptr);
    return !a || (size_t)(a->base + a->bytes - (const unsigned char *)ptr) >= bytes;
}

static cudaError_t check_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    const bool to_device = emu_is_device(to), from_device = emu_is_device(from);
    if (!range_fits(to, bytes) || !range_fits(from, bytes))
        return cudaErrorInvalidValue;
    if (kind == cudaMemcpyHostToDevice && (!to_device || from_device))
        return cudaErrorInvalidValue;
    if (kind == cudaMemcpyDeviceToHost && (to_device || !from_device))
        return cudaErrorInvalidValue;
    if (kind == cudaMemcpyDeviceToDevice && (!to_device || !from_device))
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

extern "C" cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                       cudaStream_t stream)
{
    ENTER(cudaMemcpyAsync);
    if (bytes == 0)
        return cudaSuccess;
    const cudaError_t wrong = check_copy(to, from, bytes, kind);
    if (wrong != cudaSuccess)
        return emu_leave(wrong);
    emu_stream *s = emu_stream_of(stream);
    if (!s)
        return emu_leave(cudaErrorInvalidResourceHandle);
    const bool from_pageable = !emu_is_device(from) && !emu_is_pinned(from);
    const bool to_pageable = !emu_is_device(to) && !emu_is_pinned(to);
    if (s->capture && (from_pageable || to_pageable)) // permitted by CUDA, read at each replay: never what we want
        return emu_leave(cudaErrorStreamCaptureUnsupported);
    // Pageable memory too is read as late as it may be: CUDA only says that the copy might be over by then.
    const cudaError_t queued = emu_enqueue(stream, [=]() { memmove(to, from, bytes); });
    return queued == cudaSuccess && to_pageable ? emu_leave(emu_drain(s)) : queued;
}

extern "C" cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    const cudaError_t queued = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return queued == cudaSuccess ? cudaStreamSynchronize(nullptr) : queued;
}

extern "C" cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    ENTER(cudaMemsetAsync);
    if (bytes == 0)
        return cudaSuccess;
    if (!emu_is_device(to) || !range_fits(to, bytes))
        return emu_leave(cudaErrorInvalidValue);
    return emu_enqueue(stream, [=]() { memset(to, value, bytes); });
}

extern "C" cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    const cudaError_t queued = cudaMemsetAsync(to, value, bytes, nullptr);
    return queued == cudaSuccess ? cudaStreamSynchronize(nullptr) : queued;
}

// Handles between processes -----------------------------------------------------------------------------------

struct handle_body {
    int pid, fd, device;
    unsigned long long bytes;
    char name[40];
};
static_assert(sizeof(handle_body) <= sizeof(cudaIpcMemHandle_t), "a handle has 64 bytes");

extern "C" cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *ptr)
{
    ENTER(cudaIpcGetMemHandle);
    if (emu_env("COSYFARM_EMU_IPC", 1) == 0)
        return emu_leave(cudaErrorNotSupported);
    const allocation *a = find(ptr);
    if (!a || a->imported || a->base != ptr)
        return emu_leave(cudaErrorInvalidValue);
    handle_body body = {};
    body.pid = (int)getpid();
    body.fd = a->fd;
    body.device = a->device;
    body.bytes = a->bytes;
    snprintf(body.name, sizeof body.name, "%.39s", a->name);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &body, sizeof body);
    return cudaSuccess;
}

// The exporter's descriptor, when it still is the allocation of that name.
static int open_exporter(const handle_body *body)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", body->pid, body->fd);
    return is_owned(body->pid, body->fd, body->name) ? open(path, O_RDWR | O_CLOEXEC) : -1;
}

extern "C" cudaError_t cudaIpcOpenMemHandle(void **ptr, cudaIpcMemHandle_t handle, unsigned flags)
{
    ENTER(cudaIpcOpenMemHandle);
    handle_body body;
    memcpy(&body, &handle, sizeof body);
    body.name[sizeof body.name - 1] = '\0';
    if (flags != cudaIpcMemLazyEnablePeerAccess)
        return emu_leave(cudaErrorInvalidValue);
    if (emu_env("COSYFARM_EMU_IPC", 1) == 0)
        return emu_leave(cudaErrorNotSupported);
    if (body.pid == (int)getpid())
        return emu_leave(cudaErrorDeviceUninitialized);
    for (allocation &a : all)
        if (a.imported && !a.orphaned && strcmp(a.name, body.name) == 0) { // again: the same address, counted
            a.opened++;
            *ptr = a.base;
            return cudaSuccess;
        }
    if (body.device != emu_ctx().device && emu_env("COSYFARM_EMU_PEER", 1) == 0)
        return emu_leave(cudaErrorPeerAccessUnsupported);
    allocation a = {};
    a.bytes = (size_t)body.bytes;
    a.imported = true;
    a.opened = 1;
    a.device = body.device;
    a.owner = body.pid;
    a.owner_fd = body.fd;
    snprintf(a.name, sizeof a.name, "%.40s", body.name);
    a.fd = open_exporter(&body);
    if (a.fd < 0)
        return emu_leave(cudaErrorMapBufferObjectFailed);
    if (!map_allocation(&a)) {
        close(a.fd);
        return emu_leave(cudaErrorMemoryAllocation);
    }
    all.push_back(a);
    if (hides() && !revealed)
        set_visible(a, false);
    *ptr = a.base;
    return cudaSuccess;
}

extern "C" cudaError_t cudaIpcCloseMemHandle(void *ptr)
{
    ENTER(cudaIpcCloseMemHandle);
    for (size_t i = 0; i < all.size(); i++)
        if (all[i].base == ptr && all[i].imported) {
            emu_drain_all();
            if (--all[i].opened == 0)
                drop(i);
            return cudaSuccess;
        }
    return emu_leave(cudaErrorInvalidValue);
}
