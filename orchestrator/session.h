/*
 * session.h - one accepted utterance as the shell holds it: texts, tokens and sounds of its segments, who asked, where
 * to write. The core decides by numbers; the artefacts that a replay needs are here.
 */
#ifndef CF_ORCHESTRATOR_SESSION_H
#define CF_ORCHESTRATOR_SESSION_H

#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/sha256.h"
#include "common/text/frontend.h"
#include "common/transport/bus.h"
#include "common/transport/wire.h"
#include "orchestrator/journal.h"

typedef struct session_segment {
    int32_t *tokens; /* owned; speech tokens, known from the llm's READY on */
    int32_t tokens_count;
    float *samples; /* owned; collected from the hift */
    int64_t samples_count;
    bool stopped, capped; /* as the llm said */
} session_segment;

typedef struct session {
    char client[BUS_ID_BYTES], id[NAME_BYTES_MAX + 1];
    char path[IO_PATH_BYTES], format[16];
    char voice_name[NAME_BYTES_MAX + 1], voice_sha256[SHA256_HEX_BYTES];
    char submit_sha256[SHA256_HEX_BYTES]; /* of the whole request: the same row asked for again */
    bool prompt_speech;
    bool impatient; /* somebody waits for it: it has places of its own, and storage that refuses is not waited for */
    bool is_source; /* a recording spoken by another voice: no text, no llm, no second attempt */
    int32_t prompt_tokens, priority;
    uint64_t seed;                                    /* as submitted; a later attempt derives its own from it */
    uint64_t accepted_us, first_work_us, deadline_us; /* deadline 0: none */
    double speed;
    text_plan plan;                    /* owned; without segments until a recording has been enrolled */
    wire_msg request;                  /* owned; only while a recording is to be enrolled */
    char enroll_key[SHA256_HEX_BYTES]; /* of the voice that prompt_wav gives; "": none */
    int32_t enroll_deaths;
    session_segment *segments; /* owned, plan.segment_count of them: the present attempt */
    int32_t text_tokens;       /* of all segments, counted against text_tokens_max */
    uint64_t compute_us[3];    /* per stage */
    int32_t dispatches;        /* times the core ran it: attempts of the guard, and deaths */
    int32_t utterance;         /* the core's number while it lives there, else -1 */

    /* The quality guard: an attempt that it flags is kept while another is tried; the least flagged one is written. */
    int32_t attempt;       /* 0, or how many attempts it has sent back */
    uint32_t flags;        /* of the present attempt; in the end of the one that was written */
    session_segment *kept; /* owned; the best attempt before the present one, or NULL */
    uint32_t kept_flags;
    bool again;            /* the writer says: try another attempt */
    int32_t speech_codes;  /* of the model that spoke it; known once it was spoken */
    int32_t *prompt_token; /* owned, [prompt_tokens]; what the llm was given to continue, or NULL */

    uint64_t journal_row, journal_ticket;
    bool told_accepted;
    journal_tokens *known; /* owned, known_count: tokens that a journal remembers */
    int32_t known_count;

    /* What the writer found. */
    cf_err write_err;
    char write_text[256], file_sha256[SHA256_HEX_BYTES];
    uint64_t file_bytes;
    uint64_t stuck_us, retry_us; /* since when storage refuses the file, 0: it did not; when it is tried again */
    struct session *next;        /* list link of whoever owns it */
} session;

/* Takes plan over, also on failure. */
CF_MUST_CHECK cf_err session_open(text_plan *plan, session **ret_session);
void session_close(session *s); /* NULL is fine */

/* Gives a session that had none its plan. Takes plan over, also on failure. */
CF_MUST_CHECK cf_err session_set_plan(session *s, text_plan *plan);

/* A plan of one segment without text whose speech tokens are known: a recording to be spoken by another voice. Takes
 * tokens over, also on failure. */
CF_MUST_CHECK cf_err session_set_source(session *s, int32_t *tokens, int32_t tokens_count);

/* Copies the token sets that a journal has of this row. */
CF_MUST_CHECK cf_err session_remember(session *s, const journal_tokens *tokens, int32_t count);

/* Gives the segments of the present attempt the tokens that are remembered for it. */
CF_MUST_CHECK cf_err session_use_known(session *s);

/* Puts the present attempt aside, or drops it when an earlier one has fewer flags, and makes room for the next. */
CF_MUST_CHECK cf_err session_next_attempt(session *s);

/* Makes the best attempt the present one. */
void session_take_best(session *s);

/* Greater goes first: priority, then those that cannot wait. */
int32_t session_rank(const session *s);

/* Puts it behind its like in a list linked by next, and before those of lower rank. */
void session_queue_put(session **queue, session *s);

/* Takes out one whose deadline has passed; NULL: none. */
session *session_queue_take_overdue(session **queue, uint64_t now_us);

int64_t session_samples(const session *s);
int64_t session_tokens(const session *s);

#endif
