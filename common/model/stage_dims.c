/*
 * stage_dims.c - the architecture out of a file's tensors, and the check of a whole file against its table. Any
 * process.
 *
 * Fails: CF_ERR_NOTFOUND and CF_ERR_MISMATCH name tensor, expected and found; CF_ERR_LIMIT for sizes beyond the bounds
 * below, which keep later products of dimensions far from overflow.
 * Source: llm.md 2.1, flow.md 1 and 2, hift.md 2.2.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/model/stage_tables.h"

#define WIDTH_MAX     16384 /* 16 times the released widths */
#define DEPTH_MAX     256   /* 10 times the released depth */
#define TEXT_ROWS_MAX 1048576

static const char *file_name(const weights *w)
{
    const char *path = tensor_file_path(weights_file(w));
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* A dimension read from tensor `name` must be a positive multiple of `unit` within max. */
static cf_err check_dim(const weights *w, const char *name, const char *what, int64_t value, int64_t unit, int64_t max)
{
    if (value < unit || value % unit != 0)
        return err_set(CF_ERR_MISMATCH, "%s: tensor %s: %s: expected a multiple of %" PRId64 ", found %" PRId64,
                       file_name(w), name, what, unit, value);
    if (value > max)
        return err_set(CF_ERR_LIMIT, "%s: tensor %s: %s: %" PRId64 ", at most %" PRId64, file_name(w), name, what,
                       value, max);
    return CF_OK;
}

/* Counts prefix0suffix, prefix1suffix, ... */
static cf_err count_blocks(const weights *w, const char *prefix, const char *suffix, int64_t *ret_count)
{
    char name[128];
    int64_t count = 0;
    for (; count <= DEPTH_MAX; count++) {
        snprintf(name, sizeof name, "%s%d%s", prefix, (int)count, suffix);
        if (!weights_has(w, name))
            break;
    }
    if (count == 0)
        return err_set(CF_ERR_NOTFOUND, "%s: tensor %s is missing", file_name(w), name);
    if (count > DEPTH_MAX)
        return err_set(CF_ERR_LIMIT, "%s: more than %d blocks", file_name(w), DEPTH_MAX);
    *ret_count = count;
    return CF_OK;
}

static cf_err same(const weights *w, const char *what, int64_t in_config, int64_t in_file)
{
    if (in_config == in_file)
        return CF_OK;
    return err_set(CF_ERR_MISMATCH, "%s: %s: config.json says %" PRId64 ", the tensors say %" PRId64, file_name(w),
                   what, in_config, in_file);
}

static cf_err check_config(const weights *w, const model_config *c, const llm_dims *d)
{
    cf_err err;
    TRY(same(w, "hidden_size", c->hidden, d->hidden));
    TRY(same(w, "num_hidden_layers", c->layers, d->layers));
    TRY(same(w, "num_attention_heads", c->heads, d->heads));
    TRY(same(w, "num_key_value_heads", c->kv_heads, d->kv_heads));
    TRY(same(w, "intermediate_size", c->intermediate, d->intermediate));
    TRY(same(w, "vocab_size", c->vocab_rows, d->text_rows));
out:
    return err;
}

#define SPEECH "speech_embedding.weight"
#define EMBED  "llm.model.model.embed_tokens.weight"
#define LAYER0 "llm.model.model.layers.0."

cf_err llm_dims_derive(const weights *w, const model_config *config, llm_dims *ret_dims)
{
    cf_err err;
    int64_t embed[2];
    int64_t q[2];
    int64_t k[2];
    int64_t gate[2];
    int64_t speech[2];
    llm_dims d = {0};
    TRY(weights_dims(w, EMBED, 2, embed));
    TRY(weights_dims(w, LAYER0 "self_attn.q_proj.weight", 2, q));
    TRY(weights_dims(w, LAYER0 "self_attn.k_proj.weight", 2, k));
    TRY(weights_dims(w, LAYER0 "mlp.gate_proj.weight", 2, gate));
    TRY(weights_dims(w, SPEECH, 2, speech));
    TRY(check_dim(w, EMBED, "rows", embed[0], 1, TEXT_ROWS_MAX));
    TRY(check_dim(w, EMBED, "columns", embed[1], 1, WIDTH_MAX));
    TRY(check_dim(w, LAYER0 "self_attn.q_proj.weight", "rows", q[0], MODEL_HEAD_DIM, WIDTH_MAX));
    TRY(check_dim(w, LAYER0 "self_attn.k_proj.weight", "rows", k[0], MODEL_HEAD_DIM, WIDTH_MAX));
    TRY(check_dim(w, LAYER0 "mlp.gate_proj.weight", "rows", gate[0], 1, 4 * WIDTH_MAX));
    TRY(check_dim(w, SPEECH, "rows less 200 control rows", speech[0] - SPEECH_CONTROLS, 1, SPEECH_CODES));
    d.text_rows = embed[0];
    d.speech_codes = speech[0] - SPEECH_CONTROLS;
    d.hidden = embed[1];
    d.heads = q[0] / MODEL_HEAD_DIM;
    d.kv_heads = k[0] / MODEL_HEAD_DIM;
    d.intermediate = gate[0];
    if (d.heads % d.kv_heads != 0)
        FAIL(CF_ERR_MISMATCH, "%s: %" PRId64 " attention heads are not a multiple of %" PRId64 " key-value heads",
             file_name(w), d.heads, d.kv_heads);
    TRY(count_blocks(w, "llm.model.model.layers.", ".input_layernorm.weight", &d.layers));
    if (config)
        TRY(check_config(w, config, &d));
    *ret_dims = d;
out:
    return err;
}

#define TIME_MLP  "decoder.estimator.time_embed.time_mlp.2.weight"
#define CODES     "input_embedding.weight"
#define LOOKAHEAD "pre_lookahead_layer.conv1.weight"

cf_err flow_dims_derive(const weights *w, flow_dims *ret_dims)
{
    cf_err err;
    int64_t time_mlp[2];
    int64_t lookahead[3];
    int64_t codes[2];
    flow_dims d = {0};
    TRY(weights_dims(w, TIME_MLP, 2, time_mlp));
    TRY(weights_dims(w, LOOKAHEAD, 3, lookahead));
    TRY(weights_dims(w, CODES, 2, codes));
    TRY(check_dim(w, TIME_MLP, "rows", time_mlp[0], MODEL_HEAD_DIM, WIDTH_MAX));
    TRY(check_dim(w, LOOKAHEAD, "channels", lookahead[0], 1, WIDTH_MAX));
    TRY(check_dim(w, CODES, "rows", codes[0], 1, SPEECH_CODES));
    d.dim = time_mlp[0];
    d.heads = d.dim / MODEL_HEAD_DIM;
    d.lookahead_channels = lookahead[0];
    d.speech_codes = codes[0];
    TRY(count_blocks(w, "decoder.estimator.transformer_blocks.", ".attn.to_q.weight", &d.depth));
    *ret_dims = d;
out:
    return err;
}

cf_err hift_dims_derive(const weights *w, hift_dims *ret_dims)
{
    cf_err err;
    int64_t base[3];
    int64_t f0[3];
    TRY(weights_folded_dims(w, "conv_pre", 3, base));
    TRY(weights_folded_dims(w, "f0_predictor.condnet.0", 3, f0));
    /* Three halvings of the channels. */
    TRY(check_dim(w, "conv_pre.weight", "channels", base[0], 8, WIDTH_MAX));
    TRY(check_dim(w, "f0_predictor.condnet.0.weight", "channels", f0[0], 1, WIDTH_MAX));
    *ret_dims = (hift_dims){.base_channels = base[0], .f0_channels = f0[0]};
out:
    return err;
}

static cf_err make_table(const weights *w, model_stage stage, const model_config *config, stage_table *ret_table)
{
    cf_err err;
    llm_dims llm;
    flow_dims flow;
    hift_dims hift;
    switch (stage) {
    case MODEL_LLM:
        TRY(llm_dims_derive(w, config, &llm));
        return stage_table_llm(&llm, ret_table);
    case MODEL_FLOW:
        TRY(flow_dims_derive(w, &flow));
        return stage_table_flow(&flow, ret_table);
    default:
        TRY(hift_dims_derive(w, &hift));
        return stage_table_hift(&hift, 0.0, ret_table);
    }
out:
    return err;
}

static cf_err check_tensor(weights *w, const stage_tensor *t)
{
    static const char SUFFIX[] = ".parametrizations.weight.original1";
    if (t->kind == STAGE_NORM_G)
        return CF_OK; /* checked with its direction, in whatever spelling */
    if (t->kind != STAGE_NORM_V)
        return weights_check(w, t->name, t->rank, t->shape);
    char prefix[sizeof t->name];
    const size_t bytes = strlen(t->name) - (sizeof SUFFIX - 1);
    CF_ASSERT(strcmp(t->name + bytes, SUFFIX) == 0);
    memcpy(prefix, t->name, bytes);
    prefix[bytes] = '\0';
    return weights_check_folded(w, prefix, t->rank, t->shape);
}

cf_err stage_check(weights *w, model_stage stage, const model_config *config)
{
    cf_err err;
    stage_table table = {0};
    TRY(make_table(w, stage, config, &table));
    for (size_t i = 0; i < table.count; i++)
        TRY(check_tensor(w, &table.items[i]));
    TRY(weights_done(w));
out:
    stage_table_done(&table);
    return err;
}
