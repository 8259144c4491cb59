/*
 * audio_read.c - the second door to libsndfile: the orchestrator writes audio, this reads it. One thread; a recording
 * owns its samples.
 *
 * Fails: see audio_read.h; every text begins with the path.
 * Source: cosy cosyvoice/utils/file_utils.py load_wav @ace7c47 (mean over channels in f32, rate at least 16000).
 */
#include "enroll/audio_read.h"

#include <math.h>
#include <sndfile.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"

#define CHUNK_FRAMES 4096

/* A file in memory, for libsndfile: decoder and hash see the same bytes whatever happens to the file. */
typedef struct memory_file {
    const unsigned char *data; /* borrowed */
    sf_count_t bytes, at;
    sf_count_t patch_off; /* where four bytes read as `patch` instead; -1: nowhere */
    unsigned char patch[4];
} memory_file;

static sf_count_t file_length(void *user)
{
    return ((memory_file *)user)->bytes;
}

static sf_count_t file_seek(sf_count_t off, int whence, void *user)
{
    memory_file *f = user;
    const sf_count_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? f->at : f->bytes;
    if (off < -from || off > f->bytes - from)
        return -1;
    f->at = from + off;
    return f->at;
}

static sf_count_t file_read(void *ptr, sf_count_t count, void *user)
{
    memory_file *f = user;
    const sf_count_t left = f->bytes - f->at, taken = count < left ? count : left;
    if (taken <= 0)
        return 0;
    memcpy(ptr, f->data + f->at, (size_t)taken);
    for (int i = 0; i < 4; i++) {
        const sf_count_t off = f->patch_off + i - f->at;
        if (f->patch_off >= 0 && off >= 0 && off < taken)
            ((unsigned char *)ptr)[off] = f->patch[i];
    }
    f->at += taken;
    return taken;
}

static sf_count_t file_write(const void *ptr, sf_count_t count, void *user)
{
    (void)ptr;
    (void)count;
    (void)user;
    return 0;
}

static sf_count_t file_tell(void *user)
{
    return ((memory_file *)user)->at;
}

static uint32_t read_u32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* A wave file that was written to a pipe, or whose writer died, has a data chunk of size zero with samples behind it:
 * it then reads as reaching to the end. libsndfile mends other forms of this by itself. */
static void mend_data_size(memory_file *f)
{
    sf_count_t at = 12;
    f->patch_off = -1;
    if (f->bytes < 12 || memcmp(f->data, "RIFF", 4) != 0 || memcmp(f->data + 8, "WAVE", 4) != 0)
        return;
    while (f->bytes - at >= 8) {
        const uint32_t size_bytes = read_u32(f->data + at + 4);
        const sf_count_t left = f->bytes - at - 8;
        if (memcmp(f->data + at, "data", 4) == 0) {
            if (size_bytes == 0 && left > 0) {
                f->patch_off = at + 4;
                for (int i = 0; i < 4; i++)
                    f->patch[i] = (unsigned char)((uint64_t)left >> (8 * i));
            }
            return;
        }
        at += 8 + (sf_count_t)size_bytes + (size_bytes & 1);
    }
}

static cf_err check_format(const char *path, const SF_INFO *info)
{
    if (info->samplerate < RECORDING_RATE_HZ_MIN)
        return err_set(CF_ERR_UNSUPPORTED, "%s: %d Hz, expected at least %d Hz", path, info->samplerate,
                       RECORDING_RATE_HZ_MIN);
    if (info->samplerate > RECORDING_RATE_HZ_MAX)
        return err_set(CF_ERR_LIMIT, "%s: %d Hz, at most %d Hz are read", path, info->samplerate,
                       RECORDING_RATE_HZ_MAX);
    if (info->channels < 1 || info->channels > RECORDING_CHANNELS_MAX)
        return err_set(CF_ERR_LIMIT, "%s: %d channels, expected 1 to %d", path, info->channels, RECORDING_CHANNELS_MAX);
    if (info->frames > (sf_count_t)RECORDING_SECONDS_MAX * info->samplerate)
        return err_set(CF_ERR_LIMIT, "%s: %.1f s, a voice is made from at most %d s", path,
                       (double)info->frames / info->samplerate, RECORDING_SECONDS_MAX);
    return CF_OK;
}

/* What one chunk adds to the recording. run: samples at full scale up to here, per channel. */
static cf_err take_chunk(const char *path, const float *chunk, sf_count_t frames, recording *r, int64_t *run)
{
    for (sf_count_t t = 0; t < frames; t++) {
        float sum = 0.0f;
        for (int32_t c = 0; c < r->channels; c++) {
            const float x = chunk[t * r->channels + c], level = fabsf(x);
            if (!isfinite(x) || level > RECORDING_PEAK_MAX)
                return err_set(CF_ERR_NUMERIC, "%s: sample %lld is %g, expected at most %g of full scale", path,
                               (long long)(r->sample_count + t), (double)x, (double)RECORDING_PEAK_MAX);
            sum += x;
            r->peak = level > r->peak ? level : r->peak;
            run[c] = level >= CLIPPED_LEVEL ? run[c] + 1 : 0;
            r->clipped_runs += run[c] == CLIPPED_SAMPLES_MIN;
        }
        r->samples[r->sample_count + t] = r->channels == 1 ? sum : sum / (float)r->channels;
    }
    r->sample_count += frames;
    return CF_OK;
}

static cf_err read_samples(const char *path, SNDFILE *file, const SF_INFO *info, recording *r)
{
    cf_err err = CF_OK;
    float *chunk = NULL;
    int64_t run[RECORDING_CHANNELS_MAX] = {0};
    double squares = 0.0;

    TRY(mem_alloc((size_t)info->frames, sizeof *r->samples, &r->samples));
    TRY(mem_alloc((size_t)CHUNK_FRAMES * (size_t)info->channels, sizeof *chunk, &chunk));
    while (r->sample_count < info->frames) {
        const sf_count_t left = info->frames - r->sample_count;
        const sf_count_t got = sf_readf_float(file, chunk, left < CHUNK_FRAMES ? left : CHUNK_FRAMES);
        if (got <= 0)
            FAIL(CF_ERR_CORRUPT, "%s: ends after %lld of %lld samples%s%s", path, (long long)r->sample_count,
                 (long long)info->frames, sf_error(file) ? ": " : "", sf_error(file) ? sf_strerror(file) : "");
        TRY(take_chunk(path, chunk, got, r, run));
    }
    for (int64_t i = 0; i < r->sample_count; i++)
        squares += (double)r->samples[i] * (double)r->samples[i];
    r->rms = r->sample_count > 0 ? sqrt(squares / (double)r->sample_count) : 0.0;
    r->seconds = (double)r->sample_count / r->rate_hz;
out:
    mem_free(chunk);
    return err;
}

cf_err recording_parse(const char *name, const void *data, size_t data_bytes, recording *ret_recording)
{
    cf_err err;
    SF_VIRTUAL_IO io = {file_length, file_seek, file_read, file_write, file_tell};
    memory_file memory = {.data = data, .bytes = (sf_count_t)data_bytes};
    SF_INFO info = {0};
    SNDFILE *file = NULL;
    recording r = {0};

    if (data_bytes == 0)
        FAIL(CF_ERR_CORRUPT, "%s: an empty file", name);
    TRY(sha256_of(data, data_bytes, r.sha256));
    mend_data_size(&memory);
    file = sf_open_virtual(&io, SFM_READ, &info, &memory);
    if (!file)
        FAIL(CF_ERR_UNSUPPORTED, "%s: not readable as audio: %s", name, sf_strerror(NULL));
    TRY(check_format(name, &info));
    r.rate_hz = info.samplerate;
    r.channels = info.channels;
    TRY(read_samples(name, file, &info, &r));
    *ret_recording = r;
    r = (recording){0};
out:
    if (file)
        sf_close(file);
    recording_done(&r);
    return err;
}

cf_err recording_read(const char *path, recording *ret_recording)
{
    cf_err err;
    char *data = NULL;
    size_t data_bytes = 0;

    if (!io_exists(path))
        FAIL(CF_ERR_NOTFOUND, "%s: no such recording", path);
    TRY(io_read_file(path, RECORDING_BYTES_MAX, &data, &data_bytes));
    TRY(recording_parse(path, data, data_bytes, ret_recording));
out:
    mem_free(data);
    return err;
}

void recording_done(recording *r)
{
    mem_free(r->samples);
    *r = (recording){0};
}
