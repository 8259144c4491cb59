/*
 * test_cmd_model.c - `cosyfarm model` and `cosyfarm voice` as a user has them: exit codes, what stands on which stream,
 * one line for each thing that is wrong, and the rest checked all the same.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/safetensors.h"
#include "common/model/voice.h"
#include "tests/harness/command.h"
#include "tests/harness/tiny_model.h"
#include "tests/unit/model_edit.h"
#include "tools/cmd.h"

static size_t count_lines(const char *text)
{
    size_t count = 0;
    for (; *text; text++)
        count += *text == '\n';
    return count;
}

static void expect_in(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("expected ...%s..., found:\n%s", part, text);
}

/* Nothing on stdout, one complaint on stderr. */
static void expect_failure(int code, int want, const char *part)
{
    if (code != want)
        fail_msg("exit code %d, expected %d: %s", code, want, command_errors);
    assert_string_equal(command_out, "");
    expect_in(command_errors, part);
    assert_true(count_lines(command_errors) <= (want == EXIT_USAGE ? 2 : 1));
}

static char *tiny(void)
{
    return (char *)(uintptr_t)tiny_model_dir();
}

#define MODEL(...) COMMAND(cmd_model, "model", __VA_ARGS__)
#define VOICE(...) COMMAND(cmd_voice, "voice", __VA_ARGS__)

static void test_usage(void **state)
{
    (void)state;
    expect_failure(COMMAND(cmd_model, "model"), EXIT_USAGE, "expected make, ls or check");
    expect_failure(MODEL("sing"), EXIT_USAGE, "expected make, ls or check, found \"sing\"");
    expect_failure(MODEL("ls"), EXIT_USAGE, "ls: expected one path");
    expect_failure(MODEL("ls", "a", "b"), EXIT_USAGE, "ls: expected one path");
    expect_failure(MODEL("check"), EXIT_USAGE, "check: expected one path");
    expect_failure(MODEL("make", "x", "--size", "huge"), EXIT_USAGE,
                   "--size: expected tiny, small or full, found \"huge\"");
    expect_failure(MODEL("make", "x", "--seed", "-1"), EXIT_USAGE,
                   "--seed: expected an unsigned 64-bit integer, found \"-1\"");
    expect_failure(MODEL("make", "x", "--seed", "18446744073709551616"), EXIT_USAGE, "--seed");
    expect_failure(MODEL("make", "x", "--seed", ""), EXIT_USAGE, "--seed");
    expect_failure(MODEL("make", "x", "--profile", "soft"), EXIT_USAGE, "--profile: expected plain or harsh");
    expect_failure(MODEL("make", "x", "--format", "onnx"), EXIT_USAGE, "--format: expected safetensors or pt");
    assert_false(io_exists("x"));
    assert_int_equal(MODEL("ls", "--size", "tiny", "a"), EXIT_USAGE); /* an option of another verb */
    static char *const HELPS[] = {"make", "ls", "check"};
    for (size_t i = 0; i < CF_COUNT(HELPS); i++) {
        assert_int_equal(MODEL(HELPS[i], "--help"), EXIT_DONE);
        expect_in(command_out, "usage: cosyfarm model make DIR");
        assert_string_equal(command_errors, "");
    }
    assert_int_equal(MODEL("--help"), EXIT_DONE);
}

/* ---- make ---- */

/* One line of `ls` as the lists in tests/golden/recipe have it: name, shape, hash. */
static void golden_line(const char *json_line, size_t bytes, char *ret_line, size_t line_bytes)
{
    json *root;
    const char *name, *hex, *type;
    assert_ok(json_parse(json_line, bytes, 3, &root));
    assert_ok(json_get_str(root, "name", 200, &name));
    assert_ok(json_get_str(root, "sha256", 64, &hex));
    assert_ok(json_get_str(root, "dtype", 8, &type));
    assert_string_equal(type, "f32");
    size_t used = (size_t)snprintf(ret_line, line_bytes, "%s ", name);
    for (const json *v = json_first(json_find(root, "shape")); v; v = json_next(v)) {
        uint64_t size;
        assert_ok(json_as_u64(v, "shape", 0, 1u << 30, &size));
        used += (size_t)snprintf(ret_line + used, line_bytes - used, "%d%s", (int)size, json_next(v) ? "x" : "");
    }
    snprintf(ret_line + used, line_bytes - used, " %s", hex);
    json_close(root);
}

static void test_makes_the_recipe(void **state)
{
    (void)state;
    char dir[IO_PATH_BYTES], line[400];
    char *golden;
    size_t bytes, found = 0;
    snprintf(dir, sizeof dir, "%s/new/model", test_temp_dir());
    assert_int_equal(MODEL("make", dir, "--size", "tiny", "--seed", "0"), EXIT_DONE);
    assert_string_equal(command_out, "");
    assert_string_equal(command_errors, "");
    assert_int_equal(MODEL("ls", dir, "--hash"), EXIT_DONE);
    assert_ok(io_read_file(test_path("tests/golden/recipe/tiny-0.txt"), 1 << 20, &golden, &bytes));
    for (const char *p = command_out; *p; found++) {
        const size_t line_bytes = strcspn(p, "\n");
        golden_line(p, line_bytes, line, sizeof line);
        expect_in(golden, line);
        p += line_bytes + 1;
    }
    size_t voices = 0; /* the list has the tensors of both voices too */
    for (const char *p = strstr(golden, "\nvoice."); p; p = strstr(p + 1, "\nvoice."))
        voices++;
    assert_int_equal(found + voices, count_lines(golden));
    mem_free(golden);
    expect_failure(MODEL("make", dir, "--seed", "0"), EXIT_CONFIG,
                   "/new/model/llm.safetensors is there already; choose another directory, or --force");
    assert_int_equal(MODEL("make", dir, "--seed", "0", "--force"), EXIT_DONE);
    expect_failure(MODEL("make", dir, "--format", "pt", "--force"), EXIT_CONFIG,
                   "is in the way: it would be loaded instead of llm.pt");
    model_put_text(dir, "cosyvoice3.yaml", "sample_rate: 24000\n");
    expect_failure(MODEL("make", dir, "--force"), EXIT_CONFIG,
                   "holds a model that is not synthetic; choose another directory");
    snprintf(dir, sizeof dir, "%s/full", test_temp_dir());
    expect_failure(MODEL("make", dir, "--size", "full"), EXIT_CONFIG, "a full model needs the released vocabulary");
    expect_failure(MODEL("make", "/proc/nowhere"), EXIT_CONFIG, "/proc/nowhere: mkdir");
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    model_put_text(dir, "flow.pt", "somebody's"); /* of a download that has not ended, say */
    expect_failure(MODEL("make", dir), EXIT_CONFIG, "/flow.pt is there already");
}

/* ---- ls ---- */

static void test_lists(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    assert_int_equal(MODEL("ls", tiny()), EXIT_DONE);
    assert_string_equal(command_errors, "");
    const size_t all = count_lines(command_out);
    size_t sum = 0;
    static const char *const FILES[] = {"llm", "flow", "hift"};
    for (size_t i = 0; i < 3; i++) {
        char member[64];
        snprintf(member, sizeof member, "{\"file\":\"%s.safetensors\",\"name\":\"", FILES[i]);
        MODEL("ls", tiny(), "--json");
        expect_in(command_out, member);
        snprintf(path, sizeof path, "%s/%s.safetensors", tiny(), FILES[i]);
        assert_int_equal(MODEL("ls", path), EXIT_DONE);
        assert_int_equal(strncmp(command_out, "{\"name\":\"", 9), 0); /* one file needs no name in front */
        assert_null(strstr(command_out, "sha256"));
        sum += count_lines(command_out);
    }
    assert_int_equal(sum, all);
    expect_failure(MODEL("ls", "/nonexistent"), EXIT_CONFIG, "/nonexistent: no such file");
    const char *dir = model_link(tiny());
    model_put_text(dir, "flow.safetensors", "version https://git-lfs.github.com/spec/v1\n");
    snprintf(path, sizeof path, "%s/flow.safetensors", dir);
    expect_failure(MODEL("ls", path), EXIT_CONFIG, "flow.safetensors: a Git-LFS pointer");
    expect_failure(MODEL("ls", (char *)(uintptr_t)test_path("tests")), EXIT_CONFIG, "no file for the llm stage");
}

static void test_lists_checkpoints(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    io_map map;
    unsigned char *bytes;
    const char *dir = model_link(tiny_model_pt_dir());
    snprintf(path, sizeof path, "%s/hift.pt", dir);
    assert_int_equal(MODEL("ls", path, "--verify"), EXIT_DONE);
    expect_in(command_out, "{\"name\":\"m_source.l_linear.weight\",\"dtype\":\"f32\",\"shape\":[1,9]}");
    assert_ok(io_map_file(path, &map));
    assert_ok(mem_alloc(map.data_bytes, 1, &bytes));
    memcpy(bytes, map.data, map.data_bytes);
    bytes[map.data_bytes / 2] ^= 1; /* in some tensor */
    model_put(dir, "hift.pt", bytes, map.data_bytes);
    io_unmap(&map);
    mem_free(bytes);
    assert_int_equal(MODEL("ls", path), EXIT_DONE); /* nobody asked */
    expect_failure(MODEL("ls", path, "--verify"), EXIT_CONFIG, "checksum: expected");
    expect_in(command_errors, "record data/");
    assert_int_equal(MODEL("check", (char *)(uintptr_t)dir), EXIT_DONE);
    assert_int_equal(MODEL("check", (char *)(uintptr_t)dir, "--verify"), EXIT_CONFIG);
    expect_in(command_errors, "hift.pt: record data/");
    assert_int_equal(count_lines(command_errors), 1);
}

/* ---- check ---- */

static void test_checks_a_good_directory(void **state)
{
    (void)state;
    assert_int_equal(MODEL("check", tiny()), EXIT_DONE);
    assert_string_equal(command_errors, "");
    assert_int_equal(count_lines(command_out), 7);
    expect_in(command_out, "config CosyVoice-BlankEN/config.json: 128 wide, 2 layers, 2 heads over 1, 832 text rows");
    expect_in(command_out, "text   CosyVoice-BlankEN/vocab.json: 511 tokens");
    expect_in(command_out, "llm    llm.safetensors: 28 tensors, f32, ");
    expect_in(command_out, "voice  vale: 87 prompt tokens");
    assert_null(strstr(command_out, "sha256"));
    assert_int_equal(MODEL("check", tiny(), "--verify"), EXIT_DONE);
    expect_in(command_out, ", sha256 ");
    assert_int_equal(MODEL("check", (char *)(uintptr_t)tiny_model_pt_dir(), "--verify"), EXIT_DONE);
    expect_in(command_out, "llm    llm.pt: 29 tensors, f32, ");
}

static void test_goes_on_after_each_problem(void **state)
{
    (void)state;
    char *dir = (char *)(uintptr_t)model_link(tiny());
    model_put_text(dir, "CosyVoice-BlankEN/vocab.json", "{\"a\":0,}");
    model_rewrite(dir, "flow.safetensors", &(tensor_edit){.tensor = "decoder.estimator.proj_out.bias", .renamed = ""});
    model_rewrite(dir, "hift.safetensors", &(tensor_edit){.tensor = "conv_post.bias", .not_finite = true});
    model_put_text(dir, "voices/echo.safetensors", "oh");
    assert_int_equal(MODEL("check", dir), EXIT_CONFIG);
    assert_int_equal(count_lines(command_errors), 3);
    expect_in(command_errors, "vocab.json: JSON: syntax error");
    expect_in(command_errors, "flow.safetensors: tensor decoder.estimator.proj_out.bias is missing");
    expect_in(command_errors, "echo.safetensors: 2 bytes are too few");
    assert_int_equal(count_lines(command_out), 4); /* config, llm, hift, vale */
    assert_int_equal(MODEL("check", dir, "--verify"), EXIT_CONFIG);
    assert_int_equal(count_lines(command_errors), 4);
    expect_in(command_errors, "hift.safetensors: tensor conv_post.bias: value 17 is not finite");
    /* Without its configuration the rest is still looked at. */
    dir = (char *)(uintptr_t)model_link(tiny());
    model_put(dir, "CosyVoice-BlankEN/config.json", NULL, 0);
    model_put(dir, "CosyVoice-BlankEN/merges.txt", NULL, 0);
    model_put(dir, "cosyvoice3.yaml", NULL, 0);
    model_put(dir, "hift.safetensors", NULL, 0);
    assert_int_equal(MODEL("check", dir), EXIT_CONFIG);
    assert_int_equal(count_lines(command_errors), 4);
    assert_int_equal(count_lines(command_out), 4); /* llm, flow, both voices */
    assert_int_equal(MODEL("check", "/nonexistent"), EXIT_CONFIG);
    expect_in(command_errors, "/nonexistent: no such model directory");
}

static void test_vocabulary_needs_rows(void **state)
{
    (void)state;
    static char vocab[1 << 15];
    char *dir = (char *)(uintptr_t)model_link(tiny());
    size_t used = (size_t)snprintf(vocab, sizeof vocab, "{\"t0\":0");
    for (int i = 1; i < 552; i++) /* 832 rows are enough for 551 and the 281 special tokens */
        used += (size_t)snprintf(vocab + used, sizeof vocab - used, ",\"t%d\":%d", i, i);
    snprintf(vocab + used, sizeof vocab - used, "}");
    model_put_text(dir, "CosyVoice-BlankEN/vocab.json", vocab);
    assert_int_equal(MODEL("check", dir), EXIT_CONFIG);
    assert_int_equal(count_lines(command_errors), 1);
    expect_in(command_errors, "vocab.json: 552 tokens and 281 special ones, but config.json has 832 rows");
    model_put_text(dir, "CosyVoice-BlankEN/vocab.json", "{}");
    assert_int_equal(MODEL("check", dir), EXIT_CONFIG);
    expect_in(command_errors, "vocab.json: no tokens");
}

/* What the LLM says the flow has to know, and a voice's prompt is said with. */
static void test_codes_agree(void **state)
{
    (void)state;
    static const tensor_edit fewer = {
        .tensor = "input_embedding.weight", .reshaped = true, .type = ENTRY_F32, .rank = 2, .shape = {1024, 80}};
    static const tensor_edit embedding = {
        .tensor = "speech_embedding.weight", .reshaped = true, .type = ENTRY_F32, .rank = 2, .shape = {1224, 128}};
    static const tensor_edit head = {
        .tensor = "llm_decoder.weight", .reshaped = true, .type = ENTRY_F32, .rank = 2, .shape = {1224, 128}};
    const char *dir = model_link(tiny_model_dir());
    model_rewrite(dir, "flow.safetensors", &fewer);
    assert_int_equal(MODEL("check", (char *)(uintptr_t)dir), EXIT_CONFIG);
    expect_in(command_errors, "flow has 1024 speech codes, the llm has 6561");
    model_rewrite(dir, "llm.safetensors", &embedding);
    model_rewrite(dir, "llm.safetensors", &head);
    assert_int_equal(MODEL("check", (char *)(uintptr_t)dir), EXIT_CONFIG);
    assert_null(strstr(command_errors, "the llm has"));
    expect_in(command_errors, "voice echo: prompt_token: id ");
    expect_in(command_errors, "the model has 1024 speech codes");
}

static void test_memory_runs_out(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s/hift.safetensors", tiny());
    static const struct {
        const char *spec;
        int verb;
    } CASES[] = {{"mem.alloc#3=fail", 0}, {"mem.alloc#100=fail", 0}, {"mem.alloc#1=fail", 1}, {"mem.alloc#20=fail", 1}};
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        assert_ok(fault_arm(CASES[i].spec));
        const int code = CASES[i].verb == 0 ? MODEL("check", tiny()) : MODEL("ls", path);
        assert_ok(fault_arm(NULL));
        assert_int_equal(code, EXIT_AGAIN);
        expect_in(command_errors, "out of memory");
        assert_int_equal(count_lines(command_errors), 1);
    }
}

/* ---- voice ---- */

static void test_voice_usage(void **state)
{
    (void)state;
    unsetenv("COSYFARM_MODEL");
    expect_failure(COMMAND(cmd_voice, "voice"), EXIT_USAGE, "expected ls, show, import, rm, enroll or export");
    expect_failure(VOICE("sing", "-m", tiny()), EXIT_USAGE, "expected ls, show, import, rm, enroll or export");
    expect_failure(VOICE("ls"), EXIT_CONFIG, "no model directory: give -m DIR or set COSYFARM_MODEL");
    expect_failure(VOICE("ls", "-m", "nonex"), EXIT_CONFIG, "nonex: no such model directory");
    expect_failure(VOICE("ls", "-m", ""), EXIT_CONFIG, "no model directory: give -m DIR or set COSYFARM_MODEL");
    expect_failure(VOICE("ls", "--jsn"), EXIT_USAGE, "option \"--jsn\" is not known");
    expect_failure(VOICE("ls", "-m", tiny(), "extra"), EXIT_USAGE, "wrong number of arguments");
    expect_failure(VOICE("show", "-m", tiny()), EXIT_USAGE, "wrong number of arguments");
    expect_failure(VOICE("rm", "-m", tiny()), EXIT_USAGE, "wrong number of arguments");
    expect_failure(VOICE("import", "-m", tiny(), "a", "b", "c"), EXIT_USAGE, "wrong number of arguments");
    expect_failure(VOICE("show", "-m", tiny(), "nobody"), EXIT_CONFIG, "voice nobody: no file");
    expect_failure(VOICE("show", "-m", tiny(), "../llm"), EXIT_CONFIG, "begins with a dot");
    expect_failure(VOICE("rm", "-m", tiny(), "../llm"), EXIT_CONFIG, "begins with a dot");
    expect_failure(VOICE("rm", "-m", tiny(), "nobody"), EXIT_CONFIG, "voice nobody: no file");
    expect_failure(VOICE("import", "-m", "/nonexistent", "x"), EXIT_CONFIG, "no such model directory");
    expect_failure(VOICE("import", "-m", tiny(), "/nonexistent.pt"), EXIT_CONFIG, "/nonexistent.pt: no such file");
    assert_int_equal(VOICE("--help"), EXIT_DONE);
    setenv("COSYFARM_MODEL", tiny(), 1);
    assert_int_equal(VOICE("ls"), EXIT_DONE);
    unsetenv("COSYFARM_MODEL");
    assert_int_equal(count_lines(command_out), 2);
    expect_in(command_out, "echo ");
    assert_int_equal(VOICE("show", "-m", tiny(), "vale", "--json"), EXIT_DONE);
    expect_in(command_out,
              "{\"name\":\"vale\",\"prompt_tokens\":87,\"prompt_frames\":174,\"seconds\":3.48,\"prompt_text\":");
}

static void test_imports_one_voice(void **state)
{
    (void)state;
    char source[IO_PATH_BYTES];
    voice *was, *is;
    char *dir = (char *)(uintptr_t)model_link(tiny());
    snprintf(source, sizeof source, "%s/voices/echo.safetensors", tiny());
    expect_failure(VOICE("import", "-m", dir, source), EXIT_CONFIG, "voice echo exists already; --force replaces it");
    assert_int_equal(VOICE("import", "-m", dir, source, "other"), EXIT_DONE);
    expect_in(command_out, "other ");
    assert_ok(voice_load(tiny(), "echo", &was));
    assert_ok(voice_load(dir, "other", &is));
    assert_string_equal(is->sha256, was->sha256);
    voice_close(was);
    voice_close(is);
    expect_failure(VOICE("import", "-m", dir, source, "a/b"), EXIT_CONFIG, "'/'");
    expect_failure(VOICE("import", "-m", dir, source, ".hidden"), EXIT_CONFIG, "begins with a dot");
    assert_int_equal(VOICE("import", "-m", dir, source, "--force", "--json"), EXIT_DONE);
    assert_int_equal(VOICE("rm", "-m", dir, "other", "vale"), EXIT_DONE);
    assert_int_equal(VOICE("ls", "-m", dir), EXIT_DONE);
    assert_int_equal(count_lines(command_out), 1);
    /* A broken one among good ones is named, and the rest is still shown. */
    model_put_text(dir, "voices/broken.safetensors", "oh");
    assert_int_equal(VOICE("ls", "-m", dir), EXIT_CONFIG);
    assert_int_equal(count_lines(command_out), 1);
    expect_in(command_errors, "broken.safetensors: 2 bytes are too few");
    expect_in(command_errors, "not every voice of");
}

static void test_imports_saved_voices(void **state)
{
    (void)state;
    char file[IO_PATH_BYTES], ids[IO_PATH_BYTES];
    char *dir = (char *)(uintptr_t)model_link(tiny());
    snprintf(ids, sizeof ids, "%s", test_shared("data/pt/spk2info.pt"));
    snprintf(file, sizeof file, "%s", test_shared("data/pt/spk2info-tiny.pt"));
    expect_failure(VOICE("import", "-m", dir, ids, "--force"), EXIT_CONFIG, "the model has 832 text rows");
    expect_failure(VOICE("import", "-m", dir, file, "nobody"), EXIT_CONFIG, "no voice nobody among its 2");
    static char *const names[] = {"echo", "vale"};
    for (int i = 0; i < 2; i++) { /* the other one is there already: none of the two is written */
        char *other = (char *)(uintptr_t)model_link(tiny());
        assert_int_equal(VOICE("rm", "-m", other, names[i]), EXIT_DONE);
        expect_failure(VOICE("import", "-m", other, file), EXIT_CONFIG, "--force replaces it; none was imported");
        assert_int_equal(VOICE("ls", "-m", other), EXIT_DONE);
        assert_int_equal(count_lines(command_out), 1);
    }
    assert_int_equal(VOICE("rm", "-m", dir, "vale"), EXIT_DONE);
    assert_int_equal(VOICE("import", "-m", dir, file, "vale"), EXIT_DONE); /* one of them */
    assert_int_equal(count_lines(command_out), 1);
    expect_in(command_errors, "note: vale: saved voices of CosyVoice 2 look the same");
    assert_int_equal(VOICE("show", "-m", dir, "vale"), EXIT_DONE);
    expect_in(command_out, "(transcript of ");
    snprintf(file, sizeof file, "%s", test_shared("data/pt/spk2info-sft.pt"));
    assert_int_equal(VOICE("import", "-m", dir, file, "--force"), EXIT_DONE);
    assert_int_equal(count_lines(command_out), 3);
    expect_in(command_errors, "a speaker vector only, no prompt");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_makes_the_recipe),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_lists_checkpoints),
        cmocka_unit_test(test_checks_a_good_directory),
        cmocka_unit_test(test_goes_on_after_each_problem),
        cmocka_unit_test(test_vocabulary_needs_rows),
        cmocka_unit_test(test_codes_agree),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_voice_usage),
        cmocka_unit_test(test_imports_one_voice),
        cmocka_unit_test(test_imports_saved_voices),
    };
    return cmocka_run_group_tests_name("cmd_model", tests, NULL, NULL);
}
