/*
 * writer.h - helper threads of the orchestrator: they encode finished utterances and put their files in place, so that
 * a slow disk never holds up the control loop, and a full one only the files that go there. From writer_put to
 * writer_take, or to the end of writer_close, nobody else touches a session; it stays its caller's.
 */
#ifndef CF_ORCHESTRATOR_WRITER_H
#define CF_ORCHESTRATOR_WRITER_H

#include "common/base/config.h"
#include "orchestrator/session.h"

typedef struct writer writer;

/* Keys: storage_wait_s (how long a file that storage refuses is tried again before its row fails), guard_*. */
CF_MUST_CHECK cf_err writer_open(const config *cfg, writer **ret_writer);
void writer_close(writer *w); /* finishes the files in hand and forgets the rest; NULL is fine */

int writer_fd(const writer *w); /* readable when a session is done */
void writer_put(writer *w, session *s);
session *writer_take(writer *w); /* NULL when none; `again`: to be tried again, else write_err tells how it went */
int32_t writer_waiting(writer *w);

#endif
