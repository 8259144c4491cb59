/*
 * guard.c - the quality guard: nine cheap checks of a finished row. Orchestrator; pure, owns nothing.
 *
 * The model draws its speech at random and sometimes draws badly: sentences swallowed or said twice, babble up to the
 * length limit, the end of the reference spoken first, silence or noise from half precision. Another seed mends most
 * of it. The checks are few and loose: a false alarm costs a row's work again, so the defaults lie outside of what
 * people do. The defaults' reasons:
 *
 *   rates      Mandarin is read at 3..7 characters/s, Korean at 4..8, kana at 7..11; alphabets, without spaces, at
 *              8 (dictation) to 25 letters/s. Fine is 2..12 and 6..30: half as slow and a little faster. The LLM's own
 *              length law (2..20 speech tokens for a text token) is about twice as wide on either side.
 *   slack      2 s: pauses and breaths before, between and after; one word may take that long.
 *   loop       25 tokens = 1 s said again token by token. The sampler refuses what it drew in the last 10, so that
 *              healthy speech, even laughing or a held vowel, does not come near it.
 *   leak       10 tokens = 0.4 s, a short word. The same word said twice hardly shares its codes.
 *   silence    Ten tokens of it are long in speech, and the LLM's filter leaves 5 of a run: 2 s inside is broken.
 *              A recording has a third of a second at either end: 1.5 s is several times that.
 *   level      3000 ppm = -50 dBFS: between speech (-15 to -45) and the pauses of a clean recording (-60 and below).
 *   clipping   1 % of samples at the clamp of the vocoder is audible; loud healthy speech touches it a few times.
 *   dc         50 % of the RMS; recorded and vocoded speech has below 0.5 %, untrained weights 14 to 35 %: a decoder
 *   that
 *              drifts away goes beyond both.
 *
 * Fails: guard_limits_of with CF_ERR_INVALID. Asserts what segments claim: they are ours.
 * Source: cosy cli/model.py CosyVoice3Model.__init__ silent_tokens; hifigan/generator.py audio_limit @ace7c47.
 */
#include "orchestrator/guard.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/rng.h"
#include "common/base/utf8.h"

#define MARKER             "<|endofprompt|>"
#define TAG_BYTES_MAX      34 /* "[quick_breath]", "</laughter>": brackets and at most 32 bytes */
#define LOOSE_DENSE        2  /* a loose character may take as long as this many dense ones: "7" in seventy-seven */
#define LOOP_PERIOD_TOKENS 50 /* longest period looked for: 2 s, a phrase */
#define LEAK_START_TOKENS  10 /* a leak begins within these: a breath may come first */
#define CLIP_LEVEL         0.99f
#define WINDOW_SAMPLES     240 /* 10 ms */
#define MS_PER_TOKEN       (1000.0 / TOKENS_PER_SECOND)
#define MS_PER_SAMPLE      (1000.0 / SAMPLE_RATE_HZ)
#define SEED_DOMAIN        0x47554152u /* "GUAR" */

const char *guard_flag_name(int flag)
{
    static const char *const names[] = {"too-short", "too-long",  "no-stop",    "token-loop", "long-silence",
                                        "clipping",  "dc-offset", "not-finite", "prompt-leak"};
    CF_STATIC_ASSERT(CF_COUNT(names) == GUARD_FLAG_COUNT, "a name for each flag");
    CF_ASSERT(flag >= 0 && flag < GUARD_FLAG_COUNT);
    return names[flag];
}

cf_err guard_limits_of(const config *cfg, guard_limits *ret_limits)
{
    cf_err err;
    if (cfg->guard_dense_per_s_min > cfg->guard_dense_per_s_max)
        FAIL(CF_ERR_INVALID, "guard_dense_per_s_min: %d, expected at most %d, guard_dense_per_s_max",
             (int)cfg->guard_dense_per_s_min, (int)cfg->guard_dense_per_s_max);
    if (cfg->guard_letters_per_s_min > cfg->guard_letters_per_s_max)
        FAIL(CF_ERR_INVALID, "guard_letters_per_s_min: %d, expected at most %d, guard_letters_per_s_max",
             (int)cfg->guard_letters_per_s_min, (int)cfg->guard_letters_per_s_max);
    *ret_limits = (guard_limits){.on = cfg->guard,
                                 .dense_per_s_min = cfg->guard_dense_per_s_min,
                                 .dense_per_s_max = cfg->guard_dense_per_s_max,
                                 .letters_per_s_min = cfg->guard_letters_per_s_min,
                                 .letters_per_s_max = cfg->guard_letters_per_s_max,
                                 .length_slack_ms = cfg->guard_length_slack_ms,
                                 .loop_tokens = cfg->guard_loop_tokens,
                                 .leak_tokens = cfg->guard_leak_tokens,
                                 .silence_ms = cfg->guard_silence_ms,
                                 .silence_ends_ms = cfg->guard_silence_ends_ms,
                                 .silence_level_ppm = cfg->guard_silence_level_ppm,
                                 .clip_permille = cfg->guard_clip_permille,
                                 .dc_permille = cfg->guard_dc_permille};
    err = CF_OK;
out:
    return err;
}

typedef enum char_class { CHAR_LOOSE, CHAR_DENSE, CHAR_LETTER, CHAR_MUTE } char_class;

/* By ranges, coarsely: a wrong class of a rare character moves a bound by a fraction of a second. What no range holds
 * is loose. */
static char_class class_of(uint32_t code_point)
{
    static const struct {
        uint32_t first, last;
        char_class is;
    } ranges[] = {{0x00, 0x22, CHAR_MUTE},      {0x27, 0x29, CHAR_MUTE},       {0x2C, 0x2E, CHAR_MUTE},
                  {0x3A, 0x3B, CHAR_MUTE},      {0x3F, 0x3F, CHAR_MUTE},       {0x5B, 0x5B, CHAR_MUTE},
                  {0x5D, 0x5D, CHAR_MUTE},      {0x60, 0x60, CHAR_MUTE},       {0x61, 0x7A, CHAR_LETTER},
                  {0x7B, 0x7B, CHAR_MUTE},      {0x7D, 0x7D, CHAR_MUTE},       {0x7F, 0xA1, CHAR_MUTE},
                  {0xC0, 0x2FF, CHAR_LETTER},   {0x300, 0x36F, CHAR_MUTE},     {0x370, 0x10FF, CHAR_LETTER},
                  {0x1200, 0x137F, CHAR_DENSE}, {0x1380, 0x1FFF, CHAR_LETTER}, {0x2000, 0x206F, CHAR_MUTE},
                  {0x3005, 0x3007, CHAR_DENSE}, {0x3000, 0x303F, CHAR_MUTE},   {0x30FB, 0x30FB, CHAR_MUTE},
                  {0x3040, 0x312F, CHAR_DENSE}, {0x31A0, 0x31BF, CHAR_DENSE},  {0x31F0, 0x31FF, CHAR_DENSE},
                  {0x3400, 0x4DBF, CHAR_DENSE}, {0x4E00, 0xA48F, CHAR_DENSE},  {0xA640, 0xABFF, CHAR_LETTER},
                  {0xAC00, 0xD7A3, CHAR_DENSE}, {0xF900, 0xFAFF, CHAR_DENSE},  {0xFB00, 0xFDFF, CHAR_LETTER},
                  {0xFE00, 0xFE6F, CHAR_MUTE},  {0xFE70, 0xFEFE, CHAR_LETTER}, {0xFEFF, 0xFF02, CHAR_MUTE},
                  {0xFF07, 0xFF09, CHAR_MUTE},  {0xFF0C, 0xFF0E, CHAR_MUTE},   {0xFF1A, 0xFF1B, CHAR_MUTE},
                  {0xFF1F, 0xFF1F, CHAR_MUTE},  {0xFF41, 0xFF5A, CHAR_LETTER}, {0xFF5F, 0xFF65, CHAR_MUTE},
                  {0xFF66, 0xFFDC, CHAR_DENSE}, {0x20000, 0x3FFFF, CHAR_DENSE}};
    for (size_t i = 0; i < CF_COUNT(ranges); i++)
        if (code_point >= ranges[i].first && code_point <= ranges[i].last)
            return ranges[i].is;
    return CHAR_LOOSE;
}

/* Bytes of the tag that text begins with, brackets included: one word, "[breath]" or "</strong>"; else 0. */
static size_t tag_bytes(const char *text, size_t text_bytes)
{
    if (text_bytes < 3 || (text[0] != '[' && text[0] != '<'))
        return 0;
    const char shut = text[0] == '[' ? ']' : '>';
    for (size_t i = 1; i < text_bytes && i < TAG_BYTES_MAX; i++) {
        if (text[i] == shut)
            return i > 1 ? i + 1 : 0;
        if ((unsigned char)text[i] <= ' ' || text[i] == text[0])
            return 0;
    }
    return 0;
}

/* Offset behind the last marker, 0 without one. */
static size_t spoken_off(const char *text, size_t text_bytes)
{
    const size_t marker_bytes = sizeof MARKER - 1;
    for (size_t end = text_bytes; end >= marker_bytes; end--)
        if (memcmp(text + end - marker_bytes, MARKER, marker_bytes) == 0)
            return end;
    return 0;
}

guard_text guard_text_of(const char *text, size_t text_bytes)
{
    guard_text counts = {0};
    for (size_t off = spoken_off(text, text_bytes); off < text_bytes;) {
        const size_t tag = tag_bytes(text + off, text_bytes - off);
        if (tag > 0) {
            counts.loose += text[off] == '[';
            off += tag;
            continue;
        }
        uint32_t code_point = 0;
        const size_t bytes = utf8_decode(text + off, text_bytes - off, &code_point);
        CF_ASSERT(bytes > 0);
        const char_class is = class_of(code_point);
        counts.dense += is == CHAR_DENSE;
        counts.letters += is == CHAR_LETTER;
        counts.loose += is == CHAR_LOOSE;
        off += bytes;
    }
    return counts;
}

/* Silence along a row: what has passed since the last sound, and the longest between two sounds. */
typedef struct stretch {
    double run_ms, inside_ms, begin_ms;
    bool heard; /* a sound */
} stretch;

static void stretch_add(stretch *s, bool silent, double ms)
{
    if (silent) {
        s->run_ms += ms;
        return;
    }
    if (!s->heard)
        s->begin_ms = s->run_ms;
    else if (s->run_ms > s->inside_ms)
        s->inside_ms = s->run_ms;
    s->heard = true;
    s->run_ms = 0;
}

static bool stretch_too_long(const stretch *s, const guard_limits *l)
{
    return s->inside_ms > l->silence_ms || s->begin_ms > l->silence_ends_ms || s->run_ms > l->silence_ends_ms;
}

/* Sums over some samples. Doubles hold any float's square, so `energy` is finite when all of them are. */
typedef struct sums {
    double sum, energy;
    int64_t clipped;
} sums;

static sums sums_of(const float *samples, int64_t count)
{
    sums s = {0};
    for (int64_t i = 0; i < count; i++) {
        const double x = (double)samples[i];
        s.sum += x;
        s.energy += x * x;
        s.clipped += samples[i] >= CLIP_LEVEL || samples[i] <= -CLIP_LEVEL;
    }
    return s;
}

/* The one pass over a segment's samples. *ret_spoken_ms: from the first to the last sound. */
static uint32_t check_samples(const guard_limits *l, const guard_segment *seg, stretch *silence, double *ret_spoken_ms)
{
    const double level = (double)l->silence_level_ppm * 1e-6, level_power = level * level;
    const double sample_ms = MS_PER_SAMPLE * seg->speed;
    uint32_t flags = 0;
    sums all = {0};
    int64_t sound_off = -1, sound_end = -1;
    for (int64_t off = 0; off < seg->samples_count; off += WINDOW_SAMPLES) {
        const int64_t left = seg->samples_count - off;
        const int64_t count = left < WINDOW_SAMPLES ? left : WINDOW_SAMPLES;
        const sums window = sums_of(seg->samples + off, count);
        const bool finite = isfinite(window.energy);
        const bool silent = window.energy < level_power * (double)count; /* not when it is NaN */
        stretch_add(silence, silent, (double)count * sample_ms);
        if (!silent) {
            sound_off = sound_off < 0 ? off : sound_off;
            sound_end = off + count;
        }
        if (!finite) {
            flags |= GUARD_BIT(GUARD_NOT_FINITE);
            continue;
        }
        all.sum += window.sum;
        all.energy += window.energy;
        all.clipped += window.clipped;
    }
    const double count = (double)seg->samples_count;
    if ((double)all.clipped * 1000 > (double)l->clip_permille * count)
        flags |= GUARD_BIT(GUARD_CLIPPING);
    /* mean / RMS > limit, squared: sum^2 / n^2 against energy / n. Nobody hears the mean of what is silent. */
    const double share = (double)l->dc_permille * 1e-3;
    if (all.energy >= level_power * count && all.sum * all.sum > share * share * all.energy * count)
        flags |= GUARD_BIT(GUARD_DC_OFFSET);
    *ret_spoken_ms = (double)(sound_end - sound_off) * sample_ms;
    return flags;
}

/* Short: sounds alone count, or a swallowed half would hide behind silence. Long: everything counts. */
static uint32_t check_length(const guard_limits *l, const guard_segment *seg, double spoken_ms)
{
    const double dense = seg->text.dense, letters = seg->text.letters, loose = seg->text.loose;
    const double min_ms = 1000 * (dense / l->dense_per_s_max + letters / l->letters_per_s_max);
    const double max_ms = 1000 * ((dense + LOOSE_DENSE * loose) / l->dense_per_s_min + letters / l->letters_per_s_min) +
                          l->length_slack_ms;
    const double ms = (double)seg->samples_count * MS_PER_SAMPLE * seg->speed;
    uint32_t flags = 0;
    if (spoken_ms < min_ms || (spoken_ms <= 0 && loose > 0))
        flags |= GUARD_BIT(GUARD_TOO_SHORT);
    if (ms > max_ms)
        flags |= GUARD_BIT(GUARD_TOO_LONG);
    return flags;
}

static bool token_silent(const guard_segment *seg, int32_t token)
{
    static const int32_t silent[] = {SPEECH_SILENT}; /* ascending */
    if (seg->speech_codes != SPEECH_CODES)
        return false;
    for (size_t i = 0; i < CF_COUNT(silent) && silent[i] <= token; i++)
        if (silent[i] == token)
            return true;
    return false;
}

/* Whether some stretch says again what stood `period` tokens before, for more than the limit. Silence that is the
 * same neither counts nor ends it: every pause looks like the next. */
static bool tokens_loop(const guard_segment *seg, int32_t period, int32_t limit_tokens)
{
    int32_t again = 0;
    for (int32_t i = period; i < seg->tokens_count; i++) {
        if (seg->tokens[i] != seg->tokens[i - period])
            again = 0;
        else if (!token_silent(seg, seg->tokens[i]) && ++again > limit_tokens)
            return true;
    }
    return false;
}

/* Whether the segment begins with more of the prompt than the limit. Upstream's failure copies the prompt's last
 * words; where they end is not sure, since silence follows them, so any part of the prompt counts. */
static bool tokens_leak(const guard_segment *seg, int32_t limit_tokens)
{
    for (int32_t start = 0; start < seg->tokens_count && start < LEAK_START_TOKENS; start++)
        for (int32_t from = 0; from < seg->prompt_tokens_count; from++) {
            int32_t copied = 0;
            for (int32_t i = 0; start + i < seg->tokens_count && from + i < seg->prompt_tokens_count &&
                                seg->tokens[start + i] == seg->prompt_tokens[from + i];
                 i++)
                if (!token_silent(seg, seg->tokens[start + i]) && ++copied > limit_tokens)
                    return true;
        }
    return false;
}

static uint32_t check_tokens(const guard_limits *l, const guard_segment *seg, stretch *silence)
{
    uint32_t flags = seg->stopped ? 0 : GUARD_BIT(GUARD_NO_STOP);
    for (int32_t i = 0; i < seg->tokens_count; i++)
        stretch_add(silence, token_silent(seg, seg->tokens[i]), MS_PER_TOKEN);
    for (int32_t period = 1; period <= LOOP_PERIOD_TOKENS; period++)
        if (tokens_loop(seg, period, l->loop_tokens)) {
            flags |= GUARD_BIT(GUARD_TOKEN_LOOP);
            break;
        }
    if (tokens_leak(seg, l->leak_tokens))
        flags |= GUARD_BIT(GUARD_PROMPT_LEAK);
    return flags;
}

uint32_t guard_check(const guard_limits *limits, const guard_segment *segments, size_t count)
{
    if (!limits->on)
        return 0;
    uint32_t flags = 0;
    stretch sound = {0}, tokens = {0};
    for (size_t i = 0; i < count; i++) {
        double spoken_ms;
        CF_ASSERT(segments[i].speed > 0);
        CF_ASSERT(segments[i].samples_count == 0 || segments[i].samples);
        flags |= check_samples(limits, &segments[i], &sound, &spoken_ms);
        flags |= check_length(limits, &segments[i], spoken_ms);
        flags |= check_tokens(limits, &segments[i], &tokens);
    }
    if (stretch_too_long(&sound, limits) || stretch_too_long(&tokens, limits))
        flags |= GUARD_BIT(GUARD_LONG_SILENCE);
    return flags;
}

uint64_t guard_seed(uint64_t row_seed, int attempt)
{
    CF_ASSERT(attempt >= 0);
    if (attempt == 0)
        return row_seed;
    const uint32_t counter[4] = {(uint32_t)attempt, 0, 0, SEED_DOMAIN};
    uint32_t words[4];
    rng_philox(row_seed, counter, words);
    return (uint64_t)words[1] << 32 | words[0];
}
