/*
 * test_spawn.c - how long a dead process of the farm rests: by whether it had served, not by its age. [P-25] Who is
 * started again, and who is told to end: the last wish counts. [P-27] Who hangs unseen. [P-28] What a process of the
 * farm inherits.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/base/process.h"
#include "orchestrator/spawn_impl.h"

#define MS UINT64_C(1000)

static void test_rests_grow_until_it_serves(void **state)
{
    (void)state;
    static const uint64_t rests_ms[] = {0, 100, 200, 400, 800, 1600, 3200, 5000, 5000};
    child c = {.role = CHILD_WORKER};
    for (size_t i = 0; i < sizeof rests_ms / sizeof rests_ms[0]; i++)
        assert_int_equal(spawn_rest_us(&c), rests_ms[i] * MS);
    for (int i = 0; i < 100; i++)
        assert_int_equal(spawn_rest_us(&c), 5000 * MS);
    c.served = true;
    assert_int_equal(spawn_rest_us(&c), 0);
    assert_int_equal(spawn_rest_us(&c), 0);
    c.served = false; /* as its next start makes it */
    assert_int_equal(spawn_rest_us(&c), 0);
    assert_int_equal(spawn_rest_us(&c), 100 * MS);
}

static void hear(spawn *s, const char *stage, int instance, int pid)
{
    char text[256];
    wire_msg msg = {0};
    snprintf(text, sizeof text, "{\"v\":1,\"kind\":\"served\",\"stage\":\"%s\",\"instance\":%d,\"pid\":%d}", stage,
             instance, pid);
    assert_ok(wire_parse(text, strlen(text), WIRE_ORCH_LIFELINE, &msg));
    spawn_note_served(s, &msg);
    wire_done(&msg);
}

static void test_who_has_served(void **state)
{
    (void)state;
    spawn *s;
    static const child children[] = {
        {.role = CHILD_ORCHESTRATOR, .program = "orchestrator", .pid = 10},
        {.role = CHILD_KEEPER, .program = "exchange_keeper", .pid = 11},
        {.role = CHILD_WORKER, .program = "llm_worker", .pid = 12},
        {.role = CHILD_WORKER, .program = "flow_worker", .pid = 13},
        {.role = CHILD_WORKER, .program = "flow_worker", .instance = 1, .pid = 14},
    };
    assert_ok(mem_alloc(1, sizeof *s, &s));
    s->count = sizeof children / sizeof children[0];
    memcpy(s->children, children, sizeof children);
    hear(s, "flow", 1, 9); /* the process before this one */
    for (size_t i = 0; i < s->count; i++)
        assert_int_equal(s->children[i].served, s->children[i].role != CHILD_WORKER);
    hear(s, "flow", 1, 14);
    for (size_t i = 2; i < s->count; i++)
        assert_int_equal(s->children[i].served, i == 4);
    mem_free(s);
}

/* How often a variable of that name is in the list, and its last value. */
static int count_of(char **env, const char *name, const char **ret_value)
{
    int count = 0;
    const size_t n = strlen(name);
    for (; *env; env++)
        if (strncmp(*env, name, n) == 0 && (*env)[n] == '=') {
            *ret_value = *env + n + 1;
            count++;
        }
    return count;
}

static void test_a_child_inherits_everything_but_its_own(void **state)
{
    (void)state;
    enum { MANY = 600 };
    char name[32], value[32];
    const char *found = "";
    spawn *s;
    spawn_own_env text;
    char **env;
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "TEST_SPAWN_%d", i);
        snprintf(value, sizeof value, "%d", i);
        assert_int_equal(setenv(name, value, 1), 0);
    }
    setenv("COSYFARM_RUN_DIR", "/nowhere", 1);
    setenv("COSYFARM_FAULT", "point#1=fail", 1);
    assert_ok(mem_alloc(1, sizeof *s, &s));
    snprintf(s->run_dir, sizeof s->run_dir, "/its/own");
    for (int first = 0; first < 2; first++) {
        assert_ok(spawn_make_env(s, first, text, &env));
        for (int i = 0; i < MANY; i++) {
            snprintf(name, sizeof name, "TEST_SPAWN_%d", i);
            snprintf(value, sizeof value, "%d", i);
            assert_int_equal(count_of(env, name, &found), 1);
            assert_string_equal(found, value);
        }
        assert_int_equal(count_of(env, "COSYFARM_RUN_DIR", &found), 1);
        assert_string_equal(found, "/its/own");
        assert_int_equal(count_of(env, "COSYFARM_PARENT", &found), 1);
        assert_int_equal(count_of(env, "COSYFARM_FAULT", &found), first);
        mem_free(env);
    }
    mem_free(s);
}

#define CODE(code)     ((code) << 8) /* as waitpid tells it */
#define NOW_US         UINT64_C(5000000)
#define STILL_TO_START UINT64_MAX

/* When a flow worker that has ended so is started again. */
static uint64_t judged(const child *was, int status)
{
    spawn *s;
    assert_ok(mem_alloc(1, sizeof *s, &s));
    s->count = 1;
    s->children[0] = *was;
    s->children[0].restart_us = STILL_TO_START;
    assert_ok(spawn_judge(s, &s->children[0], status, NOW_US));
    const uint64_t restart_us = s->children[0].restart_us;
    mem_free(s);
    return restart_us;
}

static void test_who_is_started_again(void **state)
{
    (void)state;
    child c = {.role = CHILD_WORKER, .program = "flow_worker", .served = true};
    assert_int_equal(judged(&c, SIGKILL), NOW_US);
    assert_int_equal(judged(&c, CODE(PROCESS_NO_RESOURCES)), NOW_US);
    assert_int_equal(judged(&c, CODE(PROCESS_DRAINED)), NOW_US + 1000 * MS); /* unless the farm ends meanwhile */
    c.leaving = true;                                                        /* and wanted again */
    assert_int_equal(judged(&c, CODE(PROCESS_DRAINED)), NOW_US);
    c.surplus = true;
    assert_int_equal(judged(&c, CODE(PROCESS_DRAINED)), STILL_TO_START);
    assert_int_equal(judged(&c, SIGKILL), STILL_TO_START);
    c = (child){.role = CHILD_WORKER, .program = "flow_worker", .vain_ends = 20};
    assert_int_equal(judged(&c, CODE(PROCESS_DRAINED)), NOW_US + 5000 * MS); /* each time before it serves */
    c = (child){.role = CHILD_KEEPER, .program = "exchange_keeper", .served = true};
    assert_int_equal(judged(&c, CODE(PROCESS_DRAINED)), NOW_US + 1000 * MS);
}

static void test_who_ends_the_farm(void **state)
{
    (void)state;
    spawn *s;
    assert_ok(mem_alloc(1, sizeof *s, &s));
    child *c = &s->children[s->count++];
    *c = (child){.role = CHILD_ORCHESTRATOR, .program = "orchestrator"};
    assert_err(CF_ERR_GONE, "the farm has ended", spawn_judge(s, c, CODE(PROCESS_DRAINED), NOW_US));
    assert_err(CF_ERR_INVALID, "orchestrator/0 ended with code 78", spawn_judge(s, c, CODE(PROCESS_CONFIG), NOW_US));
    s->stopping = true;
    assert_ok(spawn_judge(s, c, CODE(PROCESS_DRAINED), NOW_US));
    mem_free(s);
}

static pid_t start_sleeper(void)
{
    const pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    assert_true(pid > 0);
    return pid;
}

static const child *worker_of(const spawn *s, int instance)
{
    const child *found = NULL;
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->children[i].program, "hift_worker") == 0 && s->children[i].instance == instance) {
            assert_null(found);
            found = &s->children[i];
        }
    return found;
}

static void test_the_last_wish_counts(void **state)
{
    (void)state;
    spawn *s;
    int status;
    assert_ok(mem_alloc(1, sizeof *s, &s));
    s->children[s->count++] = (child){.role = CHILD_WORKER, .program = "flow_worker", .restart_us = UINT64_MAX};
    assert_ok(spawn_set_staff(s, "hift", 3, NOW_US));
    assert_int_equal(s->count, 4);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(worker_of(s, i)->restart_us, NOW_US);
        s->children[1 + i].pid = start_sleeper();
        s->children[1 + i].restart_us = UINT64_MAX;
    }
    assert_ok(spawn_set_staff(s, "hift", 1, NOW_US));
    assert_int_equal(s->count, 4);
    assert_false(worker_of(s, 0)->surplus);
    for (int i = 1; i < 3; i++) {
        assert_true(worker_of(s, i)->surplus);
        assert_int_equal(waitpid(worker_of(s, i)->pid, &status, 0), worker_of(s, i)->pid);
        assert_int_equal(WTERMSIG(status), SIGTERM);
    }
    /* Wanted again before anybody looked: it begins again when its end is seen. */
    assert_ok(spawn_set_staff(s, "hift", 3, NOW_US));
    assert_ok(spawn_judge(s, &s->children[3], CODE(PROCESS_DRAINED), NOW_US));
    assert_int_equal(worker_of(s, 2)->restart_us, NOW_US);
    assert_ok(spawn_set_staff(s, "hift", 0, NOW_US));
    for (int i = 1; i < 4; i++)
        s->children[i].pid = 0; /* their ends have been seen */
    assert_ok(spawn_set_staff(s, "hift", 1, NOW_US));
    assert_int_equal(s->count, 2); /* the places of those that are gone are free */
    assert_int_equal(worker_of(s, 0)->restart_us, NOW_US);
    assert_true(!worker_of(s, 0)->surplus && !s->children[0].surplus);
    mem_free(s);
    while (wait(NULL) > 0)
        ;
}

static void say_seen(spawn *s, pid_t pid, bool here, uint64_t now_us)
{
    char text[128];
    wire_msg msg = {0};
    snprintf(text, sizeof text, "{\"v\":1,\"kind\":\"seen\",\"pid\":%ld,\"here\":%s}", (long)pid,
             here ? "true" : "false");
    assert_ok(wire_parse(text, strlen(text), WIRE_ORCH_LIFELINE, &msg));
    spawn_note_seen(s, &msg, now_us);
    wire_done(&msg);
}

/* Silent for 2 s before it has served, for 9 s after that; while there is no line nobody is judged. */
static void test_who_hangs_unseen(void **state)
{
    (void)state;
    spawn *s;
    int status;
    assert_ok(mem_alloc(1, sizeof *s, &s));
    s->silence_us = 2000 * MS;
    s->stall_us = 9000 * MS;
    s->count = 1;
    child *c = &s->children[0];
    *c = (child){.role = CHILD_WORKER, .program = "hift_worker", .pid = start_sleeper(), .unseen_us = NOW_US};
    assert_int_equal(spawn_hung_us(s, c), UINT64_MAX);
    spawn_note_line(s, true, NOW_US + 1000 * MS);
    assert_int_equal(spawn_hung_us(s, c), NOW_US + 3000 * MS);
    say_seen(s, c->pid + 1, true, NOW_US);
    assert_int_equal(spawn_hung_us(s, c), NOW_US + 3000 * MS);
    say_seen(s, c->pid, true, NOW_US);
    assert_int_equal(spawn_hung_us(s, c), UINT64_MAX);
    say_seen(s, c->pid, false, NOW_US + 5000 * MS);
    c->served = true;
    assert_int_equal(spawn_hung_us(s, c), NOW_US + 14000 * MS);
    c->served = false;
    spawn_end_hung(s, c, NOW_US + 6999 * MS);
    spawn_end_hung(s, c, NOW_US + 9000 * MS); /* late: it was us who slept */
    assert_int_equal(kill(c->pid, 0), 0);
    assert_int_equal(spawn_hung_us(s, c), NOW_US + 11000 * MS);
    assert_int_equal(waitpid(c->pid, &status, WNOHANG), 0);
    spawn_end_hung(s, c, NOW_US + 11001 * MS);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    assert_int_equal(WTERMSIG(status), SIGKILL);
    c->role = CHILD_ORCHESTRATOR;
    assert_int_equal(spawn_hung_us(s, c), UINT64_MAX);
    mem_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rests_grow_until_it_serves),
        cmocka_unit_test(test_who_has_served),
        cmocka_unit_test(test_who_is_started_again),
        cmocka_unit_test(test_who_ends_the_farm),
        cmocka_unit_test(test_the_last_wish_counts),
        cmocka_unit_test(test_who_hangs_unseen),
        cmocka_unit_test(test_a_child_inherits_everything_but_its_own),
    };
    return cmocka_run_group_tests_name("spawn", tests, NULL, NULL);
}
