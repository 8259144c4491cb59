/*
 * test.h - what every test program includes: cmocka, paths of the reference data, comparison of float arrays.
 *
 * Data: small references are in tests/golden; larger ones in a folder named by COSYFARM_SHARED (default ../shared).
 * A test that needs absent data calls test_skip_shared(), which counts as skipped, never as passed.
 */
#ifndef CF_TESTS_HARNESS_TEST_H
#define CF_TESTS_HARNESS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "common/base/err.h"

/* Fails the test with the error's text when expr is not CF_OK. */
#define assert_ok(expr)                                                         \
    do {                                                                        \
        cf_err assert_ok_err = (expr);                                          \
        if (assert_ok_err != CF_OK)                                             \
            fail_msg("%s: %s: %s", #expr, err_name(assert_ok_err), err_text()); \
    } while (0)

/* Fails unless expr gives exactly this code and the error text contains `part`. */
#define assert_err(code, part, expr) test_assert_err(code, part, expr, #expr, __FILE__, __LINE__)
void test_assert_err(cf_err want, const char *part, cf_err got, const char *expr, const char *file, int line);

/* Path below the shared data; skips the running test when the file does not exist. Static buffer per call site order:
 * four paths stay valid at once. */
const char *test_shared(const char *relative);

/* Path below the project's root, e.g. test_path("tests/golden/x"). */
const char *test_path(const char *relative);

/* A fresh private folder, removed with its contents when the program ends. Four paths stay valid at once. */
const char *test_temp_dir(void);

/* As root no mode closes a folder: drops what lets it in, for all that is started from now on. False: it cannot. */
bool test_obey_modes(void);

/* Open descriptors of this process: the same number before and after says that none leaked. */
int test_open_fds(void);

/* How two float arrays differ. */
typedef struct test_diff {
    double max_abs; /* max |got - want| */
    double mean_abs;
    double rel;    /* max_abs / max |want| */
    double snr_db; /* 10 log10(sum want^2 / sum (got-want)^2); 999 when equal */
    size_t worst_idx;
    int nonfinite; /* 1 when any value on either side is NaN or infinite */
} test_diff;
test_diff test_compare(const float *got, const float *want, size_t count);

#endif
