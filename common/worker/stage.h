/*
 * stage.h - what a stage is to the worker loop that runs it: five functions and a description.
 *
 * All five are called by one thread, the compute thread. A stage holds any number of accepted jobs up to its capacity
 * and advances all of them together in step(): the LLM by one token, Flow by one solver step, HiFT by whole
 * utterances.
 * Jobs join and leave between steps; the bytes of a job never depend on its neighbours.
 */
#ifndef CF_WORKER_STAGE_H
#define CF_WORKER_STAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/base/sha256.h"
#include "common/compute/backend.h"
#include "common/model/voice.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum stage_kind { STAGE_LLM, STAGE_FLOW, STAGE_HIFT, STAGE_COUNT } stage_kind;

const char *stage_name(stage_kind kind); /* "llm", "flow", "hift" */

/* Of the configuration's word: f32, bf16, fp16, or int8, which is bf16 with the LLM's weights in int8; anything else is
 * f32. */
precision stage_precision(const char *word);
bool stage_int8_weights(const char *word);

typedef struct stage_config {
    const char *model_dir;
    const char *voice_store; /* folder of voices made from recordings; NULL: none */
    const char *device;
    precision operands;
    bool int8_weights; /* llm: matrices in int8, one scale for each output channel; operands are bf16 then */
    int threads;
    bool naive;        /* the reference backend */
    bool base_weights; /* llm: take llm.pt although llm.rl.pt exists */
    int32_t rows_max;  /* jobs held at once */
    int32_t
        frames_max;   /* flow, hift: mel frames (prompt included) packed in one step; a longer single job runs alone */
    bool strict_head; /* llm: mask id 6561 alone below the minimum length, as upstream's HEAD does (llm.md 6.3) */
} stage_config;

/* Facts for HELLO, the READY line and run records. */
typedef struct stage_facts {
    char model_file[256];
    char model_sha256[SHA256_HEX_BYTES];
    char backend[128];      /* backend_describe */
    uint64_t weights_bytes; /* packed */
    uint64_t kept_bytes;    /* those, tables and caches */
    uint64_t scratch_bytes; /* planned at capacity */
    uint64_t step_bytes;    /* llm: of weights that one decode step reads; 0 elsewhere */
    int32_t speech_codes;   /* llm, flow: of the model's speech vocabulary; hift 0 */
} stage_facts;

/* Memory of the device that a worker of this configuration takes: planned, not measured. */
typedef struct stage_memory {
    uint64_t weights_bytes, tables_bytes; /* kept: matrices; vectors, tables of the model, caches */
    uint64_t scratch_bytes;               /* of a step at capacity */
    uint64_t library_bytes;               /* what a device's libraries and allocator take besides; 0 on a CPU */
} stage_memory;

/* One unit of work. Pointers are borrowed from accept() until the job's result or cancel(). */
typedef struct stage_job {
    uint64_t job_id;
    const voice *voice; /* NULL: no prompt, no speaker (zeros) */

    /* llm */
    const int32_t *text, *prompt_text; /* token ids */
    int32_t text_tokens, prompt_text_tokens;
    bool prompt_speech; /* give the voice's speech tokens to the LLM (zero-shot) */
    uint64_t seed;
    uint32_t segment_idx;
    int32_t end_of_prompt_id; /* text id of <|endofprompt|>, which must be in prompt_text or text (llm.md 4.2); > 0 */

    /* flow */
    const int32_t *tokens; /* speech tokens to render */
    int32_t tokens_count;
    double speed;   /* 0.5 .. 2, applied to the generated mel */
    bool streaming; /* block-causal attention */
    bool finalize;  /* false: the last 3 tokens are look-ahead only (flow), the last frames likewise (hift) */

    /* hift: mel [frames, 80] f32, time-major */
    const float *mel;
    int32_t frames;
    bool mel_on_device; /* an address that the stage's device reads and the host does not */

    /* flow writes mel [frames, 80] f32 here, hift samples f32; the llm returns tokens in the result */
    void *out;
    size_t out_bytes;
    bool out_on_device; /* flow alone */
} stage_job;

typedef struct stage_result {
    uint64_t job_id;
    cf_err code;           /* CF_OK or why this job failed; others go on */
    char text[256];        /* the error's text */
    const int32_t *tokens; /* llm: after the silence filter; owned by the stage until the next call */
    int32_t tokens_count;
    bool stopped;        /* llm: a stop id ended it; false: the length limit did */
    bool capped;         /* llm: that limit was TOKENS_MAX less the voice's prompt, not 20 tokens per text token */
    int32_t frames;      /* flow */
    int64_t samples;     /* hift */
    uint64_t compute_us; /* time spent in steps that carried this job, divided among the rows they carried */
} stage_result;

typedef struct stage_ops {
    stage_kind kind;
    cf_err (*plan)(const stage_config *cfg, stage_memory *ret_memory); /* reads shapes alone */
    cf_err (*open)(const stage_config *cfg, void **ret_stage);
    void (*facts)(void *stage, stage_facts *ret_facts);
    /* CF_ERR_BUSY: no room now. CF_ERR_INVALID, CF_ERR_LIMIT: this job can never run; the text says why. */
    cf_err (*accept)(void *stage, const stage_job *job);
    /* Advances every held job once and returns those that ended, at most `max` (a stage keeps the rest for the next
     * call). An error return means the stage itself is unusable and the process must exit. */
    cf_err (*step)(void *stage, stage_result *results, int32_t max, int32_t *ret_count);
    void (*cancel)(void *stage, uint64_t job_id);  /* unknown ids are fine */
    int32_t (*held)(void *stage);                  /* jobs accepted and not yet returned */
    void (*close)(void *stage);                    /* NULL is fine */
    backend_record_counts (*records)(void *stage); /* of its backend; NULL: a stage that records no work */
} stage_ops;

extern const stage_ops llm_stage, flow_stage, hift_stage; /* each defined in its worker's folder */

/* Mel frames that one step of flow or hift computes on a host, the oldest jobs first and at least one. More together
 * are no faster, or slower where they leave the caches, and all of them end late. */
#define STAGE_HOST_FRAMES 512

/* Samples that hift makes of `frames` (finalize), frames that flow makes of `tokens` at `speed`. */
static inline int64_t stage_samples(int32_t frames)
{
    return (int64_t)frames * 480;
}

static inline int32_t stage_frames(int32_t tokens, double speed)
{
    return (int32_t)((double)(tokens * 2) / speed);
}

#ifdef __cplusplus
}
#endif
#endif
