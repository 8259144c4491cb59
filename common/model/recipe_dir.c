/*
 * recipe_dir.c - a synthetic model directory: stage files streamed tensor by tensor, tokenizer, configuration, voices.
 * Run by `cosyfarm model make` and by tests; owns one chunk of values and the writer at hand.
 *
 * Memory stays at a chunk whatever the size. Each file appears only when it is complete, cosyvoice3.yaml last, so an
 * interrupted run leaves no directory that passes for a model.
 * Fails: CF_ERR_SYS, CF_ERR_NOMEM; CF_ERR_BUSY when another model's files are in the way; CF_ERR_INVALID without the
 * vocabulary that a full model needs.
 * Source: synthetic.md 2 to 4.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/model_dir.h"
#include "common/model/pt.h"
#include "common/model/recipe_impl.h"
#include "common/model/safetensors.h"

#define CHUNK_VALUES    65536u
#define VOCAB_BYTES_MAX (64u << 20)
#define SPECIAL_TOKENS  281 /* text.md 1.5: they follow the vocabulary */
#define RELEASED_VOCAB  151643
#define RELEASED_ROWS   151936
#define TINY_VOCAB      511
#define BLANK           "CosyVoice-BlankEN"

/* ---- stage files ---- */

/* The two writers behind one set of calls. */
typedef struct sink {
    safetensors_writer *safetensors; /* owned; NULL for the other format */
    pt_writer *pt;                   /* owned */
} sink;

static cf_err sink_open(recipe_format format, const char *path, sink *ret_sink)
{
    if (format == RECIPE_SAFETENSORS)
        return safetensors_create(path, &ret_sink->safetensors);
    return pt_create(path, &ret_sink->pt);
}

static cf_err sink_declare(sink *s, const stage_tensor *t)
{
    if (s->safetensors)
        return safetensors_declare(s->safetensors, t->name, ENTRY_F32, t->rank, t->shape);
    return pt_declare(s->pt, t->name, t->rank, t->shape);
}

static cf_err sink_append(sink *s, const float *values, size_t count)
{
    if (s->safetensors)
        return safetensors_append(s->safetensors, values, count * sizeof *values);
    return pt_append(s->pt, values, count * sizeof *values);
}

static void sink_close(sink *s)
{
    safetensors_close(s->safetensors);
    pt_close(s->pt);
}

static cf_err declare_all(sink *s, model_stage stage, const stage_table *table)
{
    cf_err err = CF_OK;
    for (size_t i = 0; i < table->count; i++)
        TRY(sink_declare(s, &table->items[i]));
    if (s->pt && stage == MODEL_LLM)
        TRY(pt_declare_alias(s->pt, "llm.model.lm_head.weight", "llm.model.model.embed_tokens.weight"));
    TRY(s->safetensors ? safetensors_begin(s->safetensors) : pt_begin(s->pt));
out:
    return err;
}

static uint64_t value_count(const stage_tensor *t)
{
    uint64_t count = 1;
    for (int d = 0; d < t->rank; d++)
        count *= (uint64_t)t->shape[d];
    return count;
}

static cf_err write_stage(const recipe *r, recipe_format format, model_stage stage, const stage_table *table,
                          const char *path)
{
    cf_err err;
    sink s = {0};
    float *chunk = NULL;
    /* Harsh is a property of the Flow alone; its suffixes could fit no other stage, but that is not left to luck. */
    const recipe mine = {.size = r->size, .seed = r->seed, .harsh = r->harsh && stage == MODEL_FLOW};
    TRY(mem_alloc(CHUNK_VALUES, sizeof *chunk, &chunk));
    TRY(sink_open(format, path, &s));
    TRY(declare_all(&s, stage, table));
    for (size_t i = 0, idx = 0; i < table->count; i++, idx++) {
        const bool has_next = !s.pt || pt_next(s.pt, &idx);
        CF_ASSERT(has_next && idx < table->count); /* aliases have no data of their own */
        const uint64_t count = value_count(&table->items[idx]);
        for (uint64_t first = 0; first < count; first += CHUNK_VALUES) {
            const size_t n = count - first < CHUNK_VALUES ? (size_t)(count - first) : CHUNK_VALUES;
            recipe_values(&mine, &table->items[idx], first, n, chunk);
            TRY(sink_append(&s, chunk, n));
        }
    }
    TRY(s.safetensors ? safetensors_finish(s.safetensors) : pt_finish(s.pt));
out:
    sink_close(&s);
    mem_free(chunk);
    return err;
}

static const char *stage_file_name(model_stage stage, recipe_format format, char ret_name[32])
{
    snprintf(ret_name, 32, "%s.%s", model_stage_name(stage), format == RECIPE_PT ? "pt" : "safetensors");
    return ret_name;
}

static cf_err write_stages(const recipe *r, recipe_format format, int64_t text_rows, const char *path)
{
    cf_err err = CF_OK;
    stage_table table = {0};
    for (int i = 0; i < MODEL_STAGE_COUNT; i++) {
        char name[32];
        char full[IO_PATH_BYTES];
        const model_stage stage = (model_stage)i;
        TRY(io_join(full, sizeof full, path, stage_file_name(stage, format, name)));
        TRY(recipe_table(r, stage, &table));
        if (stage == MODEL_LLM)
            table.items[0].shape[0] = text_rows; /* the embedding is the first tensor and alone depends on them */
        TRY(write_stage(r, format, stage, &table, full));
        stage_table_done(&table);
    }
out:
    stage_table_done(&table);
    return err;
}

/* ---- tokenizer ---- */

/* A byte in the printable alphabet of byte-level BPE: bytes that print stand for themselves, the others follow U+0100
 * in order. Source: text.md 1.2. */
static uint32_t byte_symbol(unsigned byte)
{
    uint32_t next = 0x100;
    for (unsigned b = 0; b <= byte; b++) {
        const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
        if (b == byte)
            return prints ? b : next;
        next += !prints;
    }
    return 0;
}

static void add_utf8(byte_buf *b, uint32_t code_point)
{
    if (code_point < 0x80) {
        byte_buf_add_u8(b, code_point);
        return;
    }
    byte_buf_add_u8(b, 0xC0u | code_point >> 6); /* the alphabet ends below U+0800 */
    byte_buf_add_u8(b, 0x80u | (code_point & 0x3Fu));
}

/* Ids 0..255 are the bytes, 256 + k is what merge k makes. */
static void add_tiny_vocab(byte_buf *b)
{
    byte_buf_add_text(b, "{\n");
    for (int id = 0; id < 256; id++) {
        const uint32_t symbol = byte_symbol((unsigned)id);
        byte_buf_add_u8(b, '"');
        if (symbol == '"' || symbol == '\\')
            byte_buf_add_u8(b, '\\');
        add_utf8(b, symbol);
        byte_buf_printf(b, "\": %d,\n", id);
    }
    int id = 256;
    for (const char *line = RECIPE_TINY_MERGES; *line; id++) {
        const char *end = strchr(line, '\n');
        const char *space = strchr(line, ' ');
        byte_buf_add_u8(b, '"');
        byte_buf_add(b, line, (size_t)(space - line));
        byte_buf_add(b, space + 1, (size_t)(end - space - 1));
        byte_buf_printf(b, "\": %d", id);
        line = end + 1;
        byte_buf_add_text(b, *line ? ",\n" : "\n}");
    }
    CF_ASSERT(id == TINY_VOCAB);
}

static cf_err write_in(const char *folder, const char *name, const void *data, size_t bytes)
{
    char full[IO_PATH_BYTES];
    const cf_err err = io_join(full, sizeof full, folder, name);
    return err == CF_OK ? io_write_file(full, data, bytes) : err;
}

static cf_err write_tiny_tokenizer(const char *blank)
{
    cf_err err;
    byte_buf b = {0};
    add_tiny_vocab(&b);
    TRY(byte_buf_check(&b));
    TRY(write_in(blank, "vocab.json", b.data, b.bytes));
    TRY(write_in(blank, "merges.txt", RECIPE_TINY_MERGES, strlen(RECIPE_TINY_MERGES)));
out:
    byte_buf_done(&b);
    return err;
}

/* Copies one tokenizer file; counts the members of vocab.json when asked. */
static cf_err copy_tokenizer_file(const char *from, const char *blank, const char *name, size_t *ret_members)
{
    cf_err err;
    char full[IO_PATH_BYTES];
    char *text = NULL;
    size_t bytes;
    json *root = NULL;
    TRY(io_join(full, sizeof full, from, name));
    TRY(io_read_file(full, VOCAB_BYTES_MAX, &text, &bytes));
    if (ret_members) {
        err = json_parse(text, bytes, 1, &root);
        if (err != CF_OK) {
            err = err_context(err, "%s", full);
            goto out;
        }
        *ret_members = json_count(root);
    }
    TRY(write_in(blank, name, text, bytes));
out:
    json_close(root);
    mem_free(text);
    return err;
}

static cf_err write_tokenizer(const recipe *r, const char *tokenizer_path, const char *blank, size_t *ret_vocab)
{
    cf_err err;
    size_t vocab = TINY_VOCAB;
    if (!tokenizer_path && r->size == RECIPE_FULL)
        FAIL(CF_ERR_INVALID, "a full model needs the released vocabulary: name a folder with vocab.json and "
                             "merges.txt (--tokenizer)");
    if (!tokenizer_path) {
        TRY(write_tiny_tokenizer(blank));
    } else {
        TRY(copy_tokenizer_file(tokenizer_path, blank, "vocab.json", &vocab));
        TRY(copy_tokenizer_file(tokenizer_path, blank, "merges.txt", NULL));
    }
    *ret_vocab = vocab;
out:
    return err;
}

/* ---- configuration ---- */

static cf_err write_config(const recipe *r, int64_t text_rows, const char *blank)
{
    cf_err err;
    byte_buf b = {0};
    llm_dims llm;
    flow_dims flow;
    hift_dims hift;
    recipe_dims(r->size, &llm, &flow, &hift);
    byte_buf_add_text(&b, "{\n \"architectures\": [\n  \"Qwen2ForCausalLM\"\n ],\n \"model_type\": \"qwen2\",\n"
                          " \"hidden_act\": \"silu\",\n");
    byte_buf_printf(&b, " \"hidden_size\": %d,\n \"intermediate_size\": %d,\n \"num_hidden_layers\": %d,\n",
                    (int)llm.hidden, (int)llm.intermediate, (int)llm.layers);
    byte_buf_printf(&b, " \"num_attention_heads\": %d,\n \"num_key_value_heads\": %d,\n \"vocab_size\": %d,\n",
                    (int)llm.heads, (int)llm.kv_heads, (int)text_rows);
    byte_buf_add_text(&b, " \"max_position_embeddings\": 32768,\n \"rms_norm_eps\": 1e-06,\n"
                          " \"rope_theta\": 1000000.0,\n \"tie_word_embeddings\": true,\n"
                          " \"attention_dropout\": 0.0,\n \"use_sliding_window\": false,\n"
                          " \"torch_dtype\": \"bfloat16\"\n}");
    TRY(byte_buf_check(&b));
    TRY(write_in(blank, "config.json", b.data, b.bytes));
out:
    byte_buf_done(&b);
    return err;
}

static cf_err write_tokenizer_config(size_t vocab, const char *blank)
{
    static const char *const BASE[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    cf_err err;
    byte_buf b = {0};
    byte_buf_add_text(&b, "{\n \"tokenizer_class\": \"Qwen2Tokenizer\",\n \"model_max_length\": 32768,\n"
                          " \"add_prefix_space\": false,\n \"errors\": \"replace\",\n \"added_tokens_decoder\": {\n");
    for (size_t i = 0; i < CF_COUNT(BASE); i++) {
        byte_buf_printf(&b, "  \"%zu\": {\n   \"content\": \"%s\",\n   \"lstrip\": false,\n", vocab + i, BASE[i]);
        byte_buf_add_text(&b, "   \"normalized\": false,\n   \"rstrip\": false,\n   \"single_word\": false,\n"
                              "   \"special\": true\n");
        byte_buf_add_text(&b, i + 1 < CF_COUNT(BASE) ? "  },\n" : "  }\n");
    }
    byte_buf_add_text(&b, " },\n \"additional_special_tokens\": [\n  \"<|im_start|>\",\n  \"<|im_end|>\"\n ],\n"
                          " \"bos_token\": null,\n \"eos_token\": \"<|endoftext|>\",\n"
                          " \"pad_token\": \"<|endoftext|>\",\n \"unk_token\": null\n}");
    TRY(byte_buf_check(&b));
    TRY(write_in(blank, "tokenizer_config.json", b.data, b.bytes));
out:
    byte_buf_done(&b);
    return err;
}

/* ---- voices ---- */

static const struct {
    const char *name;
    int64_t tokens; /* 87 is no multiple of the 25 tokens of a chunk */
    const char *text;
} VOICES[] = {
    {"echo", 50, "You are a helpful assistant.<|endofprompt|>The harbour lights were still burning."},
    {"vale", 87, "You are a helpful assistant.<|endofprompt|>Nobody had asked the old clock for the time."},
};
#define VOICE_TOKENS 87

static uint64_t voice_key(uint64_t seed, const char *voice, const char *tensor)
{
    char name[64];
    snprintf(name, sizeof name, "voice.%s.%s", voice, tensor);
    return recipe_key(seed, name);
}

static cf_err write_voice(uint64_t seed, size_t idx, const char *folder)
{
    cf_err err;
    char name[64];
    char full[IO_PATH_BYTES];
    int32_t token[VOICE_TOKENS];
    float *feat = NULL;
    float embedding[SPEAKER_VALUES];
    const char *voice = VOICES[idx].name;
    const int64_t n = VOICES[idx].tokens;
    const size_t feat_count = (size_t)(2 * n * MEL_BINS);
    CF_ASSERT(n <= VOICE_TOKENS);
    TRY(mem_alloc(feat_count, sizeof *feat, &feat));
    const uint64_t key = voice_key(seed, voice, "prompt_token");
    for (int64_t i = 0; i < n; i++)
        token[i] = (int32_t)(recipe_word(key, (uint64_t)i) % SPEECH_CODES);
    recipe_uniform(voice_key(seed, voice, "prompt_feat"), 0, feat_count, -6.0, 4.0, feat);
    recipe_uniform(voice_key(seed, voice, "embedding"), 0, SPEAKER_VALUES, 0.0, 1.5, embedding);
    const safetensors_item items[] = {
        {"prompt_token", ENTRY_I32, 1, {n}, token},
        {"prompt_feat", ENTRY_F32, 2, {2 * n, MEL_BINS}, feat},
        {"embedding", ENTRY_F32, 1, {SPEAKER_VALUES}, embedding},
    };
    snprintf(name, sizeof name, "%s.safetensors", voice);
    TRY(io_join(full, sizeof full, folder, name));
    TRY(safetensors_write(full, items, CF_COUNT(items), &(table_text){"prompt_text", VOICES[idx].text}, 1));
out:
    mem_free(feat);
    return err;
}

/* ---- the directory ---- */

/* The file that a stage would load must be ours: another of higher rank would silently win. */
static cf_err check_way(recipe_format format, const char *path)
{
    for (int i = 0; i < MODEL_STAGE_COUNT; i++) {
        char name[32];
        char found[IO_PATH_BYTES];
        if (model_dir_stage_file(path, (model_stage)i, false, found) != CF_OK)
            continue;
        stage_file_name((model_stage)i, format, name);
        const char *found_name = strrchr(found, '/') + 1;
        const bool outranks = strstr(found_name, ".rl.") || (format == RECIPE_PT && strstr(found_name, ".safetensors"));
        if (outranks)
            return err_set(CF_ERR_BUSY, "%s is in the way: it would be loaded instead of %s", found, name);
    }
    return CF_OK;
}

/* Never writes over somebody's real model. */
static cf_err check_target(recipe_format format, const char *path)
{
    static const char MARK[] = "# synthetic ";
    cf_err err;
    char full[IO_PATH_BYTES];
    char *text = NULL;
    size_t bytes;
    TRY(io_join(full, sizeof full, path, "cosyvoice3.yaml"));
    if (io_exists(full)) {
        TRY(io_read_file(full, 1u << 20, &text, &bytes));
        if (strncmp(text, MARK, sizeof MARK - 1) != 0)
            FAIL(CF_ERR_BUSY, "%s holds a model that is not synthetic; choose another directory", path);
    }
    TRY(check_way(format, path));
out:
    mem_free(text);
    return err;
}

static int64_t rows_of(size_t vocab)
{
    return vocab == RELEASED_VOCAB ? RELEASED_ROWS : (int64_t)(vocab + SPECIAL_TOKENS + 63) / 64 * 64;
}

cf_err recipe_make_dir(const recipe *r, recipe_format format, const char *tokenizer_path, const char *path)
{
    cf_err err;
    char blank[IO_PATH_BYTES];
    char voices[IO_PATH_BYTES];
    char yaml[160];
    size_t vocab;
    TRY(check_target(format, path));
    TRY(io_join(blank, sizeof blank, path, BLANK));
    TRY(io_join(voices, sizeof voices, path, "voices"));
    TRY(io_make_dirs(blank, 0755));
    TRY(io_make_dirs(voices, 0755));
    TRY(write_tokenizer(r, tokenizer_path, blank, &vocab));
    TRY(write_tokenizer_config(vocab, blank));
    TRY(write_config(r, rows_of(vocab), blank));
    TRY(write_stages(r, format, rows_of(vocab), path));
    for (size_t i = 0; i < CF_COUNT(VOICES); i++)
        TRY(write_voice(r->seed, i, voices));
    const int bytes = snprintf(yaml, sizeof yaml,
                               "# synthetic %s model, seed %" PRIu64 ": shapes come from the tensors\n"
                               "sample_rate: 24000\n",
                               recipe_size_name(r->size), r->seed);
    TRY(write_in(path, "cosyvoice3.yaml", yaml, (size_t)bytes));
out:
    return err;
}
