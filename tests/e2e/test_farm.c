/*
 * test_farm.c - the real processes on the tiny model: say on a cold and on a running farm, formats, refusals, status,
 * drain.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/base/sha256.h"
#include "tests/harness/farm.h"
#include "tests/harness/tiny_model.h"

static const char sentence[] = "The quick brown fox jumps over the lazy dog.";

/* Returns the file's bytes. */
static size_t hash_file(const char *path, char ret_hex[SHA256_HEX_BYTES])
{
    io_map map;
    assert_ok(io_map_file(path, &map));
    assert_ok(sha256_of(map.data, map.data_bytes, ret_hex));
    const size_t bytes = map.data_bytes;
    io_unmap(&map);
    return bytes;
}

static void test_cold_say_repeats_itself(void **state)
{
    (void)state;
    char a[256], b[256], hash_a[SHA256_HEX_BYTES], hash_b[SHA256_HEX_BYTES];
    const char *dir = farm_of_their_own();
    snprintf(a, sizeof a, "%s/a.wav", dir);
    snprintf(b, sizeof b, "%s/b.wav", dir);
    farm_expect(0, "s of audio in",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", a, sentence, NULL});
    farm_expect(0, "\"status\":\"done\"",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "--threads", "1", "--json", "-o", b,
                                      sentence, NULL});
    hash_file(a, hash_a);
    hash_file(b, hash_b);
    assert_string_equal(hash_a, hash_b);
    farm_expect(
        0, "s of audio",
        (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "--seed", "5", "-o", b, sentence, NULL});
    hash_file(b, hash_b);
    assert_string_not_equal(hash_a, hash_b);
}

/* The demo voice speaks where no model was named. */
static void test_say_without_a_model(void **state)
{
    (void)state;
    const char *dir = farm_of_their_own();
    char wav[256];
    snprintf(wav, sizeof wav, "%s/x.wav", dir);
    unsetenv("COSYFARM_MODEL");
    farm_expect(0, "the demo voice speaks", (const char *const[]){"cosyfarm", "say", "-o", wav, "Thank you.", NULL});
    farm_expect(78, "there is: arlo, mira",
                (const char *const[]){"cosyfarm", "say", "-v", "echo", "-o", wav, "Thank you.", NULL});
}

/* The mask is a matter of the farm's configuration: another wave of the same length. */
static void test_streaming_mask(void **state)
{
    (void)state;
    char whole[256], blocks[256], conf[256], hash_whole[SHA256_HEX_BYTES], hash_blocks[SHA256_HEX_BYTES];
    const char *dir = farm_of_their_own();
    snprintf(whole, sizeof whole, "%s/whole.wav", dir);
    snprintf(blocks, sizeof blocks, "%s/blocks.wav", dir);
    snprintf(conf, sizeof conf, "%s/c.json", dir);
    assert_ok(io_write_file(conf, "{\"streaming_mask\":true}", 23));
    farm_expect(0, "s of audio",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", whole, sentence, NULL});
    farm_expect(0, "s of audio",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "--config", conf, "-o", blocks,
                                      sentence, NULL});
    assert_int_equal(hash_file(whole, hash_whole), hash_file(blocks, hash_blocks));
    assert_string_not_equal(hash_whole, hash_blocks);
}

static void test_say_refusals(void **state)
{
    (void)state;
    const char *dir = farm_of_their_own();
    char wav[256];
    snprintf(wav, sizeof wav, "%s/x.wav", dir);
    unsetenv("COSYFARM_MODEL");
    farm_expect(78, "no model directory", (const char *const[]){"cosyfarm", "up", NULL});
    farm_expect(78, "no such model directory",
                (const char *const[]){"cosyfarm", "say", "-m", "/nonexistent", "-o", wav, "x", NULL});
    farm_expect(64, "nothing to say",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", wav, NULL});
    farm_expect(64, "expected 0.5..2",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "--speed", "3", "x", NULL});
    farm_expect(64, "expected .wav",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", "x.xyz", "x", NULL});
    farm_expect(78, "there is: echo, vale",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-v", "ecko", "-o", wav, "x", NULL});
    farm_expect(78, "nothing to say",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", wav, "...", NULL});
    farm_expect(
        78, "device \"cuda:0\"",
        (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "--device", "cuda:0", "-o", wav, "x", NULL});
    farm_expect(78, "text: invalid UTF-8 at byte 1",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", wav, "a\xff", NULL});
    farm_expect(78, "--instruct: invalid UTF-8 at byte 0",
                (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "--instruct", "\xff", "x", NULL});
    farm_expect(64, "is not known", (const char *const[]){"cosyfarm", "sing", NULL});
    farm_expect(69, "no farm runs", (const char *const[]){"cosyfarm", "status", "--run-dir", dir, NULL});
    assert_false(io_exists(wav));
}

/* Of a status after rows of some seconds of speech each. */
static void expect_rates_and_memory(const json *status)
{
    static const char *const stages[] = {"llm", "flow", "hift"};
    double rate;
    uint64_t bytes;
    const char *text;
    for (int i = 0; i < 3; i++) {
        const json *q = json_find(json_find(status, "queues"), stages[i]);
        assert_ok(json_get_f64(q, "jobs_per_s", 0.01, 1e3, &rate));
        assert_ok(json_get_f64(q, "audio_per_s", 0.01, 1e4, &rate));
    }
    assert_ok(json_get_f64(json_find(status, "totals"), "rows_per_s", 0.01, 1e3, &rate));
    assert_ok(json_get_f64(json_find(status, "totals"), "audio_per_s", 0.01, 1e4, &rate));
    assert_ok(json_get_u64(json_find(status, "totals"), "rss_bytes", 1 << 20, UINT64_MAX, &bytes));
    for (const json *m = json_first(json_find(status, "members")); m; m = json_next(m)) {
        assert_ok(json_get_u64(m, "rss_bytes", 1 << 18, UINT64_MAX, &bytes));
        if (!json_find(m, "model"))
            continue; /* the keeper */
        assert_ok(json_get_str(m, "model", 255, &text));
        assert_null(strchr(text, '/'));
        assert_ok(json_get_str(m, "device", 15, &text));
        assert_string_equal(text, "cpu");
        assert_ok(json_get_u64(m, "device_bytes", 0, 0, &bytes));
    }
}

static void test_running_farm(void **state)
{
    (void)state;
    farm f;
    char path[256], out[65536];
    static const char *const extensions[] = {"wav", "flac", "ogg", "mp3"};
    const char *dir = test_temp_dir();
    farm_start(&f, NULL, NULL);
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/sub/x.%s", dir, extensions[i]);
        farm_expect(0, "running farm",
                    (const char *const[]){"cosyfarm", "say", "-m", tiny_model_dir(), "-o", path, sentence, NULL});
        assert_true(io_exists(path));
    }
    farm_expect(0, "standard output", (const char *const[]){"cosyfarm", "say", "-o", "-", sentence, NULL});
    farm_expect(78, "serves",
                (const char *const[]){"cosyfarm", "say", "-m", small_model_dir(), "-o", path, sentence, NULL});
    snprintf(path, sizeof path, "%s/rows.jsonl", dir);
    static const char rows[] =
        "{\"id\":\"a\",\"text\":\"Yes.\"}\n{\"id\":\"b\",\"text\":\"Yes.\",\"voice\":\"ecko\"}\n";
    assert_ok(io_write_file(path, rows, strlen(rows)));
    farm_expect(78, "rows.jsonl:2: voice \"ecko\" is not in",
                (const char *const[]){"cosyfarm", "batch", path, "-o", dir, NULL});
    farm_expect(78, "runs in", (const char *const[]){"cosyfarm", "up", "-m", tiny_model_dir(), NULL});
    farm_expect(0, "\"status\":\"done\"",
                (const char *const[]){"cosyfarm", "say", "--json", "-o", "-", sentence, NULL});
    farm_expect(0, "hift", (const char *const[]){"cosyfarm", "status", NULL});
    assert_int_equal(farm_command((const char *const[]){"cosyfarm", "status", "--json", NULL}, out, sizeof out), 0);
    json *root;
    uint64_t done;
    assert_ok(json_parse(out, strlen(out), 8, &root));
    assert_ok(json_get_u64(json_find(root, "totals"), "rows_done", 6, 6, &done));
    expect_rates_and_memory(root);
    assert_null(strstr(out, "steps_replayed")); /* of devices alone; tests/cuda_emu/check/farm.sh has one */
    json_close(root);
    farm_end(&f);
    farm_expect(69, "no farm runs", (const char *const[]){"cosyfarm", "down", NULL});
}

static void test_instruct_and_speed(void **state)
{
    (void)state;
    farm f;
    char path[256];
    const char *dir = test_temp_dir();
    farm_start(&f, NULL, NULL);
    snprintf(path, sizeof path, "%s/x.wav", dir);
    farm_expect(0, "s of audio",
                (const char *const[]){"cosyfarm", "say", "--instruct", "Speak slowly.", "-o", path, sentence, NULL});
    farm_expect(0, "s of audio",
                (const char *const[]){"cosyfarm", "say", "--mode", "cross_lingual", "--speed", "1.5", "-o", path,
                                      sentence, NULL});
    farm_expect(64, "--instruct TEXT goes with",
                (const char *const[]){"cosyfarm", "say", "--mode", "instruct", "-o", path, "x", NULL});
    farm_end(&f);
}

static void wait_for_file(const char *path)
{
    const uint64_t deadline_us = clock_now_us() + 60 * CLOCK_SECOND_US;
    while (!io_exists(path)) {
        if (clock_now_us() > deadline_us)
            fail_msg("%s does not come", path);
        poll(NULL, 0, 5);
    }
}

static void scale(const char *wish)
{
    farm_expect(0, "workers", (const char *const[]){"cosyfarm", "scale", wish, NULL});
}

/* A running farm that nobody gives a flow worker: who waits ends in bounded time and says why. The farm keeps what it
 * has accepted, and the same commands go on when there is one. */
static void test_stage_without_workers(void **state)
{
    (void)state;
    farm f;
    char wav[256], manifest[256], out[256];
    static const char row[] = "{\"id\":\"a\",\"text\":\"It rained.\"}\n";
    const char *dir = test_temp_dir();
    snprintf(wav, sizeof wav, "%s/x.wav", dir);
    snprintf(manifest, sizeof manifest, "%s/rows.jsonl", dir);
    snprintf(out, sizeof out, "%s/out", dir);
    assert_ok(io_write_file(manifest, row, strlen(row)));
    const char *const say[] = {"cosyfarm", "say", "-o", wav, "It rained.", NULL};
    const char *const batch[] = {"cosyfarm", "batch", "-m", tiny_model_dir(), manifest, "-o", out, NULL};
    farm_start(&f, NULL, "\"unserved_s\":1");
    scale("flow=0");
    farm_expect(75, "stage flow of the running farm: expected a worker that serves, found", say);
    farm_expect(75, "stage flow of the running farm: expected a worker that serves, found no worker for", batch);
    assert_false(io_exists(wav));
    scale("flow=1");
    wait_for_file(wav);
    farm_expect(0, "1 rows: 1 done", batch);
    farm_expect(0, "0 done, 0 failed, 1 before", batch);
    farm_end(&f);
}

/* A stage that is too slow for grace_s: the farm ends all the same, down says what is left, and the next farm of the
 * run directory does it, same bytes. */
static void test_down_with_a_row_left(void **state)
{
    (void)state;
    farm f;
    char first[256], late[256], hash_first[SHA256_HEX_BYTES], hash_late[SHA256_HEX_BYTES];
    const char *dir = test_temp_dir();
    snprintf(first, sizeof first, "%s/first.wav", dir);
    snprintf(late, sizeof late, "%s/late.wav", dir);
    farm_start(&f, NULL, "\"grace_s\":1");
    farm_expect(0, "s of audio", (const char *const[]){"cosyfarm", "say", "-o", first, sentence, NULL});
    assert_int_equal(kill(farm_pid(&f, "flow"), SIGSTOP), 0);
    const pid_t say =
        farm_command_start((const char *const[]){"cosyfarm", "say", "-q", "-o", late, sentence, NULL}, NULL);
    for (uint64_t rows = 0; rows == 0;) {
        wire_msg status = farm_status(&f);
        assert_ok(json_get_u64(wire_json(&status, "queues"), "rows", 0, 1, &rows));
        wire_done(&status);
    }
    kill(say, SIGKILL); /* it would look for another orchestrator for a minute */
    farm_command_wait(say);
    farm_expect(75, "rows left when the farm ended: 1; its journal keeps them",
                (const char *const[]){"cosyfarm", "down", NULL});
    assert_int_equal(farm_command_wait_within(f.supervisor, 30, "up"), 0);
    farm_expect(69, "no farm runs", (const char *const[]){"cosyfarm", "status", NULL});
    assert_false(io_exists(late));
    farm_start_again(&f);
    wait_for_file(late);
    farm_end(&f);
    hash_file(first, hash_first);
    hash_file(late, hash_late);
    assert_string_equal(hash_first, hash_late);
}

/* Twelve rows at once through batches of many shapes equal the same rows one after the other. */
static void test_alone_and_among_others(void **state)
{
    (void)state;
    farm f;
    farm_row alone[12], together[12];
    const char *dir = test_temp_dir();
    farm_start(&f, NULL, "\"llm_rows\":1,\"flow_rows\":1,\"hift_rows\":1");
    farm_speak(&f, dir, 12, alone, 0, NULL, NULL);
    farm_end(&f);
    farm_start(&f, NULL, "\"threads\":1");
    farm_speak(&f, dir, 12, together, 0, NULL, NULL);
    farm_end(&f);
    for (int i = 0; i < 12; i++) {
        assert_string_equal(alone[i].status, "done");
        assert_string_equal(alone[i].sha256, together[i].sha256);
    }
}

static void test_full_farm_refuses_and_client_waits(void **state)
{
    (void)state;
    farm f;
    farm_row rows[8];
    farm_start(&f, NULL, "\"utterances_max\":2");
    farm_speak(&f, test_temp_dir(), 8, rows, 0, NULL, NULL);
    for (int i = 0; i < 8; i++)
        assert_string_equal(rows[i].status, "done");
    wire_msg status = farm_status(&f);
    uint64_t refused;
    assert_ok(json_get_u64(wire_json(&status, "totals"), "rows_refused", 1, UINT64_MAX, &refused));
    wire_done(&status);
    farm_end(&f);
}

/* The trace of a run names every stage and every row, and is JSON. */
static void test_bench_farm_and_its_trace(void **state)
{
    (void)state;
    char path[256], *text = NULL;
    size_t bytes;
    json *root = NULL;
    int stages = 0, begun = 0, ended = 0;
    snprintf(path, sizeof path, "%s/trace.json", test_temp_dir());
    farm_expect(0, "\"bench\":\"orchestrator\"",
                (const char *const[]){"cosyfarm", "bench", "farm", "-m", tiny_model_dir(), "--count", "3", "--json",
                                      "--trace", path, NULL});
    assert_ok(io_read_file(path, 1 << 20, &text, &bytes));
    assert_ok(json_parse(text, bytes, 8, &root));
    for (const json *e = json_first(root); e; e = json_next(e)) {
        const char *phase, *name;
        assert_ok(json_get_str(e, "ph", 7, &phase));
        assert_ok(json_get_str(e, "name", 255, &name));
        stages += strcmp(name, "process_name") == 0;
        begun += strcmp(phase, "b") == 0;
        ended += strcmp(phase, "e") == 0;
    }
    assert_int_equal(stages, 3);
    assert_int_equal(begun, ended);
    assert_true(begun >= 5 * 3); /* two rows before the three, three stages each */
    json_close(root);
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cold_say_repeats_itself),
        cmocka_unit_test(test_say_without_a_model),
        cmocka_unit_test(test_streaming_mask),
        cmocka_unit_test(test_say_refusals),
        cmocka_unit_test(test_running_farm),
        cmocka_unit_test(test_instruct_and_speed),
        cmocka_unit_test(test_stage_without_workers),
        cmocka_unit_test(test_down_with_a_row_left),
        cmocka_unit_test(test_alone_and_among_others),
        cmocka_unit_test(test_full_farm_refuses_and_client_waits),
        cmocka_unit_test(test_bench_farm_and_its_trace),
    };
    return cmocka_run_group_tests_name("farm", tests, NULL, NULL);
}
