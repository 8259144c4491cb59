/* test_manifest.c - rows of a batch: what is accepted or refused, repeated ids, shards, the set of ids. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "orchestrator/manifest.h"

static const manifest_defaults plain = {.format = "wav", .run_seed = 7, .speed = 1};

/* A file of the folder that all cases share. */
static const char *write_rows(const char *name, const char *text, size_t bytes)
{
    static char dir[IO_PATH_BYTES], path[IO_PATH_BYTES];
    if (!dir[0])
        snprintf(dir, sizeof dir, "%s", test_temp_dir());
    assert_ok(io_join(path, sizeof path, dir, name));
    assert_ok(io_write_file(path, text, bytes));
    return path;
}

static manifest *open_text(const char *name, const char *text, const manifest_defaults *defaults)
{
    manifest *m;
    assert_ok(manifest_open(write_rows(name, text, strlen(text)), NULL, defaults, &m));
    return m;
}

static void next_row(manifest *m, manifest_row *row)
{
    bool end;
    assert_ok(manifest_next(m, row, &end));
    assert_false(end);
}

static void expect_end(manifest *m)
{
    manifest_row row;
    bool end;
    assert_ok(manifest_next(m, &row, &end));
    assert_true(end);
}

/* The first line of a manifest of these lines is refused with this text, the second, good, is not. */
static void refuse(const char *part, const char *line)
{
    manifest_row row;
    bool end;
    char *text;
    const size_t bytes = strlen(line) + 64;
    assert_ok(mem_alloc(bytes, 1, &text));
    snprintf(text, bytes, "%s\n{\"id\":\"good\",\"text\":\"x\"}\n", line);
    manifest *m = open_text("rows.jsonl", text, &plain);
    assert_err(CF_ERR_INVALID, part, manifest_next(m, &row, &end));
    assert_non_null(strstr(err_text(), "rows.jsonl:1: "));
    next_row(m, &row);
    assert_string_equal(row.id, "good");
    assert_int_equal(row.line, 2);
    expect_end(m);
    manifest_close(m);
    mem_free(text);
}

static void test_row_of_every_key(void **state)
{
    (void)state;
    manifest_row row;
    manifest *m = open_text("a.jsonl",
                            "{\"id\":\"ch1/a.1\",\"text\":\"Good day.\",\"voice\":\"echo\",\"mode\":\"instruct\","
                            "\"instruct\":\"Softly.\",\"seed\":\"18446744073709551615\",\"speed\":0.5,"
                            "\"format\":\"flac\",\"priority\":9,\"raw\":true}\n",
                            &plain);
    next_row(m, &row);
    assert_string_equal(row.id, "ch1/a.1");
    assert_string_equal(row.text, "Good day.");
    assert_string_equal(row.voice, "echo");
    assert_string_equal(row.mode, "instruct");
    assert_string_equal(row.instruct, "Softly.");
    assert_string_equal(row.format, "flac");
    assert_true(row.seed == UINT64_MAX && row.speed == 0.5 && row.priority == 9 && row.raw);
    assert_null(row.prompt_wav);
    assert_null(row.source_wav);
    expect_end(m);
    manifest_close(m);
}

static void test_defaults(void **state)
{
    (void)state;
    const manifest_defaults d = {
        .voice = "vale", .mode = "cross_lingual", .format = "ogg", .speed = 1.5, .priority = 3};
    manifest_row row;
    manifest *m = open_text("a.jsonl",
                            "{\"id\":\"a\",\"text\":\"x\"}\n"
                            "{\"id\":\"b\",\"text\":\"x\",\"instruct\":\"Softly.\",\"raw\":false}\n"
                            "{\"id\":\"c\",\"text\":\"x\",\"prompt_wav\":\"p.wav\",\"prompt_text\":\"Hello.\"}\n"
                            "{\"id\":\"d\",\"source_wav\":\"s.wav\"}\n",
                            &d);
    next_row(m, &row);
    assert_string_equal(row.voice, "vale");
    assert_string_equal(row.mode, "cross_lingual");
    assert_string_equal(row.format, "ogg");
    assert_null(row.instruct);
    assert_true(row.speed == 1.5 && row.priority == 3 && !row.raw);
    next_row(m, &row); /* an instruction without a mode means mode instruct */
    assert_string_equal(row.mode, "instruct");
    next_row(m, &row); /* its own recording replaces the default voice */
    assert_null(row.voice);
    assert_string_equal(row.prompt_text, "Hello.");
    next_row(m, &row);
    assert_null(row.text);
    assert_null(row.mode);
    assert_string_equal(row.source_wav, "s.wav");
    assert_string_equal(row.voice, "vale");
    manifest_close(m);
}

static void test_default_instruction(void **state)
{
    (void)state;
    const manifest_defaults d = {.instruct = "Fast.", .format = "wav", .speed = 1};
    manifest_row row;
    manifest *m = open_text("a.jsonl",
                            "{\"id\":\"a\",\"text\":\"x\"}\n"
                            "{\"id\":\"b\",\"text\":\"x\",\"instruct\":\"Slow.\"}\n"
                            "{\"id\":\"c\",\"text\":\"x\",\"mode\":\"zero_shot\"}\n",
                            &d);
    next_row(m, &row);
    assert_string_equal(row.mode, "instruct");
    assert_string_equal(row.instruct, "Fast.");
    next_row(m, &row);
    assert_string_equal(row.instruct, "Slow.");
    next_row(m, &row); /* the row's mode wins over the command line's instruction */
    assert_string_equal(row.mode, "zero_shot");
    assert_null(row.instruct);
    manifest_close(m);
}

static void test_default_seed_is_of_run_seed_and_id_alone(void **state)
{
    (void)state;
    /* Both figures are from Python: struct.unpack("<Q", hashlib.sha256(...).digest()[:8]). */
    uint64_t seed, other;
    assert_ok(manifest_row_seed(7, "a", &seed));
    assert_true(seed == UINT64_C(15540869305870523851));
    assert_ok(manifest_row_seed(8, "a", &other));
    assert_true(seed != other);
    manifest_row row;
    manifest *m = open_text("a.jsonl", "{\"id\":\"b\",\"text\":\"x\"}\n{\"text\":\"y\",\"id\":\"a\"}\n", &plain);
    next_row(m, &row);
    assert_true(row.seed != seed);
    next_row(m, &row);
    assert_true(row.seed == seed);
    manifest_close(m);
    assert_ok(id_hash("a", &seed));
    assert_true(seed == UINT64_C(14608863320967583690));
}

static void test_tolerates_mark_carriage_returns_blank_lines(void **state)
{
    (void)state;
    manifest_row row;
    manifest *m = open_text(
        "a.jsonl", "\xEF\xBB\xBF{\"id\":\"a\",\"text\":\"x\"}\r\n\r\n  \t\n{\"id\":\"b\",\"text\":\"x\"}", &plain);
    for (int pass = 0; pass < 2; pass++) {
        next_row(m, &row);
        assert_string_equal(row.id, "a");
        next_row(m, &row);
        assert_string_equal(row.id, "b");
        assert_int_equal(row.line, 4);
        expect_end(m);
        expect_end(m);
        assert_ok(manifest_rewind(m));
    }
    manifest_close(m);
    m = open_text("a.jsonl", "", &plain);
    expect_end(m);
    manifest_close(m);
}

static void test_columns(void **state)
{
    (void)state;
    const manifest_defaults d = {.voice = "vale", .format = "wav", .speed = 1};
    manifest_row row;
    bool end;
    manifest *m = open_text("metadata.csv",
                            "LJ001-0001|Printed in 1455, \"by\" him|Printed in fourteen fifty-five\r\n"
                            "b|Two words\n"
                            "c\n"
                            "d|1|2|3\n"
                            "e|Dr. X|\n"
                            "f g|x\n"
                            "h|\xff\n"
                            "i|last",
                            &d);
    next_row(m, &row);
    assert_string_equal(row.id, "LJ001-0001");
    assert_string_equal(row.text, "Printed in fourteen fifty-five");
    assert_string_equal(row.voice, "vale");
    assert_string_equal(row.mode, "zero_shot");
    next_row(m, &row);
    assert_string_equal(row.text, "Two words");
    assert_err(CF_ERR_INVALID, "metadata.csv:3: expected id|text", manifest_next(m, &row, &end));
    assert_err(CF_ERR_INVALID, "metadata.csv:4: expected id|text or id|transcription|normalised transcription, found 4",
               manifest_next(m, &row, &end));
    assert_err(CF_ERR_INVALID, "metadata.csv:5: text: expected 1..10000", manifest_next(m, &row, &end));
    assert_err(CF_ERR_INVALID, "metadata.csv:6: id \"f g\": character 2", manifest_next(m, &row, &end));
    assert_err(CF_ERR_INVALID, "metadata.csv:7: invalid UTF-8 at byte 2", manifest_next(m, &row, &end));
    next_row(m, &row);
    assert_string_equal(row.id, "i");
    expect_end(m);
    manifest_close(m);
    static const char nul[] = "a|x\0y\n";
    assert_ok(manifest_open(write_rows("nul.TXT", nul, sizeof nul - 1), NULL, &d, &m));
    assert_err(CF_ERR_INVALID, "NUL character at byte 3", manifest_next(m, &row, &end));
    manifest_close(m);
}

static void test_refuses_keys(void **state)
{
    (void)state;
    refuse("rows.jsonl:1: key \"txet\" is not known; did you mean \"text\"?", "{\"id\":\"a\",\"txet\":\"x\"}");
    refuse("key \"volume\" is not known", "{\"id\":\"a\",\"text\":\"x\",\"volume\":1}");
    refuse("key \"text\" appears twice", "{\"id\":\"a\",\"text\":\"x\",\"text\":\"y\"}");
    refuse("key \"id\" is missing", "{\"text\":\"x\"}");
    refuse("key \"text\" is missing", "{\"id\":\"a\"}");
    refuse("expected an object", "[1]");
    refuse("syntax error", "{\"id\":\"a\",\"text\":\"x\"");
    refuse("after the value", "{\"id\":\"a\",\"text\":\"x\"}{}");
    refuse("invalid UTF-8", "{\"id\":\"a\",\"text\":\"\xff\"}");
    refuse("NUL character", "{\"id\":\"a\",\"text\":\"\\u0000\"}");
    refuse("key \"?[31m\"", "{\"\\u001b[31m\":1}"); /* no escape sequence reaches a terminal */
}

static void test_refuses_ids(void **state)
{
    (void)state;
    char line[512], id[NAME_BYTES_MAX + 2];
    static const char *const cases[][2] = {
        {"", "id: expected 1..200 characters, found 0"},
        {"/a", "an empty name"},
        {"a/", "an empty name"},
        {"a//b", "an empty name"},
        {"..", "\"..\" is not allowed"},
        {"a/../b", "\"..\" is not allowed"},
        {".", "\".\" is not allowed"},
        {"a/./b", "\".\" is not allowed"},
        {"a b", "character 2 is none of"},
        {"a\\\\b", "character 2"},
        {"\xc3\xa4", "character 1"},
        {"a:b", "character 2"},
        {"a.wav/b", "folder \"a.wav\" ends like"},
        {"x/.mp3/b", "folder \".mp3\" ends like"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(line, sizeof line, "{\"id\":\"%s\",\"text\":\"x\"}", cases[i][0]);
        refuse(cases[i][1], line);
    }
    memset(id, 'a', sizeof id - 1);
    id[sizeof id - 1] = '\0';
    snprintf(line, sizeof line, "{\"id\":\"%s\",\"text\":\"x\"}", id);
    refuse("found 201", line);
    refuse("id: expected a string", "{\"id\":5,\"text\":\"x\"}");
}

static void test_accepts_ids(void **state)
{
    (void)state;
    static const char text[] = "{\"id\":\"...\",\"text\":\"x\"}\n{\"id\":\"..a/b..\",\"text\":\"x\"}\n"
                               "{\"id\":\"a.wav\",\"text\":\"x\"}\n{\"id\":\"-/_.wav.x/A\",\"text\":\"x\"}\n";
    manifest_row row;
    manifest *m = open_text("a.jsonl", text, &plain);
    for (int i = 0; i < 4; i++)
        next_row(m, &row);
    expect_end(m);
    manifest_close(m);
}

static void test_refuses_values(void **state)
{
    (void)state;
#define ROW(more) "{\"id\":\"a\",\"text\":\"x\"," more "}"
    refuse("text: expected 1..10000 characters, found 0", "{\"id\":\"a\",\"text\":\"\"}");
    refuse("text: expected a string", "{\"id\":\"a\",\"text\":null}");
    refuse("begins with a dot", ROW("\"voice\":\"../v\""));
    refuse("voice: expected a string", ROW("\"voice\":3"));
    refuse("mode: expected zero_shot, cross_lingual or instruct, found \"zeroshot\"", ROW("\"mode\":\"zeroshot\""));
    refuse("mode instruct: key \"instruct\" is missing", ROW("\"mode\":\"instruct\""));
    refuse("goes with mode instruct, and only with it; mode is zero_shot",
           ROW("\"mode\":\"zero_shot\",\"instruct\":\"Softly.\""));
    refuse("instruct: expected 1..4096 characters, found 0", ROW("\"instruct\":\"\""));
    refuse("seed: expected an unsigned integer, found -1", ROW("\"seed\":-1"));
    refuse("seed: expected an unsigned integer, found 1.5", ROW("\"seed\":1.5"));
    refuse("does not fit 64 bits", ROW("\"seed\":\"18446744073709551616\""));
    refuse("write it in quotes", ROW("\"seed\":9007199254740993"));
    refuse("expected an unsigned integer, found \"0x7\"", ROW("\"seed\":\"0x7\""));
    refuse("speed: expected 0.5..2, found 2.1", ROW("\"speed\":2.1"));
    refuse("speed: expected 0.5..2", ROW("\"speed\":0.49"));
    refuse("speed: expected a number", ROW("\"speed\":\"1\""));
    refuse("format: expected wav, flac, ogg or mp3, found \"aac\"", ROW("\"format\":\"aac\""));
    refuse("found \"wav-float\"", ROW("\"format\":\"wav-float\""));
    refuse("priority: expected 0..9, found 10", ROW("\"priority\":10"));
    refuse("raw: expected true or false", ROW("\"raw\":1"));
    refuse("prompt_wav: goes with \"prompt_text\", which is missing", ROW("\"prompt_wav\":\"p.wav\""));
    refuse("prompt_text: goes with \"prompt_wav\", which is missing", ROW("\"prompt_text\":\"p\""));
    refuse("one of them, found both", ROW("\"prompt_wav\":\"p.wav\",\"prompt_text\":\"p\",\"voice\":\"v\""));
    refuse("prompt_wav: expected 1..4095 bytes", ROW("\"prompt_wav\":\"\",\"prompt_text\":\"p\""));
    refuse("text: has no meaning in a row with source_wav", ROW("\"source_wav\":\"s.wav\""));
    refuse("raw: has no meaning", "{\"id\":\"a\",\"source_wav\":\"s.wav\",\"raw\":true}");
#undef ROW
}

/* A row whose text is `count` copies of a character. */
static char *row_of(const char *character, size_t count)
{
    char *line;
    const size_t bytes = strlen(character);
    assert_ok(mem_alloc(count * bytes + 64, 1, &line));
    size_t at = (size_t)snprintf(line, 64, "{\"id\":\"a\",\"text\":\"");
    for (size_t i = 0; i < count; i++, at += bytes)
        memcpy(line + at, character, bytes);
    memcpy(line + at, "\"}", 3);
    return line;
}

static void test_text_is_counted_in_characters(void **state)
{
    (void)state;
    manifest_row row;
    char *line = row_of("\xf0\x9f\x8e\xb5", TEXT_CHARS_MAX); /* 40,000 bytes */
    manifest *m = open_text("a.jsonl", line, &plain);
    next_row(m, &row);
    assert_int_equal(strlen(row.text), TEXT_BYTES_MAX);
    manifest_close(m);
    mem_free(line);
    line = row_of("\\ud83c\\udfb5", TEXT_CHARS_MAX); /* the same, 120,000 bytes long */
    m = open_text("a.jsonl", line, &plain);
    next_row(m, &row);
    assert_int_equal(strlen(row.text), TEXT_BYTES_MAX);
    manifest_close(m);
    mem_free(line);
    line = row_of("\xc3\xa9", TEXT_CHARS_MAX + 1);
    refuse("text: expected 1..10000 characters, found 10001", line);
    mem_free(line);
}

/* A row of two texts, each `count` copies of a character. */
static char *instructed_row_of(const char *text, size_t text_count, const char *instruct, size_t instruct_count)
{
    char *line = row_of(text, text_count), *more = row_of(instruct, instruct_count), *both;
    const size_t bytes = strlen(line) + strlen(more);
    assert_ok(mem_alloc(bytes, 1, &both));
    line[strlen(line) - 1] = '\0';
    snprintf(both, bytes, "%s,\"instruct\":%s", line, strstr(more, "\"text\":") + sizeof "\"text\":" - 1);
    mem_free(line);
    mem_free(more);
    return both;
}

/* What a row says has to fit one message to the farm, with its escapes. */
static void test_texts_are_bounded_together(void **state)
{
    (void)state;
    manifest_row row;
    char *line = instructed_row_of("\xf0\x9f\x8e\xb5", TEXT_CHARS_MAX, "\xf0\x9f\x8e\xb5", 4096);
    manifest *m = open_text("a.jsonl", line, &plain);
    next_row(m, &row); /* the longest of each */
    assert_int_equal(strlen(row.instruct), 4 * 4096);
    manifest_close(m);
    mem_free(line);
    line = instructed_row_of("\\u0001", TEXT_CHARS_MAX, "\xf0\x9f\x8e\xb5", 4096);
    refuse("text, instruct and prompt_text: expected at most 56444 bytes together, as JSON (a control character is 6), "
           "found 76388",
           line);
    mem_free(line);
    line = row_of("\\u0001", TEXT_CHARS_MAX);
    refuse("expected at most 56444 bytes together, as JSON (a control character is 6), found 60002", line);
    mem_free(line);
}

static void test_lines_are_bounded(void **state)
{
    (void)state;
    static const size_t counts[] = {MANIFEST_LINE_BYTES_MAX, 3 * MANIFEST_LINE_BYTES_MAX};
    for (size_t i = 0; i < 2; i++) {
        char *line = row_of("x", counts[i]);
        refuse("line longer than 262144 bytes", line);
        mem_free(line);
    }
    char *line = row_of("x", MANIFEST_LINE_BYTES_MAX - 20); /* a line of exactly the limit */
    assert_int_equal(strlen(line), MANIFEST_LINE_BYTES_MAX);
    refuse("text: expected 1..10000", line);
    mem_free(line);
}

static void test_refuses_to_open(void **state)
{
    (void)state;
    manifest *m = NULL;
    manifest_defaults d = plain;
    const char *path = write_rows("rows.json", "", 0);
    assert_err(CF_ERR_INVALID, "rows.json: expected .jsonl, .csv or .txt, or --format",
               manifest_open(path, NULL, &d, &m));
    assert_err(CF_ERR_INVALID, "manifest format \"xml\": expected jsonl, csv or txt",
               manifest_open(path, "xml", &d, &m));
    assert_err(CF_ERR_NOTFOUND, "/none.jsonl: no such file", manifest_open("/none.jsonl", NULL, &d, &m));
    assert_err(CF_ERR_INVALID, "is a folder", manifest_open(test_temp_dir(), "jsonl", &d, &m));
    d.voice = "a/b";
    assert_err(CF_ERR_INVALID, "voice name", manifest_open(path, "jsonl", &d, &m));
    d = plain;
    d.mode = "x";
    assert_err(CF_ERR_INVALID, "mode: expected", manifest_open(path, "jsonl", &d, &m));
    d.mode = "zero_shot";
    d.instruct = "Softly.";
    assert_err(CF_ERR_INVALID, "goes with mode instruct", manifest_open(path, "jsonl", &d, &m));
    d = plain;
    d.speed = 0;
    assert_err(CF_ERR_INVALID, "speed: expected 0.5..2, found 0", manifest_open(path, "jsonl", &d, &m));
    d = plain;
    d.priority = 10;
    assert_err(CF_ERR_INVALID, "priority: expected 0..9", manifest_open(path, "jsonl", &d, &m));
    d = plain;
    d.format = "wma";
    assert_err(CF_ERR_INVALID, "format: expected wav", manifest_open(path, "jsonl", &d, &m));
    assert_null(m);
    assert_ok(manifest_open(path, "jsonl", &plain, &m));
    manifest_close(m);
}

/* Opens "-" with a pipe as standard input. */
static manifest *open_pipe(const char *text)
{
    int ends[2];
    manifest *m;
    const int saved = dup(STDIN_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_ok(io_write_all(ends[1], text, strlen(text)));
    close(ends[1]);
    assert_true(dup2(ends[0], STDIN_FILENO) == STDIN_FILENO);
    close(ends[0]);
    const cf_err err = manifest_open("-", NULL, &plain, &m);
    dup2(saved, STDIN_FILENO);
    close(saved);
    assert_ok(err);
    return m;
}

static void test_standard_input_is_read_twice(void **state)
{
    (void)state;
    manifest_row row;
    bool end;
    manifest *m = open_pipe("{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":\"b\"}\n");
    for (int pass = 0; pass < 2; pass++) {
        next_row(m, &row);
        assert_string_equal(row.id, "a");
        assert_err(CF_ERR_INVALID, "standard input:2: key \"text\" is missing", manifest_next(m, &row, &end));
        expect_end(m);
        assert_ok(manifest_rewind(m));
    }
    manifest_close(m);
}

static void test_notices_a_change(void **state)
{
    (void)state;
    manifest_row row;
    bool end;
    manifest *m = open_text("a.jsonl", "{\"id\":\"a\",\"text\":\"x\"}\n", &plain);
    const char *path = write_rows("other", "", 0);
    char *slash = strrchr((char *)(uintptr_t)path, '/');
    memcpy(slash, "/a.jsonl", 9);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_ok(io_write_all(fd, "\n", 1));
    io_close(&fd);
    next_row(m, &row);
    assert_err(CF_ERR_MISMATCH, "a.jsonl: was changed while it was being read", manifest_next(m, &row, &end));
    assert_err(CF_ERR_MISMATCH, "was changed", manifest_rewind(m));
    manifest_close(m);
}

static void test_read_errors_end_the_reading(void **state)
{
    (void)state;
    manifest_row row;
    bool end;
    manifest *m = open_text("a.jsonl", "{\"id\":\"a\",\"text\":\"x\"}\n", &plain);
    assert_ok(fault_arm("line.read#1=fail"));
    assert_err(CF_ERR_SYS, "a.jsonl: read", manifest_next(m, &row, &end));
    assert_ok(fault_arm(NULL));
    manifest_close(m);
    assert_ok(fault_arm("mem.alloc#1=fail"));
    assert_err(CF_ERR_NOMEM, "out of memory", manifest_open("-", NULL, &plain, &m));
    assert_ok(fault_arm(NULL));
}

/* ---- the pass before the work ---- */

typedef struct reports {
    char text[16][256];
    int count;
} reports;

static void keep_report(void *ctx, const char *text)
{
    reports *r = ctx;
    if (r->count < 16)
        snprintf(r->text[r->count], sizeof r->text[0], "%s", text);
    r->count++;
}

static void expect_report(const reports *r, int idx, const char *part)
{
    assert_true(idx < r->count);
    if (!strstr(r->text[idx], part))
        fail_msg("report %d: got %s, want %s", idx, r->text[idx], part);
}

static void test_check_names_everything(void **state)
{
    (void)state;
    reports r = {.count = 0};
    manifest_counts c;
    id_set *ids;
    manifest_row row;
    manifest *m = open_text("rows.jsonl",
                            "{\"id\":\"a\",\"text\":\"x\"}\n"
                            "{\"id\":\"b\",\"txet\":\"x\"}\n"
                            "{\"id\":\"a\",\"text\":\"y\",\"format\":\"ogg\"}\n"
                            "{\"id\":\"A\",\"text\":\"y\"}\n"
                            "{\"id\":\"a.wav\",\"text\":\"y\"}\n"
                            "nonsense\n"
                            "{\"id\":\"c\",\"text\":\"y\"}\n"
                            "{\"id\":\"a\",\"text\":\"z\"}\n",
                            &plain);
    assert_ok(id_set_open(ID_HASH_BITS, &ids));
    assert_ok(manifest_check(m, (shard){0}, keep_report, &r, ids, &c));
    assert_int_equal(r.count, 4);
    expect_report(&r, 0, "rows.jsonl:2: key \"txet\" is not known; did you mean \"text\"?");
    expect_report(&r, 1, "rows.jsonl:6: JSON: syntax error");
    expect_report(&r, 2, "rows.jsonl:3: id \"a\" is that of line 1 already");
    expect_report(&r, 3, "rows.jsonl:8: id \"a\" is that of line 1 already");
    assert_true(c.rows == 6 && c.own == 4 && c.bad == 2 && c.repeated == 2 && c.collisions == 0);
    next_row(m, &row); /* rewound */
    assert_int_equal(row.line, 1);
    assert_true(id_set_find(ids, id_set_key(ids, row.hash, row.id)));
    id_set_close(ids);
    manifest_close(m);
}

/* A signal that waits to be read ends the pass. */
static void test_check_is_interrupted(void **state)
{
    (void)state;
    reports r = {.count = 0};
    manifest_counts c;
    id_set *ids;
    int signal_fd = -1;
    manifest *m = open_text("rows.jsonl", "{\"id\":\"a\",\"text\":\"x\"}\n", &plain);
    assert_ok(id_set_open(ID_HASH_BITS, &ids));
    assert_ok(process_signal_fd(&signal_fd));
    assert_false(process_stop_asked());
    assert_int_equal(raise(SIGTERM), 0);
    assert_err(CF_ERR_CANCELLED, "rows.jsonl: interrupted", manifest_check(m, (shard){0}, keep_report, &r, ids, &c));
    assert_int_equal(process_read_signal(signal_fd), SIGTERM);
    assert_ok(manifest_check(m, (shard){0}, keep_report, &r, ids, &c));
    assert_true(c.own == 1);
    io_close(&signal_fd);
    id_set_close(ids);
    manifest_close(m);
}

/* 300 ids and keys of 8 bits: many collide, and no id may be taken for another. */
static void test_collisions_are_no_error(void **state)
{
    (void)state;
    static char text[300 * 32];
    size_t at = 0;
    for (int i = 0; i < 300; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "id%03d|x\n", i);
    reports r = {.count = 0};
    manifest_counts c;
    id_set *ids;
    manifest_row row;
    bool end;
    manifest *m = open_text("many.csv", text, &plain);
    assert_ok(id_set_open(8, &ids));
    assert_ok(manifest_check(m, (shard){0}, keep_report, &r, ids, &c));
    assert_true(c.own == 300 && c.repeated == 0 && c.collisions > 40 && r.count == 0);
    for (size_t done = 0; done < 300; done++) {
        assert_ok(manifest_next(m, &row, &end));
        const uint64_t key = id_set_key(ids, row.hash, row.id);
        assert_true(id_set_find(ids, key));
        assert_false(id_set_is_marked(ids, key));
        assert_true(id_set_mark(ids, key));
        assert_int_equal(id_set_marked_count(ids), done + 1);
    }
    id_set_close(ids);
    manifest_close(m);
}

static void test_repeats_among_collisions(void **state)
{
    (void)state;
    static char text[600 * 32];
    size_t at = 0;
    for (int i = 0; i < 600; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "id%03d|x\n", i % 300);
    reports r = {.count = 0};
    manifest_counts c;
    id_set *ids;
    manifest *m = open_text("many.csv", text, &plain);
    assert_ok(id_set_open(8, &ids));
    assert_ok(manifest_check(m, (shard){0}, keep_report, &r, ids, &c));
    assert_true(c.own == 300 && c.repeated == 300 && r.count == 300);
    expect_report(&r, 0, "many.csv:301: id \"id000\" is that of line 1 already");
    id_set_close(ids);
    manifest_close(m);
}

static void test_more_repeats_than_are_named(void **state)
{
    (void)state;
    const int extra = 5, ids_count = MANIFEST_REPEATS_MAX + extra;
    char *text;
    size_t at = 0;
    assert_ok(mem_alloc((size_t)ids_count, 32, &text));
    for (int i = 0; i < 2 * ids_count; i++)
        at += (size_t)snprintf(text + at, 32, "%d|x\n", i % ids_count);
    reports r = {.count = 0};
    manifest_counts c;
    id_set *ids;
    manifest *m = open_text("many.csv", text, &plain);
    assert_ok(id_set_open(ID_HASH_BITS, &ids));
    assert_ok(manifest_check(m, (shard){0}, keep_report, &r, ids, &c));
    assert_int_equal(c.repeated, ids_count);
    assert_int_equal(r.count, MANIFEST_REPEATS_MAX + 1);
    id_set_close(ids);
    manifest_close(m);
    mem_free(text);
}

static void test_shards_part_the_rows(void **state)
{
    (void)state;
    static char text[1001 * 32];
    size_t at = 0;
    for (int i = 0; i < 1000; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "row%d|x\n", i);
    snprintf(text + at, sizeof text - at, "row7|again\n");
    manifest *m = open_text("many.csv", text, &plain);
    uint64_t own = 0, repeated = 0;
    for (uint32_t i = 0; i < 4; i++) {
        reports r = {.count = 0};
        manifest_counts c;
        id_set *ids;
        assert_ok(id_set_open(ID_HASH_BITS, &ids));
        assert_ok(manifest_check(m, (shard){i, 4}, keep_report, &r, ids, &c));
        assert_int_equal(c.rows, 1001);
        assert_true(c.own > 200 && c.own < 300);
        own += c.own;
        repeated += c.repeated;
        id_set_close(ids);
    }
    assert_int_equal(own, 1000);
    assert_int_equal(repeated, 1);
    manifest_close(m);
}

static void test_shard_texts(void **state)
{
    (void)state;
    shard s = {9, 9};
    static const char *const bad[] = {"",    "1",    "1/",   "/2",           "2/2",  "-1/2",
                                      "0/0", "1/2x", " 1/2", "4294967296/2", "0x1/2"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_err(CF_ERR_INVALID, "expected i/n with 0 <= i < n", shard_parse(bad[i], &s));
    assert_err(CF_ERR_LIMIT, "at most 65536 shards", shard_parse("0/65537", &s));
    assert_true(s.idx == 9 && s.count == 9);
    assert_ok(shard_parse("3/65536", &s));
    assert_true(s.idx == 3 && s.count == 65536);
    assert_true(shard_has(s, 3) && shard_has(s, 65539) && !shard_has(s, 4) && shard_has((shard){0}, 4));
}

/* ---- the set ---- */

static void test_set_keeps_keys_and_marks_while_it_grows(void **state)
{
    (void)state;
    id_set *s;
    bool there;
    assert_ok(id_set_open(ID_HASH_BITS, &s));
    for (uint64_t i = 1; i <= 100000; i++) {
        const uint64_t key = i * UINT64_C(0xD1342543DE82EF95) | 1; /* odd multiplier; distinct up to the last bit */
        assert_ok(id_set_insert(s, key & ~UINT64_C(6), &there));
        if (i % 3 == 0)
            id_set_mark(s, key & ~UINT64_C(6));
    }
    const size_t count = id_set_count(s), marked = id_set_marked_count(s);
    size_t found_marked = 0;
    for (uint64_t i = 1; i <= 100000; i++) {
        const uint64_t key = (i * UINT64_C(0xD1342543DE82EF95) | 1) & ~UINT64_C(6);
        assert_ok(id_set_insert(s, key, &there));
        assert_true(there);
        assert_true(i % 3 != 0 || id_set_is_marked(s, key));
        found_marked += i % 3 == 0;
        assert_false(id_set_find(s, key ^ 2)); /* bit 1 is 0 in every key */
        assert_false(id_set_mark(s, key ^ 2));
    }
    assert_int_equal(id_set_count(s), count);
    assert_true(marked <= found_marked && marked > 0);
    assert_int_equal(id_set_marked_count(s), marked);
    id_set_close(s);
}

static void test_set_survives_want_of_memory(void **state)
{
    (void)state;
    id_set *s;
    bool there;
    uint64_t key = 1;
    assert_ok(id_set_open(ID_HASH_BITS, &s));
    for (int point = 1; point <= 3; point++) {
        const size_t memory_bytes = id_set_memory_bytes(s);
        char spec[32];
        cf_err err = CF_OK;
        snprintf(spec, sizeof spec, "mem.alloc#%d=fail", point);
        assert_ok(fault_arm(spec));
        while ((err = id_set_insert(s, key, &there)) == CF_OK)
            key += 2;
        assert_ok(fault_arm(NULL));
        assert_int_equal(err, CF_ERR_NOMEM);
        assert_int_equal(id_set_memory_bytes(s), memory_bytes);
        assert_int_equal(id_set_count(s), (key - 1) / 2);
        assert_ok(id_set_insert(s, key, &there)); /* grows now */
        key += 2;
    }
    for (uint64_t k = 1; k < key; k += 2)
        assert_true(id_set_find(s, k) && !id_set_find(s, k + 1));
    id_set_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_row_of_every_key),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_default_instruction),
        cmocka_unit_test(test_default_seed_is_of_run_seed_and_id_alone),
        cmocka_unit_test(test_tolerates_mark_carriage_returns_blank_lines),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_refuses_keys),
        cmocka_unit_test(test_refuses_ids),
        cmocka_unit_test(test_accepts_ids),
        cmocka_unit_test(test_refuses_values),
        cmocka_unit_test(test_text_is_counted_in_characters),
        cmocka_unit_test(test_texts_are_bounded_together),
        cmocka_unit_test(test_lines_are_bounded),
        cmocka_unit_test(test_refuses_to_open),
        cmocka_unit_test(test_standard_input_is_read_twice),
        cmocka_unit_test(test_notices_a_change),
        cmocka_unit_test(test_read_errors_end_the_reading),
        cmocka_unit_test(test_check_names_everything),
        cmocka_unit_test(test_check_is_interrupted),
        cmocka_unit_test(test_collisions_are_no_error),
        cmocka_unit_test(test_repeats_among_collisions),
        cmocka_unit_test(test_more_repeats_than_are_named),
        cmocka_unit_test(test_shards_part_the_rows),
        cmocka_unit_test(test_shard_texts),
        cmocka_unit_test(test_set_keeps_keys_and_marks_while_it_grows),
        cmocka_unit_test(test_set_survives_want_of_memory),
    };
    return cmocka_run_group_tests_name("manifest", tests, NULL, NULL);
}
