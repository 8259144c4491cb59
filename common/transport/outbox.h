/*
 * outbox.h - a region of exchange memory that one worker incarnation writes and others read in place.
 *
 * The keeper makes it, the orchestrator hands out slots in it (offset and bytes), every state change is a message.
 * There is nothing in the memory but tensors: no header, no counter, no lock. A grant travels over the lifeline as a
 * descriptor plus sizes; whoever holds the descriptor or a mapping keeps the memory alive. Implementations: memfd, heap
 * (one process: tests), and the memory of a CUDA device (outbox_cuda_ipc.h), behind the same calls.
 */
#ifndef CF_TRANSPORT_OUTBOX_H
#define CF_TRANSPORT_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum outbox_access { OUTBOX_READ, OUTBOX_WRITE } outbox_access;

typedef struct outbox_grant {
    uint32_t outbox_id;
    uint64_t bytes;
    int fd;     /* memfd: owned by the caller, may be closed after outbox_open; -1 for heap */
    void *heap; /* heap: borrowed memory; NULL for memfd */
} outbox_grant;

typedef struct outbox outbox;

/* Keeper's side: a sealed memfd of exactly `bytes` and a second descriptor of it that can only be read. Both owned. */
CF_MUST_CHECK cf_err outbox_make_memfd(uint32_t outbox_id, uint64_t bytes, int *ret_write_fd, int *ret_read_fd);

/* Maps a grant. Size and seals are checked at the descriptor first: CF_ERR_MISMATCH. OUTBOX_WRITE through a read-only
 * descriptor is CF_ERR_SYS. */
CF_MUST_CHECK cf_err outbox_open(const outbox_grant *grant, outbox_access access, outbox **ret_outbox);
void outbox_close(outbox *box); /* NULL is fine */

uint32_t outbox_id(const outbox *box);

/* Whether outbox_view gives addresses of a device, which the host cannot follow. */
bool outbox_on_device(const outbox *box);

/* CF_ERR_GONE: the memory's owner has died, and what was read or written there since is worth nothing. Ask after the
 * device has finished. A memfd needs no owner. */
CF_MUST_CHECK cf_err outbox_check(const outbox *box);

/* Readable or in error as soon as outbox_check fails; -1: that never happens. */
int outbox_owner_fd(const outbox *box);

/* The bytes [off, off + bytes); CF_ERR_INVALID when they leave the region or off is not a multiple of OUTBOX_ALIGN. */
CF_MUST_CHECK cf_err outbox_view(const outbox *box, uint64_t off_bytes, uint64_t bytes, void **ret_data);

#define OUTBOX_ALIGN 256 /* slots start at multiples of this: coalesced device loads, whole cache lines */

#ifdef __cplusplus
}
#endif
#endif
