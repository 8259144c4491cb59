/*
 * process.h - what every program of the farm does at start: follow its parent, turn signals into a descriptor, know
 * its size.
 */
#ifndef CF_BASE_PROCESS_H
#define CF_BASE_PROCESS_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Exit codes of the farm's programs: they are protocol (docs/OPERATIONS.md). */
enum {
    PROCESS_DRAINED = 0,
    PROCESS_USAGE = 64,
    PROCESS_ORCHESTRATOR_GONE = 69,
    PROCESS_DEVICE_LOST = 70,
    PROCESS_NO_RESOURCES = 75,
    PROCESS_CONFIG = 78 /* do not restart */
};

/* Of what has kept a program from its work: a shortage may be over at the next start. */
int process_exit_code(cf_err err);

/* How long to rest before the next try when so many in a row have ended before they served: the first time not at all,
 * then 100 ms, 200 ms, ... 5 s. */
uint64_t process_rest_us(unsigned vain);

/* First thing in main: descriptors 0 to 2 that the caller left closed become /dev/null, or else the next file that is
 * opened would get what is meant for standard output. Ends the process where that cannot be done. */
void process_hold_standard(void);

/* Last thing before the exit: what standard output has not taken is said on stderr, once. Returns code; in place of 0
 * PROCESS_NO_RESOURCES where there was no room, else 1. */
int process_flush_output(const char *program, int code);

/* Dies (SIGKILL) when the process named by COSYFARM_PARENT dies, if that is our parent. Without the variable: no-op. */
void process_follow_parent(void);

/* Blocks SIGTERM and SIGINT for this and later threads, ignores SIGPIPE, and returns a descriptor that becomes
 * readable. */
CF_MUST_CHECK cf_err process_signal_fd(int *ret_fd);

/* The orchestrator ends at once and in order, and leaves its farm and its journal to a successor. */
#define PROCESS_STEP_ASIDE SIGUSR1

/* One more signal, blocked and told by the same descriptor. */
CF_MUST_CHECK cf_err process_signal_add(int fd, int number);

/* Reads one signal number from it; 0: none waits. */
int process_read_signal(int fd);

/* SIGTERM or SIGINT has come since process_signal_fd and waits to be read: for long loops, which have no descriptors to
 * wait on. Reads nothing. */
bool process_stop_asked(void);

/* Waits until fd can be read, or has ended. False: SIGTERM or SIGINT came (and counts as read), or another signal's
 * handler ran. */
bool process_wait_readable(int fd);

/* For debuggers and top: the calling thread's name, at most 15 bytes. */
void process_name_thread(const char *name);

/* The calling thread, and those it starts, only answer messages: they run as soon as one comes, whatever computes.
 * False: the system does not permit it (RLIMIT_RTPRIO, CAP_SYS_NICE), and nothing changes. */
bool process_thread_goes_first(void);

/* The calling thread, and those it starts, do long work: undoes the above and gives way to threads that answer. */
void process_thread_gives_way(void);

/* A mutex between threads of both kinds: who holds it runs as long as one that goes first waits for it. */
void process_mutex_init(pthread_mutex_t *mutex);

/* Resident memory of this process; of another one that this one can see, else 0. */
uint64_t process_rss_bytes(void);
uint64_t process_rss_bytes_of(pid_t pid);
/* The most it ever was. */
uint64_t process_peak_bytes(void);
/* CPU time of all its threads, user and system. */
uint64_t process_cpu_us(void);

/* Memory that this process may still take: free memory of the host, and what its control group leaves. */
CF_MUST_CHECK cf_err process_memory_left(uint64_t *ret_left_bytes, uint64_t *ret_total_bytes);

/* Path of the program `name` in the folder of the running one. */
CF_MUST_CHECK cf_err process_sibling(const char *name, char *ret_path, size_t path_bytes);

/* Run directory: COSYFARM_RUN_DIR, else $XDG_RUNTIME_DIR/cosyfarm, else /run/cosyfarm. */
CF_MUST_CHECK cf_err process_run_dir(char *ret_path, size_t path_bytes);

/* The one that the option --run-dir names; CF_ERR_LIMIT names the limit. */
CF_MUST_CHECK cf_err process_take_run_dir(const char *text, char *ret_path, size_t path_bytes);

#define RUN_BUS_SOCKET      "bus.sock"
#define RUN_LIFELINE_SOCKET "lifeline.sock"
#define RUN_LOCK            "lock"
#define RUN_KEPT            "kept.json" /* what the orchestrator was told of workers */

#ifdef __cplusplus
}
#endif
#endif
