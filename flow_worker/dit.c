/*
 * dit.c - one evaluation of the estimator as a column of ops.
 *
 * Compute thread; takes scratch, owns nothing. Letters: B requests, R packed frames, N = 2R network rows (each request
 * twice, with and without conditions), D model width. The residual stream h and all statistics are f32 whatever the
 * operands of the matrices; what lies between two products is kept in the type of the operands.
 *
 * Fails: CF_ERR_NOMEM when the scratch is exhausted.
 * Source: cosy cosyvoice/flow/DiT/dit.py DiT.forward, modules.py DiTBlock, CausalConvPositionEmbedding, AttnProcessor;
 * x_transformers 2.11.24 apply_rotary_pos_emb (first 64 channels only, so head 0 alone turns) @ace7c47.
 * Differs: AdaLN comes from a table (modulation.h); q, k, v are one product.
 */
#include "flow_worker/dit.h"

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/compute/ops.h"
#include "flow_worker/flow_shapes.h"

/* What the two sequences of each request need, on host and backend. */
typedef struct dit_pass {
    backend *be;
    const flow_model *m;
    op_rows rows; /* 2B sequences: T0, T0, T1, T1, ... */
    int32_t steps[2 * JOBS_PER_MEMBER_MAX];
    int32_t blocks[2 * JOBS_PER_MEMBER_MAX];
    tensor frame_idx; /* [N] i32: position inside the sequence */
    int64_t n, dim;
    dtype operand;                 /* type of what products read */
    tensor h, normed, wide, mixed; /* [N, D], [N, D], [N, 3D] or wider, [N, D]: memory for f32 */
} dit_pass;

static dtype operand_type(precision operands)
{
    return operands == PRECISION_BF16 ? DTYPE_BF16 : operands == PRECISION_FP16 ? DTYPE_F16 : DTYPE_F32;
}

/* The first `columns * n` values of a buffer as [n, columns]: buffers are shared by layers of different width, and by
 * f32 and the narrower type of operands. */
static tensor view_2d(const tensor *t, dtype type, int64_t n, int64_t columns)
{
    CF_ASSERT(n * columns <= tensor_count(t));
    return tensor_2d(t->data, type, n, columns);
}

/* The widest layer: q, k, v, or in small models the joined input. */
static int64_t dit_wide_values(int64_t dim)
{
    return 3 * dim > FLOW_INPUT_VALUES ? 3 * dim : FLOW_INPUT_VALUES;
}

static cf_err pass_prepare(dit_pass *p, const dit_batch *in)
{
    cf_err err = CF_OK;
    const int32_t count = in->rows->count;
    int32_t lengths[2 * JOBS_PER_MEMBER_MAX];
    CF_ASSERT(count <= JOBS_PER_MEMBER_MAX);
    for (int32_t s = 0; s < 2 * count; s++) {
        lengths[s] = rows_length(in->rows, s / 2);
        p->steps[s] = in->steps[s / 2];
        p->blocks[s] = in->blocks[s / 2];
    }
    TRY(backend_rows(p->be, lengths, 2 * count, &p->rows));
    p->n = rows_total(&p->rows);
    p->dim = p->m->dims.dim;
    p->operand = operand_type(p->m->operands);
    TRY(backend_take(p->be, DTYPE_I32, 1, &p->n, &p->frame_idx));
    for (int32_t s = 0; s < 2 * count; s++) {
        tensor part = tensor_rows(&p->frame_idx, p->rows.offs[s], lengths[s]);
        const tensor counted = tensor_rows(&p->m->frame_idx, 0, lengths[s]);
        TRY(backend_copy(p->be, &counted, &part));
    }
    TRY(backend_take_2d(p->be, DTYPE_F32, p->n, p->dim, &p->h));
    TRY(backend_take_2d(p->be, DTYPE_F32, p->n, p->dim, &p->normed));
    TRY(backend_take_2d(p->be, DTYPE_F32, p->n, dit_wide_values(p->dim), &p->wide));
    TRY(backend_take_2d(p->be, DTYPE_F32, p->n, p->dim, &p->mixed));
out:
    return err;
}

static op_modulation pass_modulation(const dit_pass *p)
{
    return (op_modulation){.table = &p->m->modulation, .steps = p->steps, .rows = &p->rows};
}

static cf_err pass_linear(const dit_pass *p, const tensor *x, const flow_linear *l, tensor *y, act_kind act)
{
    return op_linear(p->be,
                     &(op_linear_args){.x = x, .w = l->w, .bias = &l->bias, .y = y, .act = act, .kind = GEMM_BULK});
}

static cf_err pass_layer_norm(const dit_pass *p, tensor *y, int64_t scale_off, int64_t shift_off)
{
    return op_layer_norm_mod(p->be, &(op_layer_norm_mod_args){.x = &p->h,
                                                              .y = y,
                                                              .mod = pass_modulation(p),
                                                              .scale_off = scale_off,
                                                              .shift_off = shift_off,
                                                              .eps = FLOW_NORM_EPS});
}

/* h += gate * (x W^T + bias) */
static cf_err pass_gated(dit_pass *p, const tensor *x, const flow_linear *l, int64_t gate_off)
{
    const op_modulation mod = pass_modulation(p);
    return op_linear(
        p->be,
        &(op_linear_args){
            .x = x, .w = l->w, .bias = &l->bias, .y = &p->h, .kind = GEMM_BULK, .gate = &mod, .gate_off = gate_off});
}

/* Rotates head 0 of q or of k; the other heads carry no position (flow.md 6.5). */
static cf_err pass_rope(const dit_pass *p, tensor *qkv, int64_t first_channel)
{
    return op_rope(p->be, &(op_rope_args){.x = qkv,
                                          .cos_table = &p->m->rope_cos,
                                          .sin_table = &p->m->rope_sin,
                                          .pos = &p->frame_idx,
                                          .first_channel = (int32_t)first_channel,
                                          .head_count = 1,
                                          .adjacent = true});
}

/* Causal in both convolutions: 30 zeros in front of y, and again in front of mish(.).   x, y: [N, D] */
static cf_err pass_position_conv(const dit_pass *p, int conv_idx, const tensor *x, tensor *y)
{
    const flow_linear *l = &p->m->position[conv_idx];
    return op_conv1d(p->be, &(op_conv1d_args){.x = x,
                                              .rows_in = &p->rows,
                                              .w = l->w,
                                              .bias = &l->bias,
                                              .y = y,
                                              .rows_out = &p->rows,
                                              .kernel = FLOW_POS_KERNEL,
                                              .dilation = 1,
                                              .stride = 1,
                                              .pad_left = FLOW_POS_KERNEL - 1,
                                              .repeat = 1,
                                              .groups = FLOW_POS_GROUPS,
                                              .act = ACT_MISH});
}

static cf_err pass_input(dit_pass *p, const dit_batch *in)
{
    cf_err err = CF_OK;
    tensor joined = view_2d(&p->wide, DTYPE_F32, p->n, FLOW_INPUT_VALUES);
    TRY(op_dit_input(p->be, &(op_dit_input_args){.x = in->x,
                                                 .cond = in->cond,
                                                 .mu = in->mu,
                                                 .spk = in->spk,
                                                 .y = &joined,
                                                 .rows = in->rows}));           /* [N, 320] */
    TRY(pass_linear(p, &joined, &p->m->input, &p->h, ACT_NONE));                /* [N, D] */
    TRY(pass_position_conv(p, 0, &p->h, &p->normed));                           /* [N, D] */
    TRY(pass_position_conv(p, 1, &p->normed, &p->mixed));                       /* [N, D] */
    TRY(op_add(p->be, &(op_add_args){.a = &p->mixed, .b = &p->h, .y = &p->h})); /* [N, D] */
out:
    return err;
}

static cf_err pass_block(dit_pass *p, const flow_block *b, int64_t mod_off)
{
    cf_err err = CF_OK;
    const int64_t d = p->dim;
    tensor qkv = view_2d(&p->wide, p->operand, p->n, 3 * d);
    tensor mid = view_2d(&p->wide, p->operand, p->n, FLOW_FF_MULT * d);
    tensor normed = view_2d(&p->normed, p->operand, p->n, d), mixed = view_2d(&p->mixed, p->operand, p->n, d);
    TRY(pass_layer_norm(p, &normed, mod_off + FLOW_MOD_SCALE_ATTN * d, mod_off + FLOW_MOD_SHIFT_ATTN * d));
    TRY(pass_linear(p, &normed, &b->qkv, &qkv, ACT_NONE)); /* [N, 3D] */
    TRY(pass_rope(p, &qkv, 0));
    TRY(pass_rope(p, &qkv, d));
    TRY(op_attn_block(p->be, &(op_attn_block_args){.qkv = &qkv,
                                                   .y = &mixed,
                                                   .rows = &p->rows,
                                                   .block = p->blocks,
                                                   .heads = (int32_t)p->m->dims.heads,
                                                   .operands = p->m->operands})); /* [N, D] */
    TRY(pass_gated(p, &mixed, &b->out, mod_off + FLOW_MOD_GATE_ATTN * d));        /* h: [N, D] */
    TRY(pass_layer_norm(p, &normed, mod_off + FLOW_MOD_SCALE_FF * d, mod_off + FLOW_MOD_SHIFT_FF * d));
    TRY(pass_linear(p, &normed, &b->ff_up, &mid, ACT_GELU_TANH));          /* [N, 2D] */
    TRY(pass_gated(p, &mid, &b->ff_down, mod_off + FLOW_MOD_GATE_FF * d)); /* h: [N, D] */
out:
    return err;
}

cf_err dit_velocity(backend *be, const flow_model *m, const dit_batch *in, tensor *ret_v)
{
    cf_err err = CF_OK;
    dit_pass p = {.be = be, .m = m};
    const size_t mark = backend_scratch_mark(be);
    const int64_t block_values = FLOW_MOD_PER_BLOCK * m->dims.dim, out_off = m->dims.depth * block_values;
    TRY(pass_prepare(&p, in));
    TRY(pass_input(&p, in));
    for (int64_t i = 0; i < m->dims.depth; i++)
        TRY(pass_block(&p, &m->blocks[i], i * block_values));
    tensor normed = view_2d(&p.normed, p.operand, p.n, p.dim);
    TRY(pass_layer_norm(&p, &normed, out_off + FLOW_MOD_OUT_SCALE * p.dim, out_off + FLOW_MOD_OUT_SHIFT * p.dim));
    TRY(pass_linear(&p, &normed, &m->output, ret_v, ACT_NONE)); /* [N, 80] */
out:
    backend_scratch_reset(be, mark);
    return err;
}
