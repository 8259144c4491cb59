/*
 * pool.c - the CPU backend's threads. One word holds the job's epoch, its task count and the next unclaimed task:
 *
 *   bits 63..40 epoch   39..20 count   19..0 next
 *
 * A task is claimed by compare-and-swap on that word, so a thread that wakes late can claim nothing of a newer job
 * with the fields of an older one: fn and ctx change only while every task of the old epoch is claimed and done, and
 * then the swap of whoever read the old word fails. Late threads are never waited for. Idle threads look at the word
 * for a microsecond or two, since ops follow each other closely, then offer their core between looks, and then sleep.
 *
 * Where the caller itself has to wait for a core, others want them all, and a thread that is woken takes one from them:
 * then fewer are woken, half as many for each interval in which it waited, one more for each in which it did not.
 *
 * Owns its threads. Fails: CF_ERR_SYS when a thread cannot be started, CF_ERR_NOMEM. Asserts on too many tasks.
 */
#define _GNU_SOURCE
#include "common/compute/cpu/pool.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/mem.h"

/* 0.5 to 2 us of pause instructions, then offers; where nobody wants the core, those last another 50 us or so: a step
 * of the LLM is many short ops. */
#define LOOKS_BEFORE_YIELD 50
#define LOOKS_BEFORE_SLEEP 300

#define FIELD_BITS 20
#define FIELD_MASK (((uint64_t)1 << FIELD_BITS) - 1)

#define WATCH_US       20000 /* an interval */
#define DELAY_PART_MAX 32    /* the caller waits for a core: more than this part of an interval */

typedef struct pool_thread {
    pool *owner; /* borrowed */
    int thread_idx;
    pthread_t handle;
} pool_thread;

struct pool {
    int threads;
    int started; /* running threads besides the caller */
    pool_thread *workers;

    _Atomic uint64_t word;
    _Atomic int32_t done; /* finished tasks of this epoch */
    _Atomic(pool_fn *) fn;
    _Atomic(void *) ctx;
    atomic_int sleepers;
    atomic_bool caller_sleeps;
    atomic_bool stop;

    /* Of the caller alone. */
    int wanted;          /* threads to wake for a job, 0 .. threads - 1 */
    uint64_t watched_us; /* when wanted was thought over */
    uint64_t delay_ns;   /* that the caller had waited by then */

    pthread_mutex_t lock; /* for sleeping alone */
    pthread_cond_t work;
    pthread_cond_t finished;
};

/* Between look number i and the next: another process, of this farm too, may want this core more. */
static void relax(int i)
{
    if (i >= LOOKS_BEFORE_YIELD) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static uint32_t word_count(uint64_t word)
{
    return (uint32_t)(word >> FIELD_BITS & FIELD_MASK);
}

static uint32_t word_next(uint64_t word)
{
    return (uint32_t)(word & FIELD_MASK);
}

static bool word_has_work(uint64_t word)
{
    return word_next(word) < word_count(word);
}

/* Claims and runs tasks until none is left. */
static void run_tasks(pool *p, int thread_idx)
{
    uint64_t word = atomic_load(&p->word);
    while (word_has_work(word)) {
        pool_fn *fn = atomic_load(&p->fn);
        void *ctx = atomic_load(&p->ctx);
        if (!atomic_compare_exchange_weak(&p->word, &word, word + 1))
            continue;
        const int32_t count = (int32_t)word_count(word);
        fn(ctx, (int32_t)word_next(word), thread_idx);
        if (atomic_fetch_add(&p->done, 1) + 1 == count && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->finished);
            pthread_mutex_unlock(&p->lock);
        }
        word = atomic_load(&p->word);
    }
}

static void sleep_until_work(pool *p)
{
    for (int i = 0; i < LOOKS_BEFORE_SLEEP; i++) {
        if (word_has_work(atomic_load(&p->word)) || atomic_load(&p->stop))
            return;
        relax(i);
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!word_has_work(atomic_load(&p->word)) && !atomic_load(&p->stop))
        pthread_cond_wait(&p->work, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *thread_main(void *arg)
{
    const pool_thread *self = arg;
    while (!atomic_load(&self->owner->stop)) {
        run_tasks(self->owner, self->thread_idx);
        sleep_until_work(self->owner);
    }
    return NULL;
}

/* Signals belong to the program's own threads. */
static cf_err start_thread(pool_thread *t)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int code = pthread_create(&t->handle, NULL, thread_main, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code != 0)
        return err_set(CF_ERR_SYS, "cannot start compute thread %d: %s", t->thread_idx, strerror(code));
    return CF_OK;
}

cf_err pool_open(int threads, pool **ret_pool)
{
    cf_err err;
    pool *p = NULL;

    CF_ASSERT(threads >= 1);
    TRY(mem_alloc(1, sizeof *p, &p));
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->finished, NULL);
    p->threads = threads;
    TRY(mem_alloc((size_t)threads, sizeof *p->workers, &p->workers));
    for (int i = 0; i < threads - 1; i++) {
        p->workers[i] = (pool_thread){.owner = p, .thread_idx = i + 1};
        TRY(start_thread(&p->workers[i]));
        p->started++;
    }
    p->wanted = p->started;
    *ret_pool = p;
    p = NULL;
out:
    pool_close(p);
    return err;
}

void pool_close(pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->started; i++)
        pthread_join(p->workers[i].handle, NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    mem_free(p->workers);
    mem_free(p);
}

int pool_threads(const pool *p)
{
    return p->threads;
}

static void wait_done(pool *p, int32_t count)
{
    for (int i = 0; i < LOOKS_BEFORE_SLEEP; i++) {
        if (atomic_load(&p->done) == count)
            return;
        relax(i);
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->done) != count)
        pthread_cond_wait(&p->finished, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

/* Nanoseconds that this thread could have run and had no core; 0 where the kernel does not count them. */
static uint64_t run_delay_ns(void)
{
    char text[96];
    unsigned long long ran, delayed;
    const int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    const ssize_t bytes = read(fd, text, sizeof text - 1);
    close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    return sscanf(text, "%llu %llu", &ran, &delayed) == 2 ? delayed : 0;
}

static void watch_cores(pool *p)
{
    const uint64_t now = clock_now_us(), interval_us = now - p->watched_us;
    if (interval_us < WATCH_US)
        return;
    const uint64_t delay_ns = run_delay_ns(), grown_ns = delay_ns > p->delay_ns ? delay_ns - p->delay_ns : 0;
    if (grown_ns / 1000 > interval_us / DELAY_PART_MAX)
        p->wanted /= 2;
    else if (p->wanted < p->started)
        p->wanted++;
    p->watched_us = now;
    p->delay_ns = delay_ns;
}

static void wake(pool *p)
{
    pthread_mutex_lock(&p->lock);
    if (p->wanted == p->started)
        pthread_cond_broadcast(&p->work);
    else
        for (int i = 0; i < p->wanted; i++)
            pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(pool *p, int32_t count, pool_fn *fn, void *ctx)
{
    CF_ASSERT(count >= 0 && count <= POOL_TASKS_MAX);
    if (count <= 1 || p->threads == 1) {
        for (int32_t i = 0; i < count; i++)
            fn(ctx, i, 0);
        return;
    }
    const uint64_t epoch = (atomic_load(&p->word) >> (2 * FIELD_BITS)) + 1;
    atomic_store(&p->fn, fn);
    atomic_store(&p->ctx, ctx);
    atomic_store(&p->done, 0);
    atomic_store(&p->word, epoch << (2 * FIELD_BITS) | (uint64_t)count << FIELD_BITS);
    watch_cores(p);
    if (p->wanted > 0 && atomic_load(&p->sleepers) > 0)
        wake(p);
    run_tasks(p, 0);
    wait_done(p, count);
}
