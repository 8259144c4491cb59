/*
 * test_command.c - the command as its user meets it: words that it does not take, configurations and models that cannot
 * be used, a farm that runs already with other settings, standard output that takes nothing; and `up --detach`.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/harness/farm.h"
#include "tests/harness/tiny_model.h"

/* A row's text would end at the NUL, and the rest never be heard. */
static void test_nul_on_standard_input(void **state)
{
    (void)state;
    farm_of_their_own();
    assert_int_equal(
        farm_shell("printf 'a\\0b' | \"$COSYFARM_BIN/cosyfarm\" say -q - 2>&1 | grep -q 'text: NUL at byte 1'"), 0);
    assert_int_equal(
        farm_shell(
            "printf 'a\\377b' | \"$COSYFARM_BIN/cosyfarm\" say -q - 2>&1 | grep -q 'text: invalid UTF-8 at byte 1'"),
        0);
}

/* One line that names the word, and 64: what a verb does not take must not mean something else. */
/* What cannot be read is no end of the text. */
static void test_unreadable_standard_input(void **state)
{
    (void)state;
    char line[IO_PATH_BYTES + 160];
    static const char *const verbs[] = {"say -q -", "text"};
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        snprintf(line, sizeof line,
                 "\"$COSYFARM_BIN/cosyfarm\" %s -m '%s' 2>&1 </ | grep -q 'standard input: Is a dir'", verbs[i],
                 tiny_model_dir());
        assert_int_equal(farm_shell(line), 0);
    }
}

static void test_usage(void **state)
{
    (void)state;
    char long_dir[5000], out[8192];
    static const char *const lines[][6] = {
        {"cosyfarm", "down", "flow", "--now"},
        {"cosyfarm", "status", "extra"},
        {"cosyfarm", "top", "extra"},
        {"cosyfarm", "up", "extra"},
        {"cosyfarm", "plan", "extra"},
        {"cosyfarm", "model", "ls", "a", "b"},
        {"cosyfarm", "voice", "show", "-m", "a"},
        {"cosyfarm", "drain", "llm", "flow"},
        {"cosyfarm", "plan", "--rows", "0"},
        {"cosyfarm", "status", "--jsn"},
        {"cosyfarm", "batch", "--jsn", "x"},
        {"cosyfarm", "say", "--see"},
        {"cosyfarm", "scale", "--json", "flow=1"},
        {"cosyfarm", "bench", "farms"},
        {"cosyfarm", "say", "--precision", "f8", "x"},
        {"cosyfarm", "up", "--device", "cuda:x"},
        {"cosyfarm"},
    };
    farm_of_their_own();
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        const int code = farm_command(lines[i], out, sizeof out);
        if (code != 64 || strchr(out, '\n') != out + strlen(out) - 1)
            fail_msg("cosyfarm %s: exit code %d:\n%s", lines[i][1] ? lines[i][1] : "", code, out);
    }
    memset(long_dir, 'r', sizeof long_dir - 1);
    long_dir[sizeof long_dir - 1] = '\0';
    farm_expect(64, "--run-dir: path longer than 4095 bytes",
                (const char *const[]){"cosyfarm", "status", "--run-dir", long_dir, NULL});
}

/* What ended a process of the farm is on the command's own standard error, not in a log alone. */
static void test_broken_model(void **state)
{
    (void)state;
    char broken[256], line[1024], log[320], *text, *end;
    size_t bytes;
    const char *dir = farm_of_their_own();
    snprintf(broken, sizeof broken, "%s/broken", dir);
    snprintf(line, sizeof line, "cp -r '%s' '%s' && truncate -s 100000 '%s/flow.safetensors'", tiny_model_dir(), broken,
             broken);
    assert_int_equal(farm_shell(line), 0);
    static const char why[] = "flow_worker/0 ended with code 78: ", what[] = "flow.safetensors: tensor ";
    snprintf(line, sizeof line, "%s%s/%s", why, broken, what);
    farm_expect(78, line, (const char *const[]){"cosyfarm", "up", "-m", broken, "--detach", NULL});
    snprintf(log, sizeof log, "%s/said", dir);
    assert_int_equal(
        farm_command_wait(farm_command_start((const char *const[]){"cosyfarm", "say", "-m", broken, "x", NULL}, log)),
        78);
    assert_ok(io_read_file(log, 1 << 16, &text, &bytes));
    assert_non_null(strstr(text, line));
    char *kept = strstr(text, "the farm's log is ");
    assert_non_null(kept);
    kept += strlen("the farm's log is ");
    end = strchr(kept, '\n');
    assert_non_null(end);
    *end = '\0';
    assert_int_equal(unlink(kept), 0);
    mem_free(text);
}

static void expect_lost_output(const char *wav)
{
    const char *const lines[][8] = {
        {"cosyfarm", "status", "--json"},
        {"cosyfarm", "top", "-n", "3"},
        {"cosyfarm", "--version"},
        {"cosyfarm", "say", "-o", "-", "Yes."},
        {"cosyfarm", "say", "-q", "--json", "-o", wav, "Yes."},
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        assert_int_equal(farm_command_wait_within(farm_command_start(lines[i], "/dev/full"), 60, lines[i][1]), 75);
}

/* What a farm that runs already has otherwise. */
static void expect_other_settings(const char *wav)
{
    char given[320], rows[320], out[320];
    farm_expect(78, "the running farm computes in bf16, not f32",
                (const char *const[]){"cosyfarm", "say", "--precision", "f32", "-o", wav, "x", NULL});
    farm_expect(78, "the running farm was started without --base-weights",
                (const char *const[]){"cosyfarm", "say", "--base-weights", "-o", wav, "x", NULL});
    farm_expect(0, "with settings of its own: --device, --llm ignored\n",
                (const char *const[]){"cosyfarm", "say", "--llm", "2", "--device", "cpu", "--precision", "bf16", "-o",
                                      wav, "Yes.", NULL});
    snprintf(given, sizeof given, "%s.json", wav);
    assert_ok(io_write_file(given, "{\"precision\":\"f32\"}", 19));
    snprintf(rows, sizeof rows, "%s.csv", wav);
    snprintf(out, sizeof out, "%s.out", wav);
    assert_ok(io_write_file(rows, "a|Yes.\n", 7));
    farm_expect(78, "the running farm computes in bf16, not f32",
                (const char *const[]){"cosyfarm", "batch", "--config", given, "-o", out, rows, NULL});
}

static void test_running_farm(void **state)
{
    (void)state;
    farm f;
    char wav[256];
    snprintf(wav, sizeof wav, "%s/x.wav", test_temp_dir());
    farm_start(&f, NULL, NULL);
    expect_other_settings(wav);
    expect_lost_output(wav);
    farm_end(&f);
}

/* In process numbers of its own, which end with its first process: should `up` start `up` without end, then for ten
 * seconds at most. */
static void test_up_detached_starts_one_farm(void **state)
{
    (void)state;
    char command[2048], log[320], *text;
    size_t bytes;
    const char *dir = farm_of_their_own();
    if (farm_shell("unshare --pid --fork --kill-child=KILL true 2>/dev/null") != 0)
        skip();
    unsetenv("COSYFARM_PARENT"); /* has another number there; the farm ends with the first process all the same */
    snprintf(command, sizeof command,
             "timeout -s KILL 10 unshare --pid --fork --kill-child=KILL \"$COSYFARM_BIN/cosyfarm\" up --det -m '%s' "
             "--precision bf16 --run-dir '%s' >'%s/said' 2>&1",
             tiny_model_dir(), dir, dir);
    assert_int_equal(farm_shell(command), 0);
    snprintf(log, sizeof log, "%s/farm.log", dir);
    assert_ok(io_read_file(log, 1 << 20, &text, &bytes));
    const char *ready = strstr(text, "ev=orch.ready");
    assert_non_null(ready);
    assert_null(strstr(ready + 1, "ev=orch.ready"));
    mem_free(text);
}

/* All that is wrong with a configuration, for every verb that reads one. */
static void test_unusable_configuration(void **state)
{
    (void)state;
    char path[256], none[256], out[256];
    static const char *const verbs[] = {"up", "say", "batch", "plan", "bench"};
    const char *dir = farm_of_their_own();
    snprintf(path, sizeof path, "%s/c.json", dir);
    snprintf(none, sizeof none, "%s/none.json", dir);
    snprintf(out, sizeof out, "%s/x.wav", dir);
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        /* an operand that these two want; the others have none */
        const bool wants = strcmp(verbs[i], "say") == 0 || strcmp(verbs[i], "batch") == 0;
        const char *const last = wants ? "x.txt" : NULL;
        const char *const args[] = {"cosyfarm", verbs[i], "-m", tiny_model_dir(), "--config", path, last,
                                    "-o",       out,      NULL};
        const char *const absent[] = {"cosyfarm", verbs[i], "-m", tiny_model_dir(), "--config", none, last,
                                      "-o",       out,      NULL};
        assert_ok(io_write_file(path, "{\"llm_row\":4}", 13));
        farm_expect(78, "did you mean \"llm_rows\"", args);
        assert_ok(io_write_file(path, "llm_rows", 8));
        farm_expect(78, "c.json: ", args);
        farm_expect(78, "none.json: no such file", absent);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nul_on_standard_input),
        cmocka_unit_test(test_unreadable_standard_input),
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_unusable_configuration),
        cmocka_unit_test(test_broken_model),
        cmocka_unit_test(test_running_farm),
        cmocka_unit_test(test_up_detached_starts_one_farm),
    };
    return cmocka_run_group_tests_name("command", tests, NULL, NULL);
}
