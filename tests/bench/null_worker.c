/*
 * null_worker.c - a worker whose stage computes nothing: what is left is the cost of orchestrator, messages, exchange
 * memory, journal, ledger and files. Its name decides which stage it plays (llm_worker, flow_worker, hift_worker).
 * One program for three names, made by `make bench-orch`; not installed. Fails: as any worker.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/worker/worker.h"

#define JOBS_MAX       JOBS_PER_MEMBER_MAX
#define TOKENS_PER_ROW 5 /* 0.2 s of speech: small files, so that the disk is not what is measured */

typedef struct null_stage {
    stage_kind kind;
    stage_job jobs[JOBS_MAX];
    int32_t count;
    int32_t tokens[TOKENS_PER_ROW];
} null_stage;

static stage_kind my_kind;

static cf_err null_open(const stage_config *cfg, void **ret_stage)
{
    cf_err err;
    null_stage *s = NULL;
    (void)cfg;
    TRY(mem_alloc(1, sizeof *s, &s));
    s->kind = my_kind;
    for (int32_t i = 0; i < TOKENS_PER_ROW; i++)
        s->tokens[i] = 100 + 37 * i;
    *ret_stage = s;
out:
    return err;
}

static void null_facts(void *stage, stage_facts *ret_facts)
{
    const null_stage *s = stage;
    *ret_facts = (stage_facts){0};
    snprintf(ret_facts->model_file, sizeof ret_facts->model_file, "null-%s", stage_name(s->kind));
    snprintf(ret_facts->backend, sizeof ret_facts->backend, "null");
    memset(ret_facts->model_sha256, '0', sizeof ret_facts->model_sha256 - 1);
}

static cf_err null_accept(void *stage, const stage_job *job)
{
    null_stage *s = stage;
    if (s->count == JOBS_MAX)
        return err_set(CF_ERR_BUSY, "%d jobs are held", JOBS_MAX);
    s->jobs[s->count++] = *job;
    return CF_OK;
}

static stage_result result_of(const null_stage *s, const stage_job *job)
{
    stage_result r = {.job_id = job->job_id, .stopped = true};
    if (s->kind == STAGE_LLM) {
        r.tokens = s->tokens;
        r.tokens_count = TOKENS_PER_ROW;
    } else {
        memset(job->out, 0, job->out_bytes);
        r.frames = s->kind == STAGE_FLOW ? stage_frames(job->tokens_count, job->speed) : 0;
        r.samples = s->kind == STAGE_HIFT ? stage_samples(job->frames) : 0;
    }
    return r;
}

static cf_err null_step(void *stage, stage_result *results, int32_t max, int32_t *ret_count)
{
    null_stage *s = stage;
    int32_t n = 0;
    while (n < max && n < s->count) {
        results[n] = result_of(s, &s->jobs[n]);
        n++;
    }
    s->count -= n;
    memmove(s->jobs, s->jobs + n, (size_t)s->count * sizeof s->jobs[0]);
    *ret_count = n;
    return CF_OK;
}

static cf_err null_plan(const stage_config *cfg, stage_memory *ret_memory)
{
    (void)cfg;
    *ret_memory = (stage_memory){0};
    return CF_OK;
}

static void null_cancel(void *stage, uint64_t job_id)
{
    null_stage *s = stage;
    for (int32_t i = 0; i < s->count; i++)
        if (s->jobs[i].job_id == job_id) {
            s->jobs[i] = s->jobs[--s->count];
            return;
        }
}

static int32_t null_held(void *stage)
{
    return ((const null_stage *)stage)->count;
}

static void null_close(void *stage)
{
    mem_free(stage);
}

int main(int argc, char **argv)
{
    static const stage_ops ops[] = {
        {STAGE_LLM, null_plan, null_open, null_facts, null_accept, null_step, null_cancel, null_held, null_close, NULL},
        {STAGE_FLOW, null_plan, null_open, null_facts, null_accept, null_step, null_cancel, null_held, null_close,
         NULL},
        {STAGE_HIFT, null_plan, null_open, null_facts, null_accept, null_step, null_cancel, null_held, null_close,
         NULL}};
    const char *name = program_invocation_short_name;
    for (int k = 0; k < STAGE_COUNT; k++)
        if (strncmp(name, stage_name((stage_kind)k), strlen(stage_name((stage_kind)k))) == 0) {
            my_kind = (stage_kind)k;
            return worker_main(&ops[k], argc, argv);
        }
    fprintf(stderr, "%s: call it llm_worker, flow_worker or hift_worker\n", name);
    return 64;
}
