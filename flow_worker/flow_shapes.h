/*
 * flow_shapes.h - what never changes between models of this architecture, and where things lie in a modulation line.
 *
 * Rates: 25 speech tokens/s -> 50 mel frames/s. Sizes that differ between models are flow_dims.
 */
#ifndef CF_FLOW_WORKER_FLOW_SHAPES_H
#define CF_FLOW_WORKER_FLOW_SHAPES_H

#include "common/base/limits.h"

#define FLOW_LOOKAHEAD_TOKENS 3 /* right context of the first pre-lookahead convolution */
#define FLOW_LOOK1_KERNEL     4
#define FLOW_LOOK2_KERNEL     3
#define FLOW_LOOK_SLOPE       0.01f /* torch's leaky_relu default */
#define FLOW_BLOCK_FRAMES     50    /* static_chunk_size: 25 tokens * 2 */
#define FLOW_POS_KERNEL       31
#define FLOW_POS_GROUPS       16
#define FLOW_POS_CONVS        2
#define FLOW_INPUT_VALUES     (4 * MEL_BINS) /* x, cond, mu, speaker */
#define FLOW_TIME_VALUES      256            /* sin, cos of 128 frequencies */
#define FLOW_FF_MULT          2
#define FLOW_HEAD_VALUES      64
#define FLOW_ROPE_PAIRS       (FLOW_HEAD_VALUES / 2)
#define FLOW_NORM_EPS         1e-6f

/* Columns of a modulation line, in units of dim: six per block, then two of the final norm, whose scale comes first. */
enum {
    FLOW_MOD_SHIFT_ATTN,
    FLOW_MOD_SCALE_ATTN,
    FLOW_MOD_GATE_ATTN,
    FLOW_MOD_SHIFT_FF,
    FLOW_MOD_SCALE_FF,
    FLOW_MOD_GATE_FF,
    FLOW_MOD_PER_BLOCK
};
enum { FLOW_MOD_OUT_SCALE, FLOW_MOD_OUT_SHIFT, FLOW_MOD_OUT_COUNT };

CF_STATIC_ASSERT(FLOW_BLOCK_FRAMES == FRAMES_PER_TOKEN * TOKENS_PER_SECOND, "a block is one second of speech");
CF_STATIC_ASSERT(FLOW_LOOK1_KERNEL == FLOW_LOOKAHEAD_TOKENS + 1, "the first convolution sees exactly the look-ahead");
CF_STATIC_ASSERT(FLOW_INPUT_VALUES == 320, "input_embed.proj has 320 columns");

#endif
