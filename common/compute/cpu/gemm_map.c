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

#define TASK_PANELS 4 /* 64 columns: whole cache lines of a row that lies [k_in, n_out] */

typedef struct map_job {
    const weight *w;
    float *packed;
    int64_t depth, panels, blocks;
} map_job;

/* Columns [first, first + count) of one depth block out of part p, which holds them all; to: [depth][GEMM_PANEL] per
 * panel. */
static void pack_in_out(const weight_part *p, int64_t first, int64_t count, int64_t from, int64_t depth, float *to)
{
    const unsigned char *source = p->data;
    for (int64_t k = 0; k < depth; k++) {
        const unsigned char *row = source + (size_t)((from + k) * p->n_out + first) * sizeof *to;
        for (int64_t c = 0; c < count; c += GEMM_PANEL) {
            float *line = to + c * depth + k * GEMM_PANEL;
            memcpy(line, row + (size_t)c * sizeof *to, (size_t)min_i64(GEMM_PANEL, count - c) * sizeof *to);
        }
    }
}

/* The same where a filter [c_in, kernel] is contiguous; depth runs tap by tap, inputs inside. */
static void pack_out_in(const weight *w, const weight_part *p, int64_t first, int64_t count, int64_t from,
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
static void pack_task(void *ctx, int32_t task_idx, int thread_idx)
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
            if (w->order == ORDER_IN_OUT)
                pack_in_out(&w->parts[p], first - part_first, last - first, from, depth, at);
            else
                pack_out_in(w, &w->parts[p], first - part_first, last - first, from, depth, at);
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
    pool_run(cpu_of(be)->threads, (int32_t)(job.blocks * div_ceil(job.panels, TASK_PANELS)), pack_task, &job);
    *ret_packed = job.packed;
out:
    return err;
}
