/*
 * sim_member.c - a worker as a state machine with a nature: healthy, slow, dying, crashing, lying, giving back; any of
 * them may be made deaf, silent, stopped for a while, stuck while it loads, or asked to leave. The simulator's one
 * thread. Fails: sim_fail.
 */
#include "tests/sim/sim.h"

#include <string.h>

#define BEAT_US UINT64_C(500000)

static sim_event event_of(int32_t worker, sim_kind kind)
{
    return (sim_event){.kind = kind, .who = worker, .life = the_sim.workers[worker].life, .boot = the_sim.boot};
}

/* Messages of one life keep their order; some are late, and those of a life that has ended arrive nevertheless. */
static void say(int32_t worker, core_event m, uint64_t number)
{
    sim_worker *w = &the_sim.workers[worker];
    if (w->state != WORKER_SERVING || w->member < 0)
        return;
    const uint64_t late_us = sim_chance(0.02) ? sim_between(0, 1500000) : sim_between(100, 5000);
    const uint64_t at_us = the_sim.now_us + late_us;
    w->arrives_us = at_us > w->arrives_us ? at_us : w->arrives_us;
    sim_event e = event_of(worker, SIM_MESSAGE);
    m.member = w->member;
    e.message = m;
    e.number = number;
    sim_at(w->arrives_us, e);
}

static void say_failed(int32_t worker, uint64_t job, cf_err code)
{
    say(worker, (core_event){.kind = CORE_FAILED, .job = job, .code = code}, 0);
}

/* ---- life and death ---- */

void worker_end(int32_t worker, uint64_t after_us)
{
    the_sim.workers[worker].ending = true;
    sim_at(the_sim.now_us + after_us, event_of(worker, SIM_END));
}

static void spawn(int32_t worker)
{
    sim_worker *w = &the_sim.workers[worker];
    if (w->state != WORKER_DOWN)
        return;
    w->life++;
    w->state = WORKER_LOADING;
    w->deaf = w->silent = w->stuck = w->served = w->leaving = w->ending = false;
    w->hello_boot = w->asked_us = 0;
    w->unseen_us = the_sim.now_us;
    w->deaf_us = w->steps = w->arrives_us = 0;
    w->held_count = 0;
    w->old_count = 0;
    sim_at(the_sim.now_us + sim_between(1000, 500000), event_of(worker, SIM_HELLO));
    sim_at(the_sim.now_us + BEAT_US, event_of(worker, SIM_BEAT));
    if (w->nature == SIM_DYING)
        worker_end(worker, sim_between(300000, 15000000));
    if (the_sim.plan.flood && worker == 0 && w->life == 1) { /* rows end by their deadlines while it holds them */
        w->deaf = true;
        w->deaf_us = the_sim.now_us > 0 ? the_sim.now_us : 1;
    }
}

static void end_now(int32_t worker)
{
    sim_worker *w = &the_sim.workers[worker];
    if (w->state == WORKER_DOWN)
        return;
    sim_trace("worker %d.%d life %u ends with %d jobs", w->stage, w->instance, w->life, w->held_count);
    w->state = WORKER_DOWN;
    w->held_count = 0;
    the_sim.deaths++;
    if (w->member >= 0) {
        sim_event e = event_of(worker, SIM_LOST);
        e.number = (uint64_t)w->member;
        sim_at(the_sim.now_us + sim_between(0, 10000), e);
    }
    sim_at(the_sim.now_us + sim_between(100000, 2000000), event_of(worker, SIM_SPAWN));
}

void worker_disconnect(int32_t worker)
{
    sim_worker *w = &the_sim.workers[worker];
    w->member = -1;
    w->held_count = 0;
    if (w->state == WORKER_DOWN)
        return;
    w->state = WORKER_LOADING;
    if (w->leaving) {
        worker_end(worker, 0);
        return;
    }
    w->hello_boot = w->asked_us = 0;
    w->unseen_us = the_sim.now_us;
    sim_at(the_sim.now_us + sim_between(20000, 500000), event_of(worker, SIM_HELLO));
}

/* ---- jobs ---- */

static int32_t find_job(const sim_worker *w, uint64_t job)
{
    for (int32_t i = 0; i < w->held_count; i++)
        if (w->held[i].work.job == job)
            return i;
    return -1;
}

static void let_go(sim_worker *w, int32_t at)
{
    w->old[w->old_count++ % SIM_OLD_JOBS] = w->held[at].work;
    w->held[at] = w->held[--w->held_count];
}

void worker_take(int32_t worker, const core_action *work, int32_t row)
{
    sim_worker *w = &the_sim.workers[worker];
    const sim_row *r = &the_sim.rows[row];
    if (w->state != WORKER_SERVING)
        return; /* it has ended, and the orchestrator does not know yet */
    SIM_CHECK(w->held_count < SIM_HELD_MAX, "worker %d.%d holds %d jobs", w->stage, w->instance, w->held_count);
    if (w->leaving) {
        say_failed(worker, work->job, CF_ERR_CANCELLED);
        return;
    }
    w->held[w->held_count++] = (sim_job){.work = *work, .row = row};
    if (w->deaf)
        return;
    const bool poison = r->poison_stage == work->stage && r->poison_segment == work->segment;
    if (poison)
        worker_end(worker, sim_between(0, 30000));
    else if (w->nature == SIM_CRASHING)
        worker_end(worker, sim_between(5000, 200000));
    if (poison || w->nature == SIM_CRASHING)
        return; /* and never answers */
    sim_event e = event_of(worker, SIM_WORK_DONE);
    e.number = work->job;
    const double us = (double)sim_between(30000, 400000) * w->slowness + 20.0 * work->frames;
    sim_at(the_sim.now_us + (uint64_t)us, e);
}

/* Who leaves ends with its last job, whatever became of it. */
static void end_when_empty(int32_t worker)
{
    const sim_worker *w = &the_sim.workers[worker];
    if (w->leaving && w->held_count == 0 && !w->ending)
        worker_end(worker, w->arrives_us - the_sim.now_us + 1000);
}

void worker_cancel(int32_t worker, uint64_t job)
{
    sim_worker *w = &the_sim.workers[worker];
    const int32_t at = find_job(w, job);
    if (at < 0 || w->deaf || w->silent || w->state != WORKER_SERVING)
        return;
    if (sim_chance(0.3))
        return; /* too late: it will be answered as if nothing had been said */
    let_go(w, at);
    say_failed(worker, job, CF_ERR_CANCELLED);
    end_when_empty(worker);
}

static core_event truth(const sim_job *j)
{
    core_event m = {.kind = CORE_READY, .job = j->work.job};
    if (j->work.stage == CORE_LLM)
        m.tokens = 1 + 3 * the_sim.rows[j->row].costs[j->work.segment].text_tokens;
    else if (j->work.stage == CORE_FLOW)
        m.frames = j->work.frames;
    else
        m.samples = (int64_t)j->work.frames * SAMPLES_PER_FRAME;
    return m;
}

/* Somebody else's job. */
static uint64_t foreign_job(int32_t worker)
{
    for (int32_t i = 1; i < the_sim.workers_count; i++) {
        const sim_worker *other = &the_sim.workers[(worker + i) % the_sim.workers_count];
        if (other->held_count > 0)
            return other->held[sim_below(other->held_count)].work.job;
    }
    return 4711;
}

static core_event wrong(core_event m, const sim_job *j)
{
    static const int32_t tokens[] = {0, -5, TOKENS_MAX + 1, INT32_MAX, 7000};
    m.tokens = tokens[sim_below(5)];
    m.frames = j->work.frames + (sim_chance(0.5) ? 1 : -1);
    m.samples += sim_chance(0.5) ? 1 : -SAMPLES_PER_FRAME;
    return m;
}

/* True: the lie is the answer. */
static bool lie(int32_t worker, const sim_job *j)
{
    const sim_worker *w = &the_sim.workers[worker];
    core_event m = truth(j);
    const int32_t kind = sim_below(7);
    the_sim.lies++;
    switch (kind) {
    case 0:
        say(worker, wrong(m, j), 0);
        return true;
    case 1:
        say_failed(worker, j->work.job, CF_OK);
        return true;
    case 2:
        say(worker, m, 0); /* and once more */
        return false;
    case 3:
        m.job = (uint64_t)sim_below(1 << 20);
        break;
    case 4:
        m.job = w->old_count > 0 ? w->old[sim_below((int32_t)w->old_count) % SIM_OLD_JOBS].job : 0;
        break;
    default:
        m.job = foreign_job(worker);
        break;
    }
    if (kind == 6)
        say_failed(worker, m.job, CF_ERR_NUMERIC);
    else
        say(worker, m, 0);
    return false;
}

static void work_done(const sim_event *e)
{
    sim_worker *w = &the_sim.workers[e->who];
    const int32_t at = find_job(w, e->number);
    if (at < 0 || w->deaf)
        return;
    if (w->silent) {
        sim_at(the_sim.now_us + BEAT_US, *e); /* when it goes on */
        return;
    }
    const sim_job j = w->held[at];
    let_go(w, at);
    w->steps++;
    if (j.spoiled || (!the_sim.calm && w->stage == CORE_HIFT && sim_chance(0.01)))
        say_failed(e->who, j.work.job, CF_ERR_STALE);
    else if (w->nature == SIM_GIVER && sim_chance(0.3))
        say_failed(e->who, j.work.job, CF_ERR_CANCELLED);
    else if (!the_sim.calm && sim_chance(0.002))
        say_failed(e->who, j.work.job, CF_ERR_NUMERIC);
    else if (w->nature != SIM_LIAR || !sim_chance(0.3) || !lie(e->who, &j))
        say(e->who, truth(&j), 0);
    end_when_empty(e->who);
}

void worker_leave(int32_t worker, bool gives_back)
{
    sim_worker *w = &the_sim.workers[worker];
    if (w->state != WORKER_SERVING || w->leaving || w->deaf || w->silent)
        return;
    sim_trace("worker %d.%d leaves with %d jobs", w->stage, w->instance, w->held_count);
    w->leaving = true;
    say(worker, (core_event){.kind = CORE_DRAINING}, 0);
    while (gives_back && w->held_count > 0) {
        const uint64_t job = w->held[0].work.job;
        let_go(w, 0);
        say_failed(worker, job, CF_ERR_CANCELLED);
    }
    if (w->held_count == 0)
        worker_end(worker, w->arrives_us - the_sim.now_us + 1000);
}

/* The keeper took its device memory with it: who writes there gives everything back and comes again, who reads finds
 * it out at the end. */
void worker_spoil(int32_t worker)
{
    sim_worker *w = &the_sim.workers[worker];
    for (int32_t i = 0; i < w->held_count && w->stage == CORE_HIFT; i++)
        w->held[i].spoiled = true;
    if (w->stage == CORE_FLOW)
        worker_leave(worker, true);
}

/* ---- faults ---- */

static void stop_for(int32_t worker, uint64_t time_us)
{
    sim_worker *w = &the_sim.workers[worker];
    w->silent = true;
    sim_event e = event_of(worker, SIM_BEAT);
    e.number = 1; /* goes on then */
    if (time_us != SIM_NEVER)
        sim_at(the_sim.now_us + time_us, e);
}

void worker_fault(int32_t worker)
{
    sim_worker *w = &the_sim.workers[worker];
    const double u = sim_draw();
    if (w->state == WORKER_DOWN)
        return;
    if (u < 0.3) {
        worker_end(worker, 0);
    } else if (u < 0.7 && w->deaf_us == 0) {
        sim_trace("worker %d.%d is deaf, silent, stuck or stopped", w->stage, w->instance);
        w->deaf_us = the_sim.now_us > 0 ? the_sim.now_us : 1;
        if (u < 0.5 && w->state == WORKER_LOADING)
            w->stuck = true;
        else if (u < 0.5)
            w->deaf = true;
        else
            stop_for(worker, u < 0.6 ? SIM_NEVER : sim_between(1000000, 12000000));
    } else if (u < 0.85) {
        worker_leave(worker, sim_chance(0.5));
    } else {
        sim_at(the_sim.now_us, (sim_event){.kind = SIM_RESUME, .who = worker, .number = 1});
        sim_at(the_sim.now_us + sim_between(1000000, 20000000), (sim_event){.kind = SIM_RESUME, .who = worker});
    }
}

static void beat(const sim_event *e)
{
    sim_worker *w = &the_sim.workers[e->who];
    if (e->number == 1 && w->silent) {
        w->silent = false;
        return; /* the beats were never unscheduled */
    }
    if (e->number == 1)
        return;
    if (w->held_count > 0 && !w->deaf && !w->silent)
        w->steps++;
    if (!w->silent && w->state != WORKER_SERVING)
        shell_hear_coming(e->who);
    else if (!w->silent)
        say(e->who, (core_event){.kind = CORE_TICK}, w->steps);
    sim_at(the_sim.now_us + BEAT_US, *e);
}

void worker_event(const sim_event *e)
{
    if (e->life != the_sim.workers[e->who].life && e->kind != SIM_SPAWN)
        return;
    if (e->kind == SIM_SPAWN)
        spawn(e->who);
    else if (e->kind == SIM_END)
        end_now(e->who);
    else if (the_sim.workers[e->who].state == WORKER_DOWN)
        return;
    else if (e->kind == SIM_BEAT)
        beat(e);
    else
        work_done(e);
}
