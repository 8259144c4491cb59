/*
 * test_farm_options.c - options of a farm and its configuration file: the option wins over the key, whichever stands
 * first on the command line; what is wrong is named.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "tools/farm_options.h"

static char config_path[256];

static int begin(void **state)
{
    static const char text[] = "{\"model\":\"/of/the/file\",\"precision\":\"bf16\",\"threads\":3,\"llm_workers\":2,"
                               "\"flow_workers\":2,\"naive\":false,\"deaths_max\":7}";
    (void)state;
    unsetenv("COSYFARM_MODEL");
    snprintf(config_path, sizeof config_path, "%s/c.json", test_temp_dir());
    return io_write_file(config_path, text, sizeof text - 1) == CF_OK ? 0 : -1;
}

/* The words through getopt, as a verb does it. */
static cf_err take(farm_options *o, const char *const *words)
{
    static const struct option options[] = {FARM_LONG_OPTIONS, {0}};
    char *argv[24];
    int argc = 0;
    cf_err err = CF_OK;
    for (; words[argc]; argc++)
        argv[argc] = (char *)(uintptr_t)words[argc];
    argv[argc] = NULL;
    farm_options_init(o);
    optind = 0; /* from the beginning again */
    for (int c; err == CF_OK && (c = getopt_long(argc, argv, FARM_SHORT_OPTIONS, options, NULL)) != -1;)
        assert_true(farm_options_take(o, c, optarg, &err));
    return err == CF_OK ? farm_options_load(o) : err;
}

#define TAKE(o, ...) take(o, (const char *const[]){"cosyfarm", __VA_ARGS__, NULL})

static void expect_options(const farm_options *o)
{
    assert_string_equal(o->cfg.model, "/of/the/option");
    assert_string_equal(o->cfg.precision, "f32");
    assert_int_equal(o->cfg.threads, 1);
    assert_int_equal(o->cfg.llm_workers, 4);
    assert_true(o->cfg.naive);
    assert_int_equal(o->cfg.flow_workers, 2); /* nobody gave that one */
    assert_int_equal(o->cfg.deaths_max, 7);
    assert_true(o->model_given);
}

static void test_options_win(void **state)
{
    (void)state;
    static farm_options o;
    assert_ok(TAKE(&o, "-m", "/of/the/option", "--precision", "f32", "--threads", "1", "--llm", "4", "--naive",
                   "--config", config_path));
    expect_options(&o);
    assert_ok(TAKE(&o, "--config", config_path, "-m", "/of/the/option", "--precision", "f32", "--threads", "1", "--llm",
                   "4", "--naive"));
    expect_options(&o);
    assert_ok(TAKE(&o, "-m", "/of/the/option", "--precision", "f32", "--config", config_path, "--threads", "1", "--llm",
                   "2", "--llm", "4", "--naive"));
    expect_options(&o);
}

static unsigned long left; /* allocations until one fails; 0: none does */

static void *failing_malloc(size_t bytes)
{
    return left > 0 && --left == 0 ? NULL : malloc(bytes);
}

/* An option that found no memory is refused: with the default in its place other samples would come out. */
static void test_no_option_is_lost(void **state)
{
    (void)state;
    static farm_options o;
    cJSON_Hooks hooks = {failing_malloc, free};
    unsigned long nth = 1;
    cJSON_InitHooks(&hooks);
    for (cf_err err = CF_ERR_NOMEM; err != CF_OK; nth++) {
        left = nth;
        err = TAKE(&o, "--precision", "f32", "--threads", "1", "--naive");
        assert_true(err == CF_ERR_NOMEM || (err == CF_OK && left > 0));
    }
    cJSON_InitHooks(NULL);
    assert_true(nth > 9); /* three trees of three parts */
    left = 0;
    assert_string_equal(o.cfg.precision, "f32");
    assert_int_equal(o.cfg.threads, 1);
    assert_true(o.cfg.naive);
}

static void test_the_file_alone(void **state)
{
    (void)state;
    static farm_options o;
    assert_ok(TAKE(&o, "--config", config_path));
    assert_string_equal(o.cfg.model, "/of/the/file");
    assert_string_equal(o.cfg.precision, "bf16");
    assert_true(o.model_given && o.precision_given);
    assert_ok(TAKE(&o, "--threads", "2"));
    assert_false(o.model_given || o.precision_given);
    assert_ok(io_write_file(config_path, "{\"threads\":3}", 13));
    assert_ok(TAKE(&o, "--config", config_path));
    assert_false(o.precision_given);
    assert_string_equal(o.cfg.precision, "f32");
    assert_ok(TAKE(&o, "--config", config_path, "--precision", "fp16"));
    assert_true(o.precision_given);
    assert_string_equal(o.cfg.precision, "fp16");
}

static void test_refusals(void **state)
{
    (void)state;
    static farm_options o;
    assert_err(CF_ERR_INVALID, "--threads: expected a number, found \"many\"", TAKE(&o, "--threads", "many"));
    assert_err(CF_ERR_INVALID, "--llm: llm_workers: expected 0..16, found 17", TAKE(&o, "--llm", "17"));
    assert_err(CF_ERR_NOTFOUND, "/none.json", TAKE(&o, "--config", "/none.json"));
    assert_err(CF_ERR_INVALID, "--precision: expected f32, bf16, fp16 or int8, found \"bf61\"",
               TAKE(&o, "--precision", "bf61"));
    assert_err(CF_ERR_UNSUPPORTED, "--device: device \"abacus\": expected cpu or cuda:N",
               TAKE(&o, "--device", "cpu,abacus"));
    assert_err(CF_ERR_INVALID, "--config: given twice", TAKE(&o, "--config", "a", "--config", "b"));
    assert_non_null(strstr(FARM_OPTIONS_HELP, "options win over its keys, wherever they stand"));
}

/* What does not fit is not passed over, unless nobody needs it. */
static void test_a_model_path_too_long(void **state)
{
    (void)state;
    static farm_options o;
    char path[2001];
    memset(path, 'm', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    setenv("COSYFARM_MODEL", path, 1);
    assert_err(CF_ERR_LIMIT, "COSYFARM_MODEL: path longer than 1023 bytes", TAKE(&o, "--threads", "2"));
    assert_ok(TAKE(&o, "-m", "short"));
    unsetenv("COSYFARM_MODEL");
    assert_err(CF_ERR_INVALID, "--model: model", TAKE(&o, "-m", path));
}

static void test_numbers(void **state)
{
    (void)state;
    uint64_t value;
    assert_ok(farm_options_number("--rows", "0", 9, &value));
    assert_int_equal(value, 0);
    assert_err(CF_ERR_INVALID, "--rows: expected 0..9, found \"10\"", farm_options_number("--rows", "10", 9, &value));
    assert_err(CF_ERR_INVALID, "--rows: expected 1..9, found \"0\"", farm_options_count("--rows", "0", 9, &value));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_win),           cmocka_unit_test(test_no_option_is_lost),
        cmocka_unit_test(test_the_file_alone),        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_a_model_path_too_long), cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests_name("farm_options", tests, begin, NULL);
}
