/*
 * fuzz.h - the one function a fuzz target has. The same file links twice: with libFuzzer (`make fuzz F=name`) and with
 * replay.c, which `make check` runs over the committed corpus.
 */
#ifndef CF_TESTS_FUZZ_H
#define CF_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Feeds one input to the parser under test and returns 0. A crash, a sanitizer's report or a failed CF_ASSERT is a
 * find. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

#endif
