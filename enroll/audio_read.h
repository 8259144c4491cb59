/*
 * audio_read.h - a recording of a voice: decoded, mixed to one channel, looked at.
 *
 * Whatever libsndfile reads is accepted (wav, flac, ogg, ...). Integers are scaled by 2^-(bits-1), floats are passed
 * unchanged and not clipped; channels are averaged before anything else, at the file's own rate. No trimming, no
 * loudness correction: upstream does neither.
 */
#ifndef CF_ENROLL_AUDIO_READ_H
#define CF_ENROLL_AUDIO_READ_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/sha256.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RECORDING_RATE_HZ_MIN  16000 /* upstream refuses less: the networks hear up to 8 kHz */
#define RECORDING_RATE_HZ_MAX  768000
#define RECORDING_CHANNELS_MAX 64
#define RECORDING_PEAK_MAX     1e6f /* floats that hold integers of 16 bits pass, what is no audio does not */
#define RECORDING_SECONDS_MAX  30   /* upstream's bound; the tokens of more would not fit a prompt */
#define RECORDING_BYTES_MAX    ((size_t)256 << 20) /* of the file: 30 s of 64 channels at 32 kHz and 4 bytes */

typedef struct recording {
    float *samples; /* [sample_count], owned */
    int64_t sample_count;
    int32_t rate_hz, channels;
    double seconds;
    float peak;           /* largest magnitude of any channel */
    double rms;           /* of the mixed samples */
    int64_t clipped_runs; /* places where a channel stays at full scale for CLIPPED_SAMPLES_MIN samples or more */
    char sha256[SHA256_HEX_BYTES]; /* of the file's bytes */
} recording;

#define CLIPPED_LEVEL       0.999f /* 32735 of 32767 */
#define CLIPPED_SAMPLES_MIN 3

/*
 * Reads the file. CF_ERR_NOTFOUND, CF_ERR_UNSUPPORTED (what libsndfile does not know, rates below 16 kHz),
 * CF_ERR_LIMIT above 30 s, CF_ERR_NUMERIC for NaN or infinity, CF_ERR_CORRUPT for a file that ends early.
 */
CF_MUST_CHECK cf_err recording_read(const char *path, recording *ret_recording);
/* The same from bytes at hand; `name` begins the error texts. */
CF_MUST_CHECK cf_err recording_parse(const char *name, const void *data, size_t data_bytes, recording *ret_recording);
void recording_done(recording *r);

#ifdef __cplusplus
}
#endif
#endif
