/*
 * err.c - error names and the thread's error text. Any process, any thread. Owns one thread-local line.
 *
 * Texts quote file names and the bytes of strangers, and may be cut. They end in logs, messages and terminals, so what
 * is not valid UTF-8 and every control character becomes '?' here, once, for all of them.
 */
#include "common/base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/utf8.h"

#define ERR_TEXT_BYTES 1024

static _Thread_local char err_line[ERR_TEXT_BYTES];

static const char *const err_names[] = {
    "ok",        "nomem",   "invalid",  "unsupported", "stale", "sys",     "device", "timeout", "busy",
    "cancelled", "corrupt", "mismatch", "notfound",    "limit", "numeric", "gone",   "storage",
};

#define ERR_COUNT (int)(sizeof err_names / sizeof err_names[0])

const char *err_name(cf_err code)
{
    const int idx = -(int)code;
    return idx >= 0 && idx < ERR_COUNT ? err_names[idx] : "unknown";
}

cf_err err_from_name(const char *name)
{
    for (int i = 0; i < ERR_COUNT; i++)
        if (strcmp(err_names[i], name) == 0)
            return (cf_err)-i;
    return CF_ERR_INVALID;
}

/* Makes err_line one line of valid UTF-8. */
static void settle(void)
{
    size_t left = strlen(err_line);
    for (char *p = err_line; left > 0;) {
        uint32_t code_point = 0;
        size_t bytes = utf8_decode(p, left, &code_point);
        if (bytes == 0 || code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0)) {
            memset(p, '?', bytes ? bytes : 1);
            bytes = bytes ? bytes : 1;
        }
        p += bytes;
        left -= bytes;
    }
}

cf_err err_set(cf_err code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err_line, sizeof err_line, fmt, ap);
    va_end(ap);
    settle();
    return code;
}

cf_err err_sys(const char *fmt, ...)
{
    const int saved = errno;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err_line, sizeof err_line, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof err_line)
        snprintf(err_line + n, sizeof err_line - (size_t)n, ": %s", strerror(saved));
    settle();
    errno = saved;
    return saved == ENOSPC || saved == EDQUOT || saved == EROFS ? CF_ERR_STORAGE : CF_ERR_SYS;
}

cf_err err_context(cf_err code, const char *fmt, ...)
{
    char old[ERR_TEXT_BYTES];
    memcpy(old, err_line, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err_line, sizeof err_line, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof err_line)
        snprintf(err_line + n, sizeof err_line - (size_t)n, ": %s", old);
    settle();
    return code;
}

const char *err_text(void)
{
    return err_line;
}
