/*
 * fuzz_text.c - any text through normalisation, splitting and the tokenizer. Checked: refusals are for bad UTF-8 or too
 * many characters alone, there are segments or there is a reason, segments are valid UTF-8, ids are in range, and only
 * an empty segment has none.
 */
#include "tests/fuzz/fuzz.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/utf8.h"
#include "common/text/bpe.h"
#include "common/text/text_norm.h"

/* Opened once: loading it for each input would be all the time there is. Lives as long as the process. */
static const tokenizer *tiny(void)
{
    static tokenizer *tok;
    const char *root = getenv("COSYFARM_ROOT");
    char path[4096];
    if (!tok) {
        CF_ASSERT(snprintf(path, sizeof path, "%s/tests/golden/text/tokenizer_tiny", root ? root : ".") > 0);
        CF_ASSERT(tokenizer_open(path, &tok) == CF_OK);
    }
    return tok;
}

static void check_segment(text_span s)
{
    id_list ids = {0};
    CF_ASSERT(utf8_valid(s.text, s.text_bytes, NULL));
    CF_ASSERT(tokenizer_encode(tiny(), s.text, s.text_bytes, &ids) == CF_OK);
    CF_ASSERT((ids.id_count == 0) == (s.text_bytes == 0));
    for (size_t i = 0; i < ids.id_count; i++)
        CF_ASSERT(ids.ids[i] >= 0 && (size_t)ids.ids[i] < tokenizer_id_count(tiny()));
    id_list_done(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    const char *text = (const char *)data;
    text_norm norm, verbatim;
    const bool good = utf8_valid(text, data_bytes, NULL) && utf8_count(text, data_bytes) <= TEXT_CHARS_MAX;
    CF_ASSERT((text_normalize(tiny(), text, data_bytes, &norm) == CF_OK) == good);
    CF_ASSERT((text_verbatim(text, data_bytes, &verbatim) == CF_OK) == good);
    if (!good)
        return 0;
    CF_ASSERT((norm.segment_count == 0) == (norm.empty_reason != NULL));
    for (size_t i = 0; i < norm.segment_count; i++)
        check_segment(norm.segments[i]);
    check_segment(verbatim.segments[0]);
    text_norm_done(&norm);
    text_norm_done(&verbatim);
    return 0;
}
