/*
 * onnx_bind.h - finds the weights of a known network in an ONNX file: by the node that consumes them, because names of
 * initializers are accidents of the exporter, or by their order where nodes have no names.
 *
 * Everything asked for is checked: operator, shape, element type, finite numbers are the callers' to check where it
 * matters. What is left over at the end is refused: a network with more weights is another network.
 */
#ifndef CF_ENROLL_ONNX_BIND_H
#define CF_ENROLL_ONNX_BIND_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/onnx.h"

#ifdef __cplusplus
extern "C" {
#endif

#define BIND_PATH_BYTES 192
#define BIND_CONSTANT   (-1) /* of wanted.slot: whichever input is a tensor of the file */

typedef struct onnx_binder {
    const onnx *file;  /* borrowed */
    bool *used;        /* [tensors], owned */
    bool named;        /* nodes have names */
    size_t *anonymous; /* [anonymous_count], owned: initializers without a parameter's name, in the file's order */
    size_t anonymous_count;
} onnx_binder;

CF_MUST_CHECK cf_err binder_init(const onnx *file, onnx_binder *ret_binder);
void binder_done(onnx_binder *b);

/* What to look for. dims[i] < 0 accepts any size there. */
typedef struct wanted {
    const char *op;   /* "Conv" */
    const char *path; /* end of the node's name, at a '/': "blocks.0/attn/query/MatMul" */
    int slot;         /* which input of the node holds the tensor, or BIND_CONSTANT */
    const char *name; /* the initializer's own name where nodes have none; NULL: it is anonymous */
    int order;        /* and then its place among the anonymous ones */
    int rank;
    int64_t dims[4];
} wanted;

typedef struct bound {
    const onnx_node *node;
    const onnx_tensor *tensor; /* f32, its data inside the file */
} bound;

/* CF_ERR_NOTFOUND for a node or tensor that is missing, CF_ERR_MISMATCH for another shape, CF_ERR_UNSUPPORTED for
 * another element type; texts begin with the file. */
CF_MUST_CHECK cf_err binder_find(onnx_binder *b, const wanted *w, bound *ret_bound);
bool binder_has(const onnx_binder *b, const wanted *w);

/* CF_ERR_MISMATCH unless the node's attribute holds these integers; absent attributes count as `absent` repeated. */
CF_MUST_CHECK cf_err binder_check_ints(const onnx_binder *b, const onnx_node *n, const char *attribute,
                                       const int64_t *expected, int count, int64_t absent);

/* CF_ERR_MISMATCH unless the graph has this many nodes of the operator. */
CF_MUST_CHECK cf_err binder_check_nodes(const onnx_binder *b, const char *op, size_t expected);

/* CF_ERR_MISMATCH naming an initializer that nobody asked for. */
CF_MUST_CHECK cf_err binder_check_rest(const onnx_binder *b);

/* The tensor's values in aligned memory; CF_ERR_NUMERIC naming the first that is not finite. Free with mem_free. */
CF_MUST_CHECK cf_err binder_values(const onnx_binder *b, const onnx_tensor *t, float **ret_values);

#ifdef __cplusplus
}
#endif
#endif
