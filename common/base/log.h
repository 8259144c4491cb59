/*
 * log.h - one line per event on stderr, key=value, fixed first keys: lvl ev unit.
 *
 * Levels: error (a person should look), warn (degraded, going on), info (life cycle, one line per utterance), debug.
 * Library folders never log above debug; the stage or the shell that gives up logs once.
 */
#ifndef CF_BASE_LOG_H
#define CF_BASE_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG } log_level;

/* unit names the process ("flow/0"); COSYFARM_LOG=error|warn|info|debug overrides level. Lines get a "<n>" priority
 * prefix when stderr is the journal. Call before threads start. */
void log_open(const char *unit, log_level level);

/* Lines go to this descriptor from now on; it must stay open. STDERR_FILENO is where they go at first. */
void log_to(int fd);

/* event is one word with dots ("job.done"); fmt continues the line with key=value pairs. Thread-safe. */
void log_line(log_level level, const char *event, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#define log_error(ev, ...) log_line(LOG_LEVEL_ERROR, ev, __VA_ARGS__)
#define log_warn(ev, ...)  log_line(LOG_LEVEL_WARN, ev, __VA_ARGS__)
#define log_info(ev, ...)  log_line(LOG_LEVEL_INFO, ev, __VA_ARGS__)
#define log_debug(ev, ...) log_line(LOG_LEVEL_DEBUG, ev, __VA_ARGS__)

#ifdef __cplusplus
}
#endif
#endif
