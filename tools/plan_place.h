/*
 * plan_place.h - how many workers of each stage, and on which devices: pure arithmetic on measured rates and memory.
 */
#ifndef CF_TOOLS_PLAN_PLACE_H
#define CF_TOOLS_PLAN_PLACE_H

#include <stdint.h>

#include "common/base/err.h"

#define PLAN_STAGES      3
#define PLAN_DEVICES_MAX 16 /* as many workers as a stage may have */

typedef struct plan_stage {
    double audio_per_s;    /* of one worker with a device to itself; > 0 */
    uint64_t memory_bytes; /* of one worker */
} plan_stage;

typedef struct plan_result {
    double share[PLAN_STAGES][PLAN_DEVICES_MAX]; /* of a device's time; 0: no worker there */
    int count[PLAN_STAGES];
    double audio_per_s; /* of the farm, when every device is busy all the time */
} plan_result;

/* Devices are equal but for their free memory. CF_ERR_NOMEM names the device and what does not fit there. */
CF_MUST_CHECK cf_err plan_place(const plan_stage stages[PLAN_STAGES], const uint64_t *free_bytes, int devices_count,
                                plan_result *ret_plan);

#endif
