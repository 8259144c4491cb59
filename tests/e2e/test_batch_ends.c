/*
 * test_batch_ends.c - `cosyfarm batch` that is interrupted or killed: what it says, what goes on, what is left of it.
 * Real processes, the tiny model.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
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

/* Starts a batch, and when some rows have ended sends it a signal; returns its exit code. */
static int interrupt(const char *dir, int number)
{
    const pid_t pid = batch_start(dir, batch_config());
    batch_wait_lines(dir, 2);
    assert_int_equal(kill(pid, number), 0);
    return farm_command_wait(pid);
}

static void test_interrupted_batch_goes_on(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    const int code = interrupt(dir, SIGTERM);
    assert_int_equal(code, 75);
    batch_expect(0, "0 failed", dir);
    batch_expect_undisturbed(dir);
}

static void expect_heard(pid_t pid)
{
    assert_int_equal(kill(pid, SIGTERM), 0);
    assert_int_equal(farm_command_wait_within(pid, 20, "a stopped batch"), 75);
}

static void wait_mapped(pid_t pid, const char *name)
{
    char path[64], line[4096];
    snprintf(path, sizeof path, "/proc/%ld/maps", (long)pid);
    for (bool found = false; !found; poll(NULL, 0, 5)) {
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        while (!found && fgets(line, sizeof line, f))
            found = strstr(line, name) != NULL;
        fclose(f);
    }
}

/* Before the run a signal is heard too: while rows are waited for, and while a file of 64 GiB is hashed. */
static void test_interrupted_before_the_run(void **state)
{
    (void)state;
    char fifo[320], path[320], ledger[320], *text, *size;
    size_t bytes;
    const char *dir = test_temp_dir();
    snprintf(fifo, sizeof fifo, "%s/rows.jsonl", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    pid_t pid = farm_command_start(
        (const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), fifo, "-o", dir, NULL}, "/dev/null");
    int writer;
    while ((writer = open(fifo, O_WRONLY | O_NONBLOCK)) < 0) /* nobody reads it yet */
        poll(NULL, 0, 5);
    expect_heard(pid);
    close(writer);
    batch_expect(0, "6 done", dir);
    snprintf(path, sizeof path, "%s/audio/set/03.wav", dir);
    assert_int_equal(truncate(path, (off_t)64 << 30), 0);
    snprintf(ledger, sizeof ledger, "%s/ledger.jsonl", dir);
    assert_ok(io_read_file(ledger, 1 << 20, &text, &bytes));
    size = strstr(strstr(text, "\"id\":\"set/03\""), "\"bytes\":");
    const size_t digits = strspn(size + 8, "0123456789");
    char *other = malloc(bytes + 16);
    assert_non_null(other);
    const int written =
        snprintf(other, bytes + 16, "%.*s\"bytes\":68719476736%s", (int)(size - text), text, size + 8 + digits);
    assert_ok(io_write_file(ledger, other, (size_t)written));
    pid = farm_command_start((const char *const[]){BATCH(dir), "--verify", NULL}, "/dev/null");
    wait_mapped(pid, "audio/set/03.wav");
    expect_heard(pid);
    mem_free(text);
    assert_ok(io_read_file(ledger, 1 << 20, &text, &bytes));
    assert_int_equal(bytes, written);
    assert_memory_equal(text, other, bytes); /* as it was */
    mem_free(text);
    free(other);
}

static int count_names(const char *folder, const char *part)
{
    DIR *d = opendir(folder);
    int count = 0;
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d)) != NULL;)
        count += strstr(e->d_name, part) != NULL;
    closedir(d);
    return count;
}

/* The run directory that it left goes with the next farm, that of a batch which lives stays. */
static void test_killed_batch_goes_on_from_the_journal(void **state)
{
    (void)state;
    const char *dir = test_temp_dir(), *other = test_temp_dir(), *temp = test_temp_dir();
    setenv("TMPDIR", temp, 1);
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(interrupt(dir, SIGKILL), 128 + SIGKILL);
    assert_int_equal(count_names(temp, "cosyfarm-"), 1);
    const pid_t living = batch_start(other, batch_config());
    batch_wait_lines(other, 1);
    assert_int_equal(count_names(temp, "cosyfarm-"), 1);
    batch_expect(0, "0 failed", dir);
    assert_int_equal(farm_command_wait(living), 0);
    assert_int_equal(count_names(temp, "cosyfarm-"), 0);
    unsetenv("TMPDIR");
    assert_true(batch_has_text(dir, "farm.log", "ev=orch.recovered"));
    batch_expect_undisturbed(dir);
}

/* Killed between the writing of a file and its renaming: what was left goes when the row is taken on. */
static void test_no_temporary_file_is_left(void **state)
{
    (void)state;
    char folder[320];
    const char *dir = test_temp_dir();
    setenv("COSYFARM_FAULT", "io.rename#3=kill", 1);
    batch_expect(0, "0 failed", dir);
    unsetenv("COSYFARM_FAULT");
    assert_true(batch_has_text(dir, "farm.log", "ev=orch.recovered"));
    snprintf(folder, sizeof folder, "%s/audio/set", dir);
    assert_int_equal(count_names(folder, ".tmp."), 0);
    assert_int_equal(count_names(folder, ".wav"), BATCH_ROWS);
    batch_expect_undisturbed(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_interrupted_batch_goes_on),
        cmocka_unit_test(test_interrupted_before_the_run),
        cmocka_unit_test(test_killed_batch_goes_on_from_the_journal),
        cmocka_unit_test(test_no_temporary_file_is_left),
    };
    return cmocka_run_group_tests_name("batch_ends", tests, batch_cases_begin, NULL);
}
