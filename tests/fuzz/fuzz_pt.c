/*
 * fuzz_pt.c - PyTorch checkpoints of strangers: an input that begins like an archive is one, any other is the pickle
 * inside. What is read lies inside the bytes, strides included, and no view expands beyond the bound.
 */
#include "tests/fuzz/fuzz.h"

#include <stdbool.h>
#include <string.h>

#include "common/base/check.h"
#include "common/model/pt.h"
#include "tests/fuzz/tensors.h"

/* True when it was read. */
static bool read_archive(const uint8_t *data, size_t data_bytes)
{
    tensor_table *table = NULL;
    uint64_t logical_bytes = 0;
    if (pt_parse(data, data_bytes, &table) != CF_OK)
        return false;
    for (size_t i = 0; i < tensor_table_count(table); i++)
        logical_bytes += entry_bytes(tensor_table_at(table, i));
    CF_ASSERT(logical_bytes <= 4 * (uint64_t)data_bytes);
    fuzz_use_tensors(table, data, data_bytes);
    tensor_table_close(table);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    byte_buf zip;
    if (data_bytes >= 2 && memcmp(data, "PK", 2) == 0) {
        const bool is_read = read_archive(data, data_bytes);
        const cf_err verified = pt_verify(data, data_bytes);
        CF_ASSERT(!is_read || verified == CF_OK || verified == CF_ERR_CORRUPT); /* a checksum at most is wrong */
        return 0;
    }
    fuzz_wrap_pickle(data, data_bytes, &zip);
    (void)read_archive(zip.data, zip.bytes);
    byte_buf_done(&zip);
    return 0;
}
