/*
 * test_supervisor.c - a farm keeps as many processes as it shall have, whoever ends them and how: SIGTERM from outside,
 * wishes that overtake each other, wishes whose orchestrator dies. [P-25], [P-27], [P-30].
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "tests/harness/farm.h"
#include "tests/harness/tiny_model.h"

#define SETTLED_US  CLOCK_SECOND_US
#define DEADLINE_US (60 * CLOCK_SECOND_US)

/* Members of that role in any of these states (NULL: in any at all). */
static int members(const farm *f, const char *role, const char *state)
{
    int count = 0;
    wire_msg status = farm_status(f);
    for (const json *m = json_first(wire_json(&status, "members")); m; m = json_next(m)) {
        const char *its_role, *its_state;
        assert_ok(json_get_str(m, "role", 31, &its_role));
        assert_ok(json_get_str(m, "state", 31, &its_state));
        count += strcmp(its_role, role) == 0 && (!state || strcmp(its_state, state) == 0);
    }
    wire_done(&status);
    return count;
}

/* Waits until so many of the role are in one state, so many in another, and nobody else is there, for a second. */
static void expect_states(const farm *f, const char *role, const char *a, int in_a, const char *b, int in_b)
{
    const uint64_t deadline_us = clock_now_us() + DEADLINE_US;
    uint64_t since_us = clock_now_us();
    while (clock_now_us() - since_us < SETTLED_US) {
        const int are_a = members(f, role, a), are_b = members(f, role, b), all = members(f, role, NULL);
        if (are_a != in_a || are_b != in_b || all != in_a + in_b)
            since_us = clock_now_us();
        if (clock_now_us() > deadline_us)
            fail_msg("%s: %d %s, %d %s of %d, wanted %d and %d", role, are_a, a, are_b, b, all, in_a, in_b);
        poll(NULL, 0, 50);
    }
}

static void expect_staff(const farm *f, const char *role, int wanted)
{
    expect_states(f, role, "serving", wanted, "drained", 0);
}

/* Waits until another process does what `before` did. */
static void expect_other(const farm *f, const char *role, pid_t before)
{
    const uint64_t deadline_us = clock_now_us() + DEADLINE_US;
    for (pid_t pid = before; pid == before || pid == 0; pid = farm_pid(f, role)) {
        if (clock_now_us() > deadline_us)
            fail_msg("no other %s comes", role);
        poll(NULL, 0, 50);
    }
}

static void scale(const char *wish)
{
    farm_expect(0, "workers", (const char *const[]){"cosyfarm", "scale", wish, NULL});
}

static void kill_orchestrator(const farm *f)
{
    assert_int_equal(kill(farm_pid(f, "orchestrator"), SIGKILL), 0);
}

static void expect_speech(const farm *f)
{
    farm_row row;
    farm_speak(f, test_temp_dir(), 1, &row, 0, NULL, NULL);
    assert_string_equal(row.status, "done");
}

/* Whoever ends them with SIGTERM does not say that the farm shall have fewer. */
static void test_ended_in_order_begins_again(void **state)
{
    (void)state;
    static const char *const roles[] = {"keeper", "hift"};
    farm f;
    farm_start(&f, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        const pid_t pid = farm_pid(&f, roles[i]);
        assert_int_equal(kill(pid, SIGTERM), 0);
        expect_other(&f, roles[i], pid);
    }
    expect_speech(&f); /* the new hift got its memory of the new keeper */
    farm_end(&f);
}

static void test_the_last_wish_counts(void **state)
{
    (void)state;
    farm f;
    farm_start(&f, NULL, NULL);
    scale("hift=3");
    scale("hift=1"); /* the new ones have not joined yet */
    expect_staff(&f, "hift", 1);
    scale("hift=3");
    expect_staff(&f, "hift", 3);
    scale("hift=1");
    scale("hift=3"); /* the surplus ones have not left yet */
    expect_staff(&f, "hift", 3);
    scale("hift=1");
    kill_orchestrator(&f);
    expect_staff(&f, "hift", 1);
    expect_speech(&f);
    farm_end(&f);
}

/* What was told of a worker outlives the orchestrator, and the worker; the next farm knows nothing of it. [P-30] */
static void test_a_drain_outlives_the_orchestrator(void **state)
{
    (void)state;
    farm f;
    farm_start(&f, NULL, NULL);
    scale("hift=2");
    expect_staff(&f, "hift", 2);
    farm_expect(0, "1 workers", (const char *const[]){"cosyfarm", "drain", "hift/1", NULL});
    assert_int_equal(members(&f, "hift", "drained"), 1);
    kill_orchestrator(&f);
    expect_states(&f, "hift", "serving", 1, "drained", 1);
    scale("hift=1");
    expect_staff(&f, "hift", 1);
    scale("hift=2");
    expect_states(&f, "hift", "serving", 1, "drained", 1);
    farm_end(&f);
    farm_start_again(&f);
    scale("hift=2");
    expect_staff(&f, "hift", 2);
    farm_end(&f);
}

/* The pids of that role, by number. */
static void pids_of(const farm *f, const char *role, pid_t ret_pids[3])
{
    wire_msg status = farm_status(f);
    memset(ret_pids, 0, 3 * sizeof ret_pids[0]);
    for (const json *m = json_first(wire_json(&status, "members")); m; m = json_next(m)) {
        const char *its_role;
        uint64_t instance, pid;
        assert_ok(json_get_str(m, "role", 31, &its_role));
        assert_ok(json_get_u64(m, "instance", 0, 999, &instance));
        assert_ok(json_get_u64(m, "pid", 1, 1 << 30, &pid));
        if (strcmp(its_role, role) == 0 && instance < 3)
            ret_pids[instance] = (pid_t)pid;
    }
    wire_done(&status);
}

/* The orchestrator dies with three restarts before it: its successor does those that are left, each once. */
static void test_a_restart_outlives_the_orchestrator(void **state)
{
    (void)state;
    farm f;
    pid_t before[3], after[3];
    farm_start(&f, NULL, NULL);
    scale("hift=3");
    expect_staff(&f, "hift", 3);
    pids_of(&f, "hift", before);
    farm_expect(0, "3 workers", (const char *const[]){"cosyfarm", "restart", "hift", NULL});
    kill_orchestrator(&f);
    const uint64_t deadline_us = clock_now_us() + DEADLINE_US;
    for (int changed = 0; changed < 3;) {
        pids_of(&f, "hift", after);
        changed = 0;
        for (int i = 0; i < 3; i++)
            changed += after[i] != 0 && after[i] != before[i];
        if (clock_now_us() > deadline_us)
            fail_msg("%d of 3 workers were restarted", changed);
        poll(NULL, 0, 50);
    }
    expect_staff(&f, "hift", 3);
    farm_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ended_in_order_begins_again),
        cmocka_unit_test(test_the_last_wish_counts),
        cmocka_unit_test(test_a_drain_outlives_the_orchestrator),
        cmocka_unit_test(test_a_restart_outlives_the_orchestrator),
    };
    return cmocka_run_group_tests_name("supervisor", tests, NULL, NULL);
}
