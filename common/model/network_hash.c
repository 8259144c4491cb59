/*
 * network_hash.c - hashes of network files and their memory. Any process; owns nothing between calls. Two processes
 * that remember at once write the same answers; the later file wins whole.
 *
 * Fails: CF_ERR_NOTFOUND, CF_ERR_SYS. A memory that cannot be read or written is no failure: it is a cache.
 */
#define _GNU_SOURCE
#include "common/model/network_hash.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"

#define MEMORY_FILE      "voices/.networks"
#define MEMORY_BYTES_MAX 65536
#define STAMP_BYTES      128
#define CHUNK_BYTES      ((size_t)4 << 20)

/* Changes whenever the file does: size, inode, times of contents and of the inode itself. */
static cf_err file_stamp(const char *path, char ret_stamp[STAMP_BYTES])
{
    struct stat st;
    if (stat(path, &st) != 0)
        return errno == ENOENT ? err_set(CF_ERR_NOTFOUND, "%s: no such file", path) : err_sys("%s", path);
    snprintf(ret_stamp, STAMP_BYTES, "%lld %llu %lld.%09ld %lld.%09ld", (long long)st.st_size,
             (unsigned long long)st.st_ino, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
             (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
    return CF_OK;
}

static bool is_hex(const char *text)
{
    return strlen(text) == SHA256_HEX_BYTES - 1 && text[strspn(text, "0123456789abcdef")] == '\0';
}

/* The members of the memory, or NULL. */
static json *read_memory(const char *memory_path)
{
    char *text = NULL;
    size_t bytes;
    json *root = NULL;
    if (io_exists(memory_path) && io_read_file(memory_path, MEMORY_BYTES_MAX, &text, &bytes) == CF_OK &&
        json_parse(text, bytes, 3, &root) != CF_OK)
        root = NULL;
    mem_free(text);
    return root;
}

static bool recall(const json *memory, const char *file, const char *stamp, char ret_hex[SHA256_HEX_BYTES])
{
    const json *entry = memory && json_is_object(memory) ? json_find(memory, file) : NULL;
    const char *known, *hex;
    if (!entry || !json_is_object(entry) || json_get_str(entry, "stamp", STAMP_BYTES, &known) != CF_OK ||
        json_get_str(entry, "sha256", SHA256_HEX_BYTES, &hex) != CF_OK || strcmp(known, stamp) != 0 || !is_hex(hex))
        return false;
    memcpy(ret_hex, hex, SHA256_HEX_BYTES);
    return true;
}

static void put_entry(json *root, const char *file, const char *stamp, const char *hex)
{
    json *entry = json_object();
    json_put_str(entry, "stamp", stamp);
    json_put_str(entry, "sha256", hex);
    json_put(root, file, entry);
}

/* Keeps what is known of other files. */
static cf_err remember(const char *model_path, const char *memory_path, const json *old, const char *file,
                       const char *stamp, const char *hex)
{
    cf_err err;
    char folder[IO_PATH_BYTES], *text = NULL;
    json *root = json_object();
    put_entry(root, file, stamp, hex);
    for (const json *e = old && json_is_object(old) ? json_first(old) : NULL; e; e = json_next(e)) {
        const char *old_stamp, *old_hex;
        if (strcmp(json_key(e), file) != 0 && json_is_object(e) &&
            json_get_str(e, "stamp", STAMP_BYTES, &old_stamp) == CF_OK &&
            json_get_str(e, "sha256", SHA256_HEX_BYTES, &old_hex) == CF_OK)
            put_entry(root, json_key(e), old_stamp, old_hex);
    }
    TRY(json_print(root, true, &text));
    TRY(io_join(folder, sizeof folder, model_path, "voices"));
    TRY(io_make_dirs(folder, 0755));
    TRY(io_write_file(memory_path, text, strlen(text)));
out:
    json_close(root);
    mem_free(text);
    return err;
}

/* Gives pages back behind itself: enrollment has the same file mapped for its weights, and a gigabyte would count
 * twice. */
static cf_err hash_pages(const io_map *map, char ret_hex[SHA256_HEX_BYTES])
{
    cf_err err;
    sha256 *h = NULL;
    TRY(sha256_open(&h));
    for (size_t at = 0; at < map->data_bytes; at += CHUNK_BYTES) {
        const size_t left = map->data_bytes - at, bytes = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        unsigned char *chunk = (unsigned char *)map->data + at;
        sha256_update(h, chunk, bytes);
        (void)madvise(chunk, bytes, MADV_DONTNEED); /* the file keeps them; without it they merely count longer */
    }
    sha256_finish(h, ret_hex);
out:
    return err;
}

cf_err network_sha256(const char *model_path, const char *file, char ret_hex[SHA256_HEX_BYTES])
{
    cf_err err;
    char path[IO_PATH_BYTES], memory_path[IO_PATH_BYTES], stamp[STAMP_BYTES], after[STAMP_BYTES];
    io_map map = {0};
    json *memory = NULL;
    TRY(io_join(path, sizeof path, model_path, file));
    TRY(io_join(memory_path, sizeof memory_path, model_path, MEMORY_FILE));
    TRY(file_stamp(path, stamp));
    memory = read_memory(memory_path);
    if (recall(memory, file, stamp, ret_hex))
        goto out;
    TRY(io_map_file(path, &map));
    TRY(hash_pages(&map, ret_hex));
    TRY(file_stamp(path, after));
    if (strcmp(stamp, after) == 0 && remember(model_path, memory_path, memory, file, stamp, ret_hex) != CF_OK)
        err = CF_OK; /* a read-only model directory: the answer stands, the next call asks again */
out:
    io_unmap(&map);
    json_close(memory);
    return err;
}

cf_err blank_en_sha256(const char *model_path, char ret_hex[SHA256_HEX_BYTES])
{
    cf_err err;
    static const char *const files[] = {"CosyVoice-BlankEN/config.json", "CosyVoice-BlankEN/merges.txt",
                                        "CosyVoice-BlankEN/vocab.json"};
    char hashes[CF_COUNT(files)][SHA256_HEX_BYTES]; /* with their NULs: fixed lengths, so nothing can shift */
    for (size_t i = 0; i < CF_COUNT(files); i++)
        TRY(network_sha256(model_path, files[i], hashes[i]));
    TRY(sha256_of(hashes, sizeof hashes, ret_hex));
out:
    return err;
}
