/*
 * safetensors.h - the safetensors format: a hardened reader over bytes at hand, and a streaming writer.
 *
 * The reader refuses everything the format forbids: holes, overlaps, duplicate keys, fractional or oversized integers,
 * trailing data. To open a file by path use tensor_file.h.
 */
#ifndef CF_MODEL_SAFETENSORS_H
#define CF_MODEL_SAFETENSORS_H

#include "common/model/tensor_table.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SAFETENSORS_HEADER_BYTES_MAX 100000000u /* the reference implementation's bound */

/* Reads the header of `bytes` bytes at data, which must outlive the table. Metadata become table texts.
 * CF_ERR_INVALID or CF_ERR_CORRUPT for malformed files, CF_ERR_UNSUPPORTED for an element type we do not read. */
CF_MUST_CHECK cf_err safetensors_parse(const unsigned char *data, size_t bytes, tensor_table **ret_table);

/* Writer: declare every tensor, begin, append the data in the declared order, finish. The file appears at its path
 * only in finish (temporary file, fsync, rename); close without finish leaves nothing behind. */
typedef struct safetensors_writer safetensors_writer;

CF_MUST_CHECK cf_err safetensors_create(const char *path, safetensors_writer **ret_writer);
CF_MUST_CHECK cf_err safetensors_put_text(safetensors_writer *w, const char *key, const char *value);
CF_MUST_CHECK cf_err safetensors_declare(safetensors_writer *w, const char *name, entry_dtype type, int rank,
                                         const int64_t *shape);
CF_MUST_CHECK cf_err safetensors_begin(safetensors_writer *w);
CF_MUST_CHECK cf_err safetensors_append(safetensors_writer *w, const void *data, size_t bytes);
CF_MUST_CHECK cf_err safetensors_finish(safetensors_writer *w); /* CF_ERR_INVALID when bytes are missing */
void safetensors_close(safetensors_writer *w);                  /* NULL is fine */

/* One call for tensors at hand: a case file, a voice. */
typedef struct safetensors_item {
    const char *name;
    entry_dtype type;
    int rank;
    int64_t shape[ENTRY_RANK_MAX];
    const void *data; /* contiguous little-endian */
} safetensors_item;
CF_MUST_CHECK cf_err safetensors_write(const char *path, const safetensors_item *items, size_t item_count,
                                       const table_text *texts, size_t text_count);

#ifdef __cplusplus
}
#endif
#endif
