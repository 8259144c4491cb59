/*
 * device.h - names of devices, "cpu" and "cuda:N", and lists of them that say where a stage's workers run.
 */
#ifndef CF_BASE_DEVICE_H
#define CF_BASE_DEVICE_H

#include <stddef.h>

#include "common/base/err.h"
#include "common/base/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DEVICE_CPU        (-1)
#define DEVICE_TEXT_BYTES 16

/* "cpu" gives DEVICE_CPU, "cuda:N" gives N. CF_ERR_UNSUPPORTED for anything else. */
CF_MUST_CHECK cf_err device_parse(const char *text, int *ret_device);

/* Of a list "cuda:0,cuda:0,cuda:1": the device of worker `instance`; workers beyond the list begin at its front again.
 * CF_ERR_UNSUPPORTED names an item that is no device. */
CF_MUST_CHECK cf_err device_of_instance(const char *list, int instance, char ret_text[DEVICE_TEXT_BYTES],
                                        int *ret_device);

/* Items of the list, at least 1. */
int device_list_count(const char *list);

#ifdef __cplusplus
}
#endif
#endif
