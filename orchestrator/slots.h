/*
 * slots.h - PURE: who may write where. One slot_box describes one outbox: the regions leased to jobs and those
 * committed.
 *
 *   FREE -> LEASED -> COMMITTED -> (consumed) FREE          retire: LEASED dropped, COMMITTED readable until consumed
 *
 * No memory is touched here, no clock is read, nothing is allocated.
 */
#ifndef CF_ORCHESTRATOR_SLOTS_H
#define CF_ORCHESTRATOR_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"

#define SLOTS_PER_BOX_MAX 256
#define SLOT_ALIGN_BYTES  256 /* OUTBOX_ALIGN, asserted where both are visible */

typedef enum slot_state { SLOT_LEASED = 1, SLOT_COMMITTED } slot_state;

typedef struct slot {
    uint64_t off_bytes, bytes;
    slot_state state;
} slot;

typedef struct slot_box {
    uint32_t outbox_id; /* 0: this box is unused */
    uint64_t bytes;
    bool retired;
    int32_t count;
    slot slots[SLOTS_PER_BOX_MAX]; /* ascending offsets, not overlapping */
} slot_box;

void slots_init(slot_box *box, uint32_t outbox_id, uint64_t bytes);

/* Lowest free region of at least `bytes`. CF_ERR_BUSY: none now; CF_ERR_LIMIT: larger than the whole box. */
CF_MUST_CHECK cf_err slots_lease(slot_box *box, uint64_t bytes, uint64_t *ret_off);

void slots_commit(slot_box *box, uint64_t off_bytes);  /* asserts LEASED */
void slots_consume(slot_box *box, uint64_t off_bytes); /* asserts COMMITTED; frees */
void slots_drop(slot_box *box, uint64_t off_bytes);    /* asserts LEASED; frees */

/* No more leases; leased slots are dropped (their writer is gone or forbidden). */
void slots_retire(slot_box *box);

/* Retired and nothing left to read: the memory may be released. */
bool slots_drained(const slot_box *box);

uint64_t slots_used_bytes(const slot_box *box);

#endif
