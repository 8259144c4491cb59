/*
 * bench_stage.c - drives stage_ops of flow and hift directly: no processes, no messages, only the computing.
 * Fails: what the stage fails with; CF_ERR_NOTFOUND when the model has no voice.
 */
#include "tools/bench_stage.h"

#include <math.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/rng.h"

typedef struct bench_jobs {
    voice *v;                   /* owned */
    int32_t *tokens;            /* owned */
    float *mel;                 /* owned */
    float *out[STAGE_ROWS_MAX]; /* owned, [values] each */
    size_t values;
    int32_t tokens_count, frames;
} bench_jobs;

static cf_err first_voice(const char *model_dir, voice **ret_voice)
{
    cf_err err;
    char name[VOICE_NAME_BYTES_MAX + 1];
    TRY(voice_default_name(model_dir, name));
    TRY(voice_load(model_dir, name, ret_voice));
out:
    return err;
}

/* Its mel and its embedding are noise of a usual size; which tokens, draw_inputs says. */
static cf_err random_voice(int32_t prompt_tokens, voice **ret_voice)
{
    cf_err err;
    int32_t *tokens = NULL;
    float *feat = NULL, embedding[SPEAKER_VALUES];
    const size_t count = (size_t)prompt_tokens, values = count * FRAMES_PER_TOKEN * MEL_BINS;
    TRY(mem_alloc(count, sizeof *tokens, &tokens));
    TRY(mem_alloc(values, sizeof *feat, &feat));
    for (size_t i = 0; i < values; i++)
        feat[i] = -6 + 4 * (rng_uniform(3, 0, (uint32_t)i, 0) - 0.5f);
    for (size_t i = 0; i < SPEAKER_VALUES; i++)
        embedding[i] = rng_uniform(4, 0, (uint32_t)i, 0) - 0.5f;
    TRY(voice_make("random",
                   &(voice_parts){.prompt_token = tokens,
                                  .token_count = count,
                                  .prompt_feat = feat,
                                  .frame_count = count * FRAMES_PER_TOKEN,
                                  .embedding = embedding},
                   ret_voice));
out:
    mem_free(tokens);
    mem_free(feat);
    return err;
}

static cf_err make_jobs(const stage_ops *ops, const stage_config *cfg, const bench_stage_wish *wish, bench_jobs *j)
{
    cf_err err;
    if (wish->prompt_tokens > 0)
        TRY(random_voice(wish->prompt_tokens, &j->v));
    else
        TRY(first_voice(cfg->model_dir, &j->v));
    j->tokens_count = (int32_t)(wish->seconds * TOKENS_PER_SECOND);
    j->frames = j->tokens_count * FRAMES_PER_TOKEN;
    TRY(mem_alloc((size_t)j->tokens_count, sizeof(int32_t), &j->tokens));
    TRY(mem_alloc((size_t)j->frames * MEL_BINS, sizeof(float), &j->mel));
    j->values = (size_t)j->frames * (ops->kind == STAGE_FLOW ? MEL_BINS : SAMPLES_PER_FRAME);
    for (int32_t r = 0; r < wish->rows; r++)
        TRY(mem_alloc(j->values, sizeof(float), &j->out[r]));
out:
    return err;
}

/* codes: of the model; 0 for hift, which reads no tokens. */
static void draw_inputs(bench_jobs *j, int32_t codes, bool prompt_too)
{
    for (int32_t i = 0; i < j->tokens_count; i++)
        j->tokens[i] = (int32_t)(rng_uniform(1, 0, (uint32_t)i, 0) * (float)codes);
    for (size_t i = 0; i < j->v->prompt_tokens && prompt_too; i++)
        j->v->prompt_token[i] = (int32_t)(rng_uniform(5, 0, (uint32_t)i, 0) * (float)codes);
    for (int32_t i = 0; i < j->frames * MEL_BINS; i++)
        j->mel[i] = -6 + 4 * (rng_uniform(2, 0, (uint32_t)i, 0) - 0.5f);
}

static void free_jobs(bench_jobs *j)
{
    voice_close(j->v);
    mem_free(j->tokens);
    mem_free(j->mel);
    for (int r = 0; r < STAGE_ROWS_MAX; r++)
        mem_free(j->out[r]);
}

static stage_job job_of(const stage_ops *ops, const bench_jobs *j, int32_t row)
{
    return (stage_job){.job_id = (uint64_t)row + 1,
                       .voice = ops->kind == STAGE_HIFT ? NULL : j->v,
                       .tokens = j->tokens,
                       .tokens_count = j->tokens_count,
                       .speed = 1,
                       .finalize = true,
                       .mel = j->mel,
                       .frames = j->frames,
                       .out = j->out[row],
                       .out_bytes = j->values * sizeof(float)};
}

/* Steps until all rows have ended. */
static cf_err step_all(const stage_ops *ops, void *stage, int32_t rows, bench_rate *rate)
{
    cf_err err = CF_OK;
    stage_result results[STAGE_ROWS_MAX];
    int32_t count = 0;
    const uint64_t start_us = clock_now_us();
    while (ops->held(stage) > 0) {
        TRY(ops->step(stage, results, STAGE_ROWS_MAX, &count));
        for (int32_t i = 0; i < count; i++)
            if (results[i].code != CF_OK)
                FAIL(results[i].code, "%s", results[i].text);
    }
    rate->rows = rows;
    rate->seconds = (double)(clock_now_us() - start_us) / 1e6;
out:
    return err;
}

static void derive(const stage_ops *ops, const bench_jobs *j, const stage_facts *facts, const stage_config *cfg,
                   const bench_ceiling *ceiling, bench_rate *rate)
{
    rate->audio_s = (double)rate->rows * j->tokens_count / TOKENS_PER_SECOND;
    rate->audio_per_s = rate->audio_s / rate->seconds;
    rate->ceiling_share = -1;
    if (ops->kind == STAGE_FLOW) {
        /* Every packed value is used once a row and step, for the conditional and the unconditional half: flow.md 10.
         * */
        const double values = (double)facts->weights_bytes / (cfg->operands == PRECISION_F32 ? 4 : 2);
        const double frames = (double)FRAMES_PER_TOKEN * (double)(j->v->prompt_tokens + (size_t)j->tokens_count);
        rate->ceiling_share = 2 * values * 2 * frames * 10 * rate->rows / rate->seconds / 1e9 / ceiling->gemm_gflops;
    }
}

static cf_err accept_all(const stage_ops *ops, void *stage, const bench_jobs *jobs, int32_t rows)
{
    cf_err err = CF_OK;
    for (int32_t r = 0; r < rows; r++) {
        const stage_job job = job_of(ops, jobs, r);
        TRY(ops->accept(stage, &job));
    }
out:
    return err;
}

/* One step, after which what is loaded, allocated or chosen at first use is there. Flow's is a tenth of the work. */
static cf_err warm_up(const stage_ops *ops, void *stage, const bench_jobs *jobs, int32_t rows)
{
    cf_err err;
    stage_result results[STAGE_ROWS_MAX];
    int32_t count = 0;
    TRY(accept_all(ops, stage, jobs, rows));
    TRY(ops->step(stage, results, STAGE_ROWS_MAX, &count));
    for (int32_t i = 0; i < count; i++)
        if (results[i].code != CF_OK)
            FAIL(results[i].code, "%s", results[i].text);
    for (int32_t r = 0; r < rows; r++)
        ops->cancel(stage, (uint64_t)r + 1);
out:
    return err;
}

/* Opens a stage, runs the first `rows` jobs at once, and closes it. */
static cf_err run_jobs(const stage_ops *ops, const stage_config *cfg, const bench_stage_wish *wish, int32_t rows,
                       bench_jobs *jobs, stage_facts *ret_facts, bench_rate *ret_rate)
{
    cf_err err;
    void *stage = NULL;
    stage_config sc = *cfg;
    sc.rows_max = rows;
    sc.frames_max = rows * (jobs->frames + FRAMES_PER_TOKEN * (int32_t)jobs->v->prompt_tokens);
    TRY(ops->open(&sc, &stage));
    ops->facts(stage, ret_facts);
    draw_inputs(jobs, ret_facts->speech_codes, wish->prompt_tokens > 0);
    TRY(warm_up(ops, stage, jobs, ops->kind == STAGE_HIFT && strcmp(cfg->device, "cpu") == 0 ? 1 : rows));
    TRY(accept_all(ops, stage, jobs, rows));
    TRY(step_all(ops, stage, rows, ret_rate));
out:
    ops->close(stage);
    return err;
}

/* Signal to noise of row 0, in dB, the same in f32 taken as the signal. */
static cf_err measure_snr(const stage_ops *ops, const stage_config *cfg, const bench_stage_wish *wish, bench_jobs *jobs,
                          double *ret_db)
{
    cf_err err;
    float *found = NULL;
    stage_config f32 = *cfg;
    stage_facts facts;
    bench_rate rate = {0};
    double signal = 0, noise = 0;
    f32.operands = PRECISION_F32;
    f32.int8_weights = false;
    TRY(mem_alloc(jobs->values, sizeof *found, &found));
    memcpy(found, jobs->out[0], jobs->values * sizeof *found);
    TRY(run_jobs(ops, &f32, wish, 1, jobs, &facts, &rate));
    for (size_t i = 0; i < jobs->values; i++) {
        const double want = jobs->out[0][i], error = found[i] - want;
        signal += want * want;
        noise += error * error;
    }
    *ret_db = 10 * log10(signal / noise); /* infinite when they are equal */
out:
    mem_free(found);
    return err;
}

cf_err bench_stage(const stage_ops *ops, const stage_config *cfg, const bench_stage_wish *wish,
                   const bench_ceiling *ceiling, bench_rate *ret_rate)
{
    cf_err err;
    bench_jobs jobs = {0};
    stage_facts facts;
    bench_rate rate = {0};
    if (wish->rows < 1 || wish->rows > STAGE_ROWS_MAX)
        FAIL(CF_ERR_LIMIT, "bench %s: %d rows, expected 1..%d", stage_name(ops->kind), (int)wish->rows, STAGE_ROWS_MAX);
    TRY(make_jobs(ops, cfg, wish, &jobs));
    TRY(run_jobs(ops, cfg, wish, wish->rows, &jobs, &facts, &rate));
    derive(ops, &jobs, &facts, cfg, ceiling, &rate);
    if (wish->snr)
        TRY(measure_snr(ops, cfg, wish, &jobs, &rate.snr_db));
    *ret_rate = rate;
out:
    free_jobs(&jobs);
    return err;
}
