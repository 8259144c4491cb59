/*
 * model_check.c - the parts of a model directory one after the other, going on after a problem. Run by `cosyfarm model
 * check`; owns the file at hand. Fails: CF_ERR_NOMEM; every other failure is a finding.
 */
#include "tools/model_check.h"

#include <inttypes.h>
#include <string.h>

#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/voice.h"

#define VOCAB_BYTES_MAX (64u << 20)
#define SPECIAL_TOKENS  281 /* text.md 1.5: they follow the vocabulary */

typedef struct checker {
    const char *path; /* borrowed */
    bool verify;
    FILE *report;
    FILE *complaints;
    size_t problems;
    model_config config;
    bool has_config;
    int64_t speech_codes; /* of the LLM, or of the flow when the LLM was bad; 0: not known */
} checker;

/* Counts and prints a failure; only memory stops the check. */
static cf_err found(checker *c, cf_err err)
{
    if (err == CF_OK || err == CF_ERR_NOMEM)
        return err;
    c->problems++;
    fprintf(c->complaints, "%s\n", err_text());
    return CF_OK;
}

static cf_err check_values(const tensor_file *f)
{
    cf_err err;
    TRY(tensor_file_verify(f));
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        err = entry_check_finite(tensor_file_at(f, i));
        if (err != CF_OK)
            return err_context(err, "%s", tensor_file_path(f));
    }
out:
    return err;
}

static const char *precision_of(const tensor_file *f)
{
    const char *name = NULL;
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const char *type = entry_dtype_name(tensor_file_at(f, i)->type);
        if (name && strcmp(name, type) != 0)
            return "mixed";
        name = type;
    }
    return name ? name : "empty";
}

static cf_err report_stage(checker *c, model_stage stage, const tensor_file *f)
{
    char hex[SHA256_HEX_BYTES];
    const char *base = strrchr(tensor_file_path(f), '/') + 1;
    const char *warning = tensor_table_warning(tensor_file_table(f));
    if (warning)
        fprintf(c->complaints, "warning: %s: %s\n", base, warning);
    fprintf(c->report, "%-6s %s: %zu tensors, %s, %zu bytes", model_stage_name(stage), base, tensor_file_count(f),
            precision_of(f), tensor_file_bytes(f));
    if (c->verify) {
        const cf_err err = tensor_file_sha256(f, hex);
        if (err != CF_OK)
            return err;
        const char *released = model_dir_released_name(hex);
        fprintf(c->report, ", sha256 %s%s%s", hex, released ? ", released " : "", released ? released : "");
    }
    fprintf(c->report, "\n");
    return CF_OK;
}

/* What the LLM says the flow has to know. */
static cf_err check_codes(checker *c, model_stage stage, const weights *w)
{
    cf_err err = CF_OK;
    llm_dims llm;
    flow_dims flow;
    int64_t codes = c->speech_codes;
    if (stage == MODEL_LLM) {
        TRY(llm_dims_derive(w, NULL, &llm));
        codes = llm.speech_codes;
    } else if (stage == MODEL_FLOW) {
        TRY(flow_dims_derive(w, &flow));
        codes = flow.speech_codes;
    }
    if (c->speech_codes != 0 && codes != c->speech_codes)
        FAIL(CF_ERR_MISMATCH, "%s has %" PRId64 " speech codes, the llm has %" PRId64, model_stage_name(stage), codes,
             c->speech_codes);
    c->speech_codes = codes;
out:
    return err;
}

static cf_err check_stage(checker *c, model_stage stage)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    weights *w = NULL;
    TRY(model_dir_stage_file(c->path, stage, false, path));
    TRY(weights_open(path, &w));
    TRY(stage_check(w, stage, c->has_config ? &c->config : NULL));
    TRY(check_codes(c, stage, w));
    if (c->verify)
        TRY(check_values(weights_file(w)));
    TRY(report_stage(c, stage, weights_file(w)));
out:
    weights_close(w);
    return err;
}

static cf_err check_config(checker *c)
{
    const cf_err err = model_dir_config(c->path, &c->config);
    if (err != CF_OK)
        return err;
    c->has_config = true;
    fprintf(c->report,
            "config CosyVoice-BlankEN/config.json: %" PRId64 " wide, %" PRId64 " layers, %" PRId64
            " heads over %" PRId64 ", %" PRId64 " text rows\n",
            c->config.hidden, c->config.layers, c->config.heads, c->config.kv_heads, c->config.vocab_rows);
    return CF_OK;
}

/* The vocabulary and the special tokens behind it need rows in the text embedding. */
static cf_err check_tokenizer(checker *c)
{
    cf_err err;
    char path[IO_PATH_BYTES];
    char *text = NULL;
    size_t bytes;
    json *root = NULL;
    TRY(io_join(path, sizeof path, c->path, "CosyVoice-BlankEN/merges.txt"));
    TRY(io_read_file(path, VOCAB_BYTES_MAX, &text, &bytes));
    mem_free(text);
    text = NULL;
    TRY(io_join(path, sizeof path, c->path, "CosyVoice-BlankEN/vocab.json"));
    TRY(io_read_file(path, VOCAB_BYTES_MAX, &text, &bytes));
    err = json_parse(text, bytes, 1, &root);
    if (err != CF_OK) {
        err = err_context(err, "%s", path);
        goto out;
    }
    const size_t vocab = json_count(root);
    if (vocab == 0)
        FAIL(CF_ERR_INVALID, "%s: no tokens", path);
    if (c->has_config && vocab + SPECIAL_TOKENS > (uint64_t)c->config.vocab_rows)
        FAIL(CF_ERR_MISMATCH, "%s: %zu tokens and %d special ones, but config.json has %" PRId64 " rows", path, vocab,
             SPECIAL_TOKENS, c->config.vocab_rows);
    fprintf(c->report, "text   CosyVoice-BlankEN/vocab.json: %zu tokens\n", vocab);
out:
    json_close(root);
    mem_free(text);
    return err;
}

static cf_err check_voice(checker *c, const char *name)
{
    cf_err err;
    voice *v = NULL;
    TRY(voice_load(c->path, name, &v));
    for (size_t i = 0; c->has_config && i < v->prompt_text_ids; i++)
        if (v->prompt_text_id[i] >= c->config.vocab_rows)
            FAIL(CF_ERR_MISMATCH, "voice %s: prompt_text: id %d at index %zu, the model has %" PRId64 " text rows",
                 name, v->prompt_text_id[i], i, c->config.vocab_rows);
    for (size_t i = 0; c->speech_codes != 0 && i < v->prompt_tokens; i++)
        if (v->prompt_token[i] >= c->speech_codes)
            FAIL(CF_ERR_MISMATCH, "voice %s: prompt_token: id %d at index %zu, the model has %" PRId64 " speech codes",
                 name, (int)v->prompt_token[i], i, c->speech_codes);
    fprintf(c->report, "voice  %s: %zu prompt tokens\n", name, v->prompt_tokens);
out:
    voice_close(v);
    return err;
}

static cf_err check_voices(checker *c)
{
    cf_err err;
    char **names = NULL;
    size_t count = 0;
    TRY(voice_names(c->path, &names, &count));
    for (size_t i = 0; i < count; i++)
        TRY(found(c, check_voice(c, names[i])));
out:
    voice_names_close(names, count);
    return err;
}

cf_err model_check(const char *path, bool verify, FILE *report, FILE *complaints, size_t *ret_problems)
{
    cf_err err;
    checker c = {.path = path, .verify = verify, .report = report, .complaints = complaints};
    TRY(found(&c, model_dir_detect(path)));
    TRY(found(&c, check_config(&c)));
    TRY(found(&c, check_tokenizer(&c)));
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++)
        TRY(found(&c, check_stage(&c, (model_stage)stage)));
    TRY(found(&c, check_voices(&c)));
    *ret_problems = c.problems;
out:
    return err;
}
