/*
 * orch_status.c - members, queues, totals, latencies as one message. Part of the shell. Fails: never; bounded by
 * MEMBERS_MAX.
 */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/model/stage_tables.h"
#include "orchestrator/orch.h"

static const char *state_name(const orch *o, const conn *c)
{
    static const char *const names[] = {"free", "new", "loading", "joined", "admitted", "serving", "serving"};
    const core_standing standing =
        c->state == CONN_SERVING ? orch_core_standing(&o->core, c->stage, c->instance) : STANDING_FED;
    if (standing != STANDING_FED)
        return standing == STANDING_BARRED ? "barred" : "parole";
    if (c->state == CONN_SERVING && o->paused[c->stage][c->instance])
        return c->held > 0 ? "draining" : "drained";
    return c->draining ? "leaving" : names[c->state];
}

static json *member_json(const orch *o, const conn *c, uint64_t now_us)
{
    json *m = json_object();
    json_put_str(m, "role", c->role);
    json_put_u64(m, "instance", (uint64_t)c->instance);
    json_put_u64(m, "gen", c->gen);
    json_put_u64(m, "pid", (uint64_t)c->pid);
    json_put_str(m, "state", state_name(o, c));
    json_put_f64(m, "up_s", (double)(now_us - c->since_us) / 1e6);
    json_put_u64(m, "jobs_done", c->jobs_done);
    json_put_u64(m, "steps", c->steps);
    json_put_u64(m, "held", c->held);
    json_put_f64(m, "busy_s", (double)c->busy_us / 1e6);
    json_put_u64(m, "rss_bytes",
                 c->rss_bytes > 0 ? c->rss_bytes : process_rss_bytes_of(c->pid)); /* no beat yet; a keeper has none */
    if (c->records) {
        json_put_u64(m, "steps_recorded", c->steps_recorded);
        json_put_u64(m, "steps_replayed", c->steps_replayed);
        json_put_u64(m, "steps_eager", c->steps_eager);
    }
    if (c->state == CONN_SERVING && orch_core_standing(&o->core, c->stage, c->instance) == STANDING_BARRED)
        json_put_f64(m, "parole_s",
                     (double)clock_since_us(now_us, o->core.records[c->stage][c->instance].parole_at_us) / 1e6);
    if (c->stage >= 0) {
        json_put_str(m, "device", c->device);
        json_put_u64(m, "device_bytes", c->device_bytes);
        json_put_str(m, "model", c->model_file);
        json_put_str(m, "sha256", c->model_sha256);
        json_put_str(m, "backend", c->backend);
    }
    return m;
}

static int by_value(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static json *latency_json(const latency_ring *ring)
{
    static int32_t sorted[HANDOVERS_KEPT]; /* one thread; too large for the stack */
    const size_t n = ring->count < HANDOVERS_KEPT ? (size_t)ring->count : HANDOVERS_KEPT;
    json *m = json_object();
    memcpy(sorted, ring->us, n * sizeof sorted[0]);
    qsort(sorted, n, sizeof sorted[0], by_value);
    json_put_u64(m, "count", ring->count);
    if (n > 0) {
        json_put_u64(m, "p50_us", (uint64_t)sorted[n / 2]);
        json_put_u64(m, "p99_us", (uint64_t)sorted[n - 1 - n / 100]);
        json_put_u64(m, "max_us", (uint64_t)sorted[n - 1]);
    }
    return m;
}

/* How much of it there was in each second of the last minute: `count` says of what. */
static void put_rates(json *m, const char *count, const orch *o, const rates *r, uint64_t now_us)
{
    double count_per_s, audio_per_s;
    rates_read(r, o->started_us, now_us, &count_per_s, &audio_per_s);
    json_put_f64(m, count, count_per_s);
    json_put_f64(m, "audio_per_s", audio_per_s);
}

static json *queues_json(orch *o, uint64_t now_us)
{
    int32_t waiting[CORE_STAGES], running[CORE_STAGES];
    orch_core_count(&o->core, waiting, running);
    json *q = json_object();
    for (int s = 0; s < CORE_STAGES; s++) {
        json *one = json_object();
        json_put_u64(one, "waiting", (uint64_t)waiting[s]);
        json_put_u64(one, "running", (uint64_t)running[s]);
        put_rates(one, "jobs_per_s", o, &o->jobs_ended[s], now_us);
        json_put(one, "handover", latency_json(&o->handover[s]));
        json_put(q, model_stage_name(s), one);
    }
    json_put_u64(q, "writing", (uint64_t)writer_waiting(o->out));
    json_put_u64(q, "rows", (uint64_t)o->sessions_live);
    return q;
}

json *status_message(orch *o, uint64_t nonce)
{
    const uint64_t now_us = clock_now_us();
    json *m = wire_new(WIRE_status), *members = json_array(), *totals = json_object();
    for (int i = 0; i < CONNS_MAX; i++)
        if (o->conns[i].state > CONN_NEW && o->conns[i].state != CONN_SUPERVISOR)
            json_push(members, member_json(o, &o->conns[i], now_us));
    json_put_f64(totals, "up_s", (double)(now_us - o->started_us) / 1e6);
    json_put_f64(totals, "cpu_s", (double)process_cpu_us() / 1e6);
    json_put_u64(totals, "rss_bytes", process_rss_bytes());
    put_rates(totals, "rows_per_s", o, &o->rows_ended, now_us);
    json_put_bool(totals, "draining", o->draining);
    json_put_u64(totals, "rows_done", o->rows_done);
    json_put_u64(totals, "rows_failed", o->rows_failed);
    json_put_u64(totals, "rows_refused", o->rows_refused);
    json_put_u64(totals, "rows_recovered", o->rows_recovered);
    json_put_u64(totals, "attempts_again", o->attempts_again);
    json_put_f64(totals, "audio_s", (double)o->samples_done / SAMPLE_RATE_HZ);
    json_put_u64(totals, "jobs_dispatched", o->core.jobs_dispatched);
    json_put_u64(totals, "jobs_replayed", o->core.jobs_replayed);
    json_put_u64(totals, "messages_bad", o->messages_bad);
    json_put_f64(totals, "journal_s", (double)journal_busy_us(o->log) / 1e6);
    json_put_u64(m, "nonce", nonce);
    json_put_u64(m, "boot", o->boot);
    json_put(m, "members", members);
    json_put(m, "queues", queues_json(o, now_us));
    json_put(m, "totals", totals);
    json_put(m, "config", config_to_json(&o->cfg));
    return m;
}
