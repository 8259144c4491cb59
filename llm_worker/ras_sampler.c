/*
 * ras_sampler.c - repetition-aware sampling of one speech id. Pure; runs on the compute thread of an LLM worker; owns
 * nothing, 27 KiB of stack.
 *
 *     p = softmax(logits)                      f32; masked ids have p = 0
 *     C = nucleus(p)                           at most 25 ids, the one that crosses 0.8 included
 *     t = draw from C by p, uniform 0
 *     t in the last 10 ids?  t = draw from softmax over all ids but t, uniform 1
 *
 * The softmax's denominator is summed in f64 in order of ids and rounded once; the nucleus is summed in f32 in
 * descending order, as upstream does. Draws invert the cumulative sum in f64: its rounding is far below one step of u.
 *
 * Fails: CF_ERR_NUMERIC for a logit that is NaN or infinite. Asserts uniforms in [0, 1).
 * Source: cosy utils/common.py ras_sampling, nucleus_sampling, random_sampling; llm/llm.py sampling_ids @ace7c47.
 * Differs: torch draws argmax(p / exponential) from a global generator; here the inverse of the cumulative sum at a
 * counter-based uniform. The law is the same, the stream is not.
 */
#include "llm_worker/ras_sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/base/check.h"

static bool is_masked(ras_mask mask, int32_t codes, int32_t id)
{
    return mask == RAS_MASK_STOP ? id >= codes : mask == RAS_MASK_SOS && id == TOKEN_SOS(codes);
}

/* Softmax over all ids that are neither masked nor `excluded` (-1: none); those get 0. Logits are finite. */
static void softmax_of(const float *logits, int32_t codes, ras_mask mask, int32_t excluded, float *ret_p)
{
    const int32_t rows = codes + SPEECH_CONTROLS;
    float top = -INFINITY;
    for (int32_t id = 0; id < rows; id++)
        if (logits[id] > top && id != excluded && !is_masked(mask, codes, id))
            top = logits[id];
    double sum = 0;
    for (int32_t id = 0; id < rows; id++) {
        const bool open = id != excluded && !is_masked(mask, codes, id);
        ret_p[id] = open ? expf(logits[id] - top) : 0.0f;
        sum += (double)ret_p[id];
    }
    const float total = (float)sum; /* >= 1: the largest contributes exp(0) */
    for (int32_t id = 0; id < rows; id++)
        ret_p[id] /= total;
}

int32_t ras_nucleus(const float *p, int32_t count, int32_t *ret_ids)
{
    /* The RAS_TOP_K largest, by insertion: ids come in ascending order, so an equal one goes behind. */
    int32_t held = 0;
    for (int32_t id = 0; id < count; id++) {
        if (held == RAS_TOP_K && p[id] <= p[ret_ids[held - 1]])
            continue;
        int32_t at = held < RAS_TOP_K ? held++ : held - 1;
        for (; at > 0 && p[ret_ids[at - 1]] < p[id]; at--)
            ret_ids[at] = ret_ids[at - 1];
        ret_ids[at] = id;
    }
    float sum = 0;
    int32_t taken = 0;
    while (taken < held && sum < RAS_TOP_P)
        sum += p[ret_ids[taken++]];
    return taken;
}

/* The first id whose cumulative weight exceeds uniform * total; weights of 0 are never drawn. ids NULL: 0, 1, ... */
static int32_t draw(const float *p, const int32_t *ids, int32_t count, float uniform)
{
    CF_ASSERT(uniform >= 0.0f && uniform < 1.0f);
    double total = 0;
    for (int32_t i = 0; i < count; i++)
        total += (double)p[ids ? ids[i] : i];
    const double target = (double)uniform * total;
    double sum = 0;
    int32_t last = -1;
    for (int32_t i = 0; i < count; i++) {
        const int32_t id = ids ? ids[i] : i;
        if (p[id] <= 0.0f)
            continue;
        last = id;
        sum += (double)p[id];
        if (sum > target)
            break;
    }
    CF_ASSERT(last >= 0);
    return last;
}

static bool in_window(const int32_t *hist, int32_t hist_count, int32_t id)
{
    const int32_t first = hist_count > RAS_WINDOW_TOKENS ? hist_count - RAS_WINDOW_TOKENS : 0;
    for (int32_t i = first; i < hist_count; i++)
        if (hist[i] == id)
            return true;
    return false;
}

cf_err ras_sample(const float *logits, int32_t codes, const int32_t *hist, int32_t hist_count, ras_mask mask,
                  float nucleus_uniform, float fallback_uniform, int32_t *ret_id)
{
    const int32_t rows = codes + SPEECH_CONTROLS;
    CF_ASSERT(codes >= 1 && codes <= SPEECH_CODES);
    float p[SPEECH_ROWS];
    int32_t nucleus[RAS_TOP_K];
    for (int32_t id = 0; id < rows; id++)
        if (!isfinite(logits[id]))
            return err_set(CF_ERR_NUMERIC, "logit of speech id %d after %d tokens is %f: expected a finite number",
                           (int)id, (int)hist_count, (double)logits[id]);
    softmax_of(logits, codes, mask, -1, p);
    const int32_t count = ras_nucleus(p, rows, nucleus);
    int32_t id = draw(p, nucleus, count, nucleus_uniform);
    if (in_window(hist, hist_count, id)) {
        softmax_of(logits, codes, mask, id, p);
        id = draw(p, NULL, rows, fallback_uniform);
    }
    *ret_id = id;
    return CF_OK;
}
