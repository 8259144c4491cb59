/*
 * test_faults.c - the nth call of ZeroMQ or of a lifeline, the nth allocation, read, write, sync and rename fails in
 * the processes of a batch's farm, or in the batch itself: it gets over it, or ends with a code of ours and a line; the
 * same command completes, with the undisturbed ledger. `make fault-sweep NTH=n` tries each of the first n; here it is a
 * few.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/harness/batch_case.h"
#include "tests/harness/farm.h"

#define AT_ONCE     4   /* batches */
#define LOOKS       8   /* of an orchestrator at its model and at the voices of its first rows */
#define ALLOCATIONS 200 /* more than a batch without work makes */
#define END_S       150 /* of a batch of a second; less than stall_s, which in the end cures a lost message too */

typedef struct fault_case {
    const char *variable; /* COSYFARM_FAULT: each process of the farm, in its first life */
    const char *point;
    unsigned nth; /* in the short form; 0: not in it */
} fault_case;

#define FARM    "COSYFARM_FAULT"
#define COMMAND "COSYFARM_FAULT_COMMAND"

static const fault_case cases[] = {
    {FARM, "zmq.bind", 1},         {FARM, "zmq.send", 9},         {FARM, "zmq.recv", 25},
    {FARM, "zmq.poll", 30},        {FARM, "mem.alloc", 700},      {FARM, "journal.sync", 1},
    {COMMAND, "zmq.send", 3},      {COMMAND, "zmq.poll", 20},     {COMMAND, "mem.alloc", 40},
    {COMMAND, "io.write", 3},      {COMMAND, "ledger.sync", 2},   {COMMAND, "line.read", 1},
    {FARM, "zmq.connect", 0},      {FARM, "zmq.option", 0},       {FARM, "zmq.open", 0},
    {FARM, "io.create", 0},        {FARM, "io.read", 0},          {FARM, "io.write", 0},
    {COMMAND, "zmq.recv", 0},      {COMMAND, "zmq.connect", 0},   {COMMAND, "io.fsync", 0},
    {COMMAND, "io.rename", 0},     {COMMAND, "ledger.open", 0},   {COMMAND, "io.open", 0},
    {FARM, "lifeline.send", 3},    {FARM, "lifeline.recv", 2},    {FARM, "lifeline.accept", 2},
    {FARM, "io.pidfd", 1},         {FARM, "lifeline.connect", 0}, {COMMAND, "lifeline.send", 0},
    {COMMAND, "lifeline.recv", 3}, {COMMAND, "io.pidfd", 0},
};
enum { CASES = sizeof cases / sizeof cases[0] };
_Static_assert(CASES % AT_ONCE == 0, "the last ones would not be run");

static pid_t start(const fault_case *c, unsigned nth, const char *dir)
{
    char spec[64];
    snprintf(spec, sizeof spec, "%s#%u=fail", c->point, nth);
    setenv(c->variable, spec, 1);
    const pid_t pid = batch_start(dir, batch_config());
    unsetenv(c->variable);
    return pid;
}

static void read_said(const char *dir, char *ret_text, size_t text_bytes)
{
    char path[1100], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s.said", dir);
    assert_ok(io_read_file(path, 1 << 20, &text, &bytes));
    snprintf(ret_text, text_bytes, "%s", text);
    mem_free(text);
}

/* Waits for it; when it did not complete it says why, and completes now. */
static void finish(const fault_case *c, unsigned nth, const char *dir, pid_t pid)
{
    static char said[8192];
    char what[80];
    snprintf(what, sizeof what, "%s=%s#%u", c->variable, c->point, nth);
    const int code = farm_command_wait_within(pid, END_S, what);
    read_said(dir, said, sizeof said);
    if (code != 0 && code != 1 && code != 65 && code != 69 && code != 75 && code != 78)
        fail_msg("%s: exit code %d\n%s", what, code, said);
    if (code != 0 && code != 65 && !strstr(said, "cosyfarm batch: "))
        fail_msg("%s: exit code %d, and no reason:\n%s", what, code, said);
    if (code != 0)
        farm_expect(0, "0 failed", (const char *const[]){BATCH(dir), "--retry-failed", NULL});
    batch_expect_undisturbed(dir);
}

/* nth_given 0: the short form. */
static void run(const char *parent, unsigned nth_given)
{
    char dirs[AT_ONCE][256];
    pid_t pids[AT_ONCE];
    for (int first = 0; first < CASES; first += AT_ONCE) {
        for (int i = 0; i < AT_ONCE; i++) {
            const fault_case *c = &cases[first + i];
            snprintf(dirs[i], sizeof dirs[i], "%s/%u-%d", parent, nth_given, first + i);
            pids[i] = nth_given + c->nth > 0 ? start(c, nth_given ? nth_given : c->nth, dirs[i]) : 0;
        }
        for (int i = 0; i < AT_ONCE; i++)
            if (pids[i] > 0)
                finish(&cases[first + i], nth_given ? nth_given : cases[first + i].nth, dirs[i], pids[i]);
    }
}

static void test_each_failure_is_survived(void **state)
{
    (void)state;
    const char *most = getenv("COSYFARM_SWEEP_NTH");
    const char *parent = test_temp_dir();
    run(parent, 0);
    for (unsigned nth = 1; most && nth <= (unsigned)strtoul(most, NULL, 10); nth++)
        run(parent, nth);
}

/* Files that cannot be looked at for a moment when a farm comes back to its rows: none of them ends for that. */
static void test_a_recovery_that_cannot_look(void **state)
{
    (void)state;
    for (unsigned nth = 1; nth <= LOOKS; nth++) {
        char spec[32];
        const char *dir = test_temp_dir();
        const pid_t pid = batch_start(dir, batch_config());
        batch_wait_lines(dir, 1);
        assert_int_equal(kill(pid, SIGKILL), 0);
        (void)farm_command_wait(pid);
        snprintf(spec, sizeof spec, "io.stat#%u=fail", nth);
        setenv(FARM, spec, 1);
        const int code = farm_command_wait_within(batch_start(dir, batch_config()), END_S, spec);
        unsetenv(FARM);
        assert_false(batch_has_text(dir, "farm.log", "ev=row.lost_request"));
        assert_true(code == 0 || code == 65); /* a row that is new then is refused for it */
        farm_expect(0, "0 failed", (const char *const[]){BATCH(dir), "--retry-failed", NULL});
        batch_expect_undisturbed(dir);
    }
}

/* Where nothing is left to do it says so, or what it lacks; each allocation fails once. */
static void test_a_batch_without_work(void **state)
{
    (void)state;
    static char out[8192];
    const char *dir = test_temp_dir();
    int code = 0, failed = 0;
    farm_expect(0, "6 done", (const char *const[]){BATCH(dir), NULL});
    for (unsigned nth = 1; nth <= ALLOCATIONS; nth++) {
        char spec[32];
        snprintf(spec, sizeof spec, "mem.alloc#%u=fail", nth);
        setenv(COMMAND, spec, 1);
        code = farm_command((const char *const[]){BATCH(dir), "--json", NULL}, out, sizeof out);
        unsetenv(COMMAND);
        failed += code != 0;
        if (!strstr(out, code == 0 ? "\"ended_before\":6" : "cosyfarm"))
            fail_msg("%s: exit code %d\n%s", spec, code, out);
    }
    assert_int_equal(code, 0); /* they were all */
    assert_true(failed > 20);
    batch_expect_undisturbed(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_failure_is_survived),
        cmocka_unit_test(test_a_recovery_that_cannot_look),
        cmocka_unit_test(test_a_batch_without_work),
    };
    return cmocka_run_group_tests_name("faults", tests, batch_cases_begin, NULL);
}
