/*
 * test_parity_voice.c - `cosyfarm parity` on recordings and on the two networks of enrollment: every case of the
 * repository and of the reference set passes, and an altered weight, recording or case is noticed by name.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/onnx.h"
#include "common/model/recipe.h"
#include "tests/harness/command.h"
#include "tools/cmd.h"

#define RUN(...) COMMAND(cmd_parity, "parity", __VA_ARGS__)

/* A model directory with the two networks of the tiny recipe alone: what these stages may ask for. */
static char networks_dir[IO_PATH_BYTES];

static int make_networks(void **state)
{
    (void)state;
    const recipe tiny = {.size = RECIPE_TINY};
    snprintf(networks_dir, sizeof networks_dir, "%s/networks", test_temp_dir());
    assert_ok(io_make_dirs(networks_dir, 0777));
    assert_ok(recipe_make_networks(&tiny, networks_dir));
    return 0;
}

/* The last line says that all of `passed` comparisons are good. */
static void assert_all_pass(int code, size_t passed)
{
    char last[64];
    for (char *at = command_out; code != 0 && (at = strstr(at, " FAIL")) != NULL; at++) {
        char *line = at;
        while (line > command_out && line[-1] != '\n')
            line--;
        print_error("%.*s\n", (int)strcspn(line, "\n"), line);
    }
    if (code != 0)
        fail_msg("exit %d: %s", code, command_errors);
    snprintf(last, sizeof last, "%zu passed, 0 failed\n", passed);
    if (!strstr(command_out, last))
        fail_msg("expected %s%s", last, command_out);
}

/* Cases of a pattern, in the fast or in the plain variant of the ops. */
static int run_pattern(const char *pattern, bool naive)
{
    char *argv[32] = {"parity", "-m", networks_dir, "--naive"};
    const size_t first = naive ? 4 : 3;
    glob_t found;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_true(found.gl_pathc < 24);
    for (size_t i = 0; i <= found.gl_pathc; i++)
        argv[first + i] = i < found.gl_pathc ? found.gl_pathv[i] : NULL;
    const int code = command_run(cmd_parity, argv);
    globfree(&found);
    return code;
}

static void test_recordings_of_the_repository(void **state)
{
    (void)state;
    for (int naive = 0; naive < 2; naive++)
        assert_all_pass(run_pattern(test_path("tests/golden/voice/*.safetensors"), naive == 1), 15);
}

/* Eight recordings with five tensors each, and real speech with three, whose recording lies in the set's data/real. */
static void test_recordings_of_the_reference_set(void **state)
{
    (void)state;
    char pattern[IO_PATH_BYTES];
    snprintf(pattern, sizeof pattern, "%s/*.safetensors", test_shared("golden/voice"));
    assert_all_pass(run_pattern(pattern, false), 43);
    assert_non_null(strstr(command_out, "values in bands at the floor: max "));
}

static void test_networks_of_the_model(void **state)
{
    (void)state;
    char *path = (char *)test_path("tests/golden/enroll/tiny-0.safetensors");
    assert_all_pass(RUN("-m", networks_dir, path), 2);
    assert_all_pass(RUN("-m", networks_dir, "--naive", path), 2);
    assert_non_null(strstr(command_out, "tokens_61 [16] max 0 mean 0 rel 0 snr 999.0 dB (all equal) ok\n"));
    assert_int_equal(RUN("-m", (char *)test_temp_dir(), path), 65);
    assert_non_null(strstr(command_out, "speech_tokenizer_v3.onnx"));
}

/* The networks beside the case win over the model's. */
static void test_networks_of_the_reference_set(void **state)
{
    (void)state;
    char *path = (char *)test_shared("golden/enroll/enroll.safetensors");
    assert_all_pass(RUN("-m", networks_dir, path), 14);
    assert_all_pass(RUN("-m", networks_dir, "--naive", path), 14);
}

/* Copies a file and changes the byte at off, unless off is negative. */
static void copy_file(const char *from, const char *to, int64_t off, unsigned char change)
{
    io_map map = {0};
    unsigned char *copy;
    assert_ok(io_map_file(from, &map));
    assert_ok(mem_alloc(map.data_bytes, 1, &copy));
    memcpy(copy, map.data, map.data_bytes);
    if (off >= 0)
        copy[off] ^= change;
    assert_ok(io_write_file(to, copy, map.data_bytes));
    mem_free(copy);
    io_unmap(&map);
}

/* Where the last byte of a weight's first value is in its network file: sign and upper bits of the exponent. */
static int64_t weight_at(const char *path, const char *weight_name)
{
    onnx *file;
    size_t bytes;
    assert_ok(onnx_open(path, &file));
    const onnx_tensor *t = onnx_tensor_find(file, weight_name);
    assert_non_null(t);
    const int64_t at = t->data - onnx_data(file, &bytes) + 3;
    onnx_close(file);
    return at;
}

/* Changes sign (0x80) or exponent (0x40) of one weight of a network; only the tensor that comes from it is wrong. */
static void check_altered_weight(const char *network, const char *weight_name, unsigned char change, const char *wrong,
                                 const char *right)
{
    static const char *const files[] = {"speech_tokenizer_v3.onnx", "campplus.onnx"};
    char dir[600], from[IO_PATH_BYTES], to[IO_PATH_BYTES], key[64];
    snprintf(dir, sizeof dir, "%s/altered", test_temp_dir());
    assert_ok(io_make_dirs(dir, 0777));
    for (int i = 0; i < 2; i++) {
        assert_ok(io_join(from, sizeof from, networks_dir, files[i]));
        assert_ok(io_join(to, sizeof to, dir, files[i]));
        copy_file(from, to, strcmp(files[i], network) == 0 ? weight_at(from, weight_name) : -1, change);
    }
    char *path = (char *)test_path("tests/golden/enroll/tiny-0.safetensors");
    if (RUN("-m", dir, path) != 65)
        fail_msg("%s altered: %s%s", network, command_out, command_errors);
    snprintf(key, sizeof key, " %s [", wrong);
    const char *line = strstr(command_out, key);
    assert_non_null(line);
    assert_non_null(strstr(line, "FAIL: out of bound"));
    snprintf(key, sizeof key, " %s [", right);
    line = strstr(command_out, key);
    assert_non_null(line);
    assert_memory_equal(strchr(line, '\n') - 3, " ok", 3);
    assert_non_null(strstr(command_out, "\n1 passed, 1 failed\n"));
}

static void test_an_altered_weight_is_noticed(void **state)
{
    (void)state;
    check_altered_weight("speech_tokenizer_v3.onnx", "quantizer.project_in.bias", 0x40, "tokens_61", "embedding_230");
    check_altered_weight("campplus.onnx", "xvector.dense.linear.weight", 0x80, "embedding_230", "tokens_61");
}

static void test_an_altered_recording_is_noticed(void **state)
{
    (void)state;
    static const char *const names[] = {"u8-16k-mono.safetensors", "u8-16k-mono.wav"};
    char dir[600], from[128], to[IO_PATH_BYTES], wav[700];
    snprintf(dir, sizeof dir, "%s/recording", test_temp_dir());
    assert_ok(io_make_dirs(dir, 0777));
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "tests/golden/voice/%s", names[i]);
        assert_ok(io_join(to, sizeof to, dir, names[i]));
        copy_file(test_path(from), to, i == 1 ? 4000 : -1, 1); /* one sample of eight bits by one step */
    }
    assert_ok(io_join(to, sizeof to, dir, names[0]));
    assert_int_equal(RUN("-m", networks_dir, to), 65);
    assert_non_null(strstr(command_out, "wave_16k [8320] max 0.00781"));
    assert_non_null(strstr(command_out, "0 passed, 5 failed"));
    snprintf(wav, sizeof wav, "%s/%s", dir, names[1]);
    assert_int_equal(remove(wav), 0);
    assert_int_equal(RUN("-m", networks_dir, to), 65);
    assert_non_null(strstr(command_out, "FAIL: recording u8-16k-mono.wav: expected beside the case"));
}

/* A capture holds what was computed, and the recording with it: it passes as a case with no difference at all. */
static void test_captures_pass_as_cases(void **state)
{
    (void)state;
    static const char *const cases[] = {"voice/u8-16k-mono", "enroll/tiny-0"};
    char dir[600], path[700], relative[128];
    snprintf(dir, sizeof dir, "%s/captures", test_temp_dir());
    for (size_t i = 0; i < 2; i++) {
        snprintf(relative, sizeof relative, "tests/golden/%s.safetensors", cases[i]);
        assert_int_equal(RUN("-m", networks_dir, "--capture", dir, (char *)test_path(relative)), 0);
        snprintf(path, sizeof path, "%s/%s.safetensors", dir, strchr(cases[i], '/') + 1);
        assert_int_equal(RUN("-m", networks_dir, path), 0);
        for (const char *at = command_out; (at = strstr(at, " max ")) != NULL; at += 5)
            assert_true(strncmp(at, " max 0 ", 7) == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recordings_of_the_repository), cmocka_unit_test(test_recordings_of_the_reference_set),
        cmocka_unit_test(test_networks_of_the_model),        cmocka_unit_test(test_networks_of_the_reference_set),
        cmocka_unit_test(test_an_altered_weight_is_noticed), cmocka_unit_test(test_an_altered_recording_is_noticed),
        cmocka_unit_test(test_captures_pass_as_cases),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_networks, NULL);
}
