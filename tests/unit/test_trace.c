/*
 * test_trace.c - trace files of a worker: readable by anyone who knows the format, whole events only, never in the way.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/worker/trace.h"

/* The text of the only file in `folder`. */
static char *only_file(const char *folder, char ret_name[256])
{
    char path[IO_PATH_BYTES], *text = NULL;
    size_t bytes;
    int files = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (const struct dirent *e; (e = readdir(dir)) != NULL;)
        if (e->d_name[0] != '.') {
            snprintf(ret_name, 256, "%s", e->d_name);
            files++;
        }
    closedir(dir);
    assert_int_equal(files, 1);
    assert_ok(io_join(path, sizeof path, folder, ret_name));
    assert_ok(io_read_file(path, 1 << 20, &text, &bytes));
    return text;
}

static json *event_of(const char *line)
{
    json *event = NULL;
    char one[512];
    const size_t bytes = strcspn(line, "\n");
    assert_in_range(bytes, 2, sizeof one - 1);
    assert_int_equal(line[bytes - 1], ',');
    memcpy(one, line, bytes - 1);
    assert_ok(json_parse(one, bytes - 1, 4, &event));
    return event;
}

static void expect_event(const char **line, const char *phase, const char *name, double at_us)
{
    const char *text;
    double ts;
    json *event = event_of(*line);
    assert_ok(json_get_str(event, "ph", 7, &text));
    assert_string_equal(text, phase);
    assert_ok(json_get_str(event, "name", 255, &text));
    assert_string_equal(text, name);
    assert_ok(json_get_f64(event, "ts", 0, 1e15, &ts));
    assert_true(ts == at_us);
    json_close(event);
    *line = strchr(*line, '\n') + 1;
}

static void test_events_of_a_worker(void **state)
{
    (void)state;
    trace *t;
    char name[256];
    const char *folder = test_temp_dir();
    assert_ok(trace_open(folder, "flow", 3, &t));
    trace_step(t, 1000, 250, 4);
    trace_job(t, 77, "a \"quoted\" row", 2, 900, 1250);
    char *text = only_file(folder, name); /* before it is closed: the last job is there */
    const char *line = text;
    assert_memory_equal(name, "flow.3.", 7);
    assert_memory_equal(line, "[\n", 2);
    line += 2;
    expect_event(&line, "M", "process_name", 0);
    expect_event(&line, "X", "step", 1000);
    expect_event(&line, "b", "a \"quoted\" row", 900);
    expect_event(&line, "e", "a \"quoted\" row", 1250);
    assert_int_equal(*line, '\0');
    mem_free(text);
    trace_close(t);
}

static void test_no_trace_is_fine(void **state)
{
    (void)state;
    trace *t = NULL;
    trace_step(NULL, 1, 1, 1);
    trace_job(NULL, 1, "row", 0, 1, 1);
    trace_close(NULL);
    assert_int_equal(trace_open("/nonexistent/folder", "llm", 0, &t), CF_ERR_SYS);
    assert_non_null(strstr(err_text(), "/nonexistent/folder/llm.0."));
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_events_of_a_worker),
        cmocka_unit_test(test_no_trace_is_fine),
    };
    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
