/*
 * sim.h - a farm in virtual time: the real orch_core, slots and health between simulated workers, keeper, journal,
 * operator and clients, everything drawn from one seed. Shared by sim.c (clock, queue, histories), sim_shell.c (what
 * the orchestrator's shell does, without sockets), sim_member.c (workers), sim_client.c (rows) and sim_book.h (the
 * promises, judged by a second book-keeping that shares no code with the core).
 */
#ifndef CF_TESTS_SIM_SIM_H
#define CF_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "orchestrator/health.h"
#include "orchestrator/orch_core.h"

#define SIM_WORKERS_MAX  16
#define SIM_ROWS_MAX     400
#define SIM_SEGMENTS_MAX 48 /* of one row */
#define SIM_HELD_MAX     JOBS_PER_MEMBER_MAX
#define SIM_OLD_JOBS     16
#define SIM_TICK_US      UINT64_C(500000)
#define SIM_NEVER        UINT64_MAX

/* ---- events in virtual time ---- */

typedef enum sim_kind {
    SIM_SUBMIT,    /* client: row `who` asks to be accepted */
    SIM_SYNC,      /* orchestrator: the journal has row `who` on disk */
    SIM_END_SYNC,  /* orchestrator: the journal has the end of row `who` on disk */
    SIM_WITHDRAW,  /* client: row `who` is not wanted any more */
    SIM_SPAWN,     /* supervisor: starts worker `who` */
    SIM_HELLO,     /* orchestrator: worker `who` has connected and says who it is */
    SIM_JOIN,      /* orchestrator: worker's model is loaded, it asks to join */
    SIM_MEMORY,    /* orchestrator: the keeper has made its outbox */
    SIM_OPENED,    /* orchestrator: it can read outbox `number` */
    SIM_WORK_DONE, /* worker: finishes job `number` */
    SIM_BEAT,      /* worker: speaks */
    SIM_MESSAGE,   /* orchestrator: `message` of a worker arrives */
    SIM_END,       /* worker: its process ends */
    SIM_LOST,      /* orchestrator: learns that */
    SIM_TICK,      /* orchestrator: looks at its clock */
    SIM_ORCH_UP,   /* supervisor: the orchestrator runs again */
    SIM_KEEPER_UP, /* supervisor: the keeper runs again */
    SIM_FAULT,     /* something bad happens to somebody */
    SIM_RESUME,    /* operator: worker `who` shall work again */
    SIM_CALM       /* faults stop */
} sim_kind;

typedef struct sim_event {
    uint64_t at_us, seq;
    sim_kind kind;
    int32_t who;
    uint32_t life; /* of worker `who`; an event of a former life has no effect, but a message arrives all the same */
    uint64_t boot; /* of the orchestrator it is meant for */
    uint64_t number;
    core_event message;
} sim_event;

typedef struct sim_queue {
    sim_event *heap; /* owned */
    int32_t count, room;
    uint64_t next_seq;
} sim_queue;

/* ---- workers ---- */

typedef enum sim_nature {
    SIM_HEALTHY,
    SIM_SLOW,
    SIM_DYING,    /* dies at random points */
    SIM_CRASHING, /* dies on the first work of each life: has to be barred, and fails each parole */
    SIM_LIAR,     /* wrong figures, answers for jobs it does not hold, double answers */
    SIM_GIVER,    /* gives back what it should do */
    SIM_NATURES
} sim_nature;

typedef enum sim_worker_state { WORKER_DOWN, WORKER_LOADING, WORKER_JOINING, WORKER_SERVING } sim_worker_state;

typedef struct sim_job {
    core_action work;
    int32_t row;
    bool spoiled; /* the memory that it reads was lost meanwhile */
} sim_job;

typedef struct sim_worker {
    int32_t stage, instance, rows_max, frames_max;
    sim_nature nature;
    sim_worker_state state;
    uint32_t life;
    int32_t member;       /* its number at the orchestrator, -1: none */
    uint32_t member_life; /* which of its lives that is: the orchestrator learns late that one has ended */
    uint32_t outbox_id;
    bool deaf;           /* beats, and does nothing */
    bool silent;         /* does not even beat: a stopped process */
    bool stuck;          /* beats, and its model never comes to its end */
    bool served;         /* in this life */
    uint64_t hello_boot; /* the orchestrator that it has said hello to */
    uint64_t unseen_us;  /* since when no orchestrator has seen it */
    uint64_t asked_us;   /* when the keeper was asked for its memory; 0: it was not */
    health coming;       /* until it serves */
    bool leaving;
    bool ending;         /* its end is on its way */
    uint64_t deaf_us;    /* since when it has been deaf, silent or stuck */
    uint64_t arrives_us; /* its last message; messages of one life keep their order */
    uint64_t steps;
    double slowness; /* 1: as fast as any */
    sim_job held[SIM_HELD_MAX];
    int32_t held_count;
    core_action old[SIM_OLD_JOBS]; /* answered before, for lies */
    uint32_t old_count;
} sim_worker;

/* ---- rows ---- */

typedef struct sim_row {
    int32_t segments_count, priority;
    uint64_t age;                      /* the event's row: some come late with a small one */
    core_cost costs[SIM_SEGMENTS_MAX]; /* known_tokens: what the journal has of this row */
    double speed;
    uint64_t deadline_us;                 /* after acceptance; 0: none */
    int32_t poison_stage, poison_segment; /* kills whoever runs it there; -1: none */
    uint64_t withdraw_us;                 /* after acceptance; 0: never */
    /* the client's view */
    bool asked, accepted; /* the journal has it */
    bool ended;           /* the client has an answer */
    /* the orchestrator's */
    int32_t utterance; /* -1: not in the core */
    int32_t ends;      /* how often it ended in all */
    int32_t ends_due;  /* how often it may: once, and once more for each end that a restart found not journaled */
    bool end_synced, finished, withdrawn;
} sim_row;

/* ---- one history ---- */

typedef struct sim_plan {
    int32_t workers[CORE_STAGES], rows_count, rows_live_max;
    core_limits core;
    bool flood; /* more rows than the core can take, and deadlines they cannot meet */
    uint64_t outbox_bytes, calm_us, submit_us, faults_mean_us, load_us;
    health_limits limits;
} sim_plan;

typedef struct sim {
    uint64_t seed, now_us;
    uint32_t draws;
    bool verbose, calm;
    sim_plan plan;
    sim_queue queue;
    sim_worker workers[SIM_WORKERS_MAX];
    int32_t workers_count;
    sim_row rows[SIM_ROWS_MAX];
    int32_t rows_ended;
    /* the orchestrator */
    orch_core core;
    uint64_t boot, boot_us, last_tick_us, asleep_until_us;
    bool orch_up, keeper_up, keeper_hangs;
    int32_t worker_of[MEMBERS_MAX]; /* -1: no such member */
    int32_t row_of[UTTERANCES_MAX]; /* -1: free */
    health alive[MEMBERS_MAX];
    bool paused[SIM_WORKERS_MAX];
    uint32_t next_outbox;
    int32_t live_rows;
    /* counted, for the report */
    uint64_t ended_us, steps, deaths, restarts, lies, kills, hangs, bars, paroles, clears, done, failed;
} sim;

extern sim the_sim; /* large, one for the program */

/* sim.c */
double sim_draw(void); /* [0, 1) */
int32_t sim_below(int32_t bound);
bool sim_chance(double p);
uint64_t sim_between(uint64_t least_us, uint64_t most_us);
void sim_at(uint64_t at_us, sim_event e);
void sim_trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void sim_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn)); /* this seed has failed */
#define SIM_CHECK(cond, ...) ((cond) ? (void)0 : sim_fail(__VA_ARGS__))

/* sim_shell.c */
void shell_boot(void);
void shell_apply(const core_event *event);
bool shell_hears(sim_event *e); /* false: it sleeps or is down, and the event waits or is gone */
void shell_event(const sim_event *e);
void shell_crash(void);
void shell_spoil(void); /* the keeper died, and device memory with it */
void shell_sleep(uint64_t until_us);
void shell_hear_coming(int32_t worker); /* one that does not serve yet says that it is alive */

/* sim_member.c */
void worker_event(const sim_event *e);
void worker_fault(int32_t worker);
void worker_take(int32_t worker, const core_action *work, int32_t row);
void worker_cancel(int32_t worker, uint64_t job);
void worker_end(int32_t worker, uint64_t after_us);
void worker_leave(int32_t worker, bool gives_back);
void worker_spoil(int32_t worker);
void worker_disconnect(int32_t worker); /* the orchestrator is gone: what it held is forgotten, it asks again */

/* sim_client.c */
void client_plan(void);
void client_event(const sim_event *e);
void client_ended(int32_t row, bool finished, cf_err code);

/* sim_book.c, sim_expect.c, sim_check.c, sim_agree.c: before a step, for each of its actions, after it */
void check_reset(void); /* a new orchestrator */
void check_before(const core_event *event);
void check_action(const core_action *action);
void check_after(void);
void check_deep(void); /* the whole core, slowly */
void check_final(void);

#endif
