/*
 * voices.h - the voices of the model directory as the orchestrator needs them: transcript, token count, content hash.
 */
#ifndef CF_ORCHESTRATOR_VOICES_H
#define CF_ORCHESTRATOR_VOICES_H

#include "common/base/err.h"
#include "common/model/voice.h"

typedef struct voices voices;

/* store: the folder of voices made from recordings, whose names are "@KEY". */
CF_MUST_CHECK cf_err voices_open(const char *model_dir, const char *store, voices **ret_voices);
void voices_close_all(voices *v); /* NULL is fine */

/* The voice of that name, read again when its file has changed; "" is voice_default_name. Borrowed until the next call.
 * CF_ERR_NOTFOUND names what there is. */
CF_MUST_CHECK cf_err voices_find(voices *v, const char *name, const voice **ret_voice);

#endif
