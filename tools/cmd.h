/*
 * cmd.h - the verbs of the `cosyfarm` command; one file a verb. argv[0] is the verb. Each returns an exit code of
 * interface.md 3.
 */
#ifndef CF_TOOLS_CMD_H
#define CF_TOOLS_CMD_H

/* Exit codes (docs/OPERATIONS.md). */
enum {
    EXIT_DONE = 0,
    EXIT_OURS = 1, /* unexpected: our error */
    EXIT_USAGE = 64,
    EXIT_ROWS_FAILED = 65, /* finished, but some rows or comparisons failed */
    EXIT_NO_FARM = 69,
    EXIT_AGAIN = 75, /* interrupted or out of resources: the same command line goes on */
    EXIT_CONFIG = 78 /* configuration, model or manifest unusable */
};

int cmd_say(int argc, char **argv); /* say, convert */
int cmd_batch(int argc, char **argv);
int cmd_up(int argc, char **argv);
int cmd_down(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_steer(int argc, char **argv); /* drain, resume, restart, scale */
int cmd_voice(int argc, char **argv);
int cmd_model(int argc, char **argv);
int cmd_text(int argc, char **argv);
int cmd_parity(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_plan(int argc, char **argv);

#endif
