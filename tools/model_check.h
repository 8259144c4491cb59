/*
 * model_check.h - everything that can be wrong with a model directory, found without running it.
 */
#ifndef CF_TOOLS_MODEL_CHECK_H
#define CF_TOOLS_MODEL_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "common/base/err.h"
#include "common/model/model_dir.h"

/* Writes one line for each part that is fine to `report` and one for each problem to `complaints`; *ret_problems counts
 * the latter. verify also reads all data: checksums, finite values, file hashes. Fails only for want of memory. */
CF_MUST_CHECK cf_err model_check(const char *path, bool verify, FILE *report, FILE *complaints, size_t *ret_problems);

#endif
