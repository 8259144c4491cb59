/*
 * wire.c - the message table and its checks. Pure but for memory; any process.
 *
 * Fails: CF_ERR_INVALID for bytes that are not a permitted message, CF_ERR_LIMIT for too many of them, CF_ERR_NOMEM.
 * Asserts that what we send ourselves passes the same table.
 */
#include "common/transport/wire.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/device.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

typedef enum field_type { FIELD_U64, FIELD_F64, FIELD_BOOL, FIELD_STR, FIELD_I32S, FIELD_JSON } field_type;

typedef struct wire_field {
    const char *key;
    field_type type;
    bool optional;
    double min, max; /* numbers: range; strings: max bytes; arrays: max count; i32 items lie in [0, 2^24) */
} wire_field;

#define FIELDS_MAX 28              /* below the 32 bits of check_fields' set */
#define ITEM_MAX   ((1 << 24) - 1) /* token ids of any vocabulary */
#define NUM(key, max)                 \
    {                                 \
        key, FIELD_U64, false, 0, max \
    }
#define REAL(key, min, max)             \
    {                                   \
        key, FIELD_F64, false, min, max \
    }
#define TEXT(key, bytes)                \
    {                                   \
        key, FIELD_STR, false, 0, bytes \
    }
#define FLAG(key)                    \
    {                                \
        key, FIELD_BOOL, false, 0, 0 \
    }
#define IDS(key, count)                  \
    {                                    \
        key, FIELD_I32S, false, 0, count \
    }
#define TREE(key)                    \
    {                                \
        key, FIELD_JSON, false, 0, 0 \
    }
#define OPT(...) WIRE_OPTIONAL(__VA_ARGS__)
#define WIRE_OPTIONAL(key, type, min, max) \
    {                                      \
        key, type, true, min, max          \
    }

#define U64_ANY           18446744073709551615.0
#define PATH_MAX_BYTES    4095
#define ERROR_BYTES       1023
#define HANDLE_TEXT_BYTES 128

static const wire_field hello_fields[] = {TEXT("role", 15), NUM("instance", INSTANCES_MAX - 1), NUM("pid", 1e9),
                                          TEXT("build", 63)};
static const wire_field welcome_fields[] = {NUM("boot", U64_ANY), NUM("gen", U64_ANY), TREE("config")};
static const wire_field dismiss_fields[] = {TEXT("text", ERROR_BYTES)};
static const wire_field refuse_fields[] = {TEXT("code", 31), TEXT("text", ERROR_BYTES)};
static const wire_field join_fields[] = {
    NUM("gen", U64_ANY),        TEXT("model_file", 255),
    TEXT("model_sha256", 64),   TEXT("backend", 127),
    NUM("rows_max", 4096),      NUM("frames_max", 1e7),
    NUM("weights_bytes", 1e15), NUM("kept_bytes", 1e15),
    NUM("scratch_bytes", 1e15), NUM("speech_codes", SPEECH_CODES),
};
static const wire_field alive_fields[] = {NUM("gen", U64_ANY)};
static const wire_field admit_fields[] = {NUM("gen", U64_ANY), TEXT("endpoint", 255), NUM("outbox", 1e9),
                                          NUM("bytes", 1e12), OPT("handle", FIELD_STR, 0, HANDLE_TEXT_BYTES)};
static const wire_field grant_fields[] = {NUM("outbox", 1e9), NUM("bytes", 1e12),
                                          OPT("handle", FIELD_STR, 0, HANDLE_TEXT_BYTES)};
static const wire_field opened_fields[] = {NUM("gen", U64_ANY), NUM("outbox", 1e9), OPT("code", FIELD_STR, 0, 31),
                                           OPT("text", FIELD_STR, 0, ERROR_BYTES)};
static const wire_field revoke_fields[] = {NUM("outbox", 1e9)};
static const wire_field alloc_fields[] = {NUM("outbox", 1e9), NUM("bytes", 1e12),
                                          OPT("device", FIELD_U64, 0, DEVICES_MAX - 1),
                                          OPT("readers", FIELD_I32S, 0, DEVICES_MAX)};
static const wire_field memory_fields[] = {NUM("outbox", 1e9), NUM("bytes", 1e12), TEXT("error", ERROR_BYTES),
                                           OPT("handle", FIELD_STR, 0, HANDLE_TEXT_BYTES),
                                           OPT("fallback", FIELD_STR, 0, ERROR_BYTES)};
static const wire_field release_fields[] = {NUM("outbox", 1e9)};
static const wire_field staff_fields[] = {TEXT("stage", 15), NUM("count", INSTANCES_MAX)};
static const wire_field served_fields[] = {TEXT("stage", 15), NUM("instance", INSTANCES_MAX - 1), NUM("pid", 1e9)};
static const wire_field seen_fields[] = {NUM("pid", 1e9), FLAG("here")};
static const wire_field here_fields[] = {NUM("gen", U64_ANY), NUM("boot", U64_ANY)};
static const wire_field beat_fields[] = {
    NUM("gen", U64_ANY),
    NUM("jobs_done", 1e15),
    NUM("steps", 1e15),
    NUM("held", 1e6),
    NUM("oldest_us", U64_ANY),
    NUM("busy_us", U64_ANY),
    NUM("rss_bytes", 1e15),
    TREE("handover_us"),
    OPT("steps_recorded", FIELD_U64, 0, 1e15),
    OPT("steps_replayed", FIELD_U64, 0, 1e15),
    OPT("steps_eager", FIELD_U64, 0, 1e15),
};
static const wire_field ready_fields[] = {
    NUM("gen", U64_ANY),     NUM("job", U64_ANY),     NUM("frames", FRAMES_MAX),
    NUM("samples", 1e9),     FLAG("stopped"),         FLAG("capped"),
    NUM("compute_us", 1e15), NUM("sent_us", U64_ANY), OPT("tokens", FIELD_I32S, 0, TOKENS_MAX),
};
static const wire_field leave_fields[] = {NUM("gen", U64_ANY)};
static const wire_field failed_fields[] = {NUM("gen", U64_ANY), NUM("job", U64_ANY), TEXT("code", 31),
                                           TEXT("text", ERROR_BYTES)};
static const wire_field work_fields[] = {
    NUM("gen", U64_ANY),
    NUM("job", U64_ANY),
    TEXT("utterance", NAME_BYTES_MAX),
    NUM("segment", SEGMENTS_MAX),
    NUM("sent_us", U64_ANY),
    NUM("caused_us", U64_ANY), /* when the READY that made this job possible was sent; 0: none */
    OPT("voice", FIELD_STR, 0, NAME_BYTES_MAX),
    OPT("voice_sha256", FIELD_STR, 0, 64),
    OPT("text", FIELD_I32S, 0, SEGMENT_TEXT_TOKENS_MAX),
    OPT("prompt_text", FIELD_I32S, 0, PROMPT_TEXT_TOKENS_MAX),
    OPT("prompt_speech", FIELD_BOOL, 0, 0),
    OPT("end_of_prompt", FIELD_U64, 0, ITEM_MAX),
    OPT("seed", FIELD_U64, 0, U64_ANY),
    OPT("tokens", FIELD_I32S, 0, TOKENS_MAX),
    OPT("speed", FIELD_F64, 0.5, 2),
    OPT("frames", FIELD_U64, 0, FRAMES_MAX),
    OPT("in_outbox", FIELD_U64, 0, 1e9),
    OPT("in_off", FIELD_U64, 0, 1e12),
    OPT("in_bytes", FIELD_U64, 0, 1e12),
    OPT("out_outbox", FIELD_U64, 0, 1e9),
    OPT("out_off", FIELD_U64, 0, 1e12),
    OPT("out_bytes", FIELD_U64, 0, 1e12),
};
static const wire_field cancel_fields[] = {NUM("gen", U64_ANY), NUM("job", U64_ANY)};
static const wire_field drain_fields[] = {NUM("gen", U64_ANY), FLAG("again")};
static const wire_field submit_fields[] = {
    TEXT("id", NAME_BYTES_MAX),
    TEXT("text", TEXT_BYTES_MAX), /* empty with source_wav */
    OPT("voice", FIELD_STR, 0, NAME_BYTES_MAX),
    OPT("prompt_wav", FIELD_STR, 0, PATH_MAX_BYTES),
    OPT("prompt_text", FIELD_STR, 0, VOICE_PROMPT_BYTES_MAX),
    OPT("source_wav", FIELD_STR, 0, PATH_MAX_BYTES),
    TEXT("mode", 31),
    OPT("instruct", FIELD_STR, 0, TEXT_BYTES_MAX),
    NUM("seed", U64_ANY),
    REAL("speed", 0.5, 2),
    FLAG("raw"),
    TEXT("path", PATH_MAX_BYTES),
    TEXT("format", 15),
    NUM("priority", 9),
    NUM("deadline_ms", 1e11),         /* from acceptance; 0: none */
    OPT("patient", FIELD_BOOL, 0, 0), /* absent: true, storage that refuses the file is waited for */
};
static const wire_field accepted_fields[] = {TEXT("id", NAME_BYTES_MAX), NUM("boot", U64_ANY),
                                             NUM("segments", SEGMENTS_MAX), FLAG("prefix_added")};
static const wire_field done_fields[] = {
    TEXT("id", NAME_BYTES_MAX),
    TEXT("status", 15),
    TEXT("file", PATH_MAX_BYTES),
    NUM("bytes", 1e12), /* of the file */
    NUM("samples", 1e12),
    REAL("seconds", 0, 1e9),
    TEXT("sha256", 64),
    NUM("seed", U64_ANY),
    NUM("attempts", 1e6),
    NUM("segments", SEGMENTS_MAX),
    NUM("tokens", 1e9),
    TREE("flags"),
    TREE("ms"),
    OPT("error", FIELD_JSON, 0, 0),
};
static const wire_field query_fields[] = {NUM("nonce", U64_ANY)};
static const wire_field status_fields[] = {
    NUM("nonce", U64_ANY), NUM("boot", U64_ANY), TREE("members"), TREE("queues"), TREE("totals"), TREE("config"),
};
static const wire_field steer_fields[] = {
    TEXT("verb", 15), TEXT("stage", 15), OPT("instance", FIELD_U64, 0, INSTANCES_MAX - 1), /* absent: all */
    OPT("count", FIELD_U64, 0, INSTANCES_MAX),                                             /* scale */
};
static const wire_field steered_fields[] = {TEXT("code", 31), TEXT("text", ERROR_BYTES), NUM("members", MEMBERS_MAX)};
static const wire_field shutdown_fields[] = {FLAG("now")};
static const wire_field goodbye_fields[] = {NUM("boot", U64_ANY), OPT("left", FIELD_U64, 0, ROWS_OPEN_MAX)};

typedef struct wire_rule {
    const char *name;
    unsigned route;
    const wire_field *fields;
    size_t count;
} wire_rule;

static const wire_rule rules[WIRE_KIND_COUNT] = {
#define WIRE_RULE(name, route) {#name, route, name##_fields, CF_COUNT(name##_fields)},
    WIRE_KINDS(WIRE_RULE)
#undef WIRE_RULE
};

const char *wire_kind_name(wire_kind kind)
{
    CF_ASSERT(kind < WIRE_KIND_COUNT);
    return rules[kind].name;
}

static cf_err check_value(const json *v, const wire_field *f)
{
    uint64_t u;
    double d;
    bool b;
    const char *s;
    switch (f->type) {
    case FIELD_U64:
        return json_as_u64(v, f->key, 0, f->max >= U64_ANY ? UINT64_MAX : (uint64_t)f->max, &u);
    case FIELD_F64:
        return json_as_f64(v, f->key, f->min, f->max, &d);
    case FIELD_BOOL:
        return json_as_bool(v, f->key, &b);
    case FIELD_STR:
        return json_as_str(v, f->key, (size_t)f->max, &s);
    case FIELD_I32S:
        return json_as_i32s(v, f->key, 0, ITEM_MAX, (size_t)f->max);
    case FIELD_JSON:
        return json_is_array(v) || json_is_object(v) ? CF_OK : err_set(CF_ERR_INVALID, "%s: expected a tree", f->key);
    }
    return err_set(CF_ERR_INVALID, "%s: no such type", f->key);
}

/* Which field of the rule the member is: messages come in the table's order, so the next one is looked at first. */
static size_t find_field(const wire_rule *rule, const char *key, size_t hint)
{
    for (size_t n = 0; n < rule->count; n++) {
        const size_t i = hint + n < rule->count ? hint + n : hint + n - rule->count;
        if (strcmp(rule->fields[i].key, key) == 0)
            return i;
    }
    return rule->count;
}

/* Names the key and the closest one of the rule. */
static cf_err refuse_key(const json *root, const wire_rule *rule)
{
    const char *keys[FIELDS_MAX + 3] = {"v", "kind"};
    for (size_t i = 0; i < rule->count; i++)
        keys[i + 2] = rule->fields[i].key;
    const cf_err err = json_only_keys(root, rule->name, keys);
    CF_ASSERT(err != CF_OK);
    return err;
}

static cf_err check_fields(const json *root, const wire_rule *rule)
{
    uint32_t seen = 0;
    size_t next = 0;
    CF_ASSERT(rule->count <= FIELDS_MAX);
    for (const json *v = json_first(root); v; v = json_next(v)) {
        const char *key = json_key(v);
        const size_t i = find_field(rule, key, next);
        if (i == rule->count) {
            if (strcmp(key, "v") != 0 && strcmp(key, "kind") != 0)
                return refuse_key(root, rule);
            continue;
        }
        const cf_err err = check_value(v, &rule->fields[i]);
        if (err != CF_OK)
            return err_context(err, "%s", rule->name);
        seen |= 1u << i;
        next = i + 1;
    }
    for (size_t i = 0; i < rule->count; i++)
        if (!(seen & 1u << i) && !rule->fields[i].optional)
            return err_set(CF_ERR_INVALID, "%s: field \"%s\" is missing", rule->name, rule->fields[i].key);
    return CF_OK;
}

static cf_err find_rule(const json *root, wire_kind *ret_kind)
{
    cf_err err;
    uint64_t version;
    const char *name;
    if (!json_is_object(root))
        FAIL(CF_ERR_INVALID, "message: expected an object");
    TRY(json_get_u64(root, "v", 0, 1000000, &version));
    if (version != WIRE_VERSION)
        FAIL(CF_ERR_MISMATCH, "message: protocol version %d expected, found %llu", WIRE_VERSION,
             (unsigned long long)version);
    TRY(json_get_str(root, "kind", 31, &name));
    for (int k = 0; k < WIRE_KIND_COUNT; k++)
        if (strcmp(rules[k].name, name) == 0) {
            *ret_kind = (wire_kind)k;
            return CF_OK;
        }
    FAIL(CF_ERR_INVALID, "message: kind \"%s\" is not known", name);
out:
    return err;
}

cf_err wire_parse(const char *text, size_t text_bytes, unsigned routes, wire_msg *ret_msg)
{
    cf_err err;
    json *root = NULL;
    wire_kind kind;
    if (text_bytes > MESSAGE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "message: %zu bytes, at most %d", text_bytes, MESSAGE_BYTES_MAX);
    TRY(json_parse(text, text_bytes, MESSAGE_DEPTH_MAX, &root));
    TRY(find_rule(root, &kind));
    if (!(rules[kind].route & routes))
        FAIL(CF_ERR_INVALID, "message: kind \"%s\" may not come this way", rules[kind].name);
    TRY(check_fields(root, &rules[kind]));
    *ret_msg = (wire_msg){kind, root};
    root = NULL;
out:
    json_close(root);
    return err;
}

void wire_done(wire_msg *msg)
{
    json_close(msg->root);
    *msg = (wire_msg){0};
}

static const json *field_of(const wire_msg *msg, const char *key)
{
    const json *v = json_find(msg->root, key);
    CF_ASSERT(v != NULL); /* wire_parse saw it: asking for another key is our mistake */
    return v;
}

uint64_t wire_u64(const wire_msg *msg, const char *key)
{
    uint64_t value = 0;
    CF_ASSERT(json_as_u64(field_of(msg, key), key, 0, UINT64_MAX, &value) == CF_OK);
    return value;
}

double wire_f64(const wire_msg *msg, const char *key)
{
    double value = 0;
    CF_ASSERT(json_as_f64(field_of(msg, key), key, -1e300, 1e300, &value) == CF_OK);
    return value;
}

bool wire_bool(const wire_msg *msg, const char *key)
{
    bool value = false;
    CF_ASSERT(json_as_bool(field_of(msg, key), key, &value) == CF_OK);
    return value;
}

const char *wire_str(const wire_msg *msg, const char *key)
{
    const char *value = NULL;
    CF_ASSERT(json_as_str(field_of(msg, key), key, MESSAGE_BYTES_MAX, &value) == CF_OK);
    return value;
}

bool wire_has(const wire_msg *msg, const char *key)
{
    return json_find(msg->root, key) != NULL;
}

cf_err wire_i32s(const wire_msg *msg, const char *key, int32_t **ret_items, size_t *ret_count)
{
    return json_get_i32s(msg->root, key, 0, ITEM_MAX, MESSAGE_BYTES_MAX, ret_items, ret_count);
}

const json *wire_json(const wire_msg *msg, const char *key)
{
    return field_of(msg, key);
}

json *wire_new(wire_kind kind)
{
    CF_ASSERT(kind < WIRE_KIND_COUNT);
    json *root = json_object();
    json_put_u64(root, "v", WIRE_VERSION);
    json_put_str(root, "kind", rules[kind].name);
    return root;
}

cf_err wire_print(json *root, char **ret_text, size_t *ret_bytes)
{
    cf_err err;
    char *text = NULL;
    wire_kind kind;
    TRY(json_print(root, false, &text));
    CF_ASSERT(find_rule(root, &kind) == CF_OK);
    TRY(check_fields(root, &rules[kind]));
    const size_t bytes = strlen(text);
    if (bytes > MESSAGE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "message \"%s\": %zu bytes, at most %d", rules[kind].name, bytes, MESSAGE_BYTES_MAX);
    *ret_text = text;
    *ret_bytes = bytes;
    text = NULL;
out:
    mem_free(text);
    json_close(root);
    return err;
}
