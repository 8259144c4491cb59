/*
 * clock_jump.c - a wall clock that jumps: preloaded into the processes of a farm, it tells CLOCK_REALTIME a year too
 * late and a year too early in turns. The monotonic clock, by which the farm measures and waits, stays.
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define YEAR_S 31536000

/* libc's own prototypes do not say that their pointers may be NULL in the same way everywhere: ours are plain. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    static atomic_uint asked;
    const int rc = (int)syscall(SYS_clock_gettime, clock, now);
    if (rc == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += atomic_fetch_add(&asked, 1) % 2 ? YEAR_S : -YEAR_S;
    return rc;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec t;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &t) != 0)
        return -1;
    *now = (struct timeval){.tv_sec = t.tv_sec, .tv_usec = t.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *now)
{
    struct timespec t;
    if (clock_gettime(CLOCK_REALTIME, &t) != 0)
        return -1;
    if (now)
        *now = t.tv_sec;
    return t.tv_sec;
}
