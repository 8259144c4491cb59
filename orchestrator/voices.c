/*
 * voices.c - a small cache of voice files, checked against size and time of modification. The shell's thread.
 * Fails: what voice_load fails with, CF_ERR_NOTFOUND with the names there are.
 */
#define _GNU_SOURCE
#include "orchestrator/voices.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/voice_store.h"

#define VOICES_CACHED 64

typedef struct voices_entry {
    voice *v; /* owned; NULL: free */
    off_t bytes;
    struct timespec changed;
} voices_entry;

struct voices {
    char model_dir[IO_PATH_BYTES], store[IO_PATH_BYTES];
    voices_entry entries[VOICES_CACHED];
    int next; /* round robin */
};

cf_err voices_open(const char *model_dir, const char *store, voices **ret_voices)
{
    cf_err err;
    voices *v = NULL;
    TRY(mem_alloc(1, sizeof *v, &v));
    snprintf(v->model_dir, sizeof v->model_dir, "%s", model_dir);
    snprintf(v->store, sizeof v->store, "%s", store);
    *ret_voices = v;
out:
    return err;
}

void voices_close_all(voices *v)
{
    for (int i = 0; v && i < VOICES_CACHED; i++)
        voice_close(v->entries[i].v);
    mem_free(v);
}

static bool same_file(const voices_entry *e, const struct stat *st)
{
    return e->bytes == st->st_size && e->changed.tv_sec == st->st_mtim.tv_sec &&
           e->changed.tv_nsec == st->st_mtim.tv_nsec;
}

/* "echo, vale" for the error text. */
static cf_err list_names(const voices *v, char *ret_list, size_t list_bytes)
{
    cf_err err;
    char **names = NULL;
    size_t count = 0, n = 0;
    TRY(voice_names(v->model_dir, &names, &count));
    ret_list[0] = '\0';
    for (size_t i = 0; i < count && n < list_bytes; i++)
        n += (size_t)snprintf(ret_list + n, list_bytes - n, "%s%s", i ? ", " : "", names[i]);
out:
    voice_names_close(names, count);
    return err;
}

static cf_err path_of(const voices *v, const char *name, char ret_path[IO_PATH_BYTES])
{
    const cf_err err = voice_name_check(name);
    if (err != CF_OK)
        return err;
    if (snprintf(ret_path, IO_PATH_BYTES, "%s/voices/%s.safetensors", v->model_dir, name) >= IO_PATH_BYTES)
        return err_set(CF_ERR_LIMIT, "voice %s: path too long", name);
    return CF_OK;
}

cf_err voices_find(voices *v, const char *name, const voice **ret_voice)
{
    cf_err err;
    char path[IO_PATH_BYTES], list[512], first[VOICE_NAME_BYTES_MAX + 1];
    struct stat st;
    voice *loaded = NULL;
    if (!name[0]) {
        TRY(voice_default_name(v->model_dir, first));
        name = first;
    }
    if (name[0] == '@')
        TRY(voice_store_path(v->store, name + 1, path));
    else
        TRY(path_of(v, name, path));
    err = io_stat(path, &st);
    if (err == CF_ERR_NOTFOUND) {
        TRY(list_names(v, list, sizeof list));
        FAIL(CF_ERR_NOTFOUND, "voice \"%s\" is not in %s/voices; there is: %s", name, v->model_dir,
             list[0] ? list : "none");
    }
    if (err != CF_OK)
        goto out;
    for (int i = 0; i < VOICES_CACHED; i++)
        if (v->entries[i].v && strcmp(v->entries[i].v->name, name) == 0 && same_file(&v->entries[i], &st)) {
            *ret_voice = v->entries[i].v;
            return CF_OK;
        }
    TRY(voice_load_any(v->model_dir, v->store, name, &loaded));
    voices_entry *e = &v->entries[v->next++ % VOICES_CACHED];
    voice_close(e->v);
    *e = (voices_entry){.v = loaded, .bytes = st.st_size, .changed = st.st_mtim};
    *ret_voice = loaded;
out:
    return err;
}
