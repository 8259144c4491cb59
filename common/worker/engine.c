/*
 * engine.c - the compute thread and its two queues. One mutex guards the lists and counters; the stage itself is
 * touched by the compute thread alone. Step counting goes through the same mutex, once a step.
 *
 *   control: submit/cancel -> [inbox] -> compute: pending -> stage (held) -> [outbox of results] -> control
 *
 * Owns the jobs inside, the stage, the voice cache. Fails: engine_start with CF_ERR_NOMEM or CF_ERR_SYS; what the stage
 * cannot survive is reported as ENGINE_BROKEN.
 */
#define _GNU_SOURCE
#include "common/worker/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/process.h"
#include "common/worker/memory_plan.h"
#include "common/worker/voice_cache.h"

#define RESULTS_PER_STEP 64
#define CANCELS_MAX      JOBS_PER_MEMBER_MAX

typedef struct job_list {
    engine_job *head, **tail;
} job_list;

typedef struct result_node {
    engine_result result;
    struct result_node *next;
} result_node;

struct engine {
    const stage_ops *ops;
    stage_config cfg;
    char model_dir[IO_PATH_BYTES], voice_store[IO_PATH_BYTES], device[64];
    pthread_t thread;
    int event_fd;
    void *stage;         /* compute thread's */
    voice_cache *voices; /* compute thread's */
    trace *events;       /* compute thread's, owned; NULL: not wanted */
    job_list pending;    /* compute thread's: not yet in the stage, in order */
    job_list held;       /* compute thread's: in the stage */

    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t wake;
    job_list inbox;
    uint64_t cancels[CANCELS_MAX];
    int32_t cancels_count;
    bool cancel_all, stop;
    result_node *results, **results_tail;
    engine_state state;
    cf_err broken;
    char broken_text[512];
    stage_facts facts;
    engine_counters counters;
};

static void list_init(job_list *l)
{
    l->head = NULL;
    l->tail = &l->head;
}

static void list_push(job_list *l, engine_job *j)
{
    j->next = NULL;
    *l->tail = j;
    l->tail = &j->next;
}

static engine_job *list_pop(job_list *l)
{
    engine_job *j = l->head;
    if (!j)
        return NULL;
    l->head = j->next;
    if (!l->head)
        l->tail = &l->head;
    return j;
}

static engine_job *list_remove(job_list *l, uint64_t job_id)
{
    for (engine_job **at = &l->head; *at; at = &(*at)->next)
        if ((*at)->job.job_id == job_id) {
            engine_job *j = *at;
            *at = j->next;
            if (!*at)
                l->tail = at;
            return j;
        }
    return NULL;
}

cf_err engine_job_new(engine_job **ret_job)
{
    cf_err err = mem_alloc(1, sizeof **ret_job, ret_job);
    if (err == CF_OK)
        (*ret_job)->in_map = -1;
    return err;
}

void engine_job_free(engine_job *j)
{
    if (!j)
        return;
    mem_free(j->text);
    mem_free(j->prompt_text);
    mem_free(j->tokens);
    mem_free(j);
}

static void signal_control(engine *e)
{
    const uint64_t one = 1;
    const ssize_t n = write(e->event_fd, &one, sizeof one);
    CF_ASSERT(n == sizeof one); /* an eventfd overflows after 2^64 events */
}

/* Hands a job back with its outcome. Out of memory here would lose a job, so it ends the worker instead. */
static void finish(engine *e, engine_job *j, const stage_result *r)
{
    result_node *node = NULL;
    int32_t *tokens = NULL;
    CF_ASSERT(mem_alloc(1, sizeof *node, &node) == CF_OK);
    if (r->tokens_count > 0 && r->code == CF_OK) {
        CF_ASSERT(mem_alloc((size_t)r->tokens_count, sizeof *tokens, &tokens) == CF_OK);
        memcpy(tokens, r->tokens, (size_t)r->tokens_count * sizeof *tokens);
    }
    voice_cache_give_back(e->voices, j->job.voice);
    j->job.voice = NULL;
    node->result.job = j;
    node->result.stage = *r;
    node->result.stage.tokens = tokens;
    pthread_mutex_lock(&e->mutex);
    *e->results_tail = node;
    e->results_tail = &node->next;
    e->counters.jobs_done += r->code == CF_OK;
    pthread_mutex_unlock(&e->mutex);
    signal_control(e);
}

static void finish_with(engine *e, engine_job *j, cf_err code)
{
    stage_result r = {.job_id = j->job.job_id, .code = code};
    snprintf(r.text, sizeof r.text, "%s", code == CF_ERR_CANCELLED ? "cancelled" : err_text());
    finish(e, j, &r);
}

static void set_state(engine *e, engine_state state, cf_err broken)
{
    pthread_mutex_lock(&e->mutex);
    e->state = state;
    e->broken = broken;
    snprintf(e->broken_text, sizeof e->broken_text, "%s", broken == CF_OK ? "" : err_text());
    if (state == ENGINE_RUNNING)
        e->ops->facts(e->stage, &e->facts);
    pthread_mutex_unlock(&e->mutex);
    signal_control(e);
}

/* Waits for something to do and takes it. False: stop. */
static bool take_commands(engine *e)
{
    uint64_t cancels[CANCELS_MAX];
    pthread_mutex_lock(&e->mutex);
    while (!e->stop && !e->cancel_all && e->cancels_count == 0 && !e->inbox.head && !e->pending.head &&
           e->ops->held(e->stage) == 0)
        pthread_cond_wait(&e->wake, &e->mutex);
    for (engine_job *j; (j = list_pop(&e->inbox)) != NULL;)
        list_push(&e->pending, j);
    const int32_t count = e->cancels_count;
    memcpy(cancels, e->cancels, (size_t)count * sizeof cancels[0]);
    const bool all = e->cancel_all, stop = e->stop;
    e->cancels_count = 0;
    e->cancel_all = false;
    pthread_mutex_unlock(&e->mutex);
    for (int32_t i = 0; i < count; i++) {
        engine_job *j = list_remove(&e->pending, cancels[i]);
        if (!j && (j = list_remove(&e->held, cancels[i])) != NULL)
            e->ops->cancel(e->stage, cancels[i]);
        if (j)
            finish_with(e, j, CF_ERR_CANCELLED);
    }
    while (all && e->pending.head)
        finish_with(e, list_pop(&e->pending), CF_ERR_CANCELLED);
    while (all && e->held.head) {
        e->ops->cancel(e->stage, e->held.head->job.job_id);
        finish_with(e, list_pop(&e->held), CF_ERR_CANCELLED);
    }
    return !stop;
}

static void accept_pending(engine *e)
{
    while (e->pending.head) {
        engine_job *j = e->pending.head;
        cf_err err = CF_OK;
        if (j->voice_name[0] && !j->job.voice)
            err = voice_cache_claim(e->voices, j->voice_name, j->voice_sha256, &j->job.voice);
        if (err == CF_OK)
            err = e->ops->accept(e->stage, &j->job);
        if (err == CF_ERR_BUSY && e->ops->held(e->stage) > 0)
            return; /* a step will make room */
        list_pop(&e->pending);
        j->accepted_us = clock_now_us();
        if (err == CF_OK)
            list_push(&e->held, j);
        else
            finish_with(e, j, err);
    }
}

static cf_err step_once(engine *e)
{
    stage_result results[RESULTS_PER_STEP];
    int32_t count = 0;
    const uint64_t start_us = clock_now_us();
    const int32_t carried = e->ops->held(e->stage);
    const cf_err err = e->ops->step(e->stage, results, RESULTS_PER_STEP, &count);
    if (err != CF_OK)
        return err;
    const uint64_t spent_us = clock_now_us() - start_us;
    const backend_record_counts records = e->ops->records ? e->ops->records(e->stage) : (backend_record_counts){0};
    pthread_mutex_lock(&e->mutex);
    e->counters.steps++;
    e->counters.records = records;
    e->counters.busy_us += spent_us;
    pthread_mutex_unlock(&e->mutex);
    trace_step(e->events, start_us, spent_us, carried);
    for (int32_t i = 0; i < count; i++) {
        engine_job *j = list_remove(&e->held, results[i].job_id);
        CF_ASSERT(j != NULL);
        trace_job(e->events, j->job.job_id, j->utterance, j->job.segment_idx, j->accepted_us, start_us + spent_us);
        finish(e, j, &results[i]);
    }
    return CF_OK;
}

/* Says what the stage will take, and refuses what does not fit, before anything of it is taken. */
static cf_err check_memory(const engine *e)
{
    cf_err err;
    stage_memory planned;
    uint64_t free_bytes = 0;
    char text[MEMORY_TEXT_BYTES];
    TRY(e->ops->plan(&e->cfg, &planned));
    TRY(memory_check(e->ops->kind, e->cfg.device, &planned, &free_bytes));
    memory_format(&planned, text);
    log_info("worker.memory_plan", "device=%s needs_mib=%llu free_mib=%llu text=\"%s\"", e->cfg.device,
             (unsigned long long)(memory_total(&planned) >> 20), (unsigned long long)(free_bytes >> 20), text);
out:
    return err;
}

static void *compute_main(void *arg)
{
    engine *e = arg;
    process_name_thread("compute");
    process_thread_gives_way();
    cf_err err = voice_cache_open(e->model_dir, e->voice_store, &e->voices);
    if (err == CF_OK)
        err = check_memory(e);
    if (err == CF_OK)
        err = e->ops->open(&e->cfg, &e->stage);
    if (err != CF_OK) {
        set_state(e, ENGINE_BROKEN, err);
        return NULL;
    }
    set_state(e, ENGINE_RUNNING, CF_OK);
    while (err == CF_OK && take_commands(e)) {
        accept_pending(e);
        if (e->ops->held(e->stage) > 0)
            err = step_once(e);
    }
    if (err != CF_OK)
        set_state(e, ENGINE_BROKEN, err);
    return NULL;
}

cf_err engine_start(const stage_ops *ops, const stage_config *cfg, trace *events, engine **ret_engine)
{
    cf_err err;
    engine *e = NULL;
    TRY(mem_alloc(1, sizeof *e, &e));
    e->events = events;
    events = NULL;
    e->ops = ops;
    e->cfg = *cfg;
    snprintf(e->model_dir, sizeof e->model_dir, "%s", cfg->model_dir);
    snprintf(e->device, sizeof e->device, "%s", cfg->device);
    e->cfg.model_dir = e->model_dir;
    snprintf(e->voice_store, sizeof e->voice_store, "%s", cfg->voice_store ? cfg->voice_store : "");
    e->cfg.voice_store = e->voice_store;
    e->cfg.device = e->device;
    list_init(&e->pending);
    list_init(&e->held);
    list_init(&e->inbox);
    e->results_tail = &e->results;
    process_mutex_init(&e->mutex);
    pthread_cond_init(&e->wake, NULL);
    e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (e->event_fd < 0) {
        err = err_sys("eventfd");
        trace_close(e->events);
        mem_free(e);
        goto out;
    }
    if (pthread_create(&e->thread, NULL, compute_main, e) != 0) {
        err = err_sys("pthread_create");
        io_close(&e->event_fd);
        trace_close(e->events);
        mem_free(e);
        goto out;
    }
    *ret_engine = e;
out:
    trace_close(events);
    return err;
}

void engine_stop(engine *e)
{
    if (!e)
        return;
    pthread_mutex_lock(&e->mutex);
    e->stop = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
    pthread_join(e->thread, NULL);
    e->ops->close(e->stage);
    job_list *const lists[] = {&e->inbox, &e->pending, &e->held};
    for (size_t i = 0; i < CF_COUNT(lists); i++)
        for (engine_job *j; (j = list_pop(lists[i])) != NULL;)
            engine_job_free(j);
    for (engine_result r; engine_take_result(e, &r);) {
        engine_job_free(r.job);
        mem_free((void *)(uintptr_t)r.stage.tokens);
    }
    voice_cache_close(e->voices);
    trace_close(e->events);
    io_close(&e->event_fd);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->mutex);
    mem_free(e);
}

int engine_fd(const engine *e)
{
    return e->event_fd;
}

engine_state engine_state_now(engine *e, cf_err *ret_err, char *text, size_t text_bytes)
{
    uint64_t events;
    const ssize_t n = read(e->event_fd, &events, sizeof events);
    (void)n; /* EAGAIN: nothing new, the state is still true */
    pthread_mutex_lock(&e->mutex);
    const engine_state state = e->state;
    *ret_err = e->broken;
    snprintf(text, text_bytes, "%s", e->broken_text);
    pthread_mutex_unlock(&e->mutex);
    return state;
}

void engine_facts(const engine *e, stage_facts *ret_facts)
{
    engine *m = (engine *)(uintptr_t)e; /* the lock is not part of the facts */
    pthread_mutex_lock(&m->mutex);
    *ret_facts = e->facts;
    pthread_mutex_unlock(&m->mutex);
}

void engine_submit(engine *e, engine_job *job)
{
    pthread_mutex_lock(&e->mutex);
    job->received_us = clock_now_us();
    list_push(&e->inbox, job);
    if (e->counters.held++ == 0)
        e->counters.oldest_us = job->received_us;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

void engine_cancel(engine *e, uint64_t job_id)
{
    pthread_mutex_lock(&e->mutex);
    if (e->cancels_count < CANCELS_MAX) /* beyond that the job simply runs to its end */
        e->cancels[e->cancels_count++] = job_id;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

void engine_cancel_all(engine *e)
{
    pthread_mutex_lock(&e->mutex);
    e->cancel_all = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

bool engine_take_result(engine *e, engine_result *ret_result)
{
    pthread_mutex_lock(&e->mutex);
    result_node *node = e->results;
    if (node) {
        e->results = node->next;
        if (!e->results)
            e->results_tail = &e->results;
        if (--e->counters.held == 0)
            e->counters.oldest_us = 0;
    }
    pthread_mutex_unlock(&e->mutex);
    if (!node)
        return false;
    *ret_result = node->result;
    mem_free(node);
    return true;
}

void engine_count(engine *e, engine_counters *ret_counters)
{
    pthread_mutex_lock(&e->mutex);
    *ret_counters = e->counters;
    pthread_mutex_unlock(&e->mutex);
}
