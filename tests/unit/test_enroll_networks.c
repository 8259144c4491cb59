/*
 * test_enroll_networks.c - the two networks on files made by recipe: against onnxruntime's outputs, with and without
 * names of nodes, the same bytes however they are computed; and files that are another network, each refused by name.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/recipe.h"
#include "common/model/tensor_file.h"
#include "enroll/speaker_vector.h"
#include "enroll/speech_tokenizer.h"

#define CASE        "tests/golden/enroll/tiny-0.safetensors"
#define FRAMES      61
#define TOKENS      16
#define FBANK_ROWS  230
#define EMBED_BOUND 1e-5 /* of the largest value: f32 sums of 200 layers in another order */

static char tokenizer_path[2][IO_PATH_BYTES], speaker_path[2][IO_PATH_BYTES]; /* without and with names of nodes */
static frame_table mel, fbank;
static int32_t want_tokens[TOKENS];
static float want_vector[SPEAKER_VALUES];

static backend *open_backend(bool naive, int threads)
{
    backend *be;
    const backend_config cfg = {
        .device = "cpu", .naive = naive, .threads = threads, .scratch_bytes = (size_t)256 << 20};
    assert_ok(backend_open(&cfg, &be));
    return be;
}

static void read_values(const tensor_file *f, const char *name, float *values, size_t count)
{
    const tensor_entry *e = tensor_file_find(f, name);
    assert_non_null(e);
    assert_ok(entry_read_f32(e, values, count));
}

static int prepare(void **state)
{
    (void)state;
    const recipe tiny = {.size = RECIPE_TINY};
    const char *dir = test_temp_dir();
    tensor_file *f;
    float *swapped;
    for (int names = 0; names < 2; names++) {
        snprintf(tokenizer_path[names], IO_PATH_BYTES, "%s/tokenizer%d.onnx", dir, names);
        snprintf(speaker_path[names], IO_PATH_BYTES, "%s/speaker%d.onnx", dir, names);
        assert_ok(recipe_write_tokenizer(&tiny, names == 1, tokenizer_path[names]));
        assert_ok(recipe_write_speaker(&tiny, names == 1, speaker_path[names]));
    }
    mel = (frame_table){.frames = FRAMES, .bands = TOKEN_MEL_BANDS};
    fbank = (frame_table){.frames = FBANK_ROWS, .bands = FBANK_BANDS};
    assert_ok(mem_alloc(FRAMES * TOKEN_MEL_BANDS, sizeof *mel.values, &mel.values));
    assert_ok(mem_alloc(FRAMES * TOKEN_MEL_BANDS, sizeof *swapped, &swapped));
    assert_ok(mem_alloc(FBANK_ROWS * FBANK_BANDS, sizeof *fbank.values, &fbank.values));
    assert_ok(tensor_file_open(test_path(CASE), &f));
    read_values(f, "token_mel_61", swapped, FRAMES * TOKEN_MEL_BANDS);
    for (int t = 0; t < FRAMES; t++)
        for (int b = 0; b < TOKEN_MEL_BANDS; b++)
            mel.values[t * TOKEN_MEL_BANDS + b] = swapped[b * FRAMES + t];
    read_values(f, "fbank_230", fbank.values, FBANK_ROWS * FBANK_BANDS);
    read_values(f, "embedding_230", want_vector, SPEAKER_VALUES);
    assert_ok(entry_read_i32(tensor_file_find(f, "tokens_61"), want_tokens, TOKENS));
    tensor_file_close(f);
    mem_free(swapped);
    return 0;
}

static int clean(void **state)
{
    (void)state;
    frame_table_done(&mel);
    frame_table_done(&fbank);
    return 0;
}

static void run_tokenizer(backend *be, const char *path, const frame_table *in, int32_t *ret_tokens)
{
    onnx *file;
    speech_tokenizer *t;
    assert_ok(onnx_open(path, &file));
    assert_ok(speech_tokenizer_open(be, file, &t));
    assert_ok(speech_tokenizer_run(t, in, ret_tokens));
    speech_tokenizer_close(t);
    backend_close(be); /* before the file: the big matrices lie there */
    onnx_close(file);
}

static void run_speaker(backend *be, const char *path, const frame_table *in, float *ret_vector)
{
    onnx *file;
    speaker_network *s;
    assert_ok(onnx_open(path, &file));
    assert_ok(speaker_network_open(be, file, &s));
    assert_ok(speaker_network_run(s, in, ret_vector));
    speaker_network_close(s);
    backend_close(be);
    onnx_close(file);
}

static void test_tokens(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) { /* naive or fast, names of nodes or order */
        int32_t got[TOKENS];
        run_tokenizer(open_backend(i & 1, 2), tokenizer_path[i >> 1], &mel, got);
        assert_memory_equal(got, want_tokens, sizeof got);
    }
}

static void test_vector(void **state)
{
    (void)state;
    float first[SPEAKER_VALUES];
    for (int i = 0; i < 4; i++) {
        float got[SPEAKER_VALUES];
        run_speaker(open_backend(i & 1, 2), speaker_path[i >> 1], &fbank, got);
        const test_diff d = test_compare(got, want_vector, SPEAKER_VALUES);
        if (d.nonfinite || !(d.rel <= EMBED_BOUND))
            fail_msg("way %d: max %.3e of the largest value at %zu", i, d.rel, d.worst_idx);
        if (i == 0)
            memcpy(first, got, sizeof first);
        if (i == 2)
            assert_memory_equal(got, first, sizeof first);
    }
}

/* Threads do not show in the bytes. */
static void test_threads(void **state)
{
    (void)state;
    float one[SPEAKER_VALUES], three[SPEAKER_VALUES];
    int32_t tokens[TOKENS];
    run_speaker(open_backend(false, 1), speaker_path[1], &fbank, one);
    run_speaker(open_backend(false, 3), speaker_path[1], &fbank, three);
    assert_memory_equal(one, three, sizeof one);
    run_tokenizer(open_backend(false, 3), tokenizer_path[1], &mel, tokens);
    assert_memory_equal(tokens, want_tokens, sizeof tokens);
}

/* The shortest inputs that make sense. */
static void test_short(void **state)
{
    (void)state;
    int32_t token = -1;
    float vector[SPEAKER_VALUES];
    frame_table one = mel, few = fbank;
    one.frames = 1;
    run_tokenizer(open_backend(false, 1), tokenizer_path[1], &one, &token);
    assert_in_range(token, 0, SPEECH_CODES - 1);
    few.frames = SPEAKER_FRAMES_MIN;
    run_speaker(open_backend(false, 1), speaker_path[1], &few, vector);

    onnx *file;
    speaker_network *s;
    backend *be = open_backend(false, 1);
    assert_ok(onnx_open(speaker_path[1], &file));
    assert_ok(speaker_network_open(be, file, &s));
    few.frames = 2;
    assert_err(CF_ERR_INVALID, "2 frames of filter bank energies, at least 3", speaker_network_run(s, &few, vector));
    frame_table bad = fbank;
    float *spoiled;
    assert_ok(mem_alloc(FBANK_ROWS * FBANK_BANDS, sizeof *spoiled, &spoiled));
    memcpy(spoiled, fbank.values, FBANK_ROWS * FBANK_BANDS * sizeof *spoiled);
    spoiled[77] = NAN;
    bad.values = spoiled;
    assert_err(CF_ERR_NUMERIC, "of its output is not finite", speaker_network_run(s, &bad, vector));
    speaker_network_close(s);
    backend_close(be);
    onnx_close(file);
    mem_free(spoiled);
}

/* ---- other networks ---- */

/* Where the nth occurrence of some bytes is. */
static unsigned char *find_bytes(unsigned char *data, size_t bytes, const void *what, size_t what_bytes, int nth)
{
    for (size_t i = 0; i + what_bytes <= bytes; i++)
        if (memcmp(data + i, what, what_bytes) == 0 && nth-- == 0)
            return data + i;
    fail_msg("the bytes to be changed are not in the file");
    return NULL;
}

typedef struct change {
    int network; /* 0: tokenizer, 1: speaker */
    const char *from, *to;
    size_t from_bytes, to_off, to_bytes; /* `to` replaces to_bytes bytes at to_off of the place found */
    int nth;
    cf_err code;
    const char *text;
} change;

static void check_change(const change *c)
{
    const char *path = c->network ? speaker_path[1] : tokenizer_path[1];
    char *data;
    size_t bytes;
    onnx *file = NULL;
    backend *be = open_backend(false, 1);
    assert_ok(io_read_file(path, (size_t)64 << 20, &data, &bytes));
    unsigned char *at = find_bytes((unsigned char *)data, bytes, c->from, c->from_bytes, c->nth);
    memcpy(at + c->to_off, c->to, c->to_bytes);
    assert_ok(onnx_parse("x.onnx", (const unsigned char *)data, bytes, &file));
    if (c->network) {
        speaker_network *s = NULL;
        assert_err(c->code, c->text, speaker_network_open(be, file, &s));
        assert_null(s);
    } else {
        speech_tokenizer *t = NULL;
        assert_err(c->code, c->text, speech_tokenizer_open(be, file, &t));
        assert_null(t);
    }
    backend_close(be);
    onnx_close(file);
    mem_free(data);
}

static void test_other_tokenizers(void **state)
{
    (void)state;
    static const change changes[] = {
        {0, "attn/key/MatMul\x22", "kez", 16, 5, 3, 0, CF_ERR_NOTFOUND,
         "x.onnx: no MatMul node .../blocks.0/attn/key/MatMul: not the network expected here"},
        {0, "\x07strides\x40\x02", "\x01", 10, 9, 1, 0, CF_ERR_MISMATCH,
         "x.onnx: Conv node /conv1/Conv: strides[0] is 1, expected 2"},
        {0, "\x04pads\x40\x01\x40\x01", "\x02", 9, 8, 1, 1, CF_ERR_MISMATCH,
         "Conv node /conv2/Conv: pads[1] is 2, expected 1"},
        {0,
         "\x07"
         "epsilon\x15",
         "\0\0\x80\x3f", 9, 9, 4, 2, CF_ERR_MISMATCH,
         "node /blocks.1/attn_ln/LayerNormalization: epsilon 1, expected 1e-5 or 1e-6"},
        {0, "\x05group\x18\x80\x01", "\x81", 9, 7, 1, 0, CF_ERR_MISMATCH,
         "Conv node /blocks.0/attn/fsmn_block/Conv: group[0] is 129, expected 128"},
        {0, "\x22\x07Softmax", "Softmin", 9, 2, 7, 1, CF_ERR_MISMATCH, "x.onnx: 1 Softmax nodes, expected 2"},
        {0, "/quantizer/project_in/MatMul\x22", "project_on", 29, 11, 10, 0, CF_ERR_NOTFOUND,
         "no MatMul node .../project_in/MatMul"},
    };
    for (size_t i = 0; i < CF_COUNT(changes); i++)
        check_change(&changes[i]);
}

static void test_other_speakers(void **state)
{
    (void)state;
    static const change changes[] = {
        {1, "\x0ckernel_shape\x40\x64", "\x63", 15, 14, 1, 3, CF_ERR_MISMATCH,
         "AveragePool node /xvector/block1/tdnnd4/cam_layer/AveragePool: kernel_shape[0] is 99, expected 100"},
        {1, "count_include_pad\x18\x00", "\x01", 19, 18, 1, 5, CF_ERR_MISMATCH,
         "/cam_layer/AveragePool: count_include_pad differs from the nodes before"},
        {1, "head/layer2/layer2.0/shortcut/shortcut.0/Conv\x22", "shortcut/shortcut.1", 46, 21, 19, 0, CF_ERR_NOTFOUND,
         "no Conv node .../head/layer2/layer2.0/shortcut/shortcut.0/Conv"},
        {1, "xvector/transit2/linear/Conv\x22", "transit9", 29, 8, 8, 0, CF_ERR_NOTFOUND,
         "no Conv node .../xvector/transit2/linear/Conv"},
        {1, "xvector/block1/tdnnd1/cam_layer/linear_local/Conv\x22", "linear_focal", 50, 32, 12, 0, CF_ERR_NOTFOUND,
         "x.onnx: no layers in xvector/block1: not CAM++"},
    };
    for (size_t i = 0; i < CF_COUNT(changes); i++)
        check_change(&changes[i]);
}

/* The files of each other, a graph too many, a value that is no number. */
static void test_swapped_and_spoiled(void **state)
{
    (void)state;
    onnx *file;
    speech_tokenizer *t = NULL;
    speaker_network *s = NULL;
    backend *be = open_backend(false, 1);
    assert_ok(onnx_open(speaker_path[1], &file));
    assert_err(CF_ERR_MISMATCH, "Conv nodes .../conv1/Conv, expected one", speech_tokenizer_open(be, file, &t));
    onnx_close(file);
    assert_ok(onnx_open(tokenizer_path[1], &file));
    assert_err(CF_ERR_NOTFOUND, "no Conv node .../head/conv1/Conv", speaker_network_open(be, file, &s));
    onnx_close(file);

    char *data;
    size_t bytes;
    assert_ok(io_read_file(tokenizer_path[1], (size_t)64 << 20, &data, &bytes));
    unsigned char *at = find_bytes((unsigned char *)data, bytes, "quantizer.project_in.bias\x4a\x20", 27, 0);
    memcpy(at + 27, "\0\0\xc0\x7f", 4);
    assert_ok(onnx_parse("x.onnx", (const unsigned char *)data, bytes, &file));
    assert_err(CF_ERR_NUMERIC, "x.onnx: tensor quantizer.project_in.bias: value 0 is not finite",
               speech_tokenizer_open(be, file, &t));
    onnx_close(file);
    backend_close(be);
    mem_free(data);
}

/* A weight that nobody asked for is another network, not a detail. */
static void test_left_over(void **state)
{
    (void)state;
    onnx *file;
    speech_tokenizer *t = NULL;
    backend *be = open_backend(false, 1);
    char *data;
    size_t bytes;
    assert_ok(io_read_file(tokenizer_path[1], (size_t)64 << 20, &data, &bytes));
    /* The name of the node that adds the bias of a query: its tensor is then taken by nothing. */
    unsigned char *at = find_bytes((unsigned char *)data, bytes, "/blocks.1/attn/value/Add\x22", 25, 0);
    memcpy(at, "/blocks.1/attn/valve/Add", 24);
    assert_ok(onnx_parse("x.onnx", (const unsigned char *)data, bytes, &file));
    assert_err(CF_ERR_NOTFOUND, "no Add node .../blocks.1/attn/value/Add", speech_tokenizer_open(be, file, &t));
    onnx_close(file);
    mem_free(data);
    /* One block renamed away: the encoder would be shorter, its weights are left. */
    assert_ok(io_read_file(tokenizer_path[1], (size_t)64 << 20, &data, &bytes));
    at = find_bytes((unsigned char *)data, bytes, "/blocks.1/attn/fsmn_block/Conv\x22", 31, 0);
    memcpy(at, "/blocks.1/attn/fsmn_clock/Conv", 30);
    assert_ok(onnx_parse("x.onnx", (const unsigned char *)data, bytes, &file));
    assert_err(CF_ERR_MISMATCH, ": nothing in the network expected here takes it", speech_tokenizer_open(be, file, &t));
    onnx_close(file);
    mem_free(data);
    backend_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_vector),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_short),
        cmocka_unit_test(test_other_tokenizers),
        cmocka_unit_test(test_other_speakers),
        cmocka_unit_test(test_swapped_and_spoiled),
        cmocka_unit_test(test_left_over),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, prepare, clean);
}
