/*
 * parity_hift.c - vocoder cases through the code that hift_worker runs. Command line only; owns the engine.
 *
 * A case is looked at twice, because an error early on would drown everything behind it (the phase adds up over
 * seconds):
 *
 *   mel -> our f0 -> our source -> audio                      end to end, as a worker renders it
 *   expected f0 -> source;  expected source -> conv_pre, conv_post      each part on upstream's own input
 *
 * Expected tensors that a case leaves out are replaced by ours.
 *
 * Fails: CF_ERR_MISMATCH, CF_ERR_NOTFOUND, CF_ERR_LIMIT say what is wrong with a case; as the engine.
 * Source: cases.md 2; layouts are upstream's [C, T], ours are time-major.
 */
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "hift_worker/f0_predictor.h"
#include "hift_worker/hift_decoder.h"
#include "hift_worker/hift_model.h"
#include "tools/parity.h"
#include "tools/parity_mel.h"

/* One packed batch on its way; arrays are of the batch. */
typedef struct hift_run {
    hift_engine *engine;
    const parity_case *const *cases;
    size_t first_idx; /* of cases[0] among the frame's */
    parity_sink *sink;
    hift_batch batch;
    cf_err err; /* the first failure inside the probe, which cannot return one */
} hift_run;

static cf_err case_span(const parity_case *c, hift_span *ret_span)
{
    cf_err err;
    int64_t dims[2];
    const float *mel;
    const char *finalize = parity_case_meta(c, "finalize"); /* captures have none: they are whole utterances */
    const bool is_final = !finalize || strcmp(finalize, "0") != 0;
    TRY(parity_case_f32(c, "mel", 2, dims, &mel));
    if (dims[0] != MEL_BINS)
        FAIL(CF_ERR_MISMATCH, "%s: tensor mel: expected [%d, frames], found [%lld, %lld]", parity_case_path(c),
             MEL_BINS, (long long)dims[0], (long long)dims[1]);
    const int32_t least = is_final ? HIFT_FRAMES_MIN : HIFT_FRAMES_MIN_OPEN;
    if (dims[1] < least || dims[1] > FRAMES_MAX)
        FAIL(CF_ERR_LIMIT, "%s: tensor mel: %lld frames, expected %d to %d", parity_case_path(c), (long long)dims[1],
             least, FRAMES_MAX);
    *ret_span = (hift_span){.frames = (int32_t)dims[1], .finalize = is_final};
out:
    return err;
}

static cf_err upload_mels(hift_run *r, tensor *ret_mel)
{
    cf_err err;
    backend *be = r->engine->be;
    const op_rows *rows = &r->batch.mel;
    float *packed = NULL;
    int64_t dims[2];
    const float *mel;
    TRY(mem_alloc((size_t)rows_total(rows) * MEL_BINS, sizeof *packed, &packed));
    for (int32_t b = 0; b < rows->count; b++) {
        TRY(parity_case_f32(r->cases[b], "mel", 2, dims, &mel));
        parity_mel_transpose(mel, dims[0], dims[1], packed + (int64_t)rows->offs[b] * MEL_BINS);
    }
    TRY(backend_take_2d(be, DTYPE_F32, rows_total(rows), MEL_BINS, ret_mel));
    TRY(backend_upload(be, packed, ret_mel));
out:
    mem_free(packed);
    return err;
}

/* Overwrites the sequences of x whose case holds `name`.   x: [rows] */
static cf_err upload_expected(hift_run *r, const char *name, const op_rows *rows, const tensor *x)
{
    cf_err err = CF_OK;
    int64_t count;
    const float *values;
    for (int32_t b = 0; b < rows->count; b++) {
        if (!parity_case_has(r->cases[b], name))
            continue;
        TRY(parity_case_f32(r->cases[b], name, 1, &count, &values));
        if (count != rows_length(rows, b))
            FAIL(CF_ERR_MISMATCH, "%s: tensor %s: expected %d values for this mel, found %lld",
                 parity_case_path(r->cases[b]), name, rows_length(rows, b), (long long)count);
        tensor part = tensor_rows(x, rows->offs[b], count);
        TRY(backend_upload(r->engine->be, values, &part));
    }
out:
    return err;
}

/* Emits each sequence of x: [rows] under its case. */
static cf_err emit_each(const hift_run *r, const char *name, const op_rows *rows, const tensor *x)
{
    cf_err err;
    float *values = NULL;
    TRY(mem_alloc((size_t)rows_total(rows), sizeof *values, &values));
    TRY(backend_download(r->engine->be, x, values));
    for (int32_t b = 0; b < rows->count; b++) {
        const int64_t count = rows_length(rows, b);
        TRY(parity_emit(r->sink, r->first_idx + (size_t)b, name, 1, &count, values + rows->offs[b]));
    }
out:
    mem_free(values);
    return err;
}

/* [T, C] of the pass becomes [C, T] of the case. */
static cf_err emit_layer(const hift_run *r, int32_t row_idx, const char *name, const int64_t *dims, const float *data)
{
    cf_err err;
    float *turned = NULL;
    TRY(mem_alloc((size_t)(dims[0] * dims[1]), sizeof *turned, &turned));
    parity_mel_transpose(data, dims[0], dims[1], turned);
    TRY(parity_emit(r->sink, r->first_idx + (size_t)row_idx, name, 2, (const int64_t[]){dims[1], dims[0]}, turned));
out:
    mem_free(turned);
    return err;
}

static void run_watch(void *ctx, int32_t row_idx, const char *name, int rank, const int64_t *dims, const float *data)
{
    hift_run *r = ctx;
    (void)rank;
    if (r->err == CF_OK)
        r->err = emit_layer(r, row_idx, name, dims, data);
}

/* Each part on upstream's own input; f0, source and audio are ours on entry and are overwritten. */
static cf_err run_parts(hift_run *r, const tensor *mel, tensor *f0, tensor *source, tensor *audio)
{
    cf_err err;
    backend *be = r->engine->be;
    hift_model *m = r->engine->model;
    const probe watch = {.ctx = r, .emit = run_watch};
    TRY(upload_expected(r, "f0", &r->batch.f0, f0));
    TRY(nsf_source_run(&m->source, be, f0, &r->batch.f0, source));
    TRY(emit_each(r, "source", &r->batch.source, source));
    TRY(upload_expected(r, "source", &r->batch.source, source));
    TRY(hift_decoder_run(m, be, &r->batch, mel, source, &watch, audio));
    TRY(r->err);
out:
    return err;
}

static cf_err run_batch(hift_run *r, const hift_span *spans, int32_t count)
{
    cf_err err;
    backend *be = r->engine->be;
    hift_model *m = r->engine->model;
    tensor mel, f0, source, audio;
    TRY(hift_batch_init(be, spans, count, &r->batch));
    TRY(upload_mels(r, &mel));
    TRY(backend_take(be, DTYPE_F32, 1, (const int64_t[]){rows_total(&r->batch.f0)}, &f0));
    TRY(backend_take(be, DTYPE_F32, 1, (const int64_t[]){rows_total(&r->batch.source)}, &source));
    TRY(backend_take(be, DTYPE_F32, 1, (const int64_t[]){rows_total(&r->batch.audio)}, &audio));
    TRY(f0_predictor_run(m, be, &r->batch, &mel, &f0));
    TRY(emit_each(r, "f0", &r->batch.f0, &f0));
    TRY(nsf_source_run(&m->source, be, &f0, &r->batch.f0, &source));
    TRY(hift_decoder_run(m, be, &r->batch, &mel, &source, NULL, &audio));
    TRY(emit_each(r, "audio", &r->batch.audio, &audio));
    TRY(run_parts(r, &mel, &f0, &source, &audio));
out:
    backend_scratch_reset(be, 0);
    return err;
}

static cf_err hift_parity_open(const parity_options *opt, void **ret_ctx)
{
    cf_err err;
    hift_engine *e = NULL;
    const hift_engine_config cfg = {
        .model_dir = opt->model_dir,
        .device = opt->device,
        .operands = opt->operands,
        .naive = opt->naive,
        .frames_max = PARITY_FRAMES_MAX,
        .rows_max = PARITY_ROWS_MAX,
    };
    TRY(mem_alloc(1, sizeof *e, &e));
    TRY(hift_engine_open(&cfg, e));
    *ret_ctx = e;
    e = NULL;
out:
    mem_free(e);
    return err;
}

/* One packed batch, or as few as the engine's scratch allows. */
static cf_err hift_parity_run(void *ctx, const parity_case *const *cases, size_t count, parity_sink *sink)
{
    cf_err err = CF_OK;
    hift_span spans[PARITY_ROWS_MAX];
    for (size_t first = 0; first < count;) {
        int32_t taken = 0;
        int64_t frames = 0;
        while (first + (size_t)taken < count && taken < PARITY_ROWS_MAX) {
            TRY(case_span(cases[first + (size_t)taken], &spans[taken]));
            if (frames + spans[taken].frames > PARITY_FRAMES_MAX)
                break;
            frames += spans[taken++].frames;
        }
        hift_run r = {.engine = ctx, .cases = cases + first, .first_idx = first, .sink = sink};
        TRY(run_batch(&r, spans, taken));
        first += (size_t)taken;
    }
out:
    return err;
}

static void hift_parity_close(void *ctx)
{
    hift_engine_close(ctx);
    mem_free(ctx);
}

const parity_stage parity_hift = {
    .stage = "hift", .open = hift_parity_open, .run = hift_parity_run, .close = hift_parity_close};
