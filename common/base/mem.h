/*
 * mem.h - the only door to the heap, and bump arenas over it.
 *
 * mem_alloc is for things that live as long as their owner (tables at start-up, one struct per object). Work in a loop
 * takes scratch from an arena that is reset between jobs. Both fail with CF_ERR_NOMEM and leave the output untouched.
 */
#ifndef CF_BASE_MEM_H
#define CF_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zeroed memory for count items of item_bytes; count 0 gives a unique pointer. Owned by the caller: mem_free. */
CF_MUST_CHECK cf_err mem_alloc(size_t count, size_t item_bytes, void *ret_ptr);

/* Grows (never shrinks the contents of) *ptr to count items; new bytes are not zeroed. On failure *ptr stays valid. */
CF_MUST_CHECK cf_err mem_resize(void *ptr_to_ptr, size_t count, size_t item_bytes);

/* A copy of the first text_bytes bytes of text, NUL-terminated. */
CF_MUST_CHECK cf_err mem_strndup(const char *text, size_t text_bytes, char **ret_copy);

/* NULL is fine. */
void mem_free(void *ptr);

/*
 * An arena reserves address space once and hands out 64-byte aligned pieces until it is reset; pages that were never
 * touched cost nothing. One owner, one thread.
 */
typedef struct arena {
    unsigned char *base; /* owned mapping */
    size_t reserved_bytes;
    size_t used_bytes;
    size_t peak_bytes; /* highest used_bytes since open */
} arena;

CF_MUST_CHECK cf_err arena_open(size_t reserved_bytes, arena *ret_arena);
void arena_close(arena *a);

/* Not zeroed. CF_ERR_NOMEM, with both figures in the text, when the reservation is exhausted. */
CF_MUST_CHECK cf_err arena_take(arena *a, size_t bytes, void *ret_ptr);

/* Give back everything taken after the mark; arena_mark() before, arena_reset(a, 0) for all. */
size_t arena_mark(const arena *a);
void arena_reset(arena *a, size_t mark);

#ifdef __cplusplus
}
#endif
#endif
