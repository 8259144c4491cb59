/*
 * sha256.c - digests through libcrypto's EVP interface. Any thread; a hash object belongs to one.
 * Fails: CF_ERR_NOMEM. Asserts that libcrypto, once opened, does not fail.
 */
#include "common/base/sha256.h"

#include <openssl/evp.h>

#include "common/base/check.h"
#include "common/base/mem.h"

struct sha256 {
    EVP_MD_CTX *ctx; /* owned */
};

cf_err sha256_open(sha256 **ret_hash)
{
    cf_err err;
    sha256 *h = NULL;
    TRY(mem_alloc(1, sizeof *h, &h));
    h->ctx = EVP_MD_CTX_new();
    if (!h->ctx || EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(h->ctx);
        mem_free(h);
        return err_set(CF_ERR_NOMEM, "cannot start a SHA-256 digest");
    }
    *ret_hash = h;
out:
    return err;
}

void sha256_update(sha256 *h, const void *data, size_t bytes)
{
    CF_ASSERT(EVP_DigestUpdate(h->ctx, data, bytes) == 1);
}

void sha256_finish(sha256 *h, char ret_hex[SHA256_HEX_BYTES])
{
    unsigned char digest[32];
    unsigned digest_bytes = 0;
    CF_ASSERT(EVP_DigestFinal_ex(h->ctx, digest, &digest_bytes) == 1);
    CF_ASSERT(digest_bytes == sizeof digest);
    for (size_t i = 0; i < sizeof digest; i++) {
        ret_hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        ret_hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    ret_hex[64] = '\0';
    EVP_MD_CTX_free(h->ctx);
    mem_free(h);
}

cf_err sha256_of(const void *data, size_t bytes, char ret_hex[SHA256_HEX_BYTES])
{
    cf_err err;
    sha256 *h;
    TRY(sha256_open(&h));
    sha256_update(h, data, bytes);
    sha256_finish(h, ret_hex);
out:
    return err;
}

uint64_t fnv1a64(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ p[i]) * 0x100000001B3ull;
    return hash;
}
