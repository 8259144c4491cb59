// emu_fiber.cc - runs kernels: blocks one after the other, the threads of a block as fibers on one system thread.
//
// A fiber runs until it ends or waits: at a barrier of the block, or at a collective of its warp. The scheduler then
// picks any fiber that can run, by a generator seeded from COSYFARM_EMU_SEED, so threads between two barriers run in
// an order that no kernel may rely on. A barrier that some thread will never reach, a collective that a named lane
// leaves out, a race in shared memory, and a trap end the launch with a sticky error, as a fault would on a device.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "emu_impl.hh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define THREADS_MAX 1024
#define WARP_LANES  32
#define STACK_BYTES ((size_t)256 << 10)

emu_dim threadIdx, blockIdx, blockDim, gridDim;

enum fiber_state { FIBER_READY, FIBER_AT_BARRIER, FIBER_AT_WARP, FIBER_DONE };

struct fiber {
    void *sp;
    char *stack;
    void *fake_stack; // of the address sanitizer
    fiber_state state;
    unsigned warp_mask;     // waited for
    unsigned exchanges;     // collectives so far: picks one of two rows of slots
    const char *collective; // name, for reports
};

struct warp {
    unsigned arrived; // lanes at the current collective
    uint64_t slots[2][WARP_LANES];
    const void *pointers[WARP_LANES];
};

static struct {
    fiber fibers[THREADS_MAX];
    warp warps[THREADS_MAX / WARP_LANES];
    unsigned ready[THREADS_MAX];
    unsigned ready_count, live, at_barrier;
    unsigned current;
    void *scheduler_sp;
    void *scheduler_fake;
    const void *scheduler_bottom;
    size_t scheduler_bytes;
    const std::function<void()> *body;
    const char *kernel;
    bool running, failed;
    uint64_t random;
    uint64_t epoch, block_epoch;
} run;

bool emu_in_kernel()
{
    return run.running;
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
    void **top = (void **)(stack + STACK_BYTES - 64);
    *--top = nullptr; // where a return address of the entry would be: keeps the stack aligned for calls
    *--top = (void *)fiber_entry;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    return top;
}
#else
// Elsewhere the C library's contexts: slower, the same order.
static ucontext_t contexts[THREADS_MAX + 1];

static void fiber_entry();

static void *fresh_stack(char *stack)
{
    ucontext_t *c = nullptr;
    for (unsigned i = 0; i < THREADS_MAX; i++)
        if (run.fibers[i].stack == stack)
            c = &contexts[i];
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = STACK_BYTES;
    c->uc_link = nullptr;
    makecontext(c, fiber_entry, 0);
    return c;
}

static void emu_switch(void **save_sp, void *load_sp)
{
    ucontext_t *from = save_sp == &run.scheduler_sp ? &contexts[THREADS_MAX] : &contexts[run.current];
    *save_sp = from;
    swapcontext(from, (ucontext_t *)load_sp);
}
#endif

static void to_scheduler(bool forever)
{
    fiber *f = &run.fibers[run.current];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(forever ? nullptr : &f->fake_stack, run.scheduler_bottom, run.scheduler_bytes);
#endif
    (void)forever;
    emu_switch(&f->sp, run.scheduler_sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(f->fake_stack, &run.scheduler_bottom, &run.scheduler_bytes);
#endif
}

static void to_fiber(unsigned idx)
{
    fiber *f = &run.fibers[idx];
    run.current = idx;
    threadIdx.x = idx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&run.scheduler_fake, f->stack, STACK_BYTES);
#endif
    emu_switch(&run.scheduler_sp, f->sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(run.scheduler_fake, nullptr, nullptr);
#endif
}

static void fiber_entry()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &run.scheduler_bottom, &run.scheduler_bytes);
#endif
    (*run.body)();
    run.fibers[run.current].state = FIBER_DONE;
    run.live--;
    to_scheduler(true);
    abort(); // a finished fiber is never chosen
}

// Reports -----------------------------------------------------------------------------------------------------

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

// A fiber that must not go on; the scheduler stops the launch.
[[noreturn]] static void abandon()
{
    to_scheduler(true);
    abort();
}

[[noreturn]] void emu_trap()
{
    report(cudaErrorLaunchFailure, "trap");
    abandon();
}

// Waiting -----------------------------------------------------------------------------------------------------

void __syncthreads()
{
    run.fibers[run.current].state = FIBER_AT_BARRIER;
    run.at_barrier++;
    to_scheduler(false);
}

static unsigned warp_lanes_present(unsigned warp_idx)
{
    const unsigned first = warp_idx * WARP_LANES, left = blockDim.x - first;
    return left >= WARP_LANES ? 0xffffffffu : (1u << left) - 1;
}

// Waits until every lane of mask is here.
static void warp_wait(unsigned mask, const char *name)
{
    const unsigned me = run.current, warp_idx = me / WARP_LANES, lane = me % WARP_LANES;
    warp *w = &run.warps[warp_idx];
    mask &= warp_lanes_present(warp_idx);
    if (!(mask >> lane & 1)) {
        report(cudaErrorLaunchFailure, "%s: the mask %08x does not name the calling lane", name, mask);
        abandon();
    }
    fiber *f = &run.fibers[me];
    f->warp_mask = mask;
    f->collective = name;
    w->arrived |= 1u << lane;
    if ((w->arrived & mask) == mask) {
        w->arrived &= ~mask;
        for (unsigned i = 0; i < WARP_LANES; i++)
            if (i != lane && (mask >> i & 1)) {
                fiber *other = &run.fibers[warp_idx * WARP_LANES + i];
                if (other->warp_mask != mask || other->collective != name) {
                    report(cudaErrorLaunchFailure, "%s meets %s of lane %u: masks or collectives differ", name,
                           other->collective, i);
                    abandon();
                }
                other->state = FIBER_READY;
                run.ready[run.ready_count++] = warp_idx * WARP_LANES + i;
            }
        return; // the last to come goes on; the others are ready in any order
    }
    f->state = FIBER_AT_WARP;
    to_scheduler(false);
}

void __syncwarp(unsigned mask)
{
    warp_wait(mask, "__syncwarp");
}

uint64_t emu_exchange(unsigned mask, uint64_t mine, int from_lane)
{
    warp *w = &run.warps[run.current / WARP_LANES];
    const unsigned row = run.fibers[run.current].exchanges++ % 2;
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
    const unsigned row = run.fibers[run.current].exchanges++ % 2;
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

uint64_t emu_block_epoch()
{
    return run.block_epoch;
}

static void race(const char *array, size_t idx, const char *first, int other, const char *second)
{
    emu_ctx().counters.races++;
    report(cudaErrorLaunchFailure, "%s[%zu]: %s by thread %d and %s by thread %u without a barrier between them", array,
           idx, first, other, second, threadIdx.x);
    abandon();
}

static void check_idx(const char *array, size_t idx, size_t count)
{
    if (idx < count)
        return;
    report(cudaErrorIllegalAddress, "%s[%zd]: the array has %zu elements", array, (ssize_t)idx, count);
    abandon();
}

void emu_shared_read(const char *array, size_t idx, size_t count, emu_shadow *shadow)
{
    const int me = (int)run.current;
    check_idx(array, idx, count);
    if (shadow->write_epoch < run.block_epoch) {
        report(cudaErrorLaunchFailure, "%s[%zu] is read before this block wrote it", array, idx);
        abandon();
    }
    if (shadow->write_epoch == run.epoch && shadow->writer != me)
        race(array, idx, "written", shadow->writer, "read");
    shadow->reader = shadow->read_epoch == run.epoch && shadow->reader != me ? -2 : me;
    shadow->read_epoch = run.epoch;
}

void emu_shared_write(const char *array, size_t idx, size_t count, emu_shadow *shadow)
{
    const int me = (int)run.current;
    check_idx(array, idx, count);
    if (shadow->write_epoch == run.epoch && shadow->writer != me)
        race(array, idx, "written", shadow->writer, "written");
    if (shadow->read_epoch == run.epoch && shadow->reader != me)
        race(array, idx, "read", shadow->reader, "written");
    shadow->writer = me;
    shadow->write_epoch = run.epoch;
}

// Scheduling --------------------------------------------------------------------------------------------------

static uint64_t next_random()
{
    uint64_t x = run.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return run.random = x;
}

static void make_ready_all(fiber_state from)
{
    for (unsigned i = 0; i < blockDim.x; i++)
        if (run.fibers[i].state == from) {
            run.fibers[i].state = FIBER_READY;
            run.ready[run.ready_count++] = i;
        }
}

// Nobody can run: a barrier that all have reached opens, anything else is a deadlock.
static bool open_barrier()
{
    if (run.at_barrier != run.live) {
        report(cudaErrorLaunchFailure, "%u of %u threads wait at a barrier that the others do not reach",
               run.at_barrier, run.live);
        return false;
    }
    run.epoch++;
    emu_ctx().counters.barriers++;
    run.at_barrier = 0;
    make_ready_all(FIBER_AT_BARRIER);
    return true;
}

static void run_block(unsigned block)
{
    run.block_epoch = ++run.epoch;
    run.ready_count = run.at_barrier = 0;
    run.live = blockDim.x;
    for (unsigned i = 0; i < blockDim.x; i++) {
        fiber *f = &run.fibers[i];
        f->sp = fresh_stack(f->stack);
        f->exchanges = 0;
        f->state = FIBER_READY;
        run.ready[run.ready_count++] = i;
    }
    for (unsigned i = 0; i < (block + WARP_LANES - 1) / WARP_LANES; i++)
        run.warps[i].arrived = 0;
    while (run.live > 0 && !run.failed) {
        if (run.ready_count == 0 && !open_barrier())
            return;
        const unsigned pick = (unsigned)(next_random() % run.ready_count);
        const unsigned idx = run.ready[pick];
        run.ready[pick] = run.ready[--run.ready_count];
        to_fiber(idx);
    }
}

static void open_stacks(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (run.fibers[i].stack)
            continue;
        void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED)
            abort();
        run.fibers[i].stack = (char *)stack;
    }
}

void emu_run_grid(const char *name, unsigned grid, unsigned block, const std::function<void()> &body)
{
    if (emu_ctx().sticky != cudaSuccess)
        return;
    if (run.random == 0)
        run.random = (uint64_t)emu_env("COSYFARM_EMU_SEED", 1) * 0x9E3779B97F4A7C15u | 1;
    run.body = &body;
    run.kernel = name;
    run.failed = false;
    run.running = true;
    blockDim.x = block;
    gridDim.x = grid;
    open_stacks(block);
    emu_ctx().counters.launches++;
    for (unsigned b = 0; b < grid && !run.failed; b++) {
        blockIdx.x = b;
        emu_ctx().counters.blocks++;
        run_block(block);
    }
    run.running = false;
}
