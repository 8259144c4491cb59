/* flow_fixture.c - see flow_fixture.h. Fails: through cmocka. */
#include "tests/parity/flow_fixture.h"

#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/rng.h"
#include "tests/harness/test.h"

const char *flow_fixture_model(recipe_size size, bool harsh)
{
    static char paths[2][2][IO_PATH_BYTES];
    assert_in_range(size, RECIPE_TINY, RECIPE_SMALL);
    char *path = paths[size][harsh];
    if (!path[0]) {
        const recipe r = {.size = size, .harsh = harsh};
        char made[IO_PATH_BYTES];
        snprintf(made, sizeof made, "%s", test_temp_dir());
        assert_ok(recipe_make_dir(&r, RECIPE_SAFETENSORS, NULL, made));
        snprintf(path, IO_PATH_BYTES, "%s", made);
    }
    return path;
}

void *flow_fixture_stage(const flow_fixture_config *cfg)
{
    void *stage = NULL;
    assert_ok(flow_stage.open(&(stage_config){.model_dir = flow_fixture_model(RECIPE_TINY, false),
                                              .device = "cpu",
                                              .operands = cfg->operands,
                                              .threads = cfg->threads,
                                              .naive = cfg->naive,
                                              .rows_max = cfg->rows_max ? cfg->rows_max : 16,
                                              .frames_max = cfg->frames_max ? cfg->frames_max : FRAMES_MAX},
                              &stage));
    return stage;
}

static int32_t pick(uint64_t seed, uint32_t list, uint32_t i, int32_t bound)
{
    return (int32_t)(rng_uniform(seed, list, i, 0) * (float)bound);
}

void flow_fixture_job_init(flow_fixture_job *j, uint64_t seed)
{
    memset(j, 0, sizeof *j);
    const int32_t prompt_tokens = seed % 4 == 3 ? 0 : 1 + pick(seed, 0, 0, FLOW_FIXTURE_PROMPT_MAX);
    for (uint32_t i = 0; i < FLOW_FIXTURE_PROMPT_MAX; i++)
        j->prompt[i] = pick(seed, 1, i, SPEECH_CODES);
    for (uint32_t i = 0; i < FLOW_FIXTURE_TOKENS_MAX; i++)
        j->tokens[i] = pick(seed, 2, i, SPEECH_CODES);
    for (uint32_t i = 0; i < sizeof j->feat / sizeof j->feat[0]; i++)
        j->feat[i] = -6.0f + 8.0f * (rng_uniform(seed, 3, i, 0) - 0.5f);
    for (uint32_t i = 0; i < SPEAKER_VALUES; i++)
        j->v.embedding[i] = 3.0f * (rng_uniform(seed, 4, i, 0) - 0.5f);
    j->v.prompt_tokens = (size_t)prompt_tokens;
    j->v.prompt_token = j->prompt;
    j->v.prompt_feat = j->feat;
    j->job = (stage_job){.job_id = seed,
                         .voice = seed % 8 == 7 ? NULL : &j->v,
                         .tokens = j->tokens,
                         .tokens_count = 4 + pick(seed, 0, 1, FLOW_FIXTURE_TOKENS_MAX - 3),
                         .speed = 1.0,
                         .streaming = pick(seed, 0, 2, 2) == 1,
                         .finalize = pick(seed, 0, 3, 2) == 1,
                         .out = j->out,
                         .out_bytes = sizeof j->out};
}

size_t flow_fixture_values(const flow_fixture_job *j)
{
    return (size_t)(2 * (j->job.tokens_count - (j->job.finalize ? 0 : 3))) * MEL_BINS;
}

static flow_fixture_job *job_of(flow_fixture_job *jobs, size_t count, uint64_t job_id)
{
    for (size_t i = 0; i < count; i++)
        if (jobs[i].job.job_id == job_id)
            return &jobs[i];
    fail_msg("result of job %llu, which nobody gave", (unsigned long long)job_id);
    return NULL;
}

static void take_results(void *stage, flow_fixture_job *jobs, size_t count)
{
    stage_result results[4]; /* fewer than may end at once: the stage keeps the rest */
    int32_t given;
    assert_ok(flow_stage.step(stage, results, 4, &given));
    for (int32_t i = 0; i < given; i++) {
        flow_fixture_job *j = job_of(jobs, count, results[i].job_id);
        assert_false(j->ended);
        j->ended = true;
        j->result = results[i];
    }
}

void flow_fixture_run(void *stage, flow_fixture_job *jobs, size_t count, const size_t *order, const int *join_steps)
{
    size_t given = 0;
    for (size_t i = 0; i < count; i++)
        jobs[i].ended = false;
    for (int step = 0; given < count || flow_stage.held(stage) > 0; step++) {
        assert_true(step < 100000);
        while (given < count && (join_steps == NULL || join_steps[given] <= step)) {
            const cf_err err = flow_stage.accept(stage, &jobs[order ? order[given] : given].job);
            if (err == CF_ERR_BUSY && flow_stage.held(stage) > 0)
                break;
            assert_ok(err);
            given++;
        }
        take_results(stage, jobs, count);
    }
    for (size_t i = 0; i < count; i++)
        assert_true(jobs[i].ended);
}
