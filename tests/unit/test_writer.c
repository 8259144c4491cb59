/*
 * test_writer.c - the orchestrator's files: what one folder refuses waits by itself, everything else is written
 * meanwhile, and whoever put a row still has it when the writer ends before it. /sys stands in for full storage: a
 * folder where nobody can make a file.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "orchestrator/writer.h"

#define MANY    100 /* more than the threads take at once */
#define SAMPLES 480

static char full[300], room[300];
static session *rows[MANY + 1];

static int begin(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    snprintf(full, sizeof full, "%s/full", dir);
    snprintf(room, sizeof room, "%s/room", dir);
    return symlink("/sys", full);
}

/* Somebody makes room. */
static void make_room(void)
{
    assert_int_equal(unlink(full), 0);
    assert_int_equal(mkdir(full, 0755), 0);
}

static writer *start(int32_t wait_s)
{
    static config cfg;
    writer *w;
    config_defaults(&cfg);
    cfg.guard = false;
    cfg.storage_wait_s = wait_s;
    assert_ok(writer_open(&cfg, &w));
    return w;
}

/* A finished row. */
static session *open_row(const char *folder, int number)
{
    session *s;
    text_plan none = {0};
    int32_t *tokens;
    assert_ok(session_open(&none, &s));
    assert_ok(mem_alloc(1, sizeof *tokens, &tokens));
    assert_ok(session_set_source(s, tokens, 1));
    assert_ok(mem_alloc(SAMPLES, sizeof(float), &s->segments[0].samples));
    s->segments[0].samples_count = SAMPLES;
    snprintf(s->path, sizeof s->path, "%s/%d.wav", folder, number);
    snprintf(s->format, sizeof s->format, "wav");
    return s;
}

static session *put_row(writer *w, const char *folder, int number)
{
    session *s = open_row(folder, number);
    writer_put(w, s);
    return s;
}

/* The next that is done; NULL: none within so many seconds. */
static session *take(writer *w, uint64_t seconds)
{
    const uint64_t deadline_us = clock_now_us() + seconds * CLOCK_SECOND_US;
    for (;;) {
        session *s = writer_take(w);
        struct pollfd fd = {.fd = writer_fd(w), .events = POLLIN};
        if (s || clock_now_us() >= deadline_us)
            return s;
        poll(&fd, 1, clock_left_ms(deadline_us, 1000));
    }
}

static void close_rows(void)
{
    for (int i = 0; i <= MANY; i++) {
        session_close(rows[i]);
        rows[i] = NULL;
    }
}

static void test_full_folder_holds_up_nobody_else(void **state)
{
    (void)state;
    writer *w = start(600);
    for (int i = 0; i < MANY; i++)
        rows[i] = put_row(w, full, i);
    assert_null(take(w, 1)); /* all of them have been tried */
    rows[MANY] = put_row(w, room, 0);
    assert_ptr_equal(take(w, 20), rows[MANY]);
    assert_int_equal(rows[MANY]->write_err, CF_OK);
    assert_int_equal(access(rows[MANY]->path, R_OK), 0);
    assert_int_equal(writer_waiting(w), MANY);
    make_room();
    for (int i = 0; i < MANY; i++) {
        const session *s = take(w, 30);
        assert_non_null(s);
        assert_int_equal(s->write_err, CF_OK);
        assert_int_equal(access(s->path, R_OK), 0);
    }
    assert_int_equal(writer_waiting(w), 0);
    writer_close(w);
    close_rows();
}

/* Each from its own first refusal on, and not before its time. */
static void test_refused_file_fails_in_time(void **state)
{
    (void)state;
    writer *w = start(2);
    const uint64_t began_us = clock_now_us();
    rows[0] = put_row(w, full, 0);
    assert_null(take(w, 1));
    rows[1] = put_row(w, full, 1);
    assert_ptr_equal(take(w, 20), rows[0]);
    assert_true(clock_now_us() - began_us >= 2 * CLOCK_SECOND_US);
    assert_int_equal(rows[0]->write_err, CF_ERR_STORAGE);
    assert_ptr_equal(take(w, 20), rows[1]);
    assert_true(clock_now_us() - began_us >= 3 * CLOCK_SECOND_US);
    assert_int_equal(rows[1]->write_err, CF_ERR_STORAGE);
    writer_close(w);
    close_rows();
}

static void test_impatient_row_is_told_at_once(void **state)
{
    (void)state;
    writer *w = start(600);
    rows[0] = open_row(full, 0);
    rows[0]->impatient = true;
    writer_put(w, rows[0]);
    assert_ptr_equal(take(w, 20), rows[0]);
    assert_int_equal(rows[0]->write_err, CF_ERR_STORAGE);
    writer_close(w);
    close_rows();
}

static void test_end_with_rows_leaves_them_to_their_owner(void **state)
{
    (void)state;
    writer *w = start(600);
    for (int i = 0; i < MANY; i++)
        rows[i] = put_row(w, i % 2 ? full : room, i);
    struct pollfd fd = {.fd = writer_fd(w), .events = POLLIN};
    assert_int_equal(poll(&fd, 1, 20000), 1); /* some are done, some are stuck, some may be new */
    writer_close(w);
    close_rows();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_full_folder_holds_up_nobody_else, begin),
        cmocka_unit_test_setup(test_refused_file_fails_in_time, begin),
        cmocka_unit_test_setup(test_impatient_row_is_told_at_once, begin),
        cmocka_unit_test_setup(test_end_with_rows_leaves_them_to_their_owner, begin),
    };
    return cmocka_run_group_tests_name("writer", tests, NULL, NULL);
}
