/*
 * test_enroll_ops.c - the ops of enrollment and weights that stay where they are: the fast backend against the plain
 * loops, a sequence in a batch against the sequence alone, the same call twice.
 */
#include "tests/harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/compute/cpu/cpu_impl.h"
#include "common/compute/ops.h"

/* f32 sums of up to 400 products against f64 sums, of the largest result. */
#define SUM_BOUND 2e-6

static backend *naive, *fast, *dnnl;

static int open_backends(void **state)
{
    (void)state;
    const backend_config plain = {.device = "cpu", .naive = true, .scratch_bytes = (size_t)256 << 20};
    assert_ok(backend_open(&plain, &naive));
    for (int i = 0; i < 2; i++) {
        backend **be = i ? &dnnl : &fast;
        assert_ok(mem_alloc(1, sizeof **be, be));
        assert_ok(arena_open((size_t)256 << 20, &(*be)->scratch));
        assert_ok(cpu_fast_open(*be, 2, i == 1));
    }
    return 0;
}

static int close_backends(void **state)
{
    (void)state;
    backend_close(naive);
    backend_close(fast);
    backend_close(dnnl);
    return 0;
}

/* Values in [-1, 1) that depend on the key alone. */
static float *random_values(uint32_t key, int64_t count)
{
    float *x;
    assert_ok(mem_alloc((size_t)count + 1, sizeof *x, &x));
    for (int64_t i = 0; i < count; i++) {
        uint32_t words[4];
        rng_philox(key, (const uint32_t[4]){(uint32_t)i, 0, 0, 0}, words);
        x[i] = (float)words[0] / 2147483648.0f - 1.0f;
    }
    return x;
}

static tensor matrix(backend *be, int64_t rows, int64_t columns, const float *values)
{
    tensor t;
    assert_ok(backend_take_2d(be, DTYPE_F32, rows, columns, &t));
    assert_ok(values ? backend_upload(be, values, &t) : backend_zero(be, &t));
    return t;
}

static tensor vector(backend *be, int64_t count, const float *values)
{
    tensor t;
    assert_ok(backend_take(be, DTYPE_F32, 1, &count, &t));
    assert_ok(backend_upload(be, values, &t));
    return t;
}

/* Runs one op on a backend: builds its inputs, returns y downloaded. */
typedef void op_run(backend *be, const void *row, const int32_t *lengths, int32_t count, int64_t first, float *ret_y);

static void close_to(const char *what, const float *got, const float *want, int64_t count, double bound)
{
    const test_diff d = test_compare(got, want, (size_t)count);
    if (d.nonfinite || !(d.rel <= bound))
        fail_msg("%s: max %.3e of the largest at %zu, at most %.1e", what, d.rel, d.worst_idx, bound);
}

/* lengths: two sequences. y_values: of one time step. */
static void check_op(const char *what, op_run *run, const void *row, const int32_t lengths[2], int64_t y_values)
{
    const int64_t total = lengths[0] + lengths[1], count = total * y_values;
    float *want, *got, *again, *alone;
    assert_ok(mem_alloc((size_t)count + 1, sizeof *want, &want));
    assert_ok(mem_alloc((size_t)count + 1, sizeof *got, &got));
    assert_ok(mem_alloc((size_t)count + 1, sizeof *again, &again));
    assert_ok(mem_alloc((size_t)count + 1, sizeof *alone, &alone));
    run(naive, row, lengths, 2, 0, want);
    for (int b = 0; b < 2; b++) {
        backend *be = b ? dnnl : fast;
        run(be, row, lengths, 2, 0, got);
        run(be, row, lengths, 2, 0, again);
        close_to(what, got, want, count, SUM_BOUND);
        assert_memory_equal(got, again, (size_t)count * sizeof *got);
        run(be, row, lengths + 1, 1, lengths[0], alone);
        assert_memory_equal(got + lengths[0] * y_values, alone, (size_t)(lengths[1] * y_values) * sizeof *got);
    }
    mem_free(want);
    mem_free(got);
    mem_free(again);
    mem_free(alone);
}

/* ---- convolution over frequency and time ---- */

typedef struct conv2d_row {
    int32_t kernel, stride, freq_in, c_in, c_out;
    act_kind act;
    bool mapped, with_bias;
} conv2d_row;

static void run_conv2d(backend *be, const void *row, const int32_t *lengths, int32_t count, int64_t first, float *ret_y)
{
    const conv2d_row *r = row;
    const size_t mark = backend_scratch_mark(be);
    const int32_t freq_out = (r->freq_in - 1) / r->stride + 1;
    op_rows rows;
    weight *w;
    assert_ok(backend_rows(be, lengths, count, &rows));
    float *x = random_values(1, (first + rows_total(&rows)) * r->freq_in * r->c_in);
    float *values = random_values(2, (int64_t)r->c_out * r->c_in * r->kernel * r->kernel);
    float *bias_values = random_values(3, r->c_out);
    if (r->mapped)
        assert_ok(backend_map_conv(be, values, r->c_out, r->c_in, r->kernel * r->kernel, &w));
    else
        assert_ok(backend_pack_conv(be, values, r->c_out, r->c_in, r->kernel * r->kernel, 1, PRECISION_F32, &w));
    const tensor in = matrix(be, rows_total(&rows), r->freq_in * r->c_in, x + first * r->freq_in * r->c_in);
    const tensor bias = vector(be, r->c_out, bias_values);
    tensor y = matrix(be, rows_total(&rows), freq_out * r->c_out, NULL);
    assert_ok(op_conv2d(be, &(op_conv2d_args){.x = &in,
                                              .w = w,
                                              .bias = r->with_bias ? &bias : NULL,
                                              .y = &y,
                                              .rows = &rows,
                                              .kernel = r->kernel,
                                              .stride = r->stride,
                                              .freq_in = r->freq_in,
                                              .freq_out = freq_out,
                                              .act = r->act}));
    assert_ok(backend_download(be, &y, ret_y));
    mem_free(x);
    mem_free(values);
    mem_free(bias_values);
    backend_scratch_reset(be, mark);
}

static void test_conv2d(void **state)
{
    (void)state;
    static const struct {
        conv2d_row row;
        int32_t lengths[2];
    } rows[] = {
        {{1, 1, 1, 1, 1, ACT_NONE, false, false}, {1, 1}},
        {{3, 1, 1, 1, 1, ACT_NONE, true, true}, {1, 2}},
        {{3, 1, 7, 3, 5, ACT_RELU, false, true}, {3, 1}},
        {{3, 2, 7, 3, 5, ACT_NONE, true, true}, {0, 4}},
        {{1, 2, 8, 5, 19, ACT_NONE, true, true}, {13, 5}},
        {{3, 1, 80, 1, 32, ACT_RELU, true, true}, {17, 11}},  /* the first of the released network */
        {{3, 2, 80, 32, 32, ACT_RELU, true, true}, {13, 29}}, /* and one of its blocks */
        {{3, 2, 80, 32, 32, ACT_RELU, false, true}, {13, 29}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char what[64];
        snprintf(what, sizeof what, "conv2d row %zu", i);
        check_op(what, run_conv2d, &rows[i].row, rows[i].lengths,
                 (int64_t)((rows[i].row.freq_in - 1) / rows[i].row.stride + 1) * rows[i].row.c_out);
    }
}

/* ---- layers whose weights stay where they are ---- */

typedef struct linear_row {
    int64_t k_in, n_out[3];
    int parts;
    weight_order order;
} linear_row;

/* The product of mapped weights, one byte off any alignment; packed: of the same values packed ahead. */
static void run_linear(backend *be, const linear_row *r, bool packed, int64_t count, float *ret_y)
{
    const size_t mark = backend_scratch_mark(be);
    unsigned char *bytes[3] = {NULL};
    float *side_by_side, *x = random_values(4, count * r->k_in);
    weight_part parts[3];
    weight *w;
    int64_t n_out = 0;
    for (int p = 0; p < r->parts; p++)
        n_out += r->n_out[p];
    assert_ok(mem_alloc((size_t)(n_out * r->k_in), sizeof *side_by_side, &side_by_side));
    n_out = 0;
    for (int p = 0; p < r->parts; p++) {
        const int64_t n = r->n_out[p];
        float *values = random_values(5 + (uint32_t)p, n * r->k_in);
        for (int64_t o = 0; o < n; o++)
            for (int64_t k = 0; k < r->k_in; k++)
                side_by_side[(n_out + o) * r->k_in + k] =
                    values[r->order == ORDER_IN_OUT ? k * n + o : o * r->k_in + k];
        assert_ok(mem_alloc((size_t)(n * r->k_in) * sizeof *values + 1, 1, &bytes[p]));
        memcpy(bytes[p] + 1, values, (size_t)(n * r->k_in) * sizeof *values);
        parts[p] = (weight_part){.data = bytes[p] + 1, .n_out = n};
        n_out += n;
        mem_free(values);
    }
    if (packed)
        assert_ok(backend_pack_linear(be, side_by_side, n_out, r->k_in, PRECISION_F32, GEMM_BULK_BIT, &w));
    else
        assert_ok(backend_map_linear(be, parts, r->parts, r->order, r->k_in, &w));
    const tensor in = matrix(be, count, r->k_in, x);
    tensor y = matrix(be, count, n_out, NULL);
    assert_ok(op_linear(be, &(op_linear_args){.x = &in, .w = w, .y = &y, .act = ACT_GELU, .kind = GEMM_BULK}));
    assert_ok(backend_download(be, &y, ret_y));
    for (int p = 0; p < 3; p++)
        mem_free(bytes[p]);
    mem_free(side_by_side);
    mem_free(x);
    backend_scratch_reset(be, mark);
}

static void test_mapped_linear(void **state)
{
    (void)state;
    static const linear_row rows[] = {
        {1, {1}, 1, ORDER_IN_OUT},        {7, {5}, 1, ORDER_OUT_IN},           {300, {17}, 1, ORDER_IN_OUT},
        {257, {130}, 1, ORDER_OUT_IN},    {64, {64, 64, 64}, 3, ORDER_IN_OUT}, {320, {80, 16, 33}, 3, ORDER_IN_OUT},
        {512, {48, 20}, 2, ORDER_OUT_IN},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float want[131 * 200], got[131 * 200], packed[131 * 200];
        const int64_t count = 131, n = rows[i].n_out[0] + rows[i].n_out[1] + rows[i].n_out[2];
        run_linear(naive, &rows[i], false, count, want);
        run_linear(fast, &rows[i], false, count, got);
        run_linear(fast, &rows[i], true, count, packed);
        close_to("mapped linear", got, want, count * n, SUM_BOUND);
        assert_memory_equal(got, packed, (size_t)(count * n) * sizeof *got);
        run_linear(dnnl, &rows[i], false, count, packed); /* our kernels there too */
        assert_memory_equal(got, packed, (size_t)(count * n) * sizeof *got);
        run_linear(fast, &rows[i], false, 3, packed); /* fewer rows, the same bytes */
        assert_memory_equal(got, packed, (size_t)(3 * n) * sizeof *got);
    }
}

/* ---- norms, memory, segments ---- */

static void run_norm(backend *be, const void *row, const int32_t *lengths, int32_t count, int64_t first, float *ret_y)
{
    const int64_t width = *(const int64_t *)row;
    const size_t mark = backend_scratch_mark(be);
    op_rows rows;
    assert_ok(backend_rows(be, lengths, count, &rows));
    float *x = random_values(8, (first + rows_total(&rows)) * width), *gain = random_values(9, width);
    float *bias = random_values(10, width);
    const tensor in = matrix(be, rows_total(&rows), width, x + first * width);
    const tensor gains = vector(be, width, gain), biases = vector(be, width, bias);
    tensor y = matrix(be, rows_total(&rows), width, NULL);
    assert_ok(
        op_layer_norm(be, &(op_layer_norm_args){.x = &in, .gain = &gains, .bias = &biases, .y = &y, .eps = 1e-5f}));
    assert_ok(backend_download(be, &y, ret_y));
    mem_free(x);
    mem_free(gain);
    mem_free(bias);
    backend_scratch_reset(be, mark);
}

static void test_layer_norm(void **state)
{
    (void)state;
    static const int64_t widths[] = {2, 31, 128, 1280};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        check_op("layer_norm", run_norm, &widths[i], (const int32_t[]){5, 67}, widths[i]);
}

typedef struct affine_row {
    int64_t columns, width;
    act_kind act;
} affine_row;

static void run_affine(backend *be, const void *row, const int32_t *lengths, int32_t count, int64_t first, float *ret_y)
{
    const affine_row *r = row;
    const size_t mark = backend_scratch_mark(be);
    op_rows rows;
    assert_ok(backend_rows(be, lengths, count, &rows));
    float *x = random_values(11, (first + rows_total(&rows)) * r->columns);
    float *scale = random_values(12, r->width), *shift = random_values(13, r->width);
    const tensor in = matrix(be, rows_total(&rows), r->columns, x + first * r->columns);
    const tensor scales = vector(be, r->width, scale), shifts = vector(be, r->width, shift);
    tensor y = matrix(be, rows_total(&rows), r->width, NULL);
    assert_ok(op_affine(be, &(op_affine_args){.x = &in, .scale = &scales, .shift = &shifts, .y = &y, .act = r->act}));
    assert_ok(backend_download(be, &y, ret_y));
    mem_free(x);
    mem_free(scale);
    mem_free(shift);
    backend_scratch_reset(be, mark);
}

static void test_affine(void **state)
{
    (void)state;
    static const affine_row rows[] = {
        {1, 1, ACT_NONE}, {40, 37, ACT_RELU}, {1024, 544, ACT_RELU}, {192, 192, ACT_SIGMOID}, {33, 33, ACT_GELU}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_op("affine", run_affine, &rows[i], (const int32_t[]){7, 55}, rows[i].width);
}

typedef struct fsmn_row {
    int64_t columns, width;
    int32_t taps, first_channel;
} fsmn_row;

static void run_fsmn(backend *be, const void *row, const int32_t *lengths, int32_t count, int64_t first, float *ret_y)
{
    const fsmn_row *r = row;
    const size_t mark = backend_scratch_mark(be);
    op_rows rows;
    assert_ok(backend_rows(be, lengths, count, &rows));
    float *x = random_values(14, (first + rows_total(&rows)) * r->columns);
    float *taps = random_values(15, r->taps * r->width),
          *y0 = random_values(16, (first + rows_total(&rows)) * r->width);
    const tensor in = matrix(be, rows_total(&rows), r->columns, x + first * r->columns);
    const tensor w = matrix(be, r->taps, r->width, taps);
    tensor y = matrix(be, rows_total(&rows), r->width, y0 + first * r->width);
    assert_ok(
        op_fsmn(be, &(op_fsmn_args){.x = &in, .w = &w, .y = &y, .rows = &rows, .first_channel = r->first_channel}));
    assert_ok(backend_download(be, &y, ret_y));
    mem_free(x);
    mem_free(taps);
    mem_free(y0);
    backend_scratch_reset(be, mark);
}

static void test_fsmn(void **state)
{
    (void)state;
    static const struct {
        fsmn_row row;
        int32_t lengths[2];
    } rows[] = {{{1, 1, 1, 0}, {1, 1}},
                {{5, 3, 3, 2}, {0, 2}},
                {{384, 128, 31, 256}, {7, 31}},
                {{300, 257, 31, 43}, {40, 9}},
                {{3840, 1280, 31, 2560}, {3, 40}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_op("fsmn", run_fsmn, &rows[i].row, rows[i].lengths, rows[i].row.width);
}

typedef struct segment_row {
    int64_t width, columns;
    int32_t segment, first_channel;
    bool whole;
} segment_row;

/* Means, then the gate with them: y holds both. */
static void run_segments(backend *be, const void *row, const int32_t *lengths, int32_t count, int64_t first,
                         float *ret_y)
{
    const segment_row *r = row;
    const size_t mark = backend_scratch_mark(be);
    op_rows rows, segments;
    int32_t segment_counts[2];
    for (int32_t b = 0; b < count; b++)
        segment_counts[b] = (lengths[b] + r->segment - 1) / r->segment;
    assert_ok(backend_rows(be, lengths, count, &rows));
    assert_ok(backend_rows(be, segment_counts, count, &segments));
    float *x = random_values(17, (first + rows_total(&rows)) * r->width);
    const tensor in = matrix(be, rows_total(&rows), r->width, x + first * r->width);
    tensor mean = matrix(be, rows_total(&segments), r->width, NULL),
           y = matrix(be, rows_total(&rows), r->columns, NULL);
    assert_ok(op_segment_mean(
        be,
        &(op_segment_mean_args){
            .x = &in, .rows_in = &rows, .y = &mean, .rows_out = &segments, .segment = r->segment, .whole = r->whole}));
    assert_ok(op_segment_gate(be, &(op_segment_gate_args){.x = &in,
                                                          .gate = &mean,
                                                          .rows = &rows,
                                                          .segments = &segments,
                                                          .y = &y,
                                                          .segment = r->segment,
                                                          .first_channel = r->first_channel}));
    assert_ok(backend_download(be, &y, ret_y));
    mem_free(x);
    backend_scratch_reset(be, mark);
}

static void test_segments(void **state)
{
    (void)state;
    static const struct {
        segment_row row;
        int32_t lengths[2];
    } rows[] = {{{1, 1, 1, 0, false}, {1, 1}},
                {{5, 9, 7, 3, false}, {14, 15}},
                {{129, 200, 100, 71, true}, {199, 0}},
                {{128, 128, 100, 0, false}, {100, 173}},
                {{128, 128, 100, 0, true}, {100, 173}}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_op("segments", run_segments, &rows[i].row, rows[i].lengths, rows[i].row.columns);
}

/* By hand: three rows in segments of two, the last one short. */
static void test_segment_divisor(void **state)
{
    (void)state;
    for (int whole = 0; whole < 2; whole++) {
        const size_t mark = backend_scratch_mark(fast);
        op_rows rows, segments;
        assert_ok(backend_rows(fast, (const int32_t[]){3}, 1, &rows));
        assert_ok(backend_rows(fast, (const int32_t[]){2}, 1, &segments));
        const tensor x = matrix(fast, 3, 1, (const float[]){1, 3, 8});
        tensor y = matrix(fast, 2, 1, NULL);
        assert_ok(op_segment_mean(
            fast, &(op_segment_mean_args){
                      .x = &x, .rows_in = &rows, .y = &y, .rows_out = &segments, .segment = 2, .whole = whole}));
        assert_float_equal(tensor_f32(&y)[0], 4.0f + 2.0f, 0);
        assert_float_equal(tensor_f32(&y)[1], 4.0f + (whole ? 4.0f : 8.0f), 0);
        backend_scratch_reset(fast, mark);
    }
}

/* The new activations against f64. gelu: 3e-7 of |x|; sigmoid: 3 ulp; and what they do at the ends. */
static void test_activations(void **state)
{
    (void)state;
    enum { COUNT = 20001 };
    const size_t mark = backend_scratch_mark(fast);
    static float x[COUNT], y[COUNT];
    for (int i = 0; i < COUNT; i++)
        x[i] = (float)(i - COUNT / 2) * 0.0012f;
    static const act_kind kinds[] = {ACT_GELU, ACT_SIGMOID, ACT_RELU};
    for (size_t k = 0; k < 3; k++) {
        const tensor in = matrix(fast, 1, COUNT, x);
        tensor out = matrix(fast, 1, COUNT, NULL);
        assert_ok(op_act(fast, &(op_act_args){.x = &in, .y = &out, .act = kinds[k]}));
        assert_ok(backend_download(fast, &out, y));
        for (int i = 0; i < COUNT; i++) {
            const double v = (double)x[i], want = act_f64(v, kinds[k], 0);
            const double bound = kinds[k] == ACT_GELU ? 3e-7 * fabs(v) : kinds[k] == ACT_RELU ? 0 : 2e-7 * want;
            if (!(fabs((double)y[i] - want) <= bound))
                fail_msg("activation %zu of %.8g: %.9g, expected %.9g", k, v, (double)y[i], want);
        }
    }
    const float ends[] = {INFINITY, -INFINITY, NAN, 0.0f};
    for (size_t k = 0; k < 3; k++) {
        const tensor in = matrix(fast, 1, 4, ends);
        tensor out = matrix(fast, 1, 4, NULL);
        assert_ok(op_act(fast, &(op_act_args){.x = &in, .y = &out, .act = kinds[k]}));
        assert_true(isnan(tensor_f32(&out)[2]));
        assert_float_equal(tensor_f32(&out)[3], kinds[k] == ACT_SIGMOID ? 0.5f : 0.0f, 0);
    }
    backend_scratch_reset(fast, mark);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv2d),          cmocka_unit_test(test_mapped_linear), cmocka_unit_test(test_layer_norm),
        cmocka_unit_test(test_affine),          cmocka_unit_test(test_fsmn),          cmocka_unit_test(test_segments),
        cmocka_unit_test(test_segment_divisor), cmocka_unit_test(test_activations),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_backends, close_backends);
}
