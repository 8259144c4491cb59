/*
 * voice.c - voices of a model directory: load, validate, save, list, remove. Any process; a voice owns its arrays.
 *
 * A voice's content hash covers what reaches the model, framed by lengths, so that the same voice has the same hash in
 * any file format. Prompt tokens and frames that do not pair up are trimmed together, as upstream does.
 * Fails: CF_ERR_INVALID names file, tensor, expected and found; CF_ERR_LIMIT above the prompt's 30 s; CF_ERR_NUMERIC
 * for values that are not finite. Source: formats.md 3.2, cosy cosyvoice/cli/frontend.py
 * frontend_zero_shot @ace7c47 (alignment).
 */
#include "common/model/voice.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/model/model_dir.h"
#include "common/model/network_hash.h"
#include "common/model/safetensors.h"
#include "common/model/tensor_file.h"
#include "common/model/voice_impl.h"
#include "common/model/voice_store.h"

#define SUFFIX     ".safetensors"
#define VOICES_MAX 100000u /* names listed from a folder */

cf_err voice_name_check(const char *name)
{
    const size_t bytes = strlen(name);
    if (bytes == 0 || bytes > VOICE_NAME_BYTES_MAX)
        return err_set(CF_ERR_INVALID, "voice name of %zu bytes, expected 1..%d", bytes, VOICE_NAME_BYTES_MAX);
    if (!utf8_valid(name, bytes, NULL))
        return err_set(CF_ERR_INVALID, "voice name is not valid UTF-8");
    if (name[0] == '.')
        return err_set(CF_ERR_INVALID, "voice name \"%s\" begins with a dot", name);
    if (name[0] == '@')
        return err_set(CF_ERR_INVALID, "voice name \"%s\" begins with @, which is for voices of recordings", name);
    for (const char *p = name; *p; p++)
        if (*p == '/' || (unsigned char)*p < 0x20 || *p == 0x7F)
            return err_set(CF_ERR_INVALID, "voice name \"%.128s\" holds '/' or a control character",
                           *p == '/' ? name : "?");
    return CF_OK;
}

void voice_close(voice *v)
{
    if (!v)
        return;
    mem_free(v->prompt_token);
    mem_free(v->prompt_feat);
    mem_free(v->prompt_text);
    mem_free(v->prompt_text_id);
    mem_free(v);
}

/* ---- reading one voice from a tensor table ---- */

/* Drops leading dimensions of size 1 (torch keeps a batch axis) until rank is left. */
static cf_err squeeze(const tensor_entry *e, int rank, tensor_entry *ret_entry)
{
    tensor_entry t = *e;
    while (t.rank > rank && t.shape[0] == 1) {
        memmove(t.shape, t.shape + 1, sizeof t.shape - sizeof *t.shape);
        memmove(t.strides, t.strides + 1, sizeof t.strides - sizeof *t.strides);
        t.rank--;
    }
    if (t.rank != rank) {
        char found[ENTRY_SHAPE_BYTES];
        entry_shape_text(e->shape, e->rank, found);
        return err_set(CF_ERR_INVALID, "%s: expected %d dimension%s, found %s", e->name, rank, rank > 1 ? "s" : "",
                       found);
    }
    *ret_entry = t;
    return CF_OK;
}

static cf_err check_finite(const char *name, const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return err_set(CF_ERR_NUMERIC, "%s: value %zu is not finite", name, i);
    return CF_OK;
}

static cf_err read_ids(const tensor_entry *e, size_t count_max, int32_t id_end, int32_t **ret_ids, size_t *ret_count)
{
    cf_err err;
    tensor_entry flat;
    int32_t *ids = NULL;
    TRY(squeeze(e, 1, &flat));
    const size_t count = (size_t)flat.shape[0];
    if (count > count_max)
        FAIL(CF_ERR_LIMIT, "%s: %zu ids, at most %zu are allowed", e->name, count, count_max);
    TRY(mem_alloc(count, sizeof *ids, &ids));
    TRY(entry_read_i32(&flat, ids, count));
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= id_end)
            FAIL(CF_ERR_INVALID, "%s: id %d at index %zu, expected 0..%d", e->name, ids[i], i, id_end - 1);
    *ret_ids = ids;
    *ret_count = count;
    ids = NULL;
out:
    mem_free(ids);
    return err;
}

static cf_err read_feat(const tensor_entry *e, float **ret_feat, size_t *ret_frames)
{
    cf_err err;
    tensor_entry flat;
    float *feat = NULL;
    TRY(squeeze(e, 2, &flat));
    if (flat.shape[1] != MEL_BINS || !entry_is_float(&flat))
        FAIL(CF_ERR_INVALID, "%s: expected [frames, %d] f32, found %d columns of %s", e->name, MEL_BINS,
             (int)flat.shape[1], entry_dtype_name(flat.type));
    const size_t frames = (size_t)flat.shape[0];
    if (frames > 2 * PROMPT_FRAMES_MAX)
        FAIL(CF_ERR_LIMIT, "%s: %zu frames, a prompt has at most %d", e->name, frames, PROMPT_FRAMES_MAX);
    TRY(mem_alloc(frames * MEL_BINS, sizeof *feat, &feat));
    TRY(entry_read_f32(&flat, feat, frames * MEL_BINS));
    TRY(check_finite(e->name, feat, frames * MEL_BINS));
    *ret_feat = feat;
    *ret_frames = frames;
    feat = NULL;
out:
    mem_free(feat);
    return err;
}

static cf_err read_embedding(const tensor_entry *e, float ret_values[SPEAKER_VALUES])
{
    cf_err err;
    tensor_entry flat;
    double sum = 0.0;
    TRY(squeeze(e, 1, &flat));
    if (flat.shape[0] != SPEAKER_VALUES || !entry_is_float(&flat))
        FAIL(CF_ERR_INVALID, "%s: expected [%d] f32, found %d values of %s", e->name, SPEAKER_VALUES,
             (int)flat.shape[0], entry_dtype_name(flat.type));
    TRY(entry_read_f32(&flat, ret_values, SPEAKER_VALUES));
    TRY(check_finite(e->name, ret_values, SPEAKER_VALUES));
    for (int i = 0; i < SPEAKER_VALUES; i++)
        sum += (double)ret_values[i] * (double)ret_values[i];
    if (!(sum > 0.0))
        FAIL(CF_ERR_NUMERIC, "%s: the speaker vector is all zero", e->name);
out:
    return err;
}

/* Tokens and frames come in the ratio 1:2; what is over on either side goes. */
static cf_err align_prompt(voice *v, size_t tokens, size_t frames)
{
    const size_t n = frames / FRAMES_PER_TOKEN < tokens ? frames / FRAMES_PER_TOKEN : tokens;
    if (n == 0)
        return err_set(CF_ERR_INVALID, "prompt of %zu tokens and %zu frames: nothing is left of it", tokens, frames);
    if (n > PROMPT_TOKENS_MAX)
        return err_set(CF_ERR_LIMIT, "prompt of %zu tokens (%zu s), at most %d (30 s) are allowed", n,
                       n / TOKENS_PER_SECOND, PROMPT_TOKENS_MAX);
    v->prompt_tokens = n;
    v->trimmed_tokens = tokens - n;
    v->trimmed_frames = frames - FRAMES_PER_TOKEN * n;
    return CF_OK;
}

static cf_err read_prompt(const voice_fields *f, voice *v)
{
    cf_err err;
    size_t tokens;
    size_t frames;
    if (!f->token && !f->feat)
        return CF_OK; /* a voice of SFT style */
    if (!f->token || !f->feat)
        FAIL(CF_ERR_INVALID, "%s without %s", f->token ? f->token->name : f->feat->name,
             f->token ? "its mel frames" : "its speech tokens");
    TRY(read_ids(f->token, 2 * PROMPT_TOKENS_MAX, SPEECH_CODES, &v->prompt_token, &tokens));
    TRY(read_feat(f->feat, &v->prompt_feat, &frames));
    TRY(align_prompt(v, tokens, frames));
out:
    return err;
}

static cf_err read_text(const voice_fields *f, voice *v)
{
    if (f->text && f->text_ids)
        return err_set(CF_ERR_INVALID, "both a transcript and its ids: one of them must go");
    if (f->text) {
        const size_t bytes = strlen(f->text);
        if (bytes > VOICE_TEXT_BYTES_MAX)
            return err_set(CF_ERR_LIMIT, "prompt_text of %zu bytes, at most %d are allowed", bytes,
                           VOICE_TEXT_BYTES_MAX);
        return mem_strndup(f->text, bytes, &v->prompt_text);
    }
    if (f->text_ids)
        return read_ids(f->text_ids, PROMPT_TEXT_TOKENS_MAX, INT32_MAX, &v->prompt_text_id, &v->prompt_text_ids);
    return CF_OK;
}

/* What made the voice; not part of its content. */
static cf_err read_origin(const voice_fields *f, voice *v)
{
    const struct {
        const char *key, *text;
        char *to;
    } parts[] = {{"speech_tokenizer_sha256", f->tokenizer_sha256, v->tokenizer_sha256},
                 {"campplus_sha256", f->speaker_sha256, v->speaker_sha256},
                 {"recording_sha256", f->recording_sha256, v->recording_sha256}};
    for (size_t i = 0; i < CF_COUNT(parts); i++) {
        const char *text = parts[i].text;
        if (!text || text[0] == '\0')
            continue;
        if (strlen(text) != SHA256_HEX_BYTES - 1 || text[strspn(text, "0123456789abcdef")] != '\0')
            return err_set(CF_ERR_INVALID, "%s: expected 64 hexadecimal digits, found \"%.80s\"", parts[i].key, text);
        memcpy(parts[i].to, text, SHA256_HEX_BYTES);
    }
    return CF_OK;
}

static void hash_framed(sha256 *hash, const void *data, size_t bytes)
{
    unsigned char frame[8];
    for (int i = 0; i < 8; i++)
        frame[i] = (unsigned char)((uint64_t)bytes >> (8 * i));
    sha256_update(hash, frame, sizeof frame);
    if (bytes > 0)
        sha256_update(hash, data, bytes);
}

static cf_err hash_content(voice *v)
{
    sha256 *hash;
    const cf_err err = sha256_open(&hash);
    if (err != CF_OK)
        return err;
    hash_framed(hash, v->prompt_token, v->prompt_tokens * sizeof *v->prompt_token);
    hash_framed(hash, v->prompt_feat, v->prompt_tokens * FRAMES_PER_TOKEN * MEL_BINS * sizeof *v->prompt_feat);
    hash_framed(hash, v->embedding, sizeof v->embedding);
    hash_framed(hash, v->prompt_text, v->prompt_text ? strlen(v->prompt_text) : 0);
    hash_framed(hash, v->prompt_text_id, v->prompt_text_ids * sizeof *v->prompt_text_id);
    sha256_finish(hash, v->sha256);
    return CF_OK;
}

cf_err voice_from_fields(const char *name, const voice_fields *f, voice **ret_voice)
{
    cf_err err;
    voice *v = NULL;
    TRY(voice_name_check(name));
    TRY(mem_alloc(1, sizeof *v, &v));
    memcpy(v->name, name, strlen(name) + 1);
    if (!f->embedding)
        FAIL(CF_ERR_INVALID, "embedding is missing");
    TRY(read_embedding(f->embedding, v->embedding));
    TRY(read_prompt(f, v));
    TRY(read_text(f, v));
    TRY(read_origin(f, v));
    TRY(hash_content(v));
    *ret_voice = v;
    v = NULL;
out:
    voice_close(v);
    return err == CF_OK ? err : err_context(err, "voice %.128s", name);
}

static tensor_entry plain_entry(const char *name, const void *data, entry_dtype type, int rank, int64_t d0, int64_t d1)
{
    return (tensor_entry){.name = name,
                          .data = data,
                          .type = type,
                          .rank = rank,
                          .contiguous = true,
                          .shape = {d0, d1},
                          .strides = {rank == 2 ? d1 : 1, 1}};
}

cf_err voice_make(const char *name, const voice_parts *parts, voice **ret_voice)
{
    const tensor_entry token =
        plain_entry("prompt_token", parts->prompt_token, ENTRY_I32, 1, (int64_t)parts->token_count, 1);
    const tensor_entry feat =
        plain_entry("prompt_feat", parts->prompt_feat, ENTRY_F32, 2, (int64_t)parts->frame_count, MEL_BINS);
    const tensor_entry embedding = plain_entry("embedding", parts->embedding, ENTRY_F32, 1, SPEAKER_VALUES, 1);
    return voice_from_fields(name,
                             &(voice_fields){.token = &token,
                                             .feat = &feat,
                                             .embedding = &embedding,
                                             .text = parts->prompt_text,
                                             .tokenizer_sha256 = parts->tokenizer_sha256,
                                             .speaker_sha256 = parts->speaker_sha256,
                                             .recording_sha256 = parts->recording_sha256},
                             ret_voice);
}

/* ---- files ---- */

cf_err voice_from_file(const tensor_file *f, voice **ret_voice)
{
    cf_err err;
    char name[VOICE_NAME_BYTES_MAX + 1];
    const char *path = tensor_file_path(f);
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    const size_t base_bytes = strlen(base);
    const size_t suffix_bytes = sizeof SUFFIX - 1;
    const bool has_suffix = base_bytes > suffix_bytes && strcmp(base + base_bytes - suffix_bytes, SUFFIX) == 0;
    const size_t name_bytes = has_suffix ? base_bytes - suffix_bytes : base_bytes;
    if (name_bytes > VOICE_NAME_BYTES_MAX)
        FAIL(CF_ERR_INVALID, "%s: voice name of %zu bytes, expected 1..%d", path, name_bytes, VOICE_NAME_BYTES_MAX);
    snprintf(name, sizeof name, "%.*s", (int)name_bytes, base);
    const voice_fields fields = {.token = tensor_file_find(f, "prompt_token"),
                                 .feat = tensor_file_find(f, "prompt_feat"),
                                 .embedding = tensor_file_find(f, "embedding"),
                                 .text_ids = tensor_file_find(f, "prompt_text"),
                                 .text = tensor_file_text(f, "prompt_text"),
                                 .tokenizer_sha256 = tensor_file_text(f, "speech_tokenizer_sha256"),
                                 .speaker_sha256 = tensor_file_text(f, "campplus_sha256"),
                                 .recording_sha256 = tensor_file_text(f, "recording_sha256")};
    err = voice_from_fields(name, &fields, ret_voice);
    if (err != CF_OK)
        err = err_context(err, "%s", path);
out:
    return err;
}

cf_err voice_load_file(const char *path, voice **ret_voice)
{
    cf_err err;
    tensor_file *f = NULL;
    TRY(tensor_file_open(path, &f));
    TRY(voice_from_file(f, ret_voice));
out:
    tensor_file_close(f);
    return err;
}

static cf_err voice_path(const char *model_path, const char *name, char ret_path[IO_PATH_BYTES])
{
    const cf_err err = voice_name_check(name);
    if (err != CF_OK)
        return err;
    if (snprintf(ret_path, IO_PATH_BYTES, "%s/voices/%s" SUFFIX, model_path, name) >= IO_PATH_BYTES)
        return err_set(CF_ERR_LIMIT, "%s: path longer than %d bytes", model_path, IO_PATH_BYTES);
    return CF_OK;
}

static cf_err find_voice(const char *name, const char *path)
{
    cf_err err;
    bool is_there;
    TRY(io_find(path, &is_there));
    if (!is_there)
        FAIL(CF_ERR_NOTFOUND, "voice %s: no file %s", name, path);
out:
    return err;
}

cf_err voice_load(const char *model_path, const char *name, voice **ret_voice)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    voice *v = NULL;
    TRY(voice_path(model_path, name, path));
    TRY(find_voice(name, path));
    TRY(voice_load_file(path, &v));
    TRY(voice_check_networks(model_path, v));
    *ret_voice = v;
    v = NULL;
out:
    voice_close(v);
    return err;
}

cf_err voice_load_any(const char *model_path, const char *store_path, const char *name, voice **ret_voice)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    voice *v = NULL;
    if (name[0] != '@')
        return voice_load(model_path, name, ret_voice);
    TRY(voice_name_check(name + 1)); /* no way out of the folder */
    TRY(voice_store_path(store_path, name + 1, path));
    TRY(find_voice(name, path));
    TRY(voice_load_file(path, &v));
    snprintf(v->name, sizeof v->name, "%s", name);
    *ret_voice = v;
out:
    return err;
}

static cf_err check_network(const char *model_path, const voice *v, const char *file, const char *made_with)
{
    cf_err err;
    char path[IO_PATH_BYTES], hex[SHA256_HEX_BYTES];
    bool is_there;
    TRY(io_join(path, sizeof path, model_path, file));
    TRY(io_find(path, &is_there));
    if (made_with[0] == '\0' || !is_there)
        goto out;
    TRY(network_sha256(model_path, file, hex));
    if (strcmp(hex, made_with) != 0)
        FAIL(CF_ERR_MISMATCH,
             "voice %s: made with another %s (%.12s...) than this model's (%.12s...); enroll its recording again",
             v->name, file, made_with, hex);
out:
    return err;
}

cf_err voice_check_networks(const char *model_path, const voice *v)
{
    cf_err err;
    TRY(check_network(model_path, v, MODEL_TOKENIZER_FILE, v->tokenizer_sha256));
    TRY(check_network(model_path, v, MODEL_SPEAKER_FILE, v->speaker_sha256));
out:
    return err;
}

cf_err voice_save_file(const char *path, const voice *v)
{
    safetensors_item items[4];
    size_t count = 0;
    if (v->prompt_tokens > 0) {
        items[count++] = (safetensors_item){"prompt_token", ENTRY_I32, 1, {(int64_t)v->prompt_tokens}, v->prompt_token};
        items[count++] = (safetensors_item){
            "prompt_feat", ENTRY_F32, 2, {(int64_t)(v->prompt_tokens * FRAMES_PER_TOKEN), MEL_BINS}, v->prompt_feat};
    }
    items[count++] = (safetensors_item){"embedding", ENTRY_F32, 1, {SPEAKER_VALUES}, v->embedding};
    if (v->prompt_text_id)
        items[count++] =
            (safetensors_item){"prompt_text", ENTRY_I32, 1, {(int64_t)v->prompt_text_ids}, v->prompt_text_id};
    const table_text all[] = {{"prompt_text", v->prompt_text},
                              {"speech_tokenizer_sha256", v->tokenizer_sha256},
                              {"campplus_sha256", v->speaker_sha256},
                              {"recording_sha256", v->recording_sha256}};
    table_text texts[CF_COUNT(all)];
    size_t text_count = 0;
    for (size_t i = 0; i < CF_COUNT(all); i++)
        if (all[i].value && (i == 0 || all[i].value[0] != '\0'))
            texts[text_count++] = all[i];
    return safetensors_write(path, items, count, texts, text_count);
}

bool voice_exists(const char *model_path, const char *name)
{
    char path[IO_PATH_BYTES];
    return voice_path(model_path, name, path) == CF_OK && io_exists(path);
}

cf_err voice_save(const char *model_path, const voice *v, bool replace)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    char folder[IO_PATH_BYTES];
    TRY(voice_path(model_path, v->name, path));
    TRY(io_join(folder, sizeof folder, model_path, "voices"));
    TRY(io_make_dirs(folder, 0755));
    if (!replace && io_exists(path))
        FAIL(CF_ERR_BUSY, "%s exists already", path);
    TRY(voice_save_file(path, v));
out:
    return err;
}

cf_err voice_remove(const char *model_path, const char *name)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    TRY(voice_path(model_path, name, path));
    if (unlink(path) != 0)
        return errno == ENOENT ? err_set(CF_ERR_NOTFOUND, "voice %s: no file %s", name, path)
                               : err_sys("%s: unlink", path);
out:
    return err;
}

/* ---- the list ---- */

void voice_names_close(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        mem_free(names[i]);
    mem_free(names);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The voice's name when the folder's entry is a voice file, cut in place. */
static bool is_voice_file(char *entry)
{
    const size_t bytes = strlen(entry);
    const size_t suffix_bytes = sizeof SUFFIX - 1;
    if (bytes <= suffix_bytes || strcmp(entry + bytes - suffix_bytes, SUFFIX) != 0)
        return false;
    entry[bytes - suffix_bytes] = '\0';
    return voice_name_check(entry) == CF_OK;
}

static cf_err read_names(DIR *dir, const char *folder, char ***names, size_t *count)
{
    cf_err err;
    size_t capacity = 0;
    for (;;) {
        struct dirent *entry;
        TRY(io_next_entry(dir, folder, &entry)); /* the first by name is the default voice: none may be missed */
        if (!entry)
            break;
        if (!is_voice_file(entry->d_name))
            continue;
        if (*count == VOICES_MAX)
            FAIL(CF_ERR_LIMIT, "more than %u voices", VOICES_MAX);
        if (*count == capacity) {
            capacity = capacity ? capacity * 2 : 16;
            TRY(mem_resize(names, capacity, sizeof **names));
        }
        TRY(mem_strndup(entry->d_name, strlen(entry->d_name), &(*names)[*count]));
        (*count)++;
    }
    if (*count > 0)
        qsort(*names, *count, sizeof **names, by_text);
out:
    return err;
}

cf_err voice_names(const char *model_path, char ***ret_names, size_t *ret_count)
{
    cf_err err;
    char folder[IO_PATH_BYTES];
    char **names = NULL;
    size_t count = 0;
    DIR *dir = NULL;
    if (!io_exists(model_path))
        FAIL(CF_ERR_NOTFOUND, "%s: no such model directory", model_path);
    TRY(io_join(folder, sizeof folder, model_path, "voices"));
    dir = opendir(folder);
    if (!dir && errno != ENOENT) {
        err = err_sys("%s: open", folder);
        goto out;
    }
    if (dir)
        TRY(read_names(dir, folder, &names, &count));
    *ret_names = names;
    *ret_count = count;
    names = NULL;
    count = 0;
out:
    voice_names_close(names, count);
    if (dir)
        closedir(dir);
    return err;
}

cf_err voice_default_name(const char *model_path, char ret_name[VOICE_NAME_BYTES_MAX + 1])
{
    cf_err err;
    char **names = NULL;
    size_t count = 0;
    TRY(voice_names(model_path, &names, &count));
    if (count == 0)
        FAIL(CF_ERR_NOTFOUND, "%s/voices holds no voice; import one with cosyfarm voice import", model_path);
    snprintf(ret_name, VOICE_NAME_BYTES_MAX + 1, "%s", names[0]);
out:
    voice_names_close(names, count);
    return err;
}
