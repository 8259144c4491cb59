/*
 * tensor_file.c - opens a model file by its content. Any process, any thread; owns the mapping and the table.
 *
 * The formats and failed downloads that people really have are recognised by their first bytes, so that the error says
 * what the file is instead of where its parsing stopped. Fails: CF_ERR_UNSUPPORTED for those, else what the reader of
 * the format says, with the path in front. A file truncated while it is mapped ends the process with SIGBUS: model
 * files are replaced by rename, never rewritten.
 */
#include "common/model/tensor_file.h"

#include <string.h>
#include <strings.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/pt.h"
#include "common/model/safetensors.h"

struct tensor_file {
    char path[IO_PATH_BYTES];
    io_map map;          /* owned */
    tensor_table *table; /* owned */
    tensor_format format;
};

#define LEGACY_ADVICE "re-save it with torch 1.6 or later: torch.save(torch.load(f, weights_only=True), f)"

/* What other files begin with. */
static const struct {
    size_t off;
    const char *bytes;
    size_t byte_count;
    const char *what;
} FOREIGN[] = {
    {0, "version https://git-lfs", 23,
     "a Git-LFS pointer instead of the file it stands for; fetch it with `git lfs pull`"},
    {0, "<!DOC", 5, "a web page, not a model file: the download went wrong"},
    {0, "<html", 5, "a web page, not a model file: the download went wrong"},
    {0, "<?xml", 5, "an XML document, not a model file: the download went wrong"},
    {0, "PYTORCH1", 8, "a preview-format PyTorch archive; " LEGACY_ADVICE},
    {257, "ustar", 5, "a tar archive (PyTorch before 0.2, or a packed folder); unpack or re-save it"},
    {0, "\x1f\x8b", 2, "gzip-compressed; unpack it"},
    {0, "GGUF", 4, "a GGUF file, expected a PyTorch checkpoint or safetensors"},
    {0, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14, "a legacy PyTorch checkpoint; " LEGACY_ADVICE},
    {0, "\x80\x02", 2, "a bare pickle, not a PyTorch checkpoint"},
    {0, "\x80\x03", 2, "a bare pickle, not a PyTorch checkpoint"},
    {0, "\x80\x04", 2, "a bare pickle, not a PyTorch checkpoint"},
    {0, "\x80\x05", 2, "a bare pickle, not a PyTorch checkpoint"},
};

static const char *foreign_what(const unsigned char *data, size_t bytes)
{
    for (size_t i = 0; i < sizeof FOREIGN / sizeof *FOREIGN; i++)
        if (bytes >= FOREIGN[i].off + FOREIGN[i].byte_count &&
            strncasecmp((const char *)data + FOREIGN[i].off, FOREIGN[i].bytes, FOREIGN[i].byte_count) == 0)
            return FOREIGN[i].what;
    return NULL;
}

static bool has_suffix(const char *path, const char *suffix)
{
    const size_t path_bytes = strlen(path);
    const size_t suffix_bytes = strlen(suffix);
    return path_bytes >= suffix_bytes && strcmp(path + path_bytes - suffix_bytes, suffix) == 0;
}

static cf_err parse(tensor_file *f)
{
    const unsigned char *data = f->map.data;
    const size_t bytes = f->map.data_bytes;
    if (bytes == 0)
        return err_set(CF_ERR_CORRUPT, "the file is empty");
    if (bytes >= 4 && memcmp(data, "PK\3\4", 4) == 0) {
        f->format = TENSOR_FORMAT_PT;
        return pt_parse(data, bytes, &f->table);
    }
    const char *what = foreign_what(data, bytes);
    if (what)
        return err_set(CF_ERR_UNSUPPORTED, "%s", what);
    if ((bytes > 8 && data[8] == '{') || has_suffix(f->path, ".safetensors")) {
        f->format = TENSOR_FORMAT_SAFETENSORS;
        return safetensors_parse(data, bytes, &f->table);
    }
    return err_set(CF_ERR_UNSUPPORTED, "neither a PyTorch checkpoint nor safetensors");
}

cf_err tensor_file_open(const char *path, tensor_file **ret_file)
{
    cf_err err;
    tensor_file *f = NULL;
    if (strlen(path) >= IO_PATH_BYTES)
        FAIL(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", path, IO_PATH_BYTES);
    TRY(mem_alloc(1, sizeof *f, &f));
    memcpy(f->path, path, strlen(path) + 1);
    TRY(io_map_file(path, &f->map));
    err = parse(f);
    if (err != CF_OK) {
        err = err_context(err, "%s", path);
        goto out;
    }
    *ret_file = f;
    f = NULL;
out:
    tensor_file_close(f);
    return err;
}

void tensor_file_close(tensor_file *f)
{
    if (!f)
        return;
    tensor_table_close(f->table);
    io_unmap(&f->map);
    mem_free(f);
}

const char *tensor_file_path(const tensor_file *f)
{
    return f->path;
}

tensor_format tensor_file_format(const tensor_file *f)
{
    return f->format;
}

size_t tensor_file_bytes(const tensor_file *f)
{
    return f->map.data_bytes;
}

size_t tensor_file_count(const tensor_file *f)
{
    return tensor_table_count(f->table);
}

const tensor_entry *tensor_file_at(const tensor_file *f, size_t idx)
{
    return tensor_table_at(f->table, idx);
}

const tensor_entry *tensor_file_find(const tensor_file *f, const char *name)
{
    return tensor_table_find(f->table, name);
}

cf_err tensor_file_get(const tensor_file *f, const char *name, int rank, const int64_t *dims,
                       const tensor_entry **ret_entry)
{
    char expected[ENTRY_SHAPE_BYTES];
    char found[ENTRY_SHAPE_BYTES];
    const tensor_entry *e = tensor_table_find(f->table, name);
    if (!e)
        return err_set(CF_ERR_NOTFOUND, "%s: tensor %s is missing", f->path, name);
    bool fits = e->rank == rank;
    for (int d = 0; d < rank && fits; d++)
        fits = dims[d] < 0 || e->shape[d] == dims[d];
    if (!fits) {
        entry_shape_text(dims, rank, expected);
        entry_shape_text(e->shape, e->rank, found);
        return err_set(CF_ERR_MISMATCH, "%s: tensor %s: expected %s, found %s%s", f->path, name, expected, found,
                       strchr(expected, '-') ? " (-1: any size)" : "");
    }
    *ret_entry = e;
    return CF_OK;
}

const char *tensor_file_text(const tensor_file *f, const char *key)
{
    return tensor_table_text(f->table, key);
}

const tensor_table *tensor_file_table(const tensor_file *f)
{
    return f->table;
}

cf_err tensor_file_verify(const tensor_file *f)
{
    if (f->format != TENSOR_FORMAT_PT)
        return CF_OK;
    const cf_err err = pt_verify(f->map.data, f->map.data_bytes);
    return err == CF_OK ? CF_OK : err_context(err, "%s", f->path);
}

cf_err tensor_file_sha256(const tensor_file *f, char ret_hex[SHA256_HEX_BYTES])
{
    return sha256_of(f->map.data, f->map.data_bytes, ret_hex);
}
