/*
 * audio_file.h - samples to files: the only door to libsndfile.
 */
#ifndef CF_ORCHESTRATOR_AUDIO_FILE_H
#define CF_ORCHESTRATOR_AUDIO_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

/* One stretch of mono samples in [-1, 1], borrowed. */
typedef struct audio_piece {
    const float *samples;
    int64_t count;
} audio_piece;

/* "wav" (16 bit), "wav-float" (32 bit float), "flac" (16 bit), "ogg" (Vorbis), "mp3". CF_ERR_UNSUPPORTED for others,
 * and for formats that this libsndfile cannot write, naming what it can. */
CF_MUST_CHECK cf_err audio_format_check(const char *format);

/* The format a path's extension asks for; CF_ERR_UNSUPPORTED names the known ones. */
CF_MUST_CHECK cf_err audio_format_of_path(const char *path, bool float_samples, const char **ret_format);

/* Encodes the pieces one behind the other, 24 kHz mono, into memory: *ret_data is the caller's (mem_free). The same
 * samples give the same bytes. */
CF_MUST_CHECK cf_err audio_encode(const audio_piece *pieces, size_t count, const char *format, void **ret_data,
                                  size_t *ret_bytes);

#endif
