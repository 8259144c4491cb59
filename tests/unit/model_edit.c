/* model_edit.c - see model_edit.h. Fails: the running test. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include "tests/unit/model_edit.h"

#include <dirent.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/model/safetensors.h"
#include "common/model/tensor_file.h"

static void link_folder(const char *from, const char *to)
{
    DIR *dir = opendir(from);
    assert_non_null(dir);
    for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        char source[IO_PATH_BYTES], target[IO_PATH_BYTES];
        struct stat st;
        if (e->d_name[0] == '.')
            continue;
        assert_ok(io_join(source, sizeof source, from, e->d_name));
        assert_ok(io_join(target, sizeof target, to, e->d_name));
        assert_int_equal(stat(source, &st), 0);
        if (S_ISDIR(st.st_mode)) {
            assert_ok(io_make_dirs(target, 0755));
            link_folder(source, target);
        } else {
            assert_int_equal(symlink(source, target), 0);
        }
    }
    closedir(dir);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

const char *model_link(const char *from)
{
    static char root[IO_PATH_BYTES], paths[4][IO_PATH_BYTES];
    static int made;
    char whole[IO_PATH_BYTES], name[32];
    char *path = paths[made % 4];
    if (!root[0])
        snprintf(root, sizeof root, "%s", test_temp_dir());
    if (path[0]) /* a rewritten file has megabytes, and there are dozens of them */
        nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    assert_non_null(realpath(from, whole));
    snprintf(name, sizeof name, "%d", made++);
    assert_ok(io_join(path, sizeof paths[0], root, name));
    assert_ok(io_make_dirs(path, 0755));
    link_folder(whole, path);
    return path;
}

void model_put(const char *dir, const char *name, const void *data, size_t bytes)
{
    char path[IO_PATH_BYTES];
    assert_ok(io_join(path, sizeof path, dir, name));
    unlink(path);
    if (data)
        assert_ok(io_write_file(path, data, bytes));
}

void model_put_text(const char *dir, const char *name, const char *text)
{
    model_put(dir, name, text, strlen(text));
}

void model_cut(const char *dir, const char *name, long bytes)
{
    char path[IO_PATH_BYTES];
    io_map map;
    assert_ok(io_join(path, sizeof path, dir, name));
    assert_ok(io_map_file(path, &map));
    const long whole = (long)map.data_bytes, kept = bytes < 0 ? whole + bytes : bytes;
    assert_true(kept >= 0 && kept < whole);
    model_put(dir, name, map.data, (size_t)kept);
    io_unmap(&map);
}

/* A tensor as it will be written. data is owned when not borrowed from the file. */
typedef struct plan {
    const tensor_entry *entry;
    char name[256];
    entry_dtype type;
    int rank;
    int64_t shape[ENTRY_RANK_MAX];
    unsigned char *own;
    size_t bytes;
} plan;

static void plan_own(plan *p)
{
    int64_t count = 1;
    for (int d = 0; d < p->rank; d++)
        count *= p->shape[d];
    p->bytes = (size_t)count * entry_dtype_bytes(p->type);
    assert_ok(mem_alloc(p->bytes, 1, &p->own));
}

static plan plan_entry(const tensor_entry *e)
{
    plan p = {.entry = e, .type = e->type, .rank = e->rank, .bytes = entry_bytes(e)};
    assert_true(e->contiguous);
    memcpy(p.shape, e->shape, sizeof p.shape);
    snprintf(p.name, sizeof p.name, "%s", e->name);
    return p;
}

static void plan_edit(plan *p, const tensor_edit *edit)
{
    if (edit->renamed)
        snprintf(p->name, sizeof p->name, "%s", edit->renamed);
    if (edit->reshaped) {
        p->type = edit->type;
        p->rank = edit->rank;
        memcpy(p->shape, edit->shape, sizeof edit->shape);
        plan_own(p);
    } else if (edit->not_finite) {
        const float nan_value = NAN;
        plan_own(p);
        memcpy(p->own, p->entry->data, p->bytes);
        memcpy(p->own + p->bytes - sizeof nan_value, &nan_value, sizeof nan_value);
    }
}

/* Replaces dir/name, from which f was opened, by these tensors; an empty name leaves one out. */
static void write_plans(const char *dir, const char *name, tensor_file *f, plan *plans, size_t count)
{
    char path[IO_PATH_BYTES];
    safetensors_writer *w;
    assert_ok(io_join(path, sizeof path, dir, name));
    unlink(path); /* the link; the mapping of f stays */
    assert_ok(safetensors_create(path, &w));
    for (size_t i = 0; i < count; i++)
        if (plans[i].name[0])
            assert_ok(safetensors_declare(w, plans[i].name, plans[i].type, plans[i].rank, plans[i].shape));
    assert_ok(safetensors_begin(w));
    for (size_t i = 0; i < count; i++) {
        if (plans[i].name[0])
            assert_ok(safetensors_append(w, plans[i].own ? plans[i].own : plans[i].entry->data, plans[i].bytes));
        mem_free(plans[i].own);
    }
    assert_ok(safetensors_finish(w));
    safetensors_close(w);
    tensor_file_close(f);
    mem_free(plans);
}

static tensor_file *open_plans(const char *dir, const char *name, plan **ret_plans)
{
    char path[IO_PATH_BYTES];
    tensor_file *f;
    assert_ok(io_join(path, sizeof path, dir, name));
    assert_ok(tensor_file_open(path, &f));
    assert_ok(mem_alloc(tensor_file_count(f) + 1, sizeof **ret_plans, ret_plans));
    for (size_t i = 0; i < tensor_file_count(f); i++)
        (*ret_plans)[i] = plan_entry(tensor_file_at(f, i));
    return f;
}

void model_rewrite(const char *dir, const char *name, const tensor_edit *edit)
{
    plan *plans;
    tensor_file *f = open_plans(dir, name, &plans);
    size_t count = tensor_file_count(f);
    bool found = false;
    for (size_t i = 0; i < count && edit->tensor; i++)
        if (strcmp(plans[i].name, edit->tensor) == 0) {
            plan_edit(&plans[i], edit);
            found = true;
        }
    if (!edit->tensor) {
        tensor_edit added = *edit;
        added.reshaped = true;
        plan_edit(&plans[count++], &added);
        found = true;
    }
    if (!found)
        fail_msg("%s has no tensor %s", name, edit->tensor);
    write_plans(dir, name, f, plans, count);
}

void model_rename(const char *dir, const char *name, bool (*rename)(const char *old, char *ret_name, size_t name_bytes))
{
    plan *plans;
    tensor_file *f = open_plans(dir, name, &plans);
    for (size_t i = 0; i < tensor_file_count(f); i++)
        if (!rename(plans[i].entry->name, plans[i].name, sizeof plans[i].name))
            plans[i].name[0] = '\0';
    write_plans(dir, name, f, plans, tensor_file_count(f));
}
