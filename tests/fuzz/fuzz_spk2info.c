/*
 * fuzz_spk2info.c - saved voices of strangers: an archive, or the pickle inside it. Every voice that is imported can be
 * used, and they come all or not at all.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/model/pt.h"
#include "common/model/voice_impl.h"
#include "tests/fuzz/tensors.h"
#include "tests/fuzz/voices.h"

static void import(const uint8_t *data, size_t data_bytes)
{
    tensor_table *table = NULL;
    voice **voices = NULL;
    size_t count = 0;
    if (pt_parse(data, data_bytes, &table) != CF_OK)
        return;
    if (voices_from_table(table, &voices, &count) == CF_OK) {
        CF_ASSERT(count > 0);
        for (size_t i = 0; i < count; i++) {
            fuzz_use_voice(voices[i]);
            for (size_t k = 0; k < i; k++)
                CF_ASSERT(strcmp(voices[k]->name, voices[i]->name) != 0);
        }
        voices_close(voices, count);
    } else {
        CF_ASSERT(voices == NULL && count == 0);
    }
    tensor_table_close(table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    byte_buf zip;
    if (data_bytes >= 2 && memcmp(data, "PK", 2) == 0) {
        import(data, data_bytes);
        return 0;
    }
    fuzz_wrap_pickle(data, data_bytes, &zip);
    import(zip.data, zip.bytes);
    byte_buf_done(&zip);
    return 0;
}
