/*
 * orch.h - the orchestrator's state, shared by the files of its shell: orch_shell.c (loop and actions), orch_members.c
 * (lifelines, admission, exchange memory), orch_requests.c (clients), orch_status.c. The decisions are in orch_core.c.
 */
#ifndef CF_ORCHESTRATOR_ORCH_H
#define CF_ORCHESTRATOR_ORCH_H

#include <sys/types.h>

#include "common/base/config.h"
#include "common/base/device.h"
#include "common/base/notify.h"
#include "common/text/bpe.h"
#include "common/transport/bus.h"
#include "common/transport/outbox.h"
#include "common/transport/wire.h"
#include "orchestrator/health.h"
#include "orchestrator/orch_core.h"
#include "orchestrator/rates.h"
#include "orchestrator/session.h"
#include "orchestrator/voices.h"
#include "orchestrator/writer.h"

#define CONNS_MAX           MEMBERS_MAX /* workers, the keeper, and callers that have not said who they are */
#define BOX_TABLE_MAX       (2 * MEMBERS_MAX)
#define HANDOVERS_KEPT      4096
#define JOURNAL_WAITING_MAX (8u << 20) /* bytes that the journal could not write yet; above: no new rows */

typedef enum conn_state {
    CONN_FREE,
    CONN_NEW,      /* accepted, no HELLO yet */
    CONN_LOADING,  /* worker: WELCOMEd, its model is being loaded */
    CONN_JOINED,   /* worker: JOINed, its outbox is being made */
    CONN_ADMITTED, /* worker: ADMITted, its first word on the bus is awaited */
    CONN_SERVING,  /* worker: a member of the core */
    CONN_KEEPER,
    CONN_SUPERVISOR /* who starts processes here; absent where systemd does */
} conn_state;

/* One lifeline. Its index is the member's number in the core. */
typedef struct conn {
    conn_state state;
    int fd, pid_fd; /* owned */
    pid_t pid;
    uint64_t gen; /* > 0 once WELCOMEd; never reused */
    char role[16], routing_id[BUS_ID_BYTES], model_file[256], model_sha256[SHA256_HEX_BYTES], backend[128];
    int stage, instance, rows_max, frames_max;
    int32_t speech_codes; /* hift 0 */
    char device[DEVICE_TEXT_BYTES];
    uint64_t device_bytes; /* weights, tables, caches and scratch there; 0: it is the CPU */
    uint32_t outbox_id;    /* 0: none */
    bool draining;
    uint64_t since_us;
    health alive;
    /* from its last beat */
    uint64_t jobs_done, steps, held, busy_us, rss_bytes, weights_bytes;
    bool records; /* it said how its steps were submitted: */
    uint64_t steps_recorded, steps_replayed, steps_eager;
} conn;

/* Exchange memory as the shell holds it: descriptors to hand out, its own mapping to collect samples. */
typedef struct box_entry {
    uint32_t outbox_id; /* 0: free */
    uint64_t bytes;
    int write_fd, read_fd; /* owned; -1 until the keeper answers. Device memory: read_fd alone, for all who use it */
    int device;            /* whose memory is wanted, DEVICE_CPU: a memfd */
    char handle[129];      /* of device memory; "": it is a memfd */
    outbox *map;           /* owned; hift's only */
    int conn_idx, stage;   /* for whom; conn_idx -1: retired */
    uint64_t asked_us;     /* when ALLOC was sent to the present keeper; 0: it was not */
    bool in_core;          /* its member has been JOINED: readers may be told of it */
} box_entry;

#define ENROLL_JOBS_MAX 8
typedef struct enroll_process enroll_process;

/* `cosyfarm scale` that came before the supervisor. */
#define SCALES_MAX 8
typedef struct scale_wish {
    char client[BUS_ID_BYTES];
    int stage, count;
    uint64_t since_us;
} scale_wish;

typedef struct latency_ring {
    int32_t us[HANDOVERS_KEPT];
    uint64_t count; /* ever */
} latency_ring;

typedef struct orch {
    config cfg;
    char run_dir[IO_PATH_BYTES], endpoint[IO_PATH_BYTES];
    uint64_t boot, next_gen, started_us;
    int32_t speech_codes; /* of the model, as its llm and flow say; 0 before one has joined */
    uint32_t next_outbox;
    int lock_fd, listen_fd, signal_fd;
    bus *b;
    tokenizer *tok;
    voices *voice_table;
    writer *out;
    journal *log;
    orch_core core;
    bool applying; /* inside orch_apply: members lost meanwhile wait in `lost` */
    int32_t lost[CONNS_MAX];
    int32_t lost_count;
    conn conns[CONNS_MAX];
    box_entry boxes[BOX_TABLE_MAX];
    session *live[ROWS_OPEN_MAX];               /* owned: accepted and not ended, in the core or with the writer */
    session *sessions[UTTERANCES_MAX];          /* borrowed: those in the core, by its utterance number */
    session *again;                             /* list of live rows that wait for room in the core */
    session *to_enroll;                         /* list of live rows whose recording is to be enrolled */
    enroll_process *enrolling[ENROLL_JOBS_MAX]; /* owned; NULL: never used */
    bool host_memory[DEVICES_MAX]; /* devices whose memory could not be shared here: their outboxes are memfds */
    bool paused[CORE_STAGES][INSTANCES_MAX];      /* by `cosyfarm drain`, until `resume` */
    pid_t to_restart[CORE_STAGES][INSTANCES_MAX]; /* by `cosyfarm restart`, one of a stage after the other; 0: not */
    int restarting[CORE_STAGES];                  /* the instance whose turn it is; -1: none */
    uint64_t restart_since_us[CORE_STAGES];
    scale_wish scales[SCALES_MAX]; /* the oldest first */
    int scales_count;
    int staff[CORE_STAGES]; /* what the supervisor was last told of `cosyfarm scale`; -1: nothing */
    bool draining;
    uint64_t drain_by_us;
    char drain_client[BUS_ID_BYTES]; /* who asked for it last, and is told the end; empty: a signal */
    bool drain_sent;
    int exit_code; /* -1: go on */
    notify note;
    /* What tokens are made by (token_origin.h) with the llm's file of that hash; empty: not known yet. */
    char maker_llm_sha256[SHA256_HEX_BYTES], maker_sha256[SHA256_HEX_BYTES];
    int32_t text_tokens_held, sessions_live;
    uint64_t caused_us; /* when the READY now being handled was sent: goes into the WORK it causes */
    latency_ring handover[CORE_STAGES];
    rates jobs_ended[CORE_STAGES], rows_ended;
    uint64_t rows_done, rows_failed, rows_refused, rows_recovered, attempts_again, samples_done, messages_bad;
} orch;

/* orch_shell.c */
void orch_apply(orch *o, const core_event *event); /* steps the core and performs its actions */
void orch_session_end(orch *o, session *s, cf_err code, const char *stage, const char *text); /* answers and closes */
int orch_run(orch *o); /* the loop; returns an exit code */

void orch_begin_when_room(orch *o, session *s); /* the present attempt goes to the core as soon as it fits */

/* orch_enroll.c */
void orch_enroll_put(orch *o, session *s); /* its turn comes in orch_enroll_tick */
void orch_enroll_tick(orch *o);
size_t orch_enroll_fds(const orch *o, struct pollfd *fds); /* 2 * ENROLL_JOBS_MAX of them */
void orch_enroll_read(orch *o, const struct pollfd *fds);
void orch_enroll_close(orch *o);

/* orch_members.c */
cf_err members_accept(orch *o);
void members_read(orch *o, int conn_idx);
void members_lose(orch *o, int conn_idx, const char *why);
void members_on_bus(orch *o, const char *peer, const wire_msg *msg);
void members_unread(orch *o, const char *peer, const char *why); /* of its messages, one could not be read */
void members_release_box(orch *o, uint32_t outbox_id);
box_entry *members_find_box(orch *o, uint32_t outbox_id);
void members_drain_all(orch *o);
void members_drain_one(orch *o, int conn_idx, bool again); /* finish what you hold, then exit; again: to be restarted */
void members_dismiss_all(orch *o);                   /* the farm has ended: keeper, and workers that are still there */
void members_send(orch *o, int conn_idx, json *msg); /* on its lifeline; lost when that fails */
int members_count_serving(const orch *o);
int members_in_state(const orch *o, conn_state state); /* the first connection; -1: none */

/* orch_silence.c */
void members_check_silence(orch *o, uint64_t now_us, bool was_asleep);
void members_end_process(orch *o, int conn_idx, const char *why); /* kills and loses it */

/* orch_requests.c */
void requests_on_bus(orch *o, const char *peer, const wire_msg *msg);
bool requests_has_segments(const orch *o, const session *s); /* room in the core for all of its segments? */
void requests_begin_attempt(orch *o, session *s);
/* A row whose recording is enrolled: its voice, or what the voice shall say. The row then has a plan. */
cf_err requests_set_voice(orch *o, session *s, const char *voice_name);
cf_err requests_set_source(orch *o, session *s, int32_t *tokens, int32_t tokens_count); /* takes tokens */
/* The tokens of a segment go to the journal, with what they were made of: llm_sha256 is the file of their worker. */
void requests_keep_tokens(orch *o, const session *s, int32_t segment, const char *llm_sha256);
void requests_tell_accepted(orch *o);
void requests_tell_end(orch *o);  /* to the client that asked for it, with the rows that are left */
cf_err requests_recover(orch *o); /* takes on the rows that the journal holds */
void requests_answer(orch *o, const session *s, cf_err code, const char *stage, const char *text);

/* orch_steer.c */
void steer_on_bus(orch *o, const char *client, const wire_msg *msg);
void steer_tick(orch *o, uint64_t now_us); /* goes on with restarts, and with what waits for the supervisor */
void steer_tell_staff(orch *o);            /* to a supervisor that has come: what its last line may have lost */

/* orch_kept.c */
void kept_save(const orch *o); /* after a change of paused or to_restart */
CF_MUST_CHECK cf_err kept_recover(orch *o);
void kept_forget(const orch *o);

/* orch_status.c */
json *status_message(orch *o, uint64_t nonce);

#endif
