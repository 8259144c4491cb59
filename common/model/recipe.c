/*
 * recipe.c - the values of synthetic models, bit for bit the published recipe. Pure functions.
 *
 * A value is a SplitMix64 word at (key of the tensor's name, flat index): any part of any tensor can be made alone, so
 * files are streamed and hashes checked without holding a model. Exact arithmetic: u has 24 bits, centre and amplitude
 * are f32, their product and sum are evaluated in double and rounded once.
 * Fails: recipe_table CF_ERR_NOMEM. Source: synthetic.md 1 to 5.
 */
#include "common/model/recipe.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/sha256.h"
#include "common/model/recipe_impl.h"

#define GOLDEN 0x9E3779B97F4A7C15ull /* SplitMix64's increment: 2^64 over the golden ratio */

static const struct {
    const char *name;
    llm_dims llm;
    flow_dims flow;
    hift_dims hift;
    double f0_bias;
} SIZES[] = {
    [RECIPE_TINY] = {"tiny", {128, 2, 2, 1, 320, 832, SPEECH_CODES}, {128, 2, 2, 64, SPEECH_CODES}, {64, 32}, 130.0},
    [RECIPE_SMALL] =
        {"small", {256, 4, 4, 2, 1024, 832, SPEECH_CODES}, {256, 4, 4, 128, SPEECH_CODES}, {128, 96}, 110.0},
    [RECIPE_FULL] =
        {"full", {896, 24, 14, 2, 4864, 151936, SPEECH_CODES}, {1024, 22, 16, 1024, SPEECH_CODES}, {512, 512}, 60.0},
};

const char *recipe_size_name(recipe_size size)
{
    return SIZES[size].name;
}

void recipe_dims(recipe_size size, llm_dims *ret_llm, flow_dims *ret_flow, hift_dims *ret_hift)
{
    *ret_llm = SIZES[size].llm;
    *ret_flow = SIZES[size].flow;
    *ret_hift = SIZES[size].hift;
}

cf_err recipe_table(const recipe *r, model_stage stage, stage_table *ret_table)
{
    CF_ASSERT((unsigned)r->size < CF_COUNT(SIZES));
    switch (stage) {
    case MODEL_LLM:
        return stage_table_llm(&SIZES[r->size].llm, ret_table);
    case MODEL_FLOW:
        return stage_table_flow(&SIZES[r->size].flow, ret_table);
    default:
        return stage_table_hift(&SIZES[r->size].hift, SIZES[r->size].f0_bias, ret_table);
    }
}

uint64_t recipe_key(uint64_t seed, const char *name)
{
    return fnv1a64(FNV64_OFFSET, name, strlen(name)) ^ seed * GOLDEN;
}

/* Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the mixing function). */
uint64_t recipe_word(uint64_t key, uint64_t idx)
{
    uint64_t z = key + (idx + 1) * GOLDEN;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

void recipe_uniform(uint64_t key, uint64_t first, size_t count, double centre, double amplitude, float *ret_values)
{
    const double c = (double)(float)centre;
    const double a = (double)(float)amplitude;
    for (size_t i = 0; i < count; i++) {
        const double u = (double)(recipe_word(key, first + i) >> 40) * 0x1p-24;
        ret_values[i] = (float)(c + (2.0 * u - 1.0) * a);
    }
}

static bool ends_with(const char *name, const char *suffix)
{
    const size_t n = strlen(name);
    const size_t s = strlen(suffix);
    return n >= s && strcmp(name + n - s, suffix) == 0;
}

/* Scales values in f32, as the recipe does. */
static void scale(float *values, size_t count, float factor)
{
    for (size_t i = 0; i < count; i++)
        values[i] *= factor;
}

/* A few outlier channels: 300 t^9 of a uniform t. */
static void outlier_bias(uint64_t key, uint64_t first, size_t count, float *values)
{
    recipe_uniform(key, first, count, 0.0, 1.0, values);
    for (size_t i = 0; i < count; i++) {
        const double t = (double)values[i];
        const double t2 = t * t;
        const double t4 = t2 * t2;
        values[i] = (float)(300.0 * (t4 * t4 * t));
    }
}

static void make_harsh(const stage_tensor *t, uint64_t key, uint64_t first, size_t count, float *values)
{
    if (ends_with(t->name, "input_embed.proj.weight"))
        scale(values, count, 8.0f);
    if (ends_with(t->name, "attn.to_out.0.weight") || ends_with(t->name, "ff.ff.2.weight"))
        scale(values, count, 100.0f);
    if (ends_with(t->name, "input_embed.proj.bias"))
        outlier_bias(key, first, count, values);
    if (ends_with(t->name, "attn.to_q.weight") || ends_with(t->name, "attn.to_k.weight")) {
        const uint64_t head_end = (uint64_t)MODEL_HEAD_DIM * (uint64_t)t->shape[1]; /* rows 0..63: head 0 */
        const uint64_t left = first < head_end ? head_end - first : 0;
        scale(values, left < count ? (size_t)left : count, 10.0f);
    }
}

void recipe_values(const recipe *r, const stage_tensor *t, uint64_t first, size_t count, float *ret_values)
{
    if (t->kind == STAGE_INV_FREQ) {
        for (size_t i = 0; i < count; i++)
            ret_values[i] = (float)pow(10000.0, -2.0 * (double)(first + i) / (double)MODEL_HEAD_DIM);
        return;
    }
    const uint64_t key = recipe_key(r->seed, t->name);
    recipe_uniform(key, first, count, t->centre, t->amplitude, ret_values);
    if (r->harsh)
        make_harsh(t, key, first, count, ret_values);
}
