/*
 * test_recovery.c - what a farm leaves in its journal, and its successor makes of it. A batch dies when its llm is done
 * and nothing else: the next start goes on with the tokens where it would have made the same, and else computes them
 * again; either way the result is that of an undisturbed run. A farm ends with a row that storage refuses. [P-16],
 * [P-22].
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/harness/batch_case.h"
#include "tests/harness/farm.h"

#define TOKENS "{\"k\":\"tokens\""

static void read_journal(const char *dir, char **ret_text, size_t *ret_bytes)
{
    char path[320];
    snprintf(path, sizeof path, "%s/.journal", dir);
    assert_ok(io_read_file(path, 1 << 24, ret_text, ret_bytes));
}

static int token_records(const char *dir)
{
    char *text;
    size_t bytes;
    int count = 0;
    read_journal(dir, &text, &bytes);
    for (const char *at = text; (at = strstr(at, TOKENS)) != NULL; at++)
        count++;
    mem_free(text);
    return count;
}

/* Tokens of every row in dir's journal, and not one file: the flow stops at its first step, and then kill -9. */
static void leave_tokens(const char *dir, const char *precision)
{
    char config_file[320];
    char text[128];
    snprintf(config_file, sizeof config_file, "%s.json", dir);
    snprintf(text, sizeof text, "{\"precision\":\"%s\"}", precision);
    batch_write_text(config_file, text);
    setenv("COSYFARM_FAULT", "flow.step#1=stop", 1);
    const pid_t pid = batch_start(dir, config_file);
    unsetenv("COSYFARM_FAULT");
    const uint64_t deadline_us = clock_now_us() + 60 * CLOCK_SECOND_US;
    batch_wait_text(dir, ".journal", TOKENS);
    while (token_records(dir) < BATCH_ROWS) {
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 5);
    }
    assert_int_equal(kill(pid, SIGKILL), 0);
    farm_command_wait(pid);
}

/* The configuration of the undisturbed run goes on. */
static void go_on(const char *dir, bool dropped)
{
    farm_expect(0, "6 done, 0 failed", (const char *const[]){BATCH(dir), "--force-mix", NULL});
    batch_expect_undisturbed(dir);
    assert_true(batch_has_text(dir, "farm.log", "ev=orch.recovered"));
    assert_int_equal(batch_has_text(dir, "farm.log", "ev=row.tokens_dropped"), dropped);
}

static void test_same_farm_uses_the_tokens(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    leave_tokens(dir, "bf16");
    go_on(dir, false);
}

static void test_other_precision_computes_them_again(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    leave_tokens(dir, "f32");
    go_on(dir, true);
}

/* A journal of before there was an origin: nobody knows what its tokens are. */
static void test_tokens_without_origin_are_computed_again(void **state)
{
    (void)state;
    char path[320], *text;
    size_t bytes;
    const char *dir = test_temp_dir();
    leave_tokens(dir, "f32");
    read_journal(dir, &text, &bytes);
    for (char *at = text, *end; (at = strstr(at, ",\"origin\":\"")) != NULL;) {
        end = strchr(at + 11, '"') + 1;
        memmove(at, end, strlen(end) + 1);
    }
    assert_null(strstr(text, "origin"));
    assert_non_null(strstr(text, TOKENS));
    snprintf(path, sizeof path, "%s/.journal", dir);
    batch_write_text(path, text);
    mem_free(text);
    go_on(dir, true);
}

/* ---- a farm whose storage refuses ---- */

/* A batch of one row on the running farm, into dir, whose audio folder lets nothing in. It ends before its farm. */
static void leave_a_row_in_the_writer(const farm *f, const char *dir)
{
    char manifest[320], audio[320], log[320];
    const char *const batch[] = {"cosyfarm", "batch", "-q", "-m", tiny_model_dir(), manifest, "-o", dir, NULL};
    snprintf(manifest, sizeof manifest, "%s.jsonl", dir);
    snprintf(audio, sizeof audio, "%s/audio", dir);
    snprintf(log, sizeof log, "%s.said", dir);
    batch_write_text(manifest, "{\"id\":\"a\",\"text\":\"It rained.\"}\n");
    assert_ok(io_make_dirs(audio, 0755));
    assert_int_equal(chmod(audio, 0555), 0);
    const pid_t pid = farm_command_start(batch, log);
    batch_wait_text(f->run_dir, "log", "ev=storage.waits");
    kill(pid, SIGKILL);
    farm_command_wait(pid);
}

/* Times the text is in the farm's log. */
static void wait_times(const farm *f, const char *part, int times)
{
    const uint64_t deadline_us = clock_now_us() + 60 * CLOCK_SECOND_US;
    for (int found = 0; found < times; poll(NULL, 0, 20)) {
        char path[320], *text;
        size_t bytes;
        assert_true(clock_now_us() < deadline_us);
        snprintf(path, sizeof path, "%s/log", f->run_dir);
        assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
        found = 0;
        for (const char *at = text; (at = strstr(at, part)) != NULL; at++)
            found++;
        mem_free(text);
    }
}

/* Each way to end an orchestrator whose finished row cannot be written: with its own code, and the next one has the
 * row. */
static void test_farm_ends_with_a_row_in_the_writer(void **state)
{
    (void)state;
    if (!test_obey_modes())
        skip();
    farm f;
    char audio[320], wav[320];
    const char *dir = test_temp_dir();
    snprintf(audio, sizeof audio, "%s/audio", dir);
    snprintf(wav, sizeof wav, "%s/audio/a.wav", dir);
    farm_start(&f, NULL, "\"grace_s\":1");
    leave_a_row_in_the_writer(&f, dir);
    kill(farm_pid(&f, "orchestrator"), SIGTERM); /* grace_s is over: somebody may want a successor */
    batch_wait_text(f.run_dir, "log", "ev=child.ended");
    wait_times(&f, "ev=storage.waits", 2);
    farm_expect(75, "rows left when the farm ended: 1; its journal keeps them",
                (const char *const[]){"cosyfarm", "down", NULL});
    assert_int_equal(farm_command_wait_within(f.supervisor, 30, "up"), 0);
    assert_false(batch_has_text(f.run_dir, "log", "ev=child.died"));
    farm_start_again(&f);
    wait_times(&f, "ev=storage.waits", 1);
    kill(farm_pid(&f, "orchestrator"), SIGUSR1); /* steps aside, and ends with 0: here that ends the farm */
    assert_int_equal(farm_command_wait_within(f.supervisor, 30, "up"), 0);
    assert_false(batch_has_text(f.run_dir, "log", "ev=child."));
    assert_int_equal(chmod(audio, 0755), 0);
    farm_start_again(&f);
    batch_wait_text(f.run_dir, "log", "ev=row.done");
    assert_true(io_exists(wav));
    farm_end(&f);
    (void)farm_of_their_own();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_farm_uses_the_tokens),
        cmocka_unit_test(test_other_precision_computes_them_again),
        cmocka_unit_test(test_tokens_without_origin_are_computed_again),
        cmocka_unit_test(test_farm_ends_with_a_row_in_the_writer),
    };
    return cmocka_run_group_tests_name("recovery", tests, batch_cases_begin, NULL);
}
