/*
 * stage_tables.c - the tensors of each stage's file, in file order. Any process; a table belongs to its caller.
 *
 * Names and shapes are upstream's state dicts; centre and amplitude are the synthetic recipe's. Amplitudes of matrices
 * follow from a gain and the fan-in: uniform values of variance gain^2 / fan_in.
 * Fails: CF_ERR_NOMEM.
 * Source: llm.md 2.2, flow.md 2, hift.md 2.2, synthetic.md 3.
 */
#include "common/model/stage_tables.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"

const char *model_stage_name(model_stage stage)
{
    static const char *const NAME[MODEL_STAGE_COUNT] = {"llm", "flow", "hift"};
    CF_ASSERT((unsigned)stage < MODEL_STAGE_COUNT);
    return NAME[stage];
}

/* Collects rows; the first failure sticks, so that the tables below read as tables. */
typedef struct builder {
    stage_table table;
    char prefix[64];
    cf_err err;
} builder;

static void set_prefix(builder *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void set_prefix(builder *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(b->prefix, sizeof b->prefix, fmt, args);
    va_end(args);
}

typedef struct shape3 {
    int rank;
    int64_t sizes[3];
} shape3;

static shape3 d1(int64_t a)
{
    return (shape3){1, {a, 0, 0}};
}

static shape3 d2(int64_t a, int64_t b)
{
    return (shape3){2, {a, b, 0}};
}

static shape3 d3(int64_t a, int64_t b, int64_t c)
{
    return (shape3){3, {a, b, c}};
}

static void row_kind(builder *b, stage_tensor_kind kind, const char *name, shape3 shape, double centre,
                     double amplitude)
{
    stage_table *t = &b->table;
    if (b->err != CF_OK)
        return;
    if (t->count == t->capacity) {
        const size_t larger = t->capacity ? t->capacity * 2 : 64;
        b->err = mem_resize(&t->items, larger, sizeof *t->items);
        if (b->err != CF_OK)
            return;
        t->capacity = larger;
    }
    stage_tensor *item = &t->items[t->count++];
    *item = (stage_tensor){.kind = kind, .rank = shape.rank, .centre = centre, .amplitude = amplitude};
    memcpy(item->shape, shape.sizes, sizeof item->shape);
    const int bytes = snprintf(item->name, sizeof item->name, "%s%s", b->prefix, name);
    CF_ASSERT(bytes > 0 && (size_t)bytes < sizeof item->name);
}

static void row(builder *b, const char *name, shape3 shape, double centre, double amplitude)
{
    row_kind(b, STAGE_UNIFORM, name, shape, centre, amplitude);
}

static double by_fan_in(int64_t fan_in, double gain)
{
    return gain * sqrt(3.0 / (double)fan_in);
}

static cf_err finish(builder *b, stage_table *ret_table)
{
    if (b->err != CF_OK)
        stage_table_done(&b->table);
    else
        *ret_table = b->table;
    return b->err;
}

void stage_table_done(stage_table *t)
{
    mem_free(t->items);
    *t = (stage_table){0};
}

static void llm_layer(builder *b, const llm_dims *dims)
{
    const int64_t H = dims->hidden;
    const int64_t I = dims->intermediate;
    const int64_t Q = dims->heads * MODEL_HEAD_DIM;
    const int64_t KV = dims->kv_heads * MODEL_HEAD_DIM;
    row(b, "input_layernorm.weight", d1(H), 1.0, 0.3);
    row(b, "self_attn.q_proj.weight", d2(Q, H), 0.0, by_fan_in(H, 1.4));
    row(b, "self_attn.q_proj.bias", d1(Q), 0.0, 0.5);
    row(b, "self_attn.k_proj.weight", d2(KV, H), 0.0, by_fan_in(H, 1.4));
    row(b, "self_attn.k_proj.bias", d1(KV), 0.0, 0.5);
    row(b, "self_attn.v_proj.weight", d2(KV, H), 0.0, by_fan_in(H, 1.0));
    row(b, "self_attn.v_proj.bias", d1(KV), 0.0, 0.5);
    row(b, "self_attn.o_proj.weight", d2(H, Q), 0.0, by_fan_in(H, 0.7));
    row(b, "post_attention_layernorm.weight", d1(H), 1.0, 0.3);
    row(b, "mlp.gate_proj.weight", d2(I, H), 0.0, by_fan_in(H, 1.0));
    row(b, "mlp.up_proj.weight", d2(I, H), 0.0, by_fan_in(H, 1.0));
    row(b, "mlp.down_proj.weight", d2(H, I), 0.0, by_fan_in(I, 0.7));
}

cf_err stage_table_llm(const llm_dims *dims, stage_table *ret_table)
{
    const int64_t H = dims->hidden;
    builder b = {0};
    set_prefix(&b, "llm.model.model.");
    row(&b, "embed_tokens.weight", d2(dims->text_rows, H), 0.0, 0.8);
    for (int64_t i = 0; i < dims->layers; i++) {
        set_prefix(&b, "llm.model.model.layers.%d.", (int)i);
        llm_layer(&b, dims);
    }
    set_prefix(&b, "llm.model.model.");
    row(&b, "norm.weight", d1(H), 1.0, 0.3);
    set_prefix(&b, "%s", "");
    row(&b, "speech_embedding.weight", d2(dims->speech_codes + SPEECH_CONTROLS, H), 0.0, 0.8);
    row(&b, "llm_decoder.weight", d2(dims->speech_codes + SPEECH_CONTROLS, H), 0.0, by_fan_in(H, 3.0));
    return finish(&b, ret_table);
}

static void flow_front(builder *b, const flow_dims *dims)
{
    const int64_t D = dims->dim;
    const int64_t L = dims->lookahead_channels;
    row(b, "input_embedding.weight", d2(dims->speech_codes, MEL_BINS), 0.0, 1.0);
    row(b, "spk_embed_affine_layer.weight", d2(MEL_BINS, SPEAKER_VALUES), 0.0, by_fan_in(SPEAKER_VALUES, 6.0));
    row(b, "spk_embed_affine_layer.bias", d1(MEL_BINS), 0.0, 0.1);
    row(b, "pre_lookahead_layer.conv1.weight", d3(L, MEL_BINS, 4), 0.0, by_fan_in(320, 1.4));
    row(b, "pre_lookahead_layer.conv1.bias", d1(L), 0.0, 0.1);
    row(b, "pre_lookahead_layer.conv2.weight", d3(MEL_BINS, L, 3), 0.0, by_fan_in(3 * L, 1.4));
    row(b, "pre_lookahead_layer.conv2.bias", d1(MEL_BINS), 0.0, 0.1);
    set_prefix(b, "decoder.estimator.");
    row(b, "time_embed.time_mlp.0.weight", d2(D, 256), 0.0, by_fan_in(256, 1.4));
    row(b, "time_embed.time_mlp.0.bias", d1(D), 0.0, 0.1);
    row(b, "time_embed.time_mlp.2.weight", d2(D, D), 0.0, by_fan_in(D, 2.0));
    row(b, "time_embed.time_mlp.2.bias", d1(D), 0.0, 0.1);
    row(b, "input_embed.proj.weight", d2(D, 320), 0.0, by_fan_in(320, 1.0));
    row(b, "input_embed.proj.bias", d1(D), 0.0, 0.1);
    const double pos = by_fan_in(31 * D / 16, 1.4);
    row(b, "input_embed.conv_pos_embed.conv1.0.weight", d3(D, D / 16, 31), 0.0, pos);
    row(b, "input_embed.conv_pos_embed.conv1.0.bias", d1(D), 0.0, 0.1);
    row(b, "input_embed.conv_pos_embed.conv2.0.weight", d3(D, D / 16, 31), 0.0, pos);
    row(b, "input_embed.conv_pos_embed.conv2.0.bias", d1(D), 0.0, 0.1);
    row_kind(b, STAGE_INV_FREQ, "rotary_embed.inv_freq", d1(MODEL_HEAD_DIM / 2), 0.0, 0.0);
}

static void flow_block(builder *b, int64_t D)
{
    row(b, "attn_norm.linear.weight", d2(6 * D, D), 0.0, by_fan_in(D, 0.5));
    row(b, "attn_norm.linear.bias", d1(6 * D), 0.0, 0.5);
    row(b, "attn.to_q.weight", d2(D, D), 0.0, by_fan_in(D, 1.4));
    row(b, "attn.to_q.bias", d1(D), 0.0, 0.2);
    row(b, "attn.to_k.weight", d2(D, D), 0.0, by_fan_in(D, 1.4));
    row(b, "attn.to_k.bias", d1(D), 0.0, 0.2);
    row(b, "attn.to_v.weight", d2(D, D), 0.0, by_fan_in(D, 1.0));
    row(b, "attn.to_v.bias", d1(D), 0.0, 0.2);
    row(b, "attn.to_out.0.weight", d2(D, D), 0.0, by_fan_in(D, 1.4));
    row(b, "attn.to_out.0.bias", d1(D), 0.0, 0.1);
    row(b, "ff.ff.0.0.weight", d2(2 * D, D), 0.0, by_fan_in(D, 1.4));
    row(b, "ff.ff.0.0.bias", d1(2 * D), 0.0, 0.1);
    row(b, "ff.ff.2.weight", d2(D, 2 * D), 0.0, by_fan_in(2 * D, 1.4));
    row(b, "ff.ff.2.bias", d1(D), 0.0, 0.1);
}

cf_err stage_table_flow(const flow_dims *dims, stage_table *ret_table)
{
    const int64_t D = dims->dim;
    builder b = {0};
    flow_front(&b, dims);
    for (int64_t i = 0; i < dims->depth; i++) {
        set_prefix(&b, "decoder.estimator.transformer_blocks.%d.", (int)i);
        flow_block(&b, D);
    }
    set_prefix(&b, "decoder.estimator.");
    row(&b, "norm_out.linear.weight", d2(2 * D, D), 0.0, by_fan_in(D, 0.3));
    row(&b, "norm_out.linear.bias", d1(2 * D), 0.0, 0.1);
    row(&b, "proj_out.weight", d2(MEL_BINS, D), 0.0, by_fan_in(D, 2.0));
    row(&b, "proj_out.bias", d1(MEL_BINS), -6.0, 1.5);
    return finish(&b, ret_table);
}

/* Magnitude and direction of a weight-normed filter; the magnitude is the norm of the fused filter. */
static void norm_pair(builder *b, shape3 shape, double gain, double gain_spread)
{
    const shape3 g = d3(shape.sizes[0], 1, 1);
    row_kind(b, STAGE_NORM_G, "parametrizations.weight.original0", g, gain, gain_spread);
    row_kind(b, STAGE_NORM_V, "parametrizations.weight.original1", shape, 0.0, 1.0);
}

static void norm_conv(builder *b, shape3 shape, double gain)
{
    row(b, "bias", d1(shape.sizes[0]), 0.0, 0.05);
    norm_pair(b, shape, gain, 0.2 * gain);
}

static void resblock(builder *b, const char *group, int idx, int64_t channels, int64_t kernel)
{
    for (int n = 0; n < 3; n++)
        for (int s = 1; s <= 2; s++) {
            set_prefix(b, "%s.%d.convs%d.%d.", group, idx, s, n);
            norm_conv(b, d3(channels, channels, kernel), 0.55);
            set_prefix(b, "%s.%d.activations%d.%d.", group, idx, s, n);
            row(b, "alpha", d1(channels), 1.0, 0.6);
        }
}

static void f0_predictor(builder *b, int64_t F, double f0_bias)
{
    set_prefix(b, "f0_predictor.condnet.0.");
    norm_conv(b, d3(F, MEL_BINS, 4), 0.4);
    for (int n = 2; n <= 8; n += 2) {
        set_prefix(b, "f0_predictor.condnet.%d.", n);
        norm_conv(b, d3(F, F, 3), 1.6);
    }
    set_prefix(b, "f0_predictor.classifier.");
    row(b, "weight", d2(1, F), 0.0, by_fan_in(F, 90.0));
    row(b, "bias", d1(1), f0_bias, 0.0);
}

cf_err stage_table_hift(const hift_dims *dims, double f0_bias, stage_table *ret_table)
{
    static const int64_t UP_KERNEL[3] = {16, 11, 7};
    static const int64_t DOWN_KERNEL[3] = {30, 6, 1};
    static const int64_t SOURCE_KERNEL[3] = {7, 7, 11};
    static const int64_t KERNEL[3] = {3, 7, 11};
    const int64_t B = dims->base_channels;
    builder b = {0};
    set_prefix(&b, "m_source.l_linear.");
    row(&b, "weight", d2(1, 9), 0.05, 0.30);
    row(&b, "bias", d1(1), 0.0, 0.01);
    set_prefix(&b, "conv_pre.");
    norm_conv(&b, d3(B, MEL_BINS, 5), 0.18);
    for (int i = 0; i < 3; i++) {
        set_prefix(&b, "ups.%d.", i);
        norm_conv(&b, d3(B >> (i + 1), B >> i, UP_KERNEL[i]), 1.2);
    }
    for (int i = 0; i < 3; i++) {
        set_prefix(&b, "source_downs.%d.", i);
        row(&b, "weight", d3(B >> (i + 1), 18, DOWN_KERNEL[i]), 0.0, by_fan_in(18 * DOWN_KERNEL[i], 12.0));
        row(&b, "bias", d1(B >> (i + 1)), 0.0, 0.05);
        resblock(&b, "source_resblocks", i, B >> (i + 1), SOURCE_KERNEL[i]);
    }
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            resblock(&b, "resblocks", 3 * i + j, B >> (i + 1), KERNEL[j]);
    set_prefix(&b, "conv_post.");
    row(&b, "bias", d1(18), -1.6, 0.8);
    norm_pair(&b, d3(18, B >> 3, 7), 0.45, 0.1);
    f0_predictor(&b, dims->f0_channels, f0_bias);
    return finish(&b, ret_table);
}
