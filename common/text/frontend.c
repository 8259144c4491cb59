/*
 * frontend.c - prompt and segments of one row by mode. Any process, any thread; pure but for memory.
 *
 * Fails: CF_ERR_INVALID for what the row or the voice lacks, CF_ERR_LIMIT with the bound's name, CF_ERR_NOMEM.
 * Source: cosy cosyvoice/cli/frontend.py frontend_zero_shot, frontend_cross_lingual, frontend_instruct2,
 * cosyvoice/cli/cosyvoice.py @ace7c47.
 * Differs: the prefix is added where upstream's LLM would assert, and an instruction is never dropped in favour of a
 * saved transcript.
 */
#define _GNU_SOURCE /* memmem */
#include "common/text/frontend.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/text/special_tokens.h"
#include "common/text/text_buf.h"
#include "common/text/text_norm.h"

static const char *const mode_names[] = {
    [TEXT_ZERO_SHOT] = "zero_shot", [TEXT_CROSS_LINGUAL] = "cross_lingual", [TEXT_INSTRUCT] = "instruct"};

const char *text_mode_name(text_mode mode)
{
    CF_ASSERT((size_t)mode < CF_COUNT(mode_names));
    return mode_names[mode];
}

cf_err text_mode_from_name(const char *name, text_mode *ret_mode)
{
    for (size_t i = 0; i < CF_COUNT(mode_names); i++)
        if (strcmp(name, mode_names[i]) == 0) {
            *ret_mode = (text_mode)i;
            return CF_OK;
        }
    return err_set(CF_ERR_INVALID, "mode: expected zero_shot, cross_lingual or instruct, found \"%.40s\"", name);
}

static bool has_marker(const char *text, size_t text_bytes)
{
    return memmem(text, text_bytes, TEXT_MARKER, strlen(TEXT_MARKER)) != NULL;
}

static size_t count_id(const int32_t *ids, size_t id_count, int32_t id)
{
    size_t count = 0;
    for (size_t i = 0; i < id_count; i++)
        count += ids[i] == id;
    return count;
}

static cf_err check_request(const text_request *req)
{
    if (req->text_bytes == 0)
        return err_set(CF_ERR_INVALID, "text: expected 1..%d characters, found none", TEXT_CHARS_MAX);
    const char *nul = memchr(req->text, '\0', req->text_bytes);
    if (nul)
        return err_set(CF_ERR_INVALID, "text: NUL character at byte %zu", (size_t)(nul - req->text));
    if (req->mode == TEXT_INSTRUCT && (!req->instruct || !req->instruct[0]))
        return err_set(CF_ERR_INVALID, "mode instruct: expected an instruction, found none");
    if (req->mode == TEXT_ZERO_SHOT && !req->prompt_text && !req->prompt_ids)
        return err_set(CF_ERR_INVALID,
                       "mode zero_shot: expected the voice's transcript, found none; use mode cross_lingual");
    return CF_OK;
}

/* A prompt is bounded in tokens; its text in characters, before anything is computed from it. */
static cf_err check_prompt_text(const char *what, const char *text)
{
    const size_t bytes = strlen(text);
    size_t bad_off;
    if (!utf8_valid(text, bytes, &bad_off))
        return err_set(CF_ERR_INVALID, "%s: invalid UTF-8 at byte %zu", what, bad_off);
    if (utf8_count(text, bytes) > TEXT_CHARS_MAX)
        return err_set(CF_ERR_LIMIT, "%s: expected at most %d characters, found %zu", what, TEXT_CHARS_MAX,
                       utf8_count(text, bytes));
    return CF_OK;
}

static cf_err encode_str(const tokenizer *tok, const char *text, id_list *ids)
{
    return tokenizer_encode(tok, text, strlen(text), ids);
}

/* Ids saved with a voice are used as they are, behind the prefix if neither they nor the text carry the marker. */
static cf_err prompt_from_ids(const tokenizer *tok, const text_request *req, bool text_marked, id_list *ids,
                              text_plan *plan)
{
    cf_err err = CF_OK;
    for (size_t i = 0; i < req->prompt_id_count; i++)
        if (req->prompt_ids[i] < 0 || (size_t)req->prompt_ids[i] >= tokenizer_id_count(tok))
            FAIL(CF_ERR_INVALID, "prompt_ids[%zu]: expected 0..%zu, found %d", i, tokenizer_id_count(tok) - 1,
                 req->prompt_ids[i]);
    const int32_t marker = tokenizer_special_id(tok, SPECIAL_END_OF_PROMPT);
    plan->prefix_added = !text_marked && count_id(req->prompt_ids, req->prompt_id_count, marker) == 0;
    if (plan->prefix_added)
        TRY(encode_str(tok, TEXT_PREFIX, ids));
    TRY(id_list_put(ids, req->prompt_ids, req->prompt_id_count));
out:
    return err;
}

/* A transcript with the marker, ours or its own, is taken verbatim; one without is normalised as a whole. */
static cf_err prompt_from_transcript(const tokenizer *tok, const text_request *req, bool text_marked, id_list *ids,
                                     text_plan *plan)
{
    cf_err err;
    text_norm norm = {0};
    const char *text = req->prompt_text;
    TRY(check_prompt_text("prompt_text", text));
    plan->prefix_added = !text_marked && !has_marker(text, strlen(text));
    if (plan->prefix_added) {
        TRY(encode_str(tok, TEXT_PREFIX, ids));
        TRY(encode_str(tok, text, ids));
        goto out;
    }
    TRY(req->raw ? text_verbatim(text, strlen(text), &norm) : text_normalize(tok, text, strlen(text), &norm));
    if (norm.upstream_raises)
        FAIL(CF_ERR_INVALID, "prompt_text: %s", norm.empty_reason);
    TRY(tokenizer_encode(tok, norm.whole, norm.whole_bytes, ids));
out:
    text_norm_done(&norm);
    return err;
}

static cf_err prompt_from_instruct(const tokenizer *tok, const text_request *req, id_list *ids, text_plan *plan)
{
    cf_err err;
    text_buf wrapped = {0};
    TRY(check_prompt_text("instruct", req->instruct));
    plan->prefix_added = !has_marker(req->instruct, strlen(req->instruct));
    if (plan->prefix_added)
        TRY(text_buf_put_str(&wrapped, TEXT_INSTRUCT_OPENING));
    TRY(text_buf_put_str(&wrapped, req->instruct));
    if (plan->prefix_added)
        TRY(text_buf_put_str(&wrapped, TEXT_MARKER));
    TRY(tokenizer_encode(tok, wrapped.text, wrapped.text_bytes, ids));
out:
    text_buf_done(&wrapped);
    return err;
}

static cf_err make_prompt(const tokenizer *tok, const text_request *req, bool text_marked, text_plan *plan)
{
    cf_err err = CF_OK;
    id_list ids = {0};
    if (req->mode == TEXT_INSTRUCT)
        TRY(prompt_from_instruct(tok, req, &ids, plan));
    else if (req->mode == TEXT_ZERO_SHOT && req->prompt_ids)
        TRY(prompt_from_ids(tok, req, text_marked, &ids, plan));
    else if (req->mode == TEXT_ZERO_SHOT)
        TRY(prompt_from_transcript(tok, req, text_marked, &ids, plan));
    else
        plan->prefix_added = !text_marked; /* by make_segment */
    if (ids.id_count > PROMPT_TEXT_TOKENS_MAX)
        FAIL(CF_ERR_LIMIT, "prompt: expected at most %d tokens, found %zu", PROMPT_TEXT_TOKENS_MAX, ids.id_count);
    plan->prompt_ids = ids.ids;
    plan->prompt_id_count = ids.id_count;
    ids = (id_list){0};
out:
    id_list_done(&ids);
    return err;
}

static cf_err make_segment(const tokenizer *tok, text_span span, bool with_prefix, text_segment *ret_segment)
{
    cf_err err = CF_OK;
    text_buf text = {0};
    id_list ids = {0};
    if (with_prefix)
        TRY(text_buf_put_str(&text, TEXT_PREFIX));
    TRY(text_buf_put(&text, span.text, span.text_bytes));
    TRY(tokenizer_encode(tok, text.text, text.text_bytes, &ids));
    if (ids.id_count > SEGMENT_TEXT_TOKENS_MAX)
        FAIL(CF_ERR_LIMIT, "text: a segment without a sentence mark has %zu tokens, expected at most %d", ids.id_count,
             SEGMENT_TEXT_TOKENS_MAX);
    *ret_segment =
        (text_segment){.text = text.text, .text_bytes = text.text_bytes, .ids = ids.ids, .id_count = ids.id_count};
    text = (text_buf){0};
    ids = (id_list){0};
out:
    text_buf_done(&text);
    id_list_done(&ids);
    return err;
}

static cf_err make_segments(const tokenizer *tok, const text_request *req, text_plan *plan)
{
    cf_err err;
    text_norm norm = {0};
    const bool with_prefix = req->mode == TEXT_CROSS_LINGUAL && plan->prefix_added;
    const int32_t marker = tokenizer_special_id(tok, SPECIAL_END_OF_PROMPT);
    const size_t prompt_markers = count_id(plan->prompt_ids, plan->prompt_id_count, marker);
    TRY(req->raw ? text_verbatim(req->text, req->text_bytes, &norm)
                 : text_normalize(tok, req->text, req->text_bytes, &norm));
    if (norm.segment_count > SEGMENTS_MAX)
        FAIL(CF_ERR_LIMIT, "text: expected at most %d segments, found %zu", SEGMENTS_MAX, norm.segment_count);
    TRY(mem_alloc(norm.segment_count, sizeof *plan->segments, &plan->segments));
    for (size_t i = 0; i < norm.segment_count; i++) {
        text_segment *segment = &plan->segments[i];
        TRY(make_segment(tok, norm.segments[i], with_prefix, segment));
        plan->segment_count++;
        if (prompt_markers + count_id(segment->ids, segment->id_count, marker) > 1)
            plan->marker_repeated = true;
    }
    plan->empty_reason = norm.empty_reason;
out:
    text_norm_done(&norm);
    return err;
}

cf_err text_prepare(const tokenizer *tok, const text_request *req, text_plan *ret_plan)
{
    cf_err err;
    text_plan plan = {0};
    TRY(check_request(req));
    TRY(make_prompt(tok, req, has_marker(req->text, req->text_bytes), &plan));
    TRY(make_segments(tok, req, &plan));
    *ret_plan = plan;
    plan = (text_plan){0};
out:
    text_plan_done(&plan);
    return err;
}

void text_plan_done(text_plan *plan)
{
    for (size_t i = 0; i < plan->segment_count; i++) {
        mem_free(plan->segments[i].text);
        mem_free(plan->segments[i].ids);
    }
    mem_free(plan->segments);
    mem_free(plan->prompt_ids);
    *plan = (text_plan){0};
}
