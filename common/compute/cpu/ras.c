/*
 * ras.c - op_ras on the CPU: repetition-aware sampling, rows side by side. A row takes 29 KiB of stack.
 *
 *     p = softmax(logits)                      f32; masked ids have p = 0
 *     C = nucleus(p)                           at most 25 ids, the one that crosses 0.8 included
 *     t = draw from C by p, uniform 0
 *     t in the last 10 ids?  t = draw from softmax over all ids but t, uniform 1
 *
 * The softmax's denominator is summed in f64 (ras_rule.h says in which order) and rounded once; the nucleus is summed
 * in f32 in descending order, as upstream does. Draws invert the cumulative sum in f64: its rounding is far below one
 * step of u.
 *
 * Fails: never; logits that are not finite are told in the result. Asserts uniforms and lines.
 * Source: cosy utils/common.py ras_sampling, nucleus_sampling, random_sampling; llm/llm.py sampling_ids @ace7c47.
 * Differs: torch draws argmax(p / exponential) from a global generator; here the inverse of the cumulative sum at a
 * counter-based uniform. The law is the same, the stream is not.
 */
#include "common/compute/cpu/ras.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/compute/cpu/cpu_impl.h"
#include "common/compute/ras_rule.h"

#define ROW_COST (16 * SPEECH_ROWS)

typedef struct ras_logits {
    const vec_ops *vec;  /* borrowed */
    const float *values; /* [codes + SPEECH_CONTROLS], borrowed; finite */
    int32_t codes, mask;
} ras_logits;

#define SIDE_BY_SIDE 8 /* pieces: an addition waits for the last one of its own piece alone */

static void sum_pieces(const float *p, int32_t count, double *ret_sums)
{
    const int32_t size = ras_piece(count, 1);
    int32_t i = 0;
    for (; i < RAS_PIECES && (i + SIDE_BY_SIDE) * size <= count; i += SIDE_BY_SIDE) {
        double sums[SIDE_BY_SIDE] = {0};
        for (int32_t n = 0; n < size; n++)
            for (int32_t s = 0; s < SIDE_BY_SIDE; s++)
                sums[s] += (double)p[(i + s) * size + n];
        memcpy(ret_sums + i, sums, sizeof sums);
    }
    for (; i < RAS_PIECES; i++) {
        ret_sums[i] = 0;
        for (int32_t id = ras_piece(count, i); id < ras_piece(count, i + 1); id++)
            ret_sums[i] += (double)p[id];
    }
}

/* The numerators of a softmax over all open ids, 0 for the others; returns their sum. */
static float weigh(const ras_logits *l, int32_t excluded, float *ret_weights)
{
    const int32_t count = l->codes + SPEECH_CONTROLS;
    double sums[RAS_PIECES];
    memcpy(ret_weights, l->values, (size_t)count * sizeof *ret_weights);
    for (int32_t id = l->codes; id < count; id++) /* all but the excluded one that can be closed */
        if (!ras_open(id, l->codes, l->mask, excluded))
            ret_weights[id] = -INFINITY;
    if (excluded >= 0)
        ret_weights[excluded] = -INFINITY;
    l->vec->ras_exp_shift(l->vec->max(ret_weights, count, -INFINITY), count, ret_weights);
    sum_pieces(ret_weights, count, sums);
    return (float)ras_total(sums); /* >= 1: the largest contributes exp(0) */
}

/* A quotient rises with its numerator, so most ids are told by theirs to be none of the largest. */
int32_t ras_nucleus(const vec_ops *vec, float *p, float total, int32_t count, int32_t *ret_ids)
{
    /* The RAS_TOP_K largest, by insertion: ids come in ascending order, so an equal one goes behind. */
    float largest[RAS_TOP_K], least = -1.0f; /* numerator of the last one held; below all until all places are taken */
    int32_t held = 0;
    for (int64_t id = 0; (id += vec->find_above(p + id, count - id, least)) < count; id++) {
        const float share = p[id] / total;
        if (held == RAS_TOP_K && share <= largest[held - 1])
            continue;
        int32_t at = held < RAS_TOP_K ? held++ : held - 1;
        for (; at > 0 && largest[at - 1] < share; at--) {
            largest[at] = largest[at - 1];
            ret_ids[at] = ret_ids[at - 1];
        }
        largest[at] = share;
        ret_ids[at] = (int32_t)id;
        least = held == RAS_TOP_K ? p[ret_ids[held - 1]] : -1.0f;
    }
    float sum = 0;
    int32_t taken = 0;
    while (taken < held && sum < RAS_TOP_P)
        sum += largest[taken++];
    for (int32_t i = 0; i < taken; i++)
        p[ret_ids[i]] = largest[i];
    return taken;
}

int32_t ras_sample(const vec_ops *vec, const float *logits, int32_t codes, const int32_t *window, int32_t mask,
                   float nucleus_uniform, float fallback_uniform)
{
    const int32_t count = codes + SPEECH_CONTROLS;
    const ras_logits l = {.vec = vec, .values = logits, .codes = codes, .mask = mask};
    float p[SPEECH_ROWS];
    double sums[RAS_PIECES];
    int32_t nucleus[RAS_TOP_K];
    CF_ASSERT(codes >= 2 && codes <= SPEECH_CODES);
    CF_ASSERT(nucleus_uniform >= 0.0f && nucleus_uniform < 1.0f && fallback_uniform >= 0.0f && fallback_uniform < 1.0f);
    const int64_t wrong = vec->find_nonfinite(logits, count);
    if (wrong < count)
        return RAS_REFUSED((int32_t)wrong);
    float total = weigh(&l, -1, p);
    const int32_t id = ras_draw_nucleus(p, nucleus, ras_nucleus(vec, p, total, count, nucleus), nucleus_uniform);
    if (!ras_in_window(window, id))
        return id;
    total = weigh(&l, id, p);
    for (int32_t i = 0; i < count; i++)
        p[i] /= total;
    sum_pieces(p, count, sums);
    return ras_draw_all(p, count, sums, fallback_uniform);
}

static void ras_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_ras_args *a = args;
    const vec_ops *vec = cpu ? cpu->vec : &vec_base; /* NULL: the naive op */
    const int64_t width = a->logits->dims[1];
    const int32_t codes = (int32_t)width - SPEECH_CONTROLS;
    for (int64_t r = first; r < first + count; r++) {
        const int32_t slot = tensor_i32(a->slots)[r];
        int32_t *id = &tensor_i32(a->ids)[r];
        *id = RAS_INERT;
        if (slot < 0)
            continue;
        CF_ASSERT(slot < a->states->dims[0]);
        int32_t *state = tensor_i32(a->states) + (int64_t)slot * RAS_STATE_WORDS;
        *id = ras_sample(vec, tensor_f32(a->logits) + r * width, codes, state + RAS_WINDOW, ras_mask_now(state),
                         ras_uniform(state, RAS_DRAW_NUCLEUS), ras_uniform(state, RAS_DRAW_FALLBACK));
        if (*id >= 0)
            ras_remember(*id, codes, state, &tensor_i32(a->tokens)[slot]);
    }
}

cf_err naive_ras(backend *be, const op_ras_args *a)
{
    (void)be;
    ras_rows(NULL, a, 0, a->logits->dims[0]);
    return CF_OK;
}

cf_err fast_ras(backend *be, const op_ras_args *a)
{
    cpu_run_rows(be, a->logits->dims[0], ROW_COST, ras_rows, a);
    return CF_OK;
}
