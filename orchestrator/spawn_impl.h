/*
 * spawn_impl.h - a farm's processes as their supervisor knows them, shared by spawn.c (starts, restarts, stops them),
 * spawn_served.c (whether anything comes of it, and how long they rest if not) and spawn_seen.c (who hangs unseen).
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
    bool surplus; /* scaled away: told to end, and not started again */
    bool leaving; /* told to end since its last start */
    pid_t pid;    /* 0: not running */
    int pid_fd;
    unsigned starts;
    bool served;        /* since its last start */
    unsigned vain_ends; /* in a row, of lives in which it had not */
    uint64_t restart_us;
    uint64_t unseen_us; /* since when the orchestrator does not see it; 0: it does */
    unsigned ends;      /* since it last served */
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
    bool is_line_up; /* it has, and tells whom it sees */
    uint64_t silence_us, stall_us;
    uint64_t connect_us;
    char lifeline_path[IO_PATH_BYTES];
};

#define SPAWN_OWN_VARIABLES 3
typedef char spawn_own_env[SPAWN_OWN_VARIABLES][IO_PATH_BYTES + 32];

/* The environment of a child: ours, with the farm's own variables, which text then holds, in place of those of these
 * names. A fault armed from outside fires once: only the first start gets it. The caller frees the list alone. */
CF_MUST_CHECK cf_err spawn_make_env(const spawn *s, bool first, spawn_own_env text, char ***ret_env);

/* How long it rests after this end: not at all when it has served, or the first time that it has not; then 100 ms,
 * 200 ms, ... 5 s. How long it lived says nothing: some take seconds to find out that they cannot work. */
uint64_t spawn_rest_us(child *c);

/* The orchestrator says that a worker serves. */
void spawn_note_served(spawn *s, const wire_msg *served);

/* So many workers of a stage: surplus ones are told to end, missing ones begin, one that ends meanwhile and is wanted
 * again begins again. */
CF_MUST_CHECK cf_err spawn_set_staff(spawn *s, const char *stage, int wanted, uint64_t now_us);

/* What a child's end means. Schedules its restart unless nothing can come of it, or nobody wants it. */
CF_MUST_CHECK cf_err spawn_judge(spawn *s, child *c, int status, uint64_t now_us);

/* The orchestrator says whom it sees, or sees no more. */
void spawn_note_seen(spawn *s, const wire_msg *seen, uint64_t now_us);
/* The line to it is up, and it is about to say whom it sees; or it is down. */
void spawn_note_line(spawn *s, bool is_up, uint64_t now_us);
/* When a child counts as hung; UINT64_MAX: never, as things are. */
uint64_t spawn_hung_us(const spawn *s, const child *c);
void spawn_end_hung(const spawn *s, child *c, uint64_t now_us);

/* It ended with this wait status, and is to be started again. */
void spawn_count_end(child *c, int status, uint64_t now_us);

/* It ended with a code that no restart changes: CF_ERR_INVALID with what the log has last of it. */
cf_err spawn_refused(const spawn *s, const child *c, int code);

#endif
