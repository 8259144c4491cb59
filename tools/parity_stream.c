/*
 * parity_stream.c - flow and vocoder chained as a stream makes them, and the change of speed.
 * Command line only; owns two stages, and during a run the mel and the samples of every emission.
 *
 * A stream's calls each render everything from the first token on and keep what is new: non-final ones with
 * block-causal attention and three tokens of look-ahead, the last one bidirectionally. The vocoder gets all mel so far
 * and its new samples are kept. All calls of all cases go to the flow together, then all of the vocoder's.
 *
 * The vocoder is given the case's mel where it holds one. From our own, which rounds otherwise in the seventh digit, no
 * implementation would reach the waveform: noise of 2.5e-7 of the maximum leaves 50 dB after five seconds, because the
 * f32 phase adds up every rounding (cases.md 2).
 *
 * Fails: CF_ERR_INVALID for calls that no stream could have made; as the two stages.
 * Source: flow.md 8.1 and 8.4, hift.md 9.2; cosy cosyvoice/cli/model.py CosyVoice3Model.tts, token2wav
 * @ace7c47. The calls are the case's, since a process that has served streams before makes other ones (flow.md 8.1).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/compute/ops.h"
#include "flow_worker/flow_shapes.h"
#include "flow_worker/flow_stage.h"
#include "tools/parity.h"
#include "tools/parity_mel.h"

/* One emission: what one call of the flow adds. */
typedef struct emission {
    size_t case_idx;
    int idx;       /* k of mel_k, audio_k */
    int32_t first; /* generated frames emitted before */
    int32_t count; /* new ones */
    bool last;
    flow_job job;
    float *mel;          /* owned; all generated frames of this call */
    const float *so_far; /* borrowed: [first + count, 80], of the case */
    float *audio;        /* owned; samples of all mel so far */
    size_t audio_bytes;
} emission;

typedef struct stream_run {
    void *flow, *hift;
    const parity_case *const *cases; /* [cases_count] */
    emission *emissions;             /* [count], owned */
    size_t count;
    float **joined; /* [cases_count], owned: the mel of a case as emitted */
    size_t cases_count;
    int64_t *samples; /* [count], owned */
} stream_run;

typedef struct stream_ctx {
    void *flow, *hift; /* owned */
} stream_ctx;

/* Frames of one non-final call; the text names the call that cannot be. */
static cf_err call_read(const json *call, int idx, int32_t offset, int32_t tokens_count, int32_t *ret_tokens)
{
    cf_err err = CF_OK;
    uint64_t at, tokens;
    const json *v = json_first(call);
    TRY(json_as_u64(v, "calls: offset", 0, TOKENS_MAX, &at));
    TRY(json_as_u64(json_next(v), "calls: tokens", 1, TOKENS_MAX, &tokens));
    if ((int32_t)at != offset || (int32_t)(at + tokens) + FLOW_LOOKAHEAD_TOKENS > tokens_count)
        FAIL(CF_ERR_INVALID, "calls: call %d is [%d, %d], expected offset %d and at most %d tokens of %d", idx, (int)at,
             (int)tokens, (int)offset, (int)(tokens_count - FLOW_LOOKAHEAD_TOKENS - offset), (int)tokens_count);
    *ret_tokens = (int32_t)tokens;
out:
    return err;
}

/* Describes the call that renders tokens [0, end) and keeps the frames of [offset, end). */
static cf_err emission_make(const flow_inputs *in, int32_t offset, int32_t end, bool last, emission *e)
{
    cf_err err = CF_OK;
    e->first = FRAMES_PER_TOKEN * offset;
    e->count = FRAMES_PER_TOKEN * (end - offset);
    e->last = last;
    e->job = (flow_job){.in = *in, .streaming = !last, .speed = 1.0};
    e->job.in.tokens_count = last ? end : end + FLOW_LOOKAHEAD_TOKENS;
    e->job.in.finalize = last;
    const size_t values = (size_t)(e->first + e->count) * MEL_BINS;
    TRY(mem_alloc(values, sizeof(float), &e->mel));
    e->job.out = e->mel;
    e->job.out_bytes = values * sizeof(float);
    e->audio_bytes = (size_t)stage_samples(e->first + e->count) * sizeof(float);
    TRY(mem_alloc(e->audio_bytes, 1, &e->audio));
out:
    return err;
}

static cf_err run_grow(stream_run *run, size_t case_idx, int idx, emission **ret_emission)
{
    cf_err err = CF_OK;
    TRY(mem_resize(&run->emissions, run->count + 1, sizeof *run->emissions));
    emission *e = &run->emissions[run->count];
    *e = (emission){.case_idx = case_idx, .idx = idx};
    run->count++;
    *ret_emission = e;
out:
    return err;
}

/* Appends the emissions of one case. */
static cf_err run_add_case(stream_run *run, size_t case_idx, const parity_case *c)
{
    cf_err err = CF_OK;
    flow_inputs in;
    json *root = NULL;
    emission *e;
    int32_t offset = 0;
    int idx = 0;
    const char *calls = parity_case_meta(c, "calls");
    if (calls == NULL)
        FAIL(CF_ERR_NOTFOUND, "metadata \"calls\" is missing");
    TRY(parity_mel_inputs(c, &in));
    TRY(json_parse(calls, strlen(calls), 3, &root));
    for (const json *call = json_first(root); call != NULL; call = json_next(call), idx++) {
        int32_t tokens;
        TRY(call_read(call, idx, offset, in.tokens_count, &tokens));
        TRY(run_grow(run, case_idx, idx, &e));
        TRY(emission_make(&in, offset, offset + tokens, false, e));
        offset += tokens;
    }
    if (offset >= in.tokens_count)
        FAIL(CF_ERR_INVALID, "calls: %d tokens of %d leave nothing to the last call", (int)offset,
             (int)in.tokens_count);
    TRY(run_grow(run, case_idx, idx, &e));
    TRY(emission_make(&in, offset, in.tokens_count, true, e));
    TRY(mem_alloc((size_t)(e->first + e->count) * MEL_BINS, sizeof(float), &run->joined[case_idx]));
out:
    json_close(root);
    return err;
}

static cf_err run_accept_flow(void *ctx, size_t job_idx)
{
    stream_run *run = ctx;
    flow_job job = run->emissions[job_idx].job;
    job.job_id = job_idx;
    return flow_stage_accept_job(run->flow, &job);
}

static cf_err run_accept_hift(void *ctx, size_t job_idx)
{
    stream_run *run = ctx;
    const emission *e = &run->emissions[job_idx];
    return hift_stage.accept(run->hift, &(stage_job){.job_id = job_idx,
                                                     .mel = e->so_far,
                                                     .frames = e->first + e->count,
                                                     .finalize = e->last,
                                                     .out = e->audio,
                                                     .out_bytes = e->audio_bytes});
}

/* What the vocoder hears of an emission: the expected mel if the case has it in this shape, else ours. */
static void emission_join(const stream_run *run, const emission *e, const char *name, const float *ours, float *joined)
{
    int64_t dims[2];
    const float *expected;
    const parity_case *c = run->cases[e->case_idx];
    float *at = joined + (size_t)e->first * MEL_BINS;
    if (parity_case_has(c, name) && parity_case_f32(c, name, 2, dims, &expected) == CF_OK && dims[0] == MEL_BINS &&
        dims[1] == e->count)
        parity_mel_transpose(expected, MEL_BINS, e->count, at);
    else
        memcpy(at, ours, (size_t)e->count * MEL_BINS * sizeof *ours);
}

static cf_err run_flow(stream_run *run, parity_sink *sink)
{
    cf_err err = CF_OK;
    TRY(parity_jobs_run(&(parity_jobs){
        .ops = &flow_stage, .stage = run->flow, .count = run->count, .accept = run_accept_flow, .ctx = run}));
    for (size_t i = 0; i < run->count; i++) {
        emission *e = &run->emissions[i];
        char name[24];
        snprintf(name, sizeof name, "mel_%d", e->idx);
        const float *fresh = e->mel + (size_t)e->first * MEL_BINS;
        TRY(parity_mel_emit(sink, e->case_idx, name, e->count, fresh));
        emission_join(run, e, name, fresh, run->joined[e->case_idx]);
        e->so_far = run->joined[e->case_idx];
    }
out:
    return err;
}

static cf_err run_hift(stream_run *run, parity_sink *sink)
{
    cf_err err = CF_OK;
    int64_t before = 0;
    TRY(mem_alloc(run->count, sizeof *run->samples, &run->samples));
    TRY(parity_jobs_run(&(parity_jobs){.ops = &hift_stage,
                                       .stage = run->hift,
                                       .count = run->count,
                                       .accept = run_accept_hift,
                                       .ctx = run,
                                       .ret_units = run->samples}));
    for (size_t i = 0; i < run->count; i++) {
        const emission *e = &run->emissions[i];
        char name[24];
        snprintf(name, sizeof name, "audio_%d", e->idx);
        before = e->idx == 0 ? 0 : before;
        CF_ASSERT(run->samples[i] >= before);
        TRY(parity_emit(sink, e->case_idx, name, 1, (const int64_t[]){run->samples[i] - before}, e->audio + before));
        before = run->samples[i];
    }
out:
    return err;
}

static void run_done(stream_run *run)
{
    for (size_t i = 0; i < run->count; i++) {
        mem_free(run->emissions[i].mel);
        mem_free(run->emissions[i].audio);
    }
    for (size_t i = 0; run->joined != NULL && i < run->cases_count; i++)
        mem_free(run->joined[i]);
    mem_free(run->emissions);
    mem_free(run->joined);
    mem_free(run->samples);
}

static cf_err stream_run_cases(void *ctx, const parity_case *const *cases, size_t count, parity_sink *sink)
{
    cf_err err = CF_OK;
    const stream_ctx *stages = ctx;
    stream_run run = {.flow = stages->flow, .hift = stages->hift, .cases = cases, .cases_count = count};
    TRY(mem_alloc(count, sizeof(float *), &run.joined));
    for (size_t i = 0; i < count; i++)
        TRY(run_add_case(&run, i, cases[i]));
    TRY(run_flow(&run, sink));
    TRY(run_hift(&run, sink));
out:
    run_done(&run);
    return err;
}

static void stream_close(void *ctx)
{
    stream_ctx *stages = ctx;
    if (stages == NULL)
        return;
    flow_stage.close(stages->flow);
    hift_stage.close(stages->hift);
    mem_free(stages);
}

static cf_err stream_open(const parity_options *opt, void **ret_ctx)
{
    cf_err err = CF_OK;
    stream_ctx *stages = NULL;
    TRY(mem_alloc(1, sizeof *stages, &stages));
    TRY(parity_stage_open(&flow_stage, opt, &stages->flow));
    TRY(parity_stage_open(&hift_stage, opt, &stages->hift));
    *ret_ctx = stages;
    stages = NULL;
out:
    stream_close(stages);
    return err;
}

const parity_stage parity_stream = {
    .stage = "stream", .open = stream_open, .run = stream_run_cases, .close = stream_close};

/* Speed: the one op that the flow applies to a finished mel. ----------------------------------------------------- */

#define SPEED_SCRATCH_BYTES ((size_t)1 << 30) /* address space: far more than the bounded cases need */

static cf_err speed_open(const parity_options *opt, void **ret_ctx)
{
    backend *be = NULL;
    const backend_config cfg = {
        .device = opt->device, .naive = opt->naive, .threads = 0, .scratch_bytes = SPEED_SCRATCH_BYTES};
    const cf_err err = backend_open(&cfg, &be);
    if (err == CF_OK)
        *ret_ctx = be;
    return err;
}

/* Packed mel of all cases, their frames before and after. */
typedef struct speed_batch {
    int32_t *frames, *out_frames; /* [count], owned */
    op_rows rows_in, rows_out;
    tensor x, y;
} speed_batch;

static cf_err speed_lengths(const parity_case *const *cases, size_t count, speed_batch *b)
{
    cf_err err = CF_OK;
    for (size_t i = 0; i < count; i++) {
        int64_t dims[2];
        const float *mel;
        TRY(parity_case_f32(cases[i], "mel", 2, dims, &mel));
        if (dims[0] != MEL_BINS || dims[1] < 1 || dims[1] > FRAMES_MAX)
            FAIL(CF_ERR_MISMATCH, "mel is [%lld, %lld], expected [%d, 1..%d]", (long long)dims[0], (long long)dims[1],
                 MEL_BINS, FRAMES_MAX);
        const char *speed = parity_case_meta(cases[i], "speed");
        if (speed == NULL)
            FAIL(CF_ERR_NOTFOUND, "metadata \"speed\" is missing");
        b->frames[i] = (int32_t)dims[1];
        b->out_frames[i] = (int32_t)((double)dims[1] / strtod(speed, NULL));
    }
out:
    return err;
}

static cf_err speed_upload(backend *be, const parity_case *const *cases, size_t count, speed_batch *b)
{
    cf_err err = CF_OK;
    float *turned = NULL;
    TRY(mem_alloc((size_t)FRAMES_MAX * MEL_BINS, sizeof *turned, &turned));
    for (size_t i = 0; i < count; i++) {
        int64_t dims[2];
        const float *mel;
        tensor part = tensor_rows(&b->x, b->rows_in.offs[i], b->frames[i]);
        TRY(parity_case_f32(cases[i], "mel", 2, dims, &mel));
        parity_mel_transpose(mel, dims[0], dims[1], turned);
        TRY(backend_upload(be, turned, &part));
    }
out:
    mem_free(turned);
    return err;
}

static cf_err speed_emit(backend *be, size_t count, const speed_batch *b, parity_sink *sink)
{
    cf_err err = CF_OK;
    float *mel = NULL;
    TRY(mem_alloc((size_t)FRAMES_MAX * 2 * MEL_BINS, sizeof *mel, &mel));
    for (size_t i = 0; i < count; i++) {
        const tensor part = tensor_rows(&b->y, b->rows_out.offs[i], b->out_frames[i]);
        TRY(backend_download(be, &part, mel));
        TRY(parity_mel_emit(sink, i, "resampled", b->out_frames[i], mel));
    }
out:
    mem_free(mel);
    return err;
}

static cf_err speed_run(void *ctx, const parity_case *const *cases, size_t count, parity_sink *sink)
{
    cf_err err = CF_OK;
    backend *be = ctx;
    speed_batch b = {0};
    const size_t mark = backend_scratch_mark(be);
    TRY(mem_alloc(count, sizeof *b.frames, &b.frames));
    TRY(mem_alloc(count, sizeof *b.out_frames, &b.out_frames));
    TRY(speed_lengths(cases, count, &b));
    TRY(backend_rows(be, b.frames, (int32_t)count, &b.rows_in));
    TRY(backend_rows(be, b.out_frames, (int32_t)count, &b.rows_out));
    TRY(backend_take_2d(be, DTYPE_F32, rows_total(&b.rows_in), MEL_BINS, &b.x));
    TRY(backend_take_2d(be, DTYPE_F32, rows_total(&b.rows_out), MEL_BINS, &b.y));
    TRY(speed_upload(be, cases, count, &b));
    TRY(op_lerp_time(be, &(op_lerp_time_args){.x = &b.x, .rows_in = &b.rows_in, .y = &b.y, .rows_out = &b.rows_out}));
    TRY(speed_emit(be, count, &b, sink));
out:
    backend_scratch_reset(be, mark);
    mem_free(b.frames);
    mem_free(b.out_frames);
    return err;
}

static void speed_close(void *ctx)
{
    backend_close(ctx);
}

const parity_stage parity_speed = {.stage = "speed", .open = speed_open, .run = speed_run, .close = speed_close};
