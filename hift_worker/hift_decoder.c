/*
 * hift_decoder.c - the ladder, as a column of ops. Compute thread; works in five buffers of the step's scratch, each
 * as large as the widest place (the last rung), lent in turn.
 *
 *   mel --conv_pre--> x --leaky, ups--> x --(+)--> three residual blocks, mean --> next rung ... --conv_post--> istft
 *                                            |
 *   source --stft--> [18 columns] --down, residual block--                       (once a rung, at the rung's rate)
 *
 * Every sequence of the batch is computed as if alone: ops pad with zeros at each sequence's own ends, the transform
 * of the source reflects at them, and nothing reads beyond (hift.md 10).
 *
 * Fails: CF_ERR_NOMEM, what ops return.
 * Source: cosy hifigan/generator.py CausalHiFTGenerator.decode, ResBlock.forward @ace7c47.
 * Differs: ups as three taps of pre-added weights (hift_model.c), which rounds sums of products in another order.
 */
#include "hift_worker/hift_decoder.h"

#include "common/compute/ops.h"

#define BUFFERS 5

/* One pass. buffer[0] is x; the others are lent in the order that the functions below name. */
typedef struct ladder {
    const hift_model *m;
    backend *be;
    const hift_batch *batch;
    tensor stft;            /* [rows of batch->stft, 18] */
    tensor buffer[BUFFERS]; /* flat */
} ladder;

/* A buffer seen as [rows, columns]. */
static tensor view(const ladder *l, int buffer_idx, int64_t rows, int64_t columns)
{
    return tensor_2d(l->buffer[buffer_idx].data, DTYPE_F32, rows, columns);
}

static void swap(ladder *l, int a, int b)
{
    const tensor held = l->buffer[a];
    l->buffer[a] = l->buffer[b];
    l->buffer[b] = held;
}

/* A convolution that keeps the length and looks back alone. */
static op_conv1d_args causal(const hift_conv *c, const op_rows *rows, int32_t dilation, const tensor *x, tensor *y)
{
    return (op_conv1d_args){.x = x,
                            .rows_in = rows,
                            .w = c->w,
                            .bias = &c->bias,
                            .y = y,
                            .rows_out = rows,
                            .kernel = c->kernel,
                            .dilation = dilation,
                            .stride = 1,
                            .pad_left = (c->kernel - 1) * dilation,
                            .repeat = 1,
                            .groups = 1};
}

static cf_err conv_causal(const ladder *l, const hift_conv *c, const op_rows *rows, const tensor *x, tensor *y)
{
    const op_conv1d_args a = causal(c, rows, 1, x, y);
    return op_conv1d(l->be, &a);
}

/* y = x + three pairs of convolutions. spare may be x, which is then lost. Buffer 4 is used.   x, y: [rows, C] */
static cf_err block_run(const ladder *l, const hift_block *w, const op_rows *rows, const tensor *x, tensor *spare,
                        tensor *y)
{
    cf_err err = CF_OK;
    tensor u = view(l, 4, x->dims[0], x->dims[1]);
    for (int n = 0; n < HIFT_PAIRS; n++) {
        const tensor *from = n == 0 ? x : n % 2 ? y : spare;
        tensor *to = n % 2 ? spare : y; /* the last of three goes to y */
        op_conv1d_args first = causal(&w->convs1[n], rows, HIFT_DILATIONS[n], from, &u);
        op_conv1d_args second = causal(&w->convs2[n], rows, 1, &u, to);
        first.snake = &w->alpha1[n];
        first.work = to;
        second.snake = &w->alpha2[n];
        second.work = &u;
        second.residual = from;
        TRY(op_conv1d(l->be, &first));  /* [rows, C] */
        TRY(op_conv1d(l->be, &second)); /* [rows, C] */
    }
out:
    return err;
}
CF_STATIC_ASSERT(HIFT_PAIRS % 2 == 1, "the last pair of a block must write y");

/* buffer[0], [rows of rows_in, 2 C], becomes [rate * rows, C]; the last rung gets its reflected row as well. */
static cf_err raise_rate(ladder *l, int rung_idx, const op_rows *rows_in)
{
    cf_err err;
    const hift_rung_weights *w = &l->m->rungs[rung_idx];
    const int64_t rows = rows_total(rows_in), rate = HIFT_LADDER[rung_idx].rate;
    tensor x = view(l, 0, rows, 2 * w->channels), y = view(l, 1, rows, rate * w->channels);
    TRY(op_act(l->be, &(op_act_args){.x = &x, .y = &x, .act = ACT_LEAKY, .slope = HIFT_LEAK})); /* [rows, 2C] */
    TRY(conv_causal(l, &w->ups, rows_in, &x, &y));                                              /* [rows, rate C] */
    swap(l, 0, 1);
    if (rung_idx == HIFT_RUNGS - 1) {
        const op_rows *raised = &l->batch->raised[rung_idx], *lines = &l->batch->lines;
        x = view(l, 0, rows_total(raised), w->channels);
        y = view(l, 1, rows_total(lines), w->channels);
        TRY(op_reflect_first(l->be, &(op_reflect_first_args){.x = &x, .rows_in = raised, .y = &y, .rows_out = lines}));
        swap(l, 0, 1); /* [120T + 1, C] */
    }
out:
    return err;
}

/* buffer[0] += what the source says at this rung's rate.   buffer[0]: [rows, C] */
static cf_err add_source(const ladder *l, int rung_idx, const op_rows *rows)
{
    cf_err err;
    const hift_rung_weights *w = &l->m->rungs[rung_idx];
    const hift_rung *rung = &HIFT_LADDER[rung_idx];
    tensor x = view(l, 0, rows_total(rows), w->channels), g = view(l, 1, rows_total(rows), w->channels);
    tensor y = view(l, 2, rows_total(rows), w->channels);
    TRY(op_conv1d(l->be, &(op_conv1d_args){.x = &l->stft,
                                           .rows_in = &l->batch->stft,
                                           .w = w->down.w,
                                           .bias = &w->down.bias,
                                           .y = &g,
                                           .rows_out = rows,
                                           .kernel = rung->down_kernel,
                                           .dilation = 1,
                                           .stride = rung->down_stride,
                                           .pad_left = rung->down_stride - 1,
                                           .repeat = 1,
                                           .groups = 1}));         /* [rows, C] */
    TRY(block_run(l, &w->source_block, rows, &g, &g, &y));         /* [rows, C] */
    TRY(op_add(l->be, &(op_add_args){.a = &x, .b = &y, .y = &x})); /* [rows, C] */
out:
    return err;
}

/* buffer[0] = mean of its three residual blocks, added in upstream's order.   [rows, C] */
static cf_err mean_blocks(const ladder *l, int rung_idx, const op_rows *rows)
{
    cf_err err;
    const hift_rung_weights *w = &l->m->rungs[rung_idx];
    tensor x = view(l, 0, rows_total(rows), w->channels);
    tensor first = view(l, 1, rows_total(rows), w->channels), second = view(l, 2, rows_total(rows), w->channels);
    tensor third = view(l, 3, rows_total(rows), w->channels);
    TRY(block_run(l, &w->blocks[0], rows, &x, &third, &first));
    TRY(block_run(l, &w->blocks[1], rows, &x, &third, &second));
    TRY(block_run(l, &w->blocks[2], rows, &x, &x, &third));
    TRY(op_mean3(l->be, &(op_mean3_args){.a = &first, .b = &second, .c = &third, .y = &x}));
out:
    return err;
}

static cf_err emit_each(const ladder *l, const probe *p, const char *name, const tensor *x, const op_rows *rows)
{
    cf_err err = CF_OK;
    for (int32_t b = 0; p && b < rows->count; b++)
        TRY(probe_emit(p, l->be, b, name, x, rows->offs[b], rows_length(rows, b)));
out:
    return err;
}

static cf_err take_buffers(ladder *l)
{
    cf_err err = CF_OK;
    const int64_t lines = rows_total(&l->batch->lines), narrowest = l->m->dims.base_channels >> HIFT_RUNGS;
    for (int i = 0; i < BUFFERS; i++)
        TRY(backend_take(l->be, DTYPE_F32, 1, (const int64_t[]){lines * narrowest}, &l->buffer[i]));
out:
    return err;
}

static cf_err conv_pre(const ladder *l, const tensor *mel, tensor *x)
{
    return op_conv1d(l->be, &(op_conv1d_args){.x = mel,
                                              .rows_in = &l->batch->mel,
                                              .w = l->m->pre.w,
                                              .bias = &l->m->pre.bias,
                                              .y = x,
                                              .rows_out = &l->batch->body,
                                              .kernel = HIFT_PRE_KERNEL,
                                              .dilation = 1,
                                              .stride = 1,
                                              .repeat = 1,
                                              .groups = 1});
}

/* mel -> y: what the inverse transform takes, [120T + 1, 18]. Gives its buffers back. */
static cf_err climb(ladder *l, const tensor *mel, const probe *p, tensor *y)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(l->be);
    const hift_model *m = l->m;
    const op_rows *rows = &l->batch->body, *lines = &l->batch->lines;
    TRY(take_buffers(l));
    tensor x = view(l, 0, rows_total(rows), m->dims.base_channels);
    TRY(conv_pre(l, mel, &x)); /* [T, B] */
    TRY(emit_each(l, p, "conv_pre", &x, rows));
    for (int i = 0; i < HIFT_RUNGS; i++) {
        TRY(raise_rate(l, i, rows));
        rows = i == HIFT_RUNGS - 1 ? lines : &l->batch->raised[i];
        TRY(add_source(l, i, rows));
        TRY(mean_blocks(l, i, rows)); /* [8T, B/2]  [40T, B/4]  [120T + 1, B/8] */
    }
    x = view(l, 0, rows_total(lines), m->rungs[HIFT_RUNGS - 1].channels);
    TRY(op_act(l->be, &(op_act_args){.x = &x, .y = &x, .act = ACT_LEAKY, .slope = HIFT_LEAK_POST}));
    TRY(conv_causal(l, &m->post, lines, &x, y)); /* [120T + 1, 18] */
    TRY(emit_each(l, p, "conv_post", y, lines));
out:
    backend_scratch_reset(l->be, mark);
    return err;
}

cf_err hift_decoder_run(const hift_model *m, backend *be, const hift_batch *batch, const tensor *mel,
                        const tensor *source, const probe *p, tensor *audio)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    ladder l = {.m = m, .be = be, .batch = batch};
    tensor y;
    TRY(backend_take_2d(be, DTYPE_F32, rows_total(&batch->stft), HIFT_STFT_COLUMNS, &l.stft));
    TRY(backend_take_2d(be, DTYPE_F32, rows_total(&batch->lines), HIFT_STFT_COLUMNS, &y));
    TRY(op_stft(be, &(op_stft_args){.x = source, .rows_in = &batch->source, .y = &l.stft, .rows_out = &batch->stft}));
    TRY(climb(&l, mel, p, &y));
    TRY(op_istft(
        be, &(op_istft_args){
                .x = &y, .rows_in = &batch->lines, .y = audio, .rows_out = &batch->audio, .limit = HIFT_SAMPLE_LIMIT}));
out:
    backend_scratch_reset(be, mark);
    return err;
}
