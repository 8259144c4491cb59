/*
 * bench_report.h - a measurement of `cosyfarm bench` on stdout: a line for people, or a JSON object a line.
 */
#ifndef CF_TOOLS_BENCH_REPORT_H
#define CF_TOOLS_BENCH_REPORT_H

#include <stdbool.h>

#include "common/base/json.h"

/* What is measured, with the key that tells JSON readers. */
json *bench_object(const char *what);

/* Prints one of the two and takes obj. */
void bench_emit(bool as_json, json *obj, const char *line);

#endif
