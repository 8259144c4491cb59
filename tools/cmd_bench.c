/*
 * cmd_bench.c - `cosyfarm bench`: rates and latencies as absolute figures and as shares of ceilings measured in the
 * same run.
 * Stages alone run in this process; farm and handover start a private farm. Fails: exit codes of tools/cmd.h.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "tools/bench_stage.h"
#include "tools/client.h"
#include "tools/cmd.h"
#include "tools/farm_options.h"

#define FARM_ROWS_MAX 512
#define SILENCE_US    (120 * CLOCK_SECOND_US)

static const char bench_help[] =
    "usage: cosyfarm bench [farm|llm|flow|hift|handover]... -m MODEL [options]\n\n"
    "llm, flow, hift: one stage alone at 1, 4 and 16 rows; farm: a fixed list of sentences through all processes;\n"
    "handover: the time from a stage's READY to the next stage's WORK, with stages loaded. Default: "
    "all.\n\n" FARM_OPTIONS_HELP "      --rows LIST       rows at once for the stages (default 1,4,16)\n"
    "      --seconds S       audio seconds of a row for flow and hift (default 5)\n"
    "      --count N         sentences of farm and handover (default 48)\n"
    "      --json            one JSON object per measurement\n";

typedef struct bench {
    farm_options farm;
    bool as_json, wanted[5];
    int32_t rows[8], rows_count, count;
    double seconds;
    int exit_code;
    /* while a farm runs */
    double audio_s;
    int32_t done, failed;
} bench;

enum { WANT_LLM, WANT_FLOW, WANT_HIFT, WANT_FARM, WANT_HANDOVER };
static const char *const what_names[] = {"llm", "flow", "hift", "farm", "handover"};

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

static void emit(const bench *b, json *obj, const char *line)
{
    char *text = NULL;
    if (!b->as_json)
        puts(line);
    else if (json_print(obj, false, &text) == CF_OK)
        puts(text);
    mem_free(text);
    json_close(obj);
    fflush(stdout);
}

/* ---- stages ---- */

static stage_config stage_config_of(const config *cfg)
{
    return (stage_config){.model_dir = cfg->model,
                          .device = cfg->device,
                          .operands = strcmp(cfg->precision, "bf16") == 0 ? PRECISION_BF16 : PRECISION_F32,
                          .threads = cfg->threads,
                          .naive = cfg->naive,
                          .base_weights = cfg->base_weights};
}

static void report_stage(const bench *b, const char *name, const bench_rate *r)
{
    char line[256], share[64] = "";
    const bool is_llm = strcmp(name, "llm") == 0;
    if (r->ceiling_share >= 0)
        snprintf(share, sizeof share, ", %.0f %% of the %s ceiling", 100 * r->ceiling_share, is_llm ? "read" : "GEMM");
    snprintf(line, sizeof line, "%-5s %2d rows: %8.2f audio-s/s (%.1f %s in %.2f s%s)", name, r->rows, r->audio_per_s,
             r->units, is_llm ? "tokens" : "audio-s", r->seconds, share);
    json *obj = json_object();
    json_put_str(obj, "bench", name);
    json_put_str(obj, "precision", b->farm.cfg.precision);
    json_put_u64(obj, "rows", (uint64_t)r->rows);
    json_put_f64(obj, "audio_per_s", r->audio_per_s);
    json_put_f64(obj, "units", r->units);
    json_put_f64(obj, "seconds", r->seconds);
    if (r->ceiling_share >= 0)
        json_put_f64(obj, "ceiling_share", r->ceiling_share);
    json_put_u64(obj, "peak_bytes", process_peak_bytes());
    emit(b, obj, line);
}

static cf_err run_stages(const bench *b)
{
    cf_err err = CF_OK;
    static const stage_ops *const stages[] = {&llm_stage, &flow_stage, &hift_stage};
    const stage_config sc = stage_config_of(&b->farm.cfg);
    bench_ceiling ceiling;
    char line[128];
    if (!b->wanted[WANT_LLM] && !b->wanted[WANT_FLOW] && !b->wanted[WANT_HIFT])
        return CF_OK;
    TRY(bench_ceilings(&sc, &ceiling));
    snprintf(line, sizeof line, "ceilings: GEMM %.0f GFLOP/s (%s), read %.1f GB/s", ceiling.gemm_gflops,
             b->farm.cfg.precision, ceiling.read_gbs);
    json *obj = json_object();
    json_put_str(obj, "bench", "ceilings");
    json_put_str(obj, "precision", b->farm.cfg.precision);
    json_put_f64(obj, "gemm_gflops", ceiling.gemm_gflops);
    json_put_f64(obj, "read_gbs", ceiling.read_gbs);
    emit(b, obj, line);
    for (int s = 0; s < 3; s++)
        for (int32_t i = 0; i < b->rows_count && b->wanted[s]; i++) {
            bench_rate rate;
            TRY(bench_stage(stages[s], &sc, b->rows[i], b->seconds, &ceiling, &rate));
            report_stage(b, what_names[s], &rate);
        }
out:
    return err;
}

/* ---- the farm ---- */

static void on_ended(void *ctx, size_t row_idx, const wire_msg *done)
{
    bench *b = ctx;
    (void)row_idx;
    if (strcmp(wire_str(done, "status"), "done") == 0) {
        b->done++;
        b->audio_s += wire_f64(done, "seconds");
    } else {
        char *text = NULL;
        b->failed++;
        if (json_print(done->root, false, &text) == CF_OK)
            fprintf(stderr, "cosyfarm bench: %s\n", text);
        mem_free(text);
    }
}

static client_stop on_tick(void *ctx, const wire_msg *status)
{
    (void)ctx;
    (void)status;
    return CLIENT_GO_ON;
}

static cf_err run_rows(bench *b, client *c, const char *dir, int32_t count, double *ret_seconds)
{
    cf_err err;
    client_row *rows = NULL;
    char(*names)[160] = NULL;
    const client_handler handler = {b, on_ended, on_tick};
    TRY(mem_alloc((size_t)count, sizeof *rows, &rows));
    TRY(mem_alloc((size_t)count, sizeof *names, &names));
    for (int32_t i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "%.120s/%d.wav", dir, i);
        rows[i] = (client_row){.id = strrchr(names[i], '/') + 1,
                               .text = sentences[(size_t)i % (sizeof sentences / sizeof sentences[0])],
                               .mode = "zero_shot",
                               .path = names[i],
                               .format = "wav",
                               .seed = (uint64_t)i,
                               .speed = 1};
    }
    const uint64_t start_us = clock_now_us();
    TRY(client_run_list(c, rows, (size_t)count, true, SILENCE_US, &handler));
    *ret_seconds = (double)(clock_now_us() - start_us) / 1e6;
out:
    for (int32_t i = 0; names && i < count; i++)
        unlink(names[i]);
    mem_free(rows);
    mem_free(names);
    return err;
}

static void report_farm(const bench *b, double seconds)
{
    char line[160];
    snprintf(line, sizeof line, "farm  %d rows: %.2f audio-s/s (%.1f audio-s in %.2f s; %d failed)", b->done,
             b->audio_s / seconds, b->audio_s, seconds, b->failed);
    json *obj = json_object();
    json_put_str(obj, "bench", "farm");
    json_put_str(obj, "precision", b->farm.cfg.precision);
    json_put_u64(obj, "rows", (uint64_t)b->done);
    json_put_u64(obj, "failed", (uint64_t)b->failed);
    json_put_f64(obj, "audio_s", b->audio_s);
    json_put_f64(obj, "seconds", seconds);
    json_put_f64(obj, "audio_per_s", b->audio_s / seconds);
    emit(b, obj, line);
}

static void report_members(const bench *b, const wire_msg *status)
{
    for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
        const char *role = "";
        uint64_t rss = 0;
        double busy = 0;
        char line[160];
        if (json_get_str(m, "role", 31, &role) != CF_OK || json_get_u64(m, "rss_bytes", 0, UINT64_MAX, &rss) != CF_OK ||
            json_get_f64(m, "busy_s", 0, 1e12, &busy) != CF_OK || strcmp(role, "keeper") == 0)
            continue;
        snprintf(line, sizeof line, "      %-5s busy %.1f s, %.0f MiB resident", role, busy, (double)rss / (1 << 20));
        json *obj = json_object();
        json_put_str(obj, "bench", "member");
        json_put_str(obj, "role", role);
        json_put_f64(obj, "busy_s", busy);
        json_put_u64(obj, "rss_bytes", rss);
        emit(b, obj, line);
    }
}

static void report_handover(const bench *b, const wire_msg *status)
{
    static const char *const to[] = {"flow", "hift"};
    for (int i = 0; i < 2; i++) {
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
        json *obj = json_object();
        json_put_str(obj, "bench", "handover");
        json_put_str(obj, "to", to[i]);
        json_put_u64(obj, "count", count);
        json_put_u64(obj, "p50_us", p50);
        json_put_u64(obj, "p99_us", p99);
        json_put_u64(obj, "max_us", max);
        emit(b, obj, line);
    }
}

static cf_err run_farm(bench *b)
{
    cf_err err;
    private_farm own = {{0}, {0}, NULL};
    client *c = NULL;
    wire_msg status = {0};
    double seconds = 0;
    if (!b->wanted[WANT_FARM] && !b->wanted[WANT_HANDOVER])
        return CF_OK;
    TRY(private_farm_open(&b->farm.cfg, NULL, &own));
    TRY(client_open(own.run_dir, &c));
    client_supervise(c, own.farm);
    TRY(run_rows(b, c, own.run_dir, 1, &seconds)); /* models loaded, caches warm */
    b->done = b->failed = 0;
    b->audio_s = 0;
    TRY(run_rows(b, c, own.run_dir, b->count, &seconds));
    poll(NULL, 0, 1000); /* one more heartbeat of each: their latencies travel with it */
    json *m = wire_new(WIRE_query);
    json_put_u64(m, "nonce", 1);
    TRY(client_ask(c, m, WIRE_status, clock_now_us() + 10 * CLOCK_SECOND_US, &status));
    if (b->wanted[WANT_FARM]) {
        report_farm(b, seconds);
        report_members(b, &status);
    }
    if (b->wanted[WANT_HANDOVER])
        report_handover(b, &status);
    b->exit_code = b->failed > 0 ? EXIT_ROWS_FAILED : EXIT_DONE;
out:
    wire_done(&status);
    client_close(c);
    private_farm_close(&own, err != CF_OK);
    if (own.log_path[0])
        fprintf(stderr, "cosyfarm bench: the farm's log is %s\n", own.log_path);
    return err;
}

/* ---- options ---- */

static cf_err parse_rows(bench *b, const char *text)
{
    b->rows_count = 0;
    while (*text) {
        char *end;
        const long n = strtol(text, &end, 10);
        if (end == text || n < 1 || n > 64 || b->rows_count == 8 || (*end && *end != ','))
            return err_set(CF_ERR_INVALID, "--rows: expected up to 8 numbers of 1..64 with commas, found \"%s\"", text);
        b->rows[b->rows_count++] = (int32_t)n;
        text = end + (*end == ',');
    }
    return CF_OK;
}

static cf_err parse_number(const char *option, const char *text, double min, double max, double *ret_value)
{
    char *end;
    const double value = strtod(text, &end);
    if (*end || end == text || !(value >= min && value <= max))
        return err_set(CF_ERR_INVALID, "%s: expected %g..%g, found \"%s\"", option, min, max, text);
    *ret_value = value;
    return CF_OK;
}

static cf_err parse_what(bench *b, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        int w = 0;
        while (w < 5 && strcmp(argv[i], what_names[w]) != 0)
            w++;
        if (w == 5)
            return err_set(CF_ERR_INVALID, "\"%s\": expected farm, llm, flow, hift or handover", argv[i]);
        b->wanted[w] = true;
    }
    for (int w = 0; w < 5 && argc == 0; w++)
        b->wanted[w] = true;
    return CF_OK;
}

static cf_err parse(bench *b, int argc, char **argv, bool *ret_help)
{
    enum { OPT_ROWS = 1, OPT_SECONDS, OPT_COUNT, OPT_JSON };
    static const struct option options[] = {FARM_LONG_OPTIONS,
                                            {"rows", required_argument, NULL, OPT_ROWS},
                                            {"seconds", required_argument, NULL, OPT_SECONDS},
                                            {"count", required_argument, NULL, OPT_COUNT},
                                            {"json", no_argument, NULL, OPT_JSON},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    cf_err err = CF_OK;
    double number;
    for (int c; (c = getopt_long(argc, argv, FARM_SHORT_OPTIONS "h", options, NULL)) != -1;) {
        if (farm_options_take(&b->farm, c, optarg, &err)) {
            if (err != CF_OK)
                return err;
        } else if (c == OPT_ROWS) {
            TRY(parse_rows(b, optarg));
        } else if (c == OPT_SECONDS) {
            TRY(parse_number("--seconds", optarg, 0.2, 60, &b->seconds));
        } else if (c == OPT_COUNT) {
            TRY(parse_number("--count", optarg, 1, FARM_ROWS_MAX, &number));
            b->count = (int32_t)number;
        } else if (c == OPT_JSON) {
            b->as_json = true;
        } else if (c == 'h') {
            *ret_help = true;
            return CF_OK;
        } else {
            FAIL(CF_ERR_INVALID, "cosyfarm bench --help tells the options");
        }
    }
    TRY(parse_what(b, argc - optind, argv + optind));
out:
    return err;
}

int cmd_bench(int argc, char **argv)
{
    bench b = {.rows = {1, 4, 16}, .rows_count = 3, .count = 48, .seconds = 5, .exit_code = EXIT_DONE};
    bool help = false;
    farm_options_init(&b.farm);
    cf_err err = parse(&b, argc, argv, &help);
    if (help) {
        fputs(bench_help, stdout);
        return EXIT_DONE;
    }
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm bench: %s\n", err_text());
        return EXIT_USAGE;
    }
    err = farm_options_check(&b.farm);
    if (err == CF_OK)
        err = run_stages(&b);
    if (err == CF_OK)
        err = run_farm(&b);
    if (err == CF_OK)
        return b.exit_code;
    fprintf(stderr, "cosyfarm bench: %s\n", err_text());
    return err == CF_ERR_NOMEM || err == CF_ERR_TIMEOUT ? EXIT_AGAIN : err == CF_ERR_SYS ? EXIT_OURS : EXIT_CONFIG;
}
