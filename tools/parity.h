/*
 * parity.h - the frame of `cosyfarm parity`: cases in, comparisons out (cases.md). A stage supplies one adapter.
 *
 * The frame loads and groups cases, runs each alone and then all of one stage in one packed batch through the adapter,
 * demands equal bytes of the two, compares every emitted tensor with the case's expectation under the bound of its
 * table, and reports. The adapter knows the stage's inputs and the names and layouts of its tensors, nothing of bounds.
 */
#ifndef CF_TOOLS_PARITY_H
#define CF_TOOLS_PARITY_H

#include "common/base/io.h"
#include "common/compute/backend.h"
#include "common/model/safetensors.h"

typedef struct parity_options {
    const char *model_dir, *device;
    precision operands;
    bool int8_weights; /* llm */
    bool naive;
} parity_options;

typedef struct parity_case parity_case; /* one case file, owned by the frame */

const char *parity_case_path(const parity_case *c);
/* Metadata value or NULL. */
const char *parity_case_meta(const parity_case *c, const char *key);
/* An input tensor: CF_ERR_NOTFOUND, CF_ERR_MISMATCH (rank, type) name case and tensor. Borrowed pointers; dims[i] is
 * filled. */
CF_MUST_CHECK cf_err parity_case_f32(const parity_case *c, const char *name, int rank, int64_t *ret_dims,
                                     const float **ret_data);
/* i32, or i64 that fits (converted; owned by the case). */
CF_MUST_CHECK cf_err parity_case_i32(const parity_case *c, const char *name, int64_t *ret_count,
                                     const int32_t **ret_data);
bool parity_case_has(const parity_case *c, const char *name);
/* Name of the case's idx-th input tensor; NULL when it has no more. */
const char *parity_case_input(const parity_case *c, size_t idx);
/* ret_path = path of a file in the case's own folder. CF_ERR_LIMIT when it does not fit. */
CF_MUST_CHECK cf_err parity_case_beside(const parity_case *c, const char *file_name, char ret_path[IO_PATH_BYTES]);
/* The recording that a voice case names: beside the case, else in data/real below a folder above it, where a set of
 * cases keeps what is real. CF_ERR_NOTFOUND says where it should lie. */
CF_MUST_CHECK cf_err parity_case_recording(const parity_case *c, char ret_path[IO_PATH_BYTES]);

/* Where an adapter puts what it computed, in the layout of cases.md 2. Copies. */
typedef struct parity_sink parity_sink;
CF_MUST_CHECK cf_err parity_emit(parity_sink *sink, size_t case_idx, const char *name, int rank, const int64_t *dims,
                                 const float *data);
/* The same for whole numbers, [count]; each is below 2^24, so that it is exact as f32. */
CF_MUST_CHECK cf_err parity_emit_i32(parity_sink *sink, size_t case_idx, const char *name, int64_t count,
                                     const int32_t *data);

typedef struct parity_stage {
    const char *stage; /* metadata `stage` it serves */
    cf_err (*open)(const parity_options *opt, void **ret_ctx);
    /* Runs cases[0..count) as one packed batch through the stage's own forward code. */
    cf_err (*run)(void *ctx, const parity_case *const *cases, size_t count, parity_sink *sink);
    /* In the place of run, where cases are never packed (recordings): one after another is all the batch there is. */
    cf_err (*run_one)(void *ctx, const parity_case *c, size_t case_idx, parity_sink *sink);
    void (*close)(void *ctx);
} parity_stage;

extern const parity_stage parity_llm, parity_flow, parity_hift; /* tools/parity_<stage>.c */
extern const parity_stage parity_stream, parity_speed;          /* tools/parity_stream.c: flow and hift chained */
extern const parity_stage parity_voice, parity_enroll;          /* tools/parity_voice.c, parity_enroll.c */

#endif
