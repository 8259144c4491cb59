/*
 * test_sweep_journal.c - the orchestrator's journal under failures: of memory and reads at its start, of writes, syncs,
 * cuts and renames in its thread, and the tails that a power cut leaves. A row that was called accepted is in the file
 * that has the path, once; one that was refused is not.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "orchestrator/journal.h"
#include "tests/fault/sweep.h"

#define HEAD   "{\"k\":\"journal\",\"v\":1}\n"
#define ROW(n) "{\"k\":\"row\",\"n\":" #n ",\"client\":\"c\",\"submit\":{\"id\":\"a\"}}\n"
#define TOKENS(n) \
    "{\"k\":\"tokens\",\"n\":" #n ",\"attempt\":0,\"segment\":0,\"stopped\":true,\"capped\":false,\"tokens\":[1,2]}\n"
#define END(n) "{\"k\":\"end\",\"n\":\"" #n "\"}\n"

#define LONG_ROW_BYTES 40000
#define LONG_ROWS      450 /* more than a journal holds before it is rewritten */

static char path[320];

/* Past the points that fail. */
static void put_file(const char *text, size_t bytes)
{
    if (!path[0])
        snprintf(path, sizeof path, "%s/journal", test_temp_dir());
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static uint64_t found[8];
static int found_count;
static bool refused; /* the new row was */

static void on_found(void *ctx, const journal_row *row)
{
    (void)ctx;
    assert_true(found_count < 8);
    found[found_count++] = row->number;
}

/* What the next start finds. */
static void look(void)
{
    journal *j;
    found_count = 0;
    assert_ok(journal_open(path, &j));
    assert_ok(journal_recover(j, on_found, NULL));
    journal_close(j);
}

static bool is_synced(journal *j, uint64_t ticket, uint64_t seconds)
{
    const uint64_t deadline_us = clock_now_us() + seconds * CLOCK_SECOND_US;
    struct pollfd fd = {.fd = journal_fd(j), .events = POLLIN};
    while (journal_synced(j) < ticket) {
        if (clock_now_us() >= deadline_us)
            return false;
        poll(&fd, 1, clock_left_ms(deadline_us, 1000));
    }
    return true;
}

/* Row 1 is found; row 2 is new, and called accepted. */
static cf_err run_journal(void)
{
    cf_err err;
    static const char before[] = HEAD ROW(1) TOKENS(1) "{\"k\":\"row\",\"n\":7,\"cli";
    journal *j = NULL;
    uint64_t number, ticket;
    int32_t ids[] = {1, 2, 3};
    const journal_tokens tokens = {.tokens = ids, .tokens_count = 3, .stopped = true};
    put_file(before, strlen(before));
    found_count = 0;
    refused = false;
    TRY(journal_open(path, &j));
    TRY(journal_recover(j, on_found, NULL));
    err = journal_put_row(j, "c", "{\"id\":\"b\"}", 0, &number, &ticket);
    refused = err != CF_OK;
    if (err != CF_OK)
        goto out;
    assert_true(is_synced(j, ticket, 60));
    TRY(journal_put_tokens(j, number, &tokens));
out:
    journal_close(j);
    return err;
}

static void check_journal(const char *point, unsigned nth)
{
    look();
    if (found_count < 1 || found[0] != 1)
        fail_msg("%s#%u: the open row is lost", point, nth);
    if (refused && found_count > 1)
        fail_msg("%s#%u: a row that was refused is in the journal", point, nth);
}

static void test_start(void **state)
{
    (void)state;
    const scenario s = {.name = "journal", .run = run_journal, .check = check_journal};
    assert_true(sweep(&s, "mem.alloc", CF_ERR_NOMEM, 1) >= 6);
    assert_true(sweep(&s, "io.open", CF_ERR_SYS, 1) == 1);
    assert_true(sweep(&s, "io.read", CF_ERR_SYS, 1) == 1);
    assert_true(sweep(&s, "journal.cut", CF_ERR_SYS, 1) == 1);
}

/* Its thread tries again: what was called accepted is there, once, also where what has failed before could not be cut
 * off at first. */
static void test_writes_that_fail(void **state)
{
    (void)state;
    static const char *const FAULTS[] = {"io.write#1=fail", "journal.sync#1=fail", "io.write#1=fail,io.write#2=fail",
                                         "journal.sync#1=fail,journal.cut#2=fail"};
    for (size_t i = 0; i < sizeof FAULTS / sizeof FAULTS[0]; i++) {
        assert_ok(fault_arm(FAULTS[i]));
        const cf_err err = run_journal();
        assert_ok(fault_arm(NULL));
        assert_ok(err);
        check_journal(FAULTS[i], 0);
        assert_int_equal(found_count, 2);
    }
}

/* ---- the tails of a power cut ---- */

typedef struct tail {
    const char *text;
    size_t bytes;
} tail;
#define TAIL(text)            \
    {                         \
        text, sizeof text - 1 \
    }

static void test_tails(void **state)
{
    (void)state;
    static const tail TAILS[] = {
        TAIL(HEAD ROW(1) "{\"k\":\"row\",\"n\":2,\"cli"),
        TAIL(HEAD ROW(1) "\0\0\0\0\0\0"),
        TAIL(HEAD ROW(1) "\0\0\0\0\0\0\n"),
        TAIL(HEAD ROW(1) "\0\0\0\0\":{\"id\":\"b\"}}\n"),
        TAIL(HEAD ROW(1) "{\"k\":\"row\",\"n\":2,\"c\0\0\0\0\n"),
        TAIL(HEAD ROW(1) "\x8f\x01garbage\n"),
        TAIL(HEAD ROW(1) "\n"),
        TAIL(HEAD ROW(1) ROW(2) END(2) "{\"k\":\"end\"\n"),
    };
    for (size_t i = 0; i < sizeof TAILS / sizeof TAILS[0]; i++) {
        put_file(TAILS[i].text, TAILS[i].bytes);
        for (int start = 0; start < 2; start++) { /* the second one finds nothing to cut */
            look();
            assert_int_equal(found_count, 1);
            assert_int_equal(found[0], 1);
        }
    }
    put_file("{\"k\":\"jou\0\0\0\n", 13); /* of a new journal */
    look();
    assert_int_equal(found_count, 0);
}

/* Not what a crash leaves, or not our file: nothing is cut off. */
static void test_other_lines_are_errors(void **state)
{
    (void)state;
    static const struct {
        tail file;
        const char *part;
    } CASES[] = {
        {TAIL(HEAD "\0\0\0\0\n" ROW(1)), "journal:2 (move the file away to begin without its rows)"},
        {TAIL(HEAD ROW(1) "garbage\n" END(1)), "journal:3 (move the file away"},
        {TAIL(HEAD ROW(1) ROW(1)), "row 1 begins twice"},
        {TAIL(HEAD "{\"k\":\"will\",\"n\":1}\n"), "record \"will\" is not known"},
        {TAIL("somebody's notes\n"), "expected a journal; is this another file?"},
    };
    journal *j;
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        struct stat st;
        put_file(CASES[i].file.text, CASES[i].file.bytes);
        assert_err(CF_ERR_CORRUPT, CASES[i].part, journal_open(path, &j));
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, CASES[i].file.bytes);
    }
}

/* ---- rewriting ---- */

/* Times that the short row is in the file that has the path now: what a power cut would leave. */
static int short_rows_in_file(void)
{
    char *text;
    size_t bytes;
    int count = 0;
    assert_ok(io_read_file(path, 1 << 26, &text, &bytes));
    for (const char *at = text; (at = strstr(at, "{\"id\":\"b\"}")) != NULL; at++)
        count++;
    mem_free(text);
    return count;
}

static void put_rows(journal *j, const char *submit, int count, bool end)
{
    uint64_t number, ticket;
    for (int i = 0; i < count; i++) {
        assert_ok(journal_put_row(j, "c", submit, 0, &number, &ticket));
        if (end)
            journal_put_end(j, number);
    }
    assert_true(is_synced(j, ticket, 60));
}

static void expect_rewritten(void)
{
    const uint64_t deadline_us = clock_now_us() + 60 * CLOCK_SECOND_US;
    struct stat st;
    do {
        assert_int_equal(stat(path, &st), 0);
        assert_true(clock_now_us() < deadline_us);
        poll(NULL, 0, 5);
    } while (st.st_size > 1 << 20);
}

/* Enough for a rewrite; rows that are called accepted around it are in the file, whatever of it fails. */
static void test_rewrites_that_fail(void **state)
{
    (void)state;
    /* The last: the folder cannot be synced, when the new file has the name already, and nothing can be made later. */
    static const char *const FAULTS[] = {"", "io.create#1=fail", "io.fsync#1=fail", "io.rename#1=fail",
                                         "io.fsync#2=fail,io.create#2=fail,io.create#3=fail,io.create#4=fail"};
    static char submit[LONG_ROW_BYTES];
    char temp[400];
    memset(submit, 'x', sizeof submit);
    memcpy(submit, "{\"id\":\"", 7);
    memcpy(submit + sizeof submit - 3, "\"}", 3);
    for (size_t i = 0; i < sizeof FAULTS / sizeof FAULTS[0]; i++) {
        journal *j;
        put_file(HEAD ROW(1), strlen(HEAD ROW(1)));
        assert_ok(fault_arm(FAULTS[i]));
        assert_ok(journal_open(path, &j));
        put_rows(j, submit, LONG_ROWS, true);
        for (int row = 1; row <= 3; row++) {
            put_rows(j, "{\"id\":\"b\"}", 1, false);
            if (short_rows_in_file() != row)
                fail_msg("%s: row %d was called accepted and is not in the file", FAULTS[i], row);
        }
        expect_rewritten();
        journal_close(j);
        assert_ok(fault_arm(NULL));
        look();
        assert_int_equal(found_count, 4);
        snprintf(temp, sizeof temp, "%s.tmp.%ld", path, (long)getpid());
        assert_false(io_exists(temp));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_writes_that_fail),
        cmocka_unit_test(test_tails),
        cmocka_unit_test(test_other_lines_are_errors),
        cmocka_unit_test(test_rewrites_that_fail),
    };
    return cmocka_run_group_tests_name("sweep_journal", tests, NULL, NULL);
}
