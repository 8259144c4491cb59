/* test_json.c - the JSON tree: what RFC 8259 does not allow is refused although cJSON would read it, and what is
 * printed is read back as it was, integers to the last digit. */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/mem.h"

#define DEPTH 4

static void test_refuses_what_is_not_json(void **state)
{
    (void)state;
    static const struct {
        const char *json, *part;
    } cases[] = {
        {"", "syntax error at byte 0"},
        {"   ", "syntax error at byte 3"},
        {"{\"a\":01}", "syntax error at byte 7"},
        {"[1.]", "syntax error"},
        {"[.5]", "syntax error"},
        {"[+1]", "syntax error"},
        {"[-]", "syntax error"},
        {"[1e]", "syntax error"},
        {"[0x10]", "syntax error"},
        {"[NaN]", "syntax error"},
        {"[Infinity]", "syntax error"},
        {"[True]", "syntax error"},
        {"[1,]", "syntax error"},
        {"[,1]", "syntax error"},
        {"{\"a\":1,}", "syntax error"},
        {"{a:1}", "syntax error"},
        {"{'a':1}", "syntax error"},
        {"{\"a\"}", "syntax error"},
        {"{\"a\":}", "syntax error"},
        {"{1:2}", "syntax error"},
        {"[1}", "syntax error"},
        {"]", "syntax error"},
        {"[\"a]", "syntax error"},
        {"[\"\\x\"]", "syntax error"},
        {"[\"\\ud800\"]", "syntax error"},
        {"[\"\\udc00\\ud800\"]", "syntax error"},
        {"\xef\xbb\xbf{}", "syntax error at byte 0"}, /* a byte-order mark */
        {"{\x01}", "syntax error at byte 1"},         /* cJSON's white space is anything below 33 */
        {"[1\x0b]", "syntax error"},
        {"// no\n{}", "syntax error"},
        {"[\"a\tb\"]", "control character at byte 3"},
        {"[\"\\u0000\"]", "NUL character at byte 2"},
        {"{} {}", "unexpected byte 3 after the value"},
        {"{\"a\":1,\"\\u0061\":2}", "\"a\" appears twice"},
        {"[\"\xed\xa0\x80\"]", "invalid UTF-8 at byte 2"},
        {"[[[[[]]]]]", "nested deeper than 4 at byte 4"},
        {"[1000000000000000000000000000000000000000000000000000000000000000]", "syntax error"}, /* 64 digits */
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json *root = NULL;
        assert_err(CF_ERR_INVALID, cases[i].part, json_parse(cases[i].json, strlen(cases[i].json), DEPTH, &root));
        assert_null(root);
    }
    json *root = NULL;
    assert_err(CF_ERR_INVALID, "byte 1 is NUL", json_parse("{\0}", 3, DEPTH, &root));
}

static void test_accepts_json(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "0", "-0.5e-3", "\"\"", "null", "true", "[[[[1]]]]", " \t\r\n{ } ", "[\"\\ud83d\\ude42\\\\u0000\"]", "1E+2",
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json *root = NULL;
        assert_ok(json_parse(cases[i], strlen(cases[i]), DEPTH, &root));
        json_close(root);
    }
}

static void test_integers_survive(void **state)
{
    (void)state;
    static const struct {
        uint64_t value;
        const char *printed;
    } cases[] = {
        {0, "{\"n\":0}"},
        {2147483648u, "{\"n\":2147483648}"},
        {999999999999999u, "{\"n\":999999999999999}"},
        {1000000000000001u, "{\"n\":1000000000000001}"},
        {5000000000000001u, "{\"n\":5000000000000001}"},
        {9007199254740991u, "{\"n\":9007199254740991}"},
        {9007199254740992u, "{\"n\":9007199254740992}"},
        {9007199254740993u, "{\"n\":\"9007199254740993\"}"},
        {UINT64_MAX, "{\"n\":\"18446744073709551615\"}"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json *obj = json_object(), *root;
        char *text;
        uint64_t value = 0;
        json_put_u64(obj, "n", cases[i].value);
        assert_ok(json_get_u64(obj, "n", 0, UINT64_MAX, &value)); /* wire.h checks what it builds before printing */
        assert_true(value == cases[i].value);
        assert_ok(json_print(obj, false, &text));
        assert_string_equal(text, cases[i].printed);
        json_close(obj);
        assert_ok(json_parse(text, strlen(text), DEPTH, &root));
        value = 0;
        assert_ok(json_get_u64(root, "n", 0, UINT64_MAX, &value));
        assert_true(value == cases[i].value);
        json_close(root);
        mem_free(text);
    }
}

static void test_printed_bytes(void **state)
{
    (void)state;
    static const char *const cases[] = {"",           "plain",        "a\"b\\c",
                                        "\b\f\n\r\t", "\x01\x1f\x7f", "caf\xc3\xa9 \xf0\x9f\x8e\xb5"};
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        char *text;
        json *value = json_str(cases[i]);
        assert_ok(json_print(value, false, &text));
        assert_int_equal(json_printed_bytes(cases[i]), strlen(text));
        json_close(value);
        mem_free(text);
    }
}

static void test_never_prints_what_it_refuses(void **state)
{
    (void)state;
    char *text = NULL;
    json *obj = json_object();
    json_put_str(obj, "path", "a\xff.wav");
    assert_err(CF_ERR_INVALID, "invalid UTF-8 before \"?.wav", json_print(obj, false, &text));
    assert_null(text);
    json_close(obj);
    obj = json_object();
    json_put_text(obj, "text", "cut \xe4\xb8");
    json_put_text(obj, "whole", "caf\xc3\xa9");
    assert_ok(json_print(obj, false, &text));
    assert_string_equal(text, "{\"text\":\"cut ??\",\"whole\":\"caf\xc3\xa9\"}");
    json_close(obj);
    mem_free(text);
}

/* Line and indented form; a double is printed with as few digits as give it again. */
static void test_printing(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *printed;
    } cases[] = {
        {0.1, "[0.1]"},
        {1.0 / 3, "[0.3333333333333333]"},
        {-2.5e-7, "[-2.5e-07]"},
        {-7, "[-7]"},
        {-0.0, "[0]"},
        {1e300, "[1e+300]"},
        {1e16, "[1e+16]"},
        {NAN, "[null]"},
        {INFINITY, "[null]"},
        {123456789.125, "[123456789.125]"},
        {9007199254740992.0, "[9007199254740992]"},
    };
    char *text = NULL;
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        json *list = json_array();
        json_push(list, json_num(cases[i].value));
        assert_ok(json_print(list, false, &text));
        assert_string_equal(text, cases[i].printed);
        mem_free(text);
        json_close(list);
    }
    static const char source[] =
        "{\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u007f\":[1,[true,null],{}],\"o\":{\"k\":\"\xc3\xa9\"}}";
    json *root;
    assert_ok(json_parse(source, sizeof source - 1, DEPTH, &root));
    assert_ok(json_print(root, false, &text));
    assert_string_equal(text,
                        "{\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\x7f\":[1,[true,null],{}],\"o\":{\"k\":\"\xc3\xa9\"}}");
    mem_free(text);
    json_close(root);
    static const char nested[] = "{\"a\":[1,2],\"b\":{\"c\":\"d\"}}";
    assert_ok(json_parse(nested, sizeof nested - 1, DEPTH, &root));
    assert_ok(json_print(root, true, &text));
    assert_string_equal(text, "{\n\t\"a\":\t[1, 2],\n\t\"b\":\t{\n\t\t\"c\":\t\"d\"\n\t}\n}");
    mem_free(text);
    json_close(root);
}

static void test_unknown_keys(void **state)
{
    (void)state;
    static const char *const keys[] = {"voice", "text", NULL};
    char given[256];
    json *root;
    static const struct {
        const char *key, *part;
    } cases[] = {
        {"txet", "did you mean \"text\"?"},
        {"voices", "did you mean \"voice\"?"},
        {"something", "key \"something\" is not known"},
        {"a-key-that-is-longer-than-any-key-of-ours-and-so-no-typo-of-one-of-them", "is not known"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        snprintf(given, sizeof given, "{\"text\":1,\"%s\":2}", cases[i].key);
        assert_ok(json_parse(given, strlen(given), DEPTH, &root));
        assert_err(CF_ERR_INVALID, cases[i].part, json_only_keys(root, "row", keys));
        json_close(root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_what_is_not_json),
        cmocka_unit_test(test_accepts_json),
        cmocka_unit_test(test_integers_survive),
        cmocka_unit_test(test_printing),
        cmocka_unit_test(test_unknown_keys),
        cmocka_unit_test(test_printed_bytes),
        cmocka_unit_test(test_never_prints_what_it_refuses),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
