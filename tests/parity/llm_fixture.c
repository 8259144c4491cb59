/* llm_fixture.c - see llm_fixture.h. Fails: through cmocka. */
#include "tests/parity/llm_fixture.h"

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "tests/harness/test.h"

static int32_t pick(uint64_t seed, uint32_t list, uint32_t i, int32_t bound)
{
    return (int32_t)(rng_uniform(seed, list, i, 0) * (float)bound);
}

void fixture_sequence_init(fixture_sequence *s, const llm_model *m, uint64_t seed)
{
    llm_replay_item *item = &s->item;
    *s = (fixture_sequence){0};
    item->prompt.text = s->text;
    item->prompt.text_tokens = 1 + pick(seed, 0, 0, FIXTURE_TEXT_MAX);
    item->prompt.speech = s->speech;
    item->prompt.speech_tokens = pick(seed, 0, 1, FIXTURE_SPEECH_MAX + 1);
    item->forced = s->forced;
    item->forced_tokens = pick(seed, 0, 2, FIXTURE_FORCED_MAX + 1);
    for (uint32_t i = 0; i < FIXTURE_TEXT_MAX; i++)
        s->text[i] = pick(seed, 1, i, m->shape.text_rows);
    for (uint32_t i = 0; i < FIXTURE_SPEECH_MAX; i++)
        s->speech[i] = pick(seed, 2, i, SPEECH_CODES);
    for (uint32_t i = 0; i < FIXTURE_FORCED_MAX; i++)
        s->forced[i] = pick(seed, 3, i, SPEECH_CODES);
    const size_t rows = (size_t)item->forced_tokens + 1;
    assert_ok(mem_alloc(rows * SPEECH_ROWS, sizeof *item->logits, &item->logits));
    assert_ok(mem_alloc(rows * (size_t)m->shape.hidden, sizeof *item->hidden, &item->hidden));
}

void fixture_sequence_done(fixture_sequence *s)
{
    mem_free(s->item.logits);
    mem_free(s->item.hidden);
}
