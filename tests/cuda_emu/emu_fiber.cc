// emu_fiber.cc - runs kernels: blocks one after the other, the threads of a block as fibers on one system thread.
//
// A fiber runs until it ends or waits: at a barrier of the block, or at a collective of its warp. Then any fiber that
// can run is chosen, by a generator seeded from COSYFARM_EMU_SEED, so threads between two barriers run in
// an order that no kernel may rely on. A barrier that some thread will never reach, a collective that a named lane
// leaves out, a race in shared memory, and a trap end the launch with a sticky error, as a fault would on a device.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "emu_impl.hh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define THREADS_MAX 1024
#define WARP_LANES  32
#define STACK_BYTES ((size_t)256 << 10)
#define NOBODY      THREADS_MAX                                  // the scheduler
#define STACK_LINES 6                                            // of the cache: what a waiting thread touches first
#define INLINE      static inline __attribute__((always_inline)) // each frame on a fiber's stack is one more cache line

emu_dim threadIdx, blockIdx, blockDim, gridDim;
emu_turn emu_now;

// A thread takes a stack when it first runs and gives it back when it ends, so a kernel without barriers runs on one
// stack that stays in the cache.
struct fiber {
    void *sp;
    char *stack;      // NULL: has not run yet, or has ended
    void *fake_stack; // of the address sanitizer
    bool is_done;
};

struct warp {
    unsigned arrived;                   // lanes at the current collective
    unsigned exchanges[WARP_LANES];     // of each lane so far: picks one of two rows of slots
    unsigned masks[WARP_LANES];         // waited for
    const char *collective[WARP_LANES]; // name, for reports
    uint64_t slots[2][WARP_LANES];
    const void *pointers[WARP_LANES];
};

static struct {
    fiber fibers[THREADS_MAX];
    warp warps[THREADS_MAX / WARP_LANES];
    unsigned ready[THREADS_MAX];
    unsigned ready_count, live, at_barrier;
    char *stacks[THREADS_MAX]; // not in use
    unsigned stack_count;
    unsigned current, drawn; // drawn: who is next, NOBODY: not yet
    void *scheduler_sp;
    void *scheduler_fake;
    const void *scheduler_bottom;
    size_t scheduler_bytes;
    const std::function<void()> *body;
    const char *kernel;
    bool running, failed;
    int code; // compute capability times ten that the running kernel was compiled for
    uint64_t random;
    char deleted_file[64]; // of COSYFARM_EMU_WITHOUT_BARRIER=FILE:LINE, the file without its folder
    int deleted_line;      // 0: none
} run;

static_assert(THREADS_MAX < EMU_SEVERAL, "a stamp names each thread");

bool emu_in_kernel()
{
    return run.running;
}

// Reports and choice ------------------------------------------------------------------------------------------

static void report(cudaError_t error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void report(cudaError_t error, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (!run.failed)
        emu_stick(error, "kernel %s, block %u, thread %u: %s", run.kernel, blockIdx.x, threadIdx.x, text);
    run.failed = true;
}

static uint32_t next_random()
{
    uint64_t x = run.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    run.random = x;
    return (uint32_t)(x >> 32);
}

INLINE void set_current(unsigned idx)
{
    run.current = threadIdx.x = idx;
    emu_now.mine = emu_now.epoch + idx;
}

// Nobody can run: a barrier that all have reached opens, anything else is a deadlock.
static bool open_barrier()
{
    if (run.at_barrier != run.live) {
        report(cudaErrorLaunchFailure, "%u of %u threads wait at a barrier that the others do not reach",
               run.at_barrier, run.live);
        return false;
    }
    emu_now.epoch += EMU_STAMP_THREADS;
    emu_ctx().counters.barriers++;
    run.at_barrier = 0;
    for (unsigned i = 0; i < blockDim.x; i++)
        if (!run.fibers[i].is_done)
            run.ready[run.ready_count++] = i;
    return true;
}

// Takes any thread out of those that can run, and its stack towards the cache.
INLINE unsigned draw()
{
    const unsigned pick = (unsigned)((uint64_t)next_random() * run.ready_count >> 32);
    const unsigned idx = run.ready[pick];
    run.ready[pick] = run.ready[--run.ready_count];
    const char *sp = (const char *)run.fibers[idx].sp;
    for (int line = 0; line < STACK_LINES; line++)
        __builtin_prefetch(sp + 64 * line);
    return idx;
}

// Who goes on: any thread that can, drawn one turn ahead; NOBODY at the end of the block or after a failure.
INLINE unsigned choose()
{
    if (run.failed || run.live == 0)
        return NOBODY;
    if (run.drawn == NOBODY) {
        if (run.ready_count == 0 && !open_barrier())
            return NOBODY;
        run.drawn = draw();
    }
    const unsigned idx = run.drawn;
    run.drawn = run.ready_count > 0 ? draw() : NOBODY;
    return idx;
}

// Switching ---------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void emu_switch(void **save_sp, void *load_sp);
asm(R"(
    .text
    .globl emu_switch
    .type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch, . - emu_switch
)");

static void fiber_entry();

static void *fresh_stack(char *stack)
{
    // Tops a cache line apart from those of other stacks, which would share one set of the cache.
    void **top = (void **)(stack + STACK_BYTES - 64 - (uintptr_t)stack / STACK_BYTES % 61 * 64);
    *--top = nullptr; // where a return address of the entry would be: keeps the stack aligned for calls
    *--top = (void *)fiber_entry;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    return top;
}
#else
// Elsewhere the C library's contexts: slower, the same order. A stack begins with the context that enters it.
static void fiber_entry();

static void *fresh_stack(char *stack)
{
    ucontext_t *c = (ucontext_t *)stack;
    getcontext(c);
    c->uc_stack.ss_sp = stack + sizeof *c;
    c->uc_stack.ss_size = STACK_BYTES - sizeof *c;
    c->uc_link = nullptr;
    makecontext(c, fiber_entry, 0);
    return c;
}

static void emu_switch(void **save_sp, void *load_sp)
{
    ucontext_t here;
    *save_sp = &here;
    swapcontext(&here, (ucontext_t *)load_sp);
}
#endif

static char *take_stack()
{
    if (run.stack_count > 0)
        return run.stacks[--run.stack_count];
    void *stack = mmap(nullptr, 2 * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        abort();
    return (char *)(((uintptr_t)stack + STACK_BYTES - 1) / STACK_BYTES * STACK_BYTES); // its number colours it
}

// Leaves the running stack for another: of thread idx, or of the scheduler when idx is NOBODY.
INLINE void switch_to(void **save_sp, void **save_fake, unsigned idx)
{
    void *load_sp = run.scheduler_sp;
    if (idx != NOBODY) {
        fiber *f = &run.fibers[idx];
        if (!f->stack) {
            f->stack = take_stack();
#if defined(__SANITIZE_ADDRESS__)
            __asan_unpoison_memory_region(f->stack, STACK_BYTES); // frames that were left for good
#endif
            f->sp = fresh_stack(f->stack);
        }
        load_sp = f->sp;
        set_current(idx);
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(save_fake, idx == NOBODY ? run.scheduler_bottom : run.fibers[idx].stack,
                                   idx == NOBODY ? run.scheduler_bytes : STACK_BYTES);
#endif
    emu_switch(save_sp, load_sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(save_fake ? *save_fake : nullptr, nullptr, nullptr);
#endif
    (void)save_fake;
}

// The running thread waits: another goes on. Returns when it was chosen again.
INLINE void pause_thread()
{
    fiber *f = &run.fibers[run.current];
    const unsigned next = choose();
    if (next == run.current)
        set_current(next); // the epoch may be another
    else
        switch_to(&f->sp, &f->fake_stack, next);
}

// Runs threads one after the other on this stack, as long as they end without waiting.
static void fiber_entry()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    for (;;) {
        (*run.body)();
        fiber *me = &run.fibers[run.current];
        char *stack = me->stack;
        me->is_done = true;
        me->stack = nullptr;
        run.live--;
        const unsigned next = choose();
        if (next != NOBODY && !run.fibers[next].stack) {
            run.fibers[next].stack = stack;
            set_current(next);
            continue;
        }
        run.stacks[run.stack_count++] = stack; // nothing is put on it before it is left
        void *nowhere;
        switch_to(&nowhere, nullptr, next);
    }
}

// Ending and waiting ------------------------------------------------------------------------------------------

// A fiber that must not go on; the scheduler stops the launch.
[[noreturn]] static void abandon()
{
    void *nowhere;
    switch_to(&nowhere, nullptr, NOBODY);
    abort();
}

[[noreturn]] void emu_trap()
{
    report(cudaErrorLaunchFailure, "trap");
    abandon();
}

int emu_code()
{
    return run.code;
}

[[noreturn]] void emu_refuse(const char *what)
{
    report(cudaErrorIllegalInstruction, "%s is no instruction of sm_%d", what, run.code);
    abandon();
}

static bool is_deleted(const char *file)
{
    const char *slash = strrchr(file, '/');
    return strcmp(slash ? slash + 1 : file, run.deleted_file) == 0;
}

void __syncthreads(const char *file, int line)
{
    if (line == run.deleted_line && is_deleted(file))
        return;
    run.at_barrier++;
    pause_thread();
}

INLINE unsigned warp_lanes_present(unsigned warp_idx)
{
    const unsigned first = warp_idx * WARP_LANES, left = blockDim.x - first;
    return left >= WARP_LANES ? 0xffffffffu : (1u << left) - 1;
}

// The last lane of mask is here: the others are ready, in any order.
INLINE void warp_open(warp *w, unsigned first, unsigned lane, unsigned mask, const char *name)
{
    w->arrived &= ~mask;
    for (unsigned left = mask & ~(1u << lane); left; left &= left - 1) {
        const unsigned i = (unsigned)__builtin_ctz(left);
        if (w->masks[i] != mask || w->collective[i] != name) {
            report(cudaErrorLaunchFailure, "%s meets %s of lane %u: masks or collectives differ", name,
                   w->collective[i], i);
            abandon();
        }
        run.ready[run.ready_count++] = first + i;
    }
}

// Waits until every lane of mask is here.
INLINE void warp_wait(unsigned mask, const char *name)
{
    const unsigned me = run.current, warp_idx = me / WARP_LANES, lane = me % WARP_LANES;
    warp *w = &run.warps[warp_idx];
    mask &= warp_lanes_present(warp_idx);
    if (!(mask >> lane & 1)) {
        report(cudaErrorLaunchFailure, "%s: the mask %08x does not name the calling lane", name, mask);
        abandon();
    }
    w->masks[lane] = mask;
    w->collective[lane] = name;
    w->arrived |= 1u << lane;
    if ((w->arrived & mask) == mask)
        warp_open(w, me - lane, lane, mask, name);
    else
        pause_thread();
}

void __syncwarp(unsigned mask)
{
    warp_wait(mask, "__syncwarp");
}

uint64_t emu_exchange(unsigned mask, uint64_t mine, int from_lane)
{
    warp *w = &run.warps[run.current / WARP_LANES];
    const unsigned row = w->exchanges[run.current % WARP_LANES]++ % 2;
    w->slots[row][run.current % WARP_LANES] = mine;
    warp_wait(mask, "shuffle");
    if (!(mask & warp_lanes_present(run.current / WARP_LANES) & 1u << from_lane)) {
        report(cudaErrorLaunchFailure, "shuffle from lane %d, which takes no part", from_lane);
        abandon();
    }
    return w->slots[row][from_lane];
}

unsigned __ballot_sync(unsigned mask, int predicate)
{
    unsigned votes = 0;
    warp *w = &run.warps[run.current / WARP_LANES];
    const unsigned row = w->exchanges[run.current % WARP_LANES]++ % 2;
    w->slots[row][run.current % WARP_LANES] = predicate != 0;
    warp_wait(mask, "ballot");
    for (unsigned i = 0; i < WARP_LANES; i++)
        if (mask & warp_lanes_present(run.current / WARP_LANES) & 1u << i)
            votes |= (unsigned)w->slots[row][i] << i;
    return votes;
}

const void *const *emu_gather(const void *mine)
{
    warp *w = &run.warps[run.current / WARP_LANES];
    w->pointers[run.current % WARP_LANES] = mine;
    warp_wait(0xffffffffu, "gather");
    return w->pointers;
}

void emu_gather_done()
{
    warp_wait(0xffffffffu, "gather end");
}

// Shared memory -----------------------------------------------------------------------------------------------

[[noreturn]] static void race(const char *array, size_t idx, const char *first, emu_stamp other, const char *second)
{
    const unsigned thread = other % EMU_STAMP_THREADS;
    char named[32] = "several threads";
    if (thread != EMU_SEVERAL)
        snprintf(named, sizeof named, "thread %u", thread);
    emu_ctx().counters.races++;
    report(cudaErrorLaunchFailure, "%s[%zu]: %s by %s and %s by thread %u without a barrier between them", array, idx,
           first, named, second, threadIdx.x);
    abandon();
}

static void check_idx(const char *array, size_t idx, size_t count)
{
    if (idx < count)
        return;
    report(cudaErrorIllegalAddress, "%s[%zd]: the array has %zu elements", array, (ssize_t)idx, count);
    abandon();
}

void emu_shared_misread(const char *array, size_t idx, size_t count, const emu_shadow *shadow)
{
    check_idx(array, idx, count);
    if (shadow->written < emu_now.block) {
        report(cudaErrorLaunchFailure, "%s[%zu] is read before this block wrote it", array, idx);
        abandon();
    }
    race(array, idx, "written", shadow->written, "read");
}

void emu_shared_miswritten(const char *array, size_t idx, size_t count, const emu_shadow *shadow)
{
    check_idx(array, idx, count);
    if (emu_is_foreign(shadow->written))
        race(array, idx, "written", shadow->written, "written");
    race(array, idx, "read", shadow->read, "written");
}

// Scheduling --------------------------------------------------------------------------------------------------

// The sanitizer wants to know where the scheduler's stack is.
static void find_own_stack()
{
#if defined(__SANITIZE_ADDRESS__)
    pthread_attr_t attr;
    void *bottom;
    if (pthread_getattr_np(pthread_self(), &attr) != 0 ||
        pthread_attr_getstack(&attr, &bottom, &run.scheduler_bytes) != 0)
        abort();
    pthread_attr_destroy(&attr);
    run.scheduler_bottom = bottom;
#endif
}

static void run_block(unsigned block)
{
    emu_now.block = emu_now.epoch += EMU_STAMP_THREADS;
    run.ready_count = run.at_barrier = 0;
    run.drawn = NOBODY;
    run.live = blockDim.x;
    for (unsigned i = 0; i < blockDim.x; i++) {
        run.fibers[i].is_done = false;
        run.ready[run.ready_count++] = i;
    }
    for (unsigned i = 0; i < (block + WARP_LANES - 1) / WARP_LANES; i++) {
        run.warps[i].arrived = 0;
        memset(run.warps[i].exchanges, 0, sizeof run.warps[i].exchanges);
    }
    find_own_stack();
    switch_to(&run.scheduler_sp, &run.scheduler_fake, choose()); // comes back when nobody can go on
}

void emu_run_grid(const char *name, unsigned grid, unsigned block, const std::function<void()> &body)
{
    if (emu_ctx().sticky != cudaSuccess)
        return;
    if (run.random == 0) {
        const char *deleted = getenv("COSYFARM_EMU_WITHOUT_BARRIER");
        if (deleted && sscanf(deleted, "%63[^:]:%d", run.deleted_file, &run.deleted_line) != 2) {
            fprintf(stderr, "COSYFARM_EMU_WITHOUT_BARRIER: expected FILE:LINE, found \"%s\"\n", deleted);
            abort();
        }
        run.random = (uint64_t)emu_env("COSYFARM_EMU_SEED", 1) * 0x9E3779B97F4A7C15u | 1;
    }
    run.body = &body;
    run.kernel = name;
    run.failed = false;
    run.running = true;
    run.code = emu_code_built();
    blockDim.x = block;
    gridDim.x = grid;
    emu_ctx().counters.launches++;
    for (unsigned b = 0; b < grid && !run.failed; b++) {
        blockIdx.x = b;
        emu_ctx().counters.blocks++;
        run_block(block);
    }
    for (unsigned i = 0; i < block; i++) // of threads that a failure left in the middle
        if (run.fibers[i].stack) {
            run.stacks[run.stack_count++] = run.fibers[i].stack;
            run.fibers[i].stack = nullptr;
        }
    run.running = false;
}
