/*
 * fault.h - named fault points, compiled in always, off unless armed.
 *
 * COSYFARM_FAULT="flow.step#3=kill,mem.alloc#10=fail" arms points by name; "#n" is the hit on which it fires (default
 * 1).
 * Actions: fail (fault_hit returns true once), kill (SIGKILL to self), stop (SIGSTOP to self), exit (code 1), sleep
 * (this thread, a second).
 * Tests use them to die at an exact place instead of guessing with timers.
 */
#ifndef CF_BASE_FAULT_H
#define CF_BASE_FAULT_H

#include <stdbool.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads a specification (NULL or "" disarms all). CF_ERR_INVALID names the part that is wrong. Not thread-safe:
 * call before threads start. */
CF_MUST_CHECK cf_err fault_arm(const char *spec);

/* How often an armed point was passed since it was armed; 0 for others. Sweeps ask whether their failure happened. */
unsigned fault_hits(const char *point);

/* True when an armed "fail" fires here; does not return when an armed kill or exit fires. One load when disarmed. */
bool fault_hit(const char *point);

#ifdef __cplusplus
}
#endif
#endif
