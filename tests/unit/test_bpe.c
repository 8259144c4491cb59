/*
 * test_bpe.c - the tokenizer: the vectors of text.md 1.6, special tokens, NFC, hostile lengths, and every way in which
 * vocab.json and merges.txt can be wrong.
 */
#include "tests/unit/text_help.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/text/special_tokens.h"

typedef struct vector {
    const char *text, *ids;
} vector;

static const vector released[] = {
    {"今天天气不错，我们一起去公园散步吧。",
     "36171 35727 35727 99180 16530 28726 3837 35946 79478 14777 71618 85336 34317 99354 99632 64682 100003 1773"},
    {"Hello, how are you today?", "9707 11 1246 525 498 3351 30"},
    {"Hello world 你好世界，今天很开心。",
     "9707 1879 220 56568 52801 99244 97120 3837 36171 35727 99165 29767 63109 1773"},
    {"报道[j][ǐ]予好评", "42278 44793 151797 151913 99944 52801 63379"},
    {"The vowel [AA0] is in father, and [B] in boy.",
     "785 76181 220 151665 374 304 6981 11 323 220 151688 304 8171 13"},
    {"他[laughter]笑了笑[breath]，然后[sigh]叹了口气。",
     "42411 151651 48738 34187 48738 151647 3837 60894 33447 151659 100330 34187 39426 99180 1773"},
    {"You are a helpful assistant. 请用普通话表达。<|endofprompt|>",
     "2610 525 264 10950 17847 13 220 14880 11622 99537 31935 57443 20742 93488 1773 151646"},
    {"[n][ǐ][h][ǎo]", "151801 151913 151763 151912"},
    {"<laughter>哈哈</laughter>", "151656 98671 98671 151657"},
    {"You are a helpful assistant.<|endofprompt|>", "2610 525 264 10950 17847 13 151646"},
    {"希望你以后能够做的比我还好呦。",
     "99658 99317 56568 23031 33447 26232 99521 99190 9370 56006 35946 97706 52801 119024 1773"},
    {"You are a helpful assistant. 请用广东话表达。<|endofprompt|>",
     "2610 525 264 10950 17847 13 220 14880 11622 80942 67364 57443 20742 93488 1773 151646"},
    {"八百标兵奔北坡，北坡炮兵并排跑，炮兵怕把标兵碰，标兵怕碰炮兵炮。",
     "99568 99271 30844 99807 100524 48309 101338 3837 48309 101338 104444 99807 62926 59956 99803 3837 104444 99807 "
     "99756 99360 30844 99807 101394 3837 30844 99807 99756 101394 104444 99807 104444 1773"},
    {"高管也通过电话、短信、微信等方式对报道[j][ǐ]予好评。",
     "44636 35551 74763 31935 38182 38212 57443 5373 99534 21317 5373 48934 21317 49567 23384 28330 32664 42278 44793 "
     "151797 151913 99944 52801 63379 1773"},
    {"嗰啲", "99231 108 27209 110"},
    {"Hello! I am an AI voice assistant powered by Fun-CosyVoice3. How may I help you today?",
     "9707 0 358 1079 458 15235 7743 17847 22333 553 16071 7658 436 88 51167 18 13 2585 1231 358 1492 498 3351 30"},
    {"I'm 23, it's  ok!!\n\n Next", "40 2776 220 17 18 11 432 594 220 5394 24796 9295"},
    {"a   b", "64 256 293"},
    {"  ", "256"},
    {" ", "220"},
    {"", ""},
    {"x\n  y", "87 198 220 379"},
    {"don't DON'T", "15007 944 44273 17323"},
    {"🙂", "145080"},
    {"レキシ テキ", "43871 61803 56107 20711 228 61803"},
    {"e\xcc\x81", "963"},
    {"[ín]", "151874"},
    {"[i\xcc\x81n]", "58 24217 60"},
    {"<|endoftext|>", "151643"},
    {"Hello.", "9707 13"},
    {" Hello.", "21927 13"},
    {" 你好", "220 56568 52801"},
    {"[i][in][ing][i", "151764 151766 151767 989"},
    {"[BREATH]", "32622 787 4827 60"},
    {"[ breath]", "58 11486 60"},
    {"[[i]]", "58 151764 60"},
    {"龘", "82912 246"},
    {"Hi", "13048"},
    {"there", "18532"},
    {"Hithere", "39 410 485"},
    {"[i\xcc\x8c]", "58 145145 60"},
};

static void test_released_vectors(void **state)
{
    (void)state;
    tokenizer *tok = open_released();
    assert_int_equal(tokenizer_id_count(tok), 151643 + SPECIAL_COUNT);
    for (size_t i = 0; i < CF_COUNT(released); i++)
        expect_ids(tok, released[i].text, strlen(released[i].text), released[i].ids);
    tokenizer_close(tok);
}

static void test_tiny_vectors(void **state)
{
    (void)state;
    static const vector tiny[] = {
        {"It had not offered any.", "73 116 321 294 295 420 273 121 46"},
        {"You are a helpful assistant. Speak very softly.<|endofprompt|>",
         "385 259 275 259 507 318 491 46 32 83 484 32 312 262 474 116 339 46 514"},
        {"<|endoftext|>", "511"},
        {"a\r\n\n", "97 13 10 10"},
        {"\xcd\x95\xe0\xb4\xbb", "205 149 224 180 187"}, /* U+0D3B is newer than Unicode 9: it stays behind U+0355 */
        {"\xcd\x95\xcc\xb4", "204 180 205 149"},         /* U+0334 is old and moves before it */
        {"[\xe2\x84\xab]", "91 195 133 93"},             /* U+212B is U+00C5 */
        {"\xe0\xa5\x98", "224 164 149 224 164 188"},     /* U+0958 becomes two characters */
    };
    tokenizer *tok = open_tiny();
    for (size_t i = 0; i < CF_COUNT(tiny); i++)
        expect_ids(tok, tiny[i].text, strlen(tiny[i].text), tiny[i].ids);
    expect_ids(tok, "a\0b", 3, "97 0 98");
    tokenizer_close(tok);
}

static void test_special_numbering(void **state)
{
    (void)state;
    static const struct {
        size_t idx;
        const char *text;
    } places[] = {{0, "<|endoftext|>"}, {1, "<|im_start|>"},     {2, "<|im_end|>"}, {3, "<|endofprompt|>"},
                  {4, "[breath]"},      {20, "<|endofsystem|>"}, {21, "[AA]"},      {104, "[ZH]"},
                  {105, "[a]"},         {206, "[zh]"},           {207, "[à]"},      {280, "[ǜ]"}};
    tokenizer *tok = open_tiny();
    assert_int_equal(tokenizer_id_count(tok), 792);
    for (size_t i = 0; i < CF_COUNT(places); i++)
        assert_string_equal(special_text(places[i].idx), places[i].text);
    for (size_t i = 0; i < SPECIAL_COUNT; i++) {
        char want[16];
        snprintf(want, sizeof want, "%zu", 511 + i);
        expect_ids(tok, special_text(i), strlen(special_text(i)), want);
    }
    assert_int_equal(tokenizer_special_id(tok, SPECIAL_END_OF_PROMPT), 514);
    tokenizer_close(tok);
}

/* What special_match rests on: an opening character, one closing character at the end, no second such token. */
static void test_special_shape(void **state)
{
    (void)state;
    for (size_t i = 0; i < SPECIAL_COUNT; i++) {
        const char *text = special_text(i);
        const size_t bytes = strlen(text);
        assert_true(bytes <= SPECIAL_BYTES_MAX);
        assert_true(text[0] == '[' || text[0] == '<');
        assert_ptr_equal(strchr(text, text[0] == '[' ? ']' : '>'), text + bytes - 1);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(text, special_text(k));
    }
}

static void test_special_matching(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int idx;
        size_t off, bytes;
    } cases[] = {
        {"a [breath] b", 4, 2, 8}, {"[[i]]", 121, 1, 3},      {"[i", -1, 0, 0},       {"[BREATH]", -1, 0, 0},
        {"[breath", -1, 0, 0},     {"<|im_start|", -1, 0, 0}, {"<<strong>", 5, 1, 8}, {"", -1, 0, 0},
        {"[a[i]", 121, 2, 3},      {"[]", -1, 0, 0},          {"]", -1, 0, 0},        {"[i][in]", 121, 0, 3},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        size_t off = 0, bytes = 0;
        assert_int_equal(special_find(cases[i].text, strlen(cases[i].text), &off, &bytes), cases[i].idx);
        assert_int_equal(off, cases[i].off);
        assert_int_equal(bytes, cases[i].bytes);
    }
}

static void test_encode_refuses_bad_utf8(void **state)
{
    (void)state;
    static const char *const bad[] = {"ab\xff", "\xc0\x80", "\xed\xa0\x80", "x\xe4\xbd", "\xf4\x90\x80\x80"};
    tokenizer *tok = open_tiny();
    id_list ids = {0};
    assert_ok(tokenizer_encode(tok, "the", 3, &ids));
    const size_t count = ids.id_count;
    for (size_t i = 0; i < CF_COUNT(bad); i++) {
        assert_err(CF_ERR_INVALID, "invalid UTF-8 at byte", tokenizer_encode(tok, bad[i], strlen(bad[i]), &ids));
        assert_int_equal(ids.id_count, count);
    }
    assert_ok(tokenizer_encode(tok, "the", 3, &ids)); /* appends */
    assert_int_equal(ids.id_count, 2 * count);
    id_list_done(&ids);
    tokenizer_close(tok);
}

/* One word of a million bytes: with a merge loop that is quadratic in a word's length this would take hours. */
static void test_long_words_are_not_quadratic(void **state)
{
    (void)state;
    static const char *const patterns[] = {"the", " ", "[", "!", "\n ", "a ", "\xcc\x81"};
    const size_t bytes = 1000000;
    tokenizer *tok = open_tiny();
    char *text = malloc(bytes);
    assert_non_null(text);
    for (size_t i = 0; i < CF_COUNT(patterns); i++) {
        id_list ids = {0};
        const size_t period = strlen(patterns[i]);
        for (size_t k = 0; k < bytes; k++)
            text[k] = patterns[i][k % period];
        assert_ok(tokenizer_encode(tok, text, bytes - bytes % period, &ids));
        assert_true(ids.id_count > 1000 && ids.id_count <= bytes);
        id_list_done(&ids);
    }
    free(text);
    tokenizer_close(tok);
}

/* A vocabulary of the 256 bytes, by the rule itself, then the members of `extra` (which begin with a comma). */
static char *make_vocab(const char *extra)
{
    char *text = malloc(16384);
    assert_non_null(text);
    size_t used = 0;
    for (int byte = 0, moved = 0; byte < 256; byte++) {
        const int own = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        used += (size_t)snprintf(text + used, 16384 - used, "%c\"\\u%04x\": %d", byte ? ',' : '{',
                                 own ? byte : 0x100 + moved++, byte);
    }
    snprintf(text + used, 16384 - used, "%s}", extra);
    return text;
}

static cf_err open_texts(const char *vocab, const char *merges, tokenizer **ret_tok)
{
    const tokenizer_source src = {.vocab_name = "vocab.json",
                                  .vocab = vocab,
                                  .vocab_bytes = strlen(vocab),
                                  .merges_name = "merges.txt",
                                  .merges = merges,
                                  .merges_bytes = strlen(merges)};
    return tokenizer_open_bytes(&src, ret_tok);
}

static void test_merges_are_read_as_they_stand(void **state)
{
    (void)state;
    static const struct {
        const char *merges, *ids; /* of "##aab" with "##" = 256, "aa" = 257, "ab" = 258 */
    } cases[] = {
        {"# #\na a\na b\n", "256 257 98"},                /* '#' is no comment, and line 1 is a merge */
        {"a b\na a\n# #\n", "256 97 258"},                /* the lower line goes first */
        {"#version: 0.2\n# #\na b\na a\n", "256 97 258"}, /* the only header there is */
        {"a a\n# #", "256 257 98"},                       /* no line end at the end */
        {"a b\n", "35 35 97 258"},                        /* an entry alone makes no token: a merge does */
    };
    char *vocab = make_vocab(", \"##\": 256, \"aa\": 257, \"ab\": 258");
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        tokenizer *tok = NULL;
        assert_ok(open_texts(vocab, cases[i].merges, &tok));
        expect_ids(tok, "##aab", 5, cases[i].ids);
        tokenizer_close(tok);
    }
    free(vocab);
}

static void test_vocab_refusals(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *extra, *part;
    } cases[] = {
        {CF_ERR_CORRUPT, ", \"ab\": 257", "without a gap, found none with id 256"},
        {CF_ERR_CORRUPT, ", \"ab\": 256, \"ac\": 256", "id 256 is taken"},
        {CF_ERR_CORRUPT, ", \"ab\": 256, \"ab\": 257", "\"ab\" has ids 256 and 257"},
        {CF_ERR_CORRUPT, ", \"[breath]\": 256", "special token [breath]"},
        {CF_ERR_INVALID, ", \"a b\": 256", "byte alphabet"},
        {CF_ERR_INVALID, ", \"a\\nb\": 256", "token \"a?b\""},
        {CF_ERR_INVALID, ", \"你\": 256", "token \"你\""},
        {CF_ERR_INVALID, ", \"\": 256", "byte alphabet"},
        {CF_ERR_INVALID, ", \"ab\": -1", "expected an integer"},
        {CF_ERR_INVALID, ", \"ab\": 256.5", "expected ',' or the end"},
        {CF_ERR_INVALID, ", \"ab\": 256e2", "expected ',' or the end"},
        {CF_ERR_INVALID, ", \"ab\": 0256", "expected an integer"},
        {CF_ERR_INVALID, ", \"ab\": 262144", "expected an integer in 0..262143"},
        {CF_ERR_INVALID, ", \"ab\": 99999999999999999999999999", "expected an integer"},
        {CF_ERR_INVALID, ", \"ab\": \"256\"", "expected an integer"},
        {CF_ERR_INVALID, ", \"ab\" 256", "expected ':'"},
        {CF_ERR_INVALID, ", \"ab", "does not end"},
        {CF_ERR_INVALID, ", ", "expected a string"},
        {CF_ERR_INVALID, ", \"\\ud800\": 256", "bad escape"},
        {CF_ERR_INVALID, ", \"\\x\": 256", "bad escape"},
        {CF_ERR_INVALID, ", \"a\nb\": 256", "control character"},
        {CF_ERR_INVALID, ", \"a\xff\": 256", "invalid UTF-8"},
        {CF_ERR_INVALID, "} x", "end of the object"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        tokenizer *tok = NULL;
        char *vocab = make_vocab(cases[i].extra);
        assert_err(cases[i].code, cases[i].part, open_texts(vocab, "a b\n", &tok));
        assert_non_null(strstr(err_text(), "vocab.json"));
        assert_null(tok);
        free(vocab);
    }
}

static void test_whole_vocab_refusals(void **state)
{
    (void)state;
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:ca10d7e9\nsize 2776833\n";
    tokenizer *tok = NULL;
    char *vocab = make_vocab("");
    assert_err(CF_ERR_INVALID, "Git LFS pointer", open_texts(lfs, "a b\n", &tok));
    assert_err(CF_ERR_INVALID, "merges.txt: is a Git LFS pointer", open_texts(vocab, lfs, &tok));
    assert_err(CF_ERR_INVALID, "expected a JSON object", open_texts("[]", "a b\n", &tok));
    assert_err(CF_ERR_INVALID, "expected a JSON object", open_texts("", "a b\n", &tok));
    assert_err(CF_ERR_INVALID, "expected a string", open_texts("{}", "a b\n", &tok));
    assert_err(CF_ERR_CORRUPT, "256 single bytes", open_texts("{\"a\": 0}", "a b\n", &tok));
    char long_key[3000] = ", \"";
    memset(long_key + 3, 'a', 2500);
    strcpy(long_key + 2503, "\": 256");
    char *long_vocab = make_vocab(long_key);
    assert_err(CF_ERR_LIMIT, "longer than 2048", open_texts(long_vocab, "a b\n", &tok));
    free(long_vocab);
    free(vocab);
}

static void test_merges_refusals(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *merges, *part;
    } cases[] = {
        {CF_ERR_CORRUPT, "a b\na c\n", "merges.txt:2: the merge's result \"ac\""},
        {CF_ERR_CORRUPT, "xy b\n", "merges.txt:1: the merge's first part \"xy\""},
        {CF_ERR_INVALID, "a b\n\na xy\n", "merges.txt:2: expected two tokens"},
        {CF_ERR_CORRUPT, "a b\na b\n", "merges.txt:2: the merge \"a b\" stands already as number 1"},
        {CF_ERR_INVALID, "", "found none"},
        {CF_ERR_INVALID, "#version: 0.2\n", "found none"},
        {CF_ERR_INVALID, "ab\n", "found \"ab\""},
        {CF_ERR_INVALID, "a b c\n", "found \"a b c\""},
        {CF_ERR_INVALID, "a  b\n", "found \"a  b\""},
        {CF_ERR_INVALID, " b\n", "merges.txt:1"},
        {CF_ERR_INVALID, "a \n", "merges.txt:1"},
        {CF_ERR_INVALID, "a b\r\n", "found \"a b?\""},
        {CF_ERR_INVALID, "a\tb\n", "found \"a?b\""},
        {CF_ERR_INVALID, "a 你\n", "byte alphabet"},
        {CF_ERR_CORRUPT, "a b\n#version: 0.2\n", "merges.txt:2: the merge's first part \"#version:\""},
        {CF_ERR_INVALID, "a \xff\n", "invalid UTF-8"},
    };
    char *vocab = make_vocab(", \"ab\": 256");
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        tokenizer *tok = NULL;
        assert_err(cases[i].code, cases[i].part, open_texts(vocab, cases[i].merges, &tok));
        assert_null(tok);
    }
    free(vocab);
}

static void test_open_names_the_missing_file(void **state)
{
    (void)state;
    tokenizer *tok = NULL;
    char path[4300];
    const char *dir = test_temp_dir();
    assert_err(CF_ERR_NOTFOUND, "vocab.json: no such file", tokenizer_open(dir, &tok));
    snprintf(path, sizeof path, "%s/CosyVoice-BlankEN", dir);
    assert_ok(io_make_dirs(path, 0755));
    snprintf(path, sizeof path, "%s/CosyVoice-BlankEN/vocab.json", dir);
    char *vocab = make_vocab(", \"ab\": 256");
    assert_ok(io_write_file(path, vocab, strlen(vocab)));
    assert_err(CF_ERR_NOTFOUND, "CosyVoice-BlankEN/merges.txt: no such file", tokenizer_open(dir, &tok));
    snprintf(path, sizeof path, "%s/CosyVoice-BlankEN/merges.txt", dir);
    assert_ok(io_write_file(path, "a b\n", 4));
    assert_ok(tokenizer_open(dir, &tok));
    expect_ids(tok, "ab", 2, "256");
    tokenizer_close(tok);
    free(vocab);
}

/* Each allocation fails once: an error comes back, and the sanitizer build sees that nothing leaks. */
static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    char *vocab = make_vocab(", \"ab\": 256"), spec[64];
    bool done = false;
    for (int n = 1; !done; n++) {
        tokenizer *tok = NULL;
        id_list ids = {0};
        assert_true(n < 100);
        snprintf(spec, sizeof spec, "mem.alloc#%d=fail", n);
        assert_ok(fault_arm(spec));
        cf_err err = open_texts(vocab, "a b\n", &tok);
        if (err == CF_OK)
            err = tokenizer_encode(tok, "abe\xcc\x81[i] c", 9, &ids);
        done = err == CF_OK;
        if (!done)
            assert_int_equal(err, CF_ERR_NOMEM);
        assert_ok(fault_arm(NULL));
        id_list_done(&ids);
        tokenizer_close(tok);
        assert_true(n > 4 || !done);
    }
    free(vocab);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released_vectors),
        cmocka_unit_test(test_tiny_vectors),
        cmocka_unit_test(test_special_numbering),
        cmocka_unit_test(test_special_shape),
        cmocka_unit_test(test_special_matching),
        cmocka_unit_test(test_encode_refuses_bad_utf8),
        cmocka_unit_test(test_long_words_are_not_quadratic),
        cmocka_unit_test(test_merges_are_read_as_they_stand),
        cmocka_unit_test(test_vocab_refusals),
        cmocka_unit_test(test_whole_vocab_refusals),
        cmocka_unit_test(test_merges_refusals),
        cmocka_unit_test(test_open_names_the_missing_file),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests_name("bpe", tests, NULL, NULL);
}
