/*
 * onnx_node.c - one NodeProto with its attributes. Part of onnx.h's reader.
 *
 * Lists are counted first and then taken from the arena. Sub-graphs in attributes are passed over: the graphs read here
 * have none that matter.
 * Fails: CF_ERR_INVALID, CF_ERR_LIMIT, naming the node. Source: onnx/onnx.proto NodeProto, AttributeProto.
 */
#include <string.h>

#include "common/model/onnx_impl.h"

enum { INPUT = 1, OUTPUT = 2, NODE_NAME = 3, OP_TYPE = 4, ATTRIBUTE = 5 };
enum { ATTR_NAME = 1, ATTR_F = 2, ATTR_I = 3, ATTR_S = 4, ATTR_T = 5, ATTR_INTS = 8 };

static cf_err count_field(wire_bytes w, uint32_t number, int *ret_count)
{
    cf_err err = CF_OK;
    int count = 0;
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.number != number || f.kind != WIRE_BYTES)
            continue;
        if (++count > ONNX_LIST_MAX)
            FAIL(CF_ERR_LIMIT, "a list of more than %d entries", ONNX_LIST_MAX);
    }
    *ret_count = count;
out:
    return err;
}

static cf_err take_texts(onnx *o, wire_bytes w, uint32_t number, const char *const **ret_texts, int *ret_count)
{
    cf_err err;
    const char **texts;
    int count, at = 0;
    TRY(count_field(w, number, &count));
    TRY(arena_take(&o->texts, (size_t)count * sizeof *texts, &texts));
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.number == number && f.kind == WIRE_BYTES)
            TRY(onnx_take_text(o, &f.bytes, &texts[at++]));
    }
    *ret_texts = texts;
    *ret_count = count;
out:
    return err;
}

/* Integers of an attribute, in one packed field or one by one. */
static cf_err take_ints(onnx *o, wire_bytes w, onnx_attribute *a)
{
    cf_err err = CF_OK;
    int64_t ints[ONNX_LIST_MAX], *kept;
    int count = 0;
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.number != ATTR_INTS || (f.kind != WIRE_VARINT && f.kind != WIRE_BYTES))
            continue;
        do {
            uint64_t value = f.value;
            if (f.kind == WIRE_BYTES && onnx_wire_ends(&f.bytes))
                break;
            if (f.kind == WIRE_BYTES)
                TRY(onnx_wire_varint(&f.bytes, &value));
            if (count == ONNX_LIST_MAX)
                FAIL(CF_ERR_LIMIT, "attribute %.60s: more than %d integers", a->name, ONNX_LIST_MAX);
            ints[count++] = (int64_t)value;
        } while (f.kind == WIRE_BYTES);
    }
    if (count > 0) {
        TRY(arena_take(&o->texts, (size_t)count * sizeof *kept, &kept));
        memcpy(kept, ints, (size_t)count * sizeof *kept);
        a->ints = kept;
        a->ints_count = count;
    }
out:
    return err;
}

/* tensor: where the value of attribute `value` goes; its bytes are noted, not read yet. */
static cf_err take_attribute(onnx *o, wire_bytes w, onnx_attribute *a, wire_bytes *ret_tensor)
{
    cf_err err = CF_OK;
    wire_bytes rest = w;
    *a = (onnx_attribute){.name = "", .s = ""};
    while (!onnx_wire_ends(&rest)) {
        wire_field f;
        TRY(onnx_wire_next(&rest, &f));
        if (f.number == ATTR_NAME && f.kind == WIRE_BYTES)
            TRY(onnx_take_text(o, &f.bytes, &a->name));
        if (f.number == ATTR_F && f.kind == WIRE_FIXED32) {
            const uint32_t bits = (uint32_t)f.value;
            memcpy(&a->f, &bits, sizeof a->f);
        }
        if (f.number == ATTR_I && f.kind == WIRE_VARINT)
            a->i = (int64_t)f.value;
        if (f.number == ATTR_S && f.kind == WIRE_BYTES && onnx_wire_left(&f.bytes) <= ONNX_NAME_BYTES_MAX)
            TRY(onnx_take_text(o, &f.bytes, &a->s));
        if (f.number == ATTR_T && f.kind == WIRE_BYTES)
            *ret_tensor = f.bytes;
    }
    TRY(take_ints(o, w, a));
out:
    return err;
}

static cf_err take_attributes(onnx *o, wire_bytes w, onnx_node *n, wire_bytes *ret_tensor)
{
    cf_err err;
    onnx_attribute *attributes;
    int at = 0;
    TRY(count_field(w, ATTRIBUTE, &n->attribute_count));
    TRY(arena_take(&o->texts, (size_t)n->attribute_count * sizeof *attributes, &attributes));
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        wire_bytes tensor = {0};
        TRY(onnx_wire_next(&w, &f));
        if (f.number != ATTRIBUTE || f.kind != WIRE_BYTES)
            continue;
        TRY(take_attribute(o, f.bytes, &attributes[at], &tensor));
        if (tensor.at && strcmp(attributes[at].name, "value") == 0)
            *ret_tensor = tensor;
        at++;
    }
    n->attributes = attributes;
out:
    return err;
}

static cf_err take_names(onnx *o, wire_bytes w, onnx_node *n)
{
    cf_err err = CF_OK;
    n->name = n->op = "";
    while (!onnx_wire_ends(&w)) {
        wire_field f;
        TRY(onnx_wire_next(&w, &f));
        if (f.kind == WIRE_BYTES && (f.number == NODE_NAME || f.number == OP_TYPE))
            TRY(onnx_take_text(o, &f.bytes, f.number == NODE_NAME ? &n->name : &n->op));
    }
out:
    return err;
}

static cf_err add_node(onnx *o, const onnx_node *n)
{
    cf_err err = CF_OK;
    if (o->node_count == ONNX_NODES_MAX)
        FAIL(CF_ERR_LIMIT, "more than %d nodes", ONNX_NODES_MAX);
    if (o->node_count == o->node_capacity) {
        const size_t capacity = o->node_capacity ? 2 * o->node_capacity : 256;
        TRY(mem_resize(&o->nodes, capacity, sizeof *o->nodes));
        o->node_capacity = capacity;
    }
    o->nodes[o->node_count++] = *n;
out:
    return err;
}

cf_err onnx_read_node(onnx *o, wire_bytes w)
{
    cf_err err;
    onnx_node n = {.name = "", .op = ""};
    wire_bytes tensor = {0};

    TRY(take_names(o, w, &n));
    TRY(take_texts(o, w, INPUT, &n.inputs, &n.input_count));
    TRY(take_texts(o, w, OUTPUT, &n.outputs, &n.output_count));
    TRY(take_attributes(o, w, &n, &tensor));
    TRY(add_node(o, &n));
    if (tensor.at && strcmp(n.op, "Constant") == 0 && n.output_count == 1) {
        onnx_tensor t;
        TRY(onnx_read_tensor(o, tensor, n.outputs[0], &t));
        TRY(onnx_add_tensor(o, &t));
    }
out:
    return err == CF_OK ? CF_OK : err_context(err, "node %.120s", n.name[0] ? n.name : n.op);
}
