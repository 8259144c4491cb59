/*
 * model_dir.c - which files a model directory offers and which are taken. Any process; owns nothing.
 *
 * Converted files win over checkpoints, and the RL-tuned language model over the base one (llm.md 1.2). Fails:
 * CF_ERR_NOTFOUND, CF_ERR_UNSUPPORTED for other generations, CF_ERR_INVALID for a config.json out of range.
 * Source: cosy cosyvoice/cli/cosyvoice.py AutoModel @ace7c47 (detection by yaml name); formats.md 1.
 */
#include "common/model/model_dir.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/check.h"
#include "common/base/json.h"
#include "common/base/mem.h"

#define CONFIG_BYTES_MAX 65536
#define CONFIG_DEPTH_MAX 8

static const char *const CANDIDATES[MODEL_STAGE_COUNT][5] = {
    [MODEL_LLM] = {"llm.rl.safetensors", "llm.rl.pt", "llm.safetensors", "llm.pt", NULL},
    [MODEL_FLOW] = {"flow.safetensors", "flow.pt", NULL},
    [MODEL_HIFT] = {"hift.safetensors", "hift.pt", NULL},
};

/* Released 2025-12: formats.md 1. */
static const struct {
    const char *name;
    const char *sha256;
} RELEASED[] = {
    {"llm.pt", "69f43bd545131c30e98947fb360ea8b4dc9916d8e83dded7757c7ea4f5a24970"},
    {"llm.rl.pt", "74d34b01a80c7154670ae75ac372d1b1712c78bceae9f467eb9f1f6f61ec764f"},
    {"flow.pt", "a6fab32a7825e5b0bc855ddd948f8db9370b0a786fbc249caa4595e95b608e4b"},
    {"hift.pt", "b279d7641eb97ae55b3b540cfba4f953c26492a2df758328a89a4d007ab87a65"},
    {"speech_tokenizer_v3.onnx", "23236a74175dbdda47afc66dbadd5bcb41303c467a57c261cb8539ad9db9208d"},
    {"speech_tokenizer_v3.batch.onnx", "b156b8a7bbff436585e153f4637b9a368009005ac66efa108a6c8bfb34e5ee43"},
    {"campplus.onnx", "a6ac6a63997761ae2997373e2ee1c47040854b4b759ea41ec48e4e42df0f4d73"},
    {"flow.decoder.estimator.fp32.onnx", "9b51b9533a55937762b262bf2cf9c6220ce40760f76d6532cb16a6a6d84059a8"},
    {"cosyvoice3.yaml", "f5a6b2c6f05139d0f18861a1fe506f751e787026b77c05f7e8fef9f8a4405965"},
    {"CosyVoice-BlankEN/config.json", "168aa1bd401abc3bc262ba15ba4e499627a8b4e006e9d050b47c22de20660185"},
    {"CosyVoice-BlankEN/merges.txt", "ac8ff86a72bee70828fbc1119bc4398c6f3a9a6e490d7b0dbe917be025478bd0"},
    {"CosyVoice-BlankEN/vocab.json", "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910"},
    {"CosyVoice-BlankEN/tokenizer_config.json", "482bd979881423375ca5414e4e0d94cd7c5349dbb17fffd46b4d36d71e62a1bc"},
    {"CosyVoice-BlankEN/model.safetensors", "130282af0dfa9fe5840737cc49a0d339d06075f83c5a315c3372c9a0740d0b96"},
};

const char *model_dir_released_name(const char *sha256_hex)
{
    for (size_t i = 0; i < CF_COUNT(RELEASED); i++)
        if (strcmp(RELEASED[i].sha256, sha256_hex) == 0)
            return RELEASED[i].name;
    return NULL;
}

static cf_err find_file(const char *path, const char *name, bool *ret_is_there)
{
    cf_err err;
    char full[IO_PATH_BYTES];
    TRY(io_join(full, sizeof full, path, name));
    TRY(io_find(full, ret_is_there));
out:
    return err;
}

cf_err model_dir_detect(const char *path)
{
    static const char *const names[] = {"cosyvoice.yaml", "cosyvoice2.yaml", "cosyvoice3.yaml"};
    cf_err err;
    bool is_there[CF_COUNT(names)];
    struct stat st;
    err = io_stat(path, &st);
    if (err == CF_ERR_NOTFOUND)
        FAIL(CF_ERR_NOTFOUND, "%s: no such model directory", path);
    if (err != CF_OK)
        goto out;
    if (!S_ISDIR(st.st_mode))
        FAIL(CF_ERR_INVALID, "%s: expected a model directory, found a file", path);
    for (size_t i = 0; i < CF_COUNT(names); i++)
        TRY(find_file(path, names[i], &is_there[i]));
    for (size_t i = 0; i < 2; i++)
        if (is_there[i])
            FAIL(CF_ERR_UNSUPPORTED, "%s: a CosyVoice %zu model (%s); expected cosyvoice3.yaml", path, i + 1, names[i]);
    if (!is_there[2])
        FAIL(CF_ERR_NOTFOUND, "%s: not a Fun-CosyVoice3 model directory: cosyvoice3.yaml is missing", path);
out:
    return err;
}

cf_err model_dir_stage_file(const char *path, model_stage stage, bool base, char ret_path[IO_PATH_BYTES])
{
    cf_err err;
    char tried[128] = "";
    for (const char *const *name = CANDIDATES[stage]; *name; name++) {
        bool is_there;
        if (base && strncmp(*name, "llm.rl.", 7) == 0)
            continue;
        TRY(find_file(path, *name, &is_there)); /* one that is out of reach for a moment is no reason for another */
        if (is_there)
            return io_join(ret_path, IO_PATH_BYTES, path, *name);
        snprintf(tried + strlen(tried), sizeof tried - strlen(tried), "%s%s", tried[0] ? ", " : "", *name);
    }
    err = err_set(CF_ERR_NOTFOUND, "%s: no file for the %s stage; expected one of %s", path, model_stage_name(stage),
                  tried);
out:
    return err;
}

static cf_err read_config(const json *root, model_config *ret_config)
{
    cf_err err;
    uint64_t hidden, layers, heads, kv_heads, intermediate, vocab_rows;
    double rope_theta, rms_norm_eps;
    TRY(json_get_u64(root, "hidden_size", 1, 16384, &hidden));
    TRY(json_get_u64(root, "num_hidden_layers", 1, 256, &layers));
    TRY(json_get_u64(root, "num_attention_heads", 1, 256, &heads));
    TRY(json_get_u64(root, "num_key_value_heads", 1, heads, &kv_heads));
    TRY(json_get_u64(root, "intermediate_size", 1, 65536, &intermediate));
    TRY(json_get_u64(root, "vocab_size", 1, 1048576, &vocab_rows));
    TRY(json_get_f64(root, "rope_theta", 1.0, 1e9, &rope_theta));
    TRY(json_get_f64(root, "rms_norm_eps", 1e-12, 1e-2, &rms_norm_eps));
    if (heads % kv_heads != 0)
        FAIL(CF_ERR_INVALID, "num_attention_heads: expected a multiple of num_key_value_heads");
    if (hidden != heads * MODEL_HEAD_DIM)
        FAIL(CF_ERR_UNSUPPORTED, "hidden_size: expected num_attention_heads * %d = %d, found %d", MODEL_HEAD_DIM,
             (int)heads * MODEL_HEAD_DIM, (int)hidden);
    *ret_config = (model_config){.hidden = (int64_t)hidden,
                                 .layers = (int64_t)layers,
                                 .heads = (int64_t)heads,
                                 .kv_heads = (int64_t)kv_heads,
                                 .intermediate = (int64_t)intermediate,
                                 .vocab_rows = (int64_t)vocab_rows,
                                 .rope_theta = rope_theta,
                                 .rms_norm_eps = rms_norm_eps};
out:
    return err;
}

cf_err model_dir_config(const char *path, model_config *ret_config)
{
    cf_err err;
    char full[IO_PATH_BYTES];
    char *text = NULL;
    size_t text_bytes;
    json *root = NULL;
    TRY(io_join(full, sizeof full, path, "CosyVoice-BlankEN/config.json"));
    TRY(io_read_file(full, CONFIG_BYTES_MAX, &text, &text_bytes));
    err = json_parse(text, text_bytes, CONFIG_DEPTH_MAX, &root);
    if (err == CF_OK)
        err = read_config(root, ret_config);
    if (err != CF_OK)
        err = err_context(err, "%s", full);
out:
    json_close(root);
    mem_free(text);
    return err;
}

cf_err model_dir_open(const char *path, bool base, model_dir *ret_dir)
{
    cf_err err;
    model_dir d = {0};
    if (snprintf(d.path, sizeof d.path, "%s", path) >= (int)sizeof d.path)
        FAIL(CF_ERR_LIMIT, "%.80s...: path longer than %d bytes", path, IO_PATH_BYTES);
    TRY(model_dir_detect(path));
    for (int stage = 0; stage < MODEL_STAGE_COUNT; stage++)
        TRY(model_dir_stage_file(path, (model_stage)stage, base, d.stage_path[stage]));
    const char *slash = strrchr(d.stage_path[MODEL_LLM], '/');
    d.is_rl = strncmp(slash + 1, "llm.rl.", 7) == 0;
    TRY(model_dir_config(path, &d.config));
    *ret_dir = d;
out:
    return err;
}
