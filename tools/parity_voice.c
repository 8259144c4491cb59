/*
 * parity_voice.c - recordings through decoder, resampler and the three feature extractors of enroll. Command line only;
 * owns backend and tables of the extractors. No model takes part.
 *
 * Fails: CF_ERR_NOTFOUND for a recording that is not there; what the decoder says of one that is.
 * Source: cases.md 4; layouts are upstream's: token_mel [128, T], fbank and prompt_feat [T, 80].
 */
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "enroll/audio_read.h"
#include "enroll/features.h"
#include "enroll/resample.h"
#include "tools/parity.h"
#include "tools/parity_mel.h"

#define SCRATCH_BYTES ((size_t)64 << 20) /* one chunk of frames of the longest transform takes 4 MiB */

typedef struct voice_run {
    backend *be;
    features plan;
} voice_run;

static void close_adapter(void *ctx)
{
    voice_run *v = ctx;
    if (!v)
        return;
    features_done(&v->plan);
    backend_close(v->be);
    mem_free(v);
}

static cf_err open_adapter(const parity_options *opt, void **ret_ctx)
{
    cf_err err;
    voice_run *v = NULL;
    const backend_config cfg = {.device = opt->device, .naive = opt->naive, .scratch_bytes = SCRATCH_BYTES};
    TRY(mem_alloc(1, sizeof *v, &v));
    TRY(backend_open(&cfg, &v->be));
    TRY(features_init(v->be, &v->plan));
    *ret_ctx = v;
    v = NULL;
out:
    close_adapter(v);
    return err;
}

static cf_err emit_token_mel(parity_sink *sink, size_t case_idx, const frame_table *t)
{
    cf_err err;
    float *turned = NULL;
    TRY(mem_alloc((size_t)(t->frames * t->bands), sizeof *turned, &turned));
    parity_mel_transpose(t->values, t->frames, t->bands, turned);
    TRY(parity_emit(sink, case_idx, "token_mel", 2, (const int64_t[]){t->bands, t->frames}, turned));
out:
    mem_free(turned);
    return err;
}

static cf_err emit_table(parity_sink *sink, size_t case_idx, const char *name, const frame_table *t)
{
    return parity_emit(sink, case_idx, name, 2, (const int64_t[]){t->frames, t->bands}, t->values);
}

static cf_err run_case(void *ctx, const parity_case *c, size_t case_idx, parity_sink *sink)
{
    cf_err err;
    const voice_run *v = ctx;
    char path[IO_PATH_BYTES];
    recording r = {0};
    float *at_16k = NULL, *at_24k = NULL;
    int64_t count_16k, count_24k;
    frame_table token_mel = {0}, fbank = {0}, feat = {0};
    TRY(parity_case_recording(c, path));
    TRY(recording_read(path, &r));
    TRY(resample(r.samples, r.sample_count, r.rate_hz, NETWORK_RATE_HZ, &at_16k, &count_16k));
    TRY(resample(r.samples, r.sample_count, r.rate_hz, SAMPLE_RATE_HZ, &at_24k, &count_24k));
    TRY(features_token_mel(&v->plan, at_16k, count_16k, &token_mel));
    TRY(features_fbank(&v->plan, at_16k, count_16k, &fbank));
    TRY(features_prompt_mel(&v->plan, at_24k, count_24k, &feat));
    TRY(parity_emit(sink, case_idx, "wave_16k", 1, &count_16k, at_16k));
    TRY(parity_emit(sink, case_idx, "wave_24k", 1, &count_24k, at_24k));
    TRY(emit_token_mel(sink, case_idx, &token_mel));
    TRY(emit_table(sink, case_idx, "fbank", &fbank));
    TRY(emit_table(sink, case_idx, "prompt_feat", &feat));
out:
    frame_table_done(&token_mel);
    frame_table_done(&fbank);
    frame_table_done(&feat);
    mem_free(at_16k);
    mem_free(at_24k);
    recording_done(&r);
    return err;
}

const parity_stage parity_voice = {.stage = "voice", .open = open_adapter, .run_one = run_case, .close = close_adapter};
