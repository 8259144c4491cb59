/*
 * parity_mel.c - shared by the parity adapters around mel. Command line only; owns nothing.
 * Fails: CF_ERR_NOTFOUND and CF_ERR_MISMATCH for inputs of a case; what the stage says of a job.
 * Source: cases.md 2.
 */
#include "tools/parity_mel.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

bool parity_mel_flag(const parity_case *c, const char *key)
{
    const char *value = parity_case_meta(c, key);
    return value != NULL && strcmp(value, "1") == 0;
}

cf_err parity_mel_inputs(const parity_case *c, flow_inputs *ret_in)
{
    cf_err err = CF_OK;
    flow_inputs in = {0};
    int64_t tokens, prompt_tokens, feat_dims[2], embedding_dims[1];
    TRY(parity_case_i32(c, "token", &tokens, &in.tokens));
    TRY(parity_case_i32(c, "prompt_token", &prompt_tokens, &in.prompt_tokens));
    TRY(parity_case_f32(c, "prompt_feat", 2, feat_dims, &in.prompt_feat));
    TRY(parity_case_f32(c, "embedding", 1, embedding_dims, &in.embedding));
    if (feat_dims[1] != MEL_BINS || embedding_dims[0] != SPEAKER_VALUES)
        FAIL(CF_ERR_MISMATCH, "prompt_feat has %lld columns, embedding %lld values, expected %d and %d",
             (long long)feat_dims[1], (long long)embedding_dims[0], MEL_BINS, SPEAKER_VALUES);
    if (tokens > TOKENS_MAX || prompt_tokens > TOKENS_MAX || feat_dims[0] > FRAMES_MAX)
        FAIL(CF_ERR_LIMIT, "%lld tokens, %lld prompt tokens, %lld prompt frames, expected at most %d, %d, %d",
             (long long)tokens, (long long)prompt_tokens, (long long)feat_dims[0], TOKENS_MAX, TOKENS_MAX, FRAMES_MAX);
    in.tokens_count = (int32_t)tokens;
    in.prompt_tokens_count = (int32_t)prompt_tokens;
    in.prompt_frames = (int32_t)feat_dims[0];
    *ret_in = in;
out:
    return err;
}

void parity_mel_transpose(const float *src, int64_t rows, int64_t cols, float *dst)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            dst[c * rows + r] = src[r * cols + c];
}

cf_err parity_mel_emit(parity_sink *sink, size_t case_idx, const char *name, int64_t frames, const float *values)
{
    cf_err err = CF_OK;
    float *turned = NULL;
    TRY(mem_alloc((size_t)(frames * MEL_BINS), sizeof *turned, &turned));
    parity_mel_transpose(values, frames, MEL_BINS, turned);
    TRY(parity_emit(sink, case_idx, name, 2, (const int64_t[]){MEL_BINS, frames}, turned));
out:
    mem_free(turned);
    return err;
}

cf_err parity_stage_open(const stage_ops *ops, const parity_options *opt, void **ret_stage)
{
    const stage_config cfg = {.model_dir = opt->model_dir,
                              .device = opt->device,
                              .operands = opt->operands,
                              .naive = opt->naive,
                              .rows_max = PARITY_ROWS_MAX,
                              .frames_max = PARITY_FRAMES_MAX};
    return ops->open(&cfg, ret_stage);
}

/* One step; counts and records what ended. */
static cf_err jobs_step(const parity_jobs *jobs, size_t *ended)
{
    cf_err err = CF_OK;
    stage_result results[PARITY_ROWS_MAX];
    int32_t count;
    TRY(jobs->ops->step(jobs->stage, results, PARITY_ROWS_MAX, &count));
    for (int32_t i = 0; i < count; i++) {
        const stage_result *r = &results[i];
        CF_ASSERT(r->job_id < jobs->count);
        if (r->code != CF_OK)
            FAIL(r->code, "%s", r->text);
        if (jobs->ret_units != NULL)
            jobs->ret_units[r->job_id] = jobs->ops->kind == STAGE_HIFT ? r->samples : r->frames;
        (*ended)++;
    }
out:
    return err;
}

cf_err parity_jobs_run(const parity_jobs *jobs)
{
    cf_err err = CF_OK;
    size_t given = 0, ended = 0;
    while (ended < jobs->count) {
        while (given < jobs->count) {
            err = jobs->accept(jobs->ctx, given);
            if (err == CF_ERR_BUSY && jobs->ops->held(jobs->stage) > 0)
                break;
            TRY(err);
            given++;
        }
        TRY(jobs_step(jobs, &ended));
    }
out:
    for (size_t i = 0; err != CF_OK && i < given; i++)
        jobs->ops->cancel(jobs->stage, i);
    return err;
}
