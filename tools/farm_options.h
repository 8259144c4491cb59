/*
 * farm_options.h - the options that say, up and bench share, and a farm of one's own.
 */
#ifndef CF_TOOLS_FARM_OPTIONS_H
#define CF_TOOLS_FARM_OPTIONS_H

#include <getopt.h>

#include "common/base/config.h"
#include "common/base/io.h"
#include "orchestrator/spawn.h"
#include "tools/client.h"

/* Long options, to be placed first in a verb's own table, and their short letters. */
#define FARM_LONG_OPTIONS                                                                        \
    {"model", required_argument, NULL, 'm'}, {"config", required_argument, NULL, 1001},          \
        {"device", required_argument, NULL, 1002}, {"precision", required_argument, NULL, 1003}, \
        {"threads", required_argument, NULL, 1004}, {"base-weights", no_argument, NULL, 1005},   \
        {"llm", required_argument, NULL, 1006}, {"flow", required_argument, NULL, 1007},         \
        {"hift", required_argument, NULL, 1008},                                                 \
    {                                                                                            \
        "naive", no_argument, NULL, 1009                                                         \
    }
#define FARM_SHORT_OPTIONS "m:"
#define FARM_OPTIONS_HELP                                                                                  \
    "  -m, --model DIR       model directory (or COSYFARM_MODEL)\n"                                        \
    "      --config FILE     configuration, JSON; options win over its keys, wherever they stand\n"        \
    "      --device LIST     cpu (default) or cuda:N,... where workers compute, in turn\n"                 \
    "      --precision P     f32 (default), bf16, fp16 (cuda), or int8 (cpu): bf16, LLM weights in int8\n" \
    "      --threads N       compute threads of each worker (default: all it may run on)\n"                \
    "      --llm N --flow N --hift N   workers of each stage (default 1)\n"                                \
    "      --base-weights    llm.pt although llm.rl.pt exists\n"                                           \
    "      --naive           plain reference loops (slow)\n"

#define FARM_KEY_OPTIONS 9 /* of them are keys of the configuration */

typedef struct farm_options {
    config cfg;
    bool model_given, precision_given;   /* by anyone: an option, the file, for the model the environment too */
    const char *config_path;             /* borrowed from the command line; NULL: none */
    const char *given[FARM_KEY_OPTIONS]; /* borrowed from the command line: what was given for each, or NULL */
} farm_options;

/* Defaults, then COSYFARM_MODEL. */
void farm_options_init(farm_options *o);

/* True when the option letter was one of ours. *ret_err: what is wrong with its value, which is usage. */
bool farm_options_take(farm_options *o, int letter, const char *value, cf_err *ret_err);

/* After the last option: reads the file of --config, whose keys the options override wherever they stand. What is wrong
 * here is the configuration's fault, no usage. */
CF_MUST_CHECK cf_err farm_options_load(farm_options *o);

/* Values of a row's options, with the range in the error: an unsigned number up to max, the same from 1, a speed of
 * 0.5..2. */
CF_MUST_CHECK cf_err farm_options_number(const char *option, const char *text, uint64_t max, uint64_t *ret_value);
CF_MUST_CHECK cf_err farm_options_count(const char *option, const char *text, uint64_t max, uint64_t *ret_value);
CF_MUST_CHECK cf_err farm_options_speed(const char *text, double *ret_speed);

/* Takes the demo voice that comes with the programs as the model, where no other was named: PREFIX/share/cosyfarm/demo,
 * or models/demo of the tree that they were built in. Leaves the model unnamed where neither is there. */
CF_MUST_CHECK cf_err farm_options_take_demo(farm_options *o);

/* Checks what a farm needs before processes start: a model directory that is one, a device and precision that exist;
 * makes the model path absolute. */
CF_MUST_CHECK cf_err farm_options_check(farm_options *o);

/* Of a farm that runs already. CF_ERR_MISMATCH: it serves another model, precision or choice of weights than was given.
 * Options that are its own affair are ignored, which is said on stderr. */
CF_MUST_CHECK cf_err farm_options_check_running(const farm_options *o, client *c);

/* A farm of one's own in a fresh private run directory, its log inside. */
typedef struct private_farm {
    char run_dir[64], log_path[96];
    spawn *farm;  /* owned */
    int owner_fd; /* owned while run_dir has a name: its lock says that we live */
} private_farm;

/* Run directories beside it whose owners were killed are removed. log_path: where its messages go, appended; NULL: a
 * file in its run directory. */
CF_MUST_CHECK cf_err private_farm_open(const config *cfg, const char *log_path, private_farm *ret_farm);
/* Stops the processes and removes the directory. keep_log: the log stays, its path is valid. */
void private_farm_close(private_farm *p, bool keep_log);

#endif
