/*
 * test_text_norm.c - normalisation: the examples of text.md 2.1 and 3.2, number words, texts on which upstream raises,
 * and refusals. Expected segments are joined by '|'; none of the texts is long enough for the vocabulary to matter.
 */
#include "tests/unit/text_help.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/limits.h"
#include "common/text/number_words.h"
#include "common/text/text_norm.h"

#define RAISES "(upstream raises)"

typedef struct example {
    const char *text, *want;
} example;

static const example examples[] = {
    {"Hello", "Hello."},
    {"Wait... what?!", "Wait. what?"},
    {"Wait... what?! \"Really?\" she said: yes; no.", "Wait. what? \"Really?\" she said: yes; no."},
    {"...", ""},
    {"!!!", ""},
    {"\"", ""},
    {"你好", "你好。"},
    {"你好，", "你好。"},
    {"你好、、", "你好。"},
    {"你好,，、", "你好。"},
    {"你好！！！", "你好！"},
    {"你好？！真的吗", "你好？真的吗。"},
    {"他说：“你好。”", "他说：“你好。”"},
    {"他说：\"你好。\"然后走了", "他说：\"你好。\"然后走了。"},
    {"你好\"", "你好\"。"},
    {"He said \"ok\"", "He said \"ok\"."},
    {"Say “hi!” Now", "Say “hi!” Now."},
    {"价格是3.5元", "价格是3。5元。"},
    {"好...吗", "好。吗。"},
    {"好;:,.!?", "好;:,。"},
    {"A - B 你", "A，B你。"},
    {"你a  b", "你ab。"},
    {"a  b", "a  b."},
    {"10m²（约）——完 ", "10m平方约 完。"},
    {"第一行\n第二行", "第一行第二行。"},
    {"line one\nline two", "line one\nline two."},
    {"你好 [breath] 世界 [laughter]", "你好[breath]世界[laughter]。"},
    {"今天是2024年5月6日。Hello world. 再见", "今天是2024年5月6日。Hello world。再见。"},
    {"  <|a|> ", "  <|a|> "},
    {"|><|", "|><|"},
    {"<|你好", "<|你好。"},
    {"You are a helpful assistant.<|endofprompt|>你好 世界", "You are a helpful assistant.<|endofprompt|>你好 世界"},
    {"レキシ テキ … デ アル。", "レキシ テキ … デ アル。."},
    {"こんにちは。元気ですか？", "こんにちは。元気ですか？"},
    {"歴史 的 世界", "歴史的世界。"},
    {"안녕하세요. 저는 AI입니다", "안녕하세요. 저는 AI입니다."},
    {"Привет! Как дела? 5 минут", "Привет! Как дела? five минут."},
    {"Mr. Smith paid $3.50 at 10:30. He left!", "Mr. Smith paid $three.fifty at ten:thirty. He left!"},
    {"Hello! I am an AI voice assistant powered by Fun-CosyVoice3. How may I help you today?",
     "Hello! I am an AI voice assistant powered by Fun-CosyVoicethree. How may I help you today?"},
    {"Hello!!\"", "Hello!\""},
    {"“。”", ""},
    {"1,234.56", "one,two hundred and thirty-four.fifty-six."},
    {"１２３", "one hundred and twenty-three."},
    {"3² and ²3", "three and three."},
    {"第1、第2、第3", "第1、第2、第3。"},
    {"The vowel [AA0] is in father.", "The vowel [AAzero] is in father."},
    {"\t\u3000 Hello \x1c\xc2\x85", "Hello."},
    {"`你`【】x³", "你x立方。"},
    {"你—好", "你—好。"},
    {"你(好) a b", "你(好) a b。"},
    {"〇", "〇."}, /* U+3007 is not Chinese to upstream */
    {"   ", RAISES},
    {"\n", RAISES},
    {" \xe3\x80\x80\t", RAISES},
    {"。\"你好", RAISES},
    {"...\"What?\"", RAISES},
    {"1234567890123456789012345678901234567", RAISES},
};

static void expect_norm(const tokenizer *tok, const example *e)
{
    text_norm norm;
    char got[512] = "";
    assert_ok(text_normalize(tok, e->text, strlen(e->text), &norm));
    for (size_t i = 0; i < norm.segment_count; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%.*s", i ? "|" : "", (int)norm.segments[i].text_bytes,
                 norm.segments[i].text);
    if (norm.upstream_raises)
        snprintf(got, sizeof got, RAISES);
    if (strcmp(got, e->want) != 0)
        fail_msg("\"%s\"\n  got  %s\n  want %s", e->text, got, e->want);
    assert_int_equal(norm.empty_reason != NULL, norm.segment_count == 0);
    assert_int_equal(strlen(norm.whole), norm.whole_bytes);
    text_norm_done(&norm);
}

static void test_examples(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    for (size_t i = 0; i < CF_COUNT(examples); i++)
        expect_norm(tok, &examples[i]);
    tokenizer_close(tok);
}

/* The whole text never gets the full stop that splitting appends, and keeps what splitting drops. */
static void test_whole(void **state)
{
    (void)state;
    static const example cases[] = {
        {"I have 2 dogs", "I have two dogs"}, {"你好，", "你好。"},
        {" Wait... 1?! ", "Wait... one?!"},   {"...", "..."},
        {"  <|a|> 5", "  <|a|> 5"},           {"", ""},
    };
    tokenizer *tok = open_tiny();
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        text_norm norm;
        assert_ok(text_normalize(tok, cases[i].text, strlen(cases[i].text), &norm));
        assert_string_equal(norm.whole, cases[i].want);
        text_norm_done(&norm);
    }
    tokenizer_close(tok);
}

static void test_number_words(void **state)
{
    (void)state;
    static const example cases[] = {
        {"0", "zero"},
        {"000", "zero"},
        {"²", "zero"},
        {"1", "one"},
        {"01", "one"},
        {"007", "seven"},
        {"10", "ten"},
        {"19", "nineteen"},
        {"21", "twenty-one"},
        {"90", "ninety"},
        {"100", "one hundred"},
        {"101", "one hundred and one"},
        {"1001", "one thousand and one"},
        {"1100", "one thousand, one hundred"},
        {"2024", "two thousand and twenty-four"},
        {"1000000099", "one billion and ninety-nine"},
        {"1001000", "one million, one thousand"},
        {"2000100", "two million, one hundred"},
        {"123456789012", "one hundred and twenty-three billion, four hundred and fifty-six million, seven hundred and "
                         "eighty-nine thousand and twelve"},
        {"1000000000000000000000000000000000", "one decillion"},
        {"999000000000000000000000000000000001", "nine hundred and ninety-nine decillion and one"},
        {"0000000000000000000000000000000000000000005", "five"},
        {"3.14", "three.fourteen"},
        {"1,000 people", "one,zero people"},
        {"2nd", "twond"},
        {"A4 x 101B", "Afour x one hundred and oneB"},
        {"x²", "xzero"},
        {"２０", "twenty"},
        {"50%", "fifty%"},
        {"½", "½"},
        {"v2.0.1", "vtwo.zero.one"},
        {"٠٠٠٥", "thousand and five"}, /* zeros of other scripts are not stripped: upstream's own result */
        {"٠٠٥", "five"},
        {"٠١", "one"},
        {"5①7", "fifty-seven"}, /* a circled digit joins the run and counts for nothing */
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        text_buf out = {0};
        bool out_of_range = true;
        assert_ok(number_words_spell_out(cases[i].text, strlen(cases[i].text), &out, &out_of_range));
        assert_false(out_of_range);
        assert_string_equal(out.text, cases[i].want);
        text_buf_done(&out);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    text_norm norm;
    const size_t chars = TEXT_CHARS_MAX;
    char *text = malloc(3 * (chars + 1));
    assert_non_null(text);
    for (size_t i = 0; i <= chars; i++)
        memcpy(text + 3 * i, "字", 3);
    assert_ok(text_normalize(tok, text, 3 * chars, &norm)); /* the bound counts characters, not bytes */
    assert_int_equal(norm.segment_count, 1);
    text_norm_done(&norm);
    assert_err(CF_ERR_LIMIT, "at most 10000 characters, found 10001", text_normalize(tok, text, 3 * chars + 3, &norm));
    assert_err(CF_ERR_LIMIT, "found 10001", text_verbatim(text, 3 * chars + 3, &norm));
    assert_err(CF_ERR_INVALID, "invalid UTF-8 at byte 3", text_normalize(tok, "abc\xff", 4, &norm));
    assert_err(CF_ERR_INVALID, "invalid UTF-8 at byte 6", text_normalize(tok, "<|a|> \xe4\xbd", 8, &norm));
    assert_err(CF_ERR_INVALID, "invalid UTF-8 at byte 0", text_verbatim("\x80", 1, &norm));
    free(text);
    tokenizer_close(tok);
}

static void test_verbatim(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "  a\n", "...", "你好，", "3.5 \"x\""};
    for (size_t i = 0; i < CF_COUNT(texts); i++) {
        text_norm norm;
        assert_ok(text_verbatim(texts[i], strlen(texts[i]), &norm));
        assert_int_equal(norm.segment_count, 1);
        assert_int_equal(norm.segments[0].text_bytes, strlen(texts[i]));
        assert_memory_equal(norm.segments[0].text, texts[i], strlen(texts[i]));
        assert_string_equal(norm.whole, texts[i]);
        text_norm_done(&norm);
    }
}

/* Thousands of marks, quotes and letters in orders of three: bounded work, and never a segment of marks alone. */
static void test_marks_alone(void **state)
{
    (void)state;
    static const char *const parts[] = {".", "\"", " ", "”", "。", "a", "！", "字"};
    tokenizer *tok = open_tiny();
    for (size_t i = 0; i < 8 * 8 * 8; i++) {
        char text[TEXT_CHARS_MAX * 3 + 1];
        size_t used = 0;
        for (size_t k = 0; k < 3000; k++) {
            const char *part = parts[(k % 3 == 0 ? i : k % 3 == 1 ? i / 8 : i / 64) % 8];
            memcpy(text + used, part, strlen(part));
            used += strlen(part);
        }
        text_norm norm;
        assert_ok(text_normalize(tok, text, used, &norm));
        for (size_t k = 0; k < norm.segment_count; k++)
            assert_true(memchr(norm.segments[k].text, 'a', norm.segments[k].text_bytes) ||
                        memchr(norm.segments[k].text, ' ', norm.segments[k].text_bytes) ||
                        memchr(norm.segments[k].text, "字"[0], norm.segments[k].text_bytes));
        text_norm_done(&norm);
        i += i % 7; /* a spread of the 512, not all */
    }
    tokenizer_close(tok);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    static const char *const texts[] = {"One 2. three.", "你好 a - b。", "<|a|>"};
    tokenizer *tok = open_tiny();
    for (size_t i = 0; i < CF_COUNT(texts); i++) {
        cf_err err = CF_ERR_NOMEM;
        for (int n = 1; err != CF_OK; n++) {
            text_norm norm = {0};
            char spec[64];
            assert_true(n < 200);
            snprintf(spec, sizeof spec, "mem.alloc#%d=fail", n);
            assert_ok(fault_arm(spec));
            err = text_normalize(tok, texts[i], strlen(texts[i]), &norm);
            assert_ok(fault_arm(NULL));
            assert_true(err == CF_OK || err == CF_ERR_NOMEM);
            assert_true(n > 2 || err == CF_ERR_NOMEM);
            text_norm_done(&norm);
        }
    }
    tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_number_words),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_verbatim),
        cmocka_unit_test(test_marks_alone),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests_name("text_norm", tests, NULL, NULL);
}
