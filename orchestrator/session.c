/* session.c - life of an utterance's artefacts. One owner at a time: the shell, or the writer thread. Fails:
 * CF_ERR_NOMEM. */
#include "orchestrator/session.h"

#include <string.h>

#include "common/base/mem.h"

cf_err session_open(text_plan *plan, session **ret_session)
{
    cf_err err;
    session *s = NULL;
    TRY(mem_alloc(1, sizeof *s, &s));
    s->utterance = -1;
    TRY(session_set_plan(s, plan));
    *ret_session = s;
    s = NULL;
out:
    session_close(s);
    text_plan_done(plan);
    return err;
}

static void free_segments(const session *s, session_segment *segments)
{
    for (size_t i = 0; segments && i < s->plan.segment_count; i++) {
        mem_free(segments[i].tokens);
        mem_free(segments[i].samples);
    }
    mem_free(segments);
}

void session_close(session *s)
{
    if (!s)
        return;
    free_segments(s, s->segments);
    free_segments(s, s->kept);
    mem_free(s->prompt_token);
    for (int32_t i = 0; i < s->known_count; i++)
        mem_free(s->known[i].tokens);
    mem_free(s->known);
    text_plan_done(&s->plan);
    wire_done(&s->request);
    mem_free(s);
}

cf_err session_set_plan(session *s, text_plan *plan)
{
    cf_err err;
    session_segment *segments;
    TRY(mem_alloc(plan->segment_count, sizeof *segments, &segments));
    mem_free(s->segments);
    s->segments = segments;
    s->plan = *plan;
    *plan = (text_plan){0};
    for (size_t i = 0; i < s->plan.segment_count; i++)
        s->text_tokens += (int32_t)s->plan.segments[i].id_count;
out:
    text_plan_done(plan);
    return err;
}

cf_err session_set_source(session *s, int32_t *tokens, int32_t tokens_count)
{
    cf_err err;
    text_plan plan = {0};
    TRY(mem_alloc(1, sizeof *plan.segments, &plan.segments));
    plan.segment_count = 1;
    TRY(mem_strndup("", 0, &plan.segments[0].text));
    TRY(session_set_plan(s, &plan));
    s->is_source = true;
    s->segments[0] = (session_segment){.tokens = tokens, .tokens_count = tokens_count, .stopped = true};
    tokens = NULL;
out:
    text_plan_done(&plan);
    mem_free(tokens);
    return err;
}

static cf_err copy_tokens(const int32_t *tokens, int32_t count, int32_t **ret_copy)
{
    const cf_err err = mem_alloc((size_t)count, sizeof *tokens, ret_copy);
    if (err == CF_OK)
        memcpy(*ret_copy, tokens, (size_t)count * sizeof *tokens);
    return err;
}

cf_err session_remember(session *s, const journal_tokens *tokens, int32_t count)
{
    cf_err err;
    TRY(mem_alloc((size_t)count, sizeof *s->known, &s->known));
    for (; s->known_count < count; s->known_count++) {
        journal_tokens *k = &s->known[s->known_count];
        *k = tokens[s->known_count];
        k->tokens = NULL;
        TRY(copy_tokens(tokens[s->known_count].tokens, k->tokens_count, &k->tokens));
    }
out:
    return err;
}

cf_err session_use_known(session *s)
{
    cf_err err = CF_OK;
    for (int32_t i = 0; i < s->known_count; i++) {
        const journal_tokens *k = &s->known[i];
        if (k->attempt != s->attempt || (size_t)k->segment >= s->plan.segment_count || k->tokens_count == 0)
            continue;
        session_segment *seg = &s->segments[k->segment];
        mem_free(seg->tokens);
        seg->tokens = NULL;
        seg->tokens_count = 0;
        TRY(copy_tokens(k->tokens, k->tokens_count, &seg->tokens));
        seg->tokens_count = k->tokens_count;
        seg->stopped = k->stopped;
        seg->capped = k->capped;
    }
out:
    return err;
}

static bool is_better(uint32_t flags, uint32_t than)
{
    return __builtin_popcount(flags) < __builtin_popcount(than);
}

cf_err session_next_attempt(session *s)
{
    session_segment *fresh;
    const cf_err err = mem_alloc(s->plan.segment_count, sizeof *fresh, &fresh);
    if (err != CF_OK)
        return err;
    if (!s->kept || is_better(s->flags, s->kept_flags)) {
        free_segments(s, s->kept);
        s->kept = s->segments;
        s->kept_flags = s->flags;
    } else {
        free_segments(s, s->segments);
    }
    s->segments = fresh;
    s->attempt++;
    s->again = false;
    return session_use_known(s);
}

void session_take_best(session *s)
{
    if (!s->kept || is_better(s->flags, s->kept_flags))
        return;
    free_segments(s, s->segments);
    s->segments = s->kept;
    s->flags = s->kept_flags;
    s->kept = NULL;
}

int32_t session_rank(const session *s)
{
    return 2 * s->priority + s->impatient;
}

void session_queue_put(session **queue, session *s)
{
    while (*queue && session_rank(*queue) >= session_rank(s))
        queue = &(*queue)->next;
    s->next = *queue;
    *queue = s;
}

session *session_queue_take_overdue(session **queue, uint64_t now_us)
{
    for (; *queue; queue = &(*queue)->next) {
        session *s = *queue;
        if (s->deadline_us == 0 || now_us < s->deadline_us)
            continue;
        *queue = s->next;
        s->next = NULL;
        return s;
    }
    return NULL;
}

int64_t session_samples(const session *s)
{
    int64_t sum = 0;
    for (size_t i = 0; i < s->plan.segment_count; i++)
        sum += s->segments[i].samples_count;
    return sum;
}

int64_t session_tokens(const session *s)
{
    int64_t sum = 0;
    for (size_t i = 0; i < s->plan.segment_count; i++)
        sum += s->segments[i].tokens_count;
    return sum;
}
