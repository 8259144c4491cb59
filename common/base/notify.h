/*
 * notify.h - what a program tells the service manager that started it: ready, alive, what it does, stopping. Where no
 * manager listens (NOTIFY_SOCKET is absent) every call does nothing.
 */
#ifndef CF_BASE_NOTIFY_H
#define CF_BASE_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct notify {
    bool is_on;           /* somebody listens */
    bool ready, stopping; /* told already */
    uint64_t watchdog_us; /* the manager ends us after this long without a sign of life; 0: it does not */
    uint64_t next_us;     /* when the next sign of life is due */
} notify;

/* Looks who listens. */
void notify_open(notify *ret_note);

/* Up and serving, told once; text is a line for people. Again: the line alone. */
void notify_ready(notify *n, const char *text);

/* A line for people: what it is doing. */
void notify_status(const notify *n, const char *text);

/* To be called from the loop that must not hang, as often as it likes: a sign of life when one is due. Before
 * notify_ready it asks for more time to start, so that a model may load as long as it takes. */
void notify_alive(notify *n, uint64_t now_us);

/* About to end in order; told once. */
void notify_stopping(notify *n);

/* How long the loop may wait, for one that has no clock of its own; -1: for ever. */
int notify_wait_ms(const notify *n);

#ifdef __cplusplus
}
#endif
#endif
