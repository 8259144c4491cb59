/*
 * test_enroll.c - the program enroll and the verbs around it, on a tiny model with networks: the same bytes however it
 * is started, nothing left behind when it is killed, refusals with their exit codes, the store, speaking with it.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/model_dir.h"
#include "common/model/recipe.h"
#include "common/model/voice.h"
#include "common/model/voice_store.h"

#define TEXT "Tone and noise" /* 0.81 s: 0.068 s for each letter */

static char model[IO_PATH_BYTES], wav[IO_PATH_BYTES];

static int prepare(void **state)
{
    (void)state;
    const recipe tiny = {.size = RECIPE_TINY};
    snprintf(model, sizeof model, "%s", test_temp_dir());
    snprintf(wav, sizeof wav, "%s", test_path("tests/golden/voice/s24-48k-mono.wav"));
    assert_ok(recipe_make_dir(&tiny, RECIPE_SAFETENSORS, NULL, model));
    assert_ok(recipe_make_networks(&tiny, model));
    setenv("COSYFARM_MODEL", model, 1);
    return 0;
}

static void in_folder(char *ret_path, size_t path_bytes, const char *folder, const char *name)
{
    assert_ok(io_join(ret_path, path_bytes, folder, name));
}

/* Starts a built program; its streams go to files of the folder. env: one more variable, or NULL. */
static pid_t launch(const char *program, const char *const *args, const char *folder, const char *env)
{
    char path[IO_PATH_BYTES], out[IO_PATH_BYTES], errors[IO_PATH_BYTES], *environment[256];
    const char *dir = getenv("COSYFARM_BIN");
    size_t n = 0;
    pid_t pid;
    posix_spawn_file_actions_t files;
    in_folder(path, sizeof path, dir ? dir : "build/default/bin", program);
    in_folder(out, sizeof out, folder, "out");
    in_folder(errors, sizeof errors, folder, "err");
    for (char **e = environ; *e && n < 254; e++)
        environment[n++] = *e;
    if (env)
        memcpy(&environment[n++], &env, sizeof env);
    environment[n] = NULL;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, errors, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (posix_spawn(&pid, path, &files, NULL, (char *const *)(uintptr_t)args, environment) != 0)
        fail_msg("%s: cannot be started", path);
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

static int wait_for(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static char last_out[65536], last_err[65536];

static void keep(const char *folder, const char *name, char *ret_text, size_t text_bytes)
{
    char path[IO_PATH_BYTES], *text;
    size_t bytes;
    in_folder(path, sizeof path, folder, name);
    assert_ok(io_read_file(path, text_bytes - 1, &text, &bytes));
    memcpy(ret_text, text, bytes + 1);
    mem_free(text);
}

/* Runs it to its end; both streams are kept. */
static int run_with(const char *program, const char *env, const char *const *args)
{
    static char folder[IO_PATH_BYTES];
    if (!folder[0])
        snprintf(folder, sizeof folder, "%s", test_temp_dir());
    const int code = wait_for(launch(program, args, folder, env));
    keep(folder, "out", last_out, sizeof last_out);
    keep(folder, "err", last_err, sizeof last_err);
    return code;
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void expect_code(int code, int want)
{
    if (code != want)
        fail_msg("exit code %d, expected %d; stderr: %s", code, want, last_err);
}

static void expect_error(int code, int want, const char *part)
{
    expect_code(code, want);
    assert_string_equal(last_out, "");
    if (!strstr(last_err, part))
        fail_msg("stderr without \"%s\": %s", part, last_err);
    const char *line = strchr(last_err, '\n');
    assert_true(line && line[1] == '\0'); /* one line */
}

/* A member of the JSON object that was printed. */
static json *result(void)
{
    json *root;
    assert_ok(json_parse(last_out, strlen(last_out), 4, &root));
    return root;
}

static void read_bytes(const char *path, char **ret_data, size_t *ret_bytes)
{
    assert_ok(io_read_file(path, (size_t)64 << 20, ret_data, ret_bytes));
}

static void same_files(const char *a, const char *b)
{
    char *x, *y;
    size_t x_bytes, y_bytes;
    read_bytes(a, &x, &x_bytes);
    read_bytes(b, &y, &y_bytes);
    assert_int_equal(x_bytes, y_bytes);
    assert_memory_equal(x, y, x_bytes);
    mem_free(x);
    mem_free(y);
}

/* A voice says what made it, and loads. */
static void test_voice(void **state)
{
    (void)state;
    voice *v;
    uint64_t tokens, peak;
    const char *with;
    expect_code(run_with("enroll", NULL, ARGS("enroll", "--wav", wav, "--text", TEXT, "--name", "me")), 0);
    json *r = result();
    assert_ok(json_get_u64(r, "prompt_tokens", 1, 750, &tokens));
    assert_int_equal(tokens, 20); /* 19440 samples at 24 kHz: 40 frames */
    assert_ok(json_get_u64(r, "peak_bytes", 1, UINT64_MAX, &peak));
    assert_ok(json_get_str(r, "with", 255, &with));
    assert_non_null(strstr(with, "2 blocks of 128, 2 heads"));
    json_close(r);
    assert_ok(voice_load(model, "me", &v));
    assert_int_equal(v->prompt_tokens, 20);
    assert_string_equal(v->prompt_text, TEXT);
    assert_int_equal(strlen(v->tokenizer_sha256), 64);
    assert_int_equal(strlen(v->speaker_sha256), 64);
    assert_int_equal(strlen(v->recording_sha256), 64);
    voice_close(v);
    expect_error(run_with("enroll", NULL, ARGS("enroll", "--wav", wav, "--text", TEXT, "--name", "me")), 78,
                 "me.safetensors exists already; --force replaces it");
    expect_code(run_with("enroll", NULL, ARGS("enroll", "--wav", wav, "--text", TEXT, "--name", "me", "--force")), 0);
}

/* One at a time, with one thread, and sixteen at once. */
static void test_same_bytes(void **state)
{
    (void)state;
    enum { TOGETHER = 16 };
    char first[512], other[512], folders[TOGETHER][512], outs[TOGETHER][600];
    const char *dir = test_temp_dir();
    pid_t pids[TOGETHER];
    in_folder(first, sizeof first, dir, "first.safetensors");
    in_folder(other, sizeof other, dir, "other.safetensors");
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "-t", TEXT, "-o", first)), 0);
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "-t", TEXT, "-o", other, "--threads", "1")), 0);
    same_files(first, other);
    for (int i = 0; i < TOGETHER; i++) {
        snprintf(folders[i], sizeof folders[i], "%.400s/%d", dir, i);
        assert_ok(io_make_dirs(folders[i], 0700));
        in_folder(outs[i], sizeof outs[i], folders[i], "v.safetensors");
        pids[i] = launch("enroll", ARGS("enroll", "-w", wav, "-t", TEXT, "-o", outs[i]), folders[i], NULL);
    }
    for (int i = 0; i < TOGETHER; i++)
        assert_int_equal(wait_for(pids[i]), 0);
    for (int i = 0; i < TOGETHER; i++)
        same_files(first, outs[i]);
}

/* Killed before the voice is there, or failing to write it: no voice, no rest that counts as one. */
static void test_killed(void **state)
{
    (void)state;
    voice *v = NULL;
    static const char *const faults[] = {"enroll.tokens=kill", "enroll.save=kill", "enroll.save=fail",
                                         "mem.alloc#40=fail"};
    static const int codes[] = {128 + SIGKILL, 128 + SIGKILL, 75, 75};
    for (size_t i = 0; i < 4; i++) {
        char armed[64];
        snprintf(armed, sizeof armed, "COSYFARM_FAULT=%s", faults[i]);
        expect_code(run_with("enroll", armed, ARGS("enroll", "-w", wav, "-t", TEXT, "-n", "ghost")), codes[i]);
        assert_string_equal(last_out, "");
        assert_err(CF_ERR_NOTFOUND, "voice ghost", voice_load(model, "ghost", &v));
    }
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "-t", TEXT, "-n", "ghost")), 0);
    assert_ok(voice_load(model, "ghost", &v));
    voice_close(v);
}

/* Speech tokens of a recording that shall be converted: those of the voice before 2n frames cut them. */
static void test_source_tokens(void **state)
{
    (void)state;
    int32_t *tokens;
    size_t count;
    voice *v;
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "--tokens")), 0);
    json *r = result();
    assert_ok(json_get_i32s(r, "tokens", 0, 6560, 750, &tokens, &count));
    assert_int_equal(count, 21); /* ceil(81 / 4) */
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "-t", TEXT, "-n", "src", "--force")), 0);
    assert_ok(voice_load(model, "src", &v));
    assert_memory_equal(tokens, v->prompt_token, v->prompt_tokens * sizeof *tokens);
    voice_close(v);
    mem_free(tokens);
    json_close(r);
}

/* A mono wave file of s16. */
static void write_wave(const char *path, uint32_t rate_hz, size_t samples, int16_t level)
{
    byte_buf b = {0};
    byte_buf_add(&b, "RIFF", 4);
    byte_buf_add_u32(&b, (uint32_t)(36 + 2 * samples));
    byte_buf_add(&b, "WAVEfmt ", 8);
    byte_buf_add_u32(&b, 16);
    byte_buf_add_u16(&b, 1);
    byte_buf_add_u16(&b, 1);
    byte_buf_add_u32(&b, rate_hz);
    byte_buf_add_u32(&b, 2 * rate_hz);
    byte_buf_add_u16(&b, 2);
    byte_buf_add_u16(&b, 16);
    byte_buf_add(&b, "data", 4);
    byte_buf_add_u32(&b, (uint32_t)(2 * samples));
    for (size_t i = 0; i < samples; i++)
        byte_buf_add_u16(&b, (uint16_t)(i / 20 % 2 ? level : (int16_t)-level));
    assert_ok(byte_buf_check(&b));
    assert_ok(io_write_file(path, b.data, b.bytes));
    byte_buf_done(&b);
}

static void test_recordings_refused(void **state)
{
    (void)state;
    char path[512];
    in_folder(path, sizeof path, test_temp_dir(), "x.wav");
    write_wave(path, 16000, 7999, 3000);
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-t", "a", "-n", "x")), 65,
                 "x.wav: 0.50 s, a voice needs at least 0.5 s");
    write_wave(path, 16000, 16000, 8);
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-t", "a", "-n", "x")), 65,
                 "x.wav: silence: -72.2 dB of full scale, expected at least -66.0 dB");
    write_wave(path, 8000, 16000, 3000);
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-t", "a", "-n", "x")), 65,
                 "x.wav: 8000 Hz, expected at least 16000 Hz");
    write_wave(path, 16000, 480001, 3000);
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", path, "--tokens")), 65, "at most 30 s");
    write_wave(path, 16000, 16000, 3000);
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-t", " ...", "-n", "x")), 65,
                 "x.wav: the transcript is empty");
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-t", "\xff", "-n", "x")), 65,
                 "transcript: byte 0 is not UTF-8");
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", "/nothing.wav", "--tokens")), 65,
                 "/nothing.wav: no such recording");
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", test_path("README.md"), "--tokens")), 65,
                 "not readable as audio");
}

static void test_usage_and_models(void **state)
{
    (void)state;
    char path[512];
    const char *empty = test_temp_dir();
    static const char *const wrong[][8] = {
        {"enroll", NULL},
        {"enroll", "-w", "x", NULL},
        {"enroll", "-w", "x", "-t", "a", NULL},
        {"enroll", "-w", "x", "-n", "a", NULL},
        {"enroll", "-w", "x", "-t", "a", "--no-text", "--tokens", NULL},
        {"enroll", "-w", "x", "--tokens", "--threads", "many", NULL},
        {"enroll", "-w", "x", "--tokens", "more", NULL},
        {"enroll", "--loudness", NULL},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        expect_code(run_with("enroll", NULL, wrong[i]), 64);
        assert_string_equal(last_out, "");
    }
    expect_code(run_with("enroll", NULL, ARGS("enroll", "--help")), 0);
    assert_non_null(strstr(last_out, "--no-text"));
    expect_code(run_with("enroll", NULL, ARGS("enroll", "--version")), 0);
    assert_memory_equal(last_out, "enroll ", 7);
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-m", empty, "-w", wav, "--tokens")), 78,
                 "not a Fun-CosyVoice3 model directory");
    in_folder(path, sizeof path, empty, "cosyvoice3.yaml");
    assert_ok(io_write_file(path, "x\n", 2));
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-m", empty, "-w", wav, "--tokens")), 78,
                 "speech_tokenizer_v3.onnx: no such file");
    in_folder(path, sizeof path, empty, MODEL_TOKENIZER_FILE);
    assert_ok(io_write_file(path, "version https://git-lfs.github.com/spec/v1\n", 43));
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-m", empty, "-w", wav, "--tokens")), 78,
                 "speech_tokenizer_v3.onnx: a Git-LFS pointer");
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "--tokens", "--device", "tape")), 78,
                 "device \"tape\"");
    expect_error(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "-t", TEXT, "-n", "a/b")), 78,
                 "voice name \"a/b\"");
}

static size_t count_warnings(void)
{
    json *r = result();
    const size_t count = json_count(json_find(r, "warnings"));
    json_close(r);
    return count;
}

static void test_warnings(void **state)
{
    (void)state;
    char path[512], out[512];
    const char *dir = test_temp_dir();
    in_folder(path, sizeof path, dir, "x.wav");
    in_folder(out, sizeof out, dir, "v.safetensors");
    write_wave(path, 16000, 64000, 12000); /* 4 s */
    expect_code(run_with("enroll", NULL,
                         ARGS("enroll", "-w", path, "-o", out, "-t", "Some forty letters for four seconds of a tone")),
                0);
    assert_int_equal(count_warnings(), 0);
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-o", out, "--force", "-t", "Ten letters")), 0);
    assert_int_equal(count_warnings(), 1);
    assert_non_null(strstr(last_err, "4.00 s for 10 characters are 0.400 s each, expected 0.03 to 0.25"));
    /* Ideographs count as three: 14 of them are 4 s. */
    expect_code(run_with("enroll", NULL,
                         ARGS("enroll", "-w", path, "-o", out, "--force", "-t", "希望你以后能够做的比我还好呦。")),
                0);
    assert_int_equal(count_warnings(), 0);
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-o", out, "--force", "--no-text")), 0);
    assert_int_equal(count_warnings(), 0);
    write_wave(path, 16000, 16000, 32767); /* 1 s, clipped */
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", path, "-o", out, "--force", "-t", "Thirteen or more")),
                0);
    assert_int_equal(count_warnings(), 2);
    assert_non_null(strstr(last_err, "1.00 s are little for a voice"));
    assert_non_null(strstr(last_err, "clipped in"));
}

static size_t count_files(const char *folder)
{
    DIR *dir = opendir(folder);
    size_t count = 0;
    assert_non_null(dir);
    for (struct dirent *e = readdir(dir); e; e = readdir(dir))
        count += e->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* The same recording and transcript are enrolled once; the folder stays within its bound. */
static void test_store(void **state)
{
    (void)state;
    char store[512], key[SHA256_HEX_BYTES], path[IO_PATH_BYTES];
    const char *name;
    bool cached;
    in_folder(store, sizeof store, test_temp_dir(), "store");
    for (int i = 0; i < 2; i++) {
        expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "-t", TEXT, "--store", store)), 0);
        json *r = result();
        assert_ok(json_get_bool(r, "cached", &cached));
        assert_int_equal(cached, i == 1);
        assert_ok(voice_store_key(model, wav, TEXT, key));
        assert_ok(json_get_str(r, "name", 64, &name));
        assert_string_equal(name, key);
        json_close(r);
    }
    assert_ok(voice_store_path(store, key, path));
    assert_true(voice_store_has(path));
    assert_int_equal(count_files(store), 1);
    /* A damaged file is made again. */
    assert_ok(io_write_file(path, "spoiled", 7));
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "-t", TEXT, "--store", store)), 0);
    assert_non_null(strstr(last_out, "\"cached\":false"));
    /* Another transcript is another voice; a bound of nothing leaves the newest alone. */
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-w", wav, "--no-text", "--store", store)), 0);
    assert_int_equal(count_files(store), 2);
    expect_code(run_with("enroll", NULL,
                         ARGS("enroll", "-w", wav, "-t", "Noise and tone", "--store", store, "--store-mib", "0")),
                0);
    assert_int_equal(count_files(store), 1);
    assert_false(voice_store_has(path));
}

/* Networks that were exchanged under a voice. */
static void test_other_networks(void **state)
{
    (void)state;
    char dir[IO_PATH_BYTES], path[IO_PATH_BYTES];
    voice *v = NULL;
    const recipe tiny = {.size = RECIPE_TINY}, other = {.size = RECIPE_TINY, .seed = 7};
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    in_folder(path, sizeof path, dir, "cosyvoice3.yaml");
    assert_ok(io_write_file(path, "x\n", 2));
    assert_ok(recipe_make_networks(&tiny, dir));
    expect_code(run_with("enroll", NULL, ARGS("enroll", "-m", dir, "-w", wav, "-t", TEXT, "-n", "me")), 0);
    assert_ok(voice_load(dir, "me", &v));
    voice_close(v);
    v = NULL;
    in_folder(path, sizeof path, dir, MODEL_SPEAKER_FILE);
    assert_ok(recipe_write_speaker(&other, true, path));
    assert_err(CF_ERR_MISMATCH, "voice me: made with another campplus.onnx (", voice_load(dir, "me", &v));
    assert_null(v);
    in_folder(path, sizeof path, dir, "voices/.networks"); /* forgotten or spoiled, the answer stays */
    assert_ok(io_write_file(path, "{\"campplus.onnx\": 3", 19));
    assert_err(CF_ERR_MISMATCH, "enroll its recording again", voice_load(dir, "me", &v));
}

/* The command: enroll, show, export both ways, import, speak. */
static void test_command(void **state)
{
    (void)state;
    char pt[512], file[512], out[512], run_dir[512];
    const char *dir = test_temp_dir();
    voice *a, *b;
    in_folder(pt, sizeof pt, dir, "spk2info.pt");
    in_folder(file, sizeof file, dir, "copy.safetensors");
    in_folder(out, sizeof out, dir, "hello.wav");
    in_folder(run_dir, sizeof run_dir, dir, "run");
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "enroll", wav, "--text", TEXT, "-n", "own")), 0);
    assert_non_null(strstr(last_out, "own "));
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "enroll", wav, "--text", TEXT, "-n", "own")), 78);
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "enroll", wav, "-n", "own")), 64);
    expect_code(
        run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "enroll", test_path("README.md"), "-t", "a", "-n", "no")),
        65);
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "show", "own", "--json")), 0);
    assert_non_null(strstr(last_out, "\"campplus_sha256\""));
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "export", "own", "-o", file)), 0);
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "export", "--spk2info", "own", "vale", "-o", pt)),
                0);
    assert_non_null(strstr(last_out, "2 voices in "));
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "export", "own", "-o", file)), 78);
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "import", pt, "own", "--force")), 0);
    assert_ok(voice_load(model, "own", &a));
    assert_ok(voice_load_file(file, &b));
    assert_int_equal(a->prompt_tokens, b->prompt_tokens);
    assert_memory_equal(a->prompt_token, b->prompt_token, a->prompt_tokens * sizeof *a->prompt_token);
    assert_memory_equal(a->prompt_feat, b->prompt_feat, a->prompt_tokens * 2 * 80 * sizeof *a->prompt_feat);
    assert_memory_equal(a->embedding, b->embedding, sizeof a->embedding);
    assert_true(a->prompt_text_ids > 0); /* upstream keeps ids */
    voice_close(a);
    voice_close(b);
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "import", file, "own", "--force")), 0);
    setenv("COSYFARM_RUN_DIR", run_dir, 1);
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "say", "-v", "own", "-o", out, "Hello.")), 0);
    assert_true(io_exists(out));
}

/* A row that names a recording says the same bytes as one with the voice made of it; rows of one recording share it. */
static void test_rows_that_name_recordings(void **state)
{
    (void)state;
    char folder[IO_PATH_BYTES], said[IO_PATH_BYTES], named[IO_PATH_BYTES], rows[IO_PATH_BYTES];
    static char text[5 * IO_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", test_temp_dir());
    setenv("COSYFARM_RUN_DIR", folder, 1); /* no farm runs there */
    in_folder(said, sizeof said, folder, "said.wav");
    in_folder(named, sizeof named, folder, "named.wav");
    in_folder(rows, sizeof rows, folder, "rows.jsonl");
    expect_code(
        run_with("cosyfarm", NULL, ARGS("cosyfarm", "voice", "enroll", wav, "--text", TEXT, "-n", "me", "--force")), 0);
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "say", "-v", "me", "-o", said, "It rained.")), 0);
    expect_code(
        run_with("cosyfarm", NULL,
                 ARGS("cosyfarm", "say", "--prompt-wav", wav, "--prompt-text", TEXT, "-o", named, "It rained.")),
        0);
    same_files(said, named);
    snprintf(text, sizeof text,
             "{\"id\":\"a\",\"text\":\"It rained.\",\"seed\":0,\"prompt_wav\":\"%s\",\"prompt_text\":\"" TEXT "\"}\n"
             "{\"id\":\"b\",\"text\":\"It rained.\",\"seed\":1,\"prompt_wav\":\"%s\",\"prompt_text\":\"" TEXT "\"}\n"
             "{\"id\":\"c\",\"source_wav\":\"%s\",\"voice\":\"vale\"}\n"
             "{\"id\":\"d\",\"source_wav\":\"%s\",\"voice\":\"vale\"}\n",
             wav, wav, wav, rows);
    assert_ok(io_write_file(rows, text, strlen(text)));
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "batch", rows, "-o", folder)), 65); /* d is no recording */
    assert_non_null(strstr(last_out, "3 done, 1 failed"));
    in_folder(named, sizeof named, folder, "audio/a.wav");
    same_files(said, named);
    in_folder(named, sizeof named, folder, ".voices");
    assert_int_equal(count_files(named), 1);
    in_folder(named, sizeof named, folder, "audio/c.wav");
    in_folder(said, sizeof said, folder, "converted.wav");
    expect_code(run_with("cosyfarm", NULL, ARGS("cosyfarm", "convert", wav, "-v", "vale", "-o", said)), 0);
    same_files(said, named);
}

/* Recordings without an end hold up nothing: a pipe that nobody writes, and an enrolment that hangs. */
static void test_recordings_that_hang(void **state)
{
    (void)state;
    char folder[IO_PATH_BYTES], fifo[IO_PATH_BYTES], rows[IO_PATH_BYTES], conf[IO_PATH_BYTES];
    static char text[4 * IO_PATH_BYTES], ledger[16384];
    snprintf(folder, sizeof folder, "%s", test_temp_dir());
    setenv("COSYFARM_RUN_DIR", folder, 1); /* no farm runs there */
    in_folder(fifo, sizeof fifo, folder, "pipe.wav");
    in_folder(rows, sizeof rows, folder, "rows.jsonl");
    in_folder(conf, sizeof conf, folder, "config.json");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_ok(io_write_file(conf, "{\"precision\":\"bf16\",\"enroll_s\":1}", 33));
    snprintf(text, sizeof text,
             "{\"id\":\"a\",\"text\":\"Yes.\",\"prompt_wav\":\"pipe.wav\",\"prompt_text\":\"x\"}\n"
             "{\"id\":\"b\",\"source_wav\":\"pipe.wav\"}\n"
             "{\"id\":\"c\",\"source_wav\":\"%s\"}\n{\"id\":\"d\",\"text\":\"Yes.\"}\n",
             wav);
    assert_ok(io_write_file(rows, text, strlen(text)));
    expect_code(run_with("cosyfarm", "COSYFARM_FAULT=enroll.tokens=stop",
                         ARGS("cosyfarm", "batch", "--config", conf, rows, "-o", folder)),
                65);
    assert_non_null(strstr(last_out, "1 done, 3 failed"));
    keep(folder, "ledger.jsonl", ledger, sizeof ledger);
    assert_non_null(strstr(ledger, "pipe.wav: not a regular file"));
    expect_error(run_with("cosyfarm", "COSYFARM_FAULT=enroll.tokens=stop",
                          ARGS("cosyfarm", "convert", "--deadline", "1", wav, "-v", "vale", "-o", fifo)),
                 65, "timeout: the row's deadline passed before its recording was enrolled");
    assert_non_null(strstr(ledger, "this recording took longer than 1 s to enroll (enroll_s)"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_voice),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_source_tokens),
        cmocka_unit_test(test_recordings_refused),
        cmocka_unit_test(test_usage_and_models),
        cmocka_unit_test(test_warnings),
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_other_networks),
        cmocka_unit_test(test_command),
        cmocka_unit_test(test_rows_that_name_recordings),
        cmocka_unit_test(test_recordings_that_hang),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, prepare, NULL);
}
