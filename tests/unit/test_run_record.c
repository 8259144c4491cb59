/* test_run_record.c - run.json: written once, compared, refused, mixed when told to. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "orchestrator/run_record.h"

#define HASH_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HASH_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

/* A start that cases then change. */
typedef struct draft {
    run_model_file files[2];
    const char *command[3];
    json *config; /* owned */
    run_start start;
} draft;

static draft *fresh(void)
{
    static draft d; /* its configuration is still reachable at exit */
    json_close(d.config);
    d = (draft){.files = {{"llm", "llm.pt", HASH_A, "f32"}, {"flow", "flow.pt", HASH_B, "f32"}},
                .command = {"cosyfarm", "batch", "rows.jsonl"},
                .config = json_object()};
    json_put_u64(d.config, "threads", 2);
    d.start = (run_start){.version = "0.1.0",
                          .model_dir = "models/a",
                          .files = d.files,
                          .file_count = 2,
                          .blank_en = HASH_A,
                          .config = d.config,
                          .command = d.command,
                          .command_count = 3,
                          .started_unix_s = 1767225600};
    return &d;
}

static char *read_text(const char *dir)
{
    char path[IO_PATH_BYTES], *text;
    size_t bytes;
    assert_ok(io_join(path, sizeof path, dir, "run.json"));
    assert_ok(io_read_file(path, 1 << 20, &text, &bytes));
    return text;
}

static json *read_json(const char *dir)
{
    json *root;
    char *text = read_text(dir);
    assert_ok(json_parse(text, strlen(text), 16, &root));
    mem_free(text);
    return root;
}

static void open_close(const char *dir, const run_start *start, bool force_mix)
{
    run_record *r;
    assert_ok(run_record_open(dir, start, force_mix, &r));
    run_record_close(r);
}

static void test_first_start_writes(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    open_close(dir, &fresh()->start, false);
    json *root = read_json(dir);
    char *text;
    assert_ok(json_print(root, false, &text));
    assert_string_equal(text, "{\"version\":\"0.1.0\",\"model\":{\"dir\":\"models/a\",\"files\":["
                              "{\"stage\":\"llm\",\"file\":\"llm.pt\",\"sha256\":\"" HASH_A "\",\"precision\":\"f32\"},"
                              "{\"stage\":\"flow\",\"file\":\"flow.pt\",\"sha256\":\"" HASH_B
                              "\",\"precision\":\"f32\"}],\"blank_en\":\"" HASH_A
                              "\"},\"voices\":{},\"config\":{\"threads\":2},"
                              "\"command\":[\"cosyfarm\",\"batch\",\"rows.jsonl\"],"
                              "\"started\":\"2026-01-01T00:00:00Z\"}");
    mem_free(text);
    json_close(root);
}

static void test_later_starts_leave_it(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    draft *d = fresh();
    open_close(dir, &d->start, false);
    char *before = read_text(dir);
    d->start.version = "0.2.0"; /* none of these changes what a file sounds like */
    d->start.model_dir = "elsewhere";
    d->start.started_unix_s++;
    d->start.command_count = 1;
    d->files[0].file = "copy.pt";
    open_close(dir, &d->start, false);
    open_close(dir, &d->start, true); /* may be forced, need not be */
    char *after = read_text(dir);
    assert_string_equal(after, before);
    mem_free(before);
    mem_free(after);
}

static void refuse(const char *dir, const char *part, const run_start *start)
{
    run_record *r = NULL;
    char *before = read_text(dir);
    assert_err(CF_ERR_MISMATCH, part, run_record_open(dir, start, false, &r));
    assert_null(r);
    assert_non_null(strstr(err_text(), "run.json: "));
    assert_non_null(strstr(err_text(), "--force-mix"));
    char *after = read_text(dir);
    assert_string_equal(after, before);
    mem_free(before);
    mem_free(after);
}

static void test_refuses_other_models(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    draft *d = fresh();
    open_close(dir, &d->start, false);
    d->files[1].sha256 = HASH_A;
    d->files[1].file = "flow.safetensors";
    refuse(dir,
           "model file of flow: expected flow.pt with sha256 bbbbbbbbbbbb, found flow.safetensors with aaaaaaaaaaaa",
           &d->start);
    d = fresh();
    d->files[0].precision = "bf16";
    refuse(dir, "precision of llm: expected f32, found bf16", &d->start);
    d = fresh();
    d->files[1].stage = "hift";
    refuse(dir, "stage hift: not in the record", &d->start);
    d = fresh();
    d->start.file_count = 1;
    refuse(dir, "expected 2 model files, found 1", &d->start);
}

static void test_voices_are_added_and_compared(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    run_record *r, *shard;
    const char *hash;
    assert_ok(run_record_open(dir, &fresh()->start, false, &r));
    assert_ok(run_record_open(dir, &fresh()->start, false, &shard));
    assert_ok(run_record_use_voice(r, "vale", HASH_A));
    assert_ok(run_record_use_voice(r, "vale", HASH_A));
    assert_ok(run_record_use_voice(shard, "echo", HASH_B)); /* another process: knows of vale from the file alone */
    assert_ok(run_record_use_voice(r, "\xe4\xb8\xad", HASH_B));
    json *root = read_json(dir);
    const json *voices = json_find(root, "voices");
    assert_int_equal(json_count(voices), 3);
    assert_ok(json_get_str(voices, "echo", 64, &hash));
    assert_string_equal(hash, HASH_B);
    assert_ok(json_get_str(voices, "vale", 64, &hash));
    assert_string_equal(hash, HASH_A);
    assert_null(json_find(root, "mixed"));
    json_close(root);
    assert_err(CF_ERR_MISMATCH, "run.json: voice vale: expected content aaaaaaaaaaaa, found bbbbbbbbbbbb",
               run_record_use_voice(shard, "vale", HASH_B));
    assert_err(CF_ERR_MISMATCH, "voice echo", run_record_use_voice(r, "echo", HASH_A));
    run_record_close(r);
    run_record_close(shard);
    assert_ok(run_record_open(dir, &fresh()->start, false, &r)); /* a later start remembers */
    assert_err(CF_ERR_MISMATCH, "voice vale", run_record_use_voice(r, "vale", HASH_B));
    run_record_close(r);
}

/* A start that makes nothing: the same refusals, and the folder as it was. */
static void test_a_look_compares_and_writes_nothing(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    draft *d = fresh();
    run_record *r, *look = NULL;
    assert_ok(run_record_look(dir, &look));
    assert_null(look);
    assert_ok(run_record_open(dir, &d->start, false, &r));
    assert_ok(run_record_use_voice(r, "vale", HASH_A));
    run_record_close(r);
    char *before = read_text(dir);
    assert_ok(run_record_look(dir, &look));
    assert_int_equal(json_count(run_record_voices(look)), 1);
    assert_ok(run_record_compare(look, d->files, 2, HASH_A));
    assert_ok(run_record_use_voice(look, "vale", HASH_A));
    assert_err(CF_ERR_MISMATCH, "run.json: voice vale", run_record_use_voice(look, "vale", HASH_B));
    assert_ok(run_record_use_voice(look, "echo", HASH_B));
    assert_ok(run_record_use_default_voice(look, "echo"));
    d->files[1].sha256 = HASH_A;
    assert_err(CF_ERR_MISMATCH,
               "run.json: model file of flow: expected flow.pt with sha256 bbbbbbbbbbbb, found flow.pt",
               run_record_compare(look, d->files, 2, HASH_A));
    run_record_close(look);
    char *after = read_text(dir);
    assert_string_equal(after, before);
    mem_free(before);
    mem_free(after);
}

static const json *mixed_at(const json *root, size_t idx)
{
    const json *v = json_first(json_find(root, "mixed"));
    while (v && idx-- > 0)
        v = json_next(v);
    assert_non_null(v);
    return v;
}

static void test_forced_mixing_is_recorded(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    run_record *r;
    const char *text;
    draft *d = fresh();
    assert_ok(run_record_open(dir, &d->start, false, &r));
    assert_ok(run_record_use_voice(r, "vale", HASH_A));
    run_record_close(r);
    d->files[0].precision = "bf16";
    d->start.started_unix_s += 86400;
    assert_ok(run_record_open(dir, &d->start, true, &r));
    assert_ok(run_record_use_voice(r, "vale", HASH_A)); /* the same content is no mixture */
    json *root = read_json(dir);
    assert_int_equal(json_count(json_find(root, "mixed")), 1);
    assert_ok(json_get_str(root, "started", 64, &text));
    assert_string_equal(text, "2026-01-02T00:00:00Z");
    assert_ok(json_get_str(mixed_at(root, 0), "started", 64, &text));
    assert_string_equal(text, "2026-01-01T00:00:00Z");
    json_close(root);
    assert_ok(run_record_use_voice(r, "vale", HASH_B));
    run_record_close(r);
    root = read_json(dir);
    assert_int_equal(json_count(json_find(root, "mixed")), 2);
    assert_null(json_find(mixed_at(root, 1), "mixed")); /* a flat list */
    assert_ok(json_get_str(json_find(mixed_at(root, 1), "voices"), "vale", 64, &text));
    assert_string_equal(text, HASH_A);
    assert_ok(json_get_str(json_find(root, "voices"), "vale", 64, &text));
    assert_string_equal(text, HASH_B);
    json_close(root);
    refuse(dir, "precision of llm: expected bf16, found f32", &fresh()->start);
    d->files[0].precision = "bf16";
    open_close(dir, &d->start, false);
}

/* Other ids for the same text; a record of a version that did not say is taken as it is. */
static void test_another_tokenizer_is_another_model(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    const char *dir = test_temp_dir();
    draft *d = fresh();
    open_close(dir, &d->start, false);
    d->start.blank_en = HASH_B;
    refuse(dir, "tokenizer and configuration in CosyVoice-BlankEN: expected sha256 aaaaaaaaaaaa, found bbbbbbbbbbbb",
           &d->start);
    char *text = read_text(dir), *member = strstr(text, ",\n\t\t\"blank_en\""), *end;
    assert_non_null(member);
    end = strchr(member + 2, '\n');
    memmove(member, end, strlen(end) + 1);
    assert_ok(io_join(path, sizeof path, dir, "run.json"));
    assert_ok(io_write_file(path, text, strlen(text)));
    mem_free(text);
    open_close(dir, &d->start, false);
}

/* The voice of rows that name none is a setting of the set, told once there was such a row. */
static void test_default_voice_stays(void **state)
{
    (void)state;
    const char *dir = test_temp_dir(), *text;
    run_record *r, *shard;
    assert_ok(run_record_open(dir, &fresh()->start, false, &r));
    assert_ok(run_record_open(dir, &fresh()->start, false, &shard));
    assert_ok(run_record_use_default_voice(r, "echo"));
    assert_ok(run_record_use_voice(r, "echo", HASH_A));
    assert_ok(run_record_use_default_voice(r, "echo"));
    assert_err(CF_ERR_MISMATCH, "run.json: voice of rows that name none: expected echo, found vale; give -v echo,",
               run_record_use_default_voice(shard, "vale"));
    run_record_close(r);
    run_record_close(shard);
    assert_ok(run_record_look(dir, &r));
    assert_err(CF_ERR_MISMATCH, "expected echo, found vale", run_record_use_default_voice(r, "vale"));
    run_record_close(r);
    assert_ok(run_record_open(dir, &fresh()->start, true, &r));
    assert_ok(run_record_use_default_voice(r, "vale"));
    run_record_close(r);
    json *root = read_json(dir);
    assert_ok(json_get_str(root, "default_voice", 64, &text));
    assert_string_equal(text, "vale");
    assert_ok(json_get_str(mixed_at(root, 0), "default_voice", 64, &text));
    assert_string_equal(text, "echo");
    assert_int_equal(json_count(json_find(root, "voices")), 1);
    json_close(root);
}

static void refuse_text(cf_err code, const char *part, const char *text)
{
    const char *dir = test_temp_dir();
    char path[IO_PATH_BYTES];
    run_record *r = NULL;
    assert_ok(io_join(path, sizeof path, dir, "run.json"));
    assert_ok(io_write_file(path, text, strlen(text)));
    for (int forced = 0; forced < 2; forced++) { /* what is no record is never written over */
        assert_err(code, part, run_record_open(dir, &fresh()->start, forced, &r));
        assert_non_null(strstr(err_text(), "run.json: "));
    }
    assert_null(r);
}

static void test_refuses_what_is_no_record(void **state)
{
    (void)state;
#define HEAD "{\"version\":\"1\",\"started\":\"s\","
#define FILE_OF(hash)                                                                                                  \
    "\"model\":{\"dir\":\"d\",\"files\":[{\"stage\":\"llm\",\"file\":\"f\",\"sha256\":" hash ",\"precision\":\"f32\"}" \
    "]}"
#define GOOD_FILE FILE_OF("\"" HASH_A "\"")
    refuse_text(CF_ERR_CORRUPT, "syntax error", "");
    refuse_text(CF_ERR_CORRUPT, "syntax error", HEAD);
    refuse_text(CF_ERR_CORRUPT, "expected an object", "[]");
    refuse_text(CF_ERR_CORRUPT, "key \"version\" is missing", "{}");
    refuse_text(CF_ERR_CORRUPT, "key \"modle\" is not known; did you mean \"model\"?", "{\"modle\":1}");
    refuse_text(CF_ERR_CORRUPT, "key \"model\" is missing", "{\"version\":\"1\",\"started\":\"s\"}");
    refuse_text(CF_ERR_CORRUPT, "model: files: expected an array", HEAD "\"model\":{\"dir\":\"d\",\"files\":1}}");
    refuse_text(CF_ERR_CORRUPT, "sha256: expected 64 hexadecimal digits, found \"abc\"", HEAD FILE_OF("\"abc\"") "}");
    refuse_text(CF_ERR_CORRUPT, "sha256: expected a string", HEAD FILE_OF("7") "}");
    refuse_text(CF_ERR_CORRUPT, "voices: expected an object", HEAD GOOD_FILE "}");
    refuse_text(CF_ERR_CORRUPT, "vale: expected 64", HEAD GOOD_FILE ",\"voices\":{\"vale\":\"x\"}}");
    refuse_text(CF_ERR_CORRUPT, "config: expected an object", HEAD GOOD_FILE ",\"voices\":{},\"config\":[]}");
    refuse_text(CF_ERR_CORRUPT, "command: expected an array", HEAD GOOD_FILE ",\"voices\":{},\"config\":{}}");
    refuse_text(CF_ERR_CORRUPT, "mixed: expected an array",
                HEAD GOOD_FILE ",\"voices\":{},\"config\":{},\"command\":[],\"mixed\":{}}");
#undef HEAD
}

static void test_failed_writes_leave_the_former(void **state)
{
    (void)state;
    const char *dir = test_temp_dir();
    run_record *r = NULL;
    assert_ok(fault_arm("io.write#1=fail"));
    assert_err(CF_ERR_STORAGE, "run.json: write: No space", run_record_open(dir, &fresh()->start, false, &r));
    assert_ok(fault_arm(NULL));
    assert_ok(run_record_open(dir, &fresh()->start, false, &r));
    char *before = read_text(dir);
    assert_ok(fault_arm("io.write#1=fail"));
    assert_err(CF_ERR_STORAGE, "run.json: write: No space", run_record_use_voice(r, "vale", HASH_A));
    assert_ok(fault_arm(NULL));
    char *after = read_text(dir);
    assert_string_equal(after, before);
    mem_free(before);
    mem_free(after);
    assert_ok(run_record_use_voice(r, "vale", HASH_A));
    char path[IO_PATH_BYTES];
    assert_ok(io_join(path, sizeof path, dir, "run.json"));
    unlink(path);
    assert_err(CF_ERR_GONE, "run.json: was deleted", run_record_use_voice(r, "echo", HASH_A));
    run_record_close(r);
    r = NULL;
    assert_err(CF_ERR_SYS, "/none/run.lock: open", run_record_open("/none", &fresh()->start, false, &r));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_start_writes),
        cmocka_unit_test(test_later_starts_leave_it),
        cmocka_unit_test(test_refuses_other_models),
        cmocka_unit_test(test_voices_are_added_and_compared),
        cmocka_unit_test(test_a_look_compares_and_writes_nothing),
        cmocka_unit_test(test_forced_mixing_is_recorded),
        cmocka_unit_test(test_another_tokenizer_is_another_model),
        cmocka_unit_test(test_default_voice_stays),
        cmocka_unit_test(test_refuses_what_is_no_record),
        cmocka_unit_test(test_failed_writes_leave_the_former),
    };
    return cmocka_run_group_tests_name("run_record", tests, NULL, NULL);
}
