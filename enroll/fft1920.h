/*
 * fft1920.h - power spectra of real frames of 1920 points in f32, rounded as upstream's are.
 *
 * A band without sound is made of a transform's rounding errors, and the prompt's mel is a logarithm: two good f32
 * transforms, or one and f64, differ there by up to 1e-3. So this one has the same steps in the same order as the
 * transform that computed the reference (oneMKL 2022.2 inside PyTorch 2.3.1, with AVX-512): every bin has its bits.
 */
#ifndef CF_ENROLL_FFT1920_H
#define CF_ENROLL_FFT1920_H

#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define FFT1920_POINTS 1920
#define FFT1920_BINS   961

typedef struct fft1920 fft1920;

CF_MUST_CHECK cf_err fft1920_open(fft1920 **ret_fft);
void fft1920_close(fft1920 *f); /* NULL is fine */

/* power[t][k] = |X[k]|^2 of frame t.   frames: [frame_count, 1920], values of f32   power: [frame_count, 961] */
void fft1920_power(const fft1920 *f, const double *frames, int64_t frame_count, double *power);

#ifdef __cplusplus
}
#endif
#endif
