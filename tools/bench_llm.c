/*
 * bench_llm.c - drives llm_stage: no processes, no messages. Equal jobs without a voice, so that a prompt has as many
 * rows in every model; their text is long enough that no row ends while it is timed.
 * Fails: what the stage fails with.
 */
#include "tools/bench_llm.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/text/bpe.h"
#include "common/text/special_tokens.h"
#include "llm_worker/llm_shapes.h"

#define TEXT_TOKENS     60
#define PROMPT_TOKENS   (BENCH_PROMPT_ROWS - 2 - TEXT_TOKENS)
#define PREFILLS        9
#define STEPS_MAX       100
#define ROWS_MAX        JOBS_PER_MEMBER_MAX
#define PROMPTS_AT_ONCE (LLM_PREFILL_ROWS_MAX / BENCH_PROMPT_ROWS)

/* Steps before the last prompt is through, and the timed ones after it: so few that no stop id is drawn meanwhile. The
 * first rows decode while the last wait, so more rows leave fewer steps. */
static int prompt_steps(int32_t rows)
{
    return rows / PROMPTS_AT_ONCE + 1;
}

static int timed_steps(int32_t rows)
{
    const int left = SPEECH_PER_TEXT_MIN * TEXT_TOKENS - prompt_steps(rows) - 1;
    return left < STEPS_MAX ? left : STEPS_MAX;
}

CF_STATIC_ASSERT(SPEECH_PER_TEXT_MIN *TEXT_TOKENS - ROWS_MAX / PROMPTS_AT_ONCE - 2 >= 50,
                 "a median wants as many steps, whatever the rows");

typedef struct llm_bench {
    void *stage; /* owned */
    int32_t text[TEXT_TOKENS], prompt[PROMPT_TOKENS];
    int32_t end_of_prompt_id;
} llm_bench;

static cf_err accept(llm_bench *b, uint64_t job_id)
{
    const stage_job job = {.job_id = job_id,
                           .text = b->text,
                           .prompt_text = b->prompt,
                           .text_tokens = TEXT_TOKENS,
                           .prompt_text_tokens = PROMPT_TOKENS,
                           .seed = job_id,
                           .end_of_prompt_id = b->end_of_prompt_id,
                           .speed = 1};
    return llm_stage.accept(b->stage, &job);
}

/* One step, which must end no row. */
static cf_err step(llm_bench *b, double *ret_s)
{
    cf_err err;
    stage_result results[ROWS_MAX];
    int32_t count = 0;
    const uint64_t start_us = clock_now_us();
    TRY(llm_stage.step(b->stage, results, ROWS_MAX, &count));
    *ret_s = (double)(clock_now_us() - start_us) / 1e6;
    if (count > 0)
        FAIL(results[0].code == CF_OK ? CF_ERR_LIMIT : results[0].code,
             "job %llu ended while it was timed: expected at least %d tokens; %s",
             (unsigned long long)results[0].job_id, SPEECH_PER_TEXT_MIN * TEXT_TOKENS, results[0].text);
out:
    return err;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bench_time time_of(double *seconds, int count)
{
    qsort(seconds, (size_t)count, sizeof *seconds, compare);
    return (bench_time){.median_s = seconds[count / 2], .best_s = seconds[0]};
}

static cf_err time_prefill(llm_bench *b, bench_time *ret_time)
{
    cf_err err;
    double seconds[PREFILLS];
    for (int i = 0; i < PREFILLS; i++) {
        TRY(accept(b, 1));
        TRY(step(b, &seconds[i]));
        llm_stage.cancel(b->stage, 1);
    }
    *ret_time = time_of(seconds, PREFILLS);
out:
    return err;
}

static cf_err time_steps(llm_bench *b, int32_t rows, bench_time *ret_time)
{
    cf_err err;
    double seconds[STEPS_MAX];
    const int steps = timed_steps(rows);
    for (int32_t r = 0; r < rows; r++)
        TRY(accept(b, (uint64_t)r + 1));
    for (int i = 0; i < prompt_steps(rows); i++)
        TRY(step(b, &seconds[0]));
    for (int i = 0; i < steps; i++)
        TRY(step(b, &seconds[i]));
    for (int32_t r = 0; r < rows; r++)
        llm_stage.cancel(b->stage, (uint64_t)r + 1);
    *ret_time = time_of(seconds, steps);
out:
    return err;
}

static cf_err open_bench(const stage_config *cfg, int32_t rows_max, llm_bench *b, bench_llm_open *o)
{
    cf_err err;
    tokenizer *tok = NULL;
    stage_facts facts;
    stage_config sc = *cfg;
    TRY(tokenizer_open(cfg->model_dir, &tok));
    b->end_of_prompt_id = tokenizer_special_id(tok, SPECIAL_END_OF_PROMPT);
    for (int32_t i = 0; i < TEXT_TOKENS; i++)
        b->text[i] = i;
    for (int32_t i = 0; i < PROMPT_TOKENS; i++)
        b->prompt[i] = i == 0 ? b->end_of_prompt_id : i;
    sc.rows_max = rows_max;
    const uint64_t start_us = clock_now_us();
    TRY(llm_stage.open(&sc, &b->stage));
    o->open_s = (double)(clock_now_us() - start_us) / 1e6;
    llm_stage.facts(b->stage, &facts);
    o->step_bytes = facts.step_bytes;
out:
    tokenizer_close(tok);
    return err;
}

cf_err bench_llm(const stage_config *cfg, const int32_t *rows, int count, bench_llm_open *ret_open,
                 bench_llm_rate *ret_rates)
{
    cf_err err;
    llm_bench b = {0};
    bench_llm_open o = {0};
    int32_t rows_max = 1;
    CF_ASSERT(count >= 1);
    for (int i = 0; i < count; i++) {
        if (rows[i] < 1 || rows[i] > ROWS_MAX)
            FAIL(CF_ERR_LIMIT, "bench llm: %d rows, expected 1..%d", (int)rows[i], ROWS_MAX);
        rows_max = rows[i] > rows_max ? rows[i] : rows_max;
    }
    TRY(open_bench(cfg, rows_max, &b, &o));
    TRY(time_prefill(&b, &o.prefill));
    const double values = (double)o.step_bytes / (cfg->int8_weights ? 1 : cfg->operands == PRECISION_F32 ? 4 : 2);
    o.prefill_gflops = 2 * values * BENCH_PROMPT_ROWS / o.prefill.median_s / 1e9; /* 2 % are the head's: once only */
    for (int i = 0; i < count; i++) {
        bench_llm_rate r = {.rows = rows[i]};
        TRY(time_steps(&b, rows[i], &r.step));
        r.tokens_per_s = rows[i] / r.step.median_s;
        r.read_gbs = (double)o.step_bytes / r.step.median_s / 1e9;
        ret_rates[i] = r;
    }
    *ret_open = o;
out:
    llm_stage.close(b.stage);
    return err;
}
