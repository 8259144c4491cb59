/*
 * speech_tokenizer.c - the token encoder: its weights out of the file, its forward pass as a list of ops. The
 * backend's thread; owns the object, the backend owns vectors and handles.
 *
 *   mel [T, 128] -> conv 3/2, gelu -> conv 3/2, gelu -> blocks -> [T/4, 8] -> three levels each -> token
 *   block: h += out(attention(rope(q), rope(k), v)) + memory(v) + v;   h += mlp(norm(h))
 *
 * Fails: CF_ERR_NOTFOUND, CF_ERR_MISMATCH, CF_ERR_UNSUPPORTED (binding), CF_ERR_NUMERIC, CF_ERR_NOMEM.
 * Source: S3Tokenizer s3tokenizer/model_v2.py AudioEncoderV2, ResidualAttentionBlock, FSMNMultiHeadAttention,
 * FSQCodebook; depth, eps and the missing bias of the keys as in the released graph (voice.md 3).
 */
#include "enroll/speech_tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/compute/ops.h"
#include "enroll/onnx_bind.h"

#define HEAD_VALUES 64
#define ROPE_PAIRS  (HEAD_VALUES / 2)
#define ROPE_THETA  10000.0
#define MEMORY_TAPS 31
#define DIGITS      8 /* base 3, least significant first */
#define LEVEL_SCALE 0.9990000128746033f
#define BLOCKS_MAX  64
#define WIDTH_MAX   8192
/* Places among the anonymous initializers of a file without node names. */
#define ORDER_BLOCK_0 4
#define ORDER_BLOCK   15

typedef struct norm {
    tensor gain, bias; /* [C] */
    float eps;
} norm;

typedef struct layer {
    weight *w;
    tensor bias; /* [n_out] */
} layer;

typedef struct block {
    norm attn_norm, mlp_norm;
    layer qkv, out, up, down;
    tensor memory; /* [31, C] */
} block;

struct speech_tokenizer {
    backend *be; /* borrowed */
    int64_t width, hidden;
    int32_t heads, block_count;
    layer conv1, conv2, project;
    block *blocks; /* [block_count], owned */
};

/* ---- weights ---- */

static cf_err keep_vector(backend *be, const float *values, int64_t count, tensor *ret_tensor)
{
    cf_err err;
    TRY(backend_keep(be, DTYPE_F32, 1, &count, ret_tensor));
    TRY(backend_upload(be, values, ret_tensor));
out:
    return err;
}

static cf_err bind_vector(speech_tokenizer *t, onnx_binder *b, const wanted *w, tensor *ret_tensor, bound *ret_bound)
{
    cf_err err;
    float *values = NULL;
    TRY(binder_find(b, w, ret_bound));
    TRY(binder_values(b, ret_bound->tensor, &values));
    TRY(keep_vector(t->be, values, ret_bound->tensor->count, ret_tensor));
out:
    mem_free(values);
    return err;
}

/* convN of the front: 3 taps, stride 2, one row of padding. */
static cf_err bind_front(speech_tokenizer *t, onnx_binder *b, int number, int64_t c_in, layer *ret_layer)
{
    cf_err err;
    char path[BIND_PATH_BYTES];
    bound found, bias;
    const int order = 2 * (number - 1);
    snprintf(path, sizeof path, "conv%d/Conv", number);
    const wanted w = {"Conv", path, 1, NULL, order, 3, {t->width > 0 ? t->width : -1, c_in, 3}};
    TRY(binder_find(b, &w, &found));
    t->width = found.tensor->dims[0];
    TRY(binder_check_ints(b, found.node, "strides", (const int64_t[]){2}, 1, 1));
    TRY(binder_check_ints(b, found.node, "pads", (const int64_t[]){1, 1}, 2, 0));
    TRY(binder_check_ints(b, found.node, "dilations", (const int64_t[]){1}, 1, 1));
    TRY(binder_check_ints(b, found.node, "group", (const int64_t[]){1}, 1, 1));
    TRY(backend_map_conv(t->be, found.tensor->data, t->width, c_in, 3, &ret_layer->w));
    TRY(bind_vector(t, b, &(wanted){"Conv", path, 2, NULL, order + 1, 1, {t->width}}, &ret_layer->bias, &bias));
out:
    return err;
}

static cf_err bind_norm(speech_tokenizer *t, onnx_binder *b, const char *path, int order, norm *ret_norm)
{
    cf_err err;
    bound found;
    const wanted gain = {"LayerNormalization", path, 1, NULL, order, 1, {t->width}};
    const wanted bias = {"LayerNormalization", path, 2, NULL, order + 1, 1, {t->width}};
    TRY(bind_vector(t, b, &gain, &ret_norm->gain, &found));
    TRY(bind_vector(t, b, &bias, &ret_norm->bias, &found));
    const onnx_attribute *eps = onnx_node_attribute(found.node, "epsilon");
    ret_norm->eps = eps ? eps->f : 1e-5f; /* the operator's default */
    if (ret_norm->eps != 1e-5f && ret_norm->eps != 1e-6f)
        FAIL(CF_ERR_MISMATCH, "%s: node %s: epsilon %g, expected 1e-5 or 1e-6", onnx_path(b->file), found.node->name,
             (double)ret_norm->eps);
out:
    return err;
}

/* A matrix of MatMul, [k_in, n_out], left where it is. */
static cf_err bind_matrix(onnx_binder *b, const char *path, int order, int64_t k_in, int64_t n_out,
                          weight_part *ret_part)
{
    cf_err err;
    char full[BIND_PATH_BYTES];
    bound found;
    snprintf(full, sizeof full, "%s/MatMul", path);
    TRY(binder_find(b, &(wanted){"MatMul", full, 1, NULL, order, 2, {k_in, n_out}}, &found));
    *ret_part = (weight_part){.data = found.tensor->data, .n_out = found.tensor->dims[1]};
out:
    return err;
}

static cf_err bind_bias(onnx_binder *b, const char *path, const char *name, int order, int64_t n_out,
                        float **ret_values)
{
    cf_err err;
    char full[BIND_PATH_BYTES];
    bound found;
    snprintf(full, sizeof full, "%s/Add", path);
    TRY(binder_find(b, &(wanted){"Add", full, BIND_CONSTANT, name, order, 1, {n_out}}, &found));
    TRY(binder_values(b, found.tensor, ret_values));
out:
    return err;
}

static cf_err bind_layer(speech_tokenizer *t, onnx_binder *b, const char *path, int order, int64_t k_in, int64_t n_out,
                         layer *ret_layer)
{
    cf_err err;
    weight_part part;
    float *bias = NULL;
    TRY(bind_matrix(b, path, order + 1, k_in, n_out, &part));
    TRY(bind_bias(b, path, NULL, order, part.n_out, &bias));
    TRY(backend_map_linear(t->be, &part, 1, ORDER_IN_OUT, k_in, &ret_layer->w));
    TRY(keep_vector(t->be, bias, part.n_out, &ret_layer->bias));
out:
    mem_free(bias);
    return err;
}

/* Queries, keys and values side by side; keys have no bias. */
static cf_err bind_qkv(speech_tokenizer *t, onnx_binder *b, const char *prefix, int order, layer *ret_layer)
{
    cf_err err;
    char path[BIND_PATH_BYTES];
    weight_part parts[3];
    float *query = NULL, *value = NULL, *all = NULL;
    const int64_t width = t->width;
    snprintf(path, sizeof path, "%s/attn/query", prefix);
    TRY(bind_matrix(b, path, order + 1, width, width, &parts[0]));
    TRY(bind_bias(b, path, NULL, order, width, &query));
    snprintf(path, sizeof path, "%s/attn/key", prefix);
    TRY(bind_matrix(b, path, order + 2, width, width, &parts[1]));
    snprintf(path, sizeof path, "%s/attn/value", prefix);
    TRY(bind_matrix(b, path, order + 4, width, width, &parts[2]));
    TRY(bind_bias(b, path, NULL, order + 3, width, &value));
    TRY(mem_alloc((size_t)(3 * width), sizeof *all, &all));
    memcpy(all, query, (size_t)width * sizeof *all);
    memcpy(all + 2 * width, value, (size_t)width * sizeof *all);
    TRY(backend_map_linear(t->be, parts, 3, ORDER_IN_OUT, width, &ret_layer->w));
    TRY(keep_vector(t->be, all, 3 * width, &ret_layer->bias));
out:
    mem_free(query);
    mem_free(value);
    mem_free(all);
    return err;
}

static wanted memory_wanted(int block_idx, int64_t width, char path[BIND_PATH_BYTES], char name[BIND_PATH_BYTES])
{
    snprintf(path, BIND_PATH_BYTES, "blocks.%d/attn/fsmn_block/Conv", block_idx);
    snprintf(name, BIND_PATH_BYTES, "blocks.%d.attn.fsmn_block.weight", block_idx);
    return (wanted){"Conv", path, 1, name, 0, 3, {width, 1, MEMORY_TAPS}};
}

/* [C, 1, 31] in the file, [31, C] for the op. */
static cf_err bind_memory(speech_tokenizer *t, onnx_binder *b, int block_idx, tensor *ret_memory)
{
    cf_err err;
    char path[BIND_PATH_BYTES], name[BIND_PATH_BYTES];
    bound found;
    float *values = NULL, *swapped = NULL;
    const wanted w = memory_wanted(block_idx, t->width, path, name);
    TRY(binder_find(b, &w, &found));
    TRY(binder_check_ints(b, found.node, "group", &t->width, 1, 1));
    TRY(binder_check_ints(b, found.node, "strides", (const int64_t[]){1}, 1, 1));
    TRY(binder_check_ints(b, found.node, "dilations", (const int64_t[]){1}, 1, 1));
    TRY(binder_values(b, found.tensor, &values));
    TRY(mem_alloc((size_t)found.tensor->count, sizeof *swapped, &swapped));
    for (int64_t c = 0; c < t->width; c++)
        for (int k = 0; k < MEMORY_TAPS; k++)
            swapped[k * t->width + c] = values[c * MEMORY_TAPS + k];
    TRY(backend_keep(t->be, DTYPE_F32, 2, (const int64_t[]){MEMORY_TAPS, t->width}, ret_memory));
    TRY(backend_upload(t->be, swapped, ret_memory));
out:
    mem_free(values);
    mem_free(swapped);
    return err;
}

/* "mlp/mlp.0" repeats the container's name, as PyTorch's exporter does; other exporters leave it out. */
static cf_err bind_mlp(speech_tokenizer *t, onnx_binder *b, const char *prefix, int order, block *ret_block)
{
    cf_err err;
    char up[BIND_PATH_BYTES], down[BIND_PATH_BYTES], probe[BIND_PATH_BYTES];
    snprintf(probe, sizeof probe, "%s/mlp/mlp.0/MatMul", prefix);
    const bool repeated = binder_has(b, &(wanted){.op = "MatMul", .path = probe});
    snprintf(up, sizeof up, repeated ? "%s/mlp/mlp.0" : "%s/mlp.0", prefix);
    snprintf(down, sizeof down, repeated ? "%s/mlp/mlp.2" : "%s/mlp.2", prefix);
    TRY(bind_layer(t, b, up, order, t->width, t->hidden > 0 ? t->hidden : -1, &ret_block->up));
    t->hidden = ret_block->up.bias.dims[0];
    TRY(bind_layer(t, b, down, order + 2, t->hidden, t->width, &ret_block->down));
out:
    return err;
}

static cf_err bind_block(speech_tokenizer *t, onnx_binder *b, int block_idx)
{
    cf_err err;
    char prefix[32], path[BIND_PATH_BYTES];
    block *k = &t->blocks[block_idx];
    const int order = ORDER_BLOCK_0 + ORDER_BLOCK * block_idx;
    snprintf(prefix, sizeof prefix, "blocks.%d", block_idx);
    snprintf(path, sizeof path, "%s/attn_ln/LayerNormalization", prefix);
    TRY(bind_norm(t, b, path, order, &k->attn_norm));
    TRY(bind_qkv(t, b, prefix, order + 2, &k->qkv));
    snprintf(path, sizeof path, "%s/attn/out", prefix);
    TRY(bind_layer(t, b, path, order + 7, t->width, t->width, &k->out));
    snprintf(path, sizeof path, "%s/mlp_ln/LayerNormalization", prefix);
    TRY(bind_norm(t, b, path, order + 9, &k->mlp_norm));
    TRY(bind_mlp(t, b, prefix, order + 11, k));
    TRY(bind_memory(t, b, block_idx, &k->memory));
out:
    return err;
}

static cf_err bind_project(speech_tokenizer *t, onnx_binder *b)
{
    cf_err err;
    weight_part part;
    float *bias = NULL;
    const int order = ORDER_BLOCK_0 + ORDER_BLOCK * t->block_count;
    TRY(bind_matrix(b, "project_in", order, t->width, DIGITS, &part));
    TRY(bind_bias(b, "project_in", "quantizer.project_in.bias", 0, DIGITS, &bias));
    TRY(backend_map_linear(t->be, &part, 1, ORDER_IN_OUT, t->width, &t->project.w));
    TRY(keep_vector(t->be, bias, DIGITS, &t->project.bias));
out:
    mem_free(bias);
    return err;
}

/* What the weights do not tell: that nothing else is computed with them. */
static cf_err check_graph(const speech_tokenizer *t, const onnx_binder *b)
{
    cf_err err;
    const size_t blocks = (size_t)t->block_count;
    TRY(binder_check_rest(b));
    TRY(binder_check_nodes(b, "Conv", 2 + blocks));
    TRY(binder_check_nodes(b, "LayerNormalization", 2 * blocks));
    TRY(binder_check_nodes(b, "MatMul", 8 * blocks + 1)); /* six layers, scores, values */
    TRY(binder_check_nodes(b, "Softmax", blocks));
out:
    return err;
}

static cf_err bind_all(speech_tokenizer *t, onnx_binder *b)
{
    cf_err err;
    char path[BIND_PATH_BYTES], name[BIND_PATH_BYTES];
    TRY(bind_front(t, b, 1, TOKEN_MEL_BANDS, &t->conv1));
    if (t->width % HEAD_VALUES != 0 || t->width > WIDTH_MAX)
        FAIL(CF_ERR_MISMATCH, "%s: a width of %lld, expected a multiple of %d up to %d", onnx_path(b->file),
             (long long)t->width, HEAD_VALUES, WIDTH_MAX);
    t->heads = (int32_t)(t->width / HEAD_VALUES);
    TRY(bind_front(t, b, 2, t->width, &t->conv2));
    for (;; t->block_count++) {
        const wanted w = memory_wanted(t->block_count, t->width, path, name);
        if (!binder_has(b, &w))
            break;
        if (t->block_count == BLOCKS_MAX)
            FAIL(CF_ERR_LIMIT, "%s: more than %d blocks", onnx_path(b->file), BLOCKS_MAX);
    }
    if (t->block_count == 0)
        FAIL(CF_ERR_NOTFOUND, "%s: no Conv node .../%s: not a version 3 speech tokenizer", onnx_path(b->file), path);
    TRY(mem_alloc((size_t)t->block_count, sizeof *t->blocks, &t->blocks));
    for (int i = 0; i < t->block_count; i++)
        TRY(bind_block(t, b, i));
    TRY(bind_project(t, b));
    TRY(check_graph(t, b));
out:
    return err;
}

cf_err speech_tokenizer_open(backend *be, const onnx *file, speech_tokenizer **ret_tokenizer)
{
    cf_err err;
    speech_tokenizer *t = NULL;
    onnx_binder b = {0};
    TRY(mem_alloc(1, sizeof *t, &t));
    t->be = be;
    TRY(binder_init(file, &b));
    TRY(bind_all(t, &b));
    *ret_tokenizer = t;
    t = NULL;
out:
    binder_done(&b);
    speech_tokenizer_close(t);
    return err;
}

void speech_tokenizer_close(speech_tokenizer *t)
{
    if (!t)
        return;
    mem_free(t->blocks);
    mem_free(t);
}

void speech_tokenizer_describe(const speech_tokenizer *t, char *ret_text, size_t text_bytes)
{
    snprintf(ret_text, text_bytes, "%d blocks of %lld, %d heads", t->block_count, (long long)t->width, t->heads);
}

/* ---- forward ---- */

/* What every op of one run needs: T positions of width C. */
typedef struct run {
    backend *be;
    const speech_tokenizer *t;
    op_rows rows; /* of positions */
    tensor cosine, sine, positions;
    tensor h; /* [T, C], the residual stream */
} run;

/* Angles are products of f32 and their cosines rounded to f32, as upstream keeps them. */
static cf_err make_rope(run *r, int64_t count)
{
    cf_err err;
    float *tables = NULL;
    int32_t *positions = NULL;
    TRY(mem_alloc((size_t)(2 * count * ROPE_PAIRS), sizeof *tables, &tables));
    TRY(mem_alloc((size_t)count, sizeof *positions, &positions));
    for (int64_t p = 0; p < count; p++) {
        positions[p] = (int32_t)p;
        for (int j = 0; j < ROPE_PAIRS; j++) {
            const float frequency = 1.0f / (float)pow(ROPE_THETA, (double)(2 * j) / HEAD_VALUES);
            const float angle = (float)p * frequency;
            tables[p * ROPE_PAIRS + j] = (float)cos((double)angle);
            tables[(count + p) * ROPE_PAIRS + j] = (float)sin((double)angle);
        }
    }
    TRY(backend_take_2d(r->be, DTYPE_F32, count, ROPE_PAIRS, &r->cosine));
    TRY(backend_take_2d(r->be, DTYPE_F32, count, ROPE_PAIRS, &r->sine));
    TRY(backend_take(r->be, DTYPE_I32, 1, &count, &r->positions));
    TRY(backend_upload(r->be, tables, &r->cosine));
    TRY(backend_upload(r->be, tables + count * ROPE_PAIRS, &r->sine));
    TRY(backend_upload(r->be, positions, &r->positions));
out:
    mem_free(tables);
    mem_free(positions);
    return err;
}

static cf_err strided_conv(run *r, const layer *l, const tensor *x, const op_rows *rows_in, const op_rows *rows_out,
                           tensor *y)
{
    return op_conv1d(r->be, &(op_conv1d_args){.x = x,
                                              .rows_in = rows_in,
                                              .w = l->w,
                                              .bias = &l->bias,
                                              .y = y,
                                              .rows_out = rows_out,
                                              .kernel = 3,
                                              .dilation = 1,
                                              .stride = 2,
                                              .pad_left = 1,
                                              .repeat = 1,
                                              .groups = 1,
                                              .act = ACT_GELU});
}

/* mel -> r->h */
static cf_err encode_front(run *r, const frame_table *mel)
{
    cf_err err;
    const int32_t frames = (int32_t)mel->frames, halved = (frames + 1) / 2, positions = (halved + 1) / 2;
    op_rows mel_rows, half_rows;
    tensor x, half;
    TRY(backend_rows(r->be, &frames, 1, &mel_rows));
    TRY(backend_rows(r->be, &halved, 1, &half_rows));
    TRY(backend_rows(r->be, &positions, 1, &r->rows));
    TRY(backend_take_2d(r->be, DTYPE_F32, positions, r->t->width, &r->h));
    TRY(backend_take_2d(r->be, DTYPE_F32, frames, TOKEN_MEL_BANDS, &x));
    TRY(backend_take_2d(r->be, DTYPE_F32, halved, r->t->width, &half));
    TRY(backend_upload(r->be, mel->values, &x));
    TRY(strided_conv(r, &r->t->conv1, &x, &mel_rows, &half_rows, &half));   /* [T, 128] -> [T/2, C] */
    TRY(strided_conv(r, &r->t->conv2, &half, &half_rows, &r->rows, &r->h)); /* [T/2, C] -> [T/4, C] */
out:
    return err;
}

static cf_err linear(run *r, const layer *l, const tensor *x, act_kind act, tensor *y)
{
    return op_linear(r->be,
                     &(op_linear_args){.x = x, .w = l->w, .bias = &l->bias, .y = y, .act = act, .kind = GEMM_BULK});
}

static cf_err normalize(run *r, const norm *n, const tensor *x, tensor *y)
{
    return op_layer_norm(r->be,
                         &(op_layer_norm_args){.x = x, .gain = &n->gain, .bias = &n->bias, .y = y, .eps = n->eps});
}

static cf_err add_to_stream(run *r, const tensor *y)
{
    return op_add(r->be, &(op_add_args){.a = &r->h, .b = y, .y = &r->h});
}

static cf_err attend(run *r, const block *k)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(r->be);
    const int64_t count = r->h.dims[0], width = r->t->width;
    const int32_t whole = 0; /* no blocks of keys: all see all */
    tensor x, qkv, seen, y;
    TRY(backend_take_2d(r->be, DTYPE_F32, count, width, &x));
    TRY(backend_take_2d(r->be, DTYPE_F32, count, 3 * width, &qkv));
    TRY(backend_take_2d(r->be, DTYPE_F32, count, width, &seen));
    TRY(backend_take_2d(r->be, DTYPE_F32, count, width, &y));
    TRY(normalize(r, &k->attn_norm, &r->h, &x));  /* [T, C] */
    TRY(linear(r, &k->qkv, &x, ACT_NONE, &qkv));  /* [T, 3C] */
    TRY(op_rope(r->be, &(op_rope_args){.x = &qkv, /* queries and keys */
                                       .cos_table = &r->cosine,
                                       .sin_table = &r->sine,
                                       .pos = &r->positions,
                                       .first_channel = 0,
                                       .head_count = 2 * r->t->heads,
                                       .adjacent = false}));
    TRY(op_attn_block(r->be, &(op_attn_block_args){
                                 .qkv = &qkv, .y = &seen, .rows = &r->rows, .block = &whole, .heads = r->t->heads}));
    TRY(linear(r, &k->out, &seen, ACT_NONE, &y)); /* [T, C] */
    TRY(op_fsmn(r->be, &(op_fsmn_args){.x = &qkv, /* the values, not rotated */
                                       .w = &k->memory,
                                       .y = &y,
                                       .rows = &r->rows,
                                       .first_channel = (int32_t)(2 * width)}));
    TRY(add_to_stream(r, &y));
out:
    backend_scratch_reset(r->be, mark);
    return err;
}

static cf_err think(run *r, const block *k)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(r->be);
    const int64_t count = r->h.dims[0];
    tensor x, up;
    TRY(backend_take_2d(r->be, DTYPE_F32, count, r->t->width, &x));
    TRY(backend_take_2d(r->be, DTYPE_F32, count, r->t->hidden, &up));
    TRY(normalize(r, &k->mlp_norm, &r->h, &x));  /* [T, C] */
    TRY(linear(r, &k->up, &x, ACT_GELU, &up));   /* [T, F] */
    TRY(linear(r, &k->down, &up, ACT_NONE, &x)); /* [T, C] */
    TRY(add_to_stream(r, &x));
out:
    backend_scratch_reset(r->be, mark);
    return err;
}

/* Three levels a value, eight values a token. rintf rounds half to even, as the graph's Round does. */
static cf_err quantize(const float *z, int64_t count, int32_t *ret_tokens)
{
    for (int64_t i = 0; i < count; i++) {
        int32_t token = 0;
        for (int d = DIGITS - 1; d >= 0; d--) {
            const float value = z[i * DIGITS + d];
            if (!isfinite(value))
                return err_set(CF_ERR_NUMERIC, "speech tokenizer: the output of token %lld is not finite",
                               (long long)i);
            const float level = rintf((float)tanh((double)value) * LEVEL_SCALE) + 1.0f;
            token = token * 3 + (int32_t)level;
        }
        CF_ASSERT(token >= 0 && token < SPEECH_CODES);
        ret_tokens[i] = token;
    }
    return CF_OK;
}

cf_err speech_tokenizer_run(speech_tokenizer *t, const frame_table *mel, int32_t *ret_tokens)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(t->be);
    run r = {.be = t->be, .t = t};
    float *z = NULL;
    tensor digits;

    CF_ASSERT(mel->bands == TOKEN_MEL_BANDS && mel->frames >= 1);
    const int64_t count = speech_tokenizer_tokens(mel->frames);
    TRY(encode_front(&r, mel));
    TRY(make_rope(&r, count));
    for (int i = 0; i < t->block_count; i++) {
        TRY(attend(&r, &t->blocks[i]));
        TRY(think(&r, &t->blocks[i]));
    }
    TRY(backend_take_2d(t->be, DTYPE_F32, count, DIGITS, &digits));
    TRY(linear(&r, &t->project, &r.h, ACT_NONE, &digits));
    TRY(mem_alloc((size_t)(count * DIGITS), sizeof *z, &z));
    TRY(backend_download(t->be, &digits, z));
    TRY(quantize(z, count, ret_tokens));
out:
    mem_free(z);
    backend_scratch_reset(t->be, mark);
    return err;
}
