/* fuzz_case.c - parity cases are files that strangers send: read one, and ask for everything an adapter may ask for. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "tools/parity_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    parity_case *c = NULL;
    if (parity_case_parse("fuzz", data, data_bytes, &c) != CF_OK)
        return 0;
    for (size_t i = 0; i < parity_case_count(c); i++) {
        const case_tensor *t = parity_case_at(c, i);
        CF_ASSERT((t->f32 != NULL) != (t->i32 != NULL));
        CF_ASSERT(t->rank <= CASE_RANK_MAX);
        int64_t dims[CASE_RANK_MAX] = {0}, count;
        const float *floats;
        const int32_t *ints;
        for (int rank = 0; rank <= CASE_RANK_MAX; rank++)
            if (parity_case_f32(c, t->name, rank, dims, &floats) == CF_OK)
                CF_ASSERT(rank == 0 || dims[rank - 1] >= 0);
        if (parity_case_i32(c, t->name, &count, &ints) == CF_OK && count > 0)
            CF_ASSERT(ints[count - 1] == ints[count - 1] && count <= (int64_t)t->count);
        if (t->f32) {
            const compare_stats s = compare_arrays(t->f32, t->f32, t->count, NULL);
            CF_ASSERT(!s.finite || (s.same_bits && s.max_abs == 0));
        }
    }
    CF_ASSERT(strlen(parity_case_stage(c)) < data_bytes);
    (void)parity_case_profile(c);
    (void)parity_case_defect(c);
    parity_case_close(c);
    return 0;
}
