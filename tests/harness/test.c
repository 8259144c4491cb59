/* test.c - paths, temporary folders and comparisons for test programs. Fails: through cmocka. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <dirent.h>
#include <ftw.h>
#include <glob.h>
#include <linux/capability.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SLOTS 4

/* docs/TESTING.md promises it; this cmocka has the filter and does not look at the environment. */
__attribute__((constructor)) static void take_filter(void)
{
    cmocka_set_test_filter(getenv("CMOCKA_TEST_FILTER"));
}

void test_assert_err(cf_err want, const char *part, cf_err got, const char *expr, const char *file, int line)
{
    if (got == want && strstr(err_text(), part))
        return;
    print_error("%s\n  got  %s: %s\n  want %s: ...%s...\n", expr, err_name(got), got == CF_OK ? "" : err_text(),
                err_name(want), part);
    _fail(file, line);
}

static const char *join_slot(const char *root, const char *relative)
{
    static char slots[SLOTS][4096];
    static int next;
    char *slot = slots[next++ % SLOTS];
    snprintf(slot, sizeof slots[0], "%s/%s", root, relative);
    return slot;
}

const char *test_path(const char *relative)
{
    const char *root = getenv("COSYFARM_ROOT");
    return join_slot(root ? root : ".", relative);
}

const char *test_shared(const char *relative)
{
    const char *root = getenv("COSYFARM_SHARED");
    const char *path = join_slot(root ? root : "../shared", relative);
    if (access(path, F_OK) != 0)
        skip();
    return path;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static char temp_dirs[64][64];
static int temp_count;
static pid_t temp_owner;

/* And what tests put beside a directory, as DIR.*: what its farm says, manifests. */
static void remove_temp_dirs(void)
{
    for (int i = 0; i < temp_count && getpid() == temp_owner; i++) {
        char beside[sizeof temp_dirs[0] + 2];
        glob_t found;
        nftw(temp_dirs[i], remove_entry, 16, FTW_DEPTH | FTW_PHYS);
        snprintf(beside, sizeof beside, "%.63s.*", temp_dirs[i]);
        if (glob(beside, 0, NULL, &found) == 0) {
            for (size_t n = 0; n < found.gl_pathc; n++)
                nftw(found.gl_pathv[n], remove_entry, 16, FTW_DEPTH | FTW_PHYS);
            globfree(&found);
        }
    }
}

const char *test_temp_dir(void)
{
    if (temp_count == 0) {
        temp_owner = getpid();
        atexit(remove_temp_dirs);
    }
    assert_true(temp_count < 64);
    snprintf(temp_dirs[temp_count], sizeof temp_dirs[0], "/tmp/cosyfarm-test-XXXXXX");
    assert_non_null(mkdtemp(temp_dirs[temp_count]));
    return temp_dirs[temp_count++];
}

bool test_obey_modes(void)
{
    return geteuid() != 0 || prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) == 0;
}

int test_open_fds(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

test_diff test_compare(const float *got, const float *want, size_t count)
{
    test_diff d = {0};
    double want_max = 0, signal = 0, noise = 0, sum = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(got[i]) || !isfinite(want[i])) {
            d.nonfinite = 1;
            d.worst_idx = i;
            continue;
        }
        const double diff = fabs((double)got[i] - (double)want[i]);
        sum += diff;
        noise += diff * diff;
        signal += (double)want[i] * (double)want[i];
        want_max = fmax(want_max, fabs((double)want[i]));
        if (diff > d.max_abs) {
            d.max_abs = diff;
            d.worst_idx = i;
        }
    }
    d.mean_abs = count ? sum / (double)count : 0;
    d.rel = want_max > 0 ? d.max_abs / want_max : d.max_abs;
    d.snr_db = noise > 0 ? 10 * log10(signal / noise) : 999;
    return d;
}
