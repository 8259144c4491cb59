/*
 * test_enroll_parity.c - the two networks of enrollment against onnxruntime's outputs on files of the released graphs'
 * form (docs/model/cases.md, stage enroll): all tokens equal, embeddings within 1e-5 of their largest value.
 */
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/model/tensor_file.h"
#include "enroll/speaker_vector.h"
#include "enroll/speech_tokenizer.h"

#define EMBEDDING_BOUND 1e-5
#define CASES           "golden/enroll/enroll.safetensors"

static backend *backends[2]; /* naive, fast */

static int open_backends(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const backend_config cfg = {.device = "cpu", .naive = i == 0, .threads = 2, .scratch_bytes = (size_t)1 << 30};
        assert_ok(backend_open(&cfg, &backends[i]));
    }
    return 0;
}

static int close_backends(void **state)
{
    (void)state;
    backend_close(backends[0]);
    backend_close(backends[1]);
    return 0;
}

/* The values of a tensor; swap: [bands, frames] there, [frames, bands] here. */
static frame_table read_table(const tensor_file *f, const char *name, bool swap)
{
    const tensor_entry *e = tensor_file_find(f, name);
    if (!e)
        fail_msg("no tensor %s in the case", name);
    float *raw;
    frame_table t = {.frames = e->shape[swap ? 1 : 0], .bands = (int32_t)e->shape[swap ? 0 : 1]};
    const size_t count = (size_t)entry_count(e);
    assert_ok(mem_alloc(count, sizeof *raw, &raw));
    assert_ok(mem_alloc(count, sizeof *raw, &t.values));
    assert_ok(entry_read_f32(e, raw, count));
    for (int64_t i = 0; i < t.frames; i++)
        for (int32_t b = 0; b < t.bands; b++)
            t.values[i * t.bands + b] = raw[swap ? b * t.frames + i : i * t.bands + b];
    mem_free(raw);
    return t;
}

static void check_tokens(const tensor_file *f, speech_tokenizer *t, int length)
{
    char name[64];
    int32_t got[256], want[256];
    snprintf(name, sizeof name, "token_mel_%d", length);
    frame_table mel = read_table(f, name, true);
    snprintf(name, sizeof name, "tokens_%d", length);
    const tensor_entry *e = tensor_file_find(f, name);
    assert_non_null(e);
    const size_t count = (size_t)entry_count(e);
    assert_int_equal(count, speech_tokenizer_tokens(mel.frames));
    assert_ok(entry_read_i32(e, want, count));
    assert_ok(speech_tokenizer_run(t, &mel, got));
    for (size_t i = 0; i < count; i++)
        if (got[i] != want[i])
            fail_msg("%s: token %zu is %d, expected %d", name, i, got[i], want[i]);
    frame_table_done(&mel);
}

static void test_tokens(void **state)
{
    (void)state;
    static const int lengths[] = {37, 100, 203, 750};
    tensor_file *f;
    onnx *file;
    assert_ok(tensor_file_open(test_shared(CASES), &f));
    assert_ok(onnx_open(test_shared("golden/enroll/speech_tokenizer_v3.onnx"), &file));
    for (int b = 0; b < 2; b++) {
        speech_tokenizer *t;
        assert_ok(speech_tokenizer_open(backends[b], file, &t));
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            check_tokens(f, t, lengths[i]);
        speech_tokenizer_close(t);
    }
    onnx_close(file);
    tensor_file_close(f);
}

static void check_embeddings(const char *network, const char *prefix)
{
    static const int lengths[] = {5, 30, 199, 200, 347};
    tensor_file *f;
    onnx *file;
    assert_ok(tensor_file_open(test_shared(CASES), &f));
    assert_ok(onnx_open(test_shared(network), &file));
    for (int b = 0; b < 2; b++) {
        speaker_network *s;
        assert_ok(speaker_network_open(backends[b], file, &s));
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            char name[64];
            float got[SPEAKER_VALUES], want[SPEAKER_VALUES];
            snprintf(name, sizeof name, "fbank_%d", lengths[i]);
            frame_table fbank = read_table(f, name, false);
            snprintf(name, sizeof name, "%s_%d", prefix, lengths[i]);
            const tensor_entry *e = tensor_file_find(f, name);
            assert_non_null(e);
            assert_ok(entry_read_f32(e, want, SPEAKER_VALUES));
            assert_ok(speaker_network_run(s, &fbank, got));
            const test_diff d = test_compare(got, want, SPEAKER_VALUES);
            print_message("# %-26s max %.2e rel %.2e\n", name, d.max_abs, d.rel);
            if (d.nonfinite || !(d.rel <= EMBEDDING_BOUND))
                fail_msg("%s: max %.3e of the largest value at %zu", name, d.rel, d.worst_idx);
            frame_table_done(&fbank);
        }
        speaker_network_close(s);
    }
    onnx_close(file);
    tensor_file_close(f);
}

static void test_embeddings(void **state)
{
    (void)state;
    check_embeddings("golden/enroll/campplus.onnx", "embedding");
}

/* The same weights with the other attribute of the pooling nodes. */
static void test_embeddings_exclude_pad(void **state)
{
    (void)state;
    check_embeddings("golden/enroll/campplus-exclude-pad.onnx", "embedding_exclude_pad");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_embeddings),
        cmocka_unit_test(test_embeddings_exclude_pad),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_backends, close_backends);
}
