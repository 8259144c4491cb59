/*
 * probe_vmm.cu - the probes that need the driver's virtual memory: memory behind a descriptor instead of a handle. The
 * driver is loaded through the runtime, so the program starts where there is none.
 */
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/probe.h"

#ifdef CF_CUDA_EMU
static void skip(char text[PROBE_TEXT])
{
    say(text, "SKIP virtual memory of the driver is not emulated");
}

bool vmm_role(const char *name)
{
    (void)name;
    return false;
}

void vmm_after_death(char text[PROBE_TEXT])
{
    skip(text);
}

void vmm_outlives_all(char text[PROBE_TEXT])
{
    skip(text);
}

void vmm_read_only(char text[PROBE_TEXT])
{
    skip(text);
}

void vmm_bare_process(role *meter, char text[PROBE_TEXT])
{
    (void)meter;
    skip(text);
}

void vmm_open_cost(char text[PROBE_TEXT])
{
    skip(text);
}
#else
#include <cuda.h>
#include <cuda_runtime.h>
#include <stdio.h>

#define VMM_VERSION 12000
#define REPEATS     20

/* The driver's calls, by name. */
#define VMM_CALLS(X)                  \
    X(cuInit)                         \
    X(cuMemCreate)                    \
    X(cuMemRelease)                   \
    X(cuMemExportToShareableHandle)   \
    X(cuMemImportFromShareableHandle) \
    X(cuMemAddressReserve)            \
    X(cuMemAddressFree)               \
    X(cuMemMap)                       \
    X(cuMemUnmap)                     \
    X(cuMemSetAccess)                 \
    X(cuMemGetAllocationGranularity)
#define VMM_MEMBER(name) decltype(&::name) name;
static struct {
    VMM_CALLS(VMM_MEMBER)
} vmm;

static bool load(void)
{
    void *entry;
    cudaDriverEntryPointQueryResult found;
#define VMM_LOAD(name)                                                                                            \
    if (cudaGetDriverEntryPointByVersion(#name, &entry, VMM_VERSION, cudaEnableDefault, &found) != cudaSuccess || \
        found != cudaDriverEntryPointSuccess)                                                                     \
        return false;                                                                                             \
    vmm.name = (decltype(&::name))entry;
    VMM_CALLS(VMM_LOAD)
#undef VMM_LOAD
    return true;
}

static CUmemAllocationProp prop_of_device(void)
{
    CUmemAllocationProp p = {};
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    return p;
}

static CUresult wanted_bytes(size_t *ret_bytes)
{
    size_t unit = 0;
    const CUmemAllocationProp prop = prop_of_device();
    const CUresult status = vmm.cuMemGetAllocationGranularity(&unit, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (status == CUDA_SUCCESS)
        *ret_bytes = (PROBE_VALUES * sizeof(float) + unit - 1) / unit * unit;
    return status;
}

static CUresult map(CUmemGenericAllocationHandle memory, size_t bytes, CUmemAccess_flags access, CUdeviceptr *ret_dev)
{
    CUmemAccessDesc desc = {};
    desc.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    desc.flags = access;
    CUresult status = vmm.cuMemAddressReserve(ret_dev, bytes, 0, 0, 0);
    if (status == CUDA_SUCCESS)
        status = vmm.cuMemMap(*ret_dev, bytes, 0, memory, 0);
    return status == CUDA_SUCCESS ? vmm.cuMemSetAccess(*ret_dev, bytes, &desc, 1) : status;
}

static CUresult make(size_t *ret_bytes, CUmemGenericAllocationHandle *ret_memory, int *ret_fd)
{
    const CUmemAllocationProp prop = prop_of_device();
    CUresult status = wanted_bytes(ret_bytes);
    if (status == CUDA_SUCCESS)
        status = vmm.cuMemCreate(ret_memory, *ret_bytes, &prop, 0);
    if (status == CUDA_SUCCESS)
        status = vmm.cuMemExportToShareableHandle(ret_fd, *ret_memory, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    return status;
}

static void reply(int status, double a, double b, int fd)
{
    note n = {};
    n.status = status;
    n.a = a;
    n.b = b;
    tell(ROLE_FD, n, fd);
}

/* Makes, fills with ones and hands out a descriptor; then sums for whoever asks. */
static void owner_role(void)
{
    size_t bytes = 0;
    int fd = -1, status = load() && cudaFree(0) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
    CUmemGenericAllocationHandle memory;
    CUdeviceptr dev = 0;
    note n;
    double sum;
    if (status == CUDA_SUCCESS)
        status = make(&bytes, &memory, &fd);
    if (status == CUDA_SUCCESS)
        status = map(memory, bytes, CU_MEM_ACCESS_FLAGS_PROT_READWRITE, &dev);
    if (status == CUDA_SUCCESS)
        status = fill_ones((float *)dev, PROBE_VALUES);
    reply(status, 0, 0, fd);
    while (status == CUDA_SUCCESS && hear(ROLE_FD, &n, NULL)) {
        const int read = sum_values((const float *)dev, PROBE_VALUES, PROBE_ROUNDS, &sum);
        reply(read, sum, 0, -1);
    }
}

/* Only cuInit and an allocation: no context. */
static void bare_role(void)
{
    size_t bytes = 0;
    int fd = -1, status = load() ? vmm.cuInit(0) : CUDA_ERROR_NOT_SUPPORTED;
    CUmemGenericAllocationHandle memory;
    note n;
    if (status == CUDA_SUCCESS)
        status = make(&bytes, &memory, &fd);
    reply(status, (double)bytes, 0, fd);
    (void)hear(ROLE_FD, &n, NULL);
}

static CUresult import(int fd, CUmemAccess_flags access, size_t *ret_bytes, CUdeviceptr *ret_dev)
{
    CUmemGenericAllocationHandle memory;
    CUresult status = wanted_bytes(ret_bytes);
    if (status == CUDA_SUCCESS)
        status =
            vmm.cuMemImportFromShareableHandle(&memory, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    if (status != CUDA_SUCCESS)
        return status;
    status = map(memory, *ret_bytes, access, ret_dev);
    (void)vmm.cuMemRelease(memory); /* the mapping keeps it */
    return status;
}

/* Question a: 0 read; 1 write through a read-only mapping; 2 time of importing. */
static void reader_role(void)
{
    size_t bytes = 0;
    CUdeviceptr dev = 0;
    note n;
    int fd = -1, status = CUDA_ERROR_NOT_SUPPORTED;
    double sum = 0;
    if (!hear(ROLE_FD, &n, &fd))
        return;
    if (load() && cudaFree(0) == cudaSuccess)
        status =
            import(fd, n.a == 1 ? CU_MEM_ACCESS_FLAGS_PROT_READ : CU_MEM_ACCESS_FLAGS_PROT_READWRITE, &bytes, &dev);
    const double start = now_us();
    for (int i = 0; i < REPEATS && n.a == 2 && status == CUDA_SUCCESS; i++) {
        (void)vmm.cuMemUnmap(dev, bytes);
        (void)vmm.cuMemAddressFree(dev, bytes);
        status = import(fd, CU_MEM_ACCESS_FLAGS_PROT_READWRITE, &bytes, &dev);
    }
    reply(status, (now_us() - start) / REPEATS, 0, -1);
    const bool writes = n.a == 1;
    while (status == CUDA_SUCCESS && hear(ROLE_FD, &n, NULL)) {
        const int done =
            writes ? write_first((float *)dev) : sum_values((const float *)dev, PROBE_VALUES, PROBE_ROUNDS, &sum);
        reply(done, sum, 0, -1);
    }
}

bool vmm_role(const char *name)
{
    static const struct {
        const char *name;
        void (*play)(void);
    } roles[] = {{"vmm-owner", owner_role}, {"vmm-bare", bare_role}, {"vmm-reader", reader_role}};
    for (const auto &r : roles)
        if (strcmp(r.name, name) == 0) {
            r.play();
            return true;
        }
    return false;
}

/* An owner's descriptor; -1 with a word about it when there is none. */
static int descriptor_of(role *owner, char text[PROBE_TEXT])
{
    note n;
    int fd = -1;
    if (!hear(owner->fd, &n, &fd) || n.status != CUDA_SUCCESS || fd < 0) {
        say(text, "SKIP no virtual memory here (driver error %d)", n.status);
        return -1;
    }
    return fd;
}

static bool open_reader(role *reader, int fd, double how, note *ret_note)
{
    note n = {};
    n.a = how;
    return tell(reader->fd, n, fd) && hear(reader->fd, ret_note, NULL) && ret_note->status == CUDA_SUCCESS;
}

static bool question(role *r, note *ret_note)
{
    const note n = {};
    return tell(r->fd, n, -1) && hear(r->fd, ret_note, NULL);
}

static const char *outcome(bool lives, const note *n, double right)
{
    if (!lives)
        return "kills the reader";
    if (n->status != cudaSuccess)
        return cudaGetErrorName((cudaError_t)n->status);
    return n->a == right ? "cudaSuccess" : "cudaSuccess with other bytes";
}

void vmm_after_death(char text[PROBE_TEXT])
{
    note n;
    role owner = role_start("vmm-owner", NULL), reader = role_start("vmm-reader", NULL);
    const int fd = descriptor_of(&owner, text);
    if (fd >= 0 && open_reader(&reader, fd, 0, &n) && question(&reader, &n)) {
        const double right = n.a;
        const note ask = {};
        tell(reader.fd, ask, -1);
        poll(NULL, 0, 5); /* it reads now */
        role_kill(&owner);
        const bool during = hear(reader.fd, &n, NULL);
        say(text, "virtual memory: reading while the owner is killed %s", outcome(during, &n, right));
        const bool after = during && question(&reader, &n);
        say(text, ", after it %s", outcome(after, &n, right));
    }
    if (fd >= 0)
        close(fd);
    role_kill(&owner);
    role_kill(&reader);
}

void vmm_outlives_all(char text[PROBE_TEXT])
{
    note n;
    role owner = role_start("vmm-owner", NULL);
    const int fd = descriptor_of(&owner, text);
    if (fd >= 0 && question(&owner, &n)) {
        const double right = n.a;
        role_kill(&owner); /* now no process has a context: this one holds a descriptor */
        role reader = role_start("vmm-reader", NULL);
        const bool opened = open_reader(&reader, fd, 0, &n);
        if (opened && question(&reader, &n))
            say(text, "a later process reads %s", outcome(true, &n, right));
        else
            say(text, "it cannot be imported any more (driver error %d)", n.status);
        role_kill(&reader);
    }
    if (fd >= 0)
        close(fd);
    role_kill(&owner);
}

void vmm_read_only(char text[PROBE_TEXT])
{
    note n;
    role owner = role_start("vmm-owner", NULL), reader = role_start("vmm-reader", NULL);
    const int fd = descriptor_of(&owner, text);
    if (fd >= 0 && question(&owner, &n)) {
        const double right = n.a;
        if (open_reader(&reader, fd, 1, &n)) {
            const bool lives = question(&reader, &n);
            say(text, "the writer gets %s", lives ? cudaGetErrorName((cudaError_t)n.status) : "killed");
            const bool whole = question(&owner, &n);
            say(text, ", the owner reads %s", outcome(whole, &n, right));
        }
    }
    if (fd >= 0)
        close(fd);
    role_kill(&owner);
    role_kill(&reader);
}

void vmm_bare_process(role *meter, char text[PROBE_TEXT])
{
    note n, before, after;
    int fd = -1;
    const bool measured = question(meter, &before);
    role bare = role_start("vmm-bare", NULL);
    if (!hear(bare.fd, &n, &fd) || n.status != CUDA_SUCCESS)
        say(text, "SKIP no virtual memory without a context (driver error %d)", n.status);
    else if (measured && question(meter, &after))
        say(text, "one with cuInit and an allocation of %.0f MiB takes %.0f MiB", n.a / 1048576,
            (before.a - after.a) / 1048576);
    if (fd >= 0)
        close(fd);
    role_kill(&bare);
}

void vmm_open_cost(char text[PROBE_TEXT])
{
    note n;
    role owner = role_start("vmm-owner", NULL), reader = role_start("vmm-reader", NULL);
    const int fd = descriptor_of(&owner, text);
    if (fd >= 0 && open_reader(&reader, fd, 2, &n))
        say(text, "virtual memory: unmap, import and map %.0f us", n.a);
    if (fd >= 0)
        close(fd);
    role_kill(&owner);
    role_kill(&reader);
}
#endif
