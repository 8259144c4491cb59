/*
 * token_encoder.c - token embedding, the two pre-lookahead convolutions, repetition to the mel rate, conditions.
 *
 * Compute thread; everything it takes is scratch of the caller's step.
 *
 * Fails: CF_ERR_NOMEM when the scratch is exhausted.
 * Source: cosy cosyvoice/flow/flow.py CausalMaskedDiffWithDiT.inference, transformer/upsample_encoder.py
 * PreLookaheadLayer.forward @ace7c47. Whether the three tokens behind the last one are real (not final) or zero (final)
 * is the length of the convolution's input alone.
 */
#include "flow_worker/token_encoder.h"

#include <math.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/compute/ops.h"
#include "flow_worker/flow_shapes.h"

static int32_t tokens_in(const flow_inputs *in)
{
    return in->prompt_tokens_count + in->tokens_count;
}

static int32_t tokens_out(const flow_inputs *in)
{
    return tokens_in(in) - (in->finalize ? 0 : FLOW_LOOKAHEAD_TOKENS);
}

int64_t flow_inputs_frames(const flow_inputs *in)
{
    const int64_t read = (int64_t)in->prompt_tokens_count + in->tokens_count;
    return FRAMES_PER_TOKEN * (read - (in->finalize ? 0 : FLOW_LOOKAHEAD_TOKENS));
}

static int32_t clamped(int32_t id)
{
    CF_ASSERT(id < SPEECH_CODES);
    return id < 0 ? 0 : id;
}

/* Packed sequences of the batch: tokens read and tokens kept. */
typedef struct encoder_rows {
    op_rows in, kept;
} encoder_rows;

static cf_err encoder_rows_make(backend *be, const flow_inputs *const *in, int32_t count, encoder_rows *ret_rows)
{
    cf_err err = CF_OK;
    int32_t *lengths = NULL;
    TRY(mem_alloc((size_t)count, sizeof *lengths, &lengths));
    for (int32_t b = 0; b < count; b++)
        lengths[b] = tokens_in(in[b]);
    TRY(backend_rows(be, lengths, count, &ret_rows->in));
    for (int32_t b = 0; b < count; b++)
        lengths[b] = tokens_out(in[b]);
    TRY(backend_rows(be, lengths, count, &ret_rows->kept));
out:
    mem_free(lengths);
    return err;
}

/* Host lists of rows to gather: `ids` of all tokens, `kept` of the tokens that make frames, `frames` of kept rows. */
typedef struct encoder_lists {
    int32_t *ids, *kept, *frames; /* one allocation, owned by ids */
} encoder_lists;

static cf_err encoder_lists_make(const flow_inputs *const *in, int32_t count, const encoder_rows *rows,
                                 encoder_lists *ret_lists)
{
    cf_err err = CF_OK;
    encoder_lists l = {0};
    const size_t read = (size_t)rows_total(&rows->in), made = (size_t)rows_total(&rows->kept);
    TRY(mem_alloc(read + made + made * FRAMES_PER_TOKEN, sizeof(int32_t), &l.ids));
    l.kept = l.ids + read;
    l.frames = l.kept + made;
    size_t r = 0, k = 0;
    for (int32_t b = 0; b < count; b++) {
        for (int32_t t = 0; t < tokens_out(in[b]); t++)
            l.kept[k++] = (int32_t)r + t;
        for (int32_t t = 0; t < in[b]->prompt_tokens_count; t++)
            l.ids[r++] = clamped(in[b]->prompt_tokens[t]);
        for (int32_t t = 0; t < in[b]->tokens_count; t++)
            l.ids[r++] = clamped(in[b]->tokens[t]);
    }
    CF_ASSERT(r == read && k == made);
    for (size_t f = 0; f < made * FRAMES_PER_TOKEN; f++)
        l.frames[f] = (int32_t)(f / FRAMES_PER_TOKEN);
    *ret_lists = l;
out:
    return err;
}

/* y[r] = table[idx[r]], idx on the host.   y: [count, 80] in scratch, or the caller's when it has data */
static cf_err gather(backend *be, const tensor *table, const int32_t *idx, int64_t count, tensor *y)
{
    cf_err err = CF_OK;
    tensor ids;
    TRY(backend_take(be, DTYPE_I32, 1, &count, &ids));
    TRY(backend_upload(be, idx, &ids));
    if (y->data == NULL)
        TRY(backend_take_2d(be, DTYPE_F32, count, table->dims[1], y));
    TRY(op_embedding(be, &(op_embedding_args){.table = table, .ids = &ids, .y = y}));
out:
    return err;
}

/* h: [kept, 80] = E + conv2(lrelu(conv1(E))), in scratch */
static cf_err encoder_lookahead(backend *be, const flow_model *m, const encoder_rows *rows, const tensor *e, tensor *h)
{
    cf_err err = CF_OK;
    tensor mid;
    const int64_t kept = rows_total(&rows->kept);
    TRY(backend_take_2d(be, DTYPE_F32, kept, m->dims.lookahead_channels, &mid));
    TRY(backend_take_2d(be, DTYPE_F32, kept, MEL_BINS, h));
    /* tokens t .. t+3; zeros behind the end */ /* [in, 80] -> [kept, look] */
    TRY(op_conv1d(be, &(op_conv1d_args){.x = e,
                                        .rows_in = &rows->in,
                                        .w = m->look1.w,
                                        .bias = &m->look1.bias,
                                        .y = &mid,
                                        .rows_out = &rows->kept,
                                        .kernel = FLOW_LOOK1_KERNEL,
                                        .dilation = 1,
                                        .stride = 1,
                                        .pad_left = 0,
                                        .repeat = 1,
                                        .groups = 1,
                                        .act = ACT_LEAKY,
                                        .slope = FLOW_LOOK_SLOPE}));
    /* tokens t-2 .. t; zeros, not activations of zeros, in front */ /* [kept, look] -> [kept, 80] */
    TRY(op_conv1d(be, &(op_conv1d_args){.x = &mid,
                                        .rows_in = &rows->kept,
                                        .w = m->look2.w,
                                        .bias = &m->look2.bias,
                                        .y = h,
                                        .rows_out = &rows->kept,
                                        .kernel = FLOW_LOOK2_KERNEL,
                                        .dilation = 1,
                                        .stride = 1,
                                        .pad_left = FLOW_LOOK2_KERNEL - 1,
                                        .repeat = 1,
                                        .groups = 1,
                                        .act = ACT_NONE}));
out:
    return err;
}

cf_err token_encoder_mu(backend *be, const flow_model *m, const flow_inputs *const *in, int32_t count, tensor *ret_mu)
{
    cf_err err = CF_OK;
    encoder_rows rows;
    encoder_lists lists = {0};
    tensor e = {0}, e_kept = {0}, h;
    TRY(encoder_rows_make(be, in, count, &rows));
    TRY(encoder_lists_make(in, count, &rows, &lists));
    const int64_t kept = rows_total(&rows.kept);
    CF_ASSERT(ret_mu->dims[0] == FRAMES_PER_TOKEN * kept);
    TRY(gather(be, &m->embedding, lists.ids, rows_total(&rows.in), &e)); /* [in, 80] */
    TRY(encoder_lookahead(be, m, &rows, &e, &h));                        /* [kept, 80] */
    TRY(gather(be, &e, lists.kept, kept, &e_kept));                      /* [kept, 80] */
    TRY(op_add(be, &(op_add_args){.a = &e_kept, .b = &h, .y = &h}));     /* [kept, 80] */
    TRY(gather(be, &h, lists.frames, FRAMES_PER_TOKEN * kept, ret_mu));  /* [2 kept, 80] */
out:
    mem_free(lists.ids);
    return err;
}

cf_err token_encoder_cond(backend *be, const flow_inputs *in, tensor *ret_cond)
{
    cf_err err = CF_OK;
    tensor prompt = tensor_rows(ret_cond, 0, in->prompt_frames);
    tensor rest = tensor_rows(ret_cond, in->prompt_frames, ret_cond->dims[0] - in->prompt_frames);
    if (in->prompt_frames > 0)
        TRY(backend_upload(be, in->prompt_feat, &prompt));
    TRY(backend_zero(be, &rest));
out:
    return err;
}

void token_encoder_speaker(const flow_model *m, const float *embedding, float *ret_spk)
{
    double square = 0;
    for (int i = 0; embedding != NULL && i < SPEAKER_VALUES; i++)
        square += (double)embedding[i] * (double)embedding[i];
    const double norm = fmax(sqrt(square), 1e-12);
    for (int o = 0; o < MEL_BINS; o++) {
        double sum = 0;
        for (int i = 0; embedding != NULL && i < SPEAKER_VALUES; i++)
            sum += (double)m->speaker_w[o * SPEAKER_VALUES + i] * (double)embedding[i];
        ret_spk[o] = (float)(sum / norm + (double)m->speaker_b[o]);
    }
}
