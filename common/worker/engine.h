/*
 * engine.h - the compute thread of a worker: it owns the stage, the voices and every job between submit and result.
 *
 * The control thread submits and cancels jobs and collects results; a descriptor becomes readable when there are
 * some. Every submitted job comes back exactly once. The control thread never waits for computing, so it answers
 * within microseconds.
 */
#ifndef CF_WORKER_ENGINE_H
#define CF_WORKER_ENGINE_H

#include <stdatomic.h>

#include "common/base/limits.h"
#include "common/worker/stage.h"
#include "common/worker/trace.h"

typedef struct engine engine;

/* One job with everything it borrows. Made by the control thread, owned by the engine while inside. */
typedef struct engine_job {
    stage_job job;
    char voice_name[VOICE_NAME_BYTES_MAX + 1]; /* "": none */
    char voice_sha256[SHA256_HEX_BYTES];
    char utterance[NAME_BYTES_MAX + 1];   /* for traces */
    int32_t *text, *prompt_text, *tokens; /* owned; job points to them */
    int32_t in_map;                       /* control thread's business: which mapping it reads, -1: none */
    uint64_t received_us, accepted_us;    /* by the engine; by the stage */
    struct engine_job *next;              /* list link of whoever owns it */
} engine_job;

cf_err engine_job_new(engine_job **ret_job);
void engine_job_free(engine_job *j); /* NULL is fine */

typedef struct engine_result {
    engine_job *job;    /* now the caller's */
    stage_result stage; /* stage.tokens: owned by the caller (mem_free) */
} engine_result;

typedef enum engine_state { ENGINE_OPENING, ENGINE_RUNNING, ENGINE_BROKEN } engine_state;

/* Starts the thread, which opens the stage. events: where steps and jobs are noted, NULL: nowhere; the engine's from
 * here on, whatever is returned. */
CF_MUST_CHECK cf_err engine_start(const stage_ops *ops, const stage_config *cfg, trace *events, engine **ret_engine);

/* Stops after the step in progress; jobs inside are dropped. */
void engine_stop(engine *e); /* NULL is fine */

/* Readable when state changed or results wait; engine_state_now clears it. */
int engine_fd(const engine *e);

/* ENGINE_BROKEN: *ret_err and text say why the stage cannot go on. */
engine_state engine_state_now(engine *e, cf_err *ret_err, char *text, size_t text_bytes);
void engine_facts(const engine *e, stage_facts *ret_facts); /* once RUNNING */

void engine_submit(engine *e, engine_job *job);
void engine_cancel(engine *e, uint64_t job_id); /* comes back as CF_ERR_CANCELLED, or finished if it was faster */
void engine_cancel_all(engine *e);

/* False when no result waits. */
bool engine_take_result(engine *e, engine_result *ret_result);

typedef struct engine_counters {
    uint64_t jobs_done, steps, busy_us;
    int32_t held;                  /* submitted and not yet taken back */
    uint64_t oldest_us;            /* since when there has been something to do without a pause; 0: idle */
    backend_record_counts records; /* after the last step */
} engine_counters;
void engine_count(engine *e, engine_counters *ret_counters);

#endif
