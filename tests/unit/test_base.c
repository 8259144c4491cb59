/* test_base.c - common/base: errors, JSON limits, UTF-8, Philox and Mersenne Twister known answers, files, faults. */
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/base/sha256.h"
#include "common/base/utf8.h"

static void test_err_names_round_trip(void **state)
{
    (void)state;
    for (int code = 0; code >= CF_ERR_GONE; code--)
        assert_int_equal(err_from_name(err_name((cf_err)code)), code);
    assert_string_equal(err_name((cf_err)-99), "unknown");
}

static void test_err_context_prepends(void **state)
{
    (void)state;
    cf_err err = err_set(CF_ERR_LIMIT, "too many");
    assert_int_equal(err_context(err, "file %d", 7), CF_ERR_LIMIT);
    assert_string_equal(err_text(), "file 7: too many");
}

static void test_err_text_is_one_clean_line(void **state)
{
    (void)state;
    static const struct {
        const char *given, *want;
    } cases[] = {
        {"caf\xc3\xa9 \xe4\xb8\xad", "caf\xc3\xa9 \xe4\xb8\xad"},
        {"a\nforged=line\r\t", "a?forged=line??"},
        {"\x1b[31mred\x7f", "?[31mred?"},
        {"\xc2\x9b[31m", "??[31m"}, /* U+009B: what ESC [ is in one character */
        {"half \xe4\xb8", "half ??"},
        {"\xff\xc0\x80", "???"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cf_err err = err_set(CF_ERR_INVALID, "%s", cases[i].given);
        assert_string_equal(err_text(), cases[i].want);
        err = err_context(err, "%s", cases[i].given);
        assert_int_equal(err, CF_ERR_INVALID);
        assert_int_equal(strlen(err_text()), 2 * strlen(cases[i].want) + 2);
        assert_memory_equal(err_text(), cases[i].want, strlen(cases[i].want));
    }
    char longest[2000]; /* cut in the middle of a character */
    for (size_t i = 0; i + 3 <= sizeof longest - 1; i += 3)
        memcpy(longest + i, "\xe4\xb8\xad", 4);
    assert_int_equal(err_set(CF_ERR_LIMIT, "%s", longest), CF_ERR_LIMIT);
    assert_int_equal(strlen(err_text()), 1023);
    assert_true(utf8_valid(err_text(), strlen(err_text()), NULL));
}

static void refuse(const char *text, const char *part)
{
    json *root = NULL;
    assert_err(CF_ERR_INVALID, part, json_parse(text, strlen(text), 4, &root));
    assert_null(root);
}

static void test_json_refuses(void **state)
{
    (void)state;
    refuse("{\"a\":1,\"a\":2}", "twice");
    refuse("{} x", "after the value");
    refuse("[[[[[1]]]]]", "deeper than 4");
    refuse("{\"a\":\"\xff\"}", "UTF-8");
    refuse("{\"a\":", "syntax");
    refuse("", "syntax");
    refuse("\"a\nb\"", "control");
    char many[4096] = "{";
    for (int i = 0; i < 100; i++)
        sprintf(many + strlen(many), "\"k%d\":1,", i);
    strcat(many, "\"k50\":1}");
    refuse(many, "\"k50\" appears twice");
}

static void test_json_ranges(void **state)
{
    (void)state;
    const char *text =
        "{\"n\":5,\"f\":1.5,\"neg\":-1,\"big\":\"18446744073709551615\",\"over\":\"18446744073709551616\"}";
    json *root;
    uint64_t v;
    assert_ok(json_parse(text, strlen(text), 4, &root));
    assert_ok(json_get_u64(root, "n", 0, 10, &v));
    assert_int_equal(v, 5);
    assert_err(CF_ERR_INVALID, "expected 6..10", json_get_u64(root, "n", 6, 10, &v));
    assert_err(CF_ERR_INVALID, "unsigned integer", json_get_u64(root, "f", 0, 10, &v));
    assert_err(CF_ERR_INVALID, "unsigned integer", json_get_u64(root, "neg", 0, 10, &v));
    assert_err(CF_ERR_INVALID, "64 bits", json_get_u64(root, "over", 0, UINT64_MAX, &v));
    assert_err(CF_ERR_INVALID, "missing", json_get_u64(root, "absent", 0, 10, &v));
    assert_ok(json_get_u64(root, "big", 0, UINT64_MAX, &v));
    assert_true(v == UINT64_MAX);
    static const char *const keys[] = {"n", "f", "negg", "big", NULL};
    assert_err(CF_ERR_INVALID, "did you mean \"negg\"", json_only_keys(root, "test", keys));
    json_close(root);
}

/* cJSON alone printed 4856027069931781 as ...780: a worker's first word then named another boot and was dropped. */
static void test_json_integers_are_exact(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t words[4];
        rng_philox(3, (const uint32_t[4]){i}, words);
        const uint64_t v = i == 0 ? 4856027069931781u : ((uint64_t)words[0] << 32 | words[1]) >> i % 40;
        char *text;
        json *obj = json_object(), *root;
        uint64_t back;
        json_put_u64(obj, "v", v);
        assert_ok(json_print(obj, false, &text));
        assert_ok(json_parse(text, strlen(text), 4, &root));
        assert_ok(json_get_u64(root, "v", 0, UINT64_MAX, &back));
        assert_true(back == v);
        json_close(obj);
        json_close(root);
        mem_free(text);
    }
}

static void test_json_writes_what_it_reads(void **state)
{
    (void)state;
    const int32_t ids[] = {3, 1, 2};
    json *obj = json_object();
    json_put_u64(obj, "seed", UINT64_MAX);
    json_put_i32s(obj, "ids", ids, 3);
    json_put_str(obj, "s", "a\"b");
    char *text = NULL;
    assert_ok(json_print(obj, false, &text));
    assert_string_equal(text, "{\"seed\":\"18446744073709551615\",\"ids\":[3,1,2],\"s\":\"a\\\"b\"}");
    json_close(obj);
    json *root;
    int32_t *back;
    size_t count;
    assert_ok(json_parse(text, strlen(text), 4, &root));
    assert_ok(json_get_i32s(root, "ids", 1, 3, 3, &back, &count));
    assert_int_equal(count, 3);
    assert_memory_equal(back, ids, sizeof ids);
    mem_free(back);
    assert_err(CF_ERR_LIMIT, "at most 2", json_get_i32s(root, "ids", 1, 3, 2, &back, &count));
    assert_err(CF_ERR_INVALID, "ids[0]", json_get_i32s(root, "ids", 1, 2, 3, &back, &count));
    json_close(root);
    mem_free(text);
}

static void test_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        int valid;
    } cases[] = {
        {"", 1},
        {"a", 1},
        {"\xc3\xa9", 1},
        {"\xe4\xbd\xa0", 1},
        {"\xf0\x9f\x99\x82", 1},
        {"\xc0\x80", 0},
        {"\xe0\x80\x80", 0},
        {"\xed\xa0\x80", 0},
        {"\xf4\x90\x80\x80", 0},
        {"\xe4\xbd", 0},
        {"\x80", 0},
        {"\xff", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(utf8_valid(cases[i].bytes, strlen(cases[i].bytes), NULL), cases[i].valid);
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp += 37) {
        if (cp >= 0xD800 && cp <= 0xDFFF)
            continue;
        char bytes[4];
        uint32_t back = 0;
        const size_t n = utf8_encode(cp, bytes);
        assert_int_equal(utf8_decode(bytes, n, &back), n);
        assert_int_equal(back, cp);
    }
}

static void test_philox_known_answers(void **state)
{
    (void)state;
    /* Random123 kat_vectors, philox4x32 10 rounds. */
    uint32_t w[4];
    rng_philox(0, (const uint32_t[4]){0, 0, 0, 0}, w);
    assert_int_equal(w[0], 0x6627e8d5);
    assert_int_equal(w[3], 0x9b00dbd8);
    rng_philox(UINT64_MAX, (const uint32_t[4]){~0u, ~0u, ~0u, ~0u}, w);
    assert_int_equal(w[0], 0x408f276d);
    assert_int_equal(w[1], 0x41c83b0e);
    rng_philox(0x299f31d0a4093822ull, (const uint32_t[4]){0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, w);
    assert_int_equal(w[0], 0xd16cfe09);
    assert_int_equal(w[2], 0x5001e420);
}

static void test_mersenne_known_answers(void **state)
{
    (void)state;
    static const uint32_t first[] = {2357136044u, 2546248239u, 3071714933u, 3626093760u};
    static rng_mt mt, skipped;
    rng_mt_init(&mt, 0);
    rng_mt_init(&skipped, 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(rng_mt_word(&mt), first[i]);
    for (int i = 4; i < 5000; i++)
        rng_mt_word(&mt);
    rng_mt_skip(&skipped, 5000);
    assert_int_equal(rng_mt_word(&mt), rng_mt_word(&skipped));
}

static void test_sha256_and_fnv(void **state)
{
    (void)state;
    char hex[SHA256_HEX_BYTES];
    assert_ok(sha256_of("abc", 3, hex));
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_true(fnv1a64(FNV64_OFFSET, "a", 1) == 0xaf63dc4c8601ec8cull);
}

static void test_files(void **state)
{
    (void)state;
    char path[4200];
    const char *dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/a/b", dir);
    assert_ok(io_make_dirs(path, 0755));
    snprintf(path, sizeof path, "%s/a/b/f", dir);
    assert_ok(io_write_file(path, "hello", 5));
    char *text;
    size_t bytes;
    assert_ok(io_read_file(path, 5, &text, &bytes));
    assert_string_equal(text, "hello");
    mem_free(text);
    assert_err(CF_ERR_LIMIT, "at most 4", io_read_file(path, 4, &text, &bytes));
    assert_err(CF_ERR_NOTFOUND, "no such file", io_read_file("/nonexistent/x", 4, &text, &bytes));
    snprintf(path, sizeof path, "%s/fifo", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_err(CF_ERR_INVALID, "fifo: not a regular file", io_read_file(path, 4, &text, &bytes)); /* at once */
    snprintf(path, sizeof path, "%s/a/b/f", dir);
    assert_ok(fault_arm("io.write=fail"));
    assert_err(CF_ERR_STORAGE, "No space", io_write_file(path, "other", 5));
    assert_ok(fault_arm(NULL));
    io_map map;
    assert_ok(io_map_file(path, &map)); /* the failed write left the old contents */
    assert_int_equal(map.data_bytes, 5);
    assert_memory_equal(map.data, "hello", 5);
    io_unmap(&map);
}

/* That a file is not there is one answer, that nobody can tell another one. */
static void test_files_out_of_reach(void **state)
{
    (void)state;
    struct stat st;
    struct dirent *entry;
    bool is_there = true;
    const char *dir = test_temp_dir();
    DIR *d = opendir(dir);
    assert_non_null(d);
    assert_ok(io_find("/nonexistent/x", &is_there));
    assert_false(is_there);
    assert_err(CF_ERR_NOTFOUND, "/nonexistent/x: No such file", io_stat("/nonexistent/x", &st));
    assert_ok(io_find(dir, &is_there));
    assert_true(is_there);
    assert_ok(fault_arm("io.stat=fail,io.entry=fail"));
    assert_err(CF_ERR_SYS, "Input/output error", io_find(dir, &is_there));
    assert_err(CF_ERR_SYS, "Input/output error", io_next_entry(d, dir, &entry));
    assert_ok(fault_arm(NULL));
    int entries = 0;
    do
        assert_ok(io_next_entry(d, dir, &entry));
    while (entry && ++entries < 9);
    assert_int_equal(entries, 2); /* . and .. */
    closedir(d);
}

static void test_faults(void **state)
{
    (void)state;
    assert_ok(fault_arm("x#2=fail"));
    assert_false(fault_hit("x"));
    assert_false(fault_hit("y"));
    assert_true(fault_hit("x"));
    assert_false(fault_hit("x"));
    assert_int_equal(fault_hits("x"), 3);
    assert_int_equal(fault_hits("y"), 0);
    assert_err(CF_ERR_INVALID, "action", fault_arm("x=explode"));
    assert_err(CF_ERR_INVALID, "hit", fault_arm("x#0=fail"));
    assert_ok(fault_arm(NULL));
}

static void test_arena(void **state)
{
    (void)state;
    arena a;
    unsigned char *p, *q;
    assert_ok(arena_open(1 << 20, &a));
    assert_ok(arena_take(&a, 100, &p));
    const size_t mark = arena_mark(&a);
    assert_ok(arena_take(&a, 1 << 19, &q));
    assert_int_equal((uintptr_t)q % 64, 0);
    assert_err(CF_ERR_NOMEM, "scratch exhausted", arena_take(&a, 1 << 19, &q));
    arena_reset(&a, mark);
    assert_ok(arena_take(&a, 1 << 19, &q));
    arena_close(&a);
}

/* A member heard after `now` was read was taken for silent since the beginning of time, and killed. */
static void test_clock_since(void **state)
{
    (void)state;
    assert_true(clock_since_us(5, 7) == 2);
    assert_true(clock_since_us(7, 7) == 0);
    assert_true(clock_since_us(8, 7) == 0);
    assert_true(clock_since_us(0, UINT64_MAX) == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err_names_round_trip),
        cmocka_unit_test(test_err_context_prepends),
        cmocka_unit_test(test_err_text_is_one_clean_line),
        cmocka_unit_test(test_json_refuses),
        cmocka_unit_test(test_json_integers_are_exact),
        cmocka_unit_test(test_json_ranges),
        cmocka_unit_test(test_json_writes_what_it_reads),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_mersenne_known_answers),
        cmocka_unit_test(test_sha256_and_fnv),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_files_out_of_reach),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_clock_since),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
