/*
 * batch_case.h - a small manifest on the tiny model, what an undisturbed `cosyfarm batch` makes of it, and comparisons
 * with that. What counts is the ledger: id, status, sha256, samples, seed and tokens of every row.
 */
#ifndef CF_TESTS_HARNESS_BATCH_CASE_H
#define CF_TESTS_HARNESS_BATCH_CASE_H

#include <stdbool.h>
#include <sys/types.h>

#include "tests/harness/tiny_model.h"

#define BATCH_ROWS       6
#define BATCH_LINE_BYTES 512

typedef struct batch_outcome {
    char lines[BATCH_ROWS][BATCH_LINE_BYTES]; /* sorted by id: what must not differ between runs */
    int count;
} batch_outcome;

/* Of a group: writes manifest and configuration, runs the undisturbed batch. */
int batch_cases_begin(void **state);

const char *batch_manifest(void);
const char *batch_config(void); /* few rows at once, so that a batch can be met half-way */

/* The command's arguments; more may follow, NULL ends them. */
#define BATCH_WITH(dir, config_file) \
    "cosyfarm", "batch", "-m", tiny_model_dir(), "-v", "echo", "--config", config_file, batch_manifest(), "-o", dir
#define BATCH(dir) BATCH_WITH(dir, batch_config())

/* Adds one ledger; each line must be whole. */
void batch_read_ledger(const char *dir, const char *name, batch_outcome *o);

void batch_expect_same(const batch_outcome *o);
void batch_expect_undisturbed(const char *dir); /* its ledger.jsonl has every row once, as the undisturbed run */

/* Waits until the ledger in dir has so many lines. */
void batch_wait_lines(const char *dir, int wanted);

/* Waits until the file in dir has this text. */
void batch_wait_text(const char *dir, const char *name, const char *part);
bool batch_has_text(const char *dir, const char *name, const char *part);

/* Starts `cosyfarm batch` for dir; what it says is in dir.said. */
pid_t batch_start(const char *dir, const char *config_file);

/* Runs the batch; its exit code and a part of its output have to be these. */
void batch_expect(int code, const char *part, const char *dir);

void batch_write_text(const char *path, const char *text);

#endif
