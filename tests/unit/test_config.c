/* test_config.c - every configuration key: its default, its bounds and one beyond, another type, and the file around
 * them. What is refused changes nothing, and the message names file, key, expected and found. */
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/config.h"
#include "common/base/io.h"
#include "common/base/mem.h"

typedef enum kind { STR, INT, BOOL } kind;

static const struct row {
    const char *key;
    kind kind;
    long min, max;
} ROWS[] = {
#define ROW(type, key, def, min, max, help) {#key, type, min, max},
    CONFIG_KEYS(ROW)
#undef ROW
};

static cf_err apply(config *cfg, const char *text)
{
    json *root;
    assert_ok(json_parse(text, strlen(text), 3, &root));
    const cf_err err = config_apply(cfg, root, "given");
    json_close(root);
    return err;
}

/* {"key": value}: refused with the key's name, and nothing has changed. */
static void refuse(const struct row *r, const char *value)
{
    static config cfg, before;
    char text[8192];
    config_defaults(&cfg);
    before = cfg;
    snprintf(text, sizeof text, "{\"%s\":%s}", r->key, value);
    const cf_err err = apply(&cfg, text);
    if (err != CF_ERR_INVALID || !strstr(err_text(), r->key) || !strstr(err_text(), "given: "))
        fail_msg("%s: %s: %s", text, err_name(err), err == CF_OK ? "accepted" : err_text());
    assert_memory_equal(&cfg, &before, sizeof cfg);
}

static void accept(const struct row *r, const char *value)
{
    static config cfg;
    char text[8192];
    config_defaults(&cfg);
    snprintf(text, sizeof text, "{\"%s\":%s}", r->key, value);
    assert_ok(apply(&cfg, text));
}

static const char *quoted(size_t bytes)
{
    static char text[4096];
    text[0] = '"';
    memset(text + 1, 'x', bytes);
    memcpy(text + 1 + bytes, "\"", 2);
    return text;
}

static void test_every_key(void **state)
{
    (void)state;
    char text[64];
    for (size_t i = 0; i < CF_COUNT(ROWS); i++) {
        const struct row *r = &ROWS[i];
        refuse(r, "null");
        refuse(r, "[]");
        refuse(r, "{}");
        if (r->kind == STR) {
            accept(r, "\"\"");
            accept(r, quoted((size_t)r->max));
            refuse(r, quoted((size_t)r->max + 1));
            refuse(r, "5");
            refuse(r, "true");
        } else if (r->kind == BOOL) {
            accept(r, "true");
            accept(r, "false");
            refuse(r, "1");
            refuse(r, "\"true\"");
        } else {
            snprintf(text, sizeof text, "%ld", r->min);
            accept(r, text);
            snprintf(text, sizeof text, "%ld", r->max);
            accept(r, text);
            snprintf(text, sizeof text, "%ld", r->min - 1);
            refuse(r, text);
            snprintf(text, sizeof text, "%ld", r->max + 1);
            refuse(r, text);
            snprintf(text, sizeof text, "%ld.5", r->min);
            refuse(r, text);
            refuse(r, "true");
            refuse(r, "\"many\"");
            refuse(r, "99999999999999999999");
        }
    }
}

static void test_refuses_other_keys(void **state)
{
    (void)state;
    static config cfg, before;
    config_defaults(&cfg);
    before = cfg;
    assert_err(CF_ERR_INVALID, "given: key \"llm_row\" is not known; did you mean \"llm_rows\"?",
               apply(&cfg, "{\"threads\":3,\"llm_row\":4}"));
    assert_err(CF_ERR_INVALID, "given: key \"LLM_ROWS\" is not known", apply(&cfg, "{\"LLM_ROWS\":4}"));
    assert_err(CF_ERR_INVALID, "given: expected an object", apply(&cfg, "[1]"));
    assert_err(CF_ERR_INVALID, "outbox_mib: expected 4..4096, found 3",
               apply(&cfg, "{\"threads\":3,\"outbox_mib\":3}")); /* the good one is not applied either */
    assert_memory_equal(&cfg, &before, sizeof cfg);
}

static void test_files(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *text, *part;
    } CASES[] = {
        {CF_ERR_INVALID, "", "/c.json: JSON: syntax error at byte 0"},
        {CF_ERR_INVALID, "{\"threads\":3", "/c.json: JSON: syntax error"},
        {CF_ERR_INVALID, "{\"threads\":3} x", "/c.json: JSON: unexpected byte 14"},
        {CF_ERR_INVALID, "{\"threads\":3,\"threads\":4}", "/c.json: JSON: key \"threads\" appears twice"},
        {CF_ERR_INVALID, "{\"model\":{\"path\":{}}}", "/c.json: JSON: nested deeper than 2"},
        {CF_ERR_INVALID, "{\"threads\":257}", "/c.json: threads: expected 0..256, found 257"},
        {CF_ERR_INVALID, "{\"model\":\"\xff\"}", "/c.json: JSON: invalid UTF-8 at byte 10"},
    };
    static config cfg;
    static char large[65537];
    char path[IO_PATH_BYTES];
    config_defaults(&cfg);
    snprintf(path, sizeof path, "%s/c.json", test_temp_dir());
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        assert_ok(io_write_file(path, CASES[i].text, strlen(CASES[i].text)));
        assert_err(CASES[i].code, CASES[i].part, config_load(&cfg, path));
    }
    memset(large, ' ', sizeof large);
    assert_ok(io_write_file(path, large, sizeof large));
    assert_err(CF_ERR_LIMIT, "65537 bytes, at most 65536", config_load(&cfg, path));
    assert_err(CF_ERR_NOTFOUND, "no such file", config_load(&cfg, "/nonexistent.json"));
    memcpy(large, "{\"threads\":7}", 13);
    assert_ok(io_write_file(path, large, 65536));
    assert_ok(config_load(&cfg, path));
    assert_int_equal(cfg.threads, 7);
}

/* As the orchestrator hands it to its workers. */
static void test_round_trip(void **state)
{
    (void)state;
    static config cfg, again;
    char *text;
    json *root;
    config_defaults(&cfg);
    config_defaults(&again);
    assert_ok(apply(&cfg, "{\"model\":\"/m \\u00e9\\\"\",\"llm_rows\":256,\"naive\":true,\"silence_s\":2}"));
    json *printed = config_to_json(&cfg);
    assert_int_equal(json_count(printed), CF_COUNT(ROWS));
    assert_ok(json_print(printed, false, &text));
    json_close(printed);
    assert_ok(json_parse(text, strlen(text), 2, &root));
    assert_ok(config_apply(&again, root, "welcome"));
    assert_memory_equal(&again, &cfg, sizeof cfg);
    json_close(root);
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_key),
        cmocka_unit_test(test_refuses_other_keys),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
