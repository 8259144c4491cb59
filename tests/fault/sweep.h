/*
 * sweep.h - fails the first, the second, the third ... passage of a fault point, one a run, until a run passes without
 * meeting the failure. Every run that meets it must end in the right code with a text, leave no descriptor open, and do
 * the same as ever when it is run again; a failure that a run does not report is a failure of the test.
 */
#ifndef CF_TESTS_FAULT_SWEEP_H
#define CF_TESTS_FAULT_SWEEP_H

#include "common/base/err.h"

typedef struct scenario {
    const char *name;
    cf_err (*run)(void); /* from the start to the end; releases whatever it opened */
    /* After a run that met the failure: what must be true of the world. NULL: nothing more. */
    void (*check)(const char *point, unsigned nth);
} scenario;

/* Returns how many runs met the failure; `want` is their code. stride > 1 skips passages where there are many. */
unsigned sweep(const scenario *s, const char *point, cf_err want, unsigned stride);

#endif
