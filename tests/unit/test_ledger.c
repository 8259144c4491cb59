/* test_ledger.c - the ledger: lines, torn ends, locks, rewriting, full disks; mostly what goes wrong. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "orchestrator/ledger.h"

#define HASH_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static const shard whole = {0};

static ledger_entry done_entry(const char *id)
{
    static const char *const flags[] = {"frame-limit", "prefix-added"};
    return (ledger_entry){.id = id,
                          .done = true,
                          .file = "audio/a.wav",
                          .bytes = 4844,
                          .samples = 2400,
                          .sha256 = HASH_A,
                          .seed = UINT64_MAX,
                          .attempts = 1,
                          .segments = 2,
                          .tokens = 3,
                          .flags = flags,
                          .flag_count = 2,
                          .llm_ms = 1.5,
                          .queue_ms = 0.25};
}

static ledger_entry failed_entry(const char *id)
{
    return (ledger_entry){
        .id = id, .error_code = CF_ERR_LIMIT, .error_stage = "llm", .error_text = "too long", .attempts = 2};
}

static cf_err append(ledger *l, const ledger_entry *e)
{
    json *line;
    assert_ok(ledger_line(e, &line));
    const cf_err err = ledger_append(l, line);
    json_close(line);
    return err;
}

static void expect_text(const ledger_entry *e, const char *want)
{
    json *line;
    char *text;
    assert_ok(ledger_line(e, &line));
    assert_ok(json_print(line, false, &text));
    assert_string_equal(text, want);
    json_close(line);
    mem_free(text);
}

static void test_lines(void **state)
{
    (void)state;
    ledger_entry e = done_entry("ch1/a");
    expect_text(&e, "{\"id\":\"ch1/a\",\"status\":\"done\",\"file\":\"audio/a.wav\",\"bytes\":4844,\"seconds\":0.1,"
                    "\"samples\":2400,\"sha256\":\"" HASH_A "\",\"seed\":\"18446744073709551615\",\"attempts\":1,"
                    "\"segments\":2,\"tokens\":3,\"flags\":[\"frame-limit\",\"prefix-added\"],"
                    "\"ms\":{\"llm\":1.5,\"flow\":0,\"hift\":0,\"queue\":0.25},\"error\":null}");
    e = failed_entry("b");
    expect_text(&e, "{\"id\":\"b\",\"status\":\"failed\",\"file\":null,\"bytes\":0,\"seconds\":0,\"samples\":0,"
                    "\"sha256\":null,\"seed\":0,\"attempts\":2,\"segments\":0,\"tokens\":0,\"flags\":[],"
                    "\"ms\":{\"llm\":0,\"flow\":0,\"hift\":0,\"queue\":0},"
                    "\"error\":{\"code\":\"limit\",\"stage\":\"llm\",\"text\":\"too long\"}}");
}

/* What the world says may be neither short nor UTF-8. */
static void test_error_texts_are_cleaned(void **state)
{
    (void)state;
    char text[3000];
    json *line;
    const char *kept;
    ledger_entry e = failed_entry("b");
    e.error_text = "bad \xff\xc3 byte\n\xc3\xa9";
    assert_ok(ledger_line(&e, &line));
    assert_ok(json_get_str(json_find(line, "error"), "text", sizeof text, &kept));
    assert_string_equal(kept, "bad ?? byte\n\xc3\xa9");
    json_close(line);
    for (size_t i = 0; i + 2 < sizeof text; i += 2)
        memcpy(text + i, "\xc3\xa9", 3);
    e.error_text = text;
    assert_ok(ledger_line(&e, &line));
    assert_ok(json_get_str(json_find(line, "error"), "text", sizeof text, &kept));
    assert_int_equal(strlen(kept), LEDGER_ERROR_BYTES_MAX - 1); /* no half character */
    json_close(line);
}

/* ---- reading ---- */

typedef struct seen {
    char ids[16][16];
    int count, done;
    cf_err answer; /* of the callback */
} seen;

static cf_err see(void *ctx, const ledger_view *view)
{
    seen *s = ctx;
    assert_true(s->count < 16);
    snprintf(s->ids[s->count++], sizeof s->ids[0], "%s", view->id);
    assert_int_equal(view->line, s->count);
    s->done += view->done;
    if (view->done) {
        assert_string_equal(view->file, "audio/a.wav");
        assert_string_equal(view->sha256, HASH_A);
        assert_int_equal(view->bytes, 4844);
    }
    return s->answer == CF_OK ? CF_OK : err_set(s->answer, "enough");
}

static ledger *open_good(const char *dir)
{
    ledger *l;
    uint64_t torn = 77;
    assert_ok(ledger_open(dir, whole, &l, &torn));
    assert_int_equal(torn, 0);
    return l;
}

static void expect_ids(ledger *l, const char *ids)
{
    seen s = {.count = 0};
    char got[256] = "";
    assert_ok(ledger_each(l, see, &s));
    for (int i = 0; i < s.count; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s ", s.ids[i]);
    assert_string_equal(got, ids);
}

/* Three lines: done, failed, done. */
static void fill(const char *dir)
{
    ledger *l = open_good(dir);
    ledger_entry e = done_entry("a");
    assert_ok(append(l, &e));
    e = failed_entry("b");
    assert_ok(append(l, &e));
    e = done_entry("c");
    assert_ok(append(l, &e));
    assert_ok(ledger_sync(l));
    ledger_close(l);
}

static const char *ledger_file(const char *dir)
{
    static char path[IO_PATH_BYTES];
    assert_ok(ledger_path(dir, whole, path));
    return path;
}

static void test_appends_and_reads(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    fill(dir);
    ledger *l = open_good(dir);
    ledger_entry e = done_entry("d");
    expect_ids(l, "a b c ");
    assert_ok(append(l, &e));
    expect_ids(l, "a b c d "); /* without a sync, and again from the first */
    seen s = {.answer = CF_ERR_CANCELLED};
    assert_err(CF_ERR_CANCELLED, "enough", ledger_each(l, see, &s));
    assert_int_equal(s.count, 1);
    assert_int_equal(s.done, 1);
    int signal_fd = -1;
    assert_ok(process_signal_fd(&signal_fd));
    assert_int_equal(raise(SIGTERM), 0); /* who reads a long one is heard */
    assert_err(CF_ERR_CANCELLED, "ledger.jsonl: interrupted", ledger_each(l, see, &s));
    assert_int_equal(process_read_signal(signal_fd), SIGTERM);
    io_close(&signal_fd);
    ledger_close(l);
}

static void test_names_of_files(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    assert_ok(ledger_path("out", whole, path));
    assert_string_equal(path, "out/ledger.jsonl");
    assert_ok(ledger_path("out", (shard){0, 1}, path));
    assert_string_equal(path, "out/ledger.0-of-1.jsonl");
    assert_ok(ledger_path("out", (shard){3, 16}, path));
    assert_string_equal(path, "out/ledger.3-of-16.jsonl");
    const char *dir = test_temp_dir();
    ledger *l, *other;
    uint64_t torn;
    assert_ok(ledger_open(dir, (shard){0, 2}, &l, &torn)); /* shards share the folder */
    assert_ok(ledger_open(dir, (shard){1, 2}, &other, &torn));
    ledger_close(l);
    ledger_close(other);
    assert_err(CF_ERR_SYS, "/none/ledger.jsonl: open", ledger_open("/none", whole, &l, &torn));
}

static void test_second_batch_is_refused(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    ledger *other;
    uint64_t torn;
    fill(dir);
    ledger *l = open_good(dir);
    assert_err(CF_ERR_BUSY, "ledger.jsonl: another batch is writing it", ledger_open(dir, whole, &other, &torn));
    ledger_close(l);
    l = open_good(dir);
    ledger_close(l);
}

/* Hundreds of files: io_write_file would wait for the disk each time. */
static void write_unsynced(const char *path, const char *text, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_ok(io_write_all(fd, text, bytes));
    io_close(&fd);
}

/* Every place where a crash may have cut: what is whole stays, the rest goes, and the next line follows at once. */
static void test_repairs_every_torn_end(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    char *text;
    size_t bytes;
    fill(dir);
    assert_ok(io_read_file(ledger_file(dir), 1 << 20, &text, &bytes));
    size_t line_end = 0;
    int lines = 0;
    for (size_t cut = 0; cut <= bytes; cut++) {
        ledger *l;
        uint64_t torn;
        if (cut > 0 && text[cut - 1] == '\n') {
            lines++;
            line_end = cut;
        }
        write_unsynced(ledger_file(dir), text, cut);
        assert_ok(ledger_open(dir, whole, &l, &torn));
        assert_int_equal(torn, cut == line_end ? 0 : lines + 1);
        const ledger_entry e = failed_entry("z");
        assert_ok(append(l, &e));
        expect_ids(l, (const char *const[]){"z ", "a z ", "a b z ", "a b c z "}[lines]);
        ledger_close(l);
    }
    assert_int_equal(lines, 3);
    mem_free(text);
}

/* Lengths reach the disk before bytes: the end of the file may be zero. */
static void test_repairs_zeroed_ends(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    char *text;
    size_t bytes;
    fill(dir);
    assert_ok(io_read_file(ledger_file(dir), 1 << 20, &text, &bytes));
    for (size_t zeros = 1; zeros < 300; zeros += 7) {
        ledger *l;
        uint64_t torn;
        memset(text + bytes - zeros, 0, zeros);
        write_unsynced(ledger_file(dir), text, bytes);
        assert_ok(ledger_open(dir, whole, &l, &torn));
        assert_int_equal(torn, 3);
        expect_ids(l, "a b ");
        ledger_close(l);
    }
    mem_free(text);
}

/* A last line that is whole but says nothing. */
static void test_repairs_a_broken_last_line(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    ledger *l;
    uint64_t torn;
    static const char text[] = "{\"id\":\"a\",\"status\":\"failed\",\"bytes\":0}\n{\"id\":\"b\",\"status\":\"fai\n";
    assert_ok(io_write_file(ledger_file(dir), text, sizeof text - 1));
    assert_ok(ledger_open(dir, whole, &l, &torn));
    assert_int_equal(torn, 2);
    expect_ids(l, "a ");
    ledger_close(l);
}

static void refuse_file(cf_err code, const char *part, const char *text)
{
    const char *dir = test_temp_dir();
    char *after;
    size_t bytes;
    ledger *l = NULL;
    uint64_t torn;
    assert_ok(io_write_file(ledger_file(dir), text, strlen(text)));
    assert_err(code, part, ledger_open(dir, whole, &l, &torn));
    assert_null(l);
    assert_ok(io_read_file(ledger_file(dir), 1 << 20, &after, &bytes));
    assert_string_equal(after, text); /* what is not ours is left alone */
    mem_free(after);
}

static void test_refuses_other_files(void **state)
{
    (void)state;
    static char longer[LEDGER_LINE_BYTES_MAX + 2];
    refuse_file(CF_ERR_CORRUPT, "ledger.jsonl:1: the last line is none of a ledger", "{\"a\":1}\n");
    refuse_file(CF_ERR_CORRUPT, "ledger.jsonl:2: the last line is none of a ledger", "\nletters");
    memset(longer, 'x', sizeof longer - 1);
    refuse_file(CF_ERR_CORRUPT, "ledger.jsonl:1: line longer than 65536 bytes", longer);
    const char *dir = test_temp_dir();
    ledger *l;
    uint64_t torn;
    assert_int_equal(mkdir(ledger_file(dir), 0700), 0);
    assert_err(CF_ERR_SYS, "ledger.jsonl: open", ledger_open(dir, whole, &l, &torn));
    rmdir(ledger_file(dir));
}

static cf_err drop_none(void *ctx, const ledger_view *view, bool *ret_drop)
{
    (void)ctx;
    (void)view;
    *ret_drop = false;
    return CF_OK;
}

static void refuse_middle(const char *part, const char *line)
{
    const char *dir = test_temp_dir();
    char text[1024];
    seen s = {.count = 0};
    uint64_t dropped;
    const int bytes =
        snprintf(text, sizeof text, "%s\n%s\n%s\n", "{\"id\":\"a\",\"status\":\"failed\",\"bytes\":0,\"file\":null}",
                 line, "{\"id\":\"c\",\"status\":\"failed\",\"bytes\":0}");
    assert_ok(io_write_file(ledger_file(dir), text, (size_t)bytes));
    ledger *l = open_good(dir);
    assert_err(CF_ERR_CORRUPT, "ledger.jsonl:2: ", ledger_each(l, see, &s));
    assert_non_null(strstr(err_text(), part));
    assert_int_equal(s.count, 1);
    assert_err(CF_ERR_CORRUPT, "ledger.jsonl:2: ", ledger_drop(l, drop_none, NULL, &dropped));
    ledger_close(l);
}

static cf_err drop_failed(void *ctx, const ledger_view *view, bool *ret_drop)
{
    (void)ctx;
    *ret_drop = !view->done;
    return CF_OK;
}

/* Drops each line before it, and cannot tell whether to drop "c". */
static cf_err drop_until_c(void *ctx, const ledger_view *view, bool *ret_drop)
{
    (void)ctx;
    *ret_drop = true;
    return strcmp(view->id, "c") == 0 ? err_set(CF_ERR_NOMEM, "no memory to look at c") : CF_OK;
}

static void write_other(const char *dir, const char *name, const char *text)
{
    char path[IO_PATH_BYTES];
    assert_ok(io_join(path, sizeof path, dir, name));
    assert_ok(io_write_file(path, text, strlen(text)));
}

static void test_other_ledgers_are_read(void **state)
{
    (void)state;
    static const char line_of_b[] = "{\"id\":\"b\",\"status\":\"failed\",\"bytes\":0}\n{\"id\":\"c\",\"sta";
    const char *dir = test_temp_dir();
    seen s = {.count = 0};
    write_other(dir, "ledger.jsonl", "{\"id\":\"a\",\"status\":\"failed\",\"bytes\":0}\n");
    write_other(dir, "ledger.0-of-2.jsonl", line_of_b); /* another batch has not written its second line to the end */
    write_other(dir, "ledger.0-of-2.jsonl.new", "no ledger");
    write_other(dir, "ledger.0-of-2.jsonl~", "no ledger");
    ledger *l = open_good(dir);
    assert_ok(ledger_each_other(l, see, &s));
    assert_int_equal(s.count, 1);
    char path[IO_PATH_BYTES], *after;
    size_t bytes;
    assert_ok(io_join(path, sizeof path, dir, "ledger.0-of-2.jsonl"));
    assert_ok(io_read_file(path, 4096, &after, &bytes));
    assert_string_equal(after, line_of_b);
    mem_free(after);
    write_other(dir, "ledger.1-of-2.jsonl", "{\"id\":7}\n{\"id\":\"c\",\"status\":\"failed\",\"bytes\":0}\n");
    assert_err(CF_ERR_CORRUPT, "ledger.1-of-2.jsonl:1: ", ledger_each_other(l, see, &s));
    assert_non_null(strstr(err_text(), "; remove the line, and its row is done again"));
    ledger_close(l);
}

static void test_corrupt_lines_are_named(void **state)
{
    (void)state;
    refuse_middle("syntax error", "{\"id\":\"b\",");
    refuse_middle("syntax error", "");
    refuse_middle("expected an object", "[]");
    refuse_middle("key \"id\" is missing", "{\"status\":\"failed\",\"bytes\":0}");
    refuse_middle("expected done or failed, found \"odd\"", "{\"id\":\"b\",\"status\":\"odd\",\"bytes\":0}");
    refuse_middle("key \"bytes\" is missing", "{\"id\":\"b\",\"status\":\"failed\"}");
    refuse_middle("file: expected a string",
                  "{\"id\":\"b\",\"status\":\"done\",\"file\":null,\"bytes\":1,\"sha256\":\"" HASH_A "\"}");
    refuse_middle("key \"sha256\" is missing", "{\"id\":\"b\",\"status\":\"done\",\"file\":\"f\",\"bytes\":1}");
}

/* ---- rewriting ---- */

static ino_t inode_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_ino;
}

static void test_drops_lines(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    ledger *other;
    uint64_t dropped, torn;
    char left[IO_PATH_BYTES];
    fill(dir);
    ledger *l = open_good(dir);
    const ino_t before = inode_of(ledger_file(dir));
    assert_ok(ledger_drop(l, drop_none, NULL, &dropped));
    assert_int_equal(dropped, 0);
    assert_true(inode_of(ledger_file(dir)) == before); /* nothing to write */
    assert_ok(ledger_drop(l, drop_failed, NULL, &dropped));
    assert_int_equal(dropped, 1);
    expect_ids(l, "a c ");
    /* the lock has moved to the new file, and so has the end */
    assert_err(CF_ERR_BUSY, "another batch is writing it", ledger_open(dir, whole, &other, &torn));
    const ledger_entry e = done_entry("d");
    assert_ok(append(l, &e));
    assert_ok(ledger_sync(l));
    ledger_close(l);
    l = open_good(dir);
    expect_ids(l, "a c d ");
    ledger_close(l);
    assert_ok(io_join(left, sizeof left, dir, "ledger.jsonl.new"));
    assert_false(io_exists(left));
}

static void test_failed_rewrite_changes_nothing(void **state)
{
    (void)state;
    static const char *const faults[] = {"io.write#1=fail",  "io.write#2=fail",  "ledger.sync#1=fail",
                                         "line.read#1=fail", "mem.alloc#1=fail", "mem.alloc#2=fail"};
    const char *dir = test_temp_dir();
    char left[IO_PATH_BYTES];
    uint64_t dropped = 77;
    fill(dir);
    ledger *l = open_good(dir);
    assert_ok(io_join(left, sizeof left, dir, "ledger.jsonl.new"));
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        assert_ok(fault_arm(faults[i]));
        const cf_err err = ledger_drop(l, drop_failed, NULL, &dropped);
        assert_ok(fault_arm(NULL));
        assert_true(err == CF_ERR_SYS || err == CF_ERR_STORAGE || err == CF_ERR_NOMEM);
        assert_int_equal(dropped, 77);
        assert_false(io_exists(left));
        expect_ids(l, "a b c ");
    }
    assert_err(CF_ERR_NOMEM, "look at c", ledger_drop(l, drop_until_c, NULL, &dropped));
    assert_false(io_exists(left));
    expect_ids(l, "a b c ");
    const ledger_entry e = done_entry("d");
    assert_ok(append(l, &e));
    assert_ok(ledger_drop(l, drop_failed, NULL, &dropped));
    expect_ids(l, "a c d ");
    ledger_close(l);
}

/* ---- what the disk does ---- */

/* A file that may not grow beyond some bytes lets half a line through, as a disk does that becomes full. */
static void test_half_a_line_is_taken_back(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    struct stat before, after;
    struct rlimit old, narrow;
    fill(dir);
    ledger *l = open_good(dir);
    const ledger_entry e = done_entry("d");
    assert_int_equal(stat(ledger_file(dir), &before), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    narrow = old;
    narrow.rlim_cur = (rlim_t)before.st_size + 40;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &narrow), 0);
    const cf_err err = append(l, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_err(CF_ERR_SYS, "ledger.jsonl: write: File too large", err);
    assert_int_equal(stat(ledger_file(dir), &after), 0);
    assert_int_equal(after.st_size, before.st_size);
    assert_ok(append(l, &e));
    expect_ids(l, "a b c d ");
    ledger_close(l);
}

static void test_full_disk_leaves_no_half_line(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    struct stat before, after;
    fill(dir);
    ledger *l = open_good(dir);
    const ledger_entry e = done_entry("d");
    assert_int_equal(stat(ledger_file(dir), &before), 0);
    assert_ok(fault_arm("io.write#1=fail")); /* ENOSPC */
    assert_err(CF_ERR_STORAGE, "ledger.jsonl: write: No space left on device", append(l, &e));
    assert_ok(fault_arm(NULL));
    assert_int_equal(stat(ledger_file(dir), &after), 0);
    assert_int_equal(after.st_size, before.st_size);
    assert_ok(append(l, &e)); /* room again */
    expect_ids(l, "a b c d ");
    ledger_close(l);
}

static void test_long_lines_are_refused(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    static char id[LEDGER_LINE_BYTES_MAX];
    memset(id, 'x', sizeof id - 1);
    ledger *l = open_good(dir);
    const ledger_entry e = done_entry(id);
    assert_err(CF_ERR_LIMIT, "at most 65536", append(l, &e));
    expect_ids(l, "");
    ledger_close(l);
}

static void test_failed_sync_is_final(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    seen s = {.count = 0};
    uint64_t dropped;
    fill(dir);
    ledger *l = open_good(dir);
    const ledger_entry e = done_entry("d");
    assert_ok(append(l, &e));
    assert_ok(fault_arm("ledger.sync#1=fail"));
    assert_err(CF_ERR_SYS, "ledger.jsonl: fdatasync", ledger_sync(l));
    assert_ok(fault_arm(NULL));
    assert_err(CF_ERR_SYS, "has failed before; start again", ledger_sync(l));
    assert_err(CF_ERR_SYS, "has failed before", append(l, &e));
    assert_err(CF_ERR_SYS, "has failed before", ledger_each(l, see, &s));
    assert_err(CF_ERR_SYS, "has failed before", ledger_drop(l, drop_failed, NULL, &dropped));
    ledger_close(l);
    l = open_good(dir);
    ledger_close(l);
}

static void test_notices_that_it_was_deleted(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    fill(dir);
    ledger *l = open_good(dir);
    unlink(ledger_file(dir));
    assert_err(CF_ERR_GONE, "was deleted or replaced", ledger_sync(l));
    ledger_close(l);
    fill(dir);
    l = open_good(dir);
    assert_ok(io_write_file(ledger_file(dir), "", 0));
    assert_err(CF_ERR_GONE, "was deleted or replaced", ledger_sync(l));
    ledger_close(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_error_texts_are_cleaned),
        cmocka_unit_test(test_appends_and_reads),
        cmocka_unit_test(test_names_of_files),
        cmocka_unit_test(test_second_batch_is_refused),
        cmocka_unit_test(test_repairs_every_torn_end),
        cmocka_unit_test(test_repairs_zeroed_ends),
        cmocka_unit_test(test_repairs_a_broken_last_line),
        cmocka_unit_test(test_refuses_other_files),
        cmocka_unit_test(test_corrupt_lines_are_named),
        cmocka_unit_test(test_other_ledgers_are_read),
        cmocka_unit_test(test_drops_lines),
        cmocka_unit_test(test_failed_rewrite_changes_nothing),
        cmocka_unit_test(test_half_a_line_is_taken_back),
        cmocka_unit_test(test_full_disk_leaves_no_half_line),
        cmocka_unit_test(test_long_lines_are_refused),
        cmocka_unit_test(test_failed_sync_is_final),
        cmocka_unit_test(test_notices_that_it_was_deleted),
    };
    return cmocka_run_group_tests_name("ledger", tests, NULL, NULL);
}
