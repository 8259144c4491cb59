/*
 * guard.h - PURE: what is wrong with a finished row, by the numbers alone: length against text, speech tokens, samples.
 * No clock, no memory, no sockets. All segments of a row are judged together, once, before it is written.
 *
 *     TRY(guard_limits_of(&cfg, &limits));
 *     flags = guard_check(&limits, segments, count);     0: nothing is wrong
 *     seed = guard_seed(row_seed, attempt);              what a flagged row is spoken with again
 *
 * Times are those of the row at speed 1: a segment spoken at speed x has its milliseconds multiplied by x.
 */
#ifndef CF_ORCHESTRATOR_GUARD_H
#define CF_ORCHESTRATOR_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/config.h"
#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bits of guard_check's result, by number. Only ever append: ledgers have the names. */
typedef enum guard_flag {
    GUARD_TOO_SHORT,
    GUARD_TOO_LONG,
    GUARD_NO_STOP,
    GUARD_TOKEN_LOOP,
    GUARD_LONG_SILENCE,
    GUARD_CLIPPING,
    GUARD_DC_OFFSET,
    GUARD_NOT_FINITE,
    GUARD_PROMPT_LEAK,
    GUARD_FLAG_COUNT
} guard_flag;

#define GUARD_BIT(flag) (1u << (flag))

/* "too-short", ...: what the ledger says. Asserts 0 <= flag < GUARD_FLAG_COUNT. */
const char *guard_flag_name(int flag);

/* guard_* of the configuration. Every limit is the last value that is still fine. */
typedef struct guard_limits {
    bool on;
    int32_t dense_per_s_min, dense_per_s_max;     /* characters per second, see guard_text */
    int32_t letters_per_s_min, letters_per_s_max; /* the same for letters */
    int32_t length_slack_ms;                      /* on top of what the slowest rate allows */
    int32_t loop_tokens;                          /* speech tokens said again in one stretch */
    int32_t leak_tokens;                          /* speech tokens copied from the prompt */
    int32_t silence_ms, silence_ends_ms;          /* inside the row; at its beginning or end */
    int32_t silence_level_ppm;                    /* RMS of 10 ms below which they are silent, of full scale */
    int32_t clip_permille;                        /* samples of a segment at the clamp */
    int32_t dc_permille;                          /* mean of a segment, of its RMS */
} guard_limits;

/* CF_ERR_INVALID when a slowest rate is above the fastest. */
CF_MUST_CHECK cf_err guard_limits_of(const config *cfg, guard_limits *ret_limits);

/* What a text holds to be spoken. */
typedef struct guard_text {
    int32_t dense;   /* Han, kana, Hangul and others that are a syllable each */
    int32_t letters; /* of alphabets: a sound each */
    int32_t loose;   /* digits, capitals, symbols, tags like [breath]: anything between nothing and several words */
} guard_text;

/* Counts a segment's text, which must be valid UTF-8. What stands before the last <|endofprompt|> is not spoken;
 * white space, punctuation and tags in angle brackets are not counted. */
guard_text guard_text_of(const char *text, size_t text_bytes);

/* One segment as it was collected. Pointers are borrowed for the call, NULL where the count is 0. */
typedef struct guard_segment {
    int32_t speech_codes;  /* of the model's vocabulary: which codes are silence is known of the released one alone */
    const int32_t *tokens; /* generated speech tokens */
    int32_t tokens_count;
    const float *samples;
    int64_t samples_count;
    guard_text text;
    bool stopped;                 /* the LLM ended it by a stop id, not its length limit */
    const int32_t *prompt_tokens; /* speech tokens that the LLM was given as prompt */
    int32_t prompt_tokens_count;
    double speed; /* > 0 */
} guard_segment;

/* GUARD_BITs of the row with these segments, in their order. One pass over the samples. 0 when the guard is off. */
uint32_t guard_check(const guard_limits *limits, const guard_segment *segments, size_t count);

/*
 * Seed of attempt 0, 1, ... of a row: attempt 0 has the row's own. The rule is part of what makes bytes reproducible
 * and does not change: words 0 (low half) and 1 of Philox4x32-10 with key row_seed and counter
 * (attempt, 0, 0, 0x47554152). The last word is one that the sampler's draws (rng_uniform) never have.
 */
uint64_t guard_seed(uint64_t row_seed, int attempt);

#ifdef __cplusplus
}
#endif
#endif
