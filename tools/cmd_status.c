/*
 * cmd_status.c - `cosyfarm status` and `cosyfarm top`: who serves, what waits, how much is done. Fails: exit codes of
 * tools/cmd.h.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/model/stage_tables.h"
#include "tools/client.h"
#include "tools/cmd.h"
#include "tools/options.h"

static const char status_help[] = "usage: cosyfarm status [--json] [--run-dir DIR]\n";

static uint64_t number(const json *obj, const char *key)
{
    uint64_t value = 0;
    return json_get_u64(obj, key, 0, UINT64_MAX, &value) == CF_OK ? value : 0;
}

static double real(const json *obj, const char *key)
{
    double value = 0;
    return json_get_f64(obj, key, -1e300, 1e300, &value) == CF_OK ? value : 0;
}

static const char *word(const json *obj, const char *key)
{
    const char *text = "";
    return json_find(obj, key) && json_get_str(obj, key, 4096, &text) == CF_OK ? text : "";
}

static double mib(const json *obj, const char *key)
{
    return (double)number(obj, key) / (1 << 20);
}

static void print_member(const json *m)
{
    const double up_s = real(m, "up_s");
    char device[64] = "-";
    if (number(m, "device_bytes") > 0)
        snprintf(device, sizeof device, "%.15s %.0f", word(m, "device"), mib(m, "device_bytes"));
    else if (json_find(m, "device"))
        snprintf(device, sizeof device, "%.15s", word(m, "device"));
    printf("%-8s %4" PRIu64 " %5" PRIu64 " %8" PRIu64 " %-9s %8" PRIu64 " %6" PRIu64 " %6.0f %9.0f %12s  %s %.12s\n",
           word(m, "role"), number(m, "instance"), number(m, "gen"), number(m, "pid"), word(m, "state"),
           number(m, "jobs_done"), number(m, "held"), up_s > 0 ? 100 * real(m, "busy_s") / up_s : 0,
           mib(m, "rss_bytes"), device, word(m, "model"), word(m, "sha256"));
    if (json_find(m, "steps_replayed"))
        printf("%-8s steps of decoding: %" PRIu64 " replayed, %" PRIu64 " recorded, %" PRIu64 " eager\n", "",
               number(m, "steps_replayed"), number(m, "steps_recorded"), number(m, "steps_eager"));
    if (json_find(m, "parole_s"))
        printf("%-8s died again and again before it finished a job: tried with one in %.0f s; `cosyfarm resume "
               "%s/%" PRIu64 "` feeds it now\n",
               "", real(m, "parole_s"), word(m, "role"), number(m, "instance"));
}

static void print_queue(const char *stage, const json *q)
{
    const json *h = json_find(q, "handover");
    printf("%-5s waiting %" PRIu64 ", running %" PRIu64 ", last minute %.2f jobs/s, %.2f audio-s/s", stage,
           number(q, "waiting"), number(q, "running"), real(q, "jobs_per_s"), real(q, "audio_per_s"));
    if (h && number(h, "count") > 0)
        printf(", hand-over p50 %" PRIu64 " us, p99 %" PRIu64 " us of %" PRIu64, number(h, "p50_us"),
               number(h, "p99_us"), number(h, "count"));
    putchar('\n');
}

static void print_table(const wire_msg *status)
{
    const json *totals = wire_json(status, "totals"), *queues = wire_json(status, "queues");
    double rss_mib = mib(totals, "rss_bytes"), device_mib = 0;
    printf("%-8s %4s %5s %8s %-9s %8s %6s %6s %9s %12s  %s\n", "role", "inst", "gen", "pid", "state", "jobs", "held",
           "busy%", "rss MiB", "device MiB", "model");
    for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
        print_member(m);
        rss_mib += mib(m, "rss_bytes");
        device_mib += mib(m, "device_bytes");
    }
    for (int i = 0; i < MODEL_STAGE_COUNT; i++) {
        const char *stage = model_stage_name((model_stage)i);
        const json *q = json_find(queues, stage);
        if (q)
            print_queue(stage, q);
    }
    printf("rows  in work %" PRIu64 ", done %" PRIu64 ", failed %" PRIu64 ", refused %" PRIu64
           ", last minute %.2f rows/s, %.2f audio-s/s; audio %.1f s; replays %" PRIu64 "; up %.0f s\n",
           number(queues, "rows"), number(totals, "rows_done"), number(totals, "rows_failed"),
           number(totals, "rows_refused"), real(totals, "rows_per_s"), real(totals, "audio_per_s"),
           real(totals, "audio_s"), number(totals, "jobs_replayed"), real(totals, "up_s"));
    printf("memory  all processes %.0f MiB, the orchestrator %.0f MiB of it; on devices %.0f MiB\n", rss_mib,
           mib(totals, "rss_bytes"), device_mib);
}

static cf_err open_client(const char *run_dir, client **ret_client)
{
    if (!client_farm_runs(run_dir))
        return err_set(CF_ERR_GONE, "no farm runs in %s", run_dir);
    return client_open(run_dir, ret_client);
}

static cf_err show(const char *run_dir, bool as_json)
{
    cf_err err;
    client *c = NULL;
    wire_msg status = {0};
    char *text = NULL;
    TRY(open_client(run_dir, &c));
    TRY(client_status(c, &status));
    if (as_json) {
        TRY(json_print(status.root, false, &text));
        puts(text);
    } else {
        print_table(&status);
    }
out:
    mem_free(text);
    wire_done(&status);
    client_close(c);
    return err;
}

static int exit_code_of(cf_err err)
{
    return err == CF_OK                                   ? EXIT_DONE
           : err == CF_ERR_GONE || err == CF_ERR_TIMEOUT  ? EXIT_NO_FARM
           : err == CF_ERR_STORAGE || err == CF_ERR_NOMEM ? EXIT_AGAIN
                                                          : EXIT_OURS;
}

int cmd_status(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"run-dir", required_argument, NULL, 'r'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    char run_dir[IO_PATH_BYTES];
    bool as_json = false;
    opterr = 0;
    cf_err err = process_run_dir(run_dir, sizeof run_dir);
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, "jr:h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(status_help, stdout);
            return EXIT_DONE;
        }
        if (c == 'j')
            as_json = true;
        else
            err = c == 'r' ? process_take_run_dir(optarg, run_dir, sizeof run_dir) : options_refused(argv, "status");
    }
    if (err == CF_OK)
        err = options_no_operands(argc, argv);
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm status: %s\n", err_text());
        return EXIT_USAGE;
    }
    err = show(run_dir, as_json);
    if (err != CF_OK)
        fprintf(stderr, "cosyfarm status: %s\n", err_text());
    return exit_code_of(err);
}

/* ---- top ---- */

static const char top_help[] = "usage: cosyfarm top [-n COUNT] [-s SECONDS] [--run-dir DIR]\n\n"
                               "The status again and again; rates are those since the last time. ^C ends it.\n";

typedef struct top {
    char run_dir[IO_PATH_BYTES];
    uint64_t times, seconds; /* times 0: until ^C */
} top;

static cf_err watch(const top *t)
{
    cf_err err;
    client *c = NULL;
    wire_msg status = {0};
    double audio_s = 0, up_s = 0;
    uint64_t rows = 0;
    const bool terminal = isatty(STDOUT_FILENO);
    TRY(open_client(t->run_dir, &c));
    for (uint64_t n = 0; t->times == 0 || n < t->times; n++) {
        if (n > 0)
            poll(NULL, 0, (int)t->seconds * 1000);
        wire_done(&status);
        TRY(client_status(c, &status));
        const json *totals = wire_json(&status, "totals");
        if (terminal)
            fputs("\033[H\033[J", stdout);
        print_table(&status);
        const double spent_s = real(totals, "up_s") - up_s;
        if (n > 0 && spent_s > 0)
            printf("rate  %.2f audio-s/s, %.2f rows/s\n", (real(totals, "audio_s") - audio_s) / spent_s,
                   (double)(number(totals, "rows_done") - rows) / spent_s);
        if (fflush(stdout) != 0) {
            err = err_sys("standard output");
            clearerr(stdout);
            goto out;
        }
        audio_s = real(totals, "audio_s");
        up_s = real(totals, "up_s");
        rows = number(totals, "rows_done");
    }
out:
    wire_done(&status);
    client_close(c);
    return err;
}

static cf_err parse_count(int letter, const char *text, uint64_t *ret_count)
{
    char *end;
    *ret_count = strtoull(text, &end, 10);
    if (*end || end == text || text[0] == '-' || *ret_count == 0 || *ret_count >= 1000000)
        return err_set(CF_ERR_INVALID, "-%c: expected 1..999999, found \"%s\"", letter, text);
    return CF_OK;
}

int cmd_top(int argc, char **argv)
{
    static const struct option options[] = {
        {"run-dir", required_argument, NULL, 'r'}, {"help", no_argument, NULL, 'h'}, {0}};
    top t = {.seconds = 1};
    opterr = 0;
    cf_err err = process_run_dir(t.run_dir, sizeof t.run_dir);
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, "n:s:r:h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(top_help, stdout);
            return EXIT_DONE;
        }
        if (c == 'n' || c == 's')
            err = parse_count(c, optarg, c == 'n' ? &t.times : &t.seconds);
        else
            err = c == 'r' ? process_take_run_dir(optarg, t.run_dir, sizeof t.run_dir) : options_refused(argv, "top");
    }
    if (err == CF_OK)
        err = options_no_operands(argc, argv);
    if (err != CF_OK) {
        fprintf(stderr, "cosyfarm top: %s\n", err_text());
        return EXIT_USAGE;
    }
    err = watch(&t);
    if (err != CF_OK)
        fprintf(stderr, "cosyfarm top: %s\n", err_text());
    return exit_code_of(err);
}
