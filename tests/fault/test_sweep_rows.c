/*
 * test_sweep_rows.c - the nth failure of what rows rest on: the batch's manifest, ledger and run record, and ZeroMQ.
 * Each ends in a code and a text, and whole ledger lines stay. The journal has test_sweep_journal.c.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <cjson/cJSON.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/transport/bus.h"
#include "common/transport/wire.h"
#include "orchestrator/ledger.h"
#include "orchestrator/manifest.h"
#include "orchestrator/run_record.h"
#include "tests/fault/sweep.h"

#define HASH "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static char folder[256];

/* Everything anew. */
static void clear_folder(void)
{
    static const char *const names[] = {"ledger.jsonl", "ledger.jsonl.new", "rows.jsonl",
                                        "run.json",     "run.lock",         "journal"};
    char path[320];
    if (!folder[0])
        snprintf(folder, sizeof folder, "%s", test_temp_dir());
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
}

/* Past the points that fail. */
static void put_file(const char *name, const char *text)
{
    char path[320];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void *failing_malloc(size_t bytes)
{
    return fault_hit("cjson.alloc") ? NULL : malloc(bytes);
}

/* ---- the batch's files ---- */

static const shard whole = {0};
static char lines[3][512]; /* of rows a, b, c */

static cf_err append(ledger *l, const char *id)
{
    json *line = NULL;
    const ledger_entry e = {.id = id, .done = true, .file = "audio/x.wav", .bytes = 1, .sha256 = HASH, .attempts = 1};
    cf_err err = ledger_line(&e, &line);
    if (err == CF_OK)
        err = ledger_append(l, line);
    json_close(line);
    return err;
}

static cf_err is_b(void *ctx, const ledger_view *v, bool *ret_drop)
{
    (void)ctx;
    *ret_drop = strcmp(v->id, "b") == 0;
    return CF_OK;
}

typedef struct seen {
    char ids[16];
    int count;
} seen;

static cf_err see(void *ctx, const ledger_view *v)
{
    seen *s = ctx;
    assert_true(strlen(v->id) == 1 && !strchr(s->ids, v->id[0]) && s->count < 15); /* each once */
    s->ids[s->count++] = v->id[0];
    return CF_OK;
}

static void ignore(void *ctx, const char *text)
{
    (void)ctx;
    (void)text;
}

static cf_err read_manifest(void)
{
    cf_err err;
    char path[320];
    manifest *m = NULL;
    id_set *ids = NULL;
    manifest_counts counts;
    const manifest_defaults defaults = {.format = "wav", .speed = 1};
    snprintf(path, sizeof path, "%s/rows.jsonl", folder);
    TRY(manifest_open(path, NULL, &defaults, &m));
    TRY(id_set_open(ID_HASH_BITS, &ids));
    TRY(manifest_check(m, whole, ignore, NULL, ids, &counts));
    assert_int_equal(counts.own, 5);
out:
    id_set_close(ids);
    manifest_close(m);
    return err;
}

static cf_err write_ledger(void)
{
    cf_err err;
    ledger *l = NULL;
    uint64_t torn, dropped;
    seen s = {.count = 0};
    TRY(ledger_open(folder, whole, &l, &torn));
    TRY(ledger_drop(l, is_b, NULL, &dropped));
    TRY(append(l, "d"));
    TRY(append(l, "b"));
    TRY(ledger_sync(l));
    TRY(ledger_each(l, see, &s));
    assert_string_equal(s.ids, "acdb");
out:
    ledger_close(l);
    return err;
}

static cf_err write_record(void)
{
    cf_err err;
    run_record *r = NULL;
    json *config = NULL;
    const run_model_file files[] = {{"llm", "llm.pt", HASH, "f32"}};
    const char *const words[] = {"cosyfarm", "batch"};
    TRY(json_parse("{\"llm_rows\":1}", 14, 3, &config));
    const run_start start = {.version = "1",
                             .model_dir = "/m",
                             .files = files,
                             .file_count = 1,
                             .blank_en = HASH,
                             .config = config,
                             .command = words,
                             .command_count = 2};
    TRY(run_record_open(folder, &start, false, &r));
    TRY(run_record_use_voice(r, "echo", HASH));
out:
    run_record_close(r);
    json_close(config);
    return err;
}

/* A folder as a power cut left it: three lines, and the beginning of one. */
static cf_err run_batch_files(void)
{
    cf_err err;
    char text[2048];
    clear_folder();
    snprintf(text, sizeof text, "%s\n%s\n%s\n{\"id\":\"d", lines[0], lines[1], lines[2]);
    put_file("ledger.jsonl", text);
    put_file("rows.jsonl",
             "{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":\"b\",\"text\":\"x\"}\n{\"id\":\"c\",\"text\":\"x\"}\n"
             "{\"id\":\"d\",\"text\":\"x\"}\n{\"id\":\"e\",\"text\":\"x\"}\n");
    TRY(read_manifest());
    TRY(write_ledger());
    TRY(write_record());
out:
    return err;
}

/* Rows that had ended before are still there, each once; what the next start does is not in the way. */
static void check_batch_files(const char *point, unsigned nth)
{
    ledger *l;
    uint64_t torn;
    seen s = {.count = 0};
    assert_ok(ledger_open(folder, whole, &l, &torn));
    assert_ok(ledger_each(l, see, &s));
    ledger_close(l);
    if (!strchr(s.ids, 'a') || !strchr(s.ids, 'c'))
        fail_msg("%s#%u: only rows \"%s\" are left", point, nth, s.ids);
    if (strcmp(point, "cjson.alloc") != 0) /* nothing is armed there: one more is no harm */
        assert_ok(write_record());
}

static void test_files_of_a_batch(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        cf_err want;
        unsigned least;
    } POINTS[] = {{"mem.alloc", CF_ERR_NOMEM, 10},    {"line.read", CF_ERR_SYS, 3},   {"io.write", CF_ERR_STORAGE, 5},
                  {"io.fsync", CF_ERR_SYS, 2},        {"io.rename", CF_ERR_SYS, 1},   {"io.create", CF_ERR_STORAGE, 1},
                  {"ledger.open", CF_ERR_STORAGE, 2}, {"ledger.lock", CF_ERR_SYS, 2}, {"ledger.sync", CF_ERR_SYS, 3},
                  {"ledger.rename", CF_ERR_SYS, 1},   {"ledger.cut", CF_ERR_SYS, 1}};
    static const char *const ids[] = {"a", "b", "c"};
    const scenario s = {.name = "batch", .run = run_batch_files, .check = check_batch_files};
    for (int i = 0; i < 3; i++)
        snprintf(lines[i], sizeof lines[i],
                 "{\"id\":\"%s\",\"status\":\"done\",\"file\":\"audio/x.wav\",\"bytes\":1,\"sha256\":\"" HASH "\"}",
                 ids[i]);
    for (size_t p = 0; p < sizeof POINTS / sizeof POINTS[0]; p++)
        assert_true(sweep(&s, POINTS[p].name, POINTS[p].want, 1) >= POINTS[p].least);
    cJSON_Hooks hooks = {failing_malloc, free};
    cJSON_InitHooks(&hooks);
    assert_true(sweep(&s, "cjson.alloc", CF_ERR_NOMEM, 1) >= 50);
    cJSON_InitHooks(NULL);
}

/* ---- ZeroMQ ---- */

static json *query(void)
{
    json *m = wire_new(WIRE_query);
    json_put_u64(m, "nonce", 1);
    return m;
}

static json *goodbye(void)
{
    json *m = wire_new(WIRE_goodbye);
    json_put_u64(m, "boot", 1);
    return m;
}

/* Waits for a message and takes it. */
static cf_err take(bus *b, char peer[BUS_ID_BYTES])
{
    cf_err err = CF_OK;
    char *text = NULL;
    size_t bytes;
    int ready = 0;
    while (!ready)
        TRY(bus_poll(b, NULL, 0, clock_now_us() + CLOCK_SECOND_US, &ready));
    TRY(bus_recv(b, peer, &text, &bytes));
out:
    mem_free(text);
    return err;
}

static cf_err talk(void)
{
    cf_err err;
    bus *orchestrator = NULL, *client = NULL;
    char endpoint[320], peer[BUS_ID_BYTES], none[BUS_ID_BYTES];
    snprintf(endpoint, sizeof endpoint, "ipc://%s/b", folder);
    TRY(bus_bind(endpoint, &orchestrator));
    TRY(bus_connect(endpoint, "client.1", &client));
    while ((err = bus_send(client, NULL, query())) == CF_ERR_BUSY)
        poll(NULL, 0, 1); /* not connected yet */
    if (err != CF_OK)
        goto out;
    TRY(take(orchestrator, peer));
    assert_string_equal(peer, "client.1");
    TRY(bus_send(orchestrator, peer, goodbye()));
    TRY(take(client, none));
out:
    bus_close(client);
    bus_close(orchestrator);
    return err;
}

static void test_zmq(void **state)
{
    (void)state;
    static const char *const POINTS[] = {"zmq.open", "zmq.option", "zmq.bind", "zmq.connect",
                                         "zmq.send", "zmq.recv",   "zmq.poll"};
    const scenario s = {.name = "bus", .run = talk};
    clear_folder();
    for (size_t p = 0; p < sizeof POINTS / sizeof POINTS[0]; p++)
        assert_true(sweep(&s, POINTS[p], CF_ERR_SYS, 1) >= 1);
    assert_true(sweep(&s, "mem.alloc", CF_ERR_NOMEM, 1) >= 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_of_a_batch),
        cmocka_unit_test(test_zmq),
    };
    return cmocka_run_group_tests_name("sweep_rows", tests, NULL, NULL);
}
