/*
 * run_record.c - reading, comparing and writing run.json. Runs in the command. Owns the record as it was last seen.
 * Fails: CF_ERR_MISMATCH, CF_ERR_CORRUPT with the file's name, CF_ERR_LIMIT, CF_ERR_BUSY, CF_ERR_SYS.
 *
 * A record is rebuilt, never edited: its parts are copied as text into the new one.
 */
#define _GNU_SOURCE
#include "orchestrator/run_record.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/sha256.h"

#define RECORD_DEPTH_MAX 16
#define LOCK_WAIT_US     (10 * CLOCK_SECOND_US) /* a change takes milliseconds; longer means a stopped process */
#define LOCK_POLL_MS     10
#define HASH_SHOWN       12 /* digits of a hash in an error text: enough to tell two files apart */
#define TIME_BYTES       32
#define WAY_OUT          "use another output folder, or --force-mix"

struct run_record {
    char path[IO_PATH_BYTES], lock_path[IO_PATH_BYTES];
    bool force_mix, look_only;
    json *seen; /* owned; the file as it was last read or written */
};

static const char *const record_keys[] = {"version", "model",         "voices", "config", "command",
                                          "started", "default_voice", "mixed",  NULL};
static const char *const model_keys[] = {"dir", "files", "blank_en", NULL};
static const char *const file_keys[] = {"stage", "file", "sha256", "precision", NULL};

/* ---- parts ---- */

static json *copy_of(const json *v)
{
    char *text = NULL;
    json *copy = NULL;
    if (json_print(v, false, &text) != CF_OK || json_parse(text, strlen(text), RECORD_DEPTH_MAX, &copy) != CF_OK)
        copy = NULL; /* out of memory: json_put remembers it on the object that lacks the copy */
    mem_free(text);
    return copy;
}

static json *model_of(const run_start *start)
{
    json *model = json_object(), *files = json_array();
    json_put_str(model, "dir", start->model_dir);
    for (size_t i = 0; i < start->file_count; i++) {
        json *file = json_object();
        json_put_str(file, "stage", start->files[i].stage);
        json_put_str(file, "file", start->files[i].file);
        json_put_str(file, "sha256", start->files[i].sha256);
        json_put_str(file, "precision", start->files[i].precision);
        json_push(files, file);
    }
    json_put(model, "files", files);
    json_put_str(model, "blank_en", start->blank_en);
    return model;
}

static json *command_of(const run_start *start)
{
    json *command = json_array();
    for (size_t i = 0; i < start->command_count; i++)
        json_push(command, json_str(start->command[i]));
    return command;
}

static cf_err time_text(int64_t unix_s, char ret_text[TIME_BYTES])
{
    const time_t t = (time_t)unix_s;
    struct tm utc;
    if (!gmtime_r(&t, &utc) || strftime(ret_text, TIME_BYTES, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0)
        return err_set(CF_ERR_INVALID, "started: second %lld of the epoch is no date", (long long)unix_s);
    return CF_OK;
}

/* The former record without its list, at the end of that list. */
static json *mixed_of(const json *former)
{
    const json *list = json_find(former, "mixed");
    json *mixed = list ? copy_of(list) : json_array(), *last = json_object();
    for (const json *v = json_first(former); v; v = json_next(v))
        if (v != list)
            json_put(last, json_key(v), copy_of(v));
    json_push(mixed, last);
    return mixed;
}

/* A record for this start; former NULL, or mixed in. */
static cf_err record_of(const run_start *start, const json *former, json **ret_record)
{
    cf_err err;
    char started[TIME_BYTES];
    TRY(time_text(start->started_unix_s, started));
    json *record = json_object();
    json_put_str(record, "version", start->version);
    json_put(record, "model", model_of(start));
    json_put(record, "voices", former ? copy_of(json_find(former, "voices")) : json_object());
    json_put(record, "config", copy_of(start->config));
    json_put(record, "command", command_of(start));
    json_put_str(record, "started", started);
    if (former)
        json_put(record, "mixed", mixed_of(former));
    *ret_record = record;
out:
    return err;
}

/* The same record with another value of one key, or with one key more. */
static json *record_with(const json *record, const char *key, json *value, bool mix)
{
    json *copy = json_object();
    for (const json *v = json_first(record); v; v = json_next(v))
        if (strcmp(json_key(v), key) != 0 && strcmp(json_key(v), "mixed") != 0)
            json_put(copy, json_key(v), copy_of(v));
    json_put(copy, key, value);
    if (mix)
        json_put(copy, "mixed", mixed_of(record));
    else if (json_find(record, "mixed"))
        json_put(copy, "mixed", copy_of(json_find(record, "mixed")));
    return copy;
}

/* Its voices with another hash of one, or with one more. */
static json *voices_with(const json *record, const char *name, const char *content)
{
    json *voices = json_object();
    for (const json *v = json_first(json_find(record, "voices")); v; v = json_next(v))
        if (strcmp(json_key(v), name) != 0)
            json_put(voices, json_key(v), copy_of(v));
    json_put_str(voices, name, content);
    return voices;
}

/* ---- the file ---- */

static cf_err check_str(const json *obj, const char *key)
{
    const char *text;
    return json_get_str(obj, key, RUN_RECORD_BYTES_MAX, &text);
}

static cf_err check_hash(const json *v, const char *what)
{
    const char *text;
    const cf_err err = json_as_str(v, what, SHA256_HEX_BYTES - 1, &text);
    if (err == CF_OK && (strlen(text) != SHA256_HEX_BYTES - 1 || strspn(text, "0123456789abcdef") != strlen(text)))
        return err_set(CF_ERR_INVALID, "%s: expected 64 hexadecimal digits, found \"%.70s\"", what, text);
    return err;
}

static cf_err check_model(const json *model)
{
    cf_err err;
    if (!model)
        FAIL(CF_ERR_INVALID, "key \"model\" is missing");
    TRY(json_only_keys(model, "model", model_keys));
    TRY(check_str(model, "dir"));
    const json *files = json_find(model, "files");
    if (!files || !json_is_array(files))
        FAIL(CF_ERR_INVALID, "model: files: expected an array");
    for (const json *f = json_first(files); f; f = json_next(f)) {
        TRY(json_only_keys(f, "model: file", file_keys));
        TRY(check_str(f, "stage"));
        TRY(check_str(f, "file"));
        TRY(check_str(f, "precision"));
        if (!json_find(f, "sha256"))
            FAIL(CF_ERR_INVALID, "model: file: key \"sha256\" is missing");
        TRY(check_hash(json_find(f, "sha256"), "model: file: sha256"));
    }
    if (json_find(model, "blank_en"))
        TRY(check_hash(json_find(model, "blank_en"), "model: blank_en"));
out:
    return err;
}

static cf_err check_shape(const json *record)
{
    cf_err err;
    TRY(json_only_keys(record, "record", record_keys));
    TRY(check_str(record, "version"));
    TRY(check_str(record, "started"));
    TRY(check_model(json_find(record, "model")));
    const json *voices = json_find(record, "voices"), *mixed = json_find(record, "mixed");
    if (!voices || !json_is_object(voices))
        FAIL(CF_ERR_INVALID, "voices: expected an object");
    for (const json *v = json_first(voices); v; v = json_next(v))
        TRY(check_hash(v, json_key(v)));
    if (!json_find(record, "config") || !json_is_object(json_find(record, "config")))
        FAIL(CF_ERR_INVALID, "config: expected an object");
    if (!json_find(record, "command") || !json_is_array(json_find(record, "command")))
        FAIL(CF_ERR_INVALID, "command: expected an array");
    if (json_find(record, "default_voice"))
        TRY(check_str(record, "default_voice"));
    if (mixed && !json_is_array(mixed))
        FAIL(CF_ERR_INVALID, "mixed: expected an array");
out:
    return err;
}

/* *ret_record stays NULL when there is no file yet. */
static cf_err read_record(const char *path, json **ret_record)
{
    cf_err err;
    char *text = NULL;
    json *record = NULL;
    size_t bytes;
    err = io_read_file(path, RUN_RECORD_BYTES_MAX, &text, &bytes);
    if (err != CF_OK)
        return err == CF_ERR_NOTFOUND ? CF_OK : err;
    TRY(json_parse(text, bytes, RECORD_DEPTH_MAX, &record));
    TRY(check_shape(record));
    *ret_record = record;
    record = NULL;
out:
    mem_free(text);
    json_close(record);
    return err == CF_OK || err == CF_ERR_NOMEM ? err : err_context(CF_ERR_CORRUPT, "%s", path);
}

static cf_err write_record(const char *path, const json *record)
{
    cf_err err;
    char *text = NULL;
    TRY(json_print(record, true, &text));
    size_t bytes = strlen(text);
    if (bytes + 1 > RUN_RECORD_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "%s: %zu bytes, at most %u", path, bytes, RUN_RECORD_BYTES_MAX);
    text[bytes++] = '\n';
    TRY(io_write_file(path, text, bytes));
out:
    mem_free(text);
    return err;
}

/* The lock ends with the descriptor. */
static cf_err lock(const run_record *r, int *ret_fd)
{
    cf_err err = CF_OK;
    const uint64_t deadline_us = clock_now_us() + LOCK_WAIT_US;
    int fd = open(r->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_sys("%s: open", r->lock_path);
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            err = err_sys("%s: flock", r->lock_path);
            goto out;
        }
        if (clock_now_us() >= deadline_us)
            FAIL(CF_ERR_BUSY, "%s: held by another process for ten seconds", r->lock_path);
        poll(NULL, 0, clock_left_ms(deadline_us, LOCK_POLL_MS)); /* a lock that is given up makes no event */
    }
    *ret_fd = fd;
    fd = -1;
out:
    io_close(&fd);
    return err;
}

/* ---- comparing ---- */

static const char *str_of(const json *obj, const char *key)
{
    const char *text = "";
    return json_get_str(obj, key, RUN_RECORD_BYTES_MAX, &text) == CF_OK ? text : "";
}

static const json *find_stage(const json *record, const char *stage)
{
    for (const json *f = json_first(json_find(json_find(record, "model"), "files")); f; f = json_next(f))
        if (strcmp(str_of(f, "stage"), stage) == 0)
            return f;
    return NULL;
}

cf_err run_record_compare(const run_record *r, const run_model_file *files, size_t file_count, const char *blank_en)
{
    const char *path = r->path;
    for (size_t i = 0; i < file_count; i++) {
        const run_model_file *now = &files[i];
        const json *then = find_stage(r->seen, now->stage);
        if (!then)
            return err_set(CF_ERR_MISMATCH, "%s: stage %s: not in the record; " WAY_OUT, path, now->stage);
        if (strcmp(str_of(then, "sha256"), now->sha256) != 0)
            return err_set(CF_ERR_MISMATCH,
                           "%s: model file of %s: expected %s with sha256 %.*s, found %s with %.*s; " WAY_OUT, path,
                           now->stage, str_of(then, "file"), HASH_SHOWN, str_of(then, "sha256"), now->file, HASH_SHOWN,
                           now->sha256);
        if (strcmp(str_of(then, "precision"), now->precision) != 0)
            return err_set(CF_ERR_MISMATCH, "%s: precision of %s: expected %s, found %s; " WAY_OUT, path, now->stage,
                           str_of(then, "precision"), now->precision);
    }
    const json *model = json_find(r->seen, "model");
    if (json_find(model, "blank_en") && strcmp(str_of(model, "blank_en"), blank_en) != 0)
        return err_set(
            CF_ERR_MISMATCH,
            "%s: tokenizer and configuration in CosyVoice-BlankEN: expected sha256 %.*s, found %.*s; " WAY_OUT, path,
            HASH_SHOWN, str_of(model, "blank_en"), HASH_SHOWN, blank_en);
    const size_t count = json_count(json_find(model, "files"));
    if (count != file_count)
        return err_set(CF_ERR_MISMATCH, "%s: expected %zu model files, found %zu; " WAY_OUT, path, count, file_count);
    return CF_OK;
}

static const char *voice_hash(const json *record, const char *name)
{
    const json *voices = json_find(record, "voices");
    return json_find(voices, name) ? str_of(voices, name) : NULL;
}

/* ---- the calls ---- */

/* Writes, then takes the record as seen. */
static cf_err keep(run_record *r, json *record)
{
    const cf_err err = write_record(r->path, record);
    if (err != CF_OK) {
        json_close(record);
        return err;
    }
    json_close(r->seen);
    r->seen = record;
    return CF_OK;
}

static cf_err new_record(const char *dir, run_record **ret_record)
{
    cf_err err;
    run_record *r = NULL;
    TRY(mem_alloc(1, sizeof *r, &r));
    TRY(io_join(r->path, sizeof r->path, dir, "run.json"));
    TRY(io_join(r->lock_path, sizeof r->lock_path, dir, "run.lock"));
    *ret_record = r;
    r = NULL;
out:
    mem_free(r);
    return err;
}

cf_err run_record_look(const char *dir, run_record **ret_record)
{
    cf_err err;
    run_record *r = NULL;
    TRY(new_record(dir, &r));
    r->look_only = true;
    TRY(read_record(r->path, &r->seen)); /* written by rename: whole without the lock */
    *ret_record = r->seen ? r : NULL;
    r = r->seen ? NULL : r;
out:
    run_record_close(r);
    return err;
}

const json *run_record_voices(const run_record *r)
{
    return json_find(r->seen, "voices");
}

cf_err run_record_open(const char *dir, const run_start *start, bool force_mix, run_record **ret_record)
{
    cf_err err;
    int lock_fd = -1;
    run_record *r = NULL;
    json *record = NULL;
    TRY(new_record(dir, &r));
    r->force_mix = force_mix;
    TRY(lock(r, &lock_fd));
    TRY(read_record(r->path, &r->seen));
    err = r->seen ? run_record_compare(r, start->files, start->file_count, start->blank_en) : CF_OK;
    if (err != CF_OK && !force_mix)
        goto out;
    if (!r->seen || err != CF_OK) {
        TRY(record_of(start, r->seen, &record));
        TRY(keep(r, record));
    }
    *ret_record = r;
    r = NULL;
out:
    io_close(&lock_fd);
    run_record_close(r);
    return err;
}

void run_record_close(run_record *r)
{
    if (!r)
        return;
    json_close(r->seen);
    mem_free(r);
}

/* The record as it is now, under the lock, which is the caller's to close. A look keeps what it has seen. */
static cf_err see_again(run_record *r, int *ret_lock_fd)
{
    cf_err err = CF_OK;
    json *now = NULL;
    if (r->look_only)
        return CF_OK;
    TRY(lock(r, ret_lock_fd));
    TRY(read_record(r->path, &now));
    if (!now)
        FAIL(CF_ERR_GONE, "%s: was deleted while the batch was running", r->path);
    json_close(r->seen);
    r->seen = now;
out:
    return err;
}

cf_err run_record_use_voice(run_record *r, const char *name, const char *content)
{
    cf_err err;
    int lock_fd = -1;
    const char *hash = voice_hash(r->seen, name);
    if (hash && strcmp(hash, content) == 0)
        return CF_OK;
    TRY(see_again(r, &lock_fd));
    hash = voice_hash(r->seen, name);
    const bool differs = hash && strcmp(hash, content) != 0;
    if (differs && !r->force_mix)
        FAIL(CF_ERR_MISMATCH, "%s: voice %s: expected content %.*s, found %.*s; " WAY_OUT, r->path, name, HASH_SHOWN,
             hash, HASH_SHOWN, content);
    if ((!hash || differs) && !r->look_only)
        TRY(keep(r, record_with(r->seen, "voices", voices_with(r->seen, name, content), differs)));
out:
    io_close(&lock_fd);
    return err;
}

static const char *default_voice_of(const json *record)
{
    return json_find(record, "default_voice") ? str_of(record, "default_voice") : NULL;
}

cf_err run_record_use_default_voice(run_record *r, const char *name)
{
    cf_err err;
    int lock_fd = -1;
    const char *was = default_voice_of(r->seen);
    if (was && strcmp(was, name) == 0)
        return CF_OK;
    TRY(see_again(r, &lock_fd));
    was = default_voice_of(r->seen);
    const bool differs = was && strcmp(was, name) != 0;
    if (differs && !r->force_mix)
        FAIL(CF_ERR_MISMATCH, "%s: voice of rows that name none: expected %s, found %s; give -v %s, " WAY_OUT, r->path,
             was, name, was);
    if ((!was || differs) && !r->look_only)
        TRY(keep(r, record_with(r->seen, "default_voice", json_str(name), differs)));
out:
    io_close(&lock_fd);
    return err;
}
