/*
 * orch_requests.c - clients: limits first, then parsing, then one answer. Part of the shell.
 *
 * A row is accepted when the journal holds it on disk. A SUBMIT that equals a live row is answered again and not done
 * twice, so a client may repeat itself after a reconnect or a restart of its own. Everything a client gets wrong is its
 * answer's error, with code and text.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/voice_store.h"
#include "orchestrator/audio_file.h"
#include "orchestrator/guard.h"
#include "orchestrator/orch.h"
#include "orchestrator/row_plan.h"
#include "orchestrator/token_origin.h"

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
    json_put_text(e, "text", text);
    json_put(m, "error", e);
}

/* DONE with status "refused": the row was never accepted. */
static void refuse(orch *o, const char *client, const char *id, cf_err code, const char *text)
{
    json *m = wire_new(WIRE_done);
    json_put_str(m, "id", id);
    json_put_str(m, "status", "refused");
    json_put_str(m, "file", "");
    json_put_u64(m, "bytes", 0);
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
    for (int i = 0; i < GUARD_FLAG_COUNT; i++)
        if (s->flags & GUARD_BIT(i))
            json_push(flags, json_str(guard_flag_name(i)));
    if (s->attempt > 0)
        json_push(flags, json_str("retried"));
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
    json_put_u64(m, "bytes", code == CF_OK ? s->file_bytes : 0);
    json_put_u64(m, "samples", (uint64_t)session_samples(s));
    json_put_f64(m, "seconds", (double)session_samples(s) / SAMPLE_RATE_HZ);
    json_put_str(m, "sha256", code == CF_OK ? s->file_sha256 : "");
    json_put_u64(m, "seed", s->seed);
    json_put_u64(m, "attempts", (uint64_t)s->dispatches);
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

static cf_err check_request(const wire_msg *msg, text_mode mode)
{
    cf_err err;
    const bool is_source = wire_has(msg, "source_wav");
    TRY(audio_format_check(wire_str(msg, "format")));
    if (wire_str(msg, "path")[0] != '/')
        FAIL(CF_ERR_INVALID, "path \"%s\" is not absolute", wire_str(msg, "path"));
    if (wire_has(msg, "instruct") != (mode == TEXT_INSTRUCT))
        FAIL(CF_ERR_INVALID, "instruct: the text goes with mode instruct, and only with it");
    if (is_source && (wire_has(msg, "prompt_wav") || wire_str(msg, "text")[0]))
        FAIL(CF_ERR_INVALID, "source_wav is spoken as it is: no text and no prompt_wav beside it");
    if (wire_has(msg, "prompt_wav") && wire_has(msg, "voice"))
        FAIL(CF_ERR_INVALID, "prompt_wav takes the place of voice: give one of them");
    if (wire_has(msg, "prompt_text") && !wire_has(msg, "prompt_wav"))
        FAIL(CF_ERR_INVALID, "prompt_text goes with prompt_wav, and only with it");
out:
    return err;
}

/* What the session keeps of its voice. */
static cf_err take_voice(session *s, const voice *v, bool prompt_speech)
{
    cf_err err = CF_OK;
    snprintf(s->voice_name, sizeof s->voice_name, "%s", v->name);
    snprintf(s->voice_sha256, sizeof s->voice_sha256, "%s", v->sha256);
    s->prompt_tokens = (int32_t)v->prompt_tokens;
    s->prompt_speech = prompt_speech;
    if (!prompt_speech)
        return CF_OK;
    TRY(mem_alloc(v->prompt_tokens, sizeof *s->prompt_token, &s->prompt_token));
    memcpy(s->prompt_token, v->prompt_token, v->prompt_tokens * sizeof *s->prompt_token);
out:
    return err;
}

/* A session without plan keeps its request, and of a recording the key under which its voice will be. */
static cf_err await_recording(orch *o, session *s, const wire_msg *msg)
{
    cf_err err;
    char *text = NULL;
    struct stat st;
    const bool is_source = wire_has(msg, "source_wav");
    const char *path = wire_str(msg, is_source ? "source_wav" : "prompt_wav");
    if (path[0] != '/')
        FAIL(CF_ERR_INVALID, "recording \"%s\": expected an absolute path", path);
    err = io_stat(path, &st);
    if (err != CF_OK) {
        err = err_context(err, "recording");
        goto out;
    }
    if (!S_ISREG(st.st_mode))
        FAIL(CF_ERR_INVALID, "recording %s: not a regular file", path);
    if (st.st_size > ROW_RECORDING_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "recording %s: %lld bytes, at most %d", path, (long long)st.st_size,
             ROW_RECORDING_BYTES_MAX);
    TRY(json_print(msg->root, false, &text));
    TRY(wire_parse(text, strlen(text), WIRE_CLIENT_BUS, &s->request));
    if (!is_source)
        TRY(voice_store_key(o->cfg.model, path, wire_has(msg, "prompt_text") ? wire_str(msg, "prompt_text") : NULL,
                            s->enroll_key));
out:
    mem_free(text);
    return err;
}

static cf_err plan_now(orch *o, session *s, const wire_msg *msg, const char *voice_name)
{
    cf_err err;
    const voice *v;
    text_mode mode;
    text_plan plan = {0};
    TRY(text_mode_from_name(wire_str(msg, "mode"), &mode));
    TRY(voices_find(o->voice_table, voice_name, &v));
    const text_request words = {.mode = mode,
                                .text = wire_str(msg, "text"),
                                .text_bytes = strlen(wire_str(msg, "text")),
                                .raw = wire_bool(msg, "raw"),
                                .instruct = wire_has(msg, "instruct") ? wire_str(msg, "instruct") : NULL};
    TRY(row_plan(o->tok, &words, v, &plan));
    TRY(take_voice(s, v, mode == TEXT_ZERO_SHOT));
    TRY(session_set_plan(s, &plan));
out:
    text_plan_done(&plan);
    return err;
}

static cf_err open_session(orch *o, const char *client, const wire_msg *msg, session **ret_session)
{
    cf_err err;
    text_mode mode;
    text_plan none = {0};
    session *s = NULL;
    TRY(text_mode_from_name(wire_str(msg, "mode"), &mode));
    TRY(check_request(msg, mode));
    TRY(session_open(&none, &s));
    snprintf(s->client, sizeof s->client, "%s", client);
    snprintf(s->id, sizeof s->id, "%s", wire_str(msg, "id"));
    snprintf(s->path, sizeof s->path, "%s", wire_str(msg, "path"));
    snprintf(s->format, sizeof s->format, "%s", wire_str(msg, "format"));
    s->seed = wire_u64(msg, "seed");
    s->speed = wire_f64(msg, "speed");
    s->priority = (int32_t)wire_u64(msg, "priority");
    s->impatient = wire_has(msg, "patient") && !wire_bool(msg, "patient");
    s->accepted_us = clock_now_us();
    if (wire_u64(msg, "deadline_ms") > 0)
        s->deadline_us = s->accepted_us + wire_u64(msg, "deadline_ms") * 1000;
    if (wire_has(msg, "prompt_wav") || wire_has(msg, "source_wav"))
        TRY(await_recording(o, s, msg));
    else
        TRY(plan_now(o, s, msg, wire_has(msg, "voice") ? wire_str(msg, "voice") : ""));
    *ret_session = s;
    s = NULL;
out:
    session_close(s);
    return err;
}

cf_err requests_set_voice(orch *o, session *s, const char *voice_name)
{
    cf_err err;
    TRY(plan_now(o, s, &s->request, voice_name));
    o->text_tokens_held += s->text_tokens;
    TRY(token_origin_sift(s, o->maker_sha256));
    TRY(session_use_known(s));
    wire_done(&s->request);
out:
    return err;
}

cf_err requests_set_source(orch *o, session *s, int32_t *tokens, int32_t tokens_count)
{
    cf_err err;
    const voice *v;
    if (tokens_count == 0)
        FAIL(CF_ERR_INVALID, "%s: no speech tokens in it", wire_str(&s->request, "source_wav"));
    TRY(voices_find(o->voice_table, wire_has(&s->request, "voice") ? wire_str(&s->request, "voice") : "", &v));
    TRY(take_voice(s, v, false));
    err = session_set_source(s, tokens, tokens_count);
    tokens = NULL;
    if (err == CF_OK)
        wire_done(&s->request);
out:
    mem_free(tokens);
    return err;
}

/* A new or recovered row on its way: to the core, or first to have its recording enrolled. Recovered rows may be more
 * than are accepted at once (ends that did not reach the journal): they wait for room. */
static void set_out(orch *o, session *s)
{
    if (s->request.root)
        orch_enroll_put(o, s);
    else if (requests_has_segments(o, s))
        requests_begin_attempt(o, s);
    else
        orch_begin_when_room(o, s);
}

/* Rows that can wait leave free what the longest row takes. */
CF_STATIC_ASSERT(CORE_SEGMENTS_MAX / INTERACTIVE_SHARE >= SEGMENTS_MAX, "the longest row must fit what is kept for it");

bool requests_has_segments(const orch *o, const session *s)
{
    const int32_t kept = s->impatient ? 0 : CORE_SEGMENTS_MAX / INTERACTIVE_SHARE;
    return orch_core_has_room(&o->core, (int32_t)s->plan.segment_count + kept);
}

/* What live rows that can wait, or those that cannot, hold. */
typedef struct holding {
    int32_t rows, text_tokens;
} holding;

static holding held_by(const orch *o, bool impatient)
{
    holding h = {0};
    for (int i = 0; i < ROWS_OPEN_MAX; i++)
        if (o->live[i] && o->live[i]->impatient == impatient) {
            h.rows++;
            h.text_tokens += o->live[i]->text_tokens;
        }
    return h;
}

static int32_t less_kept(int32_t max, const session *s)
{
    const int32_t kept = max < INTERACTIVE_SHARE ? max > 1 : max / INTERACTIVE_SHARE;
    return s->impatient ? max : max - kept;
}

/* Rows that can wait leave a share to those that cannot. Of text, one row alone among its like has room whatever it is:
 * the longest text is a valid one, and SEGMENTS_MAX bounds it. */
static cf_err check_room(const orch *o, const session *s)
{
    const holding like = held_by(o, s->impatient);
    const char *kept = s->impatient ? "" : ", a share of it kept for rows that cannot wait";
    if (o->sessions_live >= o->cfg.utterances_max || like.rows >= less_kept(o->cfg.utterances_max, s))
        return err_set(CF_ERR_BUSY, "%d utterances are accepted already (utterances_max %d%s)", o->sessions_live,
                       o->cfg.utterances_max, kept);
    if (like.rows > 0 && (o->text_tokens_held + s->text_tokens > o->cfg.text_tokens_max ||
                          like.text_tokens + s->text_tokens > less_kept(o->cfg.text_tokens_max, s)))
        return err_set(CF_ERR_BUSY, "%d text tokens are accepted already, the row has %d (text_tokens_max %d%s)",
                       o->text_tokens_held, s->text_tokens, o->cfg.text_tokens_max, kept);
    if (!requests_has_segments(o, s))
        return err_set(CF_ERR_BUSY, "no room for %zu segments", s->plan.segment_count);
    return CF_OK;
}

/* Hands the present attempt to the core; it has room (checked at acceptance, or just left by the same row). */
void requests_begin_attempt(orch *o, session *s)
{
    static core_cost costs[SEGMENTS_MAX]; /* one thread; too large for the stack */
    int32_t utterance = 0;
    while (o->core.utterances[utterance].state != UTTERANCE_FREE)
        utterance++;
    for (size_t i = 0; i < s->plan.segment_count; i++)
        costs[i] = (core_cost){.text_tokens = (int32_t)s->plan.segments[i].id_count,
                               .prompt_tokens = s->prompt_tokens,
                               .known_tokens = s->segments[i].tokens_count};
    s->utterance = utterance;
    o->sessions[utterance] = s;
    orch_apply(o, &(core_event){.kind = CORE_SUBMIT,
                                .utterance = utterance,
                                .priority = session_rank(s),
                                .row = s->journal_row,
                                .speed = s->speed,
                                .deadline_us = s->deadline_us,
                                .segments = costs,
                                .segments_count = (int32_t)s->plan.segment_count});
}

static void enter(orch *o, session *s)
{
    int at = 0;
    while (o->live[at])
        at++;
    CF_ASSERT(at < ROWS_OPEN_MAX); /* new rows stop at utterances_max, the journal at this */
    o->live[at] = s;
    o->sessions_live++;
    o->text_tokens_held += s->text_tokens;
}

/* The live row that writes this file; NULL: none. */
static session *writer_of(orch *o, const char *path)
{
    for (int i = 0; i < ROWS_OPEN_MAX; i++)
        if (o->live[i] && strcmp(o->live[i]->path, path) == 0)
            return o->live[i];
    return NULL;
}

/*
 * A row whose file a live row writes already. The same request: whoever asks last gets the answer (a client that came
 * back, with another identity perhaps). Another request: refused, two rows cannot have one file.
 */
static void answer_as_known(orch *o, session *s, const char *client, const char *id, const char *submit_sha256)
{
    if (strcmp(s->submit_sha256, submit_sha256) != 0) {
        char text[256];
        snprintf(text, sizeof text, "%.200s is being written by another row", s->path);
        refuse(o, client, id, CF_ERR_BUSY, text);
        return;
    }
    snprintf(s->client, sizeof s->client, "%s", client);
    if (s->told_accepted)
        accept_answer(o, s);
}

/* The request in one line, which is hashed and journalled; *ret_text is owned. */
static cf_err print_request(const json *root, char **ret_text, char ret_sha256[SHA256_HEX_BYTES])
{
    cf_err err;
    char *text = NULL;
    TRY(json_print(root, false, &text));
    TRY(sha256_of(text, strlen(text), ret_sha256));
    *ret_text = text;
    text = NULL;
out:
    mem_free(text);
    return err;
}

static cf_err check_journal(orch *o)
{
    char text[256];
    uint64_t waiting_bytes;
    const cf_err state = journal_state(o->log, text, sizeof text, &waiting_bytes);
    if (waiting_bytes > JOURNAL_WAITING_MAX)
        return err_set(CF_ERR_BUSY, "%llu bytes of the journal wait to be written: %s",
                       (unsigned long long)waiting_bytes, state == CF_OK ? "slow storage" : text);
    return CF_OK;
}

/* The row is new: takes it on, or says why not. */
static cf_err take_row(orch *o, const char *client, const wire_msg *msg, const char *text, const char *submit_sha256)
{
    cf_err err;
    session *s = NULL;
    if (o->draining)
        FAIL(CF_ERR_BUSY, "the farm is draining");
    TRY(check_journal(o));
    TRY(open_session(o, client, msg, &s));
    TRY(check_room(o, s));
    if (s->impatient)
        TRY(io_check_folder_of(s->path)); /* as we see it, whose name spaces may differ from the client's */
    const uint64_t left_ms = wire_u64(msg, "deadline_ms"), ends_ms = left_ms > 0 ? clock_wall_ms() + left_ms : 0;
    TRY(journal_put_row(o->log, client, text, ends_ms, &s->journal_row, &s->journal_ticket));
    memcpy(s->submit_sha256, submit_sha256, sizeof s->submit_sha256);
    enter(o, s);
    set_out(o, s); /* work begins at once; the client hears of it when the journal is on disk */
    s = NULL;
out:
    session_close(s);
    return err;
}

static void on_submit(orch *o, const char *client, const wire_msg *msg)
{
    char submit_sha256[SHA256_HEX_BYTES];
    char *text = NULL;
    session *known = writer_of(o, wire_str(msg, "path"));
    cf_err err = print_request(msg->root, &text, submit_sha256);
    if (err == CF_OK && known)
        answer_as_known(o, known, client, wire_str(msg, "id"), submit_sha256);
    else if (err == CF_OK)
        err = take_row(o, client, msg, text, submit_sha256);
    if (err != CF_OK && known) /* it may be that very row: nothing is said, and the client asks again */
        log_warn("row.unread", "utt=%s text=\"%s\"", wire_str(msg, "id"), err_text());
    else if (err != CF_OK)
        refuse(o, client, wire_str(msg, "id"), err, err_text());
    mem_free(text);
}

void requests_tell_accepted(orch *o)
{
    const uint64_t synced = journal_synced(o->log);
    for (int i = 0; i < ROWS_OPEN_MAX; i++) {
        session *s = o->live[i];
        if (!s || s->told_accepted || s->journal_ticket > synced)
            continue;
        s->told_accepted = true;
        accept_answer(o, s);
    }
}

/* ---- what the journal keeps of rows ---- */

/* A failure costs that a replay computes them again. */
void requests_keep_tokens(orch *o, const session *s, int32_t segment, const char *llm_sha256)
{
    cf_err err;
    const session_segment *seg = &s->segments[segment];
    journal_tokens record = {.attempt = s->attempt,
                             .segment = segment,
                             .tokens = seg->tokens,
                             .tokens_count = seg->tokens_count,
                             .stopped = seg->stopped,
                             .capped = seg->capped};
    if (strcmp(o->maker_llm_sha256, llm_sha256) != 0) {
        TRY(token_maker(&o->cfg, llm_sha256, o->maker_sha256));
        snprintf(o->maker_llm_sha256, sizeof o->maker_llm_sha256, "%s", llm_sha256);
    }
    TRY(token_origin(s, o->maker_sha256, s->attempt, segment, record.origin_sha256));
    TRY(journal_put_tokens(o->log, s->journal_row, &record));
out:
    if (err != CF_OK)
        log_warn("journal.tokens", "utt=%s text=\"%s\"", s->id, err_text());
}

/* Of the workers to come, none of which has said hello. Without a model file there will be none, and no tokens fit. */
static cf_err know_maker(orch *o)
{
    if (o->maker_sha256[0])
        return CF_OK;
    const cf_err err = token_maker_now(&o->cfg, o->maker_sha256);
    if (err == CF_OK || err == CF_ERR_NOMEM)
        return err;
    log_warn("journal.tokens", "text=\"%s\"", err_text());
    return CF_OK;
}

/* What is left of its time, by the clock of the day; never more than it had. */
static void go_on_ending(session *s, uint64_t ends_ms, uint64_t had_ms)
{
    const uint64_t wall_ms = clock_wall_ms(), left_ms = ends_ms > wall_ms ? ends_ms - wall_ms : 0;
    if (ends_ms > 0)
        s->deadline_us = s->accepted_us + (left_ms < had_ms ? left_ms : had_ms) * 1000;
}

static cf_err reopen(orch *o, const journal_row *row, session **ret_session)
{
    cf_err err;
    char *text = NULL;
    char submit_sha256[SHA256_HEX_BYTES];
    wire_msg msg = {0};
    session *s = NULL;
    TRY(print_request(row->submit, &text, submit_sha256));
    TRY(wire_parse(text, strlen(text), WIRE_CLIENT_BUS, &msg));
    TRY(open_session(o, row->client, &msg, &s));
    memcpy(s->submit_sha256, submit_sha256, sizeof submit_sha256);
    TRY(session_remember(s, row->tokens, row->tokens_count));
    if (row->tokens_count > 0)
        TRY(know_maker(o));
    if (!s->request.root) {
        TRY(token_origin_sift(s, o->maker_sha256));
        TRY(session_use_known(s));
    }
    s->journal_row = row->number;
    go_on_ending(s, row->ends_ms, wire_u64(&msg, "deadline_ms"));
    *ret_session = s;
    s = NULL;
out:
    session_close(s);
    wire_done(&msg);
    mem_free(text);
    return err;
}

typedef struct recovery {
    orch *o;
    cf_err err; /* a shortage of ours: no row may end for it */
} recovery;

static void on_found(void *ctx, const journal_row *row)
{
    recovery *r = ctx;
    orch *o = r->o;
    session *s;
    const cf_err err = r->err == CF_OK ? reopen(o, row, &s) : r->err;
    if (err == CF_ERR_NOMEM || err == CF_ERR_SYS) {
        r->err = err;
        return;
    }
    if (err != CF_OK) {
        log_error("row.lost_request", "journal_row=%" PRIu64 " client=%s text=\"%s\"", row->number, row->client,
                  err_text());
        journal_put_end(o->log, row->number);
        return;
    }
    enter(o, s);
    o->rows_recovered++;
    set_out(o, s);
}

static bool is_of_live_row(void *ctx, const char *path)
{
    const orch *o = ctx;
    for (int i = 0; i < ROWS_OPEN_MAX; i++)
        if (o->live[i] && strcmp(o->live[i]->path, path) == 0)
            return true;
    return false;
}

static bool same_folder(const char *a, const char *b)
{
    const ptrdiff_t bytes = strrchr(a, '/') - a;
    return bytes == strrchr(b, '/') - b && memcmp(a, b, (size_t)bytes) == 0;
}

/* A predecessor that was killed may have left temporary files of the rows that were open. They are ours now, and none
 * is being written yet. */
static void remove_leftovers(orch *o)
{
    char folder[IO_PATH_BYTES];
    for (int i = 0; i < ROWS_OPEN_MAX; i++) {
        bool seen = !o->live[i];
        for (int k = 0; k < i && !seen; k++)
            seen = o->live[k] && same_folder(o->live[k]->path, o->live[i]->path);
        if (seen)
            continue;
        snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(o->live[i]->path, '/') - o->live[i]->path),
                 o->live[i]->path);
        io_remove_leftovers(folder, is_of_live_row, o);
    }
}

cf_err requests_recover(orch *o)
{
    recovery r = {.o = o};
    cf_err err = journal_recover(o->log, on_found, &r);
    if (err == CF_OK)
        err = r.err;
    remove_leftovers(o);
    if (err == CF_OK && o->rows_recovered > 0)
        log_info("orch.recovered", "rows=%" PRIu64, o->rows_recovered);
    return err;
}

static void on_shutdown(orch *o, const char *peer, bool now)
{
    json *m = wire_new(WIRE_goodbye);
    json_put_u64(m, "boot", o->boot);
    send_client(o, peer, m);
    o->draining = true;
    o->drain_by_us = clock_now_us() + (now ? 0 : (uint64_t)o->cfg.grace_s * CLOCK_SECOND_US);
    snprintf(o->drain_client, sizeof o->drain_client, "%s", peer);
    log_info("orch.draining", "rows=%d client=%s", o->sessions_live, peer);
}

void requests_tell_end(orch *o)
{
    json *m = wire_new(WIRE_goodbye);
    json_put_u64(m, "boot", o->boot);
    json_put_u64(m, "left", (uint64_t)o->sessions_live);
    send_client(o, o->drain_client, m);
}

void requests_on_bus(orch *o, const char *peer, const wire_msg *msg)
{
    if (msg->kind == WIRE_submit) {
        on_submit(o, peer, msg);
    } else if (msg->kind == WIRE_query) {
        send_client(o, peer, status_message(o, wire_u64(msg, "nonce")));
    } else {
        on_shutdown(o, peer, wire_bool(msg, "now"));
    }
}
