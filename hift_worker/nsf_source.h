/*
 * nsf_source.h - the harmonic source: f0 in Hz -> excitation at 24 kHz, with upstream's fixed noise table.
 *
 * The nine noise values of a sample enter only as one dot product with the layer's weights, a constant of the model:
 * noise[n] = sum_h w[h] U[n, h]. It is made on demand, as far as the longest utterance seen needs it.
 */
#ifndef CF_HIFT_WORKER_NSF_SOURCE_H
#define CF_HIFT_WORKER_NSF_SOURCE_H

#include "common/base/rng.h"
#include "common/compute/backend.h"
#include "hift_worker/hift_shapes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nsf_source {
    tensor w;     /* [9] */
    tensor bias;  /* [1] */
    tensor noise; /* [7,200,000], of which the first ready_samples are made */
    int64_t ready_samples;
    double harmonics[HIFT_HARMONICS]; /* w once more, on the host */
    rng_mt mt;                        /* stands at draw 0 of sample ready_samples */
} nsf_source;

/* Takes memory for the table's address space from the backend, where it lives; makes nothing of it yet. w: [9] */
CF_MUST_CHECK cf_err nsf_source_init(backend *be, const float *w, float bias, nsf_source *ret_source);

/* Extends the table to at least `samples`, at most HIFT_NOISE_SAMPLES (asserted). The same bytes in any order of
 * calls. */
CF_MUST_CHECK cf_err nsf_source_prepare(nsf_source *s, backend *be, int64_t samples);

/* f0: [R] Hz, packed by rows   y: [480 R] f32, packed likewise. Phase and noise start anew with each sequence. */
CF_MUST_CHECK cf_err nsf_source_run(nsf_source *s, backend *be, const tensor *f0, const op_rows *rows, tensor *y);

#ifdef __cplusplus
}
#endif
#endif
