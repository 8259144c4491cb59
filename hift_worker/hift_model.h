/*
 * hift_model.h - the vocoder's weights on a backend: folded, packed, with the tables that depend on the model alone,
 * and the memory that a batch needs.
 */
#ifndef CF_HIFT_WORKER_HIFT_MODEL_H
#define CF_HIFT_WORKER_HIFT_MODEL_H

#include "common/base/io.h"
#include "common/base/sha256.h"
#include "common/compute/backend.h"
#include "common/model/stage_tables.h"
#include "hift_worker/hift_shapes.h"
#include "hift_worker/nsf_source.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A packed filter bank and its bias [c_out]; both live as long as the backend. */
typedef struct hift_conv {
    weight *w;
    tensor bias;
    int32_t kernel;
} hift_conv;

/* x += convs2(snake(convs1(snake(x)))), three times. */
typedef struct hift_block {
    hift_conv convs1[HIFT_PAIRS], convs2[HIFT_PAIRS];
    tensor alpha1[HIFT_PAIRS], alpha2[HIFT_PAIRS]; /* [C] */
} hift_block;

typedef struct hift_rung_weights {
    int64_t channels; /* C = B / 2, B / 4, B / 8 */
    hift_conv ups;    /* [rate C, 2 C, 3]: polyphase, see hift_shapes.h */
    hift_conv down;   /* [C, 18, down_kernel] */
    hift_block source_block;
    hift_block blocks[HIFT_BLOCKS];
} hift_rung_weights;

typedef struct hift_model {
    hift_dims dims;
    hift_conv f0_layers[HIFT_F0_LAYERS]; /* f64: [F, 80, 4], then [F, F, 3] */
    hift_conv f0_classifier;             /* f64: [1, F, 1] */
    nsf_source source;
    hift_conv pre; /* [B, 80, 5] */
    hift_rung_weights rungs[HIFT_RUNGS];
    hift_conv post; /* [18, B / 8, 7] */
} hift_model;

/*
 * Folds and packs everything. Operands of the convolutions are f32 or fp16 (hift.md 12: bf16 gives 35 dB where 45 are
 * asked); the F0 predictor is f64 in any case.
 * w may be closed afterwards. Errors name the tensor; tensors nobody needs are CF_ERR_MISMATCH.
 */
CF_MUST_CHECK cf_err hift_model_open(backend *be, weights *w, const hift_dims *dims, precision operands,
                                     hift_model **ret_model);
void hift_model_close(hift_model *m); /* NULL is fine; what lies on the backend dies with it */

/* What the vocoder's products multiply where f32 is not `wanted`. bf16 alone would give 35 dB (hift.md 12). */
precision hift_operands(const char *device, precision wanted);

/* Address space of backend_take that one step with `frames` packed frames in `rows` utterances needs. operands: of
 * hift_operands. */
size_t hift_model_scratch_bytes(const hift_dims *dims, int64_t frames, int64_t rows, precision operands);

/* A model directory's vocoder, ready to run on a backend of its own. */
typedef struct hift_engine {
    backend *be;              /* owned */
    hift_model *model;        /* owned */
    precision operands;       /* of the convolutions */
    char path[IO_PATH_BYTES]; /* the file it came from */
    char sha256[SHA256_HEX_BYTES];
} hift_engine;

typedef struct hift_engine_config {
    const char *model_dir, *device;
    precision operands; /* asked for: anything but f32 means fp16 on a device, pairs of bf16 on the CPU */
    bool naive;
    int threads;
    int64_t frames_max; /* packed frames of one step; scratch is reserved for them */
    int64_t rows_max;
} hift_engine_config;

/* CF_ERR_NOTFOUND, CF_ERR_MISMATCH, CF_ERR_UNSUPPORTED, ... say what is wrong with the directory, file or device. */
CF_MUST_CHECK cf_err hift_engine_open(const hift_engine_config *cfg, hift_engine *ret_engine);
void hift_engine_close(hift_engine *e); /* a zeroed engine is fine */

#ifdef __cplusplus
}
#endif
#endif
