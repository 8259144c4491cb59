/*
 * tensor_file.h - one view over model files of either format: open by content, list, find, read, hash.
 *
 * The file stays mapped read-only while it is open; contiguous tensors are usable straight from the mapping
 * (entry->data). Broken downloads and foreign formats are refused by name: Git-LFS pointers, HTML, legacy PyTorch,
 * TorchScript, tar, empty files.
 */
#ifndef CF_MODEL_TENSOR_FILE_H
#define CF_MODEL_TENSOR_FILE_H

#include "common/model/tensor_table.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tensor_format { TENSOR_FORMAT_SAFETENSORS, TENSOR_FORMAT_PT } tensor_format;

typedef struct tensor_file tensor_file;

/* Maps and reads the table of contents; error texts begin with path. */
CF_MUST_CHECK cf_err tensor_file_open(const char *path, tensor_file **ret_file);
void tensor_file_close(tensor_file *f); /* NULL is fine; entries and pointers of f die with it */

const char *tensor_file_path(const tensor_file *f);
tensor_format tensor_file_format(const tensor_file *f);
size_t tensor_file_bytes(const tensor_file *f);

/* Entries in the file's order. In a .pt of saved voices an entry is named "voice/field". */
size_t tensor_file_count(const tensor_file *f);
const tensor_entry *tensor_file_at(const tensor_file *f, size_t idx);
const tensor_entry *tensor_file_find(const tensor_file *f, const char *name); /* NULL when absent */

/* As find, but absence is CF_ERR_NOTFOUND and another shape CF_ERR_MISMATCH; dims[i] < 0 accepts any size there. */
CF_MUST_CHECK cf_err tensor_file_get(const tensor_file *f, const char *name, int rank, const int64_t *dims,
                                     const tensor_entry **ret_entry);

/* Metadata of a safetensors file, or the numbers beside the tensors of a .pt; NULL when absent. */
const char *tensor_file_text(const tensor_file *f, const char *key);
const tensor_table *tensor_file_table(const tensor_file *f);

/* Checks stored checksums (CRC-32 of every .pt record); safetensors has none. CF_ERR_CORRUPT names the record. */
CF_MUST_CHECK cf_err tensor_file_verify(const tensor_file *f);

/* SHA-256 of the whole file: seconds for gigabytes. */
CF_MUST_CHECK cf_err tensor_file_sha256(const tensor_file *f, char ret_hex[SHA256_HEX_BYTES]);

#ifdef __cplusplus
}
#endif
#endif
