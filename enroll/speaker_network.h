/*
 * speaker_network.h - the weights of CAM++, between speaker_weights.c, which binds them, and speaker_vector.c, which
 * computes with them.
 */
#ifndef CF_ENROLL_SPEAKER_NETWORK_H
#define CF_ENROLL_SPEAKER_NETWORK_H

#include <stdbool.h>

#include "enroll/speaker_vector.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HEAD_CONVS     12 /* of the front: conv1, two blocks of stride 2 (3 each), two of stride 1 (2 each), conv2 */
#define DENSE_BLOCKS   3
#define DENSE_MAX      64 /* layers of a block */
#define SEGMENT_FRAMES 100

typedef struct filter {
    weight *w;
    tensor bias; /* [n_out]; data NULL: none */
    int32_t n_out;
} filter;

/* Normalisation by fixed statistics, as one product and one sum. */
typedef struct scaling {
    tensor scale, shift; /* [C] */
} scaling;

typedef struct dense_layer {
    scaling before;            /* over all channels so far */
    filter narrow;             /* to `bottleneck` channels, with its normalisation folded in */
    filter local;              /* 3 taps, to `growth` channels */
    filter context1, context2; /* of the mask */
} dense_layer;

typedef struct dense_block {
    dense_layer *layers; /* [layer_count], owned */
    int32_t layer_count, dilation;
    int32_t channels_in, channels_out; /* of the concatenation */
    scaling transit;
    filter transit_out; /* to half the channels */
} dense_block;

struct speaker_network {
    backend *be; /* borrowed */
    filter head[HEAD_CONVS];
    filter tdnn; /* 5 taps, stride 2, with its normalisation folded in */
    dense_block blocks[DENSE_BLOCKS];
    filter dense; /* [192, 2 C], with the last normalisation folded in */
    int32_t head_channels, growth, bottleneck;
    bool whole_segments; /* the last segment's sum is divided by SEGMENT_FRAMES, however short it is */
};

/* Fills a zeroed network. On failure what was taken is freed by speaker_network_close. */
CF_MUST_CHECK cf_err speaker_network_bind(speaker_network *s, const onnx *file);

#ifdef __cplusplus
}
#endif
#endif
