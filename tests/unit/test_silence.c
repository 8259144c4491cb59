/* test_silence.c - who is silent: a real child stands in for the worker, time is given. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/io.h"
#include "orchestrator/orch.h"

#define NOW_US (1000 * CLOCK_SECOND_US)

static orch o; /* large */
static pid_t child;

static int begin(void **state)
{
    (void)state;
    o = (orch){.lock_fd = -1, .listen_fd = -1, .signal_fd = -1, .exit_code = -1};
    config_defaults(&o.cfg);
    orch_core_init(&o.core, &(core_limits){.deaths_max = o.cfg.deaths_max});
    for (int i = 0; i < CONNS_MAX; i++)
        o.conns[i] = (conn){.fd = -1, .pid_fd = -1};
    child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    o.conns[3] = (conn){.state = CONN_SERVING,
                        .fd = -1,
                        .pid_fd = -1,
                        .pid = child,
                        .gen = 1,
                        .role = "flow",
                        .stage = CORE_FLOW,
                        .since_us = NOW_US,
                        .alive = {.heard_us = NOW_US, .step_us = NOW_US, .has_jobs = true}};
    for (int i = 0; i < BOX_TABLE_MAX; i++)
        o.boxes[i] = (box_entry){.read_fd = -1, .write_fd = -1};
    orch_apply(&o, &(core_event){.kind = CORE_JOINED, .member = 3, .stage = CORE_FLOW, .rows_max = 1, .frames_max = 1});
    return io_pidfd_open(child, &o.conns[3].pid_fd) == CF_OK ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    io_close(&o.conns[3].pid_fd);
    return 0;
}

static bool is_here(uint64_t now_us, bool was_asleep)
{
    members_check_silence(&o, now_us, was_asleep);
    return o.conns[3].state != CONN_FREE;
}

static void expect_killed(void)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_silence_has_a_limit(void **state)
{
    (void)state;
    const uint64_t limit_us = (uint64_t)o.cfg.silence_s * CLOCK_SECOND_US;
    assert_true(is_here(NOW_US + limit_us, false));
    assert_true(is_here(NOW_US + 2 * limit_us, true)); /* we slept: nobody is judged */
    assert_true(is_here(NOW_US + 3 * limit_us, false));
    assert_false(is_here(NOW_US + 3 * limit_us + 1, false));
    expect_killed();
}

/* Whatever a worker waits for before it serves, it says that it is alive. [P-28] */
static void test_silence_has_a_limit_before_it_serves(void **state)
{
    static const conn_state STATES[] = {CONN_LOADING, CONN_JOINED, CONN_ADMITTED};
    for (size_t i = 0; i < CF_COUNT(STATES); i++) {
        if (i > 0)
            assert_int_equal(begin(state), 0);
        const uint64_t limit_us = (uint64_t)o.cfg.silence_s * CLOCK_SECOND_US;
        o.conns[3].state = STATES[i];
        assert_true(is_here(NOW_US + limit_us, false));
        health_heard(&o.conns[3].alive, NOW_US + limit_us);
        assert_true(is_here(NOW_US + 2 * limit_us, false));
        assert_false(is_here(NOW_US + 2 * limit_us + 1, false));
        expect_killed();
        io_close(&o.conns[3].pid_fd);
    }
}

/* One that beats, and whose model never comes to its end. */
static void test_loading_has_a_limit(void **state)
{
    (void)state;
    const uint64_t late_us = NOW_US + (uint64_t)o.cfg.load_s * CLOCK_SECOND_US;
    o.conns[3].state = CONN_LOADING;
    health_heard(&o.conns[3].alive, late_us);
    assert_true(is_here(late_us, false));
    assert_false(is_here(late_us + 1, false));
    expect_killed();
}

/* A worker waits for memory; the child is the keeper that was asked for it. */
static void test_a_keeper_that_does_not_answer(void **state)
{
    (void)state;
    const uint64_t limit_us = (uint64_t)o.cfg.silence_s * CLOCK_SECOND_US;
    o.conns[3].state = CONN_KEEPER;
    assert_true(is_here(NOW_US + 10 * limit_us, false)); /* nobody asked it anything */
    o.boxes[5] = (box_entry){.outbox_id = 7, .read_fd = -1, .write_fd = -1, .conn_idx = -1, .asked_us = NOW_US};
    assert_true(is_here(NOW_US + limit_us, false));
    assert_true(is_here(NOW_US + 2 * limit_us, true));      /* we slept */
    health_heard(&o.conns[3].alive, NOW_US + 3 * limit_us); /* it makes another one's first */
    assert_true(is_here(NOW_US + 4 * limit_us, false));
    assert_false(is_here(NOW_US + 4 * limit_us + 1, false));
    expect_killed();
}

/* A beat that was read after the loop had looked at its clock. */
static void test_heard_after_now(void **state)
{
    (void)state;
    o.conns[3].alive.heard_us = NOW_US + 5;
    assert_true(is_here(NOW_US, false));
    o.conns[3].alive.step_us = NOW_US + 5;
    assert_true(is_here(NOW_US, false));
}

static void test_no_step_has_a_limit(void **state)
{
    (void)state;
    const uint64_t late_us = NOW_US + (uint64_t)o.cfg.stall_s * CLOCK_SECOND_US;
    o.conns[3].alive.heard_us = late_us + 1;
    assert_true(is_here(late_us, false));
    assert_false(is_here(late_us + 1, false));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_silence_has_a_limit, begin, end),
        cmocka_unit_test_setup_teardown(test_silence_has_a_limit_before_it_serves, begin, end),
        cmocka_unit_test_setup_teardown(test_loading_has_a_limit, begin, end),
        cmocka_unit_test_setup_teardown(test_a_keeper_that_does_not_answer, begin, end),
        cmocka_unit_test_setup_teardown(test_heard_after_now, begin, end),
        cmocka_unit_test_setup_teardown(test_no_step_has_a_limit, begin, end),
    };
    return cmocka_run_group_tests_name("silence", tests, NULL, NULL);
}
