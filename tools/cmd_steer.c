/*
 * cmd_steer.c - `cosyfarm drain|resume|restart STAGE[/N]` and `cosyfarm scale STAGE=N`: steer a running farm.
 * Fails: exit codes of tools/cmd.h, one line on stderr.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/process.h"
#include "tools/client.h"
#include "tools/cmd.h"
#include "tools/options.h"

static const char steer_help[] =
    "usage: cosyfarm drain   STAGE[/N] [--run-dir DIR]   no more work; what it holds is finished\n"
    "       cosyfarm resume  STAGE[/N]                   work again, deaths forgotten\n"
    "       cosyfarm restart STAGE[/N]                   one after the other: finish, exit, start\n"
    "       cosyfarm scale   STAGE=N                     so many workers\n\n"
    "STAGE is llm, flow or hift. The other stages go on; no row is lost.\n";

typedef struct wish {
    const char *verb;
    char stage[16];
    uint64_t number;
    bool has_number;
} wish;

/* "flow", "flow/2"; scale: "flow=2". */
static cf_err parse_wish(const char *verb, const char *text, wish *ret_wish)
{
    const bool is_scale = strcmp(verb, "scale") == 0;
    const char *mark = strchr(text, is_scale ? '=' : '/');
    const size_t bytes = mark ? (size_t)(mark - text) : strlen(text);
    *ret_wish = (wish){.verb = verb};
    if (bytes >= sizeof ret_wish->stage)
        return err_set(CF_ERR_INVALID, "stage \"%s\": expected llm, flow or hift", text);
    memcpy(ret_wish->stage, text, bytes);
    if (is_scale && !mark)
        return err_set(CF_ERR_INVALID, "\"%s\": expected STAGE=N", text);
    if (!mark)
        return CF_OK;
    char *end;
    ret_wish->number = strtoull(mark + 1, &end, 10);
    ret_wish->has_number = true;
    const uint64_t max = is_scale ? STAFF_MAX : INSTANCES_MAX - 1;
    if (*end || end == mark + 1 || mark[1] == '-' || ret_wish->number > max)
        return err_set(CF_ERR_INVALID, "\"%s\": expected a number from 0 to %llu", text, (unsigned long long)max);
    return CF_OK;
}

static cf_err send_wish(const char *run_dir, const wish *w, uint64_t *ret_members)
{
    cf_err err;
    client *c = NULL;
    wire_msg answer = {0};
    if (!client_farm_runs(run_dir))
        FAIL(CF_ERR_GONE, "no farm runs in %s", run_dir);
    TRY(client_open(run_dir, &c));
    json *m = wire_new(WIRE_steer);
    json_put_str(m, "verb", w->verb);
    json_put_str(m, "stage", w->stage);
    if (w->has_number)
        json_put_u64(m, strcmp(w->verb, "scale") == 0 ? "count" : "instance", w->number);
    TRY(client_ask(c, m, WIRE_steered, clock_now_us() + 10 * CLOCK_SECOND_US, &answer));
    *ret_members = wire_u64(&answer, "members");
    if (strcmp(wire_str(&answer, "code"), err_name(CF_OK)) != 0)
        err = err_set(err_from_name(wire_str(&answer, "code")), "%s", wire_str(&answer, "text"));
out:
    wire_done(&answer);
    client_close(c);
    return err;
}

static int exit_code_of(cf_err err)
{
    switch (err) {
    case CF_OK:
        return EXIT_DONE;
    case CF_ERR_GONE:
    case CF_ERR_TIMEOUT:
        return EXIT_NO_FARM;
    case CF_ERR_BUSY:
        return EXIT_AGAIN;
    case CF_ERR_INVALID:
    case CF_ERR_LIMIT:
        return EXIT_USAGE;
    case CF_ERR_NOTFOUND:
    case CF_ERR_UNSUPPORTED:
        return EXIT_CONFIG;
    default:
        return EXIT_OURS;
    }
}

int cmd_steer(int argc, char **argv)
{
    static const struct option options[] = {
        {"run-dir", required_argument, NULL, 'r'}, {"help", no_argument, NULL, 'h'}, {0}};
    char run_dir[IO_PATH_BYTES];
    wish w;
    uint64_t members = 0;
    opterr = 0;
    cf_err err = process_run_dir(run_dir, sizeof run_dir);
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, "r:h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(steer_help, stdout);
            return EXIT_DONE;
        }
        err = c == 'r' ? process_take_run_dir(optarg, run_dir, sizeof run_dir) : options_refused(argv, argv[0]);
    }
    if (err == CF_OK && optind + 1 != argc)
        err = err_set(CF_ERR_INVALID, "expected one STAGE; cosyfarm %s --help tells more", argv[0]);
    if (err == CF_OK)
        err = parse_wish(argv[0], argv[optind], &w);
    if (err == CF_OK)
        err = send_wish(run_dir, &w, &members);
    if (err != CF_OK)
        fprintf(stderr, "cosyfarm %s: %s\n", argv[0], err_text());
    else
        printf("%s %s: %llu workers\n", argv[0], argv[optind], (unsigned long long)members);
    return exit_code_of(err);
}
