/*
 * batch_run.c - rows from the manifest to the farm, ends from the farm to the ledger. The batch's one thread.
 *
 * A row is in the ledger once its file is in place; a ledger that storage refuses holds new rows back until it has been
 * written. Rows begin when the farm has told its models and run.json agrees with them.
 * Fails: errors of manifest, ledger and run record, each told once by the caller.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "tools/batch.h"
#include "tools/cmd.h"

#define SYNC_US   CLOCK_SECOND_US /* what a power cut may cost: a second of rows are done again, same bytes */
#define FLAGS_MAX 32

static void give_up(batch *b, cf_err err)
{
    if (b->broken != CF_OK)
        return;
    b->broken = err;
    snprintf(b->broken_text, sizeof b->broken_text, "%s", err_text());
}

/* ---- rows out ---- */

/* A recording's path is relative to its manifest's folder, as one finds them side by side. */
static cf_err beside_manifest(const batch *b, const char *path, char ret_path[IO_PATH_BYTES])
{
    if (!path)
        return CF_OK;
    if (path[0] != '/')
        return io_join(ret_path, IO_PATH_BYTES, b->manifest_dir, path);
    if ((size_t)snprintf(ret_path, IO_PATH_BYTES, "%s", path) >= IO_PATH_BYTES)
        return err_set(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", path, IO_PATH_BYTES);
    return CF_OK;
}

static cf_err fill_row(batch *b, const manifest_row *from, client_row *ret_row)
{
    cf_err err;
    if (from->voice_is_default)
        TRY(batch_use_default_voice(b));
    const char *voice_name = from->voice_is_default ? b->default_voice : from->voice;
    if (voice_name)
        TRY(batch_use_voice(b, voice_name));
    if ((size_t)snprintf(b->path, sizeof b->path, "%s/audio/%s.%s", b->dir, from->id, from->format) >= sizeof b->path)
        FAIL(CF_ERR_LIMIT, "%s: path longer than %d bytes", from->id, IO_PATH_BYTES);
    TRY(beside_manifest(b, from->prompt_wav, b->prompt_wav));
    TRY(beside_manifest(b, from->source_wav, b->source_wav));
    *ret_row = (client_row){.id = from->id,
                            .text = from->text ? from->text : "",
                            .prompt_wav = from->prompt_wav ? b->prompt_wav : NULL,
                            .prompt_text = from->prompt_text,
                            .source_wav = from->source_wav ? b->source_wav : NULL,
                            .voice = voice_name,
                            .mode = from->mode ? from->mode : "zero_shot",
                            .instruct = from->instruct,
                            .path = b->path,
                            .format = from->format,
                            .seed = from->seed,
                            .speed = from->speed,
                            .raw = from->raw,
                            .priority = from->priority};
out:
    return err;
}

static bool is_mine(const batch *b, const manifest_row *row)
{
    return shard_has(b->mine, row->hash) && !id_set_is_marked(b->ids, id_set_key(b->ids, row->hash, row->id));
}

cf_err batch_next(void *ctx, client_row *ret_row, client_next *ret_next)
{
    cf_err err = CF_OK;
    batch *b = ctx;
    manifest_row row;
    bool end = false;
    *ret_next = CLIENT_LATER;
    if (!b->record || b->pending_count > 0)
        return CF_OK;
    do {
        if (process_stop_asked())
            return CF_OK; /* batch_tick hears of it; rows that ended before may be many */
        TRY(manifest_next(b->rows, &row, &end));
    } while (!end && !is_mine(b, &row));
    if (!end)
        TRY(fill_row(b, &row, ret_row));
    *ret_next = end ? CLIENT_END : CLIENT_ROW;
out:
    return err;
}

/* ---- ends in ---- */

static double f64_of(const json *obj, const char *key)
{
    double value = 0;
    return json_get_f64(obj, key, -1e300, 1e300, &value) == CF_OK ? value : 0;
}

static void take_flags(const wire_msg *done, const char **flags, ledger_entry *e)
{
    for (const json *f = json_first(wire_json(done, "flags")); f && e->flag_count < FLAGS_MAX; f = json_next(f))
        e->flag_count += json_as_str(f, "flag", 64, &flags[e->flag_count]) == CF_OK;
    e->flags = flags;
}

static void take_error(const wire_msg *done, ledger_entry *e)
{
    const char *code = "";
    const json *error = wire_has(done, "error") ? wire_json(done, "error") : NULL;
    e->error_stage = e->error_text = "";
    if (!error || json_get_str(error, "code", 64, &code) != CF_OK ||
        json_get_str(error, "stage", 64, &e->error_stage) != CF_OK ||
        json_get_str(error, "text", 4096, &e->error_text) != CF_OK)
        e->error_text = "the farm gave no reason";
    e->error_code = err_from_name(code);
}

static cf_err append_line(batch *b, const json *line)
{
    const uint64_t began_us = clock_now_us();
    const cf_err err = ledger_append(b->log, line);
    b->ledger_us += clock_now_us() - began_us;
    return err;
}

static cf_err sync_ledger(batch *b)
{
    const uint64_t began_us = clock_now_us();
    const cf_err err = ledger_sync(b->log);
    b->ledger_us += clock_now_us() - began_us;
    return err;
}

/* Writes what waits, in order. Storage that is full is no error yet: the lines wait, and rows with them. */
static cf_err write_pending(batch *b)
{
    size_t written = 0;
    cf_err err = CF_OK;
    while (written < b->pending_count && err == CF_OK) {
        err = append_line(b, b->pending[written]);
        if (err == CF_OK)
            json_close(b->pending[written++]);
    }
    b->unsynced = b->unsynced || written > 0;
    b->pending_count -= written;
    memmove(b->pending, b->pending + written, b->pending_count * sizeof b->pending[0]);
    return err == CF_ERR_STORAGE ? CF_OK : err;
}

cf_err batch_ended(void *ctx, const client_row *row, const wire_msg *done)
{
    cf_err err;
    batch *b = ctx;
    json *line = NULL;
    const char *flags[FLAGS_MAX];
    const json *ms = wire_json(done, "ms");
    ledger_entry e = {.id = row->id,
                      .done = strcmp(wire_str(done, "status"), "done") == 0,
                      .file = row->path + strlen(b->dir) + 1,
                      .bytes = wire_u64(done, "bytes"),
                      .samples = wire_u64(done, "samples"),
                      .sha256 = wire_str(done, "sha256"),
                      .seed = row->seed,
                      .attempts = wire_u64(done, "attempts"),
                      .segments = wire_u64(done, "segments"),
                      .tokens = wire_u64(done, "tokens"),
                      .llm_ms = f64_of(ms, "llm"),
                      .flow_ms = f64_of(ms, "flow"),
                      .hift_ms = f64_of(ms, "hift"),
                      .queue_ms = f64_of(ms, "queue")};
    take_flags(done, flags, &e);
    if (!e.done)
        take_error(done, &e);
    TRY(ledger_line(&e, &line));
    b->done += e.done;
    b->failed += !e.done;
    b->flagged += e.flag_count > 0;
    b->audio_s += e.done ? wire_f64(done, "seconds") : 0;
    CF_ASSERT(b->pending_count < UTTERANCES_MAX); /* rows in flight when the first line had to wait */
    b->pending[b->pending_count++] = line;
    if (b->pending_count == 1)
        TRY(write_pending(b));
    if (b->pending_count > 0 && !b->told_waiting)
        log_warn("ledger.waits", "text=\"%s\"", err_text());
    b->told_waiting = b->pending_count > 0;
out:
    return err;
}

/* ---- now and then ---- */

static cf_err write_and_sync(batch *b, uint64_t now_us)
{
    cf_err err;
    TRY(write_pending(b));
    if (b->unsynced && now_us - b->synced_us >= SYNC_US) {
        TRY(sync_ledger(b));
        b->unsynced = false;
        b->synced_us = now_us;
    }
out:
    return err;
}

cf_err batch_settle(batch *b)
{
    cf_err err;
    TRY(write_pending(b));
    TRY(sync_ledger(b));
    if (b->pending_count > 0)
        err = err_set(CF_ERR_STORAGE, "%zu rows ended whose ledger lines cannot be written; they will be done again",
                      b->pending_count);
out:
    return err;
}

/* Is there a stage whose every worker is fed no more? */
static const char *barred_stage(const wire_msg *status)
{
    for (int s = 0; s < MODEL_STAGE_COUNT; s++)
        if (farm_workers(status, (model_stage)s) == WORKERS_BARRED)
            return model_stage_name((model_stage)s);
    return NULL;
}

/* Longer than the first pause of a barred worker, so that each was tried again before the batch gives up. */
static void watch_barred(batch *b, const wire_msg *status, uint64_t now_us)
{
    const char *stage = barred_stage(status);
    const uint64_t wait_s = farm_seconds(status, "parole_s") + farm_seconds(status, "barred_s");
    if (!stage || b->barred_since_us == 0)
        b->barred_since_us = stage ? now_us : 0;
    else if (now_us - b->barred_since_us > wait_s * CLOCK_SECOND_US)
        give_up(b, err_set(CF_ERR_GONE,
                           "every %s worker died %d times before it finished a job, and again when it was tried; none "
                           "has been fed for %" PRIu64 " s (parole_s + barred_s); the log says how they died",
                           stage, UNPROVEN_DEATHS_MAX, wait_s));
}

/* A farm of its own is judged by how its processes end, too, and sooner (spawn_check_served). Before the first row
 * every stage has to tell its model. */
static void watch_stages(batch *b, const wire_msg *status, uint64_t now_us)
{
    const unsigned needed = b->record ? farm_awaited(status) : FARM_ALL_STAGES;
    b->stages.is_own_farm = b->is_own_farm;
    const cf_err err = farm_watch_hear(&b->stages, status, needed, UINT64_MAX, now_us);
    if (err != CF_OK)
        give_up(b, err);
}

client_stop batch_tick(void *ctx, const wire_msg *status)
{
    batch *b = ctx;
    const uint64_t now_us = clock_now_us();
    if (process_read_signal(b->signal_fd) != 0) {
        if (b->interrupted)
            return CLIENT_STOP; /* the second signal: at once */
        b->interrupted = true;
        fprintf(stderr, "\ncosyfarm batch: finishing the rows in work (at most %d s); once more ends at once\n",
                b->farm.cfg.grace_s);
    }
    cf_err err = write_and_sync(b, now_us);
    if (err == CF_OK && status && !b->record)
        err = batch_open_record(b, status);
    if (err != CF_OK)
        give_up(b, err);
    if (status) {
        b->journal_s = f64_of(wire_json(status, "totals"), "journal_s");
        watch_barred(b, status, now_us);
        watch_stages(b, status, now_us);
        batch_show(b, status, now_us);
    }
    return b->broken != CF_OK ? CLIENT_STOP : b->interrupted ? CLIENT_DRAIN : CLIENT_GO_ON;
}
