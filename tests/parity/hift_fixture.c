/* hift_fixture.c - see hift_fixture.h. Fails: through cmocka. */
#include "tests/parity/hift_fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/rng.h"
#include "tests/harness/test.h"

#define RESULTS_MAX 64

const char *hift_fixture_model(recipe_size size)
{
    static char paths[2][IO_PATH_BYTES];
    assert_in_range(size, RECIPE_TINY, RECIPE_SMALL);
    char *path = paths[size];
    if (!path[0]) {
        const recipe r = {.size = size};
        char made[IO_PATH_BYTES];
        snprintf(made, sizeof made, "%s", test_temp_dir());
        assert_ok(recipe_make_dir(&r, RECIPE_SAFETENSORS, NULL, made));
        snprintf(path, IO_PATH_BYTES, "%s", made);
    }
    return path;
}

void *hift_fixture_stage(const hift_fixture_config *cfg)
{
    void *stage = NULL;
    const char *dir = cfg->model_dir ? cfg->model_dir : hift_fixture_model(RECIPE_TINY);
    assert_ok(hift_stage.open(&(stage_config){.model_dir = dir,
                                              .device = "cpu",
                                              .threads = cfg->threads,
                                              .operands = cfg->operands,
                                              .naive = cfg->naive,
                                              .rows_max = cfg->rows_max ? cfg->rows_max : 16,
                                              .frames_max = cfg->frames_max ? cfg->frames_max : 2000},
                              &stage));
    return stage;
}

void hift_fixture_job_init(hift_fixture_job *j, uint64_t seed, int32_t frames, bool finalize)
{
    assert_in_range(frames, 1, HIFT_FIXTURE_FRAMES_MAX);
    memset(j, 0, sizeof *j);
    for (uint32_t t = 0; t < (uint32_t)frames; t++)
        for (uint32_t c = 0; c < MEL_BINS; c++) {
            const float slow = sinf((float)(seed % 97) + 0.21f * (float)t + 0.07f * (float)c);
            j->mel[t * MEL_BINS + c] = -4.5f + 4.0f * slow + 5.0f * (rng_uniform(seed, 0, t, c) - 0.5f);
        }
    j->job = (stage_job){.job_id = seed,
                         .mel = j->mel,
                         .frames = frames,
                         .finalize = finalize,
                         .out = j->out,
                         .out_bytes = sizeof j->out};
}

static hift_fixture_job *job_of(hift_fixture_job *jobs, size_t count, uint64_t job_id)
{
    for (size_t i = 0; i < count; i++)
        if (jobs[i].job.job_id == job_id)
            return &jobs[i];
    fail_msg("result of job %llu, which nobody gave", (unsigned long long)job_id);
    return NULL;
}

int hift_fixture_run(void *stage, hift_fixture_job *jobs, size_t count, const size_t *order, int32_t results_max)
{
    size_t given = 0;
    int steps = 0;
    assert_in_range(results_max, 1, RESULTS_MAX);
    for (size_t i = 0; i < count; i++)
        jobs[i].ended = false;
    while (given < count || hift_stage.held(stage) > 0) {
        stage_result results[RESULTS_MAX];
        int32_t ended = 0;
        while (given < count) {
            const cf_err err = hift_stage.accept(stage, &jobs[order ? order[given] : given].job);
            if (err == CF_ERR_BUSY && hift_stage.held(stage) > 0)
                break;
            assert_ok(err);
            given++;
        }
        assert_ok(hift_stage.step(stage, results, results_max, &ended));
        assert_in_range(ended, 1, results_max);
        for (int32_t i = 0; i < ended; i++) {
            hift_fixture_job *j = job_of(jobs, count, results[i].job_id);
            assert_false(j->ended);
            j->ended = true;
            j->result = results[i];
        }
        steps++;
    }
    for (size_t i = 0; i < count; i++)
        assert_true(jobs[i].ended);
    return steps;
}

void hift_fixture_same(const hift_fixture_job *a, const hift_fixture_job *b)
{
    assert_int_equal(a->result.code, CF_OK);
    assert_int_equal(b->result.code, CF_OK);
    assert_true(a->result.samples == b->result.samples);
    for (int64_t n = 0; n < a->result.samples; n++)
        if (memcmp(&a->out[n], &b->out[n], sizeof a->out[n]) != 0)
            fail_msg("job %llu (%d frames): sample %lld is %.9g and %.9g", (unsigned long long)a->job.job_id,
                     a->job.frames, (long long)n, (double)a->out[n], (double)b->out[n]);
}
