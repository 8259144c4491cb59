/*
 * onnx.c - opens an ONNX file: model, graph, table of tensors. Any process; the object owns mapping and lists.
 *
 * Fails: CF_ERR_INVALID, CF_ERR_UNSUPPORTED, CF_ERR_LIMIT with path, offset or name; CF_ERR_NOMEM. A file truncated
 * while it is mapped ends the process with SIGBUS: model files are replaced by rename, never rewritten.
 * Source: onnx/onnx.proto ModelProto, GraphProto; formats.md 5.
 */
#include "common/model/onnx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/utf8.h"
#include "common/model/onnx_impl.h"

/* Address space for names and lists. The released graphs take about 3 MiB. */
#define TEXT_BYTES_MAX ((size_t)256 << 20)

enum { MODEL_GRAPH = 7, MODEL_OPSET = 8 };
enum { GRAPH_NODE = 1, GRAPH_INITIALIZER = 5, GRAPH_INPUT = 11, GRAPH_OUTPUT = 12, GRAPH_SPARSE = 15 };

cf_err onnx_take_text(onnx *o, const wire_bytes *bytes, const char **ret_text)
{
    cf_err err;
    char *text;
    const size_t count = onnx_wire_left(bytes);
    if (count > ONNX_NAME_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "offset %zu: a name of %zu bytes, at most %d are read", onnx_wire_off(bytes), count,
             ONNX_NAME_BYTES_MAX);
    if (count > 0 && (memchr(bytes->at, 0, count) || !utf8_valid((const char *)bytes->at, count, NULL)))
        FAIL(CF_ERR_INVALID, "offset %zu: a name that is not UTF-8 text", onnx_wire_off(bytes));
    TRY(arena_take(&o->texts, count + 1, &text));
    if (count > 0)
        memcpy(text, bytes->at, count);
    text[count] = '\0';
    *ret_text = text;
out:
    return err;
}

cf_err onnx_add_tensor(onnx *o, const onnx_tensor *t)
{
    cf_err err = CF_OK;
    if (o->tensor_count == ONNX_TENSORS_MAX)
        FAIL(CF_ERR_LIMIT, "more than %d tensors", ONNX_TENSORS_MAX);
    if (o->tensor_count == o->tensor_capacity) {
        const size_t capacity = o->tensor_capacity ? 2 * o->tensor_capacity : 256;
        TRY(mem_resize(&o->tensors, capacity, sizeof *o->tensors));
        o->tensor_capacity = capacity;
    }
    o->tensors[o->tensor_count++] = *t;
out:
    return err;
}

/* OperatorSetIdProto: domain 1, version 2. */
static cf_err take_opset(onnx *o, wire_bytes w)
{
    cf_err err = CF_OK;
    const char *domain = "";
    int64_t version = 0;
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.number == 1 && f.kind == WIRE_BYTES)
            TRY(onnx_take_text(o, &f.bytes, &domain));
        if (f.number == 2 && f.kind == WIRE_VARINT)
            version = (int64_t)f.value;
    }
    if (domain[0] == '\0' || strcmp(domain, "ai.onnx") == 0)
        o->opset = version;
out:
    return err;
}

/* The element type inside ValueInfoProto.type: TypeProto.tensor_type 1, Tensor.elem_type 1. */
static cf_err take_elem_type(wire_bytes type, int *ret_elem_type)
{
    cf_err err = CF_OK;
    while (!onnx_wire_ends(&type)) {
        wire_field f;
        TRY(onnx_wire_next(&type, &f));
        if (f.number != 1 || f.kind != WIRE_BYTES)
            continue;
        while (!onnx_wire_ends(&f.bytes)) {
            wire_field inner;
            TRY(onnx_wire_next(&f.bytes, &inner));
            if (inner.number == 1 && inner.kind == WIRE_VARINT && inner.value < 1000)
                *ret_elem_type = (int)inner.value;
        }
    }
out:
    return err;
}

static cf_err take_value(onnx *o, wire_bytes w, onnx_value *list, size_t *count)
{
    cf_err err = CF_OK;
    onnx_value v = {.name = ""};
    if (*count == ONNX_LIST_MAX)
        FAIL(CF_ERR_LIMIT, "more than %d inputs or outputs of the graph", ONNX_LIST_MAX);
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.number == 1 && f.kind == WIRE_BYTES)
            TRY(onnx_take_text(o, &f.bytes, &v.name));
        if (f.number == 2 && f.kind == WIRE_BYTES)
            TRY(take_elem_type(f.bytes, &v.elem_type));
    }
    list[(*count)++] = v;
out:
    return err;
}

static cf_err take_graph(onnx *o, wire_bytes w)
{
    cf_err err = CF_OK;
    if (o->has_graph)
        FAIL(CF_ERR_INVALID, "offset %zu: a second graph", onnx_wire_off(&w));
    o->has_graph = true;
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        onnx_tensor t;
        TRY(onnx_wire_next(&w, &f));
        if (f.kind != WIRE_BYTES)
            continue;
        switch (f.number) {
        case GRAPH_NODE:
            TRY(onnx_read_node(o, f.bytes));
            break;
        case GRAPH_INITIALIZER:
            TRY(onnx_read_tensor(o, f.bytes, NULL, &t));
            TRY(onnx_add_tensor(o, &t));
            break;
        case GRAPH_INPUT:
            TRY(take_value(o, f.bytes, o->inputs, &o->input_count));
            break;
        case GRAPH_OUTPUT:
            TRY(take_value(o, f.bytes, o->outputs, &o->output_count));
            break;
        case GRAPH_SPARSE:
            FAIL(CF_ERR_UNSUPPORTED, "offset %zu: a sparse tensor", onnx_wire_off(&f.bytes));
        default:
            break;
        }
    }
out:
    return err;
}

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp((*(const onnx_tensor *const *)a)->name, (*(const onnx_tensor *const *)b)->name);
}

/* After the last tensor: the list does not move any more. */
static cf_err sort_names(onnx *o)
{
    cf_err err;
    TRY(mem_alloc(o->tensor_count, sizeof *o->by_name, &o->by_name));
    for (size_t i = 0; i < o->tensor_count; i++)
        o->by_name[i] = &o->tensors[i];
    if (o->tensor_count > 0)
        qsort(o->by_name, o->tensor_count, sizeof *o->by_name, by_tensor_name);
    for (size_t i = 1; i < o->tensor_count; i++)
        if (by_tensor_name(&o->by_name[i - 1], &o->by_name[i]) == 0)
            FAIL(CF_ERR_INVALID, "two tensors of the name %.120s", o->by_name[i]->name);
out:
    return err;
}

static cf_err check_looks(const unsigned char *data, size_t bytes)
{
    static const char LFS[] = "version https://git-lfs";
    if (bytes == 0)
        return err_set(CF_ERR_INVALID, "an empty file");
    if (bytes >= sizeof LFS - 1 && memcmp(data, LFS, sizeof LFS - 1) == 0)
        return err_set(CF_ERR_UNSUPPORTED, "a Git-LFS pointer instead of the file it stands for; fetch it with `git "
                                           "lfs pull`");
    if (data[0] == '<')
        return err_set(CF_ERR_UNSUPPORTED, "a web page, not a model file: the download went wrong");
    return CF_OK;
}

static cf_err read_model(onnx *o)
{
    cf_err err;
    wire_bytes w = {.file = o->data, .at = o->data, .end = o->data + o->data_bytes};
    TRY(check_looks(o->data, o->data_bytes));
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.number == MODEL_OPSET && f.kind == WIRE_BYTES)
            TRY(take_opset(o, f.bytes));
        if (f.number == MODEL_GRAPH && f.kind == WIRE_BYTES)
            TRY(take_graph(o, f.bytes));
    }
    if (!o->has_graph)
        FAIL(CF_ERR_INVALID, "no graph in it: not an ONNX model");
    TRY(sort_names(o));
out:
    return err == CF_OK ? CF_OK : err_context(err, "%s", o->path);
}

static cf_err open_object(const char *name, onnx **ret_file)
{
    cf_err err;
    onnx *o = NULL;
    TRY(mem_alloc(1, sizeof *o, &o));
    snprintf(o->path, sizeof o->path, "%s", name);
    TRY(arena_open(TEXT_BYTES_MAX, &o->texts));
    *ret_file = o;
    o = NULL;
out:
    onnx_close(o);
    return err;
}

cf_err onnx_parse(const char *name, const unsigned char *data, size_t bytes, onnx **ret_file)
{
    cf_err err;
    onnx *o = NULL;
    TRY(open_object(name, &o));
    o->data = data;
    o->data_bytes = bytes;
    TRY(read_model(o));
    *ret_file = o;
    o = NULL;
out:
    onnx_close(o);
    return err;
}

cf_err onnx_open(const char *path, onnx **ret_file)
{
    cf_err err;
    onnx *o = NULL;
    TRY(open_object(path, &o));
    TRY(io_map_file(path, &o->map));
    o->data = o->map.data;
    o->data_bytes = o->map.data_bytes;
    TRY(read_model(o));
    *ret_file = o;
    o = NULL;
out:
    onnx_close(o);
    return err;
}

void onnx_close(onnx *o)
{
    if (!o)
        return;
    io_unmap(&o->map);
    arena_close(&o->texts);
    mem_free(o->tensors);
    mem_free(o->by_name);
    mem_free(o->nodes);
    mem_free(o);
}

const char *onnx_path(const onnx *o)
{
    return o->path;
}

const unsigned char *onnx_data(const onnx *o, size_t *ret_bytes)
{
    *ret_bytes = o->data_bytes;
    return o->data;
}

int64_t onnx_opset(const onnx *o)
{
    return o->opset;
}

size_t onnx_tensor_count(const onnx *o)
{
    return o->tensor_count;
}

const onnx_tensor *onnx_tensor_at(const onnx *o, size_t idx)
{
    CF_ASSERT(idx < o->tensor_count);
    return &o->tensors[idx];
}

const onnx_tensor *onnx_tensor_find(const onnx *o, const char *name)
{
    size_t low = 0, high = o->tensor_count;
    while (low < high) {
        const size_t mid = low + (high - low) / 2;
        const onnx_tensor *t = o->by_name[mid];
        const int order = strcmp(name, t->name);
        if (order == 0)
            return t;
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

size_t onnx_tensor_idx(const onnx *o, const onnx_tensor *t)
{
    CF_ASSERT(t >= o->tensors && t < o->tensors + o->tensor_count);
    return (size_t)(t - o->tensors);
}

size_t onnx_node_count(const onnx *o)
{
    return o->node_count;
}

const onnx_node *onnx_node_at(const onnx *o, size_t idx)
{
    CF_ASSERT(idx < o->node_count);
    return &o->nodes[idx];
}

const onnx_attribute *onnx_node_attribute(const onnx_node *n, const char *name)
{
    for (int i = 0; i < n->attribute_count; i++)
        if (strcmp(n->attributes[i].name, name) == 0)
            return &n->attributes[i];
    return NULL;
}

size_t onnx_input_count(const onnx *o)
{
    return o->input_count;
}

const onnx_value *onnx_input_at(const onnx *o, size_t idx)
{
    CF_ASSERT(idx < o->input_count);
    return &o->inputs[idx];
}

size_t onnx_output_count(const onnx *o)
{
    return o->output_count;
}

const onnx_value *onnx_output_at(const onnx *o, size_t idx)
{
    CF_ASSERT(idx < o->output_count);
    return &o->outputs[idx];
}
