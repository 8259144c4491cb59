/*
 * orch_steer.c - workers steered by a person: drain, resume, restart, scale. Part of the shell, its one thread.
 *
 *   drain    no more work for it; it finishes what it holds and waits          resume   work again, deaths forgotten
 *   restart  one of a stage after the other finishes what it holds, exits with the code that its supervisor answers by
 *            starting it again, and serves before the next goes
 *   scale    so many workers of a stage: the supervisor starts the missing ones and ends surplus ones, which hand back
 *            what they hold; one that has not said yet that it is there is waited for
 *
 * Drains and restarts outlive the orchestrator (orch_kept.c); scale is the supervisor's to remember once it has heard
 * of it: whenever it says hello it is told what was wished last.
 * Fails: what cannot be done is the answer's code and text.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/model/stage_tables.h"
#include "orchestrator/orch.h"

#define RESTART_WAIT_US (120 * CLOCK_SECOND_US) /* a worker that does not come back holds up the others this long */
#define ALL             (-1)
#define SUPERVISOR_US   (5 * CLOCK_SECOND_US) /* it tries ten times a second to reach an orchestrator */

static bool is_meant(const conn *c, int stage, int instance)
{
    return c->state >= CONN_LOADING && c->state <= CONN_SERVING && c->stage == stage &&
           (instance == ALL || c->instance == instance);
}

/* ---- drain, resume ---- */

static int set_paused(orch *o, int stage, int instance, bool paused)
{
    int members = 0;
    const int first = instance == ALL ? 0 : instance, last = instance == ALL ? INSTANCES_MAX - 1 : instance;
    for (int i = first; i <= last; i++)
        o->paused[stage][i] = paused;
    kept_save(o);
    for (int i = first; i <= last && !paused; i++)
        orch_apply(o, &(core_event){.kind = CORE_PARDON, .stage = stage, .instance = i});
    for (int i = 0; i < CONNS_MAX; i++) {
        if (!is_meant(&o->conns[i], stage, instance))
            continue;
        members++;
        if (o->conns[i].state == CONN_SERVING)
            orch_apply(o, &(core_event){.kind = CORE_PAUSE, .member = i, .paused = paused});
    }
    return members;
}

/* ---- restart ---- */

static int want_restart(orch *o, int stage, int instance)
{
    int members = 0;
    for (int i = 0; i < CONNS_MAX; i++)
        if (is_meant(&o->conns[i], stage, instance)) {
            o->to_restart[stage][o->conns[i].instance] = o->conns[i].pid;
            members++;
        }
    kept_save(o);
    return members;
}

static int find_member(const orch *o, int stage, int instance)
{
    for (int i = 0; i < CONNS_MAX; i++)
        if (o->conns[i].state == CONN_SERVING && o->conns[i].stage == stage && o->conns[i].instance == instance)
            return i;
    return -1;
}

static int next_to_restart(const orch *o, int stage)
{
    for (int i = 0; i < INSTANCES_MAX; i++)
        if (o->to_restart[stage][i])
            return i;
    return -1;
}

/* One that is not here when its turn comes, because it died or because we are new, is waited for all the same: another
 * process of its number has been restarted, and until one serves no other one goes. */
static void progress_restart(orch *o, int stage, uint64_t now_us)
{
    int *at = &o->restarting[stage];
    if (*at < 0) {
        *at = next_to_restart(o, stage);
        o->restart_since_us[stage] = now_us;
    }
    if (*at < 0)
        return;
    const int member = find_member(o, stage, *at);
    const bool is_same = member >= 0 && o->conns[member].pid == o->to_restart[stage][*at];
    const bool serves = member >= 0 && !is_same;
    const uint64_t waited_us = clock_since_us(o->restart_since_us[stage], now_us);
    if (is_same && !o->conns[member].draining)
        members_drain_one(o, member, true);
    if (!serves && waited_us < RESTART_WAIT_US)
        return;
    log_line(serves ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, serves ? "member.restarted" : "member.not_back",
             "role=%s instance=%d after_ms=%llu", model_stage_name(stage), *at, (unsigned long long)waited_us / 1000);
    o->to_restart[stage][*at] = 0;
    *at = -1;
    kept_save(o);
}

/* ---- scale ---- */

/* A supervisor that started us is about to say so, at our start or when its line was lost. */
static bool has_supervisor_to_come(const orch *o)
{
    return getenv("COSYFARM_PARENT") && members_in_state(o, CONN_SUPERVISOR) < 0;
}

static void tell_staff(orch *o, int supervisor, int stage)
{
    json *m = wire_new(WIRE_staff);
    json_put_str(m, "stage", model_stage_name(stage));
    json_put_u64(m, "count", (uint64_t)o->staff[stage]);
    members_send(o, supervisor, m);
}

void steer_tell_staff(orch *o)
{
    for (int stage = 0; stage < CORE_STAGES; stage++) {
        const int supervisor = members_in_state(o, CONN_SUPERVISOR); /* each message may lose it again */
        if (supervisor >= 0 && o->staff[stage] >= 0)
            tell_staff(o, supervisor, stage);
    }
}

static cf_err scale(orch *o, int stage, int count, int *ret_members)
{
    const int supervisor = members_in_state(o, CONN_SUPERVISOR);
    if (supervisor < 0 && getenv("COSYFARM_PARENT"))
        return err_set(CF_ERR_BUSY, "the supervisor of this farm has not come for %d s; try again",
                       (int)(SUPERVISOR_US / CLOCK_SECOND_US));
    if (supervisor < 0)
        return err_set(CF_ERR_UNSUPPORTED,
                       "no supervisor starts processes here; with systemd: systemctl enable --now cosyfarm-%s@N, "
                       "systemctl disable --now cosyfarm-%s@N",
                       model_stage_name(stage), model_stage_name(stage));
    int others = 0;
    for (int i = 0; i < CONNS_MAX; i++)
        others +=
            o->conns[i].stage >= 0 && o->conns[i].stage != stage && is_meant(&o->conns[i], o->conns[i].stage, ALL);
    if (others + count > STAFF_MAX)
        return err_set(CF_ERR_LIMIT, "%d workers in all, at most %d in one farm", others + count, STAFF_MAX);
    o->staff[stage] = count;
    tell_staff(o, supervisor, stage); /* one that does not read it comes again, and is told again */
    *ret_members = count;
    return CF_OK;
}

/* False: as many wait already. */
static bool put_off_scale(orch *o, const char *client, int stage, int count)
{
    if (o->scales_count == SCALES_MAX)
        return false;
    scale_wish *w = &o->scales[o->scales_count++];
    *w = (scale_wish){.stage = stage, .count = count, .since_us = clock_now_us()};
    snprintf(w->client, sizeof w->client, "%s", client);
    return true;
}

static void answer(orch *o, const char *client, const char *verb, int stage, cf_err err, int members)
{
    log_info("orch.steered", "verb=%s stage=%s members=%d code=%s client=%s", verb,
             stage < CORE_STAGES ? model_stage_name(stage) : "?", members, err_name(err), client);
    json *m = wire_new(WIRE_steered);
    json_put_str(m, "code", err_name(err));
    json_put_str(m, "text", err == CF_OK ? "" : err_text());
    json_put_u64(m, "members", (uint64_t)members);
    if (bus_send(o->b, client, m) != CF_OK)
        log_debug("client.gone", "client=%s", client);
}

static cf_err is_draining(void)
{
    return err_set(CF_ERR_BUSY, "the farm is draining");
}

/* In the order in which they came. */
static void progress_scales(orch *o, uint64_t now_us)
{
    while (o->scales_count > 0 &&
           (!has_supervisor_to_come(o) || clock_since_us(o->scales[0].since_us, now_us) >= SUPERVISOR_US)) {
        int members = 0;
        const scale_wish w = o->scales[0];
        memmove(&o->scales[0], &o->scales[1], (size_t)--o->scales_count * sizeof w);
        const cf_err err = o->draining ? is_draining() : scale(o, w.stage, w.count, &members);
        answer(o, w.client, "scale", w.stage, err, members);
    }
}

void steer_tick(orch *o, uint64_t now_us)
{
    progress_scales(o, now_us);
    for (int stage = 0; stage < CORE_STAGES && !o->draining; stage++)
        progress_restart(o, stage, now_us);
}

/* ---- the request ---- */

/* ret_later: it is answered when the supervisor has come. */
static cf_err obey(orch *o, const char *client, int stage, const wire_msg *msg, int *ret_members, bool *ret_later)
{
    cf_err err = CF_OK;
    const char *verb = wire_str(msg, "verb");
    const int instance = wire_has(msg, "instance") ? (int)wire_u64(msg, "instance") : ALL;
    if (stage == CORE_STAGES)
        FAIL(CF_ERR_INVALID, "stage \"%s\": expected llm, flow or hift", wire_str(msg, "stage"));
    if (strcmp(verb, "scale") == 0) {
        if (!wire_has(msg, "count"))
            FAIL(CF_ERR_INVALID, "scale: field \"count\" is missing");
        const int count = (int)wire_u64(msg, "count");
        *ret_later = has_supervisor_to_come(o) && put_off_scale(o, client, stage, count);
        return *ret_later ? CF_OK : scale(o, stage, count, ret_members);
    }
    if (strcmp(verb, "drain") == 0 || strcmp(verb, "resume") == 0)
        *ret_members = set_paused(o, stage, instance, verb[0] == 'd');
    else if (strcmp(verb, "restart") == 0)
        *ret_members = want_restart(o, stage, instance);
    else
        FAIL(CF_ERR_INVALID, "verb \"%s\": expected drain, resume, restart or scale", verb);
    if (*ret_members == 0)
        err = instance == ALL ? err_set(CF_ERR_NOTFOUND, "no %s worker is here", model_stage_name(stage))
                              : err_set(CF_ERR_NOTFOUND, "no worker %s/%d is here", model_stage_name(stage), instance);
out:
    return err;
}

void steer_on_bus(orch *o, const char *client, const wire_msg *msg)
{
    int members = 0, stage = 0;
    bool later = false;
    while (stage < CORE_STAGES && strcmp(model_stage_name(stage), wire_str(msg, "stage")) != 0)
        stage++;
    const cf_err err = o->draining ? is_draining() : obey(o, client, stage, msg, &members, &later);
    if (!later)
        answer(o, client, wire_str(msg, "verb"), stage, err, members);
}
