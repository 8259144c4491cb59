/* test_spawn.c - how long a dead process of the farm rests: by whether it had served, not by its age. [P-25] What a
 * process of the farm inherits. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rests_grow_until_it_serves),
        cmocka_unit_test(test_who_has_served),
        cmocka_unit_test(test_a_child_inherits_everything_but_its_own),
    };
    return cmocka_run_group_tests_name("spawn", tests, NULL, NULL);
}
