/*
 * voice_cache.c - a fixed table of voices with use counts. Owned by the compute thread.
 * Fails: what voice_load fails with, CF_ERR_MISMATCH, CF_ERR_BUSY, CF_ERR_NOMEM.
 */
#include "common/worker/voice_cache.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/mem.h"

typedef struct cache_entry {
    voice *v; /* owned; NULL: free */
    int32_t users;
    uint64_t used_at; /* tick of the last claim */
} cache_entry;

struct voice_cache {
    char model_dir[IO_PATH_BYTES], store[IO_PATH_BYTES];
    cache_entry entries[VOICE_CACHE_MAX];
    uint64_t tick;
};

cf_err voice_cache_open(const char *model_dir, const char *store, voice_cache **ret_cache)
{
    cf_err err;
    voice_cache *c = NULL;
    TRY(mem_alloc(1, sizeof *c, &c));
    snprintf(c->model_dir, sizeof c->model_dir, "%s", model_dir);
    snprintf(c->store, sizeof c->store, "%s", store);
    *ret_cache = c;
out:
    return err;
}

void voice_cache_close(voice_cache *c)
{
    for (int i = 0; c && i < VOICE_CACHE_MAX; i++)
        voice_close(c->entries[i].v);
    mem_free(c);
}

static cache_entry *find_entry(voice_cache *c, const char *name, const char *content)
{
    for (int i = 0; i < VOICE_CACHE_MAX; i++) {
        const voice *v = c->entries[i].v;
        if (v && strcmp(v->name, name) == 0 && strcmp(v->sha256, content) == 0)
            return &c->entries[i];
    }
    return NULL;
}

static cache_entry *oldest_unused(voice_cache *c)
{
    cache_entry *best = NULL;
    for (int i = 0; i < VOICE_CACHE_MAX; i++) {
        cache_entry *e = &c->entries[i];
        if (e->users == 0 && (!best || e->used_at < best->used_at))
            best = e;
    }
    return best;
}

cf_err voice_cache_claim(voice_cache *c, const char *name, const char *content, const voice **ret_voice)
{
    cf_err err = CF_OK;
    voice *loaded = NULL;
    cache_entry *e = find_entry(c, name, content);
    if (!e) {
        e = oldest_unused(c);
        if (!e)
            FAIL(CF_ERR_BUSY, "all %d cached voices are in use", VOICE_CACHE_MAX);
        TRY(voice_load_any(c->model_dir, c->store, name, &loaded));
        if (strcmp(loaded->sha256, content) != 0)
            FAIL(CF_ERR_MISMATCH, "voice %s: expected content %.12s, found %.12s: its file has changed", name, content,
                 loaded->sha256);
        voice_close(e->v);
        e->v = loaded;
        loaded = NULL;
    }
    e->users++;
    e->used_at = ++c->tick;
    *ret_voice = e->v;
out:
    voice_close(loaded);
    return err;
}

void voice_cache_give_back(voice_cache *c, const voice *v)
{
    for (int i = 0; v && i < VOICE_CACHE_MAX; i++)
        if (c->entries[i].v == v) {
            CF_ASSERT(c->entries[i].users > 0);
            c->entries[i].users--;
            return;
        }
}
