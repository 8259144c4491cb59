/*
 * outbox_impl.h - the inside of an outbox, for the files that map one kind of memory each. Included by transport alone.
 */
#ifndef CF_TRANSPORT_OUTBOX_IMPL_H
#define CF_TRANSPORT_OUTBOX_IMPL_H

#include "common/transport/outbox.h"

struct outbox {
    uint32_t outbox_id;
    uint64_t bytes;
    unsigned char *base;                  /* what release gives back, or borrowed heap */
    void (*release)(outbox *box);         /* NULL: nothing to give back */
    void (*release_mapping)(outbox *box); /* of a pinned mapping: what release was before */
    bool on_device;
    int hold_fd; /* device memory: keeps its owner from freeing it, and tells its death; owned, -1: none */
};

#endif
