/*
 * onnx_write.c - the writer of onnx_write.h. Any process; one owner a writer.
 *
 * Lengths stand before what they measure, so everything but the weights is built in memory; the weights are streamed.
 * Fails: CF_ERR_NOMEM, CF_ERR_SYS, CF_ERR_LIMIT above 2 GiB (the bound of a protobuf message), CF_ERR_INVALID when the
 * appended values do not fit the description. Source: onnx/onnx.proto; protobuf.dev "Encoding".
 */
#include "common/model/onnx_write.h"

#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/file_writer.h"

#define MESSAGE_BYTES_MAX_ONNX ((uint64_t)INT32_MAX)

enum { KIND_VARINT = 0, KIND_BYTES = 2, KIND_FIXED32 = 5 };
enum { ATTRIBUTE_FLOAT = 1, ATTRIBUTE_INT = 2, ATTRIBUTE_TENSOR = 4, ATTRIBUTE_INTS = 7 };

/* An initializer: its header without the length of its data, which follows. */
typedef struct item {
    byte_buf head;
    uint64_t data_bytes;
} item;

struct onnx_writer {
    file_writer *file;    /* owned */
    byte_buf nodes, tail; /* tail: inputs and outputs of the graph */
    item *items;          /* owned */
    size_t item_count, item_capacity;
    size_t at;         /* item being filled */
    uint64_t at_bytes; /* of it */
    int64_t opset;
};

static void add_varint(byte_buf *b, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        byte_buf_add_u8(b, (unsigned)(value & 0x7F) | 0x80u);
    byte_buf_add_u8(b, (unsigned)value);
}

static void add_key(byte_buf *b, unsigned number, unsigned kind)
{
    add_varint(b, number << 3 | kind);
}

static void add_int(byte_buf *b, unsigned number, int64_t value)
{
    add_key(b, number, KIND_VARINT);
    add_varint(b, (uint64_t)value);
}

static void add_bytes(byte_buf *b, unsigned number, const void *data, size_t bytes)
{
    add_key(b, number, KIND_BYTES);
    add_varint(b, bytes);
    if (bytes > 0)
        byte_buf_add(b, data, bytes);
}

static void add_text(byte_buf *b, unsigned number, const char *text)
{
    add_bytes(b, number, text, strlen(text));
}

/* Moves a finished message into its parent. */
static void add_message(byte_buf *b, unsigned number, byte_buf *message)
{
    if (message->failed)
        b->failed = true;
    else
        add_bytes(b, number, message->data, message->bytes);
    byte_buf_done(message);
}

cf_err onnx_create(const char *path, int64_t opset, onnx_writer **ret_writer)
{
    cf_err err;
    onnx_writer *w = NULL;
    TRY(mem_alloc(1, sizeof *w, &w));
    w->opset = opset;
    TRY(file_writer_create(path, &w->file));
    *ret_writer = w;
    w = NULL;
out:
    onnx_writer_close(w);
    return err;
}

static void put_value(byte_buf *to, unsigned number, const char *name, onnx_type type)
{
    byte_buf value = {0}, kind = {0}, tensor = {0};
    add_int(&tensor, 1, type);
    add_message(&kind, 1, &tensor);
    add_text(&value, 1, name);
    add_message(&value, 2, &kind);
    add_message(to, number, &value);
}

void onnx_put_input(onnx_writer *w, const char *name, onnx_type type)
{
    put_value(&w->tail, 11, name, type);
}

void onnx_put_output(onnx_writer *w, const char *name, onnx_type type)
{
    put_value(&w->tail, 12, name, type);
}

static void put_attr(byte_buf *node, const onnx_attr *a)
{
    byte_buf b = {0};
    add_text(&b, 1, a->name);
    if (a->ints_count > 0) {
        for (int i = 0; i < a->ints_count; i++)
            add_int(&b, 8, a->ints[i]);
        add_int(&b, 20, ATTRIBUTE_INTS);
    } else if (a->is_float) {
        add_key(&b, 2, KIND_FIXED32);
        byte_buf_add(&b, &a->f, sizeof a->f);
        add_int(&b, 20, ATTRIBUTE_FLOAT);
    } else {
        add_int(&b, 3, a->i);
        add_int(&b, 20, ATTRIBUTE_INT);
    }
    add_message(node, 5, &b);
}

void onnx_put_node(onnx_writer *w, const onnx_node_spec *spec)
{
    byte_buf node = {0};
    for (int i = 0; i < (int)CF_COUNT(spec->inputs) && spec->inputs[i]; i++)
        add_text(&node, 1, spec->inputs[i]);
    add_text(&node, 2, spec->output);
    if (spec->name)
        add_text(&node, 3, spec->name);
    add_text(&node, 4, spec->op);
    for (int i = 0; i < spec->attr_count; i++)
        put_attr(&node, &spec->attrs[i]);
    add_message(&w->nodes, 1, &node);
}

void onnx_put_constant(onnx_writer *w, const char *output, const float *values, int64_t count)
{
    byte_buf node = {0}, attribute = {0}, tensor = {0};
    add_int(&tensor, 1, count);
    add_int(&tensor, 2, ONNX_F32);
    add_bytes(&tensor, 9, values, (size_t)count * sizeof *values);
    add_text(&attribute, 1, "value");
    add_message(&attribute, 5, &tensor);
    add_int(&attribute, 20, ATTRIBUTE_TENSOR);
    add_text(&node, 2, output);
    add_text(&node, 4, "Constant");
    add_message(&node, 5, &attribute);
    add_message(&w->nodes, 1, &node);
}

cf_err onnx_put_initializer(onnx_writer *w, const char *name, int rank, const int64_t *dims)
{
    cf_err err = CF_OK;
    CF_ASSERT(rank >= 0 && rank <= ONNX_RANK_MAX);
    if (w->item_count == w->item_capacity) {
        const size_t capacity = w->item_capacity ? 2 * w->item_capacity : 256;
        TRY(mem_resize(&w->items, capacity, sizeof *w->items));
        w->item_capacity = capacity;
    }
    item *it = &w->items[w->item_count++];
    *it = (item){.data_bytes = sizeof(float)};
    for (int i = 0; i < rank; i++) {
        add_int(&it->head, 1, dims[i]);
        it->data_bytes *= (uint64_t)dims[i];
    }
    add_int(&it->head, 2, ONNX_F32);
    add_text(&it->head, 8, name);
    add_key(&it->head, 9, KIND_BYTES);
    add_varint(&it->head, it->data_bytes);
out:
    return err;
}

static uint64_t varint_bytes(uint64_t value)
{
    uint64_t bytes = 1;
    while (value >>= 7)
        bytes++;
    return bytes;
}

static uint64_t item_bytes(const item *it)
{
    return it->head.bytes + it->data_bytes;
}

/* Writes headers up to where the next values belong: behind those of the first item from `at` that has any. */
static cf_err begin_item(onnx_writer *w)
{
    cf_err err = CF_OK;
    byte_buf b = {0};
    for (bool empty = true; empty && w->at < w->item_count; w->at += empty) {
        const item *it = &w->items[w->at];
        add_key(&b, 5, KIND_BYTES);
        add_varint(&b, item_bytes(it));
        byte_buf_add(&b, it->head.data, it->head.bytes);
        empty = it->data_bytes == 0;
    }
    w->at_bytes = 0;
    TRY(byte_buf_check(&b));
    if (b.bytes > 0)
        TRY(file_writer_append(w->file, b.data, b.bytes));
out:
    byte_buf_done(&b);
    return err;
}

cf_err onnx_begin(onnx_writer *w)
{
    cf_err err;
    byte_buf b = {0}, opset = {0};
    uint64_t graph_bytes = w->nodes.bytes + w->tail.bytes;

    TRY(byte_buf_check(&w->nodes));
    TRY(byte_buf_check(&w->tail));
    for (size_t i = 0; i < w->item_count; i++) {
        TRY(byte_buf_check(&w->items[i].head));
        graph_bytes += 1 + varint_bytes(item_bytes(&w->items[i])) + item_bytes(&w->items[i]);
    }
    if (graph_bytes > MESSAGE_BYTES_MAX_ONNX)
        FAIL(CF_ERR_LIMIT, "a graph of %llu bytes, at most %llu fit an ONNX file", (unsigned long long)graph_bytes,
             (unsigned long long)MESSAGE_BYTES_MAX_ONNX);
    add_int(&b, 1, 8); /* ir_version */
    add_text(&b, 2, "cosyfarm");
    add_int(&opset, 2, w->opset);
    add_message(&b, 8, &opset);
    add_key(&b, 7, KIND_BYTES);
    add_varint(&b, graph_bytes);
    TRY(byte_buf_check(&b));
    TRY(file_writer_append(w->file, b.data, b.bytes));
    TRY(file_writer_append(w->file, w->nodes.data, w->nodes.bytes));
    TRY(begin_item(w));
out:
    byte_buf_done(&b);
    return err;
}

cf_err onnx_append(onnx_writer *w, const float *values, size_t count)
{
    cf_err err = CF_OK;
    const unsigned char *data = (const unsigned char *)values;
    uint64_t left_bytes = count * sizeof *values;
    while (left_bytes > 0) {
        if (w->at == w->item_count)
            FAIL(CF_ERR_INVALID, "more values than were described");
        const uint64_t room = w->items[w->at].data_bytes - w->at_bytes, n = left_bytes < room ? left_bytes : room;
        TRY(file_writer_append(w->file, data, (size_t)n));
        data += n;
        left_bytes -= n;
        w->at_bytes += n;
        if (w->at_bytes == w->items[w->at].data_bytes) {
            w->at++;
            TRY(begin_item(w));
        }
    }
out:
    return err;
}

cf_err onnx_finish(onnx_writer *w)
{
    cf_err err;
    if (w->at < w->item_count)
        FAIL(CF_ERR_INVALID, "the values of %zu initializers are missing", w->item_count - w->at);
    TRY(file_writer_append(w->file, w->tail.data, w->tail.bytes));
    TRY(file_writer_finish(w->file));
out:
    return err;
}

void onnx_writer_close(onnx_writer *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->item_count; i++)
        byte_buf_done(&w->items[i].head);
    mem_free(w->items);
    byte_buf_done(&w->nodes);
    byte_buf_done(&w->tail);
    file_writer_close(w->file);
    mem_free(w);
}
