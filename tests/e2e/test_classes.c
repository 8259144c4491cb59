/*
 * test_classes.c - whom a farm lets in, and who goes first: a row that somebody waits for beside a batch that fills the
 * farm, priorities, the longest text, deadlines. Real processes, the tiny model.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "tests/harness/batch_case.h"
#include "tests/harness/farm.h"
#include "tests/harness/tiny_model.h"

#define ROWS_MAX 64

static uint64_t rows_held(const farm *f)
{
    wire_msg status = farm_status(f);
    uint64_t rows;
    assert_ok(json_get_u64(wire_json(&status, "queues"), "rows", 0, UINT64_MAX, &rows));
    wire_done(&status);
    return rows;
}

static void wait_rows(const farm *f, uint64_t wanted)
{
    const uint64_t deadline_us = clock_now_us() + 60 * CLOCK_SECOND_US;
    while (rows_held(f) != wanted) {
        if (clock_now_us() > deadline_us)
            fail_msg("the farm does not hold %llu rows", (unsigned long long)wanted);
        poll(NULL, 0, 10);
    }
}

/* ids of the ledger's lines, in order; returns how many. */
static int ledger_ids(const char *dir, char ids[ROWS_MAX][32])
{
    char path[320], *text = NULL;
    size_t bytes;
    int count = 0;
    snprintf(path, sizeof path, "%s/ledger.jsonl", dir);
    if (!io_exists(path))
        return 0;
    assert_ok(io_read_file(path, 1 << 24, &text, &bytes));
    for (char *at = text, *end; (end = strchr(at, '\n')) != NULL && count < ROWS_MAX; at = end + 1)
        assert_int_equal(sscanf(at, "{\"id\":\"%31[^\"]", ids[count++]), 1);
    mem_free(text);
    return count;
}

static pid_t batch_of(const char *dir, const char *manifest, const char *priority)
{
    char out[320];
    snprintf(out, sizeof out, "%s.said", dir);
    return farm_command_start((const char *const[]){"cosyfarm", "batch", "-m", tiny_model_dir(), "--priority", priority,
                                                    manifest, "-o", dir, NULL},
                              out);
}

/* A folder's manifest and output folder. */
typedef struct paths {
    char manifest[256], dir[256], wav[256];
} paths;

static paths paths_with(const char *rows)
{
    paths p;
    const char *folder = test_temp_dir();
    snprintf(p.manifest, sizeof p.manifest, "%s/rows.jsonl", folder);
    snprintf(p.dir, sizeof p.dir, "%s/out", folder);
    snprintf(p.wav, sizeof p.wav, "%s/say.wav", folder);
    batch_write_text(p.manifest, rows);
    return p;
}

static void steer_llm(const char *verb)
{
    farm_expect(0, "", (const char *const[]){"cosyfarm", verb, "llm", NULL});
}

static pid_t say_start(const paths *p)
{
    return farm_command_start((const char *const[]){"cosyfarm", "say", "-o", p->wav, "Yes.", NULL}, "/dev/null");
}

/* A batch that fills the farm, as urgent as can be: who waits for one sentence is let in and goes first. The others go
 * by priority, then as they came, through workers that take one at a time. */
static void test_say_overtakes_a_batch(void **state)
{
    (void)state;
    enum { ROWS = 8, WRITERS = 3 }; /* files that are written beside each other may change places */
    farm f;
    char ids[ROWS_MAX][32];
    static const char *const order[] = {"p9a", "p9b", "p9c", "p7", "p5a", "p5b", "p0", "last"};
    const paths p = paths_with(
        "{\"id\":\"p5a\",\"text\":\"Yes.\"}\n{\"id\":\"p0\",\"text\":\"Yes.\",\"priority\":0}\n"
        "{\"id\":\"p9a\",\"text\":\"Yes.\",\"priority\":9}\n{\"id\":\"p5b\",\"text\":\"Yes.\"}\n"
        "{\"id\":\"p7\",\"text\":\"Yes.\",\"priority\":7}\n{\"id\":\"p9b\",\"text\":\"Yes.\",\"priority\":9}\n"
        "{\"id\":\"p9c\",\"text\":\"Yes.\",\"priority\":9}\n{\"id\":\"last\",\"text\":\"Yes.\",\"priority\":0}\n");
    farm_start(&f, NULL, "\"utterances_max\":8,\"llm_rows\":1,\"flow_rows\":1,\"hift_rows\":1,\"guard\":false");
    steer_llm("drain");
    const pid_t batch = batch_of(p.dir, p.manifest, "5");
    wait_rows(&f, 7); /* of eight rows */
    const pid_t say = say_start(&p);
    wait_rows(&f, 8);
    assert_int_equal(ledger_ids(p.dir, ids), 0);
    steer_llm("resume");
    assert_int_equal(farm_command_wait(say), 0);
    assert_true(ledger_ids(p.dir, ids) <= 2);
    assert_int_equal(farm_command_wait(batch), 0);
    assert_int_equal(ledger_ids(p.dir, ids), ROWS);
    for (int i = 0; i < ROWS; i++) {
        int at = 0;
        while (at < ROWS && strcmp(ids[i], order[at]) != 0)
            at++;
        assert_true(at < ROWS && abs(at - i) < WRITERS);
    }
    farm_end(&f);
}

/* A text of more tokens than text_tokens_max is a valid one: it is let in when nothing of its like is held, and holds
 * up its like until it has ended. */
static void test_the_longest_text_has_room(void **state)
{
    (void)state;
    farm f;
    char rows[4096] = "{\"id\":\"long\",\"text\":\"";
    size_t n = strlen(rows);
    for (int i = 0; i < 100; i++)
        n += (size_t)snprintf(rows + n, sizeof rows - n, "Rain on the old roof. ");
    snprintf(rows + n, sizeof rows - n, "\"}\n{\"id\":\"short\",\"text\":\"Yes.\"}\n");
    const paths p = paths_with(rows);
    farm_start(&f, NULL, "\"text_tokens_max\":256,\"grace_s\":0");
    steer_llm("drain");
    const pid_t batch = batch_of(p.dir, p.manifest, "0");
    batch_wait_text(f.run_dir, "journal", "\"id\":\"long\"");
    assert_false(batch_has_text(f.run_dir, "journal", "\"id\":\"short\""));
    const pid_t say = say_start(&p);
    batch_wait_text(f.run_dir, "journal", "\"id\":\"say\"");
    assert_int_equal(kill(say, SIGKILL), 0);
    assert_int_equal(kill(batch, SIGKILL), 0);
    assert_int_equal(farm_command_wait(say), 128 + SIGKILL);
    assert_int_equal(farm_command_wait(batch), 128 + SIGKILL);
    farm_expect(75, "rows left", (const char *const[]){"cosyfarm", "down", "--now", NULL});
    assert_int_equal(farm_command_wait(f.supervisor), 0);
}

/* A deadline counts from acceptance, whatever the row waits for, and goes on where the orchestrator dies meanwhile. */
static void test_deadlines(void **state)
{
    (void)state;
    farm f;
    const paths p = paths_with("");
    const char *const in_4_s[] = {"cosyfarm", "say", "--deadline", "4", "-o", p.wav, "Yes.", NULL};
    farm_start(&f, NULL, NULL);
    farm_expect(0, "", (const char *const[]){"cosyfarm", "scale", "llm=0", NULL});
    const uint64_t began_us = clock_now_us();
    const pid_t say = farm_command_start(in_4_s, "/dev/null");
    batch_wait_text(f.run_dir, "journal", "\"id\":\"say\"");
    const uint64_t accepted_us = clock_now_us();
    poll(NULL, 0, 3000);
    assert_int_equal(kill(farm_pid(&f, "orchestrator"), SIGKILL), 0);
    assert_int_equal(farm_command_wait(say), 65);
    assert_true(clock_now_us() - began_us >= 4 * CLOCK_SECOND_US);
    assert_true(clock_now_us() - accepted_us < 7 * CLOCK_SECOND_US); /* 4 after 3 would be as many */
    assert_false(io_exists(p.wav));
    farm_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_say_overtakes_a_batch),
        cmocka_unit_test(test_the_longest_text_has_room),
        cmocka_unit_test(test_deadlines),
    };
    return cmocka_run_group_tests_name("classes", tests, NULL, NULL);
}
