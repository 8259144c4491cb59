/*
 * pt_write.c - the checkpoint writer: the bytes torch.save gives for an OrderedDict of f32 tensors, and files of saved
 * voices. Any process; one owner a writer.
 *
 * data.pkl comes first, then byteorder, one record a storage sorted by the text of its key, version, serialization id,
 * and the central directory in zip64 form. Payloads are aligned to 64 bytes by an extra field; local headers carry no
 * sizes, a descriptor behind the payload does: so data is streamed without seeking.
 * Fails: CF_ERR_SYS, CF_ERR_NOMEM; CF_ERR_LIMIT for a file of 4 GiB or more, which this form of zip does not hold;
 * CF_ERR_INVALID when fewer or more bytes come than were declared.
 * Source: PyTorch caffe2/serialize/inline_container.cc (layout), torch/serialization.py _save (records, pickle).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/file_writer.h"
#include "common/model/pt.h"
#include "common/model/pt_impl.h"

#define ALIGN_BYTES       64u
#define ITEMS_MAX         65000u /* below the counts that need wider zip fields */
#define BATCH_ITEMS       1000u  /* the pickler writes a dict in batches of this many */
#define ARCHIVE_BYTES_MAX UINT32_MAX
#define ELEMENT_BYTES     4u      /* of f32 and i32 */
#define FLAGS             0x0808u /* UTF-8 names, sizes in a descriptor */

typedef struct pt_item {
    char *name; /* owned */
    entry_dtype type;
    int rank;
    int64_t shape[ENTRY_RANK_MAX];
    uint64_t bytes;
    size_t alias_of; /* index of the declared tensor, or its own */
    uint32_t memo;   /* slot of the finished tensor */
} pt_item;

/* A declared tensor's storage. Keys count declarations without aliases. */
typedef struct storage_slot {
    size_t item_idx;
    char key[16];
} storage_slot;

struct pt_writer {
    file_writer *file; /* owned */
    pt_crc32 crc;
    char root[256]; /* folder inside the archive: the file's base name without its last extension */
    pt_item *items; /* owned */
    size_t item_count;
    size_t item_capacity;
    storage_slot *order; /* owned: storages in the order of their records */
    size_t order_count;
    size_t order_idx; /* whose data comes next */
    uint64_t item_done_bytes;
    byte_buf directory; /* central directory so far */
    uint32_t record_count;
    uint64_t names_hash;
    uint32_t header_off; /* of the record being written */
    uint64_t record_bytes;
    uint32_t memo_next;
    bool begun;
    bool nested; /* names are "outer/inner" */
};

static void set_root(pt_writer *w, const char *path)
{
    const char *slash = strrchr(path, '/');
    snprintf(w->root, sizeof w->root, "%.200s", slash ? slash + 1 : path);
    char *dot = strrchr(w->root, '.');
    if (dot && dot != w->root)
        *dot = '\0';
}

cf_err pt_create(const char *path, pt_writer **ret_writer)
{
    cf_err err;
    pt_writer *w = NULL;
    TRY(mem_alloc(1, sizeof *w, &w));
    TRY(file_writer_create(path, &w->file));
    pt_crc32_init(&w->crc);
    w->names_hash = FNV64_OFFSET;
    set_root(w, path);
    *ret_writer = w;
    w = NULL;
out:
    pt_close(w);
    return err;
}

static cf_err add_item(pt_writer *w, const char *name, pt_item *item)
{
    cf_err err;
    CF_ASSERT(!w->begun);
    if (w->item_count >= ITEMS_MAX)
        FAIL(CF_ERR_LIMIT, "more than %u tensors", ITEMS_MAX);
    if (w->item_count == w->item_capacity) {
        const size_t larger = w->item_capacity ? w->item_capacity * 2 : 64;
        TRY(mem_resize(&w->items, larger, sizeof *w->items));
        w->item_capacity = larger;
    }
    TRY(mem_strndup(name, strlen(name), &item->name));
    w->items[w->item_count++] = *item;
out:
    return err;
}

cf_err pt_declare(pt_writer *w, const char *name, int rank, const int64_t *shape)
{
    return pt_declare_as(w, name, ENTRY_F32, rank, shape);
}

void pt_nest(pt_writer *w)
{
    CF_ASSERT(w->item_count == 0);
    w->nested = true;
}

cf_err pt_declare_as(pt_writer *w, const char *name, entry_dtype type, int rank, const int64_t *shape)
{
    CF_ASSERT(rank >= 0 && rank <= ENTRY_RANK_MAX);
    CF_ASSERT(type == ENTRY_F32 || type == ENTRY_I32); /* both of ELEMENT_BYTES */
    pt_item item = {.type = type, .rank = rank, .bytes = ELEMENT_BYTES, .alias_of = w->item_count};
    for (int d = 0; d < rank; d++) {
        item.shape[d] = shape[d];
        item.bytes *= (uint64_t)shape[d];
    }
    return add_item(w, name, &item);
}

cf_err pt_declare_alias(pt_writer *w, const char *name, const char *target)
{
    for (size_t i = 0; i < w->item_count; i++)
        if (strcmp(w->items[i].name, target) == 0)
            return add_item(w, name, &(pt_item){.alias_of = w->items[i].alias_of});
    return err_set(CF_ERR_INVALID, "tensor %s: no tensor %s to share", name, target);
}

/* ---- the pickle ---- */

static uint32_t put_memo(byte_buf *b, uint32_t slot)
{
    byte_buf_add_u8(b, slot < 256 ? 'q' : 'r');
    if (slot < 256)
        byte_buf_add_u8(b, slot);
    else
        byte_buf_add_u32(b, slot);
    return slot;
}

static void get_memo(byte_buf *b, uint32_t slot)
{
    byte_buf_add_u8(b, slot < 256 ? 'h' : 'j');
    if (slot < 256)
        byte_buf_add_u8(b, slot);
    else
        byte_buf_add_u32(b, slot);
}

static void put_text(byte_buf *b, const char *text)
{
    byte_buf_add_u8(b, 'X');
    byte_buf_add_u32(b, (uint32_t)strlen(text));
    byte_buf_add_text(b, text);
}

static void put_int(byte_buf *b, uint64_t value)
{
    if (value < 256) {
        byte_buf_add_u8(b, 'K');
        byte_buf_add_u8(b, (unsigned)value);
    } else if (value < 65536) {
        byte_buf_add_u8(b, 'M');
        byte_buf_add_u16(b, (unsigned)value);
    } else if (value <= INT32_MAX) {
        byte_buf_add_u8(b, 'J');
        byte_buf_add_u32(b, (uint32_t)value);
    } else { /* a long of as many bytes as its magnitude and sign need */
        unsigned bytes = 1;
        while (bytes < 8 && value >> (8 * bytes - 1) != 0)
            bytes++;
        byte_buf_add_u8(b, 0x8A);
        byte_buf_add_u8(b, bytes);
        for (unsigned i = 0; i < bytes; i++)
            byte_buf_add_u8(b, (unsigned)(value >> (8 * i) & 0xFF));
    }
}

/* A tuple of integers; those of one to three members have opcodes of their own. */
static void put_ints(pt_writer *w, byte_buf *b, const int64_t *items, int count)
{
    if (count == 0) {
        byte_buf_add_u8(b, ')');
        return;
    }
    if (count > 3)
        byte_buf_add_u8(b, '(');
    for (int i = 0; i < count; i++)
        put_int(b, (uint64_t)items[i]);
    byte_buf_add_u8(b, count > 3 ? 't' : 0x84u + (unsigned)count);
    put_memo(b, w->memo_next++);
}

/* Memo slots of the pieces that every tensor repeats. */
typedef struct shared_memo {
    bool known;
    bool types_known[2];
    uint32_t rebuild;
    uint32_t storage_word;
    uint32_t storage_types[2]; /* f32, i32 */
    uint32_t location;
    bool ordered_dict_known;
    uint32_t ordered_dict;
} shared_memo;

static void put_storage_type(pt_writer *w, byte_buf *b, entry_dtype type, shared_memo *s)
{
    const int idx = type == ENTRY_I32;
    if (s->types_known[idx]) {
        get_memo(b, s->storage_types[idx]);
        return;
    }
    byte_buf_add_text(b, idx ? "ctorch\nIntStorage\n" : "ctorch\nFloatStorage\n");
    s->storage_types[idx] = put_memo(b, w->memo_next++);
    s->types_known[idx] = true;
}

static void put_ordered_dict(pt_writer *w, byte_buf *b, shared_memo *s)
{
    if (s->ordered_dict_known) {
        get_memo(b, s->ordered_dict);
        return;
    }
    byte_buf_add_text(b, "ccollections\nOrderedDict\n");
    s->ordered_dict = put_memo(b, w->memo_next++);
    s->ordered_dict_known = true;
}

static void put_storage(pt_writer *w, byte_buf *b, const pt_item *item, size_t key, shared_memo *s)
{
    char digits[16];
    byte_buf_add_text(b, "((");
    if (s->known) {
        get_memo(b, s->storage_word);
    } else {
        put_text(b, "storage");
        s->storage_word = put_memo(b, w->memo_next++);
    }
    put_storage_type(w, b, item->type, s);
    snprintf(digits, sizeof digits, "%zu", key);
    put_text(b, digits);
    put_memo(b, w->memo_next++);
    if (s->known) {
        get_memo(b, s->location);
    } else {
        put_text(b, "cpu");
        s->location = put_memo(b, w->memo_next++);
    }
    put_int(b, item->bytes / ELEMENT_BYTES);
    byte_buf_add_u8(b, 't');
    put_memo(b, w->memo_next++);
    byte_buf_add_u8(b, 'Q');
    s->known = true;
}

static void put_tensor(pt_writer *w, byte_buf *b, pt_item *item, size_t key, shared_memo *s)
{
    int64_t strides[ENTRY_RANK_MAX];
    int64_t stride = 1;
    for (int d = item->rank - 1; d >= 0; d--) {
        strides[d] = stride;
        stride *= item->shape[d];
    }
    if (s->known) {
        get_memo(b, s->rebuild);
    } else {
        byte_buf_add_text(b, "ctorch._utils\n_rebuild_tensor_v2\n");
        s->rebuild = put_memo(b, w->memo_next++);
    }
    put_storage(w, b, item, key, s);
    put_int(b, 0);
    put_ints(w, b, item->shape, item->rank);
    put_ints(w, b, strides, item->rank);
    byte_buf_add_u8(b, 0x89);
    put_ordered_dict(w, b, s); /* the empty hooks */
    byte_buf_add_text(b, ")R");
    put_memo(b, w->memo_next++);
    byte_buf_add_u8(b, 't');
    put_memo(b, w->memo_next++);
    byte_buf_add_u8(b, 'R');
    item->memo = put_memo(b, w->memo_next++);
}

/* The value of item i: a tensor, or the memo of the one it shares. */
static void put_value(pt_writer *w, byte_buf *b, size_t i, size_t *key, shared_memo *shared)
{
    pt_item *item = &w->items[i];
    if (item->alias_of == i)
        put_tensor(w, b, item, (*key)++, shared);
    else
        get_memo(b, w->items[item->alias_of].memo);
}

static void put_state_dict(pt_writer *w, byte_buf *b)
{
    shared_memo shared = {0};
    size_t key = 0;
    put_ordered_dict(w, b, &shared);
    byte_buf_add_text(b, ")R");
    put_memo(b, w->memo_next++);
    for (size_t i = 0; i < w->item_count; i++) {
        const size_t in_batch = i % BATCH_ITEMS;
        const size_t batch = w->item_count - i + in_batch < BATCH_ITEMS ? w->item_count - i + in_batch : BATCH_ITEMS;
        if (in_batch == 0 && batch > 1)
            byte_buf_add_u8(b, '(');
        put_text(b, w->items[i].name);
        put_memo(b, w->memo_next++);
        put_value(w, b, i, &key, &shared);
        if (in_batch + 1 == batch)
            byte_buf_add_u8(b, batch > 1 ? 'u' : 's');
    }
}

static size_t outer_bytes(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash ? (size_t)(slash - name) : 0;
}

/* {outer: {inner: tensor}}, both plain dicts. */
static void put_nested_dicts(pt_writer *w, byte_buf *b)
{
    shared_memo shared = {0};
    size_t key = 0;
    byte_buf_add_u8(b, '}');
    put_memo(b, w->memo_next++);
    byte_buf_add_u8(b, '(');
    for (size_t i = 0; i < w->item_count; i++) {
        const char *name = w->items[i].name;
        const size_t bytes = outer_bytes(name);
        const bool opens =
            i == 0 || outer_bytes(w->items[i - 1].name) != bytes || memcmp(w->items[i - 1].name, name, bytes) != 0;
        if (opens && i > 0)
            byte_buf_add_u8(b, 'u');
        if (opens) {
            byte_buf_add_u8(b, 'X');
            byte_buf_add_u32(b, (uint32_t)bytes);
            byte_buf_add(b, name, bytes);
            put_memo(b, w->memo_next++);
            byte_buf_add_u8(b, '}');
            put_memo(b, w->memo_next++);
            byte_buf_add_u8(b, '(');
        }
        put_text(b, name + bytes + (name[bytes] == '/'));
        put_memo(b, w->memo_next++);
        put_value(w, b, i, &key, &shared);
    }
    byte_buf_add_text(b, w->item_count > 0 ? "uu" : "u");
}

static void put_pickle(pt_writer *w, byte_buf *b)
{
    byte_buf_add_text(b, "\x80\x02");
    if (w->nested)
        put_nested_dicts(w, b);
    else
        put_state_dict(w, b);
    byte_buf_add_u8(b, '.');
}

/* ---- the archive ---- */

/* Local header with its payload aligned by an extra field of the writer's own kind. */
static cf_err begin_record(pt_writer *w, const char *name, char full[300])
{
    cf_err err;
    byte_buf b = {0};
    const uint64_t off = file_writer_off(w->file);
    const int name_bytes = snprintf(full, 300, "%s/%s", w->root, name);
    CF_ASSERT(name_bytes > 0 && name_bytes < 300);
    if (off > ARCHIVE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "checkpoint of 4 GiB or more");
    w->header_off = (uint32_t)off;
    w->record_bytes = 0;
    const unsigned padding = (unsigned)((ALIGN_BYTES - (off + 34 + (unsigned)name_bytes) % ALIGN_BYTES) % ALIGN_BYTES);
    byte_buf_add_text(&b, "PK\3\4");
    byte_buf_add_u16(&b, 0); /* version needed */
    byte_buf_add_u16(&b, FLAGS);
    for (int i = 0; i < 9; i++) /* method, time, date, checksum and both sizes: all zero */
        byte_buf_add_u16(&b, 0);
    byte_buf_add_u16(&b, (unsigned)name_bytes);
    byte_buf_add_u16(&b, padding + 4);
    byte_buf_add(&b, full, (size_t)name_bytes);
    byte_buf_add_text(&b, "FB");
    byte_buf_add_u16(&b, padding);
    for (unsigned i = 0; i < padding; i++)
        byte_buf_add_u8(&b, 'Z');
    TRY(byte_buf_check(&b));
    TRY(file_writer_append(w->file, b.data, b.bytes));
    w->names_hash = fnv1a64(w->names_hash, full, (size_t)name_bytes);
out:
    byte_buf_done(&b);
    return err;
}

static cf_err add_payload(pt_writer *w, const void *data, size_t bytes)
{
    pt_crc32_add(&w->crc, data, bytes);
    w->record_bytes += bytes;
    return file_writer_append(w->file, data, bytes);
}

static cf_err end_record(pt_writer *w, const char *full)
{
    cf_err err;
    byte_buf tail = {0};
    byte_buf *d = &w->directory;
    const uint32_t crc = pt_crc32_take(&w->crc);
    if (w->record_bytes > ARCHIVE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "record %s of 4 GiB or more", full);
    const uint32_t bytes = (uint32_t)w->record_bytes;
    byte_buf_add_text(&tail, "PK\7\b");
    byte_buf_add_u32(&tail, crc);
    byte_buf_add_u32(&tail, bytes);
    byte_buf_add_u32(&tail, bytes);
    byte_buf_add_text(d, "PK\1\2");
    byte_buf_add_u32(d, 0); /* versions */
    byte_buf_add_u16(d, FLAGS);
    byte_buf_add_u16(d, 0); /* stored */
    byte_buf_add_u32(d, 0); /* time and date */
    byte_buf_add_u32(d, crc);
    byte_buf_add_u32(d, bytes);
    byte_buf_add_u32(d, bytes);
    byte_buf_add_u16(d, (unsigned)strlen(full));
    for (int i = 0; i < 6; i++) /* extra, comment, disk, attributes: none */
        byte_buf_add_u16(d, 0);
    byte_buf_add_u32(d, w->header_off);
    byte_buf_add_text(d, full);
    TRY(byte_buf_check(&tail));
    TRY(byte_buf_check(d));
    TRY(file_writer_append(w->file, tail.data, tail.bytes));
    w->record_count++;
out:
    byte_buf_done(&tail);
    return err;
}

static cf_err put_record(pt_writer *w, const char *name, const void *data, size_t bytes)
{
    cf_err err;
    char full[300];
    TRY(begin_record(w, name, full));
    TRY(add_payload(w, data, bytes));
    TRY(end_record(w, full));
out:
    return err;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const storage_slot *)a)->key, ((const storage_slot *)b)->key);
}

/* torch sorts the keys as texts: 0, 1, 10, 11, 2. */
static cf_err order_storages(pt_writer *w)
{
    const cf_err err = mem_alloc(w->item_count, sizeof *w->order, &w->order);
    if (err != CF_OK)
        return err;
    for (size_t i = 0; i < w->item_count; i++)
        if (w->items[i].alias_of == i) {
            storage_slot *slot = &w->order[w->order_count];
            slot->item_idx = i;
            snprintf(slot->key, sizeof slot->key, "%zu", w->order_count++);
        }
    qsort(w->order, w->order_count, sizeof *w->order, by_key);
    return CF_OK;
}

bool pt_next(const pt_writer *w, size_t *ret_declared_idx)
{
    for (size_t i = w->order_idx; i < w->order_count; i++)
        if (w->items[w->order[i].item_idx].bytes > 0) {
            *ret_declared_idx = w->order[i].item_idx;
            return true;
        }
    return false;
}

cf_err pt_begin(pt_writer *w)
{
    cf_err err;
    byte_buf pickle = {0};
    CF_ASSERT(!w->begun);
    w->begun = true;
    TRY(order_storages(w));
    put_pickle(w, &pickle);
    TRY(byte_buf_check(&pickle));
    TRY(put_record(w, "data.pkl", pickle.data, pickle.bytes));
    TRY(put_record(w, "byteorder", "little", 6));
out:
    byte_buf_done(&pickle);
    return err;
}

/* Opens the record of the tensor at hand at its first byte, closes it at its last. */
static cf_err append_item(pt_writer *w, const unsigned char *data, size_t bytes)
{
    cf_err err;
    char name[32];
    char full[300];
    const storage_slot *slot = &w->order[w->order_idx];
    snprintf(name, sizeof name, "data/%s", slot->key);
    if (w->item_done_bytes == 0)
        TRY(begin_record(w, name, full));
    TRY(add_payload(w, data, bytes));
    w->item_done_bytes += bytes;
    if (w->item_done_bytes == w->items[slot->item_idx].bytes) {
        snprintf(full, sizeof full, "%s/%s", w->root, name);
        TRY(end_record(w, full));
        w->order_idx++;
        w->item_done_bytes = 0;
    }
out:
    return err;
}

/* Empty tensors have an empty record. */
static cf_err skip_empty_items(pt_writer *w)
{
    cf_err err = CF_OK;
    while (w->order_idx < w->order_count && w->items[w->order[w->order_idx].item_idx].bytes == 0)
        TRY(append_item(w, NULL, 0));
out:
    return err;
}

cf_err pt_append(pt_writer *w, const void *data, size_t bytes)
{
    cf_err err = CF_OK;
    const unsigned char *p = data;
    CF_ASSERT(w->begun);
    while (bytes > 0) {
        TRY(skip_empty_items(w));
        if (w->order_idx == w->order_count)
            FAIL(CF_ERR_INVALID, "checkpoint: more data than declared");
        const uint64_t left = w->items[w->order[w->order_idx].item_idx].bytes - w->item_done_bytes;
        const size_t n = bytes < left ? bytes : (size_t)left;
        TRY(append_item(w, p, n));
        p += n;
        bytes -= n;
    }
out:
    return err;
}

/* zip64 end record, its locator, and the plain end record that old tools read. */
static cf_err put_end(pt_writer *w)
{
    cf_err err;
    byte_buf b = {0};
    const uint64_t off = file_writer_off(w->file);
    const uint64_t bytes = w->directory.bytes;
    if (off + bytes > ARCHIVE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "checkpoint of 4 GiB or more");
    TRY(file_writer_append(w->file, w->directory.data, w->directory.bytes));
    byte_buf_add_text(&b, "PK\6\6");
    byte_buf_add_u64(&b, 44);
    byte_buf_add_u16(&b, 0x031E); /* made by, needed: as the original writer says */
    byte_buf_add_u16(&b, 0x002D);
    byte_buf_add_u64(&b, 0); /* disks */
    byte_buf_add_u64(&b, w->record_count);
    byte_buf_add_u64(&b, w->record_count);
    byte_buf_add_u64(&b, bytes);
    byte_buf_add_u64(&b, off);
    byte_buf_add_text(&b, "PK\6\7");
    byte_buf_add_u32(&b, 0);
    byte_buf_add_u64(&b, off + bytes);
    byte_buf_add_u32(&b, 1);
    byte_buf_add_text(&b, "PK\5\6");
    byte_buf_add_u32(&b, 0); /* disks */
    byte_buf_add_u16(&b, w->record_count);
    byte_buf_add_u16(&b, w->record_count);
    byte_buf_add_u32(&b, (uint32_t)bytes);
    byte_buf_add_u32(&b, (uint32_t)off);
    byte_buf_add_u16(&b, 0);
    TRY(byte_buf_check(&b));
    TRY(file_writer_append(w->file, b.data, b.bytes));
out:
    byte_buf_done(&b);
    return err;
}

cf_err pt_finish(pt_writer *w)
{
    cf_err err;
    char id[41]; /* 40 digits that depend on the records, as the original has; nothing reads them */
    CF_ASSERT(w->begun);
    TRY(skip_empty_items(w));
    if (w->order_idx != w->order_count)
        FAIL(CF_ERR_INVALID, "checkpoint: data of tensor %s is missing",
             w->items[w->order[w->order_idx].item_idx].name);
    TRY(put_record(w, "version", "3\n", 2));
    const uint64_t contents = fnv1a64(FNV64_OFFSET, w->directory.data, w->directory.bytes);
    snprintf(id, sizeof id, "%020" PRIu64 "%020" PRIu64, w->names_hash, contents);
    TRY(put_record(w, ".data/serialization_id", id, 40));
    TRY(put_end(w));
    TRY(file_writer_finish(w->file));
out:
    return err;
}

void pt_close(pt_writer *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->item_count; i++)
        mem_free(w->items[i].name);
    mem_free(w->items);
    mem_free(w->order);
    byte_buf_done(&w->directory);
    file_writer_close(w->file);
    mem_free(w);
}
