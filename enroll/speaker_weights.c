/*
 * speaker_weights.c - CAM++ out of its file: which tensor is which, normalisations folded, the graph checked. The
 * backend's thread; matrices stay in the file where they are used as they lie.
 *
 * The exporter folded every normalisation that follows a convolution, and with it the weights lost their names; those
 * that precede one are left as nodes and become one product and one sum here.
 * Fails: see onnx_bind.h. Source: 3D-Speaker speakerlab/models/campplus/DTDNN.py, layers.py; voice.md 4.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "enroll/onnx_bind.h"
#include "enroll/speaker_network.h"

#define CHANNELS_MAX 16384
/* Places among the anonymous initializers of a file without node names, in pairs of weight and bias. */
#define ORDER_TDNN 24

static cf_err keep_vector(backend *be, const float *values, int64_t count, tensor *ret_tensor)
{
    cf_err err;
    TRY(backend_keep(be, DTYPE_F32, 1, &count, ret_tensor));
    TRY(backend_upload(be, values, ret_tensor));
out:
    return err;
}

/* A convolution along time: what it has to look like. */
typedef struct conv_want {
    const char *path; /* without "/Conv" */
    const char *name; /* of its weight where nodes have none; NULL: anonymous */
    int order;        /* of its weight; the bias follows */
    int64_t n_out, c_in, kernel;
    int64_t stride, pad, dilation;
    bool has_bias;
} conv_want;

static cf_err check_conv(const onnx_binder *b, const onnx_node *n, const conv_want *w)
{
    cf_err err;
    TRY(binder_check_ints(b, n, "strides", &w->stride, 1, 1));
    TRY(binder_check_ints(b, n, "pads", (const int64_t[]){w->pad, w->pad}, 2, 0));
    TRY(binder_check_ints(b, n, "dilations", &w->dilation, 1, 1));
    TRY(binder_check_ints(b, n, "group", (const int64_t[]){1}, 1, 1));
    const int expected = w->has_bias ? 3 : 2;
    if (n->input_count != expected)
        FAIL(CF_ERR_MISMATCH, "%s: node .../%s/Conv: %d inputs, expected %d", onnx_path(b->file), w->path,
             n->input_count, expected);
out:
    return err;
}

/* The bias of a convolution of any rank, from the node's third input. */
static cf_err bind_conv_bias(speaker_network *s, onnx_binder *b, const conv_want *w, int64_t n_out, tensor *ret_bias)
{
    cf_err err;
    char path[BIND_PATH_BYTES], name[BIND_PATH_BYTES];
    bound found;
    float *values = NULL;
    snprintf(path, sizeof path, "%s/Conv", w->path);
    const size_t stem = w->name ? strlen(w->name) - strlen("weight") : 0;
    snprintf(name, sizeof name, "%.*sbias", (int)stem, w->name ? w->name : "");
    TRY(binder_find(b, &(wanted){"Conv", path, 2, w->name ? name : NULL, w->order + 1, 1, {n_out}}, &found));
    TRY(binder_values(b, found.tensor, &values));
    TRY(keep_vector(s->be, values, n_out, ret_bias));
out:
    mem_free(values);
    return err;
}

static cf_err find_conv(onnx_binder *b, const conv_want *w, bound *ret_bound)
{
    cf_err err;
    char path[BIND_PATH_BYTES];
    snprintf(path, sizeof path, "%s/Conv", w->path);
    TRY(binder_find(b, &(wanted){"Conv", path, 1, w->name, w->order, 3, {w->n_out, w->c_in, w->kernel}}, ret_bound));
    TRY(check_conv(b, ret_bound->node, w));
out:
    return err;
}

/* One tap is a layer, more a filter bank; both stay in the file. */
static cf_err bind_conv(speaker_network *s, onnx_binder *b, const conv_want *w, filter *ret_filter)
{
    cf_err err;
    bound found;
    TRY(find_conv(b, w, &found));
    const int64_t n_out = found.tensor->dims[0];
    const weight_part part = {.data = found.tensor->data, .n_out = n_out};
    if (w->kernel == 1)
        TRY(backend_map_linear(s->be, &part, 1, ORDER_OUT_IN, w->c_in, &ret_filter->w));
    else
        TRY(backend_map_conv(s->be, part.data, n_out, w->c_in, w->kernel, &ret_filter->w));
    if (w->has_bias)
        TRY(bind_conv_bias(s, b, w, n_out, &ret_filter->bias));
    ret_filter->n_out = (int32_t)n_out;
out:
    return err;
}

/* ---- the front, over frequency and time ---- */

static const struct {
    const char *path;
    int32_t kernel, stride;
} HEAD[HEAD_CONVS] = {
    {"head/conv1", 3, 1},
    {"head/layer1/layer1.0/conv1", 3, 2},
    {"head/layer1/layer1.0/conv2", 3, 1},
    {"head/layer1/layer1.0/shortcut/shortcut.0", 1, 2},
    {"head/layer1/layer1.1/conv1", 3, 1},
    {"head/layer1/layer1.1/conv2", 3, 1},
    {"head/layer2/layer2.0/conv1", 3, 2},
    {"head/layer2/layer2.0/conv2", 3, 1},
    {"head/layer2/layer2.0/shortcut/shortcut.0", 1, 2},
    {"head/layer2/layer2.1/conv1", 3, 1},
    {"head/layer2/layer2.1/conv2", 3, 1},
    {"head/conv2", 3, 2},
};

static cf_err bind_head_conv(speaker_network *s, onnx_binder *b, int idx)
{
    cf_err err;
    char path[BIND_PATH_BYTES];
    bound found;
    const int64_t kernel = HEAD[idx].kernel, pad = kernel / 2, channels = s->head_channels;
    const conv_want w = {.path = HEAD[idx].path, .order = 2 * idx, .has_bias = true};
    snprintf(path, sizeof path, "%s/Conv", HEAD[idx].path);
    const wanted find = {"Conv", path, 1, NULL, 2 * idx, 4, {idx ? channels : -1, idx ? channels : 1, kernel, kernel}};
    TRY(binder_find(b, &find, &found));
    s->head_channels = (int32_t)found.tensor->dims[0];
    TRY(binder_check_ints(b, found.node, "strides", (const int64_t[]){HEAD[idx].stride, 1}, 2, 1));
    TRY(binder_check_ints(b, found.node, "pads", (const int64_t[]){pad, pad, pad, pad}, 4, 0));
    TRY(binder_check_ints(b, found.node, "dilations", (const int64_t[]){1, 1}, 2, 1));
    TRY(binder_check_ints(b, found.node, "group", (const int64_t[]){1}, 1, 1));
    TRY(backend_map_conv(s->be, found.tensor->data, s->head_channels, idx ? channels : 1, kernel * kernel,
                         &s->head[idx].w));
    TRY(bind_conv_bias(s, b, &w, s->head_channels, &s->head[idx].bias));
    s->head[idx].n_out = s->head_channels;
out:
    return err;
}

/* The front ends with [channel][frequency] in the file's order; rows here hold [frequency][channel]. */
static cf_err bind_tdnn(speaker_network *s, onnx_binder *b)
{
    cf_err err;
    bound found;
    float *values = NULL, *swapped = NULL;
    const int64_t freqs = FBANK_BANDS / 8, channels = s->head_channels, kernel = 5, c_in = freqs * channels;
    const conv_want w = {.path = "xvector/tdnn/linear",
                         .order = ORDER_TDNN,
                         .n_out = -1,
                         .c_in = c_in,
                         .kernel = 5,
                         .stride = 2,
                         .pad = 2,
                         .dilation = 1,
                         .has_bias = true};
    TRY(find_conv(b, &w, &found));
    const int64_t n_out = found.tensor->dims[0];
    TRY(binder_values(b, found.tensor, &values));
    TRY(mem_alloc((size_t)(n_out * c_in * kernel), sizeof *swapped, &swapped));
    for (int64_t o = 0; o < n_out; o++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t f = 0; f < freqs; f++)
                memcpy(swapped + ((o * freqs + f) * channels + c) * kernel,
                       values + ((o * channels + c) * freqs + f) * kernel, (size_t)kernel * sizeof *values);
    TRY(backend_pack_conv(s->be, swapped, n_out, c_in, kernel, 1, PRECISION_F32, &s->tdnn.w));
    TRY(bind_conv_bias(s, b, &w, n_out, &s->tdnn.bias));
    s->tdnn.n_out = (int32_t)n_out;
out:
    mem_free(values);
    mem_free(swapped);
    return err;
}

/* ---- normalisations ---- */

/* gain, bias, mean, variance of a BatchNormalization node, in that order of its inputs. */
static cf_err bind_statistics(onnx_binder *b, const char *path, int64_t channels, float *ret_values[4], float *ret_eps)
{
    static const char *const NAMES[] = {"weight", "bias", "running_mean", "running_var"};
    cf_err err = CF_OK;
    char full[BIND_PATH_BYTES], stem[BIND_PATH_BYTES], name[BIND_PATH_BYTES + 16];
    bound found = {0};
    snprintf(full, sizeof full, "%s/BatchNormalization", path);
    snprintf(stem, sizeof stem, "%s", path);
    for (char *p = stem; *p; p++)
        *p = *p == '/' ? '.' : *p;
    for (int i = 3; i >= 0; i--) {
        snprintf(name, sizeof name, "%s.%s", stem, NAMES[i]);
        wanted w = {"BatchNormalization", full, i + 1, name, 0, 1, {channels}};
        /* Without names, a gain and bias that are constants are found through the node that the variance led to. */
        if (!b->named && i < 2 && !onnx_tensor_find(b->file, name) && i + 1 < found.node->input_count)
            w.name = found.node->inputs[i + 1];
        TRY(binder_find(b, &w, &found));
        TRY(binder_values(b, found.tensor, &ret_values[i]));
    }
    const onnx_attribute *eps = onnx_node_attribute(found.node, "epsilon");
    *ret_eps = eps ? eps->f : 1e-5f; /* the operator's default */
out:
    return err;
}

/* x * scale + shift, both in f64, rounded once.   scale, shift: [C] */
static cf_err fold_statistics(onnx_binder *b, const char *path, int64_t channels, float *scale, float *shift)
{
    cf_err err;
    float *values[4] = {NULL}, eps;
    TRY(bind_statistics(b, path, channels, values, &eps));
    for (int64_t c = 0; c < channels; c++) {
        const double variance = (double)values[3][c] + (double)eps;
        if (!(variance > 0.0))
            FAIL(CF_ERR_NUMERIC, "%s: %s: the variance of channel %lld is %g", onnx_path(b->file), path, (long long)c,
                 (double)values[3][c]);
        const double factor = (double)values[0][c] / sqrt(variance);
        scale[c] = (float)factor;
        shift[c] = (float)((double)values[1][c] - (double)values[2][c] * factor);
    }
out:
    for (int i = 0; i < 4; i++)
        mem_free(values[i]);
    return err;
}

static cf_err bind_scaling(speaker_network *s, onnx_binder *b, const char *path, int64_t channels, scaling *ret_scaling)
{
    cf_err err;
    float *both = NULL;
    TRY(mem_alloc((size_t)(2 * channels), sizeof *both, &both));
    TRY(fold_statistics(b, path, channels, both, both + channels));
    TRY(keep_vector(s->be, both, channels, &ret_scaling->scale));
    TRY(keep_vector(s->be, both + channels, channels, &ret_scaling->shift));
out:
    mem_free(both);
    return err;
}

/* ---- dense blocks ---- */

/* "xvector/block1/tdnnd3" + suffix, and the same with dots. */
static void layer_path(int block_idx, int layer_idx, const char *suffix, char path[BIND_PATH_BYTES],
                       char name[BIND_PATH_BYTES])
{
    snprintf(path, BIND_PATH_BYTES, "xvector/block%d/tdnnd%d/%s", block_idx + 1, layer_idx + 1, suffix);
    snprintf(name, BIND_PATH_BYTES, "xvector.block%d.tdnnd%d.%s.weight", block_idx + 1, layer_idx + 1, suffix);
    for (char *p = name; *p; p++)
        *p = *p == '/' ? '.' : *p;
}

/* The attributes of the pooling node decide what onnxruntime does with the last segment, so they do here. */
static cf_err check_pooling(speaker_network *s, const onnx_binder *b)
{
    cf_err err = CF_OK;
    bool first = true;
    for (size_t i = 0; i < onnx_node_count(b->file); i++) {
        const onnx_node *n = onnx_node_at(b->file, i);
        if (strcmp(n->op, "AveragePool") != 0)
            continue;
        TRY(binder_check_ints(b, n, "kernel_shape", (const int64_t[]){SEGMENT_FRAMES}, 1, 0));
        TRY(binder_check_ints(b, n, "strides", (const int64_t[]){SEGMENT_FRAMES}, 1, 1));
        TRY(binder_check_ints(b, n, "pads", (const int64_t[]){0, 0}, 2, 0));
        TRY(binder_check_ints(b, n, "ceil_mode", (const int64_t[]){1}, 1, 0));
        const onnx_attribute *include = onnx_node_attribute(n, "count_include_pad");
        /* From operator set 19 on the part beyond the input is no padding. */
        const bool whole = include && include->i == 1 && onnx_opset(b->file) < 19;
        if (!first && whole != s->whole_segments)
            FAIL(CF_ERR_MISMATCH, "%s: node %s: count_include_pad differs from the nodes before", onnx_path(b->file),
                 n->name);
        s->whole_segments = whole;
        first = false;
    }
out:
    return err;
}

static cf_err bind_dense_layer(speaker_network *s, onnx_binder *b, int block_idx, int layer_idx, int order)
{
    cf_err err;
    char path[BIND_PATH_BYTES], name[BIND_PATH_BYTES];
    dense_block *block = &s->blocks[block_idx];
    dense_layer *l = &block->layers[layer_idx];
    const int64_t channels = block->channels_out;
    layer_path(block_idx, layer_idx, "nonlinear1/batchnorm", path, name);
    TRY(bind_scaling(s, b, path, channels, &l->before));
    layer_path(block_idx, layer_idx, "linear1", path, name);
    conv_want w = {.path = path,
                   .order = order,
                   .n_out = s->bottleneck ? s->bottleneck : -1,
                   .c_in = channels,
                   .kernel = 1,
                   .stride = 1,
                   .dilation = 1,
                   .has_bias = true};
    TRY(bind_conv(s, b, &w, &l->narrow));
    s->bottleneck = l->narrow.n_out;
    layer_path(block_idx, layer_idx, "cam_layer/linear_local", path, name);
    w = (conv_want){.path = path,
                    .name = name,
                    .n_out = s->growth ? s->growth : -1,
                    .c_in = s->bottleneck,
                    .kernel = 3,
                    .stride = 1,
                    .pad = block->dilation,
                    .dilation = block->dilation};
    TRY(bind_conv(s, b, &w, &l->local));
    s->growth = l->local.n_out;
    layer_path(block_idx, layer_idx, "cam_layer/linear1", path, name);
    w = (conv_want){.path = path,
                    .name = name,
                    .n_out = -1,
                    .c_in = s->bottleneck,
                    .kernel = 1,
                    .stride = 1,
                    .dilation = 1,
                    .has_bias = true};
    TRY(bind_conv(s, b, &w, &l->context1));
    layer_path(block_idx, layer_idx, "cam_layer/linear2", path, name);
    w.n_out = s->growth;
    w.c_in = l->context1.n_out;
    TRY(bind_conv(s, b, &w, &l->context2));
    block->channels_out += s->growth;
out:
    return err;
}

static int count_layers(const onnx_binder *b, int block_idx)
{
    char path[BIND_PATH_BYTES], name[BIND_PATH_BYTES];
    int count = 0;
    for (; count < DENSE_MAX; count++) {
        layer_path(block_idx, count, "cam_layer/linear_local", path, name);
        strncat(path, "/Conv", sizeof path - strlen(path) - 1);
        if (!binder_has(b, &(wanted){.op = "Conv", .path = path, .name = name}))
            break;
    }
    return count;
}

static cf_err bind_dense_block(speaker_network *s, onnx_binder *b, int block_idx, int channels_in, int *order)
{
    cf_err err;
    char path[64], name[64];
    dense_block *block = &s->blocks[block_idx];
    const bool last = block_idx == DENSE_BLOCKS - 1;
    block->layer_count = count_layers(b, block_idx);
    block->dilation = block_idx == 0 ? 1 : 2;
    block->channels_in = block->channels_out = channels_in;
    if (block->layer_count == 0)
        FAIL(CF_ERR_NOTFOUND, "%s: no layers in xvector/block%d: not CAM++", onnx_path(b->file), block_idx + 1);
    TRY(mem_alloc((size_t)block->layer_count, sizeof *block->layers, &block->layers));
    for (int i = 0; i < block->layer_count; i++, *order += 2)
        TRY(bind_dense_layer(s, b, block_idx, i, *order));
    if (block->channels_out > CHANNELS_MAX)
        FAIL(CF_ERR_LIMIT, "%s: %d channels, at most %d", onnx_path(b->file), block->channels_out, CHANNELS_MAX);
    snprintf(path, sizeof path, "xvector/transit%d/nonlinear/batchnorm", block_idx + 1);
    TRY(bind_scaling(s, b, path, block->channels_out, &block->transit));
    snprintf(path, sizeof path, "xvector/transit%d/linear", block_idx + 1);
    snprintf(name, sizeof name, "xvector.transit%d.linear.weight", block_idx + 1);
    /* The last one has the closing normalisation folded in, hence a bias and no name. */
    TRY(bind_conv(s, b,
                  &(conv_want){.path = path,
                               .name = last ? NULL : name,
                               .order = *order,
                               .n_out = -1,
                               .c_in = block->channels_out,
                               .kernel = 1,
                               .stride = 1,
                               .dilation = 1,
                               .has_bias = last},
                  &block->transit_out));
out:
    return err;
}

/* Rows of the last layer are scaled by its normalisation. */
static cf_err bind_dense(speaker_network *s, onnx_binder *b)
{
    cf_err err;
    bound found;
    float *values = NULL, *both = NULL;
    const int64_t c_in = 2 * s->blocks[DENSE_BLOCKS - 1].transit_out.n_out;
    const conv_want w = {.path = "xvector/dense/linear",
                         .name = "xvector.dense.linear.weight",
                         .n_out = SPEAKER_VALUES,
                         .c_in = c_in,
                         .kernel = 1,
                         .stride = 1,
                         .dilation = 1};
    TRY(find_conv(b, &w, &found));
    TRY(binder_values(b, found.tensor, &values));
    TRY(mem_alloc(2 * SPEAKER_VALUES, sizeof *both, &both));
    TRY(fold_statistics(b, "xvector/dense/nonlinear/batchnorm", SPEAKER_VALUES, both, both + SPEAKER_VALUES));
    for (int64_t o = 0; o < SPEAKER_VALUES; o++)
        for (int64_t i = 0; i < c_in; i++)
            values[o * c_in + i] *= both[o];
    TRY(backend_pack_linear(s->be, values, SPEAKER_VALUES, c_in, PRECISION_F32, GEMM_BULK_BIT, &s->dense.w));
    TRY(keep_vector(s->be, both + SPEAKER_VALUES, SPEAKER_VALUES, &s->dense.bias));
    s->dense.n_out = SPEAKER_VALUES;
out:
    mem_free(values);
    mem_free(both);
    return err;
}

static cf_err check_graph(const speaker_network *s, const onnx_binder *b)
{
    cf_err err;
    size_t layers = 0;
    for (int i = 0; i < DENSE_BLOCKS; i++)
        layers += (size_t)s->blocks[i].layer_count;
    TRY(binder_check_rest(b));
    TRY(binder_check_nodes(b, "Conv", HEAD_CONVS + 1 + 4 * layers + DENSE_BLOCKS + 1));
    TRY(binder_check_nodes(b, "BatchNormalization", layers + DENSE_BLOCKS + 1));
    TRY(binder_check_nodes(b, "AveragePool", layers));
    TRY(binder_check_nodes(b, "Sigmoid", layers));
out:
    return err;
}

cf_err speaker_network_bind(speaker_network *s, const onnx *file)
{
    cf_err err;
    onnx_binder b = {0};
    int order = ORDER_TDNN + 2;
    TRY(binder_init(file, &b));
    for (int i = 0; i < HEAD_CONVS; i++)
        TRY(bind_head_conv(s, &b, i));
    TRY(bind_tdnn(s, &b));
    int channels = s->tdnn.n_out;
    for (int i = 0; i < DENSE_BLOCKS; i++) {
        TRY(bind_dense_block(s, &b, i, channels, &order));
        channels = s->blocks[i].transit_out.n_out;
    }
    TRY(bind_dense(s, &b));
    TRY(check_pooling(s, &b));
    TRY(check_graph(s, &b));
out:
    binder_done(&b);
    return err;
}
