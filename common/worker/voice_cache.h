/*
 * voice_cache.h - the voices a worker has read, least recently used last. One thread: the compute thread.
 */
#ifndef CF_WORKER_VOICE_CACHE_H
#define CF_WORKER_VOICE_CACHE_H

#include "common/base/err.h"
#include "common/model/voice.h"

#define VOICE_CACHE_MAX 64 /* a 30 s voice is 0.5 MB: 32 MB at most */

typedef struct voice_cache voice_cache;

CF_MUST_CHECK cf_err voice_cache_open(const char *model_dir, const char *store, voice_cache **ret_cache);
void voice_cache_close(voice_cache *c); /* NULL is fine */

/* The voice of that name whose content has that SHA-256; CF_ERR_MISMATCH when the file has changed meanwhile. The
 * voice stays valid until voice_cache_give_back. CF_ERR_BUSY when all entries are in use. */
CF_MUST_CHECK cf_err voice_cache_claim(voice_cache *c, const char *name, const char *content, const voice **ret_voice);
void voice_cache_give_back(voice_cache *c, const voice *v); /* NULL is fine */

#endif
