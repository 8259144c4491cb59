/*
 * id_set.c - open addressing with linear probing; doubles in place, so that the peak is the final size and not half as
 * much again. Owned by one thread of the command. Owns slots, marks and the few ids with a key of their own.
 * Fails: CF_ERR_NOMEM, CF_ERR_LIMIT, CF_ERR_INVALID for a shard that cannot be. Asserts that keys are not 0.
 */
#include "orchestrator/id_set.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/sha256.h"

#define SLOT_BITS_MIN 10
#define FILL_OF_8     7 /* grows above 7/8: ten million ids take 2^24 slots, 0.6 full */

typedef struct separate_id {
    char *id; /* owned */
    uint64_t key;
} separate_id;

struct id_set {
    uint64_t *slots; /* owned, 2^slot_bits keys, 0: free */
    uint64_t *marks; /* owned, a bit per slot */
    unsigned slot_bits;
    uint64_t key_mask;
    size_t count, marked;
    separate_id *separate; /* owned */
    size_t separate_count;
};

cf_err id_hash(const char *id, uint64_t *ret_hash)
{
    cf_err err;
    char hex[SHA256_HEX_BYTES];
    uint64_t hash = 0;
    TRY(sha256_of(id, strlen(id), hex));
    for (size_t i = 0; i < 16; i++) {
        const uint64_t digit = (uint64_t)(hex[i] <= '9' ? hex[i] - '0' : hex[i] - 'a' + 10);
        hash |= digit << (i / 2 * 8 + (i % 2 ? 0 : 4)); /* a byte is written high digit first */
    }
    *ret_hash = hash;
out:
    return err;
}

/* Digits alone; false for anything else and for what does not fit. */
static bool read_digits(const char **text, uint32_t *ret_value)
{
    uint64_t value = 0;
    const char *p = *text;
    for (; *p >= '0' && *p <= '9' && value <= UINT32_MAX; p++)
        value = value * 10 + (uint64_t)(*p - '0');
    if (p == *text || value > UINT32_MAX)
        return false;
    *text = p;
    *ret_value = (uint32_t)value;
    return true;
}

cf_err shard_parse(const char *text, shard *ret_shard)
{
    shard s;
    const char *p = text;
    bool good = read_digits(&p, &s.idx) && *p == '/';
    if (good) {
        p++;
        good = read_digits(&p, &s.count) && *p == '\0' && s.idx < s.count;
    }
    if (!good)
        return err_set(CF_ERR_INVALID, "shard: expected i/n with 0 <= i < n, found \"%.40s\"", text);
    if (s.count > SHARDS_MAX)
        return err_set(CF_ERR_LIMIT, "shard: at most %d shards, found \"%.40s\"", SHARDS_MAX, text);
    *ret_shard = s;
    return CF_OK;
}

bool shard_has(shard s, uint64_t hash)
{
    return s.count == 0 || hash % s.count == s.idx;
}

static bool bit_of(const uint64_t *bits, size_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

static void set_bit(uint64_t *bits, size_t i)
{
    bits[i / 64] |= UINT64_C(1) << (i % 64);
}

static size_t slot_count(unsigned slot_bits)
{
    return (size_t)1 << slot_bits;
}

/* Keys of one shard agree in their low bits, so the place comes from a product (Fibonacci hashing). */
static size_t home_of(uint64_t key, unsigned slot_bits)
{
    return (size_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> (64 - slot_bits));
}

/* The key's slot, or the free one where it belongs. */
static size_t slot_of(const id_set *s, uint64_t key)
{
    const size_t mask = slot_count(s->slot_bits) - 1;
    size_t i = home_of(key, s->slot_bits);
    while (s->slots[i] != 0 && s->slots[i] != key)
        i = (i + 1) & mask;
    return i;
}

cf_err id_set_open(unsigned hash_bits, id_set **ret_set)
{
    cf_err err;
    id_set *s = NULL;
    CF_ASSERT(hash_bits >= 1 && hash_bits <= ID_HASH_BITS);
    TRY(mem_alloc(1, sizeof *s, &s));
    s->slot_bits = SLOT_BITS_MIN;
    s->key_mask = UINT64_MAX >> (64 - hash_bits);
    TRY(mem_alloc(slot_count(s->slot_bits), sizeof *s->slots, &s->slots));
    TRY(mem_alloc(slot_count(s->slot_bits) / 64, sizeof *s->marks, &s->marks));
    *ret_set = s;
    s = NULL;
out:
    id_set_close(s);
    return err;
}

void id_set_close(id_set *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->separate_count; i++)
        mem_free(s->separate[i].id);
    mem_free(s->separate);
    mem_free(s->slots);
    mem_free(s->marks);
    mem_free(s);
}

uint64_t id_set_plain_key(const id_set *s, uint64_t hash)
{
    const uint64_t key = hash & s->key_mask;
    return key ? key : 1; /* 0 means a free slot */
}

uint64_t id_set_key(const id_set *s, uint64_t hash, const char *id)
{
    for (size_t i = 0; i < s->separate_count; i++)
        if (strcmp(s->separate[i].id, id) == 0)
            return s->separate[i].key;
    return id_set_plain_key(s, hash);
}

/*
 * Moves every key of the lower half of the slots to where it belongs in all of them. A key that finds another one in
 * its place, not moved yet, takes the place and the other goes on; what is placed stays. So from the home of each key
 * to its slot everything is placed, which is what a search relies on.
 */
static void place_all(id_set *s, size_t old_count, const uint64_t *old_marks, uint64_t *placed)
{
    const size_t mask = slot_count(s->slot_bits) - 1;
    for (size_t i = 0; i < old_count; i++) {
        if (s->slots[i] == 0 || bit_of(placed, i))
            continue;
        uint64_t key = s->slots[i];
        bool marked = bit_of(old_marks, i);
        s->slots[i] = 0;
        while (key != 0) {
            size_t to = home_of(key, s->slot_bits);
            while (bit_of(placed, to))
                to = (to + 1) & mask;
            set_bit(placed, to);
            const uint64_t other = s->slots[to];
            const bool other_marked = to < old_count && bit_of(old_marks, to);
            s->slots[to] = key;
            if (marked)
                set_bit(s->marks, to);
            key = other;
            marked = other_marked;
        }
    }
}

static cf_err grow(id_set *s)
{
    cf_err err;
    const size_t old_count = slot_count(s->slot_bits);
    uint64_t *marks = NULL, *placed = NULL, *old_marks = NULL;
    TRY(mem_alloc(2 * old_count / 64, sizeof *marks, &marks));
    TRY(mem_alloc(2 * old_count / 64, sizeof *placed, &placed));
    TRY(mem_resize(&s->slots, 2 * old_count, sizeof *s->slots));
    memset(s->slots + old_count, 0, old_count * sizeof *s->slots);
    old_marks = s->marks;
    s->marks = marks;
    marks = NULL;
    s->slot_bits++;
    place_all(s, old_count, old_marks, placed);
out:
    mem_free(marks);
    mem_free(placed);
    mem_free(old_marks);
    return err;
}

cf_err id_set_insert(id_set *s, uint64_t key, bool *ret_was_there)
{
    CF_ASSERT(key != 0);
    size_t i = slot_of(s, key);
    const bool there = s->slots[i] == key;
    if (!there) {
        if (s->count + 1 > slot_count(s->slot_bits) / 8 * FILL_OF_8) {
            const cf_err err = grow(s);
            if (err != CF_OK)
                return err;
            i = slot_of(s, key);
        }
        s->slots[i] = key;
        s->count++;
    }
    *ret_was_there = there;
    return CF_OK;
}

bool id_set_find(const id_set *s, uint64_t key)
{
    CF_ASSERT(key != 0);
    return s->slots[slot_of(s, key)] == key;
}

bool id_set_mark(id_set *s, uint64_t key)
{
    CF_ASSERT(key != 0);
    const size_t i = slot_of(s, key);
    if (s->slots[i] != key)
        return false;
    s->marked += !bit_of(s->marks, i);
    set_bit(s->marks, i);
    return true;
}

bool id_set_is_marked(const id_set *s, uint64_t key)
{
    CF_ASSERT(key != 0);
    const size_t i = slot_of(s, key);
    return s->slots[i] == key && bit_of(s->marks, i);
}

cf_err id_set_separate(id_set *s, const char *id)
{
    cf_err err;
    char *copy = NULL;
    bool was_there = true;
    uint64_t key = 0;
    if (s->separate_count == ID_SEPARATE_MAX)
        FAIL(CF_ERR_LIMIT, "more than %d ids share their hash with another one", ID_SEPARATE_MAX);
    TRY(mem_strndup(id, strlen(id), &copy));
    TRY(mem_resize(&s->separate, s->separate_count + 1, sizeof *s->separate));
    for (unsigned n = 1; was_there; n++) {
        char name[NAME_BYTES_MAX + 16]; /* '#' occurs in no id */
        CF_ASSERT(snprintf(name, sizeof name, "%s#%u", id, n) < (int)sizeof name);
        TRY(id_hash(name, &key));
        if (key != 0)
            TRY(id_set_insert(s, key, &was_there));
    }
    s->separate[s->separate_count++] = (separate_id){copy, key};
    copy = NULL;
out:
    mem_free(copy);
    return err;
}

size_t id_set_count(const id_set *s)
{
    return s->count;
}

size_t id_set_marked_count(const id_set *s)
{
    return s->marked;
}

size_t id_set_memory_bytes(const id_set *s)
{
    return sizeof *s + slot_count(s->slot_bits) * sizeof *s->slots + slot_count(s->slot_bits) / 8 +
           s->separate_count * sizeof *s->separate;
}
