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
    char last[VOICE_NAME_BYTES_MAX + 1]; /* neighbours with the same voice are looked up once */
    bool last_known, tokenizer, speaker; /* a network that was asked for is there */
} row_needs;

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

/* CF_ERR_NOTFOUND: the directory lacks what rows of this kind need; *ret_bad counts rows with a wrong name. */
static cf_err check_row(batch *b, const manifest_row *row, row_needs *n, uint64_t *ret_bad)
{
    cf_err err = CF_OK;
    if (row->prompt_wav || row->source_wav)
        TRY(check_network(b, MODEL_TOKENIZER_FILE, &n->tokenizer));
    if (row->prompt_wav)
        TRY(check_network(b, MODEL_SPEAKER_FILE, &n->speaker));
    if (row->voice_is_default)
        TRY(batch_find_default_voice(b));
    const char *name = row->voice_is_default ? b->default_voice : row->voice;
    if (!name)
        goto out;
    if (strcmp(n->last, name) != 0) {
        snprintf(n->last, sizeof n->last, "%s", name);
        n->last_known = is_known(n->names, n->count, name);
    }
    if (n->last_known)
        goto out;
    fprintf(stderr, "%s:%" PRIu64 ": voice \"%s\" is not in %s/voices\n", manifest_name(b->rows), row->line, name,
            b->farm.cfg.model);
    ++*ret_bad;
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
    voice_names_close(needs.names, needs.count);
    return err;
}

static void print_check(const batch *b, uint64_t bad_voices)
{
    const manifest_counts *c = &b->counts;
    if (b->as_json)
        printf("{\"rows\":%" PRIu64 ",\"own\":%" PRIu64 ",\"bad\":%" PRIu64 ",\"repeated\":%" PRIu64
               ",\"unknown_voice\":%" PRIu64 "}\n",
               c->rows, c->own, c->bad, c->repeated, bad_voices);
    else if (!b->quiet)
        printf("%s: %" PRIu64 " rows, %" PRIu64 " of this shard; %" PRIu64 " bad lines, %" PRIu64
               " repeated ids, %" PRIu64 " unknown voices\n",
               manifest_name(b->rows), c->rows, c->own, c->bad, c->repeated, bad_voices);
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
