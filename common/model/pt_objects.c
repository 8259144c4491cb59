/*
 * pt_objects.c - the handful of globals a checkpoint may name and what they make: storages, tensors, ordered dicts.
 *
 * Nothing is looked up or called: a global is an index into a fixed list, a call is a check of argument types. Any
 * other name is refused and shown, because it is what the file wanted to run.
 * Fails: CF_ERR_INVALID, CF_ERR_UNSUPPORTED for element types and bits we do not interpret, CF_ERR_CORRUPT for views
 * outside of their storage, CF_ERR_NOTFOUND for a missing record.
 * Source: PyTorch torch/_utils.py _rebuild_tensor_v2, torch/serialization.py persistent_load; formats.md 2.3.
 */
#include <inttypes.h>
#include <string.h>

#include "common/base/check.h"
#include "common/model/pt_machine_impl.h"

static const struct {
    const char *module;
    const char *name;
    uint32_t idx;
} GLOBALS[] = {
    {"collections", "OrderedDict", PT_GLOBAL_ORDERED_DICT},
    {"torch._utils", "_rebuild_tensor_v2", PT_GLOBAL_TENSOR},
    {"torch._utils", "_rebuild_parameter", PT_GLOBAL_PARAMETER},
    {"torch", "FloatStorage", PT_GLOBAL_STORAGE + ENTRY_F32},
    {"torch", "DoubleStorage", PT_GLOBAL_STORAGE + ENTRY_F64},
    {"torch", "HalfStorage", PT_GLOBAL_STORAGE + ENTRY_F16},
    {"torch", "BFloat16Storage", PT_GLOBAL_STORAGE + ENTRY_BF16},
    {"torch", "LongStorage", PT_GLOBAL_STORAGE + ENTRY_I64},
    {"torch", "IntStorage", PT_GLOBAL_STORAGE + ENTRY_I32},
    {"torch", "ShortStorage", PT_GLOBAL_STORAGE + ENTRY_I16},
    {"torch", "CharStorage", PT_GLOBAL_STORAGE + ENTRY_I8},
    {"torch", "ByteStorage", PT_GLOBAL_STORAGE + ENTRY_U8},
    {"torch", "BoolStorage", PT_GLOBAL_STORAGE + ENTRY_BOOL},
    {"torch.storage", "UntypedStorage", PT_GLOBAL_STORAGE + ENTRY_U8},
};

static bool is_text(const char *text, size_t bytes, const char *want)
{
    return strlen(want) == bytes && memcmp(text, want, bytes) == 0;
}

cf_err pt_do_global(pt_machine *m, const char *module, size_t module_bytes, const char *name, size_t name_bytes)
{
    char shown_module[PT_PRINT_BYTES];
    char shown_name[PT_PRINT_BYTES];
    for (size_t i = 0; i < CF_COUNT(GLOBALS); i++)
        if (is_text(module, module_bytes, GLOBALS[i].module) && is_text(name, name_bytes, GLOBALS[i].name))
            return pt_push(m, &(pt_value){.kind = PT_GLOBAL, .u.idx = GLOBALS[i].idx});
    pt_printable(module, module_bytes, shown_module);
    pt_printable(name, name_bytes, shown_name);
    if (strcmp(shown_module, "torch") == 0 && strstr(shown_name, "Storage"))
        return err_set(CF_ERR_UNSUPPORTED, "element type torch.%s is not supported", shown_name);
    if (strcmp(shown_name, "_rebuild_tensor_v3") == 0)
        return err_set(CF_ERR_UNSUPPORTED, "_rebuild_tensor_v3: float8 and wide unsigned tensors are not supported");
    return err_set(CF_ERR_INVALID, "the file wants to run %s.%s; refusing", shown_module, shown_name);
}

/* Member i of a tuple, checked for its kind. */
static cf_err member(const pt_machine *m, const pt_value *tuple, uint32_t i, pt_kind kind, const char *what,
                     const pt_value **ret_value)
{
    CF_ASSERT(tuple->kind == PT_TUPLE && i < tuple->u.seq.count);
    const pt_value *v = pt_value_at(m, pt_ref_at(m, tuple->u.seq.first + (size_t)i));
    if (v->kind != kind)
        return err_set(CF_ERR_INVALID, "%s: expected %s, found %s", what, pt_kind_name(kind), pt_kind_name(v->kind));
    *ret_value = v;
    return CF_OK;
}

/* The record data/<key>, or an error that shows the key. */
static cf_err find_record(const pt_machine *m, const pt_value *key, const pt_record **ret_record)
{
    char name[16] = "data/";
    char shown[PT_PRINT_BYTES];
    const char *text = pt_text_of(m, key);
    const size_t bytes = key->u.str.bytes;
    bool is_number = bytes >= 1 && bytes <= 9;
    for (size_t i = 0; i < bytes && is_number; i++)
        is_number = text[i] >= '0' && text[i] <= '9';
    if (!is_number)
        return err_set(CF_ERR_INVALID, "storage key \"%s\": expected 1 to 9 digits", pt_printable(text, bytes, shown));
    memcpy(name + 5, text, bytes);
    const pt_record *r = pt_archive_find(m->archive, name, 5 + bytes);
    if (!r)
        return err_set(CF_ERR_NOTFOUND, "record %.*s is missing", (int)(5 + bytes), name);
    *ret_record = r;
    return CF_OK;
}

static cf_err check_storage(pt_machine *m, const pt_record *r, entry_dtype type, int64_t numel)
{
    uint64_t bytes;
    if (__builtin_mul_overflow((uint64_t)numel, entry_dtype_bytes(type), &bytes))
        return err_set(CF_ERR_INVALID, "storage of %" PRId64 " elements overflows", numel);
    if (bytes > r->bytes)
        return err_set(CF_ERR_CORRUPT, "record %.*s: expected %" PRIu64 " bytes for %" PRId64 " %s, found %zu",
                       (int)r->name_bytes, r->name, bytes, numel, entry_dtype_name(type), r->bytes);
    if (bytes < r->bytes)
        tensor_table_warn(m->table, "record %.*s: %" PRIu64 " bytes used of %zu", (int)r->name_bytes, r->name, bytes,
                          r->bytes);
    return CF_OK;
}

/* One storage a record, whatever the number of tensors over it. */
static cf_err intern_storage(pt_machine *m, const pt_record *r, entry_dtype type, int64_t numel, uint32_t *ret_idx)
{
    cf_err err;
    const size_t record_idx = (size_t)(r - m->archive->records);
    uint32_t idx = m->storage_of_record[record_idx];
    if (idx != PT_NIL) {
        const pt_storage *s = (const pt_storage *)m->storages.items + idx;
        if (s->type != type || s->numel != numel)
            FAIL(CF_ERR_INVALID, "record %.*s is %" PRId64 " %s in one place and %" PRId64 " %s in another",
                 (int)r->name_bytes, r->name, s->numel, entry_dtype_name(s->type), numel, entry_dtype_name(type));
        *ret_idx = idx;
        return CF_OK;
    }
    TRY(check_storage(m, r, type, numel));
    TRY(pt_pool_room(&m->storages, sizeof(pt_storage), 1, PT_RECORDS_MAX, "storages"));
    idx = (uint32_t)m->storages.count++;
    ((pt_storage *)m->storages.items)[idx] = (pt_storage){r, type, numel};
    m->storage_of_record[record_idx] = idx;
    *ret_idx = idx;
out:
    return err;
}

/* ('storage', type, key, location, numel); the location names a device and means nothing here. */
cf_err pt_do_persid(pt_machine *m)
{
    cf_err err;
    uint32_t idx;
    const pt_value *tag;
    const pt_value *type;
    const pt_value *key;
    const pt_value *location;
    const pt_value *numel;
    const pt_record *record;
    TRY(pt_pop(m, &idx));
    const pt_value *id = pt_value_at(m, idx);
    if (id->kind != PT_TUPLE || id->u.seq.count != 5)
        FAIL(CF_ERR_INVALID, "persistent id: expected a tuple of 5");
    TRY(member(m, id, 0, PT_STR, "persistent id", &tag));
    if (!is_text(pt_text_of(m, tag), tag->u.str.bytes, "storage"))
        FAIL(CF_ERR_INVALID, "persistent id: expected \"storage\"");
    TRY(member(m, id, 1, PT_GLOBAL, "storage type", &type));
    if (type->u.idx < PT_GLOBAL_STORAGE)
        FAIL(CF_ERR_INVALID, "storage type: expected a storage class");
    TRY(member(m, id, 2, PT_STR, "storage key", &key));
    TRY(member(m, id, 3, PT_STR, "storage location", &location));
    TRY(member(m, id, 4, PT_INT, "storage size", &numel));
    if (numel->u.i < 0)
        FAIL(CF_ERR_INVALID, "storage size: %" PRId64 " elements", numel->u.i);
    TRY(find_record(m, key, &record));
    uint32_t storage;
    TRY(intern_storage(m, record, (entry_dtype)(type->u.idx - PT_GLOBAL_STORAGE), numel->u.i, &storage));
    TRY(pt_push(m, &(pt_value){.kind = PT_STORAGE, .u.idx = storage}));
out:
    return err;
}

/* A tuple of rank non-negative integers. */
static cf_err read_ints(const pt_machine *m, const pt_value *tuple, const char *what, int64_t *ret_items)
{
    for (uint32_t i = 0; i < tuple->u.seq.count; i++) {
        const pt_value *v;
        const cf_err err = member(m, tuple, i, PT_INT, what, &v);
        if (err != CF_OK)
            return err;
        if (v->u.i < 0)
            return err_set(CF_ERR_INVALID, "%s: %" PRId64 " is negative", what, v->u.i);
        ret_items[i] = v->u.i;
    }
    return CF_OK;
}

/* Bounds of a view, and whether it is a plain array. Strides of size-1 dimensions mean nothing and become 0. */
static cf_err settle_view(tensor_entry *e, int64_t offset, const pt_storage *s)
{
    int64_t count = 1;
    bool is_empty = false;
    for (int d = 0; d < e->rank; d++) {
        is_empty = is_empty || e->shape[d] == 0;
        if (__builtin_mul_overflow(count, e->shape[d] ? e->shape[d] : 1, &count) || count > INT64_MAX / 8)
            return err_set(CF_ERR_INVALID, "tensor shape: the product of sizes overflows");
    }
    int64_t last = is_empty ? 0 : offset;
    int64_t dense = 1;
    e->contiguous = true;
    for (int d = e->rank - 1; d >= 0; d--) {
        int64_t reach;
        if (e->shape[d] <= 1) {
            e->strides[d] = 0;
            continue;
        }
        e->contiguous = e->contiguous && e->strides[d] == dense;
        dense *= e->shape[d];
        if (is_empty)
            continue;
        if (__builtin_mul_overflow(e->shape[d] - 1, e->strides[d], &reach) ||
            __builtin_add_overflow(last, reach, &last))
            return err_set(CF_ERR_CORRUPT, "tensor strides overflow");
    }
    if (is_empty) {
        e->contiguous = true;
        e->data = s->record->data;
        return CF_OK;
    }
    if (last >= s->numel)
        return err_set(CF_ERR_CORRUPT, "tensor reaches element %" PRId64 " of a storage of %" PRId64, last, s->numel);
    e->data = s->record->data + (size_t)offset * entry_dtype_bytes(e->type);
    return CF_OK;
}

/* Metadata with neg or conj means that the stored bits are not the values. */
static cf_err check_tensor_metadata(const pt_machine *m, const pt_value *meta)
{
    if (meta->kind == PT_NONE)
        return CF_OK;
    if (meta->kind != PT_DICT)
        return err_set(CF_ERR_INVALID, "tensor metadata: expected a dict, found %s", pt_kind_name(meta->kind));
    for (uint32_t n = meta->u.seq.first; n != PT_NIL; n = pt_node_at(m, n)->next) {
        const pt_value *key = pt_value_at(m, pt_node_at(m, n)->key);
        if (key->kind == PT_STR && (is_text(pt_text_of(m, key), key->u.str.bytes, "neg") ||
                                    is_text(pt_text_of(m, key), key->u.str.bytes, "conj")))
            return err_set(CF_ERR_UNSUPPORTED, "a tensor saved as a negative or conjugate view");
    }
    return CF_OK;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static cf_err make_tensor(pt_machine *m, const pt_value *args)
{
    cf_err err;
    const pt_value *storage;
    const pt_value *offset;
    const pt_value *size;
    const pt_value *stride;
    const pt_value *flag;
    const pt_value *hooks;
    if (args->u.seq.count != 6 && args->u.seq.count != 7)
        FAIL(CF_ERR_INVALID, "_rebuild_tensor_v2: expected 6 or 7 arguments, found %u", args->u.seq.count);
    TRY(member(m, args, 0, PT_STORAGE, "tensor storage", &storage));
    TRY(member(m, args, 1, PT_INT, "tensor offset", &offset));
    TRY(member(m, args, 2, PT_TUPLE, "tensor size", &size));
    TRY(member(m, args, 3, PT_TUPLE, "tensor stride", &stride));
    TRY(member(m, args, 4, PT_BOOL, "tensor requires_grad", &flag));
    TRY(member(m, args, 5, PT_DICT, "tensor hooks", &hooks));
    if (args->u.seq.count == 7)
        TRY(check_tensor_metadata(m, pt_value_at(m, pt_ref_at(m, args->u.seq.first + 6u))));
    if (size->u.seq.count > ENTRY_RANK_MAX || size->u.seq.count != stride->u.seq.count)
        FAIL(CF_ERR_INVALID, "tensor of rank %u with %u strides, at most rank %d is read", size->u.seq.count,
             stride->u.seq.count, ENTRY_RANK_MAX);
    if (offset->u.i < 0)
        FAIL(CF_ERR_INVALID, "tensor offset: %" PRId64 " is negative", offset->u.i);
    const pt_storage *s = (const pt_storage *)m->storages.items + storage->u.idx;
    tensor_entry e = {.type = s->type, .rank = (int)size->u.seq.count};
    TRY(read_ints(m, size, "tensor size", e.shape));
    TRY(read_ints(m, stride, "tensor stride", e.strides));
    TRY(settle_view(&e, offset->u.i, s));
    TRY(pt_pool_room(&m->tensors, sizeof e, 1, PT_RECORDS_MAX, "tensors"));
    ((tensor_entry *)m->tensors.items)[m->tensors.count++] = e;
    TRY(pt_push(m, &(pt_value){.kind = PT_TENSOR, .u.idx = (uint32_t)(m->tensors.count - 1)}));
out:
    return err;
}

/* _rebuild_parameter(tensor, requires_grad, hooks) is the tensor. */
static cf_err make_parameter(pt_machine *m, const pt_value *args)
{
    cf_err err;
    const pt_value *value;
    const pt_value *ignored;
    if (args->u.seq.count != 3)
        FAIL(CF_ERR_INVALID, "_rebuild_parameter: expected 3 arguments, found %u", args->u.seq.count);
    TRY(member(m, args, 0, PT_TENSOR, "parameter", &value));
    TRY(member(m, args, 1, PT_BOOL, "parameter requires_grad", &ignored));
    TRY(member(m, args, 2, PT_DICT, "parameter hooks", &ignored));
    const pt_value copy = *value;
    TRY(pt_push(m, &copy));
out:
    return err;
}

cf_err pt_do_reduce(pt_machine *m)
{
    cf_err err;
    uint32_t args_idx;
    uint32_t callable_idx;
    TRY(pt_pop(m, &args_idx));
    TRY(pt_pop(m, &callable_idx));
    const pt_value args = *pt_value_at(m, args_idx); /* copies: pushing may move the pool */
    const pt_value callable = *pt_value_at(m, callable_idx);
    if (callable.kind != PT_GLOBAL || args.kind != PT_TUPLE)
        FAIL(CF_ERR_INVALID, "a call of %s with %s; refusing", pt_kind_name(callable.kind), pt_kind_name(args.kind));
    if (callable.u.idx == PT_GLOBAL_TENSOR)
        return make_tensor(m, &args);
    if (callable.u.idx == PT_GLOBAL_PARAMETER)
        return make_parameter(m, &args);
    if (callable.u.idx != PT_GLOBAL_ORDERED_DICT || args.u.seq.count != 0)
        FAIL(CF_ERR_INVALID, "a call that makes neither a tensor nor an empty OrderedDict; refusing");
    TRY(pt_push(m, &(pt_value){.kind = PT_DICT, .depth = 1, .ordered = 1, .u.seq = {PT_NIL, PT_NIL, 0}}));
out:
    return err;
}

/* A module's state dict carries its _metadata as state: of no use here. */
cf_err pt_do_build(pt_machine *m)
{
    cf_err err;
    uint32_t state;
    uint32_t object;
    TRY(pt_pop(m, &state));
    TRY(pt_pop(m, &object));
    const pt_value copy = *pt_value_at(m, object);
    if (copy.kind != PT_DICT || !copy.ordered || pt_value_at(m, state)->kind != PT_DICT)
        FAIL(CF_ERR_INVALID, "state set on %s; only an OrderedDict may have some", pt_kind_name(copy.kind));
    /* The same value goes back, not a copy: the memo may know it. */
    m->stack.count++;
    CF_ASSERT(((const uint32_t *)m->stack.items)[m->stack.count - 1] == object);
out:
    return err;
}
