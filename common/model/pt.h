/*
 * pt.h - PyTorch checkpoints: a restricted reader that executes nothing, and a writer of the same layout.
 *
 * The reader walks the zip directory and a subset of the pickle machine over bytes at hand; tensors come out as views
 * into those bytes (docs/MODEL.md says why there is no libzip here). Anything that is not a state dict or a dict of
 * voices is refused with the name of what it asked for.
 */
#ifndef CF_MODEL_PT_H
#define CF_MODEL_PT_H

#include "common/model/tensor_table.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads the checkpoint in `bytes` bytes at data, which must outlive the table. Top-level ints and floats become texts;
 * the tensors of a nested dict are named "outer/inner". */
CF_MUST_CHECK cf_err pt_parse(const unsigned char *data, size_t bytes, tensor_table **ret_table);

/* Compares every record's CRC-32 with its bytes. */
CF_MUST_CHECK cf_err pt_verify(const unsigned char *data, size_t bytes);

/* Writer: the bytes torch.save gives for an OrderedDict of f32 tensors. Declare all tensors, begin, append the data of
 * the tensors in the order that pt_next tells (torch sorts storages by the text of their number), finish (temporary
 * file, fsync, rename). */
typedef struct pt_writer pt_writer;

CF_MUST_CHECK cf_err pt_create(const char *path, pt_writer **ret_writer);
CF_MUST_CHECK cf_err pt_declare(pt_writer *w, const char *name, int rank, const int64_t *shape);
/* The same for f32 or i32. */
CF_MUST_CHECK cf_err pt_declare_as(pt_writer *w, const char *name, entry_dtype type, int rank, const int64_t *shape);
/* Before the first declaration: names are "outer/inner" (cut at the last slash), written as a plain dict of plain
 * dicts; what shares an outer name has to be declared in a row. So are saved voices laid out. */
void pt_nest(pt_writer *w);
/* A second name for the tensor declared as `target`: the same object, no data. */
CF_MUST_CHECK cf_err pt_declare_alias(pt_writer *w, const char *name, const char *target);
CF_MUST_CHECK cf_err pt_begin(pt_writer *w);
/* Which declaration's data comes next; false when all have theirs. Empty tensors need none. */
bool pt_next(const pt_writer *w, size_t *ret_declared_idx);
CF_MUST_CHECK cf_err pt_append(pt_writer *w, const void *data, size_t bytes);
CF_MUST_CHECK cf_err pt_finish(pt_writer *w);
void pt_close(pt_writer *w); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
