/*
 * llm_forward.c - prefill and decode of a packed batch as a column of ops. Compute thread of an LLM worker; owns the
 * engine's backend, model, cache and host staging.
 *
 * Letters: R packed rows, B sequences, N rows whose logits are wanted, H hidden, I intermediate,
 * Q = heads * 64, W = Q + 2 * kv_heads * 64. The residual stream x stays f32 in every precision.
 *
 * A prompt's tables follow its call from the host (op_attn_cache). A step of decoding has everything on the backend
 * (llm_slots.h): what the host submits is the same each time, so a device replays it (backend_replay), one record for
 * each bucket of rows, and the host reads drawn ids alone.
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

#define BUCKETS_MAX 9 /* 1, 2, 4, ..; the last may be cut to rows_max */
CF_STATIC_ASSERT((1 << (BUCKETS_MAX - 1)) >= JOBS_PER_MEMBER_MAX, "every count of rows has a bucket");

/* Host staging of one call, sized for the larger of a full prefill and a full decode. */
typedef struct staging {
    float *x;            /* [LLM_PREFILL_ROWS_MAX, H] */
    int32_t *positions;  /* [LLM_PREFILL_ROWS_MAX] */
    int32_t *lengths;    /* [rows_max] rows of each sequence */
    int32_t *sequences;  /* [rows_max] cache sequence of each */
    int32_t *past;       /* [rows_max] */
    int32_t *pages;      /* [rows_max, LLM_PAGES_PER_SEQUENCE] at most; row pitch pages_max of the call */
    int32_t *head_rows;  /* [rows_max] packed rows whose logits are wanted */
    int32_t *head_slots; /* [rows_max] their slots */
    float *logits;       /* [rows_max, speech rows] */
    float *hidden;       /* [rows_max, H] */
} staging;

/* Results of the last call, kept on the backend. */
typedef struct results {
    tensor logits, hidden; /* [rows_max, speech rows], [rows_max, H] */
    tensor ids;            /* [rows_max] i32 */
    int32_t *drawn;        /* [rows_max]: ids on the host, the backend's memory */
    int32_t count;
} results;

struct llm_engine {
    backend *be;      /* owned */
    llm_model *model; /* owned */
    kv_cache *cache;  /* owned */
    llm_slots slots;  /* owned arrays */
    staging st;       /* owned arrays */
    results out;
    tensor speech;                        /* [speech rows, H]: the model's table, or the device's copy */
    backend_record *records[BUCKETS_MAX]; /* owned: decoding, by bucket */
    int32_t rows_max;
    uint64_t scratch_bytes;
};

/* What the current call holds. Lists of the host are of prompts alone. */
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
    tensor slots; /* of decoding */
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

/* Puts one sequence's next `rows` rows into the call; the caller fills the returned rows of st.x. */
static float *call_add(llm_engine *e, call *c, int32_t seq_idx, int32_t rows, bool wants_head)
{
    staging *st = &e->st;
    CF_ASSERT(c->count < e->rows_max && c->rows + rows <= LLM_PREFILL_ROWS_MAX);
    const int32_t past = kv_cache_past(e->cache, seq_idx);
    float *x = st->x + (size_t)c->rows * (size_t)e->model->shape.hidden;
    kv_cache_extend(e->cache, seq_idx, rows);
    for (int32_t i = 0; i < rows; i++)
        st->positions[c->rows + i] = past + i;
    st->sequences[c->count] = seq_idx;
    st->lengths[c->count] = rows;
    st->past[c->count++] = past;
    c->rows += rows;
    if (wants_head) {
        st->head_slots[c->heads] = seq_idx;
        st->head_rows[c->heads++] = c->rows - 1;
    }
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

static cf_err activations_take(llm_engine *e, int64_t rows, activations *a)
{
    cf_err err;
    const llm_shape *s = &e->model->shape;
    TRY(backend_take(e->be, DTYPE_I32, 1, &rows, &a->positions));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->hidden, &a->x));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->hidden, &a->h));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->hidden, &a->out));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, llm_qkv_channels(s), &a->qkv));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, (int64_t)s->heads * LLM_HEAD_DIM, &a->attn));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, 2 * (int64_t)s->intermediate, &a->gate_up));
    TRY(backend_take_2d(e->be, DTYPE_F32, rows, s->intermediate, &a->act));
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

/* attn of a->qkv and the layer's cache, to which it adds. */
static cf_err attend(llm_engine *e, const call *c, int32_t layer_idx, activations *a)
{
    const llm_shape *s = &e->model->shape;
    tensor *cache = kv_cache_layer(e->cache, layer_idx);
    if (c->kind == GEMM_DECODE)
        return op_attn_step(e->be, &(op_attn_step_args){.qkv = &a->qkv,
                                                        .slots = &a->slots,
                                                        .pos = &a->positions,
                                                        .pages = &e->slots.pages,
                                                        .cache = cache,
                                                        .y = &a->attn,
                                                        .heads = s->heads,
                                                        .kv_heads = s->kv_heads});
    return op_attn_cache(e->be, &(op_attn_cache_args){.qkv = &a->qkv,
                                                      .cache = cache,
                                                      .y = &a->attn,
                                                      .rows = &a->rows,
                                                      .pages = e->st.pages,
                                                      .past = e->st.past,
                                                      .pages_max = c->pages_max,
                                                      .heads = s->heads,
                                                      .kv_heads = s->kv_heads,
                                                      .kind = c->kind});
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
    TRY(rms_norm(e, &a->x, &l->norm_in, &a->h));                              /* h:       [R, H] */
    TRY(linear(e, c->kind, &a->h, l->qkv, &l->qkv_bias, &a->qkv));            /* qkv:     [R, W] */
    TRY(op_rope(e->be, &rope));                                               /* q, k rotated in place */
    TRY(attend(e, c, layer_idx, a));                                          /* attn:    [R, Q] */
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

/* Logits of rows `last` [N, H], and what the slots [N] draw from them; ids begin their way to the host. */
static cf_err run_head(llm_engine *e, const tensor *last, const tensor *slots)
{
    cf_err err;
    const int64_t rows = last->dims[0];
    tensor hidden = tensor_rows(&e->out.hidden, 0, rows), logits = tensor_rows(&e->out.logits, 0, rows);
    tensor ids = tensor_rows(&e->out.ids, 0, rows);
    TRY(rms_norm(e, last, &e->model->norm_out, &hidden));                /* hidden: [N, H] */
    TRY(linear(e, GEMM_DECODE, &hidden, e->model->head, NULL, &logits)); /* logits: [N, speech rows] */
    TRY(op_ras(
        e->be,
        &(op_ras_args){
            .logits = &logits, .slots = slots, .states = &e->slots.states, .tokens = &e->slots.tokens, .ids = &ids}));
    TRY(backend_fetch(e->be, &ids, e->out.drawn));
out:
    return err;
}

/* The rows of the prompts that are complete now. */
static cf_err run_prompt_heads(llm_engine *e, const call *c, const activations *a)
{
    cf_err err;
    const int64_t heads = c->heads;
    tensor rows, slots, last;
    TRY(backend_take(e->be, DTYPE_I32, 1, &heads, &rows));
    TRY(backend_upload(e->be, e->st.head_rows, &rows));
    TRY(backend_take(e->be, DTYPE_I32, 1, &heads, &slots));
    TRY(backend_upload(e->be, e->st.head_slots, &slots));
    TRY(backend_take_2d(e->be, DTYPE_F32, heads, e->model->shape.hidden, &last));
    TRY(op_embedding(e->be, &(op_embedding_args){.table = &a->x, .ids = &rows, .y = &last})); /* last: [N, H] */
    TRY(run_head(e, &last, &slots));
out:
    return err;
}

static cf_err run_prompts(llm_engine *e, call *c)
{
    cf_err err;
    activations a;
    const size_t mark = backend_scratch_mark(e->be);
    CF_ASSERT(c->count >= 1 && c->rows >= c->count);
    call_tables(e, c);
    TRY(backend_rows(e->be, e->st.lengths, c->count, &a.rows));
    TRY(activations_take(e, c->rows, &a));
    TRY(backend_upload(e->be, e->st.positions, &a.positions));
    TRY(backend_upload(e->be, e->st.x, &a.x));
    for (int32_t i = 0; i < e->model->shape.layers; i++)
        TRY(run_layer(e, c, i, &a));
    if (c->heads > 0)
        TRY(run_prompt_heads(e, c, &a));
    TRY(backend_sync(e->be));
    for (int32_t b = 0; b < c->count; b++)
        kv_cache_advance(e->cache, e->st.sequences[b], e->st.lengths[b]);
    e->out.count = c->heads;
out:
    backend_scratch_reset(e->be, mark);
    return err;
}

cf_err llm_prefill(llm_engine *e, llm_prefill_item *items, int32_t count)
{
    cf_err err;
    call c = {.kind = GEMM_BULK};
    CF_ASSERT(count >= 1);
    for (int32_t i = 0; i < count; i++) {
        items[i].result_idx = -1;
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
        item->carried = true;
        if (rows == left) {
            item->result_idx = c.heads;
            TRY(llm_slots_begin(e->be, &e->slots, item->seq_idx, past + rows, &item->draws));
        }
        float *x = call_add(e, &c, item->seq_idx, rows, rows == left);
        llm_prompt_copy(e->model, item->prompt, past, rows, x);
    }
    TRY(run_prompts(e, &c));
out:
    return err;
}

/* One step of decoding for the first `rows` rows of the slots. */
typedef struct step {
    llm_engine *e;
    int32_t rows;
} step;

/* Everything it reads lies on the backend, so that it can be recorded. */
static cf_err submit_step(void *ctx)
{
    cf_err err;
    const step *now = ctx;
    llm_engine *e = now->e;
    activations a;
    tensor ids;
    const call c = {.kind = GEMM_DECODE};
    const size_t mark = backend_scratch_mark(e->be);
    TRY(activations_take(e, now->rows, &a));
    TRY(backend_take(e->be, DTYPE_I32, 1, (const int64_t[]){now->rows}, &ids));
    a.slots = tensor_rows(&e->slots.rows, 0, now->rows);
    TRY(op_step_rows(
        e->be,
        &(op_step_rows_args){
            .slots = &a.slots, .tokens = &e->slots.tokens, .past = &e->slots.past, .ids = &ids, .pos = &a.positions}));
    TRY(op_embedding(e->be, &(op_embedding_args){.table = &e->speech, .ids = &ids, .y = &a.x})); /* x: [R, H] */
    for (int32_t i = 0; i < e->model->shape.layers; i++)
        TRY(run_layer(e, &c, i, &a));
    TRY(run_head(e, &a.x, &a.slots));
out:
    backend_scratch_reset(e->be, mark);
    return err;
}

/* Rows of the step that serves `count`, and the number of its record. */
static int32_t bucket_of(const llm_engine *e, int32_t count, int32_t *ret_record)
{
    int32_t rows = 1, record = 0;
    for (; rows < count && rows < e->rows_max; rows *= 2)
        record++;
    *ret_record = record;
    if (!backend_is_device(e->be))
        return count;
    return rows < e->rows_max ? rows : e->rows_max;
}

cf_err llm_decode(llm_engine *e, const llm_decode_item *items, int32_t count)
{
    cf_err err;
    int32_t record;
    CF_ASSERT(count >= 1 && count <= e->rows_max);
    step now = {.e = e, .rows = bucket_of(e, count, &record)};
    for (int32_t i = 0; i < count; i++) {
        const int32_t seq_idx = items[i].seq_idx;
        int32_t lent;
        kv_cache_extend(e->cache, seq_idx, 1);
        const int32_t *pages = kv_cache_pages(e->cache, seq_idx, &lent);
        TRY(llm_slots_pages(e->be, &e->slots, seq_idx, pages, lent));
        if (items[i].token != LLM_DRAWN)
            TRY(llm_slots_force(e->be, &e->slots, seq_idx, items[i].token));
        e->st.sequences[i] = seq_idx;
    }
    TRY(llm_slots_rows(e->be, &e->slots, e->st.sequences, count, now.rows));
    TRY(backend_replay(e->be, &e->records[record], submit_step, &now));
    TRY(backend_sync(e->be));
    for (int32_t i = 0; i < count; i++)
        kv_cache_advance(e->cache, items[i].seq_idx, 1);
    e->out.count = count;
out:
    return err;
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
