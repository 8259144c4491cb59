/*
 * llm_engine.c - the engine behind llm_forward.h: what it takes at open, what it says of itself and of its last call.
 * Compute thread of an LLM worker; owns backend, model, cache, slots, records and host staging. Calls: llm_forward.c.
 *
 * Fails: what the backend and the model say (CF_ERR_NOMEM, CF_ERR_DEVICE, ...); CF_ERR_LIMIT for rows_max.
 */
#include "common/base/check.h"
#include "common/base/mem.h"
#include "llm_worker/llm_engine_impl.h"

/* Address space beyond the plan for what ops take inside themselves; pages are used only when touched. */
#define SCRATCH_SLACK_BYTES ((size_t)512 << 20)

static int32_t call_rows_of(int32_t rows_max)
{
    return rows_max > LLM_PREFILL_ROWS_MAX ? rows_max : LLM_PREFILL_ROWS_MAX;
}

uint64_t llm_plan_scratch_bytes(const llm_shape *s, int32_t rows_max)
{
    const uint64_t hidden = (uint64_t)s->hidden, inter = (uint64_t)s->intermediate;
    const uint64_t per_row = 3 * hidden                          /* x, h, out */
                             + (uint64_t)llm_qkv_channels(s)     /* qkv */
                             + (uint64_t)s->heads * LLM_HEAD_DIM /* attn */
                             + 3 * inter                         /* gate_up, act */
                             + inter / 2                         /* a device's copy of act in 16 bits */
                             + hidden + 2;                       /* host staging of x, positions */
    /* A device attends over pieces of 256 keys, four pages; of each stay 66 values a head until they are merged. */
    const uint64_t pieces = (uint64_t)s->heads * (LLM_PAGES_PER_SEQUENCE / 4 + 1) * (LLM_HEAD_DIM + 2);
    /* Staged logits, probabilities and sums of their pieces, two states, and what is small. */
    const uint64_t per_head =
        2 * (uint64_t)llm_speech_rows(s) + 2 * 256 + 4 * hidden + LLM_PAGES_PER_SEQUENCE + 10 + pieces;
    return (per_row * (uint64_t)call_rows_of(rows_max) + per_head * (uint64_t)rows_max) * sizeof(float);
}

kv_cache_config llm_cache_config(const llm_shape *s, int32_t rows_max)
{
    const int32_t pages = rows_max * LLM_PAGES_PER_ROW;
    return (kv_cache_config){.layers = s->layers,
                             .kv_heads = s->kv_heads,
                             .sequences_max = rows_max,
                             .pages = pages > LLM_PAGES_PER_SEQUENCE ? pages : LLM_PAGES_PER_SEQUENCE};
}

uint64_t llm_plan_kept_bytes(const llm_shape *s, int32_t rows_max, bool is_device)
{
    const uint64_t speech = (uint64_t)llm_speech_rows(s), hidden = (uint64_t)s->hidden;
    const uint64_t kept = (uint64_t)rows_max * (speech + hidden + 1), table = is_device ? speech * hidden : 0;
    return llm_slots_bytes(rows_max) + (kept + table) * sizeof(float);
}

static cf_err staging_open(staging *st, const llm_shape *s, int32_t rows_max)
{
    cf_err err;
    const size_t rows = LLM_PREFILL_ROWS_MAX, seqs = (size_t)rows_max, hidden = (size_t)s->hidden;
    TRY(mem_alloc(rows * hidden, sizeof *st->x, &st->x));
    TRY(mem_alloc(rows, sizeof *st->positions, &st->positions));
    TRY(mem_alloc(seqs, sizeof *st->lengths, &st->lengths));
    TRY(mem_alloc(seqs, sizeof *st->sequences, &st->sequences));
    TRY(mem_alloc(seqs, sizeof *st->past, &st->past));
    TRY(mem_alloc(seqs * LLM_PAGES_PER_SEQUENCE, sizeof *st->pages, &st->pages));
    TRY(mem_alloc(seqs, sizeof *st->head_rows, &st->head_rows));
    TRY(mem_alloc(seqs, sizeof *st->head_slots, &st->head_slots));
    TRY(mem_alloc(seqs * (size_t)llm_speech_rows(s), sizeof *st->logits, &st->logits));
    TRY(mem_alloc(seqs * hidden, sizeof *st->hidden, &st->hidden));
out:
    return err;
}

static void staging_close(staging *st)
{
    mem_free(st->x);
    mem_free(st->positions);
    mem_free(st->lengths);
    mem_free(st->sequences);
    mem_free(st->past);
    mem_free(st->pages);
    mem_free(st->head_rows);
    mem_free(st->head_slots);
    mem_free(st->logits);
    mem_free(st->hidden);
}

/* The plan needs the model's shape, which is known only after the backend exists: the largest shape is assumed. */
static size_t scratch_reserve(int32_t rows_max)
{
    const llm_shape largest = {
        .hidden = 2048, .heads = 32, .kv_heads = 32, .intermediate = 16384, .speech_codes = SPEECH_CODES};
    return (size_t)llm_plan_scratch_bytes(&largest, rows_max) + SCRATCH_SLACK_BYTES;
}

static cf_err results_open(backend *be, const llm_shape *s, int32_t rows_max, results *r)
{
    cf_err err;
    const int64_t logits[] = {rows_max, llm_speech_rows(s)}, hidden[] = {rows_max, s->hidden};
    TRY(backend_keep(be, DTYPE_F32, 2, logits, &r->logits));
    TRY(backend_keep(be, DTYPE_F32, 2, hidden, &r->hidden));
    TRY(backend_keep(be, DTYPE_I32, 1, logits, &r->ids));
    TRY(backend_keep_host(be, (size_t)rows_max * sizeof *r->drawn, &r->drawn));
out:
    return err;
}

/* Where ops read the embeddings of speech ids: the mapping, or on a device a copy of it. */
static cf_err speech_open(backend *be, const llm_model *m, tensor *ret_table)
{
    cf_err err = CF_OK;
    const int64_t dims[] = {llm_speech_rows(&m->shape), m->shape.hidden};
    *ret_table = tensor_2d((void *)(uintptr_t)m->speech_table, DTYPE_F32, dims[0], dims[1]); /* never written */
    if (!backend_is_device(be))
        return CF_OK;
    TRY(backend_keep(be, DTYPE_F32, 2, dims, ret_table));
    TRY(backend_upload(be, m->speech_table, ret_table));
out:
    return err;
}

cf_err llm_engine_open(const llm_engine_config *cfg, llm_engine **ret_engine)
{
    cf_err err;
    llm_engine *e = NULL;
    if (cfg->rows_max < 1 || cfg->rows_max > JOBS_PER_MEMBER_MAX)
        FAIL(CF_ERR_LIMIT, "llm: rows_max is %d: expected 1..%d", (int)cfg->rows_max, JOBS_PER_MEMBER_MAX);
    TRY(mem_alloc(1, sizeof *e, &e));
    e->rows_max = cfg->rows_max;
    const backend_config be_cfg = {.device = cfg->device,
                                   .naive = cfg->naive,
                                   .threads = cfg->threads,
                                   .scratch_bytes = scratch_reserve(cfg->rows_max)};
    TRY(backend_open(&be_cfg, &e->be));
    const llm_model_config model_cfg = {.model_dir = cfg->model_dir,
                                        .base_weights = cfg->base_weights,
                                        .operands = cfg->operands,
                                        .int8_weights = cfg->int8_weights};
    TRY(llm_model_open(e->be, &model_cfg, &e->model));
    const llm_shape *s = &e->model->shape;
    const kv_cache_config cache_cfg = llm_cache_config(s, cfg->rows_max);
    TRY(kv_cache_open(e->be, &cache_cfg, &e->cache));
    TRY(llm_slots_open(e->be, cfg->rows_max, &e->slots));
    TRY(speech_open(e->be, e->model, &e->speech));
    TRY(results_open(e->be, s, cfg->rows_max, &e->out));
    TRY(staging_open(&e->st, s, cfg->rows_max));
    TRY(backend_scratch_reserve(e->be, llm_plan_scratch_bytes(s, cfg->rows_max)));
    e->scratch_bytes = llm_plan_scratch_bytes(s, cfg->rows_max) + kv_cache_plan_bytes(&cache_cfg);
    *ret_engine = e;
    e = NULL;
out:
    llm_engine_close(e);
    return err;
}

void llm_engine_close(llm_engine *e)
{
    if (!e)
        return;
    for (int i = 0; i < BUCKETS_MAX; i++)
        backend_record_close(e->be, e->records[i]);
    staging_close(&e->st);
    llm_slots_close(&e->slots);
    kv_cache_close(e->cache);
    llm_model_close(e->model);
    backend_close(e->be);
    mem_free(e);
}

const llm_model *llm_engine_model(const llm_engine *e)
{
    return e->model;
}

backend *llm_engine_backend(const llm_engine *e)
{
    return e->be;
}

kv_cache *llm_engine_cache(const llm_engine *e)
{
    return e->cache;
}

uint64_t llm_engine_scratch_bytes(const llm_engine *e)
{
    return e->scratch_bytes;
}

int32_t llm_engine_drawn(const llm_engine *e, int32_t idx)
{
    CF_ASSERT(idx >= 0 && idx < e->out.count);
    return e->out.drawn[idx];
}

cf_err llm_engine_logit(const llm_engine *e, int32_t idx, int32_t id, float *ret_logit)
{
    CF_ASSERT(idx >= 0 && idx < e->out.count && id >= 0 && id < e->out.logits.dims[1]);
    tensor logit = tensor_rows(&e->out.logits, idx, 1);
    logit = tensor_1d(logit.data, DTYPE_F32, logit.dims[1]);
    logit = tensor_rows(&logit, id, 1);
    return backend_download(e->be, &logit, ret_logit);
}

cf_err llm_engine_fetch(llm_engine *e)
{
    cf_err err;
    const tensor logits = tensor_rows(&e->out.logits, 0, e->out.count);
    const tensor hidden = tensor_rows(&e->out.hidden, 0, e->out.count);
    TRY(backend_download(e->be, &logits, e->st.logits));
    TRY(backend_download(e->be, &hidden, e->st.hidden));
out:
    return err;
}

const float *llm_engine_logits(const llm_engine *e, int32_t idx)
{
    CF_ASSERT(idx >= 0 && idx < e->out.count);
    return e->st.logits + (size_t)idx * (size_t)llm_speech_rows(&e->model->shape);
}

const float *llm_engine_hidden(const llm_engine *e, int32_t idx)
{
    CF_ASSERT(idx >= 0 && idx < e->out.count);
    return e->st.hidden + (size_t)idx * (size_t)e->model->shape.hidden;
}

backend_record_counts llm_engine_records(const llm_engine *e)
{
    return backend_records(e->be);
}
