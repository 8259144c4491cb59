/*
 * tensor.c - descriptions of arrays: sizes, views, typed access. Any thread; owns nothing.
 * Fails: asserts on wrong types, ranks and views out of range (our own bugs).
 */
#include "common/compute/tensor.h"

#include "common/base/check.h"

size_t dtype_bytes(dtype type)
{
    switch (type) {
    case DTYPE_F32:
    case DTYPE_I32:
        return 4;
    case DTYPE_F64:
        return 8;
    case DTYPE_BF16:
    case DTYPE_F16:
        return 2;
    }
    cf_panic(__FILE__, __LINE__, "unknown dtype");
}

const char *dtype_name(dtype type)
{
    switch (type) {
    case DTYPE_F32:
        return "f32";
    case DTYPE_F64:
        return "f64";
    case DTYPE_I32:
        return "i32";
    case DTYPE_BF16:
        return "bf16";
    case DTYPE_F16:
        return "f16";
    }
    return "unknown";
}

tensor tensor_1d(void *data, dtype type, int64_t d0)
{
    return (tensor){.data = data, .type = type, .rank = 1, .dims = {d0}};
}

tensor tensor_2d(void *data, dtype type, int64_t d0, int64_t d1)
{
    return (tensor){.data = data, .type = type, .rank = 2, .dims = {d0, d1}};
}

int64_t tensor_count(const tensor *t)
{
    CF_ASSERT(t->rank >= 0 && t->rank <= TENSOR_RANK_MAX);
    int64_t count = 1;
    for (int i = 0; i < t->rank; i++) {
        CF_ASSERT(t->dims[i] >= 0);
        CF_ASSERT(!__builtin_mul_overflow(count, t->dims[i], &count));
    }
    return count;
}

size_t tensor_bytes(const tensor *t)
{
    return (size_t)tensor_count(t) * dtype_bytes(t->type);
}

tensor tensor_rows(const tensor *t, int64_t first, int64_t count)
{
    CF_ASSERT(t->rank >= 1);
    CF_ASSERT(first >= 0 && count >= 0 && first <= t->dims[0] && count <= t->dims[0] - first);
    tensor view = *t;
    view.dims[0] = 1;
    const size_t row_bytes = tensor_bytes(&view);
    view.dims[0] = count;
    view.data = row_bytes && first ? (unsigned char *)t->data + (size_t)first * row_bytes : t->data;
    return view;
}

float *tensor_f32(const tensor *t)
{
    CF_ASSERT(t->type == DTYPE_F32);
    return t->data;
}

double *tensor_f64(const tensor *t)
{
    CF_ASSERT(t->type == DTYPE_F64);
    return t->data;
}

int32_t *tensor_i32(const tensor *t)
{
    CF_ASSERT(t->type == DTYPE_I32);
    return t->data;
}
