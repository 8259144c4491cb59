/*
 * canary.c - cases that must fail. A runner that calls a broken program good would call every program good, so check.sh
 * runs this one in each way a program can fail and demands that tests/run.sh reports exactly that.
 */
#include "tests/harness/test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *way = "fail";

static void test_passes(void **state)
{
    (void)state;
    assert_int_equal(1, 1);
}

static void test_skips(void **state)
{
    (void)state;
    skip();
}

static void test_must_fail(void **state)
{
    (void)state;
    if (strcmp(way, "crash") == 0)
        abort();
    if (strcmp(way, "hang") == 0)
        pause();
    if (strcmp(way, "leave") == 0)
        _exit(0);
    assert_string_equal(way, "never");
}

int main(int argc, char **argv)
{
    if (argc == 2)
        way = argv[1];
    if (strcmp(way, "silent") == 0)
        return 0;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_passes), cmocka_unit_test(test_skips),
                                       cmocka_unit_test(test_must_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
