/*
 * file_writer.h - a file written piece by piece that appears at its path only when it is complete.
 */
#ifndef CF_MODEL_FILE_WRITER_H
#define CF_MODEL_FILE_WRITER_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct file_writer file_writer;

/* Creates a temporary file beside path. */
CF_MUST_CHECK cf_err file_writer_create(const char *path, file_writer **ret_writer);
CF_MUST_CHECK cf_err file_writer_append(file_writer *w, const void *data, size_t bytes);
uint64_t file_writer_off(const file_writer *w); /* bytes written so far */
/* fsync, rename, fsync of the folder. Close w afterwards in any case. */
CF_MUST_CHECK cf_err file_writer_finish(file_writer *w);
void file_writer_close(file_writer *w); /* NULL is fine; without finish the temporary file is removed */

#ifdef __cplusplus
}
#endif
#endif
