/*
 * mem.c - heap and arenas. Any process; an arena belongs to one thread.
 * Fails: CF_ERR_NOMEM. Asserts that arena marks are not in the future.
 */
#define _GNU_SOURCE
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/check.h"
#include "common/base/fault.h"

#define ARENA_ALIGN_BYTES 64 /* a cache line, and the widest vector load */

cf_err mem_alloc(size_t count, size_t item_bytes, void *ret_ptr)
{
    void *p = fault_hit("mem.alloc") ? NULL : calloc(count ? count : 1, item_bytes ? item_bytes : 1);
    if (!p)
        return err_set(CF_ERR_NOMEM, "out of memory: %zu items of %zu bytes", count, item_bytes);
    memcpy(ret_ptr, &p, sizeof p);
    return CF_OK;
}

cf_err mem_resize(void *ptr_to_ptr, size_t count, size_t item_bytes)
{
    void *old;
    memcpy(&old, ptr_to_ptr, sizeof old);
    size_t bytes;
    if (__builtin_mul_overflow(count ? count : 1, item_bytes ? item_bytes : 1, &bytes))
        return err_set(CF_ERR_NOMEM, "out of memory: %zu items of %zu bytes", count, item_bytes);
    void *p = fault_hit("mem.alloc") ? NULL : realloc(old, bytes);
    if (!p)
        return err_set(CF_ERR_NOMEM, "out of memory: %zu items of %zu bytes", count, item_bytes);
    memcpy(ptr_to_ptr, &p, sizeof p);
    return CF_OK;
}

cf_err mem_strndup(const char *text, size_t text_bytes, char **ret_copy)
{
    char *copy;
    cf_err err;
    TRY(mem_alloc(text_bytes + 1, 1, &copy));
    memcpy(copy, text, text_bytes);
    *ret_copy = copy;
out:
    return err;
}

void mem_free(void *ptr)
{
    free(ptr);
}

cf_err arena_open(size_t reserved_bytes, arena *ret_arena)
{
    void *p = fault_hit("mem.arena") ? MAP_FAILED
                                     : mmap(NULL, reserved_bytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return err_set(CF_ERR_NOMEM, "cannot reserve %zu bytes of address space", reserved_bytes);
    madvise(p, reserved_bytes, MADV_HUGEPAGE); /* a hint; its failure changes speed alone */
    *ret_arena = (arena){.base = p, .reserved_bytes = reserved_bytes};
    return CF_OK;
}

void arena_close(arena *a)
{
    if (a->base)
        munmap(a->base, a->reserved_bytes);
    *a = (arena){0};
}

cf_err arena_take(arena *a, size_t bytes, void *ret_ptr)
{
    const size_t rounded = (bytes + ARENA_ALIGN_BYTES - 1) / ARENA_ALIGN_BYTES * ARENA_ALIGN_BYTES;
    if (rounded < bytes || rounded > a->reserved_bytes - a->used_bytes)
        return err_set(CF_ERR_NOMEM, "scratch exhausted: %zu bytes wanted, %zu of %zu free", bytes,
                       a->reserved_bytes - a->used_bytes, a->reserved_bytes);
    void *p = a->base + a->used_bytes;
    a->used_bytes += rounded;
    if (a->used_bytes > a->peak_bytes)
        a->peak_bytes = a->used_bytes;
    memcpy(ret_ptr, &p, sizeof p);
    return CF_OK;
}

size_t arena_mark(const arena *a)
{
    return a->used_bytes;
}

void arena_reset(arena *a, size_t mark)
{
    CF_ASSERT(mark <= a->used_bytes);
    a->used_bytes = mark;
}
