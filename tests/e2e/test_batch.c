/*
 * test_batch.c - `cosyfarm batch` with the real processes on the tiny model: resume, refusals, shards, interruption,
 * kill -9 of the batch itself, storage that fails, the quality guard. What counts is the ledger: id, status, sha256,
 * samples, seed and tokens of every row equal those of an undisturbed run.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/harness/farm.h"
#include "tests/harness/tiny_model.h"

#define ROWS       8
#define LINE_BYTES 512
#define WAIT_US    (60 * CLOCK_SECOND_US)

typedef struct outcome {
    char lines[ROWS][LINE_BYTES]; /* sorted by id: what must not differ between runs */
    int count;
} outcome;

static outcome undisturbed;
static char manifest[256], config_path[256];

static void write_text(const char *path, const char *text)
{
    assert_ok(io_write_file(path, text, strlen(text)));
}

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static const char *text_of(const json *line, const char *key)
{
    const char *text = "";
    const json *v = json_find(line, key);
    if (v && json_is_string(v))
        assert_ok(json_as_str(v, key, 4096, &text));
    return text;
}

static unsigned long long number_of(const json *line, const char *key)
{
    uint64_t value;
    assert_ok(json_get_u64(line, key, 0, UINT64_MAX, &value));
    return value;
}

/* Adds one ledger; each line must be whole. */
static void read_ledger(const char *dir, const char *name, outcome *o)
{
    char path[320], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    for (char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        json *line;
        assert_ok(json_parse(at, (size_t)(end - at), 8, &line));
        assert_true(o->count < ROWS);
        snprintf(o->lines[o->count++], LINE_BYTES, "%s %s %s %llu %llu %llu", text_of(line, "id"),
                 text_of(line, "status"), text_of(line, "sha256"), number_of(line, "samples"), number_of(line, "seed"),
                 number_of(line, "tokens"));
        json_close(line);
    }
    mem_free(text);
    qsort(o->lines, (size_t)o->count, LINE_BYTES, by_text);
}

static void expect_undisturbed(const char *dir)
{
    static outcome o;
    o.count = 0;
    read_ledger(dir, "ledger.jsonl", &o);
    assert_int_equal(o.count, ROWS);
    for (int i = 0; i < ROWS; i++)
        assert_string_equal(o.lines[i], undisturbed.lines[i]);
}

static int lines_in(const char *path)
{
    char *text;
    size_t bytes;
    int lines = 0;
    if (!io_exists(path) || io_read_file(path, 1 << 24, &text, &bytes) != CF_OK)
        return 0;
    for (size_t i = 0; i < bytes; i++)
        lines += text[i] == '\n';
    mem_free(text);
    return lines;
}

static void wait_lines(const char *dir, int wanted)
{
    char path[320];
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    snprintf(path, sizeof path, "%s/ledger.jsonl", dir);
    while (lines_in(path) < wanted) {
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 5);
    }
}

#define BATCH(dir) \
    "cosyfarm", "batch", "-m", tiny_model_dir(), "-v", "echo", "--config", config_path, manifest, "-o", dir

static void expect(int code, const char *part, const char *const *args)
{
    char out[16384];
    const int got = farm_command(args, out, sizeof out);
    if (got != code || !strstr(out, part))
        fail_msg("exit code %d (want %d), output without \"%s\":\n%s", got, code, part, out);
}

static void expect_batch(int code, const char *part, const char *dir)
{
    expect(code, part, (const char *const[]){BATCH(dir), NULL});
}

static int make_manifest(void **state)
{
    static const char *const texts[] = {"The lamp went out.", "It rained.",
                                        "She said yes, and then nothing for an hour.",
                                        "A quick boat crossed the bay before the tide turned."};
    char text[ROWS * 200];
    size_t n = 0;
    (void)state;
    const char *dir = test_temp_dir();
    for (int i = 0; i < ROWS; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "{\"id\":\"set/%02d\",\"text\":\"%s\"%s}\n", i, texts[i % 4],
                              i % 3 == 0 ? ",\"voice\":\"vale\"" : "");
    snprintf(manifest, sizeof manifest, "%s/rows.jsonl", dir);
    snprintf(config_path, sizeof config_path, "%s/config.json", dir);
    write_text(manifest, text);
    write_text(config_path, "{\"llm_rows\":3,\"flow_rows\":2,\"hift_rows\":2,\"utterances_max\":4}");
    setenv("COSYFARM_RUN_DIR", test_temp_dir(), 1); /* no farm runs there: each batch has its own */
    dir = test_temp_dir();
    expect_batch(0, "8 done", dir);
    read_ledger(dir, "ledger.jsonl", &undisturbed);
    return undisturbed.count == ROWS ? 0 : -1;
}

static void test_resume_does_what_is_missing(void **state)
{
    (void)state;
    char path[320];
    const char *dir = test_temp_dir();
    expect_batch(0, "8 done", dir);
    expect_undisturbed(dir);
    expect_batch(0, "0 done, 0 failed, 8 before", dir);
    snprintf(path, sizeof path, "%s/audio/set/07.wav", dir);
    assert_int_equal(unlink(path), 0);
    expect_batch(0, "1 done, 0 failed, 7 before", dir);
    assert_true(io_exists(path));
    expect_undisturbed(dir);
    write_text(path, "shorter"); /* another size is seen at once, other bytes with --verify */
    expect_batch(0, "1 done", dir);
    expect_undisturbed(dir);
    expect(0, "0 done", (const char *const[]){BATCH(dir), "--verify", NULL});
}

static void test_torn_ledger_line_is_repaired(void **state)
{
    (void)state;
    char path[320], *text;
    size_t bytes;
    const char *dir = test_temp_dir();
    expect_batch(0, "8 done", dir);
    snprintf(path, sizeof path, "%s/ledger.jsonl", dir);
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    assert_ok(io_write_file(path, text, bytes - 20));
    mem_free(text);
    expect_batch(0, "ledger line 8 was cut off", dir);
    expect_undisturbed(dir);
}

static void test_bad_manifest_is_refused_before_work(void **state)
{
    (void)state;
    char bad[256], dir[256];
    snprintf(bad, sizeof bad, "%s/bad.jsonl", test_temp_dir());
    snprintf(dir, sizeof dir, "%s/out", test_temp_dir());
    write_text(bad, "{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":\"b\",\"txet\":\"x\"}\n{\"id\":\"a\",\"text\":\"y\"}\n"
                    "{\"id\":\"c\",\"text\":\"x\",\"voice\":\"ecko\"}\n");
    const char *const args[] = {"cosyfarm", "batch", "-m", tiny_model_dir(), bad, "-o", dir, NULL};
    expect(78, "bad.jsonl:2: key \"txet\" is not known; did you mean \"text\"?", args);
    expect(78, "bad.jsonl:4: voice \"ecko\" is not in", args);
    expect(78, "bad.jsonl:3: ", args);
    assert_false(io_exists(dir));
    expect(78, "3 rows, 2 of this shard; 1 bad lines, 1 repeated ids, 1 unknown voices",
           (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--check", bad, NULL});
    expect(0, "8 rows, 8 of this shard; 0 bad lines", (const char *const[]){BATCH(dir), "--check", NULL});
    expect(64, "no output folder", (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), bad, NULL});
    expect(64, "no manifest", (const char *const[]){"cosyfarm", "batch", "-o", dir, NULL});
    expect(78, "no model directory", (const char *const[]){"cosyfarm", "batch", manifest, "-o", dir, NULL});
}

static void test_shards_share_a_folder(void **state)
{
    (void)state;
    static outcome o;
    const char *dir = test_temp_dir();
    o.count = 0;
    expect(0, "0 failed", (const char *const[]){BATCH(dir), "--shard", "0/2", NULL});
    expect(0, "0 failed", (const char *const[]){BATCH(dir), "--shard", "1/2", NULL});
    read_ledger(dir, "ledger.0-of-2.jsonl", &o);
    assert_true(o.count > 0 && o.count < ROWS);
    read_ledger(dir, "ledger.1-of-2.jsonl", &o);
    assert_int_equal(o.count, ROWS);
    for (int i = 0; i < ROWS; i++)
        assert_string_equal(o.lines[i], undisturbed.lines[i]);
    expect(64, "0 <= i < n", (const char *const[]){BATCH(dir), "--shard", "2/2", NULL});
}

/* Starts a batch, and when some rows have ended sends it a signal; returns its exit code. */
static int interrupt(const char *dir, int number)
{
    char out[320];
    snprintf(out, sizeof out, "%s/said", dir);
    const pid_t pid = farm_command_start((const char *const[]){BATCH(dir), NULL}, out);
    wait_lines(dir, 2);
    assert_int_equal(kill(pid, number), 0);
    return farm_command_wait(pid);
}

static void test_interrupted_batch_goes_on(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    const int code = interrupt(dir, SIGTERM);
    assert_int_equal(code, 75);
    expect_batch(0, "0 failed", dir);
    expect_undisturbed(dir);
}

static bool log_has(const char *dir, const char *part)
{
    char path[320], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/farm.log", dir);
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    const bool found = strstr(text, part) != NULL;
    mem_free(text);
    return found;
}

static void test_killed_batch_goes_on_from_the_journal(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    assert_int_equal(interrupt(dir, SIGKILL), 128 + SIGKILL);
    expect_batch(0, "0 failed", dir);
    assert_true(log_has(dir, "ev=orch.recovered"));
    expect_undisturbed(dir);
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
            expect(0, "0 failed", (const char *const[]){BATCH(dir), "--retry-failed", NULL});
        expect_undisturbed(dir);
    }
}

static void test_other_model_is_not_mixed_in(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    expect_batch(0, "8 done", dir);
    char path[320];
    snprintf(path, sizeof path, "%s/audio/set/03.wav", dir);
    assert_int_equal(unlink(path), 0);
    expect(78, "precision", (const char *const[]){BATCH(dir), "--precision", "bf16", NULL});
    expect(0, "1 done", (const char *const[]){BATCH(dir), "--precision", "bf16", "--force-mix", NULL});
}

/* Everything is too fast for this guard: two more attempts with seeds of their own, the same each time. */
static void test_flagged_rows_are_tried_again(void **state)
{
    (void)state;
    char strict[256], ledger[320], *text;
    size_t bytes;
    const char *dir = test_temp_dir();
    snprintf(strict, sizeof strict, "%s/strict.json", test_temp_dir());
    write_text(strict, "{\"guard_letters_per_s_min\":1,\"guard_letters_per_s_max\":1}");
    const char *const args[] = {"cosyfarm", "batch",   "-m",  tiny_model_dir(), "--config", strict, "-v",
                                "echo",     "--shard", "0/4", manifest,         "-o",       dir,    NULL};
    expect(0, "0 failed", args);
    snprintf(ledger, sizeof ledger, "%s/ledger.0-of-4.jsonl", dir);
    assert_ok(io_read_file(ledger, 1 << 20, &text, &bytes));
    assert_non_null(strstr(text, "\"flags\":[\"too-short\""));
    assert_non_null(strstr(text, "\"retried\""));
    assert_non_null(strstr(text, "\"attempts\":3"));
    mem_free(text);
    write_text(strict, "{\"guard_letters_per_s_min\":1,\"guard_letters_per_s_max\":1,\"guard_fail\":true}");
    dir = test_temp_dir();
    expect(65, "0 done",
           (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--config", strict, "-v", "echo",
                                 "--shard", "0/4", manifest, "-o", dir, NULL});
    snprintf(ledger, sizeof ledger, "%s/ledger.0-of-4.jsonl", dir);
    assert_ok(io_read_file(ledger, 1 << 20, &text, &bytes));
    assert_non_null(strstr(text, "the quality guard flags each of 3 attempts"));
    mem_free(text);
    dir = test_temp_dir();
    write_text(strict, "{\"guard\":false}");
    expect(0, "0 failed",
           (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--config", strict, "-v", "echo",
                                 "--shard", "0/4", manifest, "-o", dir, NULL});
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
        cmocka_unit_test(test_shards_share_a_folder),
        cmocka_unit_test(test_interrupted_batch_goes_on),
        cmocka_unit_test(test_killed_batch_goes_on_from_the_journal),
        cmocka_unit_test(test_storage_that_fails),
        cmocka_unit_test(test_other_model_is_not_mixed_in),
        cmocka_unit_test(test_flagged_rows_are_tried_again),
    };
    return cmocka_run_group_tests_name("batch", tests, make_manifest, NULL);
}
