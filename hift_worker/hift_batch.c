/*
 * hift_batch.c - lengths of a packed batch at every place of the vocoder. Compute thread; offsets lie in the step's
 * scratch.
 *
 * A call that is not the last computes f0 where all three look-ahead frames are real, conv_pre where all four of the
 * rest are, and drops the last frame of audio, which the next frame would still change:
 *
 *   mel M --(-3)--> f0, source, STFT          Nothing of the STFT is cut: the strided convolutions are asked for
 * fewer rows
 *     \---(-7)--> conv_pre .. conv_post       and never read beyond column 120 (M - 7).
 *             \--(-8)--> audio
 *
 * Fails: CF_ERR_NOMEM. Asserts lengths, which accept() has checked.
 * Source: cosy hifigan/generator.py CausalHiFTGenerator.inference, decode @ace7c47; hift.md 9.1.
 */
#include "hift_worker/hift_batch.h"

#include "common/base/check.h"

int32_t hift_span_f0_frames(hift_span s)
{
    return s.finalize ? s.frames : s.frames - HIFT_F0_LOOK;
}

static int32_t body_frames(hift_span s)
{
    return s.finalize ? s.frames : s.frames - HIFT_F0_LOOK - HIFT_PRE_LOOK;
}

int64_t hift_span_samples(hift_span s)
{
    return (int64_t)SAMPLES_PER_FRAME * (s.finalize ? s.frames : s.frames - HIFT_HELD_FRAMES);
}

/* Offsets of lengths scale * base(span) + extra. */
static cf_err scaled_rows(backend *be, const hift_span *spans, int32_t count, int32_t (*base)(hift_span),
                          const int32_t scale_extra[2], op_rows *ret_rows)
{
    int32_t lengths[HIFT_BATCH_ROWS_MAX];
    for (int32_t b = 0; b < count; b++)
        lengths[b] = base(spans[b]) * scale_extra[0] + scale_extra[1];
    return backend_rows(be, lengths, count, ret_rows);
}

static int32_t mel_frames(hift_span s)
{
    return s.frames;
}

static int32_t audio_samples(hift_span s)
{
    return (int32_t)hift_span_samples(s);
}

cf_err hift_batch_init(backend *be, const hift_span *spans, int32_t count, hift_batch *ret_batch)
{
    cf_err err;
    hift_batch b;
    int32_t rate = 1;
    CF_ASSERT(count >= 1 && count <= HIFT_BATCH_ROWS_MAX);
    for (int32_t i = 0; i < count; i++) {
        CF_ASSERT(spans[i].frames >= (spans[i].finalize ? HIFT_FRAMES_MIN : HIFT_FRAMES_MIN_OPEN));
        CF_ASSERT(spans[i].frames <= FRAMES_MAX);
    }
    TRY(scaled_rows(be, spans, count, mel_frames, (const int32_t[]){1, 0}, &b.mel));
    TRY(scaled_rows(be, spans, count, hift_span_f0_frames, (const int32_t[]){1, 0}, &b.f0));
    TRY(scaled_rows(be, spans, count, hift_span_f0_frames, (const int32_t[]){SAMPLES_PER_FRAME, 0}, &b.source));
    TRY(scaled_rows(be, spans, count, hift_span_f0_frames, (const int32_t[]){HIFT_LINES, 1}, &b.stft));
    TRY(scaled_rows(be, spans, count, body_frames, (const int32_t[]){1, 0}, &b.body));
    for (int i = 0; i < HIFT_RUNGS; i++) {
        rate *= HIFT_LADDER[i].rate;
        TRY(scaled_rows(be, spans, count, body_frames, (const int32_t[]){rate, 0}, &b.raised[i]));
    }
    TRY(scaled_rows(be, spans, count, body_frames, (const int32_t[]){HIFT_LINES, 1}, &b.lines));
    TRY(scaled_rows(be, spans, count, audio_samples, (const int32_t[]){1, 0}, &b.audio));
    *ret_batch = b;
out:
    return err;
}
