/*
 * keeper_fixture.h - the real exchange_keeper for tests, seen from its orchestrator's end of the lifeline; and the few
 * words of an orchestrator and its members. Nothing here fails the running test: forked children use it too.
 */
#ifndef CF_TESTS_TRANSPORT_KEEPER_FIXTURE_H
#define CF_TESTS_TRANSPORT_KEEPER_FIXTURE_H

#include <sys/types.h>

#include "common/transport/lifeline.h"
#include "common/transport/wire.h"

#define FIXTURE_WAIT_US (60 * UINT64_C(1000000)) /* nothing here takes a second; sanitizers on a busy machine do */

/* Waits until fd is readable; CF_ERR_TIMEOUT after FIXTURE_WAIT_US. */
CF_MUST_CHECK cf_err fixture_wait(int fd);

/* The next connection to a listening lifeline. */
CF_MUST_CHECK cf_err fixture_accept(int listen_fd, int *ret_fd, pid_t *ret_pid);

/* The next message, which must be of this kind; `alive` and `seen`, which come when they will, are passed over unless
 * asked for. Descriptors beyond those that fds_count asks for are an error. With
 * FIXTURE_FDS_ANY ret_fds has LIFELINE_FDS_MAX entries, -1 where there was none. */
#define FIXTURE_FDS_ANY SIZE_MAX
CF_MUST_CHECK cf_err fixture_take(int fd, wire_kind kind, wire_msg *ret_msg, int *ret_fds, size_t fds_count);

CF_MUST_CHECK cf_err fixture_say_hello(int fd, const char *role);
CF_MUST_CHECK cf_err fixture_say_welcome(int fd, uint64_t gen);

/* Starts the program on run_dir with `fault` armed (or NULL); it dies with this process. Its log: run_dir/keeper.log */
CF_MUST_CHECK cf_err keeper_start(const char *run_dir, const char *fault, pid_t *ret_pid);

/* Asks for an outbox and takes the answer: both descriptors are the caller's. CF_ERR_NOMEM with the keeper's text when
 * it refuses. */
CF_MUST_CHECK cf_err keeper_alloc(int fd, uint32_t outbox_id, uint64_t bytes, int ret_fds[2]);
CF_MUST_CHECK cf_err keeper_release(int fd, uint32_t outbox_id);

/* How often processes of this machine hold the outbox, by descriptor or mapping. pid 0: all that may be looked at. */
int outbox_holders(uint32_t outbox_id, pid_t pid);

#endif
