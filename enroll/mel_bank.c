/*
 * mel_bank.c - the two kinds of triangular filter banks. Made once; the caller owns them.
 *
 * Fails: CF_ERR_NOMEM.
 * Source: librosa 0.10.2 filters.mel, core/convert.py hz_to_mel, mel_to_hz (f32 weights, normalised in f64, rounded
 * again); torchaudio 2.3.1 compliance/kaldi.py get_mel_banks, mel_scale_scalar.
 */
#include <math.h>

#include "common/base/mem.h"
#include "enroll/features.h"

static double slaney_mel(double hz)
{
    return hz < 1000.0 ? hz / (200.0 / 3.0) : 15.0 + log(hz / 1000.0) / (log(6.4) / 27.0);
}

static double slaney_hz(double mel)
{
    return mel < 15.0 ? mel * (200.0 / 3.0) : 1000.0 * exp((mel - 15.0) * (log(6.4) / 27.0));
}

static double kaldi_mel(double hz)
{
    return 1127.0 * log(1.0 + hz / 700.0);
}

static cf_err bank_open(int32_t bands, int32_t bins, mel_bank *ret_bank)
{
    cf_err err;
    mel_bank b = {.bands = bands, .bins = bins};
    TRY(mem_alloc((size_t)bands, sizeof *b.first, &b.first));
    TRY(mem_alloc((size_t)bands, sizeof *b.count, &b.count));
    TRY(mem_alloc((size_t)bands * (size_t)bins, sizeof *b.weights, &b.weights));
    *ret_bank = b;
    b = (mel_bank){0};
out:
    mel_bank_done(&b);
    return err;
}

void mel_bank_done(mel_bank *b)
{
    mem_free(b->first);
    mem_free(b->count);
    mem_free(b->weights);
    *b = (mel_bank){0};
}

/* Notes where each band's weights are not zero. */
static void bank_find_spans(mel_bank *b)
{
    for (int32_t band = 0; band < b->bands; band++) {
        const float *w = b->weights + band * b->bins;
        int32_t first = 0, end = b->bins;
        while (first < end && w[first] == 0.0f)
            first++;
        while (end > first && w[end - 1] == 0.0f)
            end--;
        b->first[band] = first;
        b->count[band] = end - first;
    }
}

static double triangle(double at, double left, double middle, double right)
{
    const double up = (at - left) / (middle - left), down = (right - at) / (right - middle);
    const double least = up < down ? up : down;
    return least > 0.0 ? least : 0.0;
}

cf_err mel_bank_slaney(int32_t rate_hz, int32_t points, int32_t bands, double low_hz, double high_hz,
                       mel_bank *ret_bank)
{
    cf_err err;
    mel_bank b = {0};
    const double low = slaney_mel(low_hz), step = (slaney_mel(high_hz) - low) / (bands + 1);

    TRY(bank_open(bands, points / 2 + 1, &b));
    for (int32_t band = 0; band < bands; band++) {
        const double left = slaney_hz(low + step * band), middle = slaney_hz(low + step * (band + 1));
        const double right = slaney_hz(low + step * (band + 2));
        for (int32_t k = 0; k < b.bins; k++) {
            const float w = (float)triangle((double)k * rate_hz / points, left, middle, right);
            b.weights[band * b.bins + k] = (float)((double)w * (2.0 / (right - left)));
        }
    }
    bank_find_spans(&b);
    *ret_bank = b;
out:
    return err;
}

/* Slopes in f32, step by step as upstream: the lowest bands hold one bin near the foot of its triangle, where the
 * rounding of mel values (2840 at 8 kHz) shows in the weight. */
static float kaldi_weight(float at, float low, float step, int32_t band)
{
    const float left = low + (float)band * step, middle = low + ((float)band + 1.0f) * step;
    const float right = low + ((float)band + 2.0f) * step;
    const float up = (at - left) / (middle - left), down = (right - at) / (right - middle);
    const float least = up < down ? up : down;
    return least > 0.0f ? least : 0.0f;
}

cf_err mel_bank_kaldi(int32_t rate_hz, int32_t points, int32_t bands, double low_hz, double high_hz, mel_bank *ret_bank)
{
    cf_err err;
    mel_bank b = {0};
    const double low = kaldi_mel(low_hz), step = (kaldi_mel(high_hz) - low) / (bands + 1);

    TRY(bank_open(bands, points / 2 + 1, &b));
    for (int32_t k = 0; k < points / 2; k++) { /* the last bin has no weight */
        const float hz = (float)((double)rate_hz / points) * (float)k;
        const float at = 1127.0f * (float)log((double)(1.0f + hz / 700.0f));
        for (int32_t band = 0; band < bands; band++)
            b.weights[band * b.bins + k] = kaldi_weight(at, (float)low, (float)step, band);
    }
    bank_find_spans(&b);
    *ret_bank = b;
out:
    return err;
}
