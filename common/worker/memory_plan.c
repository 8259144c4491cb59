/*
 * memory_plan.c - planned memory against free memory. Pure but for memory_check, which asks the device; any thread.
 * Fails: CF_ERR_NOMEM, CF_ERR_LIMIT, and what backend_memory fails with.
 */
#include "common/worker/memory_plan.h"

#include <stdio.h>

#define GIB 1073741824.0

uint64_t memory_of_table(const stage_table *table, memory_rule rule, const stage_config *cfg)
{
    double bytes = 0;
    for (size_t i = 0; i < table->count; i++) {
        const stage_tensor *t = &table->items[i];
        double count = 1;
        for (int d = 0; d < t->rank; d++)
            count *= (double)t->shape[d];
        bytes += count * rule(t, cfg);
    }
    return (uint64_t)bytes;
}

uint64_t memory_total(const stage_memory *m)
{
    return m->weights_bytes + m->tables_bytes + m->scratch_bytes + m->library_bytes;
}

void memory_format(const stage_memory *m, char ret_text[MEMORY_TEXT_BYTES])
{
    snprintf(ret_text, MEMORY_TEXT_BYTES, "weights %.2f, tables %.2f, scratch %.2f, library %.2f GiB",
             (double)m->weights_bytes / GIB, (double)m->tables_bytes / GIB, (double)m->scratch_bytes / GIB,
             (double)m->library_bytes / GIB);
}

cf_err memory_check(stage_kind kind, const char *device, const stage_memory *m, uint64_t *ret_free_bytes)
{
    cf_err err;
    uint64_t free_bytes, total_bytes;
    char text[MEMORY_TEXT_BYTES];
    TRY(backend_memory(device, &free_bytes, &total_bytes));
    *ret_free_bytes = free_bytes;
    const bool pages = m->library_bytes == 0; /* a CPU */
    const uint64_t needed = pages ? m->weights_bytes + m->tables_bytes : memory_total(m);
    memory_format(m, text);
    if (needed > free_bytes)
        FAIL(needed > total_bytes ? CF_ERR_LIMIT : CF_ERR_NOMEM,
             "%s: needs %.2f GiB, %.2f of %.2f free on %s (%s); fewer rows or frames, or another device",
             stage_name(kind), (double)needed / GIB, (double)free_bytes / GIB, (double)total_bytes / GIB, device, text);
out:
    return err;
}
