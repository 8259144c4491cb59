/*
 * batch.h - the state of one `cosyfarm batch`, shared by its files: cmd_batch.c (options, phases), batch_check.c (the
 * manifest before any work), batch_record.c (what the files are made with), batch_run.c (rows out, ledger lines in),
 * batch_progress.c (what a person sees).
 */
#ifndef CF_TOOLS_BATCH_H
#define CF_TOOLS_BATCH_H

#include "common/model/voice.h"
#include "orchestrator/farm_watch.h"
#include "orchestrator/ledger.h"
#include "orchestrator/manifest.h"
#include "orchestrator/run_record.h"
#include "tools/client.h"
#include "tools/farm_options.h"

#define BATCH_VOICES_MAX 4096 /* distinct voices of one manifest */

typedef struct batch_voice {
    char *name; /* owned */
    char sha256[SHA256_HEX_BYTES];
} batch_voice;

typedef struct batch {
    farm_options farm;
    manifest_defaults defaults;
    shard mine;
    const char *manifest_path, *manifest_format;
    char dir[IO_PATH_BYTES];      /* absolute */
    char farm_log[IO_PATH_BYTES]; /* of a farm of its own */
    bool check_only, as_json, quiet, verify, force_mix, retry_failed;
    int argc;
    char **argv; /* for run.json */

    manifest *rows;
    id_set *ids; /* of this shard; marked: ended before */
    manifest_counts counts;
    ledger *log;
    run_record *record;  /* NULL until the farm has told its models */
    batch_voice *voices; /* owned */
    size_t voices_count;
    char default_voice[VOICE_NAME_BYTES_MAX + 1]; /* of rows that name none; empty until there is one */
    char manifest_dir[IO_PATH_BYTES];             /* absolute; the current folder for standard input */
    char path[IO_PATH_BYTES], prompt_wav[IO_PATH_BYTES], source_wav[IO_PATH_BYTES]; /* of the row handed out last */

    int signal_fd;
    bool is_own_farm, interrupted;
    bool has_begun; /* what ended before is known: there is something to sum up */
    cf_err broken;  /* why the run must end early; CF_OK: it need not */
    char broken_text[512];
    json *pending[UTTERANCES_MAX]; /* owned: lines that storage refuses; no more rows until they are written */
    size_t pending_count;

    farm_watch stages;
    uint64_t started_us, shown_us, synced_us, barred_since_us;
    bool unsynced, told_waiting;
    uint64_t ended_before, failed_before; /* by earlier runs; failed is part of ended */
    uint64_t done, failed, flagged;
    double audio_s;
    uint64_t ledger_us; /* spent in the ledger */
    double journal_s;   /* spent in the farm's journal, as it last said */
} batch;

/* batch_check.c */
/* Opens b->rows, fills b->ids and b->counts. CF_ERR_INVALID when some row is bad, CF_ERR_NOTFOUND when the model
 * directory, where one is known, lacks what rows need. */
CF_MUST_CHECK cf_err batch_read_manifest(batch *b);

/* batch_record.c */
/* Takes the running farm's model where the command line names none. */
CF_MUST_CHECK cf_err batch_find_model(batch *b);
/* b->default_voice: the command line's, else the model's. CF_ERR_NOTFOUND. */
CF_MUST_CHECK cf_err batch_find_default_voice(batch *b);
/* Nothing is made or written: is the model of this start the one of run.json? CF_ERR_MISMATCH. */
CF_MUST_CHECK cf_err batch_check_record(const batch *b);
/* Opens b->record once every stage of the status has a worker that told its model. CF_ERR_MISMATCH. */
CF_MUST_CHECK cf_err batch_open_record(batch *b, const wire_msg *status);
/* The voice of rows that name none, and its entry in run.json. */
CF_MUST_CHECK cf_err batch_use_default_voice(batch *b);
/* The voice's content hash, read once a name, and its entry in run.json. */
CF_MUST_CHECK cf_err batch_use_voice(batch *b, const char *name);

/* batch_run.c */
CF_MUST_CHECK cf_err batch_next(void *ctx, client_row *ret_row, client_next *ret_next);
CF_MUST_CHECK cf_err batch_ended(void *ctx, const client_row *row, const wire_msg *done);
client_stop batch_tick(void *ctx, const wire_msg *status);
CF_MUST_CHECK cf_err batch_settle(batch *b); /* the last lines to the disk; CF_ERR_STORAGE */

/* batch_progress.c */
void batch_show(batch *b, const wire_msg *status, uint64_t now_us); /* when it is time */
CF_MUST_CHECK cf_err batch_summary(const batch *b, int exit_code);  /* CF_ERR_NOMEM: it could not be told */

#endif
