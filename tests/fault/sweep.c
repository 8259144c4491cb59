/* sweep.c - see sweep.h. Fails: the running test. */
#include "tests/harness/test.h"

#include "tests/fault/sweep.h"

#include <stdio.h>
#include <string.h>

#include "common/base/fault.h"

#define PASSAGES_MAX 200000u /* no scenario has so many: the sweep does not end */

unsigned sweep(const scenario *s, const char *point, cf_err want, unsigned stride)
{
    char spec[96];
    unsigned met = 0;
    assert_ok(fault_arm(NULL));
    assert_ok(s->run()); /* without failures it works; what is opened once for all is open now */
    const int fds = test_open_fds();
    for (unsigned nth = 1;; nth += stride) {
        assert_true(nth < PASSAGES_MAX);
        snprintf(spec, sizeof spec, "%s#%u=fail", point, nth);
        assert_ok(fault_arm(spec));
        cf_err cleared = err_set(CF_OK, "no text was set");
        const cf_err err = s->run();
        const bool happened = fault_hits(point) >= nth;
        assert_ok(fault_arm(NULL));
        assert_ok(cleared);
        if (!happened) {
            assert_ok(err);
            return met;
        }
        if (err != want || strstr(err_text(), "no text was set") || err_text()[0] == '\0')
            fail_msg("%s, %s: got %s: %s", s->name, spec, err_name(err), err == CF_OK ? "swallowed" : err_text());
        if (test_open_fds() != fds)
            fail_msg("%s, %s: descriptors leaked", s->name, spec);
        if (s->check)
            s->check(point, nth);
        met++;
    }
}
