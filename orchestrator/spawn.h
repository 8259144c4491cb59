/*
 * spawn.h - the farm's processes as children, where systemd does not start them (a laptop, a container, a batch job).
 *
 * Tells the orchestrator that it supervises, and starts or ends workers when that asks for another number.
 * Never blocks: the owner polls spawn_fds and calls spawn_progress. A child that ends is started again, at once when it
 * has served or for the first time, else with growing pauses; after a second when it ended with code 0, since the farm
 * may be ending. Exit code 0 of the orchestrator means that the farm was told to end; 64 and 78 of any child mean that
 * a restart cannot help. Children die with their parent.
 */
#ifndef CF_ORCHESTRATOR_SPAWN_H
#define CF_ORCHESTRATOR_SPAWN_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/config.h"
#include "common/base/err.h"
#include "common/base/limits.h"
#include "common/transport/wire.h"

#define SPAWN_CHILDREN_MAX (STAFF_MAX + 2)          /* workers, keeper, orchestrator */
#define SPAWN_FDS_MAX      (SPAWN_CHILDREN_MAX + 1) /* and the line to the orchestrator */

typedef struct spawn spawn;

/* Writes run_dir/config.json and starts keeper, orchestrator and workers. Programs lie beside the running one. Their
 * messages go to log_path (appended), or to our stderr when it is NULL. */
CF_MUST_CHECK cf_err spawn_open(const config *cfg, const char *run_dir, const char *log_path, spawn **ret_spawn);

size_t spawn_fds(const spawn *s, struct pollfd fds[SPAWN_FDS_MAX]);
uint64_t spawn_deadline_us(const spawn *s); /* when a delayed restart is due; UINT64_MAX: none */

/* Reaps and restarts. CF_ERR_GONE: the farm has ended in order. CF_ERR_INVALID: it cannot run; the text says who said
 * so. */
CF_MUST_CHECK cf_err spawn_progress(spawn *s, uint64_t now_us);

/* For an owner that asks the orchestrator: what it hears, a status or the end of a row, tells who has served. */
void spawn_hear(spawn *s, const wire_msg *msg);

/* CF_ERR_GONE: the farm cannot work, because all workers of a stage, the keeper or the orchestrator have ended
 * UNSERVED_ENDS_MAX times each since they last served, the first time more than patience_us ago. The text names who,
 * how it ended, and what the log has last of it. */
CF_MUST_CHECK cf_err spawn_check_served(const spawn *s, uint64_t now_us, uint64_t patience_us);

/* Ends all children: SIGTERM to the orchestrator first, which drains; then to the rest; SIGKILL at the deadline. */
void spawn_stop(spawn *s, uint64_t deadline_us);
void spawn_close(spawn *s); /* kills what is left; NULL is fine */

#endif
