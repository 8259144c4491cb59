/*
 * cmd_bench.c - `cosyfarm bench`: rates and latencies as absolute figures and as shares of ceilings measured in the
 * same run.
 * Stages alone run in this process; farm and handover start a private farm. Fails: exit codes of tools/cmd.h.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/device.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "tools/bench_farm.h"
#include "tools/bench_llm.h"
#include "tools/bench_ops.h"
#include "tools/bench_report.h"
#include "tools/bench_stage.h"
#include "tools/cmd.h"
#include "tools/farm_options.h"
#include "tools/options.h"

#define ROW_COUNTS_MAX 8

static const char bench_help[] =
    "usage: cosyfarm bench [farm|llm|flow|hift|handover|ops]... -m MODEL [options]\n\n"
    "llm: one prompt, then steps of 1, 4 and 16 rows; flow, hift: 1, 4 and 16 rows alone, after one step that is not "
    "counted; farm: a fixed list of sentences through all processes;\n"
    "handover: the time from a stage's READY to the next stage's WORK, with stages loaded; ops: single ops at the "
    "widths of the full model, the most rows of the list together. Default: all but ops.\n\n" FARM_OPTIONS_HELP
    "      --rows LIST       rows at once for the stages, each 1 to 256 (default 1,4,16)\n"
    "      --seconds S       audio seconds of a row for flow and hift (default 5)\n"
    "      --prompt N        flow: a random voice with a prompt of N speech tokens (default: the model's first voice)\n"
    "      --snr             flow, hift: also what the precision costs, in dB against f32\n"
    "      --count N         sentences of farm and handover (default 48)\n"
    "      --trace FILE      of farm: who computed what when, as Chrome trace events\n"
    "      --json            one JSON object per measurement\n";

enum { WANT_LLM, WANT_FLOW, WANT_HIFT, WANT_FARM, WANT_HANDOVER, WANT_OPS, WANT_COUNT };
static const char *const what_names[] = {"llm", "flow", "hift", "farm", "handover", "ops"};

typedef struct bench {
    farm_options farm;
    bool as_json, wanted[WANT_COUNT], snr;
    int32_t rows[ROW_COUNTS_MAX], rows_count, count, prompt_tokens;
    double seconds;
    int exit_code;
    const char *trace_path;
} bench;

/* ---- stages ---- */

/* Of the stage's first worker. */
static cf_err stage_config_of(const config *cfg, const char *stage, char device[DEVICE_TEXT_BYTES],
                              stage_config *ret_cfg)
{
    int number;
    *ret_cfg = (stage_config){.model_dir = cfg->model,
                              .device = device,
                              .operands = stage_precision(cfg->precision),
                              .int8_weights = stage_int8_weights(cfg->precision),
                              .threads = cfg->threads,
                              .naive = cfg->naive,
                              .base_weights = cfg->base_weights};
    return device_of_instance(config_device_list(cfg, stage), 0, device, &number);
}

static void report_stage(const bench *b, const char *name, const bench_rate *r)
{
    char line[256], share[64] = "", snr[64] = "";
    if (r->ceiling_share >= 0)
        snprintf(share, sizeof share, ", %.0f %% of the GEMM ceiling", 100 * r->ceiling_share);
    if (b->snr)
        snprintf(snr, sizeof snr, ", %.1f dB against f32", r->snr_db);
    snprintf(line, sizeof line, "%-5s %2d rows: %8.2f audio-s/s (%.1f audio-s in %.2f s%s%s)", name, r->rows,
             r->audio_per_s, r->audio_s, r->seconds, share, snr);
    json *obj = bench_object(name);
    json_put_str(obj, "precision", b->farm.cfg.precision);
    json_put_u64(obj, "rows", (uint64_t)r->rows);
    json_put_f64(obj, "audio_per_s", r->audio_per_s);
    json_put_f64(obj, "audio_s", r->audio_s);
    json_put_f64(obj, "seconds", r->seconds);
    if (r->ceiling_share >= 0)
        json_put_f64(obj, "ceiling_share", r->ceiling_share);
    if (b->snr && isfinite(r->snr_db))
        json_put_f64(obj, "snr_db", r->snr_db);
    json_put_u64(obj, "peak_bytes", process_peak_bytes());
    bench_emit(b->as_json, obj, line);
}

/* The start and one prompt alone. */
static void report_llm_open(const bench *b, const bench_llm_open *o, const bench_ceiling *c)
{
    char line[256];
    snprintf(
        line, sizeof line,
        "llm   open %.2f s, %.0f MB a step; prompt of %d rows: %.1f ms, best %.1f ms (%.0f %% of the GEMM ceiling)",
        o->open_s, (double)o->step_bytes / 1e6, BENCH_PROMPT_ROWS, 1e3 * o->prefill.median_s, 1e3 * o->prefill.best_s,
        100 * o->prefill_gflops / c->gemm_gflops);
    json *obj = bench_object("llm.prefill");
    json_put_str(obj, "precision", b->farm.cfg.precision);
    json_put_u64(obj, "rows", BENCH_PROMPT_ROWS);
    json_put_f64(obj, "open_s", o->open_s);
    json_put_f64(obj, "seconds", o->prefill.median_s);
    json_put_f64(obj, "best_s", o->prefill.best_s);
    json_put_f64(obj, "ceiling_share", o->prefill_gflops / c->gemm_gflops);
    json_put_u64(obj, "peak_bytes", process_peak_bytes());
    bench_emit(b->as_json, obj, line);
}

static void report_llm_rate(const bench *b, const bench_llm_rate *r, const bench_ceiling *c)
{
    char line[256], share[64] = "";
    if (c->read_gbs > 0)
        snprintf(share, sizeof share, ", %.0f %% of the read ceiling", 100 * r->read_gbs / c->read_gbs);
    snprintf(line, sizeof line, "llm   %2d rows: %8.1f tok/s, %.2f audio-s/s (step %.2f ms, best %.2f ms%s)", r->rows,
             r->tokens_per_s, r->tokens_per_s / TOKENS_PER_SECOND, 1e3 * r->step.median_s, 1e3 * r->step.best_s, share);
    json *obj = bench_object("llm");
    json_put_str(obj, "precision", b->farm.cfg.precision);
    json_put_u64(obj, "rows", (uint64_t)r->rows);
    json_put_f64(obj, "tokens_per_s", r->tokens_per_s);
    json_put_f64(obj, "audio_per_s", r->tokens_per_s / TOKENS_PER_SECOND);
    json_put_f64(obj, "step_s", r->step.median_s);
    json_put_f64(obj, "best_s", r->step.best_s);
    json_put_f64(obj, "read_gbs", r->read_gbs);
    if (c->read_gbs > 0)
        json_put_f64(obj, "ceiling_share", r->read_gbs / c->read_gbs);
    json_put_u64(obj, "peak_bytes", process_peak_bytes());
    bench_emit(b->as_json, obj, line);
}

static cf_err run_llm(const bench *b, const stage_config *sc, const bench_ceiling *c)
{
    cf_err err;
    bench_llm_open open;
    bench_llm_rate rates[ROW_COUNTS_MAX];
    TRY(bench_llm(sc, b->rows, b->rows_count, &open, rates));
    report_llm_open(b, &open, c);
    for (int32_t i = 0; i < b->rows_count; i++)
        report_llm_rate(b, &rates[i], c);
out:
    return err;
}

static void report_ceilings(const bench *b, const bench_ceiling *c)
{
    char line[160];
    snprintf(line, sizeof line, "ceilings: GEMM %.0f GFLOP/s in f32, %.0f in bf16; reading %.1f GB/s; %d threads",
             c->gemm_f32_gflops, c->gemm_bf16_gflops, c->read_gbs, c->threads);
    json *obj = bench_object("ceilings");
    json_put_u64(obj, "threads", (uint64_t)c->threads);
    json_put_f64(obj, "gemm_f32_gflops", c->gemm_f32_gflops);
    json_put_f64(obj, "gemm_bf16_gflops", c->gemm_bf16_gflops);
    if (c->read_gbs > 0)
        json_put_f64(obj, "read_gbs", c->read_gbs);
    bench_emit(b->as_json, obj, line);
}

static cf_err run_stages(const bench *b)
{
    cf_err err = CF_OK;
    static const stage_ops *const stages[] = {NULL, &flow_stage, &hift_stage}; /* llm: in ways of its own */
    stage_config sc;
    bench_ceiling ceiling;
    char device[DEVICE_TEXT_BYTES];
    if (!b->wanted[WANT_LLM] && !b->wanted[WANT_FLOW] && !b->wanted[WANT_HIFT])
        return CF_OK;
    TRY(stage_config_of(&b->farm.cfg, "flow", device, &sc));
    TRY(bench_ceilings(&sc, &ceiling));
    report_ceilings(b, &ceiling);
    if (b->wanted[WANT_LLM]) {
        TRY(stage_config_of(&b->farm.cfg, "llm", device, &sc));
        TRY(run_llm(b, &sc, &ceiling));
    }
    for (int s = WANT_FLOW; s <= WANT_HIFT; s++)
        for (int32_t i = 0; i < b->rows_count && b->wanted[s]; i++) {
            bench_rate rate;
            TRY(stage_config_of(&b->farm.cfg, what_names[s], device, &sc));
            const bench_stage_wish wish = {b->rows[i], b->seconds, b->prompt_tokens, b->snr};
            TRY(bench_stage(stages[s], &sc, &wish, &ceiling, &rate));
            report_stage(b, what_names[s], &rate);
        }
out:
    return err;
}

static void report_op(const bench *b, const bench_op_rate *r)
{
    char line[160];
    const bool by_bytes = r->gbs > 0;
    snprintf(line, sizeof line, "ops   %-34s %9.1f us, %8.0f %s, %3.0f %% of the %s", r->name, 1e6 * r->seconds,
             by_bytes ? r->gbs : r->gflops, by_bytes ? "GB/s" : "GFLOP/s", 100 * r->share,
             by_bytes ? "copy" : "large product");
    json *obj = bench_object("op");
    json_put_str(obj, "op", r->name);
    json_put_str(obj, "precision", b->farm.cfg.precision);
    json_put_f64(obj, "seconds", r->seconds);
    json_put_f64(obj, by_bytes ? "gbs" : "gflops", by_bytes ? r->gbs : r->gflops);
    json_put_f64(obj, "ceiling_share", r->share);
    bench_emit(b->as_json, obj, line);
}

static cf_err run_ops(const bench *b)
{
    cf_err err = CF_OK;
    stage_config sc;
    bench_op_rate rates[BENCH_OPS_MAX];
    char device[DEVICE_TEXT_BYTES];
    int count = 0;
    int32_t rows = 1;
    if (!b->wanted[WANT_OPS])
        return CF_OK;
    for (int32_t i = 0; i < b->rows_count; i++)
        rows = b->rows[i] > rows ? b->rows[i] : rows;
    TRY(stage_config_of(&b->farm.cfg, "flow", device, &sc));
    TRY(bench_ops(&sc, rows, (int32_t)(b->seconds * (SAMPLE_RATE_HZ / SAMPLES_PER_FRAME)), rates, &count));
    for (int i = 0; i < count; i++)
        report_op(b, &rates[i]);
out:
    return err;
}

static cf_err run_farm(bench *b)
{
    if (!b->wanted[WANT_FARM] && !b->wanted[WANT_HANDOVER])
        return CF_OK;
    int32_t failed = 0;
    const bench_farm_wish wish = {.cfg = &b->farm.cfg,
                                  .count = b->count,
                                  .farm = b->wanted[WANT_FARM],
                                  .handover = b->wanted[WANT_HANDOVER],
                                  .as_json = b->as_json,
                                  .trace_path = b->trace_path};
    const cf_err err = bench_farm(&wish, &failed);
    b->exit_code = failed > 0 ? EXIT_ROWS_FAILED : EXIT_DONE;
    return err;
}

/* ---- options ---- */

static cf_err parse_rows(bench *b, const char *text)
{
    b->rows_count = 0;
    while (*text) {
        char *end;
        const long n = strtol(text, &end, 10);
        if (end == text || n < 1 || n > STAGE_ROWS_MAX || b->rows_count == ROW_COUNTS_MAX || (*end && *end != ','))
            return err_set(CF_ERR_INVALID, "--rows: expected up to %d numbers of 1..%d with commas, found \"%s\"",
                           ROW_COUNTS_MAX, STAGE_ROWS_MAX, text);
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
        while (w < WANT_COUNT && strcmp(argv[i], what_names[w]) != 0)
            w++;
        if (w == WANT_COUNT)
            return err_set(CF_ERR_INVALID, "\"%s\": expected farm, llm, flow, hift, handover or ops", argv[i]);
        b->wanted[w] = true;
    }
    for (int w = 0; w < WANT_OPS && argc == 0; w++)
        b->wanted[w] = true;
    return CF_OK;
}

static cf_err parse(bench *b, int argc, char **argv, bool *ret_help)
{
    enum { OPT_ROWS = 1, OPT_SECONDS, OPT_COUNT, OPT_JSON, OPT_TRACE, OPT_PROMPT, OPT_SNR };
    static const struct option options[] = {FARM_LONG_OPTIONS,
                                            {"rows", required_argument, NULL, OPT_ROWS},
                                            {"seconds", required_argument, NULL, OPT_SECONDS},
                                            {"count", required_argument, NULL, OPT_COUNT},
                                            {"json", no_argument, NULL, OPT_JSON},
                                            {"trace", required_argument, NULL, OPT_TRACE},
                                            {"prompt", required_argument, NULL, OPT_PROMPT},
                                            {"snr", no_argument, NULL, OPT_SNR},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    cf_err err = CF_OK;
    double number;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, FARM_SHORT_OPTIONS "h", options, NULL)) != -1;) {
        if (farm_options_take(&b->farm, c, optarg, &err)) {
            if (err != CF_OK)
                return err;
        } else if (c == OPT_ROWS) {
            TRY(parse_rows(b, optarg));
        } else if (c == OPT_SECONDS) {
            TRY(parse_number("--seconds", optarg, 0.2, 60, &b->seconds));
        } else if (c == OPT_COUNT) {
            TRY(parse_number("--count", optarg, 1, BENCH_FARM_ROWS_MAX, &number));
            b->count = (int32_t)number;
        } else if (c == OPT_JSON) {
            b->as_json = true;
        } else if (c == OPT_TRACE) {
            b->trace_path = optarg;
        } else if (c == OPT_PROMPT) {
            TRY(parse_number("--prompt", optarg, 1, PROMPT_TOKENS_MAX, &number));
            b->prompt_tokens = (int32_t)number;
        } else if (c == OPT_SNR) {
            b->snr = true;
        } else if (c == 'h') {
            *ret_help = true;
            return CF_OK;
        } else {
            return options_refused(argv, "bench");
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
    err = farm_options_load(&b.farm);
    if (err == CF_OK)
        err = farm_options_check(&b.farm);
    if (err == CF_OK)
        err = run_ops(&b);
    if (err == CF_OK)
        err = run_stages(&b);
    if (err == CF_OK)
        err = run_farm(&b);
    if (err == CF_OK)
        return b.exit_code;
    fprintf(stderr, "cosyfarm bench: %s\n", err_text());
    return err == CF_ERR_NOMEM || err == CF_ERR_TIMEOUT ? EXIT_AGAIN : err == CF_ERR_SYS ? EXIT_OURS : EXIT_CONFIG;
}
