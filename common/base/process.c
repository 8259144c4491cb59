/*
 * process.c - start-up habits of a long-running program. Called from main before threads start.
 * Fails: CF_ERR_SYS, CF_ERR_LIMIT. process_hold_standard and process_follow_parent end the process: without /dev/null,
 * when its parent is already gone.
 */
#define _GNU_SOURCE
#include "common/base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/clock.h"

#define WORK_NICE 5 /* added: a third of the weight of this program's threads that answer messages */

#define REST_FIRST_US 100000
#define REST_MAX_US   (5 * CLOCK_SECOND_US)

int process_exit_code(cf_err err)
{
    switch (err) {
    case CF_ERR_DEVICE:
        return PROCESS_DEVICE_LOST;
    case CF_ERR_NOMEM:
    case CF_ERR_SYS:
    case CF_ERR_STORAGE:
    case CF_ERR_BUSY:
    case CF_ERR_TIMEOUT:
        return PROCESS_NO_RESOURCES;
    default:
        return PROCESS_CONFIG;
    }
}

uint64_t process_rest_us(unsigned vain)
{
    const uint64_t us = vain < 2 ? 0 : (uint64_t)REST_FIRST_US << (vain < 10 ? vain - 2 : 8);
    return us < REST_MAX_US ? us : REST_MAX_US;
}

void process_hold_standard(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) /* the lowest that is free: this one */
            _exit(PROCESS_NO_RESOURCES);
}

int process_flush_output(const char *program, int code)
{
    errno = 0; /* stays 0 when an earlier write failed, whose cause nobody has kept */
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    const int why = errno;
    clearerr(stdout);
    fprintf(stderr, "%s: standard output: %s\n", program, why ? strerror(why) : "a part of it could not be written");
    return code != PROCESS_DRAINED ? code : why == ENOSPC || why == EDQUOT ? PROCESS_NO_RESOURCES : 1;
}

void process_follow_parent(void)
{
    const char *parent = getenv("COSYFARM_PARENT");
    if (!parent)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if ((long)getppid() != strtol(parent, NULL, 10))
        _exit(PROCESS_ORCHESTRATOR_GONE); /* it died before the line above */
}

static void signals_of_all(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
}

/* fd -1: a new one. */
static cf_err watch_signals(int fd, const sigset_t *set, int *ret_fd)
{
    if (sigprocmask(SIG_BLOCK, set, NULL) != 0)
        return err_sys("sigprocmask");
    *ret_fd = signalfd(fd, set, SFD_CLOEXEC | SFD_NONBLOCK);
    return *ret_fd < 0 ? err_sys("signalfd") : CF_OK;
}

cf_err process_signal_fd(int *ret_fd)
{
    sigset_t set;
    int fd;
    signals_of_all(&set);
    signal(SIGPIPE, SIG_IGN);
    const cf_err err = watch_signals(-1, &set, &fd);
    if (err == CF_OK)
        *ret_fd = fd;
    return err;
}

cf_err process_signal_add(int fd, int number)
{
    sigset_t set;
    int same;
    signals_of_all(&set);
    sigaddset(&set, number);
    return watch_signals(fd, &set, &same);
}

int process_read_signal(int fd)
{
    struct signalfd_siginfo info;
    return read(fd, &info, sizeof info) == (ssize_t)sizeof info ? (int)info.ssi_signo : 0;
}

bool process_stop_asked(void)
{
    sigset_t pending;
    return sigpending(&pending) == 0 && (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1);
}

static void note_stop(int number)
{
    (void)number; /* that it ran is what ends the waiting */
}

bool process_wait_readable(int fd)
{
    const struct sigaction noted = {.sa_handler = note_stop};
    struct sigaction old_term, old_int;
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    sigdelset(&mask, SIGTERM);
    sigdelset(&mask, SIGINT);
    sigaction(SIGTERM, &noted, &old_term);
    sigaction(SIGINT, &noted, &old_int);
    const int ready = ppoll(&readable, 1, NULL, &mask); /* one step: a signal just before it is not lost */
    sigaction(SIGTERM, &old_term, NULL);
    sigaction(SIGINT, &old_int, NULL);
    return ready > 0;
}

void process_name_thread(const char *name)
{
    prctl(PR_SET_NAME, name);
}

/* Fair scheduling lets a computing thread finish its slice, on some kernels until the next tick, 4 ms: too long for a
 * hand-over of six wake-ups. Threads that ask for this work for microseconds; the kernel's throttling bounds one that
 * does not. */
bool process_thread_goes_first(void)
{
    const struct sched_param lowest = {.sched_priority = sched_get_priority_min(SCHED_RR)};
    return sched_setscheduler(0, SCHED_RR, &lowest) == 0;
}

void process_thread_gives_way(void)
{
    const id_t self = (id_t)syscall(SYS_gettid);
    sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
    setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + WORK_NICE);
}

void process_mutex_init(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(mutex, &attr);
    pthread_mutexattr_destroy(&attr);
}

/* The number behind `key` in a file of lines "key number"; false: it has none. key NULL: the file's only word. */
static bool read_number(const char *path, const char *key, uint64_t *ret_value)
{
    char line[256];
    bool found = false;
    unsigned long long value = 0;
    FILE *f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof line, f)) {
        const size_t skip = key ? strlen(key) : 0;
        found = (!key || strncmp(line, key, skip) == 0) && sscanf(line + skip, " %llu", &value) == 1;
    }
    if (f)
        fclose(f);
    *ret_value = value;
    return found;
}

/* What control groups (version 2) leave: the tightest on the way up from ours. */
static void limit_by_groups(uint64_t *left_bytes)
{
    char line[512] = "", path[600];
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && strncmp(line, "0::", 3) != 0 && fgets(line, sizeof line, f))
        ;
    if (f)
        fclose(f);
    if (strncmp(line, "0::/", 4) != 0)
        return;
    line[strcspn(line, "\n")] = '\0';
    for (char *group = line + 3; *group;) {
        uint64_t max, used;
        snprintf(path, sizeof path, "/sys/fs/cgroup%.480s/memory.max", group);
        const bool limited = read_number(path, NULL, &max); /* "max" is no number */
        snprintf(path, sizeof path, "/sys/fs/cgroup%.480s/memory.current", group);
        if (limited && read_number(path, NULL, &used) && max - (used < max ? used : max) < *left_bytes)
            *left_bytes = max - (used < max ? used : max);
        *strrchr(group, '/') = '\0';
    }
}

cf_err process_memory_left(uint64_t *ret_left_bytes, uint64_t *ret_total_bytes)
{
    uint64_t left_kib, total_kib;
    if (!read_number("/proc/meminfo", "MemAvailable:", &left_kib) ||
        !read_number("/proc/meminfo", "MemTotal:", &total_kib))
        return err_set(CF_ERR_SYS, "/proc/meminfo: expected MemAvailable and MemTotal");
    *ret_left_bytes = left_kib * 1024;
    *ret_total_bytes = total_kib * 1024;
    limit_by_groups(ret_left_bytes);
    return CF_OK;
}

uint64_t process_rss_bytes(void)
{
    return process_rss_bytes_of(getpid());
}

uint64_t process_rss_bytes_of(pid_t pid)
{
    char path[32];
    unsigned long pages = 0;
    snprintf(path, sizeof path, "/proc/%ld/statm", (long)pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (fscanf(f, "%*s %lu", &pages) != 1)
        pages = 0;
    fclose(f);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t process_peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_maxrss * 1024;
}

uint64_t process_cpu_us(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

cf_err process_sibling(const char *name, char *ret_path, size_t path_bytes)
{
    const ssize_t n = readlink("/proc/self/exe", ret_path, path_bytes - 1);
    if (n <= 0)
        return err_sys("/proc/self/exe");
    ret_path[n] = '\0';
    char *slash = strrchr(ret_path, '/');
    const size_t room = slash ? path_bytes - (size_t)(slash + 1 - ret_path) : 0;
    if (room == 0 || (size_t)snprintf(slash + 1, room, "%s", name) >= room)
        return err_set(CF_ERR_LIMIT, "%s: path of a program longer than %zu bytes", name, path_bytes);
    return CF_OK;
}

cf_err process_run_dir(char *ret_path, size_t path_bytes)
{
    const char *run = getenv("COSYFARM_RUN_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
    const int n = run && *run   ? snprintf(ret_path, path_bytes, "%s", run)
                  : xdg && *xdg ? snprintf(ret_path, path_bytes, "%s/cosyfarm", xdg)
                                : snprintf(ret_path, path_bytes, "/run/cosyfarm");
    if (n < 0 || (size_t)n >= path_bytes)
        return err_set(CF_ERR_LIMIT, "run directory longer than %zu bytes", path_bytes - 1);
    return CF_OK;
}

cf_err process_take_run_dir(const char *text, char *ret_path, size_t path_bytes)
{
    if (strlen(text) >= path_bytes)
        return err_set(CF_ERR_LIMIT, "--run-dir: path longer than %zu bytes", path_bytes - 1);
    memcpy(ret_path, text, strlen(text) + 1);
    return CF_OK;
}
