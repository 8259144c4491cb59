/*
 * flow_model.c - binds, folds and packs the flow's weights, and builds the tables that depend on the model alone.
 *
 * Runs once, in stage open, on the compute thread. Packed weights and tables belong to the backend; the model owns the
 * list of blocks and the speaker projection.
 *
 * Fails: CF_ERR_NOTFOUND or CF_ERR_MISMATCH naming a tensor; CF_ERR_NOMEM.
 * Source: cosy cosyvoice/flow/flow.py CausalMaskedDiffWithDiT, flow/DiT/dit.py DiT @ace7c47; names, shapes: flow.md 2.
 */
#include "flow_worker/flow_model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "flow_worker/flow_shapes.h"
#include "flow_worker/modulation.h"
#include "flow_worker/noise.h"

#define FLOW_NAME_BYTES 128
#define ESTIMATOR       "decoder.estimator."

/* What every step of packing needs. */
typedef struct flow_packer {
    backend *be;
    weights *w;
    precision operands;
} flow_packer;

/* A tensor of the file, copied to the backend for its life. */
static cf_err pack_table(const flow_packer *p, const char *name, int rank, const int64_t *dims, tensor *ret_tensor)
{
    cf_err err = CF_OK;
    const float *values;
    tensor t;
    TRY(weights_f32(p->w, name, rank, dims, &values));
    TRY(backend_keep(p->be, DTYPE_F32, rank, dims, &t));
    TRY(backend_upload(p->be, values, &t));
    *ret_tensor = t;
out:
    return err;
}

static cf_err pack_linear(const flow_packer *p, const char *prefix, int64_t out_dim, int64_t in_dim,
                          flow_linear *ret_linear)
{
    cf_err err = CF_OK;
    char name[FLOW_NAME_BYTES];
    const float *values;
    snprintf(name, sizeof name, "%s.weight", prefix);
    TRY(weights_f32(p->w, name, 2, (const int64_t[]){out_dim, in_dim}, &values));
    TRY(backend_pack_linear(p->be, values, out_dim, in_dim, p->operands, GEMM_BULK_BIT, &ret_linear->w));
    snprintf(name, sizeof name, "%s.bias", prefix);
    TRY(pack_table(p, name, 1, (const int64_t[]){out_dim}, &ret_linear->bias));
out:
    return err;
}

/* dims: [c_out, c_in / groups, kernel] */
static cf_err pack_conv(const flow_packer *p, const char *prefix, const int64_t dims[3], int64_t groups,
                        precision operands, flow_linear *ret_linear)
{
    cf_err err = CF_OK;
    char name[FLOW_NAME_BYTES];
    const float *values;
    snprintf(name, sizeof name, "%s.weight", prefix);
    TRY(weights_f32(p->w, name, 3, dims, &values));
    TRY(backend_pack_conv(p->be, values, dims[0], dims[1] * groups, dims[2], groups, operands, &ret_linear->w));
    snprintf(name, sizeof name, "%s.bias", prefix);
    TRY(pack_table(p, name, 1, (const int64_t[]){dims[0]}, &ret_linear->bias));
out:
    return err;
}

/* Three matrices with one input become one product. */
static cf_err pack_qkv(const flow_packer *p, const char *block, int64_t dim, flow_linear *ret_linear)
{
    static const char *const parts[] = {"q", "k", "v"};
    cf_err err = CF_OK;
    char name[FLOW_NAME_BYTES];
    float *joined = NULL, *bias = NULL;
    TRY(mem_alloc((size_t)(3 * dim * dim), sizeof *joined, &joined));
    TRY(mem_alloc((size_t)(3 * dim), sizeof *bias, &bias));
    for (int64_t i = 0; i < 3; i++) {
        const float *values;
        snprintf(name, sizeof name, "%s.attn.to_%s.weight", block, parts[i]);
        TRY(weights_f32(p->w, name, 2, (const int64_t[]){dim, dim}, &values));
        memcpy(joined + i * dim * dim, values, (size_t)(dim * dim) * sizeof *joined);
        snprintf(name, sizeof name, "%s.attn.to_%s.bias", block, parts[i]);
        TRY(weights_f32(p->w, name, 1, (const int64_t[]){dim}, &values));
        memcpy(bias + i * dim, values, (size_t)dim * sizeof *bias);
    }
    TRY(backend_pack_linear(p->be, joined, 3 * dim, dim, p->operands, GEMM_BULK_BIT, &ret_linear->w));
    TRY(backend_keep(p->be, DTYPE_F32, 1, (const int64_t[]){3 * dim}, &ret_linear->bias));
    TRY(backend_upload(p->be, bias, &ret_linear->bias));
out:
    mem_free(joined);
    mem_free(bias);
    return err;
}

static cf_err pack_block(const flow_packer *p, int64_t block_idx, int64_t dim, flow_block *ret_block)
{
    cf_err err = CF_OK;
    char block[FLOW_NAME_BYTES / 2], name[FLOW_NAME_BYTES];
    snprintf(block, sizeof block, ESTIMATOR "transformer_blocks.%d", (int)block_idx);
    TRY(pack_qkv(p, block, dim, &ret_block->qkv));
    snprintf(name, sizeof name, "%s.attn.to_out.0", block);
    TRY(pack_linear(p, name, dim, dim, &ret_block->out));
    snprintf(name, sizeof name, "%s.ff.ff.0.0", block);
    TRY(pack_linear(p, name, FLOW_FF_MULT * dim, dim, &ret_block->ff_up));
    snprintf(name, sizeof name, "%s.ff.ff.2", block);
    TRY(pack_linear(p, name, dim, FLOW_FF_MULT * dim, &ret_block->ff_down));
out:
    return err;
}

/* Embedding, speaker projection and pre-lookahead: f32 whatever the operands. */
static cf_err pack_front(const flow_packer *p, flow_model *m)
{
    cf_err err = CF_OK;
    const float *values;
    const int64_t look = m->dims.lookahead_channels;
    TRY(pack_table(p, "input_embedding.weight", 2, (const int64_t[]){m->dims.speech_codes, MEL_BINS}, &m->embedding));
    TRY(weights_f32(p->w, "spk_embed_affine_layer.weight", 2, (const int64_t[]){MEL_BINS, SPEAKER_VALUES}, &values));
    TRY(mem_alloc((size_t)MEL_BINS * SPEAKER_VALUES, sizeof *m->speaker_w, &m->speaker_w));
    memcpy(m->speaker_w, values, (size_t)MEL_BINS * SPEAKER_VALUES * sizeof *values);
    TRY(weights_f32(p->w, "spk_embed_affine_layer.bias", 1, (const int64_t[]){MEL_BINS}, &values));
    TRY(mem_alloc(MEL_BINS, sizeof *m->speaker_b, &m->speaker_b));
    memcpy(m->speaker_b, values, MEL_BINS * sizeof *values);
    TRY(pack_conv(p, "pre_lookahead_layer.conv1", (const int64_t[]){look, MEL_BINS, FLOW_LOOK1_KERNEL}, 1,
                  PRECISION_F32, &m->look1));
    TRY(pack_conv(p, "pre_lookahead_layer.conv2", (const int64_t[]){MEL_BINS, look, FLOW_LOOK2_KERNEL}, 1,
                  PRECISION_F32, &m->look2));
out:
    return err;
}

static cf_err pack_estimator(const flow_packer *p, flow_model *m)
{
    cf_err err = CF_OK;
    const int64_t dim = m->dims.dim;
    const int64_t position_dims[3] = {dim, dim / FLOW_POS_GROUPS, FLOW_POS_KERNEL};
    TRY(pack_linear(p, ESTIMATOR "input_embed.proj", dim, FLOW_INPUT_VALUES, &m->input));
    TRY(pack_conv(p, ESTIMATOR "input_embed.conv_pos_embed.conv1.0", position_dims, FLOW_POS_GROUPS, p->operands,
                  &m->position[0]));
    TRY(pack_conv(p, ESTIMATOR "input_embed.conv_pos_embed.conv2.0", position_dims, FLOW_POS_GROUPS, p->operands,
                  &m->position[1]));
    TRY(mem_alloc((size_t)m->dims.depth, sizeof *m->blocks, &m->blocks));
    for (int64_t i = 0; i < m->dims.depth; i++)
        TRY(pack_block(p, i, dim, &m->blocks[i]));
    TRY(pack_linear(p, ESTIMATOR "proj_out", MEL_BINS, dim, &m->output));
out:
    return err;
}

/* Angles are f32 products, as upstream's; their sines are then exact to the last bit but one. */
static cf_err build_rope(const flow_packer *p, flow_model *m)
{
    cf_err err = CF_OK;
    const float *inv_freq;
    float *cosines = NULL, *sines = NULL;
    const size_t count = (size_t)FRAMES_MAX * FLOW_ROPE_PAIRS;
    const int64_t dims[2] = {FRAMES_MAX, FLOW_ROPE_PAIRS};
    TRY(weights_f32(p->w, ESTIMATOR "rotary_embed.inv_freq", 1, (const int64_t[]){FLOW_ROPE_PAIRS}, &inv_freq));
    TRY(mem_alloc(count, sizeof *cosines, &cosines));
    TRY(mem_alloc(count, sizeof *sines, &sines));
    for (size_t i = 0; i < count; i++) {
        const float angle = (float)(i / FLOW_ROPE_PAIRS) * inv_freq[i % FLOW_ROPE_PAIRS];
        cosines[i] = (float)cos((double)angle);
        sines[i] = (float)sin((double)angle);
    }
    TRY(backend_keep(p->be, DTYPE_F32, 2, dims, &m->rope_cos));
    TRY(backend_upload(p->be, cosines, &m->rope_cos));
    TRY(backend_keep(p->be, DTYPE_F32, 2, dims, &m->rope_sin));
    TRY(backend_upload(p->be, sines, &m->rope_sin));
out:
    mem_free(cosines);
    mem_free(sines);
    return err;
}

static cf_err build_noise(backend *be, flow_model *m)
{
    cf_err err = CF_OK;
    float *table = NULL, *by_time = NULL;
    TRY(mem_alloc(NOISE_VALUES, sizeof *table, &table));
    TRY(mem_alloc(NOISE_VALUES, sizeof *by_time, &by_time));
    noise_fill(table);
    for (size_t c = 0; c < MEL_BINS; c++)
        for (size_t f = 0; f < FRAMES_MAX; f++)
            by_time[f * MEL_BINS + c] = table[c * FRAMES_MAX + f];
    TRY(backend_keep(be, DTYPE_F32, 2, (const int64_t[]){FRAMES_MAX, MEL_BINS}, &m->noise));
    TRY(backend_upload(be, by_time, &m->noise));
out:
    mem_free(table);
    mem_free(by_time);
    return err;
}

static cf_err build_frame_idx(backend *be, flow_model *m)
{
    cf_err err = CF_OK;
    int32_t *idx = NULL;
    TRY(mem_alloc(FRAMES_MAX, sizeof *idx, &idx));
    for (int32_t i = 0; i < FRAMES_MAX; i++)
        idx[i] = i;
    TRY(backend_keep(be, DTYPE_I32, 1, (const int64_t[]){FRAMES_MAX}, &m->frame_idx));
    TRY(backend_upload(be, idx, &m->frame_idx));
out:
    mem_free(idx);
    return err;
}

static cf_err build_modulation(const flow_packer *p, flow_model *m)
{
    cf_err err = CF_OK;
    float *table = NULL;
    cfm_grid grid;
    const int64_t line_values = modulation_line_values(&m->dims);
    cfm_grid_init(&grid);
    TRY(mem_alloc((size_t)(CFM_STEPS * line_values), sizeof *table, &table));
    TRY(modulation_fill(p->w, &m->dims, &grid, table));
    TRY(backend_keep(p->be, DTYPE_F32, 2, (const int64_t[]){CFM_STEPS, line_values}, &m->modulation));
    TRY(backend_upload(p->be, table, &m->modulation));
out:
    mem_free(table);
    return err;
}

cf_err flow_model_open(backend *be, weights *w, const flow_dims *dims, precision operands, flow_model **ret_model)
{
    cf_err err = CF_OK;
    flow_model *m = NULL;
    const flow_packer p = {be, w, operands};
    TRY(mem_alloc(1, sizeof *m, &m));
    m->dims = *dims;
    m->operands = operands;
    TRY(pack_front(&p, m));
    TRY(pack_estimator(&p, m));
    TRY(build_rope(&p, m));
    TRY(build_modulation(&p, m));
    TRY(weights_done(w));
    TRY(build_noise(be, m));
    TRY(build_frame_idx(be, m));
    *ret_model = m;
    m = NULL;
out:
    flow_model_close(m);
    return err;
}

void flow_model_close(flow_model *m)
{
    if (m == NULL)
        return;
    mem_free(m->speaker_w);
    mem_free(m->speaker_b);
    mem_free(m->blocks);
    mem_free(m);
}

/* Two network rows per frame (with and without conditions). Live at once in dit.c: residual, normed, attention output
 * [dim] each and q, k, v [3 dim]; before them input [320], and beside them velocity [80] and position indices. The
 * token encoder, which runs before, needs less per frame. Half as much again is the backend's own (converted operands,
 * tiles). */
size_t flow_model_scratch_bytes(const flow_dims *dims, int64_t frames)
{
    const size_t row_values = (size_t)dims->dim * 6 + FLOW_INPUT_VALUES + MEL_BINS + 1;
    const size_t encoder_values = (size_t)dims->lookahead_channels + 8 * MEL_BINS;
    const size_t bytes = (size_t)frames * (2 * row_values + encoder_values) * sizeof(float);
    return bytes + bytes / 2 + ((size_t)64 << 20);
}
