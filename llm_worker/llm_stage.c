/*
 * llm_stage.c - rows of text become speech tokens, all held rows one token at a time. Compute thread of an LLM
 * worker; owns the engine and the rows.
 *
 *     accept -> FREE to PROMPT: pages claimed for the worst case
 *     step:    PROMPT rows   one packed prefill call; a complete prompt gives the row's first token
 *              RUNNING rows  one packed decode call; the last token goes in, the next comes out
 *              ENDED rows    handed out as results, then FREE
 *
 * Rows join and leave between steps. A row's uniforms depend on (seed, segment, position) alone and its logits on its
 * own tokens alone, so its result does not depend on its neighbours.
 *
 * Fails: accept as stage.h says; a row ends with CF_ERR_NUMERIC for logits that are not finite and CF_ERR_INVALID for
 * a stop at the first step. An error of the engine ends the stage.
 * Source: cosy llm/llm.py CosyVoice3LM.inference, inference_wrapper, sampling_ids; cli/model.py llm_job @ace7c47.
 * Differs: stop ids are masked below the minimum length unless strict_head (llm.md 6.3); zero tokens are an error.
 */
#include "llm_worker/llm_stage.h"

#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "llm_worker/llm_forward.h"
#include "llm_worker/llm_plan.h"

typedef enum row_state { ROW_FREE, ROW_PROMPT, ROW_RUNNING, ROW_ENDED } row_state;

typedef struct llm_row {
    row_state state;
    uint64_t job_id;
    uint64_t seed;
    uint32_t segment_idx;
    uint64_t order; /* of acceptance: prompts run first come, first served */
    llm_prompt prompt;
    llm_lengths lengths;
    int32_t seq_idx;               /* valid while PROMPT or RUNNING */
    int32_t *out;                  /* [TOKENS_MAX] generated tokens that the silence filter lets pass */
    int32_t hist_count, out_count; /* of all generated tokens; their ids stay with the engine */
    int32_t silence_run;
    bool stopped;
    cf_err code;
    char text[256];
    uint64_t compute_us;
} llm_row;

typedef struct stage {
    llm_engine *engine; /* owned */
    int value_bytes;    /* of a weight */
    bool strict_head;
    int32_t rows_max;
    llm_row *rows;              /* owned, [rows_max] */
    int32_t *tokens;            /* owned, [rows_max, TOKENS_MAX]: out of each row */
    llm_prefill_item *prefills; /* owned, [rows_max] */
    llm_decode_item *decodes;   /* owned, [rows_max] */
    llm_row **picked;           /* owned, [rows_max]: rows of the current call */
    uint64_t accepted;
} stage;

llm_lengths llm_lengths_of(int32_t text_tokens, int32_t voice_tokens)
{
    const int32_t room = TOKENS_MAX - voice_tokens;
    llm_lengths l = {.min_tokens = SPEECH_PER_TEXT_MIN * text_tokens, .max_tokens = SPEECH_PER_TEXT_MAX * text_tokens};
    if (l.max_tokens > room) {
        l.max_tokens = room;
        l.capped = true;
    }
    if (l.min_tokens > l.max_tokens)
        l.min_tokens = l.max_tokens;
    return l;
}

/* Source: cosy cli/model.py CosyVoice3Model.__init__ silent_tokens, llm_job @ace7c47. */
bool llm_silence_drops(int32_t token, int32_t *run)
{
    static const int32_t silent[] = {SPEECH_SILENT};
    for (size_t i = 0; i < CF_COUNT(silent); i++)
        if (token == silent[i])
            return ++*run > 5;
    *run = 0;
    return false;
}

static void close_stage(void *ctx)
{
    stage *st = ctx;
    if (!st)
        return;
    for (int32_t i = 0; st->rows && i < st->rows_max; i++)
        if (st->rows[i].state == ROW_PROMPT || st->rows[i].state == ROW_RUNNING)
            kv_cache_give_back(llm_engine_cache(st->engine), st->rows[i].seq_idx);
    llm_engine_close(st->engine);
    mem_free(st->rows);
    mem_free(st->tokens);
    mem_free(st->prefills);
    mem_free(st->decodes);
    mem_free(st->picked);
    mem_free(st);
}

static cf_err open_stage(const stage_config *cfg, void **ret_stage)
{
    cf_err err;
    stage *st = NULL;
    const llm_engine_config engine = {.model_dir = cfg->model_dir,
                                      .device = cfg->device,
                                      .operands = cfg->operands,
                                      .int8_weights = cfg->int8_weights,
                                      .threads = cfg->threads,
                                      .naive = cfg->naive,
                                      .base_weights = cfg->base_weights,
                                      .rows_max = cfg->rows_max};
    TRY(mem_alloc(1, sizeof *st, &st));
    TRY(llm_engine_open(&engine, &st->engine));
    st->value_bytes = cfg->int8_weights ? 1 : cfg->operands == PRECISION_F32 ? 4 : 2;
    st->strict_head = cfg->strict_head;
    st->rows_max = cfg->rows_max;
    const size_t rows = (size_t)cfg->rows_max;
    TRY(mem_alloc(rows, sizeof *st->rows, &st->rows));
    TRY(mem_alloc(rows * TOKENS_MAX, sizeof *st->tokens, &st->tokens));
    TRY(mem_alloc(rows, sizeof *st->prefills, &st->prefills));
    TRY(mem_alloc(rows, sizeof *st->decodes, &st->decodes));
    TRY(mem_alloc(rows, sizeof *st->picked, &st->picked));
    for (size_t i = 0; i < rows; i++)
        st->rows[i].out = st->tokens + i * TOKENS_MAX;
    *ret_stage = st;
    st = NULL;
out:
    close_stage(st);
    return err;
}

static void facts_of(void *ctx, stage_facts *ret_facts)
{
    const stage *st = ctx;
    const llm_model *m = llm_engine_model(st->engine);
    const backend *be = llm_engine_backend(st->engine);
    memset(ret_facts, 0, sizeof *ret_facts);
    const char *slash = strrchr(m->path, '/');
    snprintf(ret_facts->model_file, sizeof ret_facts->model_file, "%.255s", slash ? slash + 1 : m->path);
    snprintf(ret_facts->model_sha256, sizeof ret_facts->model_sha256, "%s", m->sha256);
    snprintf(ret_facts->backend, sizeof ret_facts->backend, "%s", backend_describe(be));
    ret_facts->weights_bytes = backend_weight_bytes(be);
    ret_facts->kept_bytes = backend_kept_bytes(be);
    ret_facts->scratch_bytes = llm_engine_scratch_bytes(st->engine);
    ret_facts->step_bytes = llm_step_values(&m->shape) * (uint64_t)st->value_bytes;
    ret_facts->speech_codes = m->shape.speech_codes;
}

static backend_record_counts records_of(void *ctx)
{
    return llm_engine_records(((const stage *)ctx)->engine);
}

static bool has_id(const int32_t *ids, int32_t count, int32_t id)
{
    for (int32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* Everything that makes a job impossible whatever the load. */
static cf_err check_job(const stage *st, const stage_job *job, const llm_prompt *p)
{
    cf_err err;
    if (job->text_tokens < 1)
        FAIL(CF_ERR_INVALID, "text has %d tokens: expected at least 1", (int)job->text_tokens);
    if (job->text_tokens > SEGMENT_TEXT_TOKENS_MAX)
        FAIL(CF_ERR_LIMIT, "text has %d tokens: at most %d (SEGMENT_TEXT_TOKENS_MAX)", (int)job->text_tokens,
             SEGMENT_TEXT_TOKENS_MAX);
    if (job->prompt_text_tokens < 0 || job->prompt_text_tokens > PROMPT_TEXT_TOKENS_MAX)
        FAIL(CF_ERR_LIMIT, "prompt text has %d tokens: at most %d (PROMPT_TEXT_TOKENS_MAX)",
             (int)job->prompt_text_tokens, PROMPT_TEXT_TOKENS_MAX);
    if (job->voice && job->voice->prompt_tokens > PROMPT_TOKENS_MAX)
        FAIL(CF_ERR_LIMIT, "voice %s has %zu prompt tokens: at most %d (PROMPT_TOKENS_MAX)", job->voice->name,
             job->voice->prompt_tokens, PROMPT_TOKENS_MAX);
    if (job->prompt_speech && !job->voice)
        FAIL(CF_ERR_INVALID, "prompt speech is asked for without a voice");
    TRY(llm_prompt_check(llm_engine_model(st->engine), p));
    if (job->end_of_prompt_id <= 0)
        FAIL(CF_ERR_INVALID, "the id of <|endofprompt|> is %d: expected a text id", (int)job->end_of_prompt_id);
    if (!has_id(p->prompt_text, p->prompt_text_tokens, job->end_of_prompt_id) &&
        !has_id(p->text, p->text_tokens, job->end_of_prompt_id))
        FAIL(CF_ERR_INVALID, "<|endofprompt|> (id %d) is neither in the prompt text nor in the text",
             (int)job->end_of_prompt_id);
out:
    return err;
}

static llm_prompt prompt_of(const stage_job *job)
{
    llm_prompt p = {.prompt_text = job->prompt_text,
                    .text = job->text,
                    .prompt_text_tokens = job->prompt_text_tokens,
                    .text_tokens = job->text_tokens};
    if (job->prompt_speech && job->voice) {
        p.speech = job->voice->prompt_token;
        p.speech_tokens = (int32_t)job->voice->prompt_tokens;
    }
    return p;
}

static llm_row *free_row(const stage *st)
{
    for (int32_t i = 0; i < st->rows_max; i++)
        if (st->rows[i].state == ROW_FREE)
            return &st->rows[i];
    return NULL;
}

static cf_err accept_job(void *ctx, const stage_job *job)
{
    cf_err err;
    stage *st = ctx;
    const llm_prompt prompt = prompt_of(job);
    int32_t seq_idx;
    if (fault_hit("llm.accept"))
        FAIL(CF_ERR_NOMEM, "llm.accept: injected failure");
    TRY(check_job(st, job, &prompt));
    for (int32_t i = 0; i < st->rows_max; i++)
        if (st->rows[i].state != ROW_FREE && st->rows[i].job_id == job->job_id)
            FAIL(CF_ERR_INVALID, "job %llu is already held", (unsigned long long)job->job_id);
    llm_row *row = free_row(st);
    if (!row)
        FAIL(CF_ERR_BUSY, "all %d rows are in use", (int)st->rows_max);
    const llm_lengths lengths = llm_lengths_of(job->text_tokens, job->voice ? (int32_t)job->voice->prompt_tokens : 0);
    TRY(kv_cache_claim(llm_engine_cache(st->engine), llm_prompt_rows(&prompt) + lengths.max_tokens, &seq_idx));
    *row = (llm_row){.state = ROW_PROMPT,
                     .job_id = job->job_id,
                     .seed = job->seed,
                     .segment_idx = job->segment_idx,
                     .order = st->accepted++,
                     .prompt = prompt,
                     .lengths = lengths,
                     .seq_idx = seq_idx,
                     .out = row->out};
out:
    return err;
}

static void row_end(stage *st, llm_row *row, cf_err code)
{
    kv_cache_give_back(llm_engine_cache(st->engine), row->seq_idx);
    row->state = ROW_ENDED;
    row->code = code;
    if (code != CF_OK)
        snprintf(row->text, sizeof row->text, "%s", err_text());
}

static cf_err refusal(const stage *st, const llm_row *row, int32_t result_idx, int32_t id)
{
    float logit;
    const cf_err err = llm_engine_logit(st->engine, result_idx, id, &logit);
    if (err != CF_OK)
        return err;
    return err_set(CF_ERR_NUMERIC, "logit of speech id %d after %d tokens is %f: expected a finite number", (int)id,
                   (int)row->hist_count, (double)logit);
}

/* Takes the row's next token, which the backend has drawn, and applies the stop rules. */
static void row_advance(stage *st, llm_row *row, int32_t result_idx)
{
    const int32_t codes = llm_engine_model(st->engine)->shape.speech_codes;
    const int32_t token = llm_engine_drawn(st->engine, result_idx);
    if (token < 0) {
        row_end(st, row, refusal(st, row, result_idx, RAS_REFUSED(token)));
        return;
    }
    if (token >= codes) {
        row->stopped = true;
        row_end(st, row, row->hist_count > 0 ? CF_OK : err_set(CF_ERR_INVALID, "stop at the first step: no speech"));
        return;
    }
    row->hist_count++;
    /* The list of silent codes is the released vocabulary's. */
    if (codes != SPEECH_CODES || !llm_silence_drops(token, &row->silence_run))
        row->out[row->out_count++] = token;
    row->state = ROW_RUNNING;
    if (row->hist_count < row->lengths.max_tokens)
        return;
    if (row->lengths.capped)
        log_warn("llm.capped", "job=%llu tokens=%d reason=\"TOKENS_MAX less the voice's prompt\"",
                 (unsigned long long)row->job_id, (int)row->hist_count);
    row_end(st, row, CF_OK);
}

/* Rows in this state in order of acceptance, into st->picked. rows_max is small: insertion. */
static int32_t pick_rows(stage *st, row_state state)
{
    int32_t count = 0;
    for (int32_t i = 0; i < st->rows_max; i++) {
        if (st->rows[i].state != state)
            continue;
        int32_t at = count++;
        for (; at > 0 && st->picked[at - 1]->order > st->rows[i].order; at--)
            st->picked[at] = st->picked[at - 1];
        st->picked[at] = &st->rows[i];
    }
    return count;
}

static cf_err step_decodes(stage *st)
{
    const uint64_t start_us = clock_now_us();
    const int32_t count = pick_rows(st, ROW_RUNNING);
    if (count == 0)
        return CF_OK;
    for (int32_t i = 0; i < count; i++)
        st->decodes[i] = (llm_decode_item){.seq_idx = st->picked[i]->seq_idx, .token = LLM_DRAWN};
    const cf_err err = llm_decode(st->engine, st->decodes, count);
    if (err != CF_OK)
        return err;
    for (int32_t i = 0; i < count; i++)
        row_advance(st, st->picked[i], i);
    const uint64_t share_us = (clock_now_us() - start_us) / (uint64_t)count;
    for (int32_t i = 0; i < count; i++)
        st->picked[i]->compute_us += share_us;
    return CF_OK;
}

/* A row's uniforms are those of its seed, its segment and the position. */
static llm_draws draws_of(const stage *st, const llm_row *row)
{
    return (llm_draws){.seed = row->seed,
                       .segment_idx = row->segment_idx,
                       .min_tokens = row->lengths.min_tokens,
                       .mask = st->strict_head ? RAS_MASK_SOS : RAS_MASK_STOP};
}

static cf_err step_prefills(stage *st)
{
    const uint64_t start_us = clock_now_us();
    const int32_t count = pick_rows(st, ROW_PROMPT);
    if (count == 0)
        return CF_OK;
    for (int32_t i = 0; i < count; i++)
        st->prefills[i] = (llm_prefill_item){
            .seq_idx = st->picked[i]->seq_idx, .prompt = &st->picked[i]->prompt, .draws = draws_of(st, st->picked[i])};
    const cf_err err = llm_prefill(st->engine, st->prefills, count);
    if (err != CF_OK)
        return err;
    uint64_t carried = 0;
    for (int32_t i = 0; i < count; i++) {
        carried += st->prefills[i].carried;
        if (st->prefills[i].result_idx >= 0)
            row_advance(st, st->picked[i], st->prefills[i].result_idx);
    }
    const uint64_t share_us = (clock_now_us() - start_us) / carried;
    for (int32_t i = 0; i < count; i++)
        if (st->prefills[i].carried)
            st->picked[i]->compute_us += share_us;
    return CF_OK;
}

static int32_t take_results(stage *st, stage_result *results, int32_t max)
{
    const int32_t ended = pick_rows(st, ROW_ENDED);
    const int32_t count = ended < max ? ended : max;
    for (int32_t i = 0; i < count; i++) {
        llm_row *row = st->picked[i];
        const bool ok = row->code == CF_OK;
        results[i] = (stage_result){.job_id = row->job_id,
                                    .code = row->code,
                                    .tokens = ok ? row->out : NULL,
                                    .tokens_count = ok ? row->out_count : 0,
                                    .stopped = row->stopped,
                                    .capped = ok && !row->stopped && row->lengths.capped,
                                    .compute_us = row->compute_us};
        snprintf(results[i].text, sizeof results[i].text, "%s", row->text);
        row->state = ROW_FREE; /* its tokens stay until the next accept */
    }
    return count;
}

static cf_err step_stage(void *ctx, stage_result *results, int32_t max, int32_t *ret_count)
{
    cf_err err;
    stage *st = ctx;
    if (fault_hit("llm.step"))
        FAIL(CF_ERR_DEVICE, "llm.step: injected failure");
    /* Running rows first: a row whose prompt completes in this step has its token of this step already. */
    TRY(step_decodes(st));
    TRY(step_prefills(st));
    *ret_count = take_results(st, results, max);
out:
    return err;
}

static void cancel_job(void *ctx, uint64_t job_id)
{
    stage *st = ctx;
    for (int32_t i = 0; i < st->rows_max; i++) {
        llm_row *row = &st->rows[i];
        if (row->state == ROW_FREE || row->job_id != job_id)
            continue;
        if (row->state != ROW_ENDED)
            kv_cache_give_back(llm_engine_cache(st->engine), row->seq_idx);
        row->state = ROW_FREE;
    }
}

static int32_t held_count(void *ctx)
{
    const stage *st = ctx;
    int32_t count = 0;
    for (int32_t i = 0; i < st->rows_max; i++)
        count += st->rows[i].state != ROW_FREE;
    return count;
}

const stage_ops llm_stage = {.kind = STAGE_LLM,
                             .plan = llm_plan,
                             .open = open_stage,
                             .facts = facts_of,
                             .accept = accept_job,
                             .step = step_stage,
                             .cancel = cancel_job,
                             .held = held_count,
                             .close = close_stage,
                             .records = records_of};
