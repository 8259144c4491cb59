/*
 * test_wire.c - every kind of message against a declaration of its own: each required field missing, of another type,
 * out of its range, and the whole message on every route that is not its own is refused by name; what is built comes
 * back as it was. The table below repeats wire.c's on purpose: a change of the protocol has to be made twice.
 */
#include "tests/harness/test.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/transport/wire.h"

typedef enum type { U64, F64, BOOL, STR, IDS, TREE } type;

typedef struct field {
    wire_kind kind;
    const char *key;
    type type;
    bool optional;
    double max; /* U64, F64: largest value; STR: bytes; IDS: count */
} field;

#define ANY_U64 18446744073709551615.0
#define ID_MAX  16777215

/* R: required, O: optional. */
#define R(kind, key, type, max)            \
    {                                      \
        WIRE_##kind, key, type, false, max \
    }
#define O(kind, key, type, max)           \
    {                                     \
        WIRE_##kind, key, type, true, max \
    }
static const field FIELDS[] = {
    R(hello, "role", STR, 15),
    R(hello, "instance", U64, 999),
    R(hello, "pid", U64, 1e9),
    R(hello, "build", STR, 63),
    R(welcome, "boot", U64, ANY_U64),
    R(welcome, "gen", U64, ANY_U64),
    R(welcome, "config", TREE, 0),
    R(refuse, "code", STR, 31),
    R(refuse, "text", STR, 1023),
    R(dismiss, "text", STR, 1023),
    R(join, "gen", U64, ANY_U64),
    R(join, "model_file", STR, 255),
    R(join, "model_sha256", STR, 64),
    R(join, "backend", STR, 127),
    R(join, "rows_max", U64, 4096),
    R(join, "frames_max", U64, 1e7),
    R(join, "weights_bytes", U64, 1e15),
    R(join, "kept_bytes", U64, 1e15),
    R(join, "scratch_bytes", U64, 1e15),
    R(join, "speech_codes", U64, 6561),
    R(alive, "gen", U64, ANY_U64),
    R(admit, "gen", U64, ANY_U64),
    R(admit, "endpoint", STR, 255),
    R(admit, "outbox", U64, 1e9),
    R(admit, "bytes", U64, 1e12),
    O(admit, "handle", STR, 128),
    R(grant, "outbox", U64, 1e9),
    R(grant, "bytes", U64, 1e12),
    O(grant, "handle", STR, 128),
    R(opened, "gen", U64, ANY_U64),
    R(opened, "outbox", U64, 1e9),
    O(opened, "code", STR, 31),
    O(opened, "text", STR, 1023),
    R(revoke, "outbox", U64, 1e9),
    R(alloc, "outbox", U64, 1e9),
    R(alloc, "bytes", U64, 1e12),
    O(alloc, "device", U64, 63),
    O(alloc, "readers", IDS, 64),
    R(memory, "outbox", U64, 1e9),
    R(memory, "bytes", U64, 1e12),
    R(memory, "error", STR, 1023),
    O(memory, "handle", STR, 128),
    O(memory, "fallback", STR, 1023),
    R(release, "outbox", U64, 1e9),
    R(staff, "stage", STR, 15),
    R(staff, "count", U64, 1000),
    R(served, "stage", STR, 15),
    R(served, "instance", U64, 999),
    R(served, "pid", U64, 1e9),
    R(seen, "pid", U64, 1e9),
    R(seen, "here", BOOL, 0),
    R(here, "gen", U64, ANY_U64),
    R(here, "boot", U64, ANY_U64),
    R(beat, "gen", U64, ANY_U64),
    R(beat, "jobs_done", U64, 1e15),
    R(beat, "steps", U64, 1e15),
    R(beat, "held", U64, 1e6),
    R(beat, "oldest_us", U64, ANY_U64),
    R(beat, "busy_us", U64, ANY_U64),
    R(beat, "rss_bytes", U64, 1e15),
    R(beat, "handover_us", TREE, 0),
    O(beat, "steps_recorded", U64, 1e15),
    O(beat, "steps_replayed", U64, 1e15),
    O(beat, "steps_eager", U64, 1e15),
    R(ready, "gen", U64, ANY_U64),
    R(ready, "job", U64, ANY_U64),
    R(ready, "frames", U64, 15000),
    R(ready, "samples", U64, 1e9),
    R(ready, "stopped", BOOL, 0),
    R(ready, "capped", BOOL, 0),
    R(ready, "compute_us", U64, 1e15),
    R(ready, "sent_us", U64, ANY_U64),
    O(ready, "tokens", IDS, 7500),
    R(failed, "gen", U64, ANY_U64),
    R(failed, "job", U64, ANY_U64),
    R(failed, "code", STR, 31),
    R(failed, "text", STR, 1023),
    R(leave, "gen", U64, ANY_U64),
    R(work, "gen", U64, ANY_U64),
    R(work, "job", U64, ANY_U64),
    R(work, "utterance", STR, 200),
    R(work, "segment", U64, 512),
    R(work, "sent_us", U64, ANY_U64),
    R(work, "caused_us", U64, ANY_U64),
    O(work, "voice", STR, 200),
    O(work, "voice_sha256", STR, 64),
    O(work, "text", IDS, 4096),
    O(work, "prompt_text", IDS, 1024),
    O(work, "prompt_speech", BOOL, 0),
    O(work, "end_of_prompt", U64, ID_MAX),
    O(work, "seed", U64, ANY_U64),
    O(work, "tokens", IDS, 7500),
    O(work, "speed", F64, 2),
    O(work, "frames", U64, 15000),
    O(work, "in_outbox", U64, 1e9),
    O(work, "in_off", U64, 1e12),
    O(work, "in_bytes", U64, 1e12),
    O(work, "out_outbox", U64, 1e9),
    O(work, "out_off", U64, 1e12),
    O(work, "out_bytes", U64, 1e12),
    R(cancel, "gen", U64, ANY_U64),
    R(cancel, "job", U64, ANY_U64),
    R(drain, "gen", U64, ANY_U64),
    R(drain, "again", BOOL, 0),
    R(submit, "id", STR, 200),
    R(submit, "text", STR, 40000),
    O(submit, "voice", STR, 200),
    O(submit, "prompt_wav", STR, 4095),
    O(submit, "prompt_text", STR, 16384),
    O(submit, "source_wav", STR, 4095),
    R(submit, "mode", STR, 31),
    O(submit, "instruct", STR, 40000),
    R(submit, "seed", U64, ANY_U64),
    R(submit, "speed", F64, 2),
    R(submit, "raw", BOOL, 0),
    R(submit, "path", STR, 4095),
    R(submit, "format", STR, 15),
    R(submit, "priority", U64, 9),
    R(submit, "deadline_ms", U64, 1e11),
    O(submit, "patient", BOOL, 0),
    R(accepted, "id", STR, 200),
    R(accepted, "boot", U64, ANY_U64),
    R(accepted, "segments", U64, 512),
    R(accepted, "prefix_added", BOOL, 0),
    R(done, "id", STR, 200),
    R(done, "status", STR, 15),
    R(done, "file", STR, 4095),
    R(done, "bytes", U64, 1e12),
    R(done, "samples", U64, 1e12),
    R(done, "seconds", F64, 1e9),
    R(done, "sha256", STR, 64),
    R(done, "seed", U64, ANY_U64),
    R(done, "attempts", U64, 1e6),
    R(done, "segments", U64, 512),
    R(done, "tokens", U64, 1e9),
    R(done, "flags", TREE, 0),
    R(done, "ms", TREE, 0),
    O(done, "error", TREE, 0),
    R(query, "nonce", U64, ANY_U64),
    R(status, "nonce", U64, ANY_U64),
    R(status, "boot", U64, ANY_U64),
    R(status, "members", TREE, 0),
    R(status, "queues", TREE, 0),
    R(status, "totals", TREE, 0),
    R(status, "config", TREE, 0),
    R(steer, "verb", STR, 15),
    R(steer, "stage", STR, 15),
    O(steer, "instance", U64, 999),
    O(steer, "count", U64, 1000),
    R(steered, "code", STR, 31),
    R(steered, "text", STR, 1023),
    R(steered, "members", U64, 64),
    R(shutdown, "now", BOOL, 0),
    R(goodbye, "boot", U64, ANY_U64),
    O(goodbye, "left", U64, 1024),
};

static const struct {
    wire_route route;
    wire_kind kinds[12];
    size_t count;
} ROUTES[] = {
    {WIRE_MEMBER_LIFELINE, {WIRE_hello, WIRE_join, WIRE_alive, WIRE_opened, WIRE_memory}, 5},
    {WIRE_ORCH_LIFELINE,
     {WIRE_welcome, WIRE_refuse, WIRE_dismiss, WIRE_admit, WIRE_grant, WIRE_revoke, WIRE_alloc, WIRE_release,
      WIRE_staff, WIRE_served, WIRE_seen},
     11},
    {WIRE_MEMBER_BUS, {WIRE_here, WIRE_beat, WIRE_ready, WIRE_failed, WIRE_leave}, 5},
    {WIRE_ORCH_BUS, {WIRE_work, WIRE_cancel, WIRE_drain}, 3},
    {WIRE_CLIENT_BUS, {WIRE_submit, WIRE_query, WIRE_steer, WIRE_shutdown}, 4},
    {WIRE_ORCH_CLIENT, {WIRE_accepted, WIRE_done, WIRE_status, WIRE_steered, WIRE_goodbye}, 5},
};
#define ALL_ROUTES 63u

static unsigned route_of(wire_kind kind)
{
    for (size_t r = 0; r < CF_COUNT(ROUTES); r++)
        for (size_t i = 0; i < ROUTES[r].count; i++)
            if (ROUTES[r].kinds[i] == kind)
                return ROUTES[r].route;
    fail_msg("kind %s has no route in this test", wire_kind_name(kind));
    return 0;
}

/* A small value of the type that is in every range. */
static const char *plain_value(type t)
{
    static const char *const VALUES[] = {"1", "1.5", "true", "\"a\"", "[7]", "{}"};
    return VALUES[t];
}

/* The message of a kind with every field, but `changed` has this value instead; NULL: it is left out. */
static const char *message(wire_kind kind, const field *changed, const char *value)
{
    static char text[MESSAGE_BYTES_MAX * 2];
    size_t used = (size_t)snprintf(text, sizeof text, "{\"v\":1,\"kind\":\"%s\"", wire_kind_name(kind));
    for (size_t i = 0; i < CF_COUNT(FIELDS); i++) {
        const field *f = &FIELDS[i];
        if (f->kind != kind || (f == changed && !value))
            continue;
        used += (size_t)snprintf(text + used, sizeof text - used, ",\"%s\":%s", f->key,
                                 f == changed ? value : plain_value(f->type));
    }
    snprintf(text + used, sizeof text - used, "}");
    return text;
}

static cf_err parse(const char *text, unsigned routes)
{
    wire_msg msg = {0};
    const cf_err err = wire_parse(text, strlen(text), routes, &msg);
    wire_done(&msg);
    return err;
}

/* Refused, and the text names kind and field. */
static void refuse_value(const field *f, const char *value)
{
    const char *name = wire_kind_name(f->kind);
    const cf_err err = parse(message(f->kind, f, value), ALL_ROUTES);
    if ((err != CF_ERR_INVALID && err != CF_ERR_LIMIT) || !strstr(err_text(), name) || !strstr(err_text(), f->key))
        fail_msg("%s.%s = %.60s: %s: %s", name, f->key, value ? value : "(missing)", err_name(err),
                 err == CF_OK ? "accepted" : err_text());
}

static void accept_value(const field *f, const char *value)
{
    const cf_err err = parse(message(f->kind, f, value), ALL_ROUTES);
    if (err != CF_OK)
        fail_msg("%s.%s = %.60s: %s", wire_kind_name(f->kind), f->key, value, err_text());
}

static void test_every_kind_has_its_route(void **state)
{
    (void)state;
    for (int k = 0; k < WIRE_KIND_COUNT; k++) {
        const wire_kind kind = (wire_kind)k;
        const unsigned own = route_of(kind);
        for (unsigned route = 1; route <= ALL_ROUTES; route <<= 1) {
            if (route == own)
                assert_ok(parse(message(kind, NULL, NULL), route));
            else
                assert_err(CF_ERR_INVALID, "may not come this way", parse(message(kind, NULL, NULL), route));
            if (route != own)
                assert_non_null(strstr(err_text(), wire_kind_name(kind)));
        }
        assert_err(CF_ERR_INVALID, "may not come this way", parse(message(kind, NULL, NULL), 0));
    }
}

static void test_missing_fields(void **state)
{
    (void)state;
    size_t required = 0;
    for (size_t i = 0; i < CF_COUNT(FIELDS); i++) {
        const field *f = &FIELDS[i];
        required += !f->optional;
        if (f->optional) {
            assert_ok(parse(message(f->kind, f, NULL), ALL_ROUTES));
            continue;
        }
        refuse_value(f, NULL);
        assert_non_null(strstr(err_text(), "is missing"));
    }
    assert_true(required > 80);
}

static void test_wrong_types(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        unsigned fits; /* set of types */
    } VALUES[] = {
        {"null", 0},
        {"true", 1 << BOOL},
        {"false", 1 << BOOL},
        {"\"x\"", 1 << STR},
        {"\"-1\"", 1 << STR},
        {"\" 1\"", 1 << STR},
        {"1.25", 1 << F64},
        {"-1", 0},
        {"1e400", 0},
        {"[]", 1 << IDS | 1 << TREE},
        {"{}", 1 << TREE},
        {"[\"x\"]", 1 << TREE},
        {"[null]", 1 << TREE},
        {"[1.5]", 1 << TREE},
        {"[-1]", 1 << TREE},
        {"[16777216]", 1 << TREE},
        {"[16777215]", 1 << IDS | 1 << TREE},
        {"[[1]]", 1 << TREE},
        {"{\"a\":1}", 1 << TREE},
    };
    for (size_t i = 0; i < CF_COUNT(FIELDS); i++)
        for (size_t v = 0; v < CF_COUNT(VALUES); v++)
            if (VALUES[v].fits & 1u << FIELDS[i].type)
                accept_value(&FIELDS[i], VALUES[v].value);
            else
                refuse_value(&FIELDS[i], VALUES[v].value);
}

/* A string of `bytes` characters, or an array of `count` ids, as JSON. */
static const char *long_value(type t, size_t count)
{
    static char text[MESSAGE_BYTES_MAX];
    size_t used = 0;
    text[used++] = t == STR ? '"' : '[';
    for (size_t i = 0; i < count; i++) {
        if (t == IDS && i > 0)
            text[used++] = ',';
        text[used++] = '7';
    }
    text[used++] = t == STR ? '"' : ']';
    text[used] = '\0';
    return text;
}

static void check_range(const field *f)
{
    char text[64];
    switch (f->type) {
    case U64:
        accept_value(f, "0");
        if (f->max >= ANY_U64) {
            accept_value(f, "\"18446744073709551615\"");
            refuse_value(f, "\"18446744073709551616\"");
            break;
        }
        snprintf(text, sizeof text, "%.0f", f->max);
        accept_value(f, text);
        snprintf(text, sizeof text, "%.0f", f->max + 1);
        refuse_value(f, text);
        break;
    case F64:
        snprintf(text, sizeof text, "%.17g", f->max);
        accept_value(f, text);
        snprintf(text, sizeof text, "%.17g", f->max * 1.0001);
        refuse_value(f, text);
        break;
    case STR:
    case IDS:
        accept_value(f, long_value(f->type, (size_t)f->max));
        refuse_value(f, long_value(f->type, (size_t)f->max + 1));
        break;
    default:
        break;
    }
}

static void test_ranges(void **state)
{
    (void)state;
    for (size_t i = 0; i < CF_COUNT(FIELDS); i++)
        check_range(&FIELDS[i]);
    for (size_t i = 0; i < CF_COUNT(FIELDS); i++)
        if (strcmp(FIELDS[i].key, "speed") == 0) {
            accept_value(&FIELDS[i], "0.5");
            refuse_value(&FIELDS[i], "0.4999");
        }
}

static void test_envelope(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *part, *text;
    } CASES[] = {
        {CF_ERR_INVALID, "syntax error", ""},
        {CF_ERR_INVALID, "syntax error", "{\"v\":1,\"kind\":\"query\",\"nonce\":1"},
        {CF_ERR_INVALID, "expected an object", "[]"},
        {CF_ERR_INVALID, "expected an object", "\"query\""},
        {CF_ERR_INVALID, "\"v\" is missing", "{\"kind\":\"query\",\"nonce\":1}"},
        {CF_ERR_INVALID, "v: expected", "{\"v\":true,\"kind\":\"query\",\"nonce\":1}"},
        {CF_ERR_MISMATCH, "version 1 expected, found 2", "{\"v\":2,\"kind\":\"query\",\"nonce\":1}"},
        {CF_ERR_MISMATCH, "version 1 expected, found 0", "{\"v\":0,\"kind\":\"query\",\"nonce\":1}"},
        {CF_ERR_INVALID, "\"kind\" is missing", "{\"v\":1,\"nonce\":1}"},
        {CF_ERR_INVALID, "kind: expected a string", "{\"v\":1,\"kind\":7,\"nonce\":1}"},
        {CF_ERR_INVALID, "kind \"queri\" is not known", "{\"v\":1,\"kind\":\"queri\",\"nonce\":1}"},
        {CF_ERR_INVALID, "kind \"Query\" is not known", "{\"v\":1,\"kind\":\"Query\",\"nonce\":1}"},
        {CF_ERR_INVALID, "kind \"\" is not known", "{\"v\":1,\"kind\":\"\",\"nonce\":1}"},
        {CF_ERR_INVALID, "kind: expected at most 31", "{\"v\":1,\"kind\":\"0123456789012345678901234567890123\"}"},
        {CF_ERR_INVALID, "query: key \"nonse\" is not known; did you mean \"nonce\"?",
         "{\"v\":1,\"kind\":\"query\",\"nonse\":1}"},
        {CF_ERR_INVALID, "query: key \"gen\" is not known", "{\"v\":1,\"kind\":\"query\",\"nonce\":1,\"gen\":2}"},
        {CF_ERR_INVALID, "\"nonce\" appears twice", "{\"v\":1,\"kind\":\"query\",\"nonce\":1,\"nonce\":2}"},
        {CF_ERR_INVALID, "after the value", "{\"v\":1,\"kind\":\"query\",\"nonce\":1}{}"},
        {CF_ERR_INVALID, "UTF-8", "{\"v\":1,\"kind\":\"hello\",\"role\":\"\xff\"}"},
        {CF_ERR_INVALID, "deeper than 8", "{\"v\":1,\"kind\":\"welcome\",\"config\":[[[[[[[[]]]]]]]]}"},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++)
        assert_err(CASES[i].code, CASES[i].part, parse(CASES[i].text, ALL_ROUTES));
}

static void test_size_of_a_message(void **state)
{
    (void)state;
    static char text[MESSAGE_BYTES_MAX + 2];
    const char *head = "{\"v\":1,\"kind\":\"query\",\"nonce\":1}";
    memset(text, ' ', MESSAGE_BYTES_MAX + 1);
    memcpy(text, head, strlen(head));
    wire_msg msg = {0};
    assert_ok(wire_parse(text, MESSAGE_BYTES_MAX, WIRE_CLIENT_BUS, &msg));
    wire_done(&msg);
    assert_err(CF_ERR_LIMIT, "65537 bytes, at most 65536",
               wire_parse(text, MESSAGE_BYTES_MAX + 1, WIRE_CLIENT_BUS, &msg));
    assert_null(msg.root);
}

/* Puts the largest, or a long, value that the field may have; all lists at their longest would not fit one message. */
static void put_largest(json *m, const field *f)
{
    static int32_t ids[TOKENS_MAX];
    static char text[TEXT_BYTES_MAX + 1];
    for (int i = 0; i < TOKENS_MAX; i++)
        ids[i] = i;
    memset(text, 'x', sizeof text - 1);
    if (f->type == STR)
        text[(size_t)f->max < 1000 ? (size_t)f->max : 1000] = '\0';
    switch (f->type) {
    case U64:
        json_put_u64(m, f->key, f->max >= ANY_U64 ? UINT64_MAX - 1 : (uint64_t)f->max);
        break;
    case F64:
        json_put_f64(m, f->key, f->max);
        break;
    case BOOL:
        json_put_bool(m, f->key, true);
        break;
    case STR:
        json_put_str(m, f->key, text);
        break;
    case IDS:
        json_put_i32s(m, f->key, ids, f->max < 1024 ? (size_t)f->max : 1024);
        break;
    case TREE:
        json_put(m, f->key, json_array());
        break;
    }
}

static void check_largest(const wire_msg *msg, const field *f)
{
    int32_t *ids;
    size_t count;
    assert_true(wire_has(msg, f->key));
    switch (f->type) {
    case U64:
        assert_true(wire_u64(msg, f->key) == (f->max >= ANY_U64 ? UINT64_MAX - 1 : (uint64_t)f->max));
        break;
    case F64:
        assert_true(wire_f64(msg, f->key) == f->max);
        break;
    case BOOL:
        assert_true(wire_bool(msg, f->key));
        break;
    case STR:
        assert_int_equal(strlen(wire_str(msg, f->key)), f->max < 1000 ? (size_t)f->max : 1000);
        break;
    case IDS:
        assert_ok(wire_i32s(msg, f->key, &ids, &count));
        assert_int_equal(count, f->max < 1024 ? (size_t)f->max : 1024);
        assert_int_equal(ids[count - 1], (int32_t)(count - 1));
        mem_free(ids);
        break;
    case TREE:
        assert_int_equal(json_count(wire_json(msg, f->key)), 0);
        break;
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    for (int k = 0; k < WIRE_KIND_COUNT; k++) {
        char *text;
        size_t bytes;
        wire_msg msg = {0};
        json *m = wire_new((wire_kind)k);
        for (size_t i = 0; i < CF_COUNT(FIELDS); i++)
            if ((int)FIELDS[i].kind == k)
                put_largest(m, &FIELDS[i]);
        assert_ok(wire_print(m, &text, &bytes));
        assert_int_equal(bytes, strlen(text));
        assert_ok(wire_parse(text, bytes, route_of((wire_kind)k), &msg));
        assert_int_equal(msg.kind, k);
        for (size_t i = 0; i < CF_COUNT(FIELDS); i++)
            if ((int)FIELDS[i].kind == k)
                check_largest(&msg, &FIELDS[i]);
        assert_false(wire_has(&msg, "no such field"));
        wire_done(&msg);
        mem_free(text);
    }
}

/* What the receiver would refuse does not leave the sender. */
static void test_printing_is_checked(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes;
    json *m = wire_new(WIRE_leave);
    assert_err(CF_ERR_INVALID, "leave: field \"gen\" is missing", wire_print(m, &text, &bytes));
    m = wire_new(WIRE_leave);
    json_put_u64(m, "gen", 1);
    json_put_u64(m, "job", 1);
    assert_err(CF_ERR_INVALID, "leave: key \"job\" is not known", wire_print(m, &text, &bytes));
    m = wire_new(WIRE_refuse);
    json_put_str(m, "code", "busy");
    json_put_str(m, "text", "cut in two: \xe4\xb8");
    assert_err(CF_ERR_INVALID, "UTF-8", wire_print(m, &text, &bytes));
    m = wire_new(WIRE_status);
    json_put_u64(m, "nonce", 1);
    json_put_u64(m, "boot", 1);
    json *members = json_array();
    for (int i = 0; i < 20000; i++)
        json_push(members, json_num(1000 + i));
    json_put(m, "members", members);
    json_put(m, "queues", json_object());
    json_put(m, "totals", json_object());
    json_put(m, "config", json_object());
    assert_err(CF_ERR_LIMIT, "message \"status\": ", wire_print(m, &text, &bytes));
    assert_null(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_has_its_route),
        cmocka_unit_test(test_missing_fields),
        cmocka_unit_test(test_wrong_types),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_envelope),
        cmocka_unit_test(test_size_of_a_message),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_printing_is_checked),
    };
    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
