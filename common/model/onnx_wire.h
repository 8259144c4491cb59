/*
 * onnx_wire.h - the protobuf wire format over bytes at hand: fields one after the other, nothing copied.
 */
#ifndef CF_MODEL_ONNX_WIRE_H
#define CF_MODEL_ONNX_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is left of a message. file: where offsets in error texts count from. */
typedef struct wire_bytes {
    const unsigned char *file, *at, *end;
} wire_bytes;

typedef enum wire_kind { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 } wire_kind;

typedef struct wire_field {
    uint32_t number;
    wire_kind kind;
    uint64_t value;   /* of varint, fixed32, fixed64 */
    wire_bytes bytes; /* of a length-delimited field */
} wire_field;

/* The next field. CF_ERR_INVALID with the offset for overlong varints, field 0, groups, lengths beyond the message. */
CF_MUST_CHECK cf_err onnx_wire_next(wire_bytes *w, wire_field *ret_field);
/* One varint out of a packed list. */
CF_MUST_CHECK cf_err onnx_wire_varint(wire_bytes *w, uint64_t *ret_value);

static inline bool onnx_wire_ends(const wire_bytes *w)
{
    return w->at == w->end;
}

static inline size_t onnx_wire_left(const wire_bytes *w)
{
    return (size_t)(w->end - w->at);
}

static inline size_t onnx_wire_off(const wire_bytes *w)
{
    return (size_t)(w->at - w->file);
}

#ifdef __cplusplus
}
#endif
#endif
