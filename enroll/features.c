/*
 * features.c - the three feature extractors. The backend's thread; a table owns its values.
 *
 * Fails: CF_ERR_INVALID for recordings shorter than one frame with its padding, CF_ERR_NOMEM.
 * Source: cosy cosyvoice/cli/frontend.py _extract_speech_token, _extract_spk_embedding, _extract_speech_feat @ace7c47;
 * openai-whisper 20231117 whisper/audio.py log_mel_spectrogram; torchaudio 2.3.1 compliance/kaldi.py fbank; Matcha-TTS
 * matcha/utils/audio.py mel_spectrogram.
 * Frames are rounded to f32 where upstream rounds them (window, product, differences); sums are f64.
 * Differs: upstream's transforms are f32. That of the mel has its rounding (fft1920.h); those of the networks are f64,
 * and their noise shows as up to 5e-4 in energies 80 dB below the loudest, more between two processors of upstream's.
 */
#define _GNU_SOURCE /* M_PI */
#include "enroll/features.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#define TOKEN_POINTS 400
#define TOKEN_HOP    160
#define TOKEN_PAD    200

#define FBANK_FRAME    400
#define FBANK_POINTS   512
#define FBANK_HOP      160
#define FBANK_LOW_HZ   20.0
#define PREEMPHASIS    0.97f
#define POVEY_EXPONENT 0.85

#define PROMPT_POINTS FFT1920_POINTS
#define PROMPT_HOP    SAMPLES_PER_FRAME
#define PROMPT_PAD    720

void frame_table_done(frame_table *t)
{
    mem_free(t->values);
    *t = (frame_table){0};
}

cf_err features_init(backend *be, features *ret_features)
{
    cf_err err;
    features f = {0};
    TRY(dft_init(be, TOKEN_POINTS, &f.token_dft));
    TRY(dft_init(be, FBANK_POINTS, &f.fbank_dft));
    TRY(fft1920_open(&f.prompt_fft));
    TRY(mel_bank_slaney(NETWORK_RATE_HZ, TOKEN_POINTS, TOKEN_MEL_BANDS, 0.0, 8000.0, &f.token_bank));
    TRY(mel_bank_kaldi(NETWORK_RATE_HZ, FBANK_POINTS, FBANK_BANDS, FBANK_LOW_HZ, 8000.0, &f.fbank_bank));
    TRY(mel_bank_slaney(SAMPLE_RATE_HZ, PROMPT_POINTS, MEL_BINS, 0.0, 12000.0, &f.prompt_bank));
    *ret_features = f;
    f = (features){0};
out:
    features_done(&f);
    return err;
}

void features_done(features *f)
{
    dft_done(&f->token_dft);
    dft_done(&f->fbank_dft);
    fft1920_close(f->prompt_fft);
    f->prompt_fft = NULL;
    mel_bank_done(&f->token_bank);
    mel_bank_done(&f->fbank_bank);
    mel_bank_done(&f->prompt_bank);
}

/* Sample `at` of x mirrored at both ends, the edge samples not repeated. */
static float reflected(const float *x, int64_t count, int64_t at)
{
    at = at < 0 ? -at : at;
    return x[at >= count ? 2 * (count - 1) - at : at];
}

static float cosine(int32_t i, int32_t period)
{
    return (float)cos((double)((float)i * (float)(2.0 * M_PI / period)));
}

/* Point i of a Hann window, rounded where torch.hann_window rounds: the angle is f32, so the end of the window is off
 * by up to 2e-7, more than f32's own noise in a quiet band. */
static float hann(int32_t i, int32_t period)
{
    return cosine(i, period) * -0.5f + 0.5f;
}

/* Of the prompt's 1920 cosines PyTorch's vector arithmetic, which may be off by one unit in the last place, has these
 * one unit lower or higher than the nearest. A band without sound shows it: 2e-4 of the logarithm. */
static const int16_t COSINES_LOWER[] = {23,   140,  169,  174,  177,  183,  198,  203,  215,  218,  229,
                                        250,  257,  630,  633,  635,  662,  676,  867,  873,  1039, 1044,
                                        1077, 1261, 1278, 1281, 1322, 1333, 1390, 1681, 1691, 1703, 1714,
                                        1715, 1718, 1732, 1742, 1765, 1771, 1880, 1899};
static const int16_t COSINES_HIGHER[] = {3,    60,   79,   84,   109,  332,  339,  344,  768,  932,  936, 1116,
                                         1164, 1175, 1583, 1589, 1619, 1809, 1821, 1829, 1848, 1859, 1917};

/* window: [PROMPT_POINTS] */
static void prompt_window(float *window)
{
    for (int32_t i = 0; i < PROMPT_POINTS; i++)
        window[i] = hann(i, PROMPT_POINTS);
    for (size_t i = 0; i < CF_COUNT(COSINES_LOWER); i++)
        window[COSINES_LOWER[i]] = nextafterf(cosine(COSINES_LOWER[i], PROMPT_POINTS), -2.0f) * -0.5f + 0.5f;
    for (size_t i = 0; i < CF_COUNT(COSINES_HIGHER); i++)
        window[COSINES_HIGHER[i]] = nextafterf(cosine(COSINES_HIGHER[i], PROMPT_POINTS), 2.0f) * -0.5f + 0.5f;
}

/* Frame t is window * x[hop t - pad ..], x mirrored.   window: [points]   frames: [count, points] */
static void cut_frames(const float *x, int64_t samples, const float *window, int32_t points, int32_t hop, int32_t pad,
                       int64_t count, double *frames)
{
    for (int64_t t = 0; t < count; t++)
        for (int32_t i = 0; i < points; i++)
            frames[t * points + i] = (double)(window[i] * reflected(x, samples, hop * t - pad + i));
}

/* One frame of Kaldi: mean removed, differences, window, zeros up to the transform's length. */
static void kaldi_frame(const float *x, const float *window, double *frame)
{
    double sum = 0.0;
    for (int32_t i = 0; i < FBANK_FRAME; i++)
        sum += (double)x[i];
    const float mean = (float)(sum / FBANK_FRAME);
    for (int32_t i = 0; i < FBANK_FRAME; i++) {
        const float now = x[i] - mean, before = x[i > 0 ? i - 1 : 0] - mean;
        frame[i] = (double)((now - PREEMPHASIS * before) * window[i]);
    }
    memset(frame + FBANK_FRAME, 0, (FBANK_POINTS - FBANK_FRAME) * sizeof *frame);
}

static void cut_kaldi_frames(const float *x, int64_t count, double *frames)
{
    float window[FBANK_FRAME];
    for (int32_t i = 0; i < FBANK_FRAME; i++)
        window[i] = (float)pow((double)hann(i, FBANK_FRAME - 1), POVEY_EXPONENT);
    for (int64_t t = 0; t < count; t++)
        kaldi_frame(x + FBANK_HOP * t, window, frames + t * FBANK_POINTS);
}

/* Band b of the bank over one spectrum. */
static double band_sum(const mel_bank *b, int32_t band, const double *bins)
{
    const int32_t first = b->first[band];
    const float *w = b->weights + band * b->bins + first;
    double sum = 0.0;
    for (int32_t k = 0; k < b->count[band]; k++)
        sum += (double)w[k] * bins[first + k];
    return sum;
}

/* What an extractor needs besides its arithmetic: frames, spectra and the table to fill. */
typedef struct extraction {
    double *frames; /* [count, points], owned */
    double *power;  /* [count, points / 2 + 1], owned */
    frame_table table;
} extraction;

static cf_err extraction_open(int64_t count, int32_t points, int32_t bands, extraction *ret_extraction)
{
    cf_err err;
    extraction e = {.table = {.frames = count, .bands = bands}};
    TRY(mem_alloc((size_t)(count * points), sizeof *e.frames, &e.frames));
    TRY(mem_alloc((size_t)(count * (points / 2 + 1)), sizeof *e.power, &e.power));
    TRY(mem_alloc((size_t)(count * bands), sizeof *e.table.values, &e.table.values));
    *ret_extraction = e;
    e = (extraction){0};
out:
    mem_free(e.frames);
    mem_free(e.power);
    frame_table_done(&e.table);
    return err;
}

static void extraction_done(extraction *e)
{
    mem_free(e->frames);
    mem_free(e->power);
    frame_table_done(&e->table);
}

static cf_err check_samples(int64_t count, int64_t least)
{
    if (count < least)
        return err_set(CF_ERR_INVALID, "recording of %lld samples, at least %lld are needed", (long long)count,
                       (long long)least);
    return CF_OK;
}

cf_err features_token_mel(const features *f, const float *x, int64_t count, frame_table *ret_table)
{
    cf_err err;
    extraction e = {0};
    double greatest = -INFINITY;
    float window[TOKEN_POINTS];

    TRY(check_samples(count, TOKEN_MEL_SAMPLES_MIN));
    /* Centred frames are one more; upstream drops the last. */
    TRY(extraction_open(count / TOKEN_HOP, TOKEN_POINTS, TOKEN_MEL_BANDS, &e));
    for (int32_t i = 0; i < TOKEN_POINTS; i++)
        window[i] = hann(i, TOKEN_POINTS);
    cut_frames(x, count, window, TOKEN_POINTS, TOKEN_HOP, TOKEN_PAD, e.table.frames, e.frames);
    TRY(dft_power(&f->token_dft, e.frames, e.table.frames, e.power));
    double *logs = e.frames; /* [frames, 128]: frames are used up */
    for (int64_t t = 0; t < e.table.frames; t++)
        for (int32_t b = 0; b < TOKEN_MEL_BANDS; b++) {
            const double sum = band_sum(&f->token_bank, b, e.power + t * (TOKEN_POINTS / 2 + 1));
            const double v = log10(sum > 1e-10 ? sum : 1e-10);
            logs[t * TOKEN_MEL_BANDS + b] = v;
            greatest = v > greatest ? v : greatest;
        }
    for (int64_t i = 0; i < e.table.frames * TOKEN_MEL_BANDS; i++)
        e.table.values[i] = (float)(((logs[i] > greatest - 8.0 ? logs[i] : greatest - 8.0) + 4.0) / 4.0);
    *ret_table = e.table;
    e.table = (frame_table){0};
out:
    extraction_done(&e);
    return err;
}

cf_err features_fbank(const features *f, const float *x, int64_t count, frame_table *ret_table)
{
    cf_err err;
    extraction e = {0};

    TRY(check_samples(count, FBANK_SAMPLES_MIN));
    TRY(extraction_open(1 + (count - FBANK_FRAME) / FBANK_HOP, FBANK_POINTS, FBANK_BANDS, &e));
    cut_kaldi_frames(x, e.table.frames, e.frames);
    TRY(dft_power(&f->fbank_dft, e.frames, e.table.frames, e.power));
    for (int32_t b = 0; b < FBANK_BANDS; b++) {
        double sum = 0.0;
        double *logs = e.frames; /* [frames] of one band */
        for (int64_t t = 0; t < e.table.frames; t++) {
            const double energy = band_sum(&f->fbank_bank, b, e.power + t * (FBANK_POINTS / 2 + 1));
            logs[t] = log(energy > (double)FLT_EPSILON ? energy : (double)FLT_EPSILON);
            sum += logs[t];
        }
        for (int64_t t = 0; t < e.table.frames; t++)
            e.table.values[t * FBANK_BANDS + b] = (float)(logs[t] - sum / (double)e.table.frames);
    }
    *ret_table = e.table;
    e.table = (frame_table){0};
out:
    extraction_done(&e);
    return err;
}

cf_err features_prompt_mel(const features *f, const float *x, int64_t count, frame_table *ret_table)
{
    cf_err err;
    extraction e = {0};
    float window[PROMPT_POINTS];

    TRY(check_samples(count, PROMPT_MEL_SAMPLES_MIN));
    TRY(extraction_open(count / PROMPT_HOP, PROMPT_POINTS, MEL_BINS, &e));
    prompt_window(window);
    cut_frames(x, count, window, PROMPT_POINTS, PROMPT_HOP, PROMPT_PAD, e.table.frames, e.frames);
    fft1920_power(f->prompt_fft, e.frames, e.table.frames, e.power);
    for (int64_t i = 0; i < e.table.frames * (PROMPT_POINTS / 2 + 1); i++)
        e.power[i] = sqrt(e.power[i] + 1e-9);
    for (int64_t t = 0; t < e.table.frames; t++)
        for (int32_t b = 0; b < MEL_BINS; b++) {
            const double sum = band_sum(&f->prompt_bank, b, e.power + t * (PROMPT_POINTS / 2 + 1));
            e.table.values[t * MEL_BINS + b] = (float)log(sum > 1e-5 ? sum : 1e-5);
        }
    *ret_table = e.table;
    e.table = (frame_table){0};
out:
    extraction_done(&e);
    return err;
}
