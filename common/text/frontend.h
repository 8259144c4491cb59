/*
 * frontend.h - from a row of a manifest to what the LLM is fed: prompt ids and segments with their ids (text.md 4,
 * llm.md 4.2). The one door of this folder for the orchestrator.
 *
 *   zero_shot      prompt = the voice's transcript, which must carry the marker <|endofprompt|>; segments = the text
 *   cross_lingual  no prompt; each segment carries the marker itself
 *   instruct       prompt = "You are a helpful assistant. <instruct><|endofprompt|>"; segments = the text
 *
 * Where neither prompt nor text has the marker, "You are a helpful assistant.<|endofprompt|>" is put in front of the
 * prompt (zero_shot) or of every segment (cross_lingual). Cross-lingual text is normalised and split before the prefix
 * is added; with the marker in the text, or raw, it stays one segment, verbatim, as upstream's examples have it.
 */
#ifndef CF_TEXT_FRONTEND_H
#define CF_TEXT_FRONTEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"
#include "common/text/bpe.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TEXT_MARKER           "<|endofprompt|>"
#define TEXT_PREFIX           "You are a helpful assistant." TEXT_MARKER
#define TEXT_INSTRUCT_OPENING "You are a helpful assistant. "

typedef enum text_mode { TEXT_ZERO_SHOT, TEXT_CROSS_LINGUAL, TEXT_INSTRUCT } text_mode;

/* "zero_shot", "cross_lingual", "instruct": the words of manifest and command line. */
const char *text_mode_name(text_mode mode);
CF_MUST_CHECK cf_err text_mode_from_name(const char *name, text_mode *ret_mode);

/* Everything is borrowed for the length of the call. */
typedef struct text_request {
    text_mode mode;
    const char *text; /* 1..TEXT_CHARS_MAX code points */
    size_t text_bytes;
    bool raw;                  /* no normalisation, one segment */
    const char *prompt_text;   /* zero_shot: the voice's transcript; "" is none (prefix alone); NULL with prompt_ids */
    const int32_t *prompt_ids; /* zero_shot: the transcript's ids as saved with the voice, instead of prompt_text */
    size_t prompt_id_count;
    const char *instruct; /* instruct: what the voice shall do; verbatim if it has the marker, else wrapped */
} text_request;

typedef struct text_segment {
    char *text; /* owned, NUL-terminated; with the prefix if the segment carries it */
    size_t text_bytes;
    int32_t *ids; /* owned */
    size_t id_count;
} text_segment;

typedef struct text_plan {
    int32_t *prompt_ids; /* owned; NULL when there are none */
    size_t prompt_id_count;
    text_segment *segments; /* owned */
    size_t segment_count;
    bool prefix_added;        /* our words were put in front of prompt, instruction or segments: log it */
    bool marker_repeated;     /* the marker occurs more than once in prompt and one segment: log a warning */
    const char *empty_reason; /* static; why there is nothing to say, NULL when there are segments */
} text_plan;

/* CF_ERR_INVALID for empty text, NUL characters, bad UTF-8, a missing transcript or instruction; CF_ERR_LIMIT beyond
 * TEXT_CHARS_MAX, SEGMENTS_MAX, SEGMENT_TEXT_TOKENS_MAX or PROMPT_TEXT_TOKENS_MAX. The caller releases with
 * text_plan_done. A plan without segments is no error: the text holds nothing that can be spoken. */
CF_MUST_CHECK cf_err text_prepare(const tokenizer *tok, const text_request *req, text_plan *ret_plan);
void text_plan_done(text_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
