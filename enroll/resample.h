/*
 * resample.h - sample rates, changed the way upstream changes them: torchaudio's windowed sinc, Hann window of six
 * zero crossings, roll-off 0.99. Another resampler gives other speech tokens.
 */
#ifndef CF_ENROLL_RESAMPLE_H
#define CF_ENROLL_RESAMPLE_H

#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* x: [count] at from_hz   *ret_y: [*ret_count] at to_hz, owned by the caller (mem_free). Equal rates give a copy. */
CF_MUST_CHECK cf_err resample(const float *x, int64_t count, int32_t from_hz, int32_t to_hz, float **ret_y,
                              int64_t *ret_count);

#ifdef __cplusplus
}
#endif
#endif
