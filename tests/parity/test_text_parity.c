/*
 * test_text_parity.c - our tokens and segments against upstream's, line by line: the shared files in full, and in the
 * repository a sample of them that the tiny vocabulary decides. Every line must be equal.
 */
#include "tests/unit/text_help.h"

#include <stdlib.h>

#include "common/base/io.h"
#include "common/base/json_scan.h"
#include "common/base/mem.h"
#include "common/text/text_norm.h"

#define LINE_STRING_BYTES 65536
#define LINE_ITEMS        4096

/* One line of either file; strings may hold NUL. */
typedef struct golden_line {
    char text[LINE_STRING_BYTES];
    size_t text_bytes;
    int32_t ids[2][LINE_ITEMS]; /* real, tiny */
    size_t id_count[2];
    char whole[LINE_STRING_BYTES];
    size_t whole_bytes;
    bool raises;       /* split and whole are {"error": ...} */
    const char *split; /* where the list of segments begins in the line */
    const char *end;   /* of the line */
    bool has[2];       /* which of real and tiny the line gives */
} golden_line;

static void read_ids(json_scan *s, int32_t *ret_ids, size_t *ret_count)
{
    size_t count = 0;
    uint32_t id;
    assert_true(json_scan_take(s, '['));
    while (!json_scan_take(s, ']')) {
        assert_true(count < LINE_ITEMS);
        assert_ok(json_scan_u32(s, 200000, &id));
        ret_ids[count++] = (int32_t)id;
        json_scan_take(s, ',');
    }
    *ret_count = count;
}

static void read_line(const char *line, size_t line_bytes, golden_line *l)
{
    json_scan s = {.text = line, .text_bytes = line_bytes};
    l->has[0] = l->has[1] = l->raises = false;
    l->split = NULL;
    l->end = line + line_bytes;
    assert_true(json_scan_take(&s, '{'));
    do {
        char key[16];
        size_t key_bytes;
        assert_ok(json_scan_string(&s, key, sizeof key - 1, &key_bytes));
        key[key_bytes] = '\0';
        assert_true(json_scan_take(&s, ':'));
        json_scan peek = s;
        const bool is_object = json_scan_take(&peek, '{');
        if (strcmp(key, "text") == 0)
            assert_ok(json_scan_string(&s, l->text, sizeof l->text, &l->text_bytes));
        else if (strcmp(key, "whole") == 0 && !is_object)
            assert_ok(json_scan_string(&s, l->whole, sizeof l->whole, &l->whole_bytes));
        else if (strcmp(key, "real") == 0 || strcmp(key, "tiny") == 0) {
            const int which = key[0] == 't';
            l->has[which] = true;
            read_ids(&s, l->ids[which], &l->id_count[which]);
        } else {
            assert_true(strcmp(key, "split") == 0 || strcmp(key, "whole") == 0);
            l->raises = l->raises || is_object;
            if (key[0] == 's')
                l->split = s.text + s.off;
            assert_ok(json_scan_skip(&s, 4));
        }
    } while (json_scan_take(&s, ','));
    assert_true(json_scan_take(&s, '}') && json_scan_end(&s));
}

/* Fails unless the line comes out as upstream has it; toks: released and tiny, NULL where it is not at hand. */
typedef void line_check(const golden_line *l, size_t line_no, const tokenizer *const *toks);

/* Calls check for each line of the file and returns how many there were. */
static size_t each_line(const char *path, line_check *check, const tokenizer *const *toks)
{
    char *file;
    size_t file_bytes, line_no = 0;
    golden_line *l = calloc(1, sizeof *l);
    assert_non_null(l);
    assert_ok(io_read_file(path, 1 << 20, &file, &file_bytes));
    for (char *p = file, *newline; p < file + file_bytes; p = newline + 1) {
        newline = memchr(p, '\n', (size_t)(file + file_bytes - p));
        assert_non_null(newline);
        read_line(p, (size_t)(newline - p), l);
        check(l, ++line_no, toks);
    }
    free(l);
    mem_free(file);
    return line_no;
}

static void check_tokens(const golden_line *l, size_t line_no, const tokenizer *const *toks)
{
    for (int which = 0; which < 2; which++) {
        id_list ids = {0};
        if (!toks[which])
            continue;
        assert_true(l->has[which]);
        assert_ok(tokenizer_encode(toks[which], l->text, l->text_bytes, &ids));
        if (ids.id_count != l->id_count[which] || memcmp(ids.ids, l->ids[which], ids.id_count * sizeof *ids.ids) != 0)
            fail_msg("line %zu, %s vocabulary: ids differ for \"%s\"", line_no, which ? "tiny" : "released", l->text);
        id_list_done(&ids);
    }
}

static void check_normalize(const golden_line *l, size_t line_no, const tokenizer *const *toks)
{
    text_norm norm;
    char want[LINE_STRING_BYTES];
    size_t want_bytes, i = 0;
    assert_non_null(l->split);
    assert_ok(text_normalize(toks[0] ? toks[0] : toks[1], l->text, l->text_bytes, &norm));
    if (l->raises != norm.upstream_raises || (l->raises && norm.segment_count > 0))
        fail_msg("line %zu: upstream raises or does not, for \"%s\"", line_no, l->text);
    json_scan s = {.text = l->split, .text_bytes = (size_t)(l->end - l->split)};
    if (!l->raises) {
        if (norm.whole_bytes != l->whole_bytes || memcmp(norm.whole, l->whole, l->whole_bytes) != 0)
            fail_msg("line %zu: whole\n  got  %s\n  want %s", line_no, norm.whole, l->whole);
        assert_true(json_scan_take(&s, '['));
        for (; !json_scan_take(&s, ']'); i++) {
            assert_ok(json_scan_string(&s, want, sizeof want, &want_bytes));
            if (i >= norm.segment_count || norm.segments[i].text_bytes != want_bytes ||
                memcmp(norm.segments[i].text, want, want_bytes) != 0)
                fail_msg("line %zu: segment %zu of \"%s\" differs", line_no, i, l->text);
            json_scan_take(&s, ',');
        }
        assert_int_equal(i, norm.segment_count);
    }
    text_norm_done(&norm);
}

static void test_sampled_tokens(void **state)
{
    (void)state;
    tokenizer *tiny = open_tiny();
    const tokenizer *const toks[2] = {NULL, tiny};
    assert_int_equal(each_line(test_path("tests/golden/text/tokens.jsonl"), check_tokens, toks), 160);
    tokenizer_close(tiny);
}

static void test_sampled_normalize(void **state)
{
    (void)state;
    tokenizer *tiny = open_tiny();
    const tokenizer *const toks[2] = {NULL, tiny};
    assert_int_equal(each_line(test_path("tests/golden/text/normalize.jsonl"), check_normalize, toks), 101);
    tokenizer_close(tiny);
}

static void test_all_tokens(void **state)
{
    (void)state;
    const char *path = test_shared("golden/text/tokens.jsonl");
    tokenizer *real = open_released(), *tiny = open_tiny();
    const tokenizer *const toks[2] = {real, tiny};
    assert_int_equal(each_line(path, check_tokens, toks), 500);
    tokenizer_close(real);
    tokenizer_close(tiny);
}

static void test_all_normalize(void **state)
{
    (void)state;
    const char *path = test_shared("golden/text/normalize.jsonl");
    tokenizer *real = open_released();
    const tokenizer *const toks[2] = {real, NULL};
    assert_int_equal(each_line(path, check_normalize, toks), 500);
    tokenizer_close(real);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampled_tokens),
        cmocka_unit_test(test_sampled_normalize),
        cmocka_unit_test(test_all_tokens),
        cmocka_unit_test(test_all_normalize),
    };
    return cmocka_run_group_tests_name("text_parity", tests, NULL, NULL);
}
