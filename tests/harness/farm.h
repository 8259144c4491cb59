/*
 * farm.h - a real farm for tests: the built programs, the tiny model, a private run directory; started, asked, hurt,
 * ended.
 * A program that uses it links $(FARM_TEST) of tests/e2e/libs.mk. COSYFARM_BIN names the folder of the programs.
 */
#ifndef CF_TESTS_HARNESS_FARM_H
#define CF_TESTS_HARNESS_FARM_H

#include <stdint.h>
#include <sys/types.h>

#include "tools/client.h"

typedef struct farm {
    char run_dir[128];
    pid_t supervisor;
} farm;

/* `cosyfarm up` on the tiny model with these workers; waits until all serve. fault: a specification armed in the first
 * incarnation of every process, or NULL. overrides: members of a JSON object that replace defaults
 * ("\"llm_rows\":4"), or NULL. Commands that name no run directory mean this farm from now on. */
void farm_start(farm *f, const char *fault, const char *overrides);

/* A fresh folder where no farm runs: commands that name no run directory have farms of their own from now on. */
const char *farm_of_their_own(void);

/* Another farm in the run directory of one that has ended, with its configuration. */
void farm_start_again(farm *f);

/* Drains and waits; the supervisor must exit with 0. */
void farm_end(farm *f);

/* The newest status; the caller releases it with wire_done. */
wire_msg farm_status(const farm *f);

/* pid of the first serving member of that role ("orchestrator" too); 0: none. */
pid_t farm_pid(const farm *f, const char *role);

/* pid of the child of this process that runs the program; 0: none. */
pid_t farm_child(pid_t supervisor, const char *program);

/* What a row's file must be. */
typedef struct farm_row {
    char id[32], path[160], sha256[65], status[16], text[512];
    int64_t samples;
    uint64_t attempts;
} farm_row;

/* Submits `count` rows of different lengths (texts, seeds and voices derive from the index) into folder, and waits for
 * all. after_rows > 0: when that many have ended, `hurt` is called once. */
void farm_speak(const farm *f, const char *folder, int count, farm_row *rows, int after_rows,
                void (*hurt)(const farm *f, void *ctx), void *ctx);

/* The command in the background, its output in out_path (NULL: the test's own); dies with the test. */
pid_t farm_command_start(const char *const *args, const char *out_path);
int farm_command_wait(pid_t pid); /* its exit code; 128 + number when a signal ended it */

/* The same; one that takes longer is killed, and the test fails and names it. */
int farm_command_wait_within(pid_t pid, int seconds, const char *what);

/* A line for the shell, for what a list of arguments cannot say; its exit code. The command is "$COSYFARM_BIN/cosyfarm"
 * there. */
int farm_shell(const char *line);

/* Runs the command with these arguments (NULL-terminated), its output in *ret_out (at most out_bytes); returns its
 * exit code. */
int farm_command(const char *const *args, char *ret_out, size_t out_bytes);

/* The same; its exit code and a part of its output have to be these. */
void farm_expect(int code, const char *part, const char *const *args);

#endif
