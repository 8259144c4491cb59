/*
 * hift_stage.c - the functions of stage.h for the vocoder: a queue of utterances, rendered whole, many to a step.
 *
 * Compute thread of hift_worker. Owns the engine (backend and model) and the queue; mel and audio belong to the jobs.
 * A step takes jobs in the order they came, passing over those that would no longer fit step_frames; the oldest always
 * goes, alone when it is longer than that. Nothing of a step outlives it but the noise table.
 *
 * Fails: accept CF_ERR_BUSY (full), CF_ERR_INVALID (no mel, too few frames, output too small), CF_ERR_LIMIT (too long);
 * a job CF_ERR_NUMERIC (NaN or infinity in its mel, or in its audio: the others go on); a step what ops return.
 */
#include "hift_worker/hift_stage.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/fault.h"
#include "common/base/mem.h"
#include "hift_worker/f0_predictor.h"
#include "hift_worker/hift_decoder.h"
#include "hift_worker/hift_model.h"
#include "hift_worker/hift_plan.h"

typedef struct hift_queue {
    hift_engine engine;
    int32_t rows_max, frames_max;
    int32_t step_frames; /* of one step */
    stage_job *held;     /* [rows_max], owned; oldest first */
    int32_t held_count;
} hift_queue;

/* What one step renders. */
typedef struct hift_step {
    stage_job jobs[HIFT_BATCH_ROWS_MAX];
    hift_span spans[HIFT_BATCH_ROWS_MAX];
    int32_t count;
} hift_step;

static void queue_close(void *stage)
{
    hift_queue *q = stage;
    if (!q)
        return;
    hift_engine_close(&q->engine);
    mem_free(q->held);
    mem_free(q);
}

static size_t planned_scratch_bytes(const hift_queue *q)
{
    return hift_model_scratch_bytes(&q->engine.model->dims, q->frames_max, q->rows_max, q->engine.operands);
}

static cf_err queue_open(const stage_config *cfg, void **ret_stage)
{
    cf_err err;
    hift_queue *q = NULL;
    if (cfg->rows_max < 1 || cfg->rows_max > HIFT_BATCH_ROWS_MAX)
        FAIL(CF_ERR_INVALID, "hift: rows_max %d, expected 1 to %d", cfg->rows_max, HIFT_BATCH_ROWS_MAX);
    if (cfg->frames_max < 1)
        FAIL(CF_ERR_INVALID, "hift: frames_max %d, expected at least 1", cfg->frames_max);
    TRY(mem_alloc(1, sizeof *q, &q));
    q->rows_max = cfg->rows_max;
    q->frames_max = cfg->frames_max;
    TRY(mem_alloc((size_t)cfg->rows_max, sizeof *q->held, &q->held));
    /* Address space for the longest utterance too, which runs alone; pages are taken when it comes. */
    const hift_engine_config engine = {
        .model_dir = cfg->model_dir,
        .device = cfg->device,
        .operands = cfg->operands,
        .naive = cfg->naive,
        .threads = cfg->threads,
        .frames_max = cfg->frames_max > FRAMES_MAX ? cfg->frames_max : FRAMES_MAX,
        .rows_max = cfg->rows_max,
    };
    TRY(hift_engine_open(&engine, &q->engine));
    q->step_frames =
        backend_is_device(q->engine.be) || q->frames_max < STAGE_HOST_FRAMES ? q->frames_max : STAGE_HOST_FRAMES;
    TRY(backend_scratch_reserve(q->engine.be, planned_scratch_bytes(q)));
    *ret_stage = q;
    q = NULL;
out:
    queue_close(q);
    return err;
}

static void queue_facts(void *stage, stage_facts *ret_facts)
{
    const hift_queue *q = stage;
    const char *slash = strrchr(q->engine.path, '/');
    *ret_facts = (stage_facts){
        .weights_bytes = backend_weight_bytes(q->engine.be),
        .kept_bytes = backend_kept_bytes(q->engine.be),
        .scratch_bytes = planned_scratch_bytes(q),
    };
    snprintf(ret_facts->model_file, sizeof ret_facts->model_file, "%.255s", slash ? slash + 1 : q->engine.path);
    memcpy(ret_facts->model_sha256, q->engine.sha256, sizeof ret_facts->model_sha256);
    snprintf(ret_facts->backend, sizeof ret_facts->backend, "%.100s vocoder %s", backend_describe(q->engine.be),
             q->engine.operands == PRECISION_FP16        ? "fp16"
             : q->engine.operands == PRECISION_BF16_PAIR ? "bf16 pairs"
                                                         : "f32");
}

static cf_err queue_accept(void *stage, const stage_job *job)
{
    hift_queue *q = stage;
    const int32_t least = job->finalize ? HIFT_FRAMES_MIN : HIFT_FRAMES_MIN_OPEN;
    if (fault_hit("hift.accept"))
        return err_set(CF_ERR_NOMEM, "hift: fault point hift.accept");
    if (job->frames > FRAMES_MAX)
        return err_set(CF_ERR_LIMIT, "hift: %d mel frames, at most %d (FRAMES_MAX: the noise table's 300 s)",
                       job->frames, FRAMES_MAX);
    if (job->frames < least || !job->mel)
        return err_set(CF_ERR_INVALID, "hift: %d mel frames%s, expected at least %d%s", job->frames,
                       job->mel ? "" : " and no mel", least, job->finalize ? "" : " when more follow");
    const size_t wanted = (size_t)hift_job_samples(job) * sizeof(float);
    if (job->out_bytes < wanted || (!job->out && wanted))
        return err_set(CF_ERR_INVALID, "hift: output of %zu bytes, expected %zu for %d frames",
                       job->out ? job->out_bytes : (size_t)0, wanted, job->frames);
    if (q->held_count == q->rows_max)
        return err_set(CF_ERR_BUSY, "hift: %d jobs held (rows_max)", q->rows_max);
    q->held[q->held_count++] = *job;
    return CF_OK;
}

static void remove_held(hift_queue *q, int32_t idx)
{
    memmove(&q->held[idx], &q->held[idx + 1], (size_t)(q->held_count - idx - 1) * sizeof *q->held);
    q->held_count--;
}

/* Index of the first value that is not finite, or -1. */
static int64_t find_nonfinite(const float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return i;
    return -1;
}

static void fail_job(const stage_job *job, const char *text, stage_result *ret_result)
{
    *ret_result = (stage_result){.job_id = job->job_id, .code = CF_ERR_NUMERIC};
    snprintf(ret_result->text, sizeof ret_result->text, "%s", text);
}

static tensor mel_of(const stage_job *job)
{
    return tensor_2d((void *)(uintptr_t)job->mel, DTYPE_F32, job->frames, MEL_BINS);
}

/* The job's mel where the host can read it: in scratch when it lies on the device. */
static cf_err look_at_mel(backend *be, const stage_job *job, const float **ret_mel)
{
    cf_err err = CF_OK;
    const tensor there = mel_of(job);
    float *seen;
    *ret_mel = job->mel;
    if (job->mel_on_device) {
        TRY(backend_take_host(be, tensor_bytes(&there), &seen));
        TRY(backend_download(be, &there, seen));
        *ret_mel = seen;
    }
out:
    return err;
}

/* Moves jobs from the queue into the step; those whose mel cannot be rendered become results at once. */
static cf_err gather(hift_queue *q, hift_step *step, stage_result *results, int32_t max, int32_t *ret_failed)
{
    cf_err err = CF_OK;
    int32_t failed = 0, frames = 0;
    for (int32_t i = 0; i < q->held_count && failed + step->count < max;) {
        const stage_job *job = &q->held[i];
        if (step->count > 0 && (step->count == HIFT_BATCH_ROWS_MAX || job->frames > q->step_frames - frames)) {
            i++;
            continue;
        }
        const float *mel;
        TRY(look_at_mel(q->engine.be, job, &mel));
        const int64_t bad = find_nonfinite(mel, (int64_t)job->frames * MEL_BINS);
        if (bad >= 0) {
            char text[128];
            snprintf(text, sizeof text, "hift: mel frame %d, bin %d is not a finite number", (int)(bad / MEL_BINS),
                     (int)(bad % MEL_BINS));
            fail_job(job, text, &results[failed++]);
        } else {
            step->spans[step->count] = (hift_span){.frames = job->frames, .finalize = job->finalize};
            step->jobs[step->count++] = *job;
            frames += job->frames;
        }
        remove_held(q, i);
    }
    *ret_failed = failed;
out:
    return err;
}

/* Lays the mels one behind the other on the backend. */
static cf_err upload_mels(backend *be, const hift_step *step, const hift_batch *batch, tensor *ret_mel)
{
    cf_err err;
    tensor mel;
    TRY(backend_take_2d(be, DTYPE_F32, rows_total(&batch->mel), MEL_BINS, &mel));
    for (int32_t b = 0; b < step->count; b++) {
        tensor part = tensor_rows(&mel, batch->mel.offs[b], rows_length(&batch->mel, b));
        const tensor there = mel_of(&step->jobs[b]);
        TRY(step->jobs[b].mel_on_device ? backend_copy(be, &there, &part)
                                        : backend_upload(be, step->jobs[b].mel, &part));
    }
    *ret_mel = mel;
out:
    return err;
}

static cf_err render(hift_queue *q, const hift_step *step, hift_batch *ret_batch, tensor *ret_audio)
{
    cf_err err;
    backend *be = q->engine.be;
    hift_model *m = q->engine.model;
    hift_batch batch;
    tensor mel, f0, source, audio;
    TRY(hift_batch_init(be, step->spans, step->count, &batch));
    TRY(upload_mels(be, step, &batch, &mel)); /* [M, 80] */
    TRY(backend_take(be, DTYPE_F32, 1, (const int64_t[]){rows_total(&batch.f0)}, &f0));
    TRY(backend_take(be, DTYPE_F32, 1, (const int64_t[]){rows_total(&batch.source)}, &source));
    TRY(backend_take(be, DTYPE_F32, 1, (const int64_t[]){rows_total(&batch.audio)}, &audio));
    TRY(f0_predictor_run(m, be, &batch, &mel, &f0));                   /* [T] Hz */
    TRY(nsf_source_run(&m->source, be, &f0, &batch.f0, &source));      /* [480 T] */
    TRY(hift_decoder_run(m, be, &batch, &mel, &source, NULL, &audio)); /* [samples] */
    *ret_batch = batch;
    *ret_audio = audio;
out:
    return err;
}

static cf_err hand_over(backend *be, const stage_job *job, const tensor *audio, stage_result *ret_result)
{
    cf_err err = CF_OK;
    const int64_t samples = audio->dims[0];
    if (samples > 0)
        TRY(backend_download(be, audio, job->out));
    const int64_t bad = find_nonfinite(job->out, samples);
    if (bad >= 0) {
        char text[128];
        snprintf(text, sizeof text, "hift: sample %lld of %lld is not a finite number", (long long)bad,
                 (long long)samples);
        fail_job(job, text, ret_result);
        goto out;
    }
    *ret_result = (stage_result){.job_id = job->job_id, .samples = samples};
out:
    return err;
}

static cf_err queue_step(void *stage, stage_result *results, int32_t max, int32_t *ret_count)
{
    cf_err err = CF_OK;
    hift_queue *q = stage;
    backend *be = q->engine.be;
    const uint64_t start_us = clock_now_us();
    hift_step step = {.count = 0};
    hift_batch batch;
    tensor audio;
    int32_t failed = 0;
    TRY(gather(q, &step, results, max, &failed));
    if (step.count > 0) {
        if (fault_hit("hift.step"))
            FAIL(CF_ERR_DEVICE, "hift: fault point hift.step");
        TRY(render(q, &step, &batch, &audio));
        for (int32_t b = 0; b < step.count; b++) {
            const tensor part = tensor_rows(&audio, batch.audio.offs[b], rows_length(&batch.audio, b));
            TRY(hand_over(be, &step.jobs[b], &part, &results[failed + b]));
        }
        const uint64_t share_us = (clock_now_us() - start_us) / (uint64_t)step.count;
        for (int32_t b = 0; b < step.count; b++)
            results[failed + b].compute_us = share_us;
    }
    *ret_count = failed + step.count;
out:
    backend_scratch_reset(be, 0);
    return err;
}

static void queue_cancel(void *stage, uint64_t job_id)
{
    hift_queue *q = stage;
    for (int32_t i = 0; i < q->held_count; i++)
        if (q->held[i].job_id == job_id) {
            remove_held(q, i);
            return;
        }
}

static int32_t queue_held(void *stage)
{
    const hift_queue *q = stage;
    return q->held_count;
}

const stage_ops hift_stage = {
    .kind = STAGE_HIFT,
    .plan = hift_plan,
    .open = queue_open,
    .facts = queue_facts,
    .accept = queue_accept,
    .step = queue_step,
    .cancel = queue_cancel,
    .held = queue_held,
    .close = queue_close,
};
