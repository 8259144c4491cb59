// emu_impl.hh - the inside of the emulator: what its files share.
#ifndef CF_TESTS_CUDA_EMU_IMPL_HH
#define CF_TESTS_CUDA_EMU_IMPL_HH

#include <pthread.h>
#include <sys/types.h>

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

typedef std::function<void()> emu_work;

// A point in a stream: everything before it has run once `reached` is true.
struct emu_point {
    bool reached = false;
    emu_stream *stream = nullptr;
};

struct emu_graph {
    std::vector<emu_work> nodes;
};

struct emu_graph_exec {
    std::vector<emu_work> nodes;
};

struct emu_event {
    std::shared_ptr<emu_point> point; // null: never recorded
};

struct emu_stream {
    std::deque<emu_work> queue;
    emu_graph *capture = nullptr; // recording into it
    bool running = false;
};

// One lock: CUDA's calls may come from any thread, the emulator has one device thread, whichever holds it.
struct emu_lock {
    emu_lock();
    ~emu_lock();
};

// The state of this process's context.
struct emu_context {
    pid_t pid = 0; // 0: not initialised
    int device = 0;
    cudaError_t sticky = cudaSuccess;
    cudaError_t last = cudaSuccess;
    emu_counters counters = {};
    std::vector<emu_stream *> streams;
    emu_stream legacy; // stream NULL
};

emu_context &emu_ctx();
cudaError_t emu_enter(const char *call);  // initialises; the sticky error, an injected one, or cudaSuccess
cudaError_t emu_leave(cudaError_t error); // remembers it for cudaGetLastError
void emu_stick(cudaError_t error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
cudaError_t emu_drain(emu_stream *stream); // runs what the stream holds
cudaError_t emu_drain_all();
emu_stream *emu_stream_of(cudaStream_t stream);
long emu_env(const char *name, long otherwise);

// Device memory. Outside of device work it cannot be read or written by the host.
void emu_memory_reveal(bool visible);
bool emu_is_device(const void *ptr);
bool emu_is_pinned(const void *ptr);

bool emu_in_kernel();

int emu_code_built(); // what the program's kernels were compiled for, times ten: at most the device's capability
int emu_code();       // the same of the running kernel
[[noreturn]] void emu_refuse(const char *instruction); // ends the launch: not there yet in that code

#endif
