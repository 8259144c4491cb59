/*
 * llm_engine_impl.h - the inside of an engine: what llm_engine.c owns and llm_forward.c computes with.
 */
#ifndef CF_LLM_WORKER_LLM_ENGINE_IMPL_H
#define CF_LLM_WORKER_LLM_ENGINE_IMPL_H

#include "llm_worker/llm_forward.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BUCKETS_MAX 9 /* 1, 2, 4, ..; the last may be cut to rows_max */
CF_STATIC_ASSERT((1 << (BUCKETS_MAX - 1)) >= JOBS_PER_MEMBER_MAX, "every count of rows has a bucket");

/* Memory of the host: what a call of prompts carries, and results that were fetched. */
typedef struct staging {
    float *x;            /* [LLM_PREFILL_ROWS_MAX, H] */
    int32_t *positions;  /* [LLM_PREFILL_ROWS_MAX] */
    int32_t *lengths;    /* [rows_max] rows of each sequence */
    int32_t *sequences;  /* [rows_max] cache sequence of each; of decoding too */
    int32_t *past;       /* [rows_max] */
    int32_t *pages;      /* [rows_max, LLM_PAGES_PER_SEQUENCE] at most; row pitch pages_max of the call */
    int32_t *head_rows;  /* [rows_max] packed rows whose logits are wanted */
    int32_t *head_slots; /* [rows_max] their slots */
    float *logits;       /* [rows_max, speech rows] */
    float *hidden;       /* [rows_max, H] */
} staging;

/* Results of the last call, kept on the backend. */
typedef struct results {
    tensor logits, hidden; /* [rows_max, speech rows], [rows_max, H] */
    tensor ids;            /* [rows_max] i32 */
    int32_t *drawn;        /* [rows_max]: ids on the host, the backend's memory */
    int32_t count;
} results;

struct llm_engine {
    backend *be;      /* owned */
    llm_model *model; /* owned */
    kv_cache *cache;  /* owned */
    llm_slots slots;  /* owned arrays */
    staging st;       /* owned arrays */
    results out;
    tensor speech;                        /* [speech rows, H]: the model's table, or the device's copy */
    backend_record *records[BUCKETS_MAX]; /* owned: decoding, by bucket */
    int32_t rows_max;
    uint64_t scratch_bytes;
};

#ifdef __cplusplus
}
#endif
#endif
