/*
 * fuzz_st.c - safetensors files of strangers. What is read lies inside the bytes, tiles the data without a hole, and
 * can be hashed, converted and checked value by value.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/model/safetensors.h"
#include "tests/fuzz/tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    tensor_table *table = NULL;
    uint64_t header_bytes;
    size_t tensor_bytes = 0;
    if (safetensors_parse(data, data_bytes, &table) != CF_OK)
        return 0;
    memcpy(&header_bytes, data, sizeof header_bytes);
    for (size_t i = 0; i < tensor_table_count(table); i++) {
        const tensor_entry *e = tensor_table_at(table, i);
        CF_ASSERT(e->contiguous && e->data >= data + 8 + header_bytes);
        tensor_bytes += entry_bytes(e);
    }
    CF_ASSERT(8 + header_bytes + tensor_bytes == data_bytes);
    fuzz_use_tensors(table, data, data_bytes);
    tensor_table_close(table);
    return 0;
}
