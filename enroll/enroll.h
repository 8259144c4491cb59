/*
 * enroll.h - from a recording to a voice, or to the speech tokens of a recording that is to be converted.
 */
#ifndef CF_ENROLL_ENROLL_H
#define CF_ENROLL_ENROLL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/sha256.h"
#include "common/model/voice.h"
#include "enroll/audio_read.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bounds of a recording that shall be a voice. */
#define VOICE_SECONDS_MIN  0.5  /* less leaves too few tokens to continue */
#define VOICE_SECONDS_WARN 3.0  /* works, but the voice will be vague */
#define VOICE_RMS_MIN      5e-4 /* -66 dB of full scale: rooms are louder than that, so this is silence */
/* Seconds for each character of the transcript; a character that is a word or syllable counts as three. Speech in all
 * languages we know lies between; outside, recording and transcript are of different length. */
#define VOICE_CHAR_S_MIN 0.03
#define VOICE_CHAR_S_MAX 0.25
#define SYLLABLE_CHARS   3

/* Address space for 30 s through networks twice as wide as the released ones; pages are used when touched. */
#define ENROLL_SCRATCH_BYTES ((size_t)4 << 30)

#define ENROLL_WARNINGS_MAX  4
#define ENROLL_WARNING_BYTES 200

typedef struct enroll_warnings {
    char text[ENROLL_WARNINGS_MAX][ENROLL_WARNING_BYTES];
    int count;
} enroll_warnings;

/* Refuses what cannot become a voice (CF_ERR_INVALID, texts begin with name) and notes what will not sound right.
 * prompt_text NULL: a voice without transcript. */
CF_MUST_CHECK cf_err enroll_check_recording(const char *name, const recording *r, const char *prompt_text,
                                            enroll_warnings *w);

typedef struct enroll_config {
    const char *model_path, *device;
    bool naive;
    int threads;      /* 0: as many as this process may run on */
    bool tokens_only; /* the speaker network is not opened */
} enroll_config;

typedef struct enroller enroller;

/* Opens backend and networks. CF_ERR_NOTFOUND or CF_ERR_MISMATCH name file and tensor. */
CF_MUST_CHECK cf_err enroller_open(const enroll_config *cfg, enroller **ret_enroller);
void enroller_close(enroller *e); /* NULL is fine */
/* "cpu fast avx2+fma threads=2; 12 blocks of 1280, 20 heads; ..." */
void enroller_describe(const enroller *e, char *ret_text, size_t text_bytes);

/* How long the parts of the last call took. */
typedef struct enroll_times {
    uint64_t features_us, tokens_us, speaker_us;
} enroll_times;
const enroll_times *enroller_times(const enroller *e);

/* A voice; the caller closes it. */
CF_MUST_CHECK cf_err enroller_voice(enroller *e, const char *name, const recording *r, const char *prompt_text,
                                    voice **ret_voice);

/* Speech tokens of a recording, 25 a second; free with mem_free. */
CF_MUST_CHECK cf_err enroller_tokens(enroller *e, const recording *r, int32_t **ret_tokens, size_t *ret_count);

#ifdef __cplusplus
}
#endif
#endif
