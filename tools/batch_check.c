/*
 * batch_check.c - the manifest before any work: every bad row, every row that asks for what the model directory lacks.
 * The batch's one thread.
 * Fails: CF_ERR_INVALID when rows are bad, each told on stderr; errors of manifest, model directory and voices.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/process.h"
#include "common/model/model_dir.h"
#include "orchestrator/row_plan.h"
#include "tools/batch.h"

static void report(void *ctx, const char *text)
{
    (void)ctx;
    fprintf(stderr, "%s\n", text);
}

static bool is_known(char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

/* What the rows of a manifest ask of the model directory, and what it has. */
typedef struct row_needs {
    char **names; /* owned; its voices */
    size_t count;
    char last[VOICE_NAME_BYTES_MAX + 1];         /* neighbours with the same voice are looked up once */
    bool last_known, has_tokenizer, has_speaker; /* a network that was asked for is there */
    tokenizer *words;                            /* owned; --check only, which also tries what each row says */
    voice *said_by;                              /* owned; of the row tried last */
} row_needs;

static void needs_done(row_needs *n)
{
    voice_names_close(n->names, n->count);
    tokenizer_close(n->words);
    voice_close(n->said_by);
}

static cf_err check_network(const batch *b, const char *file, bool *known)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    TRY(io_join(path, sizeof path, b->farm.cfg.model, file));
    if (!*known && !io_exists(path))
        FAIL(CF_ERR_NOTFOUND, "%s: no such file; rows with a recording need it", path);
    *known = true;
out:
    return err;
}

static cf_err take_voice(const batch *b, const char *name, row_needs *n)
{
    if (n->said_by && strcmp(n->said_by->name, name) == 0)
        return CF_OK;
    voice_close(n->said_by);
    n->said_by = NULL;
    return voice_load(b->farm.cfg.model, name, &n->said_by);
}

/* Would the farm take the row's words? voice_name NULL: it brings a recording. */
static cf_err try_words(const batch *b, const manifest_row *row, const char *voice_name, row_needs *n)
{
    cf_err err;
    text_plan plan = {0};
    text_request words = {.text = row->text,
                          .text_bytes = strlen(row->text),
                          .raw = row->raw,
                          .prompt_text = row->prompt_text,
                          .instruct = row->instruct};
    TRY(text_mode_from_name(row->mode, &words.mode));
    if (voice_name)
        TRY(take_voice(b, voice_name, n));
    TRY(row_plan(n->words, &words, voice_name ? n->said_by : NULL, &plan));
out:
    text_plan_done(&plan);
    return err;
}

/* Such a row fails in the run, and the others are done. */
static cf_err check_words(batch *b, const manifest_row *row, const char *voice_name, row_needs *n)
{
    cf_err err;
    if (!n->words)
        TRY(tokenizer_open(b->farm.cfg.model, &n->words));
    err = try_words(b, row, voice_name, n);
    if (err == CF_OK || err == CF_ERR_NOMEM)
        goto out;
    fprintf(stderr, "%s:%" PRIu64 ": %s\n", manifest_name(b->rows), row->line, err_text());
    b->failed++;
    err = CF_OK;
out:
    return err;
}

/* CF_ERR_NOTFOUND: the directory lacks what rows of this kind need; *ret_bad counts rows with a wrong name. */
static cf_err check_row(batch *b, const manifest_row *row, row_needs *n, uint64_t *ret_bad)
{
    cf_err err = CF_OK;
    if (row->prompt_wav || row->source_wav)
        TRY(check_network(b, MODEL_TOKENIZER_FILE, &n->has_tokenizer));
    if (row->prompt_wav)
        TRY(check_network(b, MODEL_SPEAKER_FILE, &n->has_speaker));
    if (row->voice_is_default)
        TRY(batch_find_default_voice(b));
    const char *name = row->voice_is_default ? b->default_voice : row->voice;
    if (name && strcmp(n->last, name) != 0) {
        snprintf(n->last, sizeof n->last, "%s", name);
        n->last_known = is_known(n->names, n->count, name);
    }
    if (name && !n->last_known) {
        fprintf(stderr, "%s:%" PRIu64 ": voice \"%s\" is not in %s/voices\n", manifest_name(b->rows), row->line, name,
                b->farm.cfg.model);
        ++*ret_bad;
    } else if (b->check_only && row->text) {
        TRY(check_words(b, row, name, n));
    }
out:
    return err;
}

static cf_err check_rows(batch *b, uint64_t *ret_bad)
{
    cf_err err;
    row_needs needs = {0};
    bool end = false;
    manifest_row row;
    TRY(model_dir_detect(b->farm.cfg.model));
    TRY(voice_names(b->farm.cfg.model, &needs.names, &needs.count));
    for (;;) {
        if (process_stop_asked())
            FAIL(CF_ERR_CANCELLED, "%s: interrupted while it was checked", manifest_name(b->rows));
        err = manifest_next(b->rows, &row, &end);
        if (err == CF_ERR_INVALID)
            continue; /* reported before */
        if (err != CF_OK || end)
            break;
        if (shard_has(b->mine, row.hash))
            TRY(check_row(b, &row, &needs, ret_bad));
    }
    if (err == CF_OK)
        err = manifest_rewind(b->rows);
out:
    needs_done(&needs);
    return err;
}

static void print_check(const batch *b, uint64_t bad_voices)
{
    const manifest_counts *c = &b->counts;
    if (b->as_json)
        printf("{\"rows\":%" PRIu64 ",\"own\":%" PRIu64 ",\"bad\":%" PRIu64 ",\"repeated\":%" PRIu64
               ",\"unknown_voice\":%" PRIu64 ",\"unspeakable\":%" PRIu64 "}\n",
               c->rows, c->own, c->bad, c->repeated, bad_voices, b->failed);
    else if (!b->quiet)
        printf("%s: %" PRIu64 " rows, %" PRIu64 " of this shard; %" PRIu64 " bad lines, %" PRIu64
               " repeated ids, %" PRIu64 " unknown voices, %" PRIu64 " rows that cannot be spoken\n",
               manifest_name(b->rows), c->rows, c->own, c->bad, c->repeated, bad_voices, b->failed);
}

static cf_err find_manifest_dir(batch *b)
{
    char folder[IO_PATH_BYTES], absolute[PATH_MAX];
    const char *slash = strrchr(b->manifest_path, '/');
    if (slash)
        snprintf(folder, sizeof folder, "%.*s/", (int)(slash - b->manifest_path), b->manifest_path);
    if (!realpath(slash ? folder : ".", absolute))
        return err_sys("%s", slash ? folder : ".");
    snprintf(b->manifest_dir, sizeof b->manifest_dir, "%s", absolute);
    return CF_OK;
}

/* Every bad row is named before any work is done. */
cf_err batch_read_manifest(batch *b)
{
    cf_err err;
    uint64_t bad_voices = 0;
    TRY(find_manifest_dir(b));
    TRY(manifest_open(b->manifest_path, b->manifest_format, &b->defaults, &b->rows));
    TRY(id_set_open(ID_HASH_BITS, &b->ids));
    TRY(manifest_check(b->rows, b->mine, report, NULL, b->ids, &b->counts));
    if (!b->check_only)
        TRY(batch_find_model(b));
    if (b->farm.cfg.model[0])
        TRY(check_rows(b, &bad_voices));
    if (b->check_only)
        print_check(b, bad_voices);
    if (b->counts.bad + b->counts.repeated + bad_voices > 0)
        err = err_set(CF_ERR_INVALID,
                      "%s: %" PRIu64 " bad lines, %" PRIu64 " repeated ids, %" PRIu64
                      " rows with an unknown voice: nothing was done",
                      manifest_name(b->rows), b->counts.bad, b->counts.repeated, bad_voices);
    else if (b->counts.own == 0 && b->counts.rows == 0)
        err = err_set(CF_ERR_INVALID, "%s: no rows", manifest_name(b->rows));
out:
    return err;
}
