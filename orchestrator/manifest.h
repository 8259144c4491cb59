/*
 * manifest.h - the rows of a batch: read as a stream, checked, with defaults filled in; the pass that finds every bad
 * row and every id that occurs twice before any work is done.
 *
 * JSON lines (.jsonl), one object a line, or LJSpeech's form (.csv, .txt): `id|text` or `id|transcription|normalised
 * transcription`, of which the last is spoken; no quoting, no header. UTF-8; a byte-order mark at the start, CRLF and
 * blank lines are tolerated. What is no regular file (standard input as "-", a pipe) is copied into an unlinked
 * temporary file first, so that it can be read twice. One thread.
 */
#ifndef CF_ORCHESTRATOR_MANIFEST_H
#define CF_ORCHESTRATOR_MANIFEST_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "orchestrator/id_set.h"

/* 10,000 characters, each written as a pair of \uXXXX, make 120,000 bytes, for text and again for instruct. */
#define MANIFEST_LINE_BYTES_MAX 262144

typedef struct manifest manifest;

/* Strings are borrowed until the next call on the manifest. */
typedef struct manifest_row {
    uint64_t line; /* from 1 */
    uint64_t hash; /* id_hash of id */
    const char *id;
    const char *text;        /* NULL with source_wav */
    const char *voice;       /* NULL: none was named, or prompt_wav takes its place */
    const char *mode;        /* NULL with source_wav */
    const char *instruct;    /* NULL unless mode is instruct */
    const char *format;      /* wav, flac, ogg, mp3: also the file's extension */
    const char *prompt_wav;  /* NULL, or comes with prompt_text */
    const char *prompt_text; /* NULL without prompt_wav */
    const char *source_wav;  /* NULL unless the row is a conversion */
    uint64_t seed;
    double speed; /* 0.5..2 */
    int priority; /* 0..9 */
    bool raw;
    bool voice_is_default; /* the row names neither voice nor prompt_wav: voice is that of the defaults, or NULL */
} manifest_row;

/* For rows that lack a key; strings are borrowed as long as the manifest is open. */
typedef struct manifest_defaults {
    const char *voice;    /* NULL: none */
    const char *mode;     /* NULL: instruct when there is an instruction, else zero_shot */
    const char *instruct; /* NULL: none */
    const char *format;
    uint64_t run_seed; /* a row's seed is manifest_row_seed of it */
    double speed;
    int priority;
    bool raw;
} manifest_defaults;

/* First 8 bytes, little-endian, of SHA-256("cosyfarm row seed", NUL, run_seed as 8 bytes little-endian, id). */
CF_MUST_CHECK cf_err manifest_row_seed(uint64_t run_seed, const char *id, uint64_t *ret_seed);

/* format_name: "jsonl", "csv" or "txt"; NULL: by extension, and jsonl for "-". Checks the defaults as it checks rows.
 * CF_ERR_NOTFOUND, CF_ERR_INVALID, CF_ERR_SYS. Copying a pipe ends with the pipe, or with SIGTERM or SIGINT:
 * CF_ERR_CANCELLED. */
CF_MUST_CHECK cf_err manifest_open(const char *path, const char *format_name, const manifest_defaults *defaults,
                                   manifest **ret_manifest);
/* What manifest_open would say of its arguments, without opening. CF_ERR_INVALID. */
CF_MUST_CHECK cf_err manifest_check_arguments(const char *path, const char *format_name,
                                              const manifest_defaults *defaults);
void manifest_close(manifest *m);             /* NULL is fine */
const char *manifest_name(const manifest *m); /* as errors name it */

/* The next row, or *ret_end. CF_ERR_INVALID, "rows.jsonl:812: ...": that line is bad, and the next call goes on behind
 * it. Any other error ends the reading; CF_ERR_MISMATCH: the file was changed since it was opened. */
CF_MUST_CHECK cf_err manifest_next(manifest *m, manifest_row *ret_row, bool *ret_end);
CF_MUST_CHECK cf_err manifest_rewind(manifest *m);

typedef struct manifest_counts {
    uint64_t rows;       /* good ones, of all shards, repeated ids included */
    uint64_t own;        /* of this shard, repeated ids once */
    uint64_t bad;        /* lines that are no row, of all shards */
    uint64_t repeated;   /* rows of this shard whose id an earlier row has */
    uint64_t collisions; /* different ids with one key: separated, no error */
} manifest_counts;

/* One line for each thing that is wrong: "rows.jsonl:812: ...". */
typedef void manifest_report(void *ctx, const char *text);

/* Ids that occur again are remembered by hash until a second pass names them; more than this many are one line. */
#define MANIFEST_REPEATS_MAX 100000

/*
 * The whole manifest once, and again when a hash was met twice; ends rewound. Puts the keys of the shard's ids into
 * ids, which must be empty. Repeated ids have one hash, hence one shard: that shard reports them. The manifest is good
 * when bad and repeated are 0; errors are those that end the reading.
 */
CF_MUST_CHECK cf_err manifest_check(manifest *m, shard mine, manifest_report *report, void *ctx, id_set *ids,
                                    manifest_counts *ret_counts);

#endif
