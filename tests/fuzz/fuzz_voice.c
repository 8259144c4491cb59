/*
 * fuzz_voice.c - voice files of strangers, as users pass them round. What is read is a voice that the model can take,
 * and its content hash is that of the same voice read again.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/model/safetensors.h"
#include "common/model/voice_impl.h"
#include "tests/fuzz/voices.h"

static cf_err read_voice(const tensor_table *table, const char *name, voice **ret_voice)
{
    const voice_fields fields = {.token = tensor_table_find(table, "prompt_token"),
                                 .feat = tensor_table_find(table, "prompt_feat"),
                                 .embedding = tensor_table_find(table, "embedding"),
                                 .text_ids = tensor_table_find(table, "prompt_text"),
                                 .text = tensor_table_text(table, "prompt_text")};
    return voice_from_fields(name, &fields, ret_voice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    tensor_table *table = NULL;
    voice *v = NULL, *again = NULL;
    if (safetensors_parse(data, data_bytes, &table) != CF_OK)
        return 0;
    const char *name = tensor_table_count(table) ? tensor_table_at(table, 0)->name : "none";
    const cf_err err = read_voice(table, "fuzz", &v);
    CF_ASSERT((err == CF_OK) == (v != NULL));
    if (v) {
        fuzz_use_voice(v);
        CF_ASSERT((read_voice(table, name, &again) == CF_OK) == (voice_name_check(name) == CF_OK)); /* any name */
        CF_ASSERT(!again || strcmp(again->sha256, v->sha256) == 0);
    }
    voice_close(v);
    voice_close(again);
    tensor_table_close(table);
    return 0;
}
