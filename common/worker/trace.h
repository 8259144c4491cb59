/*
 * trace.h - what a worker computed when, as Chrome trace events (chrome://tracing, Perfetto), a file per process:
 *
 *   FOLDER/ROLE.INSTANCE.PID.json    "[", then one event a line, each ended by a comma
 *
 * A step is a complete event ("X", args.jobs: how many it carried); a job an asynchronous pair ("b", "e", id: its
 * number, args: utterance and segment) from its arrival in the stage to its result. Times are the monotonic clock's
 * microseconds, so the files of all processes of a host lie on one axis. The list is never closed, which the format
 * allows: what a killed process has written stays readable.
 *
 * One thread: the compute thread. A trace never fails a job: what cannot be written is logged once and ends it.
 */
#ifndef CF_WORKER_TRACE_H
#define CF_WORKER_TRACE_H

#include <stdint.h>

#include "common/base/err.h"

#define TRACE_BYTES_MAX ((int64_t)256 << 20) /* of one file: about two million events */

typedef struct trace trace;

/* CF_ERR_SYS with the path when the file cannot be made. */
CF_MUST_CHECK cf_err trace_open(const char *folder, const char *role, int instance, trace **ret_trace);
void trace_close(trace *t); /* NULL is fine, here and below: no trace is wanted */

void trace_step(trace *t, uint64_t start_us, uint64_t spent_us, int32_t jobs);
void trace_job(trace *t, uint64_t job_id, const char *utterance, uint32_t segment_idx, uint64_t start_us,
               uint64_t end_us);

#endif
