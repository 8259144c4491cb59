/*
 * speaker_vector.c - the forward pass of CAM++ as a list of ops. The backend's thread; owns the network's lists.
 *
 *   energies [T, 80] -> front over (frequency, time): 80 -> 40 -> 20 -> 10 frequencies
 *     -> 5 taps, stride 2 [T/2, C] -> three blocks of densely connected layers, each followed by a halving
 *     -> mean and deviation over time -> 192 values
 *   layer: u = relu(narrow(relu(scaled x)));  x = [x | local(u) * mask(mean over time and over its segment)]
 *
 * Fails: CF_ERR_INVALID, CF_ERR_NUMERIC, CF_ERR_NOMEM.
 * Source: 3D-Speaker speakerlab/models/campplus/DTDNN.py FCM, CAMPPlus; layers.py CAMDenseTDNNLayer, CAMLayer,
 * StatsPool, BasicResBlock.
 */
#include "enroll/speaker_vector.h"

#include <math.h>
#include <stdio.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/compute/ops.h"
#include "enroll/speaker_network.h"

cf_err speaker_network_open(backend *be, const onnx *file, speaker_network **ret_network)
{
    cf_err err;
    speaker_network *s = NULL;
    TRY(mem_alloc(1, sizeof *s, &s));
    s->be = be;
    TRY(speaker_network_bind(s, file));
    *ret_network = s;
    s = NULL;
out:
    speaker_network_close(s);
    return err;
}

void speaker_network_close(speaker_network *s)
{
    if (!s)
        return;
    for (int i = 0; i < DENSE_BLOCKS; i++)
        mem_free(s->blocks[i].layers);
    mem_free(s);
}

void speaker_network_describe(const speaker_network *s, char *ret_text, size_t text_bytes)
{
    snprintf(ret_text, text_bytes, "%d+%d+%d layers, growth %d, last segment divided by %s", s->blocks[0].layer_count,
             s->blocks[1].layer_count, s->blocks[2].layer_count, s->growth,
             s->whole_segments ? "100" : "its own length");
}

/* ---- the front ---- */

/* A map of the front: [T, freqs * channels]. */
typedef struct map {
    tensor values;
    int32_t freqs;
} map;

static cf_err conv_map(speaker_network *s, int idx, int32_t kernel, int32_t stride, act_kind act, const map *x,
                       const op_rows *rows, map *ret_map)
{
    cf_err err;
    map y = {.freqs = (x->freqs - 1) / stride + 1};
    TRY(backend_take_2d(s->be, DTYPE_F32, rows_total(rows), (int64_t)y.freqs * s->head_channels, &y.values));
    TRY(op_conv2d(s->be, &(op_conv2d_args){.x = &x->values,
                                           .w = s->head[idx].w,
                                           .bias = &s->head[idx].bias,
                                           .y = &y.values,
                                           .rows = rows,
                                           .kernel = kernel,
                                           .stride = stride,
                                           .freq_in = x->freqs,
                                           .freq_out = y.freqs,
                                           .act = act}));
    *ret_map = y;
out:
    return err;
}

/* x -> relu(conv(relu(conv(x))) + shortcut(x)); stride 1 has no convolution in its shortcut. */
static cf_err residual(speaker_network *s, int first_conv, int32_t stride, const map *x, const op_rows *rows,
                       map *ret_map)
{
    cf_err err;
    map inner, y, side = *x;
    TRY(conv_map(s, first_conv, 3, stride, ACT_RELU, x, rows, &inner));
    TRY(conv_map(s, first_conv + 1, 3, 1, ACT_NONE, &inner, rows, &y));
    if (stride > 1)
        TRY(conv_map(s, first_conv + 2, 1, stride, ACT_NONE, x, rows, &side));
    TRY(op_add(s->be, &(op_add_args){.a = &y.values, .b = &side.values, .y = &y.values}));
    TRY(op_act(s->be, &(op_act_args){.x = &y.values, .y = &y.values, .act = ACT_RELU}));
    *ret_map = y;
out:
    return err;
}

static cf_err run_head(speaker_network *s, const frame_table *fbank, const op_rows *rows, map *ret_map)
{
    cf_err err;
    map x = {.freqs = FBANK_BANDS};
    TRY(backend_take_2d(s->be, DTYPE_F32, fbank->frames, FBANK_BANDS, &x.values));
    TRY(backend_upload(s->be, fbank->values, &x.values));
    TRY(conv_map(s, 0, 3, 1, ACT_RELU, &x, rows, &x)); /* [T, 80] -> [T, 80 C] */
    TRY(residual(s, 1, 2, &x, rows, &x));              /* [T, 40 C] */
    TRY(residual(s, 4, 1, &x, rows, &x));
    TRY(residual(s, 6, 2, &x, rows, &x)); /* [T, 20 C] */
    TRY(residual(s, 9, 1, &x, rows, &x));
    TRY(conv_map(s, 11, 3, 2, ACT_RELU, &x, rows, ret_map)); /* [T, 10 C] */
out:
    return err;
}

/* ---- along time ---- */

static cf_err linear(speaker_network *s, const filter *f, const tensor *x, act_kind act, tensor *ret_y)
{
    cf_err err;
    TRY(backend_take_2d(s->be, DTYPE_F32, x->dims[0], f->n_out, ret_y));
    TRY(op_linear(
        s->be,
        &(op_linear_args){
            .x = x, .w = f->w, .bias = f->bias.data ? &f->bias : NULL, .y = ret_y, .act = act, .kind = GEMM_BULK}));
out:
    return err;
}

static cf_err conv(speaker_network *s, const filter *f, const op_conv1d_args *shape, tensor *ret_y)
{
    cf_err err;
    op_conv1d_args a = *shape;
    TRY(backend_take_2d(s->be, DTYPE_F32, rows_total(a.rows_out), f->n_out, ret_y));
    a.w = f->w;
    a.bias = f->bias.data ? &f->bias : NULL;
    a.y = ret_y;
    a.repeat = a.groups = 1;
    TRY(op_conv1d(s->be, &a));
out:
    return err;
}

/* The first `channels` of x, scaled, shifted and cut at zero. */
static cf_err scale_relu(speaker_network *s, const scaling *n, const tensor *x, tensor *ret_y)
{
    cf_err err;
    TRY(backend_take_2d(s->be, DTYPE_F32, x->dims[0], n->scale.dims[0], ret_y));
    TRY(op_affine(s->be,
                  &(op_affine_args){.x = x, .scale = &n->scale, .shift = &n->shift, .y = ret_y, .act = ACT_RELU}));
out:
    return err;
}

/* Appends `growth` channels to the first `channels` of x: [R, W]. */
static cf_err run_dense_layer(speaker_network *s, const dense_layer *l, const dense_block *block, int32_t channels,
                              const op_rows *rows, const op_rows *segments, tensor *x)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(s->be);
    tensor scaled, u, local, mean, context, mask;
    TRY(scale_relu(s, &l->before, x, &scaled));        /* [R, channels] */
    TRY(linear(s, &l->narrow, &scaled, ACT_RELU, &u)); /* [R, bottleneck] */
    TRY(conv(s, &l->local,                             /* [R, growth] */
             &(op_conv1d_args){.x = &u,
                               .rows_in = rows,
                               .rows_out = rows,
                               .kernel = 3,
                               .dilation = block->dilation,
                               .stride = 1,
                               .pad_left = block->dilation},
             &local));
    TRY(backend_take_2d(s->be, DTYPE_F32, rows_total(segments), s->bottleneck, &mean));
    TRY(op_segment_mean(s->be, &(op_segment_mean_args){.x = &u,
                                                       .rows_in = rows,
                                                       .y = &mean,
                                                       .rows_out = segments,
                                                       .segment = SEGMENT_FRAMES,
                                                       .whole = s->whole_segments}));
    TRY(linear(s, &l->context1, &mean, ACT_RELU, &context));    /* [S, bottleneck / 2] */
    TRY(linear(s, &l->context2, &context, ACT_SIGMOID, &mask)); /* [S, growth] */
    TRY(op_segment_gate(s->be, &(op_segment_gate_args){.x = &local,
                                                       .gate = &mask,
                                                       .rows = rows,
                                                       .segments = segments,
                                                       .y = x,
                                                       .segment = SEGMENT_FRAMES,
                                                       .first_channel = channels}));
out:
    backend_scratch_reset(s->be, mark);
    return err;
}

/* x: [R, channels_in] -> [R, half of channels_out] */
static cf_err run_dense_block(speaker_network *s, const dense_block *block, const op_rows *rows,
                              const op_rows *segments, const tensor *x, act_kind act, tensor *ret_y)
{
    cf_err err;
    tensor all, scaled;
    int32_t channels = block->channels_in;
    TRY(backend_take_2d(s->be, DTYPE_F32, x->dims[0], block->channels_out, &all));
    TRY(op_segment_gate(s->be, &(op_segment_gate_args){.x = x, .rows = rows, .y = &all}));
    for (int i = 0; i < block->layer_count; i++, channels += s->growth)
        TRY(run_dense_layer(s, &block->layers[i], block, channels, rows, segments, &all));
    TRY(scale_relu(s, &block->transit, &all, &scaled));
    TRY(linear(s, &block->transit_out, &scaled, act, ret_y));
out:
    return err;
}

/* Means over time, then deviations with T - 1 in the divisor.   x: [R, C] on the host   ret_stats: [2 C] */
static void pool_statistics(const float *x, int64_t frames, int64_t channels, float *ret_stats)
{
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0.0, squares = 0.0;
        for (int64_t t = 0; t < frames; t++)
            sum += (double)x[t * channels + c];
        const double mean = sum / (double)frames;
        for (int64_t t = 0; t < frames; t++)
            squares += ((double)x[t * channels + c] - mean) * ((double)x[t * channels + c] - mean);
        ret_stats[c] = (float)mean;
        ret_stats[channels + c] = (float)sqrt(squares / (double)(frames - 1));
    }
}

static cf_err run_dense(speaker_network *s, const tensor *x, float ret_vector[SPEAKER_VALUES])
{
    cf_err err;
    float *host = NULL, *stats = NULL;
    const int64_t frames = x->dims[0], channels = x->dims[1];
    tensor in, out;
    TRY(mem_alloc((size_t)(frames * channels), sizeof *host, &host));
    TRY(mem_alloc((size_t)(2 * channels), sizeof *stats, &stats));
    TRY(backend_download(s->be, x, host));
    pool_statistics(host, frames, channels, stats);
    TRY(backend_take_2d(s->be, DTYPE_F32, 1, 2 * channels, &in));
    TRY(backend_upload(s->be, stats, &in));
    TRY(linear(s, &s->dense, &in, ACT_NONE, &out)); /* [1, 192] */
    TRY(backend_download(s->be, &out, ret_vector));
    for (int i = 0; i < SPEAKER_VALUES; i++)
        if (!isfinite(ret_vector[i]))
            FAIL(CF_ERR_NUMERIC, "speaker network: value %d of its output is not finite", i);
out:
    mem_free(host);
    mem_free(stats);
    return err;
}

static cf_err run_time(speaker_network *s, const map *x, const op_rows *rows, float ret_vector[SPEAKER_VALUES])
{
    cf_err err;
    op_rows half, segments;
    tensor y;
    const int32_t frames = (rows_total(rows) + 1) / 2, segment_count = (frames + SEGMENT_FRAMES - 1) / SEGMENT_FRAMES;
    TRY(backend_rows(s->be, &frames, 1, &half));
    TRY(backend_rows(s->be, &segment_count, 1, &segments));
    TRY(conv(s, &s->tdnn, /* [T, 10 C] -> [T/2, C'] */
             &(op_conv1d_args){.x = &x->values,
                               .rows_in = rows,
                               .rows_out = &half,
                               .kernel = 5,
                               .dilation = 1,
                               .stride = 2,
                               .pad_left = 2,
                               .act = ACT_RELU},
             &y));
    for (int i = 0; i < DENSE_BLOCKS; i++)
        TRY(run_dense_block(s, &s->blocks[i], &half, &segments, &y, i == DENSE_BLOCKS - 1 ? ACT_RELU : ACT_NONE, &y));
    TRY(run_dense(s, &y, ret_vector));
out:
    return err;
}

cf_err speaker_network_run(speaker_network *s, const frame_table *fbank, float ret_vector[SPEAKER_VALUES])
{
    cf_err err;
    const size_t mark = backend_scratch_mark(s->be);
    const int32_t frames = (int32_t)fbank->frames;
    op_rows rows;
    map x;
    CF_ASSERT(fbank->bands == FBANK_BANDS);
    if (fbank->frames < SPEAKER_FRAMES_MIN)
        FAIL(CF_ERR_INVALID, "%lld frames of filter bank energies, at least %d are needed", (long long)fbank->frames,
             SPEAKER_FRAMES_MIN);
    TRY(backend_rows(s->be, &frames, 1, &rows));
    TRY(run_head(s, fbank, &rows, &x));
    TRY(run_time(s, &x, &rows, ret_vector));
out:
    backend_scratch_reset(s->be, mark);
    return err;
}
