/*
 * test_sweep.c - the nth allocation, open, map, read, write, fsync, rename fails, for every n: of loading a model
 * directory in both formats, importing a voice, writing an audio file, reading a configuration, sending a message. Each
 * failure ends in a code and a text, leaves no temporary file and no half a file, and leaks nothing (with SAN=address
 * the leak sanitizer looks). The allocations of cJSON are swept too, through its own hooks.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/config.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/voice.h"
#include "common/text/bpe.h"
#include "common/transport/wire.h"
#include "orchestrator/audio_file.h"
#include "tests/fault/sweep.h"
#include "tests/harness/tiny_model.h"

/* ---- loading a model directory ---- */

static const char *model_path; /* of the scenario at hand */

/* Every kind of tensor access that the stages use, on this stage's file. */
static cf_err read_weights(weights *w, model_stage stage)
{
    cf_err err = CF_OK;
    const double *f64;
    const float *f32;
    int64_t dims[3];
    if (stage == MODEL_HIFT) {
        TRY(weights_folded_dims(w, "conv_post", 3, dims));
        TRY(weights_folded_f32(w, "conv_post", 3, dims, &f32));
        TRY(weights_folded_f64(w, "conv_post", 3, dims, &f64));
    } else if (stage == MODEL_LLM) {
        TRY(weights_dims(w, "llm.model.model.norm.weight", 1, dims));
        TRY(weights_f32(w, "llm.model.model.norm.weight", 1, dims, &f32));
        TRY(weights_f64(w, "llm.model.model.norm.weight", 1, dims, &f64));
    }
out:
    return err;
}

static cf_err load_stage(const model_dir *d, model_stage stage)
{
    cf_err err;
    weights *w = NULL;
    TRY(weights_open(d->stage_path[stage], &w));
    TRY(stage_check(w, stage, &d->config));
    TRY(read_weights(w, stage));
    if (stage == MODEL_HIFT) /* megabytes are enough */
        TRY(tensor_file_verify(weights_file(w)));
out:
    weights_close(w);
    return err;
}

static cf_err load_model(void)
{
    cf_err err;
    static model_dir d;
    char **names = NULL;
    size_t count = 0;
    tokenizer *tok = NULL;
    TRY(model_dir_open(model_path, false, &d));
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++)
        TRY(load_stage(&d, (model_stage)stage));
    TRY(tokenizer_open(model_path, &tok));
    TRY(voice_names(model_path, &names, &count));
    for (size_t i = 0; i < count; i++) {
        voice *v = NULL;
        TRY(voice_load(model_path, names[i], &v));
        voice_close(v);
    }
out:
    voice_names_close(names, count);
    tokenizer_close(tok);
    return err;
}

static void sweep_model(const char *path, unsigned allocations_min)
{
    model_path = path;
    const scenario s = {.name = path, .run = load_model};
    assert_true(sweep(&s, "mem.alloc", CF_ERR_NOMEM, 1) >= allocations_min);
    assert_true(sweep(&s, "io.open", CF_ERR_SYS, 1) >= 8);
    assert_true(sweep(&s, "io.map", CF_ERR_SYS, 1) >= 5);
    assert_true(sweep(&s, "io.read", CF_ERR_SYS, 1) >= 1);
}

static void test_loading_a_model(void **state)
{
    (void)state;
    sweep_model(tiny_model_dir(), 500);
}

static void test_loading_checkpoints(void **state)
{
    (void)state;
    sweep_model(tiny_model_pt_dir(), 500);
}

/* ---- importing voices ---- */

static char voice_dir[IO_PATH_BYTES], voice_file[IO_PATH_BYTES];

static cf_err import_voices(void)
{
    cf_err err;
    voice **voices = NULL;
    size_t count = 0;
    TRY(voices_import(voice_file, &voices, &count));
    for (size_t i = 0; i < count; i++)
        TRY(voice_save(voice_dir, voices[i], true));
out:
    voices_close(voices, count);
    return err;
}

/* A folder of whole files: no temporary ones. */
static void expect_no_rests(const char *folder)
{
    DIR *dir = opendir(folder);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir))
        if (strstr(e->d_name, ".tmp"))
            fail_msg("%s/%s was left behind", folder, e->d_name);
    if (dir)
        closedir(dir);
}

static void check_voice(const char *point, unsigned nth)
{
    char folder[IO_PATH_BYTES];
    char **names;
    size_t count;
    (void)point;
    (void)nth;
    assert_ok(io_join(folder, sizeof folder, voice_dir, "voices"));
    expect_no_rests(folder);
    assert_ok(voice_names(voice_dir, &names, &count)); /* of earlier runs: every one of them whole */
    for (size_t i = 0; i < count; i++) {
        voice *v;
        assert_ok(voice_load(voice_dir, names[i], &v));
        voice_close(v);
    }
    voice_names_close(names, count);
}

static void sweep_import(const char *source, unsigned allocations_min)
{
    const scenario s = {.name = source, .run = import_voices, .check = check_voice};
    snprintf(voice_dir, sizeof voice_dir, "%s", test_temp_dir());
    snprintf(voice_file, sizeof voice_file, "%s", source);
    assert_true(sweep(&s, "mem.alloc", CF_ERR_NOMEM, 1) >= allocations_min);
    assert_true(sweep(&s, "io.open", CF_ERR_SYS, 1) >= 1);
    assert_true(sweep(&s, "io.map", CF_ERR_SYS, 1) >= 1);
    assert_true(sweep(&s, "io.mkdir", CF_ERR_STORAGE, 1) >= 1);
    assert_true(sweep(&s, "io.create", CF_ERR_STORAGE, 1) >= 1);
    assert_true(sweep(&s, "io.write", CF_ERR_STORAGE, 1) >= 1);
    assert_true(sweep(&s, "io.fsync", CF_ERR_SYS, 1) >= 2);
    assert_true(sweep(&s, "io.rename", CF_ERR_SYS, 1) >= 1);
}

static void test_importing_saved_voices(void **state)
{
    (void)state;
    sweep_import(test_path("tests/fuzz/corpus/spk2info/transposed"), 30);
}

static void test_importing_a_voice_file(void **state)
{
    (void)state;
    char source[IO_PATH_BYTES];
    snprintf(source, sizeof source, "%s/voices/vale.safetensors", tiny_model_dir());
    sweep_import(source, 20);
}

/* ---- writing audio ---- */

#define SAMPLES 4800

static float samples[SAMPLES];
static const char *audio_format;
static char audio_path[IO_PATH_BYTES];
static const char OLD[] = "what was there before";
static void *audio_whole; /* the file as it must be in the end */
static size_t audio_bytes;

static cf_err write_audio(void)
{
    cf_err err;
    void *data = NULL;
    size_t bytes;
    const audio_piece pieces[] = {{samples, SAMPLES / 2}, {samples + SAMPLES / 2, SAMPLES / 2}};
    TRY(audio_encode(pieces, 2, audio_format, &data, &bytes));
    TRY(io_write_file(audio_path, data, bytes));
out:
    mem_free(data);
    return err;
}

/* The old file or the new one, never a part; the new one only when no more than its folder's fsync failed. */
static void check_audio(const char *point, unsigned nth)
{
    char *text, folder[IO_PATH_BYTES];
    size_t bytes;
    snprintf(folder, sizeof folder, "%s", audio_path);
    *strrchr(folder, '/') = '\0';
    expect_no_rests(folder);
    assert_ok(io_read_file(audio_path, 1 << 20, &text, &bytes));
    const bool renamed = strcmp(point, "io.fsync") == 0 && nth == 2;
    assert_int_equal(bytes, renamed ? audio_bytes : sizeof OLD);
    assert_memory_equal(text, renamed ? audio_whole : OLD, bytes);
    mem_free(text);
}

/* Runs with the old file in place, so that each failure can be told from success. */
static cf_err write_over_audio(void)
{
    FILE *f = fopen(audio_path, "we"); /* past the points that fail */
    assert_non_null(f);
    assert_int_equal(fwrite(OLD, 1, sizeof OLD, f), sizeof OLD);
    assert_int_equal(fclose(f), 0);
    const cf_err err = write_audio();
    if (err != CF_OK)
        return err;
    io_map map; /* no point on its way is swept here */
    assert_ok(io_map_file(audio_path, &map));
    assert_int_equal(map.data_bytes, audio_bytes);
    assert_memory_equal(map.data, audio_whole, audio_bytes);
    io_unmap(&map);
    return CF_OK;
}

static void test_writing_audio(void **state)
{
    (void)state;
    static const char *const FORMATS[] = {"wav", "wav-float", "flac", "ogg", "mp3"};
    static const struct {
        const char *name;
        cf_err want; /* EDQUOT, ENOSPC, EIO, EIO */
    } POINTS[] = {{"io.create", CF_ERR_STORAGE},
                  {"io.write", CF_ERR_STORAGE},
                  {"io.fsync", CF_ERR_SYS},
                  {"io.rename", CF_ERR_SYS}};
    for (int i = 0; i < SAMPLES; i++)
        samples[i] = (float)(i % 100) / 200.0f - 0.25f;
    snprintf(audio_path, sizeof audio_path, "%s/a.audio", test_temp_dir());
    for (size_t f = 0; f < CF_COUNT(FORMATS); f++) {
        const audio_piece whole = {samples, SAMPLES};
        const scenario s = {.name = FORMATS[f], .run = write_over_audio, .check = check_audio};
        audio_format = FORMATS[f];
        assert_ok(audio_encode(&whole, 1, audio_format, &audio_whole, &audio_bytes));
        for (size_t p = 0; p < CF_COUNT(POINTS); p++)
            assert_true(sweep(&s, POINTS[p].name, POINTS[p].want, 1) >= 1);
        assert_true(sweep(&s, "mem.alloc", CF_ERR_NOMEM, 1) >= 2);
        mem_free(audio_whole);
    }
}

/* ---- configuration and messages ---- */

static char config_path[IO_PATH_BYTES];

/* cJSON has an allocator of its own choice: here one that fails like ours. */
static void *failing_malloc(size_t bytes)
{
    return fault_hit("cjson.alloc") ? NULL : malloc(bytes);
}

static cf_err read_config(void)
{
    cf_err err;
    static config cfg, given;
    char *text = NULL;
    config_defaults(&cfg);
    given = cfg;
    json *printed = NULL;
    TRY(config_load(&cfg, config_path));
    printed = config_to_json(&cfg);
    TRY(json_print(printed, true, &text));
    assert_int_equal(cfg.llm_rows, 7);
out:
    if (err != CF_OK && cfg.llm_rows != 7)
        assert_memory_equal(&cfg, &given, sizeof cfg); /* all of the file or nothing */
    json_close(printed);
    mem_free(text);
    return err;
}

static cf_err send_and_receive(void)
{
    cf_err err;
    static const int32_t ids[] = {1, 2, 3, 4, 5};
    char *text = NULL;
    size_t bytes, count = 0;
    int32_t *got = NULL;
    wire_msg msg = {0};
    json *m = wire_new(WIRE_work);
    json_put_u64(m, "gen", UINT64_MAX);
    json_put_u64(m, "job", 9007199254740991u);
    json_put_text(m, "utterance", "row");
    json_put_u64(m, "segment", 0);
    json_put_u64(m, "sent_us", 1);
    json_put_u64(m, "caused_us", 0);
    json_put_bool(m, "prompt_speech", true);
    json_put_f64(m, "speed", 1.5);
    json_put_i32s(m, "tokens", ids, 5);
    TRY(wire_print(m, &text, &bytes));
    TRY(wire_parse(text, bytes, WIRE_ORCH_BUS, &msg));
    TRY(wire_i32s(&msg, "tokens", &got, &count));
    assert_int_equal(count, 5);
    assert_memory_equal(got, ids, sizeof ids);
    assert_true(wire_u64(&msg, "job") == 9007199254740991u);
out:
    wire_done(&msg);
    mem_free(got);
    mem_free(text);
    return err;
}

static void test_configuration_and_messages(void **state)
{
    (void)state;
    static const char GIVEN[] = "{\"llm_rows\":7,\"model\":\"/m\",\"naive\":true}";
    const scenario reading = {.name = "configuration", .run = read_config};
    const scenario talking = {.name = "message", .run = send_and_receive};
    cJSON_Hooks hooks = {failing_malloc, free};
    snprintf(config_path, sizeof config_path, "%s/c.json", test_temp_dir());
    assert_ok(io_write_file(config_path, GIVEN, sizeof GIVEN - 1));
    cJSON_InitHooks(&hooks);
    assert_true(sweep(&reading, "cjson.alloc", CF_ERR_NOMEM, 1) >= 30);
    assert_true(sweep(&reading, "mem.alloc", CF_ERR_NOMEM, 1) >= 1);
    assert_true(sweep(&reading, "io.open", CF_ERR_SYS, 1) == 1);
    assert_true(sweep(&reading, "io.read", CF_ERR_SYS, 1) == 1);
    assert_true(sweep(&talking, "cjson.alloc", CF_ERR_NOMEM, 1) >= 40);
    assert_true(sweep(&talking, "mem.alloc", CF_ERR_NOMEM, 1) >= 2);
    cJSON_InitHooks(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loading_a_model),        cmocka_unit_test(test_loading_checkpoints),
        cmocka_unit_test(test_importing_saved_voices), cmocka_unit_test(test_importing_a_voice_file),
        cmocka_unit_test(test_writing_audio),          cmocka_unit_test(test_configuration_and_messages),
    };
    return cmocka_run_group_tests_name("sweep", tests, NULL, NULL);
}
