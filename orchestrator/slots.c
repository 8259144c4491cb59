/*
 * slots.c - first-fit bookkeeping of one outbox, kept sorted by offset. Pure; owned by orch_core.
 * Fails: CF_ERR_BUSY, CF_ERR_LIMIT. Asserts every transition: only our own code can break one.
 */
#include "orchestrator/slots.h"

#include <string.h>

#include "common/base/check.h"

void slots_init(slot_box *box, uint32_t outbox_id, uint64_t bytes)
{
    memset(box, 0, sizeof *box);
    box->outbox_id = outbox_id;
    box->bytes = bytes;
}

cf_err slots_lease(slot_box *box, uint64_t bytes, uint64_t *ret_off)
{
    CF_ASSERT(box->outbox_id != 0);
    CF_ASSERT(!box->retired);
    const uint64_t need = (bytes + SLOT_ALIGN_BYTES - 1) / SLOT_ALIGN_BYTES * SLOT_ALIGN_BYTES;
    if (need == 0 || need > box->bytes)
        return err_set(CF_ERR_LIMIT, "a slot of %llu bytes does not fit an outbox of %llu (outbox_mib)",
                       (unsigned long long)bytes, (unsigned long long)box->bytes);
    if (box->count == SLOTS_PER_BOX_MAX)
        return err_set(CF_ERR_BUSY, "outbox %u: all %d slots are taken", box->outbox_id, SLOTS_PER_BOX_MAX);
    uint64_t off = 0;
    int32_t i = 0;
    for (; i < box->count && box->slots[i].off_bytes - off < need; i++)
        off = box->slots[i].off_bytes + box->slots[i].bytes;
    if (i == box->count && box->bytes - off < need)
        return err_set(CF_ERR_BUSY, "outbox %u: no free region of %llu bytes", box->outbox_id,
                       (unsigned long long)need);
    memmove(&box->slots[i + 1], &box->slots[i], (size_t)(box->count - i) * sizeof box->slots[0]);
    box->slots[i] = (slot){.off_bytes = off, .bytes = need, .state = SLOT_LEASED};
    box->count++;
    *ret_off = off;
    return CF_OK;
}

static int32_t find(const slot_box *box, uint64_t off_bytes)
{
    for (int32_t i = 0; i < box->count; i++)
        if (box->slots[i].off_bytes == off_bytes)
            return i;
    CF_ASSERT(0 && "slot is unknown");
    return -1;
}

static void free_slot(slot_box *box, int32_t i)
{
    box->count--;
    memmove(&box->slots[i], &box->slots[i + 1], (size_t)(box->count - i) * sizeof box->slots[0]);
}

void slots_commit(slot_box *box, uint64_t off_bytes)
{
    slot *s = &box->slots[find(box, off_bytes)];
    CF_ASSERT(s->state == SLOT_LEASED);
    s->state = SLOT_COMMITTED;
}

void slots_consume(slot_box *box, uint64_t off_bytes)
{
    const int32_t i = find(box, off_bytes);
    CF_ASSERT(box->slots[i].state == SLOT_COMMITTED);
    free_slot(box, i);
}

void slots_drop(slot_box *box, uint64_t off_bytes)
{
    const int32_t i = find(box, off_bytes);
    CF_ASSERT(box->slots[i].state == SLOT_LEASED);
    free_slot(box, i);
}

void slots_retire(slot_box *box)
{
    box->retired = true;
    for (int32_t i = box->count; i-- > 0;)
        if (box->slots[i].state == SLOT_LEASED)
            free_slot(box, i);
}

bool slots_drained(const slot_box *box)
{
    return box->retired && box->count == 0;
}

uint64_t slots_used_bytes(const slot_box *box)
{
    uint64_t bytes = 0;
    for (int32_t i = 0; i < box->count; i++)
        bytes += box->slots[i].bytes;
    return bytes;
}
