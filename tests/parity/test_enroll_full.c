/*
 * test_enroll_full.c - both networks in the released shapes, 12 blocks of 1280 and 52 layers of growth 32, against
 * onnxruntime. Tags: slow. Writes a gigabyte below the temporary folder.
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/recipe.h"
#include "common/model/tensor_file.h"
#include "enroll/speaker_vector.h"
#include "enroll/speech_tokenizer.h"

#define MEL_FRAMES   1000
#define FBANK_FRAMES 998
#define TOKENS       250
#define EMBED_BOUND  1e-5 /* of the largest value: f32 sums of 200 layers in another order */

/* amplitude * sin(step * i): an input that any language computes alike, to the last bit but one. */
static frame_table wave(int64_t frames, int32_t bands, double amplitude, double step)
{
    frame_table t = {.frames = frames, .bands = bands};
    assert_ok(mem_alloc((size_t)(frames * bands), sizeof *t.values, &t.values));
    for (int64_t i = 0; i < frames * bands; i++)
        t.values[i] = (float)(amplitude * sin(step * (double)i));
    return t;
}

static void check_tokens(backend *be, const char *dir, const tensor_file *f)
{
    char path[IO_PATH_BYTES];
    onnx *file;
    speech_tokenizer *t;
    int32_t got[TOKENS], want[TOKENS];
    frame_table mel = wave(MEL_FRAMES, TOKEN_MEL_BANDS, 0.8, 0.37);
    assert_ok(io_join(path, sizeof path, dir, MODEL_TOKENIZER_FILE));
    assert_ok(onnx_open(path, &file));
    assert_ok(speech_tokenizer_open(be, file, &t));
    assert_ok(speech_tokenizer_run(t, &mel, got));
    assert_ok(entry_read_i32(tensor_file_find(f, "tokens_1000"), want, TOKENS));
    for (int i = 0; i < TOKENS; i++)
        if (got[i] != want[i])
            fail_msg("token %d is %d, expected %d", i, got[i], want[i]);
    speech_tokenizer_close(t);
    onnx_close(file);
    frame_table_done(&mel);
}

static void check_vector(backend *be, const char *dir, const tensor_file *f)
{
    char path[IO_PATH_BYTES];
    onnx *file;
    speaker_network *s;
    float got[SPEAKER_VALUES], want[SPEAKER_VALUES];
    frame_table fbank = wave(FBANK_FRAMES, FBANK_BANDS, 3.0, 0.77);
    assert_ok(io_join(path, sizeof path, dir, MODEL_SPEAKER_FILE));
    assert_ok(onnx_open(path, &file));
    assert_ok(speaker_network_open(be, file, &s));
    assert_ok(speaker_network_run(s, &fbank, got));
    assert_ok(entry_read_f32(tensor_file_find(f, "embedding_998"), want, SPEAKER_VALUES));
    const test_diff d = test_compare(got, want, SPEAKER_VALUES);
    if (d.nonfinite || !(d.rel <= EMBED_BOUND))
        fail_msg("max %.3e of the largest value at %zu", d.rel, d.worst_idx);
    speaker_network_close(s);
    onnx_close(file);
    frame_table_done(&fbank);
}

static void test_full_networks(void **state)
{
    (void)state;
    char dir[IO_PATH_BYTES];
    const recipe full = {.size = RECIPE_FULL};
    const backend_config cfg = {.device = "cpu", .scratch_bytes = (size_t)1 << 30};
    backend *be;
    tensor_file *f;
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    assert_ok(recipe_make_networks(&full, dir));
    assert_ok(tensor_file_open(test_path("tests/golden/enroll/full-0.safetensors"), &f));
    assert_ok(backend_open(&cfg, &be));
    check_tokens(be, dir, f);
    check_vector(be, dir, f);
    backend_close(be);
    tensor_file_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_full_networks)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
