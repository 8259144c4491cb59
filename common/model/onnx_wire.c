/*
 * onnx_wire.c - varints, tags and lengths of the protobuf encoding. Pure functions over borrowed bytes.
 *
 * Fails: CF_ERR_INVALID with the offset in the file. Source: protobuf.dev "Encoding"; formats.md 5.
 */
#include "common/model/onnx_wire.h"

#define VARINT_BYTES_MAX 10

cf_err onnx_wire_varint(wire_bytes *w, uint64_t *ret_value)
{
    uint64_t value = 0;
    for (int i = 0; i < VARINT_BYTES_MAX; i++) {
        if (w->at == w->end)
            return err_set(CF_ERR_INVALID, "offset %zu: the file ends inside a number", onnx_wire_off(w));
        const unsigned char byte = *w->at++;
        if (i == VARINT_BYTES_MAX - 1 && byte > 1)
            break;
        value |= (uint64_t)(byte & 0x7F) << (7 * i);
        if (!(byte & 0x80)) {
            *ret_value = value;
            return CF_OK;
        }
    }
    return err_set(CF_ERR_INVALID, "offset %zu: a number of more than 64 bits", onnx_wire_off(w));
}

static cf_err take_fixed(wire_bytes *w, int bytes, uint64_t *ret_value)
{
    uint64_t value = 0;
    if (onnx_wire_left(w) < (size_t)bytes)
        return err_set(CF_ERR_INVALID, "offset %zu: the file ends inside a number", onnx_wire_off(w));
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)w->at[i] << (8 * i);
    w->at += bytes;
    *ret_value = value;
    return CF_OK;
}

static cf_err take_bytes(wire_bytes *w, wire_bytes *ret_bytes)
{
    cf_err err;
    uint64_t length_bytes;
    TRY(onnx_wire_varint(w, &length_bytes));
    if (length_bytes > onnx_wire_left(w))
        FAIL(CF_ERR_INVALID, "offset %zu: a field of %llu bytes, %zu are left of what holds it", onnx_wire_off(w),
             (unsigned long long)length_bytes, onnx_wire_left(w));
    *ret_bytes = (wire_bytes){.file = w->file, .at = w->at, .end = w->at + length_bytes};
    w->at += length_bytes;
out:
    return err;
}

cf_err onnx_wire_next(wire_bytes *w, wire_field *ret_field)
{
    cf_err err;
    uint64_t key;
    wire_field f = {0};
    const size_t off = onnx_wire_off(w);

    TRY(onnx_wire_varint(w, &key));
    if (key >> 3 == 0 || key >> 3 > 0x1FFFFFFF)
        FAIL(CF_ERR_INVALID, "offset %zu: field number %llu", off, (unsigned long long)(key >> 3));
    f.number = (uint32_t)(key >> 3);
    f.kind = (wire_kind)(key & 7);
    switch (f.kind) {
    case WIRE_VARINT:
        TRY(onnx_wire_varint(w, &f.value));
        break;
    case WIRE_FIXED64:
        TRY(take_fixed(w, 8, &f.value));
        break;
    case WIRE_BYTES:
        TRY(take_bytes(w, &f.bytes));
        break;
    case WIRE_FIXED32:
        TRY(take_fixed(w, 4, &f.value));
        break;
    default:
        FAIL(CF_ERR_INVALID, "offset %zu: wire type %d of field %u, expected 0, 1, 2 or 5", off, (int)(key & 7),
             (unsigned)f.number);
    }
    *ret_field = f;
out:
    return err;
}
