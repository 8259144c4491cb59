/*
 * ledger.h - one line of JSON for each row that ended: what a resume trusts. DIR/ledger.jsonl, or
 * DIR/ledger.i-of-n.jsonl of a shard. One process at a time, one thread.
 */
#ifndef CF_ORCHESTRATOR_LEDGER_H
#define CF_ORCHESTRATOR_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "orchestrator/id_set.h"

#define LEDGER_LINE_BYTES_MAX  65536
#define LEDGER_ERROR_BYTES_MAX 1023 /* of error.text; longer ones are cut */

/* What a line says. Order of keys: id, status, file, bytes, seconds, samples, sha256, seed, attempts, segments, tokens,
 * flags, ms, error. All is borrowed. A failed row has file and sha256 null, a done one error null. */
typedef struct ledger_entry {
    const char *id;
    bool done;          /* status "done", else "failed" */
    const char *file;   /* relative to DIR: audio/<id>.<format>; done only */
    uint64_t bytes;     /* size of the file */
    uint64_t samples;   /* seconds follow from them */
    const char *sha256; /* of the file's bytes; done only */
    uint64_t seed, attempts, segments, tokens;
    const char *const *flags;
    uint32_t flag_count;
    double llm_ms, flow_ms, hift_ms, queue_ms;
    cf_err error_code; /* failed only, with the stage's name and one line of text */
    const char *error_stage, *error_text;
} ledger_entry;

/* The caller closes the line. CF_ERR_NOMEM. */
CF_MUST_CHECK cf_err ledger_line(const ledger_entry *e, json **ret_line);

CF_MUST_CHECK cf_err ledger_path(const char *dir, shard mine, char ret_path[IO_PATH_BYTES]);

typedef struct ledger ledger;

/* Opens or makes the ledger in a folder that exists, and locks it until it is closed: CF_ERR_BUSY when another process
 * has it. A last line that a crash cut off is removed and *ret_torn_line is its number, else 0. CF_ERR_CORRUPT when the
 * end is not what we could have left there. */
CF_MUST_CHECK cf_err ledger_open(const char *dir, shard mine, ledger **ret_ledger, uint64_t *ret_torn_line);
void ledger_close(ledger *l); /* NULL is fine */

/* What a resume needs of a line; borrowed for the call. */
typedef struct ledger_view {
    uint64_t line;
    const char *id;
    bool done;
    const char *file;   /* NULL unless done */
    const char *sha256; /* NULL unless done */
    uint64_t bytes;
} ledger_view;

/* Every line in order; an error that on_line returns ends it and is returned. CF_ERR_CORRUPT names file and line;
 * CF_ERR_CANCELLED when SIGTERM or SIGINT came (process_stop_asked), also of ledger_drop. */
typedef cf_err ledger_visit(void *ctx, const ledger_view *view);
CF_MUST_CHECK cf_err ledger_each(ledger *l, ledger_visit *on_line, void *ctx);

/* The same for the other ledgers of the folder, those of other shards or of all rows, in no order of files. Other
 * batches may be writing them: they are only read, and a last line that is not whole is passed over. */
CF_MUST_CHECK cf_err ledger_each_other(const ledger *l, ledger_visit *on_line, void *ctx);

/* Asks once per line and rewrites the ledger, atomically, without those for which *ret_drop is true; nothing is written
 * when there is none. On failure, of the question too, the ledger is as before. */
typedef cf_err ledger_predicate(void *ctx, const ledger_view *view, bool *ret_drop);
CF_MUST_CHECK cf_err ledger_drop(ledger *l, ledger_predicate *drop, void *ctx, uint64_t *ret_dropped);

/* Adds a line, without waiting for the disk. On failure the ledger ends where it ended before. CF_ERR_STORAGE: the disk
 * or quota is full, the same call may be made again later. */
CF_MUST_CHECK cf_err ledger_append(ledger *l, const json *line);

/* Returns when all lines are on the disk. CF_ERR_GONE: the file was deleted or replaced. After a failure the ledger
 * refuses everything, since what the disk holds is not known: open it again. */
CF_MUST_CHECK cf_err ledger_sync(ledger *l);

#endif
