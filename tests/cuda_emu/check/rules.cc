// rules.cc - the emulator itself: what it has to report, and CUDA's rules that it has to enforce. Test code.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
}

#include "common/compute/cuda/cuda_common.cuh"

#define COUNT 64

// Thread t reads what its neighbour wrote.
static __global__ void rotate_kernel(int *y, int with_barrier)
{
    CUDA_SHARED(int, values, COUNT);
    values[threadIdx.x] = 0;
    __syncthreads();
    values[threadIdx.x] = (int)threadIdx.x;
    if (with_barrier)
        __syncthreads();
    y[threadIdx.x] = values[(threadIdx.x + 1) % COUNT];
}

static __global__ void unwritten_kernel(int *y)
{
    CUDA_SHARED(int, never, COUNT);
    y[threadIdx.x] = never[threadIdx.x];
}

static __global__ void beyond_kernel(int *y)
{
    CUDA_SHARED(int, values, COUNT);
    values[threadIdx.x + 1] = 1;
    y[threadIdx.x] = 0;
}

static __global__ void lone_barrier_kernel(int *y)
{
    if (threadIdx.x == 0)
        __syncthreads();
    else
        y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
}

static __global__ void trap_kernel(int *y)
{
    CUDA_ASSERT(threadIdx.x < COUNT / 2);
    y[threadIdx.x] = 1;
}

static __global__ void sum_kernel(const float *x, float *y)
{
    y[threadIdx.x] = block_sum(x[threadIdx.x]);
}

static __global__ void add_one_kernel(int *y)
{
    y[threadIdx.x] = y[threadIdx.x] + 1;
}

typedef struct fixture {
    int *dev;
    int host[COUNT];
    cudaStream_t stream;
} fixture;

static int setup(void **state)
{
    static fixture f;
    emu_reset();
    if (cudaMalloc((void **)&f.dev, sizeof f.host) != cudaSuccess ||
        cudaStreamCreateWithFlags(&f.stream, cudaStreamNonBlocking) != cudaSuccess)
        return -1;
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = (fixture *)*state;
    emu_reset();
    cudaStreamDestroy(f->stream);
    cudaFree(f->dev);
    return 0;
}

static cudaError_t fetch(fixture *f)
{
    const cudaError_t copied = cudaMemcpyAsync(f->host, f->dev, sizeof f->host, cudaMemcpyDeviceToHost, f->stream);
    return copied == cudaSuccess ? cudaStreamSynchronize(f->stream) : copied;
}

static void test_race_is_reported(void **state)
{
    fixture *f = (fixture *)*state;
    emu_counters counters;
    emu_launch("rotate", 1, COUNT, f->stream, rotate_kernel, f->dev, 1);
    assert_int_equal(fetch(f), cudaSuccess);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(f->host[i], (i + 1) % COUNT);
    emu_launch("rotate", 1, COUNT, f->stream, rotate_kernel, f->dev, 0);
    assert_int_equal(fetch(f), cudaErrorLaunchFailure);
    emu_count(&counters);
    assert_int_equal(counters.races, 1);
    assert_int_equal(cudaMalloc((void **)&f->stream, 4), cudaErrorLaunchFailure); // sticky
    assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
    assert_int_equal(cudaGetLastError(), cudaSuccess); // forgets, as on a card; the next call fails again
    assert_int_equal(cudaMalloc((void **)&f->stream, 4), cudaErrorLaunchFailure);
}

static void expect_failure(void **state, void (*kernel)(int *), cudaError_t error)
{
    fixture *f = (fixture *)*state;
    emu_launch("deliberate", 2, COUNT, f->stream, kernel, f->dev);
    assert_int_equal(fetch(f), error);
}

static void test_unwritten_shared_memory(void **state)
{
    expect_failure(state, unwritten_kernel, cudaErrorLaunchFailure);
}

static void test_shared_index(void **state)
{
    expect_failure(state, beyond_kernel, cudaErrorIllegalAddress);
}

static void test_barrier_that_not_all_reach(void **state)
{
    expect_failure(state, lone_barrier_kernel, cudaErrorLaunchFailure);
}

static void test_trap(void **state)
{
    expect_failure(state, trap_kernel, cudaErrorLaunchFailure);
}

static void test_block_sum(void **state)
{
    fixture *f = (fixture *)*state;
    float x[COUNT], *dev_x, y[COUNT];
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)i;
    assert_int_equal(cudaMalloc((void **)&dev_x, sizeof x), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(dev_x, x, sizeof x, cudaMemcpyHostToDevice, f->stream), cudaSuccess);
    emu_launch("sum", 1, COUNT, f->stream, sum_kernel, (const float *)dev_x, dev_x);
    assert_int_equal(cudaMemcpyAsync(y, dev_x, sizeof y, cudaMemcpyDeviceToHost, f->stream), cudaSuccess);
    for (int i = 0; i < COUNT; i++)
        assert_true(y[i] == (float)(COUNT * (COUNT - 1) / 2));
    cudaFree(dev_x);
}

// What is not waited for has not happened.
static void test_work_waits(void **state)
{
    fixture *f = (fixture *)*state;
    int *pinned;
    assert_int_equal(cudaMallocHost((void **)&pinned, sizeof f->host), cudaSuccess);
    memset(pinned, 0, sizeof f->host);
    assert_int_equal(cudaMemsetAsync(f->dev, 1, sizeof f->host, f->stream), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(pinned, f->dev, sizeof f->host, cudaMemcpyDeviceToHost, f->stream), cudaSuccess);
    assert_int_equal(pinned[0], 0);
    assert_int_equal(cudaStreamSynchronize(f->stream), cudaSuccess);
    assert_int_equal(pinned[0], 0x01010101);
    cudaFreeHost(pinned);
}

static void test_events_order_streams(void **state)
{
    fixture *f = (fixture *)*state;
    cudaStream_t other;
    cudaEvent_t done;
    assert_int_equal(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), cudaSuccess);
    assert_int_equal(cudaMemsetAsync(f->dev, 0, sizeof f->host, f->stream), cudaSuccess);
    emu_launch("one", 1, COUNT, f->stream, add_one_kernel, f->dev);
    assert_int_equal(cudaEventRecord(done, f->stream), cudaSuccess);
    assert_int_equal(cudaEventQuery(done), cudaErrorNotReady);
    assert_int_equal(cudaStreamWaitEvent(other, done, 0), cudaSuccess);
    emu_launch("one", 1, COUNT, other, add_one_kernel, f->dev);
    assert_int_equal(cudaStreamSynchronize(other), cudaSuccess);
    assert_int_equal(cudaEventQuery(done), cudaSuccess);
    assert_int_equal(fetch(f), cudaSuccess);
    assert_int_equal(f->host[3], 2);
    cudaEventDestroy(done);
    cudaStreamDestroy(other);
}

static void test_graph_replays(void **state)
{
    fixture *f = (fixture *)*state;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_int_equal(cudaMemsetAsync(f->dev, 0, sizeof f->host, f->stream), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(f->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    emu_launch("one", 1, COUNT, f->stream, add_one_kernel, f->dev);
    assert_int_equal(cudaStreamSynchronize(f->stream), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(f->stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    for (int i = 0; i < 3; i++)
        assert_int_equal(cudaGraphLaunch(exec, f->stream), cudaSuccess);
    assert_int_equal(fetch(f), cudaSuccess);
    assert_int_equal(f->host[0], 3); // recording ran nothing
    cudaGraphExecDestroy(exec);
}

static void test_memory_rules(void **state)
{
    fixture *f = (fixture *)*state;
    size_t free_bytes, total_bytes;
    void *p;
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    assert_int_equal(cudaMalloc(&p, free_bytes + 1), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess); // not sticky
    assert_int_equal(cudaMemcpyAsync(f->dev, f->host, sizeof f->host + 4, cudaMemcpyHostToDevice, f->stream),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(f->host, f->host, 4, cudaMemcpyDeviceToHost, f->stream), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(f->dev + 1), cudaErrorInvalidValue);
    emu_fail_next("cudaMalloc", 2, cudaErrorMemoryAllocation);
    assert_int_equal(cudaMalloc(&p, 4), cudaSuccess);
    cudaFree(p);
    assert_int_equal(cudaMalloc(&p, 4), cudaErrorMemoryAllocation);
}

// The exit status or signal of a child that runs `act`.
static int in_child(void (*act)(fixture *), fixture *f)
{
    int status;
    const pid_t pid = fork();
    if (pid == 0) {
        act(f);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void touch_device_memory(fixture *f)
{
    signal(SIGSEGV, SIG_DFL);
    _exit(*(volatile int *)f->dev == 0);
}

static void use_parents_context(fixture *f)
{
    _exit(cudaMemset(f->dev, 0, 4) == cudaErrorInitializationError ? 7 : 1);
}

static void test_host_cannot_follow_device_pointers(void **state)
{
#if !defined(__SANITIZE_ADDRESS__) // the sanitizer ends the child in its own way
    assert_int_equal(in_child(touch_device_memory, (fixture *)*state), 1000 + SIGSEGV);
#else
    (void)touch_device_memory;
#endif
    assert_int_equal(in_child(use_parents_context, (fixture *)*state), 7);
}

// Exports one allocation at a time: writes its handle, waits for a byte, frees, waits for a byte, ends.
[[noreturn]] static void exporter(int out, int in)
{
    int *dev, value = 4711;
    char byte;
    cudaIpcMemHandle_t handle;
    if (cudaMalloc((void **)&dev, 4096) != cudaSuccess ||
        cudaMemcpy(dev, &value, sizeof value, cudaMemcpyHostToDevice) != cudaSuccess ||
        cudaIpcGetMemHandle(&handle, dev + 1) != cudaErrorInvalidValue ||
        cudaIpcGetMemHandle(&handle, dev) != cudaSuccess ||
        cudaIpcOpenMemHandle((void **)&dev, handle, cudaIpcMemLazyEnablePeerAccess) != cudaErrorDeviceUninitialized ||
        write(out, &handle, sizeof handle) != sizeof handle || read(in, &byte, 1) != 1)
        _exit(1);
    cudaFree(dev);
    (void)!write(out, &byte, 1);
    (void)!read(in, &byte, 1);
    _exit(0);
}

// Runs first: a child can have a context of its own only while this process has none.
static void test_handles_between_processes(void **state)
{
    (void)state;
    int to[2], from[2], value = 0, status;
    char byte = 0;
    cudaIpcMemHandle_t handle;
    int *a, *b;
    assert_int_equal(pipe(to) | pipe(from), 0);
    const pid_t pid = fork();
    if (pid == 0)
        exporter(from[1], to[0]);
    assert_int_equal(read(from[0], &handle, sizeof handle), sizeof handle);
    assert_int_equal(cudaIpcOpenMemHandle((void **)&a, handle, 0), cudaErrorInvalidValue);
    assert_int_equal(cudaIpcOpenMemHandle((void **)&a, handle, cudaIpcMemLazyEnablePeerAccess), cudaSuccess);
    assert_int_equal(cudaIpcOpenMemHandle((void **)&b, handle, cudaIpcMemLazyEnablePeerAccess), cudaSuccess);
    assert_ptr_equal(a, b);
    assert_int_equal(cudaMemcpy(&value, a, sizeof value, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(value, 4711);
    assert_int_equal(cudaFree(a), cudaErrorInvalidValue); // not ours
    assert_int_equal(cudaIpcCloseMemHandle(a), cudaSuccess);
    assert_int_equal(cudaIpcCloseMemHandle(a), cudaSuccess);
    assert_int_equal(cudaIpcCloseMemHandle(a), cudaErrorInvalidValue);
    assert_int_equal(write(to[1], &byte, 1), 1); // the exporter frees
    assert_int_equal(read(from[0], &byte, 1), 1);
    assert_int_equal(cudaIpcOpenMemHandle((void **)&a, handle, cudaIpcMemLazyEnablePeerAccess),
                     cudaErrorMapBufferObjectFailed);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    assert_int_equal(cudaIpcOpenMemHandle((void **)&a, handle, cudaIpcMemLazyEnablePeerAccess),
                     cudaErrorMapBufferObjectFailed);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_handles_between_processes),
        cmocka_unit_test_setup_teardown(test_race_is_reported, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unwritten_shared_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shared_index, setup, teardown),
        cmocka_unit_test_setup_teardown(test_barrier_that_not_all_reach, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trap, setup, teardown),
        cmocka_unit_test_setup_teardown(test_block_sum, setup, teardown),
        cmocka_unit_test_setup_teardown(test_work_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events_order_streams, setup, teardown),
        cmocka_unit_test_setup_teardown(test_graph_replays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_rules, setup, teardown),
        cmocka_unit_test_setup_teardown(test_host_cannot_follow_device_pointers, setup, teardown),
    };
    return cmocka_run_group_tests_name("cuda_emu rules", tests, NULL, NULL);
}
