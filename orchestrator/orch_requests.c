/*
 * orch_requests.c - clients: limits first, then parsing, then one answer. Part of the shell.
 *
 * A SUBMIT whose id the same client has in flight already is answered again and not done twice, so a client may
 * repeat itself after a reconnect. Everything a client gets wrong is its answer's error, with code and text.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "orchestrator/audio_file.h"
#include "orchestrator/orch.h"

static void send_client(orch *o, const char *client, json *msg)
{
    if (bus_send(o->b, client, msg) != CF_OK)
        log_debug("client.gone", "client=%s text=\"%s\"", client, err_text());
}

static void put_error(json *m, cf_err code, const char *stage, const char *text)
{
    json *e = json_object();
    json_put_str(e, "code", err_name(code));
    json_put_str(e, "stage", stage);
    json_put_str(e, "text", text);
    json_put(m, "error", e);
}

/* DONE with status "refused": the row was never accepted. */
static void refuse(orch *o, const char *client, const char *id, cf_err code, const char *text)
{
    json *m = wire_new(WIRE_done);
    json_put_str(m, "id", id);
    json_put_str(m, "status", "refused");
    json_put_str(m, "file", "");
    json_put_u64(m, "samples", 0);
    json_put_f64(m, "seconds", 0);
    json_put_str(m, "sha256", "");
    json_put_u64(m, "seed", 0);
    json_put_u64(m, "attempts", 0);
    json_put_u64(m, "segments", 0);
    json_put_u64(m, "tokens", 0);
    json_put(m, "flags", json_array());
    json_put(m, "ms", json_object());
    put_error(m, code, "front", text);
    o->rows_refused++;
    send_client(o, client, m);
}

static json *flags_of(const session *s)
{
    json *flags = json_array();
    for (size_t i = 0; i < s->plan.segment_count; i++)
        if (s->segments[i].capped) {
            json_push(flags, json_str("frame-limit"));
            break;
        }
    if (s->plan.prefix_added)
        json_push(flags, json_str("prefix-added"));
    return flags;
}

void requests_answer(orch *o, const session *s, cf_err code, const char *stage, const char *text)
{
    json *m = wire_new(WIRE_done), *ms = json_object();
    json_put_str(m, "id", s->id);
    json_put_str(m, "status", code == CF_OK ? "done" : "failed");
    json_put_str(m, "file", code == CF_OK ? s->path : "");
    json_put_u64(m, "samples", (uint64_t)session_samples(s));
    json_put_f64(m, "seconds", (double)session_samples(s) / SAMPLE_RATE_HZ);
    json_put_str(m, "sha256", code == CF_OK ? s->file_sha256 : "");
    json_put_u64(m, "seed", s->seed);
    json_put_u64(m, "attempts", (uint64_t)s->attempts);
    json_put_u64(m, "segments", s->plan.segment_count);
    json_put_u64(m, "tokens", (uint64_t)session_tokens(s));
    json_put(m, "flags", flags_of(s));
    json_put_f64(ms, "llm", (double)s->compute_us[CORE_LLM] / 1e3);
    json_put_f64(ms, "flow", (double)s->compute_us[CORE_FLOW] / 1e3);
    json_put_f64(ms, "hift", (double)s->compute_us[CORE_HIFT] / 1e3);
    json_put_f64(ms, "queue", s->first_work_us ? (double)(s->first_work_us - s->accepted_us) / 1e3 : 0);
    json_put_f64(ms, "wall", (double)(clock_now_us() - s->accepted_us) / 1e3);
    json_put(m, "ms", ms);
    if (code != CF_OK)
        put_error(m, code, stage, text);
    send_client(o, s->client, m);
}

static void accept_answer(orch *o, const session *s)
{
    json *m = wire_new(WIRE_accepted);
    json_put_str(m, "id", s->id);
    json_put_u64(m, "boot", o->boot);
    json_put_u64(m, "segments", s->plan.segment_count);
    json_put_bool(m, "prefix_added", s->plan.prefix_added);
    send_client(o, s->client, m);
}

/* What the LLM is fed: mode, voice, text. */
static cf_err make_plan(orch *o, const wire_msg *msg, const voice *v, text_mode mode, text_plan *ret_plan)
{
    cf_err err;
    const text_request req = {
        .mode = mode,
        .text = wire_str(msg, "text"),
        .text_bytes = strlen(wire_str(msg, "text")),
        .raw = wire_bool(msg, "raw"),
        .prompt_text = v->prompt_text_id ? NULL
                       : v->prompt_text  ? v->prompt_text
                                         : "",
        .prompt_ids = v->prompt_text_id,
        .prompt_id_count = v->prompt_text_ids,
        .instruct = wire_has(msg, "instruct") ? wire_str(msg, "instruct") : NULL,
    };
    text_plan plan = {0};
    TRY(text_prepare(o->tok, &req, &plan));
    if (plan.segment_count == 0)
        err = err_set(CF_ERR_INVALID, "nothing to say: %s", plan.empty_reason ? plan.empty_reason : "no segments");
    if (err != CF_OK) {
        text_plan_done(&plan);
        goto out;
    }
    *ret_plan = plan;
out:
    return err;
}

static cf_err open_session(orch *o, const char *client, const wire_msg *msg, session **ret_session)
{
    cf_err err;
    const voice *v;
    text_mode mode;
    text_plan plan = {0};
    session *s = NULL;
    TRY(text_mode_from_name(wire_str(msg, "mode"), &mode));
    TRY(audio_format_check(wire_str(msg, "format")));
    if (wire_str(msg, "path")[0] != '/')
        FAIL(CF_ERR_INVALID, "path \"%s\" is not absolute", wire_str(msg, "path"));
    if (wire_has(msg, "instruct") != (mode == TEXT_INSTRUCT))
        FAIL(CF_ERR_INVALID, "instruct: the text goes with mode instruct, and only with it");
    TRY(voices_find(o->voice_table, wire_has(msg, "voice") ? wire_str(msg, "voice") : "", &v));
    if (mode == TEXT_ZERO_SHOT && v->prompt_tokens == 0)
        FAIL(CF_ERR_INVALID, "voice %s has no prompt speech: use mode cross_lingual or instruct", v->name);
    TRY(make_plan(o, msg, v, mode, &plan));
    TRY(session_open(&plan, &s));
    snprintf(s->client, sizeof s->client, "%s", client);
    snprintf(s->id, sizeof s->id, "%s", wire_str(msg, "id"));
    snprintf(s->path, sizeof s->path, "%s", wire_str(msg, "path"));
    snprintf(s->format, sizeof s->format, "%s", wire_str(msg, "format"));
    snprintf(s->voice_name, sizeof s->voice_name, "%s", v->name);
    snprintf(s->voice_sha256, sizeof s->voice_sha256, "%s", v->sha256);
    s->prompt_speech = mode == TEXT_ZERO_SHOT;
    s->seed = wire_u64(msg, "seed");
    s->speed = wire_f64(msg, "speed");
    s->accepted_us = clock_now_us();
    *ret_session = s;
out:
    return err;
}

static cf_err check_room(const orch *o, const session *s)
{
    if (o->sessions_live >= o->cfg.utterances_max)
        return err_set(CF_ERR_BUSY, "%d utterances are accepted already (utterances_max)", o->sessions_live);
    if (s->text_tokens > o->cfg.text_tokens_max)
        return err_set(CF_ERR_LIMIT, "%d text tokens, at most %d at once (text_tokens_max)", s->text_tokens,
                       o->cfg.text_tokens_max);
    if (o->text_tokens_held + s->text_tokens > o->cfg.text_tokens_max)
        return err_set(CF_ERR_BUSY, "%d of %d text tokens are accepted already (text_tokens_max)", o->text_tokens_held,
                       o->cfg.text_tokens_max);
    if (!orch_core_has_room(&o->core, (int32_t)s->plan.segment_count))
        return err_set(CF_ERR_BUSY, "no room for %zu segments", s->plan.segment_count);
    return CF_OK;
}

static void submit_to_core(orch *o, session *s, int32_t prompt_tokens, int32_t priority)
{
    static core_cost costs[SEGMENTS_MAX]; /* one thread; too large for the stack */
    int32_t utterance = 0;
    while (o->core.utterances[utterance].state != UTTERANCE_FREE)
        utterance++;
    for (size_t i = 0; i < s->plan.segment_count; i++)
        costs[i] = (core_cost){.text_tokens = (int32_t)s->plan.segments[i].id_count,
                               .prompt_tokens = prompt_tokens,
                               .known_tokens = s->segments[i].tokens_count};
    s->utterance = utterance;
    o->sessions[utterance] = s;
    o->sessions_live++;
    o->text_tokens_held += s->text_tokens;
    orch_apply(o, &(core_event){.kind = CORE_SUBMIT,
                                .utterance = utterance,
                                .priority = priority,
                                .speed = s->speed,
                                .segments = costs,
                                .segments_count = (int32_t)s->plan.segment_count});
}

static bool answered_as_known(orch *o, const char *client, const char *id)
{
    for (int i = 0; i < UTTERANCES_MAX; i++)
        if (o->sessions[i] && strcmp(o->sessions[i]->client, client) == 0 && strcmp(o->sessions[i]->id, id) == 0) {
            accept_answer(o, o->sessions[i]);
            return true;
        }
    return false;
}

static void on_submit(orch *o, const char *client, const wire_msg *msg)
{
    const char *id = wire_str(msg, "id");
    session *s = NULL;
    const voice *v;
    if (answered_as_known(o, client, id))
        return;
    cf_err err = o->draining ? err_set(CF_ERR_BUSY, "the farm is draining") : open_session(o, client, msg, &s);
    if (err == CF_OK)
        err = check_room(o, s);
    if (err == CF_OK)
        err = voices_find(o->voice_table, s->voice_name, &v);
    if (err != CF_OK) {
        session_close(s);
        refuse(o, client, id, err, err_text());
        return;
    }
    accept_answer(o, s);
    submit_to_core(o, s, (int32_t)v->prompt_tokens, (int32_t)wire_u64(msg, "priority"));
}

void requests_on_bus(orch *o, const char *peer, const wire_msg *msg)
{
    if (msg->kind == WIRE_submit) {
        on_submit(o, peer, msg);
    } else if (msg->kind == WIRE_query) {
        send_client(o, peer, status_message(o, wire_u64(msg, "nonce")));
    } else {
        json *m = wire_new(WIRE_goodbye);
        json_put_u64(m, "boot", o->boot);
        send_client(o, peer, m);
        o->draining = true;
        o->drain_by_us = clock_now_us() + (wire_bool(msg, "now") ? 0 : (uint64_t)o->cfg.grace_s * CLOCK_SECOND_US);
        log_info("orch.draining", "rows=%d client=%s", o->sessions_live, peer);
    }
}
