/*
 * llm_forward.c - prefill and decode of a packed batch as a column of ops. Compute thread of an LLM worker. Owns what
 * a call holds.
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
#include "common/base/check.h"
#include "llm_worker/llm_engine_impl.h"

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
