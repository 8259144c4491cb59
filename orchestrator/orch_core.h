/*
 * orch_core.h - PURE: every decision of the orchestrator as a function of (state, event, time).
 *
 * orch_core_step(state, event, now) changes the state and appends actions; the shell performs them in order. No
 * sockets, no clock, no allocation: a simulator can run it for a month in a minute. The core knows utterances, their
 * segments, members, credits and slots; texts, tokens and sounds stay in the shell.
 *
 *   segment:  WAIT(llm) -> RUN(llm) -> WAIT(flow) -> RUN(flow) -> WAIT(hift) -> RUN(hift) -> DONE
 *             a lost member sends RUN back to WAIT of the same stage: tokens and committed mel are the replay points
 */
#ifndef CF_ORCHESTRATOR_ORCH_CORE_H
#define CF_ORCHESTRATOR_ORCH_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/limits.h"
#include "orchestrator/slots.h"

#define CORE_STAGES 3
enum { CORE_LLM, CORE_FLOW, CORE_HIFT };

#define CORE_SEGMENTS_MAX 4096              /* over all accepted utterances */
#define CORE_BOXES_MAX    (2 * MEMBERS_MAX) /* live ones and retired ones still being read */
#define CORE_ACTIONS_MAX  2048

/* A segment that fits no member's remaining credit or outbox lets later, smaller ones pass for this long. Then one
 * member is kept for it. */
#define CORE_PATIENCE_US UINT64_C(10000000)

/* Memory a slot needs. */
#define CORE_FRAME_BYTES  (MEL_BINS * 4)
#define CORE_SAMPLE_BYTES 4

typedef enum core_event_kind {
    CORE_JOINED,   /* member, stage, instance, rows_max, frames_max, outbox_id (0: none), outbox_bytes, paused */
    CORE_LOST,     /* member */
    CORE_DRAINING, /* member: it leaves, no more work for it */
    CORE_PAUSE,    /* member, paused: no more work for it, or work again */
    CORE_PARDON,   /* stage, instance: its deaths are forgotten, it is fed again */
    CORE_OPENED,   /* member, outbox_id: it can read that outbox */
    CORE_SPOILED,  /* outbox_id: its memory is lost, or cannot be read: what waits in it is made again */
    CORE_SUBMIT,   /* utterance, priority, row, speed, deadline_us (0: none), segments, segments_count */
    CORE_READY,    /* member, job, tokens | frames | samples */
    CORE_FAILED,   /* member, job, code */
    CORE_WITHDRAW, /* utterance: nobody wants it any more */
    CORE_TICK      /* nothing happened: schedule what can be scheduled */
} core_event_kind;

typedef struct core_cost {
    int32_t text_tokens;
    int32_t prompt_tokens; /* speech tokens of the voice: they are rendered along with the new ones */
    int32_t known_tokens;  /* > 0: the llm's work was done before (a journal has its tokens); begin at flow */
} core_cost;

typedef struct core_event {
    core_event_kind kind;
    int32_t member, stage, instance, rows_max, frames_max;
    bool paused;
    uint32_t outbox_id;
    uint64_t outbox_bytes, deadline_us;
    uint64_t row; /* goes ahead of greater ones of its priority, whenever it comes: another attempt of an old row */
    int32_t utterance, priority, segments_count;
    double speed;
    const core_cost *segments; /* borrowed for the call */
    uint64_t job;
    int32_t tokens, frames;
    int64_t samples;
    cf_err code;
} core_event;

typedef enum core_action_kind {
    CORE_DO_WORK,    /* send job of (utterance, segment, stage) to member; in and out slots */
    CORE_DO_CANCEL,  /* tell member to forget job; it will answer */
    CORE_DO_COLLECT, /* copy `samples` from the in slot now: it is free afterwards */
    CORE_DO_FINISH,  /* every segment of utterance is collected */
    CORE_DO_FAIL,    /* utterance ends with code, because of segment at stage */
    CORE_DO_FORGET,  /* nothing refers to utterance any more: its number may be used again */
    CORE_DO_RELEASE, /* nothing reads in.outbox_id any more: free the memory */
    CORE_DO_BAR,     /* stage and instance (in `segment`): died too often before a finished job, is not fed for
                      * pause_us */
    CORE_DO_PAROLE,  /* stage and instance (in `segment`): is fed one job alone from now on */
    CORE_DO_CLEAR    /* stage and instance (in `segment`): finished a job on parole, is fed as before */
} core_action_kind;

typedef struct core_slot {
    uint32_t outbox_id; /* 0: none */
    uint64_t off_bytes, bytes;
} core_slot;

typedef struct core_action {
    core_action_kind kind;
    int32_t member, utterance, segment, stage;
    uint64_t job;
    core_slot in, out;
    int32_t frames;
    int64_t samples;
    cf_err code;
    int32_t deaths;
    uint64_t pause_us;
} core_action;

typedef enum core_segment_state { SEGMENT_FREE, SEGMENT_WAIT, SEGMENT_RUN, SEGMENT_DONE } core_segment_state;

typedef struct core_segment {
    core_segment_state state;
    int32_t utterance, idx, next; /* next: of the same utterance, -1 at the end */
    int32_t stage, member;        /* member: while RUN */
    uint64_t job;                 /* of the present or last dispatch; never reused; its remainder is our index */
    core_cost cost;
    int32_t tokens, frames, deaths, alone_deaths; /* deaths: at this stage */
    int32_t parole_deaths;                        /* of workers on parole, at this stage */
    int32_t rereads;                              /* times its mel was lost */
    int32_t credit_frames;                        /* what it takes of its member's frames while RUN */
    core_slot in, out;                            /* in: committed mel (hift); out: leased while RUN */
    uint64_t since_us;                            /* of the present state */
} core_segment;

typedef enum core_utterance_state { UTTERANCE_FREE, UTTERANCE_LIVE, UTTERANCE_ENDED } core_utterance_state;

typedef struct core_utterance {
    core_utterance_state state; /* ENDED: reported; waits for members to let go of its segments */
    int32_t first_segment, segments_count, segments_done, priority, attempts;
    double speed;
    uint64_t row, deadline_us; /* deadline 0: none */
} core_utterance;

typedef struct core_member {
    bool live, draining, paused;
    int32_t stage, instance, rows_max, frames_max, rows_held, frames_held;
    int32_t box;          /* index of its outbox, -1: none */
    int32_t reserved_for; /* segment that runs alone here, or must run next; -1: none */
    bool opened[CORE_BOXES_MAX];
} core_member;

typedef enum core_standing {
    STANDING_FED,
    STANDING_BARRED, /* not fed until parole_at_us, or a pardon */
    STANDING_PAROLE  /* fed one job alone: finished, its record is cleared; another death, and the pause doubles */
} core_standing;

/* What an instance of a worker has on its record, across its incarnations. */
typedef struct core_record {
    core_standing standing;
    uint8_t deaths;                  /* with work in hand, since it last finished a job */
    bool gave_up_a_row;              /* since then */
    uint64_t pause_us, parole_at_us; /* pause_us 0: not barred since it last finished a job */
} core_record;

typedef struct core_limits {
    int32_t deaths_max;                /* of a segment at one stage */
    uint64_t parole_us, parole_max_us; /* first pause of a barred instance; what it doubles up to */
} core_limits;

typedef struct orch_core {
    core_member members[MEMBERS_MAX];
    core_utterance utterances[UTTERANCES_MAX];
    core_segment segments[CORE_SEGMENTS_MAX];
    slot_box boxes[CORE_BOXES_MAX];
    int32_t order[UTTERANCES_MAX]; /* utterances by priority, then arrival */
    int32_t order_count;
    int32_t free_segment; /* head of the list of free segments */
    int32_t free_segments_count;
    core_limits limits;
    core_record records[CORE_STAGES][INSTANCES_MAX];
    uint64_t next_job, jobs_dispatched, jobs_replayed;
    bool llm_rests; /* Flow has enough: see is_paced */
    core_action actions[CORE_ACTIONS_MAX];
    int32_t actions_count;
    bool more; /* the action list filled up: step again with CORE_TICK */
} orch_core;

void orch_core_init(orch_core *core, const core_limits *limits);

/* Room for an utterance of this many segments? Ask before CORE_SUBMIT, which asserts it. */
bool orch_core_has_room(const orch_core *core, int32_t segments_count);

/* Room for one more member's outbox? Ask before CORE_JOINED with an outbox, which asserts it. */
bool orch_core_has_box(const orch_core *core);

/* Empties the action list, applies the event, schedules. Events about unknown jobs or members are ignored: they are
 * echoes of what has been decided otherwise meanwhile. */
void orch_core_step(orch_core *core, const core_event *event, uint64_t now_us);

/* The segment that this job is running for on this member; NULL: none, an echo. */
const core_segment *orch_core_find_job(const orch_core *core, int32_t member, uint64_t job);

/* Is this instance fed, not fed because it died UNPROVEN_DEATHS_MAX times before its first finished job, or tried? */
core_standing orch_core_standing(const orch_core *core, int32_t stage, int32_t instance);

/* Segments per stage, for status and tests. */
void orch_core_count(const orch_core *core, int32_t ret_waiting[CORE_STAGES], int32_t ret_running[CORE_STAGES]);

#endif
