/*
 * rates.h - PURE: how much ended in the last minute, by seconds. The orchestrator's one thread keeps one of them for
 * each stage and one for rows.
 */
#ifndef CF_ORCHESTRATOR_RATES_H
#define CF_ORCHESTRATOR_RATES_H

#include <stdint.h>

#define RATES_SECONDS 60

/* All zero: nothing has ended. */
typedef struct rates {
    struct {
        uint64_t second, count; /* second: of the clock; a slot of another minute counts as empty */
        double audio_s;
    } slots[RATES_SECONDS];
} rates;

/* Something has ended now: a stage's job or a row, so many seconds of speech. */
void rates_add(rates *r, uint64_t now_us, double audio_s);

/* What ended in the last minute, or since the start at since_us when that is later, in one second of it. */
void rates_read(const rates *r, uint64_t since_us, uint64_t now_us, double *ret_count_per_s, double *ret_audio_per_s);

#endif
