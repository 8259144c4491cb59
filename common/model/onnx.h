/*
 * onnx.h - ONNX files: a reader of the wire format that gives names, shapes, attributes and weights, and runs nothing.
 *
 * The file stays mapped while it is open; tensor data are views into it, unaligned. Initializers and the tensors of
 * Constant nodes share one table. Tables of contents are bounded: a file that asks for more is refused.
 */
#ifndef CF_MODEL_ONNX_H
#define CF_MODEL_ONNX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ONNX_RANK_MAX       8
#define ONNX_NAME_BYTES_MAX 512
#define ONNX_TENSORS_MAX    65536
#define ONNX_NODES_MAX      65536
#define ONNX_LIST_MAX       1024               /* inputs, outputs, attributes of a node; integers of an attribute */
#define ONNX_COUNT_MAX      ((int64_t)1 << 40) /* elements of a tensor */

/* Element types, by their number in the file. */
typedef enum onnx_type {
    ONNX_F32 = 1,
    ONNX_U8 = 2,
    ONNX_I8 = 3,
    ONNX_I32 = 6,
    ONNX_I64 = 7,
    ONNX_BOOL = 9,
    ONNX_F16 = 10,
    ONNX_F64 = 11,
    ONNX_BF16 = 16
} onnx_type;

const char *onnx_type_name(onnx_type type);
size_t onnx_type_bytes(onnx_type type);

typedef struct onnx_tensor {
    const char *name; /* owned by the file's object, like every text here */
    onnx_type type;
    int rank;
    int64_t dims[ONNX_RANK_MAX];
    int64_t count;             /* product of dims */
    const unsigned char *data; /* little-endian elements, any alignment; NULL: stored in a form that is not read */
    bool is_constant;          /* of a Constant node, not an initializer */
} onnx_tensor;

typedef struct onnx_attribute {
    const char *name;
    int64_t i; /* 0 when absent, like the others */
    float f;
    const char *s;
    const int64_t *ints; /* [ints_count] */
    int ints_count;
} onnx_attribute;

typedef struct onnx_node {
    const char *name; /* "" when the exporter gave none */
    const char *op;
    const char *const *inputs; /* [input_count]; "" is an input left out */
    const char *const *outputs;
    const onnx_attribute *attributes;
    int input_count, output_count, attribute_count;
} onnx_node;

/* A graph input or output. */
typedef struct onnx_value {
    const char *name;
    int elem_type; /* a number of onnx_type, or 0 when the file does not say */
} onnx_value;

typedef struct onnx onnx;

/* Maps and parses; error texts begin with path. CF_ERR_INVALID for what is no ONNX or contradicts itself,
 * CF_ERR_UNSUPPORTED for external data, sparse tensors and element types without numbers, CF_ERR_LIMIT. */
CF_MUST_CHECK cf_err onnx_open(const char *path, onnx **ret_file);
/* The same over bytes that outlive the object. */
CF_MUST_CHECK cf_err onnx_parse(const char *name, const unsigned char *data, size_t bytes, onnx **ret_file);
void onnx_close(onnx *o); /* NULL is fine */

const char *onnx_path(const onnx *o);
/* The file's bytes, for hashing. */
const unsigned char *onnx_data(const onnx *o, size_t *ret_bytes);
int64_t onnx_opset(const onnx *o); /* of the default domain; 0 when not given */

size_t onnx_tensor_count(const onnx *o); /* in the file's order, initializers and constants mixed as they come */
const onnx_tensor *onnx_tensor_at(const onnx *o, size_t idx);
const onnx_tensor *onnx_tensor_find(const onnx *o, const char *name); /* NULL when absent */
size_t onnx_tensor_idx(const onnx *o, const onnx_tensor *t);

size_t onnx_node_count(const onnx *o);
const onnx_node *onnx_node_at(const onnx *o, size_t idx);
const onnx_attribute *onnx_node_attribute(const onnx_node *n, const char *name); /* NULL when absent */

size_t onnx_input_count(const onnx *o);
const onnx_value *onnx_input_at(const onnx *o, size_t idx);
size_t onnx_output_count(const onnx *o);
const onnx_value *onnx_output_at(const onnx *o, size_t idx);

#ifdef __cplusplus
}
#endif
#endif
