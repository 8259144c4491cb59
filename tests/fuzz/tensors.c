/* tensors.c - see tensors.h. Fails: by assertion, which is a find. */
#include "tests/fuzz/tensors.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"

#define RECORD_BYTES 2560u
#define RECORDS      4u
#define VALUES_MAX   (1u << 20) /* more than any input of a fuzzer holds, expanded views included */

static void use_values(const tensor_entry *e)
{
    const size_t count = (size_t)entry_count(e);
    double *f64 = NULL;
    char hex[SHA256_HEX_BYTES];
    if (count > VALUES_MAX)
        return;
    CF_ASSERT(mem_alloc(count, sizeof *f64, &f64) == CF_OK);
    CF_ASSERT(entry_read_f64(e, f64, count) == CF_OK);
    CF_ASSERT(entry_read_f32(e, (float *)(void *)f64, count) == CF_OK);
    const cf_err as_ints = entry_read_i32(e, (int32_t *)(void *)f64, count);
    CF_ASSERT(as_ints == CF_OK || as_ints == (entry_is_float(e) ? CF_ERR_MISMATCH : CF_ERR_INVALID));
    CF_ASSERT(entry_read_f32(e, (float *)(void *)f64, count + 1) == CF_ERR_MISMATCH);
    const cf_err finite = entry_check_finite(e);
    CF_ASSERT(finite == CF_OK || (finite == CF_ERR_NUMERIC && entry_is_float(e)));
    CF_ASSERT(entry_sha256(e, hex) == CF_OK && strlen(hex) == 64);
    mem_free(f64);
}

void fuzz_use_tensors(const tensor_table *table, const uint8_t *data, size_t data_bytes)
{
    for (size_t i = 0; i < tensor_table_count(table); i++) {
        const tensor_entry *e = tensor_table_at(table, i);
        char shape[ENTRY_SHAPE_BYTES];
        CF_ASSERT(tensor_table_find(table, e->name) == e);
        CF_ASSERT(utf8_valid(e->name, strlen(e->name), NULL));
        CF_ASSERT(e->rank >= 0 && e->rank <= ENTRY_RANK_MAX);
        int64_t last = 0; /* element farthest from the first */
        for (int d = 0; d < e->rank; d++) {
            CF_ASSERT(e->shape[d] >= 0 && e->strides[d] >= 0);
            last += e->shape[d] > 1 ? (e->shape[d] - 1) * e->strides[d] : 0;
        }
        if (entry_count(e) > 0) {
            const size_t off = (size_t)(e->data - data);
            CF_ASSERT(e->data >= data && off <= data_bytes);
            CF_ASSERT(((uint64_t)last + 1) * entry_dtype_bytes(e->type) <= data_bytes - off);
        }
        entry_shape_text(e->shape, e->rank, shape);
        CF_ASSERT(strlen(shape) < sizeof shape);
        use_values(e);
    }
    for (size_t i = 0; i < tensor_table_text_count(table); i++) {
        const table_text *t = tensor_table_text_at(table, i);
        CF_ASSERT(utf8_valid(t->key, strlen(t->key), NULL) && utf8_valid(t->value, strlen(t->value), NULL));
        CF_ASSERT(tensor_table_text(table, t->key) == t->value);
    }
}

static void add_record(byte_buf *zip, byte_buf *directory, const char *name, const void *data, size_t bytes)
{
    const uint32_t off = (uint32_t)zip->bytes;
    for (int central = 0; central < 2; central++) {
        byte_buf *b = central ? directory : zip;
        byte_buf_add_text(b, central ? "PK\1\2" : "PK\3\4");
        if (central)
            byte_buf_add_u16(b, 0);
        byte_buf_add_u16(b, 0);
        byte_buf_add_u32(b, 0); /* flags, method: stored */
        byte_buf_add_u64(b, 0); /* time, checksum */
        byte_buf_add_u32(b, (uint32_t)bytes);
        byte_buf_add_u32(b, (uint32_t)bytes);
        byte_buf_add_u16(b, (unsigned)strlen(name));
        byte_buf_add_u16(b, 0);
        for (int i = 0; central && i < 5; i++)
            byte_buf_add_u16(b, 0);
        if (central)
            byte_buf_add_u32(b, off);
        byte_buf_add_text(b, name);
    }
    byte_buf_add(zip, data, bytes);
}

void fuzz_wrap_pickle(const uint8_t *pickle, size_t pickle_bytes, byte_buf *ret_zip)
{
    static const char *const NAMES[RECORDS] = {"m/data/0", "m/data/1", "m/data/2", "m/data/3"};
    byte_buf zip = {0}, directory = {0};
    add_record(&zip, &directory, "m/data.pkl", pickle, pickle_bytes);
    for (uint32_t r = 0; r < RECORDS; r++) {
        uint32_t words[RECORD_BYTES / 4];
        const float one = 1.0f;
        for (uint32_t i = 0; i < RECORD_BYTES / 4; i++) /* small ids, or ones */
            words[i] = i % 7 * r;
        for (uint32_t i = 0; i < RECORD_BYTES / 4 && r % 2 == 0; i++)
            memcpy(&words[i], &one, sizeof one);
        add_record(&zip, &directory, NAMES[r], words, RECORD_BYTES);
    }
    const uint32_t off = (uint32_t)zip.bytes;
    byte_buf_add(&zip, directory.data, directory.bytes);
    byte_buf_add_text(&zip, "PK\5\6");
    byte_buf_add_u32(&zip, 0);
    byte_buf_add_u16(&zip, RECORDS + 1);
    byte_buf_add_u16(&zip, RECORDS + 1);
    byte_buf_add_u32(&zip, (uint32_t)directory.bytes);
    byte_buf_add_u32(&zip, off);
    byte_buf_add_u16(&zip, 0);
    CF_ASSERT(byte_buf_check(&zip) == CF_OK && byte_buf_check(&directory) == CF_OK);
    byte_buf_done(&directory);
    *ret_zip = zip;
}
