/*
 * enroll.c - the parts in their order: rates, features, networks, voice. One thread besides the backend's, and one that
 * hashes the networks meanwhile; an enroller owns backend, networks and files.
 *
 * Token mel and energies are made from 16 kHz, the prompt's mel from 24 kHz, both straight from the recording's own
 * rate, as upstream makes them.
 * Fails: CF_ERR_INVALID, CF_ERR_NUMERIC for recordings; CF_ERR_NOTFOUND, CF_ERR_MISMATCH for networks.
 * Source: cosy cosyvoice/cli/frontend.py frontend_zero_shot, _extract_* @ace7c47.
 */
#include "enroll/enroll.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/model/model_dir.h"
#include "common/model/network_hash.h"
#include "enroll/features.h"
#include "enroll/resample.h"
#include "enroll/speaker_vector.h"
#include "enroll/speech_tokenizer.h"

/* The hashes of both networks, found in a thread of its own while the networks work: of a gigabyte they take as long as
 * half an enrollment. Written by the thread, read after it was joined. */
typedef struct hashing {
    pthread_t thread;
    bool running;
    char model_path[IO_PATH_BYTES];
    char tokenizer[SHA256_HEX_BYTES], speaker[SHA256_HEX_BYTES];
    cf_err err;
    char text[512]; /* of err: error texts belong to threads */
} hashing;

struct enroller {
    char model_path[IO_PATH_BYTES];
    hashing hashes;
    backend *be; /* closed before the files, where matrices lie */
    features features;
    onnx *tokenizer_file, *speaker_file; /* speaker_file NULL: tokens only */
    speech_tokenizer *tokenizer;
    speaker_network *speaker;
    enroll_times times;
};

/* ---- recordings ---- */

__attribute__((format(printf, 2, 3))) static void warn(enroll_warnings *w, const char *fmt, ...)
{
    va_list ap;
    CF_ASSERT(w->count < ENROLL_WARNINGS_MAX);
    va_start(ap, fmt);
    vsnprintf(w->text[w->count++], ENROLL_WARNING_BYTES, fmt, ap);
    va_end(ap);
}

/* Ideographs, kana, syllables of Hangul: what is spoken in the time of several letters. */
static bool is_syllable(uint32_t c)
{
    return (c >= 0x3040 && c <= 0x30FF) || (c >= 0x3400 && c <= 0x9FFF) || (c >= 0xAC00 && c <= 0xD7A3) ||
           (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x20000 && c <= 0x3FFFF);
}

/* Letters and digits of any script; ASCII marks and spaces, general and CJK punctuation are not spoken. */
static bool is_spoken(uint32_t c)
{
    if (c < 0x80)
        return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    return c >= 0xC0 && !(c >= 0x2000 && c <= 0x2BFF) && !(c >= 0x3000 && c <= 0x303F) &&
           !(c >= 0xFF00 && c <= 0xFF0F) && !(c >= 0xFF1A && c <= 0xFF20);
}

/* Characters of the transcript behind the marker of a prompt that carries one, syllables counted as several. */
static size_t count_spoken(const char *text)
{
    static const char marker[] = "<|endofprompt|>";
    const char *behind = strstr(text, marker);
    size_t count = 0, bytes;
    if (behind)
        text = behind + sizeof marker - 1;
    for (uint32_t c; *text; text += bytes) {
        bytes = utf8_decode(text, strlen(text), &c);
        if (bytes == 0)
            break; /* checked before */
        count += is_syllable(c) ? SYLLABLE_CHARS : is_spoken(c);
    }
    return count;
}

static cf_err check_text(const char *name, const recording *r, const char *text, enroll_warnings *w)
{
    size_t bad_off;
    if (!utf8_valid(text, strlen(text), &bad_off))
        return err_set(CF_ERR_INVALID, "%s: transcript: byte %zu is not UTF-8", name, bad_off);
    if (strlen(text) > VOICE_TEXT_BYTES_MAX)
        return err_set(CF_ERR_LIMIT, "%s: transcript of %zu bytes, at most %d are allowed", name, strlen(text),
                       VOICE_TEXT_BYTES_MAX);
    const size_t count = count_spoken(text);
    if (count == 0)
        return err_set(CF_ERR_INVALID, "%s: the transcript is empty; say what is spoken in the recording (--text)",
                       name);
    const double per_char = r->seconds / (double)count;
    if (per_char < VOICE_CHAR_S_MIN || per_char > VOICE_CHAR_S_MAX)
        warn(
            w,
            "%.2f s for %zu characters are %.3f s each, expected %.2f to %.2f: does the transcript say what is spoken?",
            r->seconds, count, per_char, VOICE_CHAR_S_MIN, VOICE_CHAR_S_MAX);
    return CF_OK;
}

cf_err enroll_check_recording(const char *name, const recording *r, const char *prompt_text, enroll_warnings *w)
{
    *w = (enroll_warnings){.count = 0};
    if (r->seconds < VOICE_SECONDS_MIN)
        return err_set(CF_ERR_INVALID, "%s: %.2f s, a voice needs at least %.1f s", name, r->seconds,
                       VOICE_SECONDS_MIN);
    if (r->rms < VOICE_RMS_MIN)
        return err_set(CF_ERR_INVALID, "%s: silence: %.1f dB of full scale, expected at least %.1f dB", name,
                       20.0 * log10(r->rms > 1e-9 ? r->rms : 1e-9), 20.0 * log10(VOICE_RMS_MIN));
    if (r->seconds < VOICE_SECONDS_WARN)
        warn(w, "%.2f s are little for a voice; %.0f to 15 s are better", r->seconds, VOICE_SECONDS_WARN);
    if (r->clipped_runs > 0)
        warn(w, "the recording is clipped in %lld places (peak %.3f of full scale)", (long long)r->clipped_runs,
             (double)r->peak);
    return prompt_text ? check_text(name, r, prompt_text, w) : CF_OK;
}

/* ---- networks ---- */

static void *hash_networks(void *ctx)
{
    hashing *h = ctx;
    h->err = network_sha256(h->model_path, MODEL_TOKENIZER_FILE, h->tokenizer);
    if (h->err == CF_OK)
        h->err = network_sha256(h->model_path, MODEL_SPEAKER_FILE, h->speaker);
    if (h->err != CF_OK)
        snprintf(h->text, sizeof h->text, "%s", err_text());
    return NULL;
}

static cf_err hashing_start(const char *model_path, hashing *h)
{
    memcpy(h->model_path, model_path, strlen(model_path) + 1); /* as long as enroller.model_path, checked there */
    const int rc = pthread_create(&h->thread, NULL, hash_networks, h);
    if (rc != 0)
        return err_set(CF_ERR_SYS, "a thread for hashes: %s", strerror(rc));
    h->running = true;
    return CF_OK;
}

static cf_err hashing_wait(hashing *h)
{
    if (h->running)
        pthread_join(h->thread, NULL);
    h->running = false;
    return h->err == CF_OK ? CF_OK : err_set(h->err, "%s", h->text);
}

static cf_err open_networks(enroller *e, bool tokens_only)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    TRY(io_join(path, sizeof path, e->model_path, MODEL_TOKENIZER_FILE));
    TRY(onnx_open(path, &e->tokenizer_file));
    TRY(speech_tokenizer_open(e->be, e->tokenizer_file, &e->tokenizer));
    if (tokens_only)
        goto out;
    TRY(io_join(path, sizeof path, e->model_path, MODEL_SPEAKER_FILE));
    TRY(onnx_open(path, &e->speaker_file));
    TRY(speaker_network_open(e->be, e->speaker_file, &e->speaker));
    TRY(hashing_start(e->model_path, &e->hashes));
out:
    return err;
}

cf_err enroller_open(const enroll_config *cfg, enroller **ret_enroller)
{
    cf_err err;
    enroller *e = NULL;
    const backend_config be_cfg = {
        .device = cfg->device, .naive = cfg->naive, .threads = cfg->threads, .scratch_bytes = ENROLL_SCRATCH_BYTES};
    TRY(mem_alloc(1, sizeof *e, &e));
    if (snprintf(e->model_path, sizeof e->model_path, "%s", cfg->model_path) >= (int)sizeof e->model_path)
        FAIL(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", cfg->model_path, IO_PATH_BYTES);
    TRY(model_dir_detect(cfg->model_path));
    TRY(backend_open(&be_cfg, &e->be));
    TRY(features_init(e->be, &e->features));
    TRY(open_networks(e, cfg->tokens_only));
    *ret_enroller = e;
    e = NULL;
out:
    enroller_close(e);
    return err;
}

void enroller_close(enroller *e)
{
    if (!e)
        return;
    if (e->hashes.running)
        pthread_join(e->hashes.thread, NULL);
    speech_tokenizer_close(e->tokenizer);
    speaker_network_close(e->speaker);
    features_done(&e->features);
    backend_close(e->be);
    onnx_close(e->tokenizer_file);
    onnx_close(e->speaker_file);
    mem_free(e);
}

void enroller_describe(const enroller *e, char *ret_text, size_t text_bytes)
{
    char tokenizer[80], speaker[120] = "no speaker network";
    speech_tokenizer_describe(e->tokenizer, tokenizer, sizeof tokenizer);
    if (e->speaker)
        speaker_network_describe(e->speaker, speaker, sizeof speaker);
    snprintf(ret_text, text_bytes, "%s; tokens: %s; speaker: %s", backend_describe(e->be), tokenizer, speaker);
}

const enroll_times *enroller_times(const enroller *e)
{
    return &e->times;
}

/* ---- the work ---- */

/* What one recording becomes on the way. */
typedef struct prompt {
    float *at_16k, *at_24k;
    int64_t count_16k, count_24k;
    frame_table token_mel, fbank, feat;
    int32_t *tokens;
    size_t token_count;
    float vector[SPEAKER_VALUES];
} prompt;

static void prompt_done(prompt *p)
{
    mem_free(p->at_16k);
    mem_free(p->at_24k);
    frame_table_done(&p->token_mel);
    frame_table_done(&p->fbank);
    frame_table_done(&p->feat);
    mem_free(p->tokens);
}

static cf_err make_features(enroller *e, const recording *r, prompt *p)
{
    cf_err err;
    const uint64_t start_us = clock_now_us();
    TRY(resample(r->samples, r->sample_count, r->rate_hz, NETWORK_RATE_HZ, &p->at_16k, &p->count_16k));
    TRY(features_token_mel(&e->features, p->at_16k, p->count_16k, &p->token_mel));
    if (e->speaker) {
        TRY(resample(r->samples, r->sample_count, r->rate_hz, SAMPLE_RATE_HZ, &p->at_24k, &p->count_24k));
        TRY(features_fbank(&e->features, p->at_16k, p->count_16k, &p->fbank));
        TRY(features_prompt_mel(&e->features, p->at_24k, p->count_24k, &p->feat));
    }
    e->times.features_us = clock_now_us() - start_us;
out:
    return err;
}

static cf_err make_tokens(enroller *e, prompt *p)
{
    cf_err err;
    const uint64_t start_us = clock_now_us();
    p->token_count = (size_t)speech_tokenizer_tokens(p->token_mel.frames);
    TRY(mem_alloc(p->token_count, sizeof *p->tokens, &p->tokens));
    TRY(speech_tokenizer_run(e->tokenizer, &p->token_mel, p->tokens));
    e->times.tokens_us = clock_now_us() - start_us;
    if (fault_hit("enroll.tokens"))
        FAIL(CF_ERR_DEVICE, "fault enroll.tokens");
out:
    return err;
}

cf_err enroller_tokens(enroller *e, const recording *r, int32_t **ret_tokens, size_t *ret_count)
{
    cf_err err;
    prompt p = {0};
    e->times = (enroll_times){0};
    TRY(make_features(e, r, &p));
    TRY(make_tokens(e, &p));
    *ret_tokens = p.tokens;
    *ret_count = p.token_count;
    p.tokens = NULL;
out:
    prompt_done(&p);
    return err;
}

static cf_err finish_voice(enroller *e, const char *name, const recording *r, const char *prompt_text, const prompt *p,
                           voice **ret_voice)
{
    cf_err err;
    TRY(hashing_wait(&e->hashes));
    TRY(voice_make(name,
                   &(voice_parts){.prompt_token = p->tokens,
                                  .token_count = p->token_count,
                                  .prompt_feat = p->feat.values,
                                  .frame_count = (size_t)p->feat.frames,
                                  .embedding = p->vector,
                                  .prompt_text = prompt_text,
                                  .tokenizer_sha256 = e->hashes.tokenizer,
                                  .speaker_sha256 = e->hashes.speaker,
                                  .recording_sha256 = r->sha256},
                   ret_voice));
out:
    return err;
}

cf_err enroller_voice(enroller *e, const char *name, const recording *r, const char *prompt_text, voice **ret_voice)
{
    cf_err err;
    prompt p = {0};
    CF_ASSERT(e->speaker != NULL);
    e->times = (enroll_times){0};
    TRY(make_features(e, r, &p));
    TRY(make_tokens(e, &p));
    const uint64_t start_us = clock_now_us();
    TRY(speaker_network_run(e->speaker, &p.fbank, p.vector));
    e->times.speaker_us = clock_now_us() - start_us;
    TRY(finish_voice(e, name, r, prompt_text, &p, ret_voice));
out:
    prompt_done(&p);
    return err;
}
