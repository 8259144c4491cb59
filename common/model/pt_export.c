/*
 * pt_export.c - the object a checkpoint's pickle made, into a tensor table; and the reader's entry points.
 *
 * Accepted: a dict of tensors with numbers between them (a state dict, a trainer's checkpoint), and a dict of such
 * dicts (saved voices: "voice/field"). Fails: CF_ERR_INVALID for other objects, CF_ERR_LIMIT for views that expand to
 * far more than the file, CF_ERR_UNSUPPORTED for TorchScript and big-endian files.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/model/pt.h"
#include "common/model/pt_machine_impl.h"

#define EXPAND_MAX 4u /* logical bytes of all views over bytes of the file: formats.md 2.3 rule 8 */
#define PATH_BYTES (2u * PT_STRING_BYTES_MAX + 2u)

typedef struct export_state {
    const pt_machine *m;
    uint64_t logical_bytes;
    uint64_t logical_bytes_max;
    char *path; /* owned, PATH_BYTES: "outer/inner" of the member at hand */
} export_state;

static cf_err add_tensor(export_state *x, const char *name, const pt_value *v)
{
    const tensor_entry *e = (const tensor_entry *)x->m->tensors.items + v->u.idx;
    x->logical_bytes +=
        entry_bytes(e); /* each at most INT64_MAX / 8 * 8: two do not wrap, and the bound stops a third */
    if (x->logical_bytes > x->logical_bytes_max)
        return err_set(CF_ERR_LIMIT, "tensor %.200s: the file's tensors expand to more than %u times its size", name,
                       EXPAND_MAX);
    return tensor_table_add(x->m->table, name, strlen(name), e);
}

static cf_err add_number(const export_state *x, const char *name, const pt_value *v)
{
    char text[48];
    if (v->kind == PT_FLOAT)
        snprintf(text, sizeof text, "%.17g", v->u.f);
    else
        snprintf(text, sizeof text, "%" PRId64, v->u.i);
    return tensor_table_add_text(x->m->table, name, strlen(name), text, strlen(text));
}

static cf_err add_members(export_state *x, const pt_value *dict, size_t prefix_bytes);

static cf_err add_value(export_state *x, const pt_value *v, size_t prefix_bytes, size_t path_bytes)
{
    switch ((pt_kind)v->kind) {
    case PT_TENSOR:
        return add_tensor(x, x->path, v);
    case PT_INT:
    case PT_BOOL:
    case PT_FLOAT:
        return add_number(x, x->path, v);
    case PT_NONE:
        return CF_OK;
    case PT_STR:
        return tensor_table_add_text(x->m->table, x->path, path_bytes, pt_text_of(x->m, v), v->u.str.bytes);
    case PT_DICT:
        if (prefix_bytes == 0) {
            x->path[path_bytes] = '/';
            return add_members(x, v, path_bytes + 1);
        }
        break;
    default:
        break;
    }
    return err_set(CF_ERR_INVALID, "\"%.200s\": expected a tensor, found %s%s", x->path, pt_kind_name(v->kind),
                   v->kind == PT_DICT ? " in a dict in a dict" : "");
}

static cf_err add_members(export_state *x, const pt_value *dict, size_t prefix_bytes)
{
    cf_err err = CF_OK;
    for (uint32_t n = dict->u.seq.first; n != PT_NIL; n = pt_node_at(x->m, n)->next) {
        const pt_node *node = pt_node_at(x->m, n);
        const pt_value *key = pt_value_at(x->m, node->key);
        if (key->kind != PT_STR || key->u.str.bytes == 0)
            FAIL(CF_ERR_INVALID, "expected names as dict keys, found %s", pt_kind_name(key->kind));
        memcpy(x->path + prefix_bytes, pt_text_of(x->m, key), key->u.str.bytes);
        x->path[prefix_bytes + key->u.str.bytes] = '\0';
        TRY(add_value(x, pt_value_at(x->m, node->value), prefix_bytes, prefix_bytes + key->u.str.bytes));
    }
out:
    return err;
}

cf_err pt_export(pt_machine *m, size_t file_bytes)
{
    cf_err err;
    export_state x = {.m = m, .logical_bytes_max = EXPAND_MAX * (uint64_t)file_bytes};
    const pt_value *root = pt_value_at(m, *(const uint32_t *)m->stack.items);
    TRY(mem_alloc(PATH_BYTES, 1, &x.path));
    if (root->kind != PT_DICT)
        FAIL(CF_ERR_INVALID, "expected a state dict, found %s", pt_kind_name(root->kind));
    TRY(add_members(&x, root, 0));
    TRY(tensor_table_seal(m->table));
out:
    mem_free(x.path);
    return err;
}

static cf_err check_small_records(const pt_archive *a)
{
    const pt_record *order = pt_archive_find(a, "byteorder", 9);
    const pt_record *version = pt_archive_find(a, "version", 7);
    if (order && (order->bytes != 6 || memcmp(order->data, "little", 6) != 0))
        return err_set(CF_ERR_UNSUPPORTED, "byteorder is not little");
    if (!version)
        return CF_OK;
    size_t digits = version->bytes;
    while (digits > 0 && (version->data[digits - 1] == '\n' || version->data[digits - 1] == '\r'))
        digits--;
    const bool is_single = digits == 1 && version->data[0] >= '1' && version->data[0] <= '9';
    const bool is_ten = digits == 2 && memcmp(version->data, "10", 2) == 0;
    if (!is_single && !is_ten)
        return err_set(CF_ERR_UNSUPPORTED, "record version: expected 1 to 10");
    return CF_OK;
}

static cf_err find_pickle(const pt_archive *a, const pt_record **ret_pickle)
{
    for (size_t i = 0; i < a->count; i++)
        if (a->records[i].name_bytes >= 5 && memcmp(a->records[i].name, "code/", 5) == 0)
            return err_set(CF_ERR_UNSUPPORTED, "a TorchScript module, expected a state dict");
    if (pt_archive_find(a, "constants.pkl", 13))
        return err_set(CF_ERR_UNSUPPORTED, "a TorchScript module, expected a state dict");
    const pt_record *pickle = pt_archive_find(a, "data.pkl", 8);
    if (!pickle)
        return err_set(CF_ERR_INVALID, "a zip archive without data.pkl: not a PyTorch checkpoint");
    *ret_pickle = pickle;
    return CF_OK;
}

cf_err pt_parse(const unsigned char *data, size_t bytes, tensor_table **ret_table)
{
    cf_err err;
    pt_archive archive = {0};
    tensor_table *table = NULL;
    const pt_record *pickle;
    TRY(pt_archive_open(data, bytes, &archive));
    TRY(find_pickle(&archive, &pickle));
    TRY(check_small_records(&archive));
    TRY(tensor_table_open(&table));
    TRY(pt_unpickle(&archive, pickle, bytes, table));
    *ret_table = table;
    table = NULL;
out:
    tensor_table_close(table);
    pt_archive_close(&archive);
    return err;
}

cf_err pt_verify(const unsigned char *data, size_t bytes)
{
    cf_err err;
    pt_archive archive = {0};
    pt_crc32 *crc = NULL;
    char shown[PT_PRINT_BYTES];
    TRY(pt_archive_open(data, bytes, &archive));
    TRY(mem_alloc(1, sizeof *crc, &crc));
    pt_crc32_init(crc);
    for (size_t i = 0; i < archive.count; i++) {
        const pt_record *r = &archive.records[i];
        pt_crc32_add(crc, r->data, r->bytes);
        const uint32_t found = pt_crc32_take(crc);
        if (found != r->crc32)
            FAIL(CF_ERR_CORRUPT, "record %s: checksum: expected %08x, found %08x",
                 pt_printable(r->name, r->name_bytes, shown), r->crc32, found);
    }
out:
    mem_free(crc);
    pt_archive_close(&archive);
    return err;
}
