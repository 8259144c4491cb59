/*
 * ops.c - the one checked entry of each op: ranks, dims, types and aliasing, for all backends. The backend's thread.
 * Owns nothing. Fails: asserts on wrong shapes (our own bugs); CF_ERR_UNSUPPORTED when a backend lacks an op.
 */
#include "common/compute/ops.h"

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/compute/backend_impl.h"

#define HEAD_VALUES      64
#define ROPE_PAIRS       32
#define MEL_VALUES       80
#define SOURCE_HARMONICS 9
#define STFT_COLUMNS     18
#define STFT_HOP_SAMPLES 4
#define STFT_PAD_SAMPLES 8

static bool is_f32(const tensor *t, int rank)
{
    return t->rank == rank && t->type == DTYPE_F32;
}

/* f32, or the type in which products keep their operands. */
static bool is_activation(const tensor *t, precision operands)
{
    return is_f32(t, 2) || (t->rank == 2 && operands == PRECISION_BF16 && t->type == DTYPE_BF16) ||
           (t->rank == 2 && operands == PRECISION_FP16 && t->type == DTYPE_F16);
}

static bool is_16_bit(const tensor *t, int rank)
{
    return t->rank == rank && (t->type == DTYPE_BF16 || t->type == DTYPE_F16);
}

static bool same_dims(const tensor *a, const tensor *b)
{
    return a->rank == 2 && b->rank == 2 && a->dims[0] == b->dims[0] && a->dims[1] == b->dims[1];
}

static bool same_shape(const tensor *a, const tensor *b)
{
    if (a->rank != b->rank || a->type != b->type)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dims[i] != b->dims[i])
            return false;
    return true;
}

static bool apart(const tensor *a, const tensor *b)
{
    const uintptr_t a0 = (uintptr_t)a->data, b0 = (uintptr_t)b->data;
    return a0 + tensor_bytes(a) <= b0 || b0 + tensor_bytes(b) <= a0;
}

/* The same array or none of it. */
static bool same_or_apart(const tensor *a, const tensor *b)
{
    return (a->data == b->data && tensor_bytes(a) == tensor_bytes(b)) || apart(a, b);
}

static void check_rows(const op_rows *rows, int64_t total)
{
    CF_ASSERT(rows->count >= 0);
    CF_ASSERT(rows->offs[0] == 0);
    for (int32_t b = 0; b < rows->count; b++)
        CF_ASSERT(rows->offs[b] <= rows->offs[b + 1]);
    CF_ASSERT(rows_total(rows) == total);
}

static void check_bias(const tensor *bias, dtype type, int64_t n_out)
{
    if (!bias)
        return;
    CF_ASSERT(bias->rank == 1 && bias->type == type);
    CF_ASSERT(bias->dims[0] == n_out);
}

static void check_modulation(const op_modulation *mod, const tensor *x)
{
    CF_ASSERT(is_f32(mod->table, 2));
    check_rows(mod->rows, x->dims[0]);
    for (int32_t b = 0; b < mod->rows->count; b++)
        CF_ASSERT(mod->steps[b] >= 0 && mod->steps[b] < mod->table->dims[0]);
}

static void check_columns(const op_modulation *mod, int64_t off, const tensor *x)
{
    CF_ASSERT(off >= 0);
    CF_ASSERT(off <= mod->table->dims[1] - x->dims[1]);
}

static void check_linear(const op_linear_args *a)
{
    CF_ASSERT(is_activation(a->x, a->w->operands) && is_activation(a->y, a->w->operands));
    CF_ASSERT(a->w->form == WEIGHT_LINEAR);
    CF_ASSERT(a->kind == GEMM_BULK || a->kind == GEMM_DECODE);
    CF_ASSERT((a->w->kinds & (a->kind == GEMM_BULK ? GEMM_BULK_BIT : GEMM_DECODE_BIT)) != 0);
    CF_ASSERT(a->x->dims[1] == a->w->k_in);
    CF_ASSERT(a->y->dims[0] == a->x->dims[0] && a->y->dims[1] == a->w->n_out);
    CF_ASSERT(apart(a->x, a->y));
    check_bias(a->bias, DTYPE_F32, a->w->n_out);
    if (a->gate) {
        CF_ASSERT(is_f32(a->y, 2));
        check_modulation(a->gate, a->y);
        check_columns(a->gate, a->gate_off, a->y);
    }
}

static void check_conv1d(const op_conv1d_args *a)
{
    const dtype type = a->w->form == WEIGHT_CONV_F64 ? DTYPE_F64 : DTYPE_F32;
    CF_ASSERT(a->w->form != WEIGHT_LINEAR);
    CF_ASSERT(a->x->rank == 2 && a->x->type == type);
    CF_ASSERT(a->y->rank == 2 && a->y->type == type);
    CF_ASSERT(a->x->dims[1] == a->w->k_in && a->y->dims[1] == a->w->n_out);
    CF_ASSERT(a->kernel == a->w->kernel && a->groups == a->w->groups);
    CF_ASSERT(a->dilation >= 1 && a->stride >= 1 && a->repeat >= 1 && a->pad_left >= 0);
    CF_ASSERT(a->rows_in->count == a->rows_out->count);
    CF_ASSERT(apart(a->x, a->y));
    check_rows(a->rows_in, a->x->dims[0]);
    check_rows(a->rows_out, a->y->dims[0]);
    check_bias(a->bias, type, a->w->n_out);
    CF_ASSERT((a->snake != NULL) == (a->work != NULL));
    if (a->snake) {
        CF_ASSERT(type == DTYPE_F32 && is_f32(a->snake, 1) && a->snake->dims[0] == a->w->k_in);
        CF_ASSERT(is_f32(a->work, 2) && tensor_count(a->work) == tensor_count(a->x) && apart(a->work, a->y));
    }
    if (a->residual) {
        CF_ASSERT(type == DTYPE_F32 && is_f32(a->residual, 2) && a->residual->dims[1] == a->w->n_out);
        CF_ASSERT(a->residual->dims[0] == a->y->dims[0] && apart(a->residual, a->y));
        CF_ASSERT(!a->snake || apart(a->residual, a->work));
    }
}

static void check_conv2d(const op_conv2d_args *a)
{
    CF_ASSERT(a->w->form == WEIGHT_CONV && a->w->groups == 1 && a->w->operands == PRECISION_F32);
    CF_ASSERT(a->kernel == 1 || a->kernel == 3);
    CF_ASSERT(a->w->kernel == (int64_t)a->kernel * a->kernel);
    CF_ASSERT(a->stride >= 1 && a->freq_in >= 1 && a->freq_out == (a->freq_in - 1) / a->stride + 1);
    CF_ASSERT(is_f32(a->x, 2) && a->x->dims[1] == a->freq_in * a->w->k_in);
    CF_ASSERT(is_f32(a->y, 2) && a->y->dims[1] == a->freq_out * a->w->n_out);
    CF_ASSERT(a->x->dims[0] == a->y->dims[0]);
    CF_ASSERT(apart(a->x, a->y));
    check_rows(a->rows, a->x->dims[0]);
    check_bias(a->bias, DTYPE_F32, a->w->n_out);
}

static void check_embedding(const op_embedding_args *a)
{
    CF_ASSERT(is_f32(a->table, 2) && is_f32(a->y, 2));
    CF_ASSERT(a->ids->rank == 1 && a->ids->type == DTYPE_I32);
    CF_ASSERT(a->y->dims[0] == a->ids->dims[0] && a->y->dims[1] == a->table->dims[1]);
    CF_ASSERT(apart(a->table, a->y) && apart(a->ids, a->y));
}

static void check_act(const op_act_args *a)
{
    CF_ASSERT(a->x->type == DTYPE_F32 || a->x->type == DTYPE_F64);
    CF_ASSERT(same_shape(a->x, a->y));
    CF_ASSERT(same_or_apart(a->x, a->y));
}

static void check_add(const op_add_args *a)
{
    CF_ASSERT(a->a->type == DTYPE_F32);
    CF_ASSERT(same_shape(a->a, a->b) && same_shape(a->a, a->y));
    CF_ASSERT(same_or_apart(a->a, a->y) && same_or_apart(a->b, a->y));
}

static void check_mean3(const op_mean3_args *a)
{
    CF_ASSERT(a->a->type == DTYPE_F32);
    CF_ASSERT(same_shape(a->a, a->b) && same_shape(a->a, a->c) && same_shape(a->a, a->y));
    CF_ASSERT(same_or_apart(a->a, a->y) && same_or_apart(a->b, a->y) && same_or_apart(a->c, a->y));
}

static void check_snake(const op_snake_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && same_shape(a->x, a->y));
    CF_ASSERT(is_f32(a->alpha, 1) && a->alpha->dims[0] == a->x->dims[1]);
    CF_ASSERT(same_or_apart(a->x, a->y) && apart(a->alpha, a->y));
}

static void check_swiglu(const op_swiglu_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->y, 2));
    CF_ASSERT(a->x->dims[0] == a->y->dims[0] && a->x->dims[1] == 2 * a->y->dims[1]);
    CF_ASSERT(apart(a->x, a->y));
}

static void check_rms_norm(const op_rms_norm_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && same_shape(a->x, a->y));
    CF_ASSERT(is_f32(a->gain, 1) && a->gain->dims[0] == a->x->dims[1]);
    CF_ASSERT(apart(a->x, a->y) && apart(a->gain, a->y));
}

static void check_layer_norm(const op_layer_norm_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && same_shape(a->x, a->y));
    CF_ASSERT(is_f32(a->gain, 1) && a->gain->dims[0] == a->x->dims[1]);
    CF_ASSERT(same_shape(a->gain, a->bias));
    CF_ASSERT(apart(a->x, a->y) && apart(a->gain, a->y) && apart(a->bias, a->y));
}

static void check_affine(const op_affine_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->y, 2));
    CF_ASSERT(a->x->dims[0] == a->y->dims[0] && a->x->dims[1] >= a->y->dims[1]);
    CF_ASSERT(is_f32(a->scale, 1) && a->scale->dims[0] == a->y->dims[1]);
    CF_ASSERT(same_shape(a->scale, a->shift));
    CF_ASSERT(apart(a->x, a->y) && apart(a->scale, a->y) && apart(a->shift, a->y));
}

static void check_fsmn(const op_fsmn_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->y, 2) && is_f32(a->w, 2));
    CF_ASSERT(a->w->dims[0] % 2 == 1 && a->w->dims[1] == a->y->dims[1]);
    CF_ASSERT(a->x->dims[0] == a->y->dims[0]);
    CF_ASSERT(a->first_channel >= 0 && a->first_channel + a->y->dims[1] <= a->x->dims[1]);
    CF_ASSERT(apart(a->x, a->y) && apart(a->w, a->y));
    check_rows(a->rows, a->x->dims[0]);
}

static void check_segments(const op_rows *rows, const op_rows *segments, int32_t segment)
{
    CF_ASSERT(segment >= 1);
    CF_ASSERT(rows->count == segments->count);
    for (int32_t b = 0; b < rows->count; b++)
        CF_ASSERT(rows_length(segments, b) == (rows_length(rows, b) + segment - 1) / segment);
}

static void check_segment_mean(const op_segment_mean_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->y, 2) && a->x->dims[1] == a->y->dims[1]);
    CF_ASSERT(apart(a->x, a->y));
    check_rows(a->rows_in, a->x->dims[0]);
    check_rows(a->rows_out, a->y->dims[0]);
    check_segments(a->rows_in, a->rows_out, a->segment);
}

static void check_segment_gate(const op_segment_gate_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->y, 2) && a->x->dims[0] == a->y->dims[0]);
    CF_ASSERT(a->first_channel >= 0 && a->first_channel + a->x->dims[1] <= a->y->dims[1]);
    CF_ASSERT(apart(a->x, a->y));
    check_rows(a->rows, a->x->dims[0]);
    CF_ASSERT((a->gate != NULL) == (a->segments != NULL));
    if (!a->gate)
        return;
    CF_ASSERT(is_f32(a->gate, 2) && a->x->dims[1] == a->gate->dims[1]);
    CF_ASSERT(apart(a->gate, a->y));
    check_rows(a->segments, a->gate->dims[0]);
    check_segments(a->rows, a->segments, a->segment);
}

static void check_layer_norm_mod(const op_layer_norm_mod_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && same_dims(a->x, a->y));
    CF_ASSERT(is_f32(a->y, 2) || is_16_bit(a->y, 2));
    CF_ASSERT(apart(a->x, a->y));
    check_modulation(&a->mod, a->x);
    check_columns(&a->mod, a->scale_off, a->x);
    check_columns(&a->mod, a->shift_off, a->x);
}

static void check_rope(const op_rope_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) || is_16_bit(a->x, 2));
    CF_ASSERT(is_f32(a->cos_table, 2) && a->cos_table->dims[1] == ROPE_PAIRS);
    CF_ASSERT(same_shape(a->cos_table, a->sin_table));
    CF_ASSERT(a->pos->rank == 1 && a->pos->type == DTYPE_I32 && a->pos->dims[0] == a->x->dims[0]);
    CF_ASSERT(a->first_channel >= 0 && a->head_count >= 0);
    CF_ASSERT(a->first_channel + (int64_t)a->head_count * HEAD_VALUES <= a->x->dims[1]);
    CF_ASSERT(apart(a->x, a->cos_table) && apart(a->x, a->sin_table));
}

static void check_attn_block(const op_attn_block_args *a)
{
    CF_ASSERT(is_activation(a->qkv, a->operands) && a->y->rank == 2 && a->y->type == a->qkv->type);
    CF_ASSERT(a->heads >= 1);
    CF_ASSERT(a->qkv->dims[1] == 3 * (int64_t)a->heads * HEAD_VALUES);
    CF_ASSERT(a->y->dims[0] == a->qkv->dims[0] && a->y->dims[1] == (int64_t)a->heads * HEAD_VALUES);
    CF_ASSERT(apart(a->qkv, a->y));
    check_rows(a->rows, a->qkv->dims[0]);
    for (int32_t b = 0; b < a->rows->count; b++)
        CF_ASSERT(a->block[b] >= 0);
}

static void check_cache_pages(const op_attn_cache_args *a)
{
    for (int32_t b = 0; b < a->rows->count; b++) {
        const int32_t length = rows_length(a->rows, b);
        if (length == 0)
            continue;
        CF_ASSERT(a->past[b] >= 0);
        const int64_t tokens = (int64_t)a->past[b] + length;
        const int64_t pages = (tokens + CACHE_PAGE_TOKENS - 1) / CACHE_PAGE_TOKENS;
        CF_ASSERT(pages <= a->pages_max);
        for (int64_t p = 0; p < pages; p++) {
            const int32_t page = a->pages[(int64_t)b * a->pages_max + p];
            CF_ASSERT(page >= 0 && page < a->cache->dims[0]);
        }
    }
}

static void check_attn_heads(const tensor *qkv, const tensor *cache, const tensor *y, int64_t heads, int64_t kv_heads)
{
    CF_ASSERT(is_f32(qkv, 2) && is_f32(y, 2) && is_f32(cache, 5));
    CF_ASSERT(kv_heads >= 1 && heads >= 1 && heads % kv_heads == 0);
    CF_ASSERT(qkv->dims[1] == (heads + 2 * kv_heads) * HEAD_VALUES);
    CF_ASSERT(y->dims[0] == qkv->dims[0] && y->dims[1] == heads * HEAD_VALUES);
    CF_ASSERT(cache->dims[1] == 2 && cache->dims[2] == kv_heads);
    CF_ASSERT(cache->dims[3] == CACHE_PAGE_TOKENS && cache->dims[4] == HEAD_VALUES);
    CF_ASSERT(apart(qkv, y) && apart(qkv, cache) && apart(cache, y));
}

static void check_attn_cache(const op_attn_cache_args *a)
{
    check_attn_heads(a->qkv, a->cache, a->y, a->heads, a->kv_heads);
    check_rows(a->rows, a->qkv->dims[0]);
    check_cache_pages(a);
}

static bool is_i32(const tensor *t, int rank)
{
    return t->rank == rank && t->type == DTYPE_I32;
}

static void check_step_rows(const op_step_rows_args *a)
{
    CF_ASSERT(is_i32(a->slots, 1) && is_i32(a->tokens, 1));
    CF_ASSERT(is_i32(a->past, 1) && a->past->dims[0] == a->tokens->dims[0]);
    CF_ASSERT(is_i32(a->ids, 1) && a->ids->dims[0] == a->slots->dims[0]);
    CF_ASSERT(is_i32(a->pos, 1) && a->pos->dims[0] == a->slots->dims[0]);
    CF_ASSERT(apart(a->past, a->ids) && apart(a->past, a->pos) && apart(a->ids, a->pos));
}

static void check_attn_step(const op_attn_step_args *a)
{
    check_attn_heads(a->qkv, a->cache, a->y, a->heads, a->kv_heads);
    CF_ASSERT(is_i32(a->slots, 1) && a->slots->dims[0] == a->qkv->dims[0]);
    CF_ASSERT(is_i32(a->pos, 1) && a->pos->dims[0] == a->qkv->dims[0]);
    CF_ASSERT(is_i32(a->pages, 2) && a->pages->dims[1] >= 1);
}

static void check_ras(const op_ras_args *a)
{
    CF_ASSERT(is_f32(a->logits, 2));
    CF_ASSERT(a->logits->dims[1] > SPEECH_CONTROLS + 1 && a->logits->dims[1] <= SPEECH_ROWS);
    CF_ASSERT(is_i32(a->slots, 1) && is_i32(a->ids, 1));
    CF_ASSERT(a->slots->dims[0] == a->logits->dims[0] && a->ids->dims[0] == a->logits->dims[0]);
    CF_ASSERT(is_i32(a->states, 2) && a->states->dims[1] == RAS_STATE_WORDS);
    CF_ASSERT(is_i32(a->tokens, 1) && a->tokens->dims[0] == a->states->dims[0]);
    CF_ASSERT(apart(a->logits, a->ids) && apart(a->slots, a->ids) && apart(a->states, a->ids));
    CF_ASSERT(apart(a->logits, a->states) && apart(a->logits, a->tokens) && apart(a->states, a->tokens));
}

static void check_dit_input(const op_dit_input_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && a->x->dims[1] == MEL_VALUES);
    CF_ASSERT(same_shape(a->x, a->cond) && same_shape(a->x, a->mu));
    CF_ASSERT(is_f32(a->spk, 2) && a->spk->dims[0] == a->rows->count && a->spk->dims[1] == MEL_VALUES);
    CF_ASSERT(is_f32(a->y, 2) && a->y->dims[0] == 2 * a->x->dims[0] && a->y->dims[1] == 4 * MEL_VALUES);
    CF_ASSERT(apart(a->x, a->y) && apart(a->cond, a->y) && apart(a->mu, a->y) && apart(a->spk, a->y));
    check_rows(a->rows, a->x->dims[0]);
}

static void check_cfg_euler(const op_cfg_euler_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->v, 2));
    CF_ASSERT(a->v->dims[0] == 2 * a->x->dims[0] && a->v->dims[1] == a->x->dims[1]);
    CF_ASSERT(apart(a->x, a->v));
    check_rows(a->rows, a->x->dims[0]);
}

static void check_lerp_time(const op_lerp_time_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->y, 2));
    CF_ASSERT(a->x->dims[1] == a->y->dims[1]);
    CF_ASSERT(a->rows_in->count == a->rows_out->count);
    CF_ASSERT(apart(a->x, a->y));
    check_rows(a->rows_in, a->x->dims[0]);
    check_rows(a->rows_out, a->y->dims[0]);
    for (int32_t b = 0; b < a->rows_in->count; b++)
        CF_ASSERT(rows_length(a->rows_in, b) > 0 || rows_length(a->rows_out, b) == 0);
}

static void check_source(const op_source_args *a)
{
    CF_ASSERT(is_f32(a->f0, 1) && is_f32(a->w, 1) && is_f32(a->bias, 1) && is_f32(a->noise, 1) && is_f32(a->y, 1));
    CF_ASSERT(a->w->dims[0] == SOURCE_HARMONICS && a->bias->dims[0] == 1);
    CF_ASSERT(a->y->dims[0] == a->f0->dims[0] * SOURCE_FRAME_SAMPLES);
    CF_ASSERT(apart(a->f0, a->y) && apart(a->noise, a->y));
    check_rows(a->rows, a->f0->dims[0]);
    for (int32_t b = 0; b < a->rows->count; b++)
        CF_ASSERT((int64_t)rows_length(a->rows, b) * SOURCE_FRAME_SAMPLES <= a->noise->dims[0]);
}

static void check_stft(const op_stft_args *a)
{
    CF_ASSERT(is_f32(a->x, 1) && is_f32(a->y, 2) && a->y->dims[1] == STFT_COLUMNS);
    CF_ASSERT(a->rows_in->count == a->rows_out->count);
    CF_ASSERT(apart(a->x, a->y));
    check_rows(a->rows_in, a->x->dims[0]);
    check_rows(a->rows_out, a->y->dims[0]);
    for (int32_t b = 0; b < a->rows_in->count; b++) {
        const int32_t samples = rows_length(a->rows_in, b), frames = rows_length(a->rows_out, b);
        if (samples == 0) {
            CF_ASSERT(frames == 0);
            continue;
        }
        CF_ASSERT(samples > STFT_PAD_SAMPLES && samples % STFT_HOP_SAMPLES == 0);
        CF_ASSERT(frames == samples / STFT_HOP_SAMPLES + 1);
    }
}

static void check_istft(const op_istft_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && a->x->dims[1] == STFT_COLUMNS && is_f32(a->y, 1));
    CF_ASSERT(a->rows_in->count == a->rows_out->count);
    CF_ASSERT(apart(a->x, a->y));
    CF_ASSERT(a->limit > 0.0f);
    check_rows(a->rows_in, a->x->dims[0]);
    check_rows(a->rows_out, a->y->dims[0]);
    for (int32_t b = 0; b < a->rows_in->count; b++) {
        const int64_t frames = rows_length(a->rows_in, b);
        CF_ASSERT(rows_length(a->rows_out, b) <= (frames > 0 ? (frames - 1) * STFT_HOP_SAMPLES : 0));
    }
}

static void check_reflect_first(const op_reflect_first_args *a)
{
    CF_ASSERT(is_f32(a->x, 2) && is_f32(a->y, 2));
    CF_ASSERT(a->x->dims[1] == a->y->dims[1]);
    CF_ASSERT(a->rows_in->count == a->rows_out->count);
    CF_ASSERT(apart(a->x, a->y));
    check_rows(a->rows_in, a->x->dims[0]);
    check_rows(a->rows_out, a->y->dims[0]);
    for (int32_t b = 0; b < a->rows_in->count; b++) {
        CF_ASSERT(rows_length(a->rows_in, b) >= 2);
        CF_ASSERT(rows_length(a->rows_out, b) == rows_length(a->rows_in, b) + 1);
    }
}

static void check_cast(const op_cast_args *a)
{
    CF_ASSERT((a->x->type == DTYPE_F32 && a->y->type == DTYPE_F64) ||
              (a->x->type == DTYPE_F64 && a->y->type == DTYPE_F32));
    CF_ASSERT(tensor_count(a->x) == tensor_count(a->y));
    CF_ASSERT(apart(a->x, a->y));
}

#define CF_OP_ENTRY(name, args)                                                                                  \
    cf_err op_##name(backend *be, const args *a)                                                                 \
    {                                                                                                            \
        if (!be->ops->name)                                                                                      \
            return err_set(CF_ERR_UNSUPPORTED, "op " #name " is not supported by backend \"%s\"", be->describe); \
        check_##name(a);                                                                                         \
        return be->ops->name(be, a);                                                                             \
    }
CF_OPS(CF_OP_ENTRY)
#undef CF_OP_ENTRY

const char *op_name(op_id id)
{
    static const char *const names[OP_COUNT] = {
#define CF_OP_NAME(name, args) #name,
        CF_OPS(CF_OP_NAME)
#undef CF_OP_NAME
    };
    CF_ASSERT(id < OP_COUNT);
    return names[id];
}

bool op_supported(const backend *be, op_id id)
{
    switch (id) {
#define CF_OP_CASE(name, args) \
    case OP_##name:            \
        return be->ops->name != NULL;
        CF_OPS(CF_OP_CASE)
#undef CF_OP_CASE
    case OP_COUNT:
        break;
    }
    cf_panic(__FILE__, __LINE__, "unknown op");
}
