/*
 * flow_stage.c - the flow as a stage: any number of jobs, packed along time, each at its own solver step.
 *
 * Compute thread of the flow worker. Owns backend, model, the packed state and the list of held jobs. One step():
 *
 *   accepted --encode--> step 0 --Euler--> step 1 ... --Euler--> step 10 --> result
 *
 * Newcomers are encoded together, then every held job advances by one Euler step, whichever it is at; those that reach
 * the last leave. On a host only the oldest advance, as many as STAGE_HOST_FRAMES holds. A job's bytes never depend on
 * its neighbours: linear layers see rows, everything else stays inside a sequence (flow.md 9).
 *
 * Fails: accept as flow_job_check, CF_ERR_BUSY; a job with a NaN ends as CF_ERR_NUMERIC and the others go on; step and
 * open with CF_ERR_NOMEM or CF_ERR_DEVICE, which nothing survives. Fault points: flow.accept, flow.step.
 * Source: cosy cosyvoice/flow/flow_matching.py CausalConditionalCFM @ace7c47.
 */
#include "flow_worker/flow_stage.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/mem.h"
#include "common/compute/ops.h"
#include "common/model/model_dir.h"
#include "flow_worker/cfm_solver.h"
#include "flow_worker/dit.h"
#include "flow_worker/flow_pack.h"
#include "flow_worker/flow_plan.h"
#include "flow_worker/flow_shapes.h"

/* More packed frames than any machine's memory would hold: a bound on configuration. */
#define FLOW_PACKED_FRAMES_MAX (1 << 20)

typedef struct flow_held {
    flow_job job;
    int32_t step; /* Euler steps done */
    bool encoded; /* mu, cond, spk and x are in the pack */
    uint64_t compute_us;
} flow_held;

typedef struct flow {
    backend *be;       /* owned */
    flow_model *model; /* owned */
    flow_pack pack;
    cfm_grid grid;
    const probe *watch; /* borrowed; NULL: nobody looks */
    flow_held *held;    /* [rows_max], owned; in the order of the pack */
    int32_t held_count;
    int64_t held_frames;
    stage_result *done; /* [rows_max], owned; ended and not yet returned, oldest first */
    int32_t done_count;
    int32_t rows_max, frames_max;
    cf_err broken; /* a cancellation that failed, for the next step to report */
    stage_facts facts;
} flow;

static void flow_close(void *stage);

/* Opening ------------------------------------------------------------------------------------------------------ */

/* The file's hash takes as long as packing it; both read the same mapping side by side. */
typedef struct flow_hash {
    const tensor_file *file;
    char hex[SHA256_HEX_BYTES];
    cf_err err;
    char text[256];
} flow_hash;

static void *flow_hash_run(void *arg)
{
    flow_hash *h = arg;
    h->err = tensor_file_sha256(h->file, h->hex);
    if (h->err != CF_OK)
        snprintf(h->text, sizeof h->text, "%s", err_text());
    return NULL;
}

static cf_err flow_config_check(const stage_config *cfg)
{
    if (cfg->rows_max < 1 || cfg->rows_max > JOBS_PER_MEMBER_MAX)
        return err_set(CF_ERR_INVALID, "flow: rows_max %d, expected 1..%d", (int)cfg->rows_max, JOBS_PER_MEMBER_MAX);
    if (cfg->frames_max < 1 || cfg->frames_max > FLOW_PACKED_FRAMES_MAX)
        return err_set(CF_ERR_INVALID, "flow: frames_max %d, expected 1..%d", (int)cfg->frames_max,
                       FLOW_PACKED_FRAMES_MAX);
    return CF_OK;
}

/* Backend, model and pack from an open file. */
static cf_err flow_build(flow *f, const stage_config *cfg, weights *w)
{
    cf_err err = CF_OK;
    flow_dims dims;
    const int64_t frames_cap = cfg->frames_max > FRAMES_MAX ? cfg->frames_max : FRAMES_MAX;
    TRY(flow_dims_derive(w, &dims));
    TRY(backend_open(&(backend_config){.device = cfg->device,
                                       .naive = cfg->naive,
                                       .threads = cfg->threads,
                                       .scratch_bytes = flow_model_scratch_bytes(&dims, frames_cap)},
                     &f->be));
    TRY(flow_model_open(f->be, w, &dims, cfg->operands, &f->model));
    TRY(flow_pack_open(f->be, frames_cap, cfg->rows_max, &f->pack));
    TRY(mem_alloc((size_t)cfg->rows_max, sizeof *f->held, &f->held));
    TRY(mem_alloc((size_t)cfg->rows_max, sizeof *f->done, &f->done));
    f->rows_max = cfg->rows_max;
    f->frames_max = cfg->frames_max;
    cfm_grid_init(&f->grid);
    snprintf(f->facts.backend, sizeof f->facts.backend, "%s", backend_describe(f->be));
    f->facts.weights_bytes = backend_weight_bytes(f->be);
    f->facts.kept_bytes = backend_kept_bytes(f->be);
    f->facts.scratch_bytes = flow_model_scratch_bytes(&dims, cfg->frames_max);
    TRY(backend_scratch_reserve(f->be, f->facts.scratch_bytes));
    f->facts.speech_codes = (int32_t)dims.speech_codes;
out:
    return err;
}

static cf_err flow_load(flow *f, const stage_config *cfg, weights *w)
{
    cf_err err = CF_OK;
    pthread_t thread;
    flow_hash hash = {.file = weights_file(w)};
    if (pthread_create(&thread, NULL, flow_hash_run, &hash) != 0)
        return err_set(CF_ERR_SYS, "flow: no thread to hash the model file");
    err = flow_build(f, cfg, w);
    pthread_join(thread, NULL); /* before the mapping goes, whatever happened */
    if (err != CF_OK)
        goto out;
    if (hash.err != CF_OK)
        FAIL(hash.err, "%s", hash.text);
    memcpy(f->facts.model_sha256, hash.hex, sizeof hash.hex);
out:
    return err;
}

static cf_err flow_open(const stage_config *cfg, void **ret_stage)
{
    cf_err err = CF_OK;
    flow *f = NULL;
    weights *w = NULL;
    char path[IO_PATH_BYTES];
    TRY(flow_config_check(cfg));
    TRY(model_dir_stage_file(cfg->model_dir, MODEL_FLOW, false, path));
    TRY(weights_open(path, &w));
    TRY(mem_alloc(1, sizeof *f, &f));
    TRY(flow_load(f, cfg, w));
    const char *slash = strrchr(path, '/');
    snprintf(f->facts.model_file, sizeof f->facts.model_file, "%.*s", (int)sizeof f->facts.model_file - 1,
             slash ? slash + 1 : path);
    *ret_stage = f;
    f = NULL;
out:
    weights_close(w);
    flow_close(f);
    return err;
}

static void flow_close(void *stage)
{
    flow *f = stage;
    if (f == NULL)
        return;
    flow_model_close(f->model);
    backend_close(f->be);
    mem_free(f->held);
    mem_free(f->done);
    mem_free(f);
}

static void flow_facts(void *stage, stage_facts *ret_facts)
{
    *ret_facts = ((flow *)stage)->facts;
}

void flow_stage_watch(void *stage, const probe *p)
{
    ((flow *)stage)->watch = p;
}

backend *flow_stage_backend(void *stage)
{
    return ((flow *)stage)->be;
}

/* Accepting and leaving ---------------------------------------------------------------------------------------- */

static bool flow_knows(const flow *f, uint64_t job_id)
{
    for (int32_t b = 0; b < f->held_count; b++)
        if (f->held[b].job.job_id == job_id)
            return true;
    for (int32_t i = 0; i < f->done_count; i++)
        if (f->done[i].job_id == job_id)
            return true;
    return false;
}

cf_err flow_stage_accept_job(void *stage, const flow_job *job)
{
    cf_err err = CF_OK;
    flow *f = stage;
    flow_job checked = *job;
    if (fault_hit("flow.accept"))
        FAIL(CF_ERR_NOMEM, "flow: fault point flow.accept");
    TRY(flow_job_check(f->model->dims.speech_codes, &checked));
    if (flow_knows(f, job->job_id))
        FAIL(CF_ERR_INVALID, "flow: job %llu is already held", (unsigned long long)job->job_id);
    if (f->held_count + f->done_count >= f->rows_max)
        FAIL(CF_ERR_BUSY, "flow: %d jobs held, at most %d (rows_max)", (int)f->held_count, (int)f->rows_max);
    if (f->held_count > 0 && f->held_frames + checked.frames > f->frames_max)
        FAIL(CF_ERR_BUSY, "flow: %lld frames held and %d more, at most %d (frames_max)", (long long)f->held_frames,
             (int)checked.frames, (int)f->frames_max);
    f->held[f->held_count++] = (flow_held){.job = checked};
    f->held_frames += checked.frames;
out:
    return err;
}

static cf_err flow_accept(void *stage, const stage_job *job)
{
    const flow_job own = flow_job_from(job);
    return flow_stage_accept_job(stage, &own);
}

static int32_t flow_held_count(void *stage)
{
    const flow *f = stage;
    return f->held_count + f->done_count;
}

/* Drops the held jobs whose keep is false, from list and pack. */
static cf_err flow_keep(flow *f, const bool *keep)
{
    cf_err err = CF_OK;
    int32_t lengths[JOBS_PER_MEMBER_MAX], kept = 0;
    for (int32_t b = 0; b < f->held_count; b++)
        lengths[b] = f->held[b].job.frames;
    TRY(flow_pack_keep(&f->pack, keep, lengths, f->held_count));
    for (int32_t b = 0; b < f->held_count; b++) {
        if (keep[b])
            f->held[kept++] = f->held[b];
        else
            f->held_frames -= lengths[b];
    }
    f->held_count = kept;
out:
    return err;
}

static void flow_cancel(void *stage, uint64_t job_id)
{
    flow *f = stage;
    bool keep[JOBS_PER_MEMBER_MAX];
    bool found = false;
    for (int32_t b = 0; b < f->held_count; b++) {
        keep[b] = f->held[b].job.job_id != job_id;
        found = found || !keep[b];
    }
    if (found) {
        const cf_err err = flow_keep(f, keep);
        if (err != CF_OK)
            f->broken = err;
    }
    for (int32_t i = 0; i < f->done_count; i++) {
        if (f->done[i].job_id != job_id)
            continue;
        memmove(f->done + i, f->done + i + 1, (size_t)(f->done_count - i - 1) * sizeof *f->done);
        f->done_count--;
        break;
    }
}

/* One step ----------------------------------------------------------------------------------------------------- */

/* Shows one piece of job b's forward pass to whoever watches.   x: [*, 80] */
static cf_err flow_show(const flow *f, int32_t b, const char *name, const tensor *x, int64_t first, int64_t count)
{
    return probe_emit(f->watch, f->be, (int32_t)f->held[b].job.job_id, name, x, first, count);
}

/* Condition, speaker and start of job b, whose rows begin at `first`. */
static cf_err flow_encode_one(flow *f, int32_t b, int64_t first)
{
    cf_err err = CF_OK;
    const flow_job *job = &f->held[b].job;
    float speaker[MEL_BINS];
    tensor cond = flow_pack_cond(&f->pack, first, job->frames);
    tensor spk = flow_pack_spk(&f->pack, b, 1);
    tensor x = flow_pack_x(&f->pack, first, job->frames);
    const tensor noise = tensor_rows(&f->model->noise, 0, job->frames);
    TRY(token_encoder_cond(f->be, &job->in, &cond));
    token_encoder_speaker(f->model, job->in.embedding, speaker);
    TRY(backend_upload(f->be, speaker, &spk));
    TRY(backend_copy(f->be, &noise, &x));
    TRY(flow_show(f, b, "spk", &spk, 0, 1));
out:
    return err;
}

/* Encodes the newcomers, which lie behind all others, as one packed batch. */
static cf_err flow_encode(flow *f)
{
    cf_err err = CF_OK;
    const flow_inputs *in[JOBS_PER_MEMBER_MAX];
    int64_t begin = 0, first = 0, frames = 0;
    int32_t old = 0, fresh = 0;
    for (; old < f->held_count && f->held[old].encoded; old++)
        begin += f->held[old].job.frames;
    for (int32_t b = old; b < f->held_count; b++) {
        CF_ASSERT(!f->held[b].encoded);
        in[fresh++] = &f->held[b].job.in;
        frames += f->held[b].job.frames;
    }
    if (fresh == 0)
        return CF_OK;
    tensor mu = flow_pack_mu(&f->pack, begin, frames);
    TRY(token_encoder_mu(f->be, f->model, in, fresh, &mu));
    for (int32_t b = old; b < f->held_count; b++) {
        TRY(flow_encode_one(f, b, begin + first));
        TRY(flow_show(f, b, "mu", &mu, first, f->held[b].job.frames));
        first += f->held[b].job.frames;
        f->held[b].encoded = true;
    }
out:
    return err;
}

/* Estimator outputs of the first and the last step.   v: [2R, 80] */
static cf_err flow_show_velocity(const flow *f, int32_t count, const tensor *v)
{
    cf_err err = CF_OK;
    int64_t row = 0;
    for (int32_t b = 0; b < count; b++) {
        const int32_t frames = f->held[b].job.frames, step = f->held[b].step;
        if (step == 0 || step == CFM_STEPS - 1) {
            TRY(flow_show(f, b, step == 0 ? "v1_cond" : "v10_cond", v, row, frames));
            TRY(flow_show(f, b, step == 0 ? "v1_uncond" : "v10_uncond", v, row + frames, frames));
        }
        row += 2 * frames;
    }
out:
    return err;
}

static cf_err flow_show_x(const flow *f, int32_t count, const tensor *x)
{
    cf_err err = CF_OK;
    int64_t row = 0;
    for (int32_t b = 0; b < count; b++) {
        char name[8];
        snprintf(name, sizeof name, "x_%d", (int)f->held[b].step);
        if (f->held[b].step < CFM_STEPS)
            TRY(flow_show(f, b, name, x, row, f->held[b].job.frames));
        row += f->held[b].job.frames;
    }
out:
    return err;
}

/* How many of the held jobs advance, the oldest first, and their frames. */
static int32_t flow_active(const flow *f, int64_t *ret_frames)
{
    const int64_t most = backend_is_device(f->be) ? f->held_frames : STAGE_HOST_FRAMES;
    int32_t count = 1;
    *ret_frames = f->held[0].job.frames;
    while (count < f->held_count && *ret_frames + f->held[count].job.frames <= most)
        *ret_frames += f->held[count++].job.frames;
    return count;
}

/* One Euler step of the first `count` jobs, which have `frames`. */
static cf_err flow_advance(flow *f, int32_t count, int64_t frames)
{
    cf_err err = CF_OK;
    int32_t lengths[JOBS_PER_MEMBER_MAX], steps[JOBS_PER_MEMBER_MAX], blocks[JOBS_PER_MEMBER_MAX];
    float dt[JOBS_PER_MEMBER_MAX];
    op_rows rows;
    tensor v;
    for (int32_t b = 0; b < count; b++) {
        const flow_held *h = &f->held[b];
        lengths[b] = h->job.frames;
        steps[b] = h->step;
        blocks[b] = h->job.streaming ? FLOW_BLOCK_FRAMES : 0;
        dt[b] = f->grid.dt[h->step];
    }
    tensor x = flow_pack_x(&f->pack, 0, frames), mu = flow_pack_mu(&f->pack, 0, frames);
    tensor cond = flow_pack_cond(&f->pack, 0, frames), spk = flow_pack_spk(&f->pack, 0, count);
    TRY(backend_rows(f->be, lengths, count, &rows));
    TRY(backend_take_2d(f->be, DTYPE_F32, 2 * frames, MEL_BINS, &v));
    const dit_batch batch = {
        .x = &x, .cond = &cond, .mu = &mu, .spk = &spk, .rows = &rows, .steps = steps, .blocks = blocks};
    TRY(dit_velocity(f->be, f->model, &batch, &v)); /* [2R, 80] */
    TRY(flow_show_velocity(f, count, &v));
    TRY(op_cfg_euler(f->be, &(op_cfg_euler_args){.x = &x, .v = &v, .rows = &rows, .dt = dt})); /* [R, 80] */
    for (int32_t b = 0; b < count; b++)
        f->held[b].step++;
    TRY(flow_show_x(f, count, &x));
out:
    return err;
}

static void flow_conclude(const flow_held *h, const float *mel, stage_result *ret_result)
{
    stage_result r = {.job_id = h->job.job_id, .frames = h->job.out_frames, .compute_us = h->compute_us};
    for (int64_t i = 0; i < (int64_t)h->job.out_frames * MEL_BINS; i++) {
        if (isfinite(mel[i]))
            continue;
        r.code = CF_ERR_NUMERIC;
        r.frames = 0;
        snprintf(r.text, sizeof r.text, "flow: mel frame %lld, bin %d is NaN or infinite, expected a finite number",
                 (long long)(i / MEL_BINS), (int)(i % MEL_BINS));
        break;
    }
    *ret_result = r;
}

/* The mel to the job's own memory, and a look at it. */
static cf_err flow_hand_over(const flow *f, int32_t b, const tensor *mel, stage_result *ret_result)
{
    cf_err err = CF_OK;
    const flow_job *job = &f->held[b].job;
    float *seen = job->out;
    if (job->out_on_device) {
        tensor there = tensor_2d(job->out, DTYPE_F32, job->out_frames, MEL_BINS);
        TRY(backend_copy(f->be, mel, &there));
        TRY(backend_take_host(f->be, tensor_bytes(mel), &seen));
    }
    TRY(backend_download(f->be, mel, seen)); /* waits: READY means that all of it is there */
    flow_conclude(&f->held[b], seen, ret_result);
out:
    return err;
}

/* The generated frames of job b, resampled when its speed asks for it. */
static cf_err flow_deliver(const flow *f, int32_t b, int64_t first, stage_result *ret_result)
{
    cf_err err = CF_OK;
    const flow_job *job = &f->held[b].job;
    const int32_t made = job->frames - job->in.prompt_frames;
    tensor mel = flow_pack_x(&f->pack, first + job->in.prompt_frames, made);
    if (job->speed != 1.0) {
        op_rows rows_in, rows_out;
        tensor faster;
        TRY(backend_rows(f->be, &made, 1, &rows_in));
        TRY(backend_rows(f->be, &job->out_frames, 1, &rows_out));
        TRY(backend_take_2d(f->be, DTYPE_F32, job->out_frames, MEL_BINS, &faster));
        TRY(op_lerp_time(f->be,
                         &(op_lerp_time_args){.x = &mel, .rows_in = &rows_in, .y = &faster, .rows_out = &rows_out}));
        mel = faster;
    }
    TRY(flow_show(f, b, "mel", &mel, 0, job->out_frames));
    mel = tensor_rows(&mel, 0, job->out_frames);
    TRY(flow_hand_over(f, b, &mel, ret_result));
out:
    return err;
}

/* Moves the jobs that took their last step from held to done. */
static cf_err flow_retire(flow *f)
{
    cf_err err = CF_OK;
    bool keep[JOBS_PER_MEMBER_MAX];
    int64_t first = 0;
    int32_t leaving = 0;
    for (int32_t b = 0; b < f->held_count; b++) {
        keep[b] = f->held[b].step < CFM_STEPS;
        if (!keep[b]) {
            TRY(flow_deliver(f, b, first, &f->done[f->done_count + leaving]));
            leaving++;
        }
        first += f->held[b].job.frames;
    }
    if (leaving > 0)
        TRY(flow_keep(f, keep));
    f->done_count += leaving;
out:
    return err;
}

static cf_err flow_work(flow *f)
{
    cf_err err = CF_OK;
    const uint64_t start_us = clock_now_us();
    const size_t mark = backend_scratch_mark(f->be);
    int64_t frames;
    const int32_t count = flow_active(f, &frames);
    TRY(flow_encode(f));
    TRY(flow_advance(f, count, frames));
    TRY(backend_sync(f->be));
    const uint64_t share_us = (clock_now_us() - start_us) / (uint64_t)count;
    for (int32_t b = 0; b < count; b++)
        f->held[b].compute_us += share_us;
    TRY(flow_retire(f));
out:
    backend_scratch_reset(f->be, mark);
    return err;
}

static cf_err flow_step(void *stage, stage_result *results, int32_t max, int32_t *ret_count)
{
    cf_err err = CF_OK;
    flow *f = stage;
    TRY(f->broken);
    if (fault_hit("flow.step"))
        FAIL(CF_ERR_DEVICE, "flow: fault point flow.step");
    if (f->held_count > 0)
        TRY(flow_work(f));
    const int32_t given = f->done_count < max ? f->done_count : max;
    memcpy(results, f->done, (size_t)given * sizeof *results);
    memmove(f->done, f->done + given, (size_t)(f->done_count - given) * sizeof *f->done);
    f->done_count -= given;
    *ret_count = given;
out:
    return err;
}

const stage_ops flow_stage = {.kind = STAGE_FLOW,
                              .plan = flow_plan,
                              .open = flow_open,
                              .facts = flow_facts,
                              .accept = flow_accept,
                              .step = flow_step,
                              .cancel = flow_cancel,
                              .held = flow_held_count,
                              .close = flow_close};
