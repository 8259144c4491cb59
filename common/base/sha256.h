/*
 * sha256.h - SHA-256 and FNV-1a. The one door to libcrypto, which uses the processor's SHA instructions where it has
 * them.
 */
#ifndef CF_BASE_SHA256_H
#define CF_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHA256_HEX_BYTES 65 /* 64 lower-case digits and NUL */

typedef struct sha256 sha256;

CF_MUST_CHECK cf_err sha256_open(sha256 **ret_hash);
void sha256_update(sha256 *h, const void *data, size_t bytes);
/* Writes the digest as lower-case hex and closes h. */
void sha256_finish(sha256 *h, char ret_hex[SHA256_HEX_BYTES]);

/* One call for bytes at hand. */
CF_MUST_CHECK cf_err sha256_of(const void *data, size_t bytes, char ret_hex[SHA256_HEX_BYTES]);

/* FNV-1a 64 bit; seed with FNV64_OFFSET. */
#define FNV64_OFFSET 0xCBF29CE484222325ull
uint64_t fnv1a64(uint64_t hash, const void *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
