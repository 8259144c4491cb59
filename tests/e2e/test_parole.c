/*
 * test_parole.c - a worker that dies again and again: before it finishes a job, then it is barred, tried again after a
 * pause; or before it serves at all, then `say` gives up after some ends and `batch` after some time; or that hangs.
 * The llm worker is a script that starts the real one with a fault in its first lives. [P-21], [P-23], [P-28].
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/harness/batch_case.h"
#include "tests/harness/farm.h"

static char bin[256];

static void copy_program(const char *from_dir, const char *name)
{
    char from[4200], to[320], *data;
    size_t bytes;
    snprintf(from, sizeof from, "%s/%s", from_dir, name);
    snprintf(to, sizeof to, "%s/%s", bin, name);
    assert_ok(io_read_file(from, (size_t)1 << 30, &data, &bytes));
    assert_ok(io_write_file(to, data, bytes));
    assert_int_equal(chmod(to, 0755), 0);
    mem_free(data);
}

/* The command looks for the others in its own folder, so it is copied, and they are links. */
static int begin(void **state)
{
    static const char *const links[] = {"orchestrator", "exchange_keeper", "flow_worker", "hift_worker"};
    char from[4200], to[320];
    const char *dir = getenv("COSYFARM_BIN");
    snprintf(bin, sizeof bin, "%s", test_temp_dir());
    if (batch_cases_begin(state) != 0)
        return -1;
    copy_program(dir, "cosyfarm");
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) {
        snprintf(from, sizeof from, "%s/%s", dir, links[i]);
        snprintf(to, sizeof to, "%s/%s", bin, links[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    return 0;
}

/* In so many lives the llm worker does this first. */
static void make_worker(int lives, const char *does)
{
    char text[8800], path[320];
    snprintf(text, sizeof text,
             "#!/bin/sh\necho >>%s/lives\n[ $(wc -l <%s/lives) -gt %d ] || %s\nexec %s/llm_worker \"$@\"\n", bin, bin,
             lives, does, getenv("COSYFARM_BIN"));
    snprintf(path, sizeof path, "%s/llm_worker", bin);
    unlink(path); /* it may be a link to the real one */
    batch_write_text(path, text);
    assert_int_equal(chmod(path, 0755), 0);
    snprintf(path, sizeof path, "%s/lives", bin);
    unlink(path);
}

#define DIES_IN_ITS_FIRST_STEP "export COSYFARM_FAULT=llm.step#1=kill"
#define FINDS_NO_MEMORY        "{ echo 'llm: no memory today'; exit 75; }"

/* A command of the programs in bin, its output in bin/NAME. */
static pid_t start(const char *name, const char *const *args)
{
    char real_bin[4096], path[320];
    snprintf(path, sizeof path, "%s/%s", bin, name);
    snprintf(real_bin, sizeof real_bin, "%s", getenv("COSYFARM_BIN"));
    setenv("COSYFARM_BIN", bin, 1);
    const pid_t pid = farm_command_start(args, path);
    setenv("COSYFARM_BIN", real_bin, 1);
    return pid;
}

/* Fails when it does not end. */
static void expect_end(pid_t pid, const char *name, int code, const char *part)
{
    char path[320], *text;
    size_t bytes;
    const int got = farm_command_wait_within(pid, 120, "batch");
    snprintf(path, sizeof path, "%s/%s", bin, name);
    assert_ok(io_read_file(path, 1 << 20, &text, &bytes));
    if (got != code || !strstr(text, part))
        fail_msg("exit code %d (want %d), output without \"%s\":\n%s", got, code, part, text);
    mem_free(text);
}

static pid_t start_batch(const char *dir, const char *overrides)
{
    char text[512], path[320];
    snprintf(path, sizeof path, "%s/parole.json", bin);
    snprintf(text, sizeof text, "{\"precision\":\"bf16\",\"deaths_max\":100,\"utterances_max\":4%s}", overrides);
    batch_write_text(path, text);
    const char *const args[] = {BATCH_WITH(dir, path), NULL};
    return start("batch", args);
}

static void run(int code, const char *part, const char *dir, const char *overrides)
{
    expect_end(start_batch(dir, overrides), "batch", code, part);
}

static pid_t start_say(const char *wav)
{
    return start("say",
                 (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", wav, "It rained.", NULL});
}

/* Three deaths, a failed parole, one that is passed: the batch goes on by itself, same bytes. */
static void test_batch_goes_on_after_a_parole(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    make_worker(4, DIES_IN_ITS_FIRST_STEP);
    run(0, "6 done", dir, ",\"parole_s\":1,\"parole_max_s\":2");
    batch_expect_undisturbed(dir);
    assert_true(
        batch_has_text(dir, "farm.log", "ev=member.barred unit=orchestrator role=llm instance=0 deaths=3 pause_s=1"));
    assert_true(batch_has_text(dir, "farm.log", "deaths=4 pause_s=2"));
    assert_true(batch_has_text(dir, "farm.log", "ev=member.cleared"));
}

/* It never gets better: the batch ends, says why, and the same command goes on when it is mended. */
static void test_batch_gives_up_after_paroles(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    make_worker(1000, DIES_IN_ITS_FIRST_STEP);
    run(75, "none has been fed for 2 s (parole_s + barred_s)", dir,
        ",\"parole_s\":1,\"parole_max_s\":60,\"barred_s\":1");
    assert_true(batch_has_text(dir, "farm.log", "ev=member.parole"));
    batch_expect(0, "6 done", dir);
    batch_expect_undisturbed(dir);
}

/* The log of a farm that is no more is where its last words say. */
static void remove_named_log(const char *name)
{
    static const char words[] = "the farm's log is ";
    char path[320], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/%s", bin, name);
    assert_ok(io_read_file(path, 1 << 20, &text, &bytes));
    char *log = strstr(text, words);
    assert_non_null(log);
    log += sizeof words - 1;
    log[strcspn(log, "\n")] = '\0';
    assert_int_equal(unlink(log), 0);
    mem_free(text);
}

/* It finds no memory each time it is started: say gives up after some ends and tells how it ended, and what it said;
 * batch goes on for unserved_s, and the same command completes. */
static void test_none_serves(void **state)
{
    (void)state;
    char wav[320];
    const char *dir = test_temp_dir();
    snprintf(wav, sizeof wav, "%s/x.wav", test_temp_dir());
    make_worker(1000, FINDS_NO_MEMORY);
    const pid_t batch = start_batch(dir, ",\"unserved_s\":8"), say = start_say(wav);
    expect_end(say, "say", 75, "llm_worker/0 ends before it serves: 8 times in ");
    assert_true(batch_has_text(bin, "say",
                               "the last time with exit code 75 (out of memory or other resources); its last line: "
                               "\"llm: no memory today\"\n"));
    remove_named_log("say");
    assert_false(io_exists(wav));
    expect_end(batch, "batch", 75, "llm_worker/0 ends before it serves: ");
    assert_true(batch_has_text(bin, "batch", "/farm.log"));
    batch_expect(0, "6 done", dir);
    batch_expect_undisturbed(dir);
}

static void goes_on(const char *overrides, const char *said)
{
    const char *dir = test_temp_dir();
    run(0, "6 done", dir, overrides);
    batch_expect_undisturbed(dir);
    if (!batch_has_text(dir, "farm.log", said))
        fail_msg("%s/farm.log has no \"%s\"", dir, said);
}

/* A worker that is stopped before it has said who it is, or while its model loads, and a keeper that is stopped when it
 * is asked for memory: each is killed, and the batch goes on. [P-28] */
static void test_batch_goes_on_after_a_hang(void **state)
{
    (void)state;
    make_worker(1, "kill -STOP $$");
    goes_on(",\"silence_s\":2", "ev=child.hung");
    make_worker(1, "export COSYFARM_FAULT=io.map#1=stop");
    goes_on(",\"silence_s\":2", "text=\"said nothing for silence_s before it served\"");
    make_worker(0, "true");
    setenv("COSYFARM_FAULT", "keeper.alloc#1=stop", 1);
    goes_on(",\"silence_s\":2", "text=\"made no exchange memory for silence_s\"");
    unsetenv("COSYFARM_FAULT");
}

/* It hangs each time: the batch ends, and the same command completes. */
static void test_batch_gives_up_after_hangs(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    make_worker(1000, "kill -STOP $$");
    run(75, "stage llm of this command's own farm: expected a worker that serves, found no worker for ", dir,
        ",\"silence_s\":2,\"unserved_s\":2");
    batch_expect(0, "6 done", dir);
    batch_expect_undisturbed(dir);
}

/* It needs more than a second each time to find out: its rests grow all the same. [P-25] */
static void test_slow_ends_are_rested_for(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    make_worker(1000, "{ sleep 1.1; exit 75; }");
    const pid_t up =
        start("up", (const char *const[]){"cosyfarm", "up", "-m", tiny_model_dir(), "--run-dir", dir, NULL});
    batch_wait_text(bin, "up", "ev=child.ended unit=up program=llm_worker");
    batch_wait_text(bin, "up", "code=75 restart_ms=200");
    assert_int_equal(kill(up, SIGTERM), 0);
    assert_int_equal(farm_command_wait_within(up, 60, "up"), 75);
}

/* A few such ends are nothing. */
static void test_a_worker_serves_at_last(void **state)
{
    (void)state;
    char wav[320];
    snprintf(wav, sizeof wav, "%s/x.wav", test_temp_dir());
    make_worker(4, FINDS_NO_MEMORY);
    expect_end(start_say(wav), "say", 0, "s of audio");
}

static void test_farm_without_a_stage_is_refused(void **state)
{
    (void)state;
    const pid_t say = start("say", (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "--flow", "0", "-o",
                                                         "x.wav", "x", NULL});
    expect_end(say, "say", 78, "expected at least 1, found llm_workers 1, flow_workers 0, hift_workers 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_goes_on_after_a_parole),
        cmocka_unit_test(test_batch_gives_up_after_paroles),
        cmocka_unit_test(test_none_serves),
        cmocka_unit_test(test_batch_goes_on_after_a_hang),
        cmocka_unit_test(test_batch_gives_up_after_hangs),
        cmocka_unit_test(test_slow_ends_are_rested_for),
        cmocka_unit_test(test_a_worker_serves_at_last),
        cmocka_unit_test(test_farm_without_a_stage_is_refused),
    };
    return cmocka_run_group_tests_name("parole", tests, begin, NULL);
}
