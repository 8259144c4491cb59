/* test_text_split.c - sentence cutting and packing: the worked examples of text.md 3.1 and 3.3, and the cuts. */
#include "tests/unit/text_help.h"

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/utf8.h"
#include "common/text/text_buf.h"
#include "common/text/text_split.h"

/* A paragraph of sentences with these lengths in characters, each closed by 。; 0 ends the list. */
static text_buf paragraph(const int *lengths)
{
    text_buf buf = {0};
    for (; *lengths; lengths++) {
        for (int i = 1; i < *lengths; i++)
            assert_ok(text_buf_put_str(&buf, "字"));
        assert_ok(text_buf_put_str(&buf, "。"));
    }
    return buf;
}

/* Segment lengths as "80 20", in characters or, for English, in tokens. */
static void expect_lengths(const tokenizer *tok, text_lang lang, const char *text, size_t text_bytes, const char *want)
{
    text_split split;
    id_list ids = {0};
    char got[256] = "";
    size_t start = 0;
    assert_ok(text_split_paragraph(tok, lang, text, text_bytes, &split));
    for (size_t i = 0; i < split.segment_count; start = split.ends[i++]) {
        const size_t bytes = split.ends[i] - start;
        ids.id_count = 0;
        if (lang == TEXT_LANG_EN)
            assert_ok(tokenizer_encode(tok, split.text + start, bytes, &ids));
        const size_t length = lang == TEXT_LANG_ZH ? utf8_count(split.text + start, bytes) : ids.id_count;
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%zu", i ? " " : "", length);
    }
    assert_string_equal(got, want);
    id_list_done(&ids);
    text_split_done(&split);
}

static void test_chinese_packing(void **state)
{
    (void)state;
    static const struct {
        int lengths[16];
        const char *want;
    } cases[] = {
        {{10, 10, 10, 10, 10, 10, 10, 10, 10, 10}, "80 20"},
        {{10, 10, 10, 10, 10, 10, 10, 10, 10}, "90"},
        {{200}, "200"},
        {{60, 60}, "120"},
        {{61, 20}, "61 20"},
        {{61, 19}, "80"},
        {{62, 19}, "81"},
        {{30, 31, 25}, "61 25"},
        {{50, 100, 10}, "160"},
        {{81, 20}, "81 20"},
        {{70, 70, 70}, "70 70 70"},
        {{15, 15, 15, 15, 15, 15, 15}, "75 30"},
        {{79, 2, 3}, "84"},
        {{60, 21, 21, 21}, "81 42"},
        {{16, 19, 17, 5, 22, 27, 5}, "79 32"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        text_buf text = paragraph(cases[i].lengths);
        expect_lengths(NULL, TEXT_LANG_ZH, text.text, text.text_bytes, cases[i].want);
        text_buf_done(&text);
    }
}

static void repeat(text_buf *buf, const char *part, int count)
{
    for (int i = 0; i < count; i++)
        assert_ok(text_buf_put_str(buf, part));
}

static void test_chinese_stretches(void **state)
{
    (void)state;
    static const struct {
        const char *part, *mark;
        int parts;
        const char *want;
    } cases[] = {
        {"字", "", 300, "301"}, /* never cut; a full stop is appended */
        {"字字字字字字字字字字字字字字字字字字字字字字字字字字字字字字", "，", 6, "187"}, /* no mark: a comma */
        {"字字字字字字字字字字字字字字字字字字字字字字字字字字字字字字", "、", 6, "62 62 62"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        text_buf text = {0};
        for (int k = 0; k < cases[i].parts; k++) {
            repeat(&text, cases[i].part, 1);
            repeat(&text, cases[i].mark, 1);
        }
        expect_lengths(NULL, TEXT_LANG_ZH, text.text, text.text_bytes, cases[i].want);
        text_buf_done(&text);
    }
}

static void test_english_packing(void **state)
{
    (void)state;
    tokenizer *tok = open_released();
    text_buf fox = {0}, stretch = {0};
    repeat(&fox, "The quick brown fox jumps over the lazy dog. ", 12);
    repeat(&stretch, "This is a very long sentence without any stop ", 10);
    expect_lengths(tok, TEXT_LANG_EN, fox.text, fox.text_bytes - 1, "80 40"); /* stripped, as text_normalize does */
    expect_lengths(tok, TEXT_LANG_EN, stretch.text, stretch.text_bytes - 1, "91");
    /* " a" is one token, so a sentence of n tokens is n-1 of them and its stop. */
    static const struct {
        int first, second;
        const char *want;
    } cases[] = {{60, 30, "90"}, {61, 19, "80"}, {61, 20, "61 20"}, {62, 19, "81"}};
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        text_buf text = {0};
        repeat(&text, " a", cases[i].first - 1);
        repeat(&text, ".", 1);
        repeat(&text, " a", cases[i].second - 1);
        repeat(&text, ".", 1);
        expect_lengths(tok, TEXT_LANG_EN, text.text, text.text_bytes, cases[i].want);
        text_buf_done(&text);
    }
    text_buf_done(&fox);
    text_buf_done(&stretch);
    tokenizer_close(tok);
}

/* Segments of short texts, joined by '|'. */
static void test_cuts(void **state)
{
    (void)state;
    static const struct {
        text_lang lang;
        const char *text, *want;
    } cases[] = {
        {TEXT_LANG_EN, "a", "a."},
        {TEXT_LANG_EN, "a.", "a."},
        {TEXT_LANG_EN, "a...b?!", "a.b?"},
        {TEXT_LANG_EN, "...", ""},
        {TEXT_LANG_EN, "a,b;c:d", "a,b;c:d."},
        {TEXT_LANG_EN, "a。", "a。."}, /* no mark of English */
        {TEXT_LANG_EN, "a!!\"", "a!\""},
        {TEXT_LANG_EN, "a.\"b", "a.\"b."},
        {TEXT_LANG_EN, "a.”b", "a.”b."},
        {TEXT_LANG_EN, "a.“b", "a.“b."},
        {TEXT_LANG_EN, "a.\"\"", "a.\"\"."},
        {TEXT_LANG_ZH, "好", "好。"},
        {TEXT_LANG_ZH, "好？！", "好？"},
        {TEXT_LANG_ZH, "好：吗；是、", "好：吗；是、"},
        {TEXT_LANG_ZH, "好:,", "好:,。"}, /* neither is a mark */
        {TEXT_LANG_ZH, "好。”", "好。”"},
    };
    tokenizer *tok = open_tiny();
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        text_split split;
        assert_ok(text_split_paragraph(tok, cases[i].lang, cases[i].text, strlen(cases[i].text), &split));
        assert_false(split.quote_unattached);
        assert_int_equal(split.segment_count, cases[i].want[0] ? 1 : 0);
        const size_t bytes = split.segment_count ? split.ends[0] : 0;
        assert_int_equal(bytes, strlen(cases[i].want));
        if (bytes)
            assert_memory_equal(split.text, cases[i].want, bytes);
        text_split_done(&split);
    }
    tokenizer_close(tok);
}

static void test_unattached_quotes(void **state)
{
    (void)state;
    static const struct {
        text_lang lang;
        const char *text;
        bool unattached;
    } cases[] = {
        {TEXT_LANG_ZH, "。\"你好", true}, {TEXT_LANG_ZH, "。”", true},  {TEXT_LANG_EN, "...\"What?\"", true},
        {TEXT_LANG_EN, "!”", true},       {TEXT_LANG_EN, "\".", false}, {TEXT_LANG_EN, ".“a", false},
        {TEXT_LANG_EN, ". \"a\"", false},
    };
    tokenizer *tok = open_tiny();
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        text_split split;
        assert_ok(text_split_paragraph(tok, cases[i].lang, cases[i].text, strlen(cases[i].text), &split));
        assert_int_equal(split.quote_unattached, cases[i].unattached);
        if (split.quote_unattached)
            assert_int_equal(split.segment_count, 0);
        text_split_done(&split);
    }
    tokenizer_close(tok);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    cf_err err = CF_ERR_NOMEM;
    int n = 0;
    while (err != CF_OK && n < 100) {
        text_split split = {0};
        char spec[64];
        snprintf(spec, sizeof spec, "mem.alloc#%d=fail", ++n);
        assert_ok(fault_arm(spec));
        err = text_split_paragraph(tok, TEXT_LANG_EN, "one. two. three.", 16, &split);
        assert_ok(fault_arm(NULL));
        assert_true(err == CF_OK || err == CF_ERR_NOMEM);
        text_split_done(&split);
    }
    assert_in_range(n, 4, 99);
    tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chinese_packing),   cmocka_unit_test(test_chinese_stretches),
        cmocka_unit_test(test_english_packing),   cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_unattached_quotes), cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests_name("text_split", tests, NULL, NULL);
}
