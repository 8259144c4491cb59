/*
 * voice_import.c - voices from upstream's spk2info.pt and from voice files. Any process; owns the voices until handed
 * over.
 *
 * In a spk2info the tensors of one voice share the prefix "name/". Zero-shot entries hold prompt tokens twice (for the
 * language model and for the flow, the same object), SFT entries only an embedding. Lengths stored beside the tensors
 * cut them: torch keeps the longer storage, and a batch may be padded.
 * Fails: CF_ERR_INVALID names voice and field. Source: cosy cosyvoice/cli/frontend.py frontend_zero_shot and
 * cosyvoice/cli/cosyvoice.py add_zero_shot_spk @ace7c47; formats.md 3.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/model/voice_impl.h"

#define VOICES_MAX  10000u /* of one file */
#define FIELD_BYTES 64u

void voices_close(voice **voices, size_t count)
{
    for (size_t i = 0; i < count; i++)
        voice_close(voices[i]);
    mem_free(voices);
}

/* The part of "voice/field" before the last slash; 0 when there is none. */
static size_t voice_name_bytes(const char *entry_name)
{
    const char *slash = strrchr(entry_name, '/');
    return slash ? (size_t)(slash - entry_name) : 0;
}

static const tensor_entry *field(const tensor_table *t, const char *owner, const char *name)
{
    char full[VOICE_NAME_BYTES_MAX + FIELD_BYTES];
    snprintf(full, sizeof full, "%s/%s", owner, name);
    return tensor_table_find(t, full);
}

/* The first of two spellings; when both exist their bytes must agree in what the model sees. */
static const tensor_entry *either(const tensor_table *t, const char *owner, const char *first, const char *second)
{
    const tensor_entry *e = field(t, owner, first);
    return e ? e : field(t, owner, second);
}

static cf_err check_same(const tensor_entry *a, const tensor_entry *b)
{
    char a_hex[SHA256_HEX_BYTES];
    char b_hex[SHA256_HEX_BYTES];
    cf_err err = CF_OK;
    if (!a || !b || a == b)
        return CF_OK;
    TRY(entry_sha256(a, a_hex));
    TRY(entry_sha256(b, b_hex));
    if (a->type != b->type || strcmp(a_hex, b_hex) != 0)
        FAIL(CF_ERR_MISMATCH, "%s and %s differ; a voice has one prompt", a->name, b->name);
out:
    return err;
}

/* Cuts dimension `dim` of *e (from the end: 1 is the last) to the length stored in a tensor of one integer. */
static cf_err cut(const tensor_entry *length, int dim_from_end, tensor_entry *e)
{
    cf_err err;
    int32_t count;
    if (!length)
        return CF_OK;
    if (e->rank < dim_from_end)
        FAIL(CF_ERR_INVALID, "%s: rank %d is too small", e->name, e->rank);
    const int d = e->rank - dim_from_end;
    TRY(entry_read_i32(length, &count, 1));
    if (count < 0 || count > e->shape[d])
        FAIL(CF_ERR_INVALID, "%s: length %d of %" PRId64 " values", length->name, count, e->shape[d]);
    if (count < e->shape[d]) {
        e->shape[d] = count;
        e->contiguous = false; /* the strides still say where the rest lies */
    }
out:
    return err;
}

static cf_err read_voice(const tensor_table *t, const char *name, voice **ret_voice)
{
    cf_err err;
    tensor_entry token;
    tensor_entry feat;
    tensor_entry text;
    voice_fields f = {
        .token = either(t, name, "flow_prompt_speech_token", "llm_prompt_speech_token"),
        .feat = field(t, name, "prompt_speech_feat"),
        .embedding = either(t, name, "flow_embedding", "llm_embedding"),
        .text_ids = field(t, name, "prompt_text"),
    };
    TRY(check_same(f.token, field(t, name, "llm_prompt_speech_token")));
    TRY(check_same(f.embedding, field(t, name, "llm_embedding")));
    if (!f.embedding)
        f.embedding = field(t, name, "embedding");
    if (f.token) {
        token = *f.token;
        TRY(cut(either(t, name, "flow_prompt_speech_token_len", "llm_prompt_speech_token_len"), 1, &token));
        f.token = &token;
    }
    if (f.feat) {
        feat = *f.feat;
        TRY(cut(field(t, name, "prompt_speech_feat_len"), 2, &feat));
        f.feat = &feat;
    }
    if (f.text_ids) {
        text = *f.text_ids;
        TRY(cut(field(t, name, "prompt_text_len"), 1, &text));
        f.text_ids = &text;
    }
    TRY(voice_from_fields(name, &f, ret_voice));
out:
    return err;
}

static bool is_known(voice **voices, size_t count, const char *name)
{
    for (size_t i = count; i-- > 0;) /* newest first: entries of one voice lie together */
        if (strcmp(voices[i]->name, name) == 0)
            return true;
    return false;
}

static cf_err add_voice_of(const tensor_table *t, const tensor_entry *e, voice ***voices, size_t *count)
{
    cf_err err;
    char name[VOICE_NAME_BYTES_MAX + 1];
    const size_t bytes = voice_name_bytes(e->name);
    if (bytes == 0)
        FAIL(CF_ERR_INVALID, "tensor %.200s belongs to no voice: expected a spk2info file, {name: {field: tensor}}",
             e->name);
    if (bytes > VOICE_NAME_BYTES_MAX)
        FAIL(CF_ERR_INVALID, "voice name of %zu bytes, expected 1..%d", bytes, VOICE_NAME_BYTES_MAX);
    memcpy(name, e->name, bytes);
    name[bytes] = '\0';
    if (is_known(*voices, *count, name))
        return CF_OK;
    if (*count == VOICES_MAX)
        FAIL(CF_ERR_LIMIT, "more than %u voices", VOICES_MAX);
    if ((*count & (*count - 1)) == 0)
        TRY(mem_resize(voices, *count ? *count * 2 : 1, sizeof **voices));
    TRY(read_voice(t, name, &(*voices)[*count]));
    (*count)++;
out:
    return err;
}

cf_err voices_from_table(const tensor_table *table, voice ***ret_voices, size_t *ret_count)
{
    cf_err err = CF_OK;
    voice **voices = NULL;
    size_t count = 0;
    for (size_t i = 0; i < tensor_table_count(table); i++)
        TRY(add_voice_of(table, tensor_table_at(table, i), &voices, &count));
    if (count == 0)
        FAIL(CF_ERR_INVALID, "no voices in the file");
    *ret_voices = voices;
    *ret_count = count;
    voices = NULL;
    count = 0;
out:
    voices_close(voices, count);
    return err;
}

static cf_err import_single(const tensor_file *f, voice ***ret_voices)
{
    cf_err err;
    voice **voices = NULL;
    TRY(mem_alloc(1, sizeof *voices, &voices));
    TRY(voice_from_file(f, &voices[0]));
    *ret_voices = voices;
    voices = NULL;
out:
    mem_free(voices);
    return err;
}

cf_err voices_import(const char *path, voice ***ret_voices, size_t *ret_count)
{
    cf_err err;
    tensor_file *f = NULL;
    TRY(tensor_file_open(path, &f));
    if (tensor_file_find(f, "embedding") || tensor_file_find(f, "prompt_token")) {
        TRY(import_single(f, ret_voices));
        *ret_count = 1;
    } else {
        err = voices_from_table(tensor_file_table(f), ret_voices, ret_count);
        if (err != CF_OK)
            err = err_context(err, "%s", path);
    }
out:
    tensor_file_close(f);
    return err;
}
