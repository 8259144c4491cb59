/*
 * f0_predictor.c - five convolutions and a dot product per frame, all in double: an error of 1e-4 Hz would turn the
 * ninth harmonic by a radian within minutes, and may flip the voiced decision. Compute thread; scratch of the step.
 *
 * The first convolution looks three frames ahead (zeros behind a finished utterance), the others look back: frame u
 * of the mel reaches f0 frames u - 3 .. u + 8.
 *
 * Fails: CF_ERR_NOMEM, what ops return.
 * Source: cosy hifigan/f0_predictor.py CausalConvRNNF0Predictor.forward; generator.py inference (double) @ace7c47.
 */
#include "hift_worker/f0_predictor.h"

#include "common/compute/ops.h"

static cf_err conv_elu(backend *be, const hift_conv *c, const tensor *x, const op_rows *rows_in,
                       const op_rows *rows_out, int32_t pad_left, tensor *y)
{
    return op_conv1d(be, &(op_conv1d_args){.x = x,
                                           .rows_in = rows_in,
                                           .w = c->w,
                                           .bias = &c->bias,
                                           .y = y,
                                           .rows_out = rows_out,
                                           .kernel = c->kernel,
                                           .dilation = 1,
                                           .stride = 1,
                                           .pad_left = pad_left,
                                           .repeat = 1,
                                           .groups = 1,
                                           .act = ACT_ELU});
}

cf_err f0_predictor_run(const hift_model *m, backend *be, const hift_batch *batch, const tensor *mel, tensor *f0)
{
    cf_err err;
    const size_t mark = backend_scratch_mark(be);
    const int64_t width = m->dims.f0_channels, frames = rows_total(&batch->f0);
    tensor mel64, x, y, hz;
    TRY(backend_take_2d(be, DTYPE_F64, rows_total(&batch->mel), MEL_BINS, &mel64));
    TRY(backend_take_2d(be, DTYPE_F64, frames, width, &x));
    TRY(backend_take_2d(be, DTYPE_F64, frames, width, &y));
    TRY(backend_take_2d(be, DTYPE_F64, frames, 1, &hz));

    TRY(op_cast(be, &(op_cast_args){.x = mel, .y = &mel64}));                    /* [M, 80] f64 */
    TRY(conv_elu(be, &m->f0_layers[0], &mel64, &batch->mel, &batch->f0, 0, &x)); /* [T, F], looks 3 ahead */
    for (int n = 1; n < HIFT_F0_LAYERS; n++) {
        TRY(conv_elu(be, &m->f0_layers[n], &x, &batch->f0, &batch->f0, HIFT_F0_KERNEL - 1, &y)); /* [T, F] */
        const tensor swap = x;
        x = y;
        y = swap;
    }
    TRY(op_conv1d(be, &(op_conv1d_args){.x = &x,
                                        .rows_in = &batch->f0,
                                        .w = m->f0_classifier.w,
                                        .bias = &m->f0_classifier.bias,
                                        .y = &hz,
                                        .rows_out = &batch->f0,
                                        .kernel = 1,
                                        .dilation = 1,
                                        .stride = 1,
                                        .repeat = 1,
                                        .groups = 1,
                                        .act = ACT_ABS})); /* [T, 1] */
    TRY(op_cast(be, &(op_cast_args){.x = &hz, .y = f0}));  /* [T] f32 */
out:
    backend_scratch_reset(be, mark);
    return err;
}
