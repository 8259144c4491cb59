/*
 * err.h - error codes, the text of the last error, and the two macros that move errors.
 *
 * A function that can fail because of the world returns cf_err. The code says what kind of failure it was;
 * err_text() says what, where, expected and found, in one line for a person. The text belongs to the thread
 * and is set once, where the failure is seen; callers may prepend context with err_context(). Whatever is quoted, the
 * text is one line of valid UTF-8 without control characters.
 * What only our own code could break is asserted instead (check.h).
 */
#ifndef CF_BASE_ERR_H
#define CF_BASE_ERR_H

#ifdef __cplusplus
extern "C" {
#endif

#define CF_MUST_CHECK __attribute__((warn_unused_result))

typedef enum cf_err {
    CF_OK = 0,
    CF_ERR_NOMEM = -1,       /* host or device memory exhausted, or a planned budget exceeded */
    CF_ERR_INVALID = -2,     /* malformed bytes, arguments or configuration */
    CF_ERR_UNSUPPORTED = -3, /* well-formed, but not something we do */
    CF_ERR_STALE = -4,       /* names an old generation, epoch or boot */
    CF_ERR_SYS = -5,         /* a system call failed; the text holds errno's words */
    CF_ERR_DEVICE = -6,      /* sticky device error: the process must exit */
    CF_ERR_TIMEOUT = -7,     /* a deadline passed */
    CF_ERR_BUSY = -8,        /* full: wait or refuse */
    CF_ERR_CANCELLED = -9,   /* asked to stop */
    CF_ERR_CORRUPT = -10,    /* a file contradicts itself: truncated, overlapping, wrong checksum */
    CF_ERR_MISMATCH = -11,   /* two well-formed things do not fit: shapes, hashes, precisions */
    CF_ERR_NOTFOUND = -12,   /* a named file, tensor, voice or member does not exist */
    CF_ERR_LIMIT = -13,      /* a bound of limits.h or of the configuration; the text names it */
    CF_ERR_NUMERIC = -14,    /* NaN or infinity where a finite number must be */
    CF_ERR_GONE = -15,       /* the peer has closed or died */
    CF_ERR_STORAGE = -16     /* a file system is full, over quota or read-only: waiting may help */
} cf_err;

/* Short stable name, e.g. "mismatch"; used in logs, messages and the ledger. */
const char *err_name(cf_err code);

/* Code from its name; CF_ERR_INVALID for an unknown name. */
cf_err err_from_name(const char *name);

/* Sets this thread's text and returns code, so that `return err_set(CF_ERR_INVALID, "...")` reads well. */
cf_err err_set(cf_err code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* As err_set with CF_ERR_SYS (CF_ERR_STORAGE for ENOSPC, EDQUOT, EROFS), appending ": " and strerror(errno). */
cf_err err_sys(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Prepends "context: " to this thread's text and returns code unchanged. */
cf_err err_context(cf_err code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The text of the last failure on this thread; never NULL. */
const char *err_text(void);

/* Jump forward to the single exit `out:` with the local variable `err` set. */
#define TRY(expr)         \
    do {                  \
        err = (expr);     \
        if (err != CF_OK) \
            goto out;     \
    } while (0)

#define FAIL(code, ...)                   \
    do {                                  \
        err = err_set(code, __VA_ARGS__); \
        goto out;                         \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
