/*
 * audio_file.c - the only file that includes sndfile.h. Encodes into memory through virtual I/O, so that the file
 * appears by one atomic rename. Runs in the writer thread and in the command. Owns nothing between calls.
 * Fails: CF_ERR_UNSUPPORTED, CF_ERR_NOMEM, CF_ERR_SYS with libsndfile's words.
 */
#include "orchestrator/audio_file.h"

#include <sndfile.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

typedef struct audio_format {
    const char *name, *extension;
    int type; /* libsndfile's */
} audio_format;

/* SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III by number: enumerators that libsndfile has since 1.1, and knows no format
 * for before. */
#define FORMAT_MP3 0x230082

#define BLOCK_SAMPLES 4096

#define OGG_SERIAL     0x63666f67u
#define OGG_HEADER     27u /* bytes of a page in front of its segment table */
#define OGG_SERIAL_OFF 14u
#define OGG_CRC_OFF    22u
#define OGG_POLYNOMIAL 0x04C11DB7u

static const audio_format formats[] = {
    {"wav", "wav", SF_FORMAT_WAV | SF_FORMAT_PCM_16},
    {"wav-float", "wav", SF_FORMAT_WAV | SF_FORMAT_FLOAT},
    {"flac", "flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_16},
    {"ogg", "ogg", SF_FORMAT_OGG | SF_FORMAT_VORBIS},
    {"mp3", "mp3", FORMAT_MP3},
};

static const audio_format *find_format(const char *name)
{
    for (size_t i = 0; i < CF_COUNT(formats); i++)
        if (strcmp(formats[i].name, name) == 0)
            return &formats[i];
    return NULL;
}

static SF_INFO info_of(const audio_format *f)
{
    return (SF_INFO){.samplerate = SAMPLE_RATE_HZ, .channels = 1, .format = f->type};
}

cf_err audio_format_check(const char *format)
{
    const audio_format *f = find_format(format);
    if (!f)
        return err_set(CF_ERR_UNSUPPORTED, "audio format \"%s\": expected wav, wav-float, flac, ogg or mp3", format);
    SF_INFO info = info_of(f);
    if (!sf_format_check(&info))
        return err_set(CF_ERR_UNSUPPORTED, "audio format \"%s\": this libsndfile (%s) cannot write it", format,
                       sf_version_string());
    return CF_OK;
}

cf_err audio_format_of_path(const char *path, bool float_samples, const char **ret_format)
{
    const char *dot = strrchr(path, '.');
    if (!dot || strchr(dot, '/'))
        return err_set(CF_ERR_UNSUPPORTED, "%s: no extension; expected .wav, .flac, .ogg or .mp3", path);
    if (float_samples && strcmp(dot + 1, "wav") != 0)
        return err_set(CF_ERR_UNSUPPORTED, "%s: float samples need .wav", path);
    for (size_t i = 0; i < CF_COUNT(formats); i++)
        if (strcmp(dot + 1, formats[i].extension) == 0 &&
            float_samples == (strcmp(formats[i].name, "wav-float") == 0)) {
            *ret_format = formats[i].name;
            return audio_format_check(formats[i].name);
        }
    return err_set(CF_ERR_UNSUPPORTED, "%s: expected .wav, .flac, .ogg or .mp3", path);
}

/* A growing file in memory. */
typedef struct memory_file {
    unsigned char *data; /* owned */
    sf_count_t bytes, capacity, at;
    bool failed;
} memory_file;

static sf_count_t file_length(void *user)
{
    return ((memory_file *)user)->bytes;
}

static sf_count_t file_seek(sf_count_t off, int whence, void *user)
{
    memory_file *f = user;
    f->at = whence == SEEK_SET ? off : whence == SEEK_CUR ? f->at + off : f->bytes + off;
    return f->at;
}

static sf_count_t file_read(void *ptr, sf_count_t count, void *user)
{
    memory_file *f = user;
    const sf_count_t left = f->bytes - f->at, n = count < left ? count : left > 0 ? left : 0;
    memcpy(ptr, f->data + f->at, (size_t)n);
    f->at += n;
    return n;
}

/* Makes room for `end` bytes; marks the file when there is none. */
static bool reserve(memory_file *f, sf_count_t end)
{
    const sf_count_t capacity = end > 2 * f->capacity ? end : 2 * f->capacity;
    if (end <= f->capacity || f->failed)
        return !f->failed;
    f->failed = mem_resize(&f->data, (size_t)capacity, 1) != CF_OK;
    f->capacity = f->failed ? f->capacity : capacity;
    return !f->failed;
}

/* Without memory the encoder writes on into nothing: libsndfile does not release its own when a write fails. */
static sf_count_t file_write(const void *ptr, sf_count_t count, void *user)
{
    memory_file *f = user;
    const sf_count_t end = f->at + count;
    if (!reserve(f, end)) {
        f->at = end;
        return count;
    }
    if (f->at > f->bytes)
        memset(f->data + f->bytes, 0, (size_t)(f->at - f->bytes));
    memcpy(f->data + f->at, ptr, (size_t)count);
    f->at = end;
    if (end > f->bytes)
        f->bytes = end;
    return count;
}

static sf_count_t file_tell(void *user)
{
    return ((memory_file *)user)->at;
}

static cf_err write_block(SNDFILE *snd, const float *block, sf_count_t count)
{
    return sf_write_float(snd, block, count) == count ? CF_OK : err_set(CF_ERR_SYS, "libsndfile: %s", sf_strerror(snd));
}

/* In blocks of one size, wherever the pieces end: encoders that look ahead decide by what they are given at once. */
static cf_err write_pieces(SNDFILE *snd, const audio_piece *pieces, size_t count)
{
    cf_err err;
    float block[BLOCK_SAMPLES];
    int64_t filled = 0;
    for (size_t i = 0; i < count; i++)
        for (int64_t done = 0; done < pieces[i].count;) {
            const int64_t left = pieces[i].count - done, room = BLOCK_SAMPLES - filled, n = left < room ? left : room;
            memcpy(block + filled, pieces[i].samples + done, (size_t)n * sizeof *block);
            done += n;
            filled += n;
            if (filled < BLOCK_SAMPLES)
                continue;
            TRY(write_block(snd, block, filled));
            filled = 0;
        }
    err = write_block(snd, block, filled);
out:
    return err;
}

static void put_u32(unsigned char *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(value >> (8 * i));
}

static uint32_t ogg_crc(const unsigned char *data, size_t bytes)
{
    uint32_t crc = 0;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= (uint32_t)data[i] << 24;
        for (int bit = 0; bit < 8; bit++)
            crc = crc << 1 ^ (crc >> 31 ? OGG_POLYNOMIAL : 0);
    }
    return crc;
}

/* libsndfile numbers each Ogg stream at random: the same samples would give other bytes every time. Every page gets a
 * fixed number, and its checksum again. Source: RFC 3533, section 6. */
static void settle_ogg(unsigned char *data, size_t bytes)
{
    for (size_t off = 0; off < bytes;) {
        unsigned char *page = data + off;
        CF_ASSERT(bytes - off >= OGG_HEADER && memcmp(page, "OggS", 4) == 0);
        size_t page_bytes = OGG_HEADER + page[OGG_HEADER - 1];
        CF_ASSERT(page_bytes <= bytes - off);
        for (size_t i = OGG_HEADER, end = page_bytes; i < end; i++)
            page_bytes += page[i];
        CF_ASSERT(page_bytes <= bytes - off);
        put_u32(page + OGG_SERIAL_OFF, OGG_SERIAL);
        put_u32(page + OGG_CRC_OFF, 0);
        put_u32(page + OGG_CRC_OFF, ogg_crc(page, page_bytes));
        off += page_bytes;
    }
}

/* Writes everything and closes snd. */
static cf_err fill(SNDFILE *snd, const audio_piece *pieces, size_t count)
{
    sf_command(snd, SFC_SET_CLIPPING, NULL, SF_TRUE);
    sf_command(snd, SFC_SET_ADD_PEAK_CHUNK, NULL, SF_FALSE); /* it holds the time of day: bytes must repeat */
    const cf_err err = write_pieces(snd, pieces, count);
    const int closed = sf_close(snd);
    if (err == CF_OK && closed != 0)
        return err_set(CF_ERR_SYS, "libsndfile: the encoder cannot finish (%d)", closed);
    return err;
}

cf_err audio_encode(const audio_piece *pieces, size_t count, const char *format, void **ret_data, size_t *ret_bytes)
{
    cf_err err;
    memory_file file = {0};
    SF_VIRTUAL_IO io = {file_length, file_seek, file_read, file_write, file_tell};
    TRY(audio_format_check(format));
    SF_INFO info = info_of(find_format(format));
    SNDFILE *snd = sf_open_virtual(&io, SFM_WRITE, &info, &file);
    err = snd ? fill(snd, pieces, count) : err_set(CF_ERR_SYS, "libsndfile: %s", sf_strerror(NULL));
    if (file.failed) /* whatever libsndfile made of it */
        err = err_set(CF_ERR_NOMEM, "out of memory while encoding");
    if (err != CF_OK)
        goto out;
    if ((info.format & SF_FORMAT_TYPEMASK) == SF_FORMAT_OGG)
        settle_ogg(file.data, (size_t)file.bytes);
    *ret_data = file.data;
    *ret_bytes = (size_t)file.bytes;
    file.data = NULL;
out:
    mem_free(file.data);
    return err;
}
