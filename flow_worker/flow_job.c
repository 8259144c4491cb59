/*
 * flow_job.c - reads a worker's job and refuses what cannot be rendered, before any work is done.
 *
 * Pure; any thread. The orchestrator has checked all this; a worker does not take its word, because the token ids index
 * memory and the output is memory of someone else.
 *
 * Fails: CF_ERR_INVALID, CF_ERR_LIMIT.
 * Source: cosy cosyvoice/flow/flow.py inference, cli/model.py token2wav (speed, look-ahead) @ace7c47.
 */
#include "flow_worker/flow_job.h"

#include "flow_worker/flow_shapes.h"

flow_job flow_job_from(const stage_job *job)
{
    flow_job f = {.job_id = job->job_id,
                  .in = {.tokens = job->tokens, .tokens_count = job->tokens_count, .finalize = job->finalize},
                  .streaming = job->streaming,
                  .speed = job->speed,
                  .out = job->out,
                  .out_on_device = job->out_on_device,
                  .out_bytes = job->out_bytes};
    if (job->voice != NULL) {
        f.in.prompt_tokens = job->voice->prompt_token;
        f.in.prompt_tokens_count = (int32_t)job->voice->prompt_tokens;
        f.in.prompt_feat = job->voice->prompt_feat;
        f.in.prompt_frames = FRAMES_PER_TOKEN * (int32_t)job->voice->prompt_tokens;
        f.in.embedding = job->voice->embedding;
    }
    return f;
}

static cf_err check_ids(const char *what, const int32_t *ids, int32_t count, int64_t speech_codes)
{
    for (int32_t i = 0; i < count; i++)
        if (ids[i] >= speech_codes)
            return err_set(CF_ERR_INVALID, "%s %d: id %d, expected below %d (control ids carry no sound)", what, (int)i,
                           (int)ids[i], (int)speech_codes);
    return CF_OK;
}

static cf_err check_counts(const flow_inputs *in)
{
    const int32_t least = in->finalize ? 1 : FLOW_LOOKAHEAD_TOKENS + 1;
    if (in->tokens_count < least || in->tokens == NULL)
        return err_set(CF_ERR_INVALID, "flow: expected at least %d speech tokens%s, found %d", (int)least,
                       in->finalize ? "" : " before the end (3 are look-ahead)", (int)in->tokens_count);
    if (in->prompt_tokens_count < 0 || in->prompt_frames < 0)
        return err_set(CF_ERR_INVALID, "flow: prompt of %d tokens and %d frames", (int)in->prompt_tokens_count,
                       (int)in->prompt_frames);
    const int64_t frames = flow_inputs_frames(in);
    if (frames > FRAMES_MAX)
        return err_set(CF_ERR_LIMIT,
                       "flow: %lld mel frames with the prompt, expected at most %d (FRAMES_MAX: the noise table has "
                       "300 s)",
                       (long long)frames, FRAMES_MAX);
    if (in->prompt_frames >= frames)
        return err_set(CF_ERR_INVALID, "flow: the prompt's %d mel frames leave nothing of %lld to generate",
                       (int)in->prompt_frames, (long long)frames);
    return CF_OK;
}

cf_err flow_job_check(int64_t speech_codes, flow_job *job)
{
    cf_err err = CF_OK;
    const flow_inputs *in = &job->in;
    TRY(check_counts(in));
    TRY(check_ids("prompt token", in->prompt_tokens, in->prompt_tokens_count, speech_codes));
    TRY(check_ids("speech token", in->tokens, in->tokens_count, speech_codes));
    if (!(job->speed >= FLOW_SPEED_MIN && job->speed <= FLOW_SPEED_MAX))
        FAIL(CF_ERR_INVALID, "flow: speed %g, expected %g..%g", job->speed, FLOW_SPEED_MIN, FLOW_SPEED_MAX);
    if (job->speed != 1.0 && !in->finalize)
        FAIL(CF_ERR_INVALID, "flow: speed %g in a chunk that is not final, expected 1", job->speed);
    const int32_t frames = (int32_t)flow_inputs_frames(in);
    const int32_t out_frames = (int32_t)((double)(frames - in->prompt_frames) / job->speed);
    const size_t need_bytes = (size_t)out_frames * MEL_BINS * sizeof(float);
    if (job->out == NULL || job->out_bytes < need_bytes)
        FAIL(CF_ERR_INVALID, "flow: output of %zu bytes, expected at least %zu for %d frames",
             job->out == NULL ? 0 : job->out_bytes, need_bytes, (int)out_frames);
    job->frames = frames;
    job->out_frames = out_frames;
out:
    return err;
}
