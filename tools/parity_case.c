/*
 * parity_case.c - reads case files and maps capture formats. Command line only; a case owns its tensors and its table
 * of contents, not the file's bytes.
 * Fails: CF_ERR_SYS, CF_ERR_INVALID, CF_ERR_CORRUPT, CF_ERR_UNSUPPORTED, CF_ERR_LIMIT for files that are not cases;
 * CF_ERR_NOTFOUND, CF_ERR_MISMATCH when an adapter asks for an input that is not there.
 * Source: cases.md 2, which lists stages, tensors and capture names.
 */
#include "tools/parity_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#define DEFECT_BYTES 256

struct parity_case {
    char *path;          /* owned */
    tensor_table *table; /* owned; names and texts */
    const char *stage;   /* borrowed from the table, or static */
    bool is_capture;
    bool is_view; /* path, table and the tensors' data belong to another case */
    char defect[DEFECT_BYTES];
    case_tensor *tensors; /* [count], owned */
    size_t count;
};

const char *const PARITY_STAGES[] = {"llm", "flow", "hift", "stream", "speed", "voice", "enroll", NULL};

static const struct input_row {
    const char *stage, *name;
    int rank;
} INPUTS[] = {
    {"llm", "text", 1},           {"llm", "prompt_text", 1},  {"llm", "prompt_speech_token", 1},
    {"llm", "forced", 1},         {"llm", "text_embeds", 2},  {"flow", "token", 1},
    {"flow", "prompt_token", 1},  {"flow", "prompt_feat", 2}, {"flow", "embedding", 1},
    {"hift", "mel", 2},           {"stream", "token", 1},     {"stream", "prompt_token", 1},
    {"stream", "prompt_feat", 2}, {"stream", "embedding", 1}, {"speed", "mel", 2},
    {"enroll", "token_mel_#", 2}, {"enroll", "fbank_#", 2},
};

/* Metadata that a stage cannot do without. */
static const struct meta_row {
    const char *stage, *key;
} REQUIRED_META[] = {
    {"flow", "streaming"}, {"flow", "finalize"}, {"hift", "finalize"},
    {"stream", "calls"},   {"speed", "speed"},   {"voice", "wav"},
};

/* A capture is recognised by its first name here. to NULL: known, not compared. */
typedef struct capture_row {
    const char *from, *to, *note;
} capture_row;

static const capture_row LLM_CAPTURE[] = {
    {"text_embeds", "text_embeds", NULL}, {"prompt_speech_tokens", "prompt_speech_token", NULL},
    {"expected_logits", "logits", NULL},  {"last_hidden_state", "hidden", NULL},
    {"lm_input", "lm_input", NULL},       {"sos_emb", "sos_emb", NULL},
    {"task_id_emb", "task_id_emb", NULL}, {"prompt_speech_token_emb", "prompt_speech_token_emb", NULL},
};

static const capture_row HIFT_ARTIFACTS[] = {
    {"python_hift_mel_input", "mel", NULL},
    {"python_f0", "f0", NULL},
    {"python_hift_source", "source", NULL},
    {"python_hift_audio", "audio", NULL},
    {"python_flow_output", NULL, "the vocoder's input again; the flow's own inputs are not in the file"},
    {"python_mel_24k", NULL, "a prompt's mel, no stage's output"},
    {"python_spk_emb", NULL, "a prompt's speaker vector, no stage's output"},
    {"python_speech_tokens", NULL, "a prompt's speech tokens, no stage's output"},
};

static const capture_row HIFT_INTERMEDIATES[] = {
    {"input_mel", "mel", NULL},
    {"f0_output", "f0", NULL},
    {"sine_merge", "source", NULL},
    {"conv_pre_out", "conv_pre", NULL},
    {"final_audio", "audio", NULL},
    {"source_s", NULL, "f0 repeated 480 times: what the source is made from"},
    {"uv", NULL, "follows from f0; the vocoder does not keep it"},
    {"noise", NULL, "the branch that inference discards"},
    {"s_stft_real", NULL, "inside the decoder; conv_pre and audio bracket it"},
    {"s_stft_imag", NULL, "inside the decoder; conv_pre and audio bracket it"},
};

static const struct capture_format {
    const char *stage;
    const capture_row *rows;
    size_t row_count;
} CAPTURES[] = {
    {"llm", LLM_CAPTURE, CF_COUNT(LLM_CAPTURE)},
    {"hift", HIFT_ARTIFACTS, CF_COUNT(HIFT_ARTIFACTS)},
    {"hift", HIFT_INTERMEDIATES, CF_COUNT(HIFT_INTERMEDIATES)},
};

static bool stage_known(const char *stage)
{
    for (size_t i = 0; PARITY_STAGES[i]; i++)
        if (strcmp(PARITY_STAGES[i], stage) == 0)
            return true;
    return false;
}

static bool input_matches(const struct input_row *row, const char *stage, const char *name)
{
    return strcmp(row->stage, stage) == 0 && compare_name_matches(row->name, name);
}

static case_role role_of(const char *stage, const char *name)
{
    for (size_t i = 0; i < CF_COUNT(INPUTS); i++)
        if (input_matches(&INPUTS[i], stage, name))
            return CASE_INPUT;
    return bound_find(stage, name, PRECISION_F32, BOUND_PLAIN, NULL) ? CASE_EXPECTED : CASE_UNKNOWN;
}

static bool compares_integers(const char *stage, const char *name)
{
    const bound *b = bound_find(stage, name, PRECISION_F32, BOUND_PLAIN, NULL);
    return b && b->kind == BOUND_EQUAL;
}

/* Integers as f32 too: compared numbers are small, a larger one cannot be what a stage emits. */
static cf_err widen(case_tensor *t)
{
    cf_err err;
    TRY(mem_alloc(t->count, sizeof *t->f32, &t->f32));
    for (size_t i = 0; i < t->count; i++)
        t->f32[i] = (float)t->i32[i];
out:
    return err;
}

/* Reads one entry into memory of its own: floats as f32, integers as i32. */
static cf_err read_tensor(const parity_case *c, const tensor_entry *e, case_tensor *t)
{
    cf_err err = CF_OK;
    if (e->rank > CASE_RANK_MAX)
        FAIL(CF_ERR_LIMIT, "tensor %s has %d dimensions, expected at most %d", e->name, e->rank, CASE_RANK_MAX);
    t->name = t->file_name = e->name;
    t->rank = e->rank;
    memcpy(t->dims, e->shape, (size_t)e->rank * sizeof *t->dims);
    t->count = (size_t)entry_count(e);
    t->role = c->is_capture ? CASE_UNKNOWN : role_of(c->stage, e->name);
    if (entry_is_float(e)) {
        TRY(mem_alloc(t->count, sizeof *t->f32, &t->f32));
        TRY(entry_read_f32(e, t->f32, t->count));
    } else {
        TRY(mem_alloc(t->count, sizeof *t->i32, &t->i32));
        TRY(entry_read_i32(e, t->i32, t->count));
        if (t->role == CASE_EXPECTED && compares_integers(c->stage, t->name))
            TRY(widen(t));
    }
out:
    return err;
}

static void map_capture(const struct capture_format *format, case_tensor *t)
{
    for (size_t i = 0; i < format->row_count; i++) {
        const capture_row *row = &format->rows[i];
        if (strcmp(row->from, t->file_name) != 0)
            continue;
        t->role = row->to ? role_of(format->stage, row->to) : CASE_IGNORED;
        t->name = row->to ? row->to : t->file_name;
        t->note = row->note;
        return;
    }
}

static const struct capture_format *detect_capture(const tensor_table *table)
{
    for (size_t i = 0; i < CF_COUNT(CAPTURES); i++)
        if (tensor_table_find(table, CAPTURES[i].rows[0].from))
            return &CAPTURES[i];
    return NULL;
}

/* Values that an adapter would otherwise have to doubt. */
static void check_meta(parity_case *c)
{
    for (size_t i = 0; i < CF_COUNT(REQUIRED_META); i++) {
        const char *key = REQUIRED_META[i].key;
        if (strcmp(REQUIRED_META[i].stage, c->stage) != 0)
            continue;
        const char *value = parity_case_meta(c, key);
        if (!value) {
            snprintf(c->defect, DEFECT_BYTES, "metadata \"%s\" is missing; stage %s needs it", key, c->stage);
            return;
        }
        const bool flag = strcmp(key, "streaming") == 0 || strcmp(key, "finalize") == 0;
        if (flag && strcmp(value, "0") != 0 && strcmp(value, "1") != 0) {
            snprintf(c->defect, DEFECT_BYTES, "metadata \"%s\": expected 0 or 1, found \"%.40s\"", key, value);
            return;
        }
        if (strcmp(key, "wav") == 0 && (!value[0] || strchr(value, '/')))
            snprintf(c->defect, DEFECT_BYTES, "metadata \"wav\": expected the name of a file, found \"%.60s\"", value);
        if (strcmp(key, "speed") == 0) {
            char *end;
            const double speed = strtod(value, &end);
            if (end == value || *end || !(speed >= 0.5 && speed <= 2))
                snprintf(c->defect, DEFECT_BYTES, "metadata \"speed\": expected 0.5..2, found \"%.40s\"", value);
        }
    }
}

static cf_err check_calls(parity_case *c)
{
    cf_err err = CF_OK;
    json *root = NULL;
    const char *calls = strcmp(c->stage, "stream") == 0 ? parity_case_meta(c, "calls") : NULL;
    if (!calls)
        goto out;
    bool good = json_parse(calls, strlen(calls), 3, &root) == CF_OK && json_is_array(root);
    for (const json *call = good ? json_first(root) : NULL; call && good; call = json_next(call)) {
        good = json_is_array(call) && json_count(call) == 2;
        uint64_t number;
        for (const json *v = good ? json_first(call) : NULL; v && good; v = json_next(v))
            good = json_as_u64(v, "calls", 0, TOKENS_MAX, &number) == CF_OK;
    }
    if (!good)
        snprintf(c->defect, DEFECT_BYTES, "metadata \"calls\": expected [[offset, tokens], ...], found \"%.60s\"",
                 calls);
out:
    json_close(root);
    return err;
}

static void check_inputs(parity_case *c)
{
    for (size_t i = 0; i < c->count && !c->defect[0]; i++) {
        const case_tensor *t = &c->tensors[i];
        if (t->role != CASE_INPUT || !t->f32)
            continue;
        for (size_t j = 0; j < t->count; j++) {
            if (isfinite(t->f32[j]))
                continue;
            snprintf(c->defect, DEFECT_BYTES, "input %.60s: value %zu is NaN or infinite", t->name, j);
            break;
        }
    }
}

/* Stage and capture format from the table; then every tensor. */
static cf_err fill_case(parity_case *c)
{
    cf_err err = CF_OK;
    const struct capture_format *format = NULL;
    c->stage = tensor_table_text(c->table, "stage");
    if (!c->stage) {
        format = detect_capture(c->table);
        if (!format)
            FAIL(CF_ERR_INVALID, "not a case: no metadata \"stage\", and no tensor names of a known capture format");
        c->stage = format->stage;
        c->is_capture = true;
    }
    const size_t entries = tensor_table_count(c->table);
    TRY(mem_alloc(entries, sizeof *c->tensors, &c->tensors));
    for (; c->count < entries; c->count++) {
        case_tensor *t = &c->tensors[c->count];
        err = read_tensor(c, tensor_table_at(c->table, c->count), t);
        if (err != CF_OK) {
            c->count++; /* close frees what it holds */
            goto out;
        }
        if (format)
            map_capture(format, t);
    }
    if (!stage_known(c->stage)) {
        snprintf(c->defect, DEFECT_BYTES,
                 "stage \"%.40s\" is unsupported; parity compares llm, flow, hift, stream, speed, voice, enroll",
                 c->stage);
        goto out;
    }
    if (!c->is_capture)
        check_meta(c);
    if (!c->defect[0])
        TRY(check_calls(c));
    check_inputs(c);
out:
    return err;
}

cf_err parity_case_parse(const char *path, const unsigned char *data, size_t bytes, parity_case **ret_case)
{
    parity_case *c = NULL;
    cf_err err = CF_OK;
    if (bytes > CASE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "%zu bytes, expected at most %zu (CASE_BYTES_MAX)", bytes, CASE_BYTES_MAX);
    TRY(mem_alloc(1, sizeof *c, &c));
    TRY(mem_strndup(path, strlen(path), &c->path));
    TRY(safetensors_parse(data, bytes, &c->table));
    TRY(fill_case(c));
    *ret_case = c;
    c = NULL;
out:
    parity_case_close(c);
    return err == CF_OK ? err : err_context(err, "%s", path);
}

cf_err parity_case_open(const char *path, parity_case **ret_case)
{
    io_map map = {0};
    cf_err err;
    TRY(io_map_file(path, &map));
    TRY(parity_case_parse(path, map.data, map.data_bytes, ret_case));
out:
    io_unmap(&map);
    return err;
}

cf_err parity_case_inputs(const parity_case *c, parity_case **ret_view)
{
    parity_case *view = NULL;
    cf_err err;
    TRY(mem_alloc(1, sizeof *view, &view));
    *view = *c;
    view->is_view = true;
    view->tensors = NULL;
    view->count = 0;
    TRY(mem_alloc(c->count, sizeof *view->tensors, &view->tensors));
    for (size_t i = 0; i < c->count; i++)
        if (c->tensors[i].role == CASE_INPUT)
            view->tensors[view->count++] = c->tensors[i];
    *ret_view = view;
    view = NULL;
out:
    parity_case_close(view);
    return err;
}

void parity_case_close(parity_case *c)
{
    if (!c)
        return;
    for (size_t i = 0; c->tensors && !c->is_view && i < c->count; i++) {
        mem_free(c->tensors[i].f32);
        mem_free(c->tensors[i].i32);
    }
    mem_free(c->tensors);
    if (!c->is_view) {
        tensor_table_close(c->table);
        mem_free(c->path);
    }
    mem_free(c);
}

const char *parity_case_path(const parity_case *c)
{
    return c->path;
}

const char *parity_case_meta(const parity_case *c, const char *key)
{
    /* A capture is one whole utterance of the vocoder. */
    if (c->is_capture && strcmp(key, "finalize") == 0)
        return "1";
    return tensor_table_text(c->table, key);
}

const char *parity_case_defect(const parity_case *c)
{
    return c->defect[0] ? c->defect : NULL;
}

const char *parity_case_stage(const parity_case *c)
{
    return c->stage;
}

bool parity_case_is_capture(const parity_case *c)
{
    return c->is_capture;
}

bound_profile parity_case_profile(const parity_case *c)
{
    static const char synthetic[] = "synthetic ", harsh[] = "profile harsh";
    const char *model = parity_case_meta(c, "model");
    if (c->is_capture)
        return strcmp(c->stage, "hift") == 0 ? BOUND_CAPTURE : BOUND_REAL;
    if (!model || strncmp(model, synthetic, sizeof synthetic - 1) != 0)
        return BOUND_REAL;
    const size_t length = strlen(model), tail = sizeof harsh - 1;
    return length >= tail && strcmp(model + length - tail, harsh) == 0 ? BOUND_HARSH : BOUND_PLAIN;
}

size_t parity_case_count(const parity_case *c)
{
    return c->count;
}

const case_tensor *parity_case_at(const parity_case *c, size_t idx)
{
    CF_ASSERT(idx < c->count);
    return &c->tensors[idx];
}

const case_tensor *parity_case_find(const parity_case *c, const char *name)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->tensors[i].role != CASE_IGNORED && strcmp(c->tensors[i].name, name) == 0)
            return &c->tensors[i];
    return NULL;
}

bool parity_case_has(const parity_case *c, const char *name)
{
    return parity_case_find(c, name) != NULL;
}

const char *parity_case_input(const parity_case *c, size_t idx)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->tensors[i].role == CASE_INPUT && idx-- == 0)
            return c->tensors[i].name;
    return NULL;
}

/* The folder of the case; "." when its path has none. */
static void folder_of(const parity_case *c, char ret_path[IO_PATH_BYTES])
{
    const char *slash = strrchr(c->path, '/');
    snprintf(ret_path, IO_PATH_BYTES, "%.*s", slash ? (int)(slash - c->path) : 1, slash ? c->path : ".");
}

cf_err parity_case_beside(const parity_case *c, const char *file_name, char ret_path[IO_PATH_BYTES])
{
    char folder[IO_PATH_BYTES];
    folder_of(c, folder);
    return io_join(ret_path, IO_PATH_BYTES, folder, file_name);
}

cf_err parity_case_recording(const parity_case *c, char ret_path[IO_PATH_BYTES])
{
    static const char *const above[] = {"../data/real", "../../data/real"};
    cf_err err;
    const char *name = parity_case_meta(c, "wav"); /* checked when the case was opened */
    char folder[IO_PATH_BYTES], place[IO_PATH_BYTES];
    TRY(parity_case_beside(c, name, ret_path));
    folder_of(c, folder);
    for (size_t i = 0; i < CF_COUNT(above) && !io_exists(ret_path); i++) {
        TRY(io_join(place, sizeof place, folder, above[i]));
        TRY(io_join(ret_path, IO_PATH_BYTES, place, name));
    }
    if (!io_exists(ret_path))
        FAIL(CF_ERR_NOTFOUND, "recording %s: expected beside the case or in ../data/real or ../../data/real", name);
out:
    return err;
}

/* The tensor's shape at this rank. Captures carry batch and channel dimensions of size 1: those in front go first. */
static cf_err shape_at_rank(const parity_case *c, const case_tensor *t, int rank, int64_t *ret_dims)
{
    int first = 0, last = t->rank;
    while (c->is_capture && last - first > rank && t->dims[first] == 1)
        first++;
    while (c->is_capture && last - first > rank && t->dims[last - 1] == 1)
        last--;
    if (last - first != rank) {
        char shape[ENTRY_SHAPE_BYTES];
        entry_shape_text(t->dims, t->rank, shape);
        return err_set(CF_ERR_MISMATCH, "%s: tensor %s: expected %d dimensions, found %s", c->path, t->file_name, rank,
                       shape);
    }
    memcpy(ret_dims, t->dims + first, (size_t)rank * sizeof *ret_dims);
    return CF_OK;
}

static cf_err find_or_fail(const parity_case *c, const char *name, const case_tensor **ret_tensor)
{
    const case_tensor *t = parity_case_find(c, name);
    if (!t)
        return err_set(CF_ERR_NOTFOUND, "%s: tensor %s is missing; stage %s needs it", c->path, name, c->stage);
    *ret_tensor = t;
    return CF_OK;
}

cf_err parity_case_shape(const parity_case *c, const case_tensor *t, int *ret_rank, int64_t *ret_dims)
{
    cf_err err = CF_OK;
    int rank = t->rank;
    for (size_t i = 0; i < CF_COUNT(INPUTS); i++)
        if (input_matches(&INPUTS[i], c->stage, t->name))
            rank = INPUTS[i].rank;
    TRY(shape_at_rank(c, t, rank, ret_dims));
    *ret_rank = rank;
out:
    return err;
}

cf_err parity_case_f32(const parity_case *c, const char *name, int rank, int64_t *ret_dims, const float **ret_data)
{
    const case_tensor *t = NULL;
    cf_err err;
    TRY(find_or_fail(c, name, &t));
    if (!t->f32)
        FAIL(CF_ERR_MISMATCH, "%s: tensor %s: expected floating point, found integers", c->path, t->file_name);
    TRY(shape_at_rank(c, t, rank, ret_dims));
    *ret_data = t->f32;
out:
    return err;
}

cf_err parity_case_i32(const parity_case *c, const char *name, int64_t *ret_count, const int32_t **ret_data)
{
    static const int32_t nothing[1];
    const case_tensor *t = NULL;
    int64_t count;
    cf_err err = CF_OK;
    if (c->is_capture && strcmp(name, "forced") == 0 && !parity_case_has(c, name)) {
        *ret_count = 0; /* a capture of a prefill forces nothing */
        *ret_data = nothing;
        goto out;
    }
    TRY(find_or_fail(c, name, &t));
    if (!t->i32)
        FAIL(CF_ERR_MISMATCH, "%s: tensor %s: expected integers, found floating point", c->path, t->file_name);
    TRY(shape_at_rank(c, t, 1, &count));
    *ret_count = count;
    *ret_data = t->i32;
out:
    return err;
}
