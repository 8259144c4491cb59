/*
 * test_onnx.c - ONNX files: what the writer writes is read back; the upstream-like networks; hostile bytes, each
 * refused with one line that says where.
 */
#include "tests/harness/test.h"

#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/model/byte_buf.h"
#include "common/model/onnx.h"
#include "common/model/onnx_write.h"

/* ---- bytes by hand ---- */

static void varint(byte_buf *b, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        byte_buf_add_u8(b, (unsigned)(value & 0x7F) | 0x80u);
    byte_buf_add_u8(b, (unsigned)value);
}

static void bytes_field(byte_buf *b, unsigned number, const void *data, size_t bytes)
{
    varint(b, number << 3 | 2);
    varint(b, bytes);
    byte_buf_add(b, data, bytes);
}

static void text_field(byte_buf *b, unsigned number, const char *text)
{
    bytes_field(b, number, text, strlen(text));
}

static void int_field(byte_buf *b, unsigned number, uint64_t value)
{
    varint(b, number << 3);
    varint(b, value);
}

/* Moves `part` into b as field `number`. */
static void nest(byte_buf *b, unsigned number, byte_buf *part)
{
    bytes_field(b, number, part->data, part->bytes);
    byte_buf_done(part);
}

/* A model whose graph has this field. */
static cf_err parse_graph_field(unsigned number, byte_buf *part, onnx **ret_file)
{
    static byte_buf model; /* outlives the object, as onnx_parse asks */
    byte_buf graph = {0};
    byte_buf_done(&model);
    model = (byte_buf){0};
    nest(&graph, number, part);
    nest(&model, 7, &graph);
    assert_ok(byte_buf_check(&model));
    return onnx_parse("x.onnx", model.data, model.bytes, ret_file);
}

static cf_err parse_tensor(byte_buf *tensor)
{
    onnx *o = NULL;
    const cf_err err = parse_graph_field(5, tensor, &o);
    onnx_close(o);
    return err;
}

/* A good one: f32 [2], raw. */
static byte_buf good_tensor(void)
{
    byte_buf t = {0};
    int_field(&t, 1, 2);
    int_field(&t, 2, ONNX_F32);
    text_field(&t, 8, "w");
    bytes_field(&t, 9, "\0\0\x80?\0\0\0@", 8);
    return t;
}

/* ---- reading ---- */

static void test_raw_and_typed_floats(void **state)
{
    (void)state;
    onnx *o;
    byte_buf t = good_tensor();
    assert_ok(parse_graph_field(5, &t, &o));
    const onnx_tensor *w = onnx_tensor_find(o, "w");
    assert_non_null(w);
    assert_int_equal(w->count, 2);
    assert_memory_equal(w->data, "\0\0\x80?\0\0\0@", 8);
    assert_null(onnx_tensor_find(o, "v"));
    onnx_close(o);

    t = (byte_buf){0}; /* packed dims, one packed list: used where it lies */
    bytes_field(&t, 1, "\1\2", 2);
    int_field(&t, 2, ONNX_F32);
    text_field(&t, 8, "w");
    bytes_field(&t, 4, "\0\0\x80?\0\0\0@", 8);
    assert_ok(parse_graph_field(5, &t, &o));
    w = onnx_tensor_at(o, 0);
    assert_int_equal(w->rank, 2);
    assert_memory_equal(w->data, "\0\0\x80?\0\0\0@", 8);
    onnx_close(o);

    t = (byte_buf){0}; /* in pieces: put together */
    int_field(&t, 1, 3);
    int_field(&t, 2, ONNX_F32);
    text_field(&t, 8, "w");
    varint(&t, 4 << 3 | 5);
    byte_buf_add(&t, "\0\0\x80?", 4);
    bytes_field(&t, 4, "\0\0\0@\0\0@@", 8);
    assert_ok(parse_graph_field(5, &t, &o));
    assert_memory_equal(onnx_tensor_at(o, 0)->data, "\0\0\x80?\0\0\0@\0\0@@", 12);
    onnx_close(o);
}

static void test_integers_are_counted_out(void **state)
{
    (void)state;
    onnx *o;
    byte_buf t = {0};
    int_field(&t, 1, 2);
    int_field(&t, 2, ONNX_I64);
    text_field(&t, 8, "shape");
    bytes_field(&t, 7, "\1\2", 2);
    assert_ok(parse_graph_field(5, &t, &o));
    assert_null(onnx_tensor_at(o, 0)->data);
    onnx_close(o);
}

static void test_node(void **state)
{
    (void)state;
    onnx *o;
    byte_buf n = {0}, a = {0};
    text_field(&n, 1, "x");
    text_field(&n, 1, "");
    text_field(&n, 2, "y");
    text_field(&n, 3, "/conv1/Conv");
    text_field(&n, 4, "Conv");
    text_field(&a, 1, "strides");
    bytes_field(&a, 8, "\2\1", 2);
    int_field(&a, 8, 7);
    nest(&n, 5, &a);
    a = (byte_buf){0};
    text_field(&a, 1, "epsilon");
    varint(&a, 2 << 3 | 5);
    byte_buf_add(&a, "\0\0\0?", 4);
    nest(&n, 5, &a);
    a = (byte_buf){0};
    text_field(&a, 1, "axis");
    int_field(&a, 3, (uint64_t)-1);
    nest(&n, 5, &a);
    assert_ok(parse_graph_field(1, &n, &o));
    assert_int_equal(onnx_node_count(o), 1);
    const onnx_node *node = onnx_node_at(o, 0);
    assert_string_equal(node->op, "Conv");
    assert_int_equal(node->input_count, 2);
    assert_string_equal(node->inputs[1], "");
    const onnx_attribute *strides = onnx_node_attribute(node, "strides");
    assert_int_equal(strides->ints_count, 3);
    assert_int_equal(strides->ints[0], 2);
    assert_int_equal(strides->ints[2], 7);
    assert_float_equal(onnx_node_attribute(node, "epsilon")->f, 0.5f, 0);
    assert_int_equal(onnx_node_attribute(node, "axis")->i, -1);
    assert_null(onnx_node_attribute(node, "pads"));
    onnx_close(o);
}

/* ---- what is refused ---- */

static void test_broken_encoding(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t count;
        const char *text;
    } rows[] = {
        {"", 0, "x.onnx: an empty file"},
        {"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 11, "x.onnx: offset 10: a number of more than 64 bits"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 10, "offset 10: a number of more than 64 bits"},
        {"\x08", 1, "offset 1: the file ends inside a number"},
        {"\x08\x80", 2, "offset 2: the file ends inside a number"},
        {"\x00\x00", 2, "offset 0: field number 0"},
        {"\x0b", 1, "offset 0: wire type 3 of field 1, expected 0, 1, 2 or 5"},
        {"\x0c", 1, "wire type 4"},
        {"\x3a\x05\x01", 3, "offset 2: a field of 5 bytes, 1 are left of what holds it"},
        {"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, "a field of 18446744073709551615 bytes"},
        {"\x09\1\2\3", 4, "the file ends inside a number"},
        {"\x08\x08", 2, "no graph in it: not an ONNX model"},
        {"\x3a\x00\x3a\x00", 4, "a second graph"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, "a Git-LFS pointer"},
        {"<html>", 6, "a web page, not a model file"},
        {"\x3a\x04\x2a\x02\x0a\x7f", 6, "tensor at the end of the list: offset 6: a field of 127 bytes, 0 are left"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        onnx *o = NULL;
        assert_err(i == 13 || i == 14 ? CF_ERR_UNSUPPORTED : CF_ERR_INVALID, rows[i].text,
                   onnx_parse("x.onnx", (const unsigned char *)rows[i].bytes, rows[i].count, &o));
        assert_null(o);
    }
}

static void test_broken_tensors(void **state)
{
    (void)state;
    byte_buf t = good_tensor();
    int_field(&t, 1, 3);
    assert_err(CF_ERR_INVALID, "x.onnx: tensor w: 8 bytes of data, its shape needs 24", parse_tensor(&t));
    t = good_tensor();
    int_field(&t, 1, UINT64_MAX);
    assert_err(CF_ERR_INVALID, "tensor w: dimension 1 is -1", parse_tensor(&t));
    t = good_tensor();
    int_field(&t, 1, (uint64_t)1 << 40);
    int_field(&t, 1, (uint64_t)1 << 40);
    assert_err(CF_ERR_INVALID, "tensor w: its dimensions multiply to more than", parse_tensor(&t));
    t = good_tensor();
    for (int i = 0; i < 8; i++)
        int_field(&t, 1, 1);
    assert_err(CF_ERR_LIMIT, "tensor w: more than 8 dimensions", parse_tensor(&t));
    t = good_tensor();
    bytes_field(&t, 4, "\0\0\0\0\0\0\0\0", 8);
    assert_err(CF_ERR_INVALID, "tensor w: more than one list of numbers", parse_tensor(&t));
    t = good_tensor();
    bytes_field(&t, 7, "\1\2", 2);
    assert_err(CF_ERR_INVALID, "more than one list of numbers", parse_tensor(&t));
    t = good_tensor();
    int_field(&t, 2, 8);
    assert_err(CF_ERR_UNSUPPORTED, "tensor w: element type 8", parse_tensor(&t));
    t = good_tensor();
    bytes_field(&t, 6, "text", 4);
    assert_err(CF_ERR_UNSUPPORTED, "tensor w: holds texts", parse_tensor(&t));
    t = good_tensor();
    bytes_field(&t, 3, "", 0);
    assert_err(CF_ERR_UNSUPPORTED, "tensor w: stored in segments", parse_tensor(&t));
    t = (byte_buf){0};
    int_field(&t, 1, 2);
    int_field(&t, 2, ONNX_F16);
    text_field(&t, 8, "w");
    bytes_field(&t, 4, "\0\0\0\0", 4);
    assert_err(CF_ERR_INVALID, "tensor w: f32 numbers in a tensor of f16", parse_tensor(&t));
    t = (byte_buf){0};
    int_field(&t, 2, ONNX_F32);
    bytes_field(&t, 9, "\0\0\0\0", 4);
    assert_err(CF_ERR_INVALID, "has no name", parse_tensor(&t));
    t = (byte_buf){0};
    int_field(&t, 1, 2);
    int_field(&t, 2, ONNX_F32);
    text_field(&t, 8, "w");
    assert_err(CF_ERR_INVALID, "tensor w: 0 bytes of data, its shape needs 8", parse_tensor(&t));
}

static void test_external_data(void **state)
{
    (void)state;
    static const char *const places[] = {"../../etc/passwd", "/etc/passwd", "weights.bin"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        byte_buf t = {0}, entry = {0};
        int_field(&t, 1, 2);
        int_field(&t, 2, ONNX_F32);
        text_field(&t, 8, "w");
        text_field(&entry, 1, "location");
        text_field(&entry, 2, places[i]);
        nest(&t, 13, &entry);
        int_field(&t, 14, 1);
        assert_err(CF_ERR_UNSUPPORTED, "tensor w: keeps its data in another file", parse_tensor(&t));
        assert_non_null(strstr(err_text(), places[i]));
    }
    byte_buf t = {0};
    int_field(&t, 2, ONNX_F32);
    text_field(&t, 8, "w");
    int_field(&t, 14, 1);
    assert_err(CF_ERR_UNSUPPORTED, "keeps its data in another file (not named)", parse_tensor(&t));
}

static void test_names(void **state)
{
    (void)state;
    onnx *o = NULL;
    byte_buf graph = {0}, model = {0}, t = good_tensor();
    nest(&graph, 5, &t);
    t = good_tensor();
    nest(&graph, 5, &t);
    nest(&model, 7, &graph);
    assert_err(CF_ERR_INVALID, "x.onnx: two tensors of the name w", onnx_parse("x.onnx", model.data, model.bytes, &o));
    byte_buf_done(&model);

    t = (byte_buf){0};
    bytes_field(&t, 8, "a\0b", 3);
    assert_err(CF_ERR_INVALID, "a name that is not UTF-8 text", parse_tensor(&t));
    t = (byte_buf){0};
    bytes_field(&t, 8, "\xff", 1);
    assert_err(CF_ERR_INVALID, "a name that is not UTF-8 text", parse_tensor(&t));
    char name[ONNX_NAME_BYTES_MAX + 1];
    memset(name, 'n', sizeof name);
    t = (byte_buf){0};
    bytes_field(&t, 8, name, sizeof name);
    assert_err(CF_ERR_LIMIT, "a name of 513 bytes, at most 512 are read", parse_tensor(&t));
}

static void test_limits(void **state)
{
    (void)state;
    onnx *o = NULL;
    byte_buf n = {0};
    text_field(&n, 4, "Concat");
    for (int i = 0; i <= ONNX_LIST_MAX; i++)
        text_field(&n, 1, "x");
    assert_err(CF_ERR_LIMIT, "node Concat: a list of more than 1024 entries", parse_graph_field(1, &n, &o));
    byte_buf a = {0};
    n = (byte_buf){0};
    text_field(&n, 4, "Conv");
    text_field(&a, 1, "pads");
    for (int i = 0; i <= ONNX_LIST_MAX; i++)
        int_field(&a, 8, 1);
    nest(&n, 5, &a);
    assert_err(CF_ERR_LIMIT, "attribute pads: more than 1024 integers", parse_graph_field(1, &n, &o));
    byte_buf sparse = {0};
    assert_err(CF_ERR_UNSUPPORTED, "a sparse tensor", parse_graph_field(15, &sparse, &o));

    byte_buf graph = {0}, model = {0};
    for (int i = 0; i <= ONNX_NODES_MAX; i++)
        byte_buf_add(&graph, "\x0a\x00", 2);
    nest(&model, 7, &graph);
    assert_err(CF_ERR_LIMIT, "more than 65536 nodes", onnx_parse("x.onnx", model.data, model.bytes, &o));
    byte_buf_done(&model);
}

/* ---- the writer ---- */

static void test_written_is_read(void **state)
{
    (void)state;
    char path[IO_PATH_BYTES];
    onnx_writer *w;
    onnx *o;
    static const float values[] = {1, 2, 3, 4, 5, 6, 7};
    static const float ones[] = {1, 1};
    const onnx_attr attrs[] = {{.name = "strides", .ints_count = 2, .ints = {2, 1}},
                               {.name = "epsilon", .is_float = true, .f = 1e-5f},
                               {.name = "group", .i = 320}};
    assert_ok(io_join(path, sizeof path, test_temp_dir(), "w.onnx"));
    assert_ok(onnx_create(path, 17, &w));
    onnx_put_input(w, "feats", ONNX_F32);
    onnx_put_output(w, "indices", ONNX_I32);
    onnx_put_node(
        w,
        &(onnx_node_spec){
            .op = "Conv", .name = "/c/Conv", .inputs = {"feats", "a"}, .output = "y", .attrs = attrs, .attr_count = 3});
    onnx_put_constant(w, "scale", ones, 2);
    assert_ok(onnx_put_initializer(w, "a", 2, (const int64_t[]){2, 2}));
    assert_ok(onnx_put_initializer(w, "none", 1, (const int64_t[]){0}));
    assert_ok(onnx_put_initializer(w, "b", 1, (const int64_t[]){3}));
    assert_ok(onnx_begin(w));
    assert_ok(onnx_append(w, values, 5)); /* across two initializers */
    assert_err(CF_ERR_INVALID, "the values of 1 initializers are missing", onnx_finish(w));
    assert_ok(onnx_append(w, values + 5, 2));
    assert_err(CF_ERR_INVALID, "more values than were described", onnx_append(w, values, 1));
    assert_ok(onnx_finish(w));
    onnx_writer_close(w);

    assert_ok(onnx_open(path, &o));
    assert_int_equal(onnx_opset(o), 17);
    assert_int_equal(onnx_input_count(o), 1);
    assert_string_equal(onnx_input_at(o, 0)->name, "feats");
    assert_int_equal(onnx_output_at(o, 0)->elem_type, ONNX_I32);
    assert_int_equal(onnx_tensor_count(o), 4);
    assert_true(onnx_tensor_at(o, 0)->is_constant);
    assert_memory_equal(onnx_tensor_find(o, "scale")->data, ones, sizeof ones);
    assert_memory_equal(onnx_tensor_find(o, "a")->data, values, 16);
    assert_memory_equal(onnx_tensor_find(o, "b")->data, values + 4, 12);
    assert_int_equal(onnx_tensor_find(o, "none")->count, 0);
    assert_int_equal(onnx_node_attribute(onnx_node_at(o, 0), "group")->i, 320);
    assert_float_equal(onnx_node_attribute(onnx_node_at(o, 0), "epsilon")->f, 1e-5f, 0);
    onnx_close(o);
    assert_err(CF_ERR_NOTFOUND, "no such file", onnx_open("/nothing.onnx", &o));
}

/* Files made by PyTorch's exporter. */
static void test_exported_files(void **state)
{
    (void)state;
    onnx *o;
    assert_ok(onnx_open(test_shared("golden/enroll/speech_tokenizer_v3.onnx"), &o));
    assert_int_equal(onnx_opset(o), 17);
    assert_int_equal(onnx_node_count(o), 440);
    assert_int_equal(onnx_input_count(o), 2);
    assert_string_equal(onnx_output_at(o, 0)->name, "indices");
    assert_non_null(onnx_tensor_find(o, "blocks.2.attn.fsmn_block.weight"));
    const onnx_tensor *rope = onnx_tensor_find(o, "/Constant_7_output_0");
    assert_true(rope && rope->is_constant && rope->dims[0] == 2048);
    onnx_close(o);
    assert_ok(onnx_open(test_shared("golden/enroll/campplus.onnx"), &o));
    assert_int_equal(onnx_node_count(o), 3102);
    assert_non_null(onnx_tensor_find(o, "xvector.dense.nonlinear.batchnorm.running_var"));
    onnx_close(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_raw_and_typed_floats),
        cmocka_unit_test(test_integers_are_counted_out),
        cmocka_unit_test(test_node),
        cmocka_unit_test(test_broken_encoding),
        cmocka_unit_test(test_broken_tensors),
        cmocka_unit_test(test_external_data),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_written_is_read),
        cmocka_unit_test(test_exported_files),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
