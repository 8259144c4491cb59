/*
 * config.c - reads configuration through the table of config_keys.h. Any process. Owns nothing.
 * Fails: CF_ERR_INVALID naming file, key, expected and found; CF_ERR_NOTFOUND, CF_ERR_LIMIT for the file.
 */
#include "common/base/config.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/mem.h"

#define CONFIG_FILE_BYTES_MAX 65536
#define CONFIG_DEPTH_MAX      2

typedef enum key_type { KEY_STR, KEY_INT, KEY_BOOL } key_type;

typedef struct key_rule {
    const char *key, *def_text, *help;
    key_type type;
    size_t off_bytes;
    int32_t def, min, max;
} key_rule;

/* The default of a STR is text, of the others a number: both columns are filled from the same argument. */
#define DEF_NUM_STR(def)   0
#define DEF_NUM_INT(def)   (def)
#define DEF_NUM_BOOL(def)  (def)
#define DEF_TEXT_STR(def)  (def)
#define DEF_TEXT_INT(def)  #def
#define DEF_TEXT_BOOL(def) ((def) ? "true" : "false")
#define KEY_RULE(type, key, def, min, max, help) \
    {#key, DEF_TEXT_##type(def), help, KEY_##type, offsetof(config, key), DEF_NUM_##type(def), min, max},

static const key_rule key_rules[] = {CONFIG_KEYS(KEY_RULE)};

static void *field(config *cfg, const key_rule *r)
{
    return (char *)cfg + r->off_bytes;
}

/* The field has room for max bytes and the NUL: the table says so. */
static void set_str(config *cfg, const key_rule *r, const char *text)
{
    snprintf(field(cfg, r), (size_t)r->max + 1, "%s", text);
}

void config_defaults(config *ret_cfg)
{
    memset(ret_cfg, 0, sizeof *ret_cfg);
    for (size_t i = 0; i < CF_COUNT(key_rules); i++) {
        const key_rule *r = &key_rules[i];
        if (r->type == KEY_STR)
            set_str(ret_cfg, r, r->def_text);
        else if (r->type == KEY_INT)
            *(int32_t *)field(ret_cfg, r) = r->def;
        else
            *(bool *)field(ret_cfg, r) = r->def != 0;
    }
}

static cf_err apply_one(config *cfg, const key_rule *r, const json *v)
{
    cf_err err;
    if (r->type == KEY_STR) {
        const char *text;
        TRY(json_as_str(v, r->key, (size_t)r->max, &text));
        set_str(cfg, r, text);
    } else if (r->type == KEY_INT) {
        uint64_t value;
        TRY(json_as_u64(v, r->key, (uint64_t)r->min, (uint64_t)r->max, &value));
        *(int32_t *)field(cfg, r) = (int32_t)value;
    } else {
        TRY(json_as_bool(v, r->key, field(cfg, r)));
    }
out:
    return err;
}

cf_err config_apply(config *cfg, const json *obj, const char *where)
{
    cf_err err;
    config next = *cfg;
    const char *keys[CF_COUNT(key_rules) + 1] = {NULL};
    for (size_t i = 0; i < CF_COUNT(key_rules); i++)
        keys[i] = key_rules[i].key;
    TRY(json_only_keys(obj, where, keys));
    for (size_t i = 0; i < CF_COUNT(key_rules); i++) {
        const json *v = json_find(obj, key_rules[i].key);
        if (v)
            TRY(apply_one(&next, &key_rules[i], v));
    }
    *cfg = next;
    return CF_OK;
out:
    return strstr(err_text(), where) ? err : err_context(err, "%s", where);
}

cf_err config_load(config *cfg, const char *path)
{
    cf_err err;
    char *text = NULL;
    size_t bytes;
    json *root = NULL;
    TRY(io_read_file(path, CONFIG_FILE_BYTES_MAX, &text, &bytes));
    err = json_parse(text, bytes, CONFIG_DEPTH_MAX, &root);
    if (err != CF_OK) {
        err = err_context(err, "%s", path);
        goto out;
    }
    TRY(config_apply(cfg, root, path));
out:
    json_close(root);
    mem_free(text);
    return err;
}

json *config_to_json(const config *cfg)
{
    json *obj = json_object();
    for (size_t i = 0; i < CF_COUNT(key_rules); i++) {
        const key_rule *r = &key_rules[i];
        const void *p = (const char *)cfg + r->off_bytes;
        if (r->type == KEY_STR)
            json_put_str(obj, r->key, p);
        else if (r->type == KEY_INT)
            json_put_u64(obj, r->key, (uint64_t) * (const int32_t *)p);
        else
            json_put_bool(obj, r->key, *(const bool *)p);
    }
    return obj;
}

const char *config_device_list(const config *cfg, const char *stage)
{
    const char *own = strcmp(stage, "llm") == 0    ? cfg->llm_device
                      : strcmp(stage, "flow") == 0 ? cfg->flow_device
                                                   : cfg->hift_device;
    return own[0] ? own : cfg->device;
}

void config_describe(void (*emit)(void *ctx, const char *key, const char *type, const char *def, const char *range,
                                  const char *help),
                     void *ctx)
{
    static const char *const types[] = {"string", "integer", "true or false"};
    for (size_t i = 0; i < CF_COUNT(key_rules); i++) {
        const key_rule *r = &key_rules[i];
        char range[64] = "";
        if (r->type == KEY_INT)
            snprintf(range, sizeof range, "%d..%d", r->min, r->max);
        else if (r->type == KEY_STR)
            snprintf(range, sizeof range, "at most %d bytes", r->max);
        emit(ctx, r->key, types[r->type], r->def_text, range, r->help);
    }
}
