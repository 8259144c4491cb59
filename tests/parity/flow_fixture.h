/*
 * flow_fixture.h - synthetic models made once per test program, and flow jobs of every length, mode and prompt.
 */
#ifndef CF_TESTS_PARITY_FLOW_FIXTURE_H
#define CF_TESTS_PARITY_FLOW_FIXTURE_H

#include "common/model/recipe.h"
#include "common/worker/stage.h"

/* A model directory with seed 0, tiny or small, made on the first call and removed when the program ends. */
const char *flow_fixture_model(recipe_size size, bool harsh);

/* How a stage is opened; zero members: f32, fast backend, all threads, 16 rows, 15000 frames. */
typedef struct flow_fixture_config {
    precision operands;
    bool naive;
    int threads;
    int32_t rows_max, frames_max;
} flow_fixture_config;

/* A stage over the tiny model. Close with flow_stage.close. */
void *flow_fixture_stage(const flow_fixture_config *cfg);

#define FLOW_FIXTURE_PROMPT_MAX 40
#define FLOW_FIXTURE_TOKENS_MAX 48

/* One made-up job and its output. */
typedef struct flow_fixture_job {
    voice v;
    int32_t prompt[FLOW_FIXTURE_PROMPT_MAX], tokens[FLOW_FIXTURE_TOKENS_MAX];
    float feat[FLOW_FIXTURE_PROMPT_MAX * 2 * 80];
    float out[FLOW_FIXTURE_TOKENS_MAX * 2 * 2 * 80]; /* room for half speed */
    stage_job job;                                   /* points into the arrays above; id is the seed */
    stage_result result;
    bool ended;
} flow_fixture_job;

/* Fills *j from seed: lengths, ids, prompt (one in four has none), streaming, finalize; speed is 1. */
void flow_fixture_job_init(flow_fixture_job *j, uint64_t seed);

/* The mel values that j must have written. */
size_t flow_fixture_values(const flow_fixture_job *j);

/* Accepts jobs[order[i]] before step join_steps[i] (ascending; NULL: all at once; order NULL: as they lie), again and
 * again while the stage is busy, and steps until all have ended. Results go to the jobs. */
void flow_fixture_run(void *stage, flow_fixture_job *jobs, size_t count, const size_t *order, const int *join_steps);

#endif
