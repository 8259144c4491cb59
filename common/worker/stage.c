/* stage.c - names of stages and precisions. Pure. Fails: never. */
#include "common/worker/stage.h"

#include <string.h>

#include "common/model/stage_tables.h"

const char *stage_name(stage_kind kind)
{
    _Static_assert((int)STAGE_COUNT == (int)MODEL_STAGE_COUNT && (int)STAGE_HIFT == (int)MODEL_HIFT, "one order");
    return model_stage_name((model_stage)kind);
}

precision stage_precision(const char *word)
{
    if (strcmp(word, "fp16") == 0)
        return PRECISION_FP16;
    return strcmp(word, "bf16") == 0 || stage_int8_weights(word) ? PRECISION_BF16 : PRECISION_F32;
}

bool stage_int8_weights(const char *word)
{
    return strcmp(word, "int8") == 0;
}
