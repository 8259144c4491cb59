/* clock.c - reads the clocks. Fails: never. */
#define _GNU_SOURCE
#include "common/base/clock.h"

#include <time.h>

uint64_t clock_now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * CLOCK_SECOND_US + (uint64_t)ts.tv_nsec / 1000;
}

int clock_left_ms(uint64_t deadline_us, int cap_ms)
{
    const uint64_t now_us = clock_now_us();
    if (deadline_us <= now_us)
        return 0;
    const uint64_t left_ms = (deadline_us - now_us + 999) / 1000;
    return left_ms > (uint64_t)cap_ms ? cap_ms : (int)left_ms;
}

uint64_t clock_wall_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}
