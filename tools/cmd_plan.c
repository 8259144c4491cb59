/*
 * cmd_plan.c - `cosyfarm plan`: memory and rate of each stage on the devices found, and how many workers of each belong
 * where. Stages run in this process. Prints a configuration that `up --config` takes; the figures behind it go to
 * stderr. Fails: exit codes of tools/cmd.h.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/device.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/compute/backend.h"
#include "common/worker/memory_plan.h"
#include "tools/bench_llm.h"
#include "tools/bench_stage.h"
#include "tools/cmd.h"
#include "tools/farm_options.h"
#include "tools/options.h"
#include "tools/plan_place.h"

#define GIB               1073741824.0
#define RATES_BYTES_MAX   (1u << 20)
#define CONTEXT_BYTES     ((uint64_t)512 << 20) /* a process's own on a CUDA device, which a plan cannot see */
#define DEVICE_LIST_BYTES 256

static const char plan_help[] =
    "usage: cosyfarm plan -m MODEL [options] >farm.json\n\n"
    "Measures the stages on the first device, plans their memory, and proposes workers for all devices: a "
    "configuration\n"
    "for `cosyfarm up --config farm.json`. Devices: --device, or all GPUs, or the CPU.\n\n" FARM_OPTIONS_HELP
    "      --rates FILE      rates out of `cosyfarm bench llm flow hift --json` instead of measuring\n"
    "      --rows N          rows at once while measuring (default 8)\n"
    "      --seconds S       audio seconds of a row while measuring (default 3)\n"
    "      --json            one object: stages, devices, audio_per_s, config\n";

typedef struct plan {
    farm_options farm;
    const char *rates_path;
    bool as_json, device_given;
    int32_t rows;
    double seconds;
    char devices[PLAN_DEVICES_MAX][DEVICE_TEXT_BYTES];
    uint64_t free_bytes[PLAN_DEVICES_MAX];
    int devices_count;
    stage_memory memory[PLAN_STAGES];
    plan_stage stages[PLAN_STAGES];
    plan_result result;
} plan;

static const stage_ops *const all_stages[PLAN_STAGES] = {&llm_stage, &flow_stage, &hift_stage};

/* ---- devices ---- */

/* Those of the command line, else all GPUs, else the CPU; to the configuration too. */
static cf_err list_devices(plan *p)
{
    cf_err err = CF_OK;
    config *cfg = &p->farm.cfg;
    size_t at = 0;
    int device = 0;
    for (int n = 0; n < PLAN_DEVICES_MAX && !p->device_given; n++) {
        snprintf(p->devices[n], DEVICE_TEXT_BYTES, "cuda:%d", n);
        if (backend_check_device(p->devices[n]) != CF_OK)
            break;
        p->devices_count++;
    }
    if (p->devices_count == 0) {
        const char *list = p->device_given ? cfg->device : "cpu";
        p->devices_count = device_list_count(list);
        if (p->devices_count > PLAN_DEVICES_MAX)
            FAIL(CF_ERR_LIMIT, "--device: %d devices, at most %d", p->devices_count, PLAN_DEVICES_MAX);
        for (int d = 0; d < p->devices_count; d++)
            TRY(device_of_instance(list, d, p->devices[d], &device));
    }
    for (int d = 0; d < p->devices_count; d++)
        at += (size_t)snprintf(cfg->device + at, sizeof cfg->device - at, "%s%s", d ? "," : "", p->devices[d]);
    cfg->llm_device[0] = cfg->flow_device[0] = cfg->hift_device[0] = '\0'; /* it is the plan that places */
out:
    return err;
}

static cf_err ask_free_memory(plan *p)
{
    cf_err err = CF_OK;
    for (int d = 0; d < p->devices_count; d++) {
        uint64_t total_bytes;
        TRY(backend_memory(p->devices[d], &p->free_bytes[d], &total_bytes));
    }
out:
    return err;
}

/* ---- memory and rates ---- */

static stage_config config_of(const plan *p, int stage)
{
    const config *cfg = &p->farm.cfg;
    return (stage_config){.model_dir = cfg->model,
                          .device = p->devices[0],
                          .operands = stage_precision(cfg->precision),
                          .int8_weights = stage_int8_weights(cfg->precision),
                          .threads = cfg->threads,
                          .naive = cfg->naive,
                          .base_weights = cfg->base_weights,
                          .rows_max = stage == STAGE_LLM    ? cfg->llm_rows
                                      : stage == STAGE_FLOW ? cfg->flow_rows
                                                            : cfg->hift_rows,
                          .frames_max = stage == STAGE_HIFT ? cfg->hift_frames : cfg->flow_frames};
}

static cf_err plan_memory(plan *p)
{
    cf_err err = CF_OK;
    for (int s = 0; s < PLAN_STAGES; s++) {
        const stage_config cfg = config_of(p, s);
        stage_memory *m = &p->memory[s];
        TRY(all_stages[s]->plan(&cfg, m));
        /* As memory_check counts: scratch of a CPU is address space. */
        p->stages[s].memory_bytes =
            m->library_bytes == 0 ? m->weights_bytes + m->tables_bytes : memory_total(m) + CONTEXT_BYTES;
    }
out:
    return err;
}

static cf_err measure_llm(const stage_config *cfg, int32_t rows, double *ret_audio_per_s)
{
    cf_err err;
    bench_llm_open open;
    bench_llm_rate rate;
    TRY(bench_llm(cfg, &rows, 1, &open, &rate));
    *ret_audio_per_s = rate.tokens_per_s / TOKENS_PER_SECOND;
out:
    return err;
}

static cf_err measure(plan *p)
{
    cf_err err = CF_OK;
    const bench_ceiling none = {.gemm_gflops = 1}; /* shares are not asked for */
    for (int s = 0; s < PLAN_STAGES; s++) {
        const stage_config cfg = config_of(p, s);
        const int32_t rows = p->rows < cfg.rows_max ? p->rows : cfg.rows_max;
        bench_rate rate;
        if (s == STAGE_LLM) {
            TRY(measure_llm(&cfg, rows, &p->stages[s].audio_per_s));
            continue;
        }
        const bench_stage_wish wish = {.rows = rows, .seconds = p->seconds};
        TRY(bench_stage(all_stages[s], &cfg, &wish, &none, &rate));
        p->stages[s].audio_per_s = rate.audio_per_s;
    }
out:
    return err;
}

/* One line of bench; others than rates of stages are passed over. */
static cf_err take_rate(plan *p, const json *line)
{
    cf_err err = CF_OK;
    const char *what, *word;
    double rate;
    TRY(json_get_str(line, "bench", 31, &what));
    for (int s = 0; s < PLAN_STAGES; s++) {
        if (strcmp(what, stage_name((stage_kind)s)) != 0)
            continue;
        TRY(json_get_str(line, "precision", 31, &word));
        if (strcmp(word, p->farm.cfg.precision) != 0)
            FAIL(CF_ERR_MISMATCH, "rate of %s: expected precision %s, found %s", what, p->farm.cfg.precision, word);
        TRY(json_get_f64(line, "audio_per_s", 1e-9, 1e9, &rate));
        if (rate > p->stages[s].audio_per_s)
            p->stages[s].audio_per_s = rate;
    }
out:
    return err;
}

static cf_err read_rates(plan *p)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    int number = 1;
    TRY(io_read_file(p->rates_path, RATES_BYTES_MAX, &text, &bytes));
    for (char *line = text; *line; number++) {
        json *obj = NULL;
        const size_t length = strcspn(line, "\n");
        err = length == 0 ? CF_OK : json_parse(line, length, 4, &obj);
        if (err == CF_OK && obj)
            err = take_rate(p, obj);
        json_close(obj);
        if (err != CF_OK) {
            err = err_context(err, "%s:%d", p->rates_path, number);
            goto out;
        }
        line += length + (line[length] == '\n');
    }
    for (int s = 0; s < PLAN_STAGES; s++)
        if (p->stages[s].audio_per_s <= 0)
            FAIL(CF_ERR_NOTFOUND, "%s: expected a rate of each stage, found none of %s", p->rates_path,
                 stage_name((stage_kind)s));
out:
    mem_free(text);
    return err;
}

/* ---- what is said ---- */

static void say_table(const plan *p)
{
    char text[MEMORY_TEXT_BYTES];
    fprintf(stderr, "stage  audio-s/s   memory\n");
    for (int s = 0; s < PLAN_STAGES; s++) {
        memory_format(&p->memory[s], text);
        fprintf(stderr, "%-5s %10.2f   %.2f GiB (%s)\n", stage_name((stage_kind)s), p->stages[s].audio_per_s,
                (double)p->stages[s].memory_bytes / GIB, text);
    }
    for (int d = 0; d < p->devices_count; d++) {
        fprintf(stderr, "%s, %.2f GiB free:", p->devices[d], (double)p->free_bytes[d] / GIB);
        for (int s = 0; s < PLAN_STAGES; s++)
            if (p->result.share[s][d] > 0)
                fprintf(stderr, " %s %.0f %%", stage_name((stage_kind)s), 100 * p->result.share[s][d]);
        fputc('\n', stderr);
    }
    fprintf(stderr, "at most %.2f audio-s/s\n", p->result.audio_per_s);
}

static json *proposed_config(const plan *p)
{
    json *obj = json_object();
    char key[32], list[DEVICE_LIST_BYTES];
    json_put_str(obj, "precision", p->farm.cfg.precision);
    for (int s = 0; s < PLAN_STAGES; s++) {
        size_t at = 0;
        snprintf(key, sizeof key, "%s_workers", stage_name((stage_kind)s));
        json_put_u64(obj, key, (uint64_t)p->result.count[s]);
        for (int d = 0; d < p->devices_count; d++)
            if (p->result.share[s][d] > 0)
                at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", at ? "," : "", p->devices[d]);
        snprintf(key, sizeof key, "%s_device", stage_name((stage_kind)s));
        json_put_str(obj, key, list);
        const stage_config cfg = config_of(p, s);
        snprintf(key, sizeof key, "%s_rows", stage_name((stage_kind)s));
        json_put_u64(obj, key, (uint64_t)cfg.rows_max);
    }
    json_put_u64(obj, "flow_frames", (uint64_t)p->farm.cfg.flow_frames);
    json_put_u64(obj, "hift_frames", (uint64_t)p->farm.cfg.hift_frames);
    return obj;
}

static json *whole_object(const plan *p)
{
    json *obj = json_object(), *stages = json_object(), *devices = json_object();
    for (int s = 0; s < PLAN_STAGES; s++) {
        json *one = json_object();
        json_put_f64(one, "audio_per_s", p->stages[s].audio_per_s);
        json_put_u64(one, "memory_bytes", p->stages[s].memory_bytes);
        json_put(stages, stage_name((stage_kind)s), one);
    }
    for (int d = 0; d < p->devices_count; d++) {
        json *one = json_object();
        json_put_u64(one, "free_bytes", p->free_bytes[d]);
        for (int s = 0; s < PLAN_STAGES; s++)
            if (p->result.share[s][d] > 0)
                json_put_f64(one, stage_name((stage_kind)s), p->result.share[s][d]);
        json_put(devices, p->devices[d], one);
    }
    json_put(obj, "stages", stages);
    json_put(obj, "devices", devices);
    json_put_f64(obj, "audio_per_s", p->result.audio_per_s);
    json_put(obj, "config", proposed_config(p));
    return obj;
}

static cf_err say(const plan *p)
{
    cf_err err;
    char *text = NULL;
    json *obj = p->as_json ? whole_object(p) : proposed_config(p);
    if (!p->as_json)
        say_table(p);
    TRY(json_print(obj, !p->as_json, &text));
    puts(text);
out:
    mem_free(text);
    json_close(obj);
    return err;
}

/* ---- options ---- */

static cf_err parse(plan *p, int argc, char **argv, bool *ret_help)
{
    enum { OPT_RATES = 1, OPT_ROWS, OPT_SECONDS, OPT_JSON };
    static const struct option options[] = {FARM_LONG_OPTIONS,
                                            {"rates", required_argument, NULL, OPT_RATES},
                                            {"rows", required_argument, NULL, OPT_ROWS},
                                            {"seconds", required_argument, NULL, OPT_SECONDS},
                                            {"json", no_argument, NULL, OPT_JSON},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    cf_err err = CF_OK;
    uint64_t number;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, FARM_SHORT_OPTIONS "h", options, NULL)) != -1;) {
        if (farm_options_take(&p->farm, c, optarg, &err)) {
            p->device_given |= c == 1002;
            TRY(err);
        } else if (c == OPT_RATES) {
            p->rates_path = optarg;
        } else if (c == OPT_ROWS) {
            TRY(farm_options_count("--rows", optarg, STAGE_ROWS_MAX, &number));
            p->rows = (int32_t)number;
        } else if (c == OPT_SECONDS) {
            TRY(farm_options_count("--seconds", optarg, 60, &number));
            p->seconds = (double)number;
        } else if (c == OPT_JSON) {
            p->as_json = true;
        } else if (c == 'h') {
            *ret_help = true;
            return CF_OK;
        } else {
            return options_refused(argv, "plan");
        }
    }
    err = options_no_operands(argc, argv);
out:
    return err;
}

static cf_err run(plan *p)
{
    cf_err err;
    TRY(farm_options_load(&p->farm));
    TRY(list_devices(p));
    TRY(farm_options_check(&p->farm));
    TRY(ask_free_memory(p));
    TRY(plan_memory(p));
    if (p->rates_path)
        TRY(read_rates(p));
    else
        TRY(measure(p));
    TRY(plan_place(p->stages, p->free_bytes, p->devices_count, &p->result));
    TRY(say(p));
out:
    return err;
}

int cmd_plan(int argc, char **argv)
{
    static plan p; /* large */
    bool help = false;
    p = (plan){.rows = 8, .seconds = 3};
    farm_options_init(&p.farm);
    cf_err err = parse(&p, argc, argv, &help);
    if (help) {
        fputs(plan_help, stdout);
        return EXIT_DONE;
    }
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm plan: %s\n", err_text());
        return EXIT_USAGE;
    }
    err = run(&p);
    if (err == CF_OK)
        return EXIT_DONE;
    fprintf(stderr, "cosyfarm plan: %s\n", err_text());
    return err == CF_ERR_SYS ? EXIT_OURS : EXIT_CONFIG;
}
