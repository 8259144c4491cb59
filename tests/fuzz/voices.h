/*
 * voices.h - what must be true of any voice that was read, whatever it was read from.
 */
#ifndef CF_TESTS_FUZZ_VOICES_H
#define CF_TESTS_FUZZ_VOICES_H

#include "common/model/voice.h"

void fuzz_use_voice(const voice *v);

#endif
