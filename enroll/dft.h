/*
 * dft.h - power spectra of real frames in f64, as two direct products on the backend after one step of four.
 *
 * A frame of N = 4 M points is cut into four interleaved parts of M points; a part is folded into its even and its odd
 * half, whose transforms are a cosine and a sine matrix; the parts are joined with N-th roots of unity. For 400
 * and 512 points that is about as fast as a fast transform, and it needs nothing but op_conv1d (docs/model/voice.md).
 */
#ifndef CF_ENROLL_DFT_H
#define CF_ENROLL_DFT_H

#include <stdint.h>

#include "common/compute/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dft {
    backend *be; /* borrowed */
    int32_t points;
    const weight *cosine; /* [M/2 + 1, M/2 + 1], the backend's */
    const weight *sine;   /* [M/2 - 1, M/2 - 1] */
    double *roots;        /* [points, 2]: cos and -sin of 2 pi i / points, owned */
} dft;

/* points: a multiple of 8, at least 16. Tables live in the backend's kept memory. */
CF_MUST_CHECK cf_err dft_init(backend *be, int32_t points, dft *ret_dft);
void dft_done(dft *d);

/* power[t][k] = |sum_i frames[t][i] e^(-2 pi j k i / points)|^2, k = 0 .. points / 2.
 * frames: [frame_count, points]   power: [frame_count, points / 2 + 1]. Takes scratch of the backend and gives it
 * back. */
CF_MUST_CHECK cf_err dft_power(const dft *d, const double *frames, int64_t frame_count, double *power);

#ifdef __cplusplus
}
#endif
#endif
