/*
 * run_record.h - DIR/run.json: with which model, voices, configuration and command the files of DIR were made, so that
 * a later start does not mix others in unnoticed.
 *
 *   {"version", "model": {"dir", "files": [{"stage", "file", "sha256", "precision"}],
 *    "blank_en": sha256}, "voices": {name: sha256},
 *    "config": {...}, "command": [...], "started": "2026-01-31T12:00:00Z", "default_voice": name of the voice of rows
 *    that name none, once there was one, "mixed": [former records, oldest first]}
 *
 * Shards share DIR, so every change is made under a lock on DIR/run.lock, from the file as it is then.
 */
#ifndef CF_ORCHESTRATOR_RUN_RECORD_H
#define CF_ORCHESTRATOR_RUN_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/json.h"

#define RUN_RECORD_BYTES_MAX (16u << 20) /* some 100,000 voices */

typedef struct run_model_file {
    const char *stage, *file, *sha256, *precision;
} run_model_file;

/* This start. All is borrowed for the call. */
typedef struct run_start {
    const char *version, *model_dir;
    const run_model_file *files;
    size_t file_count;
    const char *blank_en; /* SHA-256, network_hash.h */
    const json *config;
    const char *const *command; /* argv */
    size_t command_count;
    int64_t started_unix_s;
} run_start;

typedef struct run_record run_record;

/* Makes the record, or compares the start with it: file hash and precision of each stage, and blank_en, which records
 * of earlier versions lack and then are not asked for. Not compared are folders, file names, configuration and version.
 * CF_ERR_MISMATCH names stage, expected and found; with force_mix the former record goes into "mixed" and this start's
 * is written instead. CF_ERR_CORRUPT: not a record; CF_ERR_BUSY: another process has held the lock for ten seconds. */
CF_MUST_CHECK cf_err run_record_open(const char *dir, const run_start *start, bool force_mix, run_record **ret_record);
void run_record_close(run_record *r); /* NULL is fine */

/* The record as it is, for a look before anything is made: this one is never written. *ret_record is NULL where there
 * is none yet. CF_ERR_CORRUPT: not a record. */
CF_MUST_CHECK cf_err run_record_look(const char *dir, run_record **ret_record);

/* The comparison of run_record_open alone. CF_ERR_MISMATCH. */
CF_MUST_CHECK cf_err run_record_compare(const run_record *r, const run_model_file *files, size_t file_count,
                                        const char *blank_en);

/* Object of voice names and content hashes; borrowed. */
const json *run_record_voices(const run_record *r);

/* Before the first row of a voice, whose content has this SHA-256: adds it, or compares. CF_ERR_MISMATCH names it;
 * forced, as above. A voice that is in the record with this content touches no file. A look adds nothing. */
CF_MUST_CHECK cf_err run_record_use_voice(run_record *r, const char *name, const char *content);

/* Before the first row that names no voice and so gets this one: adds the name, or compares, as above. */
CF_MUST_CHECK cf_err run_record_use_default_voice(run_record *r, const char *name);

#endif
