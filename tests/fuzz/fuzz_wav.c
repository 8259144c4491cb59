/* fuzz_wav.c - recordings come from strangers: decode one, and check what is promised of it. */
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "enroll/audio_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    recording r;
    if (recording_parse("fuzz", data, data_bytes, &r) != CF_OK)
        return 0;
    CF_ASSERT(r.rate_hz >= RECORDING_RATE_HZ_MIN && r.rate_hz <= RECORDING_RATE_HZ_MAX);
    CF_ASSERT(r.channels >= 1 && r.channels <= RECORDING_CHANNELS_MAX);
    CF_ASSERT(r.sample_count >= 0 && r.sample_count <= (int64_t)RECORDING_SECONDS_MAX * r.rate_hz);
    for (int64_t i = 0; i < r.sample_count; i++)
        CF_ASSERT(isfinite(r.samples[i]) && fabsf(r.samples[i]) <= RECORDING_PEAK_MAX);
    CF_ASSERT(r.clipped_runs >= 0 && strlen(r.sha256) == 64);
    recording_done(&r);
    return 0;
}
