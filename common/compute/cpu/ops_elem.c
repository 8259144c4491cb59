/*
 * ops_elem.c - fast variant: element-wise ops, rows spread over the pool. Each element has its own arithmetic
 * (vec.h), so the cut into tasks never shows. Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted. Source:
 * the citations in ops.h.
 */
#include <math.h>
#include <string.h>

#include "common/compute/cpu/cpu_impl.h"

/* A wake-up costs about as much as this many additions; a task should be a few times that. */
#define INLINE_COST_MAX 65536
#define TASK_COST       131072

/* Costs of one element, in additions. */
#define COST_ADD    1
#define COST_EXP    8
#define COST_LIBM   40
#define FLAT_VALUES 4096 /* one "row" of an array without rows */

typedef struct rows_job {
    const cpu_state *cpu;
    rows_fn *fn;
    const void *args;
    int64_t rows, task_rows;
} rows_job;

static void run_rows_task(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const rows_job *job = ctx;
    const int64_t first = task_idx * job->task_rows;
    const int64_t left = job->rows - first;
    job->fn(job->cpu, job->args, first, left < job->task_rows ? left : job->task_rows);
}

void cpu_run_rows(const backend *be, int64_t rows, int64_t row_cost, rows_fn *fn, const void *args)
{
    rows_job job = {.cpu = cpu_of(be), .fn = fn, .args = args, .rows = rows};

    if (rows == 0)
        return;
    if (rows * row_cost <= INLINE_COST_MAX) {
        fn(job.cpu, args, 0, rows);
        return;
    }
    job.task_rows = TASK_COST / row_cost > 0 ? TASK_COST / row_cost : 1;
    while ((rows + job.task_rows - 1) / job.task_rows > POOL_TASKS_MAX)
        job.task_rows *= 2;
    pool_run(job.cpu->threads, (int32_t)((rows + job.task_rows - 1) / job.task_rows), run_rows_task, &job);
}

static int64_t flat_rows(const tensor *t)
{
    return (tensor_count(t) + FLAT_VALUES - 1) / FLAT_VALUES;
}

/* Values [*ret_from, + return) of flat rows [first, first + count). */
static int64_t flat_range(const tensor *t, int64_t first, int64_t count, int64_t *ret_from)
{
    const int64_t from = first * FLAT_VALUES, left = tensor_count(t) - from;
    *ret_from = from;
    return left < count * FLAT_VALUES ? left : count * FLAT_VALUES;
}

static void act_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_act_args *a = args;
    int64_t from;
    const int64_t values = flat_range(a->x, first, count, &from);

    if (a->x->type == DTYPE_F32) {
        cpu->vec->act(tensor_f32(a->x) + from, values, a->act, a->slope, tensor_f32(a->y) + from);
        return;
    }
    for (int64_t i = from; i < from + values; i++)
        tensor_f64(a->y)[i] = act_f64(tensor_f64(a->x)[i], a->act, a->slope);
}

cf_err fast_act(backend *be, const op_act_args *a)
{
    const int cost = a->x->type == DTYPE_F64 || a->act == ACT_ELU ? COST_LIBM : COST_EXP;
    cpu_run_rows(be, flat_rows(a->x), FLAT_VALUES * cost, act_rows, a);
    return CF_OK;
}

static void add_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_add_args *a = args;
    int64_t from;
    const int64_t values = flat_range(a->y, first, count, &from);
    cpu->vec->add(tensor_f32(a->a) + from, tensor_f32(a->b) + from, values, tensor_f32(a->y) + from);
}

cf_err fast_add(backend *be, const op_add_args *a)
{
    cpu_run_rows(be, flat_rows(a->y), FLAT_VALUES * COST_ADD, add_rows, a);
    return CF_OK;
}

static void mean3_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_mean3_args *a = args;
    int64_t from;
    const int64_t values = flat_range(a->y, first, count, &from);
    cpu->vec->mean3(tensor_f32(a->a) + from, tensor_f32(a->b) + from, tensor_f32(a->c) + from, values,
                    tensor_f32(a->y) + from);
}

cf_err fast_mean3(backend *be, const op_mean3_args *a)
{
    cpu_run_rows(be, flat_rows(a->y), FLAT_VALUES * COST_ADD, mean3_rows, a);
    return CF_OK;
}

#define SNAKE_VALUES 1024 /* at once */

cf_err cpu_snake_lines(backend *be, const tensor *alpha, snake_lines *ret_lines)
{
    cf_err err;
    const int64_t width = alpha->dims[0], rows = width < SNAKE_VALUES ? SNAKE_VALUES / width : 1;
    const size_t bytes = (size_t)(rows * width) * sizeof(float);
    float *alphas, *inverse;

    TRY(arena_take(&be->scratch, bytes, &alphas));
    TRY(arena_take(&be->scratch, bytes, &inverse));
    for (int64_t i = 0; i < rows * width; i++) {
        alphas[i] = tensor_f32(alpha)[i % width];
        inverse[i] = 1.0f / (alphas[i] + 1e-9f);
    }
    *ret_lines = (snake_lines){.alpha = alphas, .inverse = inverse, .rows = rows};
out:
    return err;
}

typedef struct snake_job {
    const op_snake_args *a;
    snake_lines lines;
} snake_job;

static void snake_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const snake_job *job = args;
    const int64_t width = job->a->x->dims[1], values = job->lines.rows * width, end = (first + count) * width;
    const float *x = tensor_f32(job->a->x);
    float *y = tensor_f32(job->a->y), piece[SNAKE_VALUES];
    for (int64_t from = first * width; from < end; from += values)
        for (int64_t i = 0, some; i < values && from + i < end; i += some) {
            some = values - i < SNAKE_VALUES ? values - i : SNAKE_VALUES;
            some = end - from - i < some ? end - from - i : some;
            memcpy(piece, x + from + i, (size_t)some * sizeof *piece); /* y may be x */
            cpu->vec->snake(piece, job->lines.alpha + i, job->lines.inverse + i, some, y + from + i);
        }
}

cf_err fast_snake(backend *be, const op_snake_args *a)
{
    cf_err err;
    snake_job job = {.a = a};
    const size_t mark = backend_scratch_mark(be);

    TRY(cpu_snake_lines(be, a->alpha, &job.lines));
    cpu_run_rows(be, a->x->dims[0], a->x->dims[1] * COST_EXP, snake_rows, &job);
out:
    backend_scratch_reset(be, mark);
    return err;
}

static void swiglu_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_swiglu_args *a = args;
    const int64_t width = a->y->dims[1];
    for (int64_t r = first; r < first + count; r++) {
        const float *gate = tensor_f32(a->x) + r * 2 * width;
        cpu->vec->swiglu(gate, gate + width, width, tensor_f32(a->y) + r * width);
    }
}

cf_err fast_swiglu(backend *be, const op_swiglu_args *a)
{
    cpu_run_rows(be, a->y->dims[0], a->y->dims[1] * COST_EXP, swiglu_rows, a);
    return CF_OK;
}

static void cfg_euler_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_cfg_euler_args *a = args;
    const int64_t width = a->x->dims[1];
    int32_t b = rows_find(a->rows, first);

    for (int64_t r = first; r < first + count; r++) {
        while (r >= a->rows->offs[b + 1])
            b++;
        const float *cond = tensor_f32(a->v) + (a->rows->offs[b] + r) * width;
        cpu->vec->cfg_euler(cond, cond + rows_length(a->rows, b) * width, a->dt[b], width,
                            tensor_f32(a->x) + r * width);
    }
}

cf_err fast_cfg_euler(backend *be, const op_cfg_euler_args *a)
{
    cpu_run_rows(be, a->x->dims[0], a->x->dims[1] * COST_ADD, cfg_euler_rows, a);
    return CF_OK;
}
