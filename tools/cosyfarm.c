/*
 * cosyfarm.c - the command: finds the verb and hands over. Fails: exit codes of tools/cmd.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "tools/cmd.h"

typedef struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} verb;

static const verb verbs[] = {
    {"say", cmd_say, "one utterance to a file, on the running farm or on a private one"},
    {"convert", cmd_say, "a recording in another voice"},
    {"batch", cmd_batch, "a manifest to files; goes on where it stopped"},
    {"up", cmd_up, "start a farm: orchestrator, exchange keeper, workers"},
    {"down", cmd_down, "drain the running farm and end it"},
    {"status", cmd_status, "members, queues and totals of the running farm"},
    {"top", cmd_top, "the same, live"},
    {"drain", cmd_steer, "no more work for a stage or one of its workers"},
    {"resume", cmd_steer, "work for it again"},
    {"restart", cmd_steer, "restart a stage's workers one after the other"},
    {"scale", cmd_steer, "STAGE=N: so many workers of a stage"},
    {"voice", cmd_voice, "ls, enroll, import, export, show, rm: the voices of a model directory"},
    {"model", cmd_model, "make, ls, check: model directories and their files"},
    {"text", cmd_text, "what the model will see: segments and token ids"},
    {"parity", cmd_parity, "compare this build with reference cases"},
    {"plan", cmd_plan, "memory and rates of the stages on the devices found; how many workers where"},
    {"bench", cmd_bench, "rates and latencies, absolute and against ceilings"},
};

static void print_help(void)
{
    puts("usage: cosyfarm VERB [options]      (cosyfarm VERB --help tells more)\n");
    for (size_t i = 0; i < CF_COUNT(verbs); i++)
        printf("  %-8s %s\n", verbs[i].name, verbs[i].help);
    puts("\nCOSYFARM_MODEL replaces -m, COSYFARM_RUN_DIR names the run directory.");
}

static int run(int argc, char **argv)
{
    if (fault_arm(getenv("COSYFARM_FAULT_COMMAND")) != CF_OK) {
        fprintf(stderr, "cosyfarm: COSYFARM_FAULT_COMMAND: %s\n", err_text());
        return EXIT_USAGE;
    }
    if (argc < 2) {
        fputs("cosyfarm: expected a verb; cosyfarm --help lists them\n", stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help();
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        puts("cosyfarm " CF_VERSION);
        return EXIT_DONE;
    }
    for (size_t i = 0; i < CF_COUNT(verbs); i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    fprintf(stderr, "cosyfarm: verb \"%s\" is not known; cosyfarm --help lists them\n", argv[1]);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    process_hold_standard();
    log_open("cosyfarm", LOG_LEVEL_WARN);
    process_follow_parent();
    return process_flush_output("cosyfarm", run(argc, argv));
}
