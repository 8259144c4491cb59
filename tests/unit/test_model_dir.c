/*
 * test_model_dir.c - a model directory and its three files: which file is taken, and for every wrong one a single error
 * that names file, tensor, expected and found. The directories are the tiny model with one thing changed.
 */
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/fault.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/model_dir.h"
#include "common/model/safetensors.h"
#include "tests/harness/tiny_model.h"
#include "tests/unit/model_edit.h"

#define BLANK "CosyVoice-BlankEN/"

static cf_err open_dir(const char *dir, bool base)
{
    static model_dir d;
    return model_dir_open(dir, base, &d);
}

/* What a worker of this stage does with the directory. */
static cf_err check_stage(const char *dir, model_stage stage)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    model_config config;
    weights *w = NULL;
    TRY(model_dir_detect(dir));
    TRY(model_dir_config(dir, &config));
    TRY(model_dir_stage_file(dir, stage, false, path));
    TRY(weights_open(path, &w));
    TRY(stage_check(w, stage, &config));
out:
    weights_close(w);
    return err;
}

/* ---- which file ---- */

static void test_detects_the_model(void **state)
{
    (void)state;
    char file[IO_PATH_BYTES];
    assert_ok(open_dir(tiny_model_dir(), false));
    assert_err(CF_ERR_NOTFOUND, "/nonexistent: no such model directory", open_dir("/nonexistent", false));
    snprintf(file, sizeof file, "%s/flow.safetensors", tiny_model_dir());
    assert_err(CF_ERR_INVALID, "expected a model directory, found a file", open_dir(file, false));
    const char *dir = model_link(tiny_model_dir());
    model_put_text(dir, "cosyvoice2.yaml", "");
    assert_err(CF_ERR_UNSUPPORTED, "a CosyVoice 2 model (cosyvoice2.yaml); expected cosyvoice3.yaml",
               open_dir(dir, false));
    model_put_text(dir, "cosyvoice.yaml", "");
    assert_err(CF_ERR_UNSUPPORTED, "a CosyVoice 1 model (cosyvoice.yaml)", open_dir(dir, false));
    dir = model_link(tiny_model_dir());
    model_put(dir, "cosyvoice3.yaml", NULL, 0);
    assert_err(CF_ERR_NOTFOUND, "cosyvoice3.yaml is missing", open_dir(dir, false));
    char longer[IO_PATH_BYTES + 8];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_err(CF_ERR_LIMIT, "path longer than 4096 bytes", open_dir(longer, false));
}

static void test_ranks_the_files(void **state)
{
    (void)state;
    /* Which of these is taken when they lie side by side, each row without the winners above it. */
    static const char *const ORDER[] = {"llm.rl.safetensors", "llm.rl.pt", "llm.safetensors", "llm.pt"};
    char path[IO_PATH_BYTES];
    static model_dir d;
    const char *dir = model_link(tiny_model_dir());
    for (int i = 0; i < 4; i++)
        model_put_text(dir, ORDER[i], "x");
    for (int i = 0; i < 4; i++) {
        assert_ok(model_dir_open(dir, false, &d));
        assert_string_equal(strrchr(d.stage_path[MODEL_LLM], '/') + 1, ORDER[i]);
        assert_int_equal(d.is_rl, i < 2);
        assert_ok(model_dir_open(dir, true, &d)); /* base_weights */
        assert_string_equal(strrchr(d.stage_path[MODEL_LLM], '/') + 1, ORDER[i < 2 ? 2 : i]);
        assert_false(d.is_rl);
        if (i < 3)
            model_put(dir, ORDER[i], NULL, 0);
    }
    /* One that cannot be looked at may be there: no other weights are taken in its place. */
    for (int nth = 1; nth <= 4; nth++) {
        char spec[32];
        snprintf(spec, sizeof spec, "io.stat#%d=fail", nth);
        assert_ok(fault_arm(spec));
        assert_err(CF_ERR_SYS, "Input/output error", model_dir_stage_file(dir, MODEL_LLM, false, path));
        assert_ok(fault_arm(spec));
        assert_err(CF_ERR_SYS, "Input/output error", model_dir_detect(dir));
        assert_ok(fault_arm(NULL));
    }
    model_put_text(dir, "flow.pt", "x");
    assert_ok(model_dir_stage_file(dir, MODEL_FLOW, false, path));
    assert_string_equal(strrchr(path, '/') + 1, "flow.safetensors");
    model_put(dir, "flow.safetensors", NULL, 0);
    assert_ok(model_dir_stage_file(dir, MODEL_FLOW, false, path));
    assert_string_equal(strrchr(path, '/') + 1, "flow.pt");
}

static void test_says_what_is_missing(void **state)
{
    (void)state;
    const char *dir = model_link(tiny_model_dir());
    model_put(dir, "llm.safetensors", NULL, 0);
    assert_err(CF_ERR_NOTFOUND,
               "no file for the llm stage; expected one of llm.rl.safetensors, llm.rl.pt, llm.safetensors, llm.pt",
               open_dir(dir, false));
    assert_err(CF_ERR_NOTFOUND, "no file for the llm stage; expected one of llm.safetensors, llm.pt",
               open_dir(dir, true));
    model_put_text(dir, "llm.rl.pt", "x"); /* there, but not asked for */
    assert_err(CF_ERR_NOTFOUND, "expected one of llm.safetensors, llm.pt", open_dir(dir, true));
    assert_ok(open_dir(dir, false));
    model_put(dir, "flow.safetensors", NULL, 0);
    assert_err(CF_ERR_NOTFOUND, "no file for the flow stage; expected one of flow.safetensors, flow.pt",
               open_dir(dir, false));
    dir = model_link(tiny_model_dir());
    model_put(dir, BLANK "config.json", NULL, 0);
    assert_err(CF_ERR_NOTFOUND, BLANK "config.json: no such file", open_dir(dir, false));
}

/* ---- config.json ---- */

static void test_refuses_configurations(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *part, *text;
    } CASES[] = {
        {CF_ERR_INVALID, "config.json: JSON: syntax error", ""},
        {CF_ERR_INVALID, "config.json: JSON: syntax error", "{"},
        {CF_ERR_INVALID, "config.json: key \"hidden_size\" is missing", "{}"},
        {CF_ERR_INVALID, "config.json: key \"hidden_size\" is missing", "[]"},
        {CF_ERR_INVALID, "hidden_size: expected 1..16384, found 0", "{\"hidden_size\":0}"},
        {CF_ERR_INVALID, "hidden_size: expected 1..16384, found 16385", "{\"hidden_size\":16385}"},
        {CF_ERR_INVALID, "hidden_size: expected an unsigned integer, found 1.5", "{\"hidden_size\":1.5}"},
        {CF_ERR_INVALID, "hidden_size: expected an unsigned integer, found -1", "{\"hidden_size\":-1}"},
        {CF_ERR_INVALID, "hidden_size: expected an unsigned integer", "{\"hidden_size\":[128]}"},
    };
    const char *dir = model_link(tiny_model_dir());
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        model_put_text(dir, BLANK "config.json", CASES[i].text);
        assert_err(CASES[i].code, CASES[i].part, open_dir(dir, false));
        assert_non_null(strstr(err_text(), dir));
    }
    char *many = NULL;
    assert_ok(mem_alloc(65538, 1, &many));
    memset(many, ' ', 65537);
    model_put(dir, BLANK "config.json", many, 65537);
    assert_err(CF_ERR_LIMIT, "config.json: 65537 bytes, at most 65536", open_dir(dir, false));
    mem_free(many);
}

/* The tiny model's values, one of them replaced. */
static void put_config(const char *dir, const char *key, const char *value)
{
    static const char *const ROWS[][2] = {
        {"hidden_size", "128"},       {"num_hidden_layers", "2"},   {"num_attention_heads", "2"},
        {"num_key_value_heads", "1"}, {"intermediate_size", "320"}, {"vocab_size", "832"},
        {"rope_theta", "1000000.0"},  {"rms_norm_eps", "1e-06"},
    };
    char text[1024] = "{";
    for (size_t i = 0; i < CF_COUNT(ROWS); i++) {
        const bool changed = strcmp(ROWS[i][0], key) == 0;
        if (!changed || value)
            snprintf(text + strlen(text), sizeof text - strlen(text), "%s\"%s\":%s", text[1] ? "," : "", ROWS[i][0],
                     changed ? value : ROWS[i][1]);
    }
    strcat(text, "}");
    model_put_text(dir, BLANK "config.json", text);
}

static void test_refuses_configured_values(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *key, *value, *part;
    } CASES[] = {
        {CF_ERR_INVALID, "num_hidden_layers", NULL, "key \"num_hidden_layers\" is missing"},
        {CF_ERR_INVALID, "num_hidden_layers", "257", "num_hidden_layers: expected 1..256, found 257"},
        {CF_ERR_INVALID, "num_attention_heads", NULL, "key \"num_attention_heads\" is missing"},
        {CF_ERR_INVALID, "num_attention_heads", "0", "num_attention_heads: expected 1..256"},
        {CF_ERR_UNSUPPORTED, "num_attention_heads", "3",
         "hidden_size: expected num_attention_heads * 64 = 192, found 128"},
        {CF_ERR_INVALID, "num_key_value_heads", NULL, "key \"num_key_value_heads\" is missing"},
        {CF_ERR_INVALID, "num_key_value_heads", "3", "num_key_value_heads: expected 1..2, found 3"},
        {CF_ERR_INVALID, "intermediate_size", NULL, "key \"intermediate_size\" is missing"},
        {CF_ERR_INVALID, "vocab_size", NULL, "key \"vocab_size\" is missing"},
        {CF_ERR_INVALID, "vocab_size", "1048577", "vocab_size: expected 1..1048576"},
        {CF_ERR_INVALID, "rope_theta", NULL, "key \"rope_theta\" is missing"},
        {CF_ERR_INVALID, "rope_theta", "0", "rope_theta: expected 1..1e+09, found 0"},
        {CF_ERR_INVALID, "rope_theta", "\"1e6\"", "rope_theta: expected a number"},
        {CF_ERR_INVALID, "rms_norm_eps", NULL, "key \"rms_norm_eps\" is missing"},
        {CF_ERR_INVALID, "rms_norm_eps", "0.5", "rms_norm_eps: expected 1e-12..0.01, found 0.5"},
        /* good values, but not those of the tensors */
        {CF_ERR_MISMATCH, "num_hidden_layers", "3",
         "llm.safetensors: num_hidden_layers: config.json says 3, the tensors say 2"},
        {CF_ERR_MISMATCH, "intermediate_size", "321", "llm.safetensors: intermediate_size: config.json says 321"},
        {CF_ERR_MISMATCH, "vocab_size", "833",
         "llm.safetensors: vocab_size: config.json says 833, the tensors say 832"},
        {CF_ERR_MISMATCH, "num_key_value_heads", "2", "num_key_value_heads: config.json says 2, the tensors say 1"},
    };
    const char *dir = model_link(tiny_model_dir());
    put_config(dir, "", NULL);
    assert_ok(check_stage(dir, MODEL_LLM));
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        put_config(dir, CASES[i].key, CASES[i].value);
        assert_err(CASES[i].code, CASES[i].part, check_stage(dir, MODEL_LLM));
    }
}

/* ---- what is good ---- */

static void test_accepts_good_files(void **state)
{
    (void)state;
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++) {
        assert_ok(check_stage(tiny_model_dir(), (model_stage)stage));
        assert_ok(check_stage(tiny_model_pt_dir(), (model_stage)stage));
        assert_ok(check_stage(tiny_model_harsh_dir(), (model_stage)stage));
    }
}

/* The same tiny model as PyTorch itself wrote it. */
static void test_accepts_files_of_torch(void **state)
{
    (void)state;
    char dir[IO_PATH_BYTES], path[IO_PATH_BYTES];
    snprintf(dir, sizeof dir, "%s", test_shared("data/pt/tiny-0"));
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++)
        assert_ok(check_stage(dir, (model_stage)stage));
    static const char *const VOCODERS[] = {"data/pt/torch-1.13/hift.pt", "data/pt/torch-new/hift.pt"};
    for (int i = 0; i < 2; i++) {
        weights *w;
        snprintf(path, sizeof path, "%s", test_shared(VOCODERS[i]));
        assert_ok(weights_open(path, &w));
        assert_ok(stage_check(w, MODEL_HIFT, NULL));
        weights_close(w);
    }
}

/* The names of a converter that is around (formats.md 4). */
static bool rename_flow(const char *old, char *ret_name, size_t name_bytes)
{
    static const char FROM[] = "decoder.estimator.";
    const size_t n = sizeof FROM - 1;
    snprintf(ret_name, name_bytes, "%s%s", strncmp(old, FROM, n) == 0 ? "dit." : "",
             strncmp(old, FROM, n) == 0 ? old + n : old);
    return true;
}

static bool rename_llm(const char *old, char *ret_name, size_t name_bytes)
{
    static const char FROM[] = "llm.model.model.";
    const size_t n = sizeof FROM - 1;
    snprintf(ret_name, name_bytes, "%s%s", strncmp(old, FROM, n) == 0 ? "llm." : "",
             strncmp(old, FROM, n) == 0 ? old + n : old);
    return true;
}

/* Fused weights: the direction under the plain name, without its magnitude. */
static bool rename_hift(const char *old, char *ret_name, size_t name_bytes)
{
    static const char G[] = ".parametrizations.weight.original0", V[] = ".parametrizations.weight.original1";
    const size_t bytes = strlen(old), n = sizeof G - 1;
    if (bytes > n && strcmp(old + bytes - n, G) == 0)
        return false;
    if (bytes > n && strcmp(old + bytes - n, V) == 0)
        snprintf(ret_name, name_bytes, "generator.%.*s.weight", (int)(bytes - n), old);
    else
        snprintf(ret_name, name_bytes, "generator.%s", old);
    return true;
}

static void test_accepts_names_of_converters(void **state)
{
    (void)state;
    const char *dir = model_link(tiny_model_dir());
    model_rename(dir, "flow.safetensors", rename_flow);
    model_rename(dir, "llm.safetensors", rename_llm);
    model_rename(dir, "hift.safetensors", rename_hift);
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++)
        assert_ok(check_stage(dir, (model_stage)stage));
}

/* ---- what is wrong ---- */

typedef struct edit_case {
    model_stage stage;
    cf_err code;
    const char *part;
    tensor_edit edit;
} edit_case;

static void refuse_edits(const edit_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char name[64];
        const char *dir = model_link(tiny_model_dir());
        snprintf(name, sizeof name, "%s.safetensors", model_stage_name(cases[i].stage));
        model_rewrite(dir, name, &cases[i].edit);
        assert_err(cases[i].code, cases[i].part, check_stage(dir, cases[i].stage));
        assert_non_null(strstr(err_text(), name));
    }
}

static void test_refuses_missing_and_extra(void **state)
{
    (void)state;
    static const edit_case CASES[] = {
        {MODEL_HIFT,
         CF_ERR_NOTFOUND,
         "hift.safetensors: tensor conv_post.bias is missing",
         {.tensor = "conv_post.bias", .renamed = ""}},
        {MODEL_HIFT,
         CF_ERR_NOTFOUND,
         "tensor ups.1.parametrizations.weight.original0 is missing",
         {.tensor = "ups.1.parametrizations.weight.original0", .renamed = ""}},
        {MODEL_HIFT,
         CF_ERR_NOTFOUND,
         "tensor conv_pre.parametrizations.weight.original1 is missing",
         {.tensor = "conv_pre.parametrizations.weight.original1", .renamed = ""}},
        {MODEL_FLOW,
         CF_ERR_NOTFOUND,
         "flow.safetensors: tensor decoder.estimator.transformer_blocks.1.ff.ff.2.bias is missing",
         {.tensor = "decoder.estimator.transformer_blocks.1.ff.ff.2.bias", .renamed = ""}},
        {MODEL_FLOW,
         CF_ERR_NOTFOUND,
         "tensor pre_lookahead_layer.conv1.weight is missing",
         {.tensor = "pre_lookahead_layer.conv1.weight", .renamed = ""}},
        {MODEL_FLOW,
         CF_ERR_NOTFOUND,
         "tensor input_embedding.weight is missing", /* misspelt */
         {.tensor = "input_embedding.weight", .renamed = "input_embeding.weight"}},
        {MODEL_LLM,
         CF_ERR_NOTFOUND,
         "llm.safetensors: tensor llm.model.model.embed_tokens.weight is missing",
         {.tensor = "llm.model.model.embed_tokens.weight", .renamed = ""}},
        {MODEL_LLM,
         CF_ERR_NOTFOUND,
         "tensor llm.model.model.layers.1.self_attn.o_proj.weight is missing",
         {.tensor = "llm.model.model.layers.1.self_attn.o_proj.weight", .renamed = ""}},
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "num_hidden_layers: config.json says 2, the tensors say 1",
         {.tensor = "llm.model.model.layers.1.input_layernorm.weight", .renamed = ""}},
        {MODEL_HIFT,
         CF_ERR_MISMATCH,
         "hift.safetensors: tensor ups.3.bias does not belong to this model",
         {.renamed = "ups.3.bias", .rank = 1, .shape = {4}}},
        {MODEL_FLOW,
         CF_ERR_MISMATCH,
         "flow.safetensors: tensor encoder.weight does not belong to this model",
         {.renamed = "encoder.weight", .rank = 1, .shape = {4}}},
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "llm.safetensors: tensor epoch does not belong to this model",
         {.renamed = "epoch", .type = ENTRY_I64}},
    };
    refuse_edits(CASES, CF_COUNT(CASES));
}

#define SHAPE(t, ...) \
    .reshaped = true, .type = t, .rank = (int)(sizeof(int[]){__VA_ARGS__} / sizeof(int)), .shape = {__VA_ARGS__}

static void test_refuses_shapes_and_types(void **state)
{
    (void)state;
    static const edit_case CASES[] = {
        {MODEL_HIFT,
         CF_ERR_MISMATCH,
         "hift.safetensors: tensor conv_post.bias: expected [18] f32, found [17]",
         {.tensor = "conv_post.bias", SHAPE(ENTRY_F32, 17)}},
        {MODEL_HIFT,
         CF_ERR_MISMATCH,
         "tensor conv_post.bias: expected [18] f32, found [18, 1]",
         {.tensor = "conv_post.bias", SHAPE(ENTRY_F32, 18, 1)}},
        {MODEL_HIFT,
         CF_ERR_MISMATCH,
         "tensor conv_post.bias: expected [18] f32, found [18] i32",
         {.tensor = "conv_post.bias", SHAPE(ENTRY_I32, 18)}},
        {MODEL_HIFT,
         CF_ERR_MISMATCH,
         "tensor ups.0.parametrizations.weight.original0: expected [32, 1, 1] f32, found [64, 1, 1]",
         {.tensor = "ups.0.parametrizations.weight.original0", SHAPE(ENTRY_F32, 64, 1, 1)}},
        {MODEL_HIFT,
         CF_ERR_MISMATCH,
         "tensor conv_pre.weight: channels: expected a multiple of 8, found 12",
         {.tensor = "conv_pre.parametrizations.weight.original1", SHAPE(ENTRY_F32, 12, 80, 5)}},
        {MODEL_HIFT,
         CF_ERR_MISMATCH,
         "original1: expected 3 dimensions, found [64]",
         {.tensor = "conv_pre.parametrizations.weight.original1", SHAPE(ENTRY_F32, 64)}},
        {MODEL_FLOW,
         CF_ERR_MISMATCH,
         "tensor input_embedding.weight: expected [6561, 80] f32, found [6561, 64]",
         {.tensor = "input_embedding.weight", SHAPE(ENTRY_F32, 6561, 64)}},
        {MODEL_FLOW,
         CF_ERR_MISMATCH,
         "tensor decoder.estimator.time_embed.time_mlp.2.weight: rows: expected a multiple of 64, found 100",
         {.tensor = "decoder.estimator.time_embed.time_mlp.2.weight", SHAPE(ENTRY_F32, 100, 128)}},
        {MODEL_FLOW,
         CF_ERR_MISMATCH,
         "rows: expected a multiple of 64, found 0",
         {.tensor = "decoder.estimator.time_embed.time_mlp.2.weight", SHAPE(ENTRY_F32, 0, 128)}},
        {MODEL_FLOW,
         CF_ERR_LIMIT,
         "tensor decoder.estimator.time_embed.time_mlp.2.weight: rows: 16448, at most 16384",
         {.tensor = "decoder.estimator.time_embed.time_mlp.2.weight", SHAPE(ENTRY_F32, 16448, 1)}},
        {MODEL_FLOW,
         CF_ERR_MISMATCH,
         "tensor decoder.estimator.rotary_embed.inv_freq: expected [32] f32, found [64]",
         {.tensor = "decoder.estimator.rotary_embed.inv_freq", SHAPE(ENTRY_F32, 64)}},
    };
    refuse_edits(CASES, CF_COUNT(CASES));
}

/* 1024 codes and 200 control rows: an ordinary model. */
static void test_a_small_vocabulary(void **state)
{
    (void)state;
    static const tensor_edit embedding = {.tensor = "speech_embedding.weight", SHAPE(ENTRY_F32, 1224, 128)};
    static const tensor_edit head = {.tensor = "llm_decoder.weight", SHAPE(ENTRY_F32, 1224, 128)};
    static const tensor_edit codes = {.tensor = "input_embedding.weight", SHAPE(ENTRY_F32, 1024, 80)};
    const char *dir = model_link(tiny_model_dir());
    char path[IO_PATH_BYTES];
    weights *w = NULL;
    llm_dims llm;
    flow_dims flow;
    model_rewrite(dir, "llm.safetensors", &embedding);
    model_rewrite(dir, "llm.safetensors", &head);
    model_rewrite(dir, "flow.safetensors", &codes);
    snprintf(path, sizeof path, "%s/llm.safetensors", dir);
    assert_ok(weights_open(path, &w));
    assert_ok(llm_dims_derive(w, NULL, &llm));
    assert_ok(stage_check(w, MODEL_LLM, NULL));
    assert_int_equal(llm.speech_codes, 1024);
    weights_close(w);
    snprintf(path, sizeof path, "%s/flow.safetensors", dir);
    assert_ok(weights_open(path, &w));
    assert_ok(flow_dims_derive(w, &flow));
    assert_ok(stage_check(w, MODEL_FLOW, NULL));
    assert_int_equal(flow.speech_codes, 1024);
    weights_close(w);
}

static void test_refuses_shapes_of_other_models(void **state)
{
    (void)state;
    static const edit_case CASES[] = {
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "tensor llm_decoder.weight: expected [6761, 128] f32, found [6561, 128]",
         {.tensor = "llm_decoder.weight", SHAPE(ENTRY_F32, 6561, 128)}},
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "tensor speech_embedding.weight: rows less 200 control rows: expected a multiple of 1, found 0",
         {.tensor = "speech_embedding.weight", SHAPE(ENTRY_F32, 200, 128)}},
        {MODEL_LLM,
         CF_ERR_LIMIT,
         "tensor speech_embedding.weight: rows less 200 control rows: 6562, at most 6561",
         {.tensor = "speech_embedding.weight", SHAPE(ENTRY_F32, 6762, 128)}},
        {MODEL_LLM,
         CF_ERR_UNSUPPORTED,
         "llm.safetensors: a CosyVoice 2 model (speech_embedding.weight has 6564 rows",
         {.tensor = "speech_embedding.weight", SHAPE(ENTRY_F32, 6564, 128)}},
        {MODEL_LLM,
         CF_ERR_UNSUPPORTED,
         "llm.safetensors: a CosyVoice 1 or 2 model (it has llm_decoder.bias)",
         {.renamed = "llm_decoder.bias", .rank = 1, .shape = {6564}}},
        {MODEL_FLOW,
         CF_ERR_UNSUPPORTED,
         "flow.safetensors: a CosyVoice 1 or 2 model (it has encoder.embed.out.0.weight)",
         {.renamed = "encoder.embed.out.0.weight", .rank = 2, .shape = {4, 4}}},
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "self_attn.q_proj.weight: rows: expected a multiple of 64, found 96",
         {.tensor = "llm.model.model.layers.0.self_attn.q_proj.weight", SHAPE(ENTRY_F32, 96, 128)}},
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "2 attention heads are not a multiple of 3 key-value heads",
         {.tensor = "llm.model.model.layers.0.self_attn.k_proj.weight", SHAPE(ENTRY_F32, 192, 128)}},
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "hidden_size: config.json says 128, the tensors say 64",
         {.tensor = "llm.model.model.embed_tokens.weight", SHAPE(ENTRY_F32, 832, 64)}},
        {MODEL_LLM,
         CF_ERR_MISMATCH,
         "tensor llm.model.model.norm.weight: expected [128] f32, found [128] u8",
         {.tensor = "llm.model.model.norm.weight", SHAPE(ENTRY_U8, 128)}},
    };
    refuse_edits(CASES, CF_COUNT(CASES));
}

/* A file whose names count up for ever is stopped at the bound, not followed. */
static void test_refuses_too_many_blocks(void **state)
{
    (void)state;
    static char names[257][80];
    static const float zeros[MEL_BINS];
    static safetensors_item items[260] = {
        {"decoder.estimator.time_embed.time_mlp.2.weight", ENTRY_F32, 2, {64, 1}, zeros},
        {"pre_lookahead_layer.conv1.weight", ENTRY_F32, 3, {1, 1, 1}, zeros},
        {"input_embedding.weight", ENTRY_F32, 2, {1, MEL_BINS}, zeros},
    };
    char path[IO_PATH_BYTES];
    const char *dir = model_link(tiny_model_dir());
    for (int i = 0; i < 257; i++) {
        snprintf(names[i], sizeof names[i], "decoder.estimator.transformer_blocks.%d.attn.to_q.weight", i);
        items[3 + i] = (safetensors_item){names[i], ENTRY_F32, 1, {0}, NULL};
    }
    model_put(dir, "flow.safetensors", NULL, 0);
    assert_ok(io_join(path, sizeof path, dir, "flow.safetensors"));
    assert_ok(safetensors_write(path, items, 260, NULL, 0));
    assert_err(CF_ERR_LIMIT, "flow.safetensors: more than 256 blocks", check_stage(dir, MODEL_FLOW));
    assert_ok(safetensors_write(path, items, 259, NULL, 0));
    assert_err(CF_ERR_NOTFOUND, "tensor spk_embed_affine_layer.weight is missing", check_stage(dir, MODEL_FLOW));
}

/* ---- files that are something else ---- */

#define LEGACY "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."

static void test_names_foreign_files(void **state)
{
    (void)state;
    static char tar[600];
    memcpy(tar + 257, "ustar", 5);
    char overlap[8 + 128 + 8] = {(char)128}; /* length, header, data */
    snprintf(overlap + 8, 129, "%-128s",
             "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
             "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}");
    const struct {
        cf_err code;
        const char *name, *part, *data;
        size_t bytes;
    } CASES[] = {
        {CF_ERR_CORRUPT, "flow.safetensors", "the file is empty", "", 0},
        {CF_ERR_UNSUPPORTED, "flow.safetensors",
         "a Git-LFS pointer instead of the file it stands for; fetch it with `git lfs pull`",
         "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", 63},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a Git-LFS pointer",
         "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", 63},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a web page, not a model file", "<!DOCTYPE html><html>", 21},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a web page, not a model file", "<!doctype html>", 15},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a web page, not a model file", "<html><body>Sign in", 19},
        {CF_ERR_UNSUPPORTED, "flow.pt", "an XML document, not a model file", "<?xml version=\"1.0\"?><Error>", 28},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a legacy PyTorch checkpoint; re-save it with torch 1.6 or later", LEGACY,
         sizeof LEGACY - 1},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a bare pickle, not a PyTorch checkpoint", "\x80\x04\x95\0\0", 5},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a preview-format PyTorch archive", "PYTORCH1\0\0\0\0", 12},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a tar archive", tar, sizeof tar},
        {CF_ERR_UNSUPPORTED, "flow.pt", "gzip-compressed; unpack it", "\x1f\x8b\x08\0\0\0", 6},
        {CF_ERR_UNSUPPORTED, "flow.pt", "a GGUF file, expected a PyTorch checkpoint or safetensors", "GGUF\3\0\0\0", 8},
        {CF_ERR_UNSUPPORTED, "flow.pt", "neither a PyTorch checkpoint nor safetensors", "hello", 5},
        {CF_ERR_CORRUPT, "flow.pt", "is truncated", "PK\3\4 and then nothing that a zip archive needs", 46},
        {CF_ERR_CORRUPT, "flow.safetensors", "too few for a safetensors file", "hello", 5},
        {CF_ERR_CORRUPT, "flow.safetensors", "flow.safetensors: tensor b: overlap: expected its data at 4, found 0",
         overlap, sizeof overlap},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        const char *dir = model_link(tiny_model_dir());
        model_put(dir, "flow.safetensors", NULL, 0);
        model_put(dir, CASES[i].name, CASES[i].data, CASES[i].bytes);
        assert_err(CASES[i].code, CASES[i].part, check_stage(dir, MODEL_FLOW));
        assert_non_null(strstr(err_text(), CASES[i].name));
    }
}

static void test_refuses_truncated_files(void **state)
{
    (void)state;
    static const struct {
        bool pt;
        long kept;
        const char *part;
    } CASES[] = {
        {false, -1, "outside of"},
        {false, 100000, "outside of"},
        {false, 200, "hift.safetensors: truncated: header of"},
        {false, 9, "hift.safetensors: truncated: header of"},
        {true, -1, "hift.pt: no zip directory at the end of"},
        {true, -100000, "hift.pt: no zip directory at the end of"},
        {true, 1000, "hift.pt: no zip directory at the end of 1000 bytes: the file is truncated"},
        {true, 10, "hift.pt: 10 bytes are too few for a PyTorch checkpoint"},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        const char *dir = model_link(CASES[i].pt ? tiny_model_pt_dir() : tiny_model_dir());
        model_cut(dir, CASES[i].pt ? "hift.pt" : "hift.safetensors", CASES[i].kept);
        assert_err(CF_ERR_CORRUPT, CASES[i].part, check_stage(dir, MODEL_HIFT));
    }
}

/* The file of one stage under the name of another. */
static void test_refuses_swapped_stages(void **state)
{
    (void)state;
    const char *dir = model_link(tiny_model_dir());
    io_map map;
    char path[IO_PATH_BYTES];
    snprintf(path, sizeof path, "%s/hift.safetensors", tiny_model_dir());
    assert_ok(io_map_file(path, &map));
    model_put(dir, "flow.safetensors", map.data, map.data_bytes);
    model_put(dir, "llm.safetensors", map.data, map.data_bytes);
    io_unmap(&map);
    assert_err(CF_ERR_NOTFOUND, "flow.safetensors: tensor decoder.estimator.time_embed.time_mlp.2.weight is missing",
               check_stage(dir, MODEL_FLOW));
    assert_err(CF_ERR_NOTFOUND, "llm.safetensors: tensor llm.model.model.embed_tokens.weight is missing",
               check_stage(dir, MODEL_LLM));
    assert_ok(check_stage(dir, MODEL_HIFT));
}

static void test_knows_the_released_files(void **state)
{
    (void)state;
    assert_string_equal(model_dir_released_name("74d34b01a80c7154670ae75ac372d1b1712c78bceae9f467eb9f1f6f61ec764f"),
                        "llm.rl.pt");
    assert_string_equal(model_dir_released_name("b279d7641eb97ae55b3b540cfba4f953c26492a2df758328a89a4d007ab87a65"),
                        "hift.pt");
    assert_null(model_dir_released_name("b279d7641eb97ae55b3b540cfba4f953c26492a2df758328a89a4d007ab87a66"));
    assert_null(model_dir_released_name(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detects_the_model),         cmocka_unit_test(test_ranks_the_files),
        cmocka_unit_test(test_says_what_is_missing),      cmocka_unit_test(test_refuses_configurations),
        cmocka_unit_test(test_refuses_configured_values), cmocka_unit_test(test_accepts_good_files),
        cmocka_unit_test(test_accepts_files_of_torch),    cmocka_unit_test(test_accepts_names_of_converters),
        cmocka_unit_test(test_refuses_missing_and_extra), cmocka_unit_test(test_refuses_shapes_and_types),
        cmocka_unit_test(test_a_small_vocabulary),        cmocka_unit_test(test_refuses_shapes_of_other_models),
        cmocka_unit_test(test_refuses_too_many_blocks),   cmocka_unit_test(test_names_foreign_files),
        cmocka_unit_test(test_refuses_truncated_files),   cmocka_unit_test(test_refuses_swapped_stages),
        cmocka_unit_test(test_knows_the_released_files),
    };
    return cmocka_run_group_tests_name("model_dir", tests, NULL, NULL);
}
