/*
 * client.h - the command's side of the bus: rows in, answers out, across restarts of the orchestrator.
 *
 * A client holds its rows until each has ended; it asks for a sign of life twice a second, and when another
 * orchestrator answers (another boot number), it submits again what has not ended. Same row and seed: same bytes, so
 * nothing is lost and nothing differs.
 */
#ifndef CF_TOOLS_CLIENT_H
#define CF_TOOLS_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/limits.h"
#include "common/transport/wire.h"
#include "orchestrator/spawn.h"

typedef struct client client;

/* True when an orchestrator holds the run directory's lock. */
bool client_farm_runs(const char *run_dir);

CF_MUST_CHECK cf_err client_open(const char *run_dir, client **ret_client);
void client_close(client *c); /* NULL is fine */

/* A row that has not ended is submitted again so often: answers get lost where memory runs out. The orchestrator knows
 * a row that it has, and only answers again. */
#define CLIENT_RESUBMIT_US (15 * CLOCK_SECOND_US)
/* Rows that patient commands have in a farm at once: what it takes of them. More would only be refused, again and
 * again, at the orchestrator's cost. */
#define CLIENT_ROWS_MAX (UTTERANCES_MAX - UTTERANCES_MAX / INTERACTIVE_SHARE)
void client_resubmit_after(client *c, uint64_t resubmit_us); /* for tests */

/* The farm whose children must be looked after while the client waits; borrowed, NULL: none. Waiting fails with
 * CF_ERR_GONE when a stage's processes have ended before they served for so long (spawn_check_served). */
void client_supervise(client *c, spawn *farm, uint64_t unserved_us);

/* One request, one answer of the wanted kind, until the deadline: CF_ERR_TIMEOUT. Answers of other kinds are dropped.
 * Asks again when none comes: requests are such that being heard twice changes nothing. */
CF_MUST_CHECK cf_err client_ask(client *c, json *request, wire_kind answer, uint64_t deadline_us, wire_msg *ret_answer);

/* The next message of this kind, until the deadline: CF_ERR_TIMEOUT. Others are dropped. */
CF_MUST_CHECK cf_err client_wait(client *c, wire_kind kind, uint64_t deadline_us, wire_msg *ret_msg);

/* The farm's status, within ten seconds: CF_ERR_TIMEOUT. */
CF_MUST_CHECK cf_err client_status(client *c, wire_msg *ret_status);

/* CF_ERR_MISMATCH when the running farm serves another model directory; NULL: any is fine. */
CF_MUST_CHECK cf_err client_check_model(client *c, const char *wanted_dir);

typedef struct client_row {
    const char *id, *text, *voice, *mode, *instruct, *path, *format; /* text: "" with source_wav; NULL for none */
    const char *prompt_wav, *prompt_text, *source_wav;               /* absolute paths; NULL for none */
    uint64_t seed;
    double speed;
    bool raw, impatient; /* impatient: storage that refuses the file ends the row at once */
    int priority;
    uint64_t deadline_ms; /* from acceptance; 0: none */
    uint64_t tag;         /* the caller's own */
} client_row;

typedef enum client_stop {
    CLIENT_GO_ON,
    CLIENT_DRAIN, /* take no more rows; give those in flight drain_us to end */
    CLIENT_STOP   /* give up now */
} client_stop;

typedef enum client_next { CLIENT_ROW, CLIENT_LATER /* ask again in a moment */, CLIENT_END } client_next;

/* A stream of rows, of which at most in_flight_max are held. */
typedef struct client_plan {
    void *ctx;
    /* The next row, borrowed until the next call. An error ends the run with it. */
    cf_err (*next)(void *ctx, client_row *ret_row, client_next *ret_next);
    /* A row ended: status done, failed or refused. Borrowed for the call. */
    cf_err (*ended)(void *ctx, const client_row *row, const wire_msg *done);
    /* Called many times a second, with the newest status or NULL: signals are looked for here. */
    client_stop (*tick)(void *ctx, const wire_msg *status);
    size_t in_flight_max;
    bool wait_when_busy; /* a row refused as busy is submitted again later */
    uint64_t silence_us, drain_us;
} client_plan;

/* Submits rows as they come and waits until each has ended. CF_ERR_TIMEOUT: no orchestrator answered for silence_us.
 * CF_ERR_CANCELLED: tick said so, and rows are left. */
CF_MUST_CHECK cf_err client_run(client *c, const client_plan *plan);

typedef struct client_handler {
    void *ctx;
    void (*ended)(void *ctx, size_t row_idx, const wire_msg *done);
    client_stop (*tick)(void *ctx, const wire_msg *status);
} client_handler;

/* The same for a list of rows, all in flight at once. */
CF_MUST_CHECK cf_err client_run_list(client *c, const client_row *rows, size_t count, bool wait_when_busy,
                                     uint64_t silence_us, const client_handler *handler);

#endif
