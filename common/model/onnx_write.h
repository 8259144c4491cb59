/*
 * onnx_write.h - writes ONNX files: what synthetic networks and tests need. Describe nodes, inputs, outputs and
 * initializers, begin, append the initializers' data in the described order, finish.
 */
#ifndef CF_MODEL_ONNX_WRITE_H
#define CF_MODEL_ONNX_WRITE_H

#include "common/model/onnx.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct onnx_writer onnx_writer;

/* One attribute: ints when ints_count > 0, else f when is_float, else i. */
typedef struct onnx_attr {
    const char *name;
    int64_t i;
    float f;
    bool is_float;
    int ints_count;
    int64_t ints[4];
} onnx_attr;

typedef struct onnx_node_spec {
    const char *op, *name;
    const char *inputs[6]; /* up to the first NULL */
    const char *output;
    const onnx_attr *attrs; /* [attr_count], borrowed for the call */
    int attr_count;
} onnx_node_spec;

CF_MUST_CHECK cf_err onnx_create(const char *path, int64_t opset, onnx_writer **ret_writer);
/* Describing never fails by itself: memory that runs out is reported by onnx_begin. */
void onnx_put_input(onnx_writer *w, const char *name, onnx_type type);
void onnx_put_output(onnx_writer *w, const char *name, onnx_type type);
void onnx_put_node(onnx_writer *w, const onnx_node_spec *spec);
/* A Constant node of f32 numbers. */
void onnx_put_constant(onnx_writer *w, const char *output, const float *values, int64_t count);
CF_MUST_CHECK cf_err onnx_put_initializer(onnx_writer *w, const char *name, int rank, const int64_t *dims);

CF_MUST_CHECK cf_err onnx_begin(onnx_writer *w);
/* f32 values of the initializers, one after the other, in pieces of any size. */
CF_MUST_CHECK cf_err onnx_append(onnx_writer *w, const float *values, size_t count);
CF_MUST_CHECK cf_err onnx_finish(onnx_writer *w); /* CF_ERR_INVALID when values are missing */
void onnx_writer_close(onnx_writer *w);           /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
