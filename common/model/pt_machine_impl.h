/*
 * pt_machine_impl.h - state of the restricted pickle machine, shared by pt_pickle.c (opcodes), pt_objects.c (the few
 * callables) and pt_export.c (the finished object into a table). Values are tagged records in pools that refer to each
 * other by index; nothing of the host is ever named, called or allocated by the file.
 */
#ifndef CF_MODEL_PT_MACHINE_IMPL_H
#define CF_MODEL_PT_MACHINE_IMPL_H

#include "common/model/pt_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bounds of formats.md 2.3 rule 8; values and pool sizes follow from 65,536 tensors of about 25 values. */
#define PT_STACK_MAX        100000u
#define PT_MEMO_MAX         1000000u
#define PT_MARKS_MAX        1000u
#define PT_STRING_BYTES_MAX 65536u
#define PT_NESTING_MAX      32u
#define PT_VALUES_MAX       4000000u

typedef enum pt_kind {
    PT_NONE,
    PT_BOOL,
    PT_INT,
    PT_FLOAT,
    PT_STR,
    PT_TUPLE,
    PT_LIST,
    PT_DICT,
    PT_GLOBAL,
    PT_STORAGE,
    PT_TENSOR,
    PT_KIND_COUNT
} pt_kind;

/* The callables and types a file may name. Storage types follow PT_GLOBAL_STORAGE in the order of entry_dtype. */
enum { PT_GLOBAL_ORDERED_DICT, PT_GLOBAL_TENSOR, PT_GLOBAL_PARAMETER, PT_GLOBAL_STORAGE };

#define PT_NIL UINT32_MAX

typedef struct pt_value {
    uint8_t kind;
    uint8_t depth;   /* of nesting: 1 for an empty container */
    uint8_t ordered; /* a dict made by OrderedDict() */
    union {
        int64_t i;    /* PT_INT, PT_BOOL */
        double f;     /* PT_FLOAT */
        uint32_t idx; /* PT_GLOBAL, PT_STORAGE, PT_TENSOR */
        struct {
            uint32_t off; /* in the pickle */
            uint32_t bytes;
        } str;
        struct {
            uint32_t first; /* PT_TUPLE: in refs; PT_LIST, PT_DICT: first node or PT_NIL */
            uint32_t last;  /* PT_LIST, PT_DICT: last node */
            uint32_t count;
        } seq;
    } u;
} pt_value;

/* One member of a dict or item of a list. */
typedef struct pt_node {
    uint32_t key; /* PT_NIL in a list */
    uint32_t value;
    uint32_t next;
} pt_node;

typedef struct pt_storage {
    const pt_record *record; /* borrowed */
    entry_dtype type;
    int64_t numel;
} pt_storage;

/* A growable array of items. */
typedef struct pt_pool {
    void *items; /* owned */
    size_t count;
    size_t capacity;
} pt_pool;

typedef struct pt_machine {
    const pt_archive *archive; /* borrowed */
    const unsigned char *code; /* borrowed: data.pkl */
    size_t code_bytes;
    size_t off; /* of the next byte */
    bool stopped;
    pt_pool values;              /* pt_value */
    pt_pool refs;                /* uint32_t: members of tuples */
    pt_pool nodes;               /* pt_node */
    pt_pool stack;               /* uint32_t: values */
    pt_pool memo;                /* uint32_t: values or PT_NIL */
    pt_pool marks;               /* uint32_t: heights of the stack */
    pt_pool storages;            /* pt_storage */
    pt_pool tensors;             /* tensor_entry without name */
    uint32_t *storage_of_record; /* owned: [archive->count] index into storages or PT_NIL */
    tensor_table *table;         /* borrowed: receives warnings, in the end tensors */
} pt_machine;

/* pt_pickle.c */
CF_MUST_CHECK cf_err pt_pool_room(pt_pool *p, size_t item_bytes, size_t more, size_t count_max, const char *what);
pt_value *pt_value_at(const pt_machine *m, uint32_t idx);
uint32_t pt_ref_at(const pt_machine *m, size_t idx);
pt_node *pt_node_at(const pt_machine *m, uint32_t idx);
const char *pt_kind_name(unsigned kind);
CF_MUST_CHECK cf_err pt_push(pt_machine *m, const pt_value *v);
CF_MUST_CHECK cf_err pt_pop(pt_machine *m, uint32_t *ret_idx);
/* The text of a string value. */
const char *pt_text_of(const pt_machine *m, const pt_value *v);

/* pt_objects.c: the opcodes that make objects. Each works on the stack. */
CF_MUST_CHECK cf_err pt_do_global(pt_machine *m, const char *module, size_t module_bytes, const char *name,
                                  size_t name_bytes);
CF_MUST_CHECK cf_err pt_do_persid(pt_machine *m);
CF_MUST_CHECK cf_err pt_do_reduce(pt_machine *m);
CF_MUST_CHECK cf_err pt_do_build(pt_machine *m);

/* pt_export.c: the finished object at top of the stack into m->table. */
CF_MUST_CHECK cf_err pt_export(pt_machine *m, size_t file_bytes);

#ifdef __cplusplus
}
#endif
#endif
