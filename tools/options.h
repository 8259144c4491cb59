/*
 * options.h - one line about a command line that is wrong, for verbs that read theirs with getopt_long. They set opterr
 * to 0 before.
 */
#ifndef CF_TOOLS_OPTIONS_H
#define CF_TOOLS_OPTIONS_H

#include "common/base/err.h"

/* What getopt_long has just returned '?' for: CF_ERR_INVALID. verb: "voice enroll", for the way to its help. */
cf_err options_refused(char *const *argv, const char *verb);

/* After getopt_long's end: CF_ERR_INVALID names the first operand of a verb that takes none. */
CF_MUST_CHECK cf_err options_no_operands(int argc, char *const *argv);

/* Neither option, environment nor configuration name a model directory: that is no usage, the command line may well do
 * elsewhere. */
#define OPTIONS_NO_MODEL \
    "no model directory: give -m DIR or set COSYFARM_MODEL; `cosyfarm model make DIR` writes a synthetic one"

/* For verbs without a farm: says so, and returns EXIT_CONFIG. */
int options_no_model(const char *verb);

#endif
