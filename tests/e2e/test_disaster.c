/*
 * test_disaster.c - what happens to a host in a night while a batch runs: its folder is deleted, moved away, closed,
 * its disk is full, the wall clock jumps, processes are stopped for five seconds. The batch pauses, or ends and says
 * why; the same command line completes, and the ledger is that of an undisturbed run.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <ftw.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/harness/batch_case.h"
#include "tests/harness/farm.h"

#define STOPPED_US (5 * CLOCK_SECOND_US)

static char waits_briefly[256], replaces_soon[256]; /* configurations */

static int begin(void **state)
{
    if (batch_cases_begin(state) != 0)
        return -1;
    snprintf(waits_briefly, sizeof waits_briefly, "%s/brief.json", test_temp_dir());
    snprintf(replaces_soon, sizeof replaces_soon, "%s/soon.json", test_temp_dir());
    batch_write_text(waits_briefly, "{\"precision\":\"bf16\",\"storage_wait_s\":1,\"utterances_max\":4}");
    batch_write_text(replaces_soon, "{\"precision\":\"bf16\",\"silence_s\":2,\"utterances_max\":2}");
    return 0;
}

/* A batch that has some rows behind it and others before it. */
static pid_t start_half_way(const char *dir, const char *config_file)
{
    const pid_t pid = batch_start(dir, config_file);
    batch_wait_lines(dir, 2);
    return pid;
}

static void expect_said(const char *dir, const char *part)
{
    char name[320], *text;
    size_t bytes;
    snprintf(name, sizeof name, "%s.said", dir);
    assert_ok(io_read_file(name, 1 << 20, &text, &bytes));
    if (!strstr(text, part))
        fail_msg("no \"%s\" in:\n%s", part, text);
    mem_free(text);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    remove(path); /* the farm may put something new in at any time */
    return 0;
}

static void remove_tree(const char *dir)
{
    for (int i = 0; i < 100 && io_exists(dir); i++)
        nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void test_moved_folder(void **state)
{
    (void)state;
    char away[320];
    const char *dir = test_temp_dir();
    const pid_t pid = start_half_way(dir, batch_config());
    snprintf(away, sizeof away, "%s.away", dir);
    assert_int_equal(rename(dir, away), 0);
    assert_int_equal(farm_command_wait(pid), 75);
    expect_said(dir, "was deleted or replaced while the batch was writing it");
    remove_tree(dir); /* what the farm wrote meanwhile */
    assert_int_equal(rename(away, dir), 0);
    batch_expect(0, "0 failed", dir);
    batch_expect_undisturbed(dir);
}

static void test_deleted_folder(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    const pid_t pid = start_half_way(dir, batch_config());
    remove_tree(dir);
    assert_int_equal(farm_command_wait(pid), 75);
    batch_expect(0, "6 done, 0 failed", dir);
    batch_expect_undisturbed(dir);
}

/* Nothing new can be put into the folder of the audio. */
static void close_folder(const char *dir, mode_t mode)
{
    char path[320];
    snprintf(path, sizeof path, "%s/audio/set", dir);
    assert_int_equal(chmod(path, mode), 0);
}

static void test_closed_folder_pauses(void **state)
{
    (void)state;
    if (!test_obey_modes())
        skip();
    const char *dir = test_temp_dir();
    const pid_t pid = start_half_way(dir, batch_config());
    close_folder(dir, 0555);
    batch_wait_text(dir, "farm.log", "ev=storage.waits");
    close_folder(dir, 0755);
    assert_int_equal(farm_command_wait(pid), 0);
    batch_expect_undisturbed(dir);
    assert_true(batch_has_text(dir, "farm.log", "ev=storage.recovered"));
}

static void test_closed_folder_fails_rows_in_the_end(void **state)
{
    (void)state;
    if (!test_obey_modes())
        skip();
    const char *dir = test_temp_dir();
    const pid_t pid = start_half_way(dir, waits_briefly);
    close_folder(dir, 0555);
    assert_int_equal(farm_command_wait(pid), 65);
    assert_true(batch_has_text(dir, "ledger.jsonl", "\"code\":\"storage\",\"stage\":\"write\""));
    assert_true(batch_has_text(dir, "ledger.jsonl", "Permission denied"));
    close_folder(dir, 0755);
    const char *const again[] = {BATCH_WITH(dir, waits_briefly), "--retry-failed", NULL};
    farm_expect(0, "0 failed", again);
    batch_expect_undisturbed(dir);
}

/* Whoever waits for one sentence is told at once, before anything is computed. */
static void test_say_into_a_closed_folder(void **state)
{
    (void)state;
    if (!test_obey_modes())
        skip();
    char file[320], below[320];
    const char *dir = test_temp_dir();
    snprintf(file, sizeof file, "%s/a.wav", dir);
    snprintf(below, sizeof below, "%s/new/folder/a.wav", dir);
    assert_int_equal(chmod(dir, 0555), 0);
    const char *const say[] = {"cosyfarm", "say", "-m", tiny_model_dir(), "-o", file, "It rained.", NULL};
    farm_expect(75, "no file can be put into this folder: Permission denied", say);
    const char *const deep[] = {"cosyfarm", "say", "-m", tiny_model_dir(), "-o", below, "It rained.", NULL};
    farm_expect(75, "no file can be put into this folder: Permission denied", deep);
    assert_int_equal(chmod(dir, 0755), 0);
    farm_expect(0, "", deep);
}

/* A file system of our own, of so many KiB, seen by us and what we start. False: this kernel or user cannot. */
static bool mount_small(const char *dir, int kib)
{
    static bool is_apart;
    char options[64];
    if (!is_apart && (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0))
        return false;
    is_apart = true;
    snprintf(options, sizeof options, "size=%dk,mode=755", kib);
    return mount("tmpfs", dir, "tmpfs", 0, options) == 0;
}

static void resize(const char *dir, int kib)
{
    char options[64];
    snprintf(options, sizeof options, "size=%dk", kib);
    assert_int_equal(mount("tmpfs", dir, "tmpfs", MS_REMOUNT, options), 0);
}

static void test_full_disk_pauses(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    if (!mount_small(dir, 140)) /* a file or two, and some */
        skip();
    const pid_t pid = batch_start(dir, batch_config());
    batch_wait_text(dir, "farm.log", "ev=storage.waits");
    resize(dir, 65536);
    assert_int_equal(farm_command_wait(pid), 0);
    batch_expect_undisturbed(dir);
    assert_int_equal(umount(dir), 0);
}

/* Nobody makes room: rows fail by name, or end whose lines cannot be written; nothing is done twice afterwards. */
static void test_full_disk_ends_the_batch(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    if (!mount_small(dir, 140))
        skip();
    const int code = farm_command_wait(batch_start(dir, waits_briefly));
    assert_true(code == 65 || code == 75);
    resize(dir, 65536);
    const char *const again[] = {BATCH_WITH(dir, waits_briefly), "--retry-failed", NULL};
    farm_expect(0, "0 failed", again);
    batch_expect_undisturbed(dir);
    assert_int_equal(umount(dir), 0);
}

/* One sentence where no room is, and where nothing may be written: the same command line goes on when there is. */
static void test_say_onto_a_full_disk(void **state)
{
    (void)state;
    char file[320], run_dir[320];
    const char *dir = test_temp_dir();
    if (!mount_small(dir, 8))
        skip();
    snprintf(file, sizeof file, "%s/a.wav", dir);
    const char *const say[] = {"cosyfarm", "say", "-m", tiny_model_dir(), "-o", file, "Yes.", NULL};
    farm_expect(75, "No space left on device", say);
    assert_int_equal(mount("tmpfs", dir, "tmpfs", MS_REMOUNT | MS_RDONLY, NULL), 0);
    farm_expect(75, "Read-only file system", say);
    snprintf(run_dir, sizeof run_dir, "%s/run", dir);
    farm_expect(75, "Read-only file system",
                (const char *const[]){"cosyfarm", "up", "-m", tiny_model_dir(), "--run-dir", run_dir, NULL});
    farm_expect(
        75, "Read-only file system",
        (const char *const[]){"cosyfarm", "up", "--detach", "-m", tiny_model_dir(), "--run-dir", run_dir, NULL});
    resize(dir, 65536);
    farm_expect(0, "s of audio", say);
    assert_int_equal(umount(dir), 0);
}

static void test_wall_clock_jumps(void **state)
{
    (void)state;
    char shim[4200];
    const char *dir = test_temp_dir(), *bin = getenv("COSYFARM_BIN");
    snprintf(shim, sizeof shim, "%s/../tests/e2e/clock_jump.so", bin ? bin : "build/default/bin");
    if (!io_exists(shim)) /* sanitizers want to be loaded first: not built then */
        skip();
    setenv("LD_PRELOAD", shim, 1);
    const pid_t pid = batch_start(dir, replaces_soon);
    unsetenv("LD_PRELOAD");
    assert_int_equal(farm_command_wait(pid), 0);
    batch_expect_undisturbed(dir);
    assert_false(batch_has_text(dir, "farm.log", "no heartbeat for silence_s"));
    assert_false(batch_has_text(dir, "farm.log", "ev=child.died"));
}

/* The process of this name among the batch's children; the batch itself for "cosyfarm". */
static pid_t process_of(pid_t batch, const char *name)
{
    return strcmp(name, "cosyfarm") == 0 ? batch : farm_child(batch, name);
}

typedef struct stopped_batch {
    const char *name; /* of the process that is stopped */
    char dir[256];
    pid_t batch, process;
    uint64_t stopped_us; /* 0: not yet */
    bool goes_on;
} stopped_batch;

/* Stops its process when a row has ended, and lets it go on five seconds later: not more, however slow the others
 * are. */
static void stop_and_go_on(stopped_batch *b)
{
    const uint64_t now_us = clock_now_us();
    if (b->stopped_us == 0 && batch_has_text(b->dir, "ledger.jsonl", "\n")) {
        b->process = process_of(b->batch, b->name);
        if (b->process <= 0 || kill(b->process, SIGSTOP) != 0)
            fail_msg("%s is not there to be stopped", b->name);
        b->stopped_us = now_us;
    } else if (b->stopped_us > 0 && !b->goes_on && now_us - b->stopped_us > STOPPED_US) {
        kill(b->process, SIGCONT); /* gone already, where it was replaced */
        b->goes_on = true;
    }
}

/* Each process of a farm, in a batch of its own, is stopped for five seconds; silence_s 2 takes a worker for lost. */
static void test_stopped_for_five_seconds(void **state)
{
    (void)state;
    static stopped_batch all[] = {{.name = "llm_worker"},      {.name = "flow_worker"},  {.name = "hift_worker"},
                                  {.name = "exchange_keeper"}, {.name = "orchestrator"}, {.name = "cosyfarm"}};
    enum { COUNT = sizeof all / sizeof all[0] };
    const char *parent = test_temp_dir();
    for (int i = 0; i < COUNT; i++) {
        snprintf(all[i].dir, sizeof all[i].dir, "%s/%s", parent, all[i].name);
        all[i].batch = batch_start(all[i].dir, i < 2 ? replaces_soon : batch_config());
    }
    const uint64_t deadline_us = clock_now_us() + 120 * CLOCK_SECOND_US;
    for (int going = 0; going < COUNT; poll(NULL, 0, 5)) {
        assert_true(clock_now_us() < deadline_us);
        going = 0;
        for (int i = 0; i < COUNT; i++) {
            stop_and_go_on(&all[i]);
            going += all[i].goes_on;
        }
    }
    for (int i = 0; i < COUNT; i++) {
        const int code = farm_command_wait(all[i].batch);
        if (code != 0)
            fail_msg("%s stopped: exit code %d", all[i].name, code);
        batch_expect_undisturbed(all[i].dir);
        assert_int_equal(batch_has_text(all[i].dir, "farm.log", "no heartbeat for silence_s"), i < 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moved_folder),
        cmocka_unit_test(test_deleted_folder),
        cmocka_unit_test(test_full_disk_pauses),
        cmocka_unit_test(test_full_disk_ends_the_batch),
        cmocka_unit_test(test_say_onto_a_full_disk),
        cmocka_unit_test(test_wall_clock_jumps),
        cmocka_unit_test(test_stopped_for_five_seconds),
        cmocka_unit_test(test_closed_folder_pauses),
        cmocka_unit_test(test_closed_folder_fails_rows_in_the_end),
        cmocka_unit_test(test_say_into_a_closed_folder),
    };
    return cmocka_run_group_tests_name("disaster", tests, begin, NULL);
}
