/*
 * modulation.c - the time embedding and all AdaLN projections at the solver's ten times, computed once.
 *
 * Runs in stage open on the compute thread; the table belongs to the caller. The ten times travel side by side in
 * vector lanes, so every weight is read once and each sum has one order, whatever the machine.
 *
 * Fails: what weights_f32 refuses; CF_ERR_NOMEM.
 * Source: cosy cosyvoice/flow/DiT/modules.py SinusPositionEmbedding, TimestepEmbedding, AdaLayerNormZero,
 * AdaLayerNormZero_Final @ace7c47. Differs: f64 throughout behind the f32 phase 1000 t w (upstream: f32), under 1e-6.
 */
#include "flow_worker/modulation.h"

#include <math.h>
#include <stdio.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "flow_worker/flow_shapes.h"

/* Ten times in three vectors of four doubles; the last two lanes idle. */
typedef double mod_vec __attribute__((vector_size(32), aligned(8))); /* heap memory is aligned to 16 bytes only */
#define MOD_VECS  3
#define MOD_LANES 4
typedef struct mod_times {
    mod_vec at[MOD_VECS];
} mod_times;
_Static_assert(CFM_STEPS <= MOD_VECS * MOD_LANES, "every step needs a lane");

/* A linear layer of which only the products matter here. w: [out, in], b: [out] */
typedef struct mod_linear {
    const float *w, *b;
    int64_t out, in;
} mod_linear;

/* y[o] = b[o] + sum_i w[o,i] x[i] at all times. x: [in], y: [out] */
#define MOD_LINEAR_BODY                                  \
    for (int64_t o = 0; o < l->out; o++) {               \
        const float *row = l->w + o * l->in;             \
        mod_vec a = {0}, b = {0}, c = {0};               \
        for (int64_t i = 0; i < l->in; i++) {            \
            const double wi = (double)row[i];            \
            const mod_vec weight = {wi, wi, wi, wi};     \
            a += weight * x[i].at[0];                    \
            b += weight * x[i].at[1];                    \
            c += weight * x[i].at[2];                    \
        }                                                \
        const double bias = (double)l->b[o];             \
        const mod_vec offset = {bias, bias, bias, bias}; \
        y[o].at[0] = a + offset;                         \
        y[o].at[1] = b + offset;                         \
        y[o].at[2] = c + offset;                         \
    }

static void mod_linear_plain(const mod_linear *l, const mod_times *x, mod_times *y)
{
    MOD_LINEAR_BODY
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void mod_linear_avx2(const mod_linear *l, const mod_times *x, mod_times *y)
{
    MOD_LINEAR_BODY
}
#endif

/* The variants differ in vector width alone: products and sums are separate and in the same order. */
static void mod_linear_run(const mod_linear *l, const mod_times *x, mod_times *y)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        mod_linear_avx2(l, x, y);
        return;
    }
#endif
    mod_linear_plain(l, x, y);
}

static cf_err mod_linear_bind(weights *w, const char *prefix, int64_t out, int64_t in, mod_linear *ret_linear)
{
    cf_err err = CF_OK;
    char name[128];
    mod_linear l = {.out = out, .in = in};
    snprintf(name, sizeof name, "%s.weight", prefix);
    TRY(weights_f32(w, name, 2, (const int64_t[]){out, in}, &l.w));
    snprintf(name, sizeof name, "%s.bias", prefix);
    TRY(weights_f32(w, name, 1, (const int64_t[]){out}, &l.b));
    *ret_linear = l;
out:
    return err;
}

static void mod_silu(mod_times *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        for (int k = 0; k < CFM_STEPS; k++) {
            const double v = x[i].at[k / MOD_LANES][k % MOD_LANES];
            x[i].at[k / MOD_LANES][k % MOD_LANES] = v / (1.0 + exp(-v));
        }
    }
}

/* x: [256] sines, then cosines, of 1000 t exp(-i ln(10000) / 127), the phase rounded to f32 as upstream has it. */
static void mod_sinusoid(const cfm_grid *grid, mod_times *x)
{
    const int half = FLOW_TIME_VALUES / 2;
    const float rate = -(float)(log(10000.0) / (half - 1));
    for (int i = 0; i < half; i++) {
        const float w = (float)exp((double)((float)i * rate));
        for (int k = 0; k < CFM_STEPS; k++) {
            const float phase = 1000.0f * grid->t[k] * w;
            x[i].at[k / MOD_LANES][k % MOD_LANES] = sin((double)phase);
            x[half + i].at[k / MOD_LANES][k % MOD_LANES] = cos((double)phase);
        }
    }
}

/* silu of the time embedding, the input of every projection.   x: [256] scratch, mid, ret_emb: [dim] */
static cf_err mod_time_embed(weights *w, int64_t dim, const cfm_grid *grid, mod_times *mid, mod_times *ret_emb)
{
    cf_err err = CF_OK;
    mod_linear up, down;
    mod_times x[FLOW_TIME_VALUES] = {0};
    mod_sinusoid(grid, x);
    TRY(mod_linear_bind(w, "decoder.estimator.time_embed.time_mlp.0", dim, FLOW_TIME_VALUES, &up));
    TRY(mod_linear_bind(w, "decoder.estimator.time_embed.time_mlp.2", dim, dim, &down));
    mod_linear_run(&up, x, mid);
    mod_silu(mid, dim);
    mod_linear_run(&down, mid, ret_emb);
    mod_silu(ret_emb, dim);
out:
    return err;
}

static void mod_store(const mod_times *y, int64_t count, int64_t line_values, float *table_column)
{
    for (int k = 0; k < CFM_STEPS; k++)
        for (int64_t o = 0; o < count; o++)
            table_column[k * line_values + o] = (float)y[o].at[k / MOD_LANES][k % MOD_LANES];
}

int64_t modulation_line_values(const flow_dims *dims)
{
    return (dims->depth * FLOW_MOD_PER_BLOCK + FLOW_MOD_OUT_COUNT) * dims->dim;
}

cf_err modulation_fill(weights *w, const flow_dims *dims, const cfm_grid *grid, float *ret_table)
{
    cf_err err = CF_OK;
    const int64_t dim = dims->dim, line_values = modulation_line_values(dims);
    mod_times *emb = NULL, *y = NULL;
    mod_linear l;
    TRY(mem_alloc((size_t)dim, sizeof *emb, &emb));
    TRY(mem_alloc((size_t)(dim * FLOW_MOD_PER_BLOCK), sizeof *y, &y));
    TRY(mod_time_embed(w, dim, grid, y, emb));
    for (int64_t i = 0; i < dims->depth; i++) {
        char prefix[96];
        snprintf(prefix, sizeof prefix, "decoder.estimator.transformer_blocks.%d.attn_norm.linear", (int)i);
        TRY(mod_linear_bind(w, prefix, FLOW_MOD_PER_BLOCK * dim, dim, &l));
        mod_linear_run(&l, emb, y);
        mod_store(y, l.out, line_values, ret_table + i * FLOW_MOD_PER_BLOCK * dim);
    }
    TRY(mod_linear_bind(w, "decoder.estimator.norm_out.linear", FLOW_MOD_OUT_COUNT * dim, dim, &l));
    mod_linear_run(&l, emb, y);
    mod_store(y, l.out, line_values, ret_table + dims->depth * FLOW_MOD_PER_BLOCK * dim);
out:
    mem_free(emb);
    mem_free(y);
    return err;
}
