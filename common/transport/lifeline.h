/*
 * lifeline.h - one AF_UNIX SEQPACKET connection per worker and keeper: it carries descriptors and says who is gone.
 *
 * The orchestrator listens on RUN/lifeline.sock. End of file on either side means that the peer is gone. Messages are
 * the JSON of wire.h, at most MESSAGE_BYTES_MAX bytes, with at most LIFELINE_FDS_MAX descriptors.
 */
#ifndef CF_TRANSPORT_LIFELINE_H
#define CF_TRANSPORT_LIFELINE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/err.h"
#include "common/base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LIFELINE_FDS_MAX 2

/* Removes a stale socket file first: call only while holding the run directory's lock. */
CF_MUST_CHECK cf_err lifeline_listen(const char *path, int *ret_fd);

/* CF_ERR_TIMEOUT when nobody waits. The peer's pid comes from the kernel. */
CF_MUST_CHECK cf_err lifeline_accept(int listen_fd, int *ret_fd, pid_t *ret_pid);

/* One attempt. CF_ERR_GONE when nobody listens there. */
CF_MUST_CHECK cf_err lifeline_connect(const char *path, int *ret_fd);

/* Sends a message built with wire_new, and closes the message (not the descriptors). CF_ERR_GONE, CF_ERR_BUSY. */
CF_MUST_CHECK cf_err lifeline_send(int fd, json *msg, const int *fds, size_t fds_count);

/* Receives one message without waiting: CF_ERR_TIMEOUT when none, CF_ERR_GONE at end of file. Received descriptors are
 * close-on-exec and owned by the caller; unused entries are -1. */
CF_MUST_CHECK cf_err lifeline_recv(int fd, char **ret_text, size_t *ret_bytes, int ret_fds[LIFELINE_FDS_MAX]);

#ifdef __cplusplus
}
#endif
#endif
