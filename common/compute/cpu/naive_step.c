/*
 * naive_step.c - ops of one step of decoding whose tables lie on the backend: on the CPU, arrays like any other. Both
 * variants: attention is the variant's own op_attn_cache over the active rows.
 * Fails: CF_ERR_NOMEM. Asserts slots, positions and pages.
 */
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/cpu_impl.h"

cf_err naive_step_rows(backend *be, const op_step_rows_args *a)
{
    (void)be;
    for (int64_t r = 0; r < a->slots->dims[0]; r++) {
        const int32_t slot = tensor_i32(a->slots)[r];
        tensor_i32(a->ids)[r] = -1;
        tensor_i32(a->pos)[r] = 0;
        if (slot < 0)
            continue;
        CF_ASSERT(slot < a->past->dims[0]);
        tensor_i32(a->ids)[r] = tensor_i32(a->tokens)[slot];
        tensor_i32(a->pos)[r] = tensor_i32(a->past)[slot]++;
    }
    return CF_OK;
}

/* Rows [first, first + count), none of them inert. */
static cf_err attend_rows(backend *be, const op_attn_step_args *a, int64_t first, int64_t count)
{
    cf_err err;
    const tensor qkv = tensor_rows(a->qkv, first, count);
    tensor y = tensor_rows(a->y, first, count);
    const int32_t *pos = tensor_i32(a->pos) + first;
    int32_t pages_max = 1, *pages, *offs;
    for (int64_t r = 0; r < count; r++) {
        CF_ASSERT(pos[r] >= 0 && pos[r] / CACHE_PAGE_TOKENS < a->pages->dims[1]);
        if (pos[r] / CACHE_PAGE_TOKENS >= pages_max)
            pages_max = pos[r] / CACHE_PAGE_TOKENS + 1;
    }
    TRY(arena_take(&be->scratch, (size_t)(count * pages_max) * sizeof *pages, &pages));
    TRY(arena_take(&be->scratch, (size_t)(count + 1) * sizeof *offs, &offs));
    for (int64_t r = 0; r < count; r++) {
        const int32_t slot = tensor_i32(a->slots)[first + r];
        CF_ASSERT(slot < a->pages->dims[0]);
        memcpy(pages + r * pages_max, tensor_i32(a->pages) + slot * a->pages->dims[1],
               (size_t)pages_max * sizeof *pages);
    }
    for (int64_t r = 0; r <= count; r++)
        offs[r] = (int32_t)r;
    const op_rows rows = {.count = (int32_t)count, .offs = offs, .dev = offs};
    TRY(op_attn_cache(be, &(op_attn_cache_args){.qkv = &qkv,
                                                .cache = a->cache,
                                                .y = &y,
                                                .rows = &rows,
                                                .pages = pages,
                                                .past = pos,
                                                .pages_max = pages_max,
                                                .heads = a->heads,
                                                .kv_heads = a->kv_heads,
                                                .kind = GEMM_DECODE}));
out:
    return err;
}

cf_err naive_attn_step(backend *be, const op_attn_step_args *a)
{
    cf_err err = CF_OK;
    const size_t mark = backend_scratch_mark(be);
    const int32_t *slots = tensor_i32(a->slots);
    const int64_t rows = a->slots->dims[0];
    for (int64_t first = 0, end; first < rows; first = end) {
        for (end = first; end < rows && (slots[end] < 0) == (slots[first] < 0); end++) {
        }
        if (slots[first] >= 0) {
            TRY(attend_rows(be, a, first, end - first));
            continue;
        }
        const tensor y = tensor_rows(a->y, first, end - first);
        memset(y.data, 0, tensor_bytes(&y));
    }
out:
    backend_scratch_reset(be, mark);
    return err;
}
