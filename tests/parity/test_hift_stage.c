/*
 * test_hift_stage.c - the vocoder as a stage: what it accepts, what it makes of broken input, and that a row's bytes
 * depend on nothing but the row. All on the tiny model; sizes are small enough for the default run.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/compute/ops.h"
#include "common/model/safetensors.h"
#include "common/model/tensor_file.h"
#include "hift_worker/f0_predictor.h"
#include "hift_worker/hift_decoder.h"
#include "hift_worker/hift_stage.h"
#include "tests/parity/hift_fixture.h"

#define ROWS 16

static hift_fixture_job jobs_a[ROWS], jobs_b[ROWS];

/* Lengths around every edge: one frame, the least without end, a few that share nothing. */
static const struct {
    int32_t frames;
    bool finalize;
} MIX[ROWS] = {{1, true},   {17, true},  {9, false}, {8, false}, {12, true}, {2, true},   {61, false}, {80, true},
               {10, false}, {96, false}, {3, true},  {29, true}, {30, true}, {50, false}, {7, true},   {5, true}};

static void init_mix(hift_fixture_job *jobs)
{
    for (size_t i = 0; i < ROWS; i++)
        hift_fixture_job_init(&jobs[i], 100 + i, MIX[i].frames, MIX[i].finalize);
}

static void render_alone(void *stage, hift_fixture_job *jobs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hift_fixture_run(stage, &jobs[i], 1, NULL, 1);
}

/* Neighbours of other lengths, final and not, in two orders, and alone: the same bytes. */
static void check_batch(precision operands, bool naive, const size_t *order, size_t count)
{
    void *stage = hift_fixture_stage(&(hift_fixture_config){.operands = operands, .naive = naive});
    init_mix(jobs_a);
    init_mix(jobs_b);
    render_alone(stage, jobs_a, count);
    assert_int_equal(hift_fixture_run(stage, jobs_b, count, NULL, ROWS), 1);
    for (size_t i = 0; i < count; i++) {
        assert_true(jobs_a[i].result.samples == hift_job_samples(&jobs_a[i].job));
        hift_fixture_same(&jobs_a[i], &jobs_b[i]);
    }
    init_mix(jobs_b);
    hift_fixture_run(stage, jobs_b, count, order, 7);
    for (size_t i = 0; i < count; i++)
        hift_fixture_same(&jobs_a[i], &jobs_b[i]);
    hift_stage.close(stage);
}

static const size_t SHUFFLED[ROWS] = {9, 2, 14, 0, 7, 12, 5, 11, 3, 15, 1, 8, 13, 4, 10, 6};

static void test_batch_is_alone(void **state)
{
    (void)state;
    check_batch(PRECISION_F32, false, SHUFFLED, ROWS);
}

static void test_batch_is_alone_bf16(void **state)
{
    (void)state;
    check_batch(PRECISION_BF16, false, SHUFFLED, ROWS);
}

static void test_batch_is_alone_naive(void **state)
{
    (void)state;
    check_batch(PRECISION_F32, true, (const size_t[]){4, 1, 3, 0, 5, 2}, 6);
}

static void test_threads_change_nothing(void **state)
{
    (void)state;
    init_mix(jobs_a);
    void *stage = hift_fixture_stage(&(hift_fixture_config){.threads = 1});
    hift_fixture_run(stage, jobs_a, ROWS, NULL, ROWS);
    hift_stage.close(stage);
    for (int threads = 2; threads <= 3; threads++) {
        init_mix(jobs_b);
        stage = hift_fixture_stage(&(hift_fixture_config){.threads = threads});
        hift_fixture_run(stage, jobs_b, ROWS, NULL, ROWS);
        hift_stage.close(stage);
        for (size_t i = 0; i < ROWS; i++)
            hift_fixture_same(&jobs_a[i], &jobs_b[i]);
    }
}

/* Every length: 480 samples a frame, one frame included; without end 8 frames less, and nothing of 8. */
static void test_lengths(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){0});
    hift_fixture_job_init(&jobs_a[0], 1, 1, true);
    hift_fixture_job_init(&jobs_a[1], 2, 8, false);
    hift_fixture_job_init(&jobs_a[2], 3, 9, false);
    jobs_a[1].job.out = NULL;
    jobs_a[1].job.out_bytes = 0;
    hift_fixture_run(stage, jobs_a, 3, NULL, 3);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(jobs_a[i].result.code, CF_OK);
    assert_int_equal(jobs_a[0].result.samples, 480);
    assert_int_equal(jobs_a[1].result.samples, 0);
    assert_int_equal(jobs_a[2].result.samples, 480);
    hift_stage.close(stage);
}

/* What a call without end gives is the beginning of the whole utterance, wherever it stops. */
static void test_prefixes(void **state)
{
    (void)state;
    static const int32_t given[] = {9, 10, 12, 31, 60, 70};
    void *stage = hift_fixture_stage(&(hift_fixture_config){0});
    hift_fixture_job_init(&jobs_a[0], 7, 70, true);
    hift_fixture_run(stage, jobs_a, 1, NULL, 1);
    for (size_t i = 0; i < sizeof given / sizeof given[0]; i++) {
        hift_fixture_job_init(&jobs_b[0], 7, given[i], false);
        hift_fixture_run(stage, jobs_b, 1, NULL, 1);
        const size_t samples = (size_t)(480 * (given[i] - 8));
        assert_true(jobs_b[0].result.samples == (int64_t)samples);
        const test_diff d = test_compare(jobs_b[0].out, jobs_a[0].out, samples);
        assert_false(d.nonfinite);
        if (d.max_abs > 1e-5) /* upstream's own chunks differ from its whole by 2e-6 */
            fail_msg("%d frames: sample %zu differs by %.3g", given[i], d.worst_idx, d.max_abs);
    }
    hift_stage.close(stage);
}

/* One utterance of `frames` on an engine, its source given or (NULL) computed. */
typedef struct decoded {
    float f0[HIFT_FIXTURE_FRAMES_MAX], source[HIFT_FIXTURE_FRAMES_MAX * 480], audio[HIFT_FIXTURE_FRAMES_MAX * 480];
} decoded;

static hift_engine open_engine(const char *dir, int64_t frames_max, int64_t rows_max)
{
    hift_engine e;
    assert_ok(hift_engine_open(
        &(hift_engine_config){
            .model_dir = dir, .device = "cpu", .threads = 2, .frames_max = frames_max, .rows_max = rows_max},
        &e));
    return e;
}

static void decode(hift_engine *e, const float *mel, int32_t frames, const float *source, decoded *ret)
{
    hift_batch batch;
    tensor x, f0, s, audio;
    assert_ok(hift_batch_init(e->be, &(hift_span){frames, true}, 1, &batch));
    assert_ok(backend_take_2d(e->be, DTYPE_F32, frames, MEL_BINS, &x));
    assert_ok(backend_take(e->be, DTYPE_F32, 1, (const int64_t[]){frames}, &f0));
    assert_ok(backend_take(e->be, DTYPE_F32, 1, (const int64_t[]){(int64_t)frames * 480}, &s));
    assert_ok(backend_take(e->be, DTYPE_F32, 1, (const int64_t[]){(int64_t)frames * 480}, &audio));
    assert_ok(backend_upload(e->be, mel, &x));
    assert_ok(f0_predictor_run(e->model, e->be, &batch, &x, &f0));
    if (source)
        assert_ok(backend_upload(e->be, source, &s));
    else
        assert_ok(nsf_source_run(&e->model->source, e->be, &f0, &batch.f0, &s));
    assert_ok(hift_decoder_run(e->model, e->be, &batch, &x, &s, NULL, &audio));
    assert_ok(backend_download(e->be, &f0, ret->f0));
    assert_ok(backend_download(e->be, &s, ret->source));
    assert_ok(backend_download(e->be, &audio, ret->audio));
    backend_scratch_reset(e->be, 0);
}

static void changed_range(const float *a, const float *b, int64_t count, int64_t *ret_first, int64_t *ret_last)
{
    *ret_first = count;
    *ret_last = -1;
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof a[i]) != 0) {
            *ret_first = *ret_first < i ? *ret_first : i;
            *ret_last = i;
        }
}

/* How far one frame of the mel reaches: f0 three back and eight on; audio, the source held, 1923 samples back and
 * 10675 on. */
static void test_reach(void **state)
{
    enum { FRAMES = 64, PERTURBED = 32 };
    (void)state;
    static decoded before, after;
    int64_t first, last;
    hift_engine e = open_engine(hift_fixture_model(RECIPE_TINY), FRAMES, 1);
    hift_fixture_job_init(&jobs_a[0], 11, FRAMES, true);
    decode(&e, jobs_a[0].mel, FRAMES, NULL, &before);
    for (int c = 0; c < MEL_BINS; c++)
        jobs_a[0].mel[PERTURBED * MEL_BINS + c] += 2.0f;
    decode(&e, jobs_a[0].mel, FRAMES, before.source, &after);
    changed_range(before.f0, after.f0, FRAMES, &first, &last);
    assert_int_equal(first, PERTURBED - 3);
    assert_int_equal(last, PERTURBED + 8);
    changed_range(before.audio, after.audio, FRAMES * 480, &first, &last);
    assert_in_range(first, 480 * PERTURBED - 1923, 480 * PERTURBED - 1440);
    assert_in_range(last, 480 * PERTURBED + 2 * 480, 480 * PERTURBED + 10675);
    hift_engine_close(&e);
}

static void full_batch(precision wanted, int64_t *ret_plan, int64_t *ret_used)
{
    const hift_dims dims = {64, 32};
    hift_engine e;
    hift_batch batch;
    hift_span spans[10];
    tensor mel, f0, s, audio;
    assert_ok(hift_engine_open(&(hift_engine_config){.model_dir = hift_fixture_model(RECIPE_TINY),
                                                     .device = "cpu",
                                                     .operands = wanted,
                                                     .threads = 2,
                                                     .frames_max = 960,
                                                     .rows_max = 10},
                               &e));
    for (size_t i = 0; i < 10; i++)
        spans[i] = (hift_span){96, i % 2 == 0};
    assert_ok(hift_batch_init(e.be, spans, 10, &batch));
    assert_ok(backend_take_2d(e.be, DTYPE_F32, rows_total(&batch.mel), MEL_BINS, &mel));
    assert_ok(backend_take(e.be, DTYPE_F32, 1, (const int64_t[]){rows_total(&batch.f0)}, &f0));
    assert_ok(backend_take(e.be, DTYPE_F32, 1, (const int64_t[]){rows_total(&batch.source)}, &s));
    assert_ok(backend_take(e.be, DTYPE_F32, 1, (const int64_t[]){rows_total(&batch.audio)}, &audio));
    assert_ok(backend_zero(e.be, &mel));
    assert_ok(f0_predictor_run(e.model, e.be, &batch, &mel, &f0));
    assert_ok(nsf_source_run(&e.model->source, e.be, &f0, &batch.f0, &s));
    assert_ok(hift_decoder_run(e.model, e.be, &batch, &mel, &s, NULL, &audio));
    *ret_used = (int64_t)backend_scratch_peak_bytes(e.be);
    *ret_plan = (int64_t)hift_model_scratch_bytes(&dims, 960, 10, e.operands);
    hift_engine_close(&e);
}

/* The plan of scratch holds for a full batch, and is not a multiple of what is used. */
static void test_scratch_plan(void **state)
{
    (void)state;
    int64_t plan, used;
    full_batch(PRECISION_F32, &plan, &used);
    assert_in_range(used, plan / 4 * 3, plan);
    full_batch(PRECISION_BF16, &plan, &used);
    assert_true(used <= plan); /* far below it where there are no tiles */
}

/* Jobs travel together as far as they fit; one that is longer than that travels alone, none waits for ever. */
static void test_packing(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){.frames_max = 40});
    static const int32_t frames[] = {30, 20, 10, 96, 5};
    stage_result results[8];
    int32_t count;
    for (size_t i = 0; i < 5; i++) {
        hift_fixture_job_init(&jobs_a[i], i, frames[i], true);
        assert_ok(hift_stage.accept(stage, &jobs_a[i].job));
    }
    assert_ok(hift_stage.step(stage, results, 8, &count)); /* 30 + 10; 5 no longer fits */
    assert_int_equal(count, 2);
    assert_int_equal(results[0].job_id, 0);
    assert_int_equal(results[1].job_id, 2);
    assert_int_equal(hift_stage.held(stage), 3);
    assert_ok(hift_stage.step(stage, results, 8, &count)); /* 20 + 5 */
    assert_int_equal(count, 2);
    assert_int_equal(results[0].job_id, 1);
    assert_int_equal(results[1].job_id, 4);
    assert_ok(hift_stage.step(stage, results, 8, &count));
    assert_int_equal(count, 1);
    assert_int_equal(results[0].job_id, 3);
    assert_true(results[0].samples == 96 * 480);
    assert_ok(hift_stage.step(stage, results, 8, &count));
    assert_int_equal(count, 0);
    hift_stage.close(stage);
}

static void test_cancel(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){0});
    stage_result results[4];
    int32_t count;
    for (size_t i = 0; i < 3; i++) {
        hift_fixture_job_init(&jobs_a[i], 40 + i, 4, true);
        assert_ok(hift_stage.accept(stage, &jobs_a[i].job));
    }
    hift_stage.cancel(stage, 41);
    hift_stage.cancel(stage, 99);
    assert_int_equal(hift_stage.held(stage), 2);
    assert_ok(hift_stage.step(stage, results, 4, &count));
    assert_int_equal(count, 2);
    assert_int_equal(results[0].job_id, 40);
    assert_int_equal(results[1].job_id, 42);
    for (int n = 0; n < 4 * 480; n++)
        assert_true(jobs_a[1].out[n] == 0.0f);
    hift_stage.close(stage);
}

static void test_refusals(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){.rows_max = 1});
    hift_fixture_job *j = &jobs_a[0];
    hift_fixture_job_init(j, 1, 20, true);
    j->job.frames = 0;
    assert_err(CF_ERR_INVALID, "0 mel frames, expected at least 1", hift_stage.accept(stage, &j->job));
    j->job.frames = -5;
    assert_err(CF_ERR_INVALID, "-5 mel frames", hift_stage.accept(stage, &j->job));
    j->job.frames = 15001;
    assert_err(CF_ERR_LIMIT, "15001 mel frames, at most 15000 (FRAMES_MAX", hift_stage.accept(stage, &j->job));
    j->job.frames = INT32_MAX;
    assert_err(CF_ERR_LIMIT, "at most 15000", hift_stage.accept(stage, &j->job));
    j->job.frames = 7;
    j->job.finalize = false;
    assert_err(CF_ERR_INVALID, "at least 8 when more follow", hift_stage.accept(stage, &j->job));
    j->job.frames = INT32_MIN;
    assert_err(CF_ERR_INVALID, "at least 8", hift_stage.accept(stage, &j->job));
    hift_fixture_job_init(j, 1, 20, true);
    j->job.out_bytes = 20 * 480 * 4 - 1;
    assert_err(CF_ERR_INVALID, "output of 38399 bytes, expected 38400", hift_stage.accept(stage, &j->job));
    j->job.out_bytes++;
    j->job.out = NULL;
    assert_err(CF_ERR_INVALID, "output of 0 bytes", hift_stage.accept(stage, &j->job));
    j->job.out = j->out;
    j->job.mel = NULL;
    assert_err(CF_ERR_INVALID, "no mel", hift_stage.accept(stage, &j->job));
    j->job.mel = j->mel;
    assert_int_equal(hift_stage.held(stage), 0);
    assert_ok(hift_stage.accept(stage, &j->job));
    assert_err(CF_ERR_BUSY, "1 jobs held (rows_max)", hift_stage.accept(stage, &j->job));
    assert_int_equal(hift_stage.held(stage), 1);
    hift_stage.close(stage);
    hift_stage.close(NULL);
}

/* Broken numbers end their own job and no other. */
static void test_broken_mels(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){0});
    for (size_t i = 0; i < 5; i++) {
        hift_fixture_job_init(&jobs_a[i], 60 + i, 20 + (int32_t)i, true);
        hift_fixture_job_init(&jobs_b[i], 60 + i, 20 + (int32_t)i, true);
    }
    render_alone(stage, jobs_a, 5);
    jobs_b[0].mel[3 * MEL_BINS + 7] = NAN;
    jobs_b[2].mel[23 * MEL_BINS - 81] = -INFINITY;
    for (int i = 0; i < 23 * MEL_BINS; i++)
        jobs_b[3].mel[i] = i % 2 ? 3e38f : -3e38f; /* finite, and no vocoder's input: the audio cannot be finite */
    hift_fixture_run(stage, jobs_b, 5, NULL, 5);
    assert_int_equal(jobs_b[0].result.code, CF_ERR_NUMERIC);
    assert_string_equal(jobs_b[0].result.text, "hift: mel frame 3, bin 7 is not a finite number");
    assert_int_equal(jobs_b[2].result.code, CF_ERR_NUMERIC);
    assert_string_equal(jobs_b[2].result.text, "hift: mel frame 21, bin 79 is not a finite number");
    assert_int_equal(jobs_b[3].result.code, CF_ERR_NUMERIC);
    assert_non_null(strstr(jobs_b[3].result.text, "hift: sample "));
    hift_fixture_same(&jobs_a[1], &jobs_b[1]);
    hift_fixture_same(&jobs_a[4], &jobs_b[4]);
    assert_int_equal(hift_stage.held(stage), 0);
    hift_stage.close(stage);
}

/* Failed rows count against the room for results; a batch of nothing but failures computes nothing. */
static void test_results_are_bounded(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){0});
    stage_result results[2];
    int32_t count;
    for (size_t i = 0; i < 5; i++) {
        hift_fixture_job_init(&jobs_a[i], i, 9, true);
        if (i < 3)
            jobs_a[i].mel[0] = NAN;
        assert_ok(hift_stage.accept(stage, &jobs_a[i].job));
    }
    assert_ok(hift_stage.step(stage, results, 2, &count));
    assert_int_equal(count, 2);
    assert_int_equal(results[1].code, CF_ERR_NUMERIC);
    assert_ok(hift_stage.step(stage, results, 2, &count));
    assert_int_equal(count, 2);
    assert_int_equal(results[0].code, CF_ERR_NUMERIC);
    assert_int_equal(results[1].code, CF_OK);
    assert_ok(hift_stage.step(stage, results, 2, &count));
    assert_int_equal(count, 1);
    assert_true(results[0].samples == 9 * 480);
    hift_stage.close(stage);
}

static cf_err open_with(const stage_config *cfg)
{
    void *stage = NULL;
    const cf_err err = hift_stage.open(cfg, &stage);
    hift_stage.close(stage);
    return err;
}

static void test_open_refuses(void **state)
{
    (void)state;
    stage_config cfg = {
        .model_dir = hift_fixture_model(RECIPE_TINY), .device = "cpu", .rows_max = 0, .frames_max = 100};
    assert_err(CF_ERR_INVALID, "rows_max 0, expected 1 to 256", open_with(&cfg));
    cfg.rows_max = 257;
    assert_err(CF_ERR_INVALID, "rows_max 257", open_with(&cfg));
    cfg.rows_max = 1;
    cfg.frames_max = 0;
    assert_err(CF_ERR_INVALID, "frames_max 0", open_with(&cfg));
    cfg.frames_max = 100;
    cfg.device = "cuda:9";
    assert_err(CF_ERR_UNSUPPORTED, "cuda:9", open_with(&cfg));
    cfg.device = "cpu";
    cfg.model_dir = test_temp_dir();
    assert_err(CF_ERR_NOTFOUND, "hift", open_with(&cfg));
}

static void test_facts(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){.threads = 2});
    stage_facts facts;
    char path[IO_PATH_BYTES], hash[SHA256_HEX_BYTES];
    tensor_file *f = NULL;
    hift_stage.facts(stage, &facts);
    assert_string_equal(facts.model_file, "hift.safetensors");
    snprintf(path, sizeof path, "%s/hift.safetensors", hift_fixture_model(RECIPE_TINY));
    assert_ok(tensor_file_open(path, &f));
    assert_ok(tensor_file_sha256(f, hash));
    tensor_file_close(f);
    assert_string_equal(facts.model_sha256, hash);
    assert_non_null(strstr(facts.backend, "cpu"));
    assert_non_null(strstr(facts.backend, "vocoder f32"));
    assert_true(facts.weights_bytes > 300000 * 4); /* the tiny vocoder's filters */
    assert_true(facts.scratch_bytes == hift_model_scratch_bytes(&(hift_dims){64, 32}, 2000, 16, PRECISION_F32));
    hift_stage.close(stage);
}

static void test_fault_points(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){0});
    stage_result results[2];
    int32_t count;
    hift_fixture_job_init(&jobs_a[0], 1, 4, true);
    assert_ok(fault_arm("hift.accept=fail,hift.step=fail"));
    assert_err(CF_ERR_NOMEM, "hift.accept", hift_stage.accept(stage, &jobs_a[0].job));
    assert_int_equal(hift_stage.held(stage), 0);
    assert_ok(hift_stage.accept(stage, &jobs_a[0].job));
    assert_err(CF_ERR_DEVICE, "hift.step", hift_stage.step(stage, results, 2, &count));
    assert_ok(fault_arm(NULL));
    hift_stage.close(stage);
}

/* Files with the tiny model's tensors, changed on the way. Writes DIR/hift.safetensors. */
typedef enum file_change {
    SPELL_OLD,     /* weight_g and weight_v */
    SPELL_SHORT,   /* weight.original0 and weight.original1 */
    SPELL_PREFIX,  /* generator. in front, a discriminator beside */
    LOSE_TENSOR,   /* one is missing */
    ADD_TENSOR,    /* one too many */
    RESHAPE_TENSOR /* one of another shape */
} file_change;

static void replace(char *name, size_t bytes, const char *from, const char *to)
{
    char *at = strstr(name, from), tail[256];
    if (!at)
        return;
    snprintf(tail, sizeof tail, "%s", at + strlen(from));
    snprintf(at, bytes - (size_t)(at - name), "%s%s", to, tail);
}

static void respell(file_change change, const char *name, char *ret_name, size_t bytes)
{
    snprintf(ret_name, bytes, "%s%s", change == SPELL_PREFIX ? "generator." : "", name);
    if (change == SPELL_OLD) {
        replace(ret_name, bytes, "parametrizations.weight.original0", "weight_g");
        replace(ret_name, bytes, "parametrizations.weight.original1", "weight_v");
    } else if (change == SPELL_SHORT) {
        replace(ret_name, bytes, "parametrizations.weight.original", "weight.original");
    }
}

static const char *write_changed(file_change change)
{
    enum { TENSORS_MAX = 400, NAME_BYTES = 160 };
    static char names[TENSORS_MAX][NAME_BYTES], dir[IO_PATH_BYTES];
    static safetensors_item items[TENSORS_MAX];
    static const float one[18] = {1.0f};
    char path[IO_PATH_BYTES + 32];
    size_t count = 0;
    tensor_file *f = NULL;
    snprintf(path, sizeof path, "%s/hift.safetensors", hift_fixture_model(RECIPE_TINY));
    assert_ok(tensor_file_open(path, &f));
    assert_in_range(tensor_file_count(f), 1, TENSORS_MAX - 1);
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const tensor_entry *e = tensor_file_at(f, i);
        if (change == LOSE_TENSOR && strcmp(e->name, "resblocks.4.activations2.1.alpha") == 0)
            continue;
        respell(change, e->name, names[count], NAME_BYTES);
        items[count] = (safetensors_item){.name = names[count], .type = e->type, .rank = e->rank, .data = e->data};
        memcpy(items[count].shape, e->shape, sizeof e->shape);
        if (change == RESHAPE_TENSOR && strcmp(e->name, "conv_post.bias") == 0)
            items[count].shape[0] = 17;
        count++;
    }
    if (change == ADD_TENSOR || change == SPELL_PREFIX)
        items[count++] = (safetensors_item){.name = change == ADD_TENSOR ? "resblocks.9.bias" : "discriminator.x",
                                            .type = ENTRY_F32,
                                            .rank = 1,
                                            .shape = {18},
                                            .data = one};
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    snprintf(path, sizeof path, "%s/hift.safetensors", dir);
    assert_ok(safetensors_write(path, items, count, NULL, 0));
    tensor_file_close(f);
    return dir;
}

static void test_spellings_are_equal(void **state)
{
    (void)state;
    void *stage = hift_fixture_stage(&(hift_fixture_config){0});
    hift_fixture_job_init(&jobs_a[0], 5, 12, true);
    hift_fixture_run(stage, jobs_a, 1, NULL, 1);
    hift_stage.close(stage);
    for (file_change change = SPELL_OLD; change <= SPELL_PREFIX; change++) {
        stage = hift_fixture_stage(&(hift_fixture_config){.model_dir = write_changed(change)});
        hift_fixture_job_init(&jobs_b[0], 5, 12, true);
        hift_fixture_run(stage, jobs_b, 1, NULL, 1);
        hift_fixture_same(&jobs_a[0], &jobs_b[0]);
        hift_stage.close(stage);
    }
}

static void test_foreign_files(void **state)
{
    (void)state;
    stage_config cfg = {.device = "cpu", .rows_max = 1, .frames_max = 100};
    cfg.model_dir = write_changed(LOSE_TENSOR);
    assert_err(CF_ERR_NOTFOUND, "resblocks.4.activations2.1.alpha", open_with(&cfg));
    cfg.model_dir = write_changed(ADD_TENSOR);
    assert_err(CF_ERR_MISMATCH, "resblocks.9.bias", open_with(&cfg));
    cfg.model_dir = write_changed(RESHAPE_TENSOR);
    assert_err(CF_ERR_MISMATCH, "conv_post.bias", open_with(&cfg));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_is_alone),
        cmocka_unit_test(test_batch_is_alone_bf16),
        cmocka_unit_test(test_batch_is_alone_naive),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_reach),
        cmocka_unit_test(test_scratch_plan),
        cmocka_unit_test(test_packing),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_broken_mels),
        cmocka_unit_test(test_results_are_bounded),
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_facts),
        cmocka_unit_test(test_fault_points),
        cmocka_unit_test(test_spellings_are_equal),
        cmocka_unit_test(test_foreign_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
