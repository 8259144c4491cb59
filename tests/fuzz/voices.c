/* voices.c - see voices.h. Fails: by assertion, which is a find. */
#include "tests/fuzz/voices.h"

#include <math.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/utf8.h"

void fuzz_use_voice(const voice *v)
{
    float sum = 0;
    CF_ASSERT(voice_name_check(v->name) == CF_OK);
    CF_ASSERT(v->prompt_tokens <= PROMPT_TOKENS_MAX);
    CF_ASSERT((v->prompt_tokens > 0) == (v->prompt_token != NULL) &&
              (v->prompt_token != NULL) == (v->prompt_feat != NULL));
    for (size_t i = 0; i < v->prompt_tokens; i++)
        CF_ASSERT(v->prompt_token[i] >= 0 && v->prompt_token[i] < SPEECH_CODES);
    for (size_t i = 0; i < v->prompt_tokens * FRAMES_PER_TOKEN * MEL_BINS; i++)
        CF_ASSERT(isfinite(v->prompt_feat[i]));
    for (int i = 0; i < SPEAKER_VALUES; i++) {
        CF_ASSERT(isfinite(v->embedding[i]));
        sum += fabsf(v->embedding[i]);
    }
    CF_ASSERT(sum > 0);
    CF_ASSERT(v->prompt_text_ids <= PROMPT_TEXT_TOKENS_MAX && (!v->prompt_text || !v->prompt_text_id));
    for (size_t i = 0; i < v->prompt_text_ids; i++)
        CF_ASSERT(v->prompt_text_id[i] >= 0);
    if (v->prompt_text)
        CF_ASSERT(strlen(v->prompt_text) <= VOICE_TEXT_BYTES_MAX &&
                  utf8_valid(v->prompt_text, strlen(v->prompt_text), NULL));
    CF_ASSERT(strlen(v->sha256) == 64);
}
