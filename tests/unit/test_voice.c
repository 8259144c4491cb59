/* test_voice.c - voices: load, validate, import from every kind of spk2info, save, list, remove; mostly refusals. */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/safetensors.h"
#include "common/model/voice.h"
#include "tests/harness/tiny_model.h"

#define N 4 /* prompt tokens of hand-made voices */

/* A valid voice that cases then spoil. */
typedef struct draft {
    int32_t token[2 * PROMPT_TOKENS_MAX + 2];
    float feat[2 * N * MEL_BINS];
    float embedding[SPEAKER_VALUES];
    safetensors_item items[4];
    size_t item_count;
} draft;

static draft *fresh(void)
{
    static draft d;
    memset(&d, 0, sizeof d);
    for (int i = 0; i < N; i++)
        d.token[i] = 1000 + i;
    for (int i = 0; i < 2 * N * MEL_BINS; i++)
        d.feat[i] = -6.0f;
    d.embedding[3] = 1.0f;
    d.items[0] = (safetensors_item){"prompt_token", ENTRY_I32, 1, {N}, d.token};
    d.items[1] = (safetensors_item){"prompt_feat", ENTRY_F32, 2, {2 * N, MEL_BINS}, d.feat};
    d.items[2] = (safetensors_item){"embedding", ENTRY_F32, 1, {SPEAKER_VALUES}, d.embedding};
    d.item_count = 3;
    return &d;
}

static cf_err load(const draft *d, voice **ret_voice)
{
    char path[IO_PATH_BYTES];
    static char dir[IO_PATH_BYTES];
    if (!dir[0])
        snprintf(dir, sizeof dir, "%s", test_temp_dir());
    assert_ok(io_join(path, sizeof path, dir, "draft.safetensors"));
    const table_text text = {"prompt_text", "You are a helpful assistant.<|endofprompt|>Hello."};
    const bool with_ids = d->item_count == 4;
    assert_ok(safetensors_write(path, d->items, d->item_count, &text, with_ids ? 0 : 1));
    return voice_load_file(path, ret_voice);
}

static void refuse(cf_err code, const char *part, const draft *d)
{
    voice *v = NULL;
    assert_err(code, part, load(d, &v));
    assert_null(v);
}

static void test_loads_a_voice(void **state)
{
    (void)state;
    voice *v;
    assert_ok(voice_load(tiny_model_dir(), "echo", &v));
    assert_string_equal(v->name, "echo");
    assert_int_equal(v->prompt_tokens, 50);
    assert_string_equal(v->prompt_text,
                        "You are a helpful assistant.<|endofprompt|>The harbour lights were still burning.");
    assert_null(v->prompt_text_id);
    assert_int_equal(v->trimmed_tokens + v->trimmed_frames, 0);
    assert_int_equal(strlen(v->sha256), 64);
    voice_close(v);
    assert_err(CF_ERR_NOTFOUND, "voice nobody", voice_load(tiny_model_dir(), "nobody", &v));
}

static void test_refuses_names(void **state)
{
    (void)state;
    voice *v;
    char longer[VOICE_NAME_BYTES_MAX + 2];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_err(CF_ERR_INVALID, "'/'", voice_load(tiny_model_dir(), "a/b", &v));
    assert_err(CF_ERR_INVALID, "begins with a dot", voice_load(tiny_model_dir(), "../echo", &v));
    assert_err(CF_ERR_INVALID, "1..128", voice_name_check(""));
    assert_err(CF_ERR_INVALID, "1..128", voice_name_check(longer));
    assert_err(CF_ERR_INVALID, "control", voice_name_check("a\nb"));
    assert_err(CF_ERR_INVALID, "UTF-8", voice_name_check("\xff"));
    assert_ok(voice_name_check("\xe4\xb8\xad\xe6\x96\x87\xe5\xa5\xb3"));
}

static void test_refuses_contents(void **state)
{
    (void)state;
    draft *d = fresh();
    d->token[2] = SPEECH_CODES;
    refuse(CF_ERR_INVALID, "prompt_token: id 6561 at index 2, expected 0..6560", d);
    d = fresh();
    d->token[0] = -1;
    refuse(CF_ERR_INVALID, "id -1 at index 0", d);
    d = fresh();
    d->feat[7] = NAN;
    refuse(CF_ERR_NUMERIC, "prompt_feat: value 7 is not finite", d);
    d = fresh();
    d->embedding[191] = INFINITY;
    refuse(CF_ERR_NUMERIC, "embedding: value 191", d);
    d = fresh();
    d->embedding[3] = 0.0f;
    refuse(CF_ERR_NUMERIC, "all zero", d);
}

static void test_refuses_shapes(void **state)
{
    (void)state;
    draft *d = fresh();
    d->items[1].shape[1] = 64;
    refuse(CF_ERR_INVALID, "expected [frames, 80] f32, found 64 columns", d);
    d = fresh();
    d->items[2].shape[0] = 191;
    refuse(CF_ERR_INVALID, "embedding: expected [192] f32, found 191", d);
    d = fresh();
    d->items[0].type = ENTRY_F32;
    refuse(CF_ERR_MISMATCH, "expected integers, found f32", d);
    d = fresh();
    d->items[0].rank = 2;
    d->items[0].shape[0] = 2;
    d->items[0].shape[1] = 2;
    refuse(CF_ERR_INVALID, "prompt_token: expected 1 dimension, found [2, 2]", d);
    d = fresh();
    d->items[2] = d->items[1];
    d->item_count = 2;
    refuse(CF_ERR_INVALID, "embedding is missing", d);
    d = fresh();
    d->items[1] = d->items[2];
    d->item_count = 2;
    refuse(CF_ERR_INVALID, "prompt_token without its mel frames", d);
    d = fresh();
    d->items[0].shape[0] = 0;
    refuse(CF_ERR_INVALID, "0 tokens and 8 frames", d);
}

static void test_refuses_long_prompts(void **state)
{
    (void)state;
    static float frames[(2 * PROMPT_FRAMES_MAX + 1) * MEL_BINS];
    draft *d = fresh();
    d->items[0].shape[0] = PROMPT_TOKENS_MAX + 1;
    d->items[1].shape[0] = PROMPT_FRAMES_MAX + 2;
    d->items[1].data = frames;
    refuse(CF_ERR_LIMIT, "at most 750 (30 s)", d);
    d = fresh();
    d->items[0].shape[0] = 2 * PROMPT_TOKENS_MAX + 1;
    refuse(CF_ERR_LIMIT, "at most 1500", d);
    d = fresh();
    d->items[1].shape[0] = 2 * PROMPT_FRAMES_MAX + 1;
    d->items[1].data = frames;
    refuse(CF_ERR_LIMIT, "at most 1500", d);
}

static void test_trims_to_pairs(void **state)
{
    (void)state;
    voice *exact;
    voice *v;
    draft *d = fresh();
    d->items[0].shape[0] = 3;
    d->items[1].shape[0] = 6;
    assert_ok(load(d, &exact));
    d->items[0].shape[0] = 4;
    d->items[1].shape[0] = 7;
    assert_ok(load(d, &v));
    assert_int_equal(v->prompt_tokens, 3);
    assert_int_equal(v->trimmed_tokens, 1);
    assert_int_equal(v->trimmed_frames, 1);
    assert_string_equal(v->sha256, exact->sha256);
    voice_close(v);
    d->token[0]++;
    assert_ok(load(d, &v));
    assert_string_not_equal(v->sha256, exact->sha256);
    voice_close(v);
    voice_close(exact);
}

/* Reads a spk2info and compares its voices with those of the model directory. */
static void check_zero_shot(const char *relative, size_t echo_ids)
{
    voice **voices;
    size_t count;
    assert_ok(voices_import(test_shared(relative), &voices, &count));
    assert_int_equal(count, 2);
    for (size_t i = 0; i < count; i++) {
        voice *want;
        const voice *got = voices[i];
        assert_ok(voice_load(tiny_model_dir(), got->name, &want));
        assert_int_equal(got->prompt_tokens, want->prompt_tokens);
        assert_memory_equal(got->prompt_token, want->prompt_token, want->prompt_tokens * sizeof(int32_t));
        assert_memory_equal(got->prompt_feat, want->prompt_feat, want->prompt_tokens * 2 * MEL_BINS * sizeof(float));
        assert_memory_equal(got->embedding, want->embedding, sizeof want->embedding);
        assert_null(got->prompt_text);
        assert_true(got->prompt_text_ids > 0);
        voice_close(want);
    }
    assert_string_equal(voices[0]->name, "echo");
    assert_int_equal(voices[0]->prompt_text_ids, echo_ids);
    voices_close(voices, count);
}

static void test_imports_saved_voices(void **state)
{
    (void)state;
    check_zero_shot("data/pt/spk2info.pt", 14);
    check_zero_shot("data/pt/spk2info-cuda0.pt", 14);
    check_zero_shot("data/pt/spk2info-tiny.pt", 21);
}

static void test_imports_sft_voices(void **state)
{
    (void)state;
    voice **voices;
    size_t count;
    assert_ok(voices_import(test_shared("data/pt/spk2info-sft.pt"), &voices, &count));
    assert_int_equal(count, 3);
    assert_string_equal(voices[0]->name, "\xe4\xb8\xad\xe6\x96\x87\xe5\xa5\xb3");
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(voices[i]->prompt_tokens, 0);
        assert_null(voices[i]->prompt_feat);
    }
    /* An SFT voice survives a round through its file. */
    const char *dir = test_temp_dir();
    voice *v;
    assert_ok(voice_save(dir, voices[0], false));
    assert_ok(voice_load(dir, voices[0]->name, &v));
    assert_string_equal(v->sha256, voices[0]->sha256);
    voice_close(v);
    voices_close(voices, count);
}

static void test_refuses_a_model_as_voices(void **state)
{
    (void)state;
    voice **voices;
    size_t count;
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s/hift.safetensors", tiny_model_dir());
    assert_err(CF_ERR_INVALID, "belongs to no voice", voices_import(path, &voices, &count));
    assert_err(CF_ERR_NOTFOUND, "no such file", voices_import("/nonexistent.pt", &voices, &count));
}

/* Two fields of a spk2info that must agree, and lengths that lie. */
static void refuse_import(cf_err code, const char *part, const safetensors_item *items, size_t count)
{
    voice **voices;
    size_t voice_count;
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s/spk.safetensors", test_temp_dir());
    assert_ok(safetensors_write(path, items, count, NULL, 0));
    assert_err(code, part, voices_import(path, &voices, &voice_count));
}

static void test_refuses_inconsistent_entries(void **state)
{
    (void)state;
    draft *d = fresh();
    int32_t other[N] = {1, 2, 3, 4};
    int32_t length = N + 1;
    const safetensors_item token = {"a/flow_prompt_speech_token", ENTRY_I32, 2, {1, N}, d->token};
    const safetensors_item feat = {"a/prompt_speech_feat", ENTRY_F32, 3, {1, 2 * N, MEL_BINS}, d->feat};
    const safetensors_item spk = {"a/flow_embedding", ENTRY_F32, 2, {1, SPEAKER_VALUES}, d->embedding};
    const safetensors_item differ[] = {token, feat, spk, {"a/llm_prompt_speech_token", ENTRY_I32, 2, {1, N}, other}};
    refuse_import(CF_ERR_MISMATCH, "differ; a voice has one prompt", differ, 4);
    const safetensors_item lies[] = {token, feat, spk, {"a/flow_prompt_speech_token_len", ENTRY_I32, 1, {1}, &length}};
    refuse_import(CF_ERR_INVALID, "length 5 of 4 values", lies, 4);
    const safetensors_item alone[] = {d->items[0], d->items[1]}; /* no saved voices, but one voice file */
    refuse_import(CF_ERR_INVALID, "voice spk: embedding is missing", alone, 2);
    const safetensors_item no_embedding[] = {token, feat};
    refuse_import(CF_ERR_INVALID, "voice a: embedding is missing", no_embedding, 2);
    const safetensors_item batch[] = {{"a/flow_prompt_speech_token", ENTRY_I32, 2, {2, 2}, d->token}, feat, spk};
    refuse_import(CF_ERR_INVALID, "expected 1 dimension, found [2, 2]", batch, 3);
}

static void test_saves_lists_removes(void **state)
{
    (void)state;
    voice *v;
    voice *again;
    char **names;
    size_t count;
    char dir[IO_PATH_BYTES];
    snprintf(dir, sizeof dir, "%s", test_temp_dir());
    assert_ok(voice_names(dir, &names, &count));
    assert_int_equal(count, 0);
    voice_names_close(names, count);
    draft *d = fresh();
    d->items[3] = (safetensors_item){"prompt_text", ENTRY_I32, 1, {3}, (int32_t[]){5, 514, 7}};
    d->item_count = 4;
    assert_ok(load(d, &v));
    assert_int_equal(v->prompt_text_ids, 3);
    assert_ok(voice_save(dir, v, false));
    assert_err(CF_ERR_BUSY, "exists already", voice_save(dir, v, false));
    assert_ok(voice_save(dir, v, true));
    assert_ok(voice_load(dir, "draft", &again));
    assert_string_equal(again->sha256, v->sha256);
    assert_memory_equal(again->prompt_text_id, v->prompt_text_id, 3 * sizeof(int32_t));
    voice_close(again);
    strcpy(v->name, "alto");
    assert_ok(voice_save(dir, v, false));
    assert_ok(voice_names(dir, &names, &count));
    assert_int_equal(count, 2);
    assert_string_equal(names[0], "alto");
    assert_string_equal(names[1], "draft");
    voice_names_close(names, count);
    for (int nth = 1; nth <= 5; nth++) { /* ., .., two voices and the end: a list that is not whole has no first name */
        char spec[32], name[VOICE_NAME_BYTES_MAX + 1];
        snprintf(spec, sizeof spec, "io.entry#%d=fail", nth);
        assert_ok(fault_arm(spec));
        assert_err(CF_ERR_SYS, "Input/output error", voice_default_name(dir, name));
    }
    assert_ok(fault_arm("io.stat=fail"));
    assert_err(CF_ERR_SYS, "Input/output error", voice_load(dir, "draft", &again));
    assert_ok(fault_arm(NULL));
    assert_ok(voice_remove(dir, "draft"));
    assert_err(CF_ERR_NOTFOUND, "voice draft", voice_remove(dir, "draft"));
    voice_close(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loads_a_voice),
        cmocka_unit_test(test_refuses_names),
        cmocka_unit_test(test_refuses_contents),
        cmocka_unit_test(test_refuses_shapes),
        cmocka_unit_test(test_refuses_long_prompts),
        cmocka_unit_test(test_trims_to_pairs),
        cmocka_unit_test(test_imports_saved_voices),
        cmocka_unit_test(test_imports_sft_voices),
        cmocka_unit_test(test_refuses_a_model_as_voices),
        cmocka_unit_test(test_refuses_inconsistent_entries),
        cmocka_unit_test(test_saves_lists_removes),
    };
    return cmocka_run_group_tests_name("voice", tests, NULL, NULL);
}
