/*
 * token_origin.h - what speech tokens were made of. A journal keeps it beside the tokens, so that a farm of another
 * model, precision or voice does not go on with tokens that it would not have made itself.
 */
#ifndef CF_ORCHESTRATOR_TOKEN_ORIGIN_H
#define CF_ORCHESTRATOR_TOKEN_ORIGIN_H

#include "common/base/config.h"
#include "orchestrator/session.h"

/* What all rows of a farm share: version, the keys of the configuration that tokens depend on, the llm's file (its
 * SHA-256) and the backbone's configuration in the model directory. */
CF_MUST_CHECK cf_err token_maker(const config *cfg, const char *llm_sha256, char ret_maker[SHA256_HEX_BYTES]);

/* The same of the file that an llm worker would take now, which is read whole the first time (network_hash.h). */
CF_MUST_CHECK cf_err token_maker_now(const config *cfg, char ret_maker[SHA256_HEX_BYTES]);

/* Of one segment in one attempt: maker, voice, seed, attempt and all ids that the llm is given. The session has its
 * plan. CF_ERR_NOMEM. */
CF_MUST_CHECK cf_err token_origin(const session *s, const char *maker, int32_t attempt, int32_t segment,
                                  char ret_sha256[SHA256_HEX_BYTES]);

/* Forgets the token sets that a journal had of this row and that are of another origin, or of none; says so in the log.
 * They are computed again. The session has its plan. CF_ERR_NOMEM. */
CF_MUST_CHECK cf_err token_origin_sift(session *s, const char *maker);

#endif
