/*
 * llm_forward.c - prefill and decode of a packed batch as a column of ops. Compute thread of an LLM worker; owns the
 * engine's backend, model, cache and host staging.
 *
 * Letters: R packed rows, B sequences, N rows whose logits are wanted, H hidden, I intermediate,
 * Q = heads * 64, W = Q + 2 * kv_heads * 64. The residual stream x stays f32 in every precision.
 *
 * A call's tile kind follows from what a sequence does, never from the batch: prompts run with bulk tiles, single
 * tokens and the head with decode tiles, in separate calls.
 *
 * Fails: what the backend says (CF_ERR_NOMEM, CF_ERR_DEVICE), which leaves the engine unusable. Asserts claims and
 * counts.
 * Source: cosy llm/llm.py CosyVoice3LM.inference, Qwen2Encoder.forward_one_step @ace7c47; transformers 4.51.3
 * modeling_qwen2.
 */
#include "llm_worker/llm_forward.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"

/* Address space beyond the plan for what ops take inside themselves; pages are used only when touched. */
#define SCRATCH_SLACK_BYTES ((size_t)512 << 20)

/* Host staging of one call, sized for the larger of a full prefill and a full decode. */
typedef struct staging {
    float *x;           /* [call_rows_max, H] */
    int32_t *positions; /* [call_rows_max] */
    int32_t *lengths;   /* [rows_max] rows of each sequence */
    int32_t *sequences; /* [rows_max] cache sequence of each */
    int32_t *past;      /* [rows_max] */
    int32_t *pages;     /* [rows_max, LLM_PAGES_PER_SEQUENCE] at most; row pitch pages_max of the call */
    int32_t *head_rows; /* [rows_max] packed rows whose logits are wanted */
    float *logits;      /* [rows_max, speech rows] */
    float *hidden;      /* [rows_max, H] */
} staging;

struct llm_engine {
    backend *be;      /* owned */
    llm_model *model; /* owned */
    kv_cache *cache;  /* owned */
    staging st;       /* owned arrays */
    int32_t rows_max;
    int32_t call_rows_max;
    int32_t result_count; /* logits of the last call */
    uint64_t scratch_bytes;
};

/* What the current call holds. */
typedef struct call {
    gemm_kind kind;
    int32_t count;     /* sequences, B */
    int32_t rows;      /* R */
    int32_t heads;     /* N */
    int32_t pages_max; /* page table pitch */
} call;

/* Activations of one call, in scratch. */
typedef struct activations {
    op_rows rows;
    tensor x, h, qkv, attn, out, gate_up, act, positions;
} activations;

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
                             + hidden + 2;                       /* host staging of x, positions */
    /* A device attends over pieces of 256 keys, four pages; of each stay 66 values a head until they are merged. */
    const uint64_t pieces = (uint64_t)s->heads * (LLM_PAGES_PER_SEQUENCE / 4 + 1) * (LLM_HEAD_DIM + 2);
    const uint64_t per_head = 2 * (uint64_t)llm_speech_rows(s) + 4 * hidden + LLM_PAGES_PER_SEQUENCE + 8 + pieces;
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

static cf_err staging_open(staging *st, const llm_shape *s, int32_t rows_max)
{
    cf_err err;
    const size_t rows = (size_t)call_rows_of(rows_max), seqs = (size_t)rows_max, hidden = (size_t)s->hidden;
    TRY(mem_alloc(rows * hidden, sizeof *st->x, &st->x));
    TRY(mem_alloc(rows, sizeof *st->positions, &st->positions));
    TRY(mem_alloc(seqs, sizeof *st->lengths, &st->lengths));
    TRY(mem_alloc(seqs, sizeof *st->sequences, &st->sequences));
    TRY(mem_alloc(seqs, sizeof *st->past, &st->past));
    TRY(mem_alloc(seqs * LLM_PAGES_PER_SEQUENCE, sizeof *st->pages, &st->pages));
    TRY(mem_alloc(seqs, sizeof *st->head_rows, &st->head_rows));
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

cf_err llm_engine_open(const llm_engine_config *cfg, llm_engine **ret_engine)
{
    cf_err err;
    llm_engine *e = NULL;
    if (cfg->rows_max < 1 || cfg->rows_max > JOBS_PER_MEMBER_MAX)
        FAIL(CF_ERR_LIMIT, "llm: rows_max is %d: expected 1..%d", (int)cfg->rows_max, JOBS_PER_MEMBER_MAX);
    TRY(mem_alloc(1, sizeof *e, &e));
    e->rows_max = cfg->rows_max;
    e->call_rows_max = call_rows_of(cfg->rows_max);
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
    TRY(staging_open(&e->st, s, cfg->rows_max));
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
    staging_close(&e->st);
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

/* Puts one sequence's next `rows` rows into the call; the caller fills the returned rows of st.x. */
static float *call_add(llm_engine *e, call *c, int32_t seq_idx, int32_t rows, bool wants_head)
{
    staging *st = &e->st;
    CF_ASSERT(c->count < e->rows_max && c->rows + rows <= e->call_rows_max);
    const int32_t past = kv_cache_past(e->cache, seq_idx);
    float *x = st->x + (size_t)c->rows * (size_t)e->model->shape.hidden;
    kv_cache_extend(e->cache, seq_idx, rows);
    for (int32_t i = 0; i < rows; i++)
        st->positions[c->rows + i] = past + i;
    st->sequences[c->count] = seq_idx;
    st->lengths[c->count] = rows;
    st->past[c->count++] = past;
    c->rows += rows;
    if (wants_head)
        st->head_rows[c->heads++] = c->rows - 1;
    return x;
}

/* Page tables of the call's sequences side by side, as wide as the longest. */
static void call_tables(llm_engine *e, call *c)
{
    int32_t lent;
    c->pages_max = 0;
    for (int32_t b = 0; b < c->count; b++) {
        (void)kv_cache_pages(e->cache, e->st.sequences[b], &lent);
        if (lent > c->pages_max)
            c->pages_max = lent;
    }
    for (int32_t b = 0; b < c->count; b++) {
        const int32_t *pages = kv_cache_pages(e->cache, e->st.sequences[b], &lent);
        int32_t *row = e->st.pages + (size_t)b * (size_t)c->pages_max;
        for (int32_t i = 0; i < c->pages_max; i++)
            row[i] = i < lent ? pages[i] : -1;
    }
}

static cf_err activations_take(llm_engine *e, const call *c, activations *a)
{
    cf_err err;
    const llm_shape *s = &e->model->shape;
    const int64_t rows = c->rows;
    TRY(backend_rows(e->be, e->st.lengths, c->count, &a->rows));
    TRY(backend_take(e->be, DTYPE_I32, 1, &rows, &a->positions));
    TRY(backend_upload(e->be, e->st.positions, &a->positions));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->hidden, &a->x));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->hidden, &a->h));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->hidden, &a->out));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, llm_qkv_channels(s), &a->qkv));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, (int64_t)s->heads * LLM_HEAD_DIM, &a->attn));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, 2 * (int64_t)s->intermediate, &a->gate_up));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->intermediate, &a->act));
    TRY(backend_upload(e->be, e->st.x, &a->x));
out:
    return err;
}

/* y = x W^T + bias in the call's tiles. */
static cf_err linear(llm_engine *e, gemm_kind kind, const tensor *x, const weight *w, const tensor *bias, tensor *y)
{
    return op_linear(e->be, &(op_linear_args){.x = x, .w = w, .bias = bias, .y = y, .act = ACT_NONE, .kind = kind});
}

static cf_err rms_norm(llm_engine *e, const tensor *x, const tensor *gain, tensor *y)
{
    const float eps = e->model->shape.rms_eps;
    return op_rms_norm(e->be, &(op_rms_norm_args){.x = x, .gain = gain, .y = y, .eps = eps});
}

static cf_err run_layer(llm_engine *e, const call *c, int32_t layer_idx, activations *a)
{
    cf_err err;
    const llm_shape *s = &e->model->shape;
    const llm_layer *l = &e->model->layers[layer_idx];
    const op_rope_args rope = {.x = &a->qkv,
                               .cos_table = &e->model->rope_cos,
                               .sin_table = &e->model->rope_sin,
                               .pos = &a->positions,
                               .first_channel = 0,
                               .head_count = s->heads + s->kv_heads};
    const op_attn_cache_args attn = {.qkv = &a->qkv,
                                     .cache = kv_cache_layer(e->cache, layer_idx),
                                     .y = &a->attn,
                                     .rows = &a->rows,
                                     .pages = e->st.pages,
                                     .past = e->st.past,
                                     .pages_max = c->pages_max,
                                     .heads = s->heads,
                                     .kv_heads = s->kv_heads,
                                     .kind = c->kind};
    TRY(rms_norm(e, &a->x, &l->norm_in, &a->h));                              /* h:       [R, H] */
    TRY(linear(e, c->kind, &a->h, l->qkv, &l->qkv_bias, &a->qkv));            /* qkv:     [R, W] */
    TRY(op_rope(e->be, &rope));                                               /* q, k rotated in place */
    TRY(op_attn_cache(e->be, &attn));                                         /* attn:    [R, Q] */
    TRY(linear(e, c->kind, &a->attn, l->o, NULL, &a->out));                   /* out:     [R, H] */
    TRY(op_add(e->be, &(op_add_args){.a = &a->x, .b = &a->out, .y = &a->x})); /* x:       [R, H] */
    TRY(rms_norm(e, &a->x, &l->norm_post, &a->h));                            /* h:       [R, H] */
    TRY(linear(e, c->kind, &a->h, l->gate_up, NULL, &a->gate_up));            /* gate_up: [R, 2I] */
    TRY(op_swiglu(e->be, &(op_swiglu_args){.x = &a->gate_up, .y = &a->act})); /* act:     [R, I] */
    TRY(linear(e, c->kind, &a->act, l->down, NULL, &a->out));                 /* out:     [R, H] */
    TRY(op_add(e->be, &(op_add_args){.a = &a->x, .b = &a->out, .y = &a->x})); /* x:       [R, H] */
out:
    return err;
}

/* Logits of the wanted rows, to the host. */
static cf_err run_head(llm_engine *e, const call *c, const activations *a)
{
    cf_err err;
    const int64_t heads = c->heads;
    tensor ids, last, hidden, logits;
    TRY(backend_take(e->be, DTYPE_I32, 1, &heads, &ids));
    TRY(backend_upload(e->be, e->st.head_rows, &ids));
    TRY(backend_take_2d(e->be, DTYPE_F32, heads, e->model->shape.hidden, &last));
    TRY(backend_take_2d(e->be, DTYPE_F32, heads, e->model->shape.hidden, &hidden));
    TRY(backend_take_2d(e->be, DTYPE_F32, heads, llm_speech_rows(&e->model->shape), &logits));
    TRY(op_embedding(e->be, &(op_embedding_args){.table = &a->x, .ids = &ids, .y = &last})); /* last:   [N, H] */
    TRY(rms_norm(e, &last, &e->model->norm_out, &hidden));                                   /* hidden: [N, H] */
    TRY(linear(e, GEMM_DECODE, &hidden, e->model->head, NULL, &logits));                     /* logits: [N, rows] */
    TRY(backend_download(e->be, &hidden, e->st.hidden));
    TRY(backend_download(e->be, &logits, e->st.logits));
out:
    return err;
}

static cf_err run_call(llm_engine *e, call *c)
{
    cf_err err;
    activations a;
    const size_t mark = backend_scratch_mark(e->be);
    CF_ASSERT(c->count >= 1 && c->rows >= c->count);
    call_tables(e, c);
    TRY(activations_take(e, c, &a));
    for (int32_t i = 0; i < e->model->shape.layers; i++)
        TRY(run_layer(e, c, i, &a));
    if (c->heads > 0)
        TRY(run_head(e, c, &a));
    TRY(backend_sync(e->be));
    for (int32_t b = 0; b < c->count; b++)
        kv_cache_advance(e->cache, e->st.sequences[b], e->st.lengths[b]);
    e->result_count = c->heads;
out:
    backend_scratch_reset(e->be, mark);
    return err;
}

cf_err llm_prefill(llm_engine *e, llm_prefill_item *items, int32_t count)
{
    call c = {.kind = GEMM_BULK};
    CF_ASSERT(count >= 1);
    for (int32_t i = 0; i < count; i++) {
        items[i].logits_idx = -1;
        items[i].carried = false;
    }
    for (int32_t i = 0; i < count && c.count < e->rows_max; i++) {
        llm_prefill_item *item = &items[i];
        const int32_t past = kv_cache_past(e->cache, item->seq_idx);
        const int32_t left = llm_prompt_rows(item->prompt) - past;
        const int32_t rows = left < LLM_PREFILL_ROWS_MAX ? left : LLM_PREFILL_ROWS_MAX;
        CF_ASSERT(left >= 1);
        if (c.rows + rows > LLM_PREFILL_ROWS_MAX)
            break;
        if (rows == left)
            item->logits_idx = c.heads;
        item->carried = true;
        float *x = call_add(e, &c, item->seq_idx, rows, rows == left);
        llm_prompt_copy(e->model, item->prompt, past, rows, x);
    }
    return run_call(e, &c);
}

cf_err llm_decode(llm_engine *e, const llm_decode_item *items, int32_t count)
{
    call c = {.kind = GEMM_DECODE};
    CF_ASSERT(count >= 1 && count <= e->rows_max);
    for (int32_t i = 0; i < count; i++) {
        float *x = call_add(e, &c, items[i].seq_idx, 1, true);
        memcpy(x, llm_speech_row(e->model, items[i].token), (size_t)e->model->shape.hidden * sizeof *x);
    }
    return run_call(e, &c);
}

const float *llm_engine_logits(const llm_engine *e, int32_t idx)
{
    CF_ASSERT(idx >= 0 && idx < e->result_count);
    return e->st.logits + (size_t)idx * (size_t)llm_speech_rows(&e->model->shape);
}

const float *llm_engine_hidden(const llm_engine *e, int32_t idx)
{
    CF_ASSERT(idx >= 0 && idx < e->result_count);
    return e->st.hidden + (size_t)idx * (size_t)e->model->shape.hidden;
}
