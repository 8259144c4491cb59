/*
 * log.c - the process's log sink: one write(2) per line, so lines of several processes do not mix.
 * Fails: never; a line longer than LOG_LINE_BYTES is cut.
 */
#define _GNU_SOURCE
#include "common/base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"

#define LOG_LINE_BYTES 2048
#define LOG_UNIT_BYTES 64

static char log_unit[LOG_UNIT_BYTES] = "-";
static log_level log_max = LOG_LEVEL_INFO;
static bool log_to_journal;
static int log_fd = STDERR_FILENO;

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const int level_priority[] = {3, 4, 6, 7}; /* syslog numbers */

void log_open(const char *unit, log_level level)
{
    snprintf(log_unit, sizeof log_unit, "%s", unit);
    log_max = level;
    log_to_journal = getenv("JOURNAL_STREAM") != NULL;
    const char *env = getenv("COSYFARM_LOG");
    for (int i = 0; env && i < 4; i++)
        if (strcmp(env, level_names[i]) == 0)
            log_max = (log_level)i;
}

void log_to(int fd)
{
    log_fd = fd;
    log_to_journal = log_to_journal && fd == STDERR_FILENO;
}

void log_line(log_level level, const char *event, const char *fmt, ...)
{
    if (level > log_max)
        return;
    char line[LOG_LINE_BYTES];
    int n = 0;
    if (log_to_journal)
        n = snprintf(line, sizeof line, "<%d>", level_priority[level]);
    n += snprintf(line + n, sizeof line - (size_t)n, "t=%.6f lvl=%s ev=%s unit=%s ", (double)clock_now_us() / 1e6,
                  level_names[level], event, log_unit);
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    n = m < 0 ? n : n + m;
    if (n > (int)sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n++] = '\n';
    const ssize_t written = write(log_fd, line, (size_t)n);
    (void)written; /* there is nowhere left to report to */
}
