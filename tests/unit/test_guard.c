/*
 * test_guard.c - the quality guard on crafted rows: every threshold from both sides, at its default and at another
 * value that comes from configuration; rows that must not be flagged; real recordings.
 *
 * COSYFARM_SHOW=1 prints what a second of audio costs.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/model/tensor_file.h"
#include "orchestrator/guard.h"

enum { SAMPLES_MAX = 60 * SAMPLE_RATE_HZ, ROW_TOKENS_MAX = 1500, PER_MS = SAMPLE_RATE_HZ / 1000, PROMPT_TOKENS = 100 };

/* One segment with room for what a case writes into it. */
typedef struct row {
    guard_segment seg;
    float samples[SAMPLES_MAX];
    int32_t tokens[ROW_TOKENS_MAX], prompt[PROMPT_TOKENS];
} row;

static row row_a, row_b;

static guard_limits defaults(void)
{
    config cfg;
    guard_limits l;
    config_defaults(&cfg);
    assert_ok(guard_limits_of(&cfg, &l));
    return l;
}

/* Limits of a configuration file that sets this one key. */
static guard_limits limits_with(const char *key, int32_t value)
{
    config cfg;
    guard_limits l;
    json *obj = NULL;
    char text[128];
    const int bytes = snprintf(text, sizeof text, "{\"%s\": %d}", key, (int)value);
    config_defaults(&cfg);
    assert_ok(json_parse(text, (size_t)bytes, 2, &obj));
    assert_ok(config_apply(&cfg, obj, "test"));
    json_close(obj);
    assert_ok(guard_limits_of(&cfg, &l));
    return l;
}

static void assert_flags(uint32_t got, uint32_t want, const char *what, int value)
{
    if (got == want)
        return;
    for (int i = 0; i < GUARD_FLAG_COUNT; i++)
        if ((got ^ want) & GUARD_BIT(i))
            print_error("%s %d: %s is %s\n", what, value, guard_flag_name(i),
                        got & GUARD_BIT(i) ? "flagged" : "not flagged");
    fail();
}

/* Distinct codes outside of the silence list: 100.. for generated tokens, 5000.. for the prompt. */
static void row_init(row *r)
{
    for (int32_t i = 0; i < ROW_TOKENS_MAX; i++)
        r->tokens[i] = 500 + i;
    for (int32_t i = 0; i < PROMPT_TOKENS; i++)
        r->prompt[i] = 5000 + i;
    r->seg = (guard_segment){.speech_codes = SPEECH_CODES,
                             .tokens = r->tokens,
                             .tokens_count = 150,
                             .samples = r->samples,
                             .stopped = true,
                             .prompt_tokens = r->prompt,
                             .prompt_tokens_count = PROMPT_TOKENS,
                             .speed = 1};
}

/* Samples that alternate between +level and -level: RMS is the level, the mean 0. */
static void put_level(row *r, int32_t from_ms, int32_t until_ms, float level)
{
    for (int32_t i = from_ms * PER_MS; i < until_ms * PER_MS; i++)
        r->samples[i] = i & 1 ? -level : level;
}

/* `ms` of sound, and a text that takes about as long. */
static void put_sound(row *r, int32_t ms)
{
    put_level(r, 0, ms, 0.1f);
    r->seg.samples_count = (int64_t)ms * PER_MS;
    r->seg.text = (guard_text){.dense = ms / 200};
}

/* Something like speech: voiced syllables of rising and falling level, quiet ends, a pause of 400 ms if time allows,
 * and noise of -75 dBFS throughout. */
static void put_speech(row *r, int32_t ms)
{
    for (int32_t i = 0; i < ms * PER_MS; i++) {
        const int32_t at_ms = i / PER_MS;
        const double t = (double)i / SAMPLE_RATE_HZ, pi = acos(-1);
        const bool quiet = at_ms < 250 || at_ms >= ms - 350 || (ms > 3000 && at_ms >= ms / 2 && at_ms < ms / 2 + 400);
        double x = 0;
        for (int k = 1; k <= 5; k++)
            x += sin(2 * pi * 140 * k * t) / k;
        x *= quiet ? 0 : 0.12 * (1 - cos(2 * pi * 4 * t));
        r->samples[i] = (float)(x + 0.0003 * (2 * (double)rng_uniform(5, 0, (uint32_t)i, 0) - 1));
    }
    r->seg.samples_count = (int64_t)ms * PER_MS;
    r->seg.tokens_count = ms / 40;
    r->seg.text = (guard_text){.dense = ms / 250};
}

static uint32_t check(const guard_limits *l, const row *r)
{
    return guard_check(l, &r->seg, 1);
}

/* Crafts: a row that has just `amount` of what a key limits, in the key's unit, and is healthy otherwise. */
static void craft_dense_fast(row *r, int32_t amount)
{
    put_sound(r, 1000);
    r->seg.text = (guard_text){.dense = amount};
}

static void craft_letters_fast(row *r, int32_t amount)
{
    put_sound(r, 1000);
    r->seg.text = (guard_text){.letters = amount};
}

static void craft_dense_slow(row *r, int32_t amount)
{
    put_sound(r, 2000 + 12000 / amount);
    r->seg.text = (guard_text){.dense = 12};
}

static void craft_letters_slow(row *r, int32_t amount)
{
    put_sound(r, 2000 + 60000 / amount);
    r->seg.text = (guard_text){.letters = 60};
}

static void craft_slack(row *r, int32_t amount)
{
    put_sound(r, 500 + amount);
    r->seg.text = (guard_text){.dense = 1};
}

static void repeat_tokens(row *r, int32_t period, int32_t again)
{
    for (int32_t i = 20 + period; i < 20 + period + again; i++)
        r->tokens[i] = r->tokens[i - period];
    r->seg.tokens_count = 20 + period + again + 20;
}

static void craft_loop_1(row *r, int32_t amount)
{
    put_sound(r, 6000);
    repeat_tokens(r, 1, amount);
}

static void craft_loop_7(row *r, int32_t amount)
{
    put_sound(r, 6000);
    repeat_tokens(r, 7, amount);
}

static void craft_loop_50(row *r, int32_t amount)
{
    put_sound(r, 6000);
    repeat_tokens(r, 50, amount);
}

/* A phrase of four codes and a pause of three of silence: the silence does not count. */
static void craft_loop_pauses(row *r, int32_t amount)
{
    static const int32_t phrase[] = {700, 701, 28, 702, 2, 703, 29};
    put_sound(r, 6000);
    int32_t at = 20, counted = -4;
    for (; counted < amount; at++) {
        r->tokens[at] = phrase[(at - 20) % 7];
        counted += r->tokens[at] >= 700;
    }
    r->seg.tokens_count = at + 20;
}

static void craft_leak(row *r, int32_t amount)
{
    put_sound(r, 6000);
    memcpy(r->tokens, r->prompt + PROMPT_TOKENS - amount, (size_t)amount * sizeof r->tokens[0]);
}

/* Behind a breath, and without the silence with which the prompt ends. */
static void craft_leak_later(row *r, int32_t amount)
{
    put_sound(r, 6000);
    for (int32_t i = 1; i <= 6; i++)
        r->prompt[PROMPT_TOKENS - i] = 28;
    r->tokens[0] = 29;
    memcpy(r->tokens + 5, r->prompt + PROMPT_TOKENS - 6 - amount, (size_t)amount * sizeof r->tokens[0]);
}

static void craft_pause(row *r, int32_t amount)
{
    put_sound(r, 2000 + amount);
    put_level(r, 1000, 1000 + amount, 0.0001f);
    r->seg.text = (guard_text){.dense = 14};
}

static void craft_lead(row *r, int32_t amount)
{
    put_sound(r, 2000 + amount);
    put_level(r, 0, amount, 0.0001f);
    r->seg.text = (guard_text){.dense = 14};
}

static void craft_trail(row *r, int32_t amount)
{
    put_sound(r, 2000 + amount);
    put_level(r, 2000, 2000 + amount, 0.0001f);
    r->seg.text = (guard_text){.dense = 14};
}

static void craft_silent_tokens(row *r, int32_t amount)
{
    static const int32_t silent[] = {SPEECH_SILENT};
    put_sound(r, 6000);
    for (int32_t i = 0; i < amount / 40; i++)
        r->tokens[20 + i] = silent[i % 11];
}

static void craft_hum(row *r, int32_t amount)
{
    put_sound(r, 6000);
    put_level(r, 1000, 4000, (float)amount * 1e-6f);
    r->seg.text.dense = 24;
}

static void craft_clipped(row *r, int32_t amount)
{
    put_sound(r, 1000);
    put_level(r, 0, amount, 0.99f); /* 1 ms of 1000 is 1 permille */
}

/* mean / RMS is the amount: around m, +-0.1 has the RMS sqrt(0.01 + m^2). */
static void craft_dc(row *r, int32_t amount)
{
    const double share = amount / 1000.0;
    put_sound(r, 1000);
    for (int64_t i = 0; i < r->seg.samples_count; i++)
        r->samples[i] += (float)(-0.1 * share / sqrt(1 - share * share));
}

/* Flagged at threshold + bad, not at threshold + fine. */
static const struct {
    const char *key;
    int32_t value, other, fine, bad;
    void (*craft)(row *r, int32_t amount);
    guard_flag flag;
} edges[] = {
    {"guard_dense_per_s_max", 12, 20, 0, 1, craft_dense_fast, GUARD_TOO_SHORT},
    {"guard_letters_per_s_max", 30, 17, 0, 1, craft_letters_fast, GUARD_TOO_SHORT},
    {"guard_dense_per_s_min", 2, 4, 0, -1, craft_dense_slow, GUARD_TOO_LONG},
    {"guard_letters_per_s_min", 6, 10, 0, -1, craft_letters_slow, GUARD_TOO_LONG},
    {"guard_length_slack_ms", 2000, 700, 0, 1, craft_slack, GUARD_TOO_LONG},
    {"guard_loop_tokens", 25, 60, 0, 1, craft_loop_1, GUARD_TOKEN_LOOP},
    {"guard_loop_tokens", 25, 3, 0, 1, craft_loop_7, GUARD_TOKEN_LOOP},
    {"guard_loop_tokens", 25, 120, 0, 1, craft_loop_50, GUARD_TOKEN_LOOP},
    {"guard_loop_tokens", 25, 12, 0, 1, craft_loop_pauses, GUARD_TOKEN_LOOP},
    {"guard_leak_tokens", 10, 4, 0, 1, craft_leak, GUARD_PROMPT_LEAK},
    {"guard_leak_tokens", 10, 20, 0, 1, craft_leak_later, GUARD_PROMPT_LEAK},
    {"guard_silence_ms", 2000, 600, 0, 10, craft_pause, GUARD_LONG_SILENCE},
    {"guard_silence_ms", 2000, 1000, 0, 40, craft_silent_tokens, GUARD_LONG_SILENCE},
    {"guard_silence_ends_ms", 1500, 800, 0, 10, craft_lead, GUARD_LONG_SILENCE},
    {"guard_silence_ends_ms", 1500, 3000, 0, 10, craft_trail, GUARD_LONG_SILENCE},
    {"guard_silence_level_ppm", 3000, 20000, 5, -5, craft_hum, GUARD_LONG_SILENCE},
    {"guard_clip_permille", 10, 200, 0, 1, craft_clipped, GUARD_CLIPPING},
    {"guard_dc_permille", 500, 700, -1, 1, craft_dc, GUARD_DC_OFFSET},
};

static void test_every_threshold_from_both_sides(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        const int32_t values[] = {edges[i].value, edges[i].other};
        for (int k = 0; k < 2; k++) {
            const guard_limits l = k == 0 ? defaults() : limits_with(edges[i].key, values[k]);
            row_init(&row_a);
            edges[i].craft(&row_a, values[k] + edges[i].fine);
            assert_flags(check(&l, &row_a), 0, edges[i].key, values[k] + edges[i].fine);
            row_init(&row_a);
            edges[i].craft(&row_a, values[k] + edges[i].bad);
            assert_flags(check(&l, &row_a), GUARD_BIT(edges[i].flag), edges[i].key, values[k] + edges[i].bad);
        }
    }
}

static void test_rates_that_contradict_each_other(void **state)
{
    (void)state;
    config cfg;
    guard_limits l = {.loop_tokens = 77};
    config_defaults(&cfg);
    cfg.guard_dense_per_s_min = 13;
    assert_err(CF_ERR_INVALID, "guard_dense_per_s_min: 13, expected at most 12", guard_limits_of(&cfg, &l));
    config_defaults(&cfg);
    cfg.guard_letters_per_s_max = 5;
    assert_err(CF_ERR_INVALID, "guard_letters_per_s_min: 6, expected at most 5", guard_limits_of(&cfg, &l));
    assert_int_equal(l.loop_tokens, 77);
}

static void test_no_stop(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    row_init(&row_a);
    put_speech(&row_a, 6000);
    row_a.seg.stopped = false;
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_NO_STOP), "no stop", 0);
}

static void test_not_finite(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 4; i++)
        for (int at = 0; at < 3; at++) {
            row_init(&row_a);
            put_speech(&row_a, 6000);
            const int64_t where[] = {0, 70001, row_a.seg.samples_count - 1};
            row_a.samples[where[at]] = bad[i];
            assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_NOT_FINITE), "not finite, case", i * 3 + at);
        }
    /* The largest float there is has a square, too. */
    row_init(&row_a);
    put_speech(&row_a, 6000);
    row_a.samples[70001] = 3.4e38f;
    assert_flags(check(&l, &row_a), 0, "huge", 0);
}

static void test_healthy_rows_have_no_flag(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    row_init(&row_a);
    for (int32_t ms = 1500; ms <= 50000; ms += 4850) {
        put_speech(&row_a, ms);
        assert_flags(check(&l, &row_a), 0, "speech of ms", ms);
    }
    /* "Hi.": 0.3 s between half a second of silence on either side. */
    row_init(&row_a);
    put_sound(&row_a, 1300);
    put_level(&row_a, 0, 500, 0);
    put_level(&row_a, 800, 1300, 0);
    row_a.seg.tokens_count = 32;
    row_a.seg.text = guard_text_of("Hi.", 3);
    assert_flags(check(&l, &row_a), 0, "Hi.", 0);
    /* Nothing to pronounce may be silence. */
    put_level(&row_a, 0, 1300, 0);
    row_a.seg.text = guard_text_of("...", 3);
    assert_flags(check(&l, &row_a), 0, "...", 0);
}

static void test_silence_instead_of_speech_is_too_short(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    static const char *const texts[] = {"Hi.", "7", "好"};
    for (int i = 0; i < 3; i++) {
        row_init(&row_a);
        put_sound(&row_a, 1000);
        put_level(&row_a, 0, 1000, 0.0001f);
        row_a.seg.text = guard_text_of(texts[i], strlen(texts[i]));
        assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_TOO_SHORT), texts[i], 0);
    }
    /* Nobody hears the mean of what is below the level. */
    for (int64_t i = 0; i < row_a.seg.samples_count; i++)
        row_a.samples[i] = 0.002f;
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_TOO_SHORT), "quiet offset", 0);
    row_a.seg = (guard_segment){.text = {.letters = 1}, .stopped = true, .speed = 1};
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_TOO_SHORT), "no samples", 0);
}

static void test_what_is_no_loop(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    /* A period of 51 is not looked for. */
    row_init(&row_a);
    put_sound(&row_a, 6000);
    repeat_tokens(&row_a, 51, 200);
    assert_flags(check(&l, &row_a), 0, "period", 51);
    /* Silence alone, as long as silence may be: 50 equal codes. */
    row_init(&row_a);
    put_sound(&row_a, 6000);
    for (int32_t i = 30; i < 80; i++)
        row_a.tokens[i] = 28;
    assert_flags(check(&l, &row_a), 0, "silent codes", 50);
    /* In another vocabulary than the released one the same numbers are sounds. */
    row_a.seg.speech_codes = 1145;
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_TOKEN_LOOP), "codes of a small vocabulary", 50);
    /* One different code in the middle starts the count again. */
    row_init(&row_a);
    put_sound(&row_a, 6000);
    for (int32_t i = 20; i < 70; i++)
        row_a.tokens[i] = i == 45 ? 401 : 400;
    assert_flags(check(&l, &row_a), 0, "interrupted", 0);
    row_a.tokens[45] = 400;
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_TOKEN_LOOP), "not interrupted", 0);
}

static void test_what_is_no_leak(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    /* Later in the segment than any leak begins. */
    row_init(&row_a);
    put_sound(&row_a, 6000);
    memcpy(row_a.tokens + 10, row_a.prompt + 60, 40 * sizeof row_a.tokens[0]);
    assert_flags(check(&l, &row_a), 0, "late copy", 0);
    /* One earlier it is one. */
    row_init(&row_a);
    memcpy(row_a.tokens + 9, row_a.prompt + 60, 40 * sizeof row_a.tokens[0]);
    row_a.seg.samples_count = 6000 * PER_MS;
    row_a.seg.text.dense = 30;
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_PROMPT_LEAK), "early copy", 0);
    /* The same, when the LLM was given no prompt speech. */
    row_a.seg.prompt_tokens = NULL;
    row_a.seg.prompt_tokens_count = 0;
    assert_flags(check(&l, &row_a), 0, "no prompt", 0);
    /* Silence is the same everywhere. */
    row_init(&row_a);
    put_sound(&row_a, 6000);
    for (int32_t i = 0; i < 30; i++)
        row_a.tokens[i] = row_a.prompt[PROMPT_TOKENS - 1 - i] = i & 1 ? 28 : 29;
    assert_flags(check(&l, &row_a), 0, "silence as in the prompt", 0);
}

static void test_speed_changes_no_verdict(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    static const struct {
        double speed;
        int32_t ms, pause_ms;
        guard_text text;
        uint32_t want;
    } cases[] = {
        {0.5, 8000, 0, {.dense = 4}, 0},
        {0.5, 8010, 0, {.dense = 4}, GUARD_BIT(GUARD_TOO_LONG)},
        {2, 500, 0, {.dense = 12}, 0},
        {2, 490, 0, {.dense = 12}, GUARD_BIT(GUARD_TOO_SHORT)},
        {0.5, 8000, 4000, {.dense = 14}, 0},
        {0.5, 8000, 4010, {.dense = 14}, GUARD_BIT(GUARD_LONG_SILENCE)},
        {2, 4000, 1010, {.dense = 14}, GUARD_BIT(GUARD_LONG_SILENCE)},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        row_init(&row_a);
        put_sound(&row_a, cases[i].ms);
        put_level(&row_a, 200, 200 + cases[i].pause_ms, 0);
        row_a.seg.text = cases[i].text;
        row_a.seg.speed = cases[i].speed;
        assert_flags(check(&l, &row_a), cases[i].want, "speed case", (int)i);
    }
}

static void test_segments_are_one_row(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    guard_segment both[2];
    row_init(&row_a);
    row_init(&row_b);
    put_speech(&row_a, 6000);
    put_speech(&row_b, 4000);
    memcpy(both, (guard_segment[]){row_a.seg, row_b.seg}, sizeof both);
    assert_flags(guard_check(&l, both, 2), 0, "both healthy", 0);
    assert_flags(guard_check(&l, both, 0), 0, "no segments", 0);
    /* Flags of all segments together. */
    both[0].stopped = false;
    row_b.samples[1000] = NAN;
    assert_flags(guard_check(&l, both, 2), GUARD_BIT(GUARD_NO_STOP) | GUARD_BIT(GUARD_NOT_FINITE), "one each", 0);
    /* A short segment is not excused by a long neighbour. */
    both[0].stopped = true;
    put_speech(&row_b, 4000);
    both[1].text.dense = 60;
    assert_flags(guard_check(&l, both, 2), GUARD_BIT(GUARD_TOO_SHORT), "second short", 0);
    /* A pause across the join is a pause inside: 1.2 s and 0.9 s. */
    put_sound(&row_a, 3200);
    put_level(&row_a, 2000, 3200, 0);
    put_sound(&row_b, 2900);
    put_level(&row_b, 0, 900, 0);
    memcpy(both, (guard_segment[]){row_a.seg, row_b.seg}, sizeof both);
    assert_flags(guard_check(&l, both, 2), GUARD_BIT(GUARD_LONG_SILENCE), "join", 0);
    assert_flags(guard_check(&l, &both[0], 1) | guard_check(&l, &both[1], 1), 0, "alone", 0);
}

static void test_off_and_determinism(void **state)
{
    (void)state;
    guard_limits l = defaults();
    row_init(&row_a);
    put_level(&row_a, 0, 30000, 1);
    put_level(&row_a, 5000, 12000, 0);
    row_a.samples[7] = NAN;
    row_a.seg.samples_count = 30000 * PER_MS;
    row_a.seg.stopped = false;
    row_a.seg.text.letters = 3;
    for (int32_t i = 0; i < 40; i++)
        row_a.tokens[i] = row_a.prompt[i] = 900;
    const uint32_t flags = check(&l, &row_a);
    assert_flags(flags,
                 GUARD_BIT(GUARD_TOO_LONG) | GUARD_BIT(GUARD_NO_STOP) | GUARD_BIT(GUARD_TOKEN_LOOP) |
                     GUARD_BIT(GUARD_LONG_SILENCE) | GUARD_BIT(GUARD_CLIPPING) | GUARD_BIT(GUARD_NOT_FINITE) |
                     GUARD_BIT(GUARD_PROMPT_LEAK),
                 "everything", 0);
    static row copy;
    memcpy(&copy, &row_a, sizeof copy);
    copy.seg.samples = copy.samples;
    copy.seg.tokens = copy.tokens;
    copy.seg.prompt_tokens = copy.prompt;
    for (int i = 0; i < 3; i++)
        assert_int_equal(check(&l, &copy), flags);
    l = limits_with("guard_loop_tokens", 25);
    assert_true(l.on);
    l.on = false;
    assert_int_equal(check(&l, &row_a), 0);
    config cfg;
    config_defaults(&cfg);
    cfg.guard = false;
    assert_ok(guard_limits_of(&cfg, &l));
    assert_int_equal(check(&l, &row_a), 0);
}

static void test_text_is_counted_by_what_it_takes_to_say(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int32_t dense, letters, loose;
    } cases[] = {
        {"", 0, 0, 0},
        {"Hi.", 0, 1, 1},
        {"hello, world! (really)", 0, 16, 0},
        {"NASA's 12% of $5", 0, 3, 9},
        {"希望你以后能够做的比我还好呦。", 14, 0, 0},
        {"こんにちは、コーヒー・ミルク。", 12, 0, 0},
        {"안녕하세요 여러분", 8, 0, 0},
        {"人々〇", 3, 0, 0},
        {"Größe, naïve, año", 0, 12, 1},
        {"Привет, мир", 0, 9, 0},
        {"e\xCC\x81t\xC3\xA9 \xE2\x80\x94 \xE2\x80\xA6", 0, 3, 0}, /* a combining accent, a dash, an ellipsis */
        {"２４ａＢ！", 0, 1, 3},
        {"\xF0\xA0\x80\x80", 1, 0, 0}, /* U+20000 */
        {"\xF0\x9F\x98\x80", 0, 0, 1}, /* an emoji */
        {"[breath]<strong>yes</strong>[quick_breath]", 0, 3, 2},
        {"[h][ǎo]", 0, 0, 2},
        {"[not a tag] <3 a<b []", 0, 9, 3},
        {"[open", 0, 4, 0},
        {"You are a helpful assistant.<|endofprompt|>abc", 0, 3, 0},
        {"ab<|endofprompt|>", 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const guard_text got = guard_text_of(cases[i].text, strlen(cases[i].text));
        if (got.dense != cases[i].dense || got.letters != cases[i].letters || got.loose != cases[i].loose)
            fail_msg("\"%s\": %d dense, %d letters, %d loose", cases[i].text, (int)got.dense, (int)got.letters,
                     (int)got.loose);
    }
}

/* A number may be read digit by digit or as one short word: neither is flagged. */
static void test_loose_characters_widen_the_bounds(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    row_init(&row_a);
    put_sound(&row_a, 600);
    row_a.seg.text = guard_text_of("1000000000", 10);
    assert_flags(check(&l, &row_a), 0, "one billion", 0);
    put_sound(&row_a, 12000);
    row_a.seg.text = guard_text_of("1000000000", 10);
    assert_flags(check(&l, &row_a), 0, "slowly digit by digit", 0);
    put_sound(&row_a, 12010);
    row_a.seg.text = guard_text_of("1000000000", 10);
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_TOO_LONG), "more slowly", 0);
}

static void test_names_and_bits(void **state)
{
    (void)state;
    static const char *const names[] = {"too-short", "too-long",  "no-stop",    "token-loop", "long-silence",
                                        "clipping",  "dc-offset", "not-finite", "prompt-leak"};
    assert_int_equal(sizeof names / sizeof names[0], GUARD_FLAG_COUNT);
    for (int i = 0; i < GUARD_FLAG_COUNT; i++)
        assert_string_equal(guard_flag_name(i), names[i]);
    assert_int_equal(GUARD_BIT(GUARD_PROMPT_LEAK), 1 << 8);
}

/* Ledgers and files depend on these numbers. They were computed by a Philox written from the paper in Python. */
static void test_seeds(void **state)
{
    (void)state;
    assert_true(guard_seed(0, 0) == 0 && guard_seed(UINT64_MAX, 0) == UINT64_MAX);
    assert_true(guard_seed(0, 1) == 0xd68e2a15346f21a2u);
    assert_true(guard_seed(0, 2) == 0x2df3889f59a50d96u);
    assert_true(guard_seed(7, 1) == 0x4fb64a16e18c3ff3u);
    assert_true(guard_seed(7, 2) == 0xcbd79c149f9e9654u);
    assert_true(guard_seed(UINT64_MAX, 1) == 0x174e31474d44a06cu);
    assert_true(guard_seed(UINT64_MAX, 2) == 0x128fb7074ce67aaau);
}

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Rows that are numbered 0, 1, ... do not meet each other's attempts, nor the seeds derived from those. */
static void test_seeds_do_not_meet(void **state)
{
    (void)state;
    enum { ROWS = 4000, ATTEMPTS = 17 };
    static uint64_t seeds[ROWS * ATTEMPTS];
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < ATTEMPTS; k++)
            seeds[i * ATTEMPTS + k] = guard_seed((uint64_t)i, k);
    qsort(seeds, ROWS * ATTEMPTS, sizeof seeds[0], by_value);
    for (int i = 1; i < ROWS * ATTEMPTS; i++)
        assert_true(seeds[i] != seeds[i - 1]);
}

/* A vocoder's output for a mel it was not trained on, from a GPU: a fifth of it lies at the clamp, and the rest of the
 * checks have nothing to say. */
static void test_captured_output_is_clipped(void **state)
{
    (void)state;
    const guard_limits l = defaults();
    tensor_file *f = NULL;
    const tensor_entry *audio = NULL;
    const int64_t dims[] = {1, -1};
    assert_ok(tensor_file_open(test_shared("data/real/hift_intermediates.safetensors"), &f));
    assert_ok(tensor_file_get(f, "final_audio", 2, dims, &audio));
    row_init(&row_a);
    row_a.seg.samples = (const float *)audio->data;
    row_a.seg.samples_count = audio->shape[1];
    row_a.seg.tokens_count = 85;
    row_a.seg.text.dense = 14;
    assert_flags(check(&l, &row_a), GUARD_BIT(GUARD_CLIPPING), "captured", 0);
    tensor_file_close(f);
}

/* Upstream's reference recording: 24 kHz float, its words are known. */
static void test_a_recording_has_no_flag(void **state)
{
    (void)state;
    static const char words[] = "希望你以后能够做的比我还好呦。";
    const guard_limits l = defaults();
    char *wav = NULL;
    size_t bytes = 0, at = 12;
    uint32_t chunk_bytes = 0;
    assert_ok(io_read_file(test_shared("data/real/zero_shot_prompt.wav"), 1 << 24, &wav, &bytes));
    for (; at + 8 < bytes; at += 8 + chunk_bytes) {
        memcpy(&chunk_bytes, wav + at + 4, 4);
        if (memcmp(wav + at, "data", 4) == 0)
            break;
    }
    assert_in_range(chunk_bytes, 4, bytes - at - 8);
    row_init(&row_a);
    row_a.seg.samples_count = (int64_t)(chunk_bytes / sizeof(float));
    memcpy(row_a.samples, wav + at + 8, chunk_bytes);
    row_a.seg.tokens_count = (int32_t)(row_a.seg.samples_count / 960);
    row_a.seg.text = guard_text_of(words, sizeof words - 1);
    assert_int_equal(row_a.seg.samples_count, 83520); /* 3.48 s: the chunk was found */
    assert_flags(check(&l, &row_a), 0, "recording", 0);
    mem_free(wav);
}

static void test_cost(void **state)
{
    (void)state;
    enum { SECONDS = 50, TIMES = 20 };
    const guard_limits l = defaults();
    uint32_t flags = 0;
    row_init(&row_a);
    put_speech(&row_a, SECONDS * 1000);
    const uint64_t start_us = clock_now_us();
    for (int i = 0; i < TIMES; i++)
        flags |= check(&l, &row_a);
    const uint64_t us = clock_now_us() - start_us;
    assert_int_equal(flags, 0);
    if (getenv("COSYFARM_SHOW"))
        print_message("%.0f ns per second of audio\n", (double)us * 1000 / (SECONDS * TIMES));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_threshold_from_both_sides),
        cmocka_unit_test(test_rates_that_contradict_each_other),
        cmocka_unit_test(test_no_stop),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_healthy_rows_have_no_flag),
        cmocka_unit_test(test_silence_instead_of_speech_is_too_short),
        cmocka_unit_test(test_what_is_no_loop),
        cmocka_unit_test(test_what_is_no_leak),
        cmocka_unit_test(test_speed_changes_no_verdict),
        cmocka_unit_test(test_segments_are_one_row),
        cmocka_unit_test(test_off_and_determinism),
        cmocka_unit_test(test_text_is_counted_by_what_it_takes_to_say),
        cmocka_unit_test(test_loose_characters_widen_the_bounds),
        cmocka_unit_test(test_names_and_bits),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_seeds_do_not_meet),
        cmocka_unit_test(test_captured_output_is_clipped),
        cmocka_unit_test(test_a_recording_has_no_flag),
        cmocka_unit_test(test_cost),
    };
    return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}
