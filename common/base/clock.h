/*
 * clock.h - monotonic microseconds, the only kind of time that decisions are made with. Deadlines are points in time.
 */
#ifndef CF_BASE_CLOCK_H
#define CF_BASE_CLOCK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CLOCK_SECOND_US UINT64_C(1000000)

/* Microseconds of CLOCK_MONOTONIC: the same clock in every process of one host. */
uint64_t clock_now_us(void);

/* The time of day, milliseconds since 1970: for what outlives a boot of the host. It may be set back or ahead. */
uint64_t clock_wall_ms(void);

/* Microseconds from then_us to now_us; 0 when then_us is the later one, as it is for what happened after `now` was
 * read. */
static inline uint64_t clock_since_us(uint64_t then_us, uint64_t now_us)
{
    return now_us > then_us ? now_us - then_us : 0;
}

/* Milliseconds left until deadline_us for poll(): 0 when passed, rounded up otherwise, at most cap_ms. */
int clock_left_ms(uint64_t deadline_us, int cap_ms);

#ifdef __cplusplus
}
#endif
#endif
