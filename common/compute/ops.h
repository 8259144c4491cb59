/*
 * ops.h - every tensor op, declared once: arguments, shapes, meaning, source. THE document of ops.
 *
 * Letters: B sequences, R packed rows (sum of T over sequences), T time, C channels, H heads, D head size, K kernel,
 * V vocabulary, F STFT frames. All tensors are contiguous and on the backend. Unless said otherwise x and y must not
 * overlap and values are f32. op_<name> in ops.c checks ranks, dims, types and aliasing once, for all backends, by
 * assertion: wrong shapes are our bug. Contracts (docs/ARCHITECTURE.md): same inputs twice give the same bytes; a
 * sequence inside a batch gives the same bytes as alone; reductions run in f32 in a fixed order (f64 where said).
 */
#ifndef CF_COMPUTE_OPS_H
#define CF_COMPUTE_OPS_H

#include "common/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum act_kind {
    ACT_NONE,
    ACT_LEAKY,     /* x >= 0 ? x : slope * x */
    ACT_ELU,       /* x > 0 ? x : expm1(x)                                   alpha 1 */
    ACT_MISH,      /* x * tanh(log1p(exp(x)))                                x for large x */
    ACT_SILU,      /* x / (1 + exp(-x)) */
    ACT_GELU_TANH, /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
    ACT_ABS,
    ACT_GELU,   /* 0.5 x (1 + erf(x / sqrt(2))) */
    ACT_RELU,   /* x < 0 ? 0 : x */
    ACT_SIGMOID /* 1 / (1 + exp(-x)) */
} act_kind;

/*
 * A modulation table holds one line of M values per solver step; sequence b of the packed rows is at step steps[b].
 * steps: host array [B].
 */
typedef struct op_modulation {
    const tensor *table; /* [S, M] f32 */
    const int32_t *steps;
    const op_rows *rows;
} op_modulation;

/* y = act(x W^T + bias), or with a gate y += gate * act(x W^T + bias), gate being columns [gate_off, +N) of the
 * sequence's table line.   x: [R, K]   W: [N, K]   bias: [N] or NULL   y: [R, N].  x, and without a gate y, may also be
 * of the operands' own type (bf16 or f16): the same values as f32, rounded; a device rounds the bias to y's type, too.
 */
typedef struct op_linear_args {
    const tensor *x;
    const weight *w;
    const tensor *bias;
    tensor *y;
    act_kind act;
    float slope;
    gemm_kind kind;
    const op_modulation *gate; /* NULL: none */
    int64_t gate_off;
} op_linear_args;

/*
 * One-dimensional convolution over packed sequences, cross-correlation, zero fill outside the sequence:
 *   y[b,t,o] = act( bias[o] + sum_k sum_i W[o,i,k] * xr[b, stride*t - pad_left + k*dilation, i] ) + residual[b,t,o]
 * where xr repeats each row of x `repeat` times (nearest upsampling). Lengths of y are rows_out; x is read as zero
 * outside [0, repeat * T_in). Covers causal, look-ahead, strided and upsampling convolutions of both vocoder and
 * flow. With `snake`, x is read as op_snake(x, snake): f32 alone. A device may do that as it loads x, and lose no more
 * than the operands' rounding; who does not puts it into `work`, which may be x where x is needed no more.
 *   x: [R_in, C_in]   W: [C_out, C_in/groups, K]   bias: [C_out] or NULL   y: [R_out, C_out]      f32, or all f64
 *   snake: [C_in] or NULL   work: [R_in, C_in], NULL without snake; its contents are undefined afterwards
 *   residual: [R_out, C_out] or NULL, f32
 */
typedef struct op_conv1d_args {
    const tensor *x;
    const op_rows *rows_in;
    const weight *w;
    const tensor *bias;
    tensor *y;
    const op_rows *rows_out;
    int32_t kernel, dilation, stride, pad_left, repeat, groups;
    act_kind act;
    float slope;
    const tensor *snake;
    tensor *work;
    const tensor *residual;
} op_conv1d_args;

/*
 * Two-dimensional convolution over (frequency, time) with a square kernel and half of it as padding on every side, zero
 * fill; frequency may be strided, time never is. A row holds one time step, frequency by frequency:
 *   y[b,t,f,o] = act( bias[o] + sum_p sum_q sum_i W[o,i,p*K+q] * x[b, t + q - K/2, stride*f + p - K/2, i] )
 *   x: [R, F_in * C_in]   W: [C_out, C_in, K*K]   bias: [C_out] or NULL   y: [R, F_out * C_out]
 * K is 1 or 3; F_out = (F_in - 1) / stride + 1.   Source: 3D-Speaker campplus layers.py BasicResBlock
 */
typedef struct op_conv2d_args {
    const tensor *x;
    const weight *w;
    const tensor *bias;
    tensor *y;
    const op_rows *rows;
    int32_t kernel, stride, freq_in, freq_out;
    act_kind act;
    float slope;
} op_conv2d_args;

/* y[r] = table[ids[r]], zeros where ids[r] < 0.   table: [V, C]   ids: [R] i32   y: [R, C].  Ids >= V are asserted. */
typedef struct op_embedding_args {
    const tensor *table, *ids;
    tensor *y;
} op_embedding_args;

/* y = act(x), element by element; y may be x.   f32 or f64 */
typedef struct op_act_args {
    const tensor *x;
    tensor *y;
    act_kind act;
    float slope;
} op_act_args;

/* y = a + b; y may be a or b. */
typedef struct op_add_args {
    const tensor *a, *b;
    tensor *y;
} op_add_args;

/* y = ((a + b) + c) * fl(1/3); y may be any of them.   Source: cosy hifigan/generator.py decode @ace7c47 (CUDA order)
 * */
typedef struct op_mean3_args {
    const tensor *a, *b, *c;
    tensor *y;
} op_mean3_args;

/* y = x + sin(alpha[c] x)^2 / (alpha[c] + 1e-9); y may be x.   x, y: [R, C]   alpha: [C]
 * Arguments are not bounded by pi: full range reduction.   Source: cosy transformer/activation.py Snake @ace7c47 */
typedef struct op_snake_args {
    const tensor *x, *alpha;
    tensor *y;
} op_snake_args;

/* y = silu(gate) * up.   x: [R, 2I], gate in columns [0, I), up in [I, 2I)   y: [R, I] */
typedef struct op_swiglu_args {
    const tensor *x;
    tensor *y;
} op_swiglu_args;

/* y = x * (mean(x^2) + eps)^-1/2 * gain.   x, y: [R, C]   gain: [C]. Statistics per row in f32.  Source: HF
 * Qwen2RMSNorm */
typedef struct op_rms_norm_args {
    const tensor *x, *gain;
    tensor *y;
    float eps;
} op_rms_norm_args;

/* y = (x - mean) / sqrt(var + eps) * gain + bias, statistics per row, biased variance.   x, y: [R, C]   gain, bias: [C]
 * Source: S3Tokenizer model_v2.py LayerNorm */
typedef struct op_layer_norm_args {
    const tensor *x, *gain, *bias;
    tensor *y;
    float eps;
} op_layer_norm_args;

/* y = act(x[:, 0..C) * scale + shift): a normalisation by fixed statistics.   x: [R, W], W >= C   scale, shift: [C]
 * y: [R, C] */
typedef struct op_affine_args {
    const tensor *x, *scale, *shift;
    tensor *y;
    act_kind act;
    float slope;
} op_affine_args;

/* y += (memory + v): v is columns [first_channel, +C) of x, memory its depthwise convolution over time inside each
 * sequence, K taps centred, zero fill.   x: [R, W]   w: [K, C], K odd   y: [R, C].
 * Source: S3Tokenizer model_v2.py FSMNMultiHeadAttention.forward_fsmn */
typedef struct op_fsmn_args {
    const tensor *x, *w;
    tensor *y;
    const op_rows *rows;
    int32_t first_channel;
} op_fsmn_args;

/* y[s] = mean of the sequence + mean of its segment s of `segment` rows; the last segment may be shorter, and its sum
 * is divided by its own length, or by `segment` when whole is set.   x: [R, C]   y: [S, C], lengths ceil(T / segment)
 * Sums in f64.   Source: 3D-Speaker campplus layers.py CAMLayer.forward, seg_pooling */
typedef struct op_segment_mean_args {
    const tensor *x;
    const op_rows *rows_in;
    tensor *y;
    const op_rows *rows_out;
    int32_t segment;
    bool whole;
} op_segment_mean_args;

/* y[t, first_channel + c] = x[t, c] * gate[t / segment, c], counted from the start of each sequence; the other columns
 * of y stay.   x: [R, C]   gate: [S, C], lengths ceil(T / segment), or NULL with segments NULL: x itself   y: [R, W] */
typedef struct op_segment_gate_args {
    const tensor *x, *gate;
    const op_rows *rows, *segments;
    tensor *y;
    int32_t segment, first_channel;
} op_segment_gate_args;

/* y = LayerNorm(x) * (1 + scale) + shift, scale and shift being columns [scale_off, +C) and [shift_off, +C) of the
 * sequence's table line; biased variance, eps inside the root, no affine.   x, y: [R, C]; y may be bf16 or f16.
 * Source: cosy flow/DiT/modules.py @ace7c47 */
typedef struct op_layer_norm_mod_args {
    const tensor *x;
    tensor *y;
    op_modulation mod;
    int64_t scale_off, shift_off;
    float eps;
} op_layer_norm_mod_args;

/* Rotary embedding in place on `head_count` heads of 64 channels from channel first_channel:
 *   adjacent:  pairs (2j, 2j+1)        half: pairs (j, j+32)
 *   a' = a cos - b sin,  b' = b cos + a sin,  cos = cos_table[pos, j]
 * x: [R, W], f32, bf16 or f16   cos_table, sin_table: [P, 32]   pos: [R] i32, 0 <= pos < P */
typedef struct op_rope_args {
    tensor *x;
    const tensor *cos_table, *sin_table, *pos;
    int32_t first_channel, head_count;
    bool adjacent;
} op_rope_args;

/* Bidirectional or block-causal attention inside each sequence, head size 64, scale 1/8, softmax in f32:
 * query i sees keys j < (block[b] == 0 ? T : min(T, block[b] * (i / block[b] + 1))).
 * operands other than f32 permit a backend with matrix units to round q, k, v and the shares: a device to fp16, also
 * where the stage asks for bf16; the CPU to bf16, whose error of 1 in products of 8e3 (flow.md 11) does not show in the
 * mel's 51 dB on models with such products.
 * qkv: [R, 3*H*64] (q heads, then k, then v)   block: host array [B]   y: [R, H*64].  Both are f32, or both of the
 * operands' own type. */
typedef struct op_attn_block_args {
    const tensor *qkv;
    tensor *y;
    const op_rows *rows;
    const int32_t *block;
    int32_t heads;
    precision operands;
} op_attn_block_args;

/*
 * Causal attention with a paged cache, grouped queries. Appends this call's keys and values (already rotated) behind
 * the past[b] cached tokens of sequence b, then row t of sequence b attends keys 0 .. past[b] + t. Head size 64,
 * scale 1/8.
 *   qkv: [R, (H + 2*KV) * 64]   cache: [pages, 2, KV, CACHE_PAGE_TOKENS, 64]   pages: host [B, pages_max], page numbers
 *   past: host [B]   y: [R, H*64]
 */
#define CACHE_PAGE_TOKENS 64
typedef struct op_attn_cache_args {
    const tensor *qkv;
    tensor *cache;
    tensor *y;
    const op_rows *rows;
    const int32_t *pages, *past;
    int32_t pages_max, heads, kv_heads;
    gemm_kind kind; /* of the place: GEMM_DECODE may have a path of its own, with another order of sums */
} op_attn_cache_args;

/*
 * What the next step of decoding takes of each row, s = slots[r] being its slot: ids[r] = tokens[s], pos[r] = past[s],
 * and past[s] counts one more. Of an inert row (s < 0) the id is -1, whose embedding is zeros, and the position 0. Two
 * rows of a call never have the same slot.   slots, ids, pos: [R] i32   tokens, past: [S] i32
 */
typedef struct op_step_rows_args {
    const tensor *slots, *tokens;
    tensor *past, *ids, *pos;
} op_step_rows_args;

/*
 * op_attn_cache of GEMM_DECODE for one row of each sequence, with everything on the backend: row r appends at token
 * pos[r] of its sequence and attends keys 0 .. pos[r]. Inert rows (slots[r] < 0) append nothing, their y is 0.
 *   qkv: [R, (H + 2*KV) * 64]   cache: [pages, 2, KV, CACHE_PAGE_TOKENS, 64]   slots, pos: [R] i32
 *   pages: [S, P] i32, page numbers of slot s   y: [R, H*64]
 */
typedef struct op_attn_step_args {
    const tensor *qkv, *slots, *pos, *pages;
    tensor *cache, *y;
    int32_t heads, kv_heads;
} op_attn_step_args;

/*
 * Repetition-aware sampling (docs/model/llm.md 7): one speech id for each row. What a row draws follows from its logits
 * and its line of `states` alone; two rows of a call never have the same line.
 *   logits: [R, V] f32, V control ids included   slots: [R] i32: the row's line of states and tokens; < 0: inert
 *   states: [S, RAS_STATE_WORDS] i32   tokens: [S] i32: the newest code   ids: [R] i32
 * ids[r] is the drawn id, RAS_INERT for an inert row, or RAS_REFUSED(first id whose logit is NaN or infinite). A drawn
 * code is remembered in the line and becomes its token; control ids (behind the codes) and refusals change nothing.
 */
#define RAS_TOP_K         25
#define RAS_TOP_P         0.8f
#define RAS_WINDOW_TOKENS 10 /* tau_r 0.1 of it is one: any id seen in the window is rejected */

/* Draws of one position, for rng_uniform. */
#define RAS_DRAW_NUCLEUS  0u
#define RAS_DRAW_FALLBACK 1u

/* Which control ids cannot be drawn. */
typedef enum ras_mask {
    RAS_MASK_NONE, /* all ids */
    RAS_MASK_SOS,  /* not sos, id `codes`: what upstream's HEAD does below the minimum length */
    RAS_MASK_STOP  /* no control id: the minimum length is kept */
} ras_mask;

/* Words of a line of states. */
#define RAS_SEED_LOW    0
#define RAS_SEED_HIGH   1
#define RAS_SEGMENT     2
#define RAS_COUNT       3 /* codes drawn so far, the position of the next draw */
#define RAS_MIN_TOKENS  4 /* below so many codes RAS_MASK says what is masked */
#define RAS_MASK        5
#define RAS_WINDOW      6 /* the last codes, code i in word i % RAS_WINDOW_TOKENS; -1: none */
#define RAS_STATE_WORDS (RAS_WINDOW + RAS_WINDOW_TOKENS)

#define RAS_INERT       (-1)
#define RAS_REFUSED(id) (-2 - (id)) /* its own inverse */

typedef struct op_ras_args {
    const tensor *logits, *slots;
    tensor *states, *tokens, *ids;
} op_ras_args;

/* The estimator's input for guidance: two sequences per request, [x | cond | mu | spk] and [x | 0 | 0 | 0].
 * x, cond, mu: [R, 80]   spk: [B, 80]   y: [2R, 320]: sequence b's conditional rows, then its unconditional ones. */
typedef struct op_dit_input_args {
    const tensor *x, *cond, *mu, *spk;
    tensor *y;
    const op_rows *rows;
} op_dit_input_args;

/* x += dt[b] * (1.7f v_cond - 0.7f v_uncond), each product rounded, then the difference.   x: [R, 80]   v: [2R, 80]
 * dt: host [B].   Source: cosy flow/flow_matching.py solve_euler @ace7c47 */
typedef struct op_cfg_euler_args {
    tensor *x;
    const tensor *v;
    const op_rows *rows;
    const float *dt;
} op_cfg_euler_args;

/* Linear interpolation along time, half-pixel centres (torch interpolate, align_corners false): row t of T_out reads at
 * max(0, T_in/T_out (t + 0.5) - 0.5), product and difference rounded once as torch's kernels fuse them; rounded twice,
 * frame 500 would be off by 1e-5 of the maximum.   x: [R_in, C]  y: [R_out, C] */
typedef struct op_lerp_time_args {
    const tensor *x;
    const op_rows *rows_in;
    tensor *y;
    const op_rows *rows_out;
} op_lerp_time_args;

/* Harmonic source of one frame rate f0 (hift.md 5.2, CUDA's order of operations, phase summed in f32 from the start of
 * each sequence): y[n] = tanh(bias + uv * sum_h w[h] 0.1 sin(phase_h) + a * noise[n]), n from the start of the
 * sequence.   f0: [R]   w: [9]   bias: [1]   noise: [N], noise[n] = sum_h w[h] U[n,h]   y: [480 R], lengths 480 T */
#define SOURCE_FRAME_SAMPLES 480
typedef struct op_source_args {
    const tensor *f0, *w, *bias, *noise;
    tensor *y;
    const op_rows *rows; /* of f0 */
} op_source_args;

/* 16-point STFT, hop 4, periodic Hann, reflect padding of 8 at both ends of each sequence; 18 columns: Re 0..8, Im
 * 0..8. x: [N], lengths L (multiple of 4)   y: [F, 18], lengths L/4 + 1.   Sequences of 0 samples give 0 frames. */
typedef struct op_stft_args {
    const tensor *x;
    const op_rows *rows_in;
    tensor *y;
    const op_rows *rows_out;
} op_stft_args;

/* Magnitude min(exp(x[0..8]), 100), phase sin(x[9..17]), inverse of op_stft with window normalisation, clamped to
 * +-limit. x: [F, 18], lengths L/4 + 1   y: [N], lengths rows_out <= L (the first samples of each sequence). Source:
 * cosy hifigan/generator.py decode and _istft @ace7c47 */
typedef struct op_istft_args {
    const tensor *x;
    const op_rows *rows_in;
    tensor *y;
    const op_rows *rows_out;
    float limit;
} op_istft_args;

/* Prepends row 1 of each sequence to it (ReflectionPad1d((1, 0))).   x: [R, C]   y: [R + B, C], lengths T + 1, T >= 2
 * */
typedef struct op_reflect_first_args {
    const tensor *x;
    const op_rows *rows_in;
    tensor *y;
    const op_rows *rows_out;
} op_reflect_first_args;

/* Copies f32 to f64 or back, rounding to nearest. */
typedef struct op_cast_args {
    const tensor *x;
    tensor *y;
} op_cast_args;

#define CF_OPS(X)                             \
    X(linear, op_linear_args)                 \
    X(conv1d, op_conv1d_args)                 \
    X(conv2d, op_conv2d_args)                 \
    X(embedding, op_embedding_args)           \
    X(act, op_act_args)                       \
    X(add, op_add_args)                       \
    X(mean3, op_mean3_args)                   \
    X(snake, op_snake_args)                   \
    X(swiglu, op_swiglu_args)                 \
    X(rms_norm, op_rms_norm_args)             \
    X(layer_norm, op_layer_norm_args)         \
    X(affine, op_affine_args)                 \
    X(fsmn, op_fsmn_args)                     \
    X(segment_mean, op_segment_mean_args)     \
    X(segment_gate, op_segment_gate_args)     \
    X(layer_norm_mod, op_layer_norm_mod_args) \
    X(rope, op_rope_args)                     \
    X(attn_block, op_attn_block_args)         \
    X(attn_cache, op_attn_cache_args)         \
    X(step_rows, op_step_rows_args)           \
    X(attn_step, op_attn_step_args)           \
    X(ras, op_ras_args)                       \
    X(dit_input, op_dit_input_args)           \
    X(cfg_euler, op_cfg_euler_args)           \
    X(lerp_time, op_lerp_time_args)           \
    X(source, op_source_args)                 \
    X(stft, op_stft_args)                     \
    X(istft, op_istft_args)                   \
    X(reflect_first, op_reflect_first_args)   \
    X(cast, op_cast_args)

typedef enum op_id {
#define CF_OP_ID(name, args) OP_##name,
    CF_OPS(CF_OP_ID)
#undef CF_OP_ID
        OP_COUNT
} op_id;

#define CF_OP_DECLARE(name, args) CF_MUST_CHECK cf_err op_##name(backend *be, const args *a);
CF_OPS(CF_OP_DECLARE)
#undef CF_OP_DECLARE

const char *op_name(op_id id);
bool op_supported(const backend *be, op_id id);

#ifdef __cplusplus
}
#endif
#endif
