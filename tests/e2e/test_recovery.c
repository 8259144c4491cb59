/*
 * test_recovery.c - a batch that dies when its llm is done and nothing else: the journal has the tokens of all rows.
 * The next start goes on with them where it would have made the same, and else computes them again; either way the
 * result is that of an undisturbed run. [P-16], [P-22].
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_farm_uses_the_tokens),
        cmocka_unit_test(test_other_precision_computes_them_again),
        cmocka_unit_test(test_tokens_without_origin_are_computed_again),
    };
    return cmocka_run_group_tests_name("recovery", tests, batch_cases_begin, NULL);
}
