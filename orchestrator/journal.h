/*
 * journal.h - what has been accepted and not ended, on disk: the orchestrator may die at any instant.
 *
 * One JSON line a record: {"k":"row",...} when a row is accepted, {"k":"tokens",...} when the llm has done a segment,
 * {"k":"end",...} when the row has ended. A row that begins and does not end is open: after a restart it runs again,
 * from the stage boundary that its token records allow. The file is rewritten with its open rows when it has grown.
 *
 * A thread of its own writes and fdatasyncs what has gathered, so one wait serves many records and the loop waits for
 * none. Records are numbered (tickets); journal_synced says up to which ticket they are on disk.
 */
#ifndef CF_ORCHESTRATOR_JOURNAL_H
#define CF_ORCHESTRATOR_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/json.h"
#include "common/base/sha256.h"

typedef struct journal journal;

/* Speech tokens of one segment in one attempt. */
typedef struct journal_tokens {
    int32_t attempt, segment;
    int32_t *tokens; /* owned by the record */
    int32_t tokens_count;
    bool stopped, capped;
    char origin_sha256[SHA256_HEX_BYTES]; /* token_origin.h; "": its journal did not say */
} journal_tokens;

/* One open row found at start. */
typedef struct journal_row {
    uint64_t number;
    const char *client;
    const json *submit; /* the SUBMIT message as it was */
    const journal_tokens *tokens;
    int32_t tokens_count;
    uint64_t ends_ms; /* as it was put */
} journal_row;

/* Opens or makes the file, which must be nobody else's (CF_ERR_BUSY), and reads it. A last line that cannot be parsed,
 * be it without its end, zeros or garbage, is cut off and told in the log; any other line that is no record is
 * CF_ERR_CORRUPT naming the line. */
CF_MUST_CHECK cf_err journal_open(const char *path, journal **ret_journal);
void journal_close(journal *j); /* writes what has gathered; NULL is fine */

/* Calls back for each open row that was found, oldest first, then forgets what it had read. The callback either takes
 * the row on (it goes on under its number) or ends it with journal_put_end. */
CF_MUST_CHECK cf_err journal_recover(journal *j, void (*found)(void *ctx, const journal_row *row), void *ctx);

/* New records. journal_put_row takes the SUBMIT message as json_print prints it on one line, and the row's deadline by
 * the time of day (milliseconds since 1970; 0: none), for a successor whose monotonic clock may be another; it gives
 * the row's number and the ticket to wait for. CF_ERR_NOMEM. */
CF_MUST_CHECK cf_err journal_put_row(journal *j, const char *client, const char *submit, uint64_t ends_ms,
                                     uint64_t *ret_number, uint64_t *ret_ticket);
CF_MUST_CHECK cf_err journal_put_tokens(journal *j, uint64_t number, const journal_tokens *tokens);
void journal_put_end(journal *j, uint64_t number);

/* Readable when more has reached the disk, or could not; journal_synced clears it. */
int journal_fd(const journal *j);
uint64_t journal_synced(journal *j);

/* Time spent writing and syncing so far, by the journal's own thread: nobody else waits for it but who wants to be told
 * that its row is accepted. */
uint64_t journal_busy_us(journal *j);

/* CF_OK, or why the last attempt to write failed (it is repeated each second); *ret_waiting_bytes: not on disk yet. */
cf_err journal_state(journal *j, char *ret_text, size_t text_bytes, uint64_t *ret_waiting_bytes);

#endif
