/*
 * llm_fixture.h - made-up sequences of every length over a tiny model's vocabulary.
 */
#ifndef CF_TESTS_PARITY_LLM_FIXTURE_H
#define CF_TESTS_PARITY_LLM_FIXTURE_H

#include "llm_worker/llm_replay.h"

/* Id of <|endofprompt|> in the tokenizer of tiny and small models. */
#define FIXTURE_END_OF_PROMPT 514

#define FIXTURE_TEXT_MAX   80
#define FIXTURE_SPEECH_MAX 90
#define FIXTURE_FORCED_MAX 24

/* One made-up sequence and what replaying it gave. */
typedef struct fixture_sequence {
    int32_t text[FIXTURE_TEXT_MAX], speech[FIXTURE_SPEECH_MAX], forced[FIXTURE_FORCED_MAX];
    llm_replay_item item; /* points into the arrays above; logits and hidden are owned */
} fixture_sequence;

/* Fills *s from `seed`: lengths, ids, forced tokens. Release with fixture_sequence_done. */
void fixture_sequence_init(fixture_sequence *s, const llm_model *m, uint64_t seed);
void fixture_sequence_done(fixture_sequence *s);

#endif
