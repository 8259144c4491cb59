/*
 * ops_enroll.c - fast variant: the depthwise memory of the token encoder, rows spread over the pool. A row's sums run
 * over its taps in one order. Owns nothing. Fails: never. Source: the citation in ops.h.
 */
#include <string.h>

#include "common/compute/cpu/cpu_impl.h"

#define CHUNK_CHANNELS 256 /* sums of a piece of a row, on the stack */

static void fsmn_piece(const cpu_state *cpu, const op_fsmn_args *a, int32_t b, int64_t r, int64_t first_channel,
                       int64_t channels)
{
    const int64_t taps = a->w->dims[0], width = a->x->dims[1];
    const int64_t begin = a->rows->offs[b], end = a->rows->offs[b + 1];
    const float *x = tensor_f32(a->x) + a->first_channel + first_channel;
    const float *w = tensor_f32(a->w) + first_channel;
    const float *one = x + r * width;
    float *y = tensor_f32(a->y) + r * a->y->dims[1] + first_channel;
    float sum[CHUNK_CHANNELS];

    memset(sum, 0, sizeof sum);
    for (int64_t k = 0; k < taps; k++) {
        const int64_t at = r + k - taps / 2;
        if (at >= begin && at < end)
            cpu->vec->gate_add(w + k * a->y->dims[1], x + at * width, channels, sum);
    }
    cpu->vec->add(sum, one, channels, sum);
    cpu->vec->add(y, sum, channels, y);
}

static void fsmn_rows(const cpu_state *cpu, const void *args, int64_t first, int64_t count)
{
    const op_fsmn_args *a = args;
    const int64_t channels = a->y->dims[1];
    int32_t b = rows_find(a->rows, first);

    for (int64_t r = first; r < first + count; r++) {
        while (r >= a->rows->offs[b + 1])
            b++;
        for (int64_t c = 0; c < channels; c += CHUNK_CHANNELS)
            fsmn_piece(cpu, a, b, r, c, channels - c < CHUNK_CHANNELS ? channels - c : CHUNK_CHANNELS);
    }
}

cf_err fast_fsmn(backend *be, const op_fsmn_args *a)
{
    cpu_run_rows(be, a->x->dims[0], a->y->dims[1] * a->w->dims[0], fsmn_rows, a);
    return CF_OK;
}
