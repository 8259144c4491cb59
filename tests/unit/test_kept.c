/* test_kept.c - what a person told of workers outlives the orchestrator; a damaged file costs wishes alone. [P-30] */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/process.h"
#include "orchestrator/orch.h"

static orch told, next; /* large */

static void begin_both(char *ret_path, size_t path_bytes)
{
    told = (orch){.draining = false};
    next = (orch){.draining = false};
    snprintf(told.run_dir, sizeof told.run_dir, "%s", test_temp_dir());
    snprintf(next.run_dir, sizeof next.run_dir, "%s", told.run_dir);
    assert_ok(io_join(ret_path, path_bytes, told.run_dir, RUN_KEPT));
}

static void test_wishes_come_back(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    begin_both(path, sizeof path);
    assert_ok(kept_recover(&next)); /* no file is fine */
    told.paused[CORE_HIFT][1] = told.paused[CORE_LLM][999] = true;
    told.to_restart[CORE_FLOW][0] = 4711;
    kept_save(&told);
    assert_ok(kept_recover(&next));
    assert_memory_equal(next.paused, told.paused, sizeof told.paused);
    assert_memory_equal(next.to_restart, told.to_restart, sizeof told.to_restart);
    kept_forget(&told);
    assert_false(io_exists(path));
}

static void test_nothing_to_keep_is_no_file(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    begin_both(path, sizeof path);
    told.paused[CORE_FLOW][2] = true;
    kept_save(&told);
    assert_true(io_exists(path));
    told.paused[CORE_FLOW][2] = false;
    kept_save(&told);
    assert_false(io_exists(path));
}

/* Every worker of every stage, as `cosyfarm drain STAGE` says it. */
static void test_all_that_can_be_told_fits(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    begin_both(path, sizeof path);
    for (int s = 0; s < CORE_STAGES; s++)
        for (int i = 0; i < INSTANCES_MAX; i++) {
            told.paused[s][i] = true;
            told.to_restart[s][i] = INT32_MAX;
        }
    kept_save(&told);
    assert_ok(kept_recover(&next));
    assert_memory_equal(next.paused, told.paused, sizeof told.paused);
    assert_memory_equal(next.to_restart, told.to_restart, sizeof told.to_restart);
}

static void test_a_damaged_file_is_passed_over(void **state)
{
    (void)state;
    static const char *const TEXTS[] = {"",
                                        "{",
                                        "[1]",
                                        "{\"paused\":[{\"stage\":\"sing\",\"instance\":0}]}",
                                        "{\"paused\":[{\"stage\":\"llm\",\"instance\":1000}]}",
                                        "{\"restart\":[{\"stage\":\"llm\",\"instance\":0,\"pid\":0}]}"};
    char path[IO_PATH_BYTES];
    begin_both(path, sizeof path);
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        assert_ok(io_write_file(path, TEXTS[i], strlen(TEXTS[i])));
        assert_ok(kept_recover(&next));
        assert_memory_equal(next.paused, told.paused, sizeof told.paused);
        assert_memory_equal(next.to_restart, told.to_restart, sizeof told.to_restart);
    }
}

/* A shortage may be over at the next start: until then nothing is forgotten, here or in the file. */
static void test_a_shortage_costs_no_wish(void **state)
{
    (void)state;
    static const struct {
        const char *spec;
        cf_err err;
    } faults[] = {{"io.open", CF_ERR_SYS}, {"io.read", CF_ERR_SYS}, {"mem.alloc", CF_ERR_NOMEM}};
    char path[IO_PATH_BYTES];
    begin_both(path, sizeof path);
    told.paused[CORE_LLM][3] = true;
    kept_save(&told);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        char spec[32];
        snprintf(spec, sizeof spec, "%s=fail", faults[i].spec);
        assert_ok(fault_arm(spec));
        assert_int_equal(kept_recover(&next), faults[i].err);
        assert_ok(fault_arm(NULL));
    }
    assert_ok(kept_recover(&next));
    assert_memory_equal(next.paused, told.paused, sizeof told.paused);
}

static void *no_memory(size_t bytes)
{
    (void)bytes;
    return NULL;
}

/* Where there is no memory to write the wishes down, the file has the former ones: it is not taken for one of none. */
static void test_a_file_without_memory_stays(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    cJSON_Hooks none = {no_memory, free};
    begin_both(path, sizeof path);
    told.paused[CORE_LLM][3] = true;
    kept_save(&told);
    cJSON_InitHooks(&none);
    kept_save(&told);
    cJSON_InitHooks(NULL);
    assert_ok(kept_recover(&next));
    assert_memory_equal(next.paused, told.paused, sizeof told.paused);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wishes_come_back),          cmocka_unit_test(test_nothing_to_keep_is_no_file),
        cmocka_unit_test(test_all_that_can_be_told_fits), cmocka_unit_test(test_a_damaged_file_is_passed_over),
        cmocka_unit_test(test_a_shortage_costs_no_wish),  cmocka_unit_test(test_a_file_without_memory_stays),
    };
    return cmocka_run_group_tests_name("kept", tests, NULL, NULL);
}
