/*
 * test_kill.c - kill -9 of every process while eight rows are in flight: every row's file appears, with the bytes of an
 * undisturbed run. Some deaths come from outside, at a row's end; others at an exact place inside, by a fault point.
 * [P-06], [P-13], [P-16].
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/sha256.h"
#include "tests/harness/farm.h"

#define ROWS 8

static farm_row undisturbed[ROWS];

static int run_undisturbed(void **state)
{
    (void)state;
    farm f;
    farm_start(&f, NULL, NULL);
    farm_speak(&f, test_temp_dir(), ROWS, undisturbed, 0, NULL, NULL);
    farm_end(&f);
    for (int i = 0; i < ROWS; i++)
        if (strcmp(undisturbed[i].status, "done") != 0)
            return -1;
    return 0;
}

static void kill_role(const farm *f, void *ctx)
{
    const pid_t pid = farm_pid(f, ctx);
    assert_true(pid > 1);
    assert_int_equal(kill(pid, SIGKILL), 0);
}

static void expect_same(const farm_row *rows)
{
    for (int i = 0; i < ROWS; i++) {
        io_map map;
        char hex[SHA256_HEX_BYTES];
        if (strcmp(rows[i].status, "done") != 0)
            fail_msg("%s: %s: %s", rows[i].id, rows[i].status, rows[i].text);
        assert_string_equal(rows[i].sha256, undisturbed[i].sha256);
        assert_ok(io_map_file(rows[i].path, &map));
        assert_ok(sha256_of(map.data, map.data_bytes, hex));
        io_unmap(&map);
        assert_string_equal(hex, undisturbed[i].sha256);
    }
}

static void kill_from_outside(const char *role, int after_rows)
{
    farm f;
    farm_row rows[ROWS];
    char name[32];
    snprintf(name, sizeof name, "%s", role);
    farm_start(&f, NULL, "\"flow_rows\":2,\"hift_rows\":2,\"llm_rows\":4");
    farm_speak(&f, test_temp_dir(), ROWS, rows, after_rows, kill_role, name);
    expect_same(rows);
    farm_end(&f);
}

static void kill_inside(const char *fault, bool replays)
{
    farm f;
    farm_row rows[ROWS];
    farm_start(&f, fault, "\"flow_rows\":2,\"hift_rows\":2,\"llm_rows\":4");
    farm_speak(&f, test_temp_dir(), ROWS, rows, 0, NULL, NULL);
    expect_same(rows);
    uint64_t attempts = 0;
    for (int i = 0; i < ROWS; i++)
        attempts += rows[i].attempts;
    if (replays) /* the point did fire */
        assert_true(attempts > ROWS);
    farm_end(&f);
}

static void test_kill_llm(void **state)
{
    (void)state;
    kill_from_outside("llm", 2);
}

static void test_kill_flow(void **state)
{
    (void)state;
    kill_from_outside("flow", 3);
}

static void test_kill_hift(void **state)
{
    (void)state;
    kill_from_outside("hift", 1);
}

static void test_kill_keeper(void **state)
{
    (void)state;
    kill_from_outside("keeper", 2);
}

static void test_kill_orchestrator(void **state)
{
    (void)state;
    kill_from_outside("orchestrator", 3);
}

static void test_die_inside_llm_step(void **state)
{
    (void)state;
    kill_inside("llm.step#20=kill", true);
}

static void test_die_inside_flow_step(void **state)
{
    (void)state;
    kill_inside("flow.step#15=kill", true);
}

static void test_die_inside_hift_step(void **state)
{
    (void)state;
    kill_inside("hift.step#2=kill", true);
}

static void test_die_before_a_result_is_told(void **state)
{
    (void)state;
    kill_inside("worker.result#2=kill", true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kill_llm),
        cmocka_unit_test(test_kill_flow),
        cmocka_unit_test(test_kill_hift),
        cmocka_unit_test(test_kill_keeper),
        cmocka_unit_test(test_kill_orchestrator),
        cmocka_unit_test(test_die_inside_llm_step),
        cmocka_unit_test(test_die_inside_flow_step),
        cmocka_unit_test(test_die_inside_hift_step),
        cmocka_unit_test(test_die_before_a_result_is_told),
    };
    return cmocka_run_group_tests_name("kill", tests, run_undisturbed, NULL);
}
