/*
 * fuzz_vocab.c - vocab.json and merges.txt of a stranger: the input is both, parted by the first NUL. What loads must
 * encode any bytes of the input, and give ids inside its own range.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/text/bpe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    tokenizer *tok = NULL;
    id_list ids = {0};
    const char *vocab = (const char *)data;
    const char *nul = data_bytes ? memchr(vocab, '\0', data_bytes) : NULL;
    const size_t vocab_bytes = nul ? (size_t)(nul - vocab) : data_bytes;
    const char *merges = nul ? nul + 1 : "";
    const tokenizer_source src = {.vocab_name = "vocab.json",
                                  .vocab = vocab,
                                  .vocab_bytes = vocab_bytes,
                                  .merges_name = "merges.txt",
                                  .merges = merges,
                                  .merges_bytes = nul ? data_bytes - vocab_bytes - 1 : 0};
    if (tokenizer_open_bytes(&src, &tok) != CF_OK)
        return 0;
    CF_ASSERT(tokenizer_encode(tok, vocab, vocab_bytes, &ids) == CF_OK); /* it was valid UTF-8 to load */
    for (size_t i = 0; i < ids.id_count; i++)
        CF_ASSERT(ids.ids[i] >= 0 && (size_t)ids.ids[i] < tokenizer_id_count(tok));
    id_list_done(&ids);
    tokenizer_close(tok);
    return 0;
}
