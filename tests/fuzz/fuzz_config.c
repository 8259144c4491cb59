/*
 * fuzz_config.c - configuration files of strangers, as they are read and as they are handed to workers. What is applied
 * is in its range and survives the way through WELCOME; what is refused changes nothing.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/config.h"
#include "common/base/mem.h"

#define CONFIG_DEPTH 2 /* as config_load reads a file */

/* Every key of the table within its bounds. */
#define IN_RANGE_STR(key, min, max)              CF_ASSERT(memchr(cfg->key, 0, (max) + 1) != NULL);
#define IN_RANGE_INT(key, min, max)              CF_ASSERT(cfg->key >= (min) && cfg->key <= (max));
#define IN_RANGE_BOOL(key, min, max)             CF_ASSERT(cfg->key == true || cfg->key == false);
#define IN_RANGE(type, key, def, min, max, help) IN_RANGE_##type(key, min, max)

static void check_ranges(const config *cfg)
{
    CONFIG_KEYS(IN_RANGE)
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    static config defaults, cfg, again;
    json *root = NULL;
    char *text;
    config_defaults(&defaults);
    config_defaults(&cfg);
    config_defaults(&again);
    if (json_parse((const char *)data, data_bytes, CONFIG_DEPTH, &root) != CF_OK)
        return 0;
    if (config_apply(&cfg, root, "fuzz") != CF_OK) {
        CF_ASSERT(memcmp(&cfg, &defaults, sizeof cfg) == 0);
        json_close(root);
        return 0;
    }
    json_close(root);
    check_ranges(&cfg);
    json *printed = config_to_json(&cfg);
    CF_ASSERT(json_print(printed, false, &text) == CF_OK);
    json_close(printed);
    CF_ASSERT(json_parse(text, strlen(text), CONFIG_DEPTH, &root) == CF_OK);
    CF_ASSERT(config_apply(&again, root, "again") == CF_OK);
    CF_ASSERT(memcmp(&again, &cfg, sizeof cfg) == 0);
    json_close(root);
    mem_free(text);
    return 0;
}
