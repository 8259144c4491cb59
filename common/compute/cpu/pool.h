/*
 * pool.h - a fixed set of threads that run independent tasks. Who runs which task never shows in the results, because a
 * task writes its own output and reduces in its own order.
 */
#ifndef CF_COMPUTE_CPU_POOL_H
#define CF_COMPUTE_CPU_POOL_H

#include <stdint.h>

#include "common/base/err.h"

typedef struct pool pool;

/* thread_idx: 0 .. pool_threads - 1, at most one task per thread at a time. */
typedef void pool_fn(void *ctx, int32_t task_idx, int thread_idx);

#define POOL_TASKS_MAX ((1 << 20) - 1)

/* Starts threads - 1 threads; the caller of pool_run is thread 0. */
CF_MUST_CHECK cf_err pool_open(int threads, pool **ret_pool);
void pool_close(pool *p); /* NULL is fine; joins */
int pool_threads(const pool *p);

/* Runs fn(ctx, 0 .. count - 1) and returns when all have finished. One caller at a time; count <= POOL_TASKS_MAX. */
void pool_run(pool *p, int32_t count, pool_fn *fn, void *ctx);

#endif
