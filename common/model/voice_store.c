/*
 * voice_store.c - see voice_store.h. Any process; owns nothing between calls. Files appear by rename, so a reader sees
 * a whole voice or none; a file that vanishes under a trim was somebody else's to remove.
 *
 * Fails: CF_ERR_NOTFOUND, CF_ERR_SYS, CF_ERR_LIMIT, CF_ERR_NOMEM.
 */
#define _GNU_SOURCE
#include "common/model/voice_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/network_hash.h"

/* Changes when the same inputs give other bytes. */
#define STORE_FORMAT "cosyfarm voice 1"
#define STORE_MAX    100000u /* files looked at */
#define STORE_SUFFIX ".safetensors"

static void hash_framed(sha256 *hash, const void *data, uint64_t bytes)
{
    unsigned char frame[8];
    for (int i = 0; i < 8; i++)
        frame[i] = (unsigned char)(bytes >> (8 * i));
    sha256_update(hash, frame, sizeof frame);
    if (bytes > 0)
        sha256_update(hash, data, bytes);
}

cf_err voice_store_key_of(const char *model_path, const char *recording_sha256, const char *prompt_text,
                          char ret_key[SHA256_HEX_BYTES])
{
    cf_err err;
    char tokenizer[SHA256_HEX_BYTES], speaker[SHA256_HEX_BYTES];
    sha256 *hash;
    TRY(network_sha256(model_path, MODEL_TOKENIZER_FILE, tokenizer));
    TRY(network_sha256(model_path, MODEL_SPEAKER_FILE, speaker));
    TRY(sha256_open(&hash));
    hash_framed(hash, STORE_FORMAT, strlen(STORE_FORMAT));
    hash_framed(hash, tokenizer, strlen(tokenizer));
    hash_framed(hash, speaker, strlen(speaker));
    hash_framed(hash, recording_sha256, strlen(recording_sha256));
    hash_framed(hash, prompt_text ? "text" : "none", 4);
    hash_framed(hash, prompt_text, prompt_text ? strlen(prompt_text) : 0);
    sha256_finish(hash, ret_key);
out:
    return err;
}

cf_err voice_store_key(const char *model_path, const char *recording_path, const char *prompt_text,
                       char ret_key[SHA256_HEX_BYTES])
{
    cf_err err;
    io_map map = {0};
    char hex[SHA256_HEX_BYTES];
    TRY(io_map_file(recording_path, &map));
    TRY(sha256_of(map.data, map.data_bytes, hex));
    TRY(voice_store_key_of(model_path, hex, prompt_text, ret_key));
out:
    io_unmap(&map);
    return err;
}

cf_err voice_store_path(const char *folder, const char *key, char ret_path[IO_PATH_BYTES])
{
    if (snprintf(ret_path, IO_PATH_BYTES, "%s/%s" STORE_SUFFIX, folder, key) >= IO_PATH_BYTES)
        return err_set(CF_ERR_LIMIT, "%s: path longer than %d bytes", folder, IO_PATH_BYTES);
    return CF_OK;
}

bool voice_store_has(const char *path)
{
    return utimensat(AT_FDCWD, path, NULL, 0) == 0 || (errno != ENOENT && io_exists(path));
}

typedef struct stored {
    char path[IO_PATH_BYTES];
    uint64_t bytes;
    struct timespec used;
} stored;

static int by_use(const void *a, const void *b)
{
    const struct timespec *x = &((const stored *)a)->used, *y = &((const stored *)b)->used;
    if (x->tv_sec != y->tv_sec)
        return x->tv_sec < y->tv_sec ? -1 : 1;
    return x->tv_nsec < y->tv_nsec ? -1 : x->tv_nsec > y->tv_nsec;
}

/* Every regular file of the folder: half-written ones of killed processes count and go, too. */
static cf_err list_files(const char *folder, DIR *dir, stored **list, size_t *count)
{
    cf_err err = CF_OK;
    size_t capacity = 0;
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir)) {
        struct stat st;
        stored s;
        if (entry->d_name[0] == '.')
            continue;
        TRY(io_join(s.path, sizeof s.path, folder, entry->d_name));
        if (stat(s.path, &st) != 0 || !S_ISREG(st.st_mode))
            continue;
        if (*count == STORE_MAX)
            FAIL(CF_ERR_LIMIT, "%s: more than %u files", folder, STORE_MAX);
        if (*count == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            TRY(mem_resize(list, capacity, sizeof **list));
        }
        s.bytes = (uint64_t)st.st_size;
        s.used = st.st_mtim;
        (*list)[(*count)++] = s;
    }
out:
    return err;
}

cf_err voice_store_trim(const char *folder, uint64_t bytes_max, const char *keep)
{
    cf_err err = CF_OK;
    stored *list = NULL;
    size_t count = 0;
    uint64_t total = 0;
    DIR *dir = opendir(folder);
    if (!dir)
        return errno == ENOENT ? CF_OK : err_sys("%s: open", folder);
    TRY(list_files(folder, dir, &list, &count));
    for (size_t i = 0; i < count; i++)
        total += list[i].bytes;
    if (total > bytes_max && count > 0)
        qsort(list, count, sizeof *list, by_use);
    for (size_t i = 0; i < count && total > bytes_max; i++) {
        if (keep && strcmp(list[i].path, keep) == 0)
            continue;
        if (unlink(list[i].path) != 0 && errno != ENOENT) {
            err = err_sys("%s: unlink", list[i].path);
            goto out;
        }
        total -= list[i].bytes;
    }
out:
    closedir(dir);
    mem_free(list);
    return err;
}
