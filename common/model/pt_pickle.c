/*
 * pt_pickle.c - the opcodes of a checkpoint's data.pkl: pushes, containers, memo. Any thread; one machine a file.
 *
 * The subset is what torch.save emits for state dicts and saved voices (formats.md 2.3); any other opcode ends the
 * reading. Every operand is checked against the bytes left, every pop against the innermost mark.
 * Fails: CF_ERR_INVALID for what no checkpoint holds, CF_ERR_CORRUPT for truncation and underflow, CF_ERR_LIMIT.
 * Source: CPython Lib/pickletools.py (opcode semantics), PyTorch torch/_weights_only_unpickler.py (the subset).
 */
#include <inttypes.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/mem.h"
#include "common/base/utf8.h"
#include "common/model/pt_machine_impl.h"

cf_err pt_pool_room(pt_pool *p, size_t item_bytes, size_t more, size_t count_max, const char *what)
{
    if (more > count_max || p->count > count_max - more)
        return err_set(CF_ERR_LIMIT, "more than %zu %s", count_max, what);
    if (p->count + more <= p->capacity)
        return CF_OK;
    size_t larger = p->capacity ? p->capacity : 64;
    while (larger < p->count + more)
        larger *= 2;
    const cf_err err = mem_resize(&p->items, larger, item_bytes);
    if (err == CF_OK)
        p->capacity = larger;
    return err;
}

pt_value *pt_value_at(const pt_machine *m, uint32_t idx)
{
    CF_ASSERT(idx < m->values.count);
    return (pt_value *)m->values.items + idx;
}

uint32_t pt_ref_at(const pt_machine *m, size_t idx)
{
    CF_ASSERT(idx < m->refs.count);
    return ((const uint32_t *)m->refs.items)[idx];
}

pt_node *pt_node_at(const pt_machine *m, uint32_t idx)
{
    CF_ASSERT(idx < m->nodes.count);
    return (pt_node *)m->nodes.items + idx;
}

const char *pt_kind_name(unsigned kind)
{
    static const char *const NAME[PT_KIND_COUNT] = {"None",   "a bool", "an int",   "a float",   "a string", "a tuple",
                                                    "a list", "a dict", "a global", "a storage", "a tensor"};
    CF_ASSERT(kind < PT_KIND_COUNT);
    return NAME[kind];
}

const char *pt_text_of(const pt_machine *m, const pt_value *v)
{
    CF_ASSERT(v->kind == PT_STR);
    return (const char *)m->code + v->u.str.off;
}

static uint32_t *stack_of(const pt_machine *m)
{
    return m->stack.items;
}

/* Values below the innermost mark belong to an unfinished tuple and cannot be popped. */
static size_t stack_floor(const pt_machine *m)
{
    return m->marks.count ? ((const uint32_t *)m->marks.items)[m->marks.count - 1] : 0;
}

static cf_err push_idx(pt_machine *m, uint32_t idx)
{
    const cf_err err = pt_pool_room(&m->stack, sizeof(uint32_t), 1, PT_STACK_MAX, "values on the stack");
    if (err == CF_OK)
        stack_of(m)[m->stack.count++] = idx;
    return err;
}

cf_err pt_push(pt_machine *m, const pt_value *v)
{
    cf_err err;
    if (v->depth > PT_NESTING_MAX)
        FAIL(CF_ERR_LIMIT, "containers nested deeper than %u", PT_NESTING_MAX);
    TRY(pt_pool_room(&m->values, sizeof *v, 1, PT_VALUES_MAX, "values"));
    ((pt_value *)m->values.items)[m->values.count++] = *v;
    TRY(push_idx(m, (uint32_t)(m->values.count - 1)));
out:
    return err;
}

cf_err pt_pop(pt_machine *m, uint32_t *ret_idx)
{
    if (m->stack.count <= stack_floor(m))
        return err_set(CF_ERR_CORRUPT, "stack underflow");
    *ret_idx = stack_of(m)[--m->stack.count];
    return CF_OK;
}

/* The value at top of the stack, left there. */
static cf_err top(pt_machine *m, uint32_t *ret_idx)
{
    if (m->stack.count <= stack_floor(m))
        return err_set(CF_ERR_CORRUPT, "stack underflow");
    *ret_idx = stack_of(m)[m->stack.count - 1];
    return CF_OK;
}

static cf_err take(pt_machine *m, size_t bytes, const unsigned char **ret_data)
{
    if (bytes > m->code_bytes - m->off)
        return err_set(CF_ERR_CORRUPT, "truncated: %zu bytes expected, %zu left", bytes, m->code_bytes - m->off);
    *ret_data = m->code + m->off;
    m->off += bytes;
    return CF_OK;
}

/* Little-endian operand of 1, 2 or 4 bytes. */
static cf_err take_uint(pt_machine *m, size_t bytes, uint32_t *ret_value)
{
    const unsigned char *p;
    const cf_err err = take(m, bytes, &p);
    if (err != CF_OK)
        return err;
    uint32_t value = 0;
    for (size_t i = 0; i < bytes; i++)
        value |= (uint32_t)p[i] << (8 * i);
    *ret_value = value;
    return CF_OK;
}

static cf_err push_int(pt_machine *m, int64_t value)
{
    return pt_push(m, &(pt_value){.kind = PT_INT, .u.i = value});
}

static cf_err op_binint(pt_machine *m, unsigned op)
{
    uint32_t value;
    const size_t bytes = op == 'J' ? 4 : op == 'M' ? 2 : 1;
    const cf_err err = take_uint(m, bytes, &value);
    if (err != CF_OK)
        return err;
    return push_int(m, op == 'J' ? (int64_t)(int32_t)value : (int64_t)value);
}

static cf_err op_long1(pt_machine *m, unsigned op)
{
    (void)op;
    cf_err err;
    uint32_t bytes;
    const unsigned char *p;
    TRY(take_uint(m, 1, &bytes));
    TRY(take(m, bytes, &p));
    if (bytes > 8)
        FAIL(CF_ERR_INVALID, "integer of %u bytes does not fit 64 bits", bytes);
    uint64_t value = bytes > 0 && p[bytes - 1] & 0x80 ? UINT64_MAX : 0; /* the sign fills the bytes not stored */
    for (uint32_t i = bytes; i-- > 0;)
        value = value << 8 | p[i];
    int64_t signed_value;
    memcpy(&signed_value, &value, sizeof signed_value);
    TRY(push_int(m, signed_value));
out:
    return err;
}

static cf_err op_binfloat(pt_machine *m, unsigned op)
{
    (void)op;
    const unsigned char *p;
    const cf_err err = take(m, 8, &p);
    if (err != CF_OK)
        return err;
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | p[i]; /* big-endian, unlike everything else */
    pt_value v = {.kind = PT_FLOAT};
    memcpy(&v.u.f, &bits, sizeof bits);
    return pt_push(m, &v);
}

static cf_err op_constant(pt_machine *m, unsigned op)
{
    if (op == 'N')
        return pt_push(m, &(pt_value){.kind = PT_NONE});
    return pt_push(m, &(pt_value){.kind = PT_BOOL, .u.i = op == 0x88});
}

static cf_err op_unicode(pt_machine *m, unsigned op)
{
    (void)op;
    cf_err err;
    uint32_t bytes;
    const unsigned char *p;
    TRY(take_uint(m, 4, &bytes));
    if (bytes > PT_STRING_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "string of %u bytes, at most %u are read", bytes, PT_STRING_BYTES_MAX);
    TRY(take(m, bytes, &p));
    if (!utf8_valid((const char *)p, bytes, NULL) || memchr(p, '\0', bytes))
        FAIL(CF_ERR_INVALID, "string is not valid UTF-8");
    TRY(pt_push(m, &(pt_value){.kind = PT_STR, .u.str = {(uint32_t)(p - m->code), bytes}}));
out:
    return err;
}

static cf_err take_line(pt_machine *m, const char **ret_text, size_t *ret_bytes)
{
    const unsigned char *p = m->code + m->off;
    const unsigned char *end = memchr(p, '\n', m->code_bytes - m->off);
    if (!end)
        return err_set(CF_ERR_CORRUPT, "truncated: the name of a global has no end");
    *ret_text = (const char *)p;
    *ret_bytes = (size_t)(end - p);
    m->off += *ret_bytes + 1;
    return CF_OK;
}

static cf_err op_global(pt_machine *m, unsigned op)
{
    (void)op;
    cf_err err;
    const char *module;
    const char *name;
    size_t module_bytes;
    size_t name_bytes;
    TRY(take_line(m, &module, &module_bytes));
    TRY(take_line(m, &name, &name_bytes));
    TRY(pt_do_global(m, module, module_bytes, name, name_bytes));
out:
    return err;
}

static cf_err op_mark(pt_machine *m, unsigned op)
{
    (void)op;
    const cf_err err = pt_pool_room(&m->marks, sizeof(uint32_t), 1, PT_MARKS_MAX, "nested marks");
    if (err == CF_OK)
        ((uint32_t *)m->marks.items)[m->marks.count++] = (uint32_t)m->stack.count;
    return err;
}

static cf_err pop_mark(pt_machine *m, size_t *ret_first)
{
    if (m->marks.count == 0)
        return err_set(CF_ERR_CORRUPT, "no mark on the stack");
    *ret_first = stack_floor(m);
    m->marks.count--;
    return CF_OK;
}

/* Replaces the stack from first on by one tuple of it. */
static cf_err make_tuple(pt_machine *m, size_t first)
{
    cf_err err;
    const size_t count = m->stack.count - first;
    pt_value v = {.kind = PT_TUPLE, .depth = 1, .u.seq = {(uint32_t)m->refs.count, 0, (uint32_t)count}};
    TRY(pt_pool_room(&m->refs, sizeof(uint32_t), count, PT_VALUES_MAX, "members of tuples"));
    for (size_t i = 0; i < count; i++) {
        const uint32_t idx = stack_of(m)[first + i];
        const uint8_t depth = pt_value_at(m, idx)->depth;
        v.depth = depth + 1 > v.depth ? (uint8_t)(depth + 1) : v.depth;
        ((uint32_t *)m->refs.items)[m->refs.count++] = idx;
    }
    m->stack.count = first;
    TRY(pt_push(m, &v));
out:
    return err;
}

static cf_err op_tuple(pt_machine *m, unsigned op)
{
    size_t first;
    if (op == 't') {
        const cf_err err = pop_mark(m, &first);
        return err == CF_OK ? make_tuple(m, first) : err;
    }
    const size_t count = op == ')' ? 0 : op - 0x84u; /* TUPLE1 is 0x85 */
    if (m->stack.count - stack_floor(m) < count)
        return err_set(CF_ERR_CORRUPT, "stack underflow");
    return make_tuple(m, m->stack.count - count);
}

static cf_err op_empty(pt_machine *m, unsigned op)
{
    return pt_push(m, &(pt_value){.kind = op == '}' ? PT_DICT : PT_LIST, .depth = 1, .u.seq = {PT_NIL, PT_NIL, 0}});
}

/* Appends to a list or a dict. */
static cf_err add_member(pt_machine *m, uint32_t container, uint32_t key, uint32_t value)
{
    cf_err err;
    pt_value *c = pt_value_at(m, container);
    const uint8_t depth = pt_value_at(m, value)->depth;
    if (depth + 1u > PT_NESTING_MAX)
        FAIL(CF_ERR_LIMIT, "containers nested deeper than %u", PT_NESTING_MAX);
    TRY(pt_pool_room(&m->nodes, sizeof(pt_node), 1, PT_VALUES_MAX, "members of containers"));
    const uint32_t idx = (uint32_t)m->nodes.count++;
    *pt_node_at(m, idx) = (pt_node){key, value, PT_NIL};
    if (c->u.seq.first == PT_NIL)
        c->u.seq.first = idx;
    else
        pt_node_at(m, c->u.seq.last)->next = idx;
    c->u.seq.last = idx;
    c->u.seq.count++;
    c->depth = depth + 1 > c->depth ? (uint8_t)(depth + 1) : c->depth;
out:
    return err;
}

/* Moves the stack from first on into the container below it: pairs into a dict, items into a list. */
static cf_err fill(pt_machine *m, size_t first, pt_kind kind)
{
    cf_err err = CF_OK;
    const size_t width = kind == PT_DICT ? 2 : 1;
    const size_t count = m->stack.count - first;
    if (count % width != 0)
        FAIL(CF_ERR_CORRUPT, "a dict key without a value");
    if (first <= stack_floor(m))
        FAIL(CF_ERR_CORRUPT, "stack underflow");
    const uint32_t container = stack_of(m)[first - 1];
    const unsigned found = pt_value_at(m, container)->kind;
    if (found != kind)
        FAIL(CF_ERR_INVALID, "expected %s to fill, found %s", pt_kind_name(kind), pt_kind_name(found));
    for (size_t i = first; i < m->stack.count; i += width) {
        if (kind == PT_LIST) {
            TRY(add_member(m, container, PT_NIL, stack_of(m)[i]));
            continue;
        }
        const uint32_t key = stack_of(m)[i];
        const unsigned key_kind = pt_value_at(m, key)->kind;
        if (key_kind != PT_STR && key_kind != PT_INT)
            FAIL(CF_ERR_INVALID, "expected a string as dict key, found %s", pt_kind_name(key_kind));
        TRY(add_member(m, container, key, stack_of(m)[i + 1]));
    }
    m->stack.count = first;
out:
    return err;
}

static cf_err op_fill_marked(pt_machine *m, unsigned op)
{
    size_t first;
    const cf_err err = pop_mark(m, &first);
    return err == CF_OK ? fill(m, first, op == 'u' ? PT_DICT : PT_LIST) : err;
}

static cf_err op_fill_one(pt_machine *m, unsigned op)
{
    const size_t width = op == 's' ? 2 : 1;
    if (m->stack.count - stack_floor(m) < width + 1)
        return err_set(CF_ERR_CORRUPT, "stack underflow");
    return fill(m, m->stack.count - width, op == 's' ? PT_DICT : PT_LIST);
}

static cf_err op_put(pt_machine *m, unsigned op)
{
    cf_err err;
    uint32_t slot;
    uint32_t value;
    TRY(take_uint(m, op == 'q' ? 1 : 4, &slot));
    TRY(top(m, &value));
    if (slot >= PT_MEMO_MAX)
        FAIL(CF_ERR_LIMIT, "memo slot %u, at most %u are kept", slot, PT_MEMO_MAX);
    while (m->memo.count <= slot) {
        TRY(pt_pool_room(&m->memo, sizeof(uint32_t), 1, PT_MEMO_MAX, "memo slots"));
        ((uint32_t *)m->memo.items)[m->memo.count++] = PT_NIL;
    }
    ((uint32_t *)m->memo.items)[slot] = value;
out:
    return err;
}

static cf_err op_get(pt_machine *m, unsigned op)
{
    uint32_t slot;
    const cf_err err = take_uint(m, op == 'h' ? 1 : 4, &slot);
    if (err != CF_OK)
        return err;
    if (slot >= m->memo.count || ((const uint32_t *)m->memo.items)[slot] == PT_NIL)
        return err_set(CF_ERR_CORRUPT, "memo slot %u was never filled", slot);
    return push_idx(m, ((const uint32_t *)m->memo.items)[slot]);
}

static cf_err op_persid(pt_machine *m, unsigned op)
{
    (void)op;
    return pt_do_persid(m);
}

static cf_err op_reduce(pt_machine *m, unsigned op)
{
    (void)op;
    return pt_do_reduce(m);
}

static cf_err op_build(pt_machine *m, unsigned op)
{
    (void)op;
    return pt_do_build(m);
}

static cf_err op_stop(pt_machine *m, unsigned op)
{
    (void)op;
    m->stopped = true;
    if (m->off != m->code_bytes)
        return err_set(CF_ERR_INVALID, "%zu bytes behind the end of the pickle", m->code_bytes - m->off);
    if (m->marks.count != 0 || m->stack.count != 1)
        return err_set(CF_ERR_CORRUPT, "expected one object at the end, found %zu values on the stack", m->stack.count);
    return CF_OK;
}

typedef cf_err (*op_fn)(pt_machine *m, unsigned op);

static const op_fn OPS[256] = {
    ['J'] = op_binint,   ['K'] = op_binint,    ['M'] = op_binint,    [0x8A] = op_long1,      ['G'] = op_binfloat,
    ['N'] = op_constant, [0x88] = op_constant, [0x89] = op_constant, ['X'] = op_unicode,     ['c'] = op_global,
    ['('] = op_mark,     ['t'] = op_tuple,     [')'] = op_tuple,     [0x85] = op_tuple,      [0x86] = op_tuple,
    [0x87] = op_tuple,   ['}'] = op_empty,     [']'] = op_empty,     ['u'] = op_fill_marked, ['e'] = op_fill_marked,
    ['s'] = op_fill_one, ['a'] = op_fill_one,  ['q'] = op_put,       ['r'] = op_put,         ['h'] = op_get,
    ['j'] = op_get,      ['Q'] = op_persid,    ['R'] = op_reduce,    ['b'] = op_build,       ['.'] = op_stop,
};

static cf_err run(pt_machine *m)
{
    cf_err err = CF_OK;
    size_t op_off = 0;
    if (m->code_bytes < 2 || m->code[0] != 0x80)
        FAIL(CF_ERR_INVALID, "expected a pickle of protocol 2");
    if (m->code[1] < 2 || m->code[1] > 5)
        FAIL(CF_ERR_UNSUPPORTED, "pickle protocol %u, 2 to 5 are read", m->code[1]);
    m->off = 2;
    while (!m->stopped) {
        const unsigned char *op;
        op_off = m->off;
        TRY(take(m, 1, &op));
        if (!OPS[*op])
            FAIL(CF_ERR_INVALID, "opcode 0x%02x has no business in a checkpoint; refusing", *op);
        TRY(OPS[*op](m, *op));
    }
out:
    return err == CF_OK ? err : err_context(err, "data.pkl byte %zu", op_off);
}

static void machine_done(pt_machine *m)
{
    pt_pool *const pools[] = {&m->values, &m->refs,  &m->nodes,    &m->stack,
                              &m->memo,   &m->marks, &m->storages, &m->tensors};
    for (size_t i = 0; i < CF_COUNT(pools); i++)
        mem_free(pools[i]->items);
    mem_free(m->storage_of_record);
}

cf_err pt_unpickle(const pt_archive *a, const pt_record *pickle, size_t file_bytes, tensor_table *table)
{
    cf_err err;
    pt_machine m = {.archive = a, .code = pickle->data, .code_bytes = pickle->bytes, .table = table};
    if (pickle->bytes > PT_PICKLE_BYTES_MAX)
        FAIL(CF_ERR_LIMIT, "data.pkl of %zu bytes, at most %u are read", pickle->bytes, PT_PICKLE_BYTES_MAX);
    TRY(mem_alloc(a->count, sizeof *m.storage_of_record, &m.storage_of_record));
    memset(m.storage_of_record, 0xFF, a->count * sizeof *m.storage_of_record);
    TRY(run(&m));
    TRY(pt_export(&m, file_bytes));
out:
    machine_done(&m);
    return err;
}
