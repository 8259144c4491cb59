/*
 * test_token_origin.c - tokens of a journal are known again by all they depend on: each thing changed by itself makes
 * others of them, and they are dropped while the rest stays. [P-16]
 */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "orchestrator/token_origin.h"
#include "tests/harness/tiny_model.h"

#define LLM "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static int32_t *copy(const int32_t *ids, size_t count)
{
    int32_t *all;
    assert_ok(mem_alloc(count, sizeof *all, &all));
    memcpy(all, ids, count * sizeof *all);
    return all;
}

/* Two segments of two ids, a prompt of one. */
static session *open_row(void)
{
    static const int32_t ids[] = {5, 6, 7, 8};
    session *s;
    text_plan plan = {.segment_count = 2, .prompt_ids = copy(ids, 1), .prompt_id_count = 1};
    assert_ok(mem_alloc(2, sizeof *plan.segments, &plan.segments));
    for (int i = 0; i < 2; i++) {
        plan.segments[i].ids = copy(ids + 2 * i, 2);
        plan.segments[i].id_count = 2;
    }
    assert_ok(session_open(&plan, &s));
    snprintf(s->id, sizeof s->id, "a");
    snprintf(s->voice_sha256, sizeof s->voice_sha256, LLM);
    s->seed = 3;
    return s;
}

static void origin(const session *s, const char *maker, int32_t attempt, int32_t segment, char *ret_hex)
{
    assert_ok(token_origin(s, maker, attempt, segment, ret_hex));
}

static void test_each_input_counts(void **state)
{
    (void)state;
    enum { COUNT = 10 };
    char of[COUNT][SHA256_HEX_BYTES];
    session *s = open_row();
    origin(s, "maker", 0, 0, of[0]);
    origin(s, "other", 0, 0, of[1]);
    origin(s, "maker", 1, 0, of[2]);
    origin(s, "maker", 0, 1, of[3]);
    s->seed = 4;
    origin(s, "maker", 0, 0, of[4]);
    s->seed = 3;
    s->prompt_speech = true;
    origin(s, "maker", 0, 0, of[5]);
    s->prompt_speech = false;
    s->voice_sha256[63] = 'b';
    origin(s, "maker", 0, 0, of[6]);
    s->voice_sha256[63] = 'a';
    s->plan.prompt_ids[0]++;
    origin(s, "maker", 0, 0, of[7]);
    s->plan.prompt_ids[0]--;
    s->plan.segments[0].ids[1]++;
    origin(s, "maker", 0, 0, of[8]);
    s->plan.segments[0].ids[1]--;
    s->plan.segments[0].id_count = 1;
    origin(s, "maker", 0, 0, of[9]);
    s->plan.segments[0].id_count = 2;
    for (int i = 0; i < COUNT; i++)
        for (int k = 0; k < i; k++)
            assert_string_not_equal(of[i], of[k]);
    char again[SHA256_HEX_BYTES];
    origin(s, "maker", 0, 0, again);
    assert_string_equal(again, of[0]);
    session_close(s);
}

static void test_maker(void **state)
{
    (void)state;
    char base[SHA256_HEX_BYTES], other[SHA256_HEX_BYTES], now[SHA256_HEX_BYTES];
    config cfg;
    config_defaults(&cfg);
    snprintf(cfg.model, sizeof cfg.model, "%s", tiny_model_dir());
    assert_ok(token_maker(&cfg, LLM, base));
    cfg.flow_rows++;
    cfg.streaming_mask = true;
    snprintf(cfg.flow_device, sizeof cfg.flow_device, "cuda:1");
    assert_ok(token_maker(&cfg, LLM, other)); /* no token depends on these */
    assert_string_equal(base, other);
    snprintf(cfg.precision, sizeof cfg.precision, "bf16");
    assert_ok(token_maker(&cfg, LLM, other));
    assert_string_not_equal(base, other);
    snprintf(cfg.precision, sizeof cfg.precision, "f32");
    snprintf(cfg.llm_device, sizeof cfg.llm_device, "cuda:1");
    assert_ok(token_maker(&cfg, LLM, other));
    assert_string_not_equal(base, other);
    cfg.llm_device[0] = '\0';
    assert_ok(token_maker_now(&cfg, now));
    assert_string_not_equal(base, now);
    snprintf(cfg.model, sizeof cfg.model, "%s/none", tiny_model_dir());
    assert_err(CF_ERR_NOTFOUND, "no file for the llm stage", token_maker_now(&cfg, now));
}

/* Of four sets: another maker's, ours, one of a journal that did not say, one of a segment that the text has not. */
static void test_others_are_dropped(void **state)
{
    (void)state;
    int32_t ids[] = {1, 2};
    session *s = open_row();
    journal_tokens sets[4];
    for (int i = 0; i < 4; i++)
        sets[i] = (journal_tokens){.segment = i == 1 ? 1 : 0, .tokens = ids, .tokens_count = 2};
    sets[3].segment = 2;
    origin(s, "other", 0, 0, sets[0].origin_sha256);
    origin(s, "maker", 0, 1, sets[1].origin_sha256);
    origin(s, "maker", 0, 1, sets[3].origin_sha256);
    assert_ok(session_remember(s, sets, 4));
    assert_ok(token_origin_sift(s, "maker"));
    assert_int_equal(s->known_count, 1);
    assert_ok(session_use_known(s));
    assert_int_equal(s->segments[0].tokens_count, 0);
    assert_int_equal(s->segments[1].tokens_count, 2);
    assert_ok(token_origin_sift(s, "maker"));
    assert_int_equal(s->known_count, 1);
    session_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_input_counts),
        cmocka_unit_test(test_maker),
        cmocka_unit_test(test_others_are_dropped),
    };
    return cmocka_run_group_tests_name("token_origin", tests, NULL, NULL);
}
