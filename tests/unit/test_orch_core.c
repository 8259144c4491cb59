/*
 * test_orch_core.c - the orchestrator's decisions: single cases, then some random histories with members that
 * die, give back, lie and answer late, each checked against the promises: every utterance ends exactly once, no job
 * runs twice at once, nobody gets more than its credit, all slots come back.
 */
#include "tests/harness/test.h"

#include <string.h>

#include "common/base/rng.h"
#include "orchestrator/orch_core.h"

static orch_core core; /* large: one for the program */

#define PAROLE_US UINT64_C(5000)

static void begin(int32_t deaths_max)
{
    orch_core_init(&core,
                   &(core_limits){.deaths_max = deaths_max, .parole_us = PAROLE_US, .parole_max_us = 3 * PAROLE_US});
}

static const core_action *find_action(core_action_kind kind)
{
    for (int32_t i = 0; i < core.actions_count; i++)
        if (core.actions[i].kind == kind)
            return &core.actions[i];
    return NULL;
}

static void apply(core_event e)
{
    orch_core_step(&core, &e, 1000);
}

static void join(int member, int stage, uint32_t outbox)
{
    apply((core_event){.kind = CORE_JOINED,
                       .member = member,
                       .stage = stage,
                       .rows_max = 2,
                       .frames_max = 1000,
                       .outbox_id = outbox,
                       .outbox_bytes = 1 << 22});
}

static void join_three(void)
{
    begin(3);
    join(0, CORE_LLM, 0);
    join(1, CORE_FLOW, 1);
    join(2, CORE_HIFT, 2);
    apply((core_event){.kind = CORE_OPENED, .member = 2, .outbox_id = 1});
}

static void submit(int utterance, int segments)
{
    static core_cost costs[64];
    for (int i = 0; i < segments; i++)
        costs[i] = (core_cost){10, 50, 0};
    apply((core_event){
        .kind = CORE_SUBMIT, .utterance = utterance, .speed = 1, .segments = costs, .segments_count = segments});
}

static core_action expect_work(int stage)
{
    const core_action *a = find_action(CORE_DO_WORK);
    assert_non_null(a);
    assert_int_equal(a->stage, stage);
    return *a;
}

static void ready(core_action work, int tokens, int frames, int64_t samples)
{
    apply((core_event){.kind = CORE_READY,
                       .member = work.member,
                       .job = work.job,
                       .tokens = tokens,
                       .frames = frames,
                       .samples = samples});
}

static void test_one_row_goes_through(void **state)
{
    (void)state;
    join_three();
    submit(5, 1);
    core_action llm = expect_work(CORE_LLM);
    ready(llm, 25, 0, 0);
    core_action flow = expect_work(CORE_FLOW);
    assert_int_equal(flow.out.bytes, 50 * CORE_FRAME_BYTES);
    ready(flow, 0, 50, 0);
    core_action hift = expect_work(CORE_HIFT);
    assert_int_equal(hift.in.outbox_id, 1);
    assert_int_equal(hift.frames, 50);
    ready(hift, 0, 0, 50 * 480);
    assert_int_equal(find_action(CORE_DO_COLLECT)->samples, 50 * 480);
    assert_int_equal(find_action(CORE_DO_FINISH)->utterance, 5);
    assert_int_equal(find_action(CORE_DO_FORGET)->utterance, 5);
    assert_int_equal(slots_used_bytes(&core.boxes[0]) + slots_used_bytes(&core.boxes[1]), 0);
    assert_int_equal(core.free_segments_count, CORE_SEGMENTS_MAX);
}

static void test_speed_shortens_the_slot(void **state)
{
    (void)state;
    join_three();
    static const core_cost cost = {10, 50, 0};
    apply((core_event){.kind = CORE_SUBMIT, .speed = 1.3, .segments = &cost, .segments_count = 1});
    ready(expect_work(CORE_LLM), 25, 0, 0);
    assert_int_equal(expect_work(CORE_FLOW).frames, (int)(50 / 1.3));
}

/* [P-03], [P-04] */
static void test_death_replays_from_the_stage_boundary(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    ready(expect_work(CORE_LLM), 25, 0, 0);
    const core_action flow = expect_work(CORE_FLOW);
    apply((core_event){.kind = CORE_LOST, .member = 1});
    assert_non_null(find_action(CORE_DO_RELEASE)); /* nothing committed: the outbox goes at once */
    join(3, CORE_FLOW, 7);
    const core_action again = expect_work(CORE_FLOW);
    assert_true(again.job != flow.job);
    ready(flow, 0, 50, 0); /* an echo of the dead */
    assert_null(find_action(CORE_DO_WORK));
    apply((core_event){.kind = CORE_OPENED, .member = 2, .outbox_id = 7});
    ready(again, 0, 50, 0);
    expect_work(CORE_HIFT);
}

/* [P-10], [P-11], [P-12] */
static void test_committed_mel_outlives_its_writer(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    ready(expect_work(CORE_LLM), 25, 0, 0);
    apply((core_event){.kind = CORE_LOST, .member = 2}); /* no hift: the mel must wait */
    const core_segment *s = &core.segments[core.utterances[0].first_segment];
    const core_action flow = {.member = 1, .job = s->job};
    ready(flow, 0, 50, 0);
    apply((core_event){.kind = CORE_LOST, .member = 1});
    assert_null(find_action(CORE_DO_RELEASE)); /* still to be read */
    join(4, CORE_HIFT, 9);
    assert_null(find_action(CORE_DO_WORK)); /* it has not mapped the dead one's outbox */
    apply((core_event){.kind = CORE_OPENED, .member = 4, .outbox_id = 1});
    const core_action hift = expect_work(CORE_HIFT);
    assert_int_equal(hift.in.outbox_id, 1);
    ready(hift, 0, 0, 50 * 480);
    assert_int_equal(find_action(CORE_DO_RELEASE)->in.outbox_id, 1);
    assert_non_null(find_action(CORE_DO_FINISH));
}

/* Mel that is lost is made again, of the tokens that are known. */
static void test_lost_mel_is_made_again(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    ready(expect_work(CORE_LLM), 25, 0, 0);
    ready(expect_work(CORE_FLOW), 0, 50, 0);
    const core_action hift = expect_work(CORE_HIFT);
    apply((core_event){.kind = CORE_SPOILED, .outbox_id = 1}); /* it will find out itself */
    assert_null(find_action(CORE_DO_WORK));
    apply((core_event){.kind = CORE_FAILED, .member = 2, .job = hift.job, .code = CF_ERR_STALE});
    apply((core_event){.kind = CORE_LOST, .member = 2});
    const core_segment *s = &core.segments[core.utterances[0].first_segment];
    ready((core_action){.member = 1, .job = s->job}, 0, 50, 0);
    apply((core_event){.kind = CORE_SPOILED, .outbox_id = 3}); /* another one */
    assert_null(find_action(CORE_DO_WORK));
    apply((core_event){.kind = CORE_LOST, .member = 1});
    assert_null(find_action(CORE_DO_RELEASE)); /* its mel waits */
    apply((core_event){.kind = CORE_SPOILED, .outbox_id = 1});
    assert_int_equal(find_action(CORE_DO_RELEASE)->in.outbox_id, 1);
    join(3, CORE_FLOW, 4);
    const core_action again = expect_work(CORE_FLOW);
    assert_int_equal(again.frames, 50);
    assert_int_equal(again.out.outbox_id, 4);
}

/* A hift that finds nothing readable, ever, does not keep the row for ever. */
static void test_mel_is_made_so_often_and_no_more(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    ready(expect_work(CORE_LLM), 25, 0, 0);
    for (int i = 0; i <= REREADS_MAX; i++) {
        assert_null(find_action(CORE_DO_FAIL));
        ready(expect_work(CORE_FLOW), 0, 50, 0);
        apply((core_event){.kind = CORE_FAILED, .member = 2, .job = expect_work(CORE_HIFT).job, .code = CF_ERR_STALE});
    }
    assert_int_equal(find_action(CORE_DO_FAIL)->code, CF_ERR_STALE);
    assert_non_null(find_action(CORE_DO_FORGET));
}

/* [P-14] */
static void test_poison_runs_alone_then_is_given_up(void **state)
{
    (void)state;
    begin(3);
    join(0, CORE_LLM, 0);
    submit(0, 1);
    for (int death = 0; death < 2; death++) {
        apply((core_event){.kind = CORE_LOST, .member = 0});
        assert_null(find_action(CORE_DO_FAIL));
        join(0, CORE_LLM, 0);
        assert_int_equal(expect_work(CORE_LLM).utterance, 0);
    }
    submit(1, 1); /* there is credit for two, but the suspect must be alone */
    assert_null(find_action(CORE_DO_WORK));
    apply((core_event){.kind = CORE_LOST, .member = 0});
    assert_null(find_action(CORE_DO_FAIL)); /* once alone may be an accident */
    join(0, CORE_LLM, 0);
    apply((core_event){.kind = CORE_LOST, .member = 0});
    const core_action *fail = find_action(CORE_DO_FAIL);
    assert_non_null(fail);
    assert_int_equal(fail->utterance, 0);
    assert_int_equal(fail->deaths, 4);
    assert_int_equal(core.utterances[1].state, UTTERANCE_LIVE);
}

/* [P-21] Two rows, one worker that never finishes anything: the first is given up as a suspect, then the worker is. */
static void test_worker_that_always_dies_is_fed_no_more(void **state)
{
    (void)state;
    begin(3);
    submit(0, 1);
    submit(1, 1);
    for (int death = 0; death < 5; death++) {
        join(0, CORE_LLM, 0);
        assert_non_null(find_action(CORE_DO_WORK));
        apply((core_event){.kind = CORE_LOST, .member = 0});
        assert_true((find_action(CORE_DO_FAIL) != NULL) == (death == 3));
        assert_true((find_action(CORE_DO_BAR) != NULL) == (death == 4));
    }
    assert_int_equal(core.utterances[1].state, UTTERANCE_LIVE);
    join(0, CORE_LLM, 0);
    assert_null(find_action(CORE_DO_WORK));
    assert_int_equal(orch_core_standing(&core, CORE_LLM, 0), STANDING_BARRED);
    apply((core_event){.kind = CORE_PARDON, .stage = CORE_LLM, .instance = 0});
    ready(expect_work(CORE_LLM), 25, 0, 0);
    assert_int_equal(core.records[CORE_LLM][0].deaths, 0);
}

static void tick_at(uint64_t now_us)
{
    orch_core_step(&core, &(core_event){.kind = CORE_TICK}, now_us);
}

/* An instance that is barred at 1000 us, with these rows waiting; it serves. */
static void bar_one(int rows)
{
    begin(100);
    for (int i = 0; i < rows; i++)
        submit(i, 1);
    for (int death = 0; death < 3; death++) {
        join(0, CORE_LLM, 0);
        apply((core_event){.kind = CORE_LOST, .member = 0});
    }
    assert_int_equal(find_action(CORE_DO_BAR)->pause_us, PAROLE_US);
    join(0, CORE_LLM, 0);
    assert_null(find_action(CORE_DO_WORK));
}

/* [P-23] After its pause a barred worker gets one job; finished, it is fed as before. */
static void test_parole_clears_the_record(void **state)
{
    (void)state;
    bar_one(3);
    tick_at(1000 + PAROLE_US - 1);
    assert_int_equal(core.actions_count, 0);
    tick_at(1000 + PAROLE_US);
    assert_int_equal(find_action(CORE_DO_PAROLE)->stage, CORE_LLM);
    const core_action trial = expect_work(CORE_LLM);
    assert_int_equal(core.actions_count, 2); /* one job, though there is credit for two */
    assert_int_equal(orch_core_standing(&core, CORE_LLM, 0), STANDING_PAROLE);
    apply((core_event){.kind = CORE_FAILED, .member = 0, .job = trial.job, .code = CF_ERR_NUMERIC});
    assert_null(find_action(CORE_DO_CLEAR)); /* it lives, and has finished nothing: tried again */
    ready(expect_work(CORE_LLM), 25, 0, 0);
    assert_non_null(find_action(CORE_DO_CLEAR));
    assert_int_equal(orch_core_standing(&core, CORE_LLM, 0), STANDING_FED);
    assert_int_equal(core.members[0].rows_held, 1);
    assert_int_equal(core.records[CORE_LLM][0].pause_us, 0);
}

/* [P-23] Another death: twice the pause, up to the bound. No row is charged, and each death has another one. */
static void test_parole_fails_and_doubles(void **state)
{
    (void)state;
    static const uint64_t pauses[] = {2 * PAROLE_US, 3 * PAROLE_US, 3 * PAROLE_US};
    uint64_t now_us = 1000 + PAROLE_US;
    bar_one(3);
    const int32_t charged = core.segments[core.utterances[0].first_segment].deaths;
    for (int i = 0; i < 3; i++) {
        tick_at(now_us);
        assert_int_equal(expect_work(CORE_LLM).utterance, i);
        orch_core_step(&core, &(core_event){.kind = CORE_LOST, .member = 0}, now_us);
        assert_int_equal(find_action(CORE_DO_BAR)->pause_us, pauses[i]);
        join(0, CORE_LLM, 0);
        assert_null(find_action(CORE_DO_WORK));
        now_us += pauses[i];
    }
    assert_int_equal(core.segments[core.utterances[0].first_segment].deaths, charged);
    apply((core_event){.kind = CORE_PARDON, .stage = CORE_LLM, .instance = 0});
    assert_int_equal(core.members[0].rows_held, 2);
}

/* [P-14], [P-23] Poison that only a barred worker is left to try ends all the same; the next row clears the worker. */
static void test_poison_on_parole_is_given_up(void **state)
{
    (void)state;
    uint64_t now_us = 1000;
    bar_one(1);
    core.limits.deaths_max = 3;
    for (int trial = 0; core.utterances[0].state == UTTERANCE_LIVE; trial++) {
        assert_true(trial < 6);
        tick_at(now_us += 3 * PAROLE_US);
        assert_int_equal(expect_work(CORE_LLM).utterance, 0);
        orch_core_step(&core, &(core_event){.kind = CORE_LOST, .member = 0}, now_us);
        join(0, CORE_LLM, 0);
    }
    submit(1, 1);
    tick_at(now_us += 3 * PAROLE_US);
    ready(expect_work(CORE_LLM), 25, 0, 0);
    assert_non_null(find_action(CORE_DO_CLEAR));
}

static void test_finished_jobs_prove_a_worker(void **state)
{
    (void)state;
    begin(100);
    submit(0, 1);
    submit(1, 1);
    for (int death = 0; death < 10; death++) {
        join(0, CORE_LLM, 0);
        ready(expect_work(CORE_LLM), 25, 0, 0);
        submit(2 + death, 1);
        apply((core_event){.kind = CORE_LOST, .member = 0});
        assert_null(find_action(CORE_DO_BAR));
    }
}

static void test_paused_member_keeps_what_it_has(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    const core_action first = expect_work(CORE_LLM);
    apply((core_event){.kind = CORE_PAUSE, .member = 0, .paused = true});
    submit(1, 1);
    assert_null(find_action(CORE_DO_WORK));
    ready(first, 25, 0, 0);
    expect_work(CORE_FLOW);
    apply((core_event){.kind = CORE_PAUSE, .member = 0, .paused = false});
    assert_int_equal(expect_work(CORE_LLM).utterance, 1);
}

static void test_known_tokens_begin_at_flow(void **state)
{
    (void)state;
    join_three();
    static const core_cost costs[] = {{10, 50, 30}, {10, 50, 0}};
    apply((core_event){.kind = CORE_SUBMIT, .speed = 1, .segments = costs, .segments_count = 2});
    assert_int_equal(core.actions[0].stage, CORE_FLOW);
    assert_int_equal(core.actions[0].frames, 60);
    assert_int_equal(core.actions[1].stage, CORE_LLM);
}

static void test_deadline_ends_a_row(void **state)
{
    (void)state;
    begin(3);
    static const core_cost cost = {10, 50, 0};
    apply((core_event){.kind = CORE_SUBMIT, .speed = 1, .deadline_us = 2000, .segments = &cost, .segments_count = 1});
    orch_core_step(&core, &(core_event){.kind = CORE_TICK}, 1999);
    assert_int_equal(core.actions_count, 0);
    orch_core_step(&core, &(core_event){.kind = CORE_TICK}, 2000);
    assert_int_equal(find_action(CORE_DO_FAIL)->code, CF_ERR_TIMEOUT);
    assert_int_equal(core.free_segments_count, CORE_SEGMENTS_MAX);
}

/* [P-14] */
static void test_given_back_work_is_nobodys_fault(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    const core_action a = expect_work(CORE_LLM);
    apply((core_event){.kind = CORE_DRAINING, .member = 0});
    apply((core_event){.kind = CORE_FAILED, .member = 0, .job = a.job, .code = CF_ERR_CANCELLED});
    assert_null(find_action(CORE_DO_FAIL));
    join(6, CORE_LLM, 0);
    assert_int_equal(expect_work(CORE_LLM).member, 6);
    assert_int_equal(core.segments[core.utterances[0].first_segment].deaths, 0);
}

static void test_failure_cancels_the_rest_of_the_row(void **state)
{
    (void)state;
    join_three();
    submit(0, 2);
    const uint64_t second = core.segments[core.segments[core.utterances[0].first_segment].next].job;
    const uint64_t first = core.segments[core.utterances[0].first_segment].job;
    apply((core_event){.kind = CORE_FAILED, .member = 0, .job = first, .code = CF_ERR_NUMERIC});
    assert_int_equal(find_action(CORE_DO_FAIL)->code, CF_ERR_NUMERIC);
    assert_int_equal(find_action(CORE_DO_CANCEL)->job, second);
    assert_null(find_action(CORE_DO_FORGET)); /* a member still holds a segment */
    apply((core_event){.kind = CORE_FAILED, .member = 0, .job = second, .code = CF_ERR_CANCELLED});
    assert_int_equal(find_action(CORE_DO_FORGET)->utterance, 0);
}

/* [P-15] */
static void test_lies_fail_the_row(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    ready(expect_work(CORE_LLM), 25, 0, 0);
    ready(expect_work(CORE_FLOW), 0, 51, 0);
    assert_int_equal(find_action(CORE_DO_FAIL)->code, CF_ERR_CORRUPT);
    submit(1, 1);
    ready(expect_work(CORE_LLM), 0, 0, 0);
    assert_int_equal(find_action(CORE_DO_FAIL)->code, CF_ERR_CORRUPT);
}

static void lose(int member)
{
    apply((core_event){.kind = CORE_LOST, .member = member});
}

/* Row 0 is a suspect; member 1 runs row 1 and is kept for row 0. */
static void keep_for_a_suspect(void)
{
    static const core_cost cost = {10, 50, 0};
    begin(3);
    submit(0, 1);
    for (int death = 0; death < 2; death++) {
        join(0, CORE_LLM, 0);
        lose(0);
    }
    apply((core_event){.kind = CORE_JOINED,
                       .member = 1,
                       .stage = CORE_LLM,
                       .instance = 1,
                       .paused = true,
                       .rows_max = 2,
                       .frames_max = 1});
    apply((core_event){
        .kind = CORE_SUBMIT, .utterance = 1, .priority = 9, .speed = 1, .segments = &cost, .segments_count = 1});
    apply((core_event){.kind = CORE_PAUSE, .member = 1});
    assert_int_equal(expect_work(CORE_LLM).utterance, 1);
    assert_int_equal(core.members[1].reserved_for, core.utterances[0].first_segment);
}

/* [P-14] A member that is kept for a suspect dies with another row: the suspect was not in flight. */
static void test_death_of_a_kept_member_is_not_the_suspects(void **state)
{
    (void)state;
    keep_for_a_suspect();
    lose(1);
    assert_int_equal(core.segments[core.utterances[0].first_segment].alone_deaths, 0);
    assert_int_equal(core.segments[core.utterances[1].first_segment].deaths, 1);
}

/* A suspect that has found another member, or whose member is fed no more, keeps that one for nothing. */
static void test_members_are_kept_for_who_waits(void **state)
{
    (void)state;
    keep_for_a_suspect();
    join(2, CORE_LLM, 0);
    assert_int_equal(expect_work(CORE_LLM).member, 2);
    submit(2, 1);
    assert_int_equal(expect_work(CORE_LLM).member, 1);
    keep_for_a_suspect();
    apply((core_event){.kind = CORE_PAUSE, .member = 1, .paused = true});
    assert_int_equal(core.members[1].reserved_for, -1);
}

/* Rows that have ended keep their number until nobody holds them. */
static void test_no_room_without_a_free_number(void **state)
{
    (void)state;
    begin(3);
    for (int i = 0; i < UTTERANCES_MAX; i++)
        submit(i, 1);
    join(0, CORE_LLM, 0);
    const core_action held = expect_work(CORE_LLM);
    assert_false(orch_core_has_room(&core, 1));
    apply((core_event){.kind = CORE_WITHDRAW, .utterance = held.utterance});
    assert_false(orch_core_has_room(&core, 1));
    apply((core_event){.kind = CORE_FAILED, .member = 0, .job = held.job, .code = CF_ERR_CANCELLED});
    assert_true(orch_core_has_room(&core, 1));
}

/* [P-15] */
static void test_failed_with_ok_is_no_success(void **state)
{
    (void)state;
    join_three();
    submit(0, 1);
    const core_action a = expect_work(CORE_LLM);
    apply((core_event){.kind = CORE_FAILED, .member = 0, .job = a.job, .code = CF_OK});
    assert_int_equal(find_action(CORE_DO_FAIL)->code, CF_ERR_CORRUPT);
}

/* [P-12] A stream of small rows leaves no gap that the large one fits; after some patience they wait for it. */
static void test_large_row_is_not_overtaken_for_ever(void **state)
{
    (void)state;
    join_three(); /* 1000 frames of credit */
    static const core_cost small = {10, 0, 200}, large = {10, 0, 500};
    core_action held[2];
    for (int i = 0; i < 2; i++) {
        apply((core_event){.kind = CORE_SUBMIT, .utterance = i, .speed = 1, .segments = &small, .segments_count = 1});
        held[i] = expect_work(CORE_FLOW);
    }
    apply((core_event){.kind = CORE_SUBMIT, .utterance = 2, .speed = 1, .segments = &large, .segments_count = 1});
    for (int i = 0; i < 100; i++) {
        const uint64_t now_us = 1000 + (uint64_t)i * 1000000;
        orch_core_step(
            &core,
            &(core_event){.kind = CORE_SUBMIT, .utterance = 3 + i, .speed = 1, .segments = &small, .segments_count = 1},
            now_us);
        const core_action done = held[i % 2];
        orch_core_step(&core, &(core_event){.kind = CORE_READY, .member = 1, .job = done.job, .frames = done.frames},
                       now_us);
        for (int32_t k = 0; k < core.actions_count; k++) {
            if (core.actions[k].kind != CORE_DO_WORK || core.actions[k].stage != CORE_FLOW)
                continue;
            if (core.actions[k].utterance == 2) {
                assert_true(i >= 10 && i <= 13); /* patience, then both that it holds end */
                return;
            }
            held[i % 2] = core.actions[k];
        }
    }
    fail_msg("the large row was never dispatched");
}

static void test_too_large_for_any_outbox(void **state)
{
    (void)state;
    join_three(); /* 4 MiB outboxes: 8192 samples * 480 * 4 do not fit */
    submit(0, 1);
    ready(expect_work(CORE_LLM), 2000, 0, 0);
    ready(expect_work(CORE_FLOW), 0, 4000, 0);
    assert_int_equal(find_action(CORE_DO_FAIL)->code, CF_ERR_LIMIT);
    assert_int_equal(core.free_segments_count, CORE_SEGMENTS_MAX);
}

static void test_priority_goes_first(void **state)
{
    (void)state;
    begin(3);
    static const core_cost cost = {10, 0, 0};
    for (int i = 0; i < 3; i++)
        apply((core_event){.kind = CORE_SUBMIT,
                           .utterance = i,
                           .priority = i == 2 ? 9 : 0,
                           .speed = 1,
                           .segments = &cost,
                           .segments_count = 1});
    join(0, CORE_LLM, 0);
    assert_int_equal(core.actions[0].utterance, 2);
    assert_int_equal(core.actions[1].utterance, 0);
}

/* ---- random histories ---- */

#define SIM_JOBS 512

typedef struct sim {
    uint64_t seed;
    uint32_t draws;
    core_action held[SIM_JOBS]; /* dispatched and not answered, by live or dead members */
    int32_t held_count;
    uint32_t next_outbox;
    int32_t ended[UTTERANCES_MAX], submitted, finished, failed;
    bool busy[UTTERANCES_MAX];
} sim;

static float draw(sim *s)
{
    return rng_uniform(s->seed, 1, s->draws++, 0);
}

static void sim_step(sim *s, core_event e);

static void sim_join(sim *s, int member)
{
    const int stage = member % 3;
    const uint32_t outbox = stage == CORE_LLM ? 0 : ++s->next_outbox;
    sim_step(s, (core_event){.kind = CORE_JOINED,
                             .member = member,
                             .stage = stage,
                             .instance = member / 3,
                             .paused = draw(s) < 0.1f,
                             .rows_max = 1 + (int)(draw(s) * 4),
                             .frames_max = 400,
                             .outbox_id = outbox,
                             .outbox_bytes = 1 << 20});
    for (int m = 0; m < MEMBERS_MAX && core.members[member].live; m++)
        for (int b = 0; b < CORE_BOXES_MAX; b++) {
            const uint32_t id = core.boxes[b].outbox_id;
            if (core.members[m].live && core.members[m].stage == CORE_HIFT && id != 0 && !core.members[m].opened[b])
                sim_step(s, (core_event){.kind = CORE_OPENED, .member = m, .outbox_id = id});
        }
}

static void check_invariants(const sim *s)
{
    int32_t rows[MEMBERS_MAX] = {0};
    uint64_t leased = 0, slots = 0;
    for (int32_t i = 0; i < CORE_SEGMENTS_MAX; i++) {
        const core_segment *g = &core.segments[i];
        if (g->state == SEGMENT_RUN) {
            rows[g->member]++;
            leased += g->out.outbox_id != 0;
            assert_true(core.members[g->member].live);
            assert_int_equal(core.members[g->member].stage, g->stage);
        }
        slots += g->state != SEGMENT_FREE && g->in.outbox_id != 0;
    }
    for (int m = 0; m < MEMBERS_MAX; m++)
        if (core.members[m].live) {
            assert_int_equal(rows[m], core.members[m].rows_held);
            assert_true(rows[m] <= core.members[m].rows_max);
            assert_true(core.members[m].frames_held <= core.members[m].frames_max || rows[m] == 1);
        }
    uint64_t found = 0;
    for (int b = 0; b < CORE_BOXES_MAX; b++)
        found += core.boxes[b].outbox_id != 0 ? (uint64_t)core.boxes[b].count : 0;
    assert_int_equal(found, leased + slots);
    (void)s;
}

static void sim_step(sim *s, core_event e)
{
    do {
        orch_core_step(&core, &e, s->draws);
        for (int32_t i = 0; i < core.actions_count; i++) {
            const core_action a = core.actions[i];
            if (a.kind == CORE_DO_WORK) {
                assert_true(s->held_count < SIM_JOBS);
                s->held[s->held_count++] = a;
            } else if (a.kind == CORE_DO_FINISH || a.kind == CORE_DO_FAIL) {
                s->ended[a.utterance]++;
                assert_int_equal(s->ended[a.utterance], 1); /* exactly once */
                s->finished += a.kind == CORE_DO_FINISH;
                s->failed += a.kind == CORE_DO_FAIL;
            } else if (a.kind == CORE_DO_FORGET) {
                assert_int_equal(s->ended[a.utterance], 1);
                s->ended[a.utterance] = 0;
                s->busy[a.utterance] = false;
            }
        }
        e = (core_event){.kind = CORE_TICK};
    } while (core.more);
    check_invariants(s);
}

static void sim_submit(sim *s)
{
    core_cost costs[5];
    const int count = 1 + (int)(draw(s) * 5);
    int utterance = 0;
    while (utterance < UTTERANCES_MAX && s->busy[utterance])
        utterance++;
    if (utterance == UTTERANCES_MAX || !orch_core_has_room(&core, count))
        return;
    for (int i = 0; i < count; i++)
        costs[i] = (core_cost){10, (int)(draw(s) * 100), draw(s) < 0.1f ? 40 : 0};
    s->busy[utterance] = true;
    s->submitted++;
    sim_step(s, (core_event){.kind = CORE_SUBMIT,
                             .utterance = utterance,
                             .priority = (int)(draw(s) * 10),
                             .speed = 0.5 + 1.5 * (double)draw(s),
                             .segments = costs,
                             .segments_count = count});
}

/* Answers one held job: mostly well, sometimes wrongly, with a failure, or giving it back. */
static void sim_answer(sim *s, bool well)
{
    if (s->held_count == 0)
        return;
    const int32_t at = (int32_t)(draw(s) * (float)s->held_count);
    const core_action a = s->held[at];
    s->held[at] = s->held[--s->held_count];
    const float u = draw(s);
    core_event e = {.kind = CORE_READY,
                    .member = a.member,
                    .job = a.job,
                    .tokens = 1 + (int)(draw(s) * 150),
                    .frames = a.frames,
                    .samples = (int64_t)a.frames * 480};
    if (!well && u < 0.03f)
        e.frames++, e.samples++, e.tokens = 0;
    else if (!well && u < 0.06f)
        e = (core_event){.kind = CORE_FAILED, .member = a.member, .job = a.job, .code = CF_ERR_NUMERIC};
    else if (!well && u < 0.10f)
        e = (core_event){.kind = CORE_FAILED, .member = a.member, .job = a.job, .code = CF_ERR_CANCELLED};
    sim_step(s, e);
}

static void sim_fault(sim *s)
{
    const int member = (int)(draw(s) * 9);
    if (!core.members[member].live)
        sim_join(s, member);
    else if (draw(s) < 0.5f)
        sim_step(s, (core_event){.kind = CORE_LOST, .member = member});
}

static void run_history(uint64_t seed)
{
    static sim s;
    memset(&s, 0, sizeof s);
    s.seed = seed;
    begin(3);
    for (int m = 0; m < 9; m++)
        sim_join(&s, m);
    for (int step = 0; step < 400; step++) {
        const float u = draw(&s);
        if (u < 0.2f)
            sim_submit(&s);
        else if (u < 0.9f)
            sim_answer(&s, false);
        else
            sim_fault(&s);
    }
    /* Faults stop: everybody lives, everything must end within a bounded number of answers. */
    for (int m = 0; m < 9; m++)
        if (!core.members[m].live)
            sim_join(&s, m);
    for (int m = 0; m < 9; m++) {
        sim_step(&s, (core_event){.kind = CORE_PARDON, .stage = m % 3, .instance = m / 3});
        sim_step(&s, (core_event){.kind = CORE_PAUSE, .member = m});
    }
    for (int step = 0; step < 20000 && s.held_count > 0; step++)
        sim_answer(&s, true);
    assert_int_equal(s.finished + s.failed, s.submitted);
    assert_int_equal(core.order_count, 0);
    assert_int_equal(core.free_segments_count, CORE_SEGMENTS_MAX);
    for (int b = 0; b < CORE_BOXES_MAX; b++)
        assert_int_equal(core.boxes[b].outbox_id != 0 ? core.boxes[b].count : 0, 0);
    assert_true(s.finished > 0);
}

/* [P-09], [P-12], [P-13] */
static void test_random_histories(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++)
        run_history(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_row_goes_through),
        cmocka_unit_test(test_speed_shortens_the_slot),
        cmocka_unit_test(test_death_replays_from_the_stage_boundary),
        cmocka_unit_test(test_committed_mel_outlives_its_writer),
        cmocka_unit_test(test_lost_mel_is_made_again),
        cmocka_unit_test(test_mel_is_made_so_often_and_no_more),
        cmocka_unit_test(test_poison_runs_alone_then_is_given_up),
        cmocka_unit_test(test_worker_that_always_dies_is_fed_no_more),
        cmocka_unit_test(test_parole_clears_the_record),
        cmocka_unit_test(test_parole_fails_and_doubles),
        cmocka_unit_test(test_poison_on_parole_is_given_up),
        cmocka_unit_test(test_finished_jobs_prove_a_worker),
        cmocka_unit_test(test_paused_member_keeps_what_it_has),
        cmocka_unit_test(test_known_tokens_begin_at_flow),
        cmocka_unit_test(test_deadline_ends_a_row),
        cmocka_unit_test(test_given_back_work_is_nobodys_fault),
        cmocka_unit_test(test_failure_cancels_the_rest_of_the_row),
        cmocka_unit_test(test_lies_fail_the_row),
        cmocka_unit_test(test_death_of_a_kept_member_is_not_the_suspects),
        cmocka_unit_test(test_members_are_kept_for_who_waits),
        cmocka_unit_test(test_no_room_without_a_free_number),
        cmocka_unit_test(test_failed_with_ok_is_no_success),
        cmocka_unit_test(test_large_row_is_not_overtaken_for_ever),
        cmocka_unit_test(test_too_large_for_any_outbox),
        cmocka_unit_test(test_priority_goes_first),
        cmocka_unit_test(test_random_histories),
    };
    return cmocka_run_group_tests_name("orch_core", tests, NULL, NULL);
}
