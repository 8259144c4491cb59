/*
 * recipe_onnx.c - synthetic networks of enrollment: the released files' names, order and shapes, values by recipe.
 *
 * A file holds the nodes that carry weights and attributes, named as PyTorch's exporter names them, not a graph that
 * another program could run: what lies between them is the architecture. Named initializers come first, then the
 * anonymous ones in the order of the released files.
 * Run by `cosyfarm model make` and by tests; owns the list of initializers and a chunk of values.
 * Fails: CF_ERR_SYS, CF_ERR_NOMEM, CF_ERR_LIMIT. Source: voice.md 3.2, 4.3.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/onnx_write.h"
#include "common/model/recipe_impl.h"

#define CHUNK_VALUES 65536u
#define OPSET        17
#define NAME_BYTES   112
#define PATH_BYTES   80
#define PREFIX_BYTES 40
#define MEL_BANDS    128
#define HEAD_MAPS    32 /* channels of CAM++'s front, in every size */
#define MEMORY_TAPS  31
#define DIGITS       8

static const struct {
    int64_t width, hidden, blocks;         /* token encoder */
    int64_t growth, bottleneck, first_out; /* CAM++ */
} SIZES[] = {
    [RECIPE_TINY] = {128, 512, 2, 8, 16, 32},
    [RECIPE_SMALL] = {256, 1024, 4, 16, 64, 64},
    [RECIPE_FULL] = {1280, 5120, 12, 32, 128, 128},
};

typedef struct weights_item {
    char name[NAME_BYTES];
    char key[NAME_BYTES]; /* what its values follow from */
    int rank;
    int64_t dims[4];
    double centre, amplitude;
    bool anonymous;
} weights_item;

/* A file in the making. */
typedef struct draft {
    const recipe *r;
    const char *network; /* begins every key */
    bool node_names;
    onnx_writer *w;      /* owned */
    weights_item *items; /* owned */
    size_t item_count, item_capacity;
    int numbered; /* the exporter's counter */
    bool failed;  /* memory ran out */
} draft;

/* Describes a tensor; the returned name lives until the next call. path: what its values follow from. */
static const weights_item *add_item(draft *d, const char *name, const char *path, const weights_item *shape)
{
    static const weights_item nothing = {.name = ""};
    if (d->item_count == d->item_capacity) {
        const size_t capacity = d->item_capacity ? 2 * d->item_capacity : 256;
        if (mem_resize(&d->items, capacity, sizeof *d->items) != CF_OK) {
            d->failed = true;
            return &nothing;
        }
        d->item_capacity = capacity;
    }
    weights_item *it = &d->items[d->item_count++];
    *it = *shape;
    it->anonymous = name == NULL;
    if (name)
        snprintf(it->name, sizeof it->name, "%s", name);
    else
        snprintf(it->name, sizeof it->name, "onnx::Weight_%d", 1000 + d->numbered++);
    snprintf(it->key, sizeof it->key, "%s.%s", d->network, path);
    return it;
}

static weights_item shaped(int rank, int64_t d0, int64_t d1, int64_t d2, double centre, double amplitude)
{
    return (weights_item){.rank = rank, .dims = {d0, d1, d2, 1}, .centre = centre, .amplitude = amplitude};
}

static void put_node(draft *d, const char *op, const char *path, const char *const inputs[5], const onnx_attr *attrs,
                     int attr_count)
{
    char name[NAME_BYTES + 32], output[NAME_BYTES + 48];
    snprintf(name, sizeof name, "/%s/%s", path, op);
    snprintf(output, sizeof output, "/%s/%s_output_0", path, op);
    onnx_node_spec spec = {
        .op = op, .name = d->node_names ? name : NULL, .output = output, .attrs = attrs, .attr_count = attr_count};
    for (int i = 0; i < 5 && inputs[i]; i++)
        spec.inputs[i] = inputs[i];
    onnx_put_node(d->w, &spec);
}

/* Tensors by dots, nodes by slashes. */
static void dotted(const char *path, const char *suffix, char ret_name[NAME_BYTES])
{
    snprintf(ret_name, NAME_BYTES, "%s.%s", path, suffix);
    for (char *p = ret_name; *p; p++)
        *p = *p == '/' ? '.' : *p;
}

/* ---- token encoder ---- */

static void put_norm(draft *d, const char *path, int64_t width)
{
    char gain[NAME_BYTES], bias[NAME_BYTES], key[NAME_BYTES];
    const weights_item ones = shaped(1, width, 1, 1, 1.0, 0.1), zeros = shaped(1, width, 1, 1, 0.0, 0.1);
    const onnx_attr attrs[] = {{.name = "axis", .i = -1}, {.name = "epsilon", .is_float = true, .f = 1e-5f}};
    dotted(path, "weight", key);
    snprintf(gain, sizeof gain, "%s", add_item(d, NULL, key, &ones)->name);
    dotted(path, "bias", key);
    snprintf(bias, sizeof bias, "%s", add_item(d, NULL, key, &zeros)->name);
    put_node(d, "LayerNormalization", path, (const char *const[5]){"x", gain, bias}, attrs, 2);
}

/* A product with [k_in, n_out]; its bias, where it has one, comes first in the file. */
static void put_layer(draft *d, const char *path, int64_t k_in, int64_t n_out, double amplitude, const char *bias_name,
                      bool has_bias)
{
    char bias[NAME_BYTES], w[NAME_BYTES], key[NAME_BYTES];
    const weights_item zeros = shaped(1, n_out, 1, 1, 0.0, 0.1), matrix = shaped(2, k_in, n_out, 1, 0.0, amplitude);
    if (has_bias) {
        dotted(path, "bias", key);
        snprintf(bias, sizeof bias, "%s", add_item(d, bias_name, key, &zeros)->name);
    }
    dotted(path, "weight", key);
    snprintf(w, sizeof w, "%s", add_item(d, NULL, key, &matrix)->name);
    put_node(d, "MatMul", path, (const char *const[5]){"x", w}, NULL, 0);
    if (has_bias)
        put_node(d, "Add", path, (const char *const[5]){bias, "y"}, NULL, 0);
}

/* A convolution along time. name: of its weight, NULL: anonymous. */
typedef struct conv_spec {
    const char *path, *name;
    int64_t n_out, c_in, kernel, stride, pad, dilation, group;
    double amplitude;
    bool has_bias;
} conv_spec;

static void put_conv(draft *d, const conv_spec *c)
{
    char w[NAME_BYTES], bias[NAME_BYTES] = "", key[NAME_BYTES], bias_name[NAME_BYTES];
    const weights_item bank = shaped(3, c->n_out, c->c_in, c->kernel, 0.0, c->amplitude);
    const weights_item zeros = shaped(1, c->n_out, 1, 1, 0.0, 0.1);
    const onnx_attr attrs[] = {{.name = "dilations", .ints_count = 1, .ints = {c->dilation}},
                               {.name = "group", .i = c->group},
                               {.name = "kernel_shape", .ints_count = 1, .ints = {c->kernel}},
                               {.name = "pads", .ints_count = 2, .ints = {c->pad, c->pad}},
                               {.name = "strides", .ints_count = 1, .ints = {c->stride}}};
    dotted(c->path, "weight", key);
    snprintf(w, sizeof w, "%s", add_item(d, c->name, key, &bank)->name);
    if (c->has_bias) {
        dotted(c->path, "bias", key);
        dotted(c->path, "bias", bias_name);
        snprintf(bias, sizeof bias, "%s", add_item(d, c->name ? bias_name : NULL, key, &zeros)->name);
    }
    put_node(d, "Conv", c->path, (const char *const[5]){"x", w, c->has_bias ? bias : NULL}, attrs, 5);
}

static void put_block(draft *d, int block_idx, int64_t width, int64_t hidden)
{
    char path[PATH_BYTES], memory[NAME_BYTES];
    const double a = sqrt(3.0 / (double)width);
    snprintf(path, sizeof path, "blocks.%d/attn_ln", block_idx);
    put_norm(d, path, width);
    snprintf(path, sizeof path, "blocks.%d/attn/query", block_idx);
    put_layer(d, path, width, width, a, NULL, true);
    snprintf(path, sizeof path, "blocks.%d/attn/key", block_idx);
    put_layer(d, path, width, width, a, NULL, false);
    snprintf(path, sizeof path, "blocks.%d/attn/value", block_idx);
    put_layer(d, path, width, width, a, NULL, true);
    snprintf(path, sizeof path, "blocks.%d/attn/fsmn_block", block_idx);
    dotted(path, "weight", memory);
    put_conv(d, &(conv_spec){path, memory, width, 1, MEMORY_TAPS, 1, 0, 1, width, 0.3, false});
    snprintf(path, sizeof path, "blocks.%d/attn", block_idx);
    put_node(d, "MatMul", path, (const char *const[5]){"q", "k"}, NULL, 0);
    put_node(d, "Softmax", path, (const char *const[5]){"scores"}, NULL, 0);
    put_node(d, "MatMul", path, (const char *const[5]){"shares", "v"}, NULL, 0);
    snprintf(path, sizeof path, "blocks.%d/attn/out", block_idx);
    put_layer(d, path, width, width, a, NULL, true);
    snprintf(path, sizeof path, "blocks.%d/mlp_ln", block_idx);
    put_norm(d, path, width);
    snprintf(path, sizeof path, "blocks.%d/mlp/mlp.0", block_idx);
    put_layer(d, path, width, hidden, a, NULL, true);
    snprintf(path, sizeof path, "blocks.%d/mlp/mlp.2", block_idx);
    put_layer(d, path, hidden, width, sqrt(3.0 / (double)hidden), NULL, true);
}

static void put_tokenizer(draft *d)
{
    const int64_t width = SIZES[d->r->size].width, hidden = SIZES[d->r->size].hidden;
    onnx_put_input(d->w, "feats", ONNX_F32);
    onnx_put_input(d->w, "feats_length", ONNX_I32);
    onnx_put_output(d->w, "indices", ONNX_I32);
    put_conv(d, &(conv_spec){"conv1", NULL, width, MEL_BANDS, 3, 2, 1, 1, 1, sqrt(3.0 / (3 * MEL_BANDS)), true});
    put_conv(d, &(conv_spec){"conv2", NULL, width, width, 3, 2, 1, 1, 1, sqrt(3.0 / (3.0 * (double)width)), true});
    for (int i = 0; i < SIZES[d->r->size].blocks; i++)
        put_block(d, i, width, hidden);
    /* The stream has a deviation of a few units here: digits should use all three levels. */
    put_layer(d, "quantizer/project_in", width, DIGITS, 0.5 * sqrt(3.0 / (double)width), "quantizer.project_in.bias",
              true);
}

/* ---- CAM++ ---- */

static void put_head_conv(draft *d, const char *path, int64_t c_in, int64_t kernel, int64_t stride)
{
    char w[NAME_BYTES], bias[NAME_BYTES], key[NAME_BYTES];
    weights_item bank = shaped(4, HEAD_MAPS, c_in, kernel, 0.0, sqrt(6.0 / (double)(c_in * kernel * kernel)));
    const weights_item zeros = shaped(1, HEAD_MAPS, 1, 1, 0.0, 0.1);
    const int64_t pad = kernel / 2;
    const onnx_attr attrs[] = {{.name = "dilations", .ints_count = 2, .ints = {1, 1}},
                               {.name = "group", .i = 1},
                               {.name = "kernel_shape", .ints_count = 2, .ints = {kernel, kernel}},
                               {.name = "pads", .ints_count = 4, .ints = {pad, pad, pad, pad}},
                               {.name = "strides", .ints_count = 2, .ints = {stride, 1}}};
    bank.dims[3] = kernel;
    dotted(path, "weight", key);
    snprintf(w, sizeof w, "%s", add_item(d, NULL, key, &bank)->name);
    dotted(path, "bias", key);
    snprintf(bias, sizeof bias, "%s", add_item(d, NULL, key, &zeros)->name);
    put_node(d, "Conv", path, (const char *const[5]){"x", w, bias}, attrs, 5);
}

static void put_head(draft *d)
{
    char path[PATH_BYTES];
    put_head_conv(d, "head/conv1", 1, 3, 1);
    for (int layer = 1; layer <= 2; layer++)
        for (int block = 0; block < 2; block++) {
            for (int conv = 1; conv <= 2; conv++) {
                snprintf(path, sizeof path, "head/layer%d/layer%d.%d/conv%d", layer, layer, block, conv);
                put_head_conv(d, path, HEAD_MAPS, 3, block == 0 && conv == 1 ? 2 : 1);
            }
            snprintf(path, sizeof path, "head/layer%d/layer%d.0/shortcut/shortcut.0", layer, layer);
            if (block == 0)
                put_head_conv(d, path, HEAD_MAPS, 1, 2);
        }
    put_head_conv(d, "head/conv2", HEAD_MAPS, 3, 2);
}

/* plain: gain and bias are constants, as the exporter leaves a normalisation without parameters. */
static void put_batchnorm(draft *d, const char *path, int64_t channels, bool plain)
{
    static const char *const NAMES[] = {"weight", "bias", "running_mean", "running_var"};
    static const double CENTRES[] = {1.0, 0.0, 0.0, 1.0}, AMPLITUDES[] = {0.2, 0.2, 0.2, 0.5};
    char names[4][NAME_BYTES];
    for (int i = 0; i < 4; i++) {
        const weights_item shape = shaped(1, channels, 1, 1, CENTRES[i], AMPLITUDES[i]);
        dotted(path, NAMES[i], names[i]);
        if (plain && i < 2) {
            float values[SPEAKER_VALUES];
            CF_ASSERT(channels <= SPEAKER_VALUES);
            for (int64_t c = 0; c < channels; c++)
                values[c] = (float)CENTRES[i];
            snprintf(names[i], NAME_BYTES, "/%s/Constant%s_output_0", path, i ? "_1" : "");
            onnx_put_constant(d->w, names[i], values, channels);
        } else {
            add_item(d, names[i], names[i], &shape);
        }
    }
    const onnx_attr eps = {.name = "epsilon", .is_float = true, .f = 1e-5f};
    put_node(d, "BatchNormalization", path, (const char *const[5]){"x", names[0], names[1], names[2], names[3]}, &eps,
             1);
}

static void put_dense_layer(draft *d, const char *layer, int64_t channels, int64_t dilation)
{
    char path[PATH_BYTES], name[NAME_BYTES];
    const int64_t growth = SIZES[d->r->size].growth, narrow = SIZES[d->r->size].bottleneck;
    const onnx_attr pool[] = {{.name = "ceil_mode", .i = 1},
                              {.name = "count_include_pad", .i = 0},
                              {.name = "kernel_shape", .ints_count = 1, .ints = {100}},
                              {.name = "pads", .ints_count = 2, .ints = {0, 0}},
                              {.name = "strides", .ints_count = 1, .ints = {100}}};
    snprintf(path, sizeof path, "%s/nonlinear1/batchnorm", layer);
    put_batchnorm(d, path, channels, false);
    snprintf(path, sizeof path, "%s/linear1", layer);
    put_conv(d, &(conv_spec){path, NULL, narrow, channels, 1, 1, 0, 1, 1, sqrt(6.0 / (double)channels), true});
    snprintf(path, sizeof path, "%s/cam_layer/linear_local", layer);
    dotted(path, "weight", name);
    put_conv(d,
             &(conv_spec){path, name, growth, narrow, 3, 1, dilation, dilation, 1, sqrt(2.0 / (double)narrow), false});
    snprintf(path, sizeof path, "%s/cam_layer", layer);
    put_node(d, "AveragePool", path, (const char *const[5]){"x"}, pool, 5);
    snprintf(path, sizeof path, "%s/cam_layer/linear1", layer);
    dotted(path, "weight", name);
    put_conv(d, &(conv_spec){path, name, narrow / 2, narrow, 1, 1, 0, 1, 1, sqrt(6.0 / (double)narrow), true});
    snprintf(path, sizeof path, "%s/cam_layer/linear2", layer);
    dotted(path, "weight", name);
    put_conv(d, &(conv_spec){path, name, growth, narrow / 2, 1, 1, 0, 1, 1, sqrt(6.0 / (double)narrow), true});
    snprintf(path, sizeof path, "%s/cam_layer/sigmoid", layer);
    put_node(d, "Sigmoid", path, (const char *const[5]){"x"}, NULL, 0);
}

static void put_speaker(draft *d)
{
    static const int LAYERS[] = {12, 24, 16};
    char layer_path[PREFIX_BYTES], path[PATH_BYTES], name[NAME_BYTES];
    int64_t channels = SIZES[d->r->size].first_out;
    onnx_put_input(d->w, "input", ONNX_F32);
    onnx_put_output(d->w, "output", ONNX_F32);
    put_head(d);
    put_conv(d, &(conv_spec){"xvector/tdnn/linear", NULL, channels, 10 * HEAD_MAPS, 5, 2, 2, 1, 1,
                             sqrt(6.0 / (50 * HEAD_MAPS)), true});
    for (int block = 0; block < 3; block++) {
        for (int layer = 0; layer < LAYERS[block]; layer++) {
            snprintf(layer_path, sizeof layer_path, "xvector/block%d/tdnnd%d", block + 1, layer + 1);
            put_dense_layer(d, layer_path, channels, block ? 2 : 1);
            channels += SIZES[d->r->size].growth;
        }
        snprintf(path, sizeof path, "xvector/transit%d/nonlinear/batchnorm", block + 1);
        put_batchnorm(d, path, channels, false);
        snprintf(path, sizeof path, "xvector/transit%d/linear", block + 1);
        dotted(path, "weight", name);
        put_conv(d, &(conv_spec){path, block == 2 ? NULL : name, channels / 2, channels, 1, 1, 0, 1, 1,
                                 sqrt(6.0 / (double)channels), block == 2});
        channels /= 2;
    }
    put_conv(d, &(conv_spec){"xvector/dense/linear", "xvector.dense.linear.weight", SPEAKER_VALUES, 2 * channels, 1, 1,
                             0, 1, 1, sqrt(3.0 / (double)channels), false});
    put_batchnorm(d, "xvector/dense/nonlinear/batchnorm", SPEAKER_VALUES, true);
}

/* ---- files ---- */

static int64_t value_count(const weights_item *it)
{
    int64_t count = 1;
    for (int i = 0; i < it->rank; i++)
        count *= it->dims[i];
    return count;
}

static cf_err append_values(draft *d, const weights_item *it, float *chunk)
{
    cf_err err = CF_OK;
    const uint64_t key = recipe_key(d->r->seed, it->key), count = (uint64_t)value_count(it);
    for (uint64_t first = 0; first < count; first += CHUNK_VALUES) {
        const size_t n = count - first < CHUNK_VALUES ? (size_t)(count - first) : CHUNK_VALUES;
        recipe_uniform(key, first, n, it->centre, it->amplitude, chunk);
        TRY(onnx_append(d->w, chunk, n));
    }
out:
    return err;
}

/* Named first, then anonymous. */
static cf_err write_weights(draft *d)
{
    cf_err err;
    float *chunk = NULL;
    TRY(mem_alloc(CHUNK_VALUES, sizeof *chunk, &chunk));
    if (d->failed)
        FAIL(CF_ERR_NOMEM, "out of memory for %zu initializers", d->item_count);
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < d->item_count; i++)
            if (d->items[i].anonymous == (pass == 1))
                TRY(onnx_put_initializer(d->w, d->items[i].name, d->items[i].rank, d->items[i].dims));
    TRY(onnx_begin(d->w));
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < d->item_count; i++)
            if (d->items[i].anonymous == (pass == 1))
                TRY(append_values(d, &d->items[i], chunk));
    TRY(onnx_finish(d->w));
out:
    mem_free(chunk);
    return err;
}

static cf_err write_network(const recipe *r, const char *network, bool node_names, void (*put)(draft *),
                            const char *path)
{
    cf_err err;
    draft d = {.r = r, .network = network, .node_names = node_names};
    TRY(onnx_create(path, OPSET, &d.w));
    put(&d);
    TRY(write_weights(&d));
out:
    onnx_writer_close(d.w);
    mem_free(d.items);
    return err == CF_OK ? CF_OK : err_context(err, "%s", path);
}

cf_err recipe_write_tokenizer(const recipe *r, bool node_names, const char *path)
{
    return write_network(r, "tokenizer", node_names, put_tokenizer, path);
}

cf_err recipe_write_speaker(const recipe *r, bool node_names, const char *path)
{
    return write_network(r, "campplus", node_names, put_speaker, path);
}

cf_err recipe_make_networks(const recipe *r, const char *path)
{
    cf_err err;
    char full[IO_PATH_BYTES];
    TRY(io_join(full, sizeof full, path, MODEL_TOKENIZER_FILE));
    TRY(recipe_write_tokenizer(r, true, full));
    TRY(io_join(full, sizeof full, path, MODEL_SPEAKER_FILE));
    TRY(recipe_write_speaker(r, true, full));
out:
    return err;
}
