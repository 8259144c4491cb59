/*
 * hift_fixture.h - synthetic models made once per test program, and vocoder jobs of every length.
 */
#ifndef CF_TESTS_PARITY_HIFT_FIXTURE_H
#define CF_TESTS_PARITY_HIFT_FIXTURE_H

#include "common/model/recipe.h"
#include "common/worker/stage.h"

/* A model directory with seed 0, tiny or small, made on the first call and removed when the program ends. */
const char *hift_fixture_model(recipe_size size);

/* How a stage is opened; zero members: f32, fast backend, all threads, 16 rows, 2000 frames, the tiny model. */
typedef struct hift_fixture_config {
    const char *model_dir;
    precision operands;
    bool naive;
    int threads;
    int32_t rows_max, frames_max;
} hift_fixture_config;

/* Close with hift_stage.close. */
void *hift_fixture_stage(const hift_fixture_config *cfg);

#define HIFT_FIXTURE_FRAMES_MAX 96

/* One made-up job and its output. */
typedef struct hift_fixture_job {
    float mel[HIFT_FIXTURE_FRAMES_MAX * 80];
    float out[HIFT_FIXTURE_FRAMES_MAX * 480];
    stage_job job; /* points into the arrays above; id is the seed */
    stage_result result;
    bool ended;
} hift_fixture_job;

/* Fills *j from seed: a mel of slowly moving values between -11 and 2. Equal seeds agree in their common frames. */
void hift_fixture_job_init(hift_fixture_job *j, uint64_t seed, int32_t frames, bool finalize);

/* Accepts jobs[order[i]] (order NULL: as they lie), again and again while the stage is busy, and steps until all have
 * ended; at most results_max results a step. Returns how many steps it took. */
int hift_fixture_run(void *stage, hift_fixture_job *jobs, size_t count, const size_t *order, int32_t results_max);

/* Demands CF_OK and equal bytes of both outputs. */
void hift_fixture_same(const hift_fixture_job *a, const hift_fixture_job *b);

#endif
