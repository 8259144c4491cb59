/* stage.c - names of stages. Pure. Fails: never. */
#include "common/worker/stage.h"

#include "common/base/check.h"

const char *stage_name(stage_kind kind)
{
    static const char *const names[STAGE_COUNT] = {"llm", "flow", "hift"};
    CF_ASSERT(kind < STAGE_COUNT);
    return names[kind];
}
