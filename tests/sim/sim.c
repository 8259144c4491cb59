/*
 * sim.c - virtual clock, queue of events, histories by seed, and the program around them.
 *
 *   sim seed N          one history, told line by line
 *   sim all COUNT JOBS  seeds 1..COUNT in JOBS processes; prints how many failed and what they had in them
 *   sim tap CASES EACH  the same as TAP: CASES cases of EACH seeds
 *
 * A failed seed is printed with the command that tells it again. Runs in one thread per process; owns the_sim.
 * Fails: exit status 1 when a seed failed; a crash of the core is a failure of the seed at hand.
 */
#define _GNU_SOURCE
#include "tests/sim/sim.h"

#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/rng.h"

#define SECOND_US UINT64_C(1000000)
/* Virtual time from the last fault to the end of all rows: the deaf are found (stall_us), poison takes some lives and
 * the workers' paroles (48 s each at most), and the fullest seeds have a minute or two of honest work left. */
#define CALM_TO_END_US   (300 * SECOND_US)
#define EVENTS_MAX       UINT64_C(5000000) /* of one history: more is a livelock */
#define FAILURES_PRINTED 20

sim the_sim;

static jmp_buf failed_seed;
static char failure[512];

/* ---- chance ---- */

double sim_draw(void)
{
    return (double)rng_uniform(the_sim.seed, 7, the_sim.draws++, 0);
}

int32_t sim_below(int32_t bound)
{
    return (int32_t)(sim_draw() * bound);
}

bool sim_chance(double p)
{
    return sim_draw() < p;
}

uint64_t sim_between(uint64_t least_us, uint64_t most_us)
{
    return least_us + (uint64_t)(sim_draw() * (double)(most_us - least_us));
}

/* ---- report ---- */

void sim_trace(const char *fmt, ...)
{
    if (!the_sim.verbose)
        return;
    va_list ap;
    printf("%11.6f  ", (double)the_sim.now_us / 1e6);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

void sim_fail(const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(failure, sizeof failure, "at %.6f s: %s", (double)the_sim.now_us / 1e6, text);
    longjmp(failed_seed, 1);
}

/* An assertion of the core, or worse: say which seed did it before the process goes. */
static void on_crash(int sig)
{
    char text[160];
    const int bytes = snprintf(text, sizeof text, "seed %" PRIu64 ": signal %d; make sim SEED=%" PRIu64 "\n",
                               the_sim.seed, sig, the_sim.seed);
    if (write(STDOUT_FILENO, text, (size_t)bytes) < 0)
        _exit(2);
    _exit(1);
}

/* ---- queue: a heap by time, then by order of arrival ---- */

static bool earlier(const sim_event *a, const sim_event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->seq < b->seq;
}

void sim_at(uint64_t at_us, sim_event e)
{
    sim_queue *q = &the_sim.queue;
    if (q->count == q->room) {
        q->room = q->room ? 2 * q->room : 1024;
        q->heap = realloc(q->heap, (size_t)q->room * sizeof *q->heap);
        if (!q->heap)
            abort();
    }
    e.at_us = at_us > the_sim.now_us ? at_us : the_sim.now_us;
    e.seq = q->next_seq++;
    int32_t at = q->count++;
    for (; at > 0 && earlier(&e, &q->heap[(at - 1) / 2]); at = (at - 1) / 2)
        q->heap[at] = q->heap[(at - 1) / 2];
    q->heap[at] = e;
}

static sim_event take_next(void)
{
    sim_queue *q = &the_sim.queue;
    const sim_event first = q->heap[0], last = q->heap[--q->count];
    int32_t at = 0;
    for (int32_t child; (child = 2 * at + 1) < q->count; at = child) {
        if (child + 1 < q->count && earlier(&q->heap[child + 1], &q->heap[child]))
            child++;
        if (!earlier(&q->heap[child], &last))
            break;
        q->heap[at] = q->heap[child];
    }
    q->heap[at] = last;
    return first;
}

/* ---- one history ---- */

static void draw_plan(void)
{
    sim_plan *p = &the_sim.plan;
    p->flood = sim_chance(0.01);
    for (int s = 0; s < CORE_STAGES; s++)
        p->workers[s] = 1 + sim_below(4);
    p->rows_count = p->flood ? SIM_ROWS_MAX : 10 + sim_below(90);
    p->rows_live_max = p->flood ? UTTERANCES_MAX - 16 : 2 + sim_below(60);
    p->core.deaths_max = sim_chance(0.7) ? 3 : 1 + sim_below(5);
    p->core.parole_us = sim_between(SECOND_US, 6 * SECOND_US);
    p->core.parole_max_us = p->core.parole_us * (uint64_t)(1 + sim_below(8));
    p->outbox_bytes = (uint64_t)(sim_chance(0.8) ? 1500 + sim_below(6000) : 200 + sim_below(1500)) << 10;
    p->calm_us = sim_between(20 * SECOND_US, 90 * SECOND_US);
    p->submit_us = sim_chance(0.4) ? SECOND_US : p->calm_us * 4 / 5;
    p->faults_mean_us = sim_chance(0.2) ? SIM_NEVER : sim_between(SECOND_US, 20 * SECOND_US);
    p->limits = (health_limits){.silence_us = sim_between(3 * SECOND_US, 8 * SECOND_US),
                                .stall_us = sim_between(5 * SECOND_US, 15 * SECOND_US)};
    p->load_us = sim_between(5 * SECOND_US, 20 * SECOND_US);
}

static sim_nature draw_nature(void)
{
    static const double shares[SIM_NATURES] = {0.62, 0.1, 0.1, 0.06, 0.08, 0.04};
    double u = sim_draw();
    for (int n = 0; n < SIM_NATURES; n++) {
        if (u < shares[n])
            return (sim_nature)n;
        u -= shares[n];
    }
    return SIM_HEALTHY;
}

static void draw_workers(void)
{
    for (int stage = 0; stage < CORE_STAGES; stage++)
        for (int i = 0; i < the_sim.plan.workers[stage]; i++) {
            sim_worker *w = &the_sim.workers[the_sim.workers_count];
            *w = (sim_worker){.stage = stage,
                              .instance = i,
                              .nature = draw_nature(),
                              .member = -1,
                              .rows_max = the_sim.plan.flood ? 1 + sim_below(SIM_HELD_MAX) : 1 + sim_below(6),
                              .frames_max = 200 + sim_below(3000)};
            w->slowness = w->nature == SIM_SLOW ? 5 + 20 * sim_draw() : 0.5 + sim_draw();
            sim_at(sim_between(0, 2 * SECOND_US), (sim_event){.kind = SIM_SPAWN, .who = the_sim.workers_count});
            the_sim.workers_count++;
        }
}

static void begin_history(uint64_t seed, bool verbose)
{
    sim_queue queue = the_sim.queue;
    memset(&the_sim, 0, sizeof the_sim);
    queue.count = 0;
    queue.next_seq = 0;
    the_sim.queue = queue;
    the_sim.seed = seed;
    the_sim.verbose = verbose;
    draw_plan();
    draw_workers();
    client_plan();
    the_sim.keeper_up = true;
    shell_boot();
    sim_at(the_sim.plan.calm_us, (sim_event){.kind = SIM_CALM});
    if (the_sim.plan.faults_mean_us != SIM_NEVER)
        sim_at(sim_between(0, 2 * the_sim.plan.faults_mean_us), (sim_event){.kind = SIM_FAULT});
}

static void fault(void)
{
    if (the_sim.calm)
        return;
    const double u = sim_draw();
    if (u < 0.06 && the_sim.orch_up) {
        shell_crash();
    } else if (u < 0.12 && the_sim.orch_up && the_sim.now_us >= the_sim.asleep_until_us) {
        shell_sleep(the_sim.now_us + sim_between(SECOND_US, 30 * SECOND_US));
    } else if (u < 0.15) {
        sim_trace("keeper hangs");
        the_sim.keeper_hangs = true; /* until somebody asks it, and it is ended */
    } else if (u < 0.22) {
        sim_trace("keeper dies");
        the_sim.keeper_up = false;
        if (the_sim.orch_up && the_sim.now_us >= the_sim.asleep_until_us && sim_chance(0.5))
            shell_spoil();
        sim_at(the_sim.now_us + sim_between(SECOND_US / 10, 5 * SECOND_US), (sim_event){.kind = SIM_KEEPER_UP});
    } else {
        worker_fault(sim_below(the_sim.workers_count));
    }
    sim_at(the_sim.now_us + sim_between(0, 2 * the_sim.plan.faults_mean_us), (sim_event){.kind = SIM_FAULT});
}

/* From here on workers are honest and fast, the operator resumes what is paused; poison stays poison, and who is
 * barred has its parole to prove itself. */
static void become_calm(void)
{
    sim_trace("faults stop");
    the_sim.calm = true;
    for (int32_t i = 0; i < the_sim.workers_count; i++) {
        the_sim.workers[i].nature = SIM_HEALTHY;
        the_sim.workers[i].slowness = 1;
        if (the_sim.paused[i])
            sim_at(the_sim.now_us, (sim_event){.kind = SIM_RESUME, .who = i});
    }
}

static void dispatch(sim_event *e)
{
    switch (e->kind) {
    case SIM_SUBMIT:
    case SIM_WITHDRAW:
        client_event(e);
        break;
    case SIM_SPAWN:
    case SIM_WORK_DONE:
    case SIM_BEAT:
    case SIM_END:
        worker_event(e);
        break;
    case SIM_FAULT:
        fault();
        break;
    case SIM_CALM:
        become_calm();
        break;
    case SIM_SYNC:
    case SIM_END_SYNC:
    case SIM_HELLO:
    case SIM_JOIN:
    case SIM_MEMORY:
    case SIM_OPENED:
    case SIM_MESSAGE:
    case SIM_LOST:
    case SIM_TICK:
    case SIM_ORCH_UP:
    case SIM_KEEPER_UP:
    case SIM_RESUME:
        if (shell_hears(e))
            shell_event(e);
        break;
    }
}

/* False: the seed has failed, `failure` says how. */
static bool run_history(uint64_t seed, bool verbose)
{
    if (setjmp(failed_seed))
        return false;
    begin_history(seed, verbose);
    uint64_t events = 0;
    while (the_sim.rows_ended < the_sim.plan.rows_count || the_sim.live_rows > 0 || !the_sim.calm) {
        SIM_CHECK(the_sim.queue.count > 0, "nothing will ever happen again");
        sim_event e = take_next();
        the_sim.now_us = e.at_us;
        SIM_CHECK(++events < EVENTS_MAX, "%" PRIu64 " events: it goes in circles", events);
        SIM_CHECK(the_sim.now_us < the_sim.plan.calm_us + CALM_TO_END_US,
                  "%d of %d rows have not ended, long after faults stopped",
                  the_sim.plan.rows_count - the_sim.rows_ended, the_sim.plan.rows_count);
        dispatch(&e);
    }
    the_sim.ended_us = the_sim.now_us;
    /* What is still on its way (answers of cancelled jobs, ends of processes) has to leave nothing behind. */
    const uint64_t awake_us = the_sim.asleep_until_us > the_sim.now_us ? the_sim.asleep_until_us : the_sim.now_us;
    const uint64_t until_us = awake_us + 2 * (the_sim.plan.limits.stall_us + the_sim.plan.limits.silence_us);
    while (the_sim.queue.count > 0 && the_sim.queue.heap[0].at_us <= until_us) {
        sim_event e = take_next();
        the_sim.now_us = e.at_us;
        dispatch(&e);
    }
    check_final();
    return true;
}

/* ---- many histories ---- */

typedef struct tally {
    uint64_t slowest_us; /* longest time from the last fault to the last end */
    uint64_t seeds, failed, steps, deaths, restarts, lies, kills, hangs, bars, paroles, clears, rows_done, rows_failed;
} tally;

static void run_seeds(uint64_t first, uint64_t count, uint64_t stride, const char *prefix, tally *t)
{
    for (uint64_t seed = first; seed < first + count; seed += stride) {
        const bool fine = run_history(seed, false);
        if (fine && the_sim.ended_us > the_sim.plan.calm_us + t->slowest_us)
            t->slowest_us = the_sim.ended_us - the_sim.plan.calm_us;
        t->seeds++;
        t->steps += the_sim.steps;
        t->deaths += the_sim.deaths;
        t->restarts += the_sim.restarts;
        t->lies += the_sim.lies;
        t->kills += the_sim.kills;
        t->hangs += the_sim.hangs;
        t->bars += the_sim.bars;
        t->paroles += the_sim.paroles;
        t->clears += the_sim.clears;
        t->rows_done += the_sim.done;
        t->rows_failed += the_sim.failed;
        if (!fine && t->failed++ < FAILURES_PRINTED) {
            printf("%sseed %" PRIu64 ": %s; make sim SEED=%" PRIu64 "\n", prefix, seed, failure, seed);
            fflush(stdout);
        }
    }
}

static int run_one(uint64_t seed)
{
    const bool fine = run_history(seed, true);
    printf("seed %" PRIu64 ": %s; %" PRIu64 " steps, %" PRIu64 " rows done, %" PRIu64 " failed, %" PRIu64
           " deaths, %" PRIu64 " restarts, %" PRIu64 " lies\n",
           seed, fine ? "fine" : failure, the_sim.steps, the_sim.done, the_sim.failed, the_sim.deaths, the_sim.restarts,
           the_sim.lies);
    return fine ? 0 : 1;
}

static int run_all(uint64_t count, uint64_t jobs)
{
    tally *tallies = mmap(NULL, jobs * sizeof *tallies, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (tallies == MAP_FAILED)
        return 1;
    for (uint64_t j = 0; j < jobs; j++) {
        const pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0) {
            run_seeds(1 + j, count - j, jobs, "", &tallies[j]);
            fflush(stdout);
            _exit(tallies[j].failed ? 1 : 0);
        }
    }
    int status, bad = 0;
    while (wait(&status) > 0)
        bad |= status != 0;
    tally sum = {0};
    for (uint64_t j = 0; j < jobs; j++) {
        if (tallies[j].slowest_us > sum.slowest_us)
            sum.slowest_us = tallies[j].slowest_us;
        for (size_t i = 1; i < sizeof sum / sizeof sum.seeds; i++)
            ((uint64_t *)&sum)[i] += ((const uint64_t *)&tallies[j])[i];
    }
    printf("sim: %" PRIu64 " of %" PRIu64 " seeds, %" PRIu64 " failed; %" PRIu64 " core steps, %" PRIu64
           " rows done, %" PRIu64 " failed, %" PRIu64 " deaths, %" PRIu64 " ended as deaf, %" PRIu64
           " as hung before they served, %" PRIu64 " barred, %" PRIu64 " paroles, %" PRIu64 " of them passed, %" PRIu64
           " lies, %" PRIu64 " restarts; all ended %.0f s after the last fault at most\n",
           sum.seeds, count, sum.failed, sum.steps, sum.rows_done, sum.rows_failed, sum.deaths, sum.kills, sum.hangs,
           sum.bars, sum.paroles, sum.clears, sum.lies, sum.restarts, (double)sum.slowest_us / 1e6);
    return bad || sum.seeds != count;
}

static int run_tap(uint64_t cases, uint64_t each)
{
    int bad = 0;
    printf("1..%" PRIu64 "\n", cases);
    for (uint64_t c = 0; c < cases; c++) {
        tally t = {0};
        run_seeds(1 + c * each, each, 1, "# ", &t);
        printf("%sok %" PRIu64 " - seeds %" PRIu64 " to %" PRIu64 ", %" PRIu64 " core steps\n", t.failed ? "not " : "",
               c + 1, 1 + c * each, (c + 1) * each, t.steps);
        fflush(stdout);
        bad |= t.failed > 0;
    }
    return bad;
}

int main(int argc, char **argv)
{
    signal(SIGABRT, on_crash);
    signal(SIGSEGV, on_crash);
    const uint64_t a = argc > 2 ? strtoull(argv[2], NULL, 10) : 0, b = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    if (argc == 3 && strcmp(argv[1], "seed") == 0)
        return run_one(a);
    if (argc == 4 && strcmp(argv[1], "all") == 0 && a > 0 && b > 0 && b <= a)
        return run_all(a, b);
    if (argc == 4 && strcmp(argv[1], "tap") == 0 && a > 0 && b > 0)
        return run_tap(a, b);
    fprintf(stderr, "usage: sim seed N | sim all COUNT JOBS | sim tap CASES EACH\n");
    return 64;
}
