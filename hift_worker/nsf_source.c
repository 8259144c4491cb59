/*
 * nsf_source.c - the noise table of torch's generator, and the source op over it. Compute thread of hift_worker; the
 * tensors belong to the backend.
 *
 * Upstream draws torch.rand(1, 7200000, 9) once, when the model is built. Building the flow has reseeded the
 * generator with 0 just before, and what is drawn in between depends on the architecture alone, so the table starts
 * at a known draw:
 *
 *   flow start noise 80 x 15000, token embedding 6561 x 80, speaker affine 192 x 80 + 80,
 *   f0 predictor 512 x 80 x 4 + 512, four of 512 x 512 x 3 + 512, 512 + 1, initial phases 9           (hift.md 5.3)
 *
 * These sizes are the released model's even where our model is scaled down: the table is part of the recipe, not of a
 * file.
 *
 * Fails: CF_ERR_NOMEM. Asserts that no utterance is longer than the table.
 * Source: cosy hifigan/generator.py SineGen2, SourceModuleHnNSF; flow/flow_matching.py CausalConditionalCFM @ace7c47.
 */
#include "hift_worker/nsf_source.h"

#include <string.h>

#include "common/base/check.h"
#include "common/compute/ops.h"

#define DRAWS_FLOW     (80 * 15000 + 6561 * 80 + 192 * 80 + 80)
#define DRAWS_F0       ((512 * 80 * 4 + 512) + 4 * (512 * 512 * 3 + 512) + (512 + 1))
#define DRAWS_RAND_INI HIFT_HARMONICS
#define NOISE_FIRST    (DRAWS_FLOW + DRAWS_F0 + DRAWS_RAND_INI)
#define NOISE_BLOCK    (10 * SAMPLES_PER_FRAME) /* samples made at a time, on the stack */

CF_STATIC_ASSERT(NOISE_FIRST == 5052970, "draws before the noise table");
CF_STATIC_ASSERT(HIFT_NOISE_SAMPLES % NOISE_BLOCK == 0, "whole blocks");

cf_err nsf_source_init(backend *be, const float *w, float bias, nsf_source *ret_source)
{
    cf_err err;
    nsf_source s = {0};
    TRY(backend_keep(be, DTYPE_F32, 1, (const int64_t[]){HIFT_HARMONICS}, &s.w));
    TRY(backend_upload(be, w, &s.w));
    TRY(backend_keep(be, DTYPE_F32, 1, (const int64_t[]){1}, &s.bias));
    TRY(backend_upload(be, &bias, &s.bias));
    TRY(backend_keep(be, DTYPE_F32, 1, (const int64_t[]){HIFT_NOISE_SAMPLES}, &s.noise));
    for (int h = 0; h < HIFT_HARMONICS; h++)
        s.harmonics[h] = (double)w[h];
    rng_mt_init(&s.mt, 0);
    rng_mt_skip(&s.mt, NOISE_FIRST);
    *ret_source = s;
out:
    return err;
}

cf_err nsf_source_prepare(nsf_source *s, backend *be, int64_t samples)
{
    cf_err err = CF_OK;
    float block[NOISE_BLOCK];
    CF_ASSERT(samples <= HIFT_NOISE_SAMPLES);
    while (s->ready_samples < samples) {
        for (int n = 0; n < NOISE_BLOCK; n++) {
            double sum = 0.0;
            for (int h = 0; h < HIFT_HARMONICS; h++)
                sum += s->harmonics[h] * (double)rng_mt_uniform(&s->mt);
            block[n] = (float)sum;
        }
        tensor part = tensor_rows(&s->noise, s->ready_samples, NOISE_BLOCK);
        TRY(backend_upload(be, block, &part));
        s->ready_samples += NOISE_BLOCK;
    }
out:
    return err;
}

cf_err nsf_source_run(nsf_source *s, backend *be, const tensor *f0, const op_rows *rows, tensor *y)
{
    cf_err err;
    int64_t longest = 0;
    for (int32_t b = 0; b < rows->count; b++)
        if (rows_length(rows, b) > longest)
            longest = rows_length(rows, b);
    TRY(nsf_source_prepare(s, be, longest * SAMPLES_PER_FRAME));
    const tensor noise = tensor_rows(&s->noise, 0, s->ready_samples);
    TRY(op_source(be,
                  &(op_source_args){.f0 = f0, .w = &s->w, .bias = &s->bias, .noise = &noise, .y = y, .rows = rows}));
out:
    return err;
}
