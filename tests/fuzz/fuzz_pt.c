/*
 * fuzz_pt.c - PyTorch checkpoints of strangers: an input that begins like an archive is one, any other is the pickle
 * inside. What is read lies inside the bytes, strides included, and no view expands beyond the bound.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/model/pt.h"
#include "tests/fuzz/tensors.h"

static void read_archive(const uint8_t *data, size_t data_bytes)
{
    tensor_table *table = NULL;
    uint64_t logical_bytes = 0;
    const cf_err verified = pt_verify(data, data_bytes);
    if (pt_parse(data, data_bytes, &table) != CF_OK)
        return;
    CF_ASSERT(verified == CF_OK || verified == CF_ERR_CORRUPT); /* its directory was read: only a checksum is wrong */
    for (size_t i = 0; i < tensor_table_count(table); i++)
        logical_bytes += entry_bytes(tensor_table_at(table, i));
    CF_ASSERT(logical_bytes <= 4 * (uint64_t)data_bytes);
    fuzz_use_tensors(table, data, data_bytes);
    tensor_table_close(table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    byte_buf zip;
    if (data_bytes >= 2 && memcmp(data, "PK", 2) == 0) {
        read_archive(data, data_bytes);
        return 0;
    }
    fuzz_wrap_pickle(data, data_bytes, &zip);
    read_archive(zip.data, zip.bytes);
    byte_buf_done(&zip);
    return 0;
}
