/* test_process.c - who runs first on a full machine: what a thread asks for, and what threads that it starts get;;
 * what a program makes of standard descriptors that are closed or full; and what it exits with. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* In a child that has them closed: what it opens next is none of them. */
static void test_standard_descriptors_are_taken(void **state)
{
    (void)state;
    int status;
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        for (int fd = 0; fd <= 2; fd++)
            close(fd);
        process_hold_standard();
        _exit(open("/dev/zero", O_RDONLY) > 2 && write(1, "x", 1) == 1 && read(0, &status, 1) == 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* In a child whose standard output is full, or closed for reading only. */
static int code_of_output(const char *path, int code)
{
    int status;
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        const int out = open(path, path[5] == 'f' ? O_WRONLY : O_RDONLY);
        if (dup2(out, 1) != 1 || dup2(open("/dev/null", O_WRONLY), 2) != 2)
            _exit(99);
        printf("result\n");
        const int first = process_flush_output("test", code);
        _exit(process_flush_output("test", 0) == 0 ? first : 98); /* said once */
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_lost_output(void **state)
{
    (void)state;
    fflush(stdout);
    assert_int_equal(code_of_output("/dev/full", 0), PROCESS_NO_RESOURCES);
    assert_int_equal(code_of_output("/dev/full", 65), 65);
    assert_int_equal(code_of_output("/dev/null", 0), 1);
}

static void test_run_dir_option(void **state)
{
    (void)state;
    char path[16];
    assert_ok(process_take_run_dir("/run/fifteen.ab", path, sizeof path));
    assert_string_equal(path, "/run/fifteen.ab");
    assert_err(CF_ERR_LIMIT, "--run-dir: path longer than 15 bytes",
               process_take_run_dir("/run/sixteen.abc", path, sizeof path));
}

/* A supervisor starts a program again after 70 and 75, not after 78. */
static void test_exit_codes(void **state)
{
    (void)state;
    const cf_err shortages[] = {CF_ERR_NOMEM, CF_ERR_SYS, CF_ERR_STORAGE, CF_ERR_BUSY, CF_ERR_TIMEOUT};
    const cf_err mistakes[] = {CF_ERR_INVALID,  CF_ERR_UNSUPPORTED, CF_ERR_STALE, CF_ERR_CANCELLED, CF_ERR_CORRUPT,
                               CF_ERR_MISMATCH, CF_ERR_NOTFOUND,    CF_ERR_LIMIT, CF_ERR_NUMERIC,   CF_ERR_GONE};
    for (size_t i = 0; i < sizeof shortages / sizeof shortages[0]; i++)
        assert_int_equal(process_exit_code(shortages[i]), PROCESS_NO_RESOURCES);
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++)
        assert_int_equal(process_exit_code(mistakes[i]), PROCESS_CONFIG);
    assert_int_equal(process_exit_code(CF_ERR_DEVICE), PROCESS_DEVICE_LOST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_classes_of_threads), cmocka_unit_test(test_standard_descriptors_are_taken),
        cmocka_unit_test(test_lost_output), cmocka_unit_test(test_run_dir_option), cmocka_unit_test(test_exit_codes)};
    return cmocka_run_group_tests_name("process", tests, NULL, NULL);
}
