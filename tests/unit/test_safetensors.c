/* test_safetensors.c - the safetensors format: what its rules forbid is refused with its reason, whatever reads it
 * otherwise; what the writer writes is read back; mostly refusals. */
#define _GNU_SOURCE
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/check.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/safetensors.h"
#include "common/model/tensor_file.h"

/* A file of this header and so many bytes of data, counted from 0. */
static void build(byte_buf *b, const char *header, size_t header_bytes, size_t data_bytes)
{
    *b = (byte_buf){0};
    byte_buf_add_u64(b, header_bytes);
    byte_buf_add(b, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        byte_buf_add_u8(b, (unsigned)i & 0xFFu);
    assert_ok(byte_buf_check(b));
}

/* Parses an exact-size copy, so that a sanitizer sees any read beyond the end. The copy lives until the next call. */
static cf_err parse_copy(const void *data, size_t bytes, tensor_table **ret_table)
{
    static unsigned char *copy;
    free(copy);
    copy = malloc(bytes ? bytes : 1);
    assert_non_null(copy);
    if (bytes)
        memcpy(copy, data, bytes);
    return safetensors_parse(copy, bytes, ret_table);
}

static cf_err parse(const char *header, size_t data_bytes, tensor_table **ret_table)
{
    byte_buf b;
    build(&b, header, strlen(header), data_bytes);
    const cf_err err = parse_copy(b.data, b.bytes, ret_table);
    byte_buf_done(&b);
    return err;
}

/* One tensor's member. */
#define T(name, type, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end "]}"
#define GOOD T("a", "F32", "2,3", "0", "24")

/* ---- what is read ---- */

static void test_reads_every_type(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        entry_dtype type;
    } TYPES[] = {
        {"F32", ENTRY_F32}, {"F64", ENTRY_F64}, {"F16", ENTRY_F16}, {"BF16", ENTRY_BF16}, {"I64", ENTRY_I64},
        {"I32", ENTRY_I32}, {"I16", ENTRY_I16}, {"I8", ENTRY_I8},   {"U8", ENTRY_U8},     {"BOOL", ENTRY_BOOL},
    };
    for (size_t i = 0; i < CF_COUNT(TYPES); i++) {
        char header[256];
        tensor_table *table;
        const size_t bytes = 6 * entry_dtype_bytes(TYPES[i].type);
        snprintf(header, sizeof header, "{\"x\":{\"dtype\":\"%s\",\"shape\":[3,2],\"data_offsets\":[0,%zu]}}",
                 TYPES[i].text, bytes);
        assert_ok(parse(header, bytes, &table));
        const tensor_entry *e = tensor_table_find(table, "x");
        assert_non_null(e);
        assert_int_equal(e->type, TYPES[i].type);
        assert_int_equal(entry_bytes(e), bytes);
        assert_true(e->contiguous && e->rank == 2 && e->shape[0] == 3 && e->shape[1] == 2);
        assert_true(e->strides[0] == 2 && e->strides[1] == 1);
        assert_int_equal(e->data[0], 0);
        assert_int_equal(e->data[bytes - 1], bytes - 1);
        tensor_table_close(table);
    }
}

static void test_reads_values(void **state)
{
    (void)state;
    /* f16: 1, -2, smallest subnormal, infinity; bf16: 1, -2, NaN; i8 -1; bool 2 (any byte but 0 is true) */
    static const unsigned char DATA[] = {0x00, 0x3C, 0x00, 0xC0, 0x01, 0x00, 0x00, 0x7C, 0x80, 0x3F, 0x00,
                                         0xC0, 0xC1, 0x7F, 0xFF, 2,    1,    0,    0,    0,    0,    0x80};
    const char *header = "{" T("h", "F16", "4", "0", "8") "," T("b", "BF16", "3", "8", "14") "," T(
        "i", "I8", "1", "14", "15") "," T("t", "BOOL", "1", "15", "16") "," T("n", "I16", "3", "16", "22") "}";
    byte_buf file = {0};
    tensor_table *table;
    float f[4];
    double d[4];
    int32_t i32[3];
    byte_buf_add_u64(&file, strlen(header));
    byte_buf_add_text(&file, header);
    byte_buf_add(&file, DATA, sizeof DATA);
    assert_ok(parse_copy(file.data, file.bytes, &table));
    assert_ok(entry_read_f32(tensor_table_find(table, "h"), f, 4));
    assert_true(f[0] == 1 && f[1] == -2 && f[2] == 0x1p-24f && isinf(f[3]));
    assert_err(CF_ERR_NUMERIC, "tensor h: value 3", entry_check_finite(tensor_table_find(table, "h")));
    assert_ok(entry_read_f64(tensor_table_find(table, "b"), d, 3));
    assert_true(d[0] == 1 && d[1] == -2 && isnan(d[2]));
    assert_ok(entry_read_i32(tensor_table_find(table, "i"), i32, 1));
    assert_int_equal(i32[0], -1);
    assert_ok(entry_read_i32(tensor_table_find(table, "t"), i32, 1));
    assert_int_equal(i32[0], 1);
    assert_ok(entry_read_i32(tensor_table_find(table, "n"), i32, 3));
    assert_true(i32[0] == 1 && i32[1] == 0 && i32[2] == -32768);
    assert_err(CF_ERR_MISMATCH, "tensor h: expected integers, found f16",
               entry_read_i32(tensor_table_find(table, "h"), i32, 4));
    assert_err(CF_ERR_MISMATCH, "expected 2 values, found 3", entry_read_i32(tensor_table_find(table, "n"), i32, 2));
    tensor_table_close(table);
    byte_buf_done(&file);
}

static void test_reads_unusual_files(void **state)
{
    (void)state;
    tensor_table *table;
    assert_ok(parse("{}", 0, &table));
    assert_int_equal(tensor_table_count(table), 0);
    tensor_table_close(table);
    /* White space, padding, any order of members, unaligned data, scalars, empty tensors, a name of other letters. */
    const char *header = "{ \"__metadata__\" : {\"format\":\"pt\", \"text\":\"a\\nb \\u00e9\"},\n" T(
        "late", "F32", "", "5", "9") " , " T("early", "U8", "5", "0", "5") "," T("none", "F64", "3,0,7", "9",
                                                                                 "9") "," T("\xe4\xb8\xad", "I8",
                                                                                            "1,1,1,1,1,1,1,1", "9",
                                                                                            "10") "}       ";
    assert_ok(parse(header, 10, &table));
    assert_int_equal(tensor_table_count(table), 4);
    assert_string_equal(tensor_table_at(table, 0)->name, "late"); /* the file's order */
    assert_string_equal(tensor_table_text(table, "format"), "pt");
    assert_string_equal(tensor_table_text(table, "text"), "a\nb \xc3\xa9");
    assert_null(tensor_table_text(table, "author"));
    float value;
    uint32_t bits;
    assert_ok(entry_read_f32(tensor_table_find(table, "late"), &value, 1));
    memcpy(&bits, &value, sizeof bits);
    assert_int_equal(bits, 0x08070605);
    const tensor_entry *none = tensor_table_find(table, "none");
    assert_int_equal(entry_count(none), 0);
    assert_ok(entry_read_f32(none, NULL, 0));
    assert_ok(entry_check_finite(none));
    assert_int_equal(tensor_table_find(table, "\xe4\xb8\xad")->rank, 8);
    tensor_table_close(table);
}

/* ---- what is refused ---- */

typedef struct refusal {
    cf_err code;
    const char *part, *header;
    size_t data_bytes;
} refusal;

static void refuse_all(const refusal *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        tensor_table *table = NULL;
        assert_err(cases[i].code, cases[i].part, parse(cases[i].header, cases[i].data_bytes, &table));
        assert_null(table);
    }
}

static void test_refuses_layouts(void **state)
{
    (void)state;
    static const refusal CASES[] = {
        {CF_ERR_CORRUPT, "tensor a: data_offsets [0, 24] outside of 23 bytes", "{" GOOD "}", 23},
        {CF_ERR_CORRUPT, "expected 24 bytes of tensor data, found 25", "{" GOOD "}", 25},
        {CF_ERR_CORRUPT, "expected 0 bytes of tensor data, found 1", "{}", 1},
        {CF_ERR_CORRUPT, "tensor a: expected 24 bytes for its shape, found 20", "{" T("a", "F32", "2,3", "0", "20") "}",
         20},
        {CF_ERR_CORRUPT, "tensor a: expected 4 bytes for its shape, found 0", "{" T("a", "F32", "", "0", "0") "}", 0},
        {CF_ERR_CORRUPT, "tensor a: data_offsets [8, 4]", "{" T("a", "F32", "1", "8", "4") "}", 8},
        {CF_ERR_CORRUPT, "tensor b: hole before it: expected its data at 4, found 5",
         "{" T("a", "F32", "1", "0", "4") "," T("b", "F32", "1", "5", "9") "}", 9},
        {CF_ERR_CORRUPT, "tensor a: hole before it: expected its data at 0, found 4",
         "{" T("a", "F32", "1", "4", "8") "}", 8},
        {CF_ERR_CORRUPT, "tensor b: overlap: expected its data at 4, found 3",
         "{" T("a", "F32", "1", "0", "4") "," T("b", "F32", "1", "3", "7") "}", 7},
        {CF_ERR_CORRUPT, "overlap: expected its data at 4, found 0",
         "{" T("a", "F32", "1", "0", "4") "," T("b", "F32", "1", "0", "4") "}", 4},
        {CF_ERR_CORRUPT, "tensor b: overlap", /* nothing may lie inside another tensor, even nothing */
         "{" T("a", "F32", "2", "0", "8") "," T("b", "F32", "0", "4", "4") "}", 8},
        {CF_ERR_INVALID, "\"a\" appears twice", "{" GOOD "," GOOD "}", 24},
        {CF_ERR_INVALID, "\"dtype\" appears twice",
         "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4},
    };
    refuse_all(CASES, CF_COUNT(CASES));
}

static void test_refuses_tensors(void **state)
{
    (void)state;
    static const refusal CASES[] = {
        {CF_ERR_INVALID, "tensor a: \"shape\" is missing", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4},
        {CF_ERR_INVALID, "tensor a: \"dtype\" is missing", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
        {CF_ERR_INVALID, "tensor a: \"data_offsets\" is missing", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4},
        {CF_ERR_INVALID, "tensor: a: key \"strides\" is not known",
         "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"strides\":[1],\"data_offsets\":[0,4]}}", 4},
        {CF_ERR_INVALID, "tensor a: expected an object", "{\"a\":[]}", 0},
        {CF_ERR_INVALID, "tensor a: expected an object", "{\"a\":\"F32\"}", 0},
        {CF_ERR_UNSUPPORTED, "tensor a: element type F8_E4M3 is not supported",
         "{" T("a", "F8_E4M3", "4", "0", "4") "}", 4},
        {CF_ERR_UNSUPPORTED, "tensor a: element type f32", "{" T("a", "f32", "1", "0", "4") "}", 4},
        {CF_ERR_UNSUPPORTED, "tensor a: element type ", "{" T("a", "", "1", "0", "4") "}", 4},
        {CF_ERR_INVALID, "tensor a: dtype: expected a string",
         "{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
        {CF_ERR_INVALID, "tensor a: shape: expected an array",
         "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4},
        {CF_ERR_INVALID, "tensor a: shape: expected integers", "{" T("a", "F32", "\"1\"", "0", "4") "}", 4},
        {CF_ERR_INVALID, "tensor a: shape: expected integers", "{" T("a", "F32", "[1]", "0", "4") "}", 4},
        {CF_ERR_UNSUPPORTED, "tensor a: rank 9, at most 8", "{" T("a", "U8", "1,1,1,1,1,1,1,1,1", "0", "1") "}", 1},
        {CF_ERR_INVALID, "tensor a: data_offsets: expected two integers",
         "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4},
        {CF_ERR_INVALID, "tensor a: data_offsets: expected two integers",
         "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4},
        {CF_ERR_INVALID, "tensor a: data_offsets: expected two integers",
         "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{\"begin\":0,\"end\":4}}}", 4},
    };
    refuse_all(CASES, CF_COUNT(CASES));
}

static void test_refuses_numbers(void **state)
{
    (void)state;
    static const refusal CASES[] = {
        {CF_ERR_INVALID, "non-negative integers", "{" T("a", "F32", "1.0", "0", "4") "}", 4},
        {CF_ERR_INVALID, "non-negative integers", "{" T("a", "F32", "1e0", "0", "4") "}", 4},
        {CF_ERR_INVALID, "non-negative integers", "{" T("a", "F32", "-1", "0", "4") "}", 4},
        {CF_ERR_INVALID, "non-negative integers", "{" T("a", "F32", "-0", "0", "0") "}", 0},
        {CF_ERR_INVALID, "non-negative integers", "{" T("a", "F32", "true", "0", "4") "}", 4},
        {CF_ERR_INVALID, "non-negative integers", "{" T("a", "F32", "null", "0", "4") "}", 4},
        {CF_ERR_INVALID, "leading zero", "{" T("a", "F32", "01", "0", "4") "}", 4},
        {CF_ERR_INVALID, "leading zero", "{" T("a", "F32", "1", "00", "4") "}", 4},
        {CF_ERR_INVALID, "product of sizes overflows", "{" T("a", "U8", "4294967296,4294967296", "0", "0") "}", 0},
        {CF_ERR_INVALID, "product of sizes overflows", /* also when a zero hides it */
         "{" T("a", "U8", "0,4294967296,4294967296", "0", "0") "}", 0},
        {CF_ERR_INVALID, "product of sizes overflows", "{" T("a", "F64", "9007199254740992,256", "0", "0") "}", 0},
        {CF_ERR_INVALID, "tensor a: shape: expected", "{" T("a", "U8", "9007199254740993000", "0", "0") "}", 0},
        {CF_ERR_INVALID, "tensor a: shape: expected", "{" T("a", "U8", "18446744073709551617", "0", "1") "}", 1},
        {CF_ERR_INVALID, "tensor a: data_offsets: expected",
         "{" T("a", "U8", "4", "18446744073709551616", "18446744073709551620") "}", 4},
        {CF_ERR_CORRUPT, "outside of 4 bytes", "{" T("a", "U8", "4", "9007199254740988", "9007199254740992") "}", 4},
        {CF_ERR_CORRUPT, "expected 9007199254740992 bytes for its shape",
         "{" T("a", "U8", "9007199254740992", "0", "4") "}", 4},
    };
    refuse_all(CASES, CF_COUNT(CASES));
}

static void test_refuses_headers(void **state)
{
    (void)state;
    static const refusal CASES[] = {
        {CF_ERR_INVALID, "does not begin with '{'", "", 0},
        {CF_ERR_INVALID, "does not begin with '{'", "", 8},
        {CF_ERR_INVALID, "does not begin with '{'", " {}", 0},
        {CF_ERR_INVALID, "does not begin with '{'", "[]", 0},
        {CF_ERR_INVALID, "syntax error", "{", 0},
        {CF_ERR_INVALID, "syntax error", "{" GOOD, 24},
        {CF_ERR_INVALID, "syntax error", "{" GOOD ",}", 24},
        {CF_ERR_INVALID, "after the value", "{}{}", 0},
        {CF_ERR_INVALID, "header byte 2", "{}\v", 0},
        {CF_ERR_INVALID, "UTF-8", "{\"\xff\":{}}", 0},
        {CF_ERR_INVALID, "NUL character", "{\"\\u0000\":{}}", 0},
        {CF_ERR_INVALID, "syntax error", "{\"\\ud800\":{}}", 0},
        {CF_ERR_INVALID, "nested deeper than 4", "{\"a\":{\"b\":{\"c\":{\"d\":{}}}}}", 0},
        {CF_ERR_INVALID, "__metadata__: expected an object of strings", "{\"__metadata__\":[]}", 0},
        {CF_ERR_INVALID, "__metadata__: key \"n\": expected a string", "{\"__metadata__\":{\"n\":5}}", 0},
        {CF_ERR_INVALID, "__metadata__: key \"n\": expected a string", "{\"__metadata__\":{\"n\":{}}}", 0},
        {CF_ERR_INVALID, "\"n\" appears twice", "{\"__metadata__\":{\"n\":\"\",\"n\":\"\"}}", 0},
        {CF_ERR_INVALID, "\"__metadata__\" appears twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0},
    };
    refuse_all(CASES, CF_COUNT(CASES));
    tensor_table *table = NULL;
    byte_buf b;
    build(&b, "{\"a\0b\":{}}", 10, 0);
    assert_err(CF_ERR_INVALID, "NUL", parse_copy(b.data, b.bytes, &table));
    byte_buf_done(&b);
}

/* The first eight bytes against the file's length. */
static void test_refuses_lengths(void **state)
{
    (void)state;
    static const struct {
        cf_err code;
        const char *part;
        uint64_t header_bytes;
        size_t bytes; /* of the file */
    } CASES[] = {
        {CF_ERR_CORRUPT, "0 bytes are too few", 0, 0},
        {CF_ERR_CORRUPT, "7 bytes are too few", 2, 7},
        {CF_ERR_CORRUPT, "truncated: header of 2 bytes in a file of 8", 2, 8},
        {CF_ERR_CORRUPT, "truncated: header of 3 bytes in a file of 10", 3, 10},
        {CF_ERR_CORRUPT, "truncated: header of 100000000 bytes", 100000000, 10},
        {CF_ERR_LIMIT, "header of 100000001 bytes, at most 100000000", 100000001, 10},
        {CF_ERR_LIMIT, "at most 100000000", UINT64_MAX, 10},
        {CF_ERR_LIMIT, "at most 100000000", UINT64_MAX - 7, 10},
        {CF_ERR_INVALID, "does not begin with '{'", 0, 10},
    };
    for (size_t i = 0; i < CF_COUNT(CASES); i++) {
        byte_buf b = {0};
        tensor_table *table = NULL;
        byte_buf_add_u64(&b, CASES[i].header_bytes);
        byte_buf_add_text(&b, "{}");
        assert_err(CASES[i].code, CASES[i].part, parse_copy(b.data, CASES[i].bytes, &table));
        assert_null(table);
        byte_buf_done(&b);
    }
}

static void test_refuses_growth(void **state)
{
    (void)state;
    byte_buf header = {0}, file;
    tensor_table *table = NULL;
    byte_buf_add_u8(&header, '{');
    for (int i = 0; i <= 65536; i++)
        byte_buf_printf(&header, "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "", i);
    byte_buf_add_u8(&header, '}');
    build(&file, (const char *)header.data, header.bytes, 0);
    assert_err(CF_ERR_LIMIT, "65537 tensors, at most 65536", parse_copy(file.data, file.bytes, &table));
    byte_buf_done(&file);
    byte_buf_done(&header);
    byte_buf_add_text(&header, "{\"");
    for (int i = 0; i < 4097; i++)
        byte_buf_add_u8(&header, 'n');
    byte_buf_add_text(&header, "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    build(&file, (const char *)header.data, header.bytes, 0);
    assert_err(CF_ERR_LIMIT, "tensor name of 4097 bytes", parse_copy(file.data, file.bytes, &table));
    byte_buf_done(&file);
    byte_buf_done(&header);
    byte_buf_add_text(&header, "{\"a\":[");
    for (int i = 0; i <= 2000000; i++)
        byte_buf_add_text(&header, "0,");
    byte_buf_add_text(&header, "0]}");
    build(&file, (const char *)header.data, header.bytes, 0);
    assert_err(CF_ERR_LIMIT, "header holds more than 2000000 values", parse_copy(file.data, file.bytes, &table));
    assert_null(table);
    byte_buf_done(&file);
    byte_buf_done(&header);
}

/* A stranger's names end in messages: one line, whatever they hold. */
static void test_names_cannot_forge_a_line(void **state)
{
    (void)state;
    tensor_table *table = NULL;
    assert_err(CF_ERR_UNSUPPORTED, "tensor a?ok tensor b?[2J: element type X?Y is not supported",
               parse("{" T("a\\nok tensor b\\u001b[2J", "X\\nY", "1", "0", "1") "}", 1, &table));
    assert_null(strchr(err_text(), '\n'));
}

/* Every prefix of a file is refused, and no single changed bit makes the reader misbehave. */
static void test_truncation_and_flips(void **state)
{
    (void)state;
    byte_buf b;
    const char *header =
        "{\"__metadata__\":{\"k\":\"v\"}," T("a", "F32", "2,3", "0", "24") "," T("b", "I64", "", "24", "32") "}  ";
    build(&b, header, strlen(header), 32);
    for (size_t bytes = 0; bytes < b.bytes; bytes++) {
        tensor_table *table = NULL;
        assert_true(parse_copy(b.data, bytes, &table) != CF_OK);
    }
    for (size_t i = 0; i < b.bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            tensor_table *table = NULL;
            b.data[i] ^= (unsigned char)(1 << bit);
            if (parse_copy(b.data, b.bytes, &table) == CF_OK) {
                size_t bytes = 0;
                for (size_t t = 0; t < tensor_table_count(table); t++) {
                    char hex[SHA256_HEX_BYTES];
                    assert_ok(entry_sha256(tensor_table_at(table, t), hex));
                    bytes += entry_bytes(tensor_table_at(table, t));
                }
                assert_int_equal(bytes, 32);
                tensor_table_close(table);
            }
            b.data[i] ^= (unsigned char)(1 << bit);
        }
    byte_buf_done(&b);
}

/* ---- the writer ---- */

static void test_writer_round_trip(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES], other[IO_PATH_BYTES];
    const float floats[6] = {1, -2, 3, 0.5f, 0, 7};
    const int32_t ints[1] = {-5};
    const safetensors_item items[] = {
        {"odd", ENTRY_U8, 1, {3}, "abc"},
        {"w\xc3\xa9ight \"q\"\\\n", ENTRY_F32, 2, {2, 3}, floats},
        {"scalar", ENTRY_I32, 0, {0}, ints},
        {"none", ENTRY_F32, 2, {0, 4}, NULL},
    };
    const table_text texts[] = {{"prompt_text", "line\nnext \xf0\x9f\x99\x82"}, {"empty", ""}};
    tensor_file *f;
    io_map map, again;
    snprintf(path, sizeof path, "%s/a.safetensors", test_temp_dir());
    snprintf(other, sizeof other, "%s/b.safetensors", test_temp_dir());
    assert_ok(safetensors_write(path, items, CF_COUNT(items), texts, CF_COUNT(texts)));
    assert_ok(safetensors_write(other, items, CF_COUNT(items), texts, CF_COUNT(texts)));
    assert_ok(io_map_file(path, &map));
    assert_ok(io_map_file(other, &again));
    assert_int_equal(map.data_bytes, again.data_bytes); /* the same calls, the same bytes */
    assert_memory_equal(map.data, again.data, map.data_bytes);
    assert_int_equal(map.data[0] % 8, 0); /* the data begins at a multiple of 8 */
    io_unmap(&map);
    io_unmap(&again);
    assert_ok(tensor_file_open(path, &f));
    assert_int_equal(tensor_file_format(f), TENSOR_FORMAT_SAFETENSORS);
    assert_int_equal(tensor_file_count(f), 4);
    for (size_t i = 0; i < CF_COUNT(items); i++) {
        const tensor_entry *e = tensor_file_at(f, i);
        assert_string_equal(e->name, items[i].name);
        assert_int_equal(e->type, items[i].type);
        assert_int_equal(e->rank, items[i].rank);
        if (entry_bytes(e) > 0)
            assert_memory_equal(e->data, items[i].data, entry_bytes(e));
    }
    assert_string_equal(tensor_file_text(f, "prompt_text"), texts[0].value);
    assert_string_equal(tensor_file_text(f, "empty"), "");
    tensor_file_close(f);
}

static void test_writer_counts(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    safetensors_writer *w;
    snprintf(path, sizeof path, "%s/a.safetensors", test_temp_dir());
    assert_ok(safetensors_create(path, &w));
    assert_ok(safetensors_declare(w, "a", ENTRY_F32, 1, (int64_t[]){2}));
    assert_err(CF_ERR_INVALID, "expected 8 bytes of data, found 0", safetensors_finish(w)); /* not even begun */
    assert_ok(safetensors_begin(w));
    assert_ok(safetensors_append(w, "1234567", 7));
    assert_err(CF_ERR_INVALID, "expected 8 bytes of data, found 7", safetensors_finish(w));
    assert_err(CF_ERR_INVALID, "more data than the declared 8 bytes", safetensors_append(w, "89", 2));
    assert_false(io_exists(path));
    safetensors_close(w); /* and nothing is left of it */
    char *names;
    size_t count;
    assert_err(CF_ERR_NOTFOUND, "no such file", io_read_file(path, 100, &names, &count));
    assert_err(CF_ERR_SYS, "create", safetensors_create("/nonexistent/a.safetensors", &w));
    char longer[IO_PATH_BYTES + 8];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_err(CF_ERR_LIMIT, "path longer than 4096 bytes", safetensors_create(longer, &w));
    safetensors_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_every_type),    cmocka_unit_test(test_reads_values),
        cmocka_unit_test(test_reads_unusual_files), cmocka_unit_test(test_refuses_layouts),
        cmocka_unit_test(test_refuses_tensors),     cmocka_unit_test(test_refuses_numbers),
        cmocka_unit_test(test_refuses_headers),     cmocka_unit_test(test_refuses_lengths),
        cmocka_unit_test(test_refuses_growth),      cmocka_unit_test(test_names_cannot_forge_a_line),
        cmocka_unit_test(test_writer_round_trip),   cmocka_unit_test(test_truncation_and_flips),
        cmocka_unit_test(test_writer_counts),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
