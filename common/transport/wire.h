/*
 * wire.h - the control messages: one versioned table of kinds with required fields, ranges, channel and direction.
 *
 * A message is one JSON object of at most MESSAGE_BYTES_MAX bytes: {"v":1,"kind":"work",...}. wire_parse refuses
 * whatever the table does not allow: unknown kind, unknown or missing field, value out of range, wrong channel, wrong
 * direction.
 * After that the getters cannot fail; they assert that the key belongs to the kind. docs/PROTOCOL.md explains each
 * kind.
 */
#ifndef CF_TRANSPORT_WIRE_H
#define CF_TRANSPORT_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WIRE_VERSION 1

/* Who sends what on which channel. */
typedef enum wire_route {
    WIRE_MEMBER_LIFELINE = 1, /* worker or keeper -> orchestrator, lifeline */
    WIRE_ORCH_LIFELINE = 2,   /* orchestrator -> worker or keeper, lifeline */
    WIRE_MEMBER_BUS = 4,      /* worker -> orchestrator, ZeroMQ */
    WIRE_ORCH_BUS = 8,        /* orchestrator -> worker, ZeroMQ */
    WIRE_CLIENT_BUS = 16,     /* client -> orchestrator, ZeroMQ */
    WIRE_ORCH_CLIENT = 32     /* orchestrator -> client, ZeroMQ */
} wire_route;

#define WIRE_KINDS(X)                                                                   \
    X(hello, WIRE_MEMBER_LIFELINE)  /* who I am */                                      \
    X(welcome, WIRE_ORCH_LIFELINE)  /* your generation and the configuration */         \
    X(refuse, WIRE_ORCH_LIFELINE)   /* go away, and why */                              \
    X(dismiss, WIRE_ORCH_LIFELINE)  /* the farm has ended: so do you */                 \
    X(join, WIRE_MEMBER_LIFELINE)   /* my model is loaded: its hash, my capacity */     \
    X(alive, WIRE_MEMBER_LIFELINE)  /* I am still on my way to the bus */               \
    X(admit, WIRE_ORCH_LIFELINE)    /* you are a member; descriptor: your outbox */     \
    X(grant, WIRE_ORCH_LIFELINE)    /* descriptor: someone's outbox, to read */         \
    X(opened, WIRE_MEMBER_LIFELINE) /* I have mapped it */                              \
    X(revoke, WIRE_ORCH_LIFELINE)   /* that outbox is no longer used: unmap it */       \
    X(alloc, WIRE_ORCH_LIFELINE)    /* keeper: make an outbox */                        \
    X(memory, WIRE_MEMBER_LIFELINE) /* keeper: descriptors, read-write and read-only */ \
    X(release, WIRE_ORCH_LIFELINE)  /* keeper: forget it */                             \
    X(staff, WIRE_ORCH_LIFELINE)    /* supervisor: so many workers of that stage */     \
    X(served, WIRE_ORCH_LIFELINE)   /* supervisor: that worker serves */                \
    X(seen, WIRE_ORCH_LIFELINE)     /* supervisor: that process has come, or is lost */ \
    X(here, WIRE_MEMBER_BUS)        /* first word on the bus */                         \
    X(beat, WIRE_MEMBER_BUS)        /* progress */                                      \
    X(ready, WIRE_MEMBER_BUS)       /* job complete and error-free */                   \
    X(failed, WIRE_MEMBER_BUS)      /* job ended with an error */                       \
    X(leave, WIRE_MEMBER_BUS)       /* no more work for me: I give back what I hold */  \
    X(work, WIRE_ORCH_BUS)          /* a job */                                         \
    X(cancel, WIRE_ORCH_BUS)        /* forget a job */                                  \
    X(drain, WIRE_ORCH_BUS)         /* finish what you hold, then exit */               \
    X(submit, WIRE_CLIENT_BUS)      /* one utterance */                                 \
    X(accepted, WIRE_ORCH_CLIENT)   /* it will end exactly once */                      \
    X(done, WIRE_ORCH_CLIENT)       /* it ended: a file or an error */                  \
    X(query, WIRE_CLIENT_BUS)       /* status, please */                                \
    X(status, WIRE_ORCH_CLIENT)     /* members, queues, rates */                        \
    X(steer, WIRE_CLIENT_BUS)       /* drain, resume, restart, scale workers */         \
    X(steered, WIRE_ORCH_CLIENT)    /* what became of that */                           \
    X(shutdown, WIRE_CLIENT_BUS)    /* drain the farm and end */                        \
    X(goodbye, WIRE_ORCH_CLIENT)    /* it is ending */

typedef enum wire_kind {
#define WIRE_KIND_ID(name, route) WIRE_##name,
    WIRE_KINDS(WIRE_KIND_ID)
#undef WIRE_KIND_ID
        WIRE_KIND_COUNT
} wire_kind;

const char *wire_kind_name(wire_kind kind);

/* A parsed message; the values belong to it. */
typedef struct wire_msg {
    wire_kind kind;
    json *root; /* owned */
} wire_msg;

/* routes: which routes the receiver accepts here (a bit set). CF_ERR_INVALID, CF_ERR_LIMIT with the reason. */
CF_MUST_CHECK cf_err wire_parse(const char *text, size_t text_bytes, unsigned routes, wire_msg *ret_msg);
void wire_done(wire_msg *msg); /* a zeroed message is fine */

/* Values of a parsed message. */
uint64_t wire_u64(const wire_msg *msg, const char *key);
double wire_f64(const wire_msg *msg, const char *key);
bool wire_bool(const wire_msg *msg, const char *key);
const char *wire_str(const wire_msg *msg, const char *key);
bool wire_has(const wire_msg *msg, const char *key); /* optional fields */
/* Caller owns *ret_items. */
CF_MUST_CHECK cf_err wire_i32s(const wire_msg *msg, const char *key, int32_t **ret_items, size_t *ret_count);
const json *wire_json(const wire_msg *msg, const char *key);

/* Building: wire_new, json_put_*, wire_print. wire_print checks the message against the same table (an assertion: it is
 * ours) and closes root in every case. Caller owns *ret_text. */
json *wire_new(wire_kind kind);
CF_MUST_CHECK cf_err wire_print(json *root, char **ret_text, size_t *ret_bytes);

#ifdef __cplusplus
}
#endif
#endif
