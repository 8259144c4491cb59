/*
 * parity_sink.c - collects what adapters emit, and writes captures. Command line only; the sink owns copies.
 * Fails: CF_ERR_NOMEM; CF_ERR_INVALID for an emission that contradicts itself (an adapter's mistake, reported as a FAIL
 * line); CF_ERR_SYS when a capture cannot be written.
 */
#include "tools/parity_sink.h"

#include <stdio.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "tools/parity_frame.h"

void sink_init(parity_sink *s, size_t cases)
{
    *s = (parity_sink){.cases = cases};
}

void sink_done(parity_sink *s)
{
    for (size_t i = 0; i < s->count; i++) {
        mem_free(s->items[i].data);
        mem_free(s->items[i].whole);
    }
    mem_free(s->items);
    *s = (parity_sink){0};
}

const emitted *sink_find(const parity_sink *s, size_t case_idx, const char *name)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->items[i].case_idx == case_idx && strcmp(s->items[i].name, name) == 0)
            return &s->items[i];
    return NULL;
}

cf_err parity_emit(parity_sink *sink, size_t case_idx, const char *name, int rank, const int64_t *dims,
                   const float *data)
{
    cf_err err = CF_OK;
    emitted e = {.case_idx = case_idx, .rank = rank, .count = 1};
    if (case_idx >= sink->cases)
        FAIL(CF_ERR_INVALID, "tensor %s emitted for case %zu of %zu", name, case_idx, sink->cases);
    if (rank < 1 || rank > CASE_RANK_MAX || strlen(name) >= EMITTED_NAME_BYTES)
        FAIL(CF_ERR_INVALID, "tensor %s emitted with %d dimensions, expected 1..%d", name, rank, CASE_RANK_MAX);
    if (sink_find(sink, case_idx, name))
        FAIL(CF_ERR_INVALID, "tensor %s emitted twice", name);
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0)
            FAIL(CF_ERR_INVALID, "tensor %s emitted with a negative dimension", name);
        e.dims[i] = dims[i];
        e.count *= (size_t)dims[i];
    }
    if (sink->count == sink->capacity) {
        const size_t capacity = sink->capacity ? 2 * sink->capacity : 32;
        TRY(mem_resize(&sink->items, capacity, sizeof *sink->items));
        sink->capacity = capacity;
    }
    snprintf(e.name, sizeof e.name, "%s", name);
    TRY(mem_alloc(e.count, sizeof *e.data, &e.data));
    if (e.count)
        memcpy(e.data, data, e.count * sizeof *e.data);
    sink->items[sink->count++] = e;
out:
    return err;
}

cf_err parity_emit_i32(parity_sink *sink, size_t case_idx, const char *name, int64_t count, const int32_t *data)
{
    cf_err err;
    float *values = NULL;
    int32_t *whole = NULL;
    TRY(mem_alloc((size_t)count, sizeof *values, &values));
    TRY(mem_alloc((size_t)count, sizeof *whole, &whole));
    for (int64_t i = 0; i < count; i++) {
        CF_ASSERT(data[i] >= 0 && data[i] < 1 << 24);
        values[i] = (float)data[i];
        whole[i] = data[i];
    }
    TRY(parity_emit(sink, case_idx, name, 1, &count, values));
    sink->items[sink->count - 1].whole = whole;
    whole = NULL;
out:
    mem_free(values);
    mem_free(whole);
    return err;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Metadata that a reader of the capture needs, taken over from the case. */
static size_t capture_texts(const parity_case *c, const parity_options *opt, char made_by[128], table_text texts[8])
{
    static const char *const keys[] = {"model", "streaming", "finalize", "speed", "calls", "wav"};
    static const char *const operands[] = {"f32", "bf16", "fp16"};
    size_t count = 0;
    snprintf(made_by, 128, "cosyfarm %s %s %s%s", CF_VERSION, opt->device,
             opt->int8_weights ? "int8" : operands[opt->operands], opt->naive ? " naive" : "");
    texts[count++] = (table_text){"stage", parity_case_stage(c)};
    texts[count++] = (table_text){"made_by", made_by};
    for (size_t i = 0; i < CF_COUNT(keys); i++) {
        const char *value = parity_case_meta(c, keys[i]);
        if (value)
            texts[count++] = (table_text){keys[i], value};
    }
    return count;
}

/* A capture of a recording is of use with the recording beside it. */
static cf_err copy_recording(const parity_case *c, const char *dir)
{
    char from[IO_PATH_BYTES], to[IO_PATH_BYTES];
    io_map map = {0};
    cf_err err;
    TRY(parity_case_recording(c, from));
    TRY(io_join(to, sizeof to, dir, base_name(from)));
    TRY(io_map_file(from, &map));
    TRY(io_write_file(to, map.data, map.data_bytes));
out:
    io_unmap(&map);
    return err;
}

cf_err parity_capture_write(const parity_case *c, const parity_sink *sink, size_t case_idx, const parity_options *opt,
                            const char *dir)
{
    safetensors_item *items = NULL;
    table_text texts[8];
    char path[IO_PATH_BYTES], made_by[128];
    size_t count = 0;
    cf_err err;
    TRY(io_join(path, sizeof path, dir, base_name(parity_case_path(c))));
    TRY(mem_alloc(parity_case_count(c) + sink->count + 1, sizeof *items, &items));
    for (size_t i = 0; i < parity_case_count(c); i++) {
        const case_tensor *t = parity_case_at(c, i);
        if (t->role != CASE_INPUT)
            continue;
        safetensors_item *item = &items[count++];
        *item = (safetensors_item){.name = t->name, .type = t->i32 ? ENTRY_I32 : ENTRY_F32};
        item->data = t->i32 ? (const void *)t->i32 : t->f32;
        TRY(parity_case_shape(c, t, &item->rank, item->shape));
    }
    if (strcmp(parity_case_stage(c), "llm") == 0 && !parity_case_has(c, "forced"))
        items[count++] = (safetensors_item){.name = "forced", .type = ENTRY_I32, .rank = 1, .data = ""};
    for (size_t i = 0; i < sink->count; i++) {
        const emitted *e = &sink->items[i];
        const case_tensor *input = parity_case_find(c, e->name);
        if (e->case_idx != case_idx || (input && input->role == CASE_INPUT))
            continue;
        safetensors_item *item = &items[count++];
        *item = (safetensors_item){.name = e->name, .type = e->whole ? ENTRY_I32 : ENTRY_F32, .rank = e->rank};
        item->data = e->whole ? (const void *)e->whole : e->data;
        memcpy(item->shape, e->dims, (size_t)e->rank * sizeof *e->dims);
    }
    if (strcmp(parity_case_stage(c), "voice") == 0)
        TRY(copy_recording(c, dir));
    TRY(safetensors_write(path, items, count, texts, capture_texts(c, opt, made_by, texts)));
out:
    mem_free(items);
    return err;
}
