/*
 * batch_case.c - see batch_case.h. Waits for events with deadlines. Fails: the running test.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include "tests/harness/batch_case.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "tests/harness/farm.h"

#define WAIT_US (60 * CLOCK_SECOND_US)

static batch_outcome undisturbed;
static char manifest_path[256], config_path[256];

const char *batch_manifest(void)
{
    return manifest_path;
}

const char *batch_config(void)
{
    return config_path;
}

void batch_write_text(const char *path, const char *text)
{
    assert_ok(io_write_file(path, text, strlen(text)));
}

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static const char *text_of(const json *line, const char *key)
{
    const char *text = "";
    const json *v = json_find(line, key);
    if (v && json_is_string(v))
        assert_ok(json_as_str(v, key, 4096, &text));
    return text;
}

static unsigned long long number_of(const json *line, const char *key)
{
    uint64_t value;
    assert_ok(json_get_u64(line, key, 0, UINT64_MAX, &value));
    return value;
}

void batch_read_ledger(const char *dir, const char *name, batch_outcome *o)
{
    char path[320], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    for (char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        json *line;
        assert_ok(json_parse(at, (size_t)(end - at), 8, &line));
        assert_true(o->count < BATCH_ROWS);
        snprintf(o->lines[o->count++], BATCH_LINE_BYTES, "%s %s %s %llu %llu %llu", text_of(line, "id"),
                 text_of(line, "status"), text_of(line, "sha256"), number_of(line, "samples"), number_of(line, "seed"),
                 number_of(line, "tokens"));
        json_close(line);
    }
    mem_free(text);
    qsort(o->lines, (size_t)o->count, BATCH_LINE_BYTES, by_text);
}

void batch_expect_same(const batch_outcome *o)
{
    assert_int_equal(o->count, BATCH_ROWS);
    for (int i = 0; i < BATCH_ROWS; i++)
        assert_string_equal(o->lines[i], undisturbed.lines[i]);
}

void batch_expect_undisturbed(const char *dir)
{
    static batch_outcome o;
    o.count = 0;
    batch_read_ledger(dir, "ledger.jsonl", &o);
    batch_expect_same(&o);
}

/* The text of a file that may not be there yet; the caller frees it. NULL: it is not. */
static char *read_text(const char *dir, const char *name)
{
    char path[320], *text = NULL;
    size_t bytes;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return io_exists(path) && io_read_file(path, 1 << 24, &text, &bytes) == CF_OK ? text : NULL;
}

bool batch_has_text(const char *dir, const char *name, const char *part)
{
    char *text = read_text(dir, name);
    const bool found = text && strstr(text, part);
    mem_free(text);
    return found;
}

static int lines_in(const char *dir, const char *name)
{
    int lines = 0;
    char *text = read_text(dir, name);
    for (const char *at = text; at && (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    mem_free(text);
    return lines;
}

void batch_wait_lines(const char *dir, int wanted)
{
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    while (lines_in(dir, "ledger.jsonl") < wanted) {
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 5);
    }
}

void batch_wait_text(const char *dir, const char *name, const char *part)
{
    const uint64_t deadline_us = clock_now_us() + WAIT_US;
    while (!batch_has_text(dir, name, part)) {
        if (clock_now_us() > deadline_us)
            fail_msg("%s/%s has no \"%s\"", dir, name, part);
        poll(NULL, 0, 5);
    }
}

pid_t batch_start(const char *dir, const char *config_file)
{
    char out[320];
    snprintf(out, sizeof out, "%s.said", dir);
    return farm_command_start((const char *const[]){BATCH_WITH(dir, config_file), NULL}, out);
}

void batch_expect(int code, const char *part, const char *dir)
{
    farm_expect(code, part, (const char *const[]){BATCH(dir), NULL});
}

int batch_cases_begin(void **state)
{
    /* With these seeds the model soon stops; the last row has a derived one. Two are much shorter than the others, so
     * that a batch can be met when they have ended. */
    static const char *const rows[BATCH_ROWS] = {
        "\"text\":\"It rained.\",\"seed\":18", "\"text\":\"Yes.\",\"seed\":5",
        "\"text\":\"It rained.\",\"seed\":2",  "\"text\":\"The lamp went out.\",\"seed\":24,\"voice\":\"vale\"",
        "\"text\":\"It rained.\",\"seed\":3",  "\"text\":\"Yes.\"",
    };
    char text[BATCH_ROWS * 200];
    size_t n = 0;
    (void)state;
    const char *dir = test_temp_dir();
    for (int i = 0; i < BATCH_ROWS; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "{\"id\":\"set/%02d\",%s}\n", i, rows[i]);
    snprintf(manifest_path, sizeof manifest_path, "%s/rows.jsonl", dir);
    snprintf(config_path, sizeof config_path, "%s/config.json", dir);
    batch_write_text(manifest_path, text);
    /* bf16: with a matrix unit the small Flow is ten times faster, and what is tested is the farm. */
    batch_write_text(config_path,
                     "{\"precision\":\"bf16\",\"llm_rows\":3,\"flow_rows\":2,\"hift_rows\":2,\"utterances_max\":4}");
    (void)farm_of_their_own();
    dir = test_temp_dir();
    batch_expect(0, "6 done", dir);
    batch_read_ledger(dir, "ledger.jsonl", &undisturbed);
    return undisturbed.count == BATCH_ROWS ? 0 : -1;
}
