/*
 * config.h - the farm's configuration: defaults, one JSON file, the command line; handed to workers as validated JSON.
 */
#ifndef CF_BASE_CONFIG_H
#define CF_BASE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/config_keys.h"
#include "common/base/err.h"
#include "common/base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CONFIG_STR(key, max)                         char key[(max) + 1];
#define CONFIG_INT(key, max)                         int32_t key;
#define CONFIG_BOOL(key, max)                        bool key;
#define CONFIG_FIELD(type, key, def, min, max, help) CONFIG_##type(key, max)
typedef struct config {
    CONFIG_KEYS(CONFIG_FIELD)
} config;
#undef CONFIG_FIELD
#undef CONFIG_STR
#undef CONFIG_INT
#undef CONFIG_BOOL

void config_defaults(config *ret_cfg);

/* Overrides cfg with the members of an object; an unknown key, wrong type or value out of range is CF_ERR_INVALID
 * naming `where`, the key, what is expected and what was found. cfg is unchanged on failure. */
CF_MUST_CHECK cf_err config_apply(config *cfg, const json *obj, const char *where);

/* The same from a file of at most 64 KiB. */
CF_MUST_CHECK cf_err config_load(config *cfg, const char *path);

/* Every key with its value. NULL when memory is exhausted (json_print then says so). */
json *config_to_json(const config *cfg);

/* The list of devices of a stage's workers (device.h). `stage`: llm, flow or hift. */
const char *config_device_list(const config *cfg, const char *stage);

/* One line per key for help texts and documentation, written through emit. */
void config_describe(void (*emit)(void *ctx, const char *key, const char *type, const char *def, const char *range,
                                  const char *help),
                     void *ctx);

#ifdef __cplusplus
}
#endif
#endif
