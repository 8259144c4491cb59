/*
 * cuda_runtime.h - CUDA C++ as far as the project's kernels use it, for a host compiler (EMU=1).
 *
 * A kernel is an ordinary function. Each thread of a block is a fiber; blocks run one after the other. A barrier hands
 * the processor to another fiber, chosen by a seeded generator, so that what no barrier orders runs in many orders.
 * Shared arrays are objects that know who touched which element since the last barrier and report races, reads of
 * what nobody wrote, and indices out of range; a report fails the launch with a sticky error.
 */
#ifndef CF_TESTS_CUDA_EMU_RUNTIME_H
#define CF_TESTS_CUDA_EMU_RUNTIME_H

#include "cuda_runtime_api.h"

#ifdef __cplusplus
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __constant__    static const
#define __forceinline__ inline
#define __launch_bounds__(...)

struct emu_dim {
    unsigned x;
};
extern emu_dim threadIdx, blockIdx, blockDim, gridDim;

/* Puts work behind what the stream already has. */
cudaError_t emu_enqueue(cudaStream_t stream, std::function<void()> work);
/* Runs one kernel: grid blocks of block fibers. */
void emu_run_grid(const char *name, unsigned grid, unsigned block, const std::function<void()> &body);
void emu_launch_failed(cudaError_t error);

template <typename... P, typename... A>
void emu_launch(const char *name, unsigned grid, unsigned block, cudaStream_t stream, void (*kernel)(P...), A... args)
{
    if (block == 0 || block > 1024 || grid == 0) {
        emu_launch_failed(cudaErrorInvalidConfiguration);
        return;
    }
    std::tuple<P...> held(static_cast<P>(args)...);
    (void)emu_enqueue(stream, [=]() { emu_run_grid(name, grid, block, [&]() { std::apply(kernel, held); }); });
}

/* Barriers and collectives of the running fiber. A barrier knows where it stands, so that mutants.sh can delete it. */
void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE());
void __syncwarp(unsigned mask = 0xffffffffu);
uint64_t emu_exchange(unsigned mask, uint64_t mine, int from_lane); /* another lane's value; all of mask take part */
const void *const *emu_gather(const void *mine);                    /* 32 pointers, one of each lane of the warp */
void emu_gather_done();
unsigned __ballot_sync(unsigned mask, int predicate);
[[noreturn]] void emu_trap();
/* ptx.cuh mma_f16_k16 and mma_f16_k8; the first ends the launch where the device or its code is older than sm_80. */
void emu_mma_f16(float c[4], const uint32_t *a, const uint32_t *b, int depth);

static inline int emu_lane()
{
    return (int)(threadIdx.x % 32u);
}

template <typename T> T emu_shuffle(unsigned mask, T value, int from_lane)
{
    static_assert(sizeof(T) <= 8, "one register pair");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emu_exchange(mask, bits, from_lane);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T> T __shfl_sync(unsigned mask, T value, int from_lane)
{
    return emu_shuffle(mask, value, from_lane & 31);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int lane_mask)
{
    return emu_shuffle(mask, value, emu_lane() ^ lane_mask);
}

/* When, and by whom: the number of the epoch, then of the thread. Epochs are counted by barriers over all blocks of a
 * process. What is below the first stamp of an epoch happened before it. */
typedef uint64_t emu_stamp;
#define EMU_STAMP_THREADS 2048u
#define EMU_SEVERAL       (EMU_STAMP_THREADS - 1) /* where a thread stands: more than one; no block has so many */
struct emu_turn {
    emu_stamp mine, epoch, block; /* of the running thread; first ones of this epoch and of the block's first */
};
extern emu_turn emu_now;

/* Who touched an element last, and when. */
struct emu_shadow {
    emu_stamp written, read;
};
/* What an access did wrong; they report it and do not return. */
[[noreturn]] void emu_shared_misread(const char *array, size_t idx, size_t count, const emu_shadow *shadow);
[[noreturn]] void emu_shared_miswritten(const char *array, size_t idx, size_t count, const emu_shadow *shadow);

static inline bool emu_is_foreign(emu_stamp stamp)
{
    return stamp >= emu_now.epoch && stamp != emu_now.mine;
}

template <typename T> struct emu_element {
    T *at;
    emu_shadow *shadow;
    const char *array;
    size_t idx, count;
    operator T() const
    {
        const emu_stamp read = shadow->read, mine = emu_now.mine;
        if (idx >= count || shadow->written < emu_now.block || emu_is_foreign(shadow->written))
            emu_shared_misread(array, idx, count, shadow);
        if (read != mine)
            shadow->read = emu_is_foreign(read) ? emu_now.epoch + EMU_SEVERAL : mine;
        return *at;
    }
    emu_element &operator=(T value)
    {
        if (idx >= count || emu_is_foreign(shadow->written) || emu_is_foreign(shadow->read))
            emu_shared_miswritten(array, idx, count, shadow);
        shadow->written = emu_now.mine;
        *at = value;
        return *this;
    }
    emu_element &operator=(const emu_element &other)
    {
        return *this = (T)other;
    }
};

template <typename T, size_t COUNT> struct emu_shared_array {
    T values[COUNT];
    emu_shadow shadow[COUNT];
    const char *name;
    explicit emu_shared_array(const char *called) : values(), shadow(), name(called)
    {
    }
    emu_element<T> operator[](size_t idx)
    {
        const size_t safe = idx < COUNT ? idx : 0; /* the element reports idx before it is used */
        return emu_element<T>{&values[safe], &shadow[safe], name, idx, COUNT};
    }
};

#define CUDA_UNROLL
#define CUDA_SHARED(type, name, count)                    static emu_shared_array<type, (count)> name(#name)
#define CUDA_TRAP()                                       emu_trap()
#define CUDA_LAUNCH_RAW(kernel, grid, block, stream, ...) emu_launch(#kernel, grid, block, stream, kernel, __VA_ARGS__)

#endif
#endif
