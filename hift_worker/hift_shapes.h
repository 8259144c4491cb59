/*
 * hift_shapes.h - the vocoder's fixed geometry: what upstream's configuration and class say and no tensor of a model
 * changes. Channel counts are not here: they come from the tensors (hift_dims).
 *
 * Letters: M mel frames given, T frames that the decoder sees, B base channels.
 * Source: cosy examples/libritts/cosyvoice3/conf/cosyvoice3.yaml hift, hifigan/generator.py CausalHiFTGenerator
 * @ace7c47.
 */
#ifndef CF_HIFT_WORKER_HIFT_SHAPES_H
#define CF_HIFT_WORKER_HIFT_SHAPES_H

#include <stdint.h>

#include "common/base/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The ladder: 50 frames/s -> x8 -> x5 -> x3 -> 6000 STFT frames/s -> x4 -> 24000 samples/s. */
#define HIFT_RUNGS       3
#define HIFT_RATE_0      8
#define HIFT_RATE_1      5
#define HIFT_RATE_2      3
#define HIFT_HOP_SAMPLES 4
#define HIFT_LINES       (HIFT_RATE_0 * HIFT_RATE_1 * HIFT_RATE_2) /* STFT frames per mel frame */

/* 16-point spectrum of the source and of the output: real parts 0..8, imaginary parts 0..8. */
#define HIFT_STFT_COLUMNS 18
#define HIFT_HARMONICS    9
#define HIFT_SAMPLE_LIMIT 0.99f

/* Residual blocks: three of different kernels behind each rung, each three pairs of convolutions. */
#define HIFT_BLOCKS    3
#define HIFT_PAIRS     3
#define HIFT_LEAK      0.1f
#define HIFT_LEAK_POST 0.01f /* torch's default, taken by upstream before conv_post */

/* Convolutions that look ahead, and how far: f0_predictor.condnet.0 and conv_pre. */
#define HIFT_F0_LAYERS    5
#define HIFT_F0_KERNEL_0  4
#define HIFT_F0_KERNEL    3
#define HIFT_F0_LOOK      (HIFT_F0_KERNEL_0 - 1)
#define HIFT_PRE_KERNEL   5
#define HIFT_PRE_LOOK     (HIFT_PRE_KERNEL - 1)
#define HIFT_POST_KERNEL  7
#define HIFT_EDGE_FRAMES  1 /* the inverse transform's last frame is cut when more audio follows */
#define HIFT_DOWN_COLUMNS HIFT_STFT_COLUMNS

/* Frames that a call with finalize = false keeps back: f0 look-ahead, conv_pre look-ahead, edge (hift.md 9.1). */
#define HIFT_HELD_FRAMES (HIFT_F0_LOOK + HIFT_PRE_LOOK + HIFT_EDGE_FRAMES)
#define HIFT_FRAMES_MIN  1
#define HIFT_FRAMES_MIN_OPEN \
    HIFT_HELD_FRAMES /* finalize = false: with 8 frames there are 0 samples, with less no decoder */

/* One utterance is bounded by the noise table: 300 s. */
#define HIFT_NOISE_SAMPLES ((int64_t)FRAMES_MAX * SAMPLES_PER_FRAME)

CF_STATIC_ASSERT(HIFT_LINES *HIFT_HOP_SAMPLES == SAMPLES_PER_FRAME, "the ladder must give 480 samples a frame");
CF_STATIC_ASSERT(HIFT_HELD_FRAMES == 8, "upstream keeps 8 frames back");
CF_STATIC_ASSERT(HIFT_STFT_COLUMNS == 2 * (16 / 2 + 1), "real and imaginary parts of a 16-point spectrum");

/*
 * One rung. Upsampling repeats each row `rate` times and convolves; because the repetition is regular this is an
 * ordinary causal convolution over HIFT_UPS_TAPS input rows that makes `rate` output rows at once (hift.md 11.3,
 * polyphase). The source branch comes down from the STFT by a strided convolution; its kernel is twice the stride, or
 * one.
 */
typedef struct hift_rung {
    int32_t rate, ups_kernel;
    int32_t down_kernel, down_stride;
    int32_t source_kernel; /* of the residual block behind the down convolution */
} hift_rung;

#define HIFT_UPS_TAPS 3
CF_STATIC_ASSERT(16 <= 2 * HIFT_RATE_0 && 11 <= 2 * HIFT_RATE_1 + 1 && 7 <= 2 * HIFT_RATE_2 + 1, "three taps suffice");
CF_STATIC_ASSERT(15 == HIFT_RATE_1 * HIFT_RATE_2 && 3 == HIFT_RATE_2, "the source comes down to each rung's rate");

static const hift_rung HIFT_LADDER[HIFT_RUNGS] = {
    {.rate = HIFT_RATE_0, .ups_kernel = 16, .down_kernel = 30, .down_stride = 15, .source_kernel = 7},
    {.rate = HIFT_RATE_1, .ups_kernel = 11, .down_kernel = 6, .down_stride = 3, .source_kernel = 7},
    {.rate = HIFT_RATE_2, .ups_kernel = 7, .down_kernel = 1, .down_stride = 1, .source_kernel = 11},
};
static const int32_t HIFT_BLOCK_KERNELS[HIFT_BLOCKS] = {3, 7, 11};
static const int32_t HIFT_DILATIONS[HIFT_PAIRS] = {1, 3, 5};

#ifdef __cplusplus
}
#endif
#endif
