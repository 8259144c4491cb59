/* test_parity_cmd.c - `cosyfarm parity` on a tiny model: every case of tests/golden; an altered weight is noticed. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/base/sha256.h"
#include "common/model/recipe.h"
#include "common/model/tensor_file.h"
#include "tests/harness/command.h"
#include "tests/harness/tiny_model.h"
#include "tools/cmd.h"

#define RUN(...) COMMAND(cmd_parity, "parity", __VA_ARGS__)

/* Passes and failures of the last line. */
static void read_totals(const char *text, size_t *ret_passed, size_t *ret_failed)
{
    const size_t length = strlen(text);
    assert_true(length > 1 && text[length - 1] == '\n');
    size_t at = length - 1;
    while (at > 0 && text[at - 1] != '\n')
        at--;
    assert_int_equal(sscanf(text + at, "%zu passed, %zu failed\n", ret_passed, ret_failed), 2);
}

/* Runs all cases of a folder of tests/golden; the counts of the last line. */
static int run_folder(const char *model_dir, const char *folder, size_t *ret_passed, size_t *ret_failed)
{
    char pattern[512], *argv[64] = {"parity", "-m", (char *)model_dir};
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.safetensors", test_path(folder));
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_true(found.gl_pathc < 60);
    for (size_t i = 0; i < found.gl_pathc; i++)
        argv[3 + i] = found.gl_pathv[i];
    const int code = command_run(cmd_parity, argv);
    globfree(&found);
    if (code != 0 && code != 65)
        fail_msg("exit %d: %s", code, command_errors);
    read_totals(command_out, ret_passed, ret_failed);
    return code;
}

static void show_failures(void)
{
    for (char *line = strtok(command_out, "\n"); line; line = strtok(NULL, "\n"))
        if (strstr(line, " FAIL"))
            print_error("%s\n", line);
    fail();
}

/* Counted from the files: one comparison for each expected tensor. */
static void test_all_cases_pass(void **test)
{
    (void)test;
    size_t passed, failed;
    const int code = run_folder(tiny_model_dir(), "tests/golden/tiny-0", &passed, &failed);
    if (code != 0)
        show_failures();
    assert_int_equal(passed, 65);
    assert_int_equal(failed, 0);
}

static void test_harsh_cases_pass(void **test)
{
    (void)test;
    size_t passed, failed;
    const int code = run_folder(tiny_model_harsh_dir(), "tests/golden/tiny-0-harsh", &passed, &failed);
    if (code != 0)
        show_failures();
    assert_int_equal(passed, 4);
}

static void test_a_case_of_another_model_fails(void **test)
{
    (void)test;
    char *path = (char *)test_path("tests/golden/tiny-0/flow-one-token.safetensors");
    assert_int_equal(RUN("-m", (char *)tiny_model_harsh_dir(), path), 65);
    assert_non_null(strstr(command_out, " mel [80, 2] "));
    assert_non_null(strstr(command_out, "FAIL: out of bound"));
}

/* One value in a model file. */
typedef struct file_value {
    off_t where;
    float value;
} file_value;

static file_value find_weight(const char *path, const char *name, size_t value_idx)
{
    tensor_file *file = NULL;
    file_value v;
    assert_ok(tensor_file_open(path, &file));
    const tensor_entry *e = tensor_file_find(file, name);
    assert_non_null(e);
    io_map map = {0};
    assert_ok(io_map_file(path, &map));
    const unsigned char *at = memmem(map.data, map.data_bytes, e->data, entry_bytes(e));
    assert_non_null(at);
    v.where = at - map.data + (off_t)(value_idx * sizeof v.value);
    memcpy(&v.value, map.data + v.where, sizeof v.value);
    io_unmap(&map);
    tensor_file_close(file);
    return v;
}

static void write_value(const char *path, file_value v)
{
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &v.value, sizeof v.value, v.where), sizeof v.value);
    close(fd);
}

/* The line of this tensor ends as wanted. */
static void assert_line(const char *name, bool pass)
{
    char key[64];
    snprintf(key, sizeof key, ".safetensors %s [", name);
    const char *line = strstr(command_out, key), *end = line ? strchr(line, '\n') : NULL;
    if (!end)
        fail_msg("no line about %s in\n%s", name, command_out);
    const char *fail = strstr(line, " FAIL");
    if ((fail && fail < end) == pass)
        fail_msg("%.*s", (int)(end - line), line);
}

static void test_one_altered_weight_is_noticed(void **test)
{
    (void)test;
    static const struct {
        const char *file, *weight_name, *case_name, *wrong, *right;
        size_t value_idx;
    } rows[] = {
        {"llm", "llm_decoder.weight", "llm-instruct", "logits", "hidden", 128 * 17 + 5},
        {"llm", "speech_embedding.weight", "llm-instruct", "lm_input", NULL, 128 * 6561},
        {"llm", "llm.model.model.layers.0.self_attn.v_proj.bias", "llm-instruct", "hidden", "lm_input", 5},
        {"llm", "llm.model.model.layers.1.mlp.down_proj.weight", "llm-instruct", "hidden", "lm_input", 77},
        {"llm", "llm.model.model.norm.weight", "debug_llm_data", "last_hidden_state", "lm_input", 3},
        {"flow", "decoder.estimator.proj_out.bias", "flow-one-token", "v1_cond", "mu", 3},
        {"flow", "spk_embed_affine_layer.bias", "flow-one-token", "spk", "mu", 7},
        {"flow", "decoder.estimator.proj_out.bias", "stream-short", "mel_0", NULL, 3},
        {"flow", "pre_lookahead_layer.conv1.bias", "flow-one-token", "mu", "spk", 9},
        {"flow", "decoder.estimator.time_embed.time_mlp.0.weight", "flow-one-token", "v1_uncond", "mu", 200},
        {"flow", "decoder.estimator.input_embed.conv_pos_embed.conv2.0.weight", "flow-stream-hop", "mel", "mu", 4},
        {"flow", "decoder.estimator.transformer_blocks.0.attn.to_q.weight", "flow-no-prompt", "v10_cond", "mu", 70},
        {"flow", "decoder.estimator.transformer_blocks.1.ff.ff.2.weight", "flow-no-prompt", "x_steps", "mu", 300},
        {"flow", "decoder.estimator.rotary_embed.inv_freq", "flow-stream-hop", "mel", "mu", 1},
        {"hift", "conv_post.bias", "hift-one-frame", "conv_post", "conv_pre", 2},
        {"hift", "f0_predictor.classifier.bias", "hift-one-frame", "f0", "conv_pre", 0},
        {"hift", "m_source.l_linear.bias", "hift-one-frame", "source", "f0", 0},
        {"hift", "conv_pre.parametrizations.weight.original0", "hift-final", "conv_pre", "source", 6},
        {"hift", "source_downs.1.weight", "hift-one-frame", "conv_post", "conv_pre", 11},
        {"hift", "resblocks.8.activations2.2.alpha", "hift-one-frame", "conv_post", "conv_pre", 2},
        {"hift", "f0_predictor.condnet.8.parametrizations.weight.original1", "hift-final", "f0", "source", 40},
    };
    char dir[512], path[600], relative[128];
    const recipe tiny = {.size = RECIPE_TINY};
    snprintf(dir, sizeof dir, "%s/model", test_temp_dir());
    assert_ok(recipe_make_dir(&tiny, RECIPE_SAFETENSORS, NULL, dir));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        snprintf(path, sizeof path, "%s/%s.safetensors", dir, rows[i].file);
        const file_value right = find_weight(path, rows[i].weight_name, rows[i].value_idx);
        write_value(path, (file_value){right.where, right.value + 0.25f});
        snprintf(relative, sizeof relative, "tests/golden/tiny-0/%s.safetensors", rows[i].case_name);
        const int code = RUN("-m", dir, (char *)test_path(relative));
        if (code != 65)
            fail_msg("%s altered: exit %d, %s", rows[i].weight_name, code, command_errors);
        assert_line(rows[i].wrong, false);
        if (rows[i].right)
            assert_line(rows[i].right, true);
        write_value(path, right);
    }
    assert_int_equal(RUN("-m", dir, (char *)test_path("tests/golden/tiny-0/flow-one-token.safetensors")), 0);
}

static void test_captures_pass_as_cases(void **test)
{
    (void)test;
    const char *cases[] = {"llm-instruct", "flow-one-token", "hift-one-frame",
                           "stream-short", "speed-1.3",      "debug_llm_data"};
    const char *out = test_temp_dir();
    char model[512];
    snprintf(model, sizeof model, "%s", tiny_model_dir());
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char relative[128], written[600];
        snprintf(relative, sizeof relative, "tests/golden/tiny-0/%s.safetensors", cases[i]);
        assert_int_equal(RUN("-m", model, "--capture", (char *)out, (char *)test_path(relative)), 0);
        snprintf(written, sizeof written, "%s/%s.safetensors", out, cases[i]);
        assert_int_equal(RUN("-m", model, written), 0);
        assert_null(strstr(command_out, " max 1")); /* the same bits, so 0 everywhere */
        assert_non_null(strstr(command_out, " snr 999.0 dB"));
    }
}

static void test_unusable_models_and_files(void **test)
{
    (void)test;
    char *one = (char *)test_path("tests/golden/tiny-0/hift-one-frame.safetensors");
    char *text = (char *)test_path("tests/golden/MANIFEST.tsv");
    char *empty = (char *)test_temp_dir();
    char model[512];
    snprintf(model, sizeof model, "%s", tiny_model_dir());
    assert_int_equal(RUN("-m", empty, one), 78);
    assert_int_equal(RUN("-m", "/nonexistent", one), 78);
    assert_int_equal(RUN("-m", model, one, text), 78);
    assert_non_null(strstr(command_errors, "MANIFEST.tsv"));
    assert_int_equal(RUN("-m", model, "--device", "tpu", one), 78);
}

/* Every file of the manifest is there unchanged, and every case and recipe is in the manifest. */
static void test_manifest(void **test)
{
    (void)test;
    static const char *const patterns[] = {"tests/golden/*/*.safetensors", "tests/golden/recipe/*.txt"};
    char *text = NULL;
    size_t length, listed = 0;
    assert_ok(io_read_file(test_path("tests/golden/MANIFEST.tsv"), 1 << 16, &text, &length));
    for (size_t p = 0; p < 2; p++) {
        glob_t found;
        assert_int_equal(glob(test_path(patterns[p]), 0, NULL, &found), 0);
        for (size_t i = 0; i < found.gl_pathc; i++, listed++) {
            const char *name = strstr(found.gl_pathv[i], "tests/golden/") + strlen("tests/golden/");
            char hex[SHA256_HEX_BYTES], want[256];
            io_map map = {0};
            assert_ok(io_map_file(found.gl_pathv[i], &map));
            assert_ok(sha256_of(map.data, map.data_bytes, hex));
            io_unmap(&map);
            snprintf(want, sizeof want, "\n%s\t%s\t", name, hex);
            if (!strstr(text, want))
                fail_msg("MANIFEST.tsv has no line \"%s\\t%s\"", name, hex);
        }
        globfree(&found);
    }
    assert_true(listed >= 16);
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_cases_pass),
        cmocka_unit_test(test_harsh_cases_pass),
        cmocka_unit_test(test_a_case_of_another_model_fails),
        cmocka_unit_test(test_one_altered_weight_is_noticed),
        cmocka_unit_test(test_captures_pass_as_cases),
        cmocka_unit_test(test_unusable_models_and_files),
        cmocka_unit_test(test_manifest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
