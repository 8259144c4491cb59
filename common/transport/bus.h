/*
 * bus.h - the ZeroMQ control plane: the only door to zmq.h.
 *
 * The orchestrator binds one ROUTER on ipc://RUN/bus.sock; workers and clients connect DEALERs whose routing id is
 * unique per incarnation ("flow.0.17"). One frame per message: JSON text. Sends never block and never drop silently:
 * an unroutable peer is CF_ERR_GONE, a full queue CF_ERR_BUSY. One owner, one thread.
 */
#ifndef CF_TRANSPORT_BUS_H
#define CF_TRANSPORT_BUS_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BUS_ID_BYTES 64

typedef struct bus bus;

CF_MUST_CHECK cf_err bus_bind(const char *endpoint, bus **ret_bus);
CF_MUST_CHECK cf_err bus_connect(const char *endpoint, const char *routing_id, bus **ret_bus);
void bus_close(bus *b); /* NULL is fine; unsent messages are dropped */

/* Sends a message built with wire_new and closes it. peer_id: ROUTER only, else NULL. CF_ERR_GONE, CF_ERR_BUSY. */
CF_MUST_CHECK cf_err bus_send(bus *b, const char *peer_id, json *msg);

/* Receives without waiting: CF_ERR_TIMEOUT when nothing is there. On a ROUTER ret_peer_id gets the sender ("" else).
 * *ret_text is owned by the caller (mem_free). Messages of several parts are CF_ERR_INVALID and consumed; whoever sends
 * one above MESSAGE_BYTES_MAX is disconnected by zmq, and it never gets here. */
CF_MUST_CHECK cf_err bus_recv(bus *b, char ret_peer_id[BUS_ID_BYTES], char **ret_text, size_t *ret_bytes);

/* Waits until the bus or one of fds is readable, at most until deadline_us. *ret_bus_ready tells of the bus;
 * fds[i].revents of the rest. b may be NULL. EINTR counts as a wake-up. */
CF_MUST_CHECK cf_err bus_poll(bus *b, struct pollfd *fds, size_t count, uint64_t deadline_us, int *ret_bus_ready);

#ifdef __cplusplus
}
#endif
#endif
