/*
 * spawn_impl.h - a farm's processes as their supervisor knows them, shared by spawn.c (starts, restarts, stops them)
 * and spawn_served.c (whether anything comes of it).
 */
#ifndef CF_ORCHESTRATOR_SPAWN_IMPL_H
#define CF_ORCHESTRATOR_SPAWN_IMPL_H

#include <sys/types.h>

#include "common/base/io.h"
#include "orchestrator/spawn.h"

#define SPAWN_NOT_STARTED (-1) /* in the place of a wait status */

typedef enum child_role { CHILD_KEEPER, CHILD_ORCHESTRATOR, CHILD_WORKER } child_role;

typedef struct child {
    child_role role;
    char program[32];
    int instance;
    bool surplus; /* scaled away: not started again */
    pid_t pid;    /* 0: not running */
    int pid_fd;
    unsigned starts, quick_deaths;
    uint64_t started_us, restart_us;
    unsigned ends; /* since it last served */
    int end_status;
    uint64_t ends_since_us; /* of the first of them */
} child;

struct spawn {
    char run_dir[IO_PATH_BYTES], config_path[IO_PATH_BYTES], log_path[IO_PATH_BYTES];
    int log_fd; /* owned, -1: our stderr */
    child children[SPAWN_CHILDREN_MAX];
    size_t count;
    bool stopping;
    int lifeline_fd; /* owned; -1: no orchestrator answers */
    uint64_t connect_us;
    char lifeline_path[IO_PATH_BYTES];
};

/* It ended with this wait status, and is to be started again. */
void spawn_count_end(child *c, int status, uint64_t now_us);

#endif
