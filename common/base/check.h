/*
 * check.h - assertions that are always on. CF_ASSERT is for what only our own code could break; bytes that a peer,
 * a file or a user wrote are checked and answered with a cf_err instead.
 */
#ifndef CF_BASE_CHECK_H
#define CF_BASE_CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Prints file, line and the condition, then aborts. Never returns. */
void cf_panic(const char *file, int line, const char *what) __attribute__((noreturn));

#define CF_ASSERT(cond) ((cond) ? (void)0 : cf_panic(__FILE__, __LINE__, #cond))
#define CF_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#ifdef __cplusplus
}
#endif
#endif
