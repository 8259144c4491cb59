/*
 * bench_farm.c - a private farm of the user's configuration, measured from outside: its answers, its status, its files.
 *
 * What a worker computes is told by busy seconds in the status; what the orchestrator costs, by its CPU seconds there.
 * Fails: what the farm or the client fails with; CF_ERR_SYS for the trace's files.
 */
#define _GNU_SOURCE
#include "tools/bench_farm.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/worker/trace.h"
#include "tools/bench_report.h"
#include "tools/client.h"
#include "tools/farm_options.h"

#define SILENCE_US     (120 * CLOCK_SECOND_US)
#define STATUS_WAIT_US (10 * CLOCK_SECOND_US)
#define BEAT_MS        1000 /* a heartbeat of each worker: its counters travel with it */

static const char *const sentences[] = {
    "The harbour was quiet when the last ferry came in.",
    "She counted the lamps along the pier, one after the other.",
    "Nobody could say who had opened the old gate.",
    "A cold wind came down from the hills before the rain.",
    "He wrote the number on a piece of paper and gave it to me.",
    "There is a small shop behind the station that sells maps.",
    "We will meet again when the apple trees are in flower.",
    "The train to the coast leaves at a quarter past seven.",
};

/* What one set of rows came to. */
typedef struct row_sums {
    int32_t done, failed;
    double audio_s, seconds;
    double llm_ms, flow_ms, hift_ms; /* of the last row */
} row_sums;

typedef struct bench {
    const bench_farm_wish *wish;
    private_farm own;
    client *c;
    row_sums sums;
} bench;

/* The worker's and the orchestrator's counters at one moment. */
typedef struct member_count {
    char name[24];
    double busy_s;
    uint64_t rss_bytes;
} member_count;

typedef struct farm_count {
    member_count members[MEMBERS_MAX];
    int32_t members_count;
    double orchestrator_cpu_s;
} farm_count;

static double ms_of(const wire_msg *done, const char *stage)
{
    double ms = 0;
    const cf_err err = json_get_f64(wire_json(done, "ms"), stage, 0, 1e12, &ms);
    return err == CF_OK ? ms : 0;
}

static void on_ended(void *ctx, size_t row_idx, const wire_msg *done)
{
    row_sums *sums = ctx;
    (void)row_idx;
    if (strcmp(wire_str(done, "status"), "done") == 0) {
        sums->done++;
        sums->audio_s += wire_f64(done, "seconds");
        sums->llm_ms = ms_of(done, "llm");
        sums->flow_ms = ms_of(done, "flow");
        sums->hift_ms = ms_of(done, "hift");
        return;
    }
    char *text = NULL;
    sums->failed++;
    if (json_print(done->root, false, &text) == CF_OK)
        fprintf(stderr, "cosyfarm bench: %s\n", text);
    mem_free(text);
}

static client_stop on_tick(void *ctx, const wire_msg *status)
{
    (void)ctx;
    (void)status;
    return CLIENT_GO_ON;
}

static cf_err run_rows(bench *b, int32_t count)
{
    cf_err err;
    client_row *rows = NULL;
    char(*names)[160] = NULL;
    const client_handler handler = {&b->sums, on_ended, on_tick};

    TRY(mem_alloc((size_t)count, sizeof *rows, &rows));
    TRY(mem_alloc((size_t)count, sizeof *names, &names));
    for (int32_t i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "%.120s/%d.wav", b->own.run_dir, i);
        rows[i] = (client_row){.id = strrchr(names[i], '/') + 1,
                               .text = sentences[(size_t)i % CF_COUNT(sentences)],
                               .mode = "zero_shot",
                               .path = names[i],
                               .format = "wav",
                               .seed = (uint64_t)i,
                               .speed = 1};
    }
    b->sums = (row_sums){0};
    const uint64_t start_us = clock_now_us();
    TRY(client_run_list(b->c, rows, (size_t)count, true, SILENCE_US, &handler));
    b->sums.seconds = (double)(clock_now_us() - start_us) / 1e6;
out:
    for (int32_t i = 0; names && i < count; i++)
        unlink(names[i]);
    mem_free(rows);
    mem_free(names);
    return err;
}

static cf_err ask_status(bench *b, wire_msg *ret_status)
{
    poll(NULL, 0, BEAT_MS);
    json *m = wire_new(WIRE_query);
    json_put_u64(m, "nonce", 1);
    return client_ask(b->c, m, WIRE_status, clock_now_us() + STATUS_WAIT_US, ret_status);
}

static cf_err read_counts(const wire_msg *status, farm_count *ret_count)
{
    cf_err err;
    *ret_count = (farm_count){0};
    TRY(json_get_f64(wire_json(status, "totals"), "cpu_s", 0, 1e12, &ret_count->orchestrator_cpu_s));
    for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
        member_count *one = &ret_count->members[ret_count->members_count];
        const char *role;
        uint64_t instance;
        if (ret_count->members_count == MEMBERS_MAX)
            break;
        TRY(json_get_str(m, "role", 15, &role));
        if (strcmp(role, "keeper") == 0)
            continue;
        TRY(json_get_u64(m, "instance", 0, UINT32_MAX, &instance));
        TRY(json_get_f64(m, "busy_s", 0, 1e12, &one->busy_s));
        TRY(json_get_u64(m, "rss_bytes", 0, UINT64_MAX, &one->rss_bytes));
        snprintf(one->name, sizeof one->name, "%s/%" PRIu64, role, instance);
        ret_count->members_count++;
    }
out:
    return err;
}

static cf_err count_now(bench *b, farm_count *ret_count)
{
    cf_err err;
    wire_msg status = {0};
    TRY(ask_status(b, &status));
    TRY(read_counts(&status, ret_count));
out:
    wire_done(&status);
    return err;
}

static void put_sums(const bench *b, json *obj)
{
    json_put_str(obj, "precision", b->wish->cfg->precision);
    json_put_u64(obj, "rows", (uint64_t)b->sums.done);
    json_put_u64(obj, "failed", (uint64_t)b->sums.failed);
    json_put_f64(obj, "audio_s", b->sums.audio_s);
    json_put_f64(obj, "seconds", b->sums.seconds);
}

/* One sentence on a warm, idle farm: from the request to the finished file. */
static void report_first(const bench *b)
{
    char line[200];
    const row_sums *s = &b->sums;
    const double stages_s = (s->llm_ms + s->flow_ms + s->hift_ms) / 1e3;
    snprintf(line, sizeof line,
             "say   one sentence, warm: %.3f s for %.2f s of audio (llm %.3f, flow %.3f, hift %.3f, the rest %.3f s)",
             s->seconds, s->audio_s, s->llm_ms / 1e3, s->flow_ms / 1e3, s->hift_ms / 1e3, s->seconds - stages_s);
    json *obj = bench_object("say");
    put_sums(b, obj);
    json_put_f64(obj, "llm_s", s->llm_ms / 1e3);
    json_put_f64(obj, "flow_s", s->flow_ms / 1e3);
    json_put_f64(obj, "hift_s", s->hift_ms / 1e3);
    bench_emit(b->wish->as_json, obj, line);
}

static void report_rows(const bench *b)
{
    char line[200];
    const row_sums *s = &b->sums;
    snprintf(line, sizeof line, "farm  %d rows: %.2f audio-s/s, %.2f rows/s (%.1f audio-s in %.2f s; %d failed)",
             s->done, s->audio_s / s->seconds, s->done / s->seconds, s->audio_s, s->seconds, s->failed);
    json *obj = bench_object("farm");
    put_sums(b, obj);
    json_put_f64(obj, "audio_per_s", s->audio_s / s->seconds);
    json_put_f64(obj, "rows_per_s", s->done / s->seconds);
    bench_emit(b->wish->as_json, obj, line);
}

static void report_member(const bench *b, const member_count *m, double before_s)
{
    char line[200];
    const double busy_s = m->busy_s - before_s;
    snprintf(line, sizeof line,
             "      %-7s busy %.2f s, %.0f %% of the time, %.3f s per audio second, %.0f MiB resident", m->name, busy_s,
             100 * busy_s / b->sums.seconds, busy_s / b->sums.audio_s, (double)m->rss_bytes / (1 << 20));
    json *obj = bench_object("member");
    json_put_str(obj, "member", m->name);
    json_put_f64(obj, "busy_s", busy_s);
    json_put_f64(obj, "busy_share", busy_s / b->sums.seconds);
    json_put_f64(obj, "busy_s_per_audio_s", busy_s / b->sums.audio_s);
    json_put_u64(obj, "rss_bytes", m->rss_bytes);
    bench_emit(b->wish->as_json, obj, line);
}

static void report_members(const bench *b, const farm_count *before, const farm_count *after)
{
    char line[200];
    for (int32_t i = 0; i < after->members_count; i++) {
        double before_s = 0;
        for (int32_t k = 0; k < before->members_count; k++)
            if (strcmp(before->members[k].name, after->members[i].name) == 0)
                before_s = before->members[k].busy_s;
        report_member(b, &after->members[i], before_s);
    }
    const double cpu_s = after->orchestrator_cpu_s - before->orchestrator_cpu_s;
    snprintf(line, sizeof line, "      orchestrator %.3f s of CPU, %.1f %% of one core, %.0f us a row", cpu_s,
             100 * cpu_s / b->sums.seconds, 1e6 * cpu_s / b->sums.done);
    json *obj = bench_object("orchestrator");
    json_put_f64(obj, "cpu_s", cpu_s);
    json_put_f64(obj, "cpu_share", cpu_s / b->sums.seconds);
    bench_emit(b->wish->as_json, obj, line);
}

static void report_handover(const bench *b, const wire_msg *status)
{
    static const char *const to[] = {"flow", "hift"};
    for (size_t i = 0; i < CF_COUNT(to); i++) {
        const json *q = json_find(wire_json(status, "queues"), to[i]);
        const json *h = q ? json_find(q, "handover") : NULL;
        uint64_t count = 0, p50 = 0, p99 = 0, max = 0;
        char line[160];
        if (!h || json_get_u64(h, "count", 1, UINT64_MAX, &count) != CF_OK ||
            json_get_u64(h, "p50_us", 0, UINT64_MAX, &p50) != CF_OK ||
            json_get_u64(h, "p99_us", 0, UINT64_MAX, &p99) != CF_OK ||
            json_get_u64(h, "max_us", 0, UINT64_MAX, &max) != CF_OK)
            continue;
        snprintf(line, sizeof line, "handover to %s: p50 %.3f ms, p99 %.3f ms, max %.3f ms of %" PRIu64, to[i],
                 (double)p50 / 1e3, (double)p99 / 1e3, (double)max / 1e3, count);
        json *obj = bench_object("handover");
        json_put_str(obj, "to", to[i]);
        json_put_u64(obj, "count", count);
        json_put_u64(obj, "p50_us", p50);
        json_put_u64(obj, "p99_us", p99);
        json_put_u64(obj, "max_us", max);
        bench_emit(b->wish->as_json, obj, line);
    }
}

/* ---- the trace ---- */

/* Copies the whole events of one worker's file; the last may be cut where its writer was killed. */
static cf_err append_trace(const char *path, FILE *out)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    TRY(io_read_file(path, TRACE_BYTES_MAX, &text, &bytes));
    char *events = strchr(text, '\n'), *end = strrchr(text, '\n');
    if (events && end > events && fwrite(events + 1, 1, (size_t)(end - events), out) != (size_t)(end - events))
        FAIL(CF_ERR_SYS, "trace: %s", path);
out:
    mem_free(text);
    return err;
}

static cf_err join_traces(const char *folder, const char *path)
{
    cf_err err = CF_OK;
    DIR *dir = opendir(folder);
    FILE *out = fopen(path, "we");
    if (!dir || !out)
        FAIL(CF_ERR_SYS, "%s: %s", out ? folder : path, strerror(errno));
    fputs("[\n", out);
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        char one[IO_PATH_BYTES];
        if (e->d_name[0] == '.')
            continue;
        TRY(io_join(one, sizeof one, folder, e->d_name));
        TRY(append_trace(one, out));
        unlink(one);
    }
    /* An event without meaning, so that the list ends as strict readers of JSON want it. */
    fputs("{\"ph\":\"M\",\"name\":\"trace_end\",\"pid\":0,\"tid\":0,\"ts\":0}\n]\n", out);
    if (ferror(out))
        FAIL(CF_ERR_SYS, "%s: not written to its end", path);
out:
    if (dir)
        closedir(dir);
    if (out && fclose(out) != 0 && err == CF_OK)
        err = err_sys(path);
    return err;
}

/* ---- the run ---- */

static cf_err measure(bench *b)
{
    cf_err err;
    wire_msg status = {0};
    farm_count before, after;

    TRY(run_rows(b, 1)); /* models loaded, caches warm */
    if (b->wish->farm) {
        TRY(run_rows(b, 1));
        report_first(b);
    }
    TRY(count_now(b, &before));
    TRY(run_rows(b, b->wish->count));
    TRY(ask_status(b, &status));
    TRY(read_counts(&status, &after));
    if (b->wish->farm) {
        report_rows(b);
        report_members(b, &before, &after);
    }
    if (b->wish->handover)
        report_handover(b, &status);
out:
    wire_done(&status);
    return err;
}

cf_err bench_farm(const bench_farm_wish *wish, int32_t *ret_failed)
{
    cf_err err;
    bench b = {.wish = wish};
    config cfg = *wish->cfg;

    if (wish->trace_path)
        TRY(io_temp_dir(NULL, "cosyfarm-trace", cfg.trace, sizeof cfg.trace));
    TRY(private_farm_open(&cfg, NULL, &b.own));
    TRY(client_open(b.own.run_dir, &b.c));
    client_supervise(b.c, b.own.farm, 0);
    TRY(measure(&b));
    *ret_failed = b.sums.failed;
out:
    client_close(b.c);
    private_farm_close(&b.own, err != CF_OK);
    if (b.own.log_path[0])
        fprintf(stderr, "cosyfarm bench: the farm's log is %s\n", b.own.log_path);
    if (err == CF_OK && wish->trace_path)
        err = join_traces(cfg.trace, wish->trace_path);
    if (wish->trace_path && cfg.trace[0])
        rmdir(cfg.trace);
    return err;
}
