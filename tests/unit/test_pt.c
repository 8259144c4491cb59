/* test_pt.c - PyTorch checkpoints: every file of data/pt against its manifest; hostile archives and pickles, made here
 * byte by byte, each refused with its reason; the writer against the reader. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/pt.h"
#include "common/model/tensor_file.h"

/* ---- the manifest ---- */

static void assert_shape(const tensor_entry *e, const json *shape)
{
    int d = 0;
    assert_int_equal(e->rank, json_count(shape));
    for (const json *v = json_first(shape); v; v = json_next(v)) {
        uint64_t size;
        assert_ok(json_as_u64(v, "shape", 0, 1u << 30, &size));
        assert_int_equal(e->shape[d++], size);
    }
}

static void assert_tensors(const tensor_file *f, const json *list)
{
    assert_int_equal(tensor_file_count(f), json_count(list));
    for (const json *v = json_first(list); v; v = json_next(v)) {
        const char *name;
        const char *type;
        const char *want;
        char hex[SHA256_HEX_BYTES];
        assert_ok(json_get_str(v, "name", 200, &name));
        assert_ok(json_get_str(v, "dtype", 8, &type));
        assert_ok(json_get_str(v, "sha256", 64, &want));
        const tensor_entry *e = tensor_file_find(f, name);
        if (!e)
            fail_msg("tensor %s was not read", name);
        assert_string_equal(entry_dtype_name(e->type), type);
        assert_shape(e, json_find(v, "shape"));
        assert_ok(entry_sha256(e, hex));
        assert_string_equal(hex, want);
    }
}

static int by_line(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The digest of many tensors: sorted lines "name shape sha256". */
static void assert_digest(const tensor_file *f, const char *want)
{
    const size_t count = tensor_file_count(f);
    char **lines;
    byte_buf all = {0};
    char hex[SHA256_HEX_BYTES];
    assert_ok(mem_alloc(count, sizeof *lines, &lines));
    for (size_t i = 0; i < count; i++) {
        const tensor_entry *e = tensor_file_at(f, i);
        char line[400];
        size_t used = (size_t)snprintf(line, sizeof line, "%s ", e->name);
        for (int d = 0; d < e->rank; d++)
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%d", d ? "x" : "", (int)e->shape[d]);
        assert_ok(entry_sha256(e, hex));
        snprintf(line + used, sizeof line - used, " %s\n", hex);
        assert_ok(mem_strndup(line, strlen(line), &lines[i]));
    }
    qsort(lines, count, sizeof *lines, by_line);
    for (size_t i = 0; i < count; i++) {
        byte_buf_add_text(&all, lines[i]);
        mem_free(lines[i]);
    }
    assert_ok(sha256_of(all.data, all.bytes, hex));
    assert_string_equal(hex, want);
    byte_buf_done(&all);
    mem_free(lines);
}

static void assert_numbers(const tensor_file *f, const json *numbers)
{
    for (const json *v = json_first(numbers); v; v = json_next(v)) {
        double want;
        assert_ok(json_as_f64(v, json_key(v), -1e18, 1e18, &want));
        const char *text = tensor_file_text(f, json_key(v));
        assert_non_null(text);
        assert_true(strtod(text, NULL) == want);
    }
}

static void check_manifest_line(const char *line)
{
    json *root;
    tensor_file *f;
    const char *file;
    char path[256];
    uint64_t bytes;
    assert_ok(json_parse(line, strlen(line), 8, &root));
    assert_ok(json_get_str(root, "file", 128, &file));
    assert_ok(json_get_u64(root, "bytes", 1, 1u << 30, &bytes));
    snprintf(path, sizeof path, "data/pt/%s", file);
    assert_ok(tensor_file_open(test_shared(path), &f));
    assert_int_equal(tensor_file_format(f), TENSOR_FORMAT_PT);
    assert_int_equal(tensor_file_bytes(f), bytes);
    assert_ok(tensor_file_verify(f));
    if (json_find(root, "tensors")) {
        assert_tensors(f, json_find(root, "tensors"));
    } else {
        const char *digest;
        uint64_t count;
        assert_ok(json_get_u64(root, "count", 1, 100000, &count));
        assert_ok(json_get_str(root, "digest", 64, &digest));
        assert_int_equal(tensor_file_count(f), count);
        assert_digest(f, digest);
    }
    if (json_find(root, "numbers"))
        assert_numbers(f, json_find(root, "numbers"));
    const bool warns = tensor_table_warning(tensor_file_table(f)) != NULL;
    assert_int_equal(warns, strcmp(file, "variants/record-longer.pt") == 0);
    tensor_file_close(f);
    json_close(root);
}

static void test_reads_every_file(void **state)
{
    (void)state;
    FILE *f = fopen(test_shared("data/pt/MANIFEST.jsonl"), "r");
    static char line[1 << 16];
    int count = 0;
    assert_non_null(f);
    for (; fgets(line, sizeof line, f); count++)
        check_manifest_line(line);
    assert_int_equal(count, 40);
    fclose(f);
}

/* ---- archives made by hand ---- */

/* One record of an archive under construction, with everything a liar could say. */
typedef struct record {
    const char *name;
    const void *data;
    size_t bytes;
    unsigned method;
    unsigned flags;
    const char *local_name; /* when not the same */
    uint32_t claimed_bytes; /* in the directory; 0: the truth */
} record;

typedef struct archive {
    record records[8];
    size_t count;
} archive;

static void add_header_tail(byte_buf *b, const record *r, uint32_t bytes)
{
    byte_buf_add_u16(b, r->flags);
    byte_buf_add_u16(b, r->method);
    byte_buf_add_u32(b, 0);
    byte_buf_add_u32(b, 0); /* checksum: wrong on purpose, reading does not look at it */
    byte_buf_add_u32(b, bytes);
    byte_buf_add_u32(b, bytes);
}

/* A plain zip without zip64. */
static void build(const archive *a, byte_buf *ret_zip)
{
    byte_buf zip = {0};
    byte_buf directory = {0};
    for (size_t i = 0; i < a->count; i++) {
        const record *r = &a->records[i];
        const char *local = r->local_name ? r->local_name : r->name;
        const uint32_t off = (uint32_t)zip.bytes;
        const uint32_t claimed = r->claimed_bytes ? r->claimed_bytes : (uint32_t)r->bytes;
        byte_buf_add_text(&zip, "PK\3\4");
        byte_buf_add_u16(&zip, 0);
        add_header_tail(&zip, r, 0);
        byte_buf_add_u16(&zip, (unsigned)strlen(local));
        byte_buf_add_u16(&zip, 0);
        byte_buf_add_text(&zip, local);
        byte_buf_add(&zip, r->data, r->bytes);
        byte_buf_add_text(&directory, "PK\1\2");
        byte_buf_add_u32(&directory, 0);
        add_header_tail(&directory, r, claimed);
        byte_buf_add_u16(&directory, (unsigned)strlen(r->name));
        for (int n = 0; n < 6; n++)
            byte_buf_add_u16(&directory, 0);
        byte_buf_add_u32(&directory, off);
        byte_buf_add_text(&directory, r->name);
    }
    const uint32_t off = (uint32_t)zip.bytes;
    byte_buf_add(&zip, directory.data, directory.bytes);
    byte_buf_add_text(&zip, "PK\5\6");
    byte_buf_add_u32(&zip, 0);
    byte_buf_add_u16(&zip, (unsigned)a->count);
    byte_buf_add_u16(&zip, (unsigned)a->count);
    byte_buf_add_u32(&zip, (uint32_t)directory.bytes);
    byte_buf_add_u32(&zip, off);
    byte_buf_add_u16(&zip, 0);
    byte_buf_done(&directory);
    *ret_zip = zip;
}

/* Parses an exact-size copy, so that a sanitizer sees any read beyond the end. */
static cf_err parse_copy(const void *data, size_t bytes, tensor_table **ret_table)
{
    unsigned char *copy = malloc(bytes ? bytes : 1);
    assert_non_null(copy);
    if (bytes)
        memcpy(copy, data, bytes);
    const cf_err err = pt_parse(copy, bytes, ret_table);
    if (err != CF_OK)
        free(copy);
    return err;
}

static cf_err parse_archive(const archive *a)
{
    byte_buf zip;
    tensor_table *table = NULL;
    build(a, &zip);
    const cf_err err = parse_copy(zip.data, zip.bytes, &table);
    byte_buf_done(&zip);
    if (table)
        fail_msg("a hostile archive was read");
    return err;
}

/* Pickle pieces. */
#define PROTO                                 "\x80\x02"
#define DICT                                  "ccollections\nOrderedDict\n)R"
#define STORAGE_KEY(type, key)                "(X\7\0\0\0storagectorch\n" type "\nX\1\0\0\0" key
#define STORAGE_OF(type, key, numel)          STORAGE_KEY(type, key) "X\3\0\0\0cpu" numel "tQ"
#define STORAGE                               STORAGE_OF("FloatStorage", "0", "K\6")
#define REBUILD                               "ctorch._utils\n_rebuild_tensor_v2\n"
#define TENSOR(storage, offset, size, stride) REBUILD "(" storage offset size stride "\x89" DICT "tR"
#define NAMED(name, value)                    "X\1\0\0\0" name value
#define GOOD                                  TENSOR(STORAGE, "K\0", "K\2K\3\x86", "K\3K\1\x86")
#define WHOLE(body)                           PROTO "}" body "."

static const float SIX[6] = {0, 1, 2, 3, 4, 5};

static archive archive_of(const void *pickle, size_t bytes)
{
    return (archive){.records = {{.name = "m/data.pkl", .data = pickle, .bytes = bytes},
                                 {.name = "m/data/0", .data = SIX, .bytes = 24}},
                     .count = 2};
}

static const char GOOD_PICKLE[] = WHOLE(NAMED("a", GOOD) "s");

static archive good_archive(void)
{
    return archive_of(GOOD_PICKLE, sizeof GOOD_PICKLE - 1);
}

static void test_reads_a_handmade_archive(void **state)
{
    (void)state;
    byte_buf zip;
    tensor_table *table;
    float values[6];
    archive a = good_archive();
    a.records[a.count++] = (record){.name = "m/folder/"}; /* as `zip -r` writes them */
    build(&a, &zip);
    assert_ok(pt_parse(zip.data, zip.bytes, &table));
    const tensor_entry *e = tensor_table_find(table, "a");
    assert_non_null(e);
    assert_true(e->contiguous && e->rank == 2 && e->shape[0] == 2 && e->shape[1] == 3);
    assert_ok(entry_read_f32(e, values, 6));
    assert_memory_equal(values, SIX, sizeof SIX);
    assert_err(CF_ERR_CORRUPT, "record data.pkl: checksum", pt_verify(zip.data, zip.bytes));
    tensor_table_close(table);
    byte_buf_done(&zip);
}

typedef struct pickle_case {
    cf_err code;
    const char *part;
    const char *pickle;
    size_t bytes;
} pickle_case;
#define P(text) text, sizeof(text) - 1

static const pickle_case NAMES[] = {
    {CF_ERR_INVALID, "wants to run os.system; refusing", P(WHOLE("cos\nsystem\nX\2\0\0\0id\x85R"))},
    {CF_ERR_INVALID, "wants to run posix.system", P(WHOLE("cposix\nsystem\n"))},
    {CF_ERR_INVALID, "wants to run builtins.eval", P(WHOLE("cbuiltins\neval\n"))},
    {CF_ERR_INVALID, "numpy.core.multiarray._reconstruct", P(WHOLE("cnumpy.core.multiarray\n_reconstruct\n"))},
    {CF_ERR_INVALID, "torch.storage._load_from_bytes", P(WHOLE("ctorch.storage\n_load_from_bytes\n"))},
    {CF_ERR_INVALID, "collections.OrderedDict2", P(WHOLE("ccollections\nOrderedDict2\n"))},
    {CF_ERR_INVALID, "wants to run a?b.c?",
     P(WHOLE("ca\x1b"
             "b\nc\xff\n"))},
    {CF_ERR_UNSUPPORTED, "torch.ComplexFloatStorage is not supported", P(WHOLE("ctorch\nComplexFloatStorage\n"))},
    {CF_ERR_UNSUPPORTED, "_rebuild_tensor_v3", P(WHOLE("ctorch._utils\n_rebuild_tensor_v3\n"))},
    {CF_ERR_CORRUPT, "has no end", P(PROTO "ctorch\nFloat")},
};

static const pickle_case OPCODES[] = {
    {CF_ERR_INVALID, "opcode 0x93", P(WHOLE("X\2\0\0\0osX\6\0\0\0system\x93"))}, /* STACK_GLOBAL */
    {CF_ERR_INVALID, "opcode 0x69", P(WHOLE("(ios\nsystem\n"))},                 /* INST */
    {CF_ERR_INVALID, "opcode 0x6f", P(WHOLE("(o"))},                             /* OBJ */
    {CF_ERR_INVALID, "opcode 0x81", P(WHOLE(")\x81"))},                          /* NEWOBJ */
    {CF_ERR_INVALID, "opcode 0x95", P("\x80\x04\x95\0\0\0\0\0\0\0\0}.")},        /* FRAME */
    {CF_ERR_INVALID, "opcode 0x82", P(WHOLE("\x82\1"))},                         /* EXT1 */
    {CF_ERR_INVALID, "opcode 0x80", P(PROTO PROTO "}.")},
    {CF_ERR_UNSUPPORTED, "protocol 6", P("\x80\x06}.")},
    {CF_ERR_UNSUPPORTED, "protocol 1", P("\x80\x01}.")},
    {CF_ERR_INVALID, "expected a pickle", P("}.")},
    {CF_ERR_INVALID, "expected a pickle", P("")},
    {CF_ERR_CORRUPT, "truncated", P(PROTO "}")},
    {CF_ERR_CORRUPT, "truncated: 4 bytes", P(PROTO "X\1\0")},
    {CF_ERR_CORRUPT, "truncated: 255 bytes", P(PROTO "X\xff\0\0\0abc.")},
    {CF_ERR_LIMIT, "string of 65537 bytes", P(PROTO "X\1\0\1\0abc.")},
    {CF_ERR_INVALID, "UTF-8", P(PROTO "X\1\0\0\0\xff.")},
    {CF_ERR_INVALID, "UTF-8", P(PROTO "X\3\0\0\0a\0b.")},
    {CF_ERR_INVALID, "integer of 9 bytes",
     P(PROTO "\x8a\x09"
             "123456789.")},
    {CF_ERR_CORRUPT, "stack underflow", P(PROTO "R.")},
    {CF_ERR_CORRUPT, "stack underflow", P(PROTO "}(R.")}, /* the mark guards what is below it */
    {CF_ERR_CORRUPT, "stack underflow", P(PROTO "\x87.")},
    {CF_ERR_CORRUPT, "stack underflow", P(PROTO "}s.")},
    {CF_ERR_CORRUPT, "stack underflow", P(PROTO "(u.")},
    {CF_ERR_CORRUPT, "stack underflow", P(PROTO "q\0.")},
    {CF_ERR_CORRUPT, "no mark", P(PROTO "}t.")},
    {CF_ERR_CORRUPT, "without a value", P(PROTO "}(X\1\0\0\0au.")},
    {CF_ERR_CORRUPT, "memo slot 7 was never filled", P(PROTO "h\7.")},
    {CF_ERR_CORRUPT, "memo slot 0 was never filled", P(PROTO "}q\1h\0.")},
    {CF_ERR_LIMIT, "memo slot 4294967295", P(PROTO "}r\xff\xff\xff\xff.")},
    {CF_ERR_INVALID, "bytes behind the end", P(PROTO "}.}")},
    {CF_ERR_CORRUPT, "2 values on the stack", P(PROTO "}}.")},
    {CF_ERR_CORRUPT, "0 values on the stack", P(PROTO ".")},
    {CF_ERR_CORRUPT, "1 values on the stack", P(PROTO "(}.")},
};

static const pickle_case OBJECTS[] = {
    {CF_ERR_INVALID, "expected a state dict, found a list", P(PROTO "].")},
    {CF_ERR_INVALID, "expected a state dict, found a tensor", P(PROTO GOOD ".")},
    {CF_ERR_INVALID, "\"a\": expected a tensor, found a list", P(WHOLE(NAMED("a", "]") "s"))},
    {CF_ERR_INVALID, "\"a\": expected a tensor, found a storage", P(WHOLE(NAMED("a", STORAGE) "s"))},
    {CF_ERR_INVALID, "a dict in a dict", P(WHOLE(NAMED("a", "}" NAMED("b", "}" NAMED("c", "}") "s") "s") "s"))},
    {CF_ERR_INVALID, "expected names as dict keys, found an int", P(WHOLE("K\1" GOOD "s"))},
    {CF_ERR_INVALID, "expected a string as dict key, found a tuple", P(WHOLE(")" GOOD "s"))},
    {CF_ERR_INVALID, "tensor a appears twice", P(WHOLE("(" NAMED("a", GOOD) NAMED("a", GOOD) "u"))},
    {CF_ERR_INVALID, "expected a dict to fill, found a list", P(PROTO "]" NAMED("a", GOOD) "s.")},
    {CF_ERR_INVALID, "expected a list to fill, found a dict", P(PROTO "}K\1a.")},
    {CF_ERR_INVALID, "a call of a dict", P(PROTO "})R.")},
    {CF_ERR_INVALID, "a call of a global with a list", P(PROTO "ccollections\nOrderedDict\n]R.")},
    {CF_ERR_INVALID, "neither a tensor nor an empty OrderedDict", P(PROTO "ccollections\nOrderedDict\n]\x85R.")},
    {CF_ERR_INVALID, "neither a tensor", P(PROTO "ctorch\nFloatStorage\n)R.")},
    {CF_ERR_INVALID, "state set on a dict", P(PROTO "}}b.")},
    {CF_ERR_INVALID, "state set on a dict", P(PROTO DICT "]b.")},
    {CF_ERR_INVALID, "_rebuild_parameter: expected 3", P(PROTO "ctorch._utils\n_rebuild_parameter\n)R.")},
    {CF_ERR_INVALID, "parameter: expected a tensor", P(PROTO "ctorch._utils\n_rebuild_parameter\n(}\x88}tR.")},
};

static const pickle_case STORAGES[] = {
    {CF_ERR_INVALID, "tuple of 5", P(PROTO ")Q.")},
    {CF_ERR_INVALID, "tuple of 5",
     P(PROTO "X\1\0\0\0"
             "0Q.")},
    {CF_ERR_INVALID, "expected \"storage\"", P(PROTO "(X\6\0\0\0module}}}}tQ.")},
    {CF_ERR_INVALID, "storage type: expected a global",
     P(PROTO "(X\7\0\0\0storageX\1\0\0\0aX\1\0\0\0"
             "0X\0\0\0\0K\6tQ.")},
    {CF_ERR_INVALID, "expected a storage class",
     P(PROTO "(X\7\0\0\0storageccollections\nOrderedDict\nX\1\0\0\0"
             "0X\0\0\0\0K\6tQ.")},
    {CF_ERR_INVALID, "storage key \"x\": expected 1 to 9 digits", P(PROTO STORAGE_OF("FloatStorage", "x", "K\6") ".")},
    {CF_ERR_INVALID, "storage key \"?\"", P(PROTO STORAGE_OF("FloatStorage", "\n", "K\6") ".")},
    {CF_ERR_NOTFOUND, "record data/7 is missing", P(PROTO STORAGE_OF("FloatStorage", "7", "K\6") ".")},
    {CF_ERR_INVALID, "storage size: -1 elements", P(PROTO STORAGE_OF("FloatStorage", "0", "J\xff\xff\xff\xff") ".")},
    {CF_ERR_CORRUPT, "expected 28 bytes for 7 f32, found 24", P(PROTO STORAGE_OF("FloatStorage", "0", "K\7") ".")},
    {CF_ERR_INVALID, "elements overflows", P(PROTO STORAGE_OF("DoubleStorage", "0", "\x8a\x08\0\0\0\0\0\0\0\x40") ".")},
    {CF_ERR_INVALID, "6 f32 in one place and 3 f64 in another",
     P(PROTO "(" STORAGE STORAGE_OF("DoubleStorage", "0", "K\3") "t.")},
    {CF_ERR_INVALID, "6 f32 in one place and 5 f32 in another",
     P(PROTO "(" STORAGE STORAGE_OF("FloatStorage", "0", "K\5") "t.")},
};

static const pickle_case TENSORS[] = {
    {CF_ERR_INVALID, "expected 6 or 7 arguments, found 0", P(PROTO REBUILD ")R.")},
    {CF_ERR_INVALID, "tensor storage: expected a storage, found a dict",
     P(PROTO TENSOR("}", "K\0", "K\2\x85", "K\1\x85") ".")},
    {CF_ERR_INVALID, "tensor size: expected an int, found a string",
     P(PROTO TENSOR(STORAGE, "K\0", "X\1\0\0\0a\x85", "K\1\x85") ".")},
    {CF_ERR_INVALID, "tensor offset: -1 is negative",
     P(PROTO TENSOR(STORAGE, "J\xff\xff\xff\xff", "K\2\x85", "K\1\x85") ".")},
    {CF_ERR_INVALID, "tensor size: -2 is negative",
     P(PROTO TENSOR(STORAGE, "K\0", "J\xfe\xff\xff\xff\x85", "K\1\x85") ".")},
    {CF_ERR_INVALID, "tensor stride: -1 is negative",
     P(PROTO TENSOR(STORAGE, "K\0", "K\2\x85", "J\xff\xff\xff\xff\x85") ".")},
    {CF_ERR_INVALID, "rank 1 with 2 strides", P(PROTO TENSOR(STORAGE, "K\0", "K\2\x85", "K\1K\1\x86") ".")},
    {CF_ERR_INVALID, "rank 9",
     P(PROTO TENSOR(STORAGE, "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t") ".")},
    {CF_ERR_CORRUPT, "reaches element 6 of a storage of 6", P(PROTO TENSOR(STORAGE, "K\1", "K\6\x85", "K\1\x85") ".")},
    {CF_ERR_CORRUPT, "reaches element 6", P(PROTO TENSOR(STORAGE, "K\0", "K\3\x85", "K\3\x85") ".")},
    {CF_ERR_CORRUPT, "reaches element 6", P(PROTO TENSOR(STORAGE, "K\6", ")", ")") ".")},
    {CF_ERR_CORRUPT, "strides overflow",
     P(PROTO TENSOR(STORAGE, "K\0", "K\3\x85", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85") ".")},
    {CF_ERR_CORRUPT, "strides overflow",
     P(PROTO TENSOR(STORAGE, "K\2", "K\2\x85", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85") ".")},
    {CF_ERR_INVALID, "product of sizes overflows",
     P(PROTO TENSOR(STORAGE, "K\0", "\x8a\x05\0\0\0\0\1\x8a\x05\0\0\0\0\1\x86", "K\0K\0\x86") ".")},
    {CF_ERR_INVALID, "product of sizes overflows", /* also when a zero hides it */
     P(PROTO TENSOR(STORAGE, "K\0", "K\0\x8a\x05\0\0\0\0\1\x8a\x05\0\0\0\0\1\x87", "K\0K\0K\0\x87") ".")},
    {CF_ERR_LIMIT, "expand to more than 4 times",
     P(WHOLE(NAMED("a", TENSOR(STORAGE, "K\0", "J\0\0\0\1\x85", "K\0\x85")) "s"))},
    {CF_ERR_UNSUPPORTED, "negative or conjugate",
     P(PROTO REBUILD "(" STORAGE "K\0K\6\x85K\1\x85\x89" DICT "}X\3\0\0\0neg\x88stR.")},
    {CF_ERR_INVALID, "tensor metadata: expected a dict",
     P(PROTO REBUILD "(" STORAGE "K\0K\6\x85K\1\x85\x89" DICT "K\1tR.")},
};

static void refuse_all(const pickle_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const archive a = archive_of(cases[i].pickle, cases[i].bytes);
        assert_err(cases[i].code, cases[i].part, parse_archive(&a));
    }
}

static void test_refuses_names(void **state)
{
    (void)state;
    refuse_all(NAMES, CF_COUNT(NAMES));
}

static void test_refuses_opcodes(void **state)
{
    (void)state;
    refuse_all(OPCODES, CF_COUNT(OPCODES));
}

static void test_refuses_objects(void **state)
{
    (void)state;
    refuse_all(OBJECTS, CF_COUNT(OBJECTS));
}

static void test_refuses_storages(void **state)
{
    (void)state;
    refuse_all(STORAGES, CF_COUNT(STORAGES));
}

static void test_refuses_tensors(void **state)
{
    (void)state;
    refuse_all(TENSORS, CF_COUNT(TENSORS));
}

/* Pickles that grow: each limit is reached by repetition. */
static void refuse_repeated(cf_err code, const char *part, const char *once, size_t once_bytes, int times)
{
    byte_buf b = {0};
    byte_buf_add_text(&b, PROTO);
    for (int i = 0; i < times; i++)
        byte_buf_add(&b, once, once_bytes);
    byte_buf_add_text(&b, ".");
    assert_ok(byte_buf_check(&b));
    const archive a = archive_of(b.data, b.bytes);
    assert_err(code, part, parse_archive(&a));
    byte_buf_done(&b);
}

static void test_refuses_growth(void **state)
{
    (void)state;
    refuse_repeated(CF_ERR_LIMIT, "more than 1000 nested marks", P("("), 1001);
    refuse_repeated(CF_ERR_LIMIT, "more than 100000 values on the stack", P("N"), 100001);
}

static void test_refuses_nesting(void **state)
{
    (void)state;
    byte_buf b = {0};
    byte_buf_add_text(&b, PROTO ")");
    for (int i = 0; i < 32; i++)
        byte_buf_add_u8(&b, 0x85);
    byte_buf_add_text(&b, ".");
    archive a = archive_of(b.data, b.bytes);
    assert_err(CF_ERR_LIMIT, "nested deeper than 32", parse_archive(&a));
    byte_buf_done(&b);
    /* A dict that is put into itself does not send anyone round in circles. */
    a = archive_of(P(PROTO "}q\0X\1\0\0\0ah\0s."));
    assert_err(CF_ERR_INVALID, "a dict in a dict", parse_archive(&a));
}

/* ---- archives that lie ---- */

static void test_refuses_records(void **state)
{
    (void)state;
    archive a = good_archive();
    a.records[1].method = 8;
    assert_err(CF_ERR_UNSUPPORTED, "record m/data/0: compressed with method 8", parse_archive(&a));
    a = good_archive();
    a.records[1].flags = 1;
    assert_err(CF_ERR_UNSUPPORTED, "encrypted", parse_archive(&a));
    a = good_archive();
    a.records[2] = a.records[1];
    a.count = 3;
    assert_err(CF_ERR_INVALID, "record data/0 appears twice", parse_archive(&a));
    a = good_archive();
    a.records[1].name = "m/data/9";
    assert_err(CF_ERR_NOTFOUND, "record data/0 is missing", parse_archive(&a));
    a = good_archive();
    a.records[1].local_name = "m/data/1";
    assert_err(CF_ERR_CORRUPT, "has another name", parse_archive(&a));
    a = good_archive();
    a.records[0].claimed_bytes = (uint32_t)sizeof GOOD_PICKLE - 1 + 40;
    assert_err(CF_ERR_CORRUPT, "overlap", parse_archive(&a));
    a = good_archive();
    a.records[1].claimed_bytes = 25;
    assert_err(CF_ERR_CORRUPT, "reach into the directory", parse_archive(&a));
    a = good_archive();
    a.records[1].claimed_bytes = 0xFFFFFFFFu;
    assert_err(CF_ERR_CORRUPT, "zip64 value missing", parse_archive(&a));
}

static void test_refuses_record_names(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *part;
        const char *name;
    } CASES[] = {
        {CF_ERR_INVALID, "outside of the archive's root", "n/data/0"},
        {CF_ERR_INVALID, "outside of the archive's root", "data"},
        {CF_ERR_INVALID, "holds \"..\"", "m/../data/0"},
        {CF_ERR_INVALID, "holds \"..\"", "m/.."},
        {CF_ERR_INVALID, "plain relative path", "/m/data/0"},
        {CF_ERR_INVALID, "plain relative path", "m\\data\\0"},
        {CF_ERR_LIMIT, "record name of 0 bytes", ""},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        archive a = good_archive();
        a.records[1].name = CASES[i].name;
        assert_err(CASES[i].code, CASES[i].part, parse_archive(&a));
    }
    archive a = good_archive();
    a.records[0].name = "data.pkl";
    assert_err(CF_ERR_INVALID, "record outside of a folder", parse_archive(&a));
}

static void test_refuses_other_archives(void **state)
{
    (void)state;
    archive a = good_archive();
    a.records[a.count++] = (record){.name = "m/constants.pkl", .data = "x", .bytes = 1};
    assert_err(CF_ERR_UNSUPPORTED, "TorchScript", parse_archive(&a));
    a.records[2].name = "m/code/__torch__.py";
    assert_err(CF_ERR_UNSUPPORTED, "TorchScript", parse_archive(&a));
    a.records[2] = (record){.name = "m/byteorder", .data = "big", .bytes = 3};
    assert_err(CF_ERR_UNSUPPORTED, "byteorder", parse_archive(&a));
    a.records[2] = (record){.name = "m/version", .data = "11\n", .bytes = 3};
    assert_err(CF_ERR_UNSUPPORTED, "version", parse_archive(&a));
    a.records[2] = (record){.name = "m/version", .data = "0\n", .bytes = 2};
    assert_err(CF_ERR_UNSUPPORTED, "version", parse_archive(&a));
    a = good_archive();
    a.records[0].name = "m/other.pkl";
    assert_err(CF_ERR_INVALID, "without data.pkl", parse_archive(&a));
}

/* Every prefix of a file is refused, and no single changed byte makes the reader misbehave. */
static void test_truncation_and_flips(void **state)
{
    (void)state;
    byte_buf zip;
    const archive a = good_archive();
    build(&a, &zip);
    for (size_t bytes = 0; bytes < zip.bytes; bytes++) {
        tensor_table *table = NULL;
        assert_true(parse_copy(zip.data, bytes, &table) != CF_OK);
    }
    for (size_t i = 0; i < zip.bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            tensor_table *table = NULL;
            zip.data[i] ^= (unsigned char)(1 << bit);
            if (pt_parse(zip.data, zip.bytes, &table) == CF_OK) {
                for (size_t t = 0; t < tensor_table_count(table); t++) {
                    char hex[SHA256_HEX_BYTES];
                    assert_ok(entry_sha256(tensor_table_at(table, t), hex));
                }
                tensor_table_close(table);
            }
            zip.data[i] ^= (unsigned char)(1 << bit);
        }
    byte_buf_done(&zip);
}

static void patch(byte_buf *b, const char *signature, size_t off, unsigned value)
{
    unsigned char *p = memmem(b->data, b->bytes, signature, 4);
    assert_non_null(p);
    p[off] = (unsigned char)value;
}

static void test_refuses_end_records(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *part;
        size_t off;
        unsigned value;
    } CASES[] = {
        {CF_ERR_UNSUPPORTED, "several disks", 4, 1}, {CF_ERR_UNSUPPORTED, "several disks", 8, 9},
        {CF_ERR_CORRUPT, "reaches beyond", 14, 1},   {CF_ERR_CORRUPT, "reaches beyond", 18, 1},
        {CF_ERR_CORRUPT, "is broken", 16, 0},        {CF_ERR_CORRUPT, "truncated", 20, 1},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        byte_buf zip;
        tensor_table *table = NULL;
        const archive a = good_archive();
        build(&a, &zip);
        patch(&zip, "PK\5\6", CASES[i].off, CASES[i].value);
        if (CASES[i].off == 16) /* offset 0: the first local header instead of the directory */
            patch(&zip, "PK\5\6", 17, 0);
        assert_err(CASES[i].code, CASES[i].part, parse_copy(zip.data, zip.bytes, &table));
        byte_buf_done(&zip);
    }
}

static void test_writer_round_trip(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    pt_writer *w;
    tensor_file *f;
    snprintf(path, sizeof path, "%s/round.trip.pt", test_temp_dir());
    assert_ok(pt_create(path, &w));
    assert_ok(pt_declare(w, "a", 2, (int64_t[]){2, 3}));
    assert_ok(pt_declare(w, "none", 1, (int64_t[]){0}));
    assert_ok(pt_declare(w, "scalar", 0, NULL));
    assert_ok(pt_declare(w, "five", 5, (int64_t[]){1, 2, 1, 3, 1}));
    assert_ok(pt_declare_alias(w, "tied", "a"));
    assert_err(CF_ERR_INVALID, "no tensor b", pt_declare_alias(w, "x", "b"));
    assert_ok(pt_begin(w));
    assert_ok(pt_append(w, SIX, 24));
    assert_ok(pt_append(w, SIX, 4));
    assert_err(CF_ERR_INVALID, "data of tensor five is missing", pt_finish(w));
    assert_ok(pt_append(w, SIX, 10)); /* in pieces */
    assert_ok(pt_append(w, (const char *)SIX + 10, 14));
    assert_err(CF_ERR_INVALID, "more data than declared", pt_append(w, SIX, 1));
    assert_false(io_exists(path));
    assert_ok(pt_finish(w));
    pt_close(w);
    assert_ok(tensor_file_open(path, &f));
    assert_ok(tensor_file_verify(f));
    assert_int_equal(tensor_file_count(f), 5);
    assert_ptr_equal(tensor_file_find(f, "tied")->data, tensor_file_find(f, "a")->data);
    assert_int_equal((uintptr_t)tensor_file_find(f, "five")->data % 64, 0);
    assert_memory_equal(tensor_file_find(f, "five")->data, SIX, 24);
    assert_int_equal(tensor_file_find(f, "scalar")->rank, 0);
    tensor_file_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_every_file),     cmocka_unit_test(test_reads_a_handmade_archive),
        cmocka_unit_test(test_refuses_names),        cmocka_unit_test(test_refuses_opcodes),
        cmocka_unit_test(test_refuses_objects),      cmocka_unit_test(test_refuses_storages),
        cmocka_unit_test(test_refuses_tensors),      cmocka_unit_test(test_refuses_growth),
        cmocka_unit_test(test_refuses_nesting),      cmocka_unit_test(test_refuses_records),
        cmocka_unit_test(test_refuses_record_names), cmocka_unit_test(test_refuses_other_archives),
        cmocka_unit_test(test_truncation_and_flips), cmocka_unit_test(test_refuses_end_records),
        cmocka_unit_test(test_writer_round_trip),
    };
    return cmocka_run_group_tests_name("pt", tests, NULL, NULL);
}
