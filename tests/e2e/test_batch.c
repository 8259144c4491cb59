/*
 * test_batch.c - `cosyfarm batch` with the real processes on the tiny model: resume, refusals, shards, storage that
 * fails, the quality guard. What counts is the ledger: id, status, sha256, samples, seed and tokens of every row equal
 * those of an undisturbed run.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/recipe.h"
#include "tests/harness/batch_case.h"
#include "tests/harness/farm.h"

static void test_resume_does_what_is_missing(void **state)
{
    (void)state;
    char path[320];
    const char *dir = test_temp_dir();
    batch_expect(0, "6 done", dir);
    batch_expect_undisturbed(dir);
    batch_expect(0, "0 done, 0 failed, 6 before", dir);
    snprintf(path, sizeof path, "%s/run.json", dir);
    assert_int_equal(unlink(path), 0);
    batch_expect(0, "run.json is missing: with what the 6 rows that ended before were made", dir);
    snprintf(path, sizeof path, "%s/audio/set/05.wav", dir);
    assert_int_equal(unlink(path), 0);
    batch_expect(0, "1 done, 0 failed, 5 before", dir);
    assert_true(io_exists(path));
    batch_expect_undisturbed(dir);
    batch_write_text(path, "shorter"); /* another size is seen at once, other bytes with --verify */
    batch_expect(0, "1 done", dir);
    batch_expect_undisturbed(dir);
    farm_expect(0, "0 done", (const char *const[]){BATCH(dir), "--verify", NULL});
}

static void test_torn_ledger_line_is_repaired(void **state)
{
    (void)state;
    char path[320], *text;
    size_t bytes;
    const char *dir = test_temp_dir();
    batch_expect(0, "6 done", dir);
    snprintf(path, sizeof path, "%s/ledger.jsonl", dir);
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    assert_ok(io_write_file(path, text, bytes - 20));
    mem_free(text);
    batch_expect(0, "ledger line 6 was cut off", dir);
    batch_expect_undisturbed(dir);
}

static void test_bad_manifest_is_refused_before_work(void **state)
{
    (void)state;
    char bad[256], dir[256];
    snprintf(bad, sizeof bad, "%s/bad.jsonl", test_temp_dir());
    snprintf(dir, sizeof dir, "%s/out", test_temp_dir());
    batch_write_text(bad,
                     "{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":\"b\",\"txet\":\"x\"}\n{\"id\":\"a\",\"text\":\"y\"}\n"
                     "{\"id\":\"c\",\"text\":\"x\",\"voice\":\"ecko\"}\n");
    const char *const args[] = {"cosyfarm", "batch", "-m", tiny_model_dir(), bad, "-o", dir, NULL};
    farm_expect(78, "bad.jsonl:2: key \"txet\" is not known; did you mean \"text\"?", args);
    farm_expect(78, "bad.jsonl:4: voice \"ecko\" is not in", args);
    farm_expect(78, "bad.jsonl:3: ", args);
    assert_false(io_exists(dir));
    farm_expect(78, "3 rows, 2 of this shard; 1 bad lines, 1 repeated ids, 1 unknown voices",
                (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--check", bad, NULL});
    farm_expect(0, "6 rows, 6 of this shard; 0 bad lines", (const char *const[]){BATCH(dir), "--check", NULL});
    farm_expect(64, "no output folder", (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), bad, NULL});
    farm_expect(64, "no manifest", (const char *const[]){"cosyfarm", "batch", "-o", dir, NULL});
    farm_expect(78, "no model directory",
                (const char *const[]){"cosyfarm", "batch", batch_manifest(), "-o", dir, NULL});
}

/* What only the splitter knows is told by --check, row by row, as the run would tell it. */
static void test_check_tries_the_words(void **state)
{
    (void)state;
    char rows[256];
    char text[16384] = "{\"id\":\"a\",\"text\":\"It rained.\"}\n{\"id\":\"b\",\"text\":\" \"}\n"
                       "{\"id\":\"c\",\"raw\":true,\"text\":\"";
    size_t n = strlen(text);
    snprintf(rows, sizeof rows, "%s/rows.jsonl", test_temp_dir());
    for (int i = 0; i < 4500; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s", i % 2 ? "q " : "z ");
    snprintf(text + n, sizeof text - n, "\"}\n");
    batch_write_text(rows, text);
    const char *const args[] = {"cosyfarm", "batch", "-m", tiny_model_dir(), "--check", rows, NULL};
    farm_expect(65, "rows.jsonl:2: nothing to say", args);
    farm_expect(65, "rows.jsonl:3: ", args);
    farm_expect(65, "0 unknown voices, 2 rows that cannot be spoken", args);
    farm_expect(0, "0 unknown voices", (const char *const[]){"cosyfarm", "batch", "--check", rows, NULL});
}

/* The whole output: the command says the way out and, on stdout, nothing. */
static void test_damaged_ledger_tells_the_way_out(void **state)
{
    (void)state;
    char path[320], out[4096];
    const char *dir = test_temp_dir();
    snprintf(path, sizeof path, "%s/ledger.jsonl", dir);
    batch_write_text(path, "{\"id\":\"a\",\"sta\n{\"id\":\"b\",\"status\":\"failed\",\"bytes\":0}\n");
    assert_int_equal(farm_command((const char *const[]){BATCH(dir), NULL}, out, sizeof out), 78);
    assert_non_null(strstr(out, "ledger.jsonl:1: "));
    assert_non_null(strstr(out, "; remove the line, and its row is done again\n"));
    assert_null(strstr(out, "6 rows"));
    farm_expect(78, "-o: ", (const char *const[]){BATCH("/proc/cosyfarm"), NULL});
    farm_expect(78, "-o: ", (const char *const[]){BATCH("/proc"), NULL});
}

/* A model directory without voices or networks, by what rows ask of it; nothing starts. */
static void test_what_the_model_lacks_is_told_before_work(void **state)
{
    (void)state;
    char model[256], rows[256], dir[256], path[320];
    const recipe spec = {.size = RECIPE_TINY};
    snprintf(model, sizeof model, "%s/mute", test_temp_dir());
    snprintf(rows, sizeof rows, "%s/rows.jsonl", test_temp_dir());
    snprintf(dir, sizeof dir, "%s/out", test_temp_dir());
    assert_ok(recipe_make_dir(&spec, RECIPE_SAFETENSORS, NULL, model));
    const char *const args[] = {"cosyfarm", "batch", "-m", model, rows, "-o", dir, NULL};
    batch_write_text(rows, "{\"id\":\"a\",\"text\":\"x\",\"prompt_wav\":\"a.wav\",\"prompt_text\":\"y\"}\n");
    farm_expect(78, "mute/speech_tokenizer_v3.onnx: no such file; rows with a recording need it", args);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/voices/%s.safetensors", model, i ? "vale" : "echo");
        assert_int_equal(unlink(path), 0);
    }
    batch_write_text(rows, "{\"id\":\"a\",\"text\":\"x\"}\n");
    farm_expect(78, "mute/voices holds no voice; import one", args);
    farm_expect(78, "mute/voices holds no voice",
                (const char *const[]){"cosyfarm", "batch", "-m", model, "--check", rows, NULL});
    farm_expect(78, "nonex: no such model directory",
                (const char *const[]){"cosyfarm", "batch", "-m", "nonex", "--check", rows, NULL});
    assert_false(io_exists(dir));
}

static void expect_usage(const char *option, const char *value, const char *part)
{
    farm_expect(64, part, (const char *const[]){BATCH("/nowhere"), option, value, NULL});
}

static void test_wrong_option_values_are_usage(void **state)
{
    (void)state;
    expect_usage("--mode", "foo", "foo");
    expect_usage("--audio", "aac", "expected wav, flac, ogg or mp3, found \"aac\"");
    expect_usage("--format", "zz", "manifest format \"zz\": expected jsonl, csv or txt");
    expect_usage("-v", "../v", "../v");
    farm_expect(64, "instruct: goes with mode instruct",
                (const char *const[]){BATCH("/nowhere"), "--instruct", "a", "--mode", "zero_shot", NULL});
}

static void copy_file(const char *from, const char *to)
{
    char *bytes;
    size_t count;
    assert_ok(io_read_file(from, 1 << 24, &bytes, &count));
    assert_ok(io_write_file(to, bytes, count));
    mem_free(bytes);
}

/* The voice of rows that name none is a setting of the set: neither a voice that comes to sort first nor another -v
 * changes it unnoticed. */
static void test_default_voice_belongs_to_the_set(void **state)
{
    (void)state;
    char rows[256], first[320], vale[320];
    const char *dir = test_temp_dir();
    snprintf(rows, sizeof rows, "%s/rows.jsonl", test_temp_dir());
    snprintf(first, sizeof first, "%s/voices/aaa.safetensors", tiny_model_dir());
    snprintf(vale, sizeof vale, "%s/voices/vale.safetensors", tiny_model_dir());
    const char *const args[] = {"cosyfarm", "batch", "-m", tiny_model_dir(), "--config", batch_config(), rows,
                                "-o",       dir,     NULL};
    batch_write_text(rows, "{\"id\":\"a\",\"text\":\"Yes.\",\"seed\":5}\n");
    farm_expect(0, "1 done", args);
    assert_true(batch_has_text(dir, "run.json", "\"default_voice\":\t\"echo\""));
    assert_true(batch_has_text(dir, "run.json", "\"echo\":\t\""));
    copy_file(vale, first);
    farm_expect(78, "run.json: voice of rows that name none: expected echo, found aaa; give -v echo", args);
    batch_write_text(rows,
                     "{\"id\":\"a\",\"text\":\"Yes.\",\"seed\":5}\n{\"id\":\"b\",\"text\":\"Yes.\",\"seed\":5}\n");
    farm_expect(78, "expected echo, found aaa", args);
    const char *const with_vale[] = {
        "cosyfarm", "batch", "-m", tiny_model_dir(), "--config", batch_config(), "-v", "vale", rows, "-o", dir, NULL};
    farm_expect(78, "expected echo, found vale", with_vale);
    batch_write_text(rows, "{\"id\":\"a\",\"text\":\"Yes.\",\"seed\":5}\n{\"id\":\"b\",\"text\":\"Yes.\",\"seed\":5,"
                           "\"voice\":\"vale\"}\n");
    farm_expect(0, "1 done, 0 failed, 1 before",
                (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--config", batch_config(), "-v",
                                      "echo", rows, "-o", dir, NULL});
    assert_int_equal(unlink(first), 0);
    farm_expect(0, "0 done, 0 failed, 2 before", args);
}

/* The path of a recording, made of control characters, each six bytes of JSON, makes a row that is good in itself too
 * long for a message: it fails, and the other is done. */
static void test_row_too_long_for_a_message_fails_alone(void **state)
{
    (void)state;
    enum { TEXT = 10000, PROMPT = 4096, PATH = 4000, BYTES = 4 * (TEXT + PROMPT) + 6 * PATH + 256 };
    char rows[256], networks[2][320], *text;
    size_t n;
    const char *dir = test_temp_dir();
    snprintf(rows, sizeof rows, "%s/rows.jsonl", test_temp_dir());
    for (int i = 0; i < 2; i++) { /* nobody gets as far as to read them */
        snprintf(networks[i], sizeof networks[i], "%s/%s", tiny_model_dir(),
                 i ? MODEL_SPEAKER_FILE : MODEL_TOKENIZER_FILE);
        batch_write_text(networks[i], "");
    }
    assert_ok(mem_alloc(BYTES, 1, &text));
    n = (size_t)snprintf(text, BYTES, "{\"id\":\"a\",\"text\":\"");
    for (int i = 0; i < TEXT + PROMPT; i++)
        n += (size_t)snprintf(text + n, BYTES - n, "%s\xf0\x9f\x8e\xb5", i == TEXT ? "\",\"prompt_text\":\"" : "");
    for (int i = 0; i < PATH; i++)
        n += (size_t)snprintf(text + n, BYTES - n, "%s\\u0001", i == 0 ? "\",\"prompt_wav\":\"" : "");
    snprintf(text + n, BYTES - n, "\"}\n{\"id\":\"b\",\"text\":\"Yes.\",\"seed\":5}\n");
    batch_write_text(rows, text);
    farm_expect(65, "1 done, 1 failed",
                (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--config", batch_config(), rows,
                                      "-o", dir, NULL});
    assert_true(batch_has_text(dir, "ledger.jsonl", "message \\\"submit\\\": "));
    for (int i = 0; i < 2; i++)
        assert_int_equal(unlink(networks[i]), 0);
    mem_free(text);
}

/* The first shard has no standard descriptors: what it says goes nowhere, and into no file that it writes. */
static void test_shards_share_a_folder(void **state)
{
    (void)state;
    static batch_outcome o;
    char path[320], line[2048];
    const char *dir = test_temp_dir();
    o.count = 0;
    snprintf(
        line, sizeof line,
        "exec \"$COSYFARM_BIN/cosyfarm\" batch -m '%s' -v echo --config '%s' '%s' -o '%s' --shard 0/2 <&- >&- 2>&-",
        tiny_model_dir(), batch_config(), batch_manifest(), dir);
    assert_int_equal(farm_shell(line), 0);
    farm_expect(0, "0 failed", (const char *const[]){BATCH(dir), "--shard", "1/2", NULL});
    batch_read_ledger(dir, "ledger.0-of-2.jsonl", &o);
    assert_true(o.count > 0 && o.count < BATCH_ROWS);
    batch_read_ledger(dir, "ledger.1-of-2.jsonl", &o);
    batch_expect_same(&o);
    /* What a shard has done nobody does again, whatever the next command counts by. */
    batch_expect(0, "0 done, 0 failed, 6 before", dir);
    farm_expect(0, "0 done, 0 failed", (const char *const[]){BATCH(dir), "--shard", "2/3", NULL});
    assert_false(batch_has_text(dir, "ledger.jsonl", "\n"));
    snprintf(path, sizeof path, "%s/audio/set/05.wav", dir);
    assert_int_equal(unlink(path), 0);
    batch_expect(0, "1 done, 0 failed, 5 before", dir);
    assert_true(io_exists(path));
    farm_expect(64, "0 <= i < n", (const char *const[]){BATCH(dir), "--shard", "2/2", NULL});
}

/* Each point fails once, in every process: the batch either gets over it or ends resumable; then it is complete. */
static void test_storage_that_fails(void **state)
{
    (void)state;
    static const char *const faults[] = {"io.write#6=fail",  "io.write#20=fail", "io.fsync#3=fail",
                                         "io.rename#4=fail", "io.create#5=fail", "journal.sync#2=fail"};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        const char *dir = test_temp_dir();
        char out[16384];
        setenv("COSYFARM_FAULT", faults[i], 1);
        const int code = farm_command((const char *const[]){BATCH(dir), NULL}, out, sizeof out);
        unsetenv("COSYFARM_FAULT");
        if (code != 0 && code != 65)
            fail_msg("%s: exit code %d\n%s", faults[i], code, out);
        if (code == 65) /* a row that failed to be written is named, and done again when asked */
            farm_expect(0, "0 failed", (const char *const[]){BATCH(dir), "--retry-failed", NULL});
        batch_expect_undisturbed(dir);
    }
}

/* The later -m and --precision win. Nothing is started for a refusal, and nothing is lost by one. */
static void expect_refusal(const char *dir, const char *other)
{
    farm_expect(78, "run.json: model file of llm: expected llm.safetensors with sha256",
                (const char *const[]){BATCH(dir), "-m", other, NULL});
    farm_expect(78, "run.json: precision of llm: expected bf16, found f32; use another output folder",
                (const char *const[]){BATCH(dir), "--precision", "f32", NULL});
}

/* The voice of the finished rows has other content now. */
static void expect_other_voice_refused(const char *dir)
{
    char echo[320], vale[320], *was, *other;
    size_t was_bytes, other_bytes;
    snprintf(echo, sizeof echo, "%s/voices/echo.safetensors", tiny_model_dir());
    snprintf(vale, sizeof vale, "%s/voices/vale.safetensors", tiny_model_dir());
    assert_ok(io_read_file(echo, 1 << 24, &was, &was_bytes));
    assert_ok(io_read_file(vale, 1 << 24, &other, &other_bytes));
    assert_ok(io_write_file(echo, other, other_bytes));
    batch_expect(78, "run.json: voice echo: expected content", dir);
    assert_ok(io_write_file(echo, was, was_bytes));
    batch_expect(0, "0 done, 0 failed, 6 before", dir);
    mem_free(was);
    mem_free(other);
}

/* Another vocabulary gives other ids. A line end more is enough to be told, and does no harm to the others. */
static void expect_other_tokenizer_refused(const char *dir)
{
    char path[320], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/CosyVoice-BlankEN/vocab.json", tiny_model_dir());
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    text[bytes] = '\n';
    assert_ok(io_write_file(path, text, bytes + 1));
    batch_expect(78, "run.json: tokenizer and configuration in CosyVoice-BlankEN: expected sha256", dir);
    assert_ok(io_write_file(path, text, bytes));
    mem_free(text);
}

static void test_other_model_is_not_mixed_in(void **state)
{
    (void)state;
    char other[256], path[320], log[320], *was, *is;
    size_t was_bytes, is_bytes;
    const recipe spec = {.size = RECIPE_TINY, .seed = 1};
    const char *dir = test_temp_dir();
    snprintf(other, sizeof other, "%s/other", test_temp_dir());
    assert_ok(recipe_make_dir(&spec, RECIPE_SAFETENSORS, NULL, other));
    batch_expect(0, "6 done", dir);
    snprintf(log, sizeof log, "%s/farm.log", dir);
    assert_ok(io_read_file(log, 1 << 24, &was, &was_bytes));
    expect_refusal(dir, other); /* no row is left */
    expect_other_voice_refused(dir);
    expect_other_tokenizer_refused(dir);
    snprintf(path, sizeof path, "%s/audio/set/03.wav", dir);
    assert_int_equal(unlink(path), 0);
    expect_refusal(dir, other);
    assert_ok(io_read_file(log, 1 << 24, &is, &is_bytes));
    assert_int_equal(is_bytes, was_bytes);
    mem_free(was);
    mem_free(is);
    farm_expect(0, "1 done", (const char *const[]){BATCH(dir), "--precision", "f32", "--force-mix", NULL});
}

/* Everything is too fast for this guard: two more attempts with seeds of their own, the same each time. */
static void test_flagged_rows_are_tried_again(void **state)
{
    (void)state;
    char strict[256], ledger[320], *text;
    size_t bytes;
    const char *dir = test_temp_dir();
    snprintf(strict, sizeof strict, "%s/strict.json", test_temp_dir());
    batch_write_text(strict, "{\"precision\":\"bf16\",\"guard_letters_per_s_min\":1,\"guard_letters_per_s_max\":1}");
    const char *const args[] = {"cosyfarm", "batch",   "-m",  tiny_model_dir(), "--config", strict, "-v",
                                "echo",     "--shard", "0/4", batch_manifest(), "-o",       dir,    NULL};
    farm_expect(0, "0 failed", args);
    snprintf(ledger, sizeof ledger, "%s/ledger.0-of-4.jsonl", dir);
    assert_ok(io_read_file(ledger, 1 << 20, &text, &bytes));
    assert_non_null(strstr(text, "\"flags\":[\"too-short\""));
    assert_non_null(strstr(text, "\"retried\""));
    assert_non_null(strstr(text, "\"attempts\":3"));
    mem_free(text);
    batch_write_text(
        strict,
        "{\"precision\":\"bf16\",\"guard_letters_per_s_min\":1,\"guard_letters_per_s_max\":1,\"guard_fail\":true}");
    dir = test_temp_dir();
    farm_expect(65, "0 done",
                (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--config", strict, "-v", "echo",
                                      "--shard", "0/4", batch_manifest(), "-o", dir, NULL});
    snprintf(ledger, sizeof ledger, "%s/ledger.0-of-4.jsonl", dir);
    assert_ok(io_read_file(ledger, 1 << 20, &text, &bytes));
    assert_non_null(strstr(text, "the quality guard flags each of 3 attempts"));
    mem_free(text);
    dir = test_temp_dir();
    batch_write_text(strict, "{\"precision\":\"bf16\",\"guard\":false}");
    farm_expect(0, "0 failed",
                (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--config", strict, "-v", "echo",
                                      "--shard", "0/4", batch_manifest(), "-o", dir, NULL});
    snprintf(ledger, sizeof ledger, "%s/ledger.0-of-4.jsonl", dir);
    assert_ok(io_read_file(ledger, 1 << 20, &text, &bytes));
    assert_null(strstr(text, "too-short"));
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_does_what_is_missing),
        cmocka_unit_test(test_torn_ledger_line_is_repaired),
        cmocka_unit_test(test_bad_manifest_is_refused_before_work),
        cmocka_unit_test(test_check_tries_the_words),
        cmocka_unit_test(test_damaged_ledger_tells_the_way_out),
        cmocka_unit_test(test_what_the_model_lacks_is_told_before_work),
        cmocka_unit_test(test_wrong_option_values_are_usage),
        cmocka_unit_test(test_default_voice_belongs_to_the_set),
        cmocka_unit_test(test_row_too_long_for_a_message_fails_alone),
        cmocka_unit_test(test_shards_share_a_folder),
        cmocka_unit_test(test_storage_that_fails),
        cmocka_unit_test(test_other_model_is_not_mixed_in),
        cmocka_unit_test(test_flagged_rows_are_tried_again),
    };
    return cmocka_run_group_tests_name("batch", tests, batch_cases_begin, NULL);
}
