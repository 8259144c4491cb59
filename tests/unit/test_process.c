/* test_process.c - who runs first on a full machine: what a thread asks for, and what threads that it starts get. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include "common/base/process.h"

typedef struct seen {
    bool granted;
    int policy_first, policy_child, policy_way, nice_before, nice_way;
} seen;

static void *work(void *arg)
{
    seen *s = arg;
    s->policy_child = sched_getscheduler(0);
    s->nice_before = getpriority(PRIO_PROCESS, 0);
    process_thread_gives_way();
    s->policy_way = sched_getscheduler(0);
    s->nice_way = getpriority(PRIO_PROCESS, 0);
    return NULL;
}

static void *answer(void *arg)
{
    seen *s = arg;
    pthread_t child;
    s->granted = process_thread_goes_first();
    s->policy_first = sched_getscheduler(0);
    if (pthread_create(&child, NULL, work, s) == 0)
        pthread_join(child, NULL);
    return NULL;
}

/* In threads of its own: the test itself keeps its class. */
static void test_classes_of_threads(void **state)
{
    (void)state;
    pthread_t thread;
    seen s = {.policy_child = -1, .policy_way = -1};
    assert_int_equal(pthread_create(&thread, NULL, answer, &s), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(s.policy_first, s.granted ? SCHED_RR : SCHED_OTHER);
    assert_int_equal(s.policy_child, s.policy_first);
    assert_int_equal(s.policy_way, SCHED_OTHER);
    assert_int_equal(s.nice_way, s.nice_before + 5 < 19 ? s.nice_before + 5 : 19);
    assert_int_equal(sched_getscheduler(0), SCHED_OTHER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_classes_of_threads)};
    return cmocka_run_group_tests_name("process", tests, NULL, NULL);
}
