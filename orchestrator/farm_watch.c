/*
 * farm_watch.c - who waits for a farm learns from its statuses whether anybody serves: of somebody else's farm there is
 * nothing else to see, and of its own the processes that hang. The command's one thread; owns nothing.
 * Fails: CF_ERR_GONE of farm_watch_hear, with the stage, how long, and who is there instead.
 */
#include "orchestrator/farm_watch.h"

#include <inttypes.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"

static unsigned workers_of_state(const char *state)
{
    static const struct {
        const char *state;
        unsigned workers;
    } known[] = {{"serving", WORKERS_FED},
                 {"parole", WORKERS_FED},
                 {"barred", WORKERS_BARRED},
                 {"draining", WORKERS_PAUSED},
                 {"drained", WORKERS_PAUSED}};
    for (size_t i = 0; i < CF_COUNT(known); i++)
        if (strcmp(known[i].state, state) == 0)
            return known[i].workers;
    return WORKERS_COMING;
}

unsigned farm_workers(const wire_msg *status, model_stage stage)
{
    unsigned workers = 0;
    for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
        const char *role, *state;
        if (json_get_str(m, "role", 31, &role) == CF_OK && json_get_str(m, "state", 31, &state) == CF_OK &&
            strcmp(role, model_stage_name(stage)) == 0)
            workers |= workers_of_state(state);
    }
    return workers;
}

const char *farm_workers_word(unsigned workers)
{
    return workers & WORKERS_FED      ? ""
           : workers & WORKERS_BARRED ? "barred"
           : workers & WORKERS_PAUSED ? "drained"
           : workers & WORKERS_COMING ? "starting"
                                      : "no worker";
}

unsigned farm_awaited(const wire_msg *status)
{
    unsigned awaited = 0;
    for (int s = 0; s < MODEL_STAGE_COUNT; s++) {
        uint64_t waiting;
        const json *queue = json_find(wire_json(status, "queues"), model_stage_name((model_stage)s));
        if (queue && json_get_u64(queue, "waiting", 0, UINT64_MAX, &waiting) == CF_OK && waiting > 0)
            awaited |= 1u << s;
    }
    return awaited;
}

uint64_t farm_seconds(const wire_msg *status, const char *key)
{
    uint64_t seconds = 0;
    return json_get_u64(wire_json(status, "config"), key, 0, INT32_MAX, &seconds) == CF_OK ? seconds : 0;
}

/* For how long it has been so, as of now. */
static uint64_t lasting_us(bool is_so, uint64_t *since_us, uint64_t now_us)
{
    if (!is_so || *since_us == 0)
        *since_us = is_so ? now_us : 0;
    return is_so ? clock_since_us(*since_us, now_us) : 0;
}

static cf_err give_up(const farm_watch *w, model_stage stage, unsigned workers, uint64_t waited_us)
{
    return err_set(CF_ERR_GONE, "stage %s of %s: expected a worker that serves, found %s%s%s for %.0f s; %s",
                   model_stage_name(stage), w->is_own_farm ? "this command's own farm" : "the running farm",
                   workers ? "only " : "", farm_workers_word(workers), workers ? " ones" : "", (double)waited_us / 1e6,
                   w->is_own_farm ? "its log says more, and the same command goes on with the rows that are left"
                                  : "accepted rows stay with the farm, and the same command goes on when one serves "
                                    "(cosyfarm status)");
}

cf_err farm_watch_hear(farm_watch *w, const wire_msg *status, unsigned needed, uint64_t absent_us, uint64_t now_us)
{
    const uint64_t more_s = w->is_own_farm ? farm_seconds(status, "silence_s") : 0;
    const uint64_t unserved_us = (farm_seconds(status, "unserved_s") + more_s) * CLOCK_SECOND_US;
    for (int s = 0; s < MODEL_STAGE_COUNT; s++) {
        const unsigned workers = farm_workers(status, (model_stage)s);
        const bool is_needed = needed & 1u << s;
        const uint64_t absent = lasting_us(is_needed && workers == 0, &w->absent_since_us[s], now_us);
        const uint64_t unserved =
            lasting_us(is_needed && !(workers & (WORKERS_FED | WORKERS_BARRED)), &w->unserved_since_us[s], now_us);
        if (absent > absent_us || unserved > unserved_us)
            return give_up(w, (model_stage)s, workers, absent > absent_us ? absent : unserved);
    }
    return CF_OK;
}
