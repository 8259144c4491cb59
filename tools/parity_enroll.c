/*
 * parity_enroll.c - the two networks of enrollment on features of a case: tokens from token_mel_N, speaker vectors from
 * fbank_N. Command line only; owns the backend, and the networks of one case at a time.
 *
 * Networks are taken from the case's own folder, as reference sets have them, and from the model directory where they
 * are not there. embedding_exclude_pad_N comes from a second speaker network, which lies beside a case or nowhere.
 *
 * Fails: CF_ERR_NOTFOUND and CF_ERR_MISMATCH name a network's file and tensor, or the case's tensor.
 * Source: cases.md 4.
 */
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "enroll/enroll.h"
#include "enroll/speaker_vector.h"
#include "enroll/speech_tokenizer.h"
#include "tools/parity.h"
#include "tools/parity_mel.h"

#define EXCLUDE_PAD_FILE "campplus-exclude-pad.onnx"
#define FRAMES_MAX_CASE  (100 * RECORDING_SECONDS_MAX) /* both networks hear 100 frames a second */
#define NAME_BYTES       64

typedef struct enroll_run {
    const parity_options *opt; /* borrowed */
} enroll_run;

/* What one case needs at hand: a backend of its own, so that what the networks keep goes with them. */
typedef struct networks {
    backend *be; /* closed before the files, where matrices lie */
    onnx *tokenizer_file, *speaker_files[2];
    speech_tokenizer *tokenizer;
    speaker_network *speakers[2]; /* campplus.onnx; with the other pooling attribute, NULL when there is none */
} networks;

static cf_err open_adapter(const parity_options *opt, void **ret_ctx)
{
    cf_err err;
    enroll_run *e = NULL;
    TRY(backend_check_device(opt->device));
    TRY(mem_alloc(1, sizeof *e, &e));
    e->opt = opt;
    *ret_ctx = e;
out:
    return err;
}

static void close_adapter(void *ctx)
{
    mem_free(ctx);
}

static void networks_close(networks *n)
{
    speech_tokenizer_close(n->tokenizer);
    for (int i = 0; i < 2; i++)
        speaker_network_close(n->speakers[i]);
    backend_close(n->be);
    onnx_close(n->tokenizer_file);
    for (int i = 0; i < 2; i++)
        onnx_close(n->speaker_files[i]);
}

static cf_err find_network(const enroll_run *e, const parity_case *c, const char *file_name,
                           char ret_path[IO_PATH_BYTES])
{
    cf_err err;
    TRY(parity_case_beside(c, file_name, ret_path));
    if (!io_exists(ret_path))
        TRY(io_join(ret_path, IO_PATH_BYTES, e->opt->model_dir, file_name));
out:
    return err;
}

static bool has_input(const parity_case *c, const char *prefix)
{
    const char *name;
    for (size_t i = 0; (name = parity_case_input(c, i)) != NULL; i++)
        if (strncmp(name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

static cf_err networks_open(const enroll_run *e, const parity_case *c, networks *n)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    const backend_config cfg = {
        .device = e->opt->device, .naive = e->opt->naive, .scratch_bytes = ENROLL_SCRATCH_BYTES};
    TRY(backend_open(&cfg, &n->be));
    if (has_input(c, "token_mel_")) {
        TRY(find_network(e, c, MODEL_TOKENIZER_FILE, path));
        TRY(onnx_open(path, &n->tokenizer_file));
        TRY(speech_tokenizer_open(n->be, n->tokenizer_file, &n->tokenizer));
    }
    if (!has_input(c, "fbank_"))
        goto out;
    TRY(find_network(e, c, MODEL_SPEAKER_FILE, path));
    TRY(onnx_open(path, &n->speaker_files[0]));
    TRY(speaker_network_open(n->be, n->speaker_files[0], &n->speakers[0]));
    TRY(parity_case_beside(c, EXCLUDE_PAD_FILE, path));
    if (!io_exists(path))
        goto out;
    TRY(onnx_open(path, &n->speaker_files[1]));
    TRY(speaker_network_open(n->be, n->speaker_files[1], &n->speakers[1]));
out:
    return err;
}

/* The input as [frames, bands]. The case has it as [bands, frames] when `turned`. Caller frees. */
static cf_err read_table(const parity_case *c, const char *name, int32_t bands, bool turned, frame_table *ret_table)
{
    cf_err err;
    int64_t dims[2];
    const float *values;
    frame_table t = {.bands = bands};
    TRY(parity_case_f32(c, name, 2, dims, &values));
    t.frames = dims[turned ? 1 : 0];
    if (dims[turned ? 0 : 1] != bands || t.frames < 1 || t.frames > FRAMES_MAX_CASE)
        FAIL(CF_ERR_MISMATCH, "%s: tensor %s: expected %d bands and 1 to %d frames, found [%lld, %lld]",
             parity_case_path(c), name, (int)bands, FRAMES_MAX_CASE, (long long)dims[0], (long long)dims[1]);
    TRY(mem_alloc((size_t)(t.frames * bands), sizeof *t.values, &t.values));
    if (turned)
        parity_mel_transpose(values, bands, t.frames, t.values);
    else
        memcpy(t.values, values, (size_t)(t.frames * bands) * sizeof *values);
    *ret_table = t;
out:
    return err;
}

static cf_err run_tokens(const networks *n, const parity_case *c, const char *input, size_t case_idx, parity_sink *sink)
{
    cf_err err;
    char name[NAME_BYTES];
    frame_table mel = {0};
    int32_t *tokens = NULL;
    TRY(read_table(c, input, TOKEN_MEL_BANDS, true, &mel));
    const int64_t count = speech_tokenizer_tokens(mel.frames);
    TRY(mem_alloc((size_t)count, sizeof *tokens, &tokens));
    TRY(speech_tokenizer_run(n->tokenizer, &mel, tokens));
    snprintf(name, sizeof name, "tokens_%s", input + strlen("token_mel_"));
    TRY(parity_emit_i32(sink, case_idx, name, count, tokens));
out:
    mem_free(tokens);
    frame_table_done(&mel);
    return err;
}

static cf_err run_speakers(const networks *n, const parity_case *c, const char *input, size_t case_idx,
                           parity_sink *sink)
{
    static const char *const prefixes[2] = {"embedding_", "embedding_exclude_pad_"};
    static const int64_t dims[1] = {SPEAKER_VALUES};
    cf_err err;
    char name[NAME_BYTES];
    float vector[SPEAKER_VALUES];
    frame_table fbank = {0};
    TRY(read_table(c, input, FBANK_BANDS, false, &fbank));
    for (int i = 0; i < 2 && n->speakers[i]; i++) {
        TRY(speaker_network_run(n->speakers[i], &fbank, vector));
        snprintf(name, sizeof name, "%s%s", prefixes[i], input + strlen("fbank_"));
        TRY(parity_emit(sink, case_idx, name, 1, dims, vector));
    }
out:
    frame_table_done(&fbank);
    return err;
}

static cf_err run_case(void *ctx, const parity_case *c, size_t case_idx, parity_sink *sink)
{
    cf_err err;
    const enroll_run *e = ctx;
    networks n = {0};
    const char *input;
    TRY(networks_open(e, c, &n));
    for (size_t i = 0; (input = parity_case_input(c, i)) != NULL; i++) {
        if (strncmp(input, "token_mel_", strlen("token_mel_")) == 0)
            TRY(run_tokens(&n, c, input, case_idx, sink));
        else
            TRY(run_speakers(&n, c, input, case_idx, sink));
    }
out:
    networks_close(&n);
    return err;
}

const parity_stage parity_enroll = {
    .stage = "enroll", .open = open_adapter, .run_one = run_case, .close = close_adapter};
