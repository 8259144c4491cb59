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

#include "common/base/err.h"
#include "common/transport/wire.h"
#include "orchestrator/spawn.h"

typedef struct client client;

/* True when an orchestrator holds the run directory's lock. */
bool client_farm_runs(const char *run_dir);

CF_MUST_CHECK cf_err client_open(const char *run_dir, client **ret_client);
void client_close(client *c); /* NULL is fine */

/* The farm whose children must be looked after while the client waits; borrowed, NULL: none. */
void client_supervise(client *c, spawn *farm);

/* One request, one answer of the wanted kind, until the deadline: CF_ERR_TIMEOUT. Answers of other kinds are dropped.
 * */
CF_MUST_CHECK cf_err client_ask(client *c, json *request, wire_kind answer, uint64_t deadline_us, wire_msg *ret_answer);

typedef struct client_row {
    const char *id, *text, *voice, *mode, *instruct, *path, *format; /* voice, instruct: NULL for none */
    uint64_t seed;
    double speed;
    bool raw;
    int priority;
} client_row;

typedef enum client_stop { CLIENT_GO_ON, CLIENT_STOP } client_stop;

typedef struct client_handler {
    void *ctx;
    /* A row ended: status done, failed or refused. Borrowed for the call. */
    void (*ended)(void *ctx, size_t row_idx, const wire_msg *done);
    /* Called at least twice a second, with the newest status or NULL. CLIENT_STOP gives up waiting (CF_ERR_CANCELLED).
     * */
    client_stop (*tick)(void *ctx, const wire_msg *status);
} client_handler;

/* Submits every row and waits until each has ended. A row refused as busy is submitted again later when wait_when_busy.
 * CF_ERR_TIMEOUT: no orchestrator answered for silence_us. */
CF_MUST_CHECK cf_err client_run(client *c, const client_row *rows, size_t count, bool wait_when_busy,
                                uint64_t silence_us, const client_handler *handler);

#endif
