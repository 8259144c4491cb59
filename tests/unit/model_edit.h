/*
 * model_edit.h - model directories with one thing wrong: another directory by symbolic links, of which single files are
 * replaced, cut, or rewritten with one tensor changed. Fails: the running test.
 */
#ifndef CF_TESTS_UNIT_MODEL_EDIT_H
#define CF_TESTS_UNIT_MODEL_EDIT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/io.h"
#include "common/model/tensor_table.h"

/* A fresh directory whose files are links to those of `from`, folders made anew. The last four stay valid. */
const char *model_link(const char *from);

/* Writes dir/name, whatever was there; NULL data removes it. */
void model_put(const char *dir, const char *name, const void *data, size_t bytes);
void model_put_text(const char *dir, const char *name, const char *text);

/* Keeps the first `bytes` bytes of the file, or if negative all but so many. */
void model_cut(const char *dir, const char *name, long bytes);

/* What becomes of one tensor of a .safetensors file. */
typedef struct tensor_edit {
    const char *tensor;  /* the one to change; NULL: none, `renamed` is added with this type and shape */
    const char *renamed; /* its new name; NULL: the old one, "": it is left out */
    bool reshaped;       /* type and shape are the next two; the values are zeros */
    entry_dtype type;
    int rank;
    int64_t shape[3];
    bool not_finite; /* its last value (f32) becomes NaN */
} tensor_edit;

void model_rewrite(const char *dir, const char *name, const tensor_edit *edit);

/* Every tensor renamed by a function: the new name into ret_name, or false to leave the tensor out. */
void model_rename(const char *dir, const char *name,
                  bool (*rename)(const char *old, char *ret_name, size_t name_bytes));

#endif
