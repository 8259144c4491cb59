/*
 * plan_place.c - placement of workers. Workers on one device take turns, so a second of speech costs 1 / rate of a
 * device's time at each stage, whoever spends it: R = devices / sum(1 / rate) is the most that any placement gives.
 *
 *   The stages' shares of all devices' time, R / rate each, laid side by side and cut at whole devices:
 *
 *     | llm |        flow         | hift |       four devices: llm and flow, flow, flow, flow and hift
 *     0          1          2          3          4
 *
 * reach R with at most devices + 2 workers, and most devices run one stage alone. Pure. Fails: CF_ERR_NOMEM.
 */
#include "tools/plan_place.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/model/stage_tables.h"

#define SLIVER_SHARE 0.05 /* of a device: not worth a worker's memory where the stage has another worker */
#define GIB          1073741824.0

static double overlap(double from, double to, int device)
{
    const double low = from > device ? from : device, high = to < device + 1 ? to : device + 1;
    return high > low ? high - low : 0;
}

static int workers_of(const plan_result *p, int stage, int devices_count)
{
    int count = 0;
    for (int d = 0; d < devices_count; d++)
        count += p->share[stage][d] > 0;
    return count;
}

/* The stage with the smallest share of the device that has another worker elsewhere; -1: none. */
static int least_needed(const plan_result *p, int device, int devices_count)
{
    int least = -1;
    for (int s = 0; s < PLAN_STAGES; s++)
        if (p->share[s][device] > 0 && workers_of(p, s, devices_count) > 1 &&
            (least < 0 || p->share[s][device] < p->share[least][device]))
            least = s;
    return least;
}

static uint64_t memory_on(const plan_stage *stages, const plan_result *p, int device)
{
    uint64_t bytes = 0;
    for (int s = 0; s < PLAN_STAGES; s++)
        bytes += p->share[s][device] > 0 ? stages[s].memory_bytes : 0;
    return bytes;
}

static cf_err refuse(const plan_stage *stages, const plan_result *p, int device, uint64_t free_bytes)
{
    char text[96] = "";
    size_t at = 0;
    for (int s = 0; s < PLAN_STAGES; s++)
        if (p->share[s][device] > 0)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s%s %.2f", at ? ", " : "",
                                   model_stage_name((model_stage)s), (double)stages[s].memory_bytes / GIB);
    return err_set(CF_ERR_NOMEM,
                   "device %d of the list: needs %.2f GiB (%s), %.2f free; fewer rows or frames, or more devices",
                   device, (double)memory_on(stages, p, device) / GIB, text, (double)free_bytes / GIB);
}

/* Who is left on a device has all of its time. */
static void fill_device(plan_result *p, int device)
{
    double sum = 0;
    for (int s = 0; s < PLAN_STAGES; s++)
        sum += p->share[s][device];
    for (int s = 0; s < PLAN_STAGES && sum > 0; s++)
        p->share[s][device] /= sum;
}

cf_err plan_place(const plan_stage stages[PLAN_STAGES], const uint64_t *free_bytes, int devices_count,
                  plan_result *ret_plan)
{
    plan_result p = {.count = {0}};
    double cost = 0, from = 0;
    CF_ASSERT(devices_count >= 1 && devices_count <= PLAN_DEVICES_MAX);
    for (int s = 0; s < PLAN_STAGES; s++)
        cost += 1 / stages[s].audio_per_s;
    for (int s = 0; s < PLAN_STAGES; s++) {
        const double to = s + 1 == PLAN_STAGES ? devices_count : from + devices_count / cost / stages[s].audio_per_s;
        for (int d = 0; d < devices_count; d++)
            p.share[s][d] = overlap(from, to, d);
        from = to;
    }
    for (int d = 0; d < devices_count; d++) {
        for (int s; (s = least_needed(&p, d, devices_count)) >= 0 &&
                    (p.share[s][d] < SLIVER_SHARE || memory_on(stages, &p, d) > free_bytes[d]);)
            p.share[s][d] = 0;
        if (memory_on(stages, &p, d) > free_bytes[d])
            return refuse(stages, &p, d, free_bytes[d]);
        fill_device(&p, d);
    }
    for (int s = 0; s < PLAN_STAGES; s++) {
        double rate = 0;
        for (int d = 0; d < devices_count; d++)
            rate += p.share[s][d] * stages[s].audio_per_s;
        p.count[s] = workers_of(&p, s, devices_count);
        if (s == 0 || rate < p.audio_per_s)
            p.audio_per_s = rate;
    }
    *ret_plan = p;
    return CF_OK;
}
