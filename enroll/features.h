/*
 * features.h - what the two networks and the prompt hear of a recording: whisper's log-mel, Kaldi's filter bank
 * energies, the 24 kHz mel. All tables are [frames, bands], row-major f32. Transforms and sums
 * run in f64, but for the mel's transform: fft1920.h says why.
 */
#ifndef CF_ENROLL_FEATURES_H
#define CF_ENROLL_FEATURES_H

#include <stdint.h>

#include "common/compute/backend.h"
#include "enroll/dft.h"
#include "enroll/fft1920.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NETWORK_RATE_HZ 16000 /* of token mel and filter bank energies */
#define TOKEN_MEL_BANDS 128
#define FBANK_BANDS     80

/* Least samples: what the reflected padding and one whole frame need. */
#define TOKEN_MEL_SAMPLES_MIN  201
#define FBANK_SAMPLES_MIN      400
#define PROMPT_MEL_SAMPLES_MIN 721

typedef struct frame_table {
    float *values; /* [frames, bands], owned */
    int64_t frames;
    int32_t bands;
} frame_table;

void frame_table_done(frame_table *t);

/* A triangular filter bank: band b weighs bins first[b] .. first[b] + count[b] - 1. */
typedef struct mel_bank {
    int32_t bands, bins;
    int32_t *first, *count; /* [bands] */
    float *weights;         /* [bands, bins], owned with the two above */
} mel_bank;

/* Triangles on Slaney's scale with area normalisation, as librosa makes them. */
CF_MUST_CHECK cf_err mel_bank_slaney(int32_t rate_hz, int32_t points, int32_t bands, double low_hz, double high_hz,
                                     mel_bank *ret_bank);
/* Triangles on HTK's scale, straight in mel, no normalisation, as Kaldi makes them. */
CF_MUST_CHECK cf_err mel_bank_kaldi(int32_t rate_hz, int32_t points, int32_t bands, double low_hz, double high_hz,
                                    mel_bank *ret_bank);
void mel_bank_done(mel_bank *b);

typedef struct features {
    dft token_dft, fbank_dft;
    fft1920 *prompt_fft; /* owned */
    mel_bank token_bank, fbank_bank, prompt_bank;
} features;

CF_MUST_CHECK cf_err features_init(backend *be, features *ret_features);
void features_done(features *f);

/* x: 16 kHz. [floor(count / 160), 128]: log10 of mel power, at most 8 below its maximum, (v + 4) / 4.
 * CF_ERR_INVALID below TOKEN_MEL_SAMPLES_MIN. */
CF_MUST_CHECK cf_err features_token_mel(const features *f, const float *x, int64_t count, frame_table *ret_table);

/* x: 16 kHz. [1 + floor((count - 400) / 160), 80]: natural log of mel power minus each band's mean over time. */
CF_MUST_CHECK cf_err features_fbank(const features *f, const float *x, int64_t count, frame_table *ret_table);

/* x: 24 kHz. [floor(count / 480), 80]: natural log of mel magnitude. */
CF_MUST_CHECK cf_err features_prompt_mel(const features *f, const float *x, int64_t count, frame_table *ret_table);

#ifdef __cplusplus
}
#endif
#endif
