/* session.c - life of an utterance's artefacts. One owner at a time: the shell, or the writer thread. Fails:
 * CF_ERR_NOMEM. */
#include "orchestrator/session.h"

#include "common/base/mem.h"

cf_err session_open(text_plan *plan, session **ret_session)
{
    cf_err err;
    session *s = NULL;
    TRY(mem_alloc(1, sizeof *s, &s));
    s->utterance = -1;
    s->plan = *plan;
    *plan = (text_plan){0};
    TRY(mem_alloc(s->plan.segment_count, sizeof *s->segments, &s->segments));
    for (size_t i = 0; i < s->plan.segment_count; i++)
        s->text_tokens += (int32_t)s->plan.segments[i].id_count;
    *ret_session = s;
    s = NULL;
out:
    session_close(s);
    text_plan_done(plan);
    return err;
}

void session_close(session *s)
{
    if (!s)
        return;
    for (size_t i = 0; s->segments && i < s->plan.segment_count; i++) {
        mem_free(s->segments[i].tokens);
        mem_free(s->segments[i].samples);
    }
    mem_free(s->segments);
    text_plan_done(&s->plan);
    mem_free(s);
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
