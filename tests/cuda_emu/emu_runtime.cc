// emu_runtime.cc - the runtime's calls: context, errors, streams, events, graphs.
//
// Work is queued and runs only inside a call that waits for it (synchronise, a copy to pageable memory, cudaFree), as
// late as CUDA's rules permit: what forgets to wait reads old bytes. Any number of threads may call; one lock.
//
// A context belongs to the process that made it: every call in a forked child is cudaErrorInitializationError.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "emu_impl.hh"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int lock_depth;

emu_lock::emu_lock()
{
    if (lock_depth++ == 0)
        pthread_mutex_lock(&mutex);
}

emu_lock::~emu_lock()
{
    if (--lock_depth == 0)
        pthread_mutex_unlock(&mutex);
}

emu_context &emu_ctx()
{
    static emu_context *c = new emu_context; // never destroyed: work of other threads may outlive main
    return *c;
}

long emu_env(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtol(text, nullptr, 10) : otherwise;
}

// Injected failures.
static struct {
    char call[64];
    int after;
    cudaError_t error;
} injected;

extern "C" void emu_fail_next(const char *call_name, int after, cudaError_t error)
{
    emu_lock lock;
    snprintf(injected.call, sizeof injected.call, "%s", call_name);
    injected.after = after;
    injected.error = error;
}

extern "C" void emu_count(emu_counters *ret_counters)
{
    emu_lock lock;
    *ret_counters = emu_ctx().counters;
}

extern "C" void emu_reset(void)
{
    emu_lock lock;
    emu_ctx().sticky = emu_ctx().last = cudaSuccess;
    emu_ctx().counters = emu_counters();
    injected.after = 0;
    for (emu_stream *s : emu_ctx().streams)
        s->queue.clear();
}

void emu_stick(cudaError_t error, const char *fmt, ...)
{
    va_list args;
    if (emu_ctx().sticky != cudaSuccess)
        return;
    emu_ctx().sticky = error;
    va_start(args, fmt);
    fprintf(stderr, "cuda_emu: ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
}

cudaError_t emu_leave(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady)
        emu_ctx().last = error;
    return error;
}

cudaError_t emu_enter(const char *call)
{
    emu_context &c = emu_ctx();
    if (c.pid == 0)
        c.pid = getpid();
    if (c.pid != getpid())
        return cudaErrorInitializationError;
    if (emu_env("COSYFARM_EMU_DEVICES", 1) == 0)
        return cudaErrorNoDevice;
    if (injected.after > 0 && strcmp(injected.call, call) == 0 && --injected.after == 0) {
        if (injected.error == cudaErrorLaunchFailure || injected.error == cudaErrorIllegalAddress)
            emu_stick(injected.error, "injected failure of %s", call);
        return injected.error;
    }
    return c.sticky;
}

#define ENTER(call)                               \
    emu_lock lock;                                \
    const cudaError_t entered = emu_enter(#call); \
    if (entered != cudaSuccess)                   \
    return emu_leave(entered)

// Devices -----------------------------------------------------------------------------------------------------

extern "C" cudaError_t cudaGetDeviceCount(int *count)
{
    ENTER(cudaGetDeviceCount);
    *count = (int)emu_env("COSYFARM_EMU_DEVICES", 1);
    return cudaSuccess;
}

extern "C" cudaError_t cudaGetDevice(int *device)
{
    ENTER(cudaGetDevice);
    *device = emu_ctx().device;
    return cudaSuccess;
}

static bool has_device(int device)
{
    return device >= 0 && device < emu_env("COSYFARM_EMU_DEVICES", 1);
}

extern "C" cudaError_t cudaSetDevice(int device)
{
    ENTER(cudaSetDevice);
    if (!has_device(device))
        return emu_leave(cudaErrorInvalidDevice);
    emu_ctx().device = device;
    return cudaSuccess;
}

extern "C" cudaError_t cudaSetDeviceFlags(unsigned flags)
{
    (void)flags;
    ENTER(cudaSetDeviceFlags);
    return cudaSuccess;
}

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device)
{
    ENTER(cudaGetDeviceProperties);
    if (!has_device(device))
        return emu_leave(cudaErrorInvalidDevice);
    const long capability = emu_env("COSYFARM_EMU_CAPABILITY", 80);
    *prop = cudaDeviceProp();
    snprintf(prop->name, sizeof prop->name, "emulated device");
    prop->totalGlobalMem = (size_t)emu_env("COSYFARM_EMU_MEMORY_MIB", 8192) << 20;
    prop->major = (int)(capability / 10);
    prop->minor = (int)(capability % 10);
    prop->multiProcessorCount = 4;
    return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device)
{
    ENTER(cudaDeviceGetAttribute);
    if (!has_device(device))
        return emu_leave(cudaErrorInvalidDevice);
    const long capability = emu_env("COSYFARM_EMU_CAPABILITY", 80);
    switch (attr) {
    case cudaDevAttrMultiProcessorCount:
        *value = 4;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = (int)(capability / 10);
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = (int)(capability % 10);
        return cudaSuccess;
    case cudaDevAttrIpcEventSupport:
        *value = emu_env("COSYFARM_EMU_IPC", 1) != 0;
        return cudaSuccess;
    }
    return emu_leave(cudaErrorInvalidValue);
}

int emu_code_built()
{
    const long capability = emu_env("COSYFARM_EMU_CAPABILITY", 80), code = emu_env("COSYFARM_EMU_CODE", capability);
    return (int)(code < capability ? code : capability);
}

extern "C" cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel)
{
    (void)kernel;
    ENTER(cudaFuncGetAttributes);
    *attributes = cudaFuncAttributes();
    attributes->ptxVersion = emu_code_built();
    attributes->binaryVersion = (int)emu_env("COSYFARM_EMU_CAPABILITY", 80);
    return cudaSuccess;
}

extern "C" cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    ENTER(cudaDeviceCanAccessPeer);
    if (!has_device(device) || !has_device(peer))
        return emu_leave(cudaErrorInvalidDevice);
    *can = device != peer && emu_env("COSYFARM_EMU_PEER", 1) != 0;
    return cudaSuccess;
}

extern "C" cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

extern "C" cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

// Errors ------------------------------------------------------------------------------------------------------

extern "C" cudaError_t cudaPeekAtLastError(void)
{
    emu_lock lock;
    return emu_ctx().last;
}

// Forgets a sticky error too: it comes back with the next call that is work, which this one is not.
extern "C" cudaError_t cudaGetLastError(void)
{
    emu_lock lock;
    const cudaError_t error = emu_ctx().last;
    emu_ctx().last = cudaSuccess;
    return error;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "driver version is insufficient"},
    {cudaErrorCallRequiresNewerDriver, "cudaErrorCallRequiresNewerDriver", "a newer driver is needed"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorDeviceUninitialized, "cudaErrorDeviceUninitialized", "invalid device context"},
    {cudaErrorMapBufferObjectFailed, "cudaErrorMapBufferObjectFailed", "mapping of buffer object failed"},
    {cudaErrorAlreadyMapped, "cudaErrorAlreadyMapped", "resource already mapped"},
    {cudaErrorPeerAccessUnsupported, "cudaErrorPeerAccessUnsupported", "peer access is not supported"},
    {cudaErrorOperatingSystem, "cudaErrorOperatingSystem", "OS call failed or operation not supported on this OS"},
    {cudaErrorTooManyPeers, "cudaErrorTooManyPeers", "peer mapping resources exhausted"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered", "memory is registered already"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered", "memory was never registered"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorIllegalInstruction, "cudaErrorIllegalInstruction", "an illegal instruction was encountered"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "not permitted when capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated", "capture was invalidated"},
};

extern "C" const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &e : error_texts)
        if (e.error == error)
            return e.name;
    return "unrecognized error code";
}

extern "C" const char *cudaGetErrorString(cudaError_t error)
{
    for (const auto &e : error_texts)
        if (e.error == error)
            return e.text;
    return "unrecognized error code";
}

void emu_launch_failed(cudaError_t error)
{
    emu_lock lock;
    emu_leave(error);
}

// Streams -----------------------------------------------------------------------------------------------------

emu_stream *emu_stream_of(cudaStream_t stream)
{
    if (!stream)
        return &emu_ctx().legacy;
    for (emu_stream *s : emu_ctx().streams)
        if (s == stream)
            return s;
    return nullptr;
}

cudaError_t emu_enqueue(cudaStream_t stream, emu_work work)
{
    emu_lock lock;
    const cudaError_t entered = emu_enter("launch");
    if (entered != cudaSuccess)
        return emu_leave(entered);
    emu_stream *s = emu_stream_of(stream);
    if (!s)
        return emu_leave(cudaErrorInvalidResourceHandle);
    if (s->capture)
        s->capture->nodes.push_back(std::move(work));
    else
        s->queue.push_back(std::move(work));
    return cudaSuccess;
}

cudaError_t emu_drain(emu_stream *s)
{
    if (s->capture) {
        emu_leave(cudaErrorStreamCaptureUnsupported);
        return cudaErrorStreamCaptureUnsupported;
    }
    if (s->running || s->queue.empty())
        return emu_ctx().sticky;
    s->running = true;
    emu_memory_reveal(true);
    while (!s->queue.empty()) {
        const emu_work work = std::move(s->queue.front());
        s->queue.pop_front();
        if (emu_ctx().sticky == cudaSuccess)
            work();
    }
    emu_memory_reveal(false);
    s->running = false;
    return emu_ctx().sticky;
}

cudaError_t emu_drain_all()
{
    cudaError_t error = emu_drain(&emu_ctx().legacy);
    for (size_t i = 0; i < emu_ctx().streams.size(); i++) {
        const cudaError_t one = emu_drain(emu_ctx().streams[i]);
        error = error == cudaSuccess ? one : error;
    }
    return error;
}

extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    ENTER(cudaStreamCreateWithFlags);
    *stream = new emu_stream;
    emu_ctx().streams.push_back(*stream);
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    emu_lock lock;
    emu_stream *s = emu_stream_of(stream);
    if (!s || !stream)
        return emu_leave(cudaErrorInvalidResourceHandle);
    emu_drain(s);
    std::vector<emu_stream *> &all = emu_ctx().streams;
    for (size_t i = 0; i < all.size(); i++)
        if (all[i] == s)
            all.erase(all.begin() + (long)i);
    delete s;
    return emu_ctx().sticky;
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    ENTER(cudaStreamSynchronize);
    emu_stream *s = emu_stream_of(stream);
    return emu_leave(s ? emu_drain(s) : cudaErrorInvalidResourceHandle);
}

extern "C" cudaError_t cudaDeviceSynchronize(void)
{
    ENTER(cudaDeviceSynchronize);
    return emu_leave(emu_drain_all());
}

// Events ------------------------------------------------------------------------------------------------------

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    ENTER(cudaEventCreateWithFlags);
    *event = new emu_event;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    emu_lock lock;
    delete event;
    return cudaSuccess;
}

extern "C" cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    ENTER(cudaEventRecord);
    emu_stream *s = emu_stream_of(stream);
    if (!s || !event)
        return emu_leave(cudaErrorInvalidResourceHandle);
    std::shared_ptr<emu_point> point = std::make_shared<emu_point>();
    point->stream = s;
    event->point = point;
    return emu_enqueue(stream, [point]() { point->reached = true; });
}

static void run_to(const std::shared_ptr<emu_point> &point)
{
    if (!point->reached)
        emu_drain(point->stream);
}

extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    ENTER(cudaStreamWaitEvent);
    if (!event->point)
        return cudaSuccess; // never recorded: no wait, as in CUDA
    const std::shared_ptr<emu_point> point = event->point;
    return emu_enqueue(stream, [point]() { run_to(point); });
}

extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    ENTER(cudaEventSynchronize);
    if (event->point)
        run_to(event->point);
    return emu_leave(emu_ctx().sticky);
}

extern "C" cudaError_t cudaEventQuery(cudaEvent_t event)
{
    ENTER(cudaEventQuery);
    return !event->point || event->point->reached ? cudaSuccess : cudaErrorNotReady;
}

// Graphs ------------------------------------------------------------------------------------------------------

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    (void)mode;
    ENTER(cudaStreamBeginCapture);
    emu_stream *s = emu_stream_of(stream);
    if (!s || !stream || s->capture)
        return emu_leave(cudaErrorInvalidValue);
    s->capture = new emu_graph;
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    ENTER(cudaStreamEndCapture);
    emu_stream *s = emu_stream_of(stream);
    if (!s || !s->capture)
        return emu_leave(cudaErrorInvalidValue);
    *graph = s->capture;
    s->capture = nullptr;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    ENTER(cudaGraphInstantiate);
    emu_graph_exec *e = new emu_graph_exec;
    e->nodes = graph->nodes;
    *exec = e;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    ENTER(cudaGraphLaunch);
    emu_ctx().counters.graph_launches++;
    const std::vector<emu_work> nodes = exec->nodes;
    return emu_enqueue(stream, [nodes]() {
        for (const emu_work &work : nodes)
            if (emu_ctx().sticky == cudaSuccess)
                work();
    });
}

extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    emu_lock lock;
    delete graph;
    return cudaSuccess;
}

extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    emu_lock lock;
    delete exec;
    return cudaSuccess;
}
