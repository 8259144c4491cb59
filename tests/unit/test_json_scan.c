/* test_json_scan.c - the forward JSON reader: strings with every escape, small integers, skipping; mostly refusals. */
#include "tests/harness/test.h"

#include <stdbool.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/json_scan.h"

static json_scan over(const char *text)
{
    return (json_scan){.text = text, .text_bytes = strlen(text)};
}

static void test_strings(void **state)
{
    (void)state;
    static const struct {
        const char *json, *want;
        size_t want_bytes;
    } cases[] = {
        {"\"\"", "", 0},
        {" \t\r\n\"a\"", "a", 1},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8},
        {"\"\\u0041\\u00e9\\u4F60\"", "A\xc3\xa9\xe4\xbd\xa0", 6},
        {"\"\\ud83d\\uDE42\"", "\xf0\x9f\x99\x82", 4},
        {"\"a\\u0000b\"", "a\0b", 3},
        {"\"你\x7f\"", "你\x7f", 4},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json_scan s = over(cases[i].json);
        char buf[8];
        size_t bytes = 99;
        assert_ok(json_scan_string(&s, buf, sizeof buf, &bytes));
        assert_int_equal(bytes, cases[i].want_bytes);
        assert_memory_equal(buf, cases[i].want, bytes);
        assert_true(json_scan_end(&s));
    }
}

static void test_string_refusals(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *json, *part;
    } cases[] = {
        {CF_ERR_INVALID, "", "expected a string at byte 0"},
        {CF_ERR_INVALID, "a", "expected a string at byte 0"},
        {CF_ERR_INVALID, "  5", "expected a string at byte 2"},
        {CF_ERR_INVALID, "\"a", "at byte 1 does not end"},
        {CF_ERR_INVALID, "\"a\\\"", "does not end"},
        {CF_ERR_INVALID, "\"a\\", "bad escape"},
        {CF_ERR_INVALID, "\"\\a\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\'\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\u12\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\u12g4\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\u+123\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\ud83d\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\ud83dx\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\ud83d\\n\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\ud83d\\u0041\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\ud83d\\ud83d\"", "bad escape"},
        {CF_ERR_INVALID, "\"\\ude42\"", "bad escape"},
        {CF_ERR_INVALID, "\"a\nb\"", "control character at byte 2"},
        {CF_ERR_INVALID, "\"\x1f\"", "control character at byte 1"},
        {CF_ERR_LIMIT, "\"123456789\"", "longer than 8 bytes"},
        {CF_ERR_LIMIT, "\"1234567\\u00e9\"", "longer than 8 bytes"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json_scan s = over(cases[i].json);
        char buf[8];
        size_t bytes = 99;
        assert_err(cases[i].code, cases[i].part, json_scan_string(&s, buf, sizeof buf, &bytes));
        assert_int_equal(bytes, 99);
    }
}

static void test_integers(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        uint32_t max;
        int64_t want; /* -1: refused */
    } cases[] = {
        {"0", 9, 0},
        {" 9", 9, 9},
        {"10", 9, -1},
        {"4294967295", UINT32_MAX, 4294967295},
        {"-1", 9, -1},
        {"+1", 9, -1},
        {"4294967296", UINT32_MAX, -1},
        {"99999999999999999999999", UINT32_MAX, -1},
        {"", 9, -1},
        {"\"1\"", 9, -1},
        {"01", 9, -1},
        {"00", 9, -1},
        {"null", 9, -1},
        {".5", 9, -1},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json_scan s = over(cases[i].json);
        uint32_t value = 77;
        if (cases[i].want < 0) {
            assert_err(CF_ERR_INVALID, "expected an integer in 0..", json_scan_u32(&s, cases[i].max, &value));
            assert_int_equal(value, 77);
        } else {
            assert_ok(json_scan_u32(&s, cases[i].max, &value));
            assert_int_equal(value, cases[i].want);
        }
    }
}

static void test_skip(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        bool good;
    } cases[] = {
        {"null", true},
        {"true", true},
        {"false", true},
        {"-0.5e+10", true},
        {"0", true},
        {"10E5", true},
        {"\"a\\n\"", true},
        {"[]", true},
        {"{}", true},
        {"[1, [2], {\"a\": 3}]", true},
        {" { \"a\" : 1 } ", true},
        {"[[[]]]", true},
        {"[[[1]]]", false},
        {"[[[[]]]]", false},
        {"[1,]", false},
        {"[,1]", false},
        {"[1 2]", false},
        {"{\"a\"}", false},
        {"{\"a\":}", false},
        {"{a:1}", false},
        {"{\"a\":1,}", false},
        {"[1}", false},
        {"nul", false},
        {"nulll", false},
        {"01", false},
        {"1.", false},
        {".5", false},
        {"1e", false},
        {"-", false},
        {"+1", false},
        {"", false},
        {"\"a", false},
        {"]", false},
        {"1 2", false},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json_scan s = over(cases[i].json);
        const bool good = json_scan_skip(&s, 3) == CF_OK && json_scan_end(&s);
        if (good != cases[i].good)
            fail_msg("%s: got %s", cases[i].json, good ? "accepted" : err_text());
    }
}

/* cJSON would cut the string at the NUL without a word; json.h promises a refusal. */
static void test_tree_refuses_nul(void **state)
{
    (void)state;
    static const char *const bad[] = {"\"a\\u0000b\"", "{\"\\u0000\":1}", "[\"\\\\\\u0000\"]", "\"\\u00000\""};
    static const char *const good[] = {"\"\\\\u0000\"", "\"\\u0001\""};
    json *root = NULL;
    for (size_t i = 0; i < CF_COUNT(bad); i++)
        assert_err(CF_ERR_INVALID, "NUL character at byte", json_parse(bad[i], strlen(bad[i]), 4, &root));
    for (size_t i = 0; i < CF_COUNT(good); i++) {
        assert_ok(json_parse(good[i], strlen(good[i]), 4, &root));
        json_close(root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strings), cmocka_unit_test(test_string_refusals),  cmocka_unit_test(test_integers),
        cmocka_unit_test(test_skip),    cmocka_unit_test(test_tree_refuses_nul),
    };
    return cmocka_run_group_tests_name("json_scan", tests, NULL, NULL);
}
