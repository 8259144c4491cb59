/*
 * farm_watch.h - what a status says of a farm's stages, for those who wait for it: who is there, and for how long a
 * stage that work waits for has had nobody. Nothing but the messages that are handed in.
 */
#ifndef CF_ORCHESTRATOR_FARM_WATCH_H
#define CF_ORCHESTRATOR_FARM_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/model/stage_tables.h"
#include "common/transport/wire.h"

/* Which kinds of workers a stage has: bits, 0 when it has none. */
#define WORKERS_FED    1u /* they get work, on parole at least one job */
#define WORKERS_BARRED 2u /* they died too often */
#define WORKERS_PAUSED 4u /* somebody drained them */
#define WORKERS_COMING 8u /* they load, or are on their way out */
unsigned farm_workers(const wire_msg *status, model_stage stage);

/* What a person reads of a stage that is not fed: "no worker", "drained", "barred", "starting"; else "". */
const char *farm_workers_word(unsigned workers);

/* Sets of stages: bit 1 << stage. */
#define FARM_ALL_STAGES ((1u << MODEL_STAGE_COUNT) - 1)
unsigned farm_awaited(const wire_msg *status); /* those for which jobs wait */

/* A number of seconds from the configuration of the farm, which need not be ours. */
uint64_t farm_seconds(const wire_msg *status, const char *key);

typedef struct farm_watch {
    bool is_own_farm; /* whose processes we started: the one that hangs is ended after silence_s, and gets it on top */
    uint64_t absent_since_us[MODEL_STAGE_COUNT], unserved_since_us[MODEL_STAGE_COUNT]; /* 0: not so */
} farm_watch;

/* Tells the watch what a status says; needed: the stages that somebody waits for. CF_ERR_GONE: one of them has had no
 * worker at all for absent_us, or none that is fed or barred for the farm's unserved_s. A barred one is fed again. */
CF_MUST_CHECK cf_err farm_watch_hear(farm_watch *w, const wire_msg *status, unsigned needed, uint64_t absent_us,
                                     uint64_t now_us);

#endif
