/*
 * gemm_map.c - weights that stay where they are: packed into our kernels' order when a product needs them, by all
 * threads, in scratch. A program that uses each weight once reads it once and keeps no second copy.
 *
 * The order is that of gemm.c with one group. Our kernels multiply mapped weights even where oneDNN is used otherwise:
 * making one of its products costs more than a single use earns.
 * Run by the pool's threads. Owns nothing. Fails: CF_ERR_NOMEM when scratch is exhausted.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/gemm.h"

#define TASK_ROWS   64 /* of weights that lie [k_in, n_out]; divides GEMM_DEPTH */
#define TASK_PANELS 4

typedef struct map_job {
    const weight *w;
    float *packed;
    int64_t depth, panels, blocks;
} map_job;

/* Rows of weights that lie [k_in, n_out], read as they lie: pieces of rows would be a page walk each, which on a
 * virtual machine takes longer than what is read. A panel's piece of a row is one cache line of the packed order. */
static void pack_rows_task(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const map_job *job = ctx;
    const int64_t first = (int64_t)task_idx * TASK_ROWS, rows = min_i64(TASK_ROWS, job->depth - first);
    const int64_t from = first / GEMM_DEPTH * GEMM_DEPTH, depth = min_i64(GEMM_DEPTH, job->depth - from);
    float *block = job->packed + from * job->panels * GEMM_PANEL + (first - from) * GEMM_PANEL;

    for (int p = 0; p < job->w->part_count; p++) {
        const weight_part *part = &job->w->parts[p];
        const int64_t whole = part->n_out / GEMM_PANEL * GEMM_PANEL, rest = part->n_out - whole;
        for (int64_t k = 0; k < rows; k++) {
            const unsigned char *row =
                (const unsigned char *)part->data + (size_t)((first + k) * part->n_out) * sizeof *block;
            float *line = block + k * GEMM_PANEL;
            for (int64_t c = 0; c < whole; c += GEMM_PANEL)
                memcpy(line + c * depth, row + (size_t)c * sizeof *line, GEMM_PANEL * sizeof *line);
            if (rest > 0) {
                memset(line + whole * depth, 0, GEMM_PANEL * sizeof *line);
                memcpy(line + whole * depth, row + (size_t)whole * sizeof *line, (size_t)rest * sizeof *line);
            }
        }
        block += div_ceil(part->n_out, GEMM_PANEL) * GEMM_PANEL * depth;
    }
}

/* Columns [first, first + count) of one depth block out of part p, which holds them all, where a filter [c_in, kernel]
 * is contiguous; depth runs tap by tap, inputs inside. to: [depth][GEMM_PANEL] per panel. */
static void pack_filters(const weight *w, const weight_part *p, int64_t first, int64_t count, int64_t from,
                         int64_t depth, float *to)
{
    const unsigned char *source = p->data;
    for (int64_t c = 0; c < count; c++) {
        const unsigned char *filter = source + (size_t)((first + c) * w->k_in * w->kernel) * sizeof *to;
        float *column = to + c / GEMM_PANEL * GEMM_PANEL * depth + c % GEMM_PANEL;
        int64_t tap = from / w->k_in, i = from % w->k_in;
        for (int64_t k = 0; k < depth; k++) {
            memcpy(&column[k * GEMM_PANEL], filter + (size_t)(i * w->kernel + tap) * sizeof *to, sizeof *to);
            if (++i == w->k_in) {
                i = 0;
                tap++;
            }
        }
    }
}

/* One depth block of up to TASK_PANELS panels. Columns that do not exist are zero. */
static void pack_filters_task(void *ctx, int32_t task_idx, int thread_idx)
{
    (void)thread_idx;
    const map_job *job = ctx;
    const weight *w = job->w;
    const int64_t block = task_idx % job->blocks, panel = task_idx / job->blocks * TASK_PANELS;
    const int64_t from = block * GEMM_DEPTH, depth = min_i64(GEMM_DEPTH, job->depth - from);
    const int64_t panels = min_i64(TASK_PANELS, job->panels - panel), end = (panel + panels) * GEMM_PANEL;
    float *to = job->packed + from * job->panels * GEMM_PANEL + panel * GEMM_PANEL * depth;
    int64_t part_first = 0;

    if (end > w->n_out)
        memset(to, 0, (size_t)(panels * GEMM_PANEL * depth) * sizeof *to);
    for (int p = 0; p < w->part_count; p++) {
        const int64_t part_end = part_first + w->parts[p].n_out;
        const int64_t first = panel * GEMM_PANEL > part_first ? panel * GEMM_PANEL : part_first;
        const int64_t last = min_i64(end, part_end);
        if (first < last) {
            float *at = to + (first - panel * GEMM_PANEL) * depth;
            pack_filters(w, &w->parts[p], first - part_first, last - first, from, depth, at);
        }
        part_first = part_end;
    }
}

cf_err gemm_map(backend *be, weight *out)
{
    (void)be;
    for (int p = 0; p + 1 < out->part_count; p++)
        CF_ASSERT(out->parts[p].n_out % GEMM_PANEL == 0); /* a panel does not straddle parts */
    return CF_OK;
}

cf_err gemm_map_pack(backend *be, const weight *w, const void **ret_packed)
{
    cf_err err;
    map_job job = {.w = w, .depth = w->k_in * w->kernel, .panels = div_ceil(w->n_out, GEMM_PANEL)};

    job.blocks = div_ceil(job.depth, GEMM_DEPTH);
    TRY(arena_take(&be->scratch, (size_t)(job.depth * job.panels * GEMM_PANEL) * sizeof *job.packed, &job.packed));
    if (w->order == ORDER_IN_OUT)
        pool_run(cpu_of(be)->threads, (int32_t)div_ceil(job.depth, TASK_ROWS), pack_rows_task, &job);
    else
        pool_run(cpu_of(be)->threads, (int32_t)(job.blocks * div_ceil(job.panels, TASK_PANELS)), pack_filters_task,
                 &job);
    *ret_packed = job.packed;
out:
    return err;
}
