/* text_help.h - what the text tests share: the two tokenizers, and refusals of hand-made ones. */
#ifndef CF_TESTS_TEXT_HELP_H
#define CF_TESTS_TEXT_HELP_H

#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/text/bpe.h"

/* The tiny vocabulary lies in the repository: 511 entries, 255 merges. Caller closes. */
static inline tokenizer *open_tiny(void)
{
    tokenizer *tok = NULL;
    assert_ok(tokenizer_open(test_path("tests/golden/text/tokenizer_tiny"), &tok));
    return tok;
}

/* The released vocabulary is 4 MB of shared data; skips the test without it. Caller closes. */
static inline tokenizer *open_released(void)
{
    tokenizer *tok = NULL;
    assert_ok(tokenizer_open(test_shared("data/tokenizer"), &tok));
    return tok;
}

/* Fails unless text gives exactly these ids, which are written as in text.md: "9707 11 1246". */
static inline void expect_ids(const tokenizer *tok, const char *text, size_t text_bytes, const char *want)
{
    id_list ids = {0};
    char got[4096] = "";
    size_t used = 0;
    assert_ok(tokenizer_encode(tok, text, text_bytes, &ids));
    for (size_t i = 0; i < ids.id_count && used < sizeof got - 16; i++)
        used += (size_t)snprintf(got + used, sizeof got - used, "%s%d", i ? " " : "", ids.ids[i]);
    if (strcmp(got, want) != 0)
        fail_msg("\"%s\"\n  got  %s\n  want %s", text, got, want);
    id_list_done(&ids);
}

#endif
