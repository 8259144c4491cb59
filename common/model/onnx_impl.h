/*
 * onnx_impl.h - the inside of an open ONNX file, shared by its parts. Included by common/model only.
 */
#ifndef CF_MODEL_ONNX_IMPL_H
#define CF_MODEL_ONNX_IMPL_H

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/onnx.h"
#include "common/model/onnx_wire.h"

#ifdef __cplusplus
extern "C" {
#endif

struct onnx {
    char path[IO_PATH_BYTES];
    io_map map; /* owned; empty when the bytes are the caller's */
    const unsigned char *data;
    size_t data_bytes;
    arena texts; /* names, lists, unpacked floats */
    int64_t opset;
    bool has_graph;
    onnx_tensor *tensors; /* [tensor_count], owned, like the lists below */
    size_t tensor_count, tensor_capacity;
    const onnx_tensor **by_name; /* [tensor_count]: sorted by name */
    onnx_node *nodes;
    size_t node_count, node_capacity;
    onnx_value inputs[ONNX_LIST_MAX], outputs[ONNX_LIST_MAX];
    size_t input_count, output_count;
};

/* A copy of the bytes as text. CF_ERR_LIMIT above ONNX_NAME_BYTES_MAX, CF_ERR_INVALID for NUL or bad UTF-8. */
CF_MUST_CHECK cf_err onnx_take_text(onnx *o, const wire_bytes *bytes, const char **ret_text);

/* TensorProto. name_override (may be NULL) names the tensor of a Constant node. */
CF_MUST_CHECK cf_err onnx_read_tensor(onnx *o, wire_bytes w, const char *name_override, onnx_tensor *ret_tensor);

/* NodeProto, with the tensor of a Constant node added to the table. */
CF_MUST_CHECK cf_err onnx_read_node(onnx *o, wire_bytes w);

CF_MUST_CHECK cf_err onnx_add_tensor(onnx *o, const onnx_tensor *t);

#ifdef __cplusplus
}
#endif
#endif
