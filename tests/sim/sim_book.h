/*
 * sim_book.h - the second book-keeping of the simulator: what the orchestrator must have on its hands, worked out from
 * events and actions alone. sim_expect.c writes it for events, sim_check.c for actions, sim_agree.c compares it.
 */
#ifndef CF_TESTS_SIM_SIM_BOOK_H
#define CF_TESTS_SIM_SIM_BOOK_H

#include "tests/sim/sim.h"

#define BOOK_INSTANCES 8 /* of one stage; the simulator has at most four */
#define BOOK_NO_CODE   CF_OK

typedef enum book_state { BOOK_WAITS, BOOK_RUNS, BOOK_DONE } book_state;

typedef struct book_segment {
    book_state state;
    int32_t stage, member, tokens, frames, credit, deaths, alone_deaths, parole_deaths, prompt_tokens, rereads;
    bool suspect;                                  /* it was dispatched to run alone */
    uint64_t job, overtaken_us, overtaken_last_us; /* since when later ones are preferred without a pause */
    core_slot in, out;
} book_segment;

typedef struct book_row {
    bool used, ended, forgotten;
    int32_t row, priority, count, done, running;
    uint64_t age, seq, deadline_us;
    double speed;
    cf_err must_fail; /* in this step */
    bool may_fail_gone, must_finish, failed_now;
    int32_t cancels_due;
    book_segment segments[SIM_SEGMENTS_MAX];
} book_row;

typedef struct book_region {
    uint64_t off, bytes;
    int32_t utterance, segment;
    bool committed;
} book_region;

typedef struct book_box {
    uint32_t outbox_id;
    bool retired, released;
    int32_t count;
    book_region regions[SLOTS_PER_BOX_MAX];
} book_box;

typedef struct book_member {
    bool live, draining, paused, opened[CORE_BOXES_MAX];
    int32_t stage, instance, rows_max, frames_max, rows, frames, box;
} book_member;

typedef struct book_record {
    int32_t deaths, rows_lost, pauses; /* pauses: since it last finished a job */
    bool gave_up, barred, on_parole;
    uint64_t barred_us;
} book_record;

typedef struct sim_book {
    book_row rows[UTTERANCES_MAX];
    book_box boxes[CORE_BOXES_MAX];
    book_member members[MEMBERS_MAX];
    book_record records[CORE_STAGES][BOOK_INSTANCES];
    int32_t live[UTTERANCES_MAX]; /* utterances in use */
    int32_t live_count;
    uint64_t next_seq, last_job;
    /* of this step */
    bool bar_due, clear_due, collect_due, limit_failed;
    int32_t bar_stage, bar_instance, collect_utterance, collect_segment; /* bar_: clear_due's worker, too */
    int32_t paroles_due;
    core_action works[CORE_ACTIONS_MAX];
    int32_t works_count;
} sim_book;

extern sim_book book; /* large, one for the program */

/* sim_book.c */
book_box *book_find_box(uint32_t outbox_id);
void book_drop_slot(core_slot *s); /* its region is free again; *s is none afterwards */
uint64_t book_aligned(uint64_t bytes);
uint64_t book_slot_bytes(const book_segment *s); /* that its present stage writes */
int32_t book_credit(const book_segment *s);      /* frames it takes of a member */
bool book_is_suspect(const book_segment *s);     /* must run alone */
bool book_is_doubtful(const book_segment *s);    /* no fair trial for a worker on parole */
bool book_is_on_parole(const book_member *m);
uint64_t book_pause_us(const book_record *r); /* the present one */
bool book_may_be_fed(const book_member *m, int32_t stage);
bool book_can_read(const book_member *m, const book_segment *s);
book_segment *book_find_running(int32_t member, uint64_t job, book_row **ret_row); /* NULL: an echo */
void book_end(book_row *r);

#endif
