/* test_cmd_text.c - `cosyfarm text`: options, the JSON filter line by line, exit codes. The verb runs in a child. */
#define _GNU_SOURCE
#include "tests/unit/text_help.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/check.h"
#include "tools/cmd.h"

typedef struct run {
    int code;
    char out[65536], err[16384];
} run;

static void read_back(FILE *f, char *ret_text, size_t text_bytes)
{
    rewind(f);
    const size_t got = fread(ret_text, 1, text_bytes - 1, f);
    ret_text[got] = '\0';
    fclose(f);
}

/* Runs the verb with these words (the first is "text") and this standard input. */
static run verb(const char *const *words, const char *input, size_t input_bytes)
{
    static run r;
    FILE *in = tmpfile(), *out = tmpfile(), *err = tmpfile();
    char *argv[16];
    int argc = 0, status;
    assert_true(in && out && err);
    for (; words[argc]; argc++)
        argv[argc] = strdup(words[argc]);
    argv[argc] = NULL;
    fwrite(input, 1, input_bytes, in);
    rewind(in);
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fileno(in), 0);
        dup2(fileno(out), 1);
        dup2(fileno(err), 2);
        status = cmd_text(argc, argv);
        fflush(NULL);
        _exit(status);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    r.code = WEXITSTATUS(status);
    read_back(out, r.out, sizeof r.out);
    read_back(err, r.err, sizeof r.err);
    fclose(in);
    for (int i = 0; i < argc; i++)
        free(argv[i]);
    return r;
}

static const char *tiny(void)
{
    return test_path("tests/golden/text/tokenizer_tiny");
}

static run json_lines(const char *input, bool raw)
{
    const char *const words[] = {"text", "-m", tiny(), "--json", raw ? "--raw" : NULL, NULL};
    return verb(words, input, strlen(input));
}

static void test_json_answers(void **state)
{
    (void)state;
    static const struct {
        bool raw;
        const char *line, *answer;
    } cases[] = {
        {false, "{\"text\": \"It had not\"}",
         "{\"segments\": [\"It had not.\"], \"ids\": [[73, 116, 321, 294, 46]]}\n"},
        {true, "{\"text\":\"It had not\"}", "{\"segments\": [\"It had not\"], \"ids\": [[73, 116, 321, 294]]}\n"},
        {true, "{\"text\": \"\"}", "{\"segments\": [\"\"], \"ids\": [[]]}\n"},
        {false, "{\"text\": \"\"}", "{\"segments\": [\"\"], \"ids\": [[]]}\n"},
        {false, "{\"text\": \" \\n\"}", "{\"segments\": [], \"ids\": []}\n"}, /* upstream raises */
        {false, "{\"text\": \"...\"}", "{\"segments\": [], \"ids\": []}\n"},  /* upstream says nothing */
        {true, "{\"text\": \"a\\u0000b\"}", "{\"segments\": [\"a\\u0000b\"], \"ids\": [[97, 0, 98]]}\n"},
        {true, "{\"text\": \"\\u2028\\u0085\\\"\\\\\"}",
         "{\"segments\": [\"\\u2028\\u0085\\\"\\\\\"], \"ids\": [[226, 128, 168, 194, 133, 34, 92]]}\n"},
        {true, "{\"text\": \"\\ud83d\\ude42\"}", "{\"segments\": [\"🙂\"], \"ids\": [[240, 159, 153, 130]]}\n"},
        {true,
         " { \"id\" : \"r1\", \"speed\":1.5e0, \"x\":{\"y\":[true,null,-1]}, \"a longer key\":[], \"text\" : \"a\" } ",
         "{\"segments\": [\"a\"], \"ids\": [[97]]}\n"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        const run r = json_lines(cases[i].line, cases[i].raw);
        assert_string_equal(r.out, cases[i].answer);
        assert_int_equal(r.code, EXIT_DONE);
    }
}

static void test_json_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *line, *part;
    } cases[] = {
        {"{}", "expected a string"},
        {"[]", "expected an object"},
        {"\"a\"", "expected an object"},
        {"{\"txt\": \"a\"}", "key \\\"text\\\" is missing"},
        {"{\"text\": 5}", "expected a string"},
        {"{\"text\": null}", "expected a string"},
        {"{\"text\": \"a\"", "the end of the object"},
        {"{\"text\": \"a\"} x", "the end of the object"},
        {"{\"text\": \"a\", \"text\": \"b\"}", "appears twice"},
        {"{\"text\": \"a}", "does not end"},
        {"{\"text\": \"\\ud800\"}", "bad escape"},
        {"{\"text\": \"\\udc00\\ud800\"}", "bad escape"},
        {"{\"text\": \"\xff\"}", "invalid UTF-8"},
        {"{\"text\" \"a\"}", "expected ':'"},
        {"{\"x\": 01, \"text\": \"a\"}", "expected a value"},
        {"{\"x\": 1., \"text\": \"a\"}", "expected a value"},
        {"{\"x\": tru, \"text\": \"a\"}", "expected a value"},
        {"{\"x\": [1 2], \"text\": \"a\"}", "expected ',' or ']'"},
        {"{\"x\": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]], \"text\": \"a\"}", "nested too deep"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        const run r = json_lines(cases[i].line, false);
        assert_memory_equal(r.out, "{\"error\": {\"code\": ", 19);
        if (!strstr(r.out, cases[i].part))
            fail_msg("%s\n  got  %s\n  want ...%s...", cases[i].line, r.out, cases[i].part);
        assert_non_null(strstr(r.err, "line 1: "));
        assert_int_equal(r.code, EXIT_ROWS_FAILED);
    }
}

/* Line n out belongs to line n in, whatever became of it. */
static void test_json_keeps_step(void **state)
{
    (void)state;
    const run r = json_lines("{\"text\": \"a\"}\nnonsense\n{\"text\": \"b\"}\r\n", true);
    assert_int_equal(r.code, EXIT_ROWS_FAILED);
    const char *second = strchr(r.out, '\n') + 1, *third = strchr(second, '\n') + 1;
    assert_memory_equal(r.out, "{\"segments\": [\"a\"]", 18);
    assert_memory_equal(second, "{\"error\"", 8);
    assert_memory_equal(third, "{\"segments\": [\"b\"]", 18);
    assert_non_null(strstr(r.err, "line 2"));
}

static void test_json_text_too_long(void **state)
{
    (void)state;
    static char line[10100];
    snprintf(line, sizeof line, "{\"text\": \"%010001d\"}", 0);
    const run r = json_lines(line, false);
    assert_non_null(strstr(r.out, "\"code\": \"limit\""));
    assert_non_null(strstr(r.out, "at most 10000 characters, found 10001"));
    assert_int_equal(r.code, EXIT_ROWS_FAILED);
}

static void test_words(void **state)
{
    (void)state;
    const char *const words[] = {"text", "It", "had", "2", "--mod", tiny(), NULL}; /* options as of other verbs */
    run r = verb(words, "", 0);
    assert_int_equal(r.code, EXIT_DONE);
    assert_non_null(strstr(r.out, "segment 1: 11 characters"));
    assert_non_null(strstr(r.out, "It had two."));
    const char *const one_json[] = {"text", "-m", tiny(), "--raw", "--json", "a", NULL};
    r = verb(one_json, "{\"text\": \"not read\"}\n", 21);
    assert_string_equal(r.out, "{\"segments\": [\"a\"], \"ids\": [[97]]}\n");
    const char *const from_stdin[] = {"text", "-m", tiny(), "--raw", "-", NULL};
    r = verb(from_stdin, "a\n\n", 3);
    assert_non_null(strstr(r.out, "2 characters, 2 tokens"));
    const char *const dashes[] = {"text", "-m", tiny(), "--raw", "--", "--raw", NULL};
    r = verb(dashes, "", 0);
    assert_non_null(strstr(r.out, "\n  --raw\n"));
}

static void test_environment_names_the_model(void **state)
{
    (void)state;
    const char *const words[] = {"text", "a", NULL};
    assert_int_equal(unsetenv("COSYFARM_MODEL"), 0);
    assert_int_equal(verb(words, "", 0).code, EXIT_CONFIG);
    assert_int_equal(setenv("COSYFARM_MODEL", tiny(), 1), 0);
    assert_int_equal(verb(words, "", 0).code, EXIT_DONE);
    const char *const option_wins[] = {"text", "-m", "/nonexistent", "a", NULL};
    assert_int_equal(verb(option_wins, "", 0).code, EXIT_CONFIG);
    assert_int_equal(unsetenv("COSYFARM_MODEL"), 0);
}

static void test_failures(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    const struct {
        const char *words[8];
        int code;
        const char *part;
    } cases[] = {
        {{"text", "a"}, EXIT_CONFIG, "no model directory"},
        {{"text", "-m"}, EXIT_USAGE, "option \"-m\" is not known or lacks its value"},
        {{"text", "--model"}, EXIT_USAGE, "option \"--model\" lacks its value"},
        {{"text", "--raw=1"}, EXIT_USAGE, "option \"--raw=1\" takes no value"},
        {{"text", "-m", dir, "--rwa", "a"}, EXIT_USAGE, "option \"--rwa\" is not known"},
        {{"text", "-m", dir, "a"}, EXIT_CONFIG, "vocab.json: no such file"},
        {{"text", "-m", dir, "--json"}, EXIT_CONFIG, "vocab.json: no such file"},
        {{"text", "-m", tiny(), "a\xff"}, EXIT_CONFIG, "invalid UTF-8 at byte 1"},
    };
    for (size_t i = 0; i < CF_COUNT(cases); i++) {
        const run r = verb(cases[i].words, "", 0);
        assert_int_equal(r.code, cases[i].code);
        assert_non_null(strstr(r.err, cases[i].part));
        assert_string_equal(r.out, "");
        assert_ptr_equal(strchr(r.err, '\n'), r.err + strlen(r.err) - 1); /* one line */
    }
    const char *const help[] = {"text", "--help", NULL};
    const run r = verb(help, "", 0);
    assert_int_equal(r.code, EXIT_DONE);
    assert_memory_equal(r.out, "usage: cosyfarm text", 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_answers),    cmocka_unit_test(test_json_refusals),
        cmocka_unit_test(test_json_keeps_step), cmocka_unit_test(test_json_text_too_long),
        cmocka_unit_test(test_words),           cmocka_unit_test(test_environment_names_the_model),
        cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests_name("cmd_text", tests, NULL, NULL);
}
