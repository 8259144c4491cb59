/*
 * test_flow_batch.c - the flow as a stage: a row's bytes whoever travels with it, streaming prefixes, speed, refusals,
 * cancellation, limits, and jobs that fail alone.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <string.h>

#include "common/base/fault.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "flow_worker/flow_stage.h"
#include "tests/parity/flow_fixture.h"
#include "tools/bench_stage.h"

#define JOBS 16

static flow_fixture_job *make_jobs(size_t count)
{
    flow_fixture_job *jobs;
    assert_ok(mem_alloc(count, sizeof *jobs, &jobs));
    for (size_t i = 0; i < count; i++)
        flow_fixture_job_init(&jobs[i], i);
    return jobs;
}

/* Runs every job with nobody beside it. */
static flow_fixture_job *run_alone(const flow_fixture_config *cfg, size_t count)
{
    void *stage = flow_fixture_stage(cfg);
    flow_fixture_job *jobs = make_jobs(count);
    for (size_t i = 0; i < count; i++)
        flow_fixture_run(stage, &jobs[i], 1, NULL, NULL);
    flow_stage.close(stage);
    return jobs;
}

static void assert_same_bytes(const flow_fixture_job *got, const flow_fixture_job *want, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(got[i].result.code, CF_OK);
        assert_int_equal((size_t)got[i].result.frames * MEL_BINS, flow_fixture_values(&want[i]));
        if (memcmp(got[i].out, want[i].out, flow_fixture_values(&want[i]) * sizeof(float)) != 0)
            fail_msg("job %zu: other bytes than alone", i);
    }
}

/* A row among fifteen others, shuffled and joining at different steps, on one thread and two: its bytes when alone. */
static void check_batches(precision operands, bool naive, size_t count)
{
    static const size_t order[JOBS] = {11, 3, 7, 0, 14, 9, 2, 15, 5, 12, 1, 8, 6, 13, 4, 10};
    static const size_t short_order[] = {2, 0, 3, 1};
    static const int join_steps[JOBS] = {0, 0, 1, 2, 2, 3, 5, 5, 5, 8, 9, 10, 11, 13, 17, 21};
    const flow_fixture_config two = {.operands = operands, .naive = naive, .threads = 2};
    const flow_fixture_config one = {.operands = operands, .naive = naive, .threads = 1, .frames_max = 700};
    flow_fixture_job *want = run_alone(&two, count), *got = make_jobs(count);
    void *stage = flow_fixture_stage(&two);
    flow_fixture_run(stage, got, count, NULL, NULL);
    assert_same_bytes(got, want, count);
    flow_stage.close(stage);
    memset(got[0].out, 0, sizeof got[0].out);
    stage = flow_fixture_stage(&one); /* 700 frames: some must wait for room */
    flow_fixture_run(stage, got, count, count == JOBS ? order : short_order, join_steps);
    assert_same_bytes(got, want, count);
    flow_stage.close(stage);
    mem_free(got);
    mem_free(want);
}

static void test_neighbours_f32(void **state)
{
    (void)state;
    check_batches(PRECISION_F32, false, JOBS);
}

static void test_neighbours_bf16(void **state)
{
    (void)state;
    check_batches(PRECISION_BF16, false, JOBS);
}

static void test_neighbours_naive(void **state)
{
    (void)state;
    check_batches(PRECISION_F32, true, 4);
}

/* Rows differ: the comparison above would see a mix-up. */
static void test_rows_differ(void **state)
{
    (void)state;
    const flow_fixture_config cfg = {0};
    flow_fixture_job *jobs = run_alone(&cfg, 2);
    assert_memory_not_equal(jobs[0].out, jobs[1].out, 80 * sizeof(float));
    mem_free(jobs);
}

/* Block-causal calls whose boundaries lie on blocks give the same frames, however far the call reads (flow.md 8.5). */
static void test_streaming_prefix(void **state)
{
    (void)state;
    const flow_fixture_config cfg = {0};
    void *stage = flow_fixture_stage(&cfg);
    flow_fixture_job *jobs = make_jobs(2);
    for (int i = 0; i < 2; i++) { /* 12 prompt tokens, then 13 or 38 with 3 behind: 50 and 100 frames in all */
        flow_fixture_job_init(&jobs[i], 4);
        jobs[i].job.job_id = (uint64_t)i;
        jobs[i].v.prompt_tokens = 12;
        jobs[i].job.voice = &jobs[i].v;
        jobs[i].job.tokens_count = (i == 0 ? 13 : 38) + 3;
        jobs[i].job.streaming = true;
        jobs[i].job.finalize = false;
    }
    flow_fixture_run(stage, jobs, 2, NULL, NULL);
    const test_diff d = test_compare(jobs[1].out, jobs[0].out, 26 * MEL_BINS);
    assert_int_equal(d.nonfinite, 0);
    assert_true(d.max_abs <= 1e-5);
    /* A boundary inside a block changes that block, so that the test above can fail. */
    jobs[0].job.tokens_count = 11 + 3;
    flow_fixture_run(stage, jobs, 1, NULL, NULL);
    assert_true(test_compare(jobs[1].out, jobs[0].out, 22 * MEL_BINS).max_abs > 1e-3);
    flow_stage.close(stage);
    mem_free(jobs);
}

/* One value of linear interpolation with half-pixel centres, in f64. */
static double lerp_at(const float *mel, int frames, int out_frames, int i, int bin)
{
    const double src = fmax(0, (i + 0.5) * frames / out_frames - 0.5);
    const int i0 = (int)src, i1 = i0 + 1 < frames ? i0 + 1 : frames - 1;
    const double w = src - i0;
    return (1 - w) * (double)mel[i0 * MEL_BINS + bin] + w * (double)mel[i1 * MEL_BINS + bin];
}

static void test_speed_resamples(void **state)
{
    (void)state;
    static const struct {
        double speed;
        int32_t frames;
    } rows[] = {{0.8, 100}, {1.3, 61}, {0.5, 160}, {2.0, 40}, {1.25, 64}};
    const flow_fixture_config cfg = {0};
    void *stage = flow_fixture_stage(&cfg);
    flow_fixture_job *jobs = make_jobs(2);
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        for (int i = 0; i < 2; i++) {
            flow_fixture_job_init(&jobs[i], 5);
            jobs[i].job.job_id = (uint64_t)i;
            jobs[i].job.tokens_count = 40;
            jobs[i].job.finalize = true;
            jobs[i].job.speed = i == 0 ? 1.0 : rows[r].speed;
        }
        flow_fixture_run(stage, jobs, 2, NULL, NULL);
        assert_int_equal(jobs[1].result.frames, rows[r].frames);
        assert_int_equal(stage_frames(40, rows[r].speed), rows[r].frames);
        for (int i = 0; i < rows[r].frames * MEL_BINS; i++) {
            const double want = lerp_at(jobs[0].out, 80, rows[r].frames, i / MEL_BINS, i % MEL_BINS);
            assert_true(fabs(want - (double)jobs[1].out[i]) <= 2e-4); /* f32 position of frame 80 times a slope of 20 */
        }
    }
    flow_stage.close(stage);
    mem_free(jobs);
}

static void test_refusals(void **state)
{
    (void)state;
    const flow_fixture_config cfg = {.rows_max = 2};
    void *stage = flow_fixture_stage(&cfg);
    static int32_t many[TOKENS_MAX + 1];
    flow_fixture_job j;
    flow_fixture_job_init(&j, 1);
    j.job.finalize = true;
    stage_job bad = j.job;
    bad.tokens_count = 0;
    assert_err(CF_ERR_INVALID, "at least 1 speech tokens, found 0", flow_stage.accept(stage, &bad));
    bad = j.job, bad.finalize = false, bad.tokens_count = 3;
    assert_err(CF_ERR_INVALID, "at least 4 speech tokens", flow_stage.accept(stage, &bad));
    bad = j.job, bad.speed = 0.49;
    assert_err(CF_ERR_INVALID, "speed 0.49, expected 0.5..2", flow_stage.accept(stage, &bad));
    bad = j.job, bad.speed = NAN;
    assert_err(CF_ERR_INVALID, "speed", flow_stage.accept(stage, &bad));
    bad = j.job, bad.speed = 1.5, bad.finalize = false;
    assert_err(CF_ERR_INVALID, "not final", flow_stage.accept(stage, &bad));
    bad = j.job, bad.out_bytes = flow_fixture_values(&j) * sizeof(float) - 1;
    assert_err(CF_ERR_INVALID, "output of", flow_stage.accept(stage, &bad));
    bad = j.job, bad.out = NULL;
    assert_err(CF_ERR_INVALID, "output of 0 bytes", flow_stage.accept(stage, &bad));
    bad = j.job, bad.tokens = many, bad.tokens_count = TOKENS_MAX + 1;
    assert_err(CF_ERR_LIMIT, "FRAMES_MAX", flow_stage.accept(stage, &bad));
    j.tokens[2] = SPEECH_CODES;
    assert_err(CF_ERR_INVALID, "speech token 2: id 6561", flow_stage.accept(stage, &j.job));
    j.tokens[2] = INT32_MIN; /* clamped to 0, as upstream does */
    j.prompt[1] = 6600;
    assert_err(CF_ERR_INVALID, "prompt token 1: id 6600", flow_stage.accept(stage, &j.job));
    j.prompt[1] = 0;
    assert_int_equal(flow_stage.held(stage), 0);
    assert_ok(flow_stage.accept(stage, &j.job));
    assert_err(CF_ERR_INVALID, "already held", flow_stage.accept(stage, &j.job));
    flow_stage.close(stage);
}

static void test_open_refuses(void **state)
{
    (void)state;
    void *stage = NULL;
    stage_config cfg = {
        .model_dir = flow_fixture_model(RECIPE_TINY, false), .device = "cpu", .rows_max = 0, .frames_max = 100};
    assert_err(CF_ERR_INVALID, "rows_max 0", flow_stage.open(&cfg, &stage));
    cfg.rows_max = 4, cfg.frames_max = 0;
    assert_err(CF_ERR_INVALID, "frames_max 0", flow_stage.open(&cfg, &stage));
    cfg.frames_max = 100, cfg.device = "cuda:0";
    assert_err(CF_ERR_UNSUPPORTED, "cuda:0", flow_stage.open(&cfg, &stage));
    cfg.device = "cpu", cfg.model_dir = "/nonexistent";
    assert_int_equal(flow_stage.open(&cfg, &stage), CF_ERR_NOTFOUND);
    assert_null(stage);
}

static void test_capacity(void **state)
{
    (void)state;
    const flow_fixture_config rows = {.rows_max = 2};
    void *stage = flow_fixture_stage(&rows);
    flow_fixture_job *jobs = make_jobs(3);
    assert_ok(flow_stage.accept(stage, &jobs[0].job));
    assert_ok(flow_stage.accept(stage, &jobs[1].job));
    assert_err(CF_ERR_BUSY, "rows_max", flow_stage.accept(stage, &jobs[2].job));
    flow_stage.close(stage);

    const flow_fixture_config frames = {.frames_max = 10}; /* every job is longer: each runs alone */
    stage = flow_fixture_stage(&frames);
    assert_ok(flow_stage.accept(stage, &jobs[0].job));
    assert_err(CF_ERR_BUSY, "frames_max", flow_stage.accept(stage, &jobs[1].job));
    flow_stage.cancel(stage, jobs[0].job.job_id);
    flow_fixture_run(stage, jobs, 3, NULL, NULL);
    flow_fixture_job *want = run_alone(&rows, 3);
    assert_same_bytes(jobs, want, 3);
    flow_stage.close(stage);
    mem_free(want);
    mem_free(jobs);
}

/* Jobs that leave in the middle take nobody with them: before encoding, between steps, and after the end. */
static void test_cancel(void **state)
{
    (void)state;
    const flow_fixture_config cfg = {0};
    void *stage = flow_fixture_stage(&cfg);
    flow_fixture_job *want = run_alone(&cfg, 4), *jobs = make_jobs(4);
    stage_result results[4];
    int32_t given = 0;
    for (int i = 0; i < 4; i++)
        assert_ok(flow_stage.accept(stage, &jobs[i].job));
    flow_stage.cancel(stage, 1);
    assert_ok(flow_stage.step(stage, results, 4, &given));
    assert_ok(flow_stage.step(stage, results, 4, &given));
    flow_stage.cancel(stage, 0);
    flow_stage.cancel(stage, 99); /* nobody's */
    assert_int_equal(flow_stage.held(stage), 2);
    for (int step = 2; step < 10; step++)
        assert_ok(flow_stage.step(stage, results, 0, &given));
    assert_int_equal(given, 0);
    assert_int_equal(flow_stage.held(stage), 2); /* ended, not yet returned */
    flow_stage.cancel(stage, 2);
    assert_ok(flow_stage.step(stage, results, 4, &given));
    assert_int_equal(given, 1);
    assert_int_equal(results[0].job_id, 3);
    assert_memory_equal(jobs[3].out, want[3].out, flow_fixture_values(&want[3]) * sizeof(float));
    assert_int_equal(flow_stage.held(stage), 0);
    flow_stage.close(stage);
    mem_free(jobs);
    mem_free(want);
}

/* A poisoned prompt fails its own job; the neighbour's bytes stay. */
static void test_nan_fails_alone(void **state)
{
    (void)state;
    const flow_fixture_config cfg = {0};
    void *stage = flow_fixture_stage(&cfg);
    flow_fixture_job *want = run_alone(&cfg, 3), *jobs = make_jobs(3);
    jobs[1].feat[7] = NAN;
    flow_fixture_run(stage, jobs, 3, NULL, NULL);
    assert_int_equal(jobs[1].result.code, CF_ERR_NUMERIC);
    assert_non_null(strstr(jobs[1].result.text, "NaN"));
    jobs[1] = want[1];
    assert_same_bytes(jobs, want, 3);
    flow_stage.close(stage);
    mem_free(jobs);
    mem_free(want);
}

static void test_fault_points(void **state)
{
    (void)state;
    const flow_fixture_config cfg = {0};
    void *stage = flow_fixture_stage(&cfg);
    flow_fixture_job *jobs = make_jobs(1);
    stage_result result;
    int32_t given;
    assert_ok(fault_arm("flow.accept=fail,flow.step#2=fail"));
    assert_err(CF_ERR_NOMEM, "flow.accept", flow_stage.accept(stage, &jobs[0].job));
    assert_ok(flow_stage.accept(stage, &jobs[0].job));
    assert_ok(flow_stage.step(stage, &result, 1, &given));
    assert_err(CF_ERR_DEVICE, "flow.step", flow_stage.step(stage, &result, 1, &given));
    assert_ok(fault_arm(NULL));
    flow_stage.close(stage);
    mem_free(jobs);
}

static void test_facts(void **state)
{
    (void)state;
    const flow_fixture_config cfg = {0};
    void *stage = flow_fixture_stage(&cfg);
    stage_facts facts;
    flow_stage.facts(stage, &facts);
    assert_string_equal(facts.model_file, "flow.safetensors");
    assert_int_equal(strlen(facts.model_sha256), 64);
    assert_true(facts.weights_bytes > 1000000 && facts.weights_bytes < 20000000);
    assert_true(facts.scratch_bytes > 0);
    assert_non_null(strstr(facts.backend, "cpu"));
    flow_stage.close(stage);
}

static char calls[64];
static size_t calls_count;

static void record_call(char call)
{
    if (calls_count + 1 < sizeof calls)
        calls[calls_count++] = call;
}

static cf_err recorded_accept(void *stage, const stage_job *job)
{
    record_call('a');
    return flow_stage.accept(stage, job);
}

static cf_err recorded_step(void *stage, stage_result *results, int32_t max, int32_t *ret_count)
{
    record_call('s');
    return flow_stage.step(stage, results, max, ret_count);
}

static void recorded_cancel(void *stage, uint64_t job_id)
{
    record_call('c');
    flow_stage.cancel(stage, job_id);
}

/* The first step is not among those that are timed; rows out of range are refused. */
static void test_bench_warms_up(void **state)
{
    (void)state;
    const bench_ceiling ceiling = {.gemm_gflops = 1};
    const stage_config cfg = {.model_dir = flow_fixture_model(RECIPE_TINY, false), .device = "cpu"};
    bench_rate rate;
    stage_ops ops = flow_stage;
    ops.accept = recorded_accept;
    ops.step = recorded_step;
    ops.cancel = recorded_cancel;
    assert_ok(bench_stage(&ops, &cfg, &(bench_stage_wish){2, 1, 4, false}, &ceiling, &rate));
    assert_string_equal(calls, "aasccaassssssssss");
    assert_int_equal(rate.rows, 2);
    assert_err(CF_ERR_LIMIT, "bench flow: 257 rows, expected 1..256",
               bench_stage(&ops, &cfg, &(bench_stage_wish){STAGE_ROWS_MAX + 1, 1, 4, false}, &ceiling, &rate));
}

/* What `cosyfarm bench flow` reports, on a voice of its own. */
static void test_bench(void **state)
{
    (void)state;
    const bench_ceiling ceiling = {.gemm_gflops = 1};
    stage_config cfg = {
        .model_dir = flow_fixture_model(RECIPE_TINY, false), .device = "cpu", .operands = PRECISION_BF16};
    bench_rate with, without;
    assert_ok(bench_stage(&flow_stage, &cfg, &(bench_stage_wish){2, 1, 40, true}, &ceiling, &with));
    assert_int_equal(with.rows, 2);
    assert_true(with.audio_s == 2 && with.seconds > 0 && with.snr_db > 29 && with.snr_db < 90);
    /* The share counts the prompt's frames: 40 tokens before 25. */
    assert_ok(bench_stage(&flow_stage, &cfg, &(bench_stage_wish){2, 1, 1, false}, &ceiling, &without));
    const double work = with.ceiling_share * with.seconds, less = without.ceiling_share * without.seconds;
    assert_true(fabs(work / less - 65.0 / 26.0) < 1e-9);
    cfg.operands = PRECISION_F32;
    assert_ok(bench_stage(&flow_stage, &cfg, &(bench_stage_wish){1, 1, 40, true}, &ceiling, &with));
    assert_true(isinf(with.snr_db)); /* against itself */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_neighbours_f32),
        cmocka_unit_test(test_neighbours_bf16),
        cmocka_unit_test(test_neighbours_naive),
        cmocka_unit_test(test_rows_differ),
        cmocka_unit_test(test_streaming_prefix),
        cmocka_unit_test(test_speed_resamples),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_capacity),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_nan_fails_alone),
        cmocka_unit_test(test_fault_points),
        cmocka_unit_test(test_facts),
        cmocka_unit_test(test_bench),
        cmocka_unit_test(test_bench_warms_up),
    };
    return cmocka_run_group_tests_name("flow_batch", tests, NULL, NULL);
}
