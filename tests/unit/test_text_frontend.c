/* test_text_frontend.c - the plan of a row by mode: prompts, prefixes, bounds, and what is refused. */
#include "tests/unit/text_help.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/limits.h"
#include "common/text/frontend.h"
#include "common/text/special_tokens.h"

/* A plan in words: "prompt ids / segment|segment / flags". */
static void expect_plan(const tokenizer *tok, text_request req, const char *prompt, const char *segments,
                        const char *flags)
{
    text_plan plan;
    id_list want = {0};
    char got[4096] = "", got_flags[64];
    req.text_bytes = strlen(req.text);
    assert_ok(text_prepare(tok, &req, &plan));
    assert_ok(tokenizer_encode(tok, prompt, strlen(prompt), &want));
    assert_int_equal(plan.prompt_id_count, want.id_count);
    if (want.id_count)
        assert_memory_equal(plan.prompt_ids, want.ids, want.id_count * sizeof *want.ids);
    for (size_t i = 0; i < plan.segment_count; i++) {
        const text_segment *s = &plan.segments[i];
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", i ? "|" : "", s->text);
        want.id_count = 0;
        assert_ok(tokenizer_encode(tok, s->text, s->text_bytes, &want));
        assert_int_equal(s->id_count, want.id_count);
        assert_memory_equal(s->ids, want.ids, want.id_count * sizeof *want.ids);
    }
    snprintf(got_flags, sizeof got_flags, "%s%s%s", plan.prefix_added ? "added " : "",
             plan.marker_repeated ? "repeated " : "", plan.empty_reason ? "empty " : "");
    assert_string_equal(got, segments);
    assert_string_equal(got_flags, flags);
    id_list_done(&want);
    text_plan_done(&plan);
}

static void test_zero_shot(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    const text_request base = {.mode = TEXT_ZERO_SHOT, .text = "Read 2 lines"};
    text_request req = base;
    req.prompt_text = TEXT_PREFIX "No 1 knew";
    expect_plan(tok, req, TEXT_PREFIX "No 1 knew", "Read two lines.", "");
    req.prompt_text = "No 1 knew"; /* the prefix is ours, the transcript verbatim as it would be behind the user's */
    expect_plan(tok, req, TEXT_PREFIX "No 1 knew", "Read two lines.", "added ");
    req.prompt_text = "";
    expect_plan(tok, req, TEXT_PREFIX, "Read two lines.", "added ");
    req.raw = true;
    expect_plan(tok, req, TEXT_PREFIX, "Read 2 lines", "added ");
    req = base;
    req.prompt_text = "No 1 knew";
    req.text =
        "Be kind." TEXT_MARKER "Read 2 lines"; /* the text has the marker: transcript normalised, text verbatim */
    expect_plan(tok, req, "No one knew", "Be kind." TEXT_MARKER "Read 2 lines", "");
    req.prompt_text = TEXT_PREFIX;
    expect_plan(tok, req, TEXT_PREFIX, "Be kind." TEXT_MARKER "Read 2 lines", "repeated ");
    req = base;
    req.prompt_text = "";
    req.text = "...";
    expect_plan(tok, req, TEXT_PREFIX, "", "added empty ");
    req.text = " \n ";
    expect_plan(tok, req, TEXT_PREFIX, "", "added empty ");
    tokenizer_close(tok);
}

static void test_saved_prompt_ids(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    id_list ids = {0};
    assert_ok(tokenizer_encode(tok, TEXT_PREFIX "No one", strlen(TEXT_PREFIX "No one"), &ids));
    text_request req = {
        .mode = TEXT_ZERO_SHOT, .text = "A line.", .prompt_ids = ids.ids, .prompt_id_count = ids.id_count};
    expect_plan(tok, req, TEXT_PREFIX "No one", "A line.", "");
    ids.id_count = 0;
    assert_ok(tokenizer_encode(tok, "No one", 6, &ids));
    req.prompt_ids = ids.ids;
    req.prompt_id_count = ids.id_count;
    expect_plan(tok, req, TEXT_PREFIX "No one", "A line.", "added ");
    tokenizer_close(tok);
    id_list_done(&ids);
}

static void test_cross_lingual(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    text_request req = {.mode = TEXT_CROSS_LINGUAL, .text = "你好，3.5", .prompt_text = "not used"};
    expect_plan(tok, req, "", TEXT_PREFIX "你好，3。5。", "added ");
    req.raw = true;
    expect_plan(tok, req, "", TEXT_PREFIX "你好，3.5", "added ");
    req.raw = false;
    req.text = TEXT_PREFIX "你好，3.5";
    expect_plan(tok, req, "", TEXT_PREFIX "你好，3.5", "");
    req.text = "!";
    expect_plan(tok, req, "", "", "added empty ");
    char text[512] = "", want[2048] = ""; /* 90 characters: two segments, each with the prefix */
    for (int i = 0; i < 3; i++)
        strcat(text, "字字字字字字字字字字字字字字字字字字字字字字字字字字字字字。");
    req.text = text;
    snprintf(want, sizeof want, "%s%s", TEXT_PREFIX, text);
    expect_plan(tok, req, "", want, "added "); /* 30, 60, then 90 > 80 but 60 is not > 60 */
    memmove(text + 3, text, strlen(text) + 1);
    memcpy(text, "字", 3);
    snprintf(want, sizeof want, "%s%.*s|%s%s", TEXT_PREFIX, 61 * 3, text, TEXT_PREFIX, text + 61 * 3);
    expect_plan(tok, req, "", want, "added ");
    tokenizer_close(tok);
}

static void test_instruct(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    text_request req = {
        .mode = TEXT_INSTRUCT, .text = "A line.", .instruct = "Speak 2 softly.", .prompt_text = "not used"};
    expect_plan(tok, req, TEXT_INSTRUCT_OPENING "Speak 2 softly." TEXT_MARKER, "A line.", "added ");
    req.instruct = "Be slow." TEXT_MARKER;
    expect_plan(tok, req, "Be slow." TEXT_MARKER, "A line.", "");
    req.text = TEXT_PREFIX "A line";
    expect_plan(tok, req, "Be slow." TEXT_MARKER, TEXT_PREFIX "A line", "repeated ");
    tokenizer_close(tok);
}

static void refuse(const tokenizer *tok, const text_request *req, cf_err code, const char *part)
{
    text_plan plan = {.segment_count = 99};
    assert_err(code, part, text_prepare(tok, req, &plan));
    assert_int_equal(plan.segment_count, 99);
}

static void test_refusals(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    static const int32_t high[] = {0, 792}, low[] = {-1};
    const struct {
        text_request req;
        cf_err code;
        const char *part;
    } cases[] = {
        {{.mode = TEXT_ZERO_SHOT, .text = "", .prompt_text = ""}, CF_ERR_INVALID, "text: expected 1..10000"},
        {{.mode = TEXT_ZERO_SHOT, .text = "a\0b", .text_bytes = 3, .prompt_text = ""},
         CF_ERR_INVALID,
         "NUL character at byte 1"},
        {{.mode = TEXT_ZERO_SHOT, .text = "a\xff", .text_bytes = 2, .prompt_text = ""},
         CF_ERR_INVALID,
         "invalid UTF-8 at byte 1"},
        {{.mode = TEXT_ZERO_SHOT, .text = "a\xff", .text_bytes = 2, .prompt_text = "", .raw = true},
         CF_ERR_INVALID,
         "invalid UTF-8 at byte 1"},
        {{.mode = TEXT_ZERO_SHOT, .text = "a", .text_bytes = 1}, CF_ERR_INVALID, "expected the voice's transcript"},
        {{.mode = TEXT_ZERO_SHOT, .text = "a", .text_bytes = 1, .prompt_text = "\xc0"},
         CF_ERR_INVALID,
         "prompt_text: invalid UTF-8"},
        {{.mode = TEXT_ZERO_SHOT, .text = "<|endofprompt|>", .text_bytes = 15, .prompt_text = ".\"a"},
         CF_ERR_INVALID,
         "prompt_text: a quotation mark"},
        {{.mode = TEXT_ZERO_SHOT, .text = "a", .text_bytes = 1, .prompt_ids = high, .prompt_id_count = 2},
         CF_ERR_INVALID,
         "prompt_ids[1]: expected 0..791, found 792"},
        {{.mode = TEXT_ZERO_SHOT, .text = "a", .text_bytes = 1, .prompt_ids = low, .prompt_id_count = 1},
         CF_ERR_INVALID,
         "prompt_ids[0]"},
        {{.mode = TEXT_INSTRUCT, .text = "a", .text_bytes = 1}, CF_ERR_INVALID, "expected an instruction"},
        {{.mode = TEXT_INSTRUCT, .text = "a", .text_bytes = 1, .instruct = ""},
         CF_ERR_INVALID,
         "expected an instruction"},
        {{.mode = TEXT_INSTRUCT, .text = "a", .text_bytes = 1, .instruct = "\xff"},
         CF_ERR_INVALID,
         "instruct: invalid UTF-8"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++)
        refuse(tok, &cases[i].req, cases[i].code, cases[i].part);
    tokenizer_close(tok);
}

static char *repeated(const char *part, size_t count)
{
    char *text = malloc(strlen(part) * count + 1);
    assert_non_null(text);
    text[0] = '\0';
    for (size_t i = 0; i < count; i++)
        memcpy(text + i * strlen(part), part, strlen(part) + 1);
    return text;
}

static void test_bounds(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    char *long_text = repeated("a", TEXT_CHARS_MAX + 1), *stretch = repeated("!a ", SEGMENT_TEXT_TOKENS_MAX / 2),
         *prompt = repeated("!", PROMPT_TEXT_TOKENS_MAX), *many = repeated("9!", TEXT_CHARS_MAX / 2);
    text_request req = {.mode = TEXT_ZERO_SHOT, .text = long_text, .text_bytes = TEXT_CHARS_MAX + 1, .prompt_text = ""};
    refuse(tok, &req, CF_ERR_LIMIT, "expected at most 10000 characters, found 10001");
    req.text = stretch;
    req.text_bytes = strlen(stretch);
    req.raw = true;
    refuse(tok, &req, CF_ERR_LIMIT, "expected at most 4096");
    req.text = "a";
    req.text_bytes = 1;
    req.prompt_text = prompt; /* with the prefix just too long */
    refuse(tok, &req, CF_ERR_LIMIT, "prompt: expected at most 1024 tokens, found");
    req.prompt_text = long_text;
    refuse(tok, &req, CF_ERR_LIMIT, "prompt_text: expected at most 10000 characters");
    req.mode = TEXT_INSTRUCT;
    req.instruct = long_text;
    refuse(tok, &req, CF_ERR_LIMIT, "instruct: expected at most 10000 characters");
    req = (text_request){.mode = TEXT_ZERO_SHOT, .text = many, .text_bytes = strlen(many), .prompt_text = ""};
    text_plan plan;
    assert_ok(text_prepare(tok, &req, &plan)); /* five thousand sentences pack into few segments */
    assert_in_range(plan.segment_count, 100, SEGMENTS_MAX);
    text_plan_done(&plan);
    free(long_text);
    free(stretch);
    free(prompt);
    free(many);
    tokenizer_close(tok);
}

static void test_mode_names(void **state)
{
    (void)state;
    text_mode mode;
    for (int i = TEXT_ZERO_SHOT; i <= TEXT_INSTRUCT; i++) {
        assert_ok(text_mode_from_name(text_mode_name((text_mode)i), &mode));
        assert_int_equal(mode, i);
    }
    assert_err(CF_ERR_INVALID, "found \"zeroshot\"", text_mode_from_name("zeroshot", &mode));
    assert_err(CF_ERR_INVALID, "expected zero_shot, cross_lingual or instruct", text_mode_from_name("", &mode));
}

/* golden/tiny-0/llm-*.safetensors hold these ids for these strings. */
static void test_golden_ids(void **state)
{
    (void)state;
    static const int32_t prompt[] = {385, 259, 275, 259, 507, 318, 491, 46,  514, 381, 280,
                                     486, 267, 443, 258, 413, 296, 302, 358, 488, 46};
    static const int32_t ids[] = {381, 505, 270, 473, 319, 285, 352, 359, 313, 396, 44, 262, 469, 46};
    tokenizer *tok = open_tiny();
    const char *text = "The first boat came in before dawn, slowly.";
    const text_request req = {.mode = TEXT_ZERO_SHOT,
                              .text = text,
                              .text_bytes = strlen(text),
                              .prompt_text = "The harbour lights were still burning."};
    text_plan plan;
    assert_ok(text_prepare(tok, &req, &plan));
    assert_int_equal(plan.prompt_id_count, CF_COUNT(prompt));
    assert_memory_equal(plan.prompt_ids, prompt, sizeof prompt);
    assert_int_equal(plan.segment_count, 1);
    assert_int_equal(plan.segments[0].id_count, CF_COUNT(ids));
    assert_memory_equal(plan.segments[0].ids, ids, sizeof ids);
    text_plan_done(&plan);
    tokenizer_close(tok);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    tokenizer *tok = open_tiny();
    const text_request requests[] = {
        {.mode = TEXT_ZERO_SHOT, .text = "A 2 b.", .text_bytes = 6, .prompt_text = "No one"},
        {.mode = TEXT_CROSS_LINGUAL, .text = "A 2 b.", .text_bytes = 6},
        {.mode = TEXT_INSTRUCT, .text = "A 2 b.", .text_bytes = 6, .instruct = "slow"},
    };
    for (size_t i = 0; i < CF_COUNT(requests); i++) {
        cf_err err = CF_ERR_NOMEM;
        for (int n = 1; err != CF_OK; n++) {
            text_plan plan = {0};
            char spec[64];
            assert_true(n < 300);
            snprintf(spec, sizeof spec, "mem.alloc#%d=fail", n);
            assert_ok(fault_arm(spec));
            err = text_prepare(tok, &requests[i], &plan);
            assert_ok(fault_arm(NULL));
            assert_true(err == CF_OK || err == CF_ERR_NOMEM);
            assert_true(n > 5 || err == CF_ERR_NOMEM);
            text_plan_done(&plan);
        }
    }
    tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_shot),
        cmocka_unit_test(test_saved_prompt_ids),
        cmocka_unit_test(test_cross_lingual),
        cmocka_unit_test(test_instruct),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_mode_names),
        cmocka_unit_test(test_golden_ids),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests_name("text_frontend", tests, NULL, NULL);
}
