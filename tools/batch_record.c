/*
 * batch_record.c - what the files of DIR were made with, against what this start would make them with: run.json. The
 * batch's one thread.
 *
 * Compared twice. Before anything is made, with the files of the model directory: a farm of the batch's own goes on
 * with its journal as soon as it serves, and where no row is left no worker starts. Then with what the workers have
 * loaded, before a row is given to them. Hashes of files are remembered (network_hash.h).
 * Fails: errors of run record, model directory and voices, and client_check_model's.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/model/model_dir.h"
#include "common/model/network_hash.h"
#include "tools/batch.h"

/* ---- before anything is made ---- */

cf_err batch_find_model(batch *b)
{
    cf_err err;
    char run_dir[IO_PATH_BYTES];
    client *c = NULL;
    wire_msg status = {0};
    const char *dir;
    TRY(process_run_dir(run_dir, sizeof run_dir));
    if (b->farm.model_given || !client_farm_runs(run_dir))
        goto out;
    TRY(client_open(run_dir, &c));
    TRY(client_status(c, &status));
    TRY(json_get_str(wire_json(&status, "config"), "model", sizeof b->farm.cfg.model - 1, &dir));
    snprintf(b->farm.cfg.model, sizeof b->farm.cfg.model, "%s", dir);
out:
    wire_done(&status);
    client_close(c);
    return err;
}

/* A model as a directory and how it is computed: all that a file's bytes depend on. */
typedef struct model_choice {
    char dir[IO_PATH_BYTES], precision[16];
    bool base_weights;
} model_choice;

/* The running farm's, which knows better than our options; else that of our options. An empty dir: none is named. */
static cf_err choose_model(const batch *b, model_choice *ret_choice)
{
    cf_err err;
    char run_dir[IO_PATH_BYTES];
    client *c = NULL;
    wire_msg status = {0};
    const config *cfg = &b->farm.cfg;
    const char *dir = cfg->model, *precision = cfg->precision;
    bool base_weights = cfg->base_weights;
    TRY(process_run_dir(run_dir, sizeof run_dir));
    if (client_farm_runs(run_dir)) {
        TRY(client_open(run_dir, &c));
        TRY(client_check_model(c, b->farm.model_given ? cfg->model : NULL));
        TRY(client_status(c, &status));
        const json *running = wire_json(&status, "config");
        TRY(json_get_str(running, "model", IO_PATH_BYTES - 1, &dir));
        TRY(json_get_str(running, "precision", sizeof ret_choice->precision - 1, &precision));
        TRY(json_get_bool(running, "base_weights", &base_weights));
    }
    snprintf(ret_choice->dir, sizeof ret_choice->dir, "%s", dir);
    snprintf(ret_choice->precision, sizeof ret_choice->precision, "%s", precision);
    ret_choice->base_weights = base_weights;
out:
    wire_done(&status);
    client_close(c);
    return err;
}

static cf_err compare_models(const run_record *r, const model_choice *choice)
{
    cf_err err;
    char paths[MODEL_STAGE_COUNT][IO_PATH_BYTES], hashes[MODEL_STAGE_COUNT][SHA256_HEX_BYTES];
    char blank_en[SHA256_HEX_BYTES];
    run_model_file files[MODEL_STAGE_COUNT];
    TRY(model_dir_detect(choice->dir));
    for (int s = 0; s < MODEL_STAGE_COUNT; s++) {
        TRY(model_dir_stage_file(choice->dir, (model_stage)s, choice->base_weights, paths[s]));
        const char *name = strrchr(paths[s], '/') + 1;
        TRY(network_sha256(choice->dir, name, hashes[s]));
        files[s] = (run_model_file){model_stage_name((model_stage)s), name, hashes[s], choice->precision};
    }
    TRY(blank_en_sha256(choice->dir, blank_en));
    TRY(run_record_compare(r, files, MODEL_STAGE_COUNT, blank_en));
out:
    return err;
}

/* A voice that is gone is missed by the rows that name it, if any. */
static cf_err compare_voices(run_record *r, const char *model_path)
{
    cf_err err = CF_OK;
    voice *v = NULL;
    for (const json *entry = json_first(run_record_voices(r)); entry; entry = json_next(entry)) {
        const char *name = json_key(entry);
        err = voice_load(model_path, name, &v);
        if (err == CF_ERR_NOTFOUND)
            continue;
        if (err != CF_OK)
            goto out;
        TRY(run_record_use_voice(r, name, v->sha256));
        voice_close(v);
        v = NULL;
    }
    err = CF_OK;
out:
    voice_close(v);
    return err;
}

cf_err batch_check_record(const batch *b)
{
    cf_err err = CF_OK;
    run_record *r = NULL;
    model_choice choice;
    if (b->force_mix)
        return CF_OK;
    TRY(run_record_look(b->dir, &r));
    if (!r)
        goto out;
    TRY(choose_model(b, &choice));
    if (!choice.dir[0])
        goto out; /* nothing to compare with; rows that are left will want a model */
    TRY(compare_models(r, &choice));
    TRY(compare_voices(r, choice.dir));
    if (b->default_voice[0]) /* some row has it */
        TRY(run_record_use_default_voice(r, b->default_voice));
out:
    run_record_close(r);
    return err;
}

/* ---- before the first row ---- */

/* Names and hashes of the models in use, when every stage has a worker that told its own. */
static size_t read_models(const wire_msg *status, run_model_file files[MODEL_STAGE_COUNT])
{
    size_t known = 0;
    const char *precision = "";
    if (json_get_str(wire_json(status, "config"), "precision", 15, &precision) != CF_OK)
        return 0;
    for (int s = 0; s < MODEL_STAGE_COUNT; s++)
        for (const json *m = json_first(wire_json(status, "members")); m; m = json_next(m)) {
            const char *role, *file, *hash, *stage = model_stage_name((model_stage)s);
            if (json_get_str(m, "role", 31, &role) != CF_OK || strcmp(role, stage) != 0 ||
                json_get_str(m, "model", 255, &file) != CF_OK || json_get_str(m, "sha256", 64, &hash) != CF_OK ||
                !hash[0])
                continue;
            const char *slash = strrchr(file, '/');
            files[known++] = (run_model_file){stage, slash ? slash + 1 : file, hash, precision};
            break;
        }
    return known;
}

cf_err batch_open_record(batch *b, const wire_msg *status)
{
    run_model_file files[MODEL_STAGE_COUNT];
    if (read_models(status, files) != MODEL_STAGE_COUNT)
        return CF_OK; /* some worker still loads */
    cf_err err;
    const char *dir;
    char blank_en[SHA256_HEX_BYTES];
    TRY(json_get_str(wire_json(status, "config"), "model", sizeof b->farm.cfg.model - 1, &dir));
    TRY(blank_en_sha256(dir, blank_en));
    snprintf(b->farm.cfg.model, sizeof b->farm.cfg.model, "%s", dir); /* the running farm's, when -m was not given */
    const run_start start = {.version = CF_VERSION,
                             .model_dir = b->farm.cfg.model,
                             .files = files,
                             .file_count = MODEL_STAGE_COUNT,
                             .blank_en = blank_en,
                             .config = wire_json(status, "config"),
                             .command = (const char *const *)b->argv,
                             .command_count = (size_t)b->argc,
                             .started_unix_s = (int64_t)time(NULL)};
    TRY(run_record_open(b->dir, &start, b->force_mix, &b->record));
out:
    return err;
}

cf_err batch_find_default_voice(batch *b)
{
    if (b->default_voice[0])
        return CF_OK;
    if (!b->defaults.voice)
        return voice_default_name(b->farm.cfg.model, b->default_voice);
    snprintf(b->default_voice, sizeof b->default_voice, "%s", b->defaults.voice); /* checked with the options */
    return CF_OK;
}

cf_err batch_use_default_voice(batch *b)
{
    cf_err err;
    TRY(batch_find_default_voice(b)); /* again: the model may not have been known before */
    TRY(run_record_use_default_voice(b->record, b->default_voice));
out:
    return err;
}

cf_err batch_use_voice(batch *b, const char *name)
{
    cf_err err;
    voice *v = NULL;
    for (size_t i = 0; i < b->voices_count; i++)
        if (strcmp(b->voices[i].name, name) == 0)
            return CF_OK;
    if (b->voices_count == BATCH_VOICES_MAX)
        return err_set(CF_ERR_LIMIT, "more than %d different voices in one manifest", BATCH_VOICES_MAX);
    TRY(voice_load(b->farm.cfg.model, name, &v));
    TRY(run_record_use_voice(b->record, name, v->sha256));
    batch_voice *entry = &b->voices[b->voices_count];
    TRY(mem_strndup(name, strlen(name), &entry->name));
    snprintf(entry->sha256, sizeof entry->sha256, "%s", v->sha256);
    b->voices_count++;
out:
    voice_close(v);
    return err;
}
