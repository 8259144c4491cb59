/*
 * test_parole.c - a worker that dies again and again before it finishes a job: barred, tried again after a pause, and
 * what `cosyfarm batch` makes of it. The llm worker is a script that starts the real one with a fault in its first
 * lives. [P-21], [P-23].
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
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

/* The llm worker dies in its first step in so many lives. */
static void make_worker(int lives)
{
    char text[8800], path[320];
    snprintf(text, sizeof text,
             "#!/bin/sh\necho >>%s/lives\n[ $(wc -l <%s/lives) -gt %d ] || export COSYFARM_FAULT=llm.step#1=kill\n"
             "exec %s/llm_worker \"$@\"\n",
             bin, bin, lives, getenv("COSYFARM_BIN"));
    snprintf(path, sizeof path, "%s/llm_worker", bin);
    batch_write_text(path, text);
    assert_int_equal(chmod(path, 0755), 0);
    snprintf(path, sizeof path, "%s/lives", bin);
    unlink(path);
}

static void run(int code, const char *part, const char *dir, const char *overrides)
{
    char text[512], path[320], real_bin[4096];
    snprintf(path, sizeof path, "%s/parole.json", bin);
    snprintf(text, sizeof text, "{\"precision\":\"bf16\",\"deaths_max\":100,\"utterances_max\":4%s}", overrides);
    batch_write_text(path, text);
    snprintf(real_bin, sizeof real_bin, "%s", getenv("COSYFARM_BIN"));
    setenv("COSYFARM_BIN", bin, 1);
    const char *const args[] = {BATCH_WITH(dir, path), NULL};
    batch_expect_command(code, part, args);
    setenv("COSYFARM_BIN", real_bin, 1);
}

/* Three deaths, a failed parole, one that is passed: the batch goes on by itself, same bytes. */
static void test_batch_goes_on_after_a_parole(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    make_worker(4);
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
    make_worker(1000);
    run(75, "none has been fed for 2 s (parole_s + barred_s)", dir,
        ",\"parole_s\":1,\"parole_max_s\":60,\"barred_s\":1");
    assert_true(batch_has_text(dir, "farm.log", "ev=member.parole"));
    batch_expect(0, "6 done", dir);
    batch_expect_undisturbed(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_goes_on_after_a_parole),
        cmocka_unit_test(test_batch_gives_up_after_paroles),
    };
    return cmocka_run_group_tests_name("parole", tests, begin, NULL);
}
