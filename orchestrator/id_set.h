/*
 * id_set.h - which ids there are, and which of them are done: 64 bits of hash and one mark each, so that ten million
 * rows fit in 140 MB. Also the shard that a row belongs to.
 *
 * The set knows keys, not ids. The key of an id is its hash, but for ids that share a hash with another one: whoever
 * finds that out (manifest_check) gives the second a key of its own with id_set_separate. One thread.
 */
#ifndef CF_ORCHESTRATOR_ID_SET_H
#define CF_ORCHESTRATOR_ID_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

/* First 8 bytes, little-endian, of SHA-256(id): decides the shard, so it never changes. */
CF_MUST_CHECK cf_err id_hash(const char *id, uint64_t *ret_hash);

#define SHARDS_MAX 65536

/* Rows whose id hash is idx modulo count. {0}, a count of 0, is the whole manifest. */
typedef struct shard {
    uint32_t idx, count;
} shard;

/* "i/n" with 0 <= i < n <= SHARDS_MAX; CF_ERR_INVALID or CF_ERR_LIMIT say what was found. */
CF_MUST_CHECK cf_err shard_parse(const char *text, shard *ret_shard);
bool shard_has(shard s, uint64_t hash);

typedef struct id_set id_set;

#define ID_HASH_BITS 64

/* hash_bits: how much of a hash makes a key, ID_HASH_BITS. Tests take fewer, to meet collisions. */
CF_MUST_CHECK cf_err id_set_open(unsigned hash_bits, id_set **ret_set);
void id_set_close(id_set *s); /* NULL is fine */

/* The key of an id with this hash; the plain one is what it was before id_set_separate. Never 0. */
uint64_t id_set_key(const id_set *s, uint64_t hash, const char *id);
uint64_t id_set_plain_key(const id_set *s, uint64_t hash);

/* Adds a key, unmarked; *ret_was_there says whether nothing changed. CF_ERR_NOMEM leaves the set as it was. */
CF_MUST_CHECK cf_err id_set_insert(id_set *s, uint64_t key, bool *ret_was_there);
bool id_set_find(const id_set *s, uint64_t key);

/* False, and no effect, when the key is absent. */
bool id_set_mark(id_set *s, uint64_t key);
bool id_set_is_marked(const id_set *s, uint64_t key);

/* From now on this id, whose hash another id of the set has too, has a key of its own, which is added. At most
 * ID_SEPARATE_MAX times, else CF_ERR_LIMIT: more equal hashes than that are no accident. */
#define ID_SEPARATE_MAX 1024
CF_MUST_CHECK cf_err id_set_separate(id_set *s, const char *id);

size_t id_set_count(const id_set *s);
size_t id_set_marked_count(const id_set *s);
size_t id_set_memory_bytes(const id_set *s);

#endif
