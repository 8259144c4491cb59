/*
 * bench_stage.c - drives stage_ops directly: no processes, no messages, only the computing. One thread besides the
 * backend's.
 * Fails: what the stage fails with; CF_ERR_NOTFOUND when the model has no voice.
 */
#define _GNU_SOURCE
#include "tools/bench_stage.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/compute/ops.h"
#include "common/text/bpe.h"
#include "common/text/special_tokens.h"

#define READ_BYTES    ((size_t)512 << 20)
#define READERS_MAX   64
#define GEMM_ROWS     2048
#define GEMM_SIDE     1024
#define REPEATS       5
#define LLM_STEPS_MAX 100 /* decode steps that are timed: a steady rate needs no more */

/* ---- ceilings ---- */

typedef struct reader {
    const uint64_t *words;
    size_t count;
    uint64_t sum;
} reader;

static void *read_all(void *arg)
{
    reader *r = arg;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 3 < r->count; i += 4) {
        a += r->words[i];
        b += r->words[i + 1];
        c += r->words[i + 2];
        d += r->words[i + 3];
    }
    r->sum = a + b + c + d;
    return NULL;
}

static double read_once(const uint64_t *words, int threads)
{
    pthread_t ids[READERS_MAX];
    reader readers[READERS_MAX];
    const size_t each = READ_BYTES / sizeof *words / (size_t)threads;
    const uint64_t start_us = clock_now_us();
    for (int t = 0; t < threads; t++) {
        readers[t] = (reader){words + (size_t)t * each, each, 0};
        if (t > 0 && pthread_create(&ids[t], NULL, read_all, &readers[t]) != 0)
            return 0;
    }
    read_all(&readers[0]);
    for (int t = 1; t < threads; t++)
        pthread_join(ids[t], NULL);
    return (double)READ_BYTES / (double)(clock_now_us() - start_us) / 1e3;
}

static cf_err measure_read(int threads, double *ret_gbs)
{
    void *p = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return err_sys("mmap");
    memset(p, 1, READ_BYTES);
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        const double gbs = read_once(p, threads < READERS_MAX ? threads : READERS_MAX);
        best = gbs > best ? gbs : best;
    }
    munmap(p, READ_BYTES);
    *ret_gbs = best;
    return CF_OK;
}

static void fill(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(i * 2654435761u % 1000) * 1e-3f - 0.5f;
}

static cf_err measure_gemm(const stage_config *cfg, int *ret_threads, double *ret_gflops)
{
    cf_err err;
    backend *be = NULL;
    float *w = NULL, *rows = NULL;
    weight *packed;
    tensor x, y;
    const backend_config bc = {
        .device = cfg->device, .naive = cfg->naive, .threads = cfg->threads, .scratch_bytes = (size_t)64 << 20};
    TRY(backend_open(&bc, &be));
    TRY(mem_alloc((size_t)GEMM_SIDE * GEMM_SIDE, sizeof *w, &w));
    fill(w, (size_t)GEMM_SIDE * GEMM_SIDE);
    TRY(backend_pack_linear(be, w, GEMM_SIDE, GEMM_SIDE, cfg->operands, GEMM_BULK_BIT, &packed));
    TRY(backend_take_2d(be, DTYPE_F32, GEMM_ROWS, GEMM_SIDE, &x));
    TRY(backend_take_2d(be, DTYPE_F32, GEMM_ROWS, GEMM_SIDE, &y));
    TRY(mem_alloc((size_t)GEMM_ROWS * GEMM_SIDE, sizeof *rows, &rows));
    fill(rows, (size_t)GEMM_ROWS * GEMM_SIDE);
    TRY(backend_upload(be, rows, &x));
    TRY(backend_sync(be));
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        const uint64_t start_us = clock_now_us();
        TRY(op_linear(be, &(op_linear_args){.x = &x, .w = packed, .y = &y, .kind = GEMM_BULK}));
        TRY(backend_sync(be));
        const double gflops = 2.0 * GEMM_ROWS * GEMM_SIDE * GEMM_SIDE / (double)(clock_now_us() - start_us) / 1e3;
        best = gflops > best ? gflops : best;
    }
    *ret_threads = backend_threads(be);
    *ret_gflops = best;
out:
    mem_free(rows);
    mem_free(w);
    backend_close(be);
    return err;
}

cf_err bench_ceilings(const stage_config *cfg, bench_ceiling *ret_ceiling)
{
    cf_err err;
    int threads = 1;
    TRY(measure_gemm(cfg, &threads, &ret_ceiling->gemm_gflops));
    TRY(measure_read(threads, &ret_ceiling->read_gbs));
out:
    return err;
}

/* ---- one stage ---- */

typedef struct bench_jobs {
    voice *v;      /* owned */
    int32_t *text; /* owned */
    int32_t *tokens;
    float *mel;
    void *out[STAGE_ROWS_MAX]; /* owned */
    int32_t text_tokens, end_of_prompt_id, tokens_count, frames;
} bench_jobs;

static cf_err first_voice(const char *model_dir, voice **ret_voice)
{
    cf_err err;
    char **names = NULL;
    size_t count = 0;
    TRY(voice_names(model_dir, &names, &count));
    if (count == 0)
        FAIL(CF_ERR_NOTFOUND, "%s/voices holds no voice", model_dir);
    TRY(voice_load(model_dir, names[0], ret_voice));
out:
    voice_names_close(names, count);
    return err;
}

static cf_err make_jobs(const stage_ops *ops, const stage_config *cfg, int32_t rows, double seconds, bench_jobs *j)
{
    cf_err err;
    tokenizer *tok = NULL;
    TRY(first_voice(cfg->model_dir, &j->v));
    TRY(tokenizer_open(cfg->model_dir, &tok));
    j->end_of_prompt_id = tokenizer_special_id(tok, SPECIAL_END_OF_PROMPT);
    j->tokens_count = (int32_t)(seconds * TOKENS_PER_SECOND);
    j->frames = j->tokens_count * FRAMES_PER_TOKEN;
    j->text_tokens = 30; /* a sentence; at least 60 tokens are generated */
    TRY(mem_alloc((size_t)j->text_tokens, sizeof(int32_t), &j->text));
    TRY(mem_alloc((size_t)j->tokens_count, sizeof(int32_t), &j->tokens));
    TRY(mem_alloc((size_t)j->frames * MEL_BINS, sizeof(float), &j->mel));
    for (int32_t i = 0; i < j->text_tokens; i++)
        j->text[i] = i == 0 ? j->end_of_prompt_id : i;
    for (int32_t i = 0; i < j->tokens_count; i++)
        j->tokens[i] = (int32_t)(rng_uniform(1, 0, (uint32_t)i, 0) * SPEECH_CODES);
    for (int32_t i = 0; i < j->frames * MEL_BINS; i++)
        j->mel[i] = -6 + 4 * (rng_uniform(2, 0, (uint32_t)i, 0) - 0.5f);
    const size_t bytes = ops->kind == STAGE_FLOW   ? (size_t)j->frames * MEL_BINS * sizeof(float)
                         : ops->kind == STAGE_HIFT ? (size_t)j->frames * SAMPLES_PER_FRAME * sizeof(float)
                                                   : 1;
    for (int32_t r = 0; r < rows; r++)
        TRY(mem_alloc(bytes, 1, &j->out[r]));
out:
    tokenizer_close(tok);
    return err;
}

static void free_jobs(bench_jobs *j)
{
    voice_close(j->v);
    mem_free(j->text);
    mem_free(j->tokens);
    mem_free(j->mel);
    for (int r = 0; r < STAGE_ROWS_MAX; r++)
        mem_free(j->out[r]);
}

static stage_job job_of(const stage_ops *ops, const bench_jobs *j, int32_t row)
{
    const size_t values = (size_t)j->frames * (ops->kind == STAGE_FLOW ? MEL_BINS : SAMPLES_PER_FRAME);
    return (stage_job){.job_id = (uint64_t)row + 1,
                       .voice = ops->kind == STAGE_HIFT ? NULL : j->v,
                       .text = j->text,
                       .text_tokens = j->text_tokens,
                       .prompt_speech = true,
                       .seed = (uint64_t)row,
                       .end_of_prompt_id = j->end_of_prompt_id,
                       .tokens = j->tokens,
                       .tokens_count = j->tokens_count,
                       .speed = 1,
                       .finalize = true,
                       .mel = j->mel,
                       .frames = j->frames,
                       .out = j->out[row],
                       .out_bytes = values * sizeof(float)};
}

/* Steps until all rows have ended, or the LLM's timed steps are done; the LLM's first step, the prefill, is not timed.
 * */
static cf_err step_all(const stage_ops *ops, void *stage, int32_t rows, bench_rate *rate)
{
    cf_err err = CF_OK;
    stage_result results[STAGE_ROWS_MAX];
    int32_t count = 0;
    const bool is_llm = ops->kind == STAGE_LLM;
    if (is_llm)
        TRY(ops->step(stage, results, STAGE_ROWS_MAX, &count));
    const uint64_t start_us = clock_now_us();
    double row_steps = 0;
    for (int step = 0; ops->held(stage) > 0 && (!is_llm || step < LLM_STEPS_MAX); step++) {
        row_steps += ops->held(stage);
        TRY(ops->step(stage, results, STAGE_ROWS_MAX, &count));
        for (int32_t i = 0; i < count; i++)
            if (results[i].code != CF_OK)
                FAIL(results[i].code, "%s", results[i].text);
    }
    rate->rows = rows;
    rate->seconds = (double)(clock_now_us() - start_us) / 1e6;
    rate->units = row_steps; /* llm: a token a row and step */
out:
    return err;
}

static void derive(const stage_ops *ops, const bench_jobs *j, const stage_facts *facts, const stage_config *cfg,
                   const bench_ceiling *ceiling, double row_steps, bench_rate *rate)
{
    if (ops->kind == STAGE_LLM) {
        rate->audio_per_s = rate->units / TOKENS_PER_SECOND / rate->seconds;
        const double steps = row_steps / rate->rows;
        rate->ceiling_share = steps * (double)facts->weights_bytes / rate->seconds / 1e9 / ceiling->read_gbs;
        return;
    }
    rate->units = (double)rate->rows * j->tokens_count / TOKENS_PER_SECOND;
    rate->audio_per_s = rate->units / rate->seconds;
    rate->ceiling_share = -1;
    if (ops->kind == STAGE_FLOW) {
        /* Every packed value is used once a row and step, for the conditional and the unconditional half: flow.md 10.
         * */
        const double values = (double)facts->weights_bytes / (cfg->operands == PRECISION_F32 ? 4 : 2);
        const double frames = (double)FRAMES_PER_TOKEN * (double)(j->v->prompt_tokens + (size_t)j->tokens_count);
        rate->ceiling_share = 2 * values * 2 * frames * 10 * rate->rows / rate->seconds / 1e9 / ceiling->gemm_gflops;
    }
}

cf_err bench_stage(const stage_ops *ops, const stage_config *cfg, int32_t rows, double seconds,
                   const bench_ceiling *ceiling, bench_rate *ret_rate)
{
    cf_err err;
    void *stage = NULL;
    bench_jobs jobs = {0};
    stage_facts facts;
    bench_rate rate = {0};
    stage_config sc = *cfg;
    CF_ASSERT(rows > 0 && rows <= STAGE_ROWS_MAX);
    sc.rows_max = rows;
    TRY(make_jobs(ops, cfg, rows, seconds, &jobs));
    sc.frames_max = rows * (jobs.frames + FRAMES_PER_TOKEN * (int32_t)jobs.v->prompt_tokens);
    TRY(ops->open(&sc, &stage));
    ops->facts(stage, &facts);
    for (int32_t r = 0; r < rows; r++) {
        const stage_job job = job_of(ops, &jobs, r);
        TRY(ops->accept(stage, &job));
    }
    TRY(step_all(ops, stage, rows, &rate));
    derive(ops, &jobs, &facts, cfg, ceiling, rate.units, &rate);
    *ret_rate = rate;
out:
    ops->close(stage);
    free_jobs(&jobs);
    return err;
}
