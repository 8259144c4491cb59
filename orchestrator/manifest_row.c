/*
 * manifest_row.c - what a row may say. Pure but for hashing.
 * Fails: CF_ERR_INVALID for everything a row gets wrong, CF_ERR_NOMEM.
 *
 * An id is also the path of a file, so two different ids must never mean one file, nor one id a folder where another
 * has its file: no component is empty, "." or "..", and no folder ends like an audio file.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/sha256.h"
#include "common/base/utf8.h"
#include "common/model/voice.h"
#include "common/text/frontend.h"
#include "orchestrator/audio_file.h"
#include "orchestrator/manifest_impl.h"

#define SPEED_MIN        0.5
#define SPEED_MAX        2.0
#define PRIORITY_MAX     9
#define NUMBER_EXACT_MAX 9007199254740991.0 /* 2^53 - 1: above it JSON numbers are read as their neighbours */
#define COLUMNS_MAX      3
#define CHAR_BYTES_MAX   4
#define PROMPT_CHARS_MAX (VOICE_TEXT_BYTES_MAX / CHAR_BYTES_MAX)
/* What a row says goes to the farm in one message; the rest of it is two paths (one with source_wav or prompt_wav) and
 * what is short. With the longest text there is room for the longest instruction or transcript. */
#define MESSAGE_REST_MAX  (2 * IO_PATH_BYTES + 900)
#define SAID_BYTES_MAX    (MESSAGE_BYTES_MAX - MESSAGE_REST_MAX)
#define SEED_PREFIX       "cosyfarm row seed" /* hashed with its NUL */
#define SEED_PREFIX_BYTES sizeof SEED_PREFIX

static const char *const row_keys[] = {"id",     "text", "voice",      "mode",        "instruct",   "seed",     "speed",
                                       "format", "raw",  "prompt_wav", "prompt_text", "source_wav", "priority", NULL};
static const char *const extensions[] = {".wav", ".flac", ".ogg", ".mp3"};

cf_err manifest_row_seed(uint64_t run_seed, const char *id, uint64_t *ret_seed)
{
    cf_err err;
    char hex[SHA256_HEX_BYTES];
    sha256 *h;
    unsigned char run[8];
    uint64_t seed = 0;
    for (size_t i = 0; i < 8; i++)
        run[i] = (unsigned char)(run_seed >> 8 * i);
    TRY(sha256_open(&h));
    sha256_update(h, SEED_PREFIX, SEED_PREFIX_BYTES);
    sha256_update(h, run, sizeof run);
    sha256_update(h, id, strlen(id));
    sha256_finish(h, hex);
    for (size_t i = 0; i < 16; i++) {
        const uint64_t digit = (uint64_t)(hex[i] <= '9' ? hex[i] - '0' : hex[i] - 'a' + 10);
        seed |= digit << (i / 2 * 8 + (i % 2 ? 0 : 4));
    }
    *ret_seed = seed;
out:
    return err;
}

static bool is_id_char(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-' || c == '/';
}

static cf_err check_component(const char *id, const char *part, size_t bytes, bool is_folder)
{
    if (bytes == 0)
        return err_set(CF_ERR_INVALID, "id \"%s\": an empty name before, between or behind '/'", id);
    if ((bytes == 1 && part[0] == '.') || (bytes == 2 && part[0] == '.' && part[1] == '.'))
        return err_set(CF_ERR_INVALID, "id \"%s\": \"%.*s\" is not allowed as a name", id, (int)bytes, part);
    for (size_t i = 0; is_folder && i < CF_COUNT(extensions); i++) {
        const size_t extension_bytes = strlen(extensions[i]);
        if (bytes >= extension_bytes && memcmp(part + bytes - extension_bytes, extensions[i], extension_bytes) == 0)
            return err_set(CF_ERR_INVALID, "id \"%s\": folder \"%.*s\" ends like an audio file", id, (int)bytes, part);
    }
    return CF_OK;
}

static cf_err check_id(const char *id)
{
    const size_t bytes = strlen(id);
    if (bytes == 0 || bytes > NAME_BYTES_MAX)
        return err_set(CF_ERR_INVALID, "id: expected 1..%d characters, found %zu", NAME_BYTES_MAX, bytes);
    for (const char *p = id; *p; p++)
        if (!is_id_char(*p))
            return err_set(CF_ERR_INVALID, "id \"%s\": character %zu is none of A-Z a-z 0-9 . _ - /", id,
                           utf8_count(id, (size_t)(p - id)) + 1);
    for (const char *p = id;;) {
        const size_t part_bytes = strcspn(p, "/");
        const bool is_folder = p[part_bytes] == '/';
        const cf_err err = check_component(id, p, part_bytes, is_folder);
        if (err != CF_OK || !is_folder)
            return err;
        p += part_bytes + 1;
    }
}

static cf_err check_chars(const char *what, const char *text, size_t chars_max)
{
    const size_t chars = utf8_count(text, strlen(text));
    if (chars == 0 || chars > chars_max)
        return err_set(CF_ERR_INVALID, "%s: expected 1..%zu characters, found %zu", what, chars_max, chars);
    return CF_OK;
}

/* The extension is the format's name, which wav-float does not honour: two formats, one file. */
static cf_err check_format(const char *format)
{
    bool known = false;
    for (size_t i = 0; i < CF_COUNT(extensions); i++)
        known = known || strcmp(extensions[i] + 1, format) == 0;
    if (!known)
        return err_set(CF_ERR_INVALID, "format: expected wav, flac, ogg or mp3, found \"%.40s\"", format);
    return audio_format_check(format);
}

static cf_err take_str(const json *obj, const char *key, const char **value)
{
    return json_find(obj, key) ? json_get_str(obj, key, MANIFEST_LINE_BYTES_MAX, value) : CF_OK;
}

static cf_err take_path(const json *obj, const char *key, const char **path)
{
    cf_err err;
    TRY(take_str(obj, key, path));
    if (*path && ((*path)[0] == '\0' || strlen(*path) >= IO_PATH_BYTES))
        FAIL(CF_ERR_INVALID, "%s: expected 1..%d bytes, found %zu", key, IO_PATH_BYTES - 1, strlen(*path));
out:
    return err;
}

static cf_err take_numbers(const json *obj, manifest_row *row)
{
    cf_err err = CF_OK;
    double number;
    uint64_t priority = (uint64_t)row->priority;
    const json *seed = json_find(obj, "seed");
    if (seed && json_is_number(seed) && json_as_f64(seed, "seed", -INFINITY, INFINITY, &number) == CF_OK &&
        number > NUMBER_EXACT_MAX)
        FAIL(CF_ERR_INVALID, "seed: numbers above %.0f are not exact in JSON; write it in quotes", NUMBER_EXACT_MAX);
    if (seed)
        TRY(json_get_u64(obj, "seed", 0, UINT64_MAX, &row->seed));
    if (json_find(obj, "speed"))
        TRY(json_get_f64(obj, "speed", SPEED_MIN, SPEED_MAX, &row->speed));
    if (json_find(obj, "priority"))
        TRY(json_get_u64(obj, "priority", 0, PRIORITY_MAX, &priority));
    row->priority = (int)priority;
    if (json_find(obj, "raw"))
        TRY(json_get_bool(obj, "raw", &row->raw));
out:
    return err;
}

/* An instruction means mode instruct unless the row says another, which then is an error. */
static cf_err settle_mode(const json *obj, const manifest_defaults *defaults, manifest_row *row)
{
    cf_err err;
    text_mode mode;
    TRY(take_str(obj, "mode", &row->mode));
    TRY(take_str(obj, "instruct", &row->instruct));
    if (!row->mode)
        row->mode = row->instruct || (!defaults->mode && defaults->instruct) ? "instruct"
                    : defaults->mode                                         ? defaults->mode
                                                                             : "zero_shot";
    TRY(text_mode_from_name(row->mode, &mode));
    if (mode != TEXT_INSTRUCT && row->instruct)
        FAIL(CF_ERR_INVALID, "instruct: goes with mode instruct, and only with it; mode is %s", row->mode);
    if (mode == TEXT_INSTRUCT && !row->instruct)
        row->instruct = defaults->instruct;
    if (mode == TEXT_INSTRUCT && !row->instruct)
        FAIL(CF_ERR_INVALID, "mode instruct: key \"instruct\" is missing");
    if (row->instruct)
        TRY(check_chars("instruct", row->instruct, PROMPT_CHARS_MAX));
out:
    return err;
}

static void take_default_voice(const manifest_defaults *defaults, manifest_row *row)
{
    row->voice = defaults->voice;
    row->voice_is_default = true;
}

/* Whose voice: a name, or a recording and what it says. */
static cf_err settle_voice(const json *obj, const manifest_defaults *defaults, manifest_row *row)
{
    cf_err err;
    TRY(take_str(obj, "voice", &row->voice));
    TRY(take_path(obj, "prompt_wav", &row->prompt_wav));
    TRY(take_str(obj, "prompt_text", &row->prompt_text));
    if (row->voice && row->prompt_wav)
        FAIL(CF_ERR_INVALID, "voice, prompt_wav: a row has one of them, found both");
    if (!row->prompt_wav != !row->prompt_text)
        FAIL(CF_ERR_INVALID, "%s: goes with \"%s\", which is missing", row->prompt_wav ? "prompt_wav" : "prompt_text",
             row->prompt_wav ? "prompt_text" : "prompt_wav");
    if (row->prompt_text)
        TRY(check_chars("prompt_text", row->prompt_text, PROMPT_CHARS_MAX));
    if (row->voice)
        TRY(voice_name_check(row->voice));
    else if (!row->prompt_wav)
        take_default_voice(defaults, row);
out:
    return err;
}

/* What is said: text in a mode, or a recording that is converted as it is. */
static cf_err settle_text(const json *obj, const manifest_defaults *defaults, manifest_row *row)
{
    cf_err err;
    static const char *const excluded[] = {"text", "mode", "instruct", "raw"};
    TRY(take_path(obj, "source_wav", &row->source_wav));
    for (size_t i = 0; row->source_wav && i < CF_COUNT(excluded); i++)
        if (json_find(obj, excluded[i]))
            FAIL(CF_ERR_INVALID, "%s: has no meaning in a row with source_wav", excluded[i]);
    if (row->source_wav)
        return CF_OK;
    TRY(json_get_str(obj, "text", MANIFEST_LINE_BYTES_MAX, &row->text));
    TRY(check_chars("text", row->text, TEXT_CHARS_MAX));
    TRY(settle_mode(obj, defaults, row));
out:
    return err;
}

static manifest_row row_of_defaults(const manifest_defaults *d)
{
    return (manifest_row){.format = d->format, .speed = d->speed, .priority = d->priority, .raw = d->raw};
}

/* What belongs to the id alone; the seed unless the row has one. */
static cf_err settle_id(const manifest_defaults *defaults, bool has_seed, manifest_row *row)
{
    cf_err err;
    TRY(check_id(row->id));
    TRY(id_hash(row->id, &row->hash));
    if (!has_seed)
        TRY(manifest_row_seed(defaults->run_seed, row->id, &row->seed));
out:
    return err;
}

/* Texts that are good one by one may not fit together. */
static cf_err check_size(const manifest_row *row)
{
    const char *const texts[] = {row->text, row->instruct, row->prompt_text};
    size_t bytes = 0;
    for (size_t i = 0; i < CF_COUNT(texts); i++)
        bytes += texts[i] ? json_printed_bytes(texts[i]) : 0;
    if (bytes > SAID_BYTES_MAX)
        return err_set(
            CF_ERR_INVALID,
            "text, instruct and prompt_text: expected at most %d bytes together, as JSON (a control character "
            "is 6), found %zu",
            SAID_BYTES_MAX, bytes);
    return CF_OK;
}

/* The one code of a bad row, in one line that a terminal can show: texts quote what the file holds. */
static cf_err bad_row(cf_err err, const char *where)
{
    char text[1024];
    if (err == CF_OK || err == CF_ERR_NOMEM)
        return err;
    size_t bytes = (size_t)snprintf(text, sizeof text, "%s", err_text());
    bytes = bytes < sizeof text ? bytes : sizeof text - 1;
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7F)
            text[i] = '?';
    size_t bad_off;
    if (!utf8_valid(text, bytes, &bad_off)) /* a character cut in two */
        text[bad_off] = '\0';
    return err_set(CF_ERR_INVALID, "%s%s%s", where, where[0] ? ": " : "", text);
}

cf_err manifest_row_from_json(const json *obj, const char *where, const manifest_defaults *defaults,
                              manifest_row *ret_row)
{
    cf_err err;
    manifest_row row = row_of_defaults(defaults);
    err = json_only_keys(obj, where, row_keys);
    if (err != CF_OK)
        return bad_row(err, "");
    TRY(json_get_str(obj, "id", MANIFEST_LINE_BYTES_MAX, &row.id));
    TRY(settle_id(defaults, json_find(obj, "seed") != NULL, &row));
    TRY(take_numbers(obj, &row));
    TRY(take_str(obj, "format", &row.format));
    TRY(check_format(row.format));
    TRY(settle_text(obj, defaults, &row));
    TRY(settle_voice(obj, defaults, &row));
    TRY(check_size(&row));
    *ret_row = row;
out:
    return bad_row(err, where);
}

cf_err manifest_row_from_columns(char *line, size_t line_bytes, const char *where, const manifest_defaults *defaults,
                                 manifest_row *ret_row)
{
    cf_err err;
    size_t bad_off, columns = 1;
    manifest_row row = row_of_defaults(defaults);
    if (memchr(line, '\0', line_bytes))
        FAIL(CF_ERR_INVALID, "NUL character at byte %zu", strlen(line));
    if (!utf8_valid(line, line_bytes, &bad_off))
        FAIL(CF_ERR_INVALID, "invalid UTF-8 at byte %zu", bad_off);
    row.id = row.text = line;
    for (char *p = line; (p = strchr(p, '|')) != NULL; columns++) {
        *p++ = '\0';
        row.text = p;
    }
    if (columns < 2 || columns > COLUMNS_MAX)
        FAIL(CF_ERR_INVALID, "expected id|text or id|transcription|normalised transcription, found %zu column%s",
             columns, columns == 1 ? "" : "s");
    TRY(settle_id(defaults, false, &row));
    TRY(check_chars("text", row.text, TEXT_CHARS_MAX));
    TRY(settle_mode(NULL, defaults, &row));
    take_default_voice(defaults, &row);
    TRY(check_size(&row));
    *ret_row = row;
out:
    return bad_row(err, where);
}

cf_err manifest_defaults_check(const manifest_defaults *d)
{
    cf_err err = CF_OK;
    text_mode mode = TEXT_INSTRUCT;
    if (d->voice)
        TRY(voice_name_check(d->voice));
    TRY(check_format(d->format));
    if (d->mode)
        TRY(text_mode_from_name(d->mode, &mode));
    if (d->instruct && mode != TEXT_INSTRUCT)
        FAIL(CF_ERR_INVALID, "instruct: goes with mode instruct, and only with it; mode is %s", d->mode);
    if (d->instruct)
        TRY(check_chars("instruct", d->instruct, PROMPT_CHARS_MAX));
    if (!(d->speed >= SPEED_MIN && d->speed <= SPEED_MAX))
        FAIL(CF_ERR_INVALID, "speed: expected %g..%g, found %g", SPEED_MIN, SPEED_MAX, d->speed);
    if (d->priority < 0 || d->priority > PRIORITY_MAX)
        FAIL(CF_ERR_INVALID, "priority: expected 0..%d, found %d", PRIORITY_MAX, d->priority);
out:
    return bad_row(err, "");
}
