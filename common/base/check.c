/*
 * check.c - the end of a process that broke its own rules. Fails: always, by abort().
 */
#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

void cf_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "panic: %s:%d: %s\n", file, line, what);
    fflush(stderr);
    abort();
}
