/* fuzz_onnx.c - ONNX files come from strangers: parse one, then touch everything that the tables promise. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "common/base/check.h"
#include "common/model/onnx.h"

static void touch_node(const onnx_node *n)
{
    size_t seen = strlen(n->name) + strlen(n->op);
    for (int i = 0; i < n->input_count; i++)
        seen += strlen(n->inputs[i]);
    for (int i = 0; i < n->output_count; i++)
        seen += strlen(n->outputs[i]);
    for (int i = 0; i < n->attribute_count; i++) {
        const onnx_attribute *a = &n->attributes[i];
        seen += strlen(a->name) + strlen(a->s);
        CF_ASSERT(a->ints_count >= 0 && a->ints_count <= ONNX_LIST_MAX);
        for (int k = 0; k < a->ints_count; k++)
            seen += (size_t)(a->ints[k] & 1);
        CF_ASSERT(onnx_node_attribute(n, a->name) != NULL);
    }
    CF_ASSERT(seen < (size_t)1 << 30);
}

static void touch_tensor(const onnx *o, const onnx_tensor *t)
{
    int64_t count = 1;
    unsigned seen = 0;
    CF_ASSERT(t->rank >= 0 && t->rank <= ONNX_RANK_MAX);
    for (int i = 0; i < t->rank; i++)
        count *= t->dims[i];
    CF_ASSERT(count == t->count && count <= ONNX_COUNT_MAX);
    CF_ASSERT(onnx_tensor_find(o, t->name) == t);
    for (int64_t i = 0; t->data && i < t->count * (int64_t)onnx_type_bytes(t->type); i++)
        seen += t->data[i];
    CF_ASSERT(seen < 0xFFFFFFFFu);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes)
{
    onnx *o = NULL;
    if (onnx_parse("fuzz", data, data_bytes, &o) != CF_OK)
        return 0;
    for (size_t i = 0; i < onnx_node_count(o); i++)
        touch_node(onnx_node_at(o, i));
    for (size_t i = 0; i < onnx_tensor_count(o); i++)
        touch_tensor(o, onnx_tensor_at(o, i));
    for (size_t i = 0; i < onnx_input_count(o); i++)
        CF_ASSERT(onnx_input_at(o, i)->name != NULL && onnx_input_at(o, i)->elem_type >= 0);
    for (size_t i = 0; i < onnx_output_count(o); i++)
        CF_ASSERT(onnx_output_at(o, i)->name != NULL);
    onnx_close(o);
    return 0;
}
